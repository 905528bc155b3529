"""What a pool's initializer sets in the globals of ``__main__``, its calls shall see.

Functions of ``__main__`` travel by value, each pickle with globals of its own: so a call keeps the globals it was
submitted with, whatever its client does later. An initializer that says ``global state; state = ...`` would set
it in a dictionary that no call looks at. So what it has set is remembered here, and laid over the globals of each
function of ``__main__`` that is opened later, as in a worker of ``multiprocessing``, where all share one module.

What a call itself pickles by name (for a pool of its own, for a file) is looked up in ``__main__`` of the worker. So
the names that its function knows are put there before it runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FunctionType, MethodType, ModuleType
from typing import Any

#: Names of the script: as it was started, and in a process that multiprocessing has spawned from it.
MAIN_MODULES = ("__main__", "__mp_main__")

#: What an initializer cannot have changed in place; anything else that it names (a list, a model) is taken as changed.
_UNTOUCHED = (int, float, complex, str, bytes, bool, tuple, frozenset, type(None), FunctionType, ModuleType, type)

_overlay: dict[str, Any] = {}


def set_state(function: FunctionType, state: Any) -> None:
    """Finish a function that was pickled by value; named in every such pickle."""
    from cloudpickle.cloudpickle import _function_setstate  # the pickle needs it anyway

    _function_setstate(function, state)
    if _overlay and function.__globals__.get("__name__") in MAIN_MODULES:
        function.__globals__.update(_overlay)


def run_initializer(function: Callable[..., object], args: tuple[Any, ...]) -> None:
    """Run a pool's initializer, and remember what it set.

    Raises:
        Exception: Whatever it raised.
    """
    namespace = _namespace(function)
    before = dict(namespace)
    function(*args)
    for name, value in namespace.items():
        touched = name not in before or before[name] is not value or not isinstance(value, _UNTOUCHED)
        if touched and not name.startswith("__"):
            _overlay[name] = value


def show_in_main(function: Callable[..., Any]) -> None:
    """Let ``pickle`` find by name, in this process and those it forks, what a function of the script refers to."""
    namespace = _namespace(function)
    if namespace:
        main, inner = sys.modules["__main__"].__dict__, _underlying(function)
        main.update((name, value) for name, value in namespace.items() if not name.startswith("__"))
        if inner.__qualname__.isidentifier():
            main[inner.__qualname__] = inner


def _namespace(function: Callable[..., Any]) -> dict[str, Any]:
    """The globals that a function of ``__main__`` writes to; empty for anything else."""
    function = _underlying(function)
    if type(function) is FunctionType and function.__globals__.get("__name__") in MAIN_MODULES:
        return function.__globals__
    return {}


def _underlying(function: Any) -> Any:
    """What a partial or a bound method calls. Asks by type: attributes of a user's objects may do anything."""
    if type(function) is partial:
        function = function.func
    return function.__func__ if type(function) is MethodType else function
