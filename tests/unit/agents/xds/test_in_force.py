"""Which revision was in force when: before anything is known, between changes, at a bound; and as spans bear it."""

from datetime import UTC, datetime, timedelta

import pytest
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span

from meshwarden.agents.telemetry.sieve import stamped
from meshwarden.agents.xds import in_force
from meshwarden.agents.xds.in_force import InForce

START = datetime(2026, 1, 2, tzinfo=UTC)
START_NS = int(START.timestamp()) * 10**9


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now


def test_a_moment_has_the_revision_that_was_taken_before_it() -> None:
    clock = Clock()
    known = InForce(clock)
    assert known.of("web/envoy") is None
    for revision in (4, 4, 6, 5):  # a store that was put back
        known.taken("web/envoy", revision)
        clock.now += timedelta(seconds=1)
    at = known.of("web/envoy")
    assert at is not None
    moments = (0, START_NS - 1, START_NS, START_NS + 1_999_999_999, START_NS + 2 * 10**9, START_NS + 3 * 10**9, 2**64)
    assert [at(moment) for moment in moments] == [4, 4, 4, 4, 6, 5, 5]


def test_what_is_known_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_force, "MAX_PLANES", 2)
    clock = Clock()
    known = InForce(clock)
    for revision in range(1, in_force.MAX_CHANGES + 3):
        known.taken("a", revision)
        clock.now += timedelta(seconds=1)
    at = known.of("a")
    assert at is not None
    assert (at(0), at(2**63)) == (3, in_force.MAX_CHANGES + 2)
    for name in ("b", "c"):
        known.taken(name, 1)
    assert known.of("a") is None
    assert known.of("c") is not None


def test_each_span_bears_its_own_and_stays_what_it_was() -> None:
    scope = ScopeSpans(
        scope=InstrumentationScope(name="envoy"),
        schema_url="https://x",
        spans=[Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="n", start_time_unix_nano=start) for start in (5, 15)],
    )
    (body,) = stamped([scope.SerializeToString()], lambda moment: 2**64 if moment > 10 else 7)
    found = ScopeSpans.FromString(body)
    assert [[(pair.key, pair.value.int_value) for pair in span.attributes] for span in found.spans] == [
        [("mesh.revision", 7)],
        [("mesh.revision", 2**63 - 1)],
    ]
    for span in found.spans:
        del span.attributes[:]
    assert found == scope
    assert stamped([b""], lambda _: 1) == [b""]
