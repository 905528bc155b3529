"""A worker whose broker speaks TLS, with a password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from executor import KubeExecutor
from tests.integration.servers import Certificates, RedisServer, certificates, needs_redis

__all__ = ["certificates"]

pytestmark = [needs_redis, pytest.mark.timeout(60)]


@pytest.fixture
def url(tmp_path: Path, certificates: Certificates) -> Iterator[str]:
    options = [*certificates.server_options(), "--requirepass", "se/cr:et@"]
    with RedisServer(tmp_path, *options, tls=True) as server:
        yield f"rediss://:se%2Fcr%3Aet%40@localhost:{server.port}/2?ssl_ca_certs={certificates.ca}"


def test_calls_run_over_tls(url: str) -> None:
    with KubeExecutor(1, broker_url=url) as executor:
        assert executor.submit(pow, 2, 10).result(30) == 1024
        assert list(executor.map(abs, range(-100, 0))) == list(range(100, 0, -1))
