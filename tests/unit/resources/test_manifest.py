"""Manifests: what is read, every fault at once by line and field, and nothing hostile gets through."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.resources import tree
from meshwarden.controlplane.resources.diff import diff
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.files import read_texts
from meshwarden.controlplane.resources.manifest import ManifestFaults, dump, parse, parse_all
from meshwarden.controlplane.resources.model import kind_of, unwrap, wrap
from meshwarden.v1.resources_pb2 import (
    AccessPolicy,
    AccessPolicySpec,
    AccessRule,
    Metadata,
    Selectors,
    Service,
    ServiceSpec,
    Tenant,
    WorkloadEntry,
    WorkloadEntrySpec,
)

SERVICE = """\
kind: Service
metadata: {tenant: platform, name: orders}
spec: {protocol: GRPC}
"""
ENTRY = """\
kind: WorkloadEntry
metadata: {tenant: acme, name: web, labels: {team: "7"}}
spec:
  service: web
  nodes: [n1]
  selectors: {uid: 0}
  version: "1.0"
  svidTtl: 3600s
"""


def faults(text: str) -> list[str]:
    with pytest.raises(ManifestFaults) as refused:
        parse(text, "m.yaml")
    return list(map(str, refused.value.faults))


def test_a_manifest_is_the_json_mapping() -> None:
    (located,) = parse(ENTRY, "m.yaml")
    assert unwrap(located.resource) == WorkloadEntry(
        kind="WorkloadEntry",
        metadata=Metadata(tenant="acme", name="web", labels={"team": "7"}),
        spec=WorkloadEntrySpec(
            service="web", nodes=["n1"], selectors=Selectors(uid=0), version="1.0", svid_ttl=Duration(seconds=3600)
        ),
    )
    assert located.line_of("spec.svidTtl") == 8
    assert located.line_of("spec.nodes[0]") == 5
    assert located.line_of("spec.dnsNames[3]") == 3
    assert located.line_of("nothing") == 1
    assert str(located.fault(FieldFault("spec.service", "there is none"))) == "m.yaml:4: spec.service: there is none"


def test_json_is_a_manifest_too() -> None:
    (located,) = parse('{"kind":"Tenant","metadata":{"name":"acme"},"spec":{"displayName":"Ac\\u006de"}}', "m.json")
    assert unwrap(located.resource) == Tenant(
        kind="Tenant", metadata=Metadata(name="acme"), spec={"display_name": "Acme"}
    )


def test_documents_make_a_batch_and_empty_ones_are_skipped() -> None:
    texts = [("a", f"---\n{SERVICE}---\n---\n# nothing\n"), ("b", ENTRY), ("c", "")]
    assert [kind_of(located.resource) for located in parse_all(texts)] == ["Service", "WorkloadEntry"]


def test_a_tenant_is_its_own_and_may_say_so() -> None:
    (plain,) = parse("kind: Tenant\nmetadata: {name: acme}\n", "m")
    (said,) = parse("kind: Tenant\nmetadata: {name: acme, tenant: acme}\nspec: {}\n", "m")
    assert plain.resource == said.resource
    assert faults("kind: Tenant\nmetadata: {name: acme, tenant: other}\n") == [
        "m.yaml:2: metadata.tenant: a Tenant is owned by itself: leave it out"
    ]


def test_every_fault_is_told_at_once_by_line_and_field() -> None:
    text = """\
kind: Servce
---
kind: Service
metadata:
  tenant: platform
  name: Orders
  labels: {a: 1}
spec:
  protocol: grcp
  export_to: [acme]
  healthCheck: {interval: 1d, unhealthyThreshold: 010}
---
kind: AccessPolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  allow:
  - from:
    - tenant: acme
      servce: web
    methods: [on, 5, "x y"]
