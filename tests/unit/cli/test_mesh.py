"""Commands against a real gRPC server with mutual TLS that answers as a control plane does."""

import contextlib
import datetime
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from click.testing import CliRunner
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.rpc.error_details_pb2 import BadRequest
from google.rpc.status_pb2 import Status
from grpc_status import rpc_status

from meshwarden.certs.clock import utc_now
from meshwarden.controlplane.cli.insight.trace import tree
from meshwarden.controlplane.cli.main import main
from meshwarden.controlplane.local import context
from meshwarden.controlplane.resources.manifest import parse
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1 import admin_service_pb2_grpc, resource_service_pb2_grpc
from meshwarden.v1 import resource_service_pb2 as resource
from meshwarden.v1.node_service_pb2 import WorkloadState
from meshwarden.v1.report_pb2 import CallStat
from meshwarden.v1.resources_pb2 import Metadata, Resource, Service, Tenant

ANSWERED: list[int] = []
"""How often it was asked for quotas."""


def certificate(
    directory: Path, name: str, uri: str, dns: str = "", life: datetime.timedelta = datetime.timedelta(hours=1)
) -> tuple[bytes, bytes]:
    """A self-signed certificate, its own root: enough for both sides to check each other."""
    key = ec.generate_private_key(ec.SECP256R1())
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(uri)]
    names += [x509.DNSName(dns)] if dns else []
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    leaf = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(utc_now() - datetime.timedelta(hours=1))
        .not_valid_after(utc_now() + life)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = leaf.public_bytes(serialization.Encoding.PEM)
    key_pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / f"{name}.crt").write_bytes(pem)
    (directory / f"{name}.key").write_bytes(key_pem)
    (directory / f"{name}.key").chmod(0o600)
    return key_pem, pem


TRACE, SKEWED = "4bf92f3577b34da6a3ce929d0e0e4736", "5" * 32


def change() -> admin.GetTraceResponse:
    """What became of revision 10."""
    span = admin.TraceSpan(span_id="01", name="Apply", service="meshwarden-controlplane")
    span.attributes["mesh.revision"], span.attributes["mesh.by"] = "10", "spiffe://mesh.test/operator/root"
    span.attributes["mesh.changes"] = json.dumps(["UPDATED Service a/b\x1b[2J", "and 3 more"])
    configure = admin.TraceSpan(span_id="02", parent_span_id="01", name="configure", node="node-a")
    configure.attributes["mesh.revision"] = "10"
    roots = admin.TraceSpan(span_id="03", parent_span_id="01", name="roots")
    roots.attributes["mesh.changes"] = json.dumps(["TRUSTED root r"])
    call = admin.TraceSummary(trace_id=SKEWED, service="acme/web", name="GET /\x1b[2J")
    return admin.GetTraceResponse(spans=[span, configure, roots], region="eu", trace_id=TRACE, calls=[call])


def skewed() -> admin.GetTraceResponse:
    """A call of 30 ms to a node whose clock is an hour behind."""
    caller = admin.TraceSpan(span_id="01", name="Get", kind="client", node="node-a")
    served = admin.TraceSpan(span_id="02", parent_span_id="01", name="Get", kind="server", node="node-b")
    caller.start.FromSeconds(7200)
    served.start.FromSeconds(3600)
    caller.duration.FromMilliseconds(30)
    served.duration.FromMilliseconds(10)
    return admin.GetTraceResponse(spans=[served, caller], region="eu", trace_id=SKEWED)


