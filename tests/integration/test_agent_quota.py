"""A real agent between programs that report what they use of limits, honest or not, and a control plane."""

import asyncio
import contextlib
import json
import sys
from typing import Any

import grpc

from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import quota_service_pb2 as quota_pb
from meshwarden.v1 import workload_service_pb2_grpc as workload_grpc

POLICY = "acme/limits"

# Says what stands in each line of its input, and prints what it is told.
PROGRAM = """\
import json, os, queue, sys, threading
import grpc
from google.protobuf import json_format
from meshwarden.v1 import quota_service_pb2 as pb, workload_service_pb2_grpc as pb_grpc
said = queue.Queue()
def read():
    for line in sys.stdin:
        said.put(json_format.Parse(line, pb.ShareRequest()))
    said.put(None)
threading.Thread(target=read, daemon=True).start()
channel = grpc.insecure_channel("unix:" + os.environ["MESHWARDEN_AGENT_SOCKET"])
try:
    for answer in pb_grpc.WorkloadServiceStub(channel).Share(iter(said.get, None)):
        print(json.dumps(json_format.MessageToDict(answer)), flush=True)
    print(json.dumps("ended"), flush=True)
except grpc.RpcError as error:
    print(json.dumps([error.code().name, error.details()]), flush=True)
"""


def limited(control_plane: Any) -> None:
    """Tells the agent that its workload's calls are limited."""
    update = node_pb.ConfigUpdate(revision=3)
    scope = update.scopes.add(scope="server/acme/web/grpc", full=True)
    scope.limits.policies.add(policy=POLICY).spec.limits.add(tenant="*", requests=100)
    update.data_planes.add(id="acme/web#1/grpc", scopes=["server/acme/web/grpc"])
    control_plane.push(config=update)


def say(program: Any, text: dict[str, Any]) -> None:
    program.stdin.write(json.dumps(text) + "\n")
    program.stdin.flush()


async def told(program: Any) -> Any:
    line = await asyncio.wait_for(asyncio.to_thread(program.stdout.readline), 30)
    assert line, program.stderr.read()
    return json.loads(line)


async def until_told(program: Any, what: Any) -> Any:
    while not what(answer := await told(program)):
        pass
    return answer


async def until_limited(program: Any) -> None:
    """Returns when the agent knows of the limits."""
    sequence = 0
    answer: Any = {}
    while "points" not in answer:
        sequence += 1
        say(program, {"sequence": sequence, "points": [{"usages": [usage("probe", 0)]}]})
        answer = await told(program)


def usage(tenant: str, allowed: int, policy: str = POLICY) -> dict[str, Any]:
    return {"bucket": {"policy": policy, "tenant": tenant}, "allowed": allowed}


def shares(answer: Any) -> list[tuple[str, float]]:
    """What an answer gives: (tenant, rate)."""
    return [
        (share["bucket"]["tenant"], share["rate"])
        for point in answer.get("points", ())
        for share in point.get("shares", ())
    ]


def heard(control_plane: Any) -> dict[str, int]:
    """What the control plane has heard of each tenant."""
    found: dict[str, int] = {}
    for request in control_plane.shared:
        for report in request.points:
            for item in report.usages:
                assert item.bucket.policy == POLICY
                found[item.bucket.tenant] = found.get(item.bucket.tenant, 0) + item.allowed
    return found


async def test_a_program_is_given_its_share_by_its_agent(agent: Any, control_plane: Any, until: Any) -> None:
    limited(control_plane)
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", PROGRAM)
    await until_limited(program)
    reports = [usage("globex", 2), usage("globex", 900, "platform/theirs")]
    say(program, {"sequence": 1000, "points": [{"point": "somebody-else", "usages": reports, "begins": True}]})
    await until_told(program, lambda answer: ("globex", 7) in shares(answer))
    await until(lambda: heard(control_plane) == {"probe": 0, "globex": 2}, "what it used of its own, and no more")
    (point,) = {report.point for request in control_plane.shared for report in request.points}
    assert point == f"acme/web#1/{program.pid}"
    program.kill()
    program.wait()
    await until(lambda: any(point in request.left for request in control_plane.shared), "it has left")


async def test_a_restarted_control_plane_learns_what_programs_hold(agent: Any, control_plane: Any, until: Any) -> None:
    limited(control_plane)
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", PROGRAM)
    await until_limited(program)
    await control_plane.stop()
    control_plane.shared.clear()
    await control_plane.start_again()
    limited(control_plane)
    say(program, {"sequence": 1000, "points": [{"usages": [usage("globex", 1)]}]})
    await until(lambda: any(request.points for request in control_plane.shared), "a new stream")
    first = next(report for request in control_plane.shared for report in request.points)
    assert first.begins
    assert [(item.bucket.tenant, item.rate) for item in first.held] == [("probe", 7)]


async def test_who_is_no_workload_may_not_report(agent: Any, control_plane: Any) -> None:
    await agent.ready()
    async with grpc.aio.insecure_channel(f"unix:{agent.socket}") as channel:
        call = workload_grpc.WorkloadServiceStub(channel).Share()
        with contextlib.suppress(grpc.aio.AioRpcError):  # who is refused at once may not even write
            await call.write(quota_pb.ShareRequest(sequence=1))
        assert await call.code() is grpc.StatusCode.PERMISSION_DENIED
    assert not control_plane.shared
