"""What docs/observability.md has one type about changes, and about what became of them."""

import json

from docs_mesh import ALLOWED, Docs, found

PAGE = "docs/observability.md"
OPERATIONS = "docs/operations.md"
REVIEW = """\
kind: AccessPolicy
metadata: {tenant: daena, name: council-review}
spec:
  service: council
  allow:
    - from: [{tenant: platform, service: orders}]
      methods: [/meshwarden.examples.daena.v1.Council/Hold, /meshwarden.examples.daena.v1.Council/Stats]
"""


def what_the_mesh_did(docs: Docs) -> None:
    (docs.directory / "policy.yaml").write_text(ALLOWED)
    revision = found(r"revision (\d+)", docs.types(PAGE, "meshwarden apply -f policy.yaml"))
    words = {"--revision 10": f"--revision {revision}", "call\tglobex/web web": "call\t…"}
    docs.reads(PAGE, "meshwarden trace --revision 10", words, rows=True)
    # It is lost with the Envoy of the probe if that ends within half a second.
    egress = "    egress billing.platform\tacme/web\tnode-a\t+131 ms\t7.39 ms\tok"
    review = docs.apply(REVIEW)
    asked = docs.reads(
        PAGE,
        """echo '{"op": "trace", "method": "Review", "id": "4711", "timeout_s": 30}' |"""
        " meshwarden-agent exec --entry acme/web -- python -m meshwarden.examples.probe",
    )
    trace = json.loads(asked)["trace_id"]
    words = {
        "3f6018359ede2ec8dddb60b83d554397": trace,
        "68 spans": "68 spans…",
        egress: "…",
        "2.27 ms\tok": "2.27 ms\tok…",
        "node-a": "…",
    }
    docs.reads(PAGE, "meshwarden trace 3f6018359ede2ec8dddb60b83d554397", words, rows=True)
    docs.types(
        PAGE,
        "meshwarden trace 4bf92f3577b34da6a3ce929d0e0e4736",
        {"4bf92f3577b34da6a3ce929d0e0e4736": trace},
    )
    docs.reads(PAGE, "meshwarden trace --revision 17", {"--revision 17": f"--revision {review}"}, rows=True)
    # Of one that came while many others did, nodes are not told.
    endpoints = [one["metadata"] for one in docs.json("get", "Endpoint") if one["spec"]["node"] == "node-b"]
    made = (str(one["record"]["revision"]) for one in endpoints)
    told = next(one for one in made if "compile" in docs.up.run("trace", "--revision", one).stdout)
    words = {
        "--revision 7": f"--revision {told}",
        "CREATED Endpoint platform/node-b-platform-orders-v1-b-52d95e3cc0": "…ED Endpoint …",
        "platform/meshwarden-controlplane": "…/meshwarden-controlplane",
    }
    docs.reads(PAGE, "meshwarden trace --revision 7", words, rows=True)
    joined = next(
        number
        for number in range(1, 20)
        if "JOINED node node-b" in docs.up.run("trace", "--revision", f"{number}").stdout
    )
    docs.reads(PAGE, "meshwarden trace --revision 3", {"--revision 3": f"--revision {joined}"}, rows=True)
    renewed = found(r"trace (\w{32})", docs.types(PAGE, "meshwarden svid renew --reason drill", rows=True))
    words = {"54bab5934dea57210b248d0ea264f3a2": renewed}
    docs.reads(PAGE, "meshwarden traces --service meshwarden-agent --since 1m", words, rows=True)
    docs.reads(PAGE, "meshwarden trace 54bab5934dea57210b248d0ea264f3a2", words, rows=True)
    docs.follows(OPERATIONS, "meshwarden logs --trace ID -f", {"ID": renewed})