"""
    assert faults(text) == [
        "m.yaml:1: kind: there is no kind 'Servce'; did you mean Service?",
        "m.yaml:6: metadata.name: must be lower-case letters, digits and hyphens, with a letter or digit at both ends",
        'm.yaml:7: metadata.labels["a"]: must be text (put it in quotes), not 1',
        "m.yaml:9: spec.protocol: must be one of GRPC, HTTP, not 'grcp'; did you mean GRPC?",
        "m.yaml:10: spec.export_to: unknown field; did you mean exportTo?",
        "m.yaml:11: spec.healthCheck.interval: must be text such as \"1.5s\", not '1d'",
        "m.yaml:11: spec.healthCheck.unhealthyThreshold: must be a whole number, not '010'",
        "m.yaml:20: spec.allow[0].from[0].servce: unknown field; did you mean service?",
        'm.yaml:21: spec.allow[0].methods[0]: must be "/package.Service/Method", "/path" or "GET /path", '
        'without a query; only its end may be "*"',
        "m.yaml:21: spec.allow[0].methods[1]: must be text (put it in quotes), not 5",
    ]


@pytest.mark.parametrize(
    ("change", "line", "text"),
    [
        (("  nodes: [n1]\n", ""), 3, "spec.nodes: is required: give at least one"),
        (("service: web", "service: [web]"), 4, "spec.service: must be text, not a list"),
        (("nodes: [n1]", "nodes: n1"), 5, "spec.nodes: must be a list, not 'n1'"),
        (("nodes: [n1]", "nodes: [n1, n1]"), 5, "spec.nodes: repeated value must contain unique items"),
        (("nodes: [n1]", "nodes:"), 5, "spec.nodes: is empty: give a value, or leave the field out"),
        (("uid: 0", "uid: -1"), 6, "spec.selectors.uid: must be between 0 and 4294967295, not -1"),
        (("uid: 0", "uid: 4294967296"), 6, "spec.selectors.uid: must be between 0 and 4294967295, not 4294967296"),
        (("uid: 0", "uid: 1.5"), 6, "spec.selectors.uid: must be a whole number, not 1.5"),
        (("uid: 0", "uid: true"), 6, "spec.selectors.uid: must be a whole number, not true"),
        (("uid: 0", 'uid: "0"'), 6, "spec.selectors.uid: must be a whole number, not '0'"),
        (("{uid: 0}", "{}"), 6, "spec.selectors: give at least one of uid, gid, user, supplementaryGids"),
        (("{uid: 0}", "[]"), 6, "spec.selectors: must be a mapping of fields, not a list"),
        (("svidTtl: 3600s", "svidTtl: 3600"), 8, 'spec.svidTtl: must be text such as "1.5s", not 3600'),
        (("svidTtl: 3600s", "svidTtl: 1s"), 8, "spec.svidTtl: must be"),
        (("svidTtl: 3600s", "svidTtl: 1e30s"), 8, "spec.svidTtl: must be"),
        (("svidTtl: 3600s", "insecureSameUser: yes"), 8, "spec.insecureSameUser: must be true or false, not 'yes'"),
        (("tenant: acme, ", ""), 2, "metadata.tenant: is required"),
        (("svidTtl: 3600s", "dataPlane: 2"), 8, "spec.dataPlane: must be one of PROXYLESS, ENVOY, INGRESS, not 2"),
        (("svidTtl: 3600s", "inboundPort: 5"), 8, "spec.inboundPort: only an entry with dataPlane ENVOY has one"),
        (("spec:", "name: x\nspec:"), 3, "name: unknown field"),
    ],
)
def test_a_fault_names_its_line_and_field(change: tuple[str, str], line: int, text: str) -> None:
    (fault,) = faults(ENTRY.replace(*change))
    assert fault.startswith(f"m.yaml:{line}: {text}")


@pytest.mark.parametrize(
    ("field", "good", "bad"),
    [
        (
            "user",
            ["web", "_apt", "DOM\\web", "web@ad.example", "www-data"],
            ["1000", "a b", "a\n", "web:", "-x", "x" * 256],
        ),
        (
            "systemdUnit",
            ["a.service", "a@1.service", "run-r1.scope", "d\\x2de.service"],
            ["a", "a.slice", "a.service\n", "a/b.service", ".service", "*.service", "a.service ", "ä.service"],
        ),
        (
            "cgroup",
            ["/system.slice/a.service", "/jobs/7", "/a/b\\x2d"],
            ["/", "jobs", "/jobs/", "/jobs//7", "/jobs/..", "/../jobs", "/./a", "/jobs/7\n", "/jobs/7 (deleted)"],
        ),
        (
            "containerId",
            ["0123456789abcdef" * 4],
            ["0123456789ab", "0123456789ABCDEF" * 4, "0123456789abcdef" * 4 + "\n"],
        ),
        ("supplementaryGids", [[0], [1, 2], list(range(64))], [[1, 1], [-1], [1 << 32], list(range(65)), ["1"]]),
    ],
)
def test_selectors_are_held_against_what_there_can_be(field: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        parse(ENTRY.replace("{uid: 0}", json.dumps({field: value})), "m.yaml")
    for value in bad:
        (fault,) = faults(ENTRY.replace("{uid: 0}", json.dumps({field: value})))
        assert f"spec.selectors.{field}" in fault


@pytest.mark.parametrize("header", ["exact: a, prefix: b", "exact: a, present: true"])
def test_one_of_several_is_one(header: str) -> None:
    text = f"""\
