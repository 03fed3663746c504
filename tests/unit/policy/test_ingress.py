"""Which calls an ingress's routes are about: paths by whole segments, hosts with stars, subjects of certificates."""

import re

import pytest
from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.controlplane.policy.envoy.ingress_route import subject
from meshwarden.controlplane.policy.ingress import Where
from meshwarden.controlplane.policy.neutral import Method
from meshwarden.controlplane.resources.ingress import covers

paths = st.from_regex(r"/(a|b|/){0,5}", fullmatch=True)


def fits(where: "Where | Method", path: str) -> bool:
    if isinstance(where, Method):
        return where.fits(path)
    root = where.path.rstrip("/")
    return path == where.path or (where.below and (path == root or path.startswith(f"{root}/")))


@given(st.from_regex(r"/|(/[ab]{1,2}){1,2}", fullmatch=True), st.booleans(), paths, st.booleans(), paths)
def test_both_is_what_each_means(own: str, below: bool, path: str, prefix: bool, asked: str) -> None:
    where, method = Where(own, below), Method(path, prefix)
    both = where.both(method)
    assert (both is not None and fits(both, asked)) == (fits(where, asked) and method.fits(asked))


@pytest.mark.parametrize(
    ("host", "domain", "said"),
    [
        ("*", "*", True),
        ("*", "a.test", True),
        ("a.test", "a.test", True),
        ("*.test", "a.test", True),
        ("*.test", "b.a.test", True),
        ("*.test", "*.a.test", True),
        ("*.test", "*.test", True),
        ("*.a.test", "*.test", False),
        ("*.test", "test", False),
        ("*.a.test", "ba.test", False),
        ("a.test", "*", False),
        ("a.test", "b.a.test", False),
    ],
)
def test_a_host_with_a_star_means_all_below(host: str, domain: str, said: bool) -> None:
    assert covers(host, domain) is said


ORG, UNIT, CN = x509.NameOID.ORGANIZATION_NAME, x509.NameOID.ORGANIZATIONAL_UNIT_NAME, x509.NameOID.COMMON_NAME


def written(*attributes: tuple[x509.ObjectIdentifier, str]) -> str:
    """A subject as RFC 2253 has it, the last attribute first."""
    name = x509.Name([x509.NameAttribute(*one) for one in attributes])
    return name.rfc4514_string()


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ([(ORG, "Acme, Inc.")], True),
        ([(ORG, "Acme, Inc."), (CN, "robot")], True),
        ([(CN, "robot"), (ORG, "Acme, Inc."), (UNIT, "Sales")], True),
        ([(ORG, "Acme, Inc.x")], False),
        ([(ORG, "xAcme, Inc.")], False),
        ([(UNIT, "Acme, Inc.")], False),
        ([(CN, "Acme, Inc.")], False),
        # Written into another attribute it is that attribute's.
        ([(CN, "x,O=Acme, Inc.")], False),
        ([(CN, "x,O=Acme\\, Inc."), (ORG, "Evil")], False),
        ([(CN, "x\\"), (ORG, "Evil")], False),
        ([(CN, "O=Acme, Inc.")], False),
        # With another of the same kind it is nobody's.
        ([(ORG, "Evil"), (ORG, "Acme, Inc.")], False),
        ([(ORG, "Acme, Inc."), (ORG, "Evil")], False),
    ],
)
def test_a_subject_is_read_whole(attributes: list[tuple[x509.ObjectIdentifier, str]], said: bool) -> None:
    pattern = subject("O", "Acme, Inc.")
    assert (re.fullmatch(pattern, written(*attributes)) is not None) is said


attributes_ = st.tuples(st.sampled_from([ORG, UNIT, CN]), st.text('OU=,+\\"<>; #xA', min_size=1, max_size=12))


@given(st.lists(attributes_, max_size=4))
def test_nobody_writes_himself_an_organisation(attributes: list[tuple[x509.ObjectIdentifier, str]]) -> None:
    text = written(*attributes)
    for oid, name in ((ORG, "O"), (UNIT, "OU")):
        own = [value for kind, value in attributes if kind == oid]
        assert (re.fullmatch(subject(name, "xA"), text) is not None) == (own == ["xA"])


def test_two_attributes_of_one_step_are_nobodys() -> None:
    two = [x509.NameAttribute(ORG, "Acme"), x509.NameAttribute(CN, "x")]
    text = x509.Name([x509.RelativeDistinguishedName(two)]).rfc4514_string()
    assert "+" in text
    assert re.fullmatch(subject("O", "Acme"), text) is None
