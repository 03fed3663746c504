"""CostService: what calls of models cost, for those who may see whose they are."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Any, Final

import anyio.to_thread
import grpc

from meshwarden.controlplane.api.errors import InvalidRequest
from meshwarden.controlplane.api.validation import moment
from meshwarden.controlplane.gather.durable import Durable
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.insight import cost_table
from meshwarden.controlplane.insight.cost import Costs
from meshwarden.controlplane.insight.cost_table import Amount, Question
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import cost_service_pb2 as v1
from meshwarden.v1.cost_service_pb2_grpc import CostServiceServicer

_METHOD: Final = "/meshwarden.v1.CostService/GetCosts"
_SPAN: Final = timedelta(days=1)
_LIMIT: Final = 1000
_STEPS: Final = {v1.GetCostsRequest.HOUR: cost_table.HOUR_S, v1.GetCostsRequest.DAY: cost_table.DAY_S}

Context = grpc.aio.ServicerContext[Any, Any]


class CostServicer(CostServiceServicer):
    """Adds costs up."""

    def __init__(self, costs: Costs, durable: Durable, region: str, clock: Callable[[], datetime]) -> None:
        """Answers of what is in the file.

        Args:
            costs: knows where prices come from.
            durable: the file that they are a part of.
            region: ours.
            clock: the present, aware.
        """
        self._costs, self._durable, self._region, self._clock = costs, durable, region, clock

    async def GetCosts(self, request: v1.GetCostsRequest, context: Context) -> v1.GetCostsResponse:
        question = self._question(request)
        sums, whole, omitted = await self._durable.read(lambda db: cost_table.read(db, question))
        answer = v1.GetCostsResponse(region=self._region, omitted=omitted, prices=self._costs.prices.source)
        for found in sums:
            cost = answer.costs.add(**found.of)
            _fill(cost, found.amount)
            if question.step_s:
                cost.start.seconds = found.start_s
        _fill(answer.total, whole)
        answer.start.seconds, answer.end.seconds = question.start_s, question.end_s
        newest = await anyio.to_thread.run_sync(self._costs.prices.newest, self._clock().date())
        if newest is not None:
            answer.prices_date.FromDatetime(datetime(newest.year, newest.month, newest.day, tzinfo=UTC))
        return answer

    def _question(self, request: v1.GetCostsRequest) -> Question:
        """What is asked, as far as the caller may."""
        tenant, service = request.tenant, request.service
        if "/" in service:
            owner, _, service = service.partition("/")
            if tenant not in ("", owner):
                raise InvalidRequest([FieldFault("service", f"is not of tenant {tenant}")])
            tenant = owner
        verified = peer.current()
        caller = verified.spiffe_id if verified is not None else None
        authorize(caller, _METHOD, tenant or None)
        end = moment(request.end, "end") if request.HasField("end") else self._clock()
        start = moment(request.start, "start") if request.HasField("start") else end - _SPAN
        if start >= end:
            raise InvalidRequest([FieldFault("start", "must be before the end")])
        asked = list(request.by) or list(v1.GetCostsRequest.Dimension.values())[1 : 1 + len(cost_table.DIMENSIONS)]
        steps = [_STEPS[one] for one in asked if one in _STEPS]
        if len(steps) > 1:
            raise InvalidRequest([FieldFault("by", "may have HOUR or DAY, not both")])
        names = [v1.GetCostsRequest.Dimension.Name(one).lower() for one in asked if one not in _STEPS]
        return Question(
            start_s=int(start.timestamp()),
            end_s=ceil(end.timestamp()),
            tenant=tenant or (caller.tenant if caller is not None else None) or "",
            service=service,
            model=request.model,
            by=tuple(names),
            step_s=steps[0] if steps else 0,
            limit=request.limit or _LIMIT,
        )


def _fill(cost: v1.Cost, amount: Amount) -> None:
    """Writes how much it is; money only where a price is known."""
    for name, value in amount._asdict().items():
        if name != "usd" or amount.is_priced:
            setattr(cost, name, value)
