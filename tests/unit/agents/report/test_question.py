"""What an agent answers to a question: whoever speaks at an Envoy's socket, and however much it says."""

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from meshwarden.agents.envoy import dump
from meshwarden.agents.report import question
from meshwarden.agents.report.question import Questions
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.xds import api
from meshwarden.xds.snapshot import Snapshot, resource

DUMP = "type.googleapis.com/envoy.admin.v3."
KEY = "-----BEGIN PRIVATE KEY-----\nabc\n-----END PRIVATE KEY-----"


def section(kind: str, **fields: Any) -> dict[str, Any]:
    return {"@type": f"{DUMP}{kind}", **fields}


SAID = {
    "configs": [
        section("BootstrapConfigDump", bootstrap={"node": {"id": "x"}}),
        section(
            "ClustersConfigDump",
            static_clusters=[{"cluster": {"@type": "c", "name": "agent"}}],
            dynamic_active_clusters=[{"version_info": "1", "cluster": {"@type": "c", "name": "orders"}}],
        ),
        section(
            "ListenersConfigDump",
            dynamic_listeners=[
                {
                    "name": "in",
                    "active_state": {
                        "version_info": "2",
                        "listener": {
                            "@type": "l",
                            "name": "in",
                            "filter_chains": [{"tls_certificate": {"private_key": {"inline_string": KEY}}}],
                        },
                    },
                    "draining_state": {"version_info": "1", "listener": {"name": "in"}},
                }
            ],
        ),
        section("RoutesConfigDump", dynamic_route_configs=[{"version_info": "3", "route_config": {"name": "r"}}]),
        section("EcdsConfigDump", ecds_filters=[{"version_info": "4", "ecds_filter": {"name": "access"}}]),
        section("EndpointsConfigDump", dynamic_endpoint_configs=[{"endpoint_config": {"cluster_name": "orders"}}]),
        section(
            "SecretsConfigDump",
            dynamic_active_secrets=[
                {"name": "default", "version_info": "5", "secret": {"tls_certificate": {"private_key": KEY}}}
            ],
        ),
    ]
}


def test_a_dump_is_read_by_what_it_is_about_and_without_its_secrets() -> None:
    rows = dump.read(json.dumps(SAID).encode())
    assert [(row["type_url"], row["name"], row["version"], row.get("state", "")) for row in rows] == [
        (api.CLUSTER, "agent", "", "static"),
        (api.CLUSTER, "orders", "1", ""),
        (api.LISTENER, "in", "2", ""),
        (api.LISTENER, "in", "1", "draining"),
        (api.ROUTE, "r", "3", ""),
        (api.EXTENSION_CONFIG, "access", "4", ""),
        (api.ENDPOINT, "orders", "", ""),
        (api.SECRET, "default", "5", ""),
    ]
    assert "PRIVATE KEY" not in json.dumps(rows)


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b'{"configs": 1}',
        b'{"configs": [1]}',
        json.dumps({"configs": [section("ClustersConfigDump", static_clusters=[1])]}).encode(),
        json.dumps({"configs": [section("RoutesConfigDump", dynamic_route_configs=[{"route_config": 1}])]}).encode(),
        b'{"configs":' + b"[" * 100_000,
    ],
)
def test_what_is_no_dump_is_none(said: bytes) -> None:
    with pytest.raises(dump.NoDump):
        dump.read(said)


class Planes:
    def __init__(self, *snapshots: Snapshot) -> None:
        self.snapshots = list(snapshots)

    def had(self, data_plane: str) -> tuple[list[Snapshot], list[node_pb.Nack]]:
        nack = node_pb.Nack(type_url=api.CLUSTER, version="v", message="bad")
        return (self.snapshots, [nack]) if data_plane == "acme/web#1/grpc" else ([], [])


def snapshot(*names: str) -> Snapshot:
    made = (api.build("envoy.config.cluster.v3.Cluster", {"name": name, "connect_timeout": "1s"}) for name in names)
    secret = api.build(
        "envoy.extensions.transport_sockets.tls.v3.Secret",
        {"name": "default", "tls_certificate": {"private_key": {"inline_string": KEY}}},
    )
    return Snapshot.of([*map(resource, made, names), resource(secret, "default")])


