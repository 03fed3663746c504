"""The registry against live processes: who is taken as what, and when that ends."""

import asyncio
import hashlib
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from meshwarden.agents.attestation.caller import Program, ancestors, is_alive, program_of, read_stat
from meshwarden.agents.attestation.evidence import Evidence
from meshwarden.agents.attestation.refusal import Refusals
from meshwarden.agents.attestation.selector import misfits, told
from meshwarden.agents.workload.entry import Refusal, RegistrationRefused
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import sharers
from meshwarden.certs.clock import utc_now
from meshwarden.sdk.mtls.connection import Connection, start_time
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as resources

SLEEP = os.path.realpath("/bin/sleep")
ME = os.geteuid()


def entry(
    tenant: str, name: str, service: str = "", shared: bool = False, **selectors: object
) -> resources.WorkloadEntry:
    return resources.WorkloadEntry(
        metadata=resources.Metadata(tenant=tenant, name=name),
        spec=resources.WorkloadEntrySpec(
            service=service or name,
            selectors=resources.Selectors(**(selectors or {"uid": ME})),  # type: ignore[arg-type]
            insecure_same_user=shared,
        ),
    )


def entries(*items: resources.WorkloadEntry) -> node_pb.EntrySet:
    services = [
        resources.Service(metadata=resources.Metadata(tenant=item.metadata.tenant, name=item.spec.service))
        for item in items
    ]
    return node_pb.EntrySet(entries=items, services=services)


@pytest.fixture
async def registry(tmp_path: Path) -> AsyncIterator[Registry]:
    made = Registry("mesh.test", tmp_path, Evidence(), Refusals(utc_now))
    yield made
    made.close()


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []

    def run(*command: str) -> "subprocess.Popen[bytes]":
        started.append(subprocess.Popen(command or (SLEEP, "60"), stdin=subprocess.PIPE))
        return started[-1]

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def connect() -> Iterator[Callable[[int], Connection]]:
    descriptors: list[int] = []

    def of(pid: int, uid: int = ME) -> Connection:
        pidfd = os.pidfd_open(pid)
        descriptors.append(pidfd)
        return Connection(
            len(descriptors), "", "", pid=pid, uid=uid, gid=os.getegid(), start_time=start_time(pid), pidfd=pidfd
        )

    yield of
    for descriptor in descriptors:
        os.close(descriptor)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - the kernel sets no events
            await asyncio.sleep(0.01)


