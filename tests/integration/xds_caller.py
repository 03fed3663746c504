"""An application that calls `xds:///orders` for each line on its stdin; test_xds_clients.py starts it."""

import sys

import grpc

with grpc.insecure_channel("xds:///orders") as channel:
    call = channel.unary_unary("/test.Test/Name")
    for _ in sys.stdin:
        try:
            print(call(b"", timeout=60).decode(), flush=True)
        except grpc.RpcError as error:
            print(error.code().name, flush=True)
