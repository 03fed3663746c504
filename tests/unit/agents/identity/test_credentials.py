"""Workload certificates on a clock of our own: signed, renewed, refused, kept, and gone when they end."""

import asyncio
import os
import random
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.agents.attestation.evidence import Evidence
from meshwarden.agents.attestation.refusal import Refusals
from meshwarden.agents.cache import Cache
from meshwarden.agents.identity.credentials import CredentialMissing, Credentials
from meshwarden.agents.identity.trust import Trust
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.workload import Workload
from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle import Bundle, InvalidBundle
from meshwarden.certs.clock import utc_now
from meshwarden.certs.csr import parse_csr
from meshwarden.certs.issue import LeafTemplate
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.certs.svid import new_key
from meshwarden.sdk.mtls.connection import Connection, start_time
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import resources_pb2 as resources


class Mesh:
    """One registered workload, an authority behind `sign`, and the clock of both."""

    def __init__(self, directory: Path, bundle: Bundle, authority: MemoryAuthority) -> None:
        self.directory, self.authority = directory, authority
        self.now = utc_now()
        self.asked: list[int] = []
        self.error: Exception | None = None
        self.service = "web"
        self.hang = False
        self.connections: list[Connection] = []
        self.answer: Callable[[list[Any]], list[Any]] = list
        (directory / "workloads").mkdir(exist_ok=True)
        self.registry = Registry("mesh.test", directory / "workloads", Evidence(), Refusals(utc_now))
        self.registry.set_entries(
            node_pb.EntrySet(
                entries=[
                    resources.WorkloadEntry(
                        metadata=resources.Metadata(tenant="acme", name="web"),
                        spec=resources.WorkloadEntrySpec(
                            service="web", selectors=resources.Selectors(uid=os.geteuid())
                        ),
                    )
                ],
                services=[resources.Service(metadata=resources.Metadata(tenant="acme", name="web"))],
            )
        )
        cache = Cache(directory / "cache")
        self.trust = Trust(cache, bundle.trust_domain)
        self.credentials = Credentials(
            self.registry, cache, bundle, self.sign, lambda: self.now, random.Random(1), self.trust
        )

    def clock(self) -> datetime:
        return self.now

    async def sign(self, requests: list[node_pb.WorkloadCsr]) -> Sequence[node_pb.SignedWorkload]:
        self.asked.append(len(requests))
        if self.hang:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error
        answers = []
        for request in requests:
            template = LeafTemplate(SpiffeId.workload("mesh.test", "acme", self.service), timedelta(hours=1))
            chain = await self.authority.sign(template, parse_csr(request.csr), self.now)
            answers.append(node_pb.SignedWorkload(chain=ders(chain)))
        return self.answer(answers)


def ders(chain: Any) -> list[bytes]:
    return [certificate.public_bytes(Encoding.DER) for certificate in chain]


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    authority = MemoryAuthority("mesh.test")
    made = Mesh(tmp_path, await authority.bundle(), authority)
    yield made
    made.registry.close()


@pytest.fixture
async def workload(mesh: Mesh) -> AsyncIterator[Workload]:
    process = subprocess.Popen(["/bin/sleep", "60"])  # noqa: ASYNC220 - it returns at once
    pidfd = os.pidfd_open(process.pid)
    connection = Connection(
        1, "", "", pid=process.pid, uid=os.geteuid(), gid=os.getegid(), start_time=start_time(process.pid), pidfd=pidfd
    )
    mesh.connections.append(connection)
    yield mesh.registry.register(connection, "web")
    os.close(pidfd)
    process.kill()
    process.wait()


@pytest.fixture
async def start(mesh: Mesh) -> AsyncIterator[Callable[[], None]]:
    """Starts to renew, once the test has said how it shall go."""
    tasks: list[asyncio.Future[None]] = []
    yield lambda: tasks.append(asyncio.ensure_future(mesh.credentials.run()))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def running(mesh: Mesh, start: Callable[[], None]) -> Mesh:
    start()
    return mesh


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 - files and threads set no events
            await asyncio.sleep(0.01)


