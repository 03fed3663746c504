"""Route policies that are made up, some of which `apply` refuses."""

from typing import Any

from google.protobuf import json_format
from hypothesis import strategies as st

from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import wrap
from meshwarden.controlplane.resources.validate import resource_faults, rule_faults
from meshwarden.v1 import resources_pb2

words = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=8)
names = st.one_of(
    st.sampled_from(["x-a", "content-type", "a-bin", "*", "host"]),
    st.from_regex("[a-z0-9!#$%&'*+.^_`|~-]+", fullmatch=True),
)
methods = st.from_regex(r"([A-Z]+ )?/[^*\s]{0,9}\*?", fullmatch=True)
spans = st.builds(lambda n: f"{n / 1000:.3f}s", st.integers(-1, 90_000_000))
headers = st.one_of(
    st.builds(lambda name, text: {"name": name, "exact": text}, names, st.one_of(words, st.just(""))),
    st.builds(lambda name, text: {"name": name, "prefix": text}, names, words),
    st.builds(lambda name, here: {"name": name, "present": here}, names, st.booleans()),
)
callers = st.fixed_dictionaries({"service": st.sampled_from(["*", "web", ""])}, optional={"tenant": st.just("acme")})
matches = st.fixed_dictionaries(
    {},
    optional={
        "methods": st.lists(methods, max_size=3, unique=True),
        "headers": st.lists(headers, max_size=3),
        "from": st.lists(callers, max_size=2),
    },
)
splits = st.lists(
    st.builds(lambda v, w: {"version": v, "weight": w}, st.sampled_from(["v1", "v2"]), st.integers(0, 1_000_000)),
    max_size=3,
)
codes = st.sampled_from(["UNAVAILABLE", "CANCELLED", "INTERNAL", "DEADLINE_EXCEEDED", "400", "503", "599", "OK"])
retries = st.fixed_dictionaries(
    {"codes": st.lists(codes, max_size=3)},
    optional={
        "attempts": st.integers(0, 6),
        "perTryTimeout": spans,
        "backoff": st.fixed_dictionaries({}, optional={"base": spans, "max": spans}),
        "budget": st.fixed_dictionaries(
            {"percent": st.floats(-1, 101)}, optional={"minRetries": st.integers(0, 20_000)}
        ),
    },
)
percents = st.one_of(st.floats(-1, 101), st.sampled_from([1e-300, 100.0]))
statuses = st.one_of(
    st.builds(lambda code: {"httpStatus": code}, st.integers(199, 601)),
    st.builds(
        lambda name: {"grpcStatus": name}, st.sampled_from(["UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED", "OK"])
    ),
)
faulty = st.fixed_dictionaries(
    {},
    optional={
        "delay": st.fixed_dictionaries({"fixedDelay": spans, "percent": percents}),
        "abort": st.builds(lambda how, percent: {**how, "percent": percent}, statuses, percents),
        "headers": st.lists(headers, max_size=2),
    },
)
values = st.builds(
    lambda name, text: {"name": name, "value": text}, names, st.one_of(words, st.text("%{} \\a", max_size=9))
)
changes = st.fixed_dictionaries(
    {},
    optional={
        "set": st.lists(values, max_size=2),
        "add": st.lists(values, max_size=2),
        "remove": st.lists(names, max_size=2, unique=True),
    },
)
mirrors = st.fixed_dictionaries(
    {}, optional={"service": st.sampled_from(["s0", "nobody"]), "version": st.just("v1"), "percent": percents}
)
rules = st.fixed_dictionaries(
    {},
    optional={
        "match": matches,
        "split": splits,
        "timeout": spans,
        "retry": retries,
        "fault": faulty,
        "mirror": mirrors,
        "requestHeaders": changes,
        "responseHeaders": changes,
    },
)
policies = st.fixed_dictionaries(
    {"rules": st.lists(rules, min_size=1, max_size=3), "idempotent": st.lists(methods, max_size=3, unique=True)}
)


def _policy(name: str, spec: dict[str, Any]) -> Any:
    fields = {
        "kind": "RoutePolicy",
        "metadata": {"tenant": "platform", "name": name},
        "spec": {"service": name, **spec},
    }
    return json_format.ParseDict(fields, resources_pb2.RoutePolicy())


def faults(spec: dict[str, Any]) -> list[FieldFault]:
    """What `apply` says of a policy by itself."""
    policy = _policy("s", spec)
    return [*rule_faults(policy), *resource_faults(wrap(policy))]


def mesh_of(specs: list[dict[str, Any]]) -> Mesh:
    """A mesh in which each policy is that of a service of its own."""
    mesh = Mesh("mesh.test")
    for number, spec in enumerate(specs):
        name = f"s{number}"
        fields = {"metadata": {"tenant": "platform", "name": name}, "spec": {"protocol": "GRPC", "exportTo": ["*"]}}
        service = json_format.ParseDict(fields, resources_pb2.Service())
        mesh.apply(
            [
                Change(Key("Service", "platform", name), service),
                Change(Key("RoutePolicy", "platform", name), _policy(name, spec)),
            ]
        )
    return mesh
