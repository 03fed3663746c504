"""Selectors against live processes: what each says, whom it is told to, and that one that we don't know fits nobody."""

import asyncio
import contextlib
import os
import pwd
import subprocess
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshwarden.agents.attestation.caller import Program, program_of, read_credential
from meshwarden.agents.attestation.evidence import Evidence
from meshwarden.agents.attestation.refusal import Refusals, refused_caller
from meshwarden.agents.attestation.selector import learn, misfits, misfits_before_exec, told
from meshwarden.sdk.mtls.connection import Connection, start_time
from meshwarden.v1 import resources_pb2 as resources

ME, GID = os.geteuid(), os.getegid()
ROOT = pytest.mark.skipif(ME != 0, reason="needs root to be somebody else")
AS = (
    "import os, sys; os.setgroups({groups}); "
    "os.setresgid(65534, 65534, 65534); os.setresuid(65534, 65534, 65534); {then}"
)
WAIT = "print(flush=True); sys.stdin.read()"


@contextlib.contextmanager
def running(code: str, **options: object) -> Iterator["subprocess.Popen[str]"]:
    command = ["/usr/bin/python3", "-S", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options) as process:  # type: ignore[call-overload]
        try:
            assert process.stdout.readline() == "\n"
            yield process
        finally:
            process.kill()


def program(pid: int, uid: int = ME, gid: int = GID) -> Program:
    return Program(pid, start_time(pid), uid, gid)


@ROOT
def test_supplementary_groups_are_all_there_or_it_does_not_fit() -> None:
    with running(AS.format(groups="[4242, 4243, 65534]", then=WAIT)) as process:
        one, evidence = program(process.pid, 65534, 65534), Evidence()

        def bad(*groups: int) -> list[str]:
            return list(map(str, misfits(resources.Selectors(supplementary_gids=groups), one, evidence)))

        assert bad(4242) == bad(4243, 4242) == []
        assert bad(4242, 1) == ["its set of supplementary groups is 4242, 4243, 65534, the entry wants 1, 4242"]
        # Whoever is another user by now has that user's groups, and not those of who connected.
        changed = program(process.pid, 0, 65534)
        assert misfits(resources.Selectors(supplementary_gids=[4242]), changed, evidence)


async def test_a_user_by_name_is_the_one_that_the_node_knows() -> None:
    evidence, one = Evidence(), program(os.getpid())
    name = pwd.getpwuid(ME).pw_name
    fits = resources.Selectors(user=name)
    assert "unknown here" in str(misfits(fits, one, evidence)[0])
    await learn([fits, resources.Selectors(user="nobody-of-ours")], one, evidence)
    assert misfits(fits, one, evidence) == []
    assert misfits(fits, Program(one.pid, one.start_time, ME + 1, GID), evidence)
    assert "unknown here" in str(misfits(resources.Selectors(user="nobody-of-ours"), one, evidence)[0])


async def test_a_user_is_asked_for_only_where_it_decides_and_again_after_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    known = {"web": ME}

    def getpwnam(name: str) -> object:
        asked.append(name)
        return pwd.struct_passwd((name, "x", known[name], GID, "", "/", "/bin/sh"))

    monkeypatch.setattr(pwd, "getpwnam", getpwnam)
    now_s = [0.0]
    evidence, one, web = Evidence(lambda: now_s[0]), program(os.getpid()), resources.Selectors(user="web")
    await learn([resources.Selectors(user="web", uid=ME + 1)], one, evidence)
    assert asked == []
    await learn([web], one, evidence)
    await learn([web], one, evidence)
    assert asked == ["web"]
    known["web"] = ME + 1  # the name is given anew
    now_s[0] = 10.0
    assert misfits(web, one, evidence)
    await learn([web], one, evidence)
    assert asked == ["web", "web"]
    assert misfits(web, one, evidence)


async def test_a_user_database_that_hangs_holds_up_who_is_asked_for_by_name_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import meshwarden.agents.attestation.evidence as module

    release, threads = threading.Event(), []

    def hang(name: str) -> object:
        threads.append(name)
        release.wait(60)
        raise KeyError(name)

    monkeypatch.setattr(pwd, "getpwnam", hang)
    monkeypatch.setattr(module, "_PATIENCE_S", 0.01)
    evidence, one = Evidence(), program(os.getpid())
    try:
        for _ in range(5):
            await learn([resources.Selectors(user="web")], one, evidence)
        assert misfits(resources.Selectors(user="web"), one, evidence)
        assert misfits(resources.Selectors(uid=ME), one, evidence) == []
        assert threads == ["web"]  # not a thread for each who asks
    finally:
        release.set()
        assert evidence._looking is not None
        await evidence._looking


def test_selectors_of_a_newer_control_plane_fit_nobody() -> None:
    selectors = resources.Selectors(uid=ME)
    newer = resources.Selectors.FromString(selectors.SerializeToString() + b"\xfa\x07\x01x")  # field 127
    found = misfits(newer, program(os.getpid()), Evidence())
    assert told(found, in_full=False) == "the entry has selectors that this agent is too old for"


