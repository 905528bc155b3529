"""The cache of pickled functions: it sees every change, and lets go."""

from __future__ import annotations

import functools
import gc
import math
import operator
import sys
import threading
import types
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import cloudpickle
import pytest

from executor.wire import functions, pickling
from executor.wire.functions import FunctionCache, PickledFunction
from tests.unit.wire import by_value_module

Namespace = dict[str, Any]


@pytest.fixture
def cache() -> FunctionCache:
    return FunctionCache()


@pytest.fixture
def pickles(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Every object that was really pickled."""
    done: list[object] = []
    real = pickling.dumps

    def dumps(value: object, buffers: Any = None) -> bytes:
        done.append(value)
        return real(value, buffers)

    monkeypatch.setattr(functions.pickling, "dumps", dumps)
    return done


@pytest.fixture
def by_value() -> Iterator[types.ModuleType]:
    cloudpickle.register_pickle_by_value(by_value_module)
    yield by_value_module
    cloudpickle.unregister_pickle_by_value(by_value_module)


def script(source: str, **names: Any) -> Namespace:
    """What a user's ``__main__`` holds after running the source."""
    namespace: Namespace = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace


def result(pickled: PickledFunction, *args: Any) -> Any:
    return pickling.loads(pickled.data)(*args)


def check(cache: FunctionCache, function: Any, expected: Any) -> PickledFunction:
    """Pickle twice; both must do what the function does now."""
    for _ in range(2):
        pickled = cache.pickled(function)
        assert result(pickled) == expected == function()
    return pickled


# ── what is remembered ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "source",
    [
        "f = lambda: 42",
        "def f(): return math.sqrt(4) + K",
        "def f(a: int = 1, *, b: float = 2.5) -> int: return a + b + K",
        "def g(): return K\ndef f(): return g()",
        "def f(n=3): return 1 if n == 0 else n * f(n - 1)",
        "def f(n=3): return n == 0 or g(n - 1)\ndef g(n): return n != 0 and f(n - 1)",
        "def f(): return [k * K for k in range(3)]",
        "def f(): return append(1, 2) if False else isinstance(1, int)",
    ],
)
def test_function_of_main_is_pickled_once(cache: FunctionCache, pickles: list[object], source: str) -> None:
    f = script(source, math=math, K=1, append=operator.add)["f"]
    check(cache, f, f())
    assert pickles == [f]


@pytest.mark.parametrize("function", [by_value_module.scaled, math.sqrt, abs])
def test_importable_function_is_pickled_once_by_name(
    cache: FunctionCache, pickles: list[object], function: Callable[..., Any]
) -> None:
    first, second = cache.pickled(function), cache.pickled(function)
    assert first is second
    assert len(pickles) == 1
    assert len(first.data) < 100


def test_equal_functions_have_one_digest(cache: FunctionCache) -> None:
    assert cache.pickled(math.sqrt).digest == FunctionCache().pickled(math.sqrt).digest
    assert cache.pickled(math.sqrt).digest != cache.pickled(math.cos).digest


@pytest.mark.parametrize(
    "callable_", [[].append, functools.partial(pow, 2), "abc".upper, by_value_module.Point, operator.itemgetter(0)]
)
def test_other_callables_are_pickled_each_time(
    cache: FunctionCache, pickles: list[object], callable_: Callable[..., Any]
) -> None:
    cache.pickled(callable_)
    cache.pickled(callable_)
    assert len(pickles) == 2


# ── every change is seen ────────────────────────────────────────────────────────────────────────────────────────────


def test_rebound_global_is_seen(cache: FunctionCache) -> None:
    names = script("def f(): return K", K=1)
    for names["K"] in (1, 2, 2.0, "two", None, 3, (1, 2), (1, 2, 3)):
        check(cache, names["f"], names["K"])


def test_deleted_and_new_globals_are_seen_even_with_the_same_value(cache: FunctionCache) -> None:
    names = script("def f(): return ('A' in globals(), 'B' in globals(), A if 'A' in globals() else B)", A=1)
    check(cache, names["f"], (True, False, 1))
    del names["A"]
    names["B"] = 1
    check(cache, names["f"], (False, True, 1))


def test_global_that_hides_a_builtin_is_seen(cache: FunctionCache) -> None:
    names = script("def f(): return len('abc')")
    check(cache, names["f"], 3)
    names["len"] = script("def hidden(_): return 42")["hidden"]
    check(cache, names["f"], 42)


def test_mutated_global_is_seen(cache: FunctionCache) -> None:
    names = script("def f(): return list(K)", K=[1])
    check(cache, names["f"], [1])
    names["K"].append(2)
    check(cache, names["f"], [1, 2])


def test_mutated_captured_list_is_seen(cache: FunctionCache) -> None:
    captured = [1]
    f = lambda: list(captured)  # noqa: E731
    check(cache, f, [1])
    captured.append(2)
    check(cache, f, [1, 2])


