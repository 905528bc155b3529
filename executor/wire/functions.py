"""Functions to bytes, once: the same function is not pickled again for each call.

What may be skipped is decided by identity of everything that its pickle would hold:

- importable functions are pickled by reference: their name is all there is;
- lambdas, closures and functions of ``__main__`` are pickled by value: skipped only while code, defaults,
  closure cells and referenced globals are the very same objects *and* immutable. An ``id()`` is not enough
  (it is reused), nor is the function object (a captured list changes under it);
- anything else callable (partials, bound methods, instances) is pickled each time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from executor.wire import pickling
from executor.wire.main_globals import MAIN_MODULES
from executor.wire.signing import content_digest

_IMMUTABLE = (int, float, complex, str, bytes, bool, type(None), type(...), range)
#: Functions referenced by functions: how deep their own parts are compared.
_MAX_DEPTH = 8


class PickledFunction(NamedTuple):
    """A function's bytes and their SHA-256 in hex."""

    digest: str
    data: bytes


class FunctionCache:
    """Pickles functions and remembers those that cannot have changed. Used by many threads."""

    def __init__(self) -> None:
        self._by_reference: WeakKeyDictionary[Callable[..., Any], PickledFunction] = WeakKeyDictionary()
        self._by_value: WeakKeyDictionary[FunctionType, tuple[list[object], PickledFunction]] = WeakKeyDictionary()

    def pickled(self, function: Callable[..., Any]) -> PickledFunction:
        """The function's bytes, from memory where that is safe.

        Raises:
            Exception: Whatever pickling raised.
        """
        by_name = type(function) is BuiltinFunctionType and type(function.__self__) is ModuleType
        if not by_name and type(function) is not FunctionType:
            return _pickled(function)
        if is_importable(function):
            known = self._by_reference.get(function)
            if known is None:
                known = self._by_reference[function] = _pickled(function)
            return known
        return self._pickled_by_value(function) if type(function) is FunctionType else _pickled(function)

    def _pickled_by_value(self, function: FunctionType) -> PickledFunction:
        parts: list[object] = []
        if not _collect(function, parts, set(), 0):
            return _pickled(function)
        known = self._by_value.get(function)
        if known is not None and len(known[0]) == len(parts) and all(map(_same, known[0], parts)):
            return known[1]
        fresh = _pickled(function)
        self._by_value[function] = (parts, fresh)
        return fresh


def is_importable(thing: Callable[..., Any]) -> bool:
    """Whether another process finds the same function or class by its module and name."""
    module: Any = thing.__module__  # may be None, whatever its type says
    if not isinstance(module, str) or module in MAIN_MODULES or _registered_by_value(module):
        return False
    found: Any = sys.modules.get(module)
    for name in thing.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is thing


def _registered_by_value(module: str) -> bool:
    cloudpickle = sys.modules.get("cloudpickle.cloudpickle")
    if cloudpickle is None or not (names := cloudpickle.list_registry_pickle_by_value()):
        return False
    return any(module == name or module.startswith(name + ".") for name in names)


def _pickled(function: Callable[..., Any]) -> PickledFunction:
    data = pickling.dumps(function)
    return PickledFunction(content_digest(data), data)


def _same(one: object, other: object) -> bool:
    return one is other or (type(one) is type(other) and type(one) in (int, str, bytes) and one == other)


def _collect(function: FunctionType, parts: list[object], seen: set[int], depth: int) -> bool:
    """Append all that a pickle by value would hold; False where some of it may change unseen."""
    if id(function) in seen:
        return True
    if depth > _MAX_DEPTH or function.__dict__:
        return False
    seen.add(id(function))
    # Not the function itself: the cache must let go of it.
    parts += (function.__code__, function.__name__, function.__qualname__, function.__module__, function.__doc__)
    for name, annotation in getattr(function, "__annotations__", {}).items():
        parts += (name, annotation)
    defaults, keywords = function.__defaults__ or (), function.__kwdefaults__ or {}
    parts += (len(defaults), len(keywords), *keywords)
    values = [*defaults, *keywords.values()]
    try:
        values += [cell.cell_contents for cell in function.__closure__ or ()]
    except ValueError:  # an empty cell will be filled later
        return False
    namespace = function.__globals__
    found = [name for name in _names(function.__code__) if name in namespace]
    parts += found
    values += [namespace[name] for name in found]
    return all(_collect_value(value, parts, seen, depth) for value in values)


def _collect_value(value: object, parts: list[object], seen: set[int], depth: int) -> bool:
    if type(value) in _IMMUTABLE:
        parts.append(value)
        return True
    if isinstance(value, ModuleType):
        return _collect_module(value, parts)
    if type(value) is BuiltinFunctionType:  # ``items.append`` is one, and travels with its list
        parts.append(value)
        return value.__self__ is None or isinstance(value.__self__, ModuleType)
    if type(value) is tuple:
        parts.append(value)
        return all(_collect_value(item, parts, seen, depth) for item in value)
    if type(value) is FunctionType:
        if is_importable(value):
            parts.append(value)
            return True
        return _collect(value, parts, seen, depth + 1)
    if isinstance(value, type):
        parts.append(value)
        return is_importable(value)
    return False


def _collect_module(module: ModuleType, parts: list[object]) -> bool:
    parts.append(module)
    if "__path__" in module.__dict__:  # a package travels with those of its modules that have been imported by now
        parts.append(len(sys.modules))
    name = module.__name__
    return sys.modules.get(name) is module and not _registered_by_value(name)


#: By ``id``, checked by identity: hashing a code object costs more than looking at it.
_code_names: dict[int, tuple[CodeType, tuple[str, ...]]] = {}


def _names(code: CodeType) -> tuple[str, ...]:
    """All names that the code and the code nested in it may look up in globals."""
    known = _code_names.get(id(code))
    if known is not None and known[0] is code:
        return known[1]
    nested = [name for const in code.co_consts if isinstance(const, CodeType) for name in _names(const)]
    names = tuple(dict.fromkeys([*code.co_names, *nested]))
    if len(_code_names) > 4096:
        _code_names.clear()
    _code_names[id(code)] = (code, names)
    return names
