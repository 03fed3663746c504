"""Commands: what they write, print and exit with."""

import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import pytest
import yaml
from click.testing import CliRunner
from google.protobuf.json_format import ParseDict
from rich.console import Console

from meshwarden.controlplane.cli import client
from meshwarden.controlplane.cli.change.resource import parse_kind, parse_ref
from meshwarden.controlplane.cli.main import COMMANDS, main
from meshwarden.controlplane.cli.render import draw, life, plain
from meshwarden.controlplane.local import context
from meshwarden.controlplane.resources import model
from meshwarden.v1 import admin_service_pb2 as admin
from meshwarden.v1.revision_service_pb2 import Progress, ProgressShare
from meshwarden.v1.rollout_service_pb2 import ListRolloutsResponse


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path


def a_context(**changes: object) -> context.Context:
    values = {"address": "127.0.0.1:1", "ca_file": "/no/ca", "cert_file": "/no/crt", "key_file": "/no/key"}
    return context.Context(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    assert CliRunner().invoke(main, [command, "--help"]).exit_code == 0


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys; from meshwarden.controlplane.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*({'grpc', 'rich', 'yaml', 'pydantic', 'google.protobuf'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize("protocol", ["http", "grpc"])
@pytest.mark.parametrize("name", ["web", "123", "no", "1e3", "2026-01-01"])
def test_init_writes_resources_of_the_schema(tmp_path: Path, protocol: str, name: str) -> None:
    arguments = ["init", "--tenant", "acme", "--service", name, "--port", "8080", "--protocol", protocol]
    done = CliRunner().invoke(main, [*arguments, "--dir", str(tmp_path)])
    assert done.exit_code == 0, done.output
    file = tmp_path / f"{name}.yaml"
    documents = list(yaml.safe_load_all(file.read_text()))
    messages = [ParseDict(document, model.KINDS[document["kind"]]()) for document in documents]
    assert [model.title(model.ref_of(message)) for message in messages] == [  # type: ignore[arg-type]
        "Tenant acme",
        f"Service acme/{name}",
        f"WorkloadEntry acme/{name}",
        f"AccessPolicy acme/{name}",
    ]
    again = CliRunner().invoke(main, [*arguments, "--dir", str(tmp_path)])
    assert again.exit_code == 1
    assert "fix: write over it with --force" in again.output


@pytest.mark.parametrize(("option", "value"), [("--tenant", "A"), ("--service", "a\nb"), ("--port", "0")])
def test_init_refuses_what_the_schema_would(tmp_path: Path, option: str, value: str) -> None:
    arguments = {"--tenant": "acme", "--service": "web", "--port": "80", option: value}
    flat = [word for pair in arguments.items() for word in pair]
    done = CliRunner().invoke(main, ["init", *flat, "--dir", str(tmp_path)])
    assert done.exit_code == 2
    assert not list(tmp_path.glob("*.yaml"))


def test_contexts_are_kept_and_private(home: Path) -> None:
    context.put("one", a_context())
    context.put("two", a_context(agent_sockets=("/a",)))
    assert context.get(None) == ("two", a_context(agent_sockets=("/a",)))
    assert (home / "meshwarden" / "contexts.json").stat().st_mode & 0o777 == 0o600
    assert CliRunner().invoke(main, ["context", "use", "one"]).exit_code == 0
    assert context.get(None)[0] == "one"
    context.remove("one")
    assert context.get(None)[0] == "two"


@pytest.mark.parametrize("text", ["", "[]", "{", '{"current": "a", "contexts": {"a": 1}}', '{"current": 1}'])
def test_a_broken_contexts_file_is_named(home: Path, text: str) -> None:
    (home / "meshwarden").mkdir()
    (home / "meshwarden" / "contexts.json").write_text(text)
    done = CliRunner().invoke(main, ["context", "list"])
    assert done.exit_code == 1
    assert "contexts.json" in done.output


def test_without_a_context_the_exit_code_is_4_and_without_its_certificate_1() -> None:
    assert CliRunner().invoke(main, ["status"]).exit_code == 4
    context.put("one", a_context())
    assert CliRunner().invoke(main, ["status"]).exit_code == 1
    assert CliRunner().invoke(main, ["doctor"]).exit_code == 1


def test_logs_cannot_leave_their_directory(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "web.log").write_text("one\ntwo\n")
    (tmp_path / "secret.log").write_text("secret")
    context.put("one", a_context(state_dir=str(tmp_path)))
    assert CliRunner().invoke(main, ["logs", "web", "-n", "1"]).output == "two\n"
    assert CliRunner().invoke(main, ["logs", "../secret"]).exit_code == 4


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_table_on_a_terminal_leaves_nothing_out(width: int) -> None:
    screen = io.StringIO()
    rows = [
        ("a" * 32, "platform/node-a-platform-orders-v1-a-f92abc0dd1", "37.1 ms", 1, "no policy allows this call", ""),
        ("b", "  below", "-", 22, "[bold]x\x1b[31m", "#"),
    ]
    draw(("TRACE", "NAME", "TOOK", "SPANS", "WHY", ""), rows, "", Console(file=screen, width=width))
    text = screen.getvalue()
    for whole in ("a" * 32, "37.1 ms", "SPANS", "allows", "  below", "[bold]x�[31m"):
        assert whole in text, whole
    assert "…" not in text
    assert "\x1b" not in text
    left = re.sub(r"\s", "", text)
    assert all(piece in left for piece in ("platform/node-a-platform-orders-", "92abc0dd1"))


def some_logs(directory: Path) -> None:
    """Two regions, whose logs say what they are."""
    (directory / "logs").mkdir()
    for stem in ("orders-v1-a-eu", "orders-v1-a-us", "orders-v2-eu", "web-eu", "agent-node-a-eu", "gone", "server-eu"):
        (directory / "logs" / f"{stem}.log").write_text(f"2026-11-26 05:48:36,010 {stem}\n")
    workloads = [
        {"tenant": "platform", "service": "orders", "entry": "orders-v1", "name": "orders-v1-a"},
        {"tenant": "platform", "service": "orders", "entry": "orders-v2", "name": "orders-v2"},
        {"tenant": "acme", "service": "web", "entry": "web", "name": "web"},
    ]
    regions = [{"region": region, "workloads": workloads} for region in ("eu", "us")]
    (directory / "up.json").write_text(json.dumps({**regions[0], "regions": regions}))
    context.put("one", a_context(state_dir=str(directory)))


def shown(*arguments: str) -> list[str]:
    """The names of the logs that are shown."""
    done = CliRunner().invoke(main, ["logs", *arguments])
    assert done.exit_code == 0, done.output
    return sorted(line.split()[-1] for line in done.output.splitlines())


def test_logs_of_a_workload_by_any_name_that_the_other_commands_show(tmp_path: Path) -> None:
    some_logs(tmp_path)
    everywhere = ["orders-v1-a-eu", "orders-v1-a-us"]
    assert shown("--workload", "platform/orders") == [*everywhere, "orders-v2-eu"]
    assert shown("--workload", "platform/orders-v1") == everywhere
    assert shown("--workload", "orders-v1-a") == everywhere
    assert shown("--workload", "acme/web#0", "--node", "node-a") == ["agent-node-a-eu", "web-eu"]
    assert shown("--workload", "acme/gone") == ["gone"]  # it runs no more
    (tmp_path / "up.json").write_text('{"workloads": [{}]}')
    assert shown("--workload", "acme/web-eu") == ["web-eu"]


@pytest.mark.parametrize(
    ("option", "value", "fix"),
    [
        ("--workload", "globex/web", "orders-v2-eu"),
        ("--workload", "acme/../../up", "web-eu"),
        ("--node", "node-z", "known: node-a-eu"),
    ],
)
def test_logs_of_nobody_say_who_there_is(tmp_path: Path, option: str, value: str, fix: str) -> None:
    some_logs(tmp_path)
    done = CliRunner().invoke(main, ["logs", option, value])
    assert done.exit_code == 4
    assert f"no log of {option[2:]} '{value}'" in done.output
    assert fix in done.output
    assert "server" not in done.output


def test_logs_of_a_trace_that_nobody_wrote_of_say_where_its_spans_are(tmp_path: Path) -> None:
    some_logs(tmp_path)
    done = CliRunner().invoke(main, ["logs", "--trace", "A" * 32])
    assert done.exit_code == 0
    assert f"meshwarden trace {'a' * 32}" in done.output


def test_kinds_and_names_as_people_write_them() -> None:
    assert [parse_kind(text) for text in ("services", "access-policies", "RatePolicy")] == [
        "Service",
        "AccessPolicy",
        "RatePolicy",
    ]
    assert parse_ref("tenant", "acme").tenant == "acme"
    for kind, name in (("nothing", "a/b"), ("service", "web"), ("service", "/web")):
        with pytest.raises(click.BadParameter):
            parse_ref(kind, name)


def test_text_of_others_cannot_drive_the_terminal() -> None:
    assert plain("a\x1b[2Jb\n") == "a�[2Jb�"
    assert [life(seconds) for seconds in (30, 3000, 7200, -5)] == ["30s", "50m", "2h", "-5s"]


def test_a_command_that_is_nearly_right_is_named() -> None:
    done = CliRunner().invoke(main, ["stauts"])
    assert done.exit_code == 2
    assert "No such command 'stauts'. Did you mean 'status'?" in done.output
    assert "Did you mean" not in CliRunner().invoke(main, ["quux"]).output


def test_what_is_written_wrong_is_said_before_anybody_is_asked() -> None:
    for arguments, said in (
        (["get", "gateway"], "no kind 'gateway'; known: Tenant"),
        (["explain", "--from", "acme", "--to", "a/b", "--method", "/m"], "--from: write TENANT/SERVICE"),
        (["up", "--listen", "7443"], "write HOST:PORT"),
        (["up", "--regions", "eu"], "two or more"),
        (["up", "--regions", "eu,eu"], "two or more"),
        (["up", "--regions", "eu,../us"], "write names"),
        (["up", "--regions", "eu,us", "--check"], "--check"),
        (["up", "--regions", "eu,us", "--listen", "127.0.0.1:7443"], "a port"),
        (["up", "--regions", "eu,us", "--reach", "asia=127.0.0.1:1"], "no such region"),
        (["up", "--regions", "eu,us", "--reach", "us"], "write HOST:PORT"),
    ):
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == 2
        assert said in done.output


def test_a_manifest_that_is_not_there_is_named_without_a_line() -> None:
    done = CliRunner().invoke(main, ["apply", "-f", "/no/such.yaml"])
    assert done.exit_code == 1
    assert "error: /no/such.yaml: No such file or directory\nfix: name manifests that are there" in done.output


def test_down_by_the_context_of_a_mesh_elsewhere_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    context.put("far", a_context())
    done = CliRunner().invoke(main, ["--context", "far", "down"])
    assert done.exit_code == 1
    assert "not started by `up`" in done.output


def test_status_shows_tail_sampling_where_it_is_on_and_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = admin.TailSamplingState(ratio=0.1, waiting=2, passed=30, dropped=70, decided={"slow": 1, "error": 3})
    answer = admin.GetStatusResponse(trust_domain="mesh.test", health=admin.ControlPlaneHealth(tail_sampling=sampling))
    come = Progress(revision=7, nodes=ProgressShare(acknowledged=2, lagging=1, unneeded=4))
    mesh = SimpleNamespace(
        admin=SimpleNamespace(GetStatus=lambda request, timeout: answer),
        revision=SimpleNamespace(GetProgress=lambda request, timeout: come),
        rollout=SimpleNamespace(ListRollouts=lambda request, timeout: ListRolloutsResponse()),
    )
    monkeypatch.setattr(client, "connect_current", lambda: contextlib.nullcontext(mesh))
    shown = CliRunner().invoke(main, ["status"]).output
    nodes = "2 of 3 nodes have it (1 lag, 4 need nothing of it)"
    assert shown.splitlines()[1] == f"revision 7\t{nodes}\t0 of 0 data planes have it"
    assert shown.splitlines()[-2:] == [
        "TAIL SAMPLING\tSPANS WAIT\tPASSED\tDROPPED\tTRACES DECIDED ON",
        "0.1\t2\t30\t70\t3 error, 1 slow",
    ]
    answer.health.ClearField("tail_sampling")
    answer.health.settings_error = "jwt_passphrase: vault:kv/meshwarden#jwt is another in Vault by now"
    shown = CliRunner().invoke(main, ["status"]).output
    assert "TAIL SAMPLING" not in shown
    assert shown.splitlines()[-1] == f"warning: {answer.health.settings_error}"


MEMORY = 'trust_domain = "a"\nstate_dir = "/x"\nauthority = {kind = "memory"}\n[tail_sampling]\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('trust_domain = "a"', "state_dir: Field required"),
        (MEMORY, "tail_sampling.ratio: Field required"),
        (f"{MEMORY}ratio = 1.5", "tail_sampling.ratio: Input should be less than or equal to 1"),
        (f"{MEMORY}ratio = nan", "tail_sampling.ratio: Input should be"),
        (f"{MEMORY}ratio = 0.1\ntenants = {{acme = -0.1}}", "tail_sampling.tenants.acme: Input should be greater"),
        (f"{MEMORY}ratio = 0.1\ntenants = {{'a/b' = 0.1}}", "tail_sampling.tenants.a/b.[key]: String should match"),
        (f"{MEMORY}ratio = 0.1\nslow_s = 0", "tail_sampling.slow_s: Input should be greater than 0"),
        (f"{MEMORY}ratio = 0.1\nwait_s = inf", "tail_sampling.wait_s: Input should be less"),
        (f"{MEMORY}ratio = 0.1\nmax_waiting_bytes = 1", "tail_sampling.max_waiting_bytes: Input should be greater"),
        (f"{MEMORY}ratio = 0.1\n[traces_of.acme]\nkeep_s = 1", "traces_of.acme.keep_s: Input should be greater"),
        (f"{MEMORY}ratio = 0.1\n[traces_of.acme]\nmax_bytes = -1", "traces_of.acme.max_bytes: Input should be greater"),
        (f"{MEMORY}ratio = 0.1\n[traces_of.'a/b']\nkeep_s = 60", "traces_of.a/b.[key]: String should match"),
        (f"{MEMORY}ratio = 0.1\n[traces_of.acme]\nsize = 1", "traces_of.acme.size: Extra inputs are not permitted"),
        (f"{MEMORY}ratio = 0.1\nrate = 1", "tail_sampling.rate: Extra inputs are not permitted"),
        ('trust_domain = "a"\nstate_dir = "/x"\nlisten = "7443"\n[authority]\nkind = "memory"\n', "write HOST:PORT"),
    ],
)
def test_a_server_that_is_told_wrong_says_which_setting(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "server.toml").write_text(text)
    done = CliRunner().invoke(main, ["server", "--config", str(tmp_path / "server.toml")])
    assert done.exit_code == 1
    assert said in done.output
    assert "fix: set each in the file of --config" in done.output


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["context", "list"], ["context", "list", "-o", "json"]])
def test_output_that_cannot_be_written_is_one_line(arguments: list[str], unbuffered: str) -> None:
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "meshwarden.controlplane", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    assert (done.returncode, done.stderr) == (1, "error: can't write: No space left on device\n")
