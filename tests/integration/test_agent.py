"""A real agent process against a control plane of real parts: attesting, exec, the cache, hostile callers."""

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.local.port import free_port
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as resources

# Answers health checks; told "leave" it says that it stops, and takes no calls then; told "return" it does again.
LEAVES = """
import http.server, os, sys, threading
from meshwarden.sdk.agent import AgentLink

class Health(http.server.BaseHTTPRequestHandler):
    status, asked = 200, threading.Semaphore(0)

    def do_GET(self):
        self.send_response(Health.status)
        self.end_headers()
        Health.asked.release()

server = http.server.HTTPServer(("127.0.0.1", int(os.environ["MESHWARDEN_PORT"])), Health)
threading.Thread(target=server.serve_forever, daemon=True).start()
for word in sys.stdin:
    if word.strip() == "return":
        Health.status = 200
        continue
    with AgentLink.of_process().leaving(60):
        Health.status = 503
    Health.asked = threading.Semaphore(0)
    for _ in range(2):
        Health.asked.acquire()
    print("asked twice", flush=True)
"""
SHOW = "import os,sys,json; print(json.dumps(dict(os.environ))); sys.stdout.flush(); sys.stdin.read()"


async def line(process: Any) -> str:
    text = await asyncio.wait_for(asyncio.to_thread(process.stdout.readline), 60)
    assert text, process.stderr.read()
    return str(text)


async def test_exec_gives_an_identity_for_as_long_as_the_process_lives(
    agent: Any, control_plane: Any, until: Any
) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SHOW, flags=("--port", "7021"))
    environment = json.loads(await line(program))
    credentials = Path(environment["MESHWARDEN_CREDENTIALS"])
    assert environment["MESHWARDEN_PORT"] == "7021"
    assert environment["OTEL_SERVICE_NAME"] == "web.acme"
    assert environment["SPIFFE_ENDPOINT_SOCKET"] == f"unix://{agent.workload_api}"
    assert credentials.stat().st_mode & 0o777 == 0o700
    assert (credentials / "tls.key").stat().st_mode & 0o777 == 0o600
    assert json.loads(Path(environment["GRPC_XDS_BOOTSTRAP"]).read_text())["node"]["id"] == "acme/web#1/grpc"
    status = await agent.status()
    assert [(w["id"], w["pid"]) for w in status["workloads"]] == [("acme/web#1", program.pid)]
    assert status["connected"]
    interest = await until(lambda: (found := control_plane.last("interest")) and found.data_planes, "interest is said")
    assert [(ref.id, ref.listen_address) for ref in interest] == [("acme/web#1/grpc", "127.0.0.1:7021")]
    program.kill()
    program.wait()
    await until(lambda: not credentials.exists(), "the credentials are gone")
    await until(lambda: not control_plane.last("interest").data_planes, "the interest is gone")


async def test_who_has_left_is_no_endpoint_before_a_check_finds_that_it_serves(
    agent: Any, control_plane: Any, entry: Any, until: Any
) -> None:
    """A server that stops takes calls no more some time before its process has ended."""
    await agent.ready()
    entries = entry.set(entry.of("acme", "web"))
    entries.services[0].spec.protocol = resources.ServiceSpec.HTTP
    control_plane.push(entries=entries)
    program = agent.exec("web", sys.executable, "-c", LEAVES, flags=("--port", str(free_port(random.SystemRandom()))))

    def reports() -> list[bool]:
        """Whether each report of the agent's has the endpoint."""
        said = [item.endpoints for item in control_plane.heard if item.WhichOneof("message") == "endpoints"]
        return [bool(report.endpoints) for report in said]

    await until(lambda: reports()[-1:] == [True], "it is an endpoint")
    before = len(reports())
    print("leave", file=program.stdin, flush=True)
    assert await line(program) == "asked twice\n"
    await until(lambda: reports()[-1] is False, "it is none")
    assert set(reports()[before:]) == {False}
    print("return", file=program.stdin, flush=True)
    await until(lambda: reports()[-1] is True, "it is one again")


async def test_a_refused_token_ends_the_agent_with_the_fix(agent: Any, control_plane: Any) -> None:
    control_plane.tokens.clear()
    process = agent.start()
    assert await asyncio.to_thread(process.wait, 60) == 1
    assert "meshwarden token create --node node-a" in agent.log.read_text()