@pytest.mark.parametrize(
    ("selectors", "name"),
    [
        (resources.Selectors(systemd_unit="no-such.service"), "systemd unit"),
        (resources.Selectors(cgroup="/no/such"), "control group"),
        (resources.Selectors(container_id="0" * 64), "container"),
    ],
)
def test_a_place_that_it_is_not_in(selectors: resources.Selectors, name: str) -> None:
    (found,) = misfits_before_exec(selectors, program(os.getpid()), Evidence())
    assert found.brief.startswith(f"its {name} is ")
    assert found.wanted not in found.brief


CGROUPS = [Path("/sys/fs/cgroup/unified"), Path("/sys/fs/cgroup")]


@pytest.fixture
def cgroup() -> Iterator[Callable[[str], Path]]:
    """Makes control groups of the unified tree: by its path from the root."""
    root = next((path for path in CGROUPS if (path / "cgroup.procs").exists()), None)
    if root is None or not os.access(root / "cgroup.procs", os.W_OK) or ME != 0:
        pytest.skip("needs a unified control group tree that it may write to")
    made: list[Path] = []

    def make(path: str) -> Path:
        for part in (*reversed(Path(path).relative_to("/").parents), Path(path).relative_to("/")):
            directory = root / part
            if not directory.exists():
                directory.mkdir()
                made.append(directory)
        return directory

    yield make
    for directory in reversed(made):
        directory.rmdir()


def test_real_control_groups(cgroup: Callable[[str], Path]) -> None:
    container = f"{os.getpid():064x}"
    unit = cgroup("/mwtest.slice/mwtest-orders.service")
    scope = cgroup(f"/mwtest.slice/docker-{container}.scope")
    user = cgroup("/mwtest.slice/user@4242.service/mwtest.slice/mwtest-orders.service")
    for place, holds in (
        (unit, {"systemd_unit": "mwtest-orders.service", "cgroup": "/mwtest.slice"}),
        (scope, {"container_id": container, "systemd_unit": f"docker-{container}.scope"}),
        (user, {"systemd_unit": "user@4242.service"}),
    ):
        with subprocess.Popen(["/bin/sleep", "60"]) as process:
            try:
                (place / "cgroup.procs").write_text(str(process.pid))
                evidence, one = Evidence(), program(process.pid)
                assert misfits(resources.Selectors(**holds), one, evidence) == []  # type: ignore[arg-type]
                assert misfits(resources.Selectors(systemd_unit="mwtest.service"), one, evidence)
                assert bool(misfits(resources.Selectors(systemd_unit="mwtest-orders.service"), one, evidence)) == (
                    place != unit
                )
            finally:
                process.kill()


@ROOT
def test_who_becomes_another_user_is_nobody_on_the_connection_of_before() -> None:
    # A process connects, hands the socket to its parent, and becomes a program with another user's rights.
    with running(f"import sys, os\n{WAIT.replace('read', 'readline')}\n{AS.format(groups='[]', then=WAIT)}") as process:
        descriptor = os.pidfd_open(process.pid)
        try:
            began = start_time(process.pid)
            connection = Connection(1, "", "", pid=process.pid, uid=0, gid=GID, start_time=began, pidfd=descriptor)
            assert program_of(connection) is not None
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
            assert process.stdout is not None
            assert process.stdout.readline() == "\n"
            assert read_credential(process.pid) is not None
            assert program_of(connection) is None
        finally:
            os.close(descriptor)


def test_refusals_are_bounded_forgotten_and_told_in_full_to_the_nodes_owner() -> None:
    now = [datetime(2026, 1, 1, tzinfo=UTC)]
    refusals = Refusals(lambda: now[0])
    bad = misfits(resources.Selectors(uid=ME + 1), program(os.getpid()), Evidence())
    for uid in range(100):
        refusals.add("acme/web", Program(7, 1, uid, 0), bad)
        refusals.add("acme/web", Program(8, 1, uid, 0), bad)
    kept = list(refusals)
    assert (len(kept), kept[0].uid, kept[0].count, kept[0].pid) == (64, 99, 2, 8)
    assert refused_caller(kept[0]).reason == f"its uid is {ME}, the entry wants {ME + 1}"
    refusals.forget({"acme/other"})
    assert list(refusals) == []
    refusals.add_nearest(Program(7, 1, 1, 0), {"acme/near": bad, "acme/far": [*bad, *bad]})
    assert [refused.entry for refused in refusals] == ["acme/near"]
    now[0] += timedelta(minutes=11)
    assert list(refusals) == []


async def test_look_ups_do_not_pile_up() -> None:
    evidence = Evidence()
    await asyncio.gather(*(evidence.look_up([f"user-{number}" for number in range(200)]) for _ in range(20)))
    assert len(evidence._users) == 200
