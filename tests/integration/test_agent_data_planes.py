"""What the agent's data planes get, on a real agent with real gRPC and Envoy programs: from push to effect and back.

The control plane of the tests compiles with the real policy room and pushes what the agent's interest asks for.
"""

import asyncio
import json
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import psutil
import pytest

from meshwarden.controlplane.local.port import free_port
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api

sys.path.insert(0, str(Path(__file__).parent))
from policy_world import HTTP, Policy, healthy, settled

ECHO = """
import grpc, os, sys
from concurrent.futures import ThreadPoolExecutor
class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.unary_unary_rpc_method_handler(lambda body, _: body)
server = grpc.server(ThreadPoolExecutor(2), xds=True)
server.add_generic_rpc_handlers((Echo(),))
server.add_secure_port("127.0.0.1:" + os.environ["MESHWARDEN_PORT"],
                       grpc.xds_server_credentials(grpc.insecure_server_credentials()))
server.start()
sys.stdin.read()
server.stop(0).wait()
"""
PROGRAMS = {
    "plain": ECHO,
    "whole": f"from meshwarden.sdk.agent import AgentLink\nAgentLink.of_process().wait()\n{ECHO}",
}
# Reads lines "TARGET METHOD", answers each with a status.
CALLER = """
import grpc, grpc.experimental, sys
channels = {}
for line in sys.stdin:
    target, method = line.split()
    if target not in channels:
        credentials = grpc.xds_channel_credentials(grpc.experimental.insecure_channel_credentials())
        channels[target] = grpc.secure_channel(target, credentials)
    try:
        channels[target].unary_unary(method)(b"", timeout=5, wait_for_ready=True)
        print("OK", flush=True)
    except grpc.RpcError as error:
        print(error.code().name, flush=True)
"""


@pytest.fixture
def policy(control_plane: Any) -> Policy:
    return Policy(control_plane)


async def call(program: "subprocess.Popen[str]", target: str, method: str = "/echo.Echo/Say") -> str:
    def ask() -> str:
        assert program.stdin is not None
        assert program.stdout is not None
        program.stdin.write(f"{target} {method}\n")
        program.stdin.flush()
        return program.stdout.readline().strip()

    answer = await asyncio.wait_for(asyncio.to_thread(ask), 60)
    assert answer, program.stderr.read() if program.stderr else ""
    return answer


async def test_proxyless_from_push_to_effect(agent: Any, policy: Policy, until: Any) -> None:
    port = free_port(random.SystemRandom())
    policy.declare({"tenant": "platform", "name": "orders", "port": port}, {"tenant": "acme", "name": "web"})
    await agent.ready()
    agent.exec("orders", sys.executable, "-c", ECHO)
    await until(healthy(policy, "orders"), "orders takes calls")
    policy.allow("platform/orders", "acme/web")
    caller = agent.exec("web", sys.executable, "-c", CALLER)
    await until(
        lambda: policy.follow() or "acme/web#1/grpc" in str(policy.control_plane.last("interest")), "web is there"
    )
    assert await call(caller, "xds:///orders.platform") == "OK"
    assert await call(caller, "xds:///orders") == "OK"
    await settled(policy, until)
    # On the same connection: the answer changes with the policy.
    policy.allow("platform/orders", None)
    await settled(policy, until)
    assert await call(caller, "xds:///orders") == "PERMISSION_DENIED"
    # A push in which nothing is new for anybody is acknowledged too.
    policy.push()
    await settled(policy, until)
    assert list(policy.control_plane.last("ack").nacks) == []
    assert {ref.client.partition("/")[0] for ref in policy.control_plane.last("interest").data_planes} == {"c-core"}


async def test_servers_without_the_sdk_are_told_as_such(agent: Any, policy: Policy, until: Any) -> None:
    ports = [free_port(random.SystemRandom()) for _ in range(2)]
    policy.declare(
        *({"tenant": "platform", "name": name, "port": port} for name, port in zip(PROGRAMS, ports, strict=True))
    )
    await agent.ready()
    for name, program in PROGRAMS.items():
        agent.exec(name, sys.executable, "-c", program)
    for name in PROGRAMS:
        await until(healthy(policy, name), f"{name} takes calls")

    def told() -> dict[str, bool]:
        refs = policy.control_plane.last("interest").data_planes
        return {ref.entry: ref.without_sdk for ref in refs if ref.client}

    await until(lambda: told() == {"plain": True, "whole": False}, "it is told which of them has the SDK")


