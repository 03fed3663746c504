"""Revisions and their traces: what is remembered, over a restart and a full disk, and what is not believed."""

from pathlib import Path

import apsw
import pytest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from meshwarden.controlplane.gather import change
from meshwarden.controlplane.gather.change import Changes
from meshwarden.controlplane.gather.durable import Durable


def spans(revision: int, trace: bytes = b"t" * 16) -> ResourceSpans:
    about = KeyValue(key="mesh.revision", value=AnyValue(int_value=revision))
    return ResourceSpans(scope_spans=[ScopeSpans(spans=[Span(trace_id=trace, attributes=[about])])])


async def test_a_revision_leads_to_its_trace_after_a_restart_too(tmp_path: Path) -> None:
    durable = Durable(tmp_path / "db.sqlite")
    changes = Changes(durable)
    changes.add(spans(7))
    changes.add(spans(7))
    changes.add(spans(8, b"u" * 16))
    await durable.flush()
    durable.close()
    durable = Durable(tmp_path / "db.sqlite")
    changes = Changes(durable)
    assert (await changes.find(7), await changes.find(8)) == (b"t" * 16, b"u" * 16)
    for unknown in (0, 9, 2**63, 2**64 - 1):
        assert await changes.find(unknown) is None
    durable.close()


async def test_what_could_not_be_written_is_written_later(tmp_path: Path) -> None:
    durable = Durable(tmp_path / "db.sqlite")
    changes = Changes(durable)
    changes.add(spans(7))
    taken = changes.take()
    changes.add(spans(7, b"u" * 16))
    changes.give_back(taken)
    await durable.flush()
    assert await changes.find(7) == b"u" * 16
    durable.close()


async def test_the_newest_are_kept_and_odd_ones_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(change, "KEPT", 3)
    durable = Durable(tmp_path / "db.sqlite")
    changes = Changes(durable)
    for revision in (-1, 0, 1, 2, 3, 4, 5):
        changes.add(spans(revision))
    await durable.flush()
    durable.close()
    with apsw.Connection(str(tmp_path / "db.sqlite")) as db:
        assert db.execute("SELECT revision FROM trace_changes").fetchall() == [(3,), (4,), (5,)]
