"""What the documentation's pages have one type, on one mesh with both sets of samples, and what it prints there.

Its longer stories are in docs_*.py. tests/unit/cli/test_docs_typed.py sees to it that every command of every page is
run by a test, here or elsewhere.
"""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio.from_thread
import docs_identity
import docs_policy
import docs_traces
import pytest
from docs_mesh import ALLOWED, ORDERS, Docs
from tests import pages
from tests.shell import printed

from meshwarden.controlplane.local.otlp import receiver
from meshwarden.controlplane.local.port import free_port

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900), pytest.mark.needs("curl")]
AGENT, API, CONSOLE, COST, DAENA = "docs/agent.md", "docs/api.md", "docs/console.md", "docs/cost.md", "docs/daena.md"
OBSERVABILITY, OPERATIONS = "docs/observability.md", "docs/operations.md"
RUNBOOKS = "docs/runbooks"
POLICY = "docs/policy.md"
PYTHON = (pages.ROOT / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
SLO = """\
kind: SLO
metadata: {tenant: platform, name: orders-availability}
spec: {service: orders, objective: 99.9, availability: {}}
"""


@pytest.fixture(scope="module")
def docs(start_shared: Callable[..., Any], shared_directory: Path) -> Iterator[Docs]:
    with anyio.from_thread.start_blocking_portal() as portal, portal.wrap_async_context_manager(receiver()) as backend:
        samples = ("--samples", "shop", "--samples", "daena")
        up = start_shared("d", *samples, "--otlp-endpoint", backend.endpoint, "--tail-sampling", "0.1")
        up.wait_until_up()
        made = Docs(up, shared_directory)
        try:
            yield made
        finally:
            made.end()
            up.end()


def test_the_tutorial_goes_as_it_is_printed(docs: Docs) -> None:
    page = "README.md"
    printed(page, "make up", docs.up.said())
    port = str(free_port(random.SystemRandom()))
    words = {"8080": port}
    server = docs.directory / "my-server"
    server.write_text(PYTHON.replace("8080", port))
    server.chmod(0o755)
    docs.types(page, "meshwarden init --tenant acme --service shop --port 8080", words)
    docs.types(page, "meshwarden apply -f shop.yaml")
    docs.begins(page, "meshwarden-agent exec --entry shop -- ./my-server")
    docs.reads(
        page,
        "meshwarden-agent exec --entry acme/web -- sh -c 'curl -sS --unix-socket $MESHWARDEN_OUTBOUND http://shop.acme/'",
    )
    docs.reads(page, "meshwarden explain --from acme/web --to acme/shop --method 'GET /'")
    docs.end()
    words = {"--entry web": "--entry acme/shop", **words}
    docs.begins(AGENT, "meshwarden-agent exec --entry web --port 8080 -- ./my-server --flag", words)
    docs.reads(
        page,
        "meshwarden-agent exec --entry acme/web -- sh -c 'curl -sS --unix-socket $MESHWARDEN_OUTBOUND http://shop.acme/'",
    )
    docs.end()


def test_what_programs_do(docs: Docs) -> None:
    web = (pages.ROOT / "docs/sdk.md").read_text().partition("```python\n")[2].partition("```")[0]
    (docs.directory / "web.py").write_text(web)
    said = docs.reads(
        "docs/sdk.md", "meshwarden-agent exec --entry web -- python web.py", {"--entry web": "--entry acme/web"}
    )
    assert said.splitlines()[-1] == "acme"
    docs.types(AGENT, "meshwarden-agent status")
    words = {
        '"winner": "analyst"': '"winner": "…"',
        "A certificate of one hour costs one signature an hour for ea…": "…",
        '{"analyst": 2, "scholar": 0, "sceptic": 1}': "{…}",
    }
    convene = "meshwarden-agent exec --entry daena/convener -- python -m meshwarden.examples.daena convene --rounds 1"
    docs.reads(DAENA, convene, words)
    docs.follows(DAENA, "meshwarden logs convener")
    model = "meshwarden-agent exec --entry daena/convener -- python -m meshwarden.examples.model_call"
    docs.types(COST, f"{model} --calls 3 --every 0.2")
    docs.types(COST, f"{model} --provider anthropic --model claude-sonnet-4-5 --input 9000 --cached 8000 --output 700")
    docs.reads(COST, "meshwarden cost", rows=True)
    docs.reads(COST, "meshwarden cost --by tenant --by hour", rows=True)


def test_the_rest_api(docs: Docs) -> None:
    """The examples of docs/api.md; their own answers are held to in test_up.py."""
    (docs.directory / "examples").symlink_to(pages.ROOT / "examples")
    docs.types(API, "export UP_JSON=…/up.json", {"…": str(docs.up.state_dir)})
    docs.types(API, "examples/api/read.sh")
    docs.types(API, "examples/api/resources.sh")
    docs.types(API, "python examples/api/watch.py $UP_JSON")
    docs.types(API, "examples/api/grpc.sh")
    docs.types(CONSOLE, "meshwarden audit list --event session.")


def test_what_is_seen(docs: Docs) -> None:
    page = OBSERVABILITY
    docs.reads(page, "meshwarden graph --window 60", rows=True)
    docs.types(page, "meshwarden graph --window 60 -o svg > graph.svg")
    assert (docs.directory / "graph.svg").read_text().startswith("<svg")
    docs.types(f"{RUNBOOKS}/RolloutHeld.md", "meshwarden graph --service SERVICE", {"SERVICE": "platform/orders"})
    docs.types(page, "meshwarden traces --service web --status error --min-duration 50ms --since 15m")
    docs.types(
        f"{RUNBOOKS}/RolloutRolledBack.md",
        "meshwarden traces --service SERVICE --status error --since 1h",
        {"SERVICE": "orders"},
    )
    reasons = {"2142 complete, 109 denied, 7 error, 17 mesh, 5 new_edge": "2142 complete, …"}
    docs.reads(page, "meshwarden status", reasons, rows=True)
    docs.apply(SLO)
    docs.types(page, "meshwarden slo rules --scale 60")
    docs.types("docs/metrics.md", "meshwarden slo rules > slo.yml")


def test_what_the_mesh_did(docs: Docs) -> None:
    docs_traces.what_the_mesh_did(docs)


def test_before_and_after_a_change(docs: Docs) -> None:
    docs_policy.before_and_after_a_change(docs)


def test_who_lags(docs: Docs) -> None:
    docs_policy.who_lags(docs)


def test_limits(docs: Docs) -> None:
    docs_policy.limits(docs)


def test_operating(docs: Docs) -> None:
    page = OPERATIONS
    docs.types(page, "meshwarden doctor", code=None)
    docs.types(page, "meshwarden context list")
    docs.types(page, "meshwarden context show")
    docs.types(page, "meshwarden status -o json")
    docs.types(page, "meshwarden logs")
    docs.follows(page, "meshwarden logs server -f")
    docs.follows("docs/up.md", "meshwarden logs <name>", {"<name>": "acme-web"})
    docs.types(page, "meshwarden logs --node node-a --workload platform/orders")
    passphrase = docs.directory / "backup-passphrase"
    passphrase.touch(0o600)
    passphrase.write_text("a passphrase of a test\n")
    state_dir = next(path.parent for path in docs.up.state_dir.rglob("store.sqlite"))
    here = str(docs.directory)
    words = {"/var/lib/meshwarden": str(state_dir), "file:/etc/meshwarden": f"file:{here}", " /backup/": f" {here}/"}
    text = "--passphrase file:/etc/meshwarden/backup-passphrase /backup/meshwarden-1126.bak"
    docs.types(page, f"meshwarden backup --state-dir /var/lib/meshwarden {text}", words)
    words |= {"/var/lib/meshwarden": f"{here}/restored"}
    docs.types(page, f"meshwarden restore --state-dir /var/lib/meshwarden {text}", words)
    assert (docs.directory / "restored" / "store.sqlite").exists()
    drain = "kind: Drain\nmetadata: {tenant: platform, name: maintenance-of-n1}\nspec: {node: n1}\n"
    denied = "  deny: [{from: [{tenant: acme, service: intruder}]}]\n"
    docs.apply("---\n".join((drain, ALLOWED + denied, ORDERS.replace("{split", "{timeout: 20s, split"))))
    docs.types("docs/upgrade.md", "meshwarden way-back", code=6, rows=True)
    docs.types(POLICY, "meshwarden delete Drain platform/maintenance-of-n1")


def test_another_trust_domain(docs: Docs) -> None:
    docs_identity.another_trust_domain(docs)


def test_identities(docs: Docs) -> None:
    docs_identity.identities(docs)


def test_roots_and_keys(docs: Docs) -> None:
    """Last, for it ends what certificates lead to."""
    docs_identity.roots_and_keys(docs)
