"""Ends a mesh from elsewhere, also one whose `up` was killed: no process of it stays."""

import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from meshwarden.controlplane.local import context as contexts
from meshwarden.controlplane.local import kernel, lock, record
from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.mesh import rank
from meshwarden.controlplane.local.plan import REGIONS, Plan
from meshwarden.controlplane.local.record import UP, Process

# The graces of all ranks and a bit, for an `up` that stops its children itself.
UP_GRACE_S = 40.0


def down(state_dir: Path, report: Callable[[str], None]) -> bool:
    """Stops `up`, or whatever a killed one left, and takes away what pointed to it; False if nothing ran.

    Args:
        state_dir: the mesh's.
        report: takes a line for each thing that is done.

    Raises:
        LocalError: another `up` is just beginning there.
    """
    plan = Plan(state_dir)
    if not lock.is_ours(plan):
        return False
    processes = record.load(state_dir)
    up = next((item for item in processes if item.name == UP), None)
    found = False
    if up is not None and kernel.send(up.pid, up.start_time, signal.SIGTERM):
        found = True
        report(f"stopping the mesh of {state_dir}")
        if not kernel.wait_gone(up.pid, up.start_time, UP_GRACE_S):
            report(f"up (pid {up.pid}) did not end within {UP_GRACE_S:g} s: killed")
            kernel.send(up.pid, up.start_time, signal.SIGKILL)
            kernel.wait_gone(up.pid, up.start_time, UP_GRACE_S)
    try:
        with lock.alone(plan):
            found = clean(state_dir, report) or found
            forget(state_dir)
    except lock.Held:
        raise LocalError(f"{state_dir}: a mesh is just starting there", "once it runs: meshwarden down") from None
    return found


def clean(state_dir: Path, report: Callable[[str], None]) -> bool:
    """Stops the children that an `up` which is gone has left, the samples first; False if there were none."""
    left = [item for item in record.load(state_dir) if item.name != UP]
    found = False
    for level in sorted({rank(item.name) for item in left}, reverse=True):
        found = _stop([item for item in left if rank(item.name) == level], report) or found
    swept = kernel.sweep(str(state_dir))
    if swept:
        report(f"killed {swept} more {'process' if swept == 1 else 'processes'} of this mesh")
    (state_dir / record.FILE).unlink(missing_ok=True)
    return found or swept > 0


def forget(state_dir: Path) -> None:
    """Takes away what pointed to a mesh that is no more: its context and up.json."""
    plan = Plan(state_dir)
    plan.up_json.unlink(missing_ok=True)
    regions = [path.name.removeprefix(REGIONS) for path in state_dir.glob(f"{REGIONS}*")]
    for one in (plan, *(Plan(state_dir, region, is_only=False) for region in regions)):
        one.server_json.unlink(missing_ok=True)
        shutil.rmtree(one.operator, ignore_errors=True)
    _, known = contexts.load()
    for name, context in known.items():
        if context.state_dir == str(state_dir):
            contexts.remove(name)


def _stop(processes: list[Process], report: Callable[[str], None]) -> bool:
    sent = [item for item in processes if kernel.send(item.pid, item.start_time, signal.SIGTERM)]
    for item in sent:
        if not kernel.wait_gone(item.pid, item.start_time, item.grace_s):
            report(f"{item.name} did not end within {item.grace_s:g} s: killed")
            kernel.send(item.pid, item.start_time, signal.SIGKILL)
            kernel.wait_gone(item.pid, item.start_time, item.grace_s)
    if sent:
        report(f"stopped {', '.join(item.name for item in sent)}")
    return bool(sent)
