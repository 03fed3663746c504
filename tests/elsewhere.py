"""Commands of the documentation's pages that no test types as the page has them, and what runs them instead.

tests/unit/cli/test_docs_typed.py holds this: each is on a page, and what is named has the command's words.
"""

from typing import Final

CI = ".ci/run"
MAKE = "Makefile"
DOCS = "tests/e2e/test_docs.py"
IDENTITY = "tests/e2e/docs_identity.py"
DAENA = "tests/e2e/test_daena.py"
REGIONS = "tests/e2e/test_regions.py"
SUITES = "tests/e2e/identity/test_suites.py"
UP = "tests/e2e/test_up.py"
LOGIN = "tests/integration/identity/test_operator_login.py"

ELSEWHERE: Final[dict[str, str]] = {
    # With options of the test's own, or by CI.
    'make up ARGS="--check --json"': CI,
    "make test": CI,
    "make deps": MAKE,
    "make check": CI,
    "buf breaking": MAKE,
    "python docs/generate.py": MAKE,
    "python docs/settings.py": MAKE,
    "python deploy/grafana/generate.py": MAKE,
    "meshwarden up": MAKE,
    "meshwarden up --check --vault --vault-away": "tests/e2e/test_check.py::test_every_check_holds_while_vault_is_away",
    "meshwarden up --samples daena": DAENA,
    'make up ARGS="--samples daena"': DAENA,
    'make up ARGS="--samples daena --otlp-endpoint http://127.0.0.1:4317"': DAENA,
    "meshwarden up --otlp-endpoint URL --tail-sampling 0.1": DOCS,
    'make up ARGS="--regions eu,us"': REGIONS,
    "meshwarden down": UP,
    "meshwarden operator renew": UP,
    "meshwarden context use": UP,
    "meshwarden context add": IDENTITY,
    "meshwarden history list": IDENTITY,
    "meshwarden bundle export": IDENTITY,
    "meshwarden completion": IDENTITY,
    "meshwarden svid show": IDENTITY,
    "meshwarden ca jwt prepare": IDENTITY,
    "meshwarden ca jwt activate": IDENTITY,
    "meshwarden ca jwt taint": IDENTITY,
    "meshwarden ca jwt revoke": IDENTITY,
    "meshwarden context remove": UP,
    "meshwarden node ban": SUITES,
    "meshwarden node evict": SUITES,
    "meshwarden node forget": SUITES,
    "meshwarden node unban NAME": SUITES,
    "meshwarden ca taint": SUITES,
    "meshwarden ca revoke ROOT": SUITES,
    "meshwarden login": LOGIN,
    "meshwarden operator remove vault-ann": LOGIN,
    "openssl verify -crl_check": "tests/contract/test_authority.py::test_a_revocation_list_is_taken_by_others",
    "meshwarden server --config FILE": "tests/integration/test_control_plane_process.py",
    "meshwarden-agent run --config FILE": "tests/integration/conftest.py",
    "meshwarden-agent run --config agent.toml": "tests/integration/conftest.py",
    "curl -sS --cacert web-ca.pem --resolve shop.example.com:8443:127.0.0.1": "tests/e2e/test_edges.py",
}
"""{command: a file with its words, or a test in it}."""

AT_ANOTHER_PAGE: Final[dict[tuple[str, str], tuple[str, str]]] = {
    (
        "docs/identity.md",
        "meshwarden login --vault --method userpass --username ann",
    ): (LOGIN, "spiffe://mesh.test/operator/vault-ann"),
    ("docs/identity.md", "meshwarden status"): (
        "tests/integration/identity/test_start_without_vault.py",
        "started without Vault, which is asked every few seconds; ",
    ),
    ("docs/spiffe.md", "meshwarden status"): ("tests/unit/cli/identity/test_bundle.py", "OVERDUE"),
    ("docs/spiffe.md", "meshwarden bundle show"): ("tests/unit/cli/identity/test_bundle.py", "OVERDUE"),
    ("docs/regions.md", "meshwarden --context up-eu ca prepare --reason yearly"): (
        "tests/unit/identity/test_rotation.py",
        "its nodes have not all acknowledged it yet",
    ),
    ("docs/regions.md", "meshwarden --context up-us ca list"): (
        "tests/integration/test_region_processes.py",
        '(new, "PREPARED", "eu")',
    ),
}
"""{(page, command): where what the page shows of it is held, and by which of its words}."""

BY_HAND: Final[dict[str, str]] = {
    "make docs": "`make check` makes the same site elsewhere",
    "make soak": "takes three quarters of an hour",
    "make fuzz": "takes ten minutes",
    "make mutants": "takes a quarter of an hour",
    "make accuracy": "wants a machine at rest for a quarter of an hour",
    "make interop": "wants Go and its modules",
    "make dashboards": "takes some minutes",
    "make upgrade-test": "moves between releases, by hand before each",
    "make bench": "wants a machine at rest",
    "make bench NAME=push": "likewise",
    "make bench NAME=stack": "likewise",
    "make bench NAME=revoke": "likewise",
    "make bench NAME=quota": "likewise",
    "python -m benchmarks push --agents 1000 --rounds 7": "likewise",
    "python -m benchmarks effect --rounds 9": "likewise",
    "python -m benchmarks idle --rounds 2": "likewise",
    "python -m benchmarks gather --rounds 5": "likewise",
    "python -m benchmarks quota --rounds 9": "likewise",
    "python -m benchmarks identity --rounds 5": "likewise",
    "python -m benchmarks api --rounds 9": "likewise",
    "pip install meshwarden": "tests/integration/test_packaging.py installs what is built here",
    "pip install 'meshwarden[mesh]'": "likewise",
    "pip install -U genai-prices": "changes what all other tests run in",
    "MESHWARDEN_PICTURES=docs make test ARGS=tests/e2e/test_console.py": "draws pictures that somebody looks at",
    "certutil -d sql:$HOME/.pki/nssdb -A -t C,, -n meshwarden -i browser-mesh.pem": "in no package that CI installs",
    "python -m meshwarden.controlplane.cli.reference > docs/cli.md": "tests/unit/cli/test_reference.py holds the page",
}
"""{command: why nothing runs it}; of `make` and benchmarks it is seen that there is such a target or module."""
