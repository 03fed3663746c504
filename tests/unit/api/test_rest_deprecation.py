"""What a deprecated RPC's answers say, of descriptors that are made for it."""

from typing import Any

import pytest
from google.protobuf import descriptor_pb2

from meshwarden.controlplane.api.rest import openapi
from meshwarden.controlplane.api.rest.deprecation import headers
from meshwarden.controlplane.api.rest.route import Route, routes_of
from meshwarden.controlplane.resources.validate import schema


def deprecated(comment: str) -> list[descriptor_pb2.FileDescriptorProto]:
    """The schema, in which GetStatus is deprecated with such a comment."""
    files = [descriptor_pb2.FileDescriptorProto.FromString(one.SerializeToString()) for one in schema().files.file]
    file = next(one for one in files if one.name.endswith("/admin_service.proto"))
    place = next(
        [6, number, 2, index]
        for number, service in enumerate(file.service)
        for index, method in enumerate(service.method)
        if method.name == "GetStatus"
    )
    file.service[place[1]].method[place[3]].options.deprecated = True
    location = next(one for one in file.source_code_info.location if list(one.path) == place)
    location.leading_comments = comment
    return files


def status_of(routes: tuple[Route, ...]) -> Any:
    return next(one for one in routes if one.name == "AdminService.GetStatus")


def test_the_headers_are_those_of_the_standards() -> None:
    found = routes_of(deprecated(" Shows it.\n Deprecated since 2026-11-01, until 2027-11-01: use GetMesh.\n"))
    assert dict(status_of(found).deprecation) == {
        "deprecation": "@1793491200",
        "sunset": "Mon, 01 Nov 2027 00:00:00 GMT",
        "link": '</explorer/>; rel="deprecation"; type="text/html"',
    }
    assert [one.name for one in found if one.deprecation] == ["AdminService.GetStatus"]
    document = openapi.document(found, "1")
    assert document["paths"]["/v1/status"]["get"]["deprecated"] is True
    assert "deprecated" not in document["paths"]["/v1/nodes"]["get"]


def test_without_an_end_there_is_no_sunset() -> None:
    assert [name for name, _ in headers("X", "Deprecated since 2026-11-01: use Y.")] == ["deprecation", "link"]


@pytest.mark.parametrize(
    "comment",
    [
        "",
        "Deprecated.",
        "Deprecated since 2026-13-01: use Y.",
        "Deprecated since 2026-11-01, until 2026-11-01: use Y.",
        "Deprecated since 2026-11-01, until 2025-11-01: use Y.",
        "Deprecated since 2026-11-01",
    ],
)
def test_what_is_deprecated_says_since_when(comment: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        routes_of(deprecated(comment))