async def test_a_refused_resource_is_reported_and_the_old_one_serves_on(agent: Any, policy: Policy, until: Any) -> None:
    port = free_port(random.SystemRandom())
    policy.declare({"tenant": "platform", "name": "orders", "port": port}, {"tenant": "acme", "name": "web"})
    await agent.ready()
    agent.exec("orders", sys.executable, "-c", ECHO)
    await until(healthy(policy, "orders"), "orders takes calls")
    policy.allow("platform/orders", "acme/web")
    caller = agent.exec("web", sys.executable, "-c", CALLER)
    await until(
        lambda: policy.follow() or "acme/web#1/grpc" in str(policy.control_plane.last("interest")), "web is there"
    )
    assert await call(caller, "xds:///orders.platform") == "OK"
    await settled(policy, until)
    spoilt = policy.push(spoil="orders.platform")
    ack = await until(
        lambda: (found := policy.control_plane.last("ack")).revision == spoilt and found.nacks and found,
        "the refusal is reported",
    )
    assert {nack.data_plane for nack in ack.nacks} == {"acme/web#1/grpc"}
    assert api.LISTENER in {nack.type_url for nack in ack.nacks}
    assert all(nack.message for nack in ack.nacks)
    assert await call(caller, "xds:///orders.platform") == "OK"
    policy.push()
    await settled(policy, until)
    assert not policy.control_plane.last("ack").nacks


async def test_an_agent_that_starts_again_keeps_its_endpoints(agent: Any, policy: Policy, until: Any) -> None:
    port = free_port(random.SystemRandom())
    policy.declare({"tenant": "platform", "name": "orders", "port": port})
    await agent.ready()
    agent.exec("orders", sys.executable, "-c", ECHO)
    await until(healthy(policy, "orders"), "orders takes calls")
    agent.stop(signal.SIGKILL)
    policy.control_plane.heard.clear()
    await agent.ready()
    await until(lambda: policy.control_plane.last("endpoints"), "endpoints are reported")
    reports = [m.endpoints for m in policy.control_plane.heard if m.WhichOneof("message") == "endpoints"]
    assert [[item.entry for item in report.endpoints] for report in reports] == [["orders"]] * len(reports)


async def test_a_program_that_does_not_fit_its_entry_is_no_endpoint(agent: Any, policy: Policy, until: Any) -> None:
    service = {"tenant": "platform", "protocol": "HTTP", "check": {"httpPath": "/ok"}}
    wrong, right = free_port(random.SystemRandom()), free_port(random.SystemRandom())
    policy.declare(
        {**service, "name": "billing", "port": wrong, "selectors": {"path": os.path.realpath("/bin/sleep")}},
        {**service, "name": "shop", "port": right},
    )
    await agent.ready()
    agent.exec("billing", sys.executable, "-c", HTTP)
    await until(lambda: _get(f"http://127.0.0.1:{wrong}/ok"), "the wrong program answers")
    agent.exec("shop", sys.executable, "-c", HTTP)
    await until(healthy(policy, "shop"), "shop takes calls")
    reports = [m.endpoints for m in policy.control_plane.heard if m.WhichOneof("message") == "endpoints"]
    assert "billing" not in {item.entry for report in reports for item in report.endpoints}


