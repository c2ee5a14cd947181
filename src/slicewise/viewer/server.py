"""Serving pages to a browser on this machine: what the viewer and the reading study have in common.

Nothing is fetched from outside: all scripts are in the package, and the Content Security Policy forbids the rest.
"""

import ipaddress
import socket
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from slicewise.errors import UserError

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.responses import Response
    from starlette.routing import BaseRoute

KINDS = {"js": "text/javascript", "css": "text/css", "LICENSE": "text/plain"}
# A request must be whole within so many seconds of its connection, or of the answer before it.
REQUEST_S = 20.0
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'; "
    "connect-src 'self' data: blob:; worker-src 'self' blob:; font-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def require_server(command: str) -> None:
    """Raises `UserError` where the packages that serve pages are not installed."""
    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"slicewise {command} needs {error.name}, which is not installed; pip install 'slicewise[clinic]'"
        ) from None


def asset(package: str, name: str) -> bytes:
    """A file of a package's assets folder."""
    return resources.files(package).joinpath("assets", name).read_bytes()


def page(content: bytes, kind: str, status: int = 200) -> "Response":
    """A response with the headers that every answer carries, and no others."""
    from starlette.responses import Response

    return Response(content, status, dict(HEADERS), media_type=kind)


def asset_routes(*packages: str) -> "list[BaseRoute]":
    """`/assets/NAME` for every file in the assets folders of the packages; kept in memory."""
    from starlette.routing import Route

    held = {
        file.name: file.read_bytes()
        for package in packages
        for file in resources.files(package).joinpath("assets").iterdir()
        if file.name.rpartition(".")[2] in KINDS
    }

    async def answer(request: Any) -> "Response":
        name = request.path_params["name"]
        if name not in held:
            return page(b"not found\n", "text/plain", 404)
        response = page(held[name], KINDS[name.rpartition(".")[2]])
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response

    return [Route("/assets/{name}", answer)]


def application(routes: "Sequence[BaseRoute]", hosts: Sequence[str]) -> "Starlette":
    """An app that answers only to its own names, so that a foreign page cannot reach it by pointing a name of its own
    at this machine (DNS rebinding); `hosts` ["*"] answers to any."""
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app = Starlette(routes=list(routes), middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))])
    app.router.redirect_slashes = False  # it names the scheme and host that reach us, not the proxy's before us
    return app


def redirect(path: str) -> "Response":
    """To a path relative to the one asked for, so that it stays with the scheme and the host that the browser knows."""
    response = page(b"", "text/plain", 307)
    response.headers["Location"] = path
    return response


async def body_of(request: Any, most: int) -> bytes | None:
    """The body of a request, however it is sent; None where it has more than `most` bytes, of which no more is read."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            return None
    return bytes(body)


def host_names(host: str) -> list[str]:
    """The names a server bound to `host` answers to: its own on the loopback, any elsewhere."""
    return ["127.0.0.1", "localhost", "[::1]"] if is_loopback(host) else ["*"]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `UserError` where it cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen(2048)
    except (OSError, OverflowError) as error:
        bound.close()
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"host={host} port={port}: {reason}; choose another, or port=0 for a free one") from None
    return bound


def serve(app: Any, bound: socket.socket) -> None:
    """Answer requests until Ctrl-C. No access log: links hold personal tokens."""
    server(app).run(sockets=[bound])


def server(app: Any) -> Any:
    """A uvicorn server of the app that gives up on requests which are not whole within `REQUEST_S`."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):
        """Closes connections on which a request has begun, or none, and not ended: uvicorn waits for headers and body
        as long as they take."""

        _due: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._expect_request()

        def connection_lost(self, exc: Exception | None) -> None:
            self._due.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._expect_request()

        def _expect_request(self) -> None:
            if self._due is not None:
                self._due.cancel()
            self._due = self.loop.call_later(REQUEST_S, self._give_up)

        def _give_up(self) -> None:
            answering = self.cycle is not None and not self.cycle.more_body and not self.cycle.response_complete
            if not answering:
                self.transport.close()

    config = uvicorn.Config(
        app, http=Impatient, ws="none", log_level="warning", access_log=False, server_header=False, proxy_headers=False
    )
    return uvicorn.Server(config)


def address(bound: socket.socket) -> str:
    """http://HOST:PORT of a bound socket."""
    host, port = bound.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
