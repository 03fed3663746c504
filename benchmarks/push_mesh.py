"""The mesh of `push`: a thousand services of ten endpoints that every agent's clients see, and one that all serve.

Every agent hosts one instance of the service `api`, so a change of its AccessPolicy goes to all of them; and each sees
all services, so does a change of one endpoint.
"""

import os
from collections.abc import Iterator

from meshwarden.v1 import resources_pb2 as v1

TENANT, SERVICE = "bench", "api"
SERVICES, ENDPOINTS = int(os.environ.get("BENCH_SERVICES", "1000")), 10
CALLERS = 25
NODES_AN_ENTRY = 500
PORT = 7000
WORKLOADS = "workloads"
"""The entry of programs that only call, and the one node that has them."""


def base(agents: int) -> list[v1.Resource]:
    """What the agents live by."""
    tenant = v1.Tenant(kind="Tenant", metadata=v1.Metadata(name=TENANT), spec=v1.TenantSpec())
    found = [v1.Resource(tenant=tenant)]
    found += [_service(name) for name in (SERVICE, WORKLOADS, *_callers())]
    for start in range(0, agents, NODES_AN_ENTRY):
        spec = v1.WorkloadEntrySpec(
            service=SERVICE,
            nodes=[node(number) for number in range(start, min(agents, start + NODES_AN_ENTRY))],
            selectors=v1.Selectors(uid=1000),
            port=PORT,
        )
        found.append(_entry(entry(start), spec))
    spec = v1.WorkloadEntrySpec(service=WORKLOADS, nodes=[WORKLOADS], selectors=v1.Selectors(uid=os.geteuid()))
    return [*found, _entry(WORKLOADS, spec), policy(0)]


def services() -> Iterator[v1.Resource]:
    """All that is seen."""
    for number in range(SERVICES):
        yield _service(f"svc-{number:04}")
        for place in range(ENDPOINTS):
            yield endpoint(number, place, PORT)


def endpoint(service: int, place: int, port: int) -> v1.Resource:
    """One endpoint of a service."""
    spec = v1.EndpointSpec(
        service=f"svc-{service:04}",
        address=f"10.{service // 250}.{service % 250}.{place + 1}",
        port=port,
        health=v1.EndpointSpec.HEALTHY,
        locality=v1.Locality(region="local", zone="a"),
    )
    metadata = _named(f"svc-{service:04}-{place}")
    return v1.Resource(endpoint=v1.Endpoint(kind="Endpoint", metadata=metadata, spec=spec))


def policy(number: int) -> v1.Resource:
    """The policy of the service that all serve: for each number another one of the same size."""
    rule = v1.AccessRule(methods=[f"/bench.Api/Get{number:06}"])
    getattr(rule, "from").extend(v1.Caller(service=name) for name in _callers())
    spec = v1.AccessPolicySpec(service=SERVICE, allow=[rule])
    return v1.Resource(access_policy=v1.AccessPolicy(kind="AccessPolicy", metadata=_named(SERVICE), spec=spec))


def node(number: int) -> str:
    """The name of an agent's node."""
    return f"node-{number}"


def entry(number: int) -> str:
    """The entry that names a node."""
    return f"{SERVICE}-{number // NODES_AN_ENTRY}"


def _service(name: str) -> v1.Resource:
    spec = v1.ServiceSpec(protocol=v1.ServiceSpec.GRPC)
    return v1.Resource(service=v1.Service(kind="Service", metadata=_named(name), spec=spec))


def _entry(name: str, spec: v1.WorkloadEntrySpec) -> v1.Resource:
    made = v1.WorkloadEntry(kind="WorkloadEntry", metadata=_named(name), spec=spec)
    return v1.Resource(workload_entry=made)


def _callers() -> list[str]:
    return [f"caller-{number:02}" for number in range(CALLERS)]


def _named(name: str) -> v1.Metadata:
    return v1.Metadata(tenant=TENANT, name=name)
