"""Changes of a file, drawn by seed: of its bytes, and of the values of the JSON in it."""

import json
import random
import struct

ODD = (None, True, -1, 0, 2**31, 2**70, 1e308, -0.5, "", "x", "../x", "\x00", [], {}, [[]], [None])
PIECES = (b"\x00", b"\xff" * 8, b"\xff\xff\xff\x7f", b"(", b")", b"nan", b"]", b"\x80\x05", b"\n")


def of_bytes(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """One to four changes: bits, runs, and pieces of another file."""
    for _ in range(rng.randint(1, 4)):
        at, stop = sorted(rng.randrange(len(data) + 1) for _ in range(2))
        stop = min(stop, at + rng.choice((1, 2, 8, 64, 4096)))
        piece = rng.choice((b"", data[at:stop] * 2, other[at:stop], rng.choice(PIECES)))
        if rng.random() < 0.4 and data:
            at = min(at, len(data) - 1)
            stop, piece = at + 1, bytes([data[at] ^ 1 << rng.randrange(8)])
        data = data[:at] + piece + data[stop:]
    return data


def of_json(data: bytes, rng: random.Random) -> bytes:
    """The document with one to three values replaced, removed or swapped."""
    document = json.loads(data)
    for _ in range(rng.randint(1, 3)):
        node, key = document, None
        while isinstance(node, dict | list) and node and (key is None or rng.random() < 0.75):
            inside, key = (
                node,
                rng.choice(list(node) if isinstance(node, dict) else range(len(node))),
            )
            node = inside[key]
        if key is None:
            break
        change = rng.random()
        if change < 0.2:
            del inside[key]
        elif change < 0.3 and isinstance(inside, dict):
            inside[rng.choice(("class", "extra", "0"))] = inside.pop(key)
        elif change < 0.5:
            inside[key] = rng.choice([*(inside.values() if isinstance(inside, dict) else inside)])
        else:
            inside[key] = rng.choice(ODD)
    return json.dumps(document).encode()


def of_safetensors(data: bytes, rng: random.Random) -> bytes:
    """The file with a changed header, still framed right; its JSON in JSON is text to it."""
    (size,) = struct.unpack("<Q", data[:8])
    header = of_json(data[8 : 8 + size], rng)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]
