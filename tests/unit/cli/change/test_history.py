"""What `history`, `rollback`, `wait` and `proxy` print, how they end, and what a snapshot has not in it."""

import contextlib
import io
import json
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from click.testing import CliRunner

from meshwarden.controlplane.cli import client
from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import revision_service_pb2 as v1
from meshwarden.v1.admin_service_pb2 import GetStatusResponse
from meshwarden.v1.data_plane_service_pb2 import DataPlanePart, DataPlaneState, DataPlaneType, ListDataPlanesResponse
from meshwarden.v1.node_service_pb2 import DataPlaneRef, Nack
from meshwarden.v1.resource_service_pb2 import Change, Fault, ResourceRef
from meshwarden.xds import api

ROUTE = ResourceRef(kind="RoutePolicy", tenant="platform", name="orders")
KEY = "-----BEGIN PRIVATE KEY-----\nMIGHAgEAMBMGByqGSM49\n-----END PRIVATE KEY-----"
TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2lnbmF0dXJl"


def route(weight: int) -> Any:
    text = "kind: RoutePolicy\nmetadata: {tenant: platform, name: orders}\n"
    return parse(f"{text}spec: {{service: orders, rules: [{{split: [{{version: v1, weight: {weight}}}]}}]}}", "m")[
        0
    ].resource


def change() -> v1.RevisionChange:
    return v1.RevisionChange(ref=ROUTE, action=Change.UPDATED, before=route(90), after=route(50))


def revision(number: int) -> v1.Revision:
    made = v1.Revision(revision=number, by="spiffe://m/operator/a", reason="why\x1b[2J", changes=[change()])
    made.time.FromJsonString("2026-01-02T03:04:05Z")
    return made


class Timeout(grpc.RpcError):
    def code(self) -> grpc.StatusCode:
        return grpc.StatusCode.DEADLINE_EXCEEDED


class Told:
    """A stream of what is told, and then a deadline."""

    def __init__(self, *told: v1.Progress) -> None:
        self.told, self.cancelled = told, False

    def __iter__(self) -> Iterator[v1.Progress]:
        yield from self.told
        raise Timeout

    def cancel(self) -> None:
        self.cancelled = True


def come(acknowledged: int, lagging: int, *nacks: Nack) -> v1.Progress:
    share = v1.ProgressShare(acknowledged=acknowledged, lagging=lagging, rejected=len(nacks))
    progress = v1.Progress(revision=7, nodes=share, data_planes=share)
    progress.lagging.extend(v1.Lagging(node=f"n{number}", acked_revision=5) for number in range(lagging))
    progress.rejections.extend(v1.Rejection(node="n9", nack=nack) for nack in nacks)
    return progress


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    def go(mesh: dict[str, Any], *arguments: str) -> tuple[int, str, str]:
        rooms = {name: SimpleNamespace(**methods) for name, methods in mesh.items()}
        monkeypatch.setattr(client, "connect_current", lambda: contextlib.nullcontext(SimpleNamespace(**rooms)))
        done = CliRunner().invoke(main, arguments)
        return done.exit_code, done.stdout, done.stderr

    return go


def test_history_is_a_list_first_and_page_by_page(run: Any) -> None:
    asked: list[v1.ListRevisionsRequest] = []

    def listed(request: v1.ListRevisionsRequest, timeout: float) -> v1.ListRevisionsResponse:
        copy = v1.ListRevisionsRequest()
        copy.CopyFrom(request)
        asked.append(copy)
        number = request.before or 9
        return v1.ListRevisionsResponse(revisions=[revision(number - 1)], next_before=number - 1 if number > 7 else 0)

    mesh = {"revision": {"ListRevisions": listed}}
    code, out, _ = run(mesh, "history", "routepolicy", "platform/orders", "--limit", "5")
    assert code == 0
    rows = out.splitlines()
    assert [row.split("\t")[0] for row in rows] == ["REVISION", "8", "7", "6"]
    assert rows[1].split("\t")[3:] == ["updated RoutePolicy platform/orders", "why�[2J"]
    assert [(one.before, one.resource.name, one.kind) for one in asked] == [
        (0, "orders", "RoutePolicy"),
        (8, "orders", "RoutePolicy"),
        (7, "orders", "RoutePolicy"),
    ]
    assert "more before revision 8" in run(mesh, "history", "list", "--limit", "1")[2]
    assert run(mesh, "history", "--limit", "1", "-o", "json")[0] == 0
    assert run(mesh, "history", "nothing")[0] == 2
    code, out, _ = run({"revision": {"GetRevision": lambda *_, **__: revision(8)}}, "history", "show", "8")
    assert (code, "because why�[2J" in out) == (0, True)
    assert "  ~ spec.rules[0].split[0].weight: 90 → 50" in out.splitlines()


