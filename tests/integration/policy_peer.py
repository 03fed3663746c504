"""A gRPC server or client without any knowledge of the mesh but its environment; run by policy_rig.py.

    server ADDRESS          serves every method over xDS, and counts the calls of each
    tls ADDRESS             the same without xDS, by the same certificates
    client                  reads lines of JSON, {"target", "authority", "method", "timeout_s", "metadata"}, and answers
                            each by one, {"code", "details", "calls": what the server has counted}

A call with `x-do: fail` ends with UNAVAILABLE, one with `x-do: slow` not before its caller gives up. Both stop at the
end of their standard input.
"""

import json
import os
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc


class Program(grpc.GenericRpcHandler):
    def __init__(self):
        self.calls = Counter()
        self.lock = threading.Lock()

    def service(self, handler_call_details):
        method = handler_call_details.method

        def answer(_, context):
            with self.lock:
                self.calls[method] += 1
                calls = dict(self.calls)
            said = dict(context.invocation_metadata()).get("x-do")
            if said == "fail":
                context.abort(grpc.StatusCode.UNAVAILABLE, "as it was told")
            if said == "slow":
                ended = threading.Event()
                if context.add_callback(ended.set):
                    ended.wait()
            context.set_trailing_metadata((("x-calls", json.dumps(calls)),))
            return b""

        return grpc.unary_unary_rpc_method_handler(answer)


def serve(address: str, xds: bool) -> None:
    server = grpc.server(ThreadPoolExecutor(8), xds=xds)
    server.add_generic_rpc_handlers((Program(),))
    credentials = grpc.xds_server_credentials(grpc.insecure_server_credentials()) if xds else mutual_tls()
    server.add_secure_port(address, credentials)
    server.start()
    sys.stdin.read()
    server.stop(0).wait()


def mutual_tls() -> grpc.ServerCredentials:
    """By the files that the bootstrap names."""
    bootstrap = json.loads(Path(os.environ["GRPC_XDS_BOOTSTRAP"]).read_text())
    files = bootstrap["certificate_providers"]["meshwarden"]["config"]
    key, chain, roots = (
        Path(files[name]).read_bytes() for name in ("private_key_file", "certificate_file", "ca_certificate_file")
    )
    return grpc.ssl_server_credentials([(key, chain)], roots, require_client_auth=True)


def call() -> None:
    channels: dict[str, grpc.Channel] = {}
    for line in sys.stdin:
        said = json.loads(line)
        target = said["target"]
        if target not in channels:
            credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
            options = [("grpc.default_authority", said["authority"])] if said.get("authority") else []
            channels[target] = grpc.secure_channel(target, credentials, options)
        answer = {"code": "OK", "details": "", "calls": {}}
        sent = said["metadata"].items()
        metadata = tuple((name, value) for name, of in sent for value in (of if isinstance(of, list) else [of]))
        method = channels[target].unary_unary(said["method"])
        try:
            _, ended = method.with_call(b"", timeout=said["timeout_s"], metadata=metadata, wait_for_ready=False)
            answer["calls"] = json.loads(dict(ended.trailing_metadata()).get("x-calls", "{}"))
        except grpc.RpcError as error:
            answer |= {"code": error.code().name, "details": error.details()}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    import grpc.experimental

    call() if sys.argv[1] == "client" else serve(sys.argv[2], xds=sys.argv[1] == "server")
