"""Stands in for Chromium: says where it listens, as Chromium does, and echoes every message on its websocket.

The first argument is a file for its own id and that of a child, for Chromium has many: all must go with it.
"""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

from websockets.asyncio.server import serve


async def echo(socket):
    async for message in socket:
        if message == "leave":
            os._exit(3)
        await socket.send(socket.request.path if message == "path" else message)


def refuse(connection, request):
    return connection.respond(404, "no such page\n") if "missing" in request.path else None


async def main():
    sleeper = subprocess.Popen(["sleep", "600"])
    with Path(sys.argv[1]).open("a") as pids:
        pids.write(f"{os.getpid()} {sleeper.pid} ")
    async with serve(echo, "127.0.0.1", 0, max_size=None, compression=None, process_request=refuse) as server:
        port = server.sockets[0].getsockname()[1]
        print("a warning of no interest", file=sys.stderr)
        print(
            f"DevTools listening on ws://127.0.0.1:{port}/devtools/browser/b-1", file=sys.stderr, flush=True
        )
        await server.serve_forever()


asyncio.run(main())
