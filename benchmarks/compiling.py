"""What one endpoint's change costs to compile: `compile one change, S services`, for gRPC clients and Envoys at once.

A tenant sees S services of ten endpoints each, of which one becomes unhealthy and healthy again: from the change to
the updates that go to the nodes. The reference fills the messages that have changed by hand, with protobuf's classes,
and serialises them as they go over the wire: what has to be written, with nothing around it.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator

from benchmarks.process import say
from benchmarks.result import Case
from meshwarden.controlplane.policy.mesh import Change, Key, Mesh
from meshwarden.controlplane.publish.compiled import Scopes
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1 import resources_pb2
from meshwarden.xds import api

SIZES = (10, 100, 1000)
ENDPOINTS = 10
CHANGES = 40
REFERENCE = "the same messages filled by hand with protobuf's classes, and serialised"
TENANT, VERSION = "bench", "v1"
SCOPES = (f"client/{TENANT}/c-core", f"client/{TENANT}/envoy")


def cases(rounds: int) -> Iterator[Case]:
    """Yields the cases; each side has its turn in each round."""
    for services in SIZES:
        case = Case("push", f"compile one change, {services} services", REFERENCE, "ms")
        ours, theirs = _ours(services), _by_hand()
        for number in range(rounds):
            case.add(_median_ms(ours), _median_ms(theirs))
            say(f"  {number + 1}: {case.ours[-1]:.3f} / {case.theirs[-1]:.3f} ms with {services} services")
        yield case


def _median_ms(turn: Callable[[int], object]) -> float:
    found = []
    for number in range(CHANGES):
        begun_s = time.perf_counter()
        turn(number)
        found.append((time.perf_counter() - begun_s) * 1e3)
    return statistics.median(found)


def _ours(services: int) -> Callable[[int], object]:
    mesh = Mesh("bench.mesh")
    for number in range(services):
        mesh.apply(_service(number))
    scopes = Scopes(mesh, lambda: 0.0, lambda _: None)
    held = {scope: scopes.get(scope) for scope in SCOPES}

    def turn(number: int) -> None:
        scopes.touch(mesh.apply([_endpoint(services // 2, 0, healthy=bool(number % 2))]))
        for scope, before in held.items():
            held[scope] = scopes.get(scope)
            held[scope].update(before)

    first = dict(held)
    turn(0)
    for scope, before in first.items():
        (update,) = v1.ConfigUpdate.FromString(b"".join(held[scope].update(before))).scopes
        assert len(update.resources) == 2, "of every version alike and of the one that there is"
    return turn


def _by_hand() -> Callable[[int], object]:
    kind = api.message_class("envoy.config.endpoint.v3.ClusterLoadAssignment")

    def assignment(name: str, healthy: bool) -> v1.XdsResource:
        message = kind(cluster_name=name)
        group = message.endpoints.add()  # type: ignore[attr-defined]
        group.locality.region, group.locality.zone = "eu", "a"
        group.load_balancing_weight.value = ENDPOINTS - (not healthy)
        for number in range(ENDPOINTS):
            one = group.lb_endpoints.add()
            one.health_status = 1 if healthy or number else 2
            address = one.endpoint.address.socket_address
            address.address, address.port_value = f"127.0.0.{number + 1}", 7000
        body = message.SerializeToString(deterministic=True)
        version = hashlib.sha256(body).hexdigest()[:16]
        return v1.XdsResource(type_url=api.ENDPOINT, name=name, version=version, body=body)

    def turn(number: int) -> None:
        found = [assignment(name, bool(number % 2)) for name in ("s5.bench", "s5.bench|v1")]
        for scope in SCOPES:
            v1.ScopeUpdate(scope=scope, resources=found).SerializeToString()

    return turn


def _service(number: int) -> list[Change]:
    service = resources_pb2.Service(
        kind="Service", spec=resources_pb2.ServiceSpec(protocol=resources_pb2.ServiceSpec.GRPC)
    )
    service.metadata.tenant, service.metadata.name = TENANT, f"s{number}"
    endpoints = [_endpoint(number, place, healthy=True) for place in range(ENDPOINTS)]
    return [Change(Key("Service", TENANT, f"s{number}"), service), *endpoints]


def _endpoint(service: int, number: int, *, healthy: bool) -> Change:
    states = resources_pb2.EndpointSpec
    spec = resources_pb2.EndpointSpec(
        service=f"s{service}",
        address=f"127.0.0.{number + 1}",
        port=7000,
        version=VERSION,
        health=states.HEALTHY if healthy else states.UNHEALTHY,
        locality=resources_pb2.Locality(region="eu", zone="a"),
        node=f"node-{number}",
    )
    name = f"e{service}-{number}"
    message = resources_pb2.Endpoint(kind="Endpoint", spec=spec)
    message.metadata.tenant, message.metadata.name = TENANT, name
    return Change(Key("Endpoint", TENANT, name), message)
