"""What the SDK leaves behind in a process: threads, descriptors."""

import json
from typing import Any

MANY = """
import gc, json, os, sys, threading
from meshwarden import sdk
from meshwarden.examples.orders import orders_pb2, orders_pb2_grpc
def used():
    gc.collect()
    return threading.active_count(), len(os.listdir("/proc/self/fd"))
def rounds(count):
    for _ in range(count):
        with sdk.channel("xds:///orders") as channel:
            orders_pb2_grpc.OrdersStub(channel).Get(orders_pb2.GetRequest(id="1"), timeout=60)
rounds(20)
before = used()
rounds(200)
print(json.dumps({"before": before, "after": used()}), flush=True)
sys.stdin.read()
"""


def test_hundreds_of_channels_leave_no_thread_and_no_descriptor(mesh: Any) -> None:
    mesh.orders()
    calling = mesh.workload("acme", "web")
    found = json.loads(calling.start("-c", MANY).popen.stdout.readline())
    assert found["after"][0] <= found["before"][0]
    # gRPC may be about to close a connection or two.
    assert found["after"][1] <= found["before"][1] + 10
