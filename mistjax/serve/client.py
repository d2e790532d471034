"""`Client`: a connection to a policy server of this machine, for `certify`, tests and benches."""

from __future__ import annotations

from typing import Any

from mistjax.serve.frames import pack, unpack


class Client:
    """A context manager that speaks openpi's protocol.

    Attributes:
        metadata: the server's first frame.

    Args:
        port: of the server, on this machine.
        api_key: sent as `Authorization: Api-Key KEY`.
        timeout_s: how long to wait for a frame.
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
        """The reply, or the text of an error; bytes and text are sent as they are.

        Raises:
            TimeoutError: no reply within `timeout_s`.
        """
        self.socket.send(request if isinstance(request, bytes | str) else pack(request))
        reply = self.socket.recv(timeout=self._timeout_s)
        return reply if isinstance(reply, str) else unpack(reply)
