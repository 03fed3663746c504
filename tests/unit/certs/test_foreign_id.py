"""Another trust domain's tenant is never ours, whatever it is called."""

from datetime import timedelta

import pytest
from certs_build import NOW, Plan, authority, uri

from meshwarden.certs.bundle import Bundle
from meshwarden.certs.spiffe_id import ForeignId, Role, SpiffeId
from meshwarden.certs.verify import PeerRefused, PeerVerifier

OURS, THEIRS = "spiffe://a.test/tenant/acme/service/web", "spiffe://b.test/tenant/acme/service/web"


@pytest.mark.parametrize(
    ("text", "account"),
    [
        (OURS, "acme"),
        (THEIRS, "spiffe://b.test"),
        ("spiffe://b.test/x", "spiffe://b.test"),
        ("spiffe://acme/tenant/acme/service/web", "spiffe://acme"),
        ("spiffe://a.test/region/eu/node/n1", ""),
    ],
)
def test_whose_calls_are_whose(text: str, account: str) -> None:
    assert SpiffeId.parse(text).account("a.test") == account


def test_an_identity_from_elsewhere_has_no_meaning_here() -> None:
    known = SpiffeId.parse(THEIRS)
    foreign = ForeignId(known.trust_domain, known.path)
    assert (foreign.role, foreign.tenant, foreign.service, str(foreign)) == (Role.OTHER, None, None, THEIRS)
    assert foreign.account("a.test") == "spiffe://b.test"


def test_a_verifier_that_knows_its_home_gives_no_tenant_to_others() -> None:
    roots = {name: authority(name)() for name in ("a.test", "b.test")}
    bundles = {name: Bundle.of(name, [root.certificate]) for name, root in roots.items()}
    verifier = PeerVerifier(lambda: bundles, lambda: NOW + timedelta(minutes=1), home="a.test")

    def tenant(identity: str, issuer: str) -> str | None:
        chain = Plan(names=(uri(identity),))(roots[issuer]).chain
        assert verifier.check(chain) is verifier.check(chain)
        return verifier.check(chain).spiffe_id.tenant

    assert tenant(OURS, "a.test") == "acme"
    assert tenant(THEIRS, "b.test") is None
    for identity, issuer in ((OURS, "b.test"), (THEIRS, "a.test")):
        with pytest.raises(PeerRefused, match="no valid path to a root of its trust domain"):
            tenant(identity, issuer)
    # A trust domain that is taken back is trusted no more, also where its leaf was seen before.
    chain = Plan(names=(uri(THEIRS),))(roots["b.test"]).chain
    verifier.check(chain)
    del bundles["b.test"]
    with pytest.raises(PeerRefused):
        verifier.check(chain)


def test_a_verifier_without_a_home_takes_identities_for_what_they_say() -> None:
    root = authority("a.test")()
    bundles = {"a.test": Bundle.of("a.test", [root.certificate])}
    verifier = PeerVerifier(lambda: bundles, lambda: NOW + timedelta(minutes=1))
    assert verifier.check(Plan(names=(uri(OURS),))(root).chain).spiffe_id.tenant == "acme"
