# ruff: noqa: E501 - manifests and faults are quoted whole
"""Route policies that data planes would refuse, or that could not be meant, are refused by the field that is wrong."""

import pytest

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.manifest import ManifestFaults, parse
from meshwarden.controlplane.resources.reference import reference_faults, users
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resource_service_pb2 import ResourceRef

MESH = """\
kind: Tenant
metadata: {name: platform}
---
kind: Tenant
metadata: {name: acme}
---
kind: Tenant
metadata: {name: globex}
---
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC, exportTo: [acme]}
---
kind: Service
metadata: {tenant: acme, name: web}
spec: {protocol: HTTP}
---
kind: Service
metadata: {tenant: platform, name: shadow}
spec: {protocol: GRPC, exportTo: ["*"]}
---
kind: Service
metadata: {tenant: platform, name: hidden}
spec: {protocol: GRPC}
---
kind: Service
metadata: {tenant: platform, name: pages}
spec: {protocol: HTTP, exportTo: [acme]}
---
kind: TrustDomain
metadata: {tenant: platform, name: partner}
spec: {trustDomain: partner.example, bundleEndpoint: {url: "https://p.example/b", profile: HTTPS_WEB}}
---
kind: Service
metadata: {tenant: platform, name: abroad}
spec: {protocol: GRPC, exportTo: [acme], spiffeId: "spiffe://partner.example/o"}
---
kind: WorkloadEntry
metadata: {tenant: platform, name: orders-v1}
spec: {service: orders, nodes: [n1], selectors: {uid: 1001}, version: v1, port: 1}
"""


def policy(rule: str, more: str = 'idempotent: ["/s.O/Get"]') -> str:
    head = "kind: RoutePolicy\nmetadata: {tenant: platform, name: orders}\nspec:\n  service: orders\n"
    return head + (f"  {more}\n" if more else "") + f"  rules:\n  - {rule}\n"


def view(text: str) -> View:
    found = View()
    for located in parse(text, "mesh"):
        found.put(located.resource)
    return found


def faults(text: str) -> list[str]:
    """What is wrong with a manifest beside MESH, "field: message" each."""
    try:
        batch = [located.resource for located in parse(text, "m")]
    except ManifestFaults as refused:
        return [f"{fault.field}: {fault.message}" for fault in refused.faults]
    before = view(MESH)
    return [_text(fault) for fault in reference_faults(batch, before)]


def _text(fault: FieldFault) -> str:
    return f"{fault.field.removeprefix('resources[0].')}: {fault.message}"