async def test_an_unhealthy_program_is_reported_and_one_that_ends_is_gone(
    agent: Any, policy: Policy, until: Any
) -> None:
    port = free_port(random.SystemRandom())
    check = {"unhealthyThreshold": 2, "httpPath": "/ok"}
    policy.declare(
        {"tenant": "platform", "name": "billing", "protocol": "HTTP", "port": port, "envoy": True, "check": check}
    )
    await agent.ready()
    program = agent.exec("billing", sys.executable, "-c", HTTP)
    await until(healthy(policy, "billing"), "billing takes calls")
    (endpoint,) = policy.control_plane.last("endpoints").endpoints
    assert endpoint.port != port
    assert endpoint.id.startswith("platform-billing-1-")
    await asyncio.to_thread(_get, f"http://127.0.0.1:{port}/break")
    await until(
        lambda: (
            [e.health for e in policy.control_plane.last("endpoints").endpoints]
            == [resources_pb2.EndpointSpec.UNHEALTHY]
        ),
        "billing is reported unhealthy",
    )
    program.kill()
    await until(lambda: not policy.control_plane.last("endpoints").endpoints, "billing is gone")


def _get(url: str) -> bool:
    """Whether anybody answers, whatever the answer."""
    try:
        urllib.request.urlopen(url, timeout=60).close()  # noqa: S310 - loopback
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


async def test_through_two_envoys(agent: Any, policy: Policy, until: Any, tmp_path: Path) -> None:
    port = free_port(random.SystemRandom())
    check = {"httpPath": "/ok"}
    policy.declare(
        {"tenant": "platform", "name": "billing", "protocol": "HTTP", "port": port, "envoy": True, "check": check},
        {"tenant": "acme", "name": "shop", "protocol": "HTTP", "envoy": True},
    )
    await agent.ready()
    agent.exec("billing", sys.executable, "-c", HTTP)
    await until(healthy(policy, "billing"), "billing takes calls")
    shop = agent.exec(
        "shop",
        sys.executable,
        "-c",
        "import os,sys,json; print(json.dumps(dict(os.environ)), flush=True); sys.stdin.read()",
    )
    policy.allow("platform/billing", "acme/shop")
    await until(
        lambda: policy.follow() or "acme/shop#1/envoy" in str(policy.control_plane.last("interest")), "shop is there"
    )
    environment = json.loads(await asyncio.to_thread(shop.stdout.readline))
    outbound = environment["MESHWARDEN_OUTBOUND"]
    await until(lambda: _ask(outbound, "billing.platform")[0] == 200, "billing answers shop")
    status, said = await asyncio.to_thread(_ask, outbound, "billing.platform")
    assert (status, "spiffe://mesh.test/tenant/acme/service/shop" in said) == (200, True)
    await settled(policy, until)
    policy.allow("platform/billing", None)
    await settled(policy, until)
    assert (await asyncio.to_thread(_ask, outbound, "billing.platform"))[0] == 403
    await _calls_are_counted(policy, until)
    await _envoys_die_with_the_agent(agent, until)


async def _calls_are_counted(policy: Policy, until: Any) -> None:
    def edges() -> set[tuple[str, str, str, int, int]]:
        return {
            (stat.source, stat.destination, stat.status, stat.decision, stat.reporter)
            for request in policy.control_plane.exports
            for stat in request.calls
        }

    shop, billing = "spiffe://mesh.test/tenant/acme/service/shop", "platform/billing"
    wanted = {
        (shop, billing, "200", 1, 1),  # ALLOWED, by SOURCE
        (shop, billing, "200", 1, 2),  # ALLOWED, by DESTINATION
        (shop, billing, "403", 2, 2),  # DENIED, by DESTINATION
    }
    await until(lambda: wanted <= edges(), "both Envoys have reported")


async def _envoys_die_with_the_agent(agent: Any, until: Any) -> None:
    status = await agent.status()
    pids = [envoy["pid"] for envoy in status["envoys"]]
    assert len(pids) == 2
    assert all(pids)
    agent.stop(signal.SIGKILL)
    await until(lambda: all(_dead(pid) for pid in pids), "no Envoy outlives the agent")


