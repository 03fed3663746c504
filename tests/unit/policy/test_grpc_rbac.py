"""Access in gRPC's dialect: valid messages that deny what nothing allows."""

from meshwarden.controlplane.policy.grant import Access, Grant
from meshwarden.controlplane.policy.grpc import rbac
from meshwarden.controlplane.policy.neutral import ANY_METHOD, Caller, Method, Name
from meshwarden.xds import api

ORDERS = Name("platform", "orders")
FILTER = "envoy.extensions.filters.http.rbac.v3."


def test_no_grant_denies_all_by_an_empty_allow_list() -> None:
    assert rbac.allowing(Access(ORDERS), "mesh.test") == {"action": "ALLOW", "policies": {}}
    *_, last = rbac.filters()
    fields = {key: value for key, value in last["typed_config"].items() if key != "@type"}
    assert api.build(FILTER + "RBAC", fields).HasField("rules"), "a filter without rules would allow every call"


def test_grants_become_principals_and_permissions() -> None:
    grants = (
        Grant(Caller("acme", "web"), (Method("/shop.Orders/Get"), Method("/x", prefix=True, verb="GET")), ORDERS, 0),
        Grant(Caller("globex"), (ANY_METHOD,), ORDERS, 1),
    )
    override = rbac.overrides(Access(ORDERS, grants), "mesh.test")[rbac.ALLOW]
    built = api.to_dict(api.build(FILTER + "RBACPerRoute", {"rbac": override["rbac"]}))
    policies = built["rbac"]["rules"]["policies"]
    first, second = policies["platform/orders#allow[0].0"], policies["platform/orders#allow[1].1"]
    assert first["principals"] == [
        {"authenticated": {"principal_name": {"exact": "spiffe://mesh.test/tenant/acme/service/web"}}}
    ]
    assert first["permissions"][0] == {"url_path": {"path": {"exact": "/shop.Orders/Get"}}}
    assert first["permissions"][1]["and_rules"]["rules"][1]["header"]["string_match"] == {"exact": "GET"}
    assert second["principals"] == [
        {"authenticated": {"principal_name": {"prefix": "spiffe://mesh.test/tenant/globex/service/"}}}
    ]
    assert second["permissions"] == [{"any": True}]
