"""What of the choice of an endpoint a client does otherwise."""

from collections.abc import Iterator
from typing import Literal

from meshwarden.controlplane.policy.choice import Choice
from meshwarden.controlplane.policy.variant import Feature, Kind, Variant

Otherwise = tuple[str, Literal["equivalent", "ignored"], str]
"""A field, what becomes of it, and why."""


def choice_gaps(said: Choice, variant: Variant) -> Iterator[Otherwise]:
    """What becomes of it, field by field; Envoys do all of it."""
    if variant.dialect == "envoy":
        return
    yield from _of_balancing(said, variant)
    if said.outliers is not None and said.outliers.in_a_row and said.outliers.share is None:
        why = f"gRPC counts no failures in a row: who fails half of {said.outliers.in_a_row} calls or more is left out"
        yield "spec.outlierDetection.consecutive5xx", "equivalent", why
    elif said.outliers is not None and said.outliers.in_a_row:
        yield (
            "spec.outlierDetection.consecutive5xx",
            "ignored",
            "gRPC counts no failures in a row, only failurePercentage",
        )
    if said.outliers is not None:
        why = "gRPC takes every status but OK for a failure"
        if variant.kind is Kind.NODE:
            why += "; a client that runs when this is said begins to count when its endpoints change"
        yield "spec.outlierDetection", "equivalent", why
    if said.breaker.requests and variant.kind is Kind.NODE:
        why = "it counts calls once they are under way: those that begin in one moment may all go"
        yield "spec.circuitBreaker.maxRequests", "equivalent", why
    fields = {
        "maxConnections": said.breaker.connections,
        "maxPendingRequests": said.breaker.pending,
        "maxRetries": said.breaker.retries,
    }
    for field, given in fields.items():
        if given:
            yield f"spec.circuitBreaker.{field}", "ignored", "gRPC bounds the calls under way alone: give maxRequests"


def _of_balancing(said: Choice, variant: Variant) -> Iterator[Otherwise]:
    one = said.balancing
    if one.algorithm == "least_request" and not variant.can(Feature.LEAST_REQUEST):
        yield "spec.loadBalancing.leastRequest", "equivalent", "it knows no least request: each endpoint in turn"
    elif one.algorithm == "random":
        yield "spec.loadBalancing.random", "equivalent", "gRPC chooses none at random: each endpoint in turn"
    elif one.hash_on == "source":
        why = "each channel of a program goes to one endpoint, and another channel may go to another"
        yield "spec.loadBalancing.ringHash.sourceIdentity", "equivalent", why
    elif one.cookie is not None and one.cookie.ttl:
        why = "gRPC gives out no cookie: calls that bring one are hashed"
        yield "spec.loadBalancing.ringHash.cookie.ttl", "ignored", why
    if said.affinity is not None and not variant.can(Feature.SESSION):
        why = "it gives out no cookie; calls that bring the same one go to the same endpoint, by a ring of hashes"
        yield "spec.affinity", "equivalent", why
