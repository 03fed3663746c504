"""A server that stops under load: whoever calls it goes elsewhere before it takes no more calls, and none fails."""

from collections.abc import Callable
from typing import Any

ROUNDS = 3
# So many at once that some are on their way at any moment.
CALLERS = 8
# gRPC's own clients: a call that has failed isn't made again.
HAMMER = """
import collections, grpc, grpc.experimental, json, sys, threading
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
stub = orders_pb2_grpc.OrdersStub(grpc.secure_channel("xds:///orders.platform", credentials))
codes, lock, over = collections.Counter(), threading.Lock(), threading.Event()
def call():
    while not over.is_set():
        try:
            stub.Get(orders_pb2.GetRequest(id="1"), timeout=50)
            code = "OK"
        except grpc.RpcError as error:
            code = f"{error.code().name}: {error.details()}"
        with lock:
            codes[code] += 1
threads = [threading.Thread(target=call) for _ in range(%d)]
for thread in threads:
    thread.start()
for line in sys.stdin:
    if line.strip() == "stop":
        over.set()
        for thread in threads:
            thread.join()
    print(json.dumps(codes), flush=True)
"""


def test_no_call_fails_of_a_server_that_stops(mesh: Any, until: Callable[..., Any]) -> None:
    mesh.orders("steady")
    serving, program = mesh.orders("other")
    calling = mesh.workload("acme", "web")
    hammer = calling.start("-c", HAMMER % CALLERS)
    until(lambda: hammer.send("how").get("OK"), "calls are made")
    for number in range(ROUNDS):
        assert program.end() == 0, "".join(program.log)
        assert serving.agent.leaves == number + 1
        program = serving.start("-m", "meshwarden.examples.orders", "--version", "v1", "--instance", "other")
        mesh.until_open(serving, program)
        before = hammer.send("how")["OK"]
        until(lambda before=before: hammer.send("how")["OK"] > before + 100, "calls go on")
    codes = hammer.send("stop")
    assert set(codes) == {"OK"}, codes


# Says from which port it is called: of each connection another.
ECHO = """
import grpc, os, sys
from meshwarden import sdk
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda _, context: context.peer().encode())
server = sdk.server(max_workers=2)
server.add_generic_rpc_handlers((Echo(),))
server.add_port("127.0.0.1:" + os.environ["MESHWARDEN_PORT"])
server.start()
sys.stdin.read()
server.stop(0).wait()
"""
CALLER = """
import grpc, grpc.experimental, json, sys
credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
say = grpc.secure_channel("xds:///orders.platform", credentials).unary_unary("/echo.Echo/Say")
for line in sys.stdin:
    print(json.dumps({"peer": say(b"", timeout=50).decode()}), flush=True)
"""


def test_callers_connect_anew_when_a_root_was_revoked_by_force(mesh: Any, until: Callable[..., Any]) -> None:
    serving = mesh.workload("platform", "orders", mesh.port())
    mesh.until_open(serving, serving.start("-c", ECHO))
    caller = mesh.workload("acme", "web").start("-c", CALLER)
    first = caller.send("who")["peer"]
    assert caller.send("who")["peer"] == first
    mesh.epoch = "9bc447b1"
    mesh.push()
    until(lambda: caller.send("who")["peer"] != first, "it has connected anew, and no call has failed")
