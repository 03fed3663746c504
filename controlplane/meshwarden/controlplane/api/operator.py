"""OperatorService: who operates the mesh, and how far."""

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from meshwarden.certs.authority.port import Authority
from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.api.errors import InvalidRequest, NotFound
from meshwarden.controlplane.identity.authorize import Denied, authorize
from meshwarden.controlplane.identity.operators import LOCAL, LOGIN, TTL, OperatorRecord, OperatorRole, Operators
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import key_of
from meshwarden.controlplane.store.port import Store
from meshwarden.sdk.mtls import peer
from meshwarden.v1 import operator_service_pb2 as v1
from meshwarden.v1 import operator_service_pb2_grpc
from meshwarden.v1.resource_service_pb2 import ResourceRef

if TYPE_CHECKING:
    from meshwarden.controlplane.identity.operator_login import OperatorLogin

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
        login: "OperatorLogin | None" = None,
    ) -> None:
        self._login = login
        self._operators, self._authority, self._store = operators, authority, store
        self._trust_domain, self._clock = trust_domain, clock

    async def CreateOperator(self, request: v1.CreateOperatorRequest, context: Context) -> v1.OperatorCertificate:
        caller = _caller()
        authorize(caller, SERVICE + "CreateOperator", request.tenant or None)
        await self._check_tenant(request.tenant)
        if request.name.startswith(LOGIN):
            raise InvalidRequest([FieldFault("name", f"{LOGIN}… is for those who log in")])
        if not request.tenant and request.name == LOCAL:
            raise InvalidRequest([FieldFault("name", f"{LOCAL!r} is the control plane's own operator")])
        ttl = request.ttl.ToTimedelta() if request.HasField("ttl") else TTL
        if request.ttl.nanos:
            raise InvalidRequest([FieldFault("ttl", "must be whole seconds")])
        role = OperatorRole(request.role)
        now = self._clock().replace(microsecond=0)
        record = OperatorRecord(request.tenant, request.name, role, ttl, str(caller), now)
        return await self._answer(await self._operators.create(record, request.csr), record)

    async def LoginOperator(self, request: v1.LoginOperatorRequest, context: Context) -> v1.OperatorCertificate:
        if self._login is None:
            raise Denied(
                "nobody logs in here: the configuration has no [operator_login]", grpc.StatusCode.UNIMPLEMENTED
            )
        connection = peer.current_connection()
        address = connection.remote if connection is not None else context.peer()
        await self._check_tenant(request.tenant)
        record, chain = await self._login.log_in(request.vault_token, request.csr, request.tenant, address)
        return await self._answer(chain, record)

    async def _check_tenant(self, tenant: str) -> None:
        if not tenant:
            return
        found, _ = await self._store.get(key_of(ResourceRef(kind="Tenant", tenant=tenant, name=tenant)))
        if found is None:
            raise NotFound(f"there is no tenant {tenant!r}; `meshwarden get Tenant` shows them")

    async def RenewOperator(self, request: v1.RenewOperatorRequest, context: Context) -> v1.OperatorCertificate:
        verified = peer.current()
        caller = _caller()
        authorize(caller, SERVICE + "RenewOperator", caller.tenant if caller is not None else None)
        record, chain = await self._operators.renew(verified, request.csr)
        return await self._answer(chain, record)

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

    async def _answer(self, chain: tuple[x509.Certificate, ...], record: OperatorRecord) -> v1.OperatorCertificate:
        identity = SpiffeId.for_operator(self._trust_domain, record.name, record.tenant or None)
        answer = v1.OperatorCertificate(spiffe_id=str(identity), roots=(await self._authority.bundle()).pem())
        answer.chain.extend(certificate.public_bytes(Encoding.DER) for certificate in chain)
        answer.role = v1.OperatorRole.Value(record.role.name)
        return answer

    def _state(self, record: OperatorRecord) -> v1.OperatorState:
        identity = SpiffeId.for_operator(self._trust_domain, record.name, record.tenant or None)
        state = v1.OperatorState(spiffe_id=str(identity), tenant=record.tenant, name=record.name, by=record.by)
        state.role = v1.OperatorRole.Value(record.role.name)
        state.time.FromDatetime(record.time)
        state.ttl.FromTimedelta(record.ttl)
        if record.until is not None:
            state.until.FromDatetime(record.until)
        return state


def _caller() -> SpiffeId | None:
    verified = peer.current()
    return verified.spiffe_id if verified is not None else None