async def test_a_token_for_another_node_is_refused(agent: Any, control_plane: Any) -> None:
    for token in control_plane.tokens:
        control_plane.tokens[token] = "node-b"
    process = agent.start()
    assert await asyncio.to_thread(process.wait, 60) == 1
    assert "this is node node-a" in agent.log.read_text()


async def test_a_control_plane_that_is_another_is_not_told_the_token(
    agent: Any, control_plane: Any, until: Any
) -> None:
    text = agent.config.read_text().replace('trust_domain = "mesh.test"', 'trust_domain = "other.test"')
    agent.config.write_text(text)
    process = agent.start()
    await until(lambda: "does not answer" in agent.log.read_text(), "the agent says that nobody answers")
    assert process.poll() is None
    assert control_plane.tokens  # not used up
    assert agent.stop() == 0, agent.log.read_text()


async def test_the_agent_waits_for_the_control_plane(agent: Any, control_plane: Any, until: Any) -> None:
    await control_plane.stop()
    process = agent.start()
    await until(lambda: "does not answer" in agent.log.read_text(), "the agent says that nobody answers")
    assert process.poll() is None
    await control_plane.start_again()
    await until(agent.answers, "the agent is ready")


async def test_all_goes_on_from_the_cache_while_the_control_plane_is_away(
    agent: Any, control_plane: Any, until: Any
) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SHOW)
    first = json.loads(await line(program))
    serial = (await agent.status())["workloads"][0]["serial"]
    await control_plane.stop()
    # The agent starts again, and knows the program that went on without it.
    assert agent.stop() == 0
    assert (Path(first["MESHWARDEN_CREDENTIALS"]) / "tls.crt").exists()
    await agent.ready()
    status = await agent.status()
    assert [(w["id"], w["pid"], w["serial"]) for w in status["workloads"]] == [("acme/web#1", program.pid, serial)]
    assert not status["connected"]
    # The program starts again, and is the same data plane with the same certificate.
    program.kill()
    program.wait()
    second = json.loads(await line(agent.exec("web", sys.executable, "-c", SHOW)))
    assert second["GRPC_XDS_BOOTSTRAP"] == first["GRPC_XDS_BOOTSTRAP"]
    assert [w["serial"] for w in (await agent.status())["workloads"]] == [serial]
    await control_plane.start_again()
    await until(
        lambda: control_plane.last("interest") and control_plane.last("workloads"),
        "the agent is back and says its sets again",
    )
    assert control_plane.last("workloads").workloads[0].id == "acme/web#1"


async def test_a_program_without_a_cached_certificate_is_told_so(agent: Any, control_plane: Any) -> None:
    await agent.ready()
    control_plane.sign_refusal = "the entry is banned"
    program = agent.exec("web", sys.executable, "-c", SHOW)
    assert await asyncio.to_thread(program.wait, 60) == 1
    assert "no certificate for acme/web: the entry is banned" in program.stderr.read()
    assert (await agent.status())["workloads"] == []


@pytest.mark.parametrize("damage", ["truncated", "garbage", "newer", "empty"])
async def test_a_damaged_cache_is_set_aside(agent: Any, control_plane: Any, until: Any, damage: str) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SHOW)
    await line(program)
    agent.stop()
    for path in (agent.state_dir / "cache").iterdir():
        content = path.read_bytes()
        path.write_bytes(
            {
                "truncated": content[: len(content) // 2],
                "garbage": os.urandom(300),
                "newer": content.replace(b"cache 2 ", b"cache 3 ", 1),
                "empty": b"",
            }[damage]
        )
    await agent.ready()
    await until(lambda: "set aside" in agent.log.read_text(), "the damage is logged")
    again = agent.exec("web", sys.executable, "-c", SHOW)
    assert json.loads(await line(again))["OTEL_SERVICE_NAME"] == "web.acme"


async def test_entries_that_vanish_take_their_workloads_along(
    agent: Any, control_plane: Any, until: Any, entry: Any
) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SHOW)
    credentials = Path(json.loads(await line(program))["MESHWARDEN_CREDENTIALS"])
    control_plane.push(entries=entry.set(entry.of("acme", "api")))
    await until(lambda: not credentials.exists(), "the credentials are gone")
    assert program.poll() is None
    assert (await agent.status())["workloads"] == []
    late = agent.exec("web", sys.executable, "-c", SHOW)
    assert await asyncio.to_thread(late.wait, 60) == 1
    assert "no entry web" in late.stderr.read()