def test_ancestors_start_at_the_process_and_go_up(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    child = start()
    found = list(ancestors(child.pid, start_time(child.pid)))
    assert [pid for pid, _ in found[:2]] == [child.pid, os.getpid()]
    assert list(ancestors(child.pid, start_time(child.pid) - 1)) == []
    child.kill()
    child.wait()
    assert read_stat(child.pid) is None


def test_a_zombie_is_not_alive(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    child = start()
    began = start_time(child.pid)
    assert is_alive(child.pid, began)
    assert not is_alive(child.pid, began + 1)
    os.kill(child.pid, 9)
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # dead, and not reaped yet
    assert not is_alive(child.pid, began)


async def test_selectors_hold_all_or_not_at_all(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    child = start()
    program = Program(child.pid, start_time(child.pid), ME, os.getegid())
    evidence = Evidence()
    digest = hashlib.sha256(Path(SLEEP).read_bytes()).hexdigest()
    fits = resources.Selectors(uid=ME, gid=os.getegid(), path=SLEEP, sha256=digest)
    assert "SHA-256 is unknown" in str(misfits(fits, program, evidence)[0])
    await evidence.read(child.pid)
    assert misfits(fits, program, evidence) == []
    assert misfits(resources.Selectors(uid=ME + 1, path=SLEEP), program, evidence)
    assert misfits(resources.Selectors(path=SLEEP + "x"), program, evidence)
    assert misfits(resources.Selectors(sha256="0" * 64), program, evidence)
    assert told(misfits(resources.Selectors(), program, evidence), in_full=False) == "the entry has no selectors"


async def test_a_changed_executable_is_another_whatever_its_times_say(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    path = tmp_path / "program"
    shutil.copy(SLEEP, path)
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    evidence = Evidence()
    child = start(str(path), "60")
    await evidence.read(child.pid)
    assert evidence.sha256(child.pid) == good
    child.kill()
    child.wait()
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)  # into the same inode
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    again = start(str(path), "60")
    await evidence.read(again.pid)
    assert evidence.sha256(again.pid) == hashlib.sha256(path.read_bytes()).hexdigest() != good


async def test_an_executable_beyond_reason_is_not_read(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    path = tmp_path / "program"
    shutil.copy(SLEEP, path)
    os.truncate(path, 1 << 40)
    child = start(str(path), "60")
    evidence = Evidence()
    await evidence.read(child.pid)
    assert evidence.sha256(child.pid) is None


async def test_a_digest_is_asked_for_only_where_it_decides(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    child = start()
    digest = hashlib.sha256(Path(SLEEP).read_bytes()).hexdigest()
    registry.set_entries(entries(entry("acme", "web"), entry("acme", "api", uid=ME + 1, sha256=digest)))
    await registry.learn(connect(child.pid))
    assert registry._evidence.sha256(child.pid) is None
    registry.set_entries(entries(entry("acme", "web", sha256=digest)))
    workload = registry.register(connect(child.pid), "web")
    assert not registry.is_admitted(workload.id)
    assert registry.held_back() == {workload.id: f"its executable's SHA-256 is unknown, the entry wants {digest}"}
    await registry.learn_registered()
    registry.review()
    assert registry.is_admitted(workload.id)
    assert not registry.held_back()


async def test_register_and_end(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(entries(entry("acme", "web")))
    one, two = start(), start()
    first = registry.register(connect(one.pid), "web", 7001)
    assert registry.register(connect(one.pid), "acme/web", 7001) is first
    second = registry.register(connect(two.pid), "web", 7002)
    assert (first.id, second.id) == ("acme/web#1", "acme/web#2")
    assert str(first.spiffe_id) == "spiffe://mesh.test/tenant/acme/service/web"
    assert registry.find(connect(one.pid)) is first
    assert registry.find(connect(os.getpid())) is None
    one.kill()
    one.wait()
    await until(lambda: first.id not in registry.workloads)
    # The number is free again: whoever starts next finds the data plane of its predecessor.
    three = start()
    assert registry.register(connect(three.pid), "web", 7001).id == "acme/web#1"


async def test_a_child_shares_the_identity_and_a_stranger_does_not(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(entries(entry("acme", "web")))
    parent = start("/bin/sh", "-c", f"{SLEEP} 60 & wait")
    workload = registry.register(connect(parent.pid), "web")
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    await until(lambda: children.read_text().split())
    assert registry.find(connect(int(children.read_text()))) is workload
    assert registry.find(connect(start().pid)) is None


async def test_a_dead_or_reused_pid_is_nobody(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(entries(entry("acme", "web")))
    child = start()
    connection = connect(child.pid)
    registry.register(connection, "web")
    reused = Connection(
        99, "", "", pid=child.pid, uid=ME, gid=0, start_time=(connection.start_time or 0) - 1, pidfd=connection.pidfd
    )
    assert program_of(reused) is None
    assert registry.find(reused) is None
    child.kill()
    child.wait()
    assert registry.find(connection) is None
    with pytest.raises(RegistrationRefused, match="ended"):
        registry.register(connection, "web")
    await until(lambda: not registry.workloads)


class Swift(Evidence):
    """Where a process ends, and its pid is given to a program that fits, just when that is looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.doomed: subprocess.Popen[bytes] | None = None

    def path(self, pid: int) -> str | None:
        if self.doomed is not None and self.doomed.pid == pid:
            self.doomed.kill()
            self.doomed.wait()
            return SLEEP
        return super().path(pid)


async def test_a_pid_that_is_given_anew_while_it_is_looked_at_gets_nothing(
    tmp_path: Path, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    evidence = Swift()
    registry = Registry("mesh.test", tmp_path, evidence, Refusals(utc_now))
    registry.set_entries(entries(entry("acme", "web", path=SLEEP)))
    evidence.doomed = start("/bin/sh", "-c", "read line; true")
    caller = connect(evidence.doomed.pid)
    with pytest.raises(RegistrationRefused, match="ended"):
        registry.register_implicit(caller)
    assert not registry.workloads
    for ask in (lambda caller: registry.find(caller), lambda caller: registry.review()):
        evidence.doomed = start("/bin/sh", "-c", "read line; true")
        caller = connect(evidence.doomed.pid)
        unseen, evidence.doomed = evidence.doomed, None
        workload = registry.register(caller, "web")
        evidence.doomed = unseen
        assert ask(caller) is None
        assert not registry.is_admitted(workload.id)
    registry.close()


async def test_the_executable_decides_when_the_program_is_there(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(entries(entry("acme", "web", path=SLEEP)))
    shell = start("/bin/sh", "-c", "read line; exec sleep 60")
    workload = registry.register(connect(shell.pid), "web")
    registry.review()
    assert not registry.is_admitted(workload.id)
    assert registry.find(connect(shell.pid)) is None
    assert "its executable is" in str(registry.misfits(connect(shell.pid))[0])
    assert shell.stdin is not None
    shell.stdin.write(b"go\n")
    shell.stdin.flush()

    def admitted() -> bool:
        registry.review()
        return registry.is_admitted(workload.id)

    await until(admitted)
    assert registry.find(connect(shell.pid)) is workload


@pytest.mark.parametrize(
    ("name", "port", "instance", "kind"),
    [
        ("", 0, "", Refusal.INVALID),
        ("Web", 0, "", Refusal.INVALID),
        ("web\n", 0, "", Refusal.INVALID),
        ("a/b/c", 0, "", Refusal.INVALID),
        ("../web", 0, "", Refusal.INVALID),
        ("web", 65536, "", Refusal.INVALID),
        ("web", 0, "a/b", Refusal.INVALID),
        ("wen", 0, "", Refusal.UNKNOWN),
        ("globex/web", 0, "", Refusal.UNKNOWN),
        ("other", 0, "", Refusal.UNFIT),
        ("twice", 0, "", Refusal.INVALID),
    ],
)
async def test_refusals(
    registry: Registry, connect: Callable[[int], Connection], name: str, port: int, instance: str, kind: Refusal
) -> None:
    registry.set_entries(
        entries(
            entry("acme", "web"), entry("acme", "other", uid=ME + 1), entry("acme", "twice"), entry("globex", "twice")
        )
    )
    with pytest.raises(RegistrationRefused) as caught:
        registry.register(connect(os.getpid()), name, port, instance)
    assert caught.value.kind is kind
    assert not registry.workloads


async def test_ports_instances_and_users_are_not_shared_unasked(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(
        entries(entry("acme", "web"), entry("acme", "a", shared=True), entry("acme", "b", shared=True))
    )
    registry.register(connect(start().pid), "web", 7001, "front")
    for arguments, kind in (
        (("web", 7001, ""), Refusal.TAKEN),
        (("web", 7002, "front"), Refusal.TAKEN),
        (("a", 7003, ""), Refusal.USER_SHARED),
    ):
        with pytest.raises(RegistrationRefused) as caught:
            registry.register(connect(start().pid), *arguments)
        assert caught.value.kind is kind
    registry.end("acme/front", "test")
    one = registry.register(connect(start().pid), "a")
    assert list(sharers(registry.workloads.values())) == []
    two = registry.register(connect(start().pid), "b")
    assert set(sharers(registry.workloads.values())) == {one.id, two.id}


async def test_an_unregistered_caller_gets_the_one_entry_that_it_fits(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    child = start()
    registry.set_entries(entries(entry("acme", "web", path=SLEEP), entry("acme", "api", uid=ME + 1)))
    workload = registry.register_implicit(connect(child.pid))
    assert (workload.entry_name, workload.is_implicit) == ("acme/web", True)
    with pytest.raises(RegistrationRefused, match="fits no entry"):
        registry.register_implicit(connect(os.getpid()))
    registry.set_entries(entries(entry("acme", "web"), entry("acme", "api")))
    with pytest.raises(RegistrationRefused, match=r"acme/api, acme/web.*exec --entry"):
        registry.register_implicit(connect(os.getpid()))


async def test_entries_that_go_or_become_another_take_their_workloads_along(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(entries(entry("acme", "web")))
    registry.register(connect(start().pid), "web")
    registry.set_entries(entries(entry("acme", "web", service="another")))
    assert not registry.workloads
    registry.register(connect(start().pid), "web")
    registry.set_entries(entries())
    assert not registry.workloads


async def test_changed_selectors_hold_for_who_is_there(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(entries(entry("acme", "web")))
    child = start()
    workload = registry.register(connect(child.pid), "web")
    assert registry.is_admitted(workload.id)
    registry.set_entries(entries(entry("acme", "web", path="/bin/another")))
    assert not registry.is_admitted(workload.id)
    assert registry.find(connect(child.pid)) is None
    registry.set_entries(entries(entry("acme", "web", path=SLEEP)))
    assert registry.is_admitted(workload.id)
    assert registry.find(connect(child.pid)) is workload
    registry.set_entries(entries(entry("acme", "web", uid=ME + 1)))
    assert not registry.workloads


async def test_an_adopted_process_is_its_workloads_until_that_ends(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(entries(entry("acme", "web", path=SLEEP)))
    program, envoy = start(), start("/bin/sh", "-c", "read line; true")
    workload = registry.register(connect(program.pid), "web")
    registry.adopt(envoy.pid, workload.id)
    assert registry.find(connect(envoy.pid)) is workload
    registry.end(workload.id, "test")
    assert registry.find(connect(envoy.pid)) is None


async def test_restored_registrations_are_those_whose_processes_live(
    registry: Registry,
    start: Callable[..., subprocess.Popen[bytes]],
    connect: Callable[[int], Connection],
    tmp_path: Path,
) -> None:
    registry.set_entries(entries(entry("acme", "web")))
    one, two = start(), start()
    registry.register(connect(one.pid), "web", 7001)
    registry.register(connect(two.pid), "web", 7002)
    stored = registry.stored()
    two.kill()
    two.wait()
    again = Registry("mesh.test", tmp_path, Evidence(), Refusals(utc_now))
    again.set_entries(entries(entry("acme", "web")))
    again.restore(stored)
    try:
        assert [(item.id, item.pid, item.port) for item in again.workloads.values()] == [("acme/web#1", one.pid, 7001)]
        assert again.is_admitted("acme/web#1")
    finally:
        again.close()


def of_ingress(tenant: str, lent_to: str = "", uid: int = ME) -> resources.WorkloadEntry:
    made = entry(tenant, "edge", uid=uid)
    made.spec.data_plane = resources.WorkloadEntrySpec.INGRESS
    made.spec.ingress = lent_to
    return made


async def test_an_ingress_is_there_without_a_program_as_long_as_its_entry_is(registry: Registry) -> None:
    registry.set_entries(entries(of_ingress("platform"), of_ingress("acme", "platform/edge")))
    own, lent = registry.workloads["platform/edge#1"], registry.workloads["acme/edge#1"]
    assert (own.has_envoy, lent.has_envoy, own.is_ingress, own.uid, own.gid) == (True, False, True, ME, ME)
    assert registry.is_admitted(own.id)
    assert registry.speakers(own) == {"acme": lent}
    assert registry.speakers(lent) == {}
    assert registry.stored() == [], "it needs no memory"
    registry.sweep()
    registry.set_entries(entries(of_ingress("platform"), of_ingress("acme", "globex/edge")))
    assert registry.workloads["platform/edge#1"] is own
    assert registry.speakers(own) == {}
    registry.set_entries(entries(of_ingress("platform", uid=ME + 1)))
    assert registry.workloads["platform/edge#1"] is not own
    assert registry.workloads["platform/edge#1"].uid == ME + 1
    registry.set_entries(entries(entry("platform", "edge")))
    assert not registry.workloads


async def test_no_program_is_an_ingress(
    registry: Registry, start: Callable[..., subprocess.Popen[bytes]], connect: Callable[[int], Connection]
) -> None:
    registry.set_entries(entries(of_ingress("platform", uid=ME)))
    connection = connect(start().pid)
    with pytest.raises(RegistrationRefused, match="platform/edge is an ingress's") as refused:
        registry.register(connection, "platform/edge")
    assert refused.value.kind is Refusal.UNFIT
    with pytest.raises(RegistrationRefused, match="fits no entry"):
        registry.register_implicit(connection)
