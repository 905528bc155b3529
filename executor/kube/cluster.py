"""One namespace of one cluster: objects as plain dictionaries, errors as ours.

Everything that talks to the API server goes through :meth:`Cluster.call`: with strict field validation, a timeout,
and tenacity's pauses where the server is in trouble for a moment.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

import tenacity

from executor.errors import ClusterError, ClusterRefused, ClusterUnavailable
from executor.kube import kinds
from executor.kube.refusals import RETRIABLE, refusal, verb_of

if TYPE_CHECKING:
    import aiohttp

#: Until a request has been answered, in seconds.
TIMEOUT_S = 15.0
#: How long a request is made again and again while the server is in trouble, in seconds.
RETRY_FOR_S = 20.0
#: How long the other end of a connection may take to say goodbye, in seconds.
FAREWELL_S = 0.2
_PATCH = "application/merge-patch+json"

Object = dict[str, Any]


class Cluster:
    """A client for one namespace.

    Args:
        api: ``kubernetes_asyncio``'s ``ApiClient``; closed by :meth:`close`.
        namespace: The namespace.
        inside: Whether this process runs in a pod of that cluster.
    """

    def __init__(self, api: Any, namespace: str, *, inside: bool = False) -> None:
        self.namespace, self.inside = namespace, inside
        self._api = api

    @property
    def host(self) -> str:
        """URL of the API server."""
        return str(self._api.configuration.host)

    async def create(self, kind: str, body: Mapping[str, Any]) -> Object:
        """Create an object.

        Raises:
            ClusterRefused: Among others 409, where one of that name is there (but not from our own first attempt, whose
                answer was lost).
        """
        try:
            found: Object = await self.call("POST", kind, body=body)
        except ClusterRefused as error:
            if error.details.get("status") != 409 or error.details.get("attempt", 1) == 1:
                raise
            there = await self.get(kind, body["metadata"]["name"])
            if there is None:
                raise
            return there
        return found

    async def get(self, kind: str, name: str) -> Object | None:
        """An object, or None."""
        try:
            found: Object = await self.call("GET", kind, name)
        except ClusterRefused as error:
            if error.details.get("status") == 404:
                return None
            raise
        return found

    async def list(self, kind: str, selector: str = "", fields: str = "") -> Object:
        """A collection: ``items``, and ``metadata.resourceVersion``.

        Args:
            kind: Plural name.
            selector: Of labels.
            fields: Field selector.
        """
        found: Object = await self.call("GET", kind, query=_selectors(selector, fields))
        return found

    async def delete(self, kind: str, name: str, *, grace_s: int | None = None, policy: str = "Background") -> bool:
        """Delete an object; False where there is none."""
        body: Object = {"propagationPolicy": policy}
        if grace_s is not None:
            body["gracePeriodSeconds"] = grace_s
        try:
            await self.call("DELETE", kind, name, body=body)
        except ClusterRefused as error:
            if error.details.get("status") == 404:
                return False
            raise
        return True

    async def patch(self, kind: str, name: str, body: Mapping[str, Any]) -> Object:
        """Merge into an object (RFC 7386)."""
        found: Object = await self.call("PATCH", kind, name, body=body)
        return found

    async def log(self, pod: str, *, lines: int = 50, previous: bool = False) -> str:
        """Last lines of a pod's log; empty where there is none."""
        query = {"tailLines": lines, "previous": "true" if previous else "false"}
        try:
            return str(await self.call("GET", "pods", pod, below="log", query=query, text=True))
        except ClusterError:
            return ""

    async def call(
        self,
        method: str,
        kind: str,
        name: str = "",
        *,
        below: str = "",
        body: Mapping[str, Any] | None = None,
        query: Mapping[str, Any] | None = None,
        text: bool = False,
    ) -> Any:
        """Make one request, again while the server is in trouble.

        Raises:
            ClusterUnavailable: No answer, or trouble for longer than :data:`RETRY_FOR_S`.
            ClusterRefused: The server said no; says which verb on what.
        """
        query = dict(query or {})
        if method in ("POST", "PUT", "PATCH"):
            query["fieldValidation"] = "Strict"
        attempts = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_delay(RETRY_FOR_S),
            wait=tenacity.wait_random_exponential(multiplier=0.2, max=5.0),
            retry=tenacity.retry_if_exception_type(ClusterUnavailable),
            reraise=True,
        )
        async for attempt in attempts:
            with attempt:
                try:
                    answer = await self._once(method, kind, name, below, body, query)
                except ClusterError as error:
                    error.details["attempt"] = attempt.retry_state.attempt_number
                    raise
        return answer if text else json.loads(answer)

    async def _once(
        self, method: str, kind: str, name: str, below: str, body: Mapping[str, Any] | None, query: Mapping[str, Any]
    ) -> str:
        async with self._request(method, kind, name, below, body, query, timeout_s=TIMEOUT_S) as response:
            return str(await response.text())

    @asynccontextmanager
    async def watch(self, kind: str, query: Mapping[str, Any], *, silence_s: float) -> AsyncIterator[Any]:
        """The stream of one watch request: an aiohttp ``StreamReader`` of JSON lines.

        Args:
            kind: Plural name.
            query: ``resourceVersion``, selectors, ``timeoutSeconds``.
            silence_s: A connection that says nothing for so long is dead.
        """
        query = {**query, "watch": "true"}
        async with self._request("GET", kind, "", "", None, query, timeout_s=None, silence_s=silence_s) as response:
            try:
                yield response.content
            finally:
                if response.connection is not None and response.connection.protocol is not None:
                    response.connection.protocol.abort()  # nothing is lost, and the loop may end before a farewell

    @asynccontextmanager
    async def _request(
        self,
        method: str,
        kind: str,
        name: str,
        below: str,
        body: Mapping[str, Any] | None,
        query: Mapping[str, Any],
        *,
        timeout_s: float | None,
        silence_s: float | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        import aiohttp

        url, headers = await self._signed(kinds.path(kind, self.namespace, name, below), query)
        data = None if body is None else json.dumps(body)
        if data is not None:
            headers["Content-Type"] = _PATCH if method == "PATCH" else "application/json"
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=TIMEOUT_S, sock_read=silence_s)
        rest = self._api.rest_client
        extra = {"proxy": rest.proxy, "proxy_headers": rest.proxy_headers, "server_hostname": rest.server_hostname}
        given = {key: value for key, value in extra.items() if value}
        try:
            async with rest.pool_manager.request(
                method, url, headers=headers, data=data, timeout=timeout, **given
            ) as response:
                if response.status >= 300:
                    verb = verb_of(method, whole=not name, watching="watch" in query)
                    text = await response.text()
                    raise refusal(
                        response.status, text, verb=verb, kind=kind, name=name, namespace=self.namespace, below=below
                    )
                yield response
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise ClusterUnavailable(
                f"The API server at {self.host} does not answer: {type(error).__name__}: {error}. "
                "Is it up, and reachable from here? See: kubectl cluster-info"
            ) from error

    @asynccontextmanager
    async def port_forward(self, pod: str, port: int) -> AsyncIterator[aiohttp.ClientWebSocketResponse]:
        """A websocket to one port of a pod (subprotocol ``v4.channel.k8s.io``).

        Raises:
            ClusterError: It cannot be opened.
        """
        import aiohttp

        path = kinds.path("pods", self.namespace, pod, "portforward")
        url, headers = await self._signed(path, {"ports": port})
        rest = self._api.rest_client
        try:
            socket = await rest.pool_manager.ws_connect(
                "ws" + url.removeprefix("http"),
                headers=headers,
                protocols=["v4.channel.k8s.io"],
                max_msg_size=0,
                timeout=aiohttp.ClientWSTimeout(ws_close=FAREWELL_S),
                compress=0,
                **({"proxy": rest.proxy} if rest.proxy else {}),
            )
        except aiohttp.WSServerHandshakeError as error:
            raise refusal(
                error.status,
                error.message,
                verb="get",
                kind="pods",
                name=pod,
                namespace=self.namespace,
                below="portforward",
            ) from error
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise ClusterUnavailable(f"No port-forward to {pod}: {type(error).__name__}: {error}") from error
        try:
            yield socket
        finally:
            await socket.close()

    async def _signed(self, path: str, query: Mapping[str, Any]) -> tuple[str, dict[str, str]]:
        """URL and headers with today's token."""
        headers: dict[str, str] = {"User-Agent": "kube-executor"}
        params: list[tuple[str, str]] = [(key, str(value)) for key, value in query.items()]
        await self._api.update_params_for_auth(headers, params, ["BearerToken"])
        return f"{self.host}{path}?{urlencode(params)}" if params else f"{self.host}{path}", headers

    async def close(self) -> None:
        """Close all connections."""
        await self._api.rest_client.pool_manager.connector.close(abort_ssl=True)
        await self._api.close()
        await asyncio.sleep(FAREWELL_S)  # what aiohttp has closed already says goodbye by itself: the loop may end next

    def __repr__(self) -> str:
        return f"<Cluster {self.host} namespace={self.namespace!r}>"


def _selectors(selector: str, fields: str) -> dict[str, str]:
    given = {"labelSelector": selector, "fieldSelector": fields}
    return {name: value for name, value in given.items() if value}


__all__ = ["RETRIABLE", "Cluster"]
