"""`Server`: openpi's websocket protocol around a `Service`.

The metadata goes out on connect. After that every binary frame is answered by a binary frame, or by
a text frame with one sentence if there is an error, which openpi's client raises; the connection
stays open. `GET /healthz` says OK, or 503 while the policy hangs; `GET /metrics` is for Prometheus.
Inference runs on other threads, so pings and health checks are answered meanwhile.

Safe by default: it listens on loopback unless a host is given; the API key, if there is one, is
compared in constant time; requests with an `Origin`, that is web pages, are refused; frames,
connections and queues are bounded, and clients that do not read their replies are disconnected.

Source: openpi, `serving/websocket_policy_server.py`; openpi-client 0.1.2.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import http
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from mistjax.serve.fallback import StopRobot
from mistjax.serve.frames import LARGEST, FrameError, pack, unpack
from mistjax.serve.service import Service

LOG = logging.getLogger("mistjax.serve")
_SEEN = 500  # characters of an error that go out


class Server:
    """See the module docstring.

    Attributes:
        service: what answers.
        port: None until it listens.

    Args:
        service: what answers; started.
        bound: a socket from `bind`; None makes one for the service's settings.
    """

    def __init__(self, service: Service, bound: socket.socket | None = None):
        self.service, self._bound = service, bound
        self.port: int | None = None
        self._stop: asyncio.Event | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def run(self, listening: Callable[[int], None] = lambda port: None) -> None:
        """Serves until `stop`; calls `listening` with the port once it is open.

        Raises:
            ImportError: the extra `serve` is not installed.
            OSError: the address cannot be listened on.
        """
        websockets = _websockets()
        settings = self.service.settings
        self._stop, self._loop = asyncio.Event(), asyncio.get_running_loop()
        logging.getLogger("websockets.server").setLevel(logging.CRITICAL)
        bound = self._bound or bind(settings.host, settings.port)
        async with websockets.serve(
            self._converse,
            sock=bound,
            compression=None,
            max_size=LARGEST,
            max_queue=1,
            origins=[None],
            process_request=self._receive,
            server_header=None,
        ) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            self.port = port
            listening(port)
            await self._stop.wait()

    def stop(self) -> None:
        """Ends `run`, from any thread."""
        assert self._loop is not None and self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)

    def _receive(self, connection: Any, request: Any) -> Any:
        """The HTTP response to a request; None goes on to the websocket handshake."""
        service = self.service
        if request.path == "/healthz":
            if hung := service.hung_s:
                return connection.respond(
                    http.HTTPStatus.SERVICE_UNAVAILABLE,
                    f"the policy has not answered for {hung:.1f} s\n",
                )
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        key = service.settings.api_key
        if key is not None:
            given = request.headers.get_all("Authorization")
            wanted = f"Api-Key {key}".encode()
            if len(given) != 1 or not hmac.compare_digest(given[0].encode(), wanted):
                service.metrics.count("refused_total", 'what="key"')
                return connection.respond(
                    http.HTTPStatus.UNAUTHORIZED, "expected Authorization: Api-Key KEY\n"
                )
        if request.path == "/metrics":
            return connection.respond(http.HTTPStatus.OK, service.metrics.text())
        if service.full:
            service.metrics.count("refused_total", 'what="connection"')
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"{service.settings.max_connections} clients are connected, which is the limit\n",
            )
        return None

    async def _converse(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed

        service = self.service
        if service.full:  # another client came in during the handshake
            await connection.close(1013, "too many clients")
            return
        session = service.join()
        total = None
        try:
            await self._send(connection, pack(service.metadata()))
            while True:
                frame = await connection.recv()
                start = time.monotonic()
                try:
                    reply = await service.answer(session, unpack(frame))
                except FrameError as error:
                    service.metrics.count("refused_total", 'what="frame"')
                    await self._send(connection, _sentence(error))
                    continue
                except ValueError as error:
                    await self._send(connection, _sentence(error))
                    continue
                except StopRobot as error:
                    await self._send(connection, str(error))
                    await connection.close(1011, "no action")
                    return
                timing = {"infer_ms": 1e3 * (time.monotonic() - start)}
                if total is not None:
                    timing["prev_total_ms"] = 1e3 * total
                reply["server_timing"] = timing
                await self._send(connection, pack(reply))
                total = time.monotonic() - start
        except ConnectionClosed:
            pass
        except TimeoutError:
            service.metrics.count("refused_total", 'what="slow reader"')
            connection.transport.abort()
        except Exception:
            LOG.exception("connection %d failed", session.number)
            with contextlib.suppress(ConnectionClosed, TimeoutError):
                await self._send(connection, "the server has failed; its log says where.")
                await connection.close(1011, "internal error")
        finally:
            service.leave(session)

    async def _send(self, connection: Any, frame: bytes | str) -> None:
        async with asyncio.timeout(self.service.settings.send_timeout_s):
            await connection.send(frame)


def serve(service: Service, listening: Callable[[int], None]) -> None:
    """Starts a service and serves it until SIGINT or SIGTERM. SIGUSR1 is the kill switch: from then
    on every reply is the bare policy's; SIGUSR2 switches the monitor on again.

    Raises:
        ImportError: the extra `serve` is not installed.
        OSError: the address cannot be listened on.
        ValueError: an inference is slower than the deadline.
    """

    async def run() -> None:
        server, loop = Server(service, bound), asyncio.get_running_loop()
        switch = {signal.SIGUSR1: True, signal.SIGUSR2: False}
        for number, off in switch.items():
            loop.add_signal_handler(number, setattr, service, "pass_through", off)
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, server.stop)
        await server.run(listening)

    bound = None
    try:
        _websockets()  # fails before anything is compiled
        bound = bind(service.settings.host, service.settings.port)
        service.start()
        asyncio.run(run())
    finally:
        if bound is not None:
            bound.close()
        service.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to an address; it refuses clients until a server listens on it.

    Raises:
        OSError: the address is not available; names it.
    """
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except OSError as error:
        if found is not None:
            found.close()
        raise OSError(f"{host}:{port} cannot be listened on: {error.strerror}.") from None
    return found


@contextlib.contextmanager
def serving(service: Service) -> Iterator[Server]:
    """Serves a started service on a background thread; closes it at the end."""
    server, ready = Server(service), threading.Event()
    failed: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(server.run(lambda port: ready.set()))
        except BaseException as error:
            failed.append(error)
            ready.set()

    thread = threading.Thread(target=run, name="mistjax server", daemon=True)
    thread.start()
    ready.wait()
    try:
        if failed:
            raise failed[0]
        yield server
    finally:
        if not failed:
            server.stop()
        thread.join()
        service.close()


def _sentence(error: Exception) -> str:
    """An error as one line."""
    return " ".join(str(error).split())[:_SEEN]


def _websockets() -> Any:
    try:
        from websockets.asyncio import server
    except ImportError:
        raise ImportError(
            "websockets is not installed, which a server needs: pip install 'mistjax[serve]'."
        ) from None
    return server