@pytest.mark.parametrize(
    "rule",
    [
        "timeout: 1s",
        "timeout: 86400s",
        "retry: {codes: [UNAVAILABLE], attempts: 4, perTryTimeout: 1s, backoff: {base: 0.1s, max: 1s}, budget: {percent: 0}}",
        "{match: {methods: ['/s.O/*', '/x']}, retry: {codes: ['503', '599']}, timeout: 1s}",
        "match: {from: [{tenant: acme, service: '*'}, {service: orders}, {tenant: acme, service: web}]}",
        "mirror: {version: v1, percent: 0.1}",
        "mirror: {service: shadow}",
        "fault: {delay: {fixedDelay: 1s, percent: 100}, abort: {grpcStatus: ABORTED, percent: 0.5}, headers: [{name: x-a, present: true}]}",
        "fault: {abort: {httpStatus: 400, percent: 1}}",
        "requestHeaders: {set: [{name: x-a, value: '100% sure, {said}'}], add: [{name: cookie, value: ''}], remove: [authorization]}",
        "responseHeaders: {remove: [server, set-cookie]}",
    ],
)
def test_what_can_be_meant_is_taken(rule: str) -> None:
    assert faults(policy(rule)) == []


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (
            "timeout: 0s",
            "spec.rules[0].timeout: must be greater than or equal to 0.001s and less than or equal to 86400s",
        ),
        ("timeout: -1s", "spec.rules[0].timeout: must be greater"),
        ("timeout: 86401s", "spec.rules[0].timeout: must be greater"),
        ("timeout: {}", 'spec.rules[0].timeout: must be text such as "1.5s"'),
        ("retry: {}", "spec.rules[0].retry.codes: is required: give at least one"),
        ("retry: {codes: [OK]}", "spec.rules[0].retry.codes[0]: must be CANCELLED, DEADLINE_EXCEEDED"),
        ("retry: {codes: ['200']}", "spec.rules[0].retry.codes[0]: must be"),
        ('retry: {codes: ["503\\n"]}', "spec.rules[0].retry.codes[0]: must be"),
        ("retry: {codes: [UNAVAILABLE, UNAVAILABLE]}", "spec.rules[0].retry.codes: repeated value must contain unique"),
        ("retry: {codes: [UNAVAILABLE], attempts: 5}", "spec.rules[0].retry.attempts: must be less than or equal to 4"),
        ("retry: {codes: [UNAVAILABLE], perTryTimeout: 0s}", "spec.rules[0].retry.perTryTimeout: must be greater"),
        (
            "{timeout: 1s, retry: {codes: [UNAVAILABLE], perTryTimeout: 1.001s}}",
            "spec.rules[0].retry.perTryTimeout: is longer than the rule's timeout",
        ),
        (
            "retry: {codes: [UNAVAILABLE], backoff: {max: 0.024s}}",
            "spec.rules[0].retry.backoff.max: is shorter than the first wait",
        ),
        (
            "retry: {codes: [UNAVAILABLE], backoff: {base: 2s, max: 1s}}",
            "spec.rules[0].retry.backoff.max: is shorter than the first wait",
        ),
        ("retry: {codes: [UNAVAILABLE], backoff: {base: 0s}}", "spec.rules[0].retry.backoff.base: must be greater"),
        ("retry: {codes: [UNAVAILABLE], backoff: {base: 0.004s}}", "spec.rules[0].retry.backoff.base: must be greater"),
        ("retry: {codes: [UNAVAILABLE], budget: {percent: 100.5}}", "spec.rules[0].retry.budget.percent: must be"),
        (
            "retry: {codes: [UNAVAILABLE], budget: {percent: .nan}}",
            "spec.rules[0].retry.budget.percent: must be a number",
        ),
        (
            "{match: {methods: [/s.O/Put]}, retry: {codes: [UNAVAILABLE]}}",
            "spec.rules[0].retry: no method of this rule is idempotent: name those that may be made again in spec.idempotent",
        ),
        (
            "match: {from: [{trustDomain: partner.example}]}",
            "spec.rules[0].match.from[0].trustDomain: callers of another trust domain go their own way",
        ),
        (
            "match: {from: [{service: web, spiffeId: 'spiffe://partner.example/a'}]}",
            "spec.rules[0].match.from[0].spiffeId: callers of another trust domain",
        ),
        ("match: {from: [{tenant: acme}]}", "spec.rules[0].match.from[0].service: is required"),
        (
            "match: {from: [{tenant: acme, service: wob}]}",
            "spec.rules[0].match.from[0].service: there is no Service acme/wob",
        ),
        (
            "match: {from: [{tenant: initech, service: '*'}]}",
            "spec.rules[0].match.from[0].tenant: there is no Tenant initech",
        ),
        (
            "match: {from: [{tenant: globex, service: '*'}]}",
            "spec.rules[0].match.from[0].tenant: Service platform/orders is not exported to globex",
        ),
        ("mirror: {}", "spec.rules[0].mirror: give service or version, one of the two"),
        ("mirror: {service: shadow, version: v1}", "spec.rules[0].mirror: give service or version"),
        ("mirror: {version: v1, percent: 0}", "spec.rules[0].mirror.percent: must be greater than 0"),
        ("mirror: {version: v1, percent: 101}", "spec.rules[0].mirror.percent: must be"),
        (
            "mirror: {version: v2}",
            "spec.rules[0].mirror.version: no workload entry of platform/orders has version v2; it has v1",
        ),
        ("mirror: {service: orders}", "spec.rules[0].mirror.service: is the service itself: give a version of it"),
        ("mirror: {service: web}", "spec.rules[0].mirror.service: there is no Service platform/web"),
        ("mirror: {service: acme/web}", "spec.rules[0].mirror.service: must be lower-case letters"),
        (
            "mirror: {service: hidden}",
            "spec.rules[0].mirror.service: Service platform/hidden is not exported to acme, which makes such calls",
        ),
        ("mirror: {service: pages}", "spec.rules[0].mirror.service: Service platform/pages speaks another protocol"),
        (
            "mirror: {service: abroad}",
            "spec.rules[0].mirror.service: another trust domain serves it: no copies of calls leave",
        ),
        ("fault: {}", "spec.rules[0].fault: give delay, abort or both"),
        ("fault: {headers: [{name: x-a, present: true}]}", "spec.rules[0].fault: give delay, abort or both"),
        ("fault: {delay: {percent: 1}}", "spec.rules[0].fault.delay.fixedDelay: is required"),
        ("fault: {delay: {fixedDelay: 1s}}", "spec.rules[0].fault.delay.percent: must be greater than 0"),
        ("fault: {delay: {fixedDelay: 3601s, percent: 1}}", "spec.rules[0].fault.delay.fixedDelay: must be"),
        ("fault: {abort: {percent: 1}}", "spec.rules[0].fault.abort: is required: give one of grpcStatus, httpStatus"),
        ("fault: {abort: {grpcStatus: OK, percent: 1}}", "spec.rules[0].fault.abort.grpcStatus: must be in list"),
        ("fault: {abort: {httpStatus: 200, percent: 1}}", "spec.rules[0].fault.abort.httpStatus: must be"),
        ("fault: {abort: {httpStatus: 503, percent: 100.1}}", "spec.rules[0].fault.abort.percent: must be"),
        (
            "fault: {abort: {httpStatus: 503, percent: 1}, headers: [{name: x-a}]}",
            "spec.rules[0].fault.headers[0]: is required: give one of exact",
        ),
        *(
            (f"requestHeaders: {{{place}}}", f"spec.rules[0].requestHeaders.{field}: {text}")
            for place, field, text in (
                ("set: [{name: host, value: a}]", "set[0].name", "host says who calls, traces a call or carries it"),
                ("add: [{name: x-forwarded-client-cert, value: a}]", "add[0].name", "x-forwarded-client-cert says who"),
                ("remove: [traceparent]", "remove[0]", "traceparent says who calls"),
                ("remove: [x-meshwarden-tenant]", "remove[0]", "x-meshwarden-tenant says"),
                ("set: [{name: grpc-timeout, value: 1S}]", "set[0].name", "grpc-timeout says"),
                (
                    "set: [{name: x-envoy-upstream-rq-timeout-ms, value: '1'}]",
                    "set[0].name",
                    "x-envoy-upstream-rq-timeout-ms",
                ),
                ("set: [{name: ':path', value: /}]", "set[0].name", "must be the name of a header"),
                ("set: [{name: X-A, value: a}]", "set[0].name", "must be the name of a header"),
                ("set: [{name: a-bin, value: AA==}]", "set[0].name", "holds bytes"),
                ('set: [{name: x-a, value: "a\\r\\nx-b: 1"}]', "set[0].value", "must be printable ASCII"),
                ('set: [{name: x-a, value: "a\\n"}]', "set[0].value", "must be printable ASCII"),
                ("set: [{name: x-a, value: ' a'}]", "set[0].value", "must be printable ASCII"),
                ("set: [{name: x-a, value: é}]", "set[0].value", "must be printable ASCII"),
                ("set: [{name: x-a, value: a}], remove: [x-a]", "remove[0]", "x-a is named already"),
            )
        ),
        (
            "responseHeaders: {set: [{name: mesh-decision, value: denied}]}",
            "spec.rules[0].responseHeaders.set[0].name: mesh-decision",
        ),
        (
            "responseHeaders: {remove: [ratelimit-policy]}",
            "spec.rules[0].responseHeaders.remove[0]: ratelimit-policy says",
        ),
    ],
)
def test_what_cannot_is_refused_by_its_field(rule: str, fault: str) -> None:
    (found,) = faults(policy(rule))
    assert found.startswith(fault)


