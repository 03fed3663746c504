"""The REST API as an OpenAPI 3.1 document, derived from the schema: routes, comments, rules and examples.

Source: OpenAPI 3.1.1; RFC 9110 §8.8.3 and §13.1 for ETags and conditions.
"""

import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import yaml

from meshwarden.controlplane.api.rest.cookie import NAME
from meshwarden.controlplane.api.rest.json_schema import COMPONENTS, JsonSchemas
from meshwarden.controlplane.api.rest.route import Route
from meshwarden.controlplane.resources.example import EXAMPLES

_PROBLEM: Final = "meshwarden.v1.Problem"
_DESCRIPTION: Final = """\
The RPCs of the control plane as HTTP and JSON. A caller shows an operator's certificate when it connects (mutual TLS),
or the session of a browser that stands for one, and may what it may by gRPC: an operator of a tenant sees and touches
that tenant alone.

A resource is as in a manifest: what `GET` answers can be `PUT`, or given to `meshwarden apply`. Whole numbers of 64
bits are text, durations are text such as `1.5s`, and what is left out has its default: `0`, `false`, `""`,
an empty list.

What fails is told as `application/problem+json` (RFC 9457) with each field that is wrong. Streams are server-sent
events.

`/v1` is stable: fields, parameters and paths are added, and none is taken away or given another meaning."""
# {RPC: {name: body}}; each is sent by a test.
_BODIES: Final[dict[str, dict[str, Any]]] = {
    "AdminService.CreateJoinToken": {"A node": {"node": "node-c", "ttl": "300s"}},
    "AdminService.Explain": {
        "A call": {"from": "acme/web", "to": "platform/orders", "method": "/shop.v1.Orders/Get"},
    },
    "AdminService.BanNode": {"A node": {"reason": "its disk was stolen"}},
    "AdminService.EvictNode": {"A node": {"reason": "it is installed anew"}},
    "AdminService.UnbanNode": {"A node": {}},
    "AdminService.RenewSvids": {"All": {"reason": "an exercise"}},
    "AdminService.Deny": {
        "An identity": {
            "targets": [{"spiffeId": "spiffe://mesh.test/tenant/acme/service/web"}],
            "reason": "its key is in other hands",
        },
    },
    "AdminService.Allow": {
        "An identity": {"targets": [{"spiffeId": "spiffe://mesh.test/tenant/acme/service/web"}]},
    },
    "AdminService.ChangeRoot": {"A new one": {"change": "PREPARE", "reason": "the yearly rotation"}},
    "AdminService.ChangeJwtKey": {"A new one": {"change": "PREPARE"}},
    "RevisionService.Rollback": {"A look": {"dryRun": True}},
    "RolloutService.ChangeRollout": {
        "An end": {
            "ref": {"kind": "Rollout", "tenant": "platform", "name": "orders-create"},
            "action": "ABORT",
            "reason": "not today",
        },
    },
    "ResourceService.Delete": {
        "A policy": {"refs": [{"kind": "AccessPolicy", "tenant": "platform", "name": "orders"}]},
    },
}


def text(routes: Sequence[Route], version: str) -> bytes:
    """Returns the document, as it is served and committed."""
    return json.dumps(document(routes, version), indent=1, ensure_ascii=False).encode() + b"\n"


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """Returns the document of these routes."""
    schemas = JsonSchemas()
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.verb.lower()] = _operation(route, schemas)
    schemas.reference(schemas.message(_PROBLEM))
    services = sorted({route.name.partition(".")[0] for route in routes})
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Meshwarden",
            "version": version,
            "description": _DESCRIPTION,
            "license": {"name": "Apache License 2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "security": [{"certificate": []}, {"session": []}],
        "tags": [
            {"name": name, "description": "\n\n".join(schemas.comments.paragraphs(f"meshwarden.v1.{name}"))}
            for name in services
        ],
        "paths": {path: paths[path] for path in sorted(paths)},
        "components": {
            "schemas": schemas.components,
            "responses": {
                "Problem": {
                    "description": "It failed.",
                    "content": {"application/problem+json": {"schema": {"$ref": f"{COMPONENTS}Problem"}}},
                }
            },
            "securitySchemes": {
                "certificate": {"type": "mutualTLS", "description": "The certificate of an operator."},
                "session": {
                    "type": "apiKey",
                    "in": "cookie",
                    "name": NAME,
                    "description": "A browser's session, which stands for the certificate of an operator.",
                },
            },
        },
    }


def _operation(route: Route, schemas: JsonSchemas) -> dict[str, Any]:
    service, _, method = route.name.partition(".")
    said = schemas.comments.paragraphs(f"meshwarden.v1.{route.name}")
    first, _, rest = (said[0] if said else "").partition(". ")
    made: dict[str, Any] = {
        "operationId": f"{service}.{method}" + (f".{route.number}" if route.number else ""),
        "tags": [service],
        "summary": first.rstrip(".") + ".",
    }
    if description := "\n\n".join(filter(None, [rest, *said[1:]])):
        made["description"] = description
    if route.deprecation:
        made["deprecated"] = True
    if parameters := list(_parameters(route, schemas)):
        made["parameters"] = parameters
    if route.body:
        made["requestBody"] = _body(route, schemas)
    made["responses"] = {"200": _answer(route, schemas), "default": {"$ref": "#/components/responses/Problem"}}
    return made


