"""Who called billing, out of Envoy's header."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshwarden.examples.billing import caller_of

ACME = "spiffe://mesh.test/tenant/acme/service/web"
GLOBEX = "spiffe://mesh.test/tenant/globex/service/web"


@pytest.mark.parametrize(
    "header",
    [
        f"URI={ACME}",
        f"Hash=00ff;URI={ACME}",
        f'Hash=00ff;Subject="CN=a,O=b;URI={GLOBEX}";URI={ACME};DNS=web',
        f"URI={GLOBEX},URI={ACME}",  # the last one is of our own Envoy
        f"By=spiffe://mesh.test/x;uri={ACME}",
    ],
)
def test_the_caller_is_what_the_nearest_proxy_says(header: str) -> None:
    assert caller_of(header) == {"spiffe_id": ACME, "tenant": "acme", "service": "web"}


@pytest.mark.parametrize(
    "header",
    [
        "",
        "URI=",
        "URI=spiffe://mesh.test/region/r/node/n",
        f'Subject="URI={ACME}"',
        f"URI={ACME}/more",
        # Another trust domain's tenant of that name.
        "By=spiffe://mesh.test/tenant/platform/service/billing;Hash=0;URI=spiffe://other.test/tenant/acme/service/web",
        f"By=spiffe://mesh.testx/tenant/platform/service/billing;Hash=0;URI={ACME}",
    ],
)
def test_what_names_no_workload_names_nobody(header: str) -> None:
    assert caller_of(header)["tenant"] == ""


@given(st.text(alphabet='URI=spiffe:/;,"\\tenacmrv', max_size=200))
def test_any_header_is_survived(header: str) -> None:
    caller_of(header)
