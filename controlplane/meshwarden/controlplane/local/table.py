"""The state of the mesh for people: tables on a terminal, one line elsewhere."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from meshwarden.controlplane.local.state import State, service_of
from meshwarden.controlplane.local.voice import plain
from meshwarden.v1.node_service_pb2 import WorkloadState

NO_LIFE = "none yet"


def tables(states: Sequence[State], now: datetime) -> RenderableType:
    """The tables of each region, under its name where there are several."""
    if len(states) == 1:
        return _region(states[0], now)
    headed = (
        (Text(f"region {state.up_json.get('region', '')}", style="bold"), _region(state, now)) for state in states
    )
    return Group(*(part for each in headed for part in (Text(), *each)))


def _region(state: State, now: datetime) -> RenderableType:
    """Nodes, tenants and workloads, each in a table; the longest last, for what a low terminal cuts off is the end."""
    parts = [_nodes(state), _tenants(state), _workload_table(state, now)]
    if not state.is_server_up:
        parts.insert(0, Text("the control plane is away: what is shown is its last word", style="red"))
    return Group(*(part for each in parts for part in (Text(), each)))


def _nodes(state: State) -> RenderableType:
    table = _table("NODE", "ZONE", "REVISION", "SESSION")
    heard = {node.node: node for node in state.status.nodes} if state.status else {}
    for name in sorted({*heard, *(agent["node"] for agent in state.up_json.get("agents", ()))}):
        node = heard.get(name)
        is_up = node is not None and node.connected and name not in state.away
        revision = f"{node.acked_revision} of {_revision(state)}" if node is not None else "none yet"
        link = Text("up") if is_up else Text("down", style="red")
        table.add_row(*_cells(name, node.zone if node is not None else "", revision), link)
    return table


def _tenants(state: State) -> RenderableType:
    table = _table("TENANT", "ALLOWED/S", "LIMITED/S", "DENIED/S")
    for tenant in state.status.tenants if state.status else ():
        rates = (tenant.allowed_per_s, tenant.limited_per_s, tenant.denied_per_s)
        table.add_row(*_cells(tenant.tenant), *(Text(f"{rate:.1f}", justify="right") for rate in rates))
    return table


def _workload_table(state: State, now: datetime) -> RenderableType:
    table = _table("WORKLOAD", "NODE", "PID", "LIFE LEFT", "SVID")
    table.columns[-1].no_wrap = False  # the one that gives way on a narrow terminal
    for node, item in _workloads(state):
        life = remaining(item, now)
        style = "" if life != NO_LIFE and not life.startswith("-") else "red"
        table.add_row(*_cells(item.id, node, item.pid), Text(life, style=style), *_cells(item.spiffe_id))
    return table


def line(state: State, now: datetime) -> str:
    """The same in one line."""
    parts = []
    if not state.is_server_up:
        parts.append("control plane away")
    for node in state.status.nodes if state.status else ():
        parts.append(f"{node.node} {'' if node.connected else 'away, '}revision {node.acked_revision}")
    lives = sorted((_seconds(item, now), remaining(item, now)) for _, item in _workloads(state) if item.serial)
    total = len(list(_workloads(state)))
    if lives:
        parts.append(f"{len(lives)} of {total} workloads have an SVID, the shortest for {lives[0][1]}")
    else:
        parts.append(f"{total} workloads")
    for tenant in state.status.tenants if state.status else ():
        rates = (
            f"{tenant.allowed_per_s:.1f} allowed, {tenant.limited_per_s:.1f} limited, {tenant.denied_per_s:.1f} denied"
        )
        parts.append(f"{tenant.tenant} {rates} /s")
    return plain("; ".join(parts))


def lines(states: Sequence[State], now: datetime) -> Iterator[str]:
    """The same in one line for each region."""
    for state in states:
        yield line(state, now) if len(states) == 1 else f"{state.up_json.get('region', '')}: {line(state, now)}"


def summary(state: State, logs: str, context: str) -> Iterator[str]:
    """What was started of a region and how to look at it, line by line."""
    said = state.up_json
    yield f"control plane  {said['control_plane']['address']}  (region {said['region']}, {said['trust_domain']})"
    if state.status is not None:
        yield f"authority      {state.status.authority}"
    yield f"metrics        {said['metrics_url']}"
    yield f"REST           {said['rest']['url']}/v1  (named {said['rest']['server_name']})"
    for agent in said["agents"]:
        yield f"agent          {agent['node']}  {agent['agent_socket']}"
    for workload in said["workloads"]:
        name = f"{workload['tenant']}/{workload['service']}"
        yield f"workload       {name}  {workload['name']} on {workload['node']}, pid {workload['pid']}"
    for envoy in said["envoys"]:
        yield f"envoy          {envoy['name']}  {envoy['admin_socket']}"
    yield f"logs           {logs}"
    yield f"context        {context}: `meshwarden status` and all other commands find this mesh"


def remaining(item: WorkloadState, now: datetime) -> str:
    """How long the workload's SVID lasts: "59m12s", "-3s" where it has ended."""
    if not item.serial:
        return NO_LIFE
    seconds = _seconds(item, now)
    sign, left = ("-", -seconds) if seconds < 0 else ("", seconds)
    return f"{sign}{left // 60}m{left % 60:02d}s" if left >= 60 else f"{sign}{left}s"


def _seconds(item: WorkloadState, now: datetime) -> int:
    return int(item.not_after.seconds - now.timestamp())


def _revision(state: State) -> int:
    return state.status.revision if state.status else 0


def _workloads(state: State) -> Iterator[tuple[str, WorkloadState]]:
    for node, answer in sorted(state.agents.items()):
        for item in sorted(answer.workloads, key=lambda item: (item.tenant, service_of(item), item.id)):
            yield node, item


def _cells(*values: object) -> Iterator[Text]:
    # Text is not read as markup.
    return (Text(plain(str(value))) for value in values)


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True, overflow="ellipsis")
    return table