def test_rollback_says_what_it_does_or_would_do(run: Any) -> None:
    def answering(**fields: Any) -> tuple[dict[str, Any], list[v1.RollbackRequest]]:
        asked: list[v1.RollbackRequest] = []

        def answer(request: v1.RollbackRequest, timeout: float) -> v1.RollbackResponse:
            asked.append(request)
            return v1.RollbackResponse(revision=12, **fields)

        return {"revision": {"Rollback": answer, "WatchProgress": lambda *_, **__: Told(come(2, 0))}}, asked

    mesh, asked = answering(changes=[change()])
    code, out, err = run(
        mesh, "rollback", "7", "--dry-run", "--resource", "RoutePolicy/platform/orders", "--as-of", "9"
    )
    assert (code, "as of revision 12" in err, "90 → 50" in out) == (0, True, True)
    assert (asked[0].revision, asked[0].as_of, asked[0].dry_run, list(asked[0].resources)) == (7, 9, True, [ROUTE])
    code, _, err = run(mesh, "rollback", "7", "--wait", "--reason", "no")
    assert (code, "2 of 2 nodes have it" in err, asked[1].reason) == (0, True, "no")
    mesh, _ = answering(changes=[change()], faults=[Fault(field="RoutePolicy a/b spec", message="is\x1b gone")])
    code, _, err = run(mesh, "rollback", "7", "--dry-run")
    assert (code, "error: RoutePolicy a/b spec: is� gone" in err) == (1, True)
    assert "all is as it was" in run(answering()[0], "rollback", "7")[2]
    assert run(mesh, "rollback", "7", "--resource", "orders")[0] == 2


@pytest.mark.parametrize(
    ("told", "options", "code", "said"),
    [
        ([come(1, 1), come(2, 0)], (), 0, "2 of 2 nodes"),
        ([come(9, 1)], ("--share", "90"), 0, "9 of 10"),
        ([come(0, 0)], ("--for", "data-planes"), 0, "0 of 0"),
        (
            [come(1, 1), come(1, 0, Nack(data_plane="a/b#1/envoy", type_url="t.Listener", message="bad\x1b"))],
            (),
            1,
            "bad�",
        ),
        ([come(1, 1)], (), 7, "n0 (away) has 5"),
    ],
)
def test_wait_ends_by_what_has_become_of_it(
    run: Any, told: Iterable[v1.Progress], options: tuple[str, ...], code: int, said: str
) -> None:
    stream = Told(*told)
    mesh = {"revision": {"WatchProgress": lambda *_, **__: stream}}
    ended, out, err = run(mesh, "wait", "--revision", "7", "--timeout", "1s", *options)
    assert (ended, said in out + err, stream.cancelled) == (code, True, True)


def data_planes() -> dict[str, Any]:
    nack = Nack(data_plane="acme/web#1/envoy", type_url=api.LISTENER, message=f"no {KEY} and {TOKEN}")
    state = DataPlaneState(
        node="n1", ref=DataPlaneRef(id="acme/web#1/envoy", dialect="ENVOY"), connected=True, revision=6
    )
    state.types.add(type_url=api.LISTENER, state=DataPlaneType.NACKED, resources=3, nack=nack)
    row = {"type_url": api.CLUSTER, "name": TOKEN, "version": "1", "body": {"metadata": f"Bearer {'x' * 40}"}}
    said = {"source": "envoy", "resources": [row], "refused": [{"type_url": "t.X", "message": KEY}]}
    live = zlib.compress(json.dumps(said).encode())
    return {
        "ListDataPlanes": lambda *_, **__: ListDataPlanesResponse(data_planes=[state], revision=7, omitted=2),
        "GetDataPlane": lambda *_, **__: [DataPlanePart(state=state), DataPlanePart(live=live)],
    }


def test_proxy_has_a_line_for_each_and_says_what_is_refused(run: Any) -> None:
    code, out, err = run({"data_plane": data_planes()}, "proxy", "status")
    assert code == 0
    assert out.splitlines()[1].split("\t") == [
        "acme/web#1/envoy",
        "n1",
        "envoy",
        "6 of 7",
        "-",
        "-",
        "NACKED 3",
        "-",
        "-",
    ]
    assert "refuses Listener: no" in err
    assert "and 2 more" in err
    assert run({}, "proxy", "config", "n1")[0] == 2
    assert run({"data_plane": data_planes()}, "proxy", "config", "n1/acme/web#1/envoy", "--live")[0] == 0


def test_a_snapshot_has_no_key_and_no_token_in_it(run: Any, tmp_path: Path) -> None:
    mesh = {
        "data_plane": data_planes(),
        "admin": {"GetStatus": lambda *_, **__: GetStatusResponse(warnings=[f"it said {KEY} {TOKEN}"])},
        "revision": {"GetProgress": lambda *_, **__: come(1, 0, Nack(message=KEY))},
    }
    path = tmp_path / "s.tgz"
    code, out, _ = run(mesh, "proxy", "snapshot", "--file", str(path))
    assert (code, "1 data planes" in out, path.stat().st_mode & 0o777) == (0, True, 0o600)
    with tarfile.open(fileobj=io.BytesIO(path.read_bytes())) as archive:
        files = {item.name: archive.extractfile(item).read().decode() for item in archive.getmembers()}  # type: ignore[union-attr]
    assert sorted(files) == [
        "meshwarden-proxy/config/n1_acme_web_1_envoy.json",
        "meshwarden-proxy/data_planes.json",
        "meshwarden-proxy/progress.json",
        "meshwarden-proxy/status.json",
    ]
    whole = "".join(files.values())
    assert "[redacted]" in whole
    for secret in ("PRIVATE KEY", "MIGHAgEA", TOKEN, "x" * 40):
        assert secret not in whole
    # Never over a file that is there.
    assert run(mesh, "proxy", "snapshot", "--file", str(path))[0] == 1
