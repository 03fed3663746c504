"""What docs/policy.md and docs/quotas.md have one type."""

from docs_mesh import ALLOWED, ORDERS, Docs
from fault import stopped

RUNBOOKS = "docs/runbooks"
PAGE, QUOTAS, OPERATIONS = "docs/policy.md", "docs/quotas.md", "docs/operations.md"
CHANGE = f"""\
{ORDERS}---
kind: AccessPolicy
metadata: {{tenant: platform, name: orders}}
spec: {{service: orders, allow: [{{from: [{{tenant: acme, service: web}}]}}]}}
---
kind: RatePolicy
metadata: {{tenant: platform, name: billing}}
spec: {{service: billing, limits: [{{tenant: acme, requests: 100, per: 60s, burst: 5}}]}}
"""
LIMIT = """\
kind: RatePolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  total: {requests: 6}
  limits: [{tenant: acme, requests: 5, floor: 1, weight: 3}, {tenant: globex, requests: 5}]
"""
DAY = """\
kind: RatePolicy
metadata: {tenant: platform, name: limit}
spec: {service: orders, period: DAY, limits: [{tenant: acme, requests: REQUESTS}]}
"""


def before_and_after_a_change(docs: Docs) -> None:
    runbook = f"{RUNBOOKS}/PermissiveEnding.md"
    explain = "meshwarden explain --from acme/web --to platform/orders --method /shop.v1.Orders/Get"
    docs.types(PAGE, explain)
    docs.types(PAGE, f"{explain} --header x-chaos=yes")
    words = {"--from TENANT/SERVICE": "--from acme/web", "--to TENANT/SERVICE": "--to platform/billing", "…": "'GET /'"}
    docs.types(runbook, "meshwarden explain --from TENANT/SERVICE --to TENANT/SERVICE --method …", words)
    docs.apply(ALLOWED.replace(", methods: [/meshwarden.examples.v1.*]", ""))
    whole = docs.json("status")["revision"]
    first = docs.apply(ORDERS, "--reason", "half of it to v2")
    docs.types(PAGE, "meshwarden history show 37", {"37": first})
    docs.types(PAGE, "meshwarden history RoutePolicy platform/orders")
    docs.types(
        f"{RUNBOOKS}/PermissiveEnded.md", "meshwarden history Service TENANT/SERVICE", {"TENANT/SERVICE": "acme/web"}
    )
    words = {"rollback 16": f"rollback {whole}"}
    docs.types(PAGE, "meshwarden rollback 16 --dry-run", words)
    docs.types(
        PAGE,
        'meshwarden rollback 16 --reason "v2 is slow" --wait',
        {**words, "data planes have it": "data planes have it…"},
    )
    docs.reads(PAGE, "meshwarden history", rows=True)
    docs.types(PAGE, "meshwarden wait --revision N", {"N": str(docs.json("status")["revision"])})
    docs.types(f"{RUNBOOKS}/ConfigRefused.md", "meshwarden get -o yaml")
    # By now enough was called for a limit that it would have met.
    (docs.directory / "change.yaml").write_text(CHANGE)
    docs.reads(PAGE, "meshwarden diff -f change.yaml --replay 1h", code=5, rows=True)
    docs.reads(PAGE, "meshwarden diff --delete AccessPolicy/platform/orders --replay 1h", code=5, rows=True)
    docs.reads(PAGE, "meshwarden suggest access --service platform/orders --since 24h")


def who_lags(docs: Docs) -> None:
    with stopped(docs.envoy("acme-web")):
        words = {"45": docs.apply(ORDERS), "(1 lag)": "(1 lag…"}
        docs.reads(PAGE, "meshwarden status --revision 45", words)
        docs.types(PAGE, "meshwarden wait --revision 45 --timeout 4s", words, code=7)
        docs.reads(PAGE, "meshwarden proxy status", rows=True)
        docs.types(OPERATIONS, "meshwarden status --revision N", {"N": words["45"]})
    docs.types(PAGE, "meshwarden wait --revision N", {"N": words["45"]})
    docs.reads(PAGE, "meshwarden proxy config node-a/acme/acme-web/envoy --live", rows=True)
    docs.types(
        OPERATIONS,
        "meshwarden proxy config NODE/DATA_PLANE --live",
        {"NODE/DATA_PLANE": "node-b/platform/billing/envoy"},
    )
    docs.types(OPERATIONS, "meshwarden proxy snapshot")


def limits(docs: Docs) -> None:
    docs.apply(LIMIT)
    docs.reads(QUOTAS, "meshwarden quota top | column -t")
    docs.reads(QUOTAS, "meshwarden quota explain acme", which=2)
    docs.does("delete", "RatePolicy", "platform/orders")
    docs.apply(DAY.replace("REQUESTS", "6000"))
    docs.reads(QUOTAS, "meshwarden quota top --once | column -t")
    points = {
        "be given;": "be given…;",
        "v1#1/": "v1-a/",
        "v2#1/": "v2/",
        "orders-v3#1/": "orders-v1-b/",
        "node-a": "…",
    }
    docs.reads(QUOTAS, "meshwarden quota explain acme", points, rows=True)
    docs.apply(DAY.replace("REQUESTS", "20"))
    docs.reads(QUOTAS, "meshwarden quota explain acme", rows=True, which=1)
    docs.does("delete", "RatePolicy", "platform/limit")
