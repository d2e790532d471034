"""A monitored policy server that openpi's stock clients use: `mistjax serve`, `mistjax certify`."""

from mistjax.serve.frames import pack, unpack
from mistjax.serve.gate import Gate, read_gate
from mistjax.serve.server import Server
from mistjax.serve.service import Service
from mistjax.serve.settings import Settings

__all__ = ["Gate", "Server", "Service", "Settings", "pack", "read_gate", "unpack"]