async def test_renew_now_renews_all_without_losing_the_session(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SHOW)
    await line(program)
    before = (await agent.status())["workloads"][0]["serial"]
    for round_ in range(1, 4):
        control_plane.push(renew_now=node_pb.RenewNow(reason="test"))
        await until(lambda n=round_: control_plane.renewed == n, "the node's certificate is renewed")
        await until(
            lambda n=round_: control_plane.opened == n + 1 and len(control_plane.sessions) == 1, "it moved over"
        )

    async def renewed() -> bool:
        status = await agent.status()
        return status["workloads"][0]["serial"] != before and status["connected"]

    await until(renewed, "the workload's certificate is another")
    assert "control plane away" not in agent.log.read_text()


async def test_unknown_entries_wrong_users_and_missing_commands_are_refused_clearly(
    agent: Any, control_plane: Any, entry: Any, until: Any
) -> None:
    other = entry.of("acme", "other", selectors=resources.Selectors(uid=4242))
    control_plane.push(entries=entry.set(entry.of("acme", "web"), other, entry.of("globex", "web")))
    await agent.ready()
    socket = ("--socket", str(agent.socket))
    typo = await agent.command("exec", *socket, "--entry", "othr", "--", "true")
    assert typo.returncode == 1
    assert "did you mean other?" in typo.stderr
    unfit = await agent.command("exec", *socket, "--entry", "other", "--", "true")
    assert f"its uid is {os.geteuid()}, the entry wants 4242" in unfit.stderr
    ambiguous = await agent.command("exec", *socket, "--entry", "web", "--", "true")
    assert "acme/web, globex/web" in ambiguous.stderr
    missing = await agent.command("exec", *socket, "--entry", "acme/web", "--", "no-such-command")
    assert missing.returncode == 127
    for content, reason in (("#!/nowhere/at/all\n", "interpreter"), ("no program", "first line")):
        script = Path(agent.directory / "script")
        script.write_text(content)
        script.chmod(0o755)
        unfit = await agent.command("exec", *socket, "--entry", "acme/web", "--", str(script))
        assert (unfit.returncode, reason in unfit.stderr) == (126, True), unfit.stderr
    away = await agent.command("exec", "--socket", f"{agent.directory}/none.sock", "--entry", "web", "--", "true")
    assert away.returncode == 1
    assert "meshwarden-agent run --config" in away.stderr
    code = await agent.command("exec", *socket, "--entry", "acme/web", "--", sys.executable, "-c", "exit(7)")
    assert code.returncode == 7, code.stderr


async def test_an_executable_selector_holds_the_credentials_back(
    agent: Any, control_plane: Any, entry: Any, until: Any
) -> None:
    selectors = resources.Selectors(path=os.path.realpath("/bin/sleep"))
    control_plane.push(entries=entry.set(entry.of("acme", "web", selectors=selectors)))
    await agent.ready()
    wrong = agent.exec("web", sys.executable, "-c", SHOW)
    held_back = Path(json.loads(await line(wrong))["MESHWARDEN_CREDENTIALS"])
    right = agent.exec("web", "/bin/sleep", "60")
    await until(
        lambda: list((agent.state_dir / "run/workloads").glob("*/credentials/tls.key")), "the right one has them"
    )
    assert not held_back.exists()
    assert right.poll() is None


async def test_a_second_agent_on_one_state_directory_is_refused(agent: Any) -> None:
    await agent.ready()
    second = await agent.command("run", "--config", str(agent.config))
    assert second.returncode == 1
    assert "another agent (pid" in second.stderr


async def test_the_agent_ends_soon_with_clients_connected(agent: Any) -> None:
    await agent.ready()
    reader, writer = await asyncio.open_unix_connection(agent.socket)
    program = agent.exec("web", sys.executable, "-c", SHOW)
    await line(program)
    assert await asyncio.to_thread(agent.stop, signal.SIGTERM) == 0
    assert not agent.socket.exists()
    assert program.poll() is None
    writer.close()
    assert await reader.read() is not None


async def test_garbage_on_the_sockets_harms_nobody(agent: Any) -> None:
    await agent.ready()
    for path in (agent.socket, agent.workload_api):
        for garbage in (
            os.urandom(4096),
            b"GET / HTTP/1.1\r\n\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + os.urandom(4096),
        ):
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(garbage)
            writer.write_eof()
            await asyncio.wait_for(reader.read(), 60)
            writer.close()
    assert await agent.status() is not None


