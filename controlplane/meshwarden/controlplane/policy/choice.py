"""How an endpoint is chosen, in no data plane's dialect: balancing, sessions, ejection, breakers, what is near.

Both dialects, `explain` and what a client can't do are made of these values.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from meshwarden.controlplane.policy.mesh import Mesh
from meshwarden.controlplane.policy.neutral import Name

HEALTHY_PERCENT = 70
"""How much of a zone must be healthy for it to take all calls of its own, where a policy doesn't say."""


@dataclass(frozen=True)
class Cookie:
    """A cookie; `ttl` as protobuf's JSON has a duration, empty for as long as the caller runs."""

    name: str
    ttl: str = ""
    path: str = "/"


@dataclass(frozen=True)
class Balancing:
    """Which endpoint is next.

    Attributes:
        algorithm: the way.
        among: for "least_request", of how many the idlest is taken.
        hash_on: for "ring_hash", what makes calls alike.
        name: the header's, or the cookie's.
        cookie: that is hashed.
        ring: how many places the ring has at least.
    """

    algorithm: Literal["round_robin", "least_request", "random", "ring_hash"] = "round_robin"
    among: int = 2
    hash_on: Literal["", "header", "cookie", "source"] = ""
    name: str = ""
    cookie: Cookie | None = None
    ring: int = 1024


@dataclass(frozen=True)
class FailureShare:
    """More than `threshold` percent of at least `volume` calls fail, where at least `hosts` endpoints had as many."""

    threshold: int
    volume: int = 50
    hosts: int = 2


@dataclass(frozen=True)
class Outliers:
    """When an endpoint is left out; durations as protobuf's JSON has them.

    Attributes:
        in_a_row: after so many failures; 0 for never.
        share: by the share of calls that fail.
        interval: between two judgements.
        base: for how long it is left out, times how often it was.
        longest: at most.
        percent: of the endpoints may be left out at one time.
    """

    in_a_row: int = 0
    share: FailureShare | None = None
    interval: str = "10s"
    base: str = "30s"
    longest: str = "300s"
    percent: int = 50


@dataclass(frozen=True)
class Breaker:
    """How much is under way at one time; 0 is the default."""

    connections: int = 0
    pending: int = 0
    requests: int = 0
    retries: int = 0


@dataclass(frozen=True)
class Choice:
    """How an endpoint of a service is chosen; `policy` says where that stands.

    `near` is how many percent of a zone must be healthy for it to take all calls of its own; 0 if all endpoints are
    alike.
    """

    policy: Name | None = None
    balancing: Balancing = Balancing()
    affinity: Cookie | None = None
    outliers: Outliers | None = None
    breaker: Breaker = Breaker()
    near: int = 0


NO_CHOICE = Choice()


def choice(mesh: Mesh, service: Name) -> Choice:
    """How an endpoint of a service is chosen. Of two policies, which validation refuses, the first by name counts."""
    for key, policy in mesh.of_service("RoutePolicy", service).items():
        spec = policy.spec
        return Choice(
            Name(key.tenant, key.name),
            _balancing(spec.load_balancing),
            _cookie(spec.affinity.cookie) if spec.HasField("affinity") else None,
            _outliers(spec.outlier_detection) if spec.HasField("outlier_detection") else None,
            _breaker(spec.circuit_breaker),
            (spec.locality.healthy_percent or HEALTHY_PERCENT) if spec.HasField("locality") else 0,
        )
    return NO_CHOICE


def sentences(said: Choice) -> Iterator[tuple[str, str]]:
    """What a policy says of the choice, for people: (field, text); nothing where it leaves all as it is."""
    one = said.balancing
    hashed = {
        "header": f"header {one.name}",
        "cookie": f"cookie {one.name}",
        "source": "who calls",
    }.get(one.hash_on, "")
    ways = {
        "round_robin": "each healthy endpoint in turn",
        "least_request": f"of {one.among} healthy endpoints the one with the fewest calls under way",
        "random": "any healthy endpoint",
        "ring_hash": f"by a ring of hashes: calls with the same {hashed} go to one endpoint",
    }
    if one != Balancing():
        yield "spec.loadBalancing", ways[one.algorithm]
    if said.affinity is not None:
        yield "spec.affinity", f"what shows the cookie {said.affinity.name} goes where the first call went"
    if said.near:
        yield (
            "spec.locality",
            f"the caller's own zone first, then its region, then all others; a zone takes all of its own calls while"
            f" {said.near}% of it is healthy",
        )
    if said.outliers is not None:
        yield "spec.outlierDetection", _left_out(said.outliers)
    if said.breaker != Breaker():
        bounds = {
            "connections": said.breaker.connections,
            "calls waiting": said.breaker.pending,
            "calls": said.breaker.requests,
            "calls tried again": said.breaker.retries,
        }
        text = ", ".join(f"{bound} {what}" for what, bound in bounds.items() if bound)
        yield "spec.circuitBreaker", f"each caller's data plane has at most {text} under way at one time"


def _left_out(said: Outliers) -> str:
    when = [f"after {said.in_a_row} failures in a row"] if said.in_a_row else []
    if said.share is not None:
        when.append(f"when more than {said.share.threshold}% of {said.share.volume} calls or more fail")
    return f"an endpoint is left out for {said.base} {' or '.join(when)}, {said.percent}% of all at most at one time"


def _balancing(said: Any) -> Balancing:
    kind = said.WhichOneof("algorithm")
    if kind == "least_request":
        return Balancing("least_request", said.least_request.choice_count or 2)
    if kind == "random":
        return Balancing("random")
    if kind != "ring_hash":
        return Balancing()
    ring = said.ring_hash
    size = ring.minimum_ring_size or 1024
    if (on := ring.WhichOneof("on")) == "cookie":
        return Balancing("ring_hash", hash_on="cookie", name=ring.cookie.name, cookie=_cookie(ring.cookie), ring=size)
    if on == "header":
        return Balancing("ring_hash", hash_on="header", name=ring.header, ring=size)
    return Balancing("ring_hash", hash_on="source", ring=size)


def _cookie(said: Any) -> Cookie:
    return Cookie(said.name, _duration(said, "ttl", ""), said.path or "/")


def _outliers(said: Any) -> Outliers:
    share = None
    if said.HasField("failure_percentage"):
        given = said.failure_percentage
        share = FailureShare(given.threshold, given.request_volume or 50, given.minimum_hosts or 2)
    return Outliers(
        said.consecutive_5xx,
        share,
        _duration(said, "interval", "10s"),
        _duration(said, "base_ejection_time", "30s"),
        _duration(said, "max_ejection_time", "300s"),
        said.max_ejection_percent or 50,
    )


def _breaker(said: Any) -> Breaker:
    return Breaker(said.max_connections, said.max_pending_requests, said.max_requests, said.max_retries)


def _duration(said: Any, field: str, default: str) -> str:
    return getattr(said, field).ToJsonString() if said.HasField(field) else default
