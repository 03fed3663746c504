"""The reference of `idle`: a grpc.aio server that has nothing to do.

    python -m benchmarks.idle_server DIRECTORY

It listens on a Unix socket in the directory, and then writes `idle.json` there.
"""

import asyncio
import signal
import sys
from pathlib import Path

import grpc.aio


async def serve(directory: Path) -> None:
    """Serves until SIGTERM."""
    server = grpc.aio.server()
    server.add_insecure_port(f"unix:{directory / 'idle.sock'}")
    await server.start()
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    (directory / "idle.json").write_text("{}")
    await over.wait()
    await server.stop(0)


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