def _parameters(route: Route, schemas: JsonSchemas) -> Iterator[dict[str, Any]]:
    request = schemas.message(route.request.DESCRIPTOR.full_name)
    for name, path in route.variables.items():
        yield _parameter(name, "path", schemas.field(_find(request, path)), required=True)
    if route.body != "*":
        bound = set(route.variables.values())
        for name, path, field, is_needed in _query(schemas, request):
            if path in bound or path.partition(".")[0] == route.body or name == "ifRevision":
                continue
            if name.startswith("after."):
                is_needed = False
            yield _parameter(name, "query", schemas.field(field), required=is_needed)
    fields = request.fields_by_name
    if "if_revision" in fields:
        text = "Refuse it unless the resource has this ETag."
        yield _header("If-Match", text, {"type": "string", "pattern": '^"[0-9]{1,18}"$'})
    if "if_revision" in fields and route.verb == "PUT":
        yield _header("If-None-Match", "Refuse it if there is such a resource.", {"type": "string", "const": "*"})
    if "after" in fields:
        pattern = "^[A-Za-z0-9-]{1,64}:[0-9]{1,18}$"
        yield _header("Last-Event-ID", "Where to go on: the id of an event.", {"type": "string", "pattern": pattern})
    if _is_resource(route):
        text = "Answer 304 if the resource still has this ETag."
        yield _header("If-None-Match", text, {"type": "string", "pattern": '^"[0-9]{1,18}"$'})


def _query(schemas: JsonSchemas, message: Any, name: str = "", path: str = "") -> Iterator[tuple[str, str, Any, bool]]:
    """The fields that a query may say: (name, path, field, whether it must)."""
    needed = schemas.required(message)
    for field in message.fields:
        here, there = f"{name}{field.json_name}", f"{path}{field.name}"
        inner = field.message_type
        if inner is not None and not inner.full_name.startswith("google.protobuf."):
            if not field.is_repeated and not inner.GetOptions().map_entry and inner.name != "Resource":
                for one in _query(schemas, inner, f"{here}.", f"{there}."):
                    # Of what need not be there nothing must.
                    yield (*one[:3], one[3] and field.name in needed)
            continue
        yield here, there, field, field.name in needed


def _find(message: Any, path: str) -> Any:
    *parents, last = path.split(".")
    for parent in parents:
        message = message.fields_by_name[parent].message_type
    return message.fields_by_name[last]


def _parameter(name: str, place: str, schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": name, "in": place}
    if required:
        made["required"] = True
    if "description" in schema:
        made["description"] = schema["description"]
    made["schema"] = {key: value for key, value in schema.items() if key != "description"}
    if place == "path" and made["schema"].get("type") == "string":
        made["schema"].setdefault("minLength", 1)
    return made


def _header(name: str, text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "header", "description": text, "schema": schema}


def _body(route: Route, schemas: JsonSchemas) -> dict[str, Any]:
    request = schemas.message(route.request.DESCRIPTOR.full_name)
    if route.body != "*":
        schema = schemas.reference(request.fields_by_name[route.body].message_type)
    elif route.variables:
        schema = schemas.object(request, [path.partition(".")[0] for path in route.variables.values()])
    else:
        schema = schemas.reference(request)
    # Where nothing must be said there need be no body.
    bound = {path.partition(".")[0] for path in route.variables.values()}
    is_needed = route.body != "*" or bool(schemas.required(request) - bound)
    media: dict[str, Any] = {"schema": schema}
    if examples := {name: {"value": value} for name, value in examples_of(route).items()}:
        media["examples"] = examples
    return {"required": is_needed, "content": {"application/json": media}}


def examples_of(route: Route) -> dict[str, Any]:
    """Bodies that a route takes, {name: body}."""
    resources = _resources()
    if route.name == "ResourceService.Put":
        return resources
    if route.name in ("ResourceService.Apply", "PreviewService.Preview", "PreviewService.Replay"):
        return {"A tenant and its service": {"resources": [resources["Tenant"], resources["Service"]]}}
    return _BODIES.get(route.name, {})


@functools.cache
def _resources() -> dict[str, Any]:
    return {kind: [*yaml.safe_load_all(text)][-1] for kind, text in EXAMPLES.items()}


def _answer(route: Route, schemas: JsonSchemas) -> dict[str, Any]:
    response = schemas.message(route.response.DESCRIPTOR.full_name)
    text = schemas.comments[response.full_name]
    schema = schemas.reference(response)
    if route.streams:
        media = {"text/event-stream": {"schema": {"type": "string"}, "x-itemSchema": schema}}
        return {"description": f"Events. The data of each: {text}", "content": media}
    made: dict[str, Any] = {"description": text, "content": {"application/json": {"schema": schema}}}
    if _is_resource(route):
        made["headers"] = {
            "ETag": {"description": "The revision of the resource, for If-Match.", "schema": {"type": "string"}}
        }
    return made


def _is_resource(route: Route) -> bool:
    return route.response.DESCRIPTOR.full_name == "meshwarden.v1.Resource"
