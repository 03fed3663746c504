"""A tenant never reaches another's secret by naming its path."""

import pytest
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.resources import validate
from meshwarden.controlplane.resources.model import wrap
from meshwarden.controlplane.secrets.port import SecretError
from meshwarden.controlplane.secrets.reference import Grants, Reference
from meshwarden.v1.resources_pb2 import WorkloadEntry

HOSTILE = [
    "kv/meshwarden/acme/../umbrella/db#password",
    "kv/meshwarden/acme/..#password",
    "kv/meshwarden/acme/./db#password",
    "kv/meshwarden/acme//db#password",
    "kv//meshwarden/acme/db#password",
    "/kv/meshwarden/acme/db#password",
    "kv/meshwarden/acme/#password",
    "kv/meshwarden/acme/%2e%2e/umbrella/db#password",
    "kv/meshwarden/acme%2f..%2fumbrella/db#password",
    "kv/meshwarden/acme/db\n#password",
    "kv/meshwarden/acme/db#password\n",
    "kv/meshwarden/acme/db#pass\x00word",
    "kv/meshwarden/acme/db?version=1#password",
    "kv/meshwarden/acme/db#password#other",
    "kv/meshwarden/acme/db",
    "kv/meshwarden/acme/db#",
    "kv#password",
    "kv/meshwarden/acme\\..\\umbrella/db#password",
    "kv/meshwarden/аcme/db#password",
    "kv/meshwarden/acme/.hidden#password",
    "kv/" + "a/" * 300 + "b#c",
    "",
]


def entry(tenant: str, said: str) -> WorkloadEntry:
    fields = {
        "kind": "WorkloadEntry",
        "metadata": {"tenant": tenant, "name": "web"},
        "spec": {
            "service": "web",
            "nodes": ["n1"],
            "selectors": {"uid": 1},
            "secrets": [{"name": "db", "from": said}],
        },
    }
    return json_format.ParseDict(fields, WorkloadEntry())


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_plain_path_is_refused_where_it_is_applied_and_where_it_is_read(name: str) -> None:
    with pytest.raises(SecretError, match="write it as"):
        Reference.parse(name)
    faults = validate.rule_faults(wrap(entry("acme", f"vault:{name}")))
    assert any("secrets" in fault.field for fault in faults)


def test_a_plain_path_is_taken() -> None:
    assert str(Reference.parse("kv/meshwarden/acme/db#password")) == "vault:kv/meshwarden/acme/db#password"
    assert not validate.rule_faults(wrap(entry("acme", "vault:kv/meshwarden/acme/db#password")))


def test_names_of_secrets_are_told_apart() -> None:
    twice = entry("acme", "vault:kv/a#b")
    twice.spec.secrets.append(twice.spec.secrets[0])
    assert any("a name of its own" in str(fault) for fault in validate.rule_faults(wrap(twice)))


GRANTS = Grants({"umbrella": ["kv/teams/umbrella", "kv/shared"], "locked": []})


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("acme", "kv/meshwarden/acme/db#p"),
        ("acme", "other/meshwarden/acme/a/b/c#p"),
        ("umbrella", "kv/teams/umbrella/db#p"),
        ("umbrella", "kv/shared/a#p"),
    ],
)
def test_a_tenant_may_name_its_own(tenant: str, name: str) -> None:
    GRANTS.check(tenant, Reference.parse(name))
    assert GRANTS.fault(tenant, f"vault:{name}") == ""


@pytest.mark.parametrize(
    ("tenant", "name"),
    [
        ("acme", "kv/meshwarden/umbrella/db#p"),
        ("acme", "kv/meshwarden/acme-two/db#p"),
        ("acme", "kv/meshwarden/acme#p"),
        ("acme", "kv/meshwarden#p"),
        ("acme", "kv/acme/db#p"),
        ("acme", "kv/teams/umbrella/db#p"),
        ("acme", "kv/Meshwarden/acme/db#p"),
        ("umbrella", "kv/meshwarden/umbrella/db#p"),
        ("umbrella", "kv/teams/umbrella2/db#p"),
        ("umbrella", "kv2/shared/a#p"),
        ("locked", "kv/meshwarden/locked/db#p"),
    ],
)
def test_a_tenant_may_name_no_other(tenant: str, name: str) -> None:
    with pytest.raises(SecretError, match=f"tenant {tenant} may name"):
        GRANTS.check(tenant, Reference.parse(name))
    assert f"tenant {tenant} may name" in GRANTS.fault(tenant, f"vault:{name}")


def test_what_is_no_reference_is_the_schemas_to_refuse() -> None:
    assert {GRANTS.fault("acme", said) for said in ("", "vault:", "vault:kv/a\n#b", "x" * 100_000)} == {""}


@given(st.text(st.sampled_from("ab./%#\n-_\\? "), max_size=40))
def test_whatever_is_taken_stays_below_its_place(text: str) -> None:
    try:
        reference = Reference.parse(f"kv/meshwarden/acme/{text}")
        GRANTS.check("acme", reference)
    except SecretError:
        return
    assert reference.path.startswith("meshwarden/acme/")
    assert not {"", ".", ".."} & set(reference.path.split("/"))
    assert not set("%#\n\\? ") & set(reference.path)
