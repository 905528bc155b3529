"""``kube-executor image check``: does a worker image fit this client?"""

from __future__ import annotations

import platform
import time
from importlib import metadata

from executor.errors import PoolStartError

#: What both sides should have alike: pickles and messages of one are read by the other.
PACKAGES = ("kube-executor", "cloudpickle", "celery", "kombu", "redis")


def check_image(image: str, namespace: str | None, context: str | None, timeout_s: float) -> None:
    """Start one pod, and print both sides.

    Args:
        image: As in ``KubeExecutor(image=...)``.
        namespace: None takes the context's.
        context: None takes the kubeconfig's current one.
        timeout_s: Seconds for pod and call.

    Raises:
        KubeExecutorError: The pod does not come up, or does not fit; says why.
    """
    from executor.kube_executor import KubeExecutor

    began = time.perf_counter()
    here = versions()
    with KubeExecutor(1, image=image, namespace=namespace, context=context, start_timeout=timeout_s) as ex:
        try:
            there = ex.submit(versions).result(timeout_s)
        except TimeoutError as error:
            (status,) = ex.status()
            raise PoolStartError(
                f"No answer from a pod of {image!r} within {timeout_s:g} s. {status.reason or ''}"
            ) from error
    print(f"first result after {time.perf_counter() - began:.1f} s")
    width = max(map(len, here))
    for name, ours in here.items():
        theirs = there.get(name, "-")
        print(
            f"{name:<{width}}  client {ours:<12} image {theirs:<12} {'' if ours == theirs else '<- differs'}".rstrip()
        )


def versions() -> dict[str, str]:
    """Python and packages of this process."""
    found = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "-"
    return found