def _dead(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def _ask(path: str, host: str) -> tuple[int, str]:
    """One GET over a Unix socket; status 0 if nobody listens there yet."""
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(60)
            client.connect(path)
            client.sendall(f"GET /ok HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while chunk := client.recv(65536):
                answer += chunk
    except OSError:
        return 0, ""
    return int(answer.split()[1]), answer.decode()


async def test_an_agent_that_ends_lets_callers_leave_its_envoys(agent: Any, policy: Policy, until: Any) -> None:
    port = free_port(random.SystemRandom())
    check = {"httpPath": "/ok"}
    policy.declare(
        {"tenant": "platform", "name": "billing", "protocol": "HTTP", "port": port, "envoy": True, "check": check}
    )
    policy.allow("platform/billing", "platform/billing")
    await agent.ready()
    program = agent.exec("billing", sys.executable, "-c", HTTP)
    await until(healthy(policy, "billing"), "billing takes calls")
    (envoy,) = (await agent.status())["envoys"]
    await until(lambda: _ask(envoy["outbound"], "billing.platform")[0] == 200, "billing answers itself")
    reader, writer = await asyncio.open_unix_connection(envoy["outbound"])
    process = agent.send()
    # It answers on, and tells its caller to go elsewhere.
    is_last = False
    while not is_last:
        writer.write(b"GET /ok HTTP/1.1\r\nHost: billing.platform\r\n\r\n")
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)).lower()
        status, is_last = int(head.split()[1]), b"connection: close" in head
        if not is_last:
            assert status == 200
            await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
    writer.close()
    assert await asyncio.to_thread(process.wait, 60) == 0
    assert not policy.control_plane.last("endpoints").endpoints
    assert _dead(envoy["pid"])
    assert program.poll() is None


async def test_a_program_that_comes_back_without_a_control_plane_is_served_from_the_cache(
    agent: Any, policy: Policy, until: Any
) -> None:
    orders, billing = free_port(random.SystemRandom()), free_port(random.SystemRandom())
    check = {"httpPath": "/ok"}
    policy.declare(
        {"tenant": "platform", "name": "orders", "port": orders},
        {"tenant": "platform", "name": "billing", "protocol": "HTTP", "port": billing, "envoy": True, "check": check},
        {"tenant": "acme", "name": "web", "protocol": "HTTP", "envoy": True},
    )
    await agent.ready()
    programs = [
        agent.exec("orders", sys.executable, "-c", ECHO),
        agent.exec("billing", sys.executable, "-c", HTTP),
        agent.exec("web", sys.executable, "-c", CALLER),
    ]
    await until(lambda: healthy(policy, "orders")() and healthy(policy, "billing")(), "both take calls")
    policy.allow("platform/orders", "acme/web")
    policy.allow("platform/billing", "acme/web")
    assert await call(programs[2], "xds:///orders") == "OK"
    (web,) = [envoy for envoy in (await agent.status())["envoys"] if envoy["name"] == "acme/web#1"]
    await until(lambda: _ask(web["outbound"], "billing.platform")[0] == 200, "billing answers web")
    await settled(policy, until)

    await policy.control_plane.stop()
    for program in programs:
        program.kill()
        program.wait()
    agent.stop(signal.SIGKILL)  # the agent has nothing but its cache either
    agent.start()
    await until(agent.answers, "the agent is ready")
    agent.exec("orders", sys.executable, "-c", ECHO)
    agent.exec("billing", sys.executable, "-c", HTTP)
    caller = agent.exec("web", sys.executable, "-c", CALLER)
    assert await call(caller, "xds:///orders") == "OK"
    await until(lambda: _ask(web["outbound"], "billing.platform")[0] == 200, "billing answers web again")


async def test_an_envoy_is_not_told_the_addresses_of_before(agent: Any, policy: Policy, until: Any) -> None:
    port, other = free_port(random.SystemRandom()), free_port(random.SystemRandom())
    check = {"httpPath": "/ok"}
    policy.declare(
        {"tenant": "platform", "name": "billing", "protocol": "HTTP", "port": port, "envoy": True, "check": check}
    )
    await agent.ready()
    program = agent.exec("billing", sys.executable, "-c", HTTP)
    await until(healthy(policy, "billing"), "billing takes calls")
    await settled(policy, until)
    await policy.control_plane.stop()
    program.kill()
    program.wait()
    agent.exec("billing", sys.executable, "-c", HTTP, flags=("--port", str(other)))
    await until(lambda: "it is for other addresses" in agent.log.read_text(), "the old configuration is withheld")
    await policy.control_plane.start_again()
    await until(healthy(policy, "billing"), "billing takes calls at its new port")