def test_all_rules_that_name_a_budget_name_the_same() -> None:
    budgets = [{"percent": 10}, None, {"percent": 10}, {"percent": 20}]
    rules = "".join(
        f"\n  - retry: {{codes: [UNAVAILABLE]{f', budget: {budget}' if budget else ''}}}".replace("'", "")
        for budget in budgets
    )
    (found,) = faults(policy("timeout: 1s" + rules))
    assert found == "spec.rules[4].retry.budget: rules[1] has another: all calls to a version share one"


def test_a_policy_that_would_become_too_many_routes_is_refused() -> None:
    every = "[" + ", ".join(f"/{'a' * number}*" for number in range(1, 65)) + "]"
    rule = f"{{match: {{methods: {every}}}, retry: {{codes: [UNAVAILABLE]}}}}"
    (found,) = faults(policy(rule, f"idempotent: {every}"))
    assert found.startswith("spec.rules: they become 4160 routes, of which a policy may have 4096")


def test_a_caller_that_a_policy_names_cant_go_nor_be_shut_out() -> None:
    named = policy("match: {from: [{tenant: acme, service: web}]}", "")
    mesh = f"{MESH}---\n{named}"
    before = view(mesh)
    shut = "kind: Service\nmetadata: {tenant: platform, name: orders}\nspec: {protocol: GRPC}\n"
    (found,) = reference_faults([located.resource for located in parse(shut, "m")], before)
    assert found.field == "resources[0].spec.exportTo"
    assert "RoutePolicy platform/orders needs what was here: spec.rules[0].match.from[0].tenant" in found.message


def test_who_gets_copies_stays_where_its_callers_see_it() -> None:
    before = view(f"{MESH}---\n{policy('mirror: {service: shadow}', '')}")
    hidden = "kind: Service\nmetadata: {tenant: platform, name: shadow}\nspec: {protocol: GRPC}\n"
    (found,) = reference_faults([located.resource for located in parse(hidden, "m")], before)
    assert found.field == "resources[0].spec.exportTo"
    assert "RoutePolicy platform/orders needs what was here: spec.rules[0].mirror.service" in found.message
    (used,) = users([ResourceRef(kind="Service", tenant="platform", name="shadow")], before)
    assert used.startswith("RoutePolicy platform/orders needs it: spec.rules[0].mirror.service: there is no Service")
