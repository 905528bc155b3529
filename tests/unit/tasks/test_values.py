"""Values: quantities, pools and options say what is wrong with them, and name the field."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from executor.tasks.call_options import CallOptions, retry_delay_s
from executor.tasks.chunk import chunks_of, even_chunksize, run_chunk, run_star_chunk
from executor.tasks.pool_spec import PoolSpec
from executor.tasks.resources import Resources, quantity

# ── quantities ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("500m", "0.5"),
        ("2", "2"),
        (2, "2"),
        (0.5, "0.5"),
        ("1.5", "1.5"),
        ("1k", "1000"),
        ("1M", "1e6"),
        ("1G", "1e9"),
        ("1T", "1e12"),
        ("1P", "1e15"),
        ("1E", "1e18"),
        ("1Ki", "1024"),
        ("512Mi", "536870912"),
        ("2Gi", "2147483648"),
        ("1Ti", "1099511627776"),
        ("1Pi", "1125899906842624"),
        ("1Ei", "1152921504606846976"),
        (" 2Gi ", "2147483648"),
        ("0", "0"),
    ],
)
def test_quantity_is_read_as_kubernetes_reads_it(text: str | float, value: str) -> None:
    assert quantity(text) == Decimal(value)


@pytest.mark.parametrize(
    "text", ["", "m", "2 Gi", "-1", "+1", "1,5", "2GB", "2gi", "2ki", "0x10", "nan", "inf", True, None]
)
def test_quantity_that_does_not_parse_names_the_field(text: Any) -> None:
    with pytest.raises(ValueError, match=r"^memory=.* is not a quantity\. Write it"):
        quantity(text, "memory")


@given(st.integers(0, 10**9), st.sampled_from(["m", "", "k", "Ki", "Gi", "P"]))
def test_quantity_is_linear(number: int, suffix: str) -> None:
    assert quantity(f"{number}{suffix}") == number * quantity(f"1{suffix}")


@pytest.mark.parametrize("field", ["cpu", "memory", "ephemeral_storage"])
@pytest.mark.parametrize(("value", "said"), [("much", "is not a quantity"), ("0", "must be more than nothing")])
def test_resources_name_the_field_that_is_wrong(field: str, value: str, said: str) -> None:
    with pytest.raises(ValueError, match=rf"^{field}='{value}' {said}"):
        Resources(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("gpu", [-1, 0.5, "1", True, None])
def test_resources_take_whole_gpus_only(gpu: Any) -> None:
    with pytest.raises(ValueError, match=r"^gpu=.* must be a whole number"):
        Resources(gpu=gpu)


def test_resources_are_values() -> None:
    assert Resources(cpu="2", memory="4Gi", gpu=1) == Resources(gpu=1, memory="4Gi", cpu="2")
    assert len({Resources(), Resources()}) == 1
    with pytest.raises(FrozenInstanceError):
        Resources().cpu = "1"  # type: ignore[misc]


# ── pools ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["", "Upper", "under_score", "-a", "a-", "a.b", "a b", "a" * 41, "größe", "a\n", None, 5]
)
def test_pool_name_must_be_a_dns_label(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^name=.*lower-case letters, digits and dashes, at most 40"):
        PoolSpec(name=name)


@pytest.mark.parametrize("name", ["a", "gpu", "a-b-1", "1", "a" * 40])
def test_pool_name_that_is_a_dns_label_is_taken(name: str) -> None:
    assert PoolSpec(name=name).name == name


@pytest.mark.parametrize("workers", [0, -1])
def test_pool_without_workers_is_refused_as_in_the_standard_library(workers: int) -> None:
    with pytest.raises(ValueError, match=r"^max_workers must be greater than 0$"):
        PoolSpec(max_workers=workers)


@pytest.mark.parametrize("workers", ["4", 2.5])
def test_pool_workers_must_be_whole(workers: Any) -> None:
    with pytest.raises(TypeError, match=r"^max_workers="):
        PoolSpec(max_workers=workers)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"queues": "render"}, r"^queues='render' is a string; write queues=\['render'\]"),
        ({"queues": ["render"]}, r"^queues=\['render'\] need celery_app="),
        ({"celery_app": "shop:app"}, r"^celery_app='shop:app' needs queues="),
        ({"celery_app": "shop app", "queues": ["q"]}, r"^celery_app='shop app': write it as 'package.module:app'"),
        ({"celery_app": "shop:app\n", "queues": ["q"]}, r"^celery_app=.*write it as"),
        ({"celery_app": ":app", "queues": ["q"]}, r"^celery_app="),
        ({"celery_app": "shop:app", "queues": [""]}, r"^queues=\[''\] must hold names"),
        ({"celery_app": "shop:app", "queues": [5]}, r"^queues=\[5\] must hold names"),
    ],
)
def test_pool_names_the_field_that_is_wrong(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        PoolSpec(**fields)


def test_resources_of_a_pool_are_resources() -> None:
    with pytest.raises(TypeError, match="resources=3"):
        PoolSpec(resources=3)  # type: ignore[arg-type]


def test_pool_of_a_service_is_a_value() -> None:
    queues = ["render", "thumbs"]
    spec = PoolSpec(name="render", celery_app="shop.tasks:app", queues=queues)
    queues.append("later")
    assert spec.queues == ("render", "thumbs")
    assert hash(spec) == hash(PoolSpec(name="render", celery_app="shop.tasks:app", queues=("render", "thumbs")))


# ── options of calls ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("field", ["timeout", "expires", "result_ttl"])
@pytest.mark.parametrize("value", [0, -1, -0.5, float("nan"), float("inf")])
def test_times_must_be_positive(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field}=.* must be a number of seconds above 0, or None"):
        CallOptions(**{field: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("field", ["timeout", "expires", "backoff", "result_ttl"])
@pytest.mark.parametrize("value", ["5", b"5", object(), [1]])
def test_times_must_be_numbers(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{field}=.* must be a number of seconds"):
        CallOptions(**{field: value})


@pytest.mark.parametrize("field", ["retries", "max_deliveries", "priority"])
@pytest.mark.parametrize("value", [1.5, "1", None])
def test_counts_must_be_whole(field: str, value: Any) -> None:
    with pytest.raises(TypeError, match=rf"^{field}=.* must be a whole number"):
        CallOptions(**{field: value})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"retries": -1}, r"^retries=-1 must not be negative"),
        ({"backoff": -0.1}, r"^backoff=-0\.1 must be"),
        ({"backoff": float("nan")}, r"^backoff=nan must be"),
        ({"backoff": None}, r"^backoff=None must be"),
        ({"max_deliveries": 0}, r"^max_deliveries=0 must be 1"),
        ({"priority": 10}, r"^priority=10 must be from 0"),
        ({"priority": -1}, r"^priority=-1 must be from 0"),
    ],
)
def test_counts_out_of_range_are_named(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CallOptions(**fields)


@pytest.mark.parametrize("kinds", [5, None, "ValueError", [ValueError()], int, (ValueError, "x")])
def test_retry_on_must_hold_exception_types(kinds: Any) -> None:
    with pytest.raises(TypeError, match=r"^retry_on=.* must hold exception types"):
        CallOptions(retry_on=kinds)


@pytest.mark.parametrize(
    "kinds", [KeyError, [KeyError], (KeyError,), {KeyError}, iter([KeyError])], ids=lambda kinds: type(kinds).__name__
)
def test_retry_on_of_any_shape_is_what_isinstance_takes(kinds: Any) -> None:
    assert isinstance(KeyError(), CallOptions(retry_on=kinds).retry_on)


@pytest.mark.parametrize("field", ["name", "pool"])
def test_names_must_be_strings(field: str) -> None:
    with pytest.raises(TypeError, match=rf"^{field}=5 must be a string"):
        CallOptions(**{field: 5})  # type: ignore[arg-type]


def test_numbers_of_numpy_travel_as_json() -> None:
    import json
    from dataclasses import asdict

    options = CallOptions(timeout=np.float32(1.5), expires=np.int64(3), retries=np.int64(2), max_deliveries=np.int8(1))
    assert json.loads(json.dumps({**asdict(options), "retry_on": None}))["timeout"] == 1.5
    assert options == CallOptions(timeout=1.5, expires=3.0, retries=2, max_deliveries=1)


def test_options_are_values() -> None:
    assert CallOptions(timeout=1) == CallOptions(timeout=1.0)
    assert len({CallOptions(), CallOptions()}) == 1


# ── pauses before retries ───────────────────────────────────────────────────────────────────────────────────────────


@given(st.floats(0, 100), st.integers(1, 10**6), st.floats(0, 1))
def test_retry_delay_is_between_half_and_whole_of_the_doubling_and_at_most_a_minute(
    backoff: float, attempt: int, random: float
) -> None:
    delay = retry_delay_s(CallOptions(backoff=backoff), attempt, random)
    whole = min(60.0, backoff * 2.0 ** min(attempt - 1, 1000))
    assert whole / 2 <= delay <= whole <= 60.0


def test_retry_delay_doubles() -> None:
    options = CallOptions(backoff=0.1)
    assert [retry_delay_s(options, attempt, 1.0) for attempt in (1, 2, 3, 11)] == [0.1, 0.2, 0.4, 60.0]


# ── chunks ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@given(st.lists(st.integers()), st.integers(1, 10))
def test_chunks_hold_everything_in_order(items: list[int], size: int) -> None:
    chunks = list(chunks_of(items, size))
    assert [item for chunk in chunks for item in chunk] == items
    assert all(len(chunk) == size for chunk in chunks[:-1])


@pytest.mark.parametrize(("items", "workers", "size"), [(0, 4, 1), (1, 4, 1), (16, 4, 1), (17, 4, 2), (1000, 2, 125)])
def test_even_chunksize_is_about_four_chunks_for_each_worker(items: int, workers: int, size: int) -> None:
    assert even_chunksize(items, workers) == size


def test_run_chunk_ends_at_the_first_exception() -> None:
    seen: list[int] = []

    def odd(x: int) -> int:
        seen.append(x)
        return 1 // (x - 2)

    with pytest.raises(ZeroDivisionError):
        run_chunk(odd, [1, 2, 3])
    assert seen == [1, 2]
    assert run_star_chunk(pow, [(2, 3), (3, 2)]) == [8, 9]