def test_captured_list_inside_a_tuple_is_seen(cache: FunctionCache) -> None:
    captured = ([1],)
    f = lambda: captured[0]  # noqa: E731
    check(cache, f, [1])
    captured[0].append(2)
    check(cache, f, [1, 2])


def test_closure_cell_that_is_changed_is_seen(cache: FunctionCache) -> None:
    value = 1

    def f() -> int:
        return value

    check(cache, f, 1)
    value = 2
    check(cache, f, 2)


def test_closure_cell_that_is_still_empty_is_no_error(cache: FunctionCache) -> None:
    def f() -> int:
        return later

    cache.pickled(f)
    later = 3
    check(cache, f, 3)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda f: setattr(f, "__defaults__", (5,)), (5, 2)),
        (lambda f: setattr(f, "__kwdefaults__", {"b": 5}), (1, 5)),
        (lambda f: setattr(f, "__code__", (lambda a=1, *, b=2: "new").__code__), "new"),
        (lambda f: f.__kwdefaults__.update(b=7), (1, 7)),
    ],
    ids=["defaults", "kwdefaults", "code", "kwdefaults in place"],
)
def test_changed_defaults_and_code_are_seen(
    cache: FunctionCache, change: Callable[[Any], object], expected: object
) -> None:
    f = script("def f(a=1, *, b=2): return (a, b)")["f"]
    check(cache, f, (1, 2))
    change(f)
    check(cache, f, expected)


def test_mutable_default_that_has_changed_is_seen(cache: FunctionCache) -> None:
    f = script("def f(a=[]): return list(a)")["f"]
    check(cache, f, [])
    f.__defaults__[0].append(1)
    check(cache, f, [1])


def test_attributes_of_the_function_are_seen(cache: FunctionCache) -> None:
    f = script("def f(): return getattr(f, 'mark', None)")["f"]
    check(cache, f, None)
    f.mark = 1
    check(cache, f, 1)
    f.mark = 2
    check(cache, f, 2)
    del f.mark
    check(cache, f, None)


@pytest.mark.parametrize("field", ["__name__", "__qualname__", "__doc__"])
def test_renamed_function_is_seen(cache: FunctionCache, field: str) -> None:
    f = script("def f(): 'doc'")["f"]
    cache.pickled(f)
    setattr(f, field, "changed")
    assert getattr(pickling.loads(cache.pickled(f).data), field) == "changed"


def test_changed_annotations_are_seen(cache: FunctionCache) -> None:
    f = script("def f(a: int): pass")["f"]
    cache.pickled(f)
    f.__annotations__["a"] = str
    assert pickling.loads(cache.pickled(f).data).__annotations__ == {"a": str}


def test_helper_that_is_rebound_is_seen(cache: FunctionCache) -> None:
    names = script("def g(): return 1\ndef f(): return g()")
    check(cache, names["f"], 1)
    exec("def g(): return 2", names)
    check(cache, names["f"], 2)


def test_helper_of_a_helper_is_seen(cache: FunctionCache) -> None:
    names = script("def h(): return K\ndef g(): return h()\ndef f(): return g()", K=1)
    check(cache, names["f"], 1)
    names["K"] = 2
    check(cache, names["f"], 2)
    names["h"].__defaults__ = None
    names["h"].__code__ = (lambda: 3).__code__
    check(cache, names["f"], 3)


def test_helpers_deeper_than_any_bound_are_seen(cache: FunctionCache) -> None:
    source = "def f0(): return K\n" + "\n".join(f"def f{n}(): return f{n - 1}()" for n in range(1, 30))
    names = script(source, K=1)
    check(cache, names["f29"], 1)
    names["K"] = 2
    check(cache, names["f29"], 2)


def test_change_under_mutual_recursion_is_seen(cache: FunctionCache) -> None:
    names = script("def f(n=4): return n == 0 or g(n - 1)\ndef g(n): return K and f(n - 1) if n else K", K=True)
    check(cache, names["f"], True)
    names["K"] = False
    check(cache, names["f"], False)


def test_global_used_by_nested_code_only_is_seen(cache: FunctionCache) -> None:
    names = script("def f():\n    def inner(): return (lambda: [K for _ in range(2)])()\n    return inner()", K=1)
    check(cache, names["f"], [1, 1])
    names["K"] = 2
    check(cache, names["f"], [2, 2])


def test_class_of_main_that_has_changed_is_seen(cache: FunctionCache) -> None:
    names = script("class C: x = 1\ndef f(): return C.x")
    check(cache, names["f"], 1)
    names["C"].x = 2
    check(cache, names["f"], 2)


def test_class_made_in_a_function_that_has_changed_is_seen(cache: FunctionCache) -> None:
    class Local:
        x = 1

    f = lambda: Local.x  # noqa: E731
    check(cache, f, 1)
    Local.x = 2
    check(cache, f, 2)


def test_object_that_has_changed_is_seen(cache: FunctionCache) -> None:
    point = by_value_module.Point(1)
    f = lambda: point.x  # noqa: E731
    check(cache, f, 1)
    point.x = 2
    check(cache, f, 2)