# The interpreter may lie where other users cannot go, so it becomes another user once it is up.
AS_NOBODY = (
    "import os, sys, encodings.idna, meshwarden.agents.cli as cli, google.protobuf.json_format\n"
    "os.setgroups([]); os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534)\n"
    "cli.main(sys.argv[1:], prog_name='meshwarden-agent')"
)


async def as_nobody(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", AS_NOBODY, *arguments]
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
async def test_another_user_gets_neither_status_nor_identity(agent: Any) -> None:
    await agent.ready()
    socket = ("--socket", str(agent.socket))
    status = await as_nobody("status", *socket)
    assert status.returncode == 1
    assert "you are uid 65534" in status.stderr
    program = await as_nobody("exec", *socket, "--entry", "web", "--", "true")
    assert program.returncode == 1
    assert "its uid is 65534, not the entry's" in program.stderr  # what that wants is told to its own user alone
    shown = await agent.command("status", *socket)
    assert "of uid 65534 is not acme/web: its uid is 65534, the entry wants 0" in shown.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be somebody else")
async def test_credentials_are_their_users(agent: Any, control_plane: Any, entry: Any) -> None:
    control_plane.push(entries=entry.set(entry.of("acme", "web", selectors=resources.Selectors(uid=65534))))
    await agent.ready()
    read = 'id -u; head -n 1 "$MESHWARDEN_CREDENTIALS/tls.key"; stat -Lc %u:%a "$MESHWARDEN_CREDENTIALS/tls.key"'
    program = await as_nobody("exec", "--socket", str(agent.socket), "--entry", "web", "--", "sh", "-c", read)
    assert program.stdout.splitlines() == ["65534", "-----BEGIN PRIVATE KEY-----", "65534:600"], program.stderr


WEB = "spiffe://mesh.test/tenant/acme/service/web"
DENIED = """
import sys
from meshwarden.sdk.agent import AgentLink
link = AgentLink.of_process()
link.wait()
def say(config):
    print(config.revision, *(str(deny) for deny in config.deny_list), sep="|", flush=True)
link.listen(say)
sys.stdin.read()
"""


def deny_list(revision: int, *denies: tuple[str, str]) -> node_pb.DenyList:
    message = node_pb.DenyList(revision=revision)
    for spiffe_id, serial in denies:
        message.denies.add(spiffe_id=spiffe_id, serial=serial, not_after={"seconds": 4_000_000_000})
    return message


async def test_programs_are_told_whom_to_refuse_and_still_are_when_the_agent_starts_alone(
    agent: Any, control_plane: Any, until: Any
) -> None:
    control_plane.push(deny_list=deny_list(5, (WEB, "")))
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", DENIED)
    assert (await line(program)).strip().endswith(f"|{WEB}")
    await until(lambda: (found := control_plane.last("deny_ack")) and found.revision == 5, "the list is acknowledged")
    control_plane.push(deny_list=deny_list(6, ("", "1f"), (WEB, "2f")))
    assert (await line(program)).strip().endswith(f"|serial 1f|serial 2f of {WEB}")
    # What can't be read is not taken, and what was there stands.
    control_plane.push(deny_list=deny_list(7, ("no identity", "")))
    await until(lambda: "deny list refused" in agent.log.read_text(), "the list is refused")
    assert control_plane.last("deny_ack").revision == 6
    await control_plane.stop()
    assert agent.stop() == 0
    await agent.ready()
    again = agent.exec("web", sys.executable, "-c", DENIED)
    assert (await line(again)).strip().endswith(f"|serial 1f|serial 2f of {WEB}")
    await control_plane.start_again()


async def test_who_holds_a_denied_certificate_gets_another_at_once(agent: Any, control_plane: Any, until: Any) -> None:
    await agent.ready()
    program = agent.exec("web", sys.executable, "-c", SHOW)
    await line(program)
    (before,) = (await agent.status())["workloads"]
    control_plane.push(deny_list=deny_list(5, ("", before["serial"])))

    async def renewed() -> bool:
        (now,) = (await agent.status())["workloads"]
        return bool(now["serial"] != before["serial"])

    await until(renewed, "the certificate is another")
    signed = control_plane.signed
    control_plane.push(deny_list=deny_list(6, ("", before["serial"]), (WEB, "")))
    await until(lambda: (found := control_plane.last("deny_ack")) and found.revision == 6, "the list is acknowledged")
    assert control_plane.signed == signed  # an identity that is denied asks for nothing anew