async def test_a_certificate_is_signed_published_and_renewed(running: Mesh, workload: Workload) -> None:
    first = await running.credentials.ensure(workload, 60)
    assert (workload.credentials / "tls.crt").read_bytes() == first.chain_pem()
    assert (workload.credentials / "tls.key").read_bytes() == first.key_pem()
    assert await running.credentials.ensure(workload, 60) is first
    running.now = first.not_before + timedelta(minutes=34)  # half-life and a tenth of it are over
    running.credentials.set_bundle(Bundle("mesh.test", running.credentials.bundle().roots, 2))  # wakes it
    await until(lambda: running.credentials.svid(workload.id) not in (None, first))
    second = running.credentials.svid(workload.id)
    assert second is not None
    assert second.key.public_key() != first.key.public_key()
    await until(lambda: (workload.credentials / "tls.crt").read_bytes() == second.chain_pem())


async def test_renew_now_asks_at_once(running: Mesh, workload: Workload) -> None:
    first = await running.credentials.ensure(workload, 60)
    running.credentials.renew_now("test")
    await until(lambda: running.credentials.svid(workload.id) is not first)


async def test_a_failure_is_visible_and_the_present_one_serves_on(running: Mesh, workload: Workload) -> None:
    first = await running.credentials.ensure(workload, 60)
    running.error = OSError("the line is cut")
    running.credentials.renew_now("test")
    await until(running.credentials.errors)
    assert "the line is cut" in running.credentials.errors()["acme/web"]
    assert running.credentials.svid(workload.id) is first
    asked = len(running.asked)
    for _ in range(5):
        running.credentials.set_bundle(Bundle("mesh.test", running.credentials.bundle().roots, asked))
        await asyncio.sleep(0)
    assert len(running.asked) == asked  # not before its backoff is over


async def test_it_asks_again_when_the_control_plane_can_have_more(running: Mesh, workload: Workload) -> None:
    first = await running.credentials.ensure(workload, 60)
    refused = node_pb.SignedWorkload(code=8, message="too many")
    refused.retry_after.FromSeconds(20)
    running.answer = lambda _: [refused]
    running.credentials.renew_now("test")
    await until(running.credentials.errors)
    running.answer, asked = list, len(running.asked)
    running.now += timedelta(seconds=19)
    for revision in range(2, 7):
        running.credentials.set_bundle(Bundle("mesh.test", running.credentials.bundle().roots, revision))
        await asyncio.sleep(0)
    assert len(running.asked) == asked
    running.now += timedelta(seconds=7)
    running.credentials.set_bundle(Bundle("mesh.test", running.credentials.bundle().roots, 7))
    await until(lambda: running.credentials.svid(workload.id) is not first)


async def test_nothing_is_served_past_its_end(running: Mesh, workload: Workload) -> None:
    first = await running.credentials.ensure(workload, 60)
    running.error = OSError("away")
    running.now = first.not_after
    assert running.credentials.svid(workload.id) is None
    running.credentials.renew_now("test")
    await until(lambda: not workload.credentials.exists())
    # A clock that was wrong comes back, and with it what was good by it.
    running.now = first.not_before + timedelta(minutes=2)
    running.credentials.renew_now("test")
    await until((workload.credentials / "tls.key").exists)
    assert running.credentials.svid(workload.id) is first


async def test_a_refusal_is_told_to_who_waits(mesh: Mesh, workload: Workload, start: Callable[[], None]) -> None:
    mesh.answer = lambda _: [node_pb.SignedWorkload(code=7, message="the entry is banned")]
    start()
    with pytest.raises(CredentialMissing, match="the entry is banned"):
        await mesh.credentials.ensure(workload, 60)


@pytest.mark.parametrize(
    "answer",
    [
        lambda _: [],
        lambda answers: answers * 2,
        lambda _: [node_pb.SignedWorkload()],
        lambda _: [node_pb.SignedWorkload(chain=[b"junk"])],
        lambda answers: [node_pb.SignedWorkload(chain=answers[0].chain[:1])],  # without its intermediate
        lambda answers: [node_pb.SignedWorkload(chain=answers[0].chain[1:])],
    ],
)
async def test_an_answer_that_cannot_be_used_is_refused(
    mesh: Mesh, workload: Workload, start: Callable[[], None], answer: Any
) -> None:
    mesh.answer = answer
    start()
    with pytest.raises(CredentialMissing, match="acme/web"):
        await mesh.credentials.ensure(workload, 60)
    assert not workload.credentials.exists()


