"""OperatorService: who operates the mesh, and how far."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Final, TypeAlias

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.errors import InvalidRequest, NotFound
from meshwarden.controlplane.identity.authorize import authorize
from meshwarden.controlplane.identity.operators import LOCAL, TTL, OperatorRecord, OperatorRole, Operators
from meshwarden.controlplane.resources.model import key_of
from meshwarden.controlplane.resources.validate import FieldFault
from meshwarden.controlplane.store.port import Store
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import operator_service_pb2 as v1
from meshwarden.v1 import operator_service_pb2_grpc
from meshwarden.v1.resource_service_pb2 import ResourceRef

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"

SERVICE: Final = "/meshwarden.v1.OperatorService/"


class OperatorServicer(operator_service_pb2_grpc.OperatorServiceServicer):
    """Answers admins; those of a tenant have that tenant's operators alone."""

    def __init__(
        self,
        operators: Operators,
        authority: Authority,
        store: Store,
        trust_domain: str,
        clock: Callable[[], datetime],
    ) -> None:
        self._operators, self._authority, self._store = operators, authority, store
        self._trust_domain, self._clock = trust_domain, clock

    async def CreateOperator(self, request: v1.CreateOperatorRequest, context: Context) -> v1.OperatorCertificate:
        caller = _caller()
        authorize(caller, SERVICE + "CreateOperator", request.tenant or None)
        if request.tenant:
            tenant = ResourceRef(kind="Tenant", tenant=request.tenant, name=request.tenant)
            found, _ = await self._store.get(key_of(tenant))
            if found is None:
                raise NotFound(f"there is no tenant {request.tenant!r}; `meshwarden get Tenant` shows them")
        elif request.name == LOCAL:
            raise InvalidRequest([FieldFault("name", f"{LOCAL!r} is the control plane's own operator")])
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else TTL
        if request.ttl.nanos:
            raise InvalidRequest([FieldFault("ttl", "must be whole seconds")])
        role = OperatorRole(request.role)
        now = self._clock().replace(microsecond=0)
        record = OperatorRecord(request.tenant, request.name, role, ttl, str(caller), now)
        return await self._answer(await self._operators.create(record, request.csr), record.tenant, record.name)

    async def RenewOperator(self, request: v1.RenewOperatorRequest, context: Context) -> v1.OperatorCertificate:
        verified = peer.current()
        caller = _caller()
        authorize(caller, SERVICE + "RenewOperator", caller.tenant if caller is not None else None)
        chain = await self._operators.renew(verified, request.csr)
        assert caller is not None  # noqa: S101 - it was renewed
        return await self._answer(chain, caller.tenant or "", caller.operator or "")

    async def ListOperators(self, request: v1.ListOperatorsRequest, context: Context) -> v1.ListOperatorsResponse:
        caller = _caller()
        tenant = request.tenant or (caller.tenant if caller is not None else None) or ""
        authorize(caller, SERVICE + "ListOperators", tenant or None)
        shown = (one for one in self._operators.listed() if tenant in ("", one.tenant))
        return v1.ListOperatorsResponse(operators=map(self._state, shown))

    async def RemoveOperator(self, request: v1.RemoveOperatorRequest, context: Context) -> v1.RemoveOperatorResponse:
        caller = _caller()
        authorize(caller, SERVICE + "RemoveOperator", request.tenant or None)
        await self._operators.remove(request.tenant, request.name, str(caller))
        return v1.RemoveOperatorResponse()

    async def _answer(self, chain: tuple[x509.Certificate, ...], tenant: str, name: str) -> v1.OperatorCertificate:
        identity = SpiffeId.for_operator(self._trust_domain, name, tenant or None)
        ders = [certificate.public_bytes(Encoding.DER) for certificate in chain]
        return v1.OperatorCertificate(spiffe_id=str(identity), chain=ders, roots=(await self._authority.bundle()).pem())

    def _state(self, record: OperatorRecord) -> v1.OperatorState:
        identity = SpiffeId.for_operator(self._trust_domain, record.name, record.tenant or None)
        state = v1.OperatorState(spiffe_id=str(identity), tenant=record.tenant, name=record.name, by=record.by)
        state.role = v1.OperatorRole.Value(record.role.name)
        state.time.FromDatetime(record.time)
        state.ttl.FromTimedelta(record.ttl)
        return state


def _caller() -> SpiffeId | None:
    verified = peer.current()
    return verified.spiffe_id if verified is not None else None
