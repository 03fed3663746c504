"""What docs/identity.md and docs/spiffe.md have one type."""

import re

from docs_mesh import Docs, found
from fault import stopped
from tests import pages

RUNBOOKS = "docs/runbooks"
PAGE, SPIFFE = "docs/identity.md", "docs/spiffe.md"


def another_trust_domain(docs: Docs) -> None:
    """It can't be asked for its bundle, which nothing of ours depends on."""
    domain = """\
kind: TrustDomain
metadata: {tenant: platform, name: partner}
spec: {trustDomain: partner.example, bundleEndpoint: {url: "https://127.0.0.1:9/bundle.json", profile: HTTPS_WEB}}
"""
    shop = "kind: Tenant\nmetadata: {name: shop}\n---\nkind: Service\nmetadata: {tenant: shop, name: orders}\n"
    page = (pages.ROOT / SPIFFE).read_text()
    policy = re.sub("^    ", "", found(r"(?s)(    kind: AccessPolicy\n.*?)\n\n", page), flags=re.MULTILINE)
    docs.apply(f"{domain}---\n{shop}spec: {{protocol: GRPC, exportTo: [acme]}}\n---\n{policy}\n")
    caller = "spiffe://partner.example/tenant/acme/service/web"
    explain = f"meshwarden explain --from {caller} --to shop/orders --method /shop.v1.Orders/Get"
    docs.types(SPIFFE, explain)
    fault = "the bundle of trust domain partner.example can't be fetched"
    docs.up.until(lambda: fault in docs.does("status"))
    docs.types(f"{RUNBOOKS}/ForeignBundleStale.md", "meshwarden bundle show")
    docs.types(f"{RUNBOOKS}/ForeignBundleStale.md", "curl -kv URL", {"URL": "https://127.0.0.1:9/bundle.json"}, code=7)
    docs.types(f"{RUNBOOKS}/ForeignBundleStale.md", "meshwarden delete TrustDomain NAME", {"NAME": "platform/partner"})


def identities(docs: Docs) -> None:
    docs.types(PAGE, "meshwarden operator create ann --tenant acme --role editor --out ann")
    address = docs.up.up_json["control_plane"]["address"]
    docs.does("context", "add", "ann", "--address", address, "--directory", str(docs.directory / "ann"))
    docs.does("context", "use", "d")
    docs.types(PAGE, "meshwarden operator list", rows=True)
    docs.types(PAGE, "meshwarden operator remove ann --tenant acme")
    docs.types(PAGE, "meshwarden audit list --event node.", {"node-a": "node-…"}, rows=True)
    ended = found(r"ends (\S+)", docs.reads(PAGE, "meshwarden audit verify"))
    file = next(docs.up.state_dir.rglob("audit.jsonl"))
    docs.types(PAGE, "meshwarden audit verify --file audit.jsonl --end 41:…", {"audit.jsonl": str(file), "41:…": ended})
    docs.types(PAGE, "meshwarden token create --node <node>", {"<node>": "node-c"})
    docs.types(f"{RUNBOOKS}/NodeDisconnected.md", "meshwarden token create --node NODE", {"NODE": "node-c"})
    docs.types(f"{RUNBOOKS}/BannedNodeCalls.md", "meshwarden node list")
    docs.types(f"{RUNBOOKS}/BannedNodeCalls.md", "meshwarden audit list --event node.banned_call")
    docs.types(f"{RUNBOOKS}/ForeignBundleStale.md", "meshwarden audit list --event federation.take")
    listed = docs.reads(PAGE, "meshwarden identity list --tenant acme", rows=True)
    serial = found(r"service/intruder\s+node-a\s+([0-9a-f]{20,})", listed)
    words = {"spiffe://mesh.example/tenant/acme/service/web": "spiffe://mesh.test/tenant/acme/service/intruder"}
    docs.types(
        PAGE,
        'meshwarden identity deny spiffe://mesh.example/tenant/acme/service/web --reason "key on a laptop"',
        {**words, "after 31.2 ms": "…"},
    )
    docs.types(
        PAGE,
        'meshwarden identity deny --serial 5f:3a:…:91 --reason "core dump of web#1"',
        {"5f:3a:…:91": ":".join(re.findall("..", serial))},
    )
    docs.types(PAGE, "meshwarden identity denied")
    docs.types(PAGE, "meshwarden identity allow spiffe://mesh.example/tenant/acme/service/web", words)


def roots_and_keys(docs: Docs) -> None:
    with stopped(docs.pid("agent-node-a")), stopped(docs.pid("agent-node-b")):
        said = docs.types(PAGE, "meshwarden ca prepare --reason yearly")
        words = {"9bc447b1eb68a917": found(r"(\w+)\s+PREPARED", said)}
        docs.types(PAGE, "meshwarden ca activate 9bc447b1eb68a917", words, code=1)
    # Where this was begun before there are old ones as well.
    docs.types(f"{RUNBOOKS}/RootWaiting.md", "meshwarden ca list", rows=True)
    root = words["9bc447b1eb68a917"]
    docs.types(f"{RUNBOOKS}/RootWaiting.md", "meshwarden ca activate ROOT --force", {"ROOT": root})
    ca_file = docs.up.up_json["control_plane"]["ca_file"]
    docs.types(f"{RUNBOOKS}/RootExpiring.md", "openssl x509 -in ca.pem -noout -dates", {"ca.pem": ca_file})
    docs.does("ca", "jwt", "prepare")
    listed = docs.does("ca", "jwt", "list")
    old, new = (found(rf"(?m)^(\S{{16}})\s.*\b{state}\b", listed) for state in ("ACTIVE", "PREPARED"))
    docs.types(SPIFFE, "meshwarden ca jwt list", {"c3O_S1EUFZKDQfNZ": old, "E4banGOWpdWORkIq": new}, rows=True)
    docs.does("ca", "jwt", "activate", new, "--force")
    docs.does("ca", "jwt", "taint", old)
    docs.does("ca", "jwt", "revoke", old)
    assert old not in docs.does("ca", "jwt", "list")
    # What pages name alone.
    docs.does("bundle", "export")
    docs.does("history", "list")
    docs.does("completion", "bash")
    docs.does("svid", "show")
    revision = str(docs.json("status")["revision"])
    docs.types(f"{RUNBOOKS}/RolloutRolledBack.md", "meshwarden trace --revision N", {"N": revision}, code=None)
    docs.types(f"{RUNBOOKS}/ForeignBundleStale.md", "meshwarden bundle show")