async def test_another_identity_or_another_key_is_refused(
    mesh: Mesh, workload: Workload, start: Callable[[], None]
) -> None:
    mesh.service = "orders"
    start()
    with pytest.raises(CredentialMissing, match="service/orders"):
        await mesh.credentials.ensure(workload, 60)
    mesh.service = "web"
    identity = SpiffeId.workload("mesh.test", "acme", "web")
    chain = await mesh.authority.sign(LeafTemplate(identity, timedelta(hours=1)), new_key().public_key(), mesh.now)
    mesh.answer = lambda _: [node_pb.SignedWorkload(chain=ders(chain))]
    with pytest.raises(CredentialMissing, match="key"):
        await mesh.credentials.ensure(workload, 60)


async def test_a_foreign_authority_is_refused(mesh: Mesh, workload: Workload, start: Callable[[], None]) -> None:
    mesh.authority = MemoryAuthority("mesh.test")
    start()
    with pytest.raises(CredentialMissing, match="cannot be used"):
        await mesh.credentials.ensure(workload, 60)


async def test_who_waits_does_not_wait_for_ever(mesh: Mesh, workload: Workload) -> None:
    with pytest.raises(CredentialMissing, match="has not answered"):
        await mesh.credentials.ensure(workload, 0.05)  # nobody runs it


async def test_who_has_a_certificate_does_not_wait_for_who_is_asked(running: Mesh, workload: Workload) -> None:
    first = await running.credentials.ensure(workload, 60)
    running.hang = True
    asked = len(running.asked)
    running.credentials.renew_now("test")
    await until(lambda: len(running.asked) > asked)
    shutil.rmtree(workload.directory)
    running.registry.end(workload.id, "test")
    again = running.registry.register(running.connections[0], "web")
    assert await running.credentials.ensure(again, 60) is first
    assert (again.credentials / "tls.key").read_bytes() == first.key_pem()


async def test_files_that_cannot_be_written_are_told_and_written_later(
    mesh: Mesh, workload: Workload, start: Callable[[], None]
) -> None:
    workload.directory.write_text("where a directory should be")
    start()
    with pytest.raises(CredentialMissing, match="cannot be written"):
        await mesh.credentials.ensure(workload, 0.5)
    assert "cannot be written" in mesh.credentials.errors()[workload.id]
    workload.directory.unlink()
    svid = await mesh.credentials.ensure(workload, 60)
    assert (workload.credentials / "tls.crt").read_bytes() == svid.chain_pem()
    assert not mesh.credentials.errors()


async def test_a_certificate_comes_back_from_the_cache(running: Mesh, workload: Workload) -> None:
    first = await running.credentials.ensure(workload, 60)
    again = Credentials(
        running.registry,
        Cache(running.directory / "cache"),
        running.credentials.bundle(),
        running.sign,
        running.clock,
        random.Random(2),
        running.trust,
    )
    running.error = OSError("away")
    task = asyncio.ensure_future(again.run())
    try:
        assert (await again.ensure(workload, 60)).serial == first.serial
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    keys = running.directory / "cache" / "svid-acme.web"
    assert keys.stat().st_mode & 0o777 == 0o600


async def test_keys_are_not_logged(running: Mesh, workload: Workload, capsys: pytest.CaptureFixture[str]) -> None:
    svid = await running.credentials.ensure(workload, 60)
    running.credentials.renew_now("test")
    await until(lambda: running.credentials.svid(workload.id) is not svid)
    output = "".join(capsys.readouterr())
    assert "workload certificate renewed" in output
    assert "PRIVATE" not in output
    assert svid.key_pem().decode().splitlines()[1] not in output + repr(svid) + repr(running.credentials.__dict__)


async def test_a_bundle_of_another_trust_domain_is_refused(mesh: Mesh) -> None:
    other = await MemoryAuthority("other.test").bundle()
    with pytest.raises(InvalidBundle, match=r"other\.test"):
        mesh.credentials.set_bundle(other)
    assert mesh.credentials.bundle().trust_domain == "mesh.test"
