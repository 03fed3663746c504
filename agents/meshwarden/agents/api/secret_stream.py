"""Hands a workload its secrets: who asks is known by the kernel's word, as for certificates."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from meshwarden.agents.workload.attest import Attestor, Unidentified
from meshwarden.agents.workload.registry import Registry
from meshwarden.agents.workload.secret import Held, Secrets
from meshwarden.v1 import node_service_pb2 as node_pb
from meshwarden.v1 import workload_service_pb2 as pb


class SecretStream:
    """Answers `WorkloadService.Secrets`."""

    def __init__(self, attestor: Attestor, registry: Registry, secrets: Secrets) -> None:
        self._attestor, self._registry, self._secrets = attestor, registry, secrets
        self._changed = asyncio.Event()
        registry.listen(self._notify)
        secrets.listen(self._notify)

    async def stream(self, context: "grpc.aio.ServicerContext[Any, Any]") -> AsyncIterator[pb.SecretsResponse]:
        """All secrets of the caller's entry at once, and again at each change."""
        try:
            workload = await self._attestor.workload(context)
            sent: Held | None = None
            while True:
                changed = self._changed
                # Asked each time: its registration may have ended, and its entry's selectors may have changed.
                await self._attestor.confirm(context, workload)
                held = self._secrets.of(workload.entry_name)
                if held is not sent:
                    yield _answer(held)
                    sent = held
                    continue  # it may have changed while a slow reader took this one
                await changed.wait()
        except Unidentified as error:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))

    def _notify(self) -> None:
        # Who waits holds the old event; whoever comes next waits for the next change.
        event, self._changed = self._changed, asyncio.Event()
        event.set()


def _answer(held: Held) -> pb.SecretsResponse:
    secrets = [node_pb.Secret(name=one.name, value=one.value, version=one.version, error=one.error) for one in held]
    return pb.SecretsResponse(secrets=secrets)
