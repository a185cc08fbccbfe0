"""Carries the hub's page out of the lab: each connection to a listening socket goes on to an address inside."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

from tests.lab import connect

CHUNK_BYTES = 1 << 16


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    writer.close()


async def _serve(listening: socket.socket, host: str, port: int) -> None:
    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection(host, port)
        except OSError:  # no hub there yet: the browser sees its connection closed
            writer.close()
            return
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))

    server = await asyncio.start_server(carry, sock=listening)
    await server.serve_forever()


def main(descriptor: str, host: str, port: str) -> None:
    """Serves on a socket that was made outside, connects from inside."""
    listening = socket.socket(fileno=int(descriptor))
    connect.enter()
    asyncio.run(_serve(listening, host, int(port)))


if __name__ == "__main__":
    main(*sys.argv[1:])
