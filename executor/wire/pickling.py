"""Objects to bytes and back: C pickle where it is enough, cloudpickle where it is needed.

C pickle (0.7 µs out and in) names importable things by reference. That is wrong for what lives in
``__main__`` or in a module registered with ``cloudpickle.register_pickle_by_value``: another process
has another ``__main__``. So when the bytes name such a module, and when C pickle gives up (lambdas,
closures), cloudpickle (some µs more) takes over and ships the definition itself.

Buffers (NumPy arrays, bytes wrapped in ``PickleBuffer``) of :data:`OUT_OF_BAND_BYTES` and more are handed
out beside the pickle (protocol 5), so that they are never copied through it.
"""

from __future__ import annotations

import io
import pickle
import sys
import traceback
from collections.abc import Callable, Iterable
from functools import cache
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any

from executor.errors import RemoteTraceback, SerializationError
from executor.wire import outcome
from executor.wire.main_globals import MAIN_MODULES, set_state

if TYPE_CHECKING:
    from types import FunctionType

#: Buffers from this size on travel beside the pickle. Through base64 and JSON 64 MiB cost over a second.
OUT_OF_BAND_BYTES = 64 * 1024

_MAIN, _SPAWNED_MAIN = (name.encode() for name in MAIN_MODULES)


def dumps(value: object, buffers: list[PickleBuffer] | None = None) -> bytes:
    """Pickle any value for another process.

    Args:
        value: The object.
        buffers: Receives buffers of at least :data:`OUT_OF_BAND_BYTES`; None keeps all in the bytes.

    Raises:
        Exception: Whatever pickling raised: ``PicklingError``, ``TypeError``, or from the object's own ``__reduce__``.
    """
    taken = [] if buffers is None else buffers
    start = len(taken)
    callback = None if buffers is None else _taker(taken)
    try:
        data = pickle.dumps(value, 5, buffer_callback=callback)
        if not by_value(data):
            return data
    except (pickle.PicklingError, AttributeError, TypeError):
        pass  # a lambda, a closure, a local class: cloudpickle says whether it really cannot
    del taken[start:]
    return _dumps_by_value(value, callback)


def loads(data: bytes | memoryview, buffers: Iterable[Any] = ()) -> Any:
    """Unpickle bytes whose signature has been verified; never call it on others.

    Args:
        data: From :func:`dumps`.
        buffers: The out-of-band buffers, in order.
    """
    return pickle.loads(data, buffers=buffers)


def by_value(data: bytes) -> bool:
    """Whether a pickle by reference names a module that another process does not have."""
    if _MAIN in data or _SPAWNED_MAIN in data:
        return True
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    if cloudpickle is None:
        return False
    names: Iterable[str] = cloudpickle.list_registry_pickle_by_value()
    return bool(names) and any(name.encode() in data for name in names)


def exception_outcome(error: BaseException) -> bytes:
    """A user's exception as an outcome: pickled with its traceback as text.

    An exception that cannot be pickled, or whose pickle cannot be opened again (a constructor with other
    arguments than ``args``), becomes a :class:`SerializationError` that carries its type, text and traceback.
    """
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        data = _exception_pickle(error)
        loads(data)
    except Exception as failure:
        said = _text(error)
        return outcome.error(
            "SerializationError",
            f"The call raised {type(error).__qualname__}: {said}\n"
            f"and this exception cannot travel: {type(failure).__name__}: {_text(failure)}. "
            "Give it a constructor that accepts its own .args, or raise a plain exception.",
            {"exception": type(error).__qualname__, "text": said, "traceback": text},
        )
    return outcome.exception(data, text)


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # its own __str__ is broken
        return f"<{type(error).__qualname__} without a text>"


def exception_from(body: bytes | memoryview) -> BaseException:
    """The user's exception again, with the worker's traceback as its ``__cause__``.

    Raises:
        Exception: From unpickling; see :func:`load_error`.
    """
    data, text = outcome.exception_parts(body)
    error: BaseException = loads(data)
    error.__cause__ = RemoteTraceback(text)
    return error


def load_error(what: str, failure: BaseException) -> SerializationError:
    """What to raise where bytes arrived well but cannot be opened here."""
    wrapped = SerializationError(
        f"{what} cannot be unpickled here: {type(failure).__name__}: {_text(failure)}. "
        "Its module must be importable on both sides with the same version."
    )
    wrapped.__cause__ = failure
    return wrapped


def _exception_pickle(error: BaseException) -> bytes:
    cause, context, tb = error.__cause__, error.__context__, error.__traceback__
    try:
        return dumps(error.with_traceback(None))
    finally:
        error.__traceback__, error.__cause__, error.__context__ = tb, cause, context


def _taker(taken: list[PickleBuffer]) -> Callable[[PickleBuffer], bool]:
    def take(buffer: PickleBuffer) -> bool:
        try:
            large = buffer.raw().nbytes >= OUT_OF_BAND_BYTES
        except BufferError:  # not contiguous: only the pickle can hold it
            return True
        if large:
            taken.append(buffer)
        return not large

    return take


def _dumps_by_value(value: object, callback: Callable[[PickleBuffer], bool] | None) -> bytes:
    pickler = _value_pickler()
    _register_spawned_main()
    with io.BytesIO() as file:
        pickler(file, protocol=5, buffer_callback=callback).dump(value)
        return file.getvalue()


def _register_spawned_main() -> None:
    """Have cloudpickle treat the script as the script, in a process that multiprocessing has spawned."""
    import cloudpickle

    module = sys.modules.get(MAIN_MODULES[1])
    if module is not None and module.__name__ == MAIN_MODULES[1]:  # elsewhere this too is __main__
        cloudpickle.register_pickle_by_value(module)


@cache
def _value_pickler() -> Any:
    """The pickler of cloudpickle, whose functions see what an initializer has set; imported late: it takes 40 ms."""
    import cloudpickle

    class ValuePickler(cloudpickle.Pickler):  # type: ignore[misc]
        def _dynamic_function_reduce(self, func: FunctionType) -> tuple[Any, ...]:
            *reduced, _ = super()._dynamic_function_reduce(func)
            return (*reduced, set_state)

    return ValuePickler