@asynccontextmanager
async def asked(
    planes: Planes | None, sockets: dict[str, Path], *data_planes: str
) -> AsyncIterator["asyncio.Queue[list[node_pb.DataPlaneAnswer]]"]:
    said: asyncio.Queue[list[node_pb.DataPlaneAnswer]] = asyncio.Queue()

    def say(parts: Sequence[node_pb.DataPlaneAnswer]) -> None:
        said.put_nowait(list(parts))

    questions = Questions(lambda: sockets, lambda: planes, say)
    for number, data_plane in enumerate(data_planes):
        questions.ask(node_pb.DataPlaneQuestion(id=str(number), data_plane=data_plane))
    running = asyncio.ensure_future(questions.run())
    try:
        yield said
    finally:
        running.cancel()


async def answer_to(
    data_plane: str, planes: Planes | None = None, admin: Path | None = None
) -> list[node_pb.DataPlaneAnswer]:
    sockets = {"acme/web#1": admin} if admin is not None else {}
    async with asked(planes, sockets, data_plane) as said:
        return await asyncio.wait_for(said.get(), 60)


def content(parts: list[node_pb.DataPlaneAnswer]) -> dict[str, Any]:
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    found: dict[str, Any] = json.loads(zlib.decompress(b"".join(part.part for part in parts)))
    return found


async def test_of_a_program_the_agent_says_what_it_has_answered_to() -> None:
    found = content(await answer_to("acme/web#1/grpc", Planes(snapshot("a"), snapshot("a", "b"))))
    assert found["source"] == "agent"
    assert {(row["type_url"], row["name"]) for row in found["resources"]} == {
        (api.CLUSTER, "a"),
        (api.CLUSTER, "b"),
        (api.SECRET, "default"),
    }
    assert found["refused"] == [{"type_url": api.CLUSTER, "version": "v", "message": "bad"}]
    assert "PRIVATE KEY" not in json.dumps(found)


@pytest.mark.parametrize("data_plane", ["", "/", "acme/web", "acme/web#1/envoy", "acme/other#1/grpc", "x" * 5000])
@pytest.mark.parametrize("planes", [None, Planes()])
async def test_what_is_not_there_is_said_so(data_plane: str, planes: Planes | None) -> None:
    (part,) = await answer_to(data_plane, planes)
    assert part.last
    assert 0 < len(part.error) <= 1024


@pytest.mark.parametrize(
    ("said", "source"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(json.dumps(SAID)) + json.dumps(SAID).encode(), "envoy"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", ""),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 99999999\r\n\r\n", ""),
        (b"HTTP/1.1 503 no\r\n\r\n", ""),
        (b"", ""),
    ],
)
async def test_whoever_answers_at_an_envoys_socket_harms_nobody(tmp_path: Path, said: bytes, source: str) -> None:
    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        writer.close()

    server = await asyncio.start_unix_server(speak, tmp_path / "s")
    parts = await answer_to("acme/web#1/envoy", admin=tmp_path / "s")
    server.close()
    if source:
        assert content(parts)["source"] == source
    else:
        assert parts[-1].error


async def test_the_newest_question_is_answered_and_after_it_the_next() -> None:
    async with asked(Planes(snapshot("a")), {}, "acme/other#1/grpc", "acme/web#1/grpc") as said:
        parts = await asyncio.wait_for(said.get(), 60)
    assert [part.id for part in parts] == ["1"]


async def test_too_much_is_cut_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    planes = Planes(snapshot(*(f"cluster-{number * 7919 % 104729:x}" for number in range(300))))
    whole = await answer_to("acme/web#1/grpc", planes)
    size = sum(len(part.part) for part in whole)
    monkeypatch.setattr(question, "PART_BYTES", 1000)
    monkeypatch.setattr(question, "MAX_BYTES", size - 1)
    found = content(await answer_to("acme/web#1/grpc", planes))
    assert (found["cut"], len(found["resources"]), "body" in found["resources"][0]) == (True, 301, False)
    monkeypatch.setattr(question, "MAX_BYTES", 100)
    (part,) = await answer_to("acme/web#1/grpc", planes)
    assert "301 resources" in part.error