class Answers(admin_service_pb2_grpc.AdminServiceServicer, resource_service_pb2_grpc.ResourceServiceServicer):
    def GetStatus(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        workload = WorkloadState(id="acme/web#1", tenant="acme", spiffe_id="spiffe://mesh.test/tenant/acme/service/web")
        workload.not_after.FromDatetime(utc_now() + datetime.timedelta(minutes=50, seconds=30))
        node = admin.NodeState(node="node-a", connected=False, acked_revision=3, workloads=[workload])
        node.last_seen.FromDatetime(utc_now())
        unseen = admin.NodeState(node="node-b")
        unseen.join_time.FromJsonString("2026-01-02T03:04:05Z")
        nodes = [node, unseen]
        answer = admin.GetStatusResponse(trust_domain="mesh.test", revision=5, nodes=nodes, warnings=["shares a uid"])
        answer.now.FromDatetime(utc_now())
        return answer

    def Explain(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        assert getattr(request, "from") == "acme/web"
        assert dict(request.headers) == {"x": "1=2"}
        step = admin.ExplainStep(stage="access", text="no policy allows it")
        return admin.ExplainResponse(decision=CallStat.DENIED, steps=[step], revision=5)

    def GetGraph(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        assert (request.tenant, request.window.seconds) in (("acme", 60), ("", 60))
        edge = admin.GraphEdge(source="acme/web", destination="platform/orders", calls_per_s=7.25, p50_s=0.00085)
        edge.p99_s, edge.source_reports, edge.mutual_tls = 1.25, True, admin.GraphEdge.SAID
        if request.service == "nobody":
            return admin.GetGraphResponse(region="eu")
        return admin.GetGraphResponse(edges=[edge], region="eu", omitted=4900 if request.service == "orders" else 0)

    def SearchTraces(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        assert (request.service, request.failed, request.min_duration.ToMilliseconds()) == ("web", True, 50)
        if request.tenant == "nobody":
            return admin.SearchTracesResponse()
        page = int(request.page_token.partition(".")[0] or 0)
        found = [
            admin.TraceSummary(
                trace_id=f"{page}{number}" * 16,
                service="acme/web",
                name="GET /\x1b[2J",
                spans=3,
                incomplete=number == 1,
            )
            for number in range(min(2, request.page_size))
        ]
        token = f"{page + 1}.1.{'0' * 32}" if page < 2 else ""
        return admin.SearchTracesResponse(traces=found, next_page_token=token)

    def GetTrace(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        if request.revision == 10:
            return change()
        if request.trace_id == SKEWED:
            return skewed()
        if request.trace_id != TRACE:
            ctx.abort(grpc.StatusCode.NOT_FOUND, "no span of it is here")
        root = admin.TraceSpan(span_id="01", name="GET /\x1b[2J", service="acme/web", node="n")
        root.attributes["mesh.revision"] = "12"
        child = admin.TraceSpan(span_id="02", parent_span_id="01", name="List", service="platform/orders")
        child.status, child.status_message, child.attributes["rpc.response.status_code"] = 2, "no\ngood", "INTERNAL"
        lost = admin.TraceSpan(span_id="03", parent_span_id="77", name="lost", parent_missing=True)
        lost.node, lost.attributes["mesh.revision"] = "n", "\x1b[2J\N{ARABIC-INDIC DIGIT ONE}"
        lost.links.add(trace_id="ab" * 16, span_id="cd" * 8).attributes["why"] = "asked"
        for number, span in enumerate((root, child, lost)):
            span.start.FromMilliseconds(1000 + number)
            span.duration.FromMilliseconds(10)
        return admin.GetTraceResponse(spans=[root, child, lost], incomplete=True, region="eu", trace_id=TRACE)

    def GetQuotas(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        ANSWERED.append(len(ANSWERED))
        if len(ANSWERED) > 3:
            ctx.abort(grpc.StatusCode.PERMISSION_DENIED, "not yours any more")
        state = admin.QuotaState(unit="requests", limit=5, allowed=10 * len(ANSWERED), excess=0)
        state.bucket.policy, state.bucket.tenant = "platform/orders", "acme\x1b[2J"
        answer = admin.GetQuotasResponse(divides=True, quotas=[state])
        answer.now.FromSeconds(len(ANSWERED))
        return answer

    def ListCalls(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        return admin.ListCallsResponse()

    def CreateJoinToken(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        return admin.CreateJoinTokenResponse(token=f"token-of-{request.node}-{request.ttl.seconds}")

    def List(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        page = int(request.page_token or 0)
        service = Service(kind="Service", metadata=Metadata(tenant="acme", name=f"s{page}"))
        token = str(page + 1) if page < 2 else ""
        return resource.ListResponse(resources=[Resource(service=service)], next_page_token=token)

    def Get(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        if (request.ref.kind, request.ref.name) != ("Tenant", "acme"):
            ctx.abort(grpc.StatusCode.NOT_FOUND, f"no {request.ref.kind}")
        return Resource(tenant=Tenant(kind="Tenant", metadata=Metadata(name="acme")))

    def Apply(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        if request.resources[0].tenant.spec.display_name == "wrong":
            fields = [f"resources[{number}].metadata.labels" for number in range(len(request.resources))]
            if request.dry_run:
                return resource.ApplyResponse(faults=[resource.Fault(field=field, message="no") for field in fields])
            bad = BadRequest()
            bad.field_violations.add(field=fields[0], description="no")
            bad.field_violations.add(description="and 2 more: mend these first")
            status = Status(code=grpc.StatusCode.INVALID_ARGUMENT.value[0], message="no")
            status.details.add().Pack(bad)
            ctx.abort_with_status(rpc_status.to_status(status))
        ref = resource.ResourceRef(kind="Tenant", tenant="acme", name="acme")
        change = resource.Change(ref=ref, action=resource.Change.CREATED)
        return resource.ApplyResponse(revision=7, changes=[change], trace_id=TRACE)

    def Delete(self, request, ctx):  # type: ignore[no-untyped-def]  # noqa: N802
        ctx.abort(grpc.StatusCode.PERMISSION_DENIED, "not yours")


@pytest.fixture
def mesh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[grpc.Server]:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    ours = certificate(tmp_path, "server", "spiffe://mesh.test/region/eu/controlplane", "controlplane.mesh.test")
    _, operator = certificate(tmp_path, "operator", "spiffe://mesh.test/operator/me")
    server = grpc.server(ThreadPoolExecutor(2))
    admin_service_pb2_grpc.add_AdminServiceServicer_to_server(Answers(), server)
    resource_service_pb2_grpc.add_ResourceServiceServicer_to_server(Answers(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([ours], operator, True))
    files = [str(tmp_path / name) for name in ("server.crt", "operator.crt", "operator.key")]
    context.put("test", context.Context(f"127.0.0.1:{port}", *files))
    server.start()
    yield server
    server.stop(None).wait()


def run(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.usefixtures("mesh")
def test_status_is_tabs_in_a_pipe_and_json_for_programs() -> None:
    code, out, err = run("status")
    assert code == 0
    assert "node-a\taway\t3 of 5\t0\t1\n" in out
    assert "node-b\taway\tunknown\t0\t0\n" in out
    assert "acme/web#1\tnode-a\tspiffe://mesh.test/tenant/acme/service/web\t50m\n" in out
    assert "warning: shares a uid" in err
    assert json.loads(run("status", "-o", "json")[1])["trustDomain"] == "mesh.test"


@pytest.mark.usefixtures("mesh")
def test_quota_top_draws_itself_anew_on_a_terminal_and_once_in_a_pipe() -> None:
    ANSWERED.clear()
    command = [sys.executable, "-m", "meshwarden.controlplane", "quota", "top", "--every", "0.5"]
    ours, theirs = os.openpty()
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        drawn = b""
        with contextlib.suppress(OSError):  # the terminal's end is an error on Linux
            while more := os.read(ours, 4096):
                drawn += more
        os.close(ours)
    # Twice, since what is called is taken between two answers; what tenants are called moves no cursor.
    assert process.returncode > 0, "the last answer was a refusal"
    frames = drawn.decode().split("\x1b[2J")
    assert frames[0] == ""
    assert len(frames) == 3
    for frame in frames[1:]:
        assert "10.0" in frame
        assert "POLICY" in frame
    ANSWERED.clear()
    code, out, _ = run("quota", "top", "--every", "0.5")
    assert (code, len(out.splitlines()), "\x1b" in out) == (0, 2, False)


@pytest.mark.usefixtures("mesh")
def test_traces_are_listed_page_by_page() -> None:
    arguments = ("traces", "--service", "web", "--status", "error", "--min-duration", "50ms")
    code, out, err = run(*arguments)
    lines = out.splitlines()
    assert (code, len(lines), err) == (0, 7, "")
    assert lines[1].endswith("\tacme/web\tGET /\N{REPLACEMENT CHARACTER}[2J")
    assert lines[2].endswith("[2J (incomplete)")
    assert "none was found" in run(*arguments, "--tenant", "nobody")[2]
    code, out, err = run(*arguments, "--limit", "3")
    assert (len(out.splitlines()), "there are more" in err) == (4, True)
    assert len(json.loads(run(*arguments, "-o", "json")[1])) == 6
    for wrong in ("50", "-1s", "1y", "1e3s", "9999999d"):
        assert run("traces", "--since", wrong)[0] == 2


@pytest.mark.usefixtures("mesh")
def test_a_trace_is_a_tree_of_spans() -> None:
    code, out, err = run("trace", TRACE.upper())
    assert code == 0
    assert out.splitlines()[1:] == [
        "GET /\N{REPLACEMENT CHARACTER}[2J\tacme/web\tn\t0\t10 ms\tok",
        "  List\tplatform/orders\t\t+1 ms\t10 ms\tfailed INTERNAL no\N{REPLACEMENT CHARACTER}good",
        "lost\t\tn\t+2 ms\t10 ms\tok, parent missing",
        f"link\tlost\ttrace {'ab' * 16} span {'cd' * 8} why=asked",
        "policies\trevision 12\tmeshwarden trace --revision 12",
    ]
    assert f"trace {TRACE}, region eu, 1970-01-01 00:00:01 UTC, 12 ms, 3 spans, INCOMPLETE" in err
    assert "skewed" not in err
    assert "incomplete: parents are missing" in err
    assert json.loads(run("trace", TRACE, "-o", "json")[1])["spans"][1]["parentSpanId"] == "01"
    assert run("trace", "ab" * 16)[0] != 0
    assert run("trace", "../../etc")[0] == 2


@pytest.mark.usefixtures("mesh")
def test_the_trace_of_a_change_is_found_by_its_revision() -> None:
    code, out, err = run("trace", "--revision", "10")
    assert code == 0
    assert out.splitlines()[4:] == [
        "change\trevision 10\tUPDATED Service a/b\N{REPLACEMENT CHARACTER}[2J\tby spiffe://mesh.test/operator/root",
        "change\trevision 10\tand 3 more\tby spiffe://mesh.test/operator/root",
        "change\tTRUSTED root r",
        f"call\tacme/web GET /\N{REPLACEMENT CHARACTER}[2J\tmeshwarden trace {SKEWED}",
    ]
    assert f"trace {TRACE}" in err
    assert "INCOMPLETE" not in err
    for wrong in (("trace",), ("trace", TRACE, "--revision", "10"), ("trace", "--revision", "0")):
        assert run(*wrong)[0] == 2


@pytest.mark.usefixtures("mesh")
def test_clocks_that_are_off_are_named_and_moved_only_if_asked() -> None:
    _, out, err = run("trace", SKEWED)
    assert out.splitlines()[1:] == ["Get\t\tnode-a\t+3600 s\t30 ms\tok", "  Get\t\tnode-b\t0\t10 ms\tok"]
    assert "skewed: by this trace the clock of node node-b is about 60m behind; --clock adjusted" in err
    _, out, err = run("trace", SKEWED, "--clock", "adjusted")
    assert out.splitlines()[1:] == ["Get\t\tnode-a\t0\t30 ms\tok", "  Get\t\tnode-b\t+10 ms\t10 ms\tok"]
    assert "its times are moved here" in err


def test_spans_in_a_circle_and_in_a_long_chain_are_all_shown_once() -> None:
    circle = [admin.TraceSpan(span_id=str(n), parent_span_id=str((n + 1) % 3)) for n in range(3)]
    twins = [admin.TraceSpan(span_id="9", parent_span_id="9"), admin.TraceSpan(span_id="9")]
    chain = [admin.TraceSpan(span_id=f"c{n}", parent_span_id=f"c{n - 1}" if n else "") for n in range(5000)]
    shown = list(tree([*circle, *twins, *chain]))
    assert len(shown) == len({id(span) for span, _ in shown}) == 5005
    assert max(depth for _, depth in shown) == 4999


@pytest.mark.usefixtures("mesh")
def test_doctor_names_each_problem_and_its_fix() -> None:
    code, out, err = run("doctor")
    assert code == 1
    assert "critical\tnode node-a\tagent unreachable\tno session since " in out
    assert "node node-b\tagent unreachable\tno session since the control plane started; it joined at 2026-01-02" in out
    assert "meshwarden logs --node node-a" in out
    assert "error: 2 problems in context test" in err


@pytest.mark.usefixtures("mesh")
def test_graph_is_a_table_a_picture_or_data() -> None:
    arguments = ("graph", "--tenant", "acme", "--window", "60")
    row = "acme/web\tplatform/orders\t7.2\t0.0\t0.0\t0.0\t850 µs\t-\t1.25 s\tsaid\tsource\n"
    assert row in run(*arguments)[1]
    assert json.loads(run(*arguments, "-o", "json")[1])["edges"][0]["callsPerS"] == 7.25
    assert '"acme/web" -> "platform/orders"' in run(*arguments, "-o", "dot")[1]
    assert run(*arguments, "-o", "svg")[1].startswith("<svg ")
    assert run("graph", "--window", "5")[0] == 2
    assert "left out" not in run(*arguments)[2]
    assert "no call was seen" in run(*arguments, "--service", "nobody")[2]
    assert "4900 more edges are left out" in run(*arguments, "--service", "orders", "--limit", "60")[2]
    assert run("graph", "--limit", "10001")[0] == run("graph", "--limit", "0")[0] == 2


@pytest.mark.usefixtures("mesh")
def test_explain_token_and_svid() -> None:
    arguments = ("--from", "acme/web", "--to", "platform/orders", "--method", "/a", "--header", "x=1=2")
    code, out, _ = run("explain", *arguments)
    assert (code, out.splitlines()[0]) == (0, "DENIED  acme/web -> platform/orders  /a  (revision 5)")
    assert run("token", "create", "--node", "b", "--ttl", "60")[1] == "token-of-b-60\n"
    assert "50m" in run("svid", "show")[1]
    assert "spiffe://mesh.test/operator/me" in run("context", "show")[1]


@pytest.mark.usefixtures("mesh")
def test_get_reads_every_page_and_failures_have_their_codes() -> None:
    assert [line.split("\t")[1] for line in run("get", "services")[1].splitlines()[1:]] == [
        "acme/s0",
        "acme/s1",
        "acme/s2",
    ]
    assert run("get", "service", "acme/x")[0] == 4
    assert run("delete", "service", "acme/x")[0] == 1
    assert run("svid", "renew")[0] == 1


@pytest.mark.usefixtures("mesh")
def test_apply_says_what_it_did_to_people_and_to_programs(tmp_path: Path) -> None:
    manifest = tmp_path / "tenant.yaml"
    manifest.write_text("kind: Tenant\nmetadata: {name: acme}\n")
    assert run("apply", "-f", str(manifest))[:2] == (0, "created\tTenant acme\n")
    said = json.loads(run("apply", "-f", str(manifest), "-o", "json")[1])
    assert (said["revision"], said["changes"][0]["action"]) == ("7", "CREATED")


@pytest.mark.usefixtures("mesh")
def test_more_faults_than_a_refusal_holds_are_all_told_by_file_and_line(tmp_path: Path) -> None:
    manifest = tmp_path / "tenants.yaml"
    tenant = "kind: Tenant\nmetadata: {{name: t{}}}\nspec: {{displayName: wrong}}\n"
    manifest.write_text("---\n".join(tenant.format(number) for number in range(3)))
    wanted = [f"error: {manifest}:{line}: metadata.labels: no" for line in (2, 6, 10)]
    for command in ("apply", "diff"):
        code, _, err = run(command, "-f", str(manifest))
        assert code == 1
        assert err.splitlines()[1:] == [*wanted, "fix: correct the lines above; nothing was changed"]


@pytest.mark.usefixtures("mesh")
def test_a_certificate_that_has_ended_is_named_with_the_fix(tmp_path: Path) -> None:
    certificate(tmp_path, "old", "spiffe://mesh.test/operator/me", life=datetime.timedelta(minutes=-1))
    files = [str(tmp_path / name) for name in ("server.crt", "old.crt", "old.key")]
    context.put("old", context.Context(context.get("test")[1].address, *files))
    for command in ("status", "doctor"):
        code, out, err = run(command)
        assert code == 1
        assert "old.crt: the operator certificate ended at" in out + err
        assert "start it again with `meshwarden up`" in out + err


def test_a_mesh_that_is_gone_exits_3(mesh: grpc.Server) -> None:
    mesh.stop(None).wait()
    code, _, err = run("status")
    assert code == 3
    assert "fix: " in err


@pytest.mark.usefixtures("mesh")
@pytest.mark.parametrize("spoilt", ["operator.key", "server.crt"])
def test_a_file_of_the_context_that_is_garbage_is_named_before_grpc_sees_it(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], spoilt: str
) -> None:
    (tmp_path / spoilt).write_text("-----BEGIN NONSENSE-----")
    code, _, err = run("status")
    assert code == 1
    first, second = err.splitlines()
    assert first.startswith(f"error: {tmp_path / spoilt}: no ")
    assert second.startswith("fix: ")
    assert capfd.readouterr().err == ""


@pytest.mark.usefixtures("mesh")
def test_a_key_of_another_certificate_is_named(tmp_path: Path) -> None:
    other, _ = certificate(tmp_path, "other", "spiffe://mesh.test/operator/me")
    (tmp_path / "operator.key").write_bytes(other)
    assert "operator.crt: SVID: the key is not that of the certificate" in run("status")[2]


def kinds(directory: Path, tenant: str) -> list[str]:
    """The kinds that `init` writes for a service of a tenant."""
    arguments = ("--tenant", tenant, "--service", "shop", "--port", "8080", "--dir", str(directory), "--force")
    code, out, err = run("init", *arguments)
    assert code == 0, err
    assert out.startswith("wrote ")
    return [item.resource.WhichOneof("resource") for item in parse((directory / "shop.yaml").read_text(), "shop.yaml")]


def test_init_leaves_out_a_tenant_that_the_mesh_has(mesh: grpc.Server, tmp_path: Path) -> None:
    rest = ["service", "workload_entry", "access_policy"]
    assert kinds(tmp_path, "acme") == rest
    assert "# Tenant acme is in the mesh already" in (tmp_path / "shop.yaml").read_text()
    assert kinds(tmp_path, "new") == ["tenant", *rest]
    mesh.stop(None).wait()
    assert kinds(tmp_path, "acme") == ["tenant", *rest]