kind: RoutePolicy
metadata: {{tenant: a, name: b}}
spec:
  service: b
  rules:
  - match: {{headers: [{{name: x, {header}}}]}}
    split: [{{version: v1, weight: 1}}]
"""
    (fault,) = faults(text)
    assert "m.yaml:6: spec.rules[0].match.headers[0]." in fault
    assert "only one of exact and" in fault


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ("[{version: v1}, {version: v2, weight: 0}]", "spec.rules[0].split: all weights are 0"),
        ("[{version: v1, weight: 1}, {version: v1, weight: 2}]", "split[1].version: v1 has a share already"),
        ("[{version: v1, weight: 1000001}]", "split[0].weight: must be less than or equal to 1000000"),
    ],
)
def test_a_split_must_lead_somewhere(split: str, text: str) -> None:
    head = "kind: RoutePolicy\nmetadata: {tenant: a, name: b}\nspec:\n  service: b\n  rules:\n  - split: "
    (fault,) = faults(head + split)
    assert text in fault


def test_a_tenant_has_one_limit() -> None:
    limits = '[{tenant: a, requests: 1}, {tenant: "*", requests: 1}, {tenant: a, requests: 2}]'
    text = f"kind: RatePolicy\nmetadata: {{tenant: a, name: b}}\nspec:\n  service: b\n  limits: {limits}\n"
    assert faults(text) == ["m.yaml:5: spec.limits[2].tenant: a has a limit already"]


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("limits: []", "spec.limits: is required, unless there is a total"),
        ("limits: [{tenant: a, requests: 0}]", "spec.limits[0].requests: must be greater than or equal to 1"),
        ("limits: [{tenant: a, requests: -1}]", "spec.limits[0].requests"),
        ("limits: [{tenant: a, requests: 1.5}]", "spec.limits[0].requests"),
        ("limits: [{tenant: a, requests: 9, weight: 0}]", "spec.limits[0].weight: must be greater than or equal to 1"),
        ("limits: [{tenant: a, requests: 9, floor: 10}]", "spec.limits[0].floor: 10 is above the limit of 9"),
        ("limits: [{tenant: '*', requests: 9, floor: 1}]", "spec.limits[0].floor: each tenant not named would have"),
        (
            "{total: {requests: 10}, limits: [{tenant: a, requests: 9, floor: 6}, {tenant: b, requests: 9, floor: 5}]}",
            "spec.limits[1].floor: with the floors before it 11/s, above the total of 10/s",
        ),
        (
            "{total: {requests: 10, per: 2s}, limits: [{tenant: a, requests: 9, floor: 6}]}",
            "spec.limits[0].floor: with the floors before it 6/s, above the total of 5/s",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: /x.Y/Z, requests: 10}]}]",
            "spec.limits[0].methods[0].requests: 10/s are above the tenant's 9/s",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: /x/Z, requests: 1}, {method: /x/Z, requests: 1}]}]",
            "spec.limits[0].methods[1].method: /x/Z has a limit already",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: /x.Y/Z, requests: 2, floor: 3}]}]",
            "spec.limits[0].methods[0].floor: 3 is above the limit of 2",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: /x/A, requests: 9, floor: 5}, "
            "{method: /x/B, requests: 9, floor: 5}]}]",
            "spec.limits[0].methods[1].floor: with the floors before it 10/s, above the tenant's limit of 9/s",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: Get, requests: 1}]}]",
            'must be "/package.Service/Method"',
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: /x/*, requests: 1}]}]",
            'must be "/package.Service/Method"',
        ),
        (
            "{whenAway: FALLBACK, limits: [{tenant: a, requests: 9}]}",
            "spec.fallback: is required with whenAway FALLBACK",
        ),
        ("{fallback: {requests: 1}, limits: [{tenant: a, requests: 9}]}", "spec.fallback: only with whenAway FALLBACK"),
        ("{timeZone: UTC, total: {requests: 9}}", "spec.timeZone: only with period"),
        ("{total: {requests: 1000001}}", "spec.total.requests: more than 1000000 only with period"),
        ("{period: WEEK, total: {requests: 9}}", "spec.period"),
        ("{period: 9, total: {requests: 9}}", "spec.period"),
        ("{period: DAY, timeZone: Europe/Nowhere, total: {requests: 9}}", "Europe/Nowhere is no time zone"),
        ("{period: DAY, timeZone: ../etc, total: {requests: 9}}", "spec.timeZone"),
        ("{period: DAY, timeZone: Europe, total: {requests: 9}}", "Europe is no time zone"),
        ("{period: DAY, timeZone: /etc/passwd, total: {requests: 9}}", "/etc/passwd is no time zone"),
        (
            "{period: DAY, scope: POINT, limits: [{tenant: a, requests: 9}]}",
            "spec.scope: POINT does not go with period",
        ),
        ("{period: DAY, total: {requests: 9, per: 2s}}", "spec.total.per: does not go with period"),
        ("{period: DAY, total: {requests: 9, burst: 2}}", "spec.total.burst: does not go with period"),
        (
            "{period: DAY, limits: [{tenant: a, requests: 9, weight: 2}]}",
            "spec.limits[0].weight: does not go with period",
        ),
        (
            "{period: DAY, limits: [{tenant: a, requests: 9, methods: [{method: /x/A, requests: 10}]}]}",
            "spec.limits[0].methods[0].requests: 10 are above the tenant's 9",
        ),
        (
            "{period: DAY, total: {requests: 9}, limits: [{tenant: a, requests: 20, floor: 10}]}",
            "spec.limits[0].floor: with the floors before it 10, above the total of 9",
        ),
        ("{period: DAY, total: {concurrent: 9}}", "spec.period: calls at once are no amount that is used up"),
        (
            "{period: DAY, whenAway: FALLBACK, fallback: {requests: 1}, total: {requests: 9}}",
            "spec.whenAway: FALLBACK does not go with period",
        ),
        ("{period: DAY, scope: POINT, adaptive: {}}", "spec.period: not with adaptive"),
        ("{scope: POINT, total: {requests: 9}}", "spec.total: only with scope MESH"),
        ("limits: [{tenant: a}]", "spec.limits[0].requests: is required"),
        ("limits: [{tenant: a, concurrent: 9, burst: 9}]", "spec.limits[0].burst: calls at once have none"),
        ("{total: {concurrent: 9, per: 1s}}", "spec.total.per: calls at once have none"),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: /x/B, requests: 1, criticality: VITAL}]}]",
            "spec.limits[0].methods[0].criticality",
        ),
        ("{period: DAY, total: {bytes: 9}}", "spec.period: a stream that has begun can't wait until the next period"),
        (
            "{period: DAY, limits: [{tenant: a, cost: 9, methods: [{method: /x/B, cost: 1, criticality: SHEDDABLE}]}]}",
            "spec.limits[0].methods[0].criticality: does not go with period",
        ),
        ("limits: [{tenant: a, bytes: 0}]", "spec.limits[0].bytes: must be greater than or equal to 1"),
        ("limits: [{tenant: a, bytes: 1000000001}]", "and less than or equal to 1000000000"),
        (
            "{total: {bytes: 9}, limits: [{tenant: a, requests: 9}]}",
            "spec.limits[0].requests: this policy counts bytes",
        ),
        ("limits: [{tenant: a, concurrent: 1000001}]", "and less than or equal to 1000000"),
        (
            "{total: {concurrent: 9}, limits: [{tenant: a, concurrent: 9, floor: 9}, "
            "{tenant: b, concurrent: 9, floor: 1}]}",
            "spec.limits[1].floor: with the floors before it 10 at once, above the total of 9 at once",
        ),
        ("limits: [{tenant: a, cost: 0}]", "spec.limits[0].cost: must be greater than or equal to 1"),
        ("limits: [{tenant: a, cost: 1000000001}]", "and less than or equal to 1000000000"),
        ("{total: {cost: 9}, limits: [{tenant: a}]}", "spec.limits[0].cost: is required"),
        ("{reserve: 5, limits: [{tenant: a, requests: 9}]}", "spec.reserve: only where costs are counted"),
        ("{reserve: 10, total: {cost: 9}}", "spec.reserve: 10 is above the burst of spec.total"),
        ("{scope: POINT, reserve: 10, limits: [{tenant: a, cost: 90}]}", "spec.reserve: 10 is above the burst of spec"),
        ("{total: {cost: 9}, limits: [{tenant: a, requests: 9}]}", "spec.limits[0].requests: this policy counts cost"),
        (
            "limits: [{tenant: a, cost: 9, methods: [{method: /x/B, requests: 1}]}]",
            "spec.limits[0].methods[0].requests: this policy counts cost: all its amounts are of one unit",
        ),
        ("{scope: POINT, shadow: true, limits: [{tenant: a, requests: 9}]}", "spec.shadow: only with scope MESH"),
        ("{scope: POINT, limits: [{tenant: a, requests: 9, floor: 1}]}", "spec.limits[0].floor: only with scope MESH"),
        (
            "{scope: POINT, limits: [{tenant: a, requests: 9, weight: 2}]}",
            "spec.limits[0].weight: only with scope MESH",
        ),
        (
            "{scope: POINT, limits: [{tenant: a, requests: 9, methods: [{method: /x/B, requests: 1}]}]}",
            "spec.limits[0].methods: only with scope MESH",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{class: w, requests: 1}]}]",
            "spec.limits[0].methods[0].methods: is required: what the class is of",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{requests: 1}]}]",
            "spec.limits[0].methods[0].method: is required, or class",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: /x/B, class: w, methods: [/x/C], requests: 1}]}]",
            "spec.limits[0].methods[0].method: this or class, not both",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{method: /x/B, methods: [/x/C], requests: 1}]}]",
            "spec.limits[0].methods[0].methods: only with class",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{class: W!, methods: [/x/C], requests: 1}]}]",
            "spec.limits[0].methods[0].class: must be lower-case letters",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{class: w, methods: [x], requests: 1}]}]",
            'spec.limits[0].methods[0].methods[0]: must be "/package.Service/Method"',
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: ["
            "{method: /x/B, requests: 1}, {class: w, methods: [/x/C, /x/B], requests: 1}]}]",
            "spec.limits[0].methods[1].methods[1]: /x/B has a limit already",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: ["
            "{class: w, methods: [/x/B], requests: 1}, {class: w, methods: [/x/C], requests: 1}]}]",
            "spec.limits[0].methods[1].class: w has a limit already",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{class: w, methods: [/x/B], requests: 10}]}]",
            "spec.limits[0].methods[0].requests: 10/s are above",
        ),
        (
            "limits: [{tenant: a, requests: 9, methods: [{class: w, methods: [/x/B], requests: 2, floor: 3}]}]",
            "spec.limits[0].methods[0].floor: 3 is above the limit of 2",
        ),
        ("{regions: [{region: eu}], total: {requests: 9}}", "spec.regions[0].weight: must be greater than or equal to"),
        ("{regions: [{region: eu, weight: 1001}], total: {requests: 9}}", "spec.regions[0].weight"),
        ("{regions: [{region: E U, weight: 1}], total: {requests: 9}}", "spec.regions[0].region: must be lower-case"),
        (
            "{regions: [{region: eu, weight: 1}, {region: eu, weight: 2}], total: {requests: 9}}",
            "spec.regions[1].region: eu has a part already",
        ),
        (
            "{regions: [{region: eu, weight: 9}, {region: us, weight: 1}], total: {concurrent: 9}}",
            "spec.total.concurrent: 9 are too few: us would have none",
        ),
        (
            "{period: DAY, regions: [{region: eu, weight: 9}, {region: us, weight: 1}], "
            "limits: [{tenant: a, cost: 99, methods: [{method: /x/B, cost: 9}]}]}",
            "spec.limits[0].methods[0].cost: 9 are too few: us would have none",
        ),
        (
            "{scope: POINT, regions: [{region: eu, weight: 1}], limits: [{tenant: a, requests: 9}]}",
            "spec.regions: only with scope MESH",
        ),
        ("{scope: POINT, adaptive: {}, regions: [{region: eu, weight: 1}]}", "spec.regions: not with adaptive"),
        ("{adaptive: {}}", "spec.scope: must be POINT"),
        ("{scope: MESH, adaptive: {}}", "spec.scope: must be POINT"),
        ("{scope: POINT, adaptive: {min: 9, max: 8}}", "spec.adaptive.max: 8 is below min, 9"),
        ("{scope: POINT, adaptive: {max: 3}}", "spec.adaptive.max: 3 is below min, 4"),
        ("{scope: POINT, adaptive: {min: -1}}", "spec.adaptive.min"),
        ("{scope: POINT, adaptive: {min: 100001}}", "spec.adaptive.min"),
        ("{scope: POINT, adaptive: {}, shadow: true}", "spec.shadow: not with adaptive"),
        ("{scope: POINT, adaptive: {}, reserve: 5}", "spec.reserve: not with adaptive"),
        ("{scope: POINT, adaptive: {}, total: {requests: 1}}", "spec.total: not with adaptive"),
        ("{scope: POINT, adaptive: {}, whenAway: DENY}", "spec.whenAway: not with adaptive"),
        (
            "{scope: POINT, adaptive: {}, limits: [{tenant: a, requests: 9}]}",
            "spec.limits[0].requests: with adaptive a tenant has a weight, a ceiling (concurrent) and nothing else",
        ),
        (
            "{scope: POINT, adaptive: {}, limits: [{tenant: a, burst: 9}]}",
            "spec.limits[0].burst: with adaptive a tenant has a weight, a ceiling (concurrent) and nothing else",
        ),
        ("{scope: POINT, adaptive: {}, limits: [{tenant: a, concurrent: 0}]}", "spec.limits[0].concurrent"),
        ("{scope: POINT, adaptive: {}, limits: [{tenant: a, weight: 0}]}", "spec.limits[0].weight"),
        ("{scope: POINT, adaptive: {}, limits: [{tenant: a}, {tenant: a}]}", "a has a limit already"),
    ],
)
def test_a_rate_policy_that_can_not_hold_is_refused_at_its_field(spec: str, fault: str) -> None:
    body = spec if spec.startswith("{") else "{" + spec + "}"
    text = f"kind: RatePolicy\nmetadata: {{tenant: a, name: b}}\nspec: {body.replace('{', '{service: b, ', 1)}\n"
    (found,) = faults(text)
    assert fault in found


PART = "limits: [{tenant: a, requests: 9, services: [PARTS]}]"


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ("{total: {requests: 9}}", "spec.service: is required, or services"),
        ("{service: b, services: ['*'], total: {requests: 9}}", "spec.service: this or services, not both"),
        ("{services: ['*'], scope: POINT, limits: [{tenant: a, requests: 9}]}", "spec.services: only with scope MESH"),
        ("{services: ['*/b'], total: {requests: 9}}", "spec.services[0]"),
        ("{services: ['a/b/c'], total: {requests: 9}}", "spec.services[0]"),
        ("{services: [b, b], total: {requests: 9}}", "spec.services"),
        ("{service: b, " + PART.replace("PARTS", "{service: b, requests: 1}") + "}", "only in a policy of several"),
        (
            "{services: [b], " + PART.replace("PARTS", "{service: b, requests: 10}") + "}",
            "spec.limits[0].services[0].requests: 10/s are above the tenant's 9/s",
        ),
        (
            "{services: [b], " + PART.replace("PARTS", "{service: b, requests: 2}, {service: b, requests: 1}") + "}",
            "spec.limits[0].services[1].service: b has a limit already",
        ),
        (
            "{services: [b, c], "
            + PART.replace("PARTS", "{service: b, requests: 9, floor: 5}, {service: c, requests: 9, floor: 5}")
            + "}",
            "spec.limits[0].services[1].floor: with the floors before it 10/s, above the tenant's limit of 9/s",
        ),
        (
            "{services: [b], "
            + PART.replace("PARTS", "{service: b, requests: 2, methods: [{method: /x/Y, requests: 3}]}")
            + "}",
            "spec.limits[0].services[0].methods[0].requests: 3/s are above the service's 2/s",
        ),
        (
            "{services: [b], limits: [{tenant: a, requests: 9, methods: [{method: /x/Y, requests: 1}],"
            " services: [{service: b, requests: 2}]}]}",
            "spec.limits[0].methods: these or services",
        ),
    ],
)
def test_a_policy_of_several_services_that_can_not_hold_is_refused_at_its_field(spec: str, fault: str) -> None:
    (found,) = faults(f"kind: RatePolicy\nmetadata: {{tenant: a, name: b}}\nspec: {spec}\n")
    assert fault in found


@pytest.mark.parametrize("adaptive", ["{}", "{min: 2}", "{min: 2000}", "{min: 5, max: 5}"])
@pytest.mark.parametrize("limits", ["[]", "[{tenant: a, weight: 3}, {tenant: b, concurrent: 9}, {tenant: '*'}]"])
def test_a_limit_that_is_found_needs_no_more(adaptive: str, limits: str) -> None:
    spec = f"{{service: b, scope: POINT, adaptive: {adaptive}, limits: {limits}}}"
    assert parse(f"kind: RatePolicy\nmetadata: {{tenant: a, name: b}}\nspec: {spec}\n", "m")


def test_a_total_alone_is_a_rate_policy() -> None:
    assert parse("kind: RatePolicy\nmetadata: {tenant: a, name: b}\nspec: {service: b, total: {requests: 9}}\n", "m")


def test_one_resource_stands_once_in_a_batch() -> None:
    with pytest.raises(ManifestFaults) as refused:
        parse_all([("a.yaml", SERVICE), ("b.yaml", "\n" + SERVICE)])
    assert [str(fault) for fault in refused.value.faults] == [
        "b.yaml:3: metadata.name: Service platform/orders stands at a.yaml:1 already"
    ]


def test_status_is_ignored_and_the_revision_is_kept() -> None:
    text = SERVICE.replace("name: orders", 'name: orders, record: {revision: "12", originRegion: eu}')
    (located,) = parse(text + "status: {anything: [1, 2]}\n", "m")
    record = unwrap(located.resource).metadata.record
    assert (record.revision, record.origin_region) == (12, "")


BOMB = "a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 2\n", "a: given twice, first on line 1"),
        ("? [a]\n: 1\n", "a key must be text"),
        ("1: a\n", "a key must be text"),
        (BOMB, "anchors and aliases are not taken"),
        ("a: *nowhere\n", "aliases are not taken"),
        ("!!python/object/apply:os.system ['true']\n", "tags are not taken"),
        ("a: !!binary aGk=\n", "tags are not taken"),
        ("a: ! b\n", "tags are not taken"),
        ("[" * 100, "nested deeper than 32 levels"),
        ("[" * 1_000_000, "not YAML"),
        ("- " * 5000 + "a", "nested deeper than 32 levels"),
        ("{a: " * 5000, "nested deeper than 32 levels"),
        ("---\na: 1\n" * 1001, "more than 1000 documents"),
        ("x" * ((4 << 20) + 1), "the limit is 4194304"),
        ("[" + "1," * 200_001 + "]", "more than 200000 values"),
        ("a: \x00\n", "not YAML"),
        ("a: '\n", "not YAML"),
        ("%YAML 9.9\n---\na: 1\n", "not YAML"),
        ("a: \ud800\n", "lone surrogate"),
        ("\tkind: Tenant\n", "not YAML"),
        ("a: b: c\n", "not YAML"),
        ("- kind: Tenant\n", "must be a resource"),
        ("Tenant\n", "must be a resource"),
        ("{}\n", "kind: is required"),
        ("kind: [Tenant]\n", "there is no kind"),
        ("kind: {a: b}\n", "there is no kind"),
        ("kind:\n", "kind: "),
        ("kind: Tenant\nmetadata: {name: acme}\nspec: null\n", "spec: is empty"),
    ],
)
def test_hostile_text_is_refused(text: str, message: str) -> None:
    assert any(message in fault for fault in faults(text))


def test_a_document_that_breaks_off_is_told_once_and_those_before_it_are_still_judged() -> None:
    text = SERVICE.replace("GRPC", "SOAP") + "---\n" + ENTRY.replace("[n1]", "[n1")
    assert [fault.partition(": ")[0] for fault in faults(text)] == ["m.yaml:3", "m.yaml:10"]


@pytest.mark.parametrize("number", ["1" * 40, "1" * 5000, "1e999", "-1", ".inf", ".nan", "0x10", "1_000", "+1"])
def test_no_number_is_too_strange(number: str) -> None:
    (fault,) = faults(ENTRY.replace("uid: 0", f"uid: {number}"))
    assert fault.startswith("m.yaml:6: spec.selectors.uid: must be")
    assert len(fault) < 200


@pytest.mark.parametrize("word", ["on", "yes", "010", "2026-01-31", "1_000", "0x10", "=", "<<", "12:30:00"])
def test_what_older_yaml_would_twist_is_text(word: str) -> None:
    (located,) = parse(ENTRY.replace('"7"', word), "m")
    assert unwrap(located.resource).metadata.labels["team"] == word


def test_a_fault_repeats_no_long_value() -> None:
    (fault,) = faults(ENTRY.replace("nodes: [n1]", f"nodes: {'x' * 100_000}"))
    assert len(fault) < 200


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@st.composite
def services(draw: st.DrawFn) -> Service:
    labels = draw(st.dictionaries(TEXT.filter(bool), TEXT, max_size=4))
    return Service(
        kind="Service",
        metadata=Metadata(tenant=draw(NAMES), name=draw(NAMES), labels=labels),
        spec=ServiceSpec(
            protocol=draw(st.sampled_from([ServiceSpec.GRPC, ServiceSpec.HTTP])),
            export_to=draw(st.lists(NAMES, unique=True, max_size=3)),
        ),
    )


@given(services(), TEXT)
def test_what_is_dumped_is_read_back(service: Service, name: str) -> None:
    tenant = Tenant(kind="Tenant", metadata=Metadata(name="t"), spec={"display_name": name})
    located = parse(dump(service, tenant), "m")
    assert [item.resource for item in located] == [wrap(service), wrap(tenant)]


@pytest.mark.parametrize("word", ["on", "1e5", "0.5", "null", "~", "", "true", "010", " a", "a: b", "#", "\u2028", "é"])
def test_any_label_survives_a_dump(word: str) -> None:
    service = Service(kind="Service", metadata=Metadata(tenant="a", name="b", labels={"k": word}))
    service.spec.protocol = ServiceSpec.GRPC
    assert unwrap(parse(dump(service), "m")[0].resource) == service


def test_a_dump_is_stable_and_can_leave_the_record_out() -> None:
    service = Service(kind="Service", metadata=Metadata(tenant="a", name="b", labels={"z": "1", "a": "2"}))
    service.metadata.record.revision = 7
    assert dump(service) == dump(Service.FromString(service.SerializeToString()))
    assert dump(service).index("a:") < dump(service).index("z:")
    assert "record" in dump(service)
    assert "record" not in dump(service, record=False)


FIELDS = st.sampled_from(
    ["kind", "metadata", "spec", "name", "tenant", "labels", "service", "allow", "from", "methods", "limits", "x"]
) | st.text(string.printable, max_size=6)
JSONISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(FIELDS, inner, max_size=5),
    max_leaves=25,
)


@given(st.sampled_from(["Tenant", "AccessPolicy", "RatePolicy", "WorkloadEntry", "x"]), JSONISH, JSONISH)
def test_any_shape_is_taken_or_refused_with_a_line(kind: str, metadata: Any, spec: Any) -> None:
    text = json.dumps({"kind": kind, "metadata": metadata, "spec": spec})
    try:
        parse(text, "m")
    except ManifestFaults as refused:
        told = refused.faults
    else:
        return
    assert told
    assert all(fault.line >= 1 and fault.message for fault in told)


@given(st.text(st.sampled_from(list("ab:-[]{},#&*!|>'\"%@`? \n\t0\\")), max_size=60) | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    documents = tree.read(text)
    lines = text.count("\n") + len(text.splitlines()) + 1
    assert all(1 <= fault.line <= lines for fault in documents.faults)


def test_files_directories_and_faults_of_reading(tmp_path: Path) -> None:
    (tmp_path / "d" / "e").mkdir(parents=True)
    (tmp_path / "d" / "e" / "b.yml").write_text(SERVICE)
    (tmp_path / "d" / "a.yaml").write_text(ENTRY)
    (tmp_path / "d" / "note.txt").write_text("no manifest")
    texts = read_texts([str(tmp_path / "d"), str(tmp_path / "d" / "a.yaml")])
    assert [Path(source).name for source, _ in texts] == ["a.yaml", "b.yml", "a.yaml"]
    (tmp_path / "empty").mkdir()
    (tmp_path / "latin.yaml").write_bytes(b"kind: \xe9\n")
    with pytest.raises(ManifestFaults) as refused:
        read_texts([str(tmp_path / name) for name in ("none.yaml", "empty", "latin.yaml")])
    assert [fault.message.split(" (")[0] for fault in refused.value.faults] == [
        "no manifest below it",
        "is not UTF-8 text",
        "No such file or directory",
    ]


def test_a_diff_names_fields() -> None:
    old = AccessPolicy(kind="AccessPolicy", metadata=Metadata(tenant="a", name="b"), spec=AccessPolicySpec(service="b"))
    new = AccessPolicy()
    new.CopyFrom(old)
    old.metadata.record.revision = 3
    assert diff(wrap(old), wrap(new)) == []
    new.spec.allow.append(AccessRule(methods=["/a"]))
    new.metadata.labels["x"] = "y"
    assert list(map(str, diff(wrap(old), wrap(new)))) == ["+ metadata.labels.x: y", "+ spec.allow[0].methods[0]: /a"]
    assert [change.field for change in diff(None, wrap(old))][:2] == ["kind", "metadata.tenant"]
    assert all(change.new is None for change in diff(wrap(old), None))
