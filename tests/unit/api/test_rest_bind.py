"""What HTTP says as the request of an RPC, and back; hostile JSON is told why it is refused."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.api.rest import encode, route
from meshwarden.controlplane.api.rest.bind import bind, place
from meshwarden.controlplane.api.rest.json_tree import NoJson, read
from meshwarden.controlplane.api.rest.route import Route
from meshwarden.controlplane.api.validation import Misshapen
from meshwarden.controlplane.resources.tree import Node
from meshwarden.v1 import resource_service_pb2 as v1
from meshwarden.v1.resources_pb2 import Metadata, Resource, Service
from meshwarden.v1.revision_service_pb2 import Revision

SERVICE = {"kind": "Service", "metadata": {"tenant": "acme", "name": "web"}, "spec": {"protocol": "GRPC"}}


def of(name: str, number: int = 0) -> Route:
    return next(one for one in route.load() if one.name == name and one.number == number)


def bound(
    name: str, *, values: Any = (), query: Any = (), headers: Any = None, body: Any = None, number: int = 0
) -> Any:
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    return bind(of(name, number), list(values), list(query), headers or {}, data)


def faults(found: Any) -> dict[str, str]:
    assert isinstance(found, Misshapen)
    return {fault.field: fault.message for fault in found.faults}


def test_path_query_headers_and_body_become_one_message() -> None:
    found = bound(
        "ResourceService.Put",
        values=("Service", "acme", "web"),
        query=[("dryRun", "true"), ("reason", "why not")],
        headers={"ifRevision": "7"},
        body=SERVICE,
    )
    service = Service(kind="Service", metadata=Metadata(tenant="acme", name="web"))
    service.spec.protocol = service.spec.GRPC
    assert found == v1.PutRequest(
        ref=v1.ResourceRef(kind="Service", tenant="acme", name="web"),
        resource=Resource(service=service),
        if_revision=7,
        dry_run=True,
        reason="why not",
    )
    assert found.HasField("if_revision")


def test_what_is_answered_can_be_said_again() -> None:
    answer = Resource(service=Service(kind="Service", metadata=Metadata(tenant="acme", name="web")))
    answer.service.metadata.record.revision = 7
    body = encode.to_json(answer)
    assert json.loads(body)["metadata"] == {"tenant": "acme", "name": "web", "record": {"revision": "7"}}
    assert bound("ResourceService.Put", values=("Service", "acme", "web"), body=body).resource == answer


def test_resources_are_told_without_their_union_wherever_they_are() -> None:
    one = Resource(service=Service(kind="Service"))
    revision = Revision()
    revision.changes.add(before=one, after=one)
    revision.changes.add()
    assert encode.to_dict(revision)["changes"] == [{"before": {"kind": "Service"}, "after": {"kind": "Service"}}, {}]
    listed = v1.ListResponse(resources=[one, one])
    assert encode.to_dict(listed)["resources"] == [{"kind": "Service"}] * 2
    assert encode.to_dict(v1.WatchResponse(events=[v1.Event(resource=one)]))["events"] == [
        {"resource": {"kind": "Service"}}
    ]


def test_nested_fields_and_lists_are_parameters() -> None:
    found = bound(
        "ResourceService.Watch",
        query=[("kinds", "Service"), ("kinds", "Tenant"), ("after.incarnation", "x"), ("after.revision", "12")],
    )
    assert found == v1.WatchRequest(kinds=["Service", "Tenant"], after=v1.Cursor(incarnation="x", revision=12))


def test_every_fault_is_told_at_once_and_in_its_place() -> None:
    found = bound(
        "ResourceService.Put",
        values=("Service", "acme", "web"),
        query=[
            ("bogus", "1"),
            ("dryRun", "maybe"),
            ("reason", "a"),
            ("reason", "b"),
            ("ref.name", "x"),
            ("dry_run", "1"),
        ],
        body={"kind": "Service", "metadata": {"nme": "web"}, "spec": {"protocol": "SMTP", "exportTo": "all"}, "x": 1},
    )
    told = faults(found)
    assert set(told) == {
        "query.bogus",
        "query.dryRun",
        "query.reason",
        "query.ref.name",
        "query.dry_run",
        "body.metadata.nme",
        "body.spec.protocol",
        "body.spec.exportTo",
        "body.x",
    }
    assert "did you mean name?" in told["body.metadata.nme"]
    assert told["query.reason"] == "stands twice"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"kind": "Widget"}, "body.kind"),
        ({}, "body.kind"),
        ([], "body.kind"),
        (7, "body.kind"),
        (None, "body"),
        (b"{", "body"),
    ],
    ids=str,
)
def test_a_body_that_is_no_resource(body: Any, field: str) -> None:
    assert set(faults(bound("ResourceService.Put", values=("Service", "a", "b"), body=body))) == {field}


def test_what_the_path_says_the_body_does_not() -> None:
    assert faults(bound("AdminService.BanNode", values=("n1",), body={"node": "n2"})) == {
        "body.node": "is said by the path"
    }
    assert faults(bound("AdminService.BanNode", values=("n1",), query=[("reason", "x")])) == {
        "query.reason": "there is no such parameter here"
    }
    assert bound("AdminService.BanNode", values=("n1",)).node == "n1"
    assert faults(bound("AdminService.GetStatus", body={"tenant": "acme"})) == {"body": "there is none here"}


def test_bytes_are_base64() -> None:
    assert bound("OperatorService.RenewOperator", body={"csr": "AAEC"}).csr == b"\0\1\2"
    for wrong in ("AAE", "?", 7, ["AAEC"], None):
        assert "body.csr" in faults(bound("OperatorService.RenewOperator", body={"csr": wrong}))


def test_a_rule_of_the_schema_is_told_in_its_place() -> None:
    put, ban, more = of("ResourceService.Put"), of("AdminService.BanNode"), of("ResourceService.List", 1)
    assert place(put, "ref.name") == "path.name"
    assert place(put, "resource.spec.ports[0]") == "body.spec.ports[0]"
    assert place(put, "resource") == "body"
    assert place(put, "reason") == "query.reason"
    assert place(put, "ifRevision") == "header.If-Match"
    assert (place(ban, "node"), place(ban, "reason"), place(ban, "")) == ("path.node", "body.reason", "body")
    assert (place(more, "kind"), place(more, "tenant")) == ("path.kind", "query.tenant")


HOSTILE = {
    "nested": b"[" * 100_000,
    "nested objects": b'{"a":' * 5000 + b"1" + b"}" * 5000,
    "a little too deep": b"[" * 40 + b"]" * 40,
    "twice": b'{"kind": "Service", "kind": "Tenant"}',
    "not a number": b'{"a": NaN}',
    "endless": b'{"a": Infinity}',
    "out of bounds": b'{"a": 1e999}',
    "digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "half a pair": b'{"a": "\\ud800"}',
    "half a pair as key": b'{"\\udfff": 1}',
    "latin": b'{"a": "\xe9"}',
    "overlong": b'{"a": "\xc0\xaf"}',
    "many": b"[" + b"1," * 200_000 + b"1]",
    "two": b"{} {}",
    "mark": b"\xef\xbb\xbf{}",
    "nothing": b"",
    "comment": b"{} // more",
    "trailing": b'{"a": 1,}',
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_json_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(NoJson) as caught:
        read(HOSTILE[name])
    assert str(caught.value)
    if HOSTILE[name]:
        assert set(faults(bound("ResourceService.Apply", body=HOSTILE[name]))) == {"body"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def _plain(node: Node) -> Any:
    if isinstance(node.value, dict):
        return {key: _plain(child) for key, child in node.value.items()}
    return [_plain(child) for child in node.value] if isinstance(node.value, list) else node.value


@given(values)
def test_json_is_read_as_it_was_written(value: Any) -> None:
    assert _plain(read(json.dumps(value).encode())) == value


@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()), st.sampled_from(route.load()))
def test_no_body_is_a_defect(body: bytes, one: Route) -> None:
    found = bind(one, ["x"] * len(one.variables), [], {}, body or None)
    assert isinstance(found, one.request | Misshapen)


@given(st.lists(st.tuples(st.text(max_size=12), st.text(max_size=12)), max_size=6), st.sampled_from(route.load()))
def test_no_query_is_a_defect(query: list[tuple[str, str]], one: Route) -> None:
    found = bind(
        one,
        [text for text, _ in query][: len(one.variables)] + ["x"] * max(0, len(one.variables) - len(query)),
        query,
        {},
        None,
    )
    assert isinstance(found, one.request | Misshapen)
