"""What access policies in dry run would change, as `status` shows it."""

from collections.abc import Callable
from itertools import islice
from typing import Final

from meshwarden.controlplane.gather.dry_run import DryRuns
from meshwarden.v1 import admin_service_pb2 as v1

_MOST: Final = 100


def dry_runs(found: DryRuns, shown: Callable[[str], bool]) -> list[v1.DryRun]:
    """The rows of those tenants' policies that are shown, a hundred at most."""
    rows = ((what, seen) for what, seen in found.rows() if shown(what.destination_tenant))
    answer = []
    for what, seen in islice(rows, _MOST):
        row = v1.DryRun(
            policy=what.policy,
            field=f"spec.{what.rule}",
            would_deny=what.would == "deny",
            source=f"{what.source_tenant}/{what.source_service}",
            destination=f"{what.destination_tenant}/{what.destination_service}",
            method=what.method,
            count=seen.count,
        )
        row.last.FromSeconds(seen.last_s)
        answer.append(row)
    return answer
