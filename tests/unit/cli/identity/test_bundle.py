"""`meshwarden bundle`."""

import asyncio
import json
from datetime import timedelta

import pytest
from click.testing import CliRunner

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.bundle_document import TrustBundle, format_document, parse_document
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.controlplane.cli.identity import bundle as command
from meshwarden.controlplane.cli.main import main
from meshwarden.v1.admin_service_pb2 import BundleState, ListBundlesResponse


@pytest.fixture(scope="module")
def roots() -> dict[str, Bundle]:
    return {name: asyncio.run(MemoryAuthority(name).bundle()) for name in ("a.test", "b.test")}


@pytest.fixture
def runner(roots: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    def state(name: str, **more: object) -> BundleState:
        document = format_document(TrustBundle(name, roots[name], JwtBundle(name), 3))
        return BundleState(trust_domain=name, roots=1, sequence=3, document=document, **more)

    stale, missing = state("b.test", fault="no \x1b[31manswer"), BundleState(trust_domain="c.test", fault="no answer")
    stale.overdue.FromTimedelta(timedelta(minutes=20))
    answer = ListBundlesResponse(bundles=[state("a.test", own=True), stale, missing])
    monkeypatch.setattr(command, "_ask", lambda: answer)
    return CliRunner()


def test_each_is_shown_with_how_its_endpoint_does(runner: CliRunner) -> None:
    done = runner.invoke(main, ["bundle", "show"])
    lines = [line.split() for line in done.output.splitlines()]
    assert [line[:2] for line in lines[1:]] == [["a.test", "OWN"], ["b.test", "OVERDUE"], ["c.test", "MISSING"]]
    assert "\x1b" not in done.output
    assert "document" not in runner.invoke(main, ["bundle", "show", "-o", "json"]).output


def test_what_is_exported_can_be_read(runner: CliRunner, roots: dict[str, Bundle]) -> None:
    own = runner.invoke(main, ["bundle", "export"]).output
    assert parse_document("a.test", own.encode()).x509 == Bundle.of("a.test", roots["a.test"].roots, 3)
    assert json.loads(runner.invoke(main, ["bundle", "export", "b.test"]).output)["spiffe_sequence"] == 3
    pem = runner.invoke(main, ["bundle", "export", "b.test", "--format", "pem"]).output
    assert pem.encode() == roots["b.test"].pem()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["d.test"], "no trust domain d.test; there is a.test, b.test, c.test"),
        (["c.test"], "nothing of c.test is known: no answer"),
        (["--format", "der"], "Invalid value for"),
    ],
)
def test_what_is_not_there_is_said(runner: CliRunner, arguments: list[str], text: str) -> None:
    done = runner.invoke(main, ["bundle", "export", *arguments])
    assert done.exit_code
    assert text in done.output
