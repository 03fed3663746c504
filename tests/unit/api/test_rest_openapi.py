"""The document that is derived from the schema: sound by OpenAPI's own rules, and true of what it shows."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from meshwarden.controlplane.api.rest import openapi, route
from meshwarden.controlplane.resources.model import KINDS

DOCUMENT: dict[str, Any] = json.loads(openapi.text(route.load(), version("meshwarden")))
OPERATIONS = [operation for verbs in DOCUMENT["paths"].values() for operation in verbs.values()]


def schema_of(part: dict[str, Any]) -> Draft202012Validator:
    return Draft202012Validator({**part, "components": DOCUMENT["components"]})


def component(name: str) -> dict[str, Any]:
    found: dict[str, Any] = DOCUMENT["components"]["schemas"][name]
    return found


def test_it_is_sound() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()
    for name in DOCUMENT["components"]["schemas"]:
        Draft202012Validator.check_schema(component(name))


def test_what_is_committed_is_what_the_code_says() -> None:
    page = Path(__file__).parents[3] / "docs" / "openapi.json"
    assert json.loads(page.read_text()) == DOCUMENT, "run `python docs/generate.py`"


def test_each_operation_is_described_and_named_once() -> None:
    names = [operation["operationId"] for operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for operation in OPERATIONS:
        assert operation["summary"].endswith("."), operation["operationId"]
        for parameter in operation.get("parameters", []):
            assert parameter.get("description") or parameter["name"] in ("kind", "tenant"), operation["operationId"]
    for name, made in DOCUMENT["components"]["schemas"].items():
        assert made.get("description"), name
        for field, inner in made.get("properties", {}).items():
            assert inner.get("description"), f"{name}.{field}"


def test_variables_of_a_path_are_its_parameters() -> None:
    for path, verbs in DOCUMENT["paths"].items():
        for operation in verbs.values():
            places = [one["name"] for one in operation.get("parameters", []) if one["in"] == "path"]
            assert [f"{{{name}}}" in path for name in places] == [True] * path.count("{")


@pytest.mark.parametrize("one", [one for one in route.load() if one.body], ids=lambda one: f"{one.name}.{one.number}")
def test_each_example_is_as_its_schema_says(one: route.Route) -> None:
    media = DOCUMENT["paths"][one.path][one.verb.lower()]["requestBody"]["content"]["application/json"]
    checked = schema_of(media["schema"])
    for name, example in media.get("examples", {}).items():
        assert list(map(str, checked.iter_errors(example["value"]))) == [], name


@pytest.mark.parametrize(
    ("wrong", "about"),
    [
        ({"kind": "Service"}, "metadata"),
        ({"kind": "Widget", "metadata": {"name": "a"}}, "kind"),
        ({"kind": "Service", "metadata": {"name": "A!"}, "spec": {}}, "name"),
        ({"kind": "Service", "metadata": {"name": "a"}, "spec": {"protocol": "SMTP"}}, "protocol"),
        ({"kind": "Service", "metadata": {"name": "a"}, "spec": {"protocol": "GRPC"}, "more": 1}, "more"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_rules_of_the_schema_are_rules_of_the_document(wrong: dict[str, Any], about: str) -> None:
    checked = schema_of(component("Resource"))
    assert not checked.is_valid(wrong), about
    sound = {"kind": "Service", "metadata": {"tenant": "a", "name": "a"}, "spec": {"protocol": "GRPC"}}
    assert checked.is_valid(sound)


def test_each_kind_is_told_by_its_name() -> None:
    resource = component("Resource")
    assert list(resource["discriminator"]["mapping"]) == list(KINDS)
    for kind in KINDS:
        assert component(kind)["properties"]["kind"]["const"] == kind
