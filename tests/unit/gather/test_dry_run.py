"""What policies in dry run would change: believed of its own tenant alone, bounded, and there after a restart."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meshwarden.controlplane.api.dry_run import dry_runs
from meshwarden.controlplane.gather.call import Call, parse
from meshwarden.controlplane.gather.dry_run import OVERFLOW, RETENTION, DryRuns
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.sdk.red.histogram import bucket_of, to_proto
from meshwarden.v1.report_pb2 import CallStat

NOW = datetime(2026, 11, 26, tzinfo=UTC)
DENY, ALLOW = "platform/try#deny[0]", "platform/try#allow[1]"


def call(**changes: Any) -> Call:
    values: dict[str, Any] = {
        "source": "spiffe://mesh.test/tenant/acme/service/web",
        "destination": "platform/orders",
        "method": "/s.O/Get",
        "status": "OK",
        "decision": CallStat.ALLOWED,
        "reporter": CallStat.DESTINATION,
        "count": 3,
        "durations": to_proto({bucket_of(0.02): 3}),
        "dry_run": DENY,
    }
    return parse(CallStat(**{**values, **changes}), "mesh.test", "eu")


class World:
    def __init__(self, path: Path) -> None:
        self.now, self.path = NOW, path
        self.start()

    def start(self, rows: int = 1000) -> None:
        self.durable, self.found = Durable(self.path), DryRuns(lambda: self.now, rows_per_tenant=rows)
        self.durable.add(self.found)

    def told(self, shown: str = "") -> list[tuple[str, str, bool, str, int]]:
        rows = dry_runs(self.found, lambda tenant: shown in ("", tenant))
        return [(one.policy, one.field, one.would_deny, one.source, one.count) for one in rows]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "gather.sqlite")


async def test_it_is_counted_by_rule_and_outlives_a_restart(world: World) -> None:
    world.found.add([call(), call(count=2, durations=to_proto({}))])
    world.found.add([call(decision=CallStat.DENIED, dry_run=ALLOW), call(dry_run="")])
    told = [
        ("platform/try", "spec.deny[0]", True, "acme/web", 5),
        ("platform/try", "spec.allow[1]", False, "acme/web", 3),
    ]
    assert world.told() == world.told("platform") == told
    assert world.told("acme") == [], "another tenant's policies"
    await world.durable.flush()
    world.durable.close()
    world.start()
    assert world.told() == told
    (family,) = world.found.collect()
    assert {sample.labels["would"]: sample.value for sample in family.samples} == {"deny": 5.0, "allow": 3.0}
    world.now += RETENTION - timedelta(seconds=1)
    world.found.add([call()])
    world.now += timedelta(seconds=2)
    await world.durable.work(world.found.forget)
    await world.durable.flush()
    assert world.told() == [("platform/try", "spec.deny[0]", True, "acme/web", 8)]
    world.durable.close()
    world.start()
    assert len(world.told()) == 1
    world.durable.close()


@pytest.mark.parametrize(
    "changes",
    [
        {"dry_run": "acme/try#deny[0]"},
        {"dry_run": "platform/try#deny[0]x"},
        {"dry_run": "platform/try#deny[0]\n"},
        {"dry_run": "platform/try"},
        {"dry_run": "platform/" + "x" * 64 + "#deny[0]"},
        {"reporter": CallStat.SOURCE},
        # No rule of that kind would have done that.
        {"decision": CallStat.DENIED},
        {"dry_run": ALLOW},
    ],
)
def test_what_cannot_be_is_not_counted(world: World, changes: dict[str, Any]) -> None:
    world.found.add([call(**changes)])
    assert world.told() == []
    world.durable.close()


def test_rows_are_bounded_by_whose_policies_they_are(world: World) -> None:
    world.durable.close()
    world.start(rows=2)
    for number in range(5):
        world.found.add([call(method=f"/s.O/M{number}")])
    world.found.add([call(destination="globex/shop", dry_run="globex/try#deny[0]")])
    told = {(policy, source): count for policy, _, _, source, count in world.told()}
    assert told[f"platform/{OVERFLOW}", f"{OVERFLOW}/{OVERFLOW}"] == 9
    assert told["globex/try", "acme/web"] == 3
    assert len(world.found.rows()) == 4
    world.durable.close()
