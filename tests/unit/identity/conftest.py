"""A real store, authority and audit log in a temporary directory."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from meshwarden.certs.authority.memory import MemoryAuthority
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.audit.log import FileAuditLog
from meshwarden.controlplane.identity.attestor import Attestor
from meshwarden.controlplane.identity.attestor_token import TokenAttestor
from meshwarden.controlplane.identity.join_token import JoinTokens
from meshwarden.controlplane.identity.node import NodeIdentity
from meshwarden.controlplane.identity.rate import Limits
from meshwarden.controlplane.resources.model import encode, key_of, wrap
from meshwarden.controlplane.store.port import Put, Store
from meshwarden.controlplane.store.sqlite import open_store
from meshwarden.v1.resources_pb2 import Metadata, Selectors, WorkloadEntry, WorkloadEntrySpec


@dataclass
class World:
    """What identity lives in; `now` moves when a test moves it."""

    directory: Path
    store: Store
    audit: FileAuditLog
    now: datetime

    def __post_init__(self) -> None:
        self.authority = MemoryAuthority("a.test", self.clock)
        self.attestors: dict[str, Attestor] = {}
        self.tokens = JoinTokens(self.store, self.clock)
        self.nodes = self.identity()

    def clock(self) -> datetime:
        return self.now

    def identity(
        self,
        store: Store | None = None,
        denied: Callable[[SpiffeId], str] = lambda _: "",
        limits: Limits | None = None,
    ) -> NodeIdentity:
        return NodeIdentity(
            self.authority,
            store or self.store,
            {"join_token": TokenAttestor(JoinTokens(store or self.store, self.clock)), **self.attestors},
            self.audit,
            self.clock,
            trust_domain="a.test",
            region="eu",
            denied=denied,
            limits=limits,
            reserved=("console.example",),
        )

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    async def entry(self, name: str, *nodes: str, tenant: str = "acme", **spec: Any) -> None:
        entry = WorkloadEntry(
            kind="WorkloadEntry",
            metadata=Metadata(tenant=tenant, name=name),
            spec=WorkloadEntrySpec(service=name, nodes=nodes, selectors=Selectors(uid=1), **spec),
        )
        await self.store.commit([Put(key_of(entry), encode(wrap(entry)))])

    async def events(self, event: str) -> list[dict[str, Any]]:
        await self.audit.record("test.flush")
        lines = (self.directory / "audit.jsonl").read_text().splitlines()
        return [line["fields"] for line in map(json.loads, lines) if line["event"] == event]


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    now = datetime(2026, 11, 24, 12, tzinfo=UTC)
    async with (
        open_store(tmp_path / "store.sqlite") as store,
        FileAuditLog.open(tmp_path / "audit.jsonl", lambda: now) as audit,
    ):
        yield World(tmp_path, store, audit, now)
