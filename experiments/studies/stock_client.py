"""openpi's client, unchanged, on the other side of a pipe: run by a Python that has openpi-client.

Requests come in on standard input, replies go out on standard output, each packed by openpi's own
msgpack_numpy and preceded by its length in 4 bytes. `what` is metadata, infer (one inference),
act (one step of openpi's chunk broker) or reset (the rest of its chunk is dropped).
"""

import struct
import sys

from openpi_client import action_chunk_broker, msgpack_numpy, websocket_client_policy


def main(port: int, steps: int) -> None:
    client = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
    broker = action_chunk_broker.ActionChunkBroker(client, steps)
    ask = {"infer": client.infer, "act": broker.infer}
    while head := sys.stdin.buffer.read(4):
        request = msgpack_numpy.unpackb(sys.stdin.buffer.read(struct.unpack("<I", head)[0]))
        try:
            if request["what"] == "metadata":
                reply = client.get_server_metadata()
            elif request["what"] == "reset":
                reply = {}
                broker.reset()
            else:
                reply = ask[request["what"]](request["observation"])
        except RuntimeError as error:
            reply = {"error": str(error)}
        body = msgpack_numpy.packb(reply)
        sys.stdout.buffer.write(struct.pack("<I", len(body)) + body)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
