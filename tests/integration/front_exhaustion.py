"""A front in a process that runs out of file descriptors; test_front.py starts it and reads what it prints."""

import asyncio
import resource
import socket
import sys
from pathlib import Path

import grpc

from meshwarden.sdk.mtls.front import Front


async def answer(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    return request


async def main(directory: Path) -> None:
    inner = directory / "inner"
    inner.mkdir(mode=0o700)
    front = Front(inner / "s")
    server = grpc.aio.server()
    handlers = {"Answer": grpc.unary_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("t.T", handlers),))
    server.add_insecure_port(front.inner_target)
    await server.start()
    path = str(directory / "s")
    async with front, grpc.aio.insecure_channel(f"unix:{path}") as channel:
        await front.serve_unix(path)
        call = channel.unary_unary("/t.T/Answer")
        await call(b"x", timeout=60)
        print("served")
        resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
        idle: list[socket.socket] = []
        try:
            while True:
                sock = socket.socket(socket.AF_UNIX)
                idle.append(sock)
                sock.setblocking(False)
                sock.connect(path)
                await asyncio.sleep(0)
        except OSError:
            print("exhausted")
        for _ in range(20):
            await call(b"x", timeout=60)
        print("served-on")
        for sock in idle:
            sock.close()
        async with grpc.aio.insecure_channel(f"unix:{path}", [("grpc.use_local_subchannel_pool", 1)]) as fresh:
            await fresh.unary_unary("/t.T/Answer")(b"x", timeout=60, wait_for_ready=True)
        print("recovered")
    await server.stop(None)


asyncio.run(main(Path(sys.argv[1])))