def test_bound_method_of_a_list_that_has_changed_is_seen(cache: FunctionCache) -> None:
    names = script("def f(): return count(1)", count=(items := [1]).count)
    check(cache, names["f"], 1)
    items.append(1)
    check(cache, names["f"], 2)


def test_module_made_by_hand_that_has_changed_is_seen(cache: FunctionCache) -> None:
    module = types.ModuleType("made_by_hand")
    module.K = 1  # type: ignore[attr-defined]
    names = script("def f(): return module.K", module=module)
    check(cache, names["f"], 1)
    module.K = 2  # type: ignore[attr-defined]
    check(cache, names["f"], 2)


def test_module_registered_by_value_that_has_changed_is_seen(
    cache: FunctionCache, by_value: types.ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert result(cache.pickled(by_value.scaled), 21) == 42
    monkeypatch.setattr(by_value, "FACTOR", 3)
    assert result(cache.pickled(by_value.scaled), 21) == 63


def test_monkeypatched_module_function_is_pickled_by_value(
    cache: FunctionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = by_value_module.scaled
    cache.pickled(original)
    monkeypatch.setattr(by_value_module, "scaled", lambda x: -x)
    assert result(cache.pickled(by_value_module.scaled), 1) == -1
    assert result(cache.pickled(original), 21) == 42


def test_package_module_imported_later_is_seen(cache: FunctionCache, pickles: list[object]) -> None:
    import xml

    names = script("def f(): return xml.dom.__name__", xml=xml)
    cache.pickled(names["f"])
    before = len(pickles)
    sys.modules["xml.imported_for_a_test"] = types.ModuleType("xml.imported_for_a_test")
    try:
        cache.pickled(names["f"])
    finally:
        del sys.modules["xml.imported_for_a_test"]
    assert len(pickles) == before + 1


def test_function_without_a_module_is_no_error(cache: FunctionCache, by_value: types.ModuleType) -> None:
    namespace: Namespace = {}
    exec("def f(): return 1", namespace)
    namespace["f"].__module__ = None
    check(cache, namespace["f"], 1)


def test_function_that_cannot_be_pickled_raises_each_time(cache: FunctionCache) -> None:
    lock = threading.Lock()
    f = lambda: lock  # noqa: E731
    for _ in range(2):
        with pytest.raises(TypeError, match="lock"):
            cache.pickled(f)


# ── letting go ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_cache_lets_go_of_ten_thousand_lambdas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functions.pickling, "dumps", lambda f, *_: f.__code__.co_code)  # 50 µs each, and not the point
    cache = FunctionCache()
    code = compile("lambda: K", "<test>", "eval")
    gone: list[weakref.ref[Any]] = []
    for number in range(10_000):
        f = eval(code, {"__name__": "__main__", "K": number})
        cache.pickled(f)
        gone.append(weakref.ref(f))
    del f
    gc.collect()
    assert not any(ref() for ref in gone)
    assert not len(cache._by_value)


@pytest.mark.parametrize(
    "source",
    [
        "def f(n=3): return 1 if n == 0 else n * f(n - 1)",
        "def f(n=3): return n == 0 or g(n - 1)\ndef g(n): return n != 0 and f(n - 1)",
        "def outer():\n    def f(n=2): return n and f(n - 1)\n    return f\nf = outer()",
        "class C: pass\ndef f(): return C",
    ],
)
def test_cache_lets_go_of_functions_that_refer_to_themselves(cache: FunctionCache, source: str) -> None:
    names = script(source)
    cache.pickled(names["f"])
    gone = weakref.ref(names["f"])
    names.clear()
    gc.collect()
    assert gone() is None


def test_cache_bounds_what_it_keeps_of_code(cache: FunctionCache) -> None:
    for number in range(5000):
        functions._names(compile(str(number), "<test>", "eval"))
    assert len(functions._code_names) <= 4097


# ── from many threads ───────────────────────────────────────────────────────────────────────────────────────────────


def test_cache_serves_many_threads_while_globals_change(cache: FunctionCache) -> None:
    shared = [script(f"def f(): return (K, {n})", K=0) for n in range(4)]
    wrong: list[object] = []
    begin = threading.Barrier(5)

    def pickle_all() -> None:
        begin.wait()
        for _ in range(100):
            for number, names in enumerate(shared):
                low = names["K"]
                got = result(cache.pickled(names["f"]))
                high = names["K"]
                if not (low <= got[0] <= high and got[1] == number):
                    wrong.append((low, got, high, number))
            cache.pickled(lambda: 1)

    threads = [threading.Thread(target=pickle_all) for _ in range(4)]
    for thread in threads:
        thread.start()
    begin.wait()
    while any(thread.is_alive() for thread in threads):
        for names in shared:
            names["K"] += 1
        threads[0].join(0.001)
    for thread in threads:
        thread.join()
    assert wrong == []
