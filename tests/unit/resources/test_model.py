"""Names, keys, stored bytes, and the schema's rules on any message."""

import pytest

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import (
    KINDS,
    decode,
    encode,
    key_of,
    kind_of,
    normalise,
    parse_key,
    prefix_of,
    ref_of,
    title,
    unwrap,
    wrap,
)
from meshwarden.controlplane.resources.validate import rule_faults
from meshwarden.v1.admin_service_pb2 import ExplainRequest
from meshwarden.v1.node_service_pb2 import SyncRequest
from meshwarden.v1.resource_service_pb2 import ApplyRequest, DeleteRequest, GetRequest, ListRequest, ResourceRef
from meshwarden.v1.resources_pb2 import (
    AccessPolicy,
    AccessPolicySpec,
    AccessRule,
    Metadata,
    Resource,
    Service,
    Tenant,
)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_goes_into_the_union_and_out_by_its_key(kind: str) -> None:
    message = KINDS[kind](metadata=Metadata(tenant="t", name="n"))  # type: ignore[call-arg]
    resource = wrap(message)
    assert unwrap(resource) == message
    assert kind_of(resource) == kind_of(message) == kind
    ref = ref_of(resource)
    assert ref == ResourceRef(kind=kind, tenant="n" if kind == "Tenant" else "t", name="n")
    assert parse_key(key_of(resource)) == ref
    assert key_of(ref).startswith(prefix_of(kind, ref.tenant))


def test_stored_bytes_have_all_but_the_revision_which_the_store_knows() -> None:
    service = Service(kind="Service", metadata=Metadata(tenant="t", name="n", labels={"b": "2", "a": "1"}))
    record = service.metadata.record
    record.origin_region, record.epoch, record.revision = "eu", 1, 9
    again = decode(encode(wrap(service)), 12)
    assert unwrap(again).metadata.record.revision == 12
    assert unwrap(again).metadata.record.origin_region == "eu"
    assert service.metadata.record.revision == 9
    assert encode(again) == encode(wrap(service))


@pytest.mark.parametrize("value", [b"", b"\xff\xff", b"\x0a"])
def test_bytes_that_hold_no_resource_are_refused(value: bytes) -> None:
    with pytest.raises((ValueError, Exception), match=r".+"):
        decode(value, 1)


@pytest.mark.parametrize(
    "key", ["", "/resource/", "/resource/Nope/a/b", "/resource/Tenant/a", "/resource/Tenant//b", "x"]
)
def test_other_keys_are_no_resources(key: str) -> None:
    with pytest.raises(ValueError, match="not the key"):
        parse_key(key)


def test_a_prefix_needs_a_kind_for_a_tenant() -> None:
    with pytest.raises(ValueError, match="several prefixes"):
        prefix_of(tenant="a")


def test_what_is_stored_is_normal() -> None:
    given = wrap(Tenant(metadata=Metadata(tenant="acme", name="acme")))
    given.tenant.metadata.record.revision = 4
    normal = normalise(given).tenant
    assert (normal.kind, normal.metadata.tenant, normal.HasField("spec")) == ("Tenant", "", True)
    assert not normal.metadata.HasField("record")
    assert given.tenant.metadata.record.revision == 4
    assert title(ref_of(given)) == "Tenant acme"


def test_rules_hold_for_any_request_and_faults_have_paths_in_json_names() -> None:
    policy = AccessPolicy(
        kind="X",
        metadata=Metadata(tenant="-", name="n", labels={"": "x"}),
        spec=AccessPolicySpec(service="s", allow=[AccessRule(methods=["bad"])]),
    )
    kinds = ", ".join(field.json_name for field in Resource.DESCRIPTOR.oneofs[0].fields)
    assert rule_faults(ApplyRequest(resources=[wrap(policy), Resource()])) == [
        FieldFault("resources[0].kind", "must equal `AccessPolicy`"),
        FieldFault(
            "resources[0].metadata.tenant",
            "must be lower-case letters, digits and hyphens, with a letter or digit at both ends",
        ),
        FieldFault('resources[0].metadata.labels[""]', "the key is required"),
        FieldFault("resources[0].spec.allow[0].from", "is required: give at least one"),
        FieldFault(
            "resources[0].spec.allow[0].methods[0]",
            'must be "/package.Service/Method", "/path" or "GET /path", without a query; only its end may be "*"',
        ),
        FieldFault("resources[1]", f"is required: give one of {kinds}"),
    ]
    assert [fault.field for fault in rule_faults(DeleteRequest())] == ["refs"]
    assert [fault.field for fault in rule_faults(SyncRequest())] == ["message"]
    assert [fault.field for fault in rule_faults(ExplainRequest(**{"from": "a/b", "to": "b"}))] == ["to", "method"]


@pytest.mark.parametrize("method", ["/a?x=1", "/a?*", "GET /a?"])
def test_a_method_with_a_query_which_would_fit_no_call_is_refused(method: str) -> None:
    (fault,) = rule_faults(AccessRule(methods=[method], **{"from": [{"tenant": "acme", "service": "web"}]}))
    assert (fault.field, "without a query" in fault.message) == ("methods[0]", True)


def test_messages_that_are_not_ours_have_no_rules() -> None:
    from google.protobuf.duration_pb2 import Duration

    assert rule_faults(Duration(seconds=1)) == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_can_be_asked_for_and_deleted(kind: str) -> None:
    ref = ResourceRef(kind=kind, tenant="a", name="b")
    for request in (GetRequest(ref=ref), DeleteRequest(refs=[ref]), ListRequest(kind=kind)):
        assert rule_faults(request) == []
