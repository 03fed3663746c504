"""Takes what waits in the spool up to the control plane, a batch at a time, each tenant in turn."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Final

import grpc
import structlog

from meshwarden.agents.telemetry.chain import Batch, BatchLimits, Chain
from meshwarden.agents.telemetry.spool import Spool
from meshwarden.v1 import report_pb2 as pb

_log = structlog.get_logger()
_PERIOD_S: Final = 1.0
_TIMEOUT_S: Final = 15.0
_MAX_REFUSALS: Final = 10
# The batch itself is wrong: it will be no better next time.
_PERMANENT: Final = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE, grpc.StatusCode.DATA_LOSS}
)
# Nobody has looked at the batch.
_AWAY: Final = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED})


class _Away(Exception):
    """Nobody takes anything now."""


class Outbox:
    """Sends batches up, each at least once: it is repeated as it was until it is taken, or refused for good."""

    def __init__(
        self,
        spool: Spool,
        export: Callable[[bytes, float], Awaitable[pb.ExportResponse]],
        limits: BatchLimits | None = None,
    ) -> None:
        """Sends nothing until `run` or `flush`.

        Args:
            spool: holds what waits.
            export: sends a serialised `ExportRequest` within so many seconds; raises OSError or grpc.RpcError.
            limits: of a batch; the defaults if None. A batch stays below the 4 MiB that gRPC takes.
        """
        self._spool, self._export, self._limits = spool, export, limits or BatchLimits()
        self._refusals: Counter[str] = Counter()
        self._faults: dict[str, str] = {}

    async def run(self) -> None:
        """Sends once a second until it is cancelled."""
        while True:
            await asyncio.sleep(_PERIOD_S)
            await self.flush()

    async def flush(self, timeout_s: float = _TIMEOUT_S) -> bool:
        """Sends all there is, each batch within `timeout_s`; False if some of it has to wait."""
        self._spool.settle()
        waiting = set(self._spool.chains)
        stuck: set[str] = set()
        while waiting:
            for tenant in sorted(waiting):
                try:
                    batch = self._spool.chains[tenant].batch(self._limits)
                    if batch is None:
                        waiting.discard(tenant)
                    elif not await self._send(tenant, batch, timeout_s):
                        waiting.discard(tenant)
                        stuck.add(tenant)
                except _Away as error:
                    _log.debug("report not taken", tenant=tenant, reason=str(error))
                    return False
                except OSError as error:  # of this one's files: the others' may be sound, and sending them makes room
                    if self._faults.get(tenant) != str(error):
                        _log.error("spool not read, or not written", tenant=tenant, reason=str(error))
                    self._faults[tenant] = str(error)
                    waiting.discard(tenant)
                    stuck.add(tenant)
        return not stuck

    async def _send(self, tenant: str, batch: Batch, timeout_s: float) -> bool:
        """Sends one batch; False if it has to wait though others need not."""
        chain = self._spool.chains[tenant]
        about = pb.ExportRequest(first_sequence=batch.first, sequence=batch.last, run_id=batch.run_id)
        try:
            answer = await self._export(batch.ledger + batch.payload + about.SerializeToString(), timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() in _AWAY:
                raise _Away(str(error.details())) from None
            return self._refused(tenant, chain, batch, error)
        except (OSError, grpc.RpcError) as error:
            raise _Away(str(error)) from None
        # Whatever else it is, it came from this one batch: the next shall still go up.
        except Exception:
            _log.exception("report dropped", tenant=tenant)
            chain.refuse(batch, "refused")
            return True
        self._refusals[tenant] = 0
        self._faults.pop(tenant, None)
        if answer.sequence < batch.first:
            _log.warning("report not taken", tenant=tenant, reason="the control plane does not say that it has it")
            return False
        if answer.sequence > chain.newest:
            _log.warning("spool older than what went up from it: goes on as another", tenant=tenant)
            chain.renew(self._spool.new_id())
        else:
            chain.commit(answer.sequence)
        return True

    def _refused(self, tenant: str, chain: Chain, batch: Batch, error: grpc.aio.AioRpcError) -> bool:
        self._refusals[tenant] += 1
        if error.code() not in _PERMANENT and self._refusals[tenant] < _MAX_REFUSALS:
            _log.info("report not taken", tenant=tenant, code=error.code().name, reason=str(error.details())[:500])
            return False
        _log.error("report dropped", tenant=tenant, code=error.code().name, reason=str(error.details())[:500])
        self._refusals[tenant] = 0
        chain.refuse(batch, "refused")
        return True
