"""A gRPC server or client without any knowledge of the mesh but its environment; run by test_policy_envoy.py.

    server ADDRESS          serves every method as an echo of its own path
    client                  reads lines `TARGET METHOD` and answers each with a line of JSON

Both stop at the end of their standard input.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor

import grpc


class Echo(grpc.GenericRpcHandler):
    def service(self, handler_call_details):
        return grpc.unary_unary_rpc_method_handler(lambda _, __: handler_call_details.method.encode())


def serve(address: str) -> None:
    server = grpc.server(ThreadPoolExecutor(2), xds=True)
    server.add_generic_rpc_handlers((Echo(),))
    server.add_secure_port(address, grpc.xds_server_credentials(grpc.insecure_server_credentials()))
    server.start()
    sys.stdin.read()
    server.stop(0).wait()


def call() -> None:
    channels: dict[str, grpc.Channel] = {}
    for line in sys.stdin:
        target, method = line.split()
        if target not in channels:
            credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
            channels[target] = grpc.secure_channel(target, credentials)
        answer = {"code": "OK", "details": ""}
        try:
            channels[target].unary_unary(method)(b"", timeout=5, wait_for_ready=False)
        except grpc.RpcError as error:
            answer = {"code": error.code().name, "details": error.details()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    import grpc.experimental

    call() if sys.argv[1] == "client" else serve(sys.argv[2])
