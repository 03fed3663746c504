"""Routes, as the schema's annotations say them."""

import pytest
from google.protobuf import descriptor_pb2

from meshwarden.certs.spiffe_id import Role
from meshwarden.controlplane.api.rest import route
from meshwarden.controlplane.api.rest.route import Route, Router
from meshwarden.controlplane.identity.authorize import TABLE

ROUTES = route.load()
ROUTER = Router(ROUTES)


def find(verb: str, path: str) -> tuple[str, list[str]]:
    verbs, values = ROUTER.find(path.removeprefix("/").split("/"))
    return verbs[verb].name if verb in verbs else "", values


def test_all_that_operators_may_call_has_a_way_by_http() -> None:
    of_operators = {name for name, roles in TABLE.items() if Role.OPERATOR in roles and name.startswith("/meshwarden.")}
    assert {one.method for one in ROUTES} == of_operators


@pytest.mark.parametrize(
    ("verb", "path", "name", "values"),
    [
        ("GET", "/v1/status", "AdminService.GetStatus", []),
        ("GET", "/v1/resources", "ResourceService.List", []),
        ("GET", "/v1/resources/Service", "ResourceService.List", ["Service"]),
        ("GET", "/v1/resources/Service/acme/web", "ResourceService.Get", ["Service", "acme", "web"]),
        ("PUT", "/v1/resources/Service/acme/web", "ResourceService.Put", ["Service", "acme", "web"]),
        ("DELETE", "/v1/resources/Service/acme/web", "ResourceService.Remove", ["Service", "acme", "web"]),
        ("POST", "/v1/resources:apply", "ResourceService.Apply", []),
        ("GET", "/v1/resources:watch", "ResourceService.Watch", []),
        ("POST", "/v1/nodes/n1:ban", "AdminService.BanNode", ["n1"]),
        ("DELETE", "/v1/nodes/n1:ban", "", ["n1"]),
        ("DELETE", "/v1/nodes/n1:other", "AdminService.ForgetNode", ["n1:other"]),
        ("GET", "/v1/revisions/7/trace", "AdminService.GetTrace", ["7"]),
        ("GET", "/v1/revisions/7/progress:watch", "RevisionService.WatchProgress", ["7"]),
        ("GET", "/v1/nodes/n1/dataPlanes/a%2Fb%231", "DataPlaneService.GetDataPlane", ["n1", "a%2Fb%231"]),
        ("GET", "/v1/status/", "", []),
        ("GET", "/v1//status", "", []),
        ("GET", "/", "", []),
        ("GET", "/v1/resources/Service/acme/web/more", "", []),
    ],
)
def test_a_path_means(verb: str, path: str, name: str, values: list[str]) -> None:
    assert find(verb, path) == (name, values)


def test_no_two_routes_are_one() -> None:
    with pytest.raises(ValueError, match="are both GET"):
        Router([*ROUTES, ROUTES[0], ROUTES[0]] if ROUTES[0].verb == "GET" else [*ROUTES, *_gets()])


def _gets() -> list[Route]:
    return [one for one in ROUTES if one.verb == "GET"]


@pytest.mark.parametrize(
    "template", ["/v1/{name=a/*}", "/v1/a b", "/v1/{Name}", "/v1/**", "/v1//a"], ids=lambda text: text
)
def test_what_is_served_by_nothing_here_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match="neither a word nor a variable"):
        route._parsed("/x/Y", template)


def test_a_method_without_annotation_has_no_route() -> None:
    assert list(route._routes("/x/Y", descriptor_pb2.MethodDescriptorProto(name="Y"), "", "")) == []
