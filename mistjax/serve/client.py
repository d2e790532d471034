"""`Client`: one connection to a policy server, as openpi's client makes it, in a few lines."""

from __future__ import annotations

from typing import Any

from mistjax.serve.frames import pack, unpack


class Client:
    """A context manager.

    Attributes:
        metadata: what the server said first.

    Args:
        port: of the server, on this machine.
        api_key: sent as `Authorization: Api-Key KEY`.
        timeout_s: for a reply.
        **options: of `websockets.sync.client.connect`.

    Raises:
        ImportError: the extra `serve` is not installed.
    """

    def __init__(
        self, port: int, *, api_key: str | None = None, timeout_s: float = 30.0, **options: Any
    ):
        try:
            from websockets.sync.client import connect
        except ImportError:
            raise ImportError(
                "websockets is not installed, which a client needs: pip install 'mistjax[serve]'."
            ) from None
        if api_key is not None:
            options["additional_headers"] = {"Authorization": f"Api-Key {api_key}"}
        self._timeout_s = timeout_s
        self.socket = connect(
            f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None, **options
        )
        self.metadata = unpack(self.socket.recv(timeout=timeout_s))

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def infer(self, request: Any) -> Any:
        """The reply, or the text of an error; bytes and text are sent as they are."""
        self.socket.send(request if isinstance(request, bytes | str) else pack(request))
        reply = self.socket.recv(timeout=self._timeout_s)
        return reply if isinstance(reply, str) else unpack(reply)
