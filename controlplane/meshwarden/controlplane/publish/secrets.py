"""The secrets of entries, for the nodes where their programs may run.

Where a secret lies is the entry's word, whether the tenant may have it the operator's, and both are asked each time.
What can't be recorded in the audit log isn't handed out. Values pass through; none is kept here.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pydantic import SecretStr

from meshwarden.certs.spiffe_id import SpiffeId
from meshwarden.controlplane.audit.port import AuditLog
from meshwarden.controlplane.secrets.port import SecretError
from meshwarden.controlplane.secrets.reference import SCHEME, Grants, Reference
from meshwarden.controlplane.secrets.watch import SecretWatch
from meshwarden.v1 import node_service_pb2 as v1
from meshwarden.v1.resources_pb2 import WorkloadEntry

MAX_TOTAL_BYTES = 1 << 20
"""So much of secrets in all may one entry have."""
Mark = tuple[tuple[str, str, int, str], ...]
"""What has been told of an entry's secrets: name, reference, version and fault of each, and no value."""


@dataclass(frozen=True)
class _Found:
    name: str
    reference: str
    value: SecretStr
    version: int
    fault: str


class EntrySecrets:
    """Finds what entries name."""

    def __init__(
        self,
        watch: SecretWatch,
        grants: Grants,
        audit: AuditLog,
        trust_domain: str,
        denied: Callable[[SpiffeId], str],
    ) -> None:
        self.watch, self.grants, self._audit = watch, grants, audit
        self._trust_domain, self._denied = trust_domain, denied

    def want(self, who: object, entries: Iterable[WorkloadEntry]) -> None:
        """Has the secrets of these entries read and kept new for somebody, and no others."""
        self.watch.want(who, (path for entry in entries for path in self._paths(entry)))

    def find(self, entry: WorkloadEntry) -> tuple[Mark, v1.EntrySecrets] | None:
        """The secrets of an entry; None until Vault was asked for all of them. Who is denied gets none."""
        identity = SpiffeId.workload(self._trust_domain, entry.metadata.tenant, entry.spec.service)
        denied = self._denied(identity)
        found: list[_Found] = []
        for said in entry.spec.secrets:
            one = self._one(entry.metadata.tenant, said.name, getattr(said, "from"))
            if one is None:
                return None
            found.append(_without(one, f"{identity}: {denied}") if denied else one)
        found = _bounded(found)
        message = v1.EntrySecrets(tenant=entry.metadata.tenant, entry=entry.metadata.name)
        for one in found:
            value = one.value.get_secret_value()
            message.secrets.add(name=one.name, value=value, version=one.version, error=one.fault[:1024])
        return tuple((one.name, one.reference, one.version, one.fault) for one in found), message

    async def record(self, node: str, message: v1.EntrySecrets) -> None:
        """Records that a node is given secrets.

        Raises:
            AuditUnavailable: it isn't recorded: don't give them.
        """
        who = {"node": node, "tenant": message.tenant, "entry": message.entry}
        given = [secret for secret in message.secrets if secret.value]
        await self._audit.record_all(
            "secret.deliver", [{**who, "name": secret.name, "version": secret.version} for secret in given]
        )

    def _paths(self, entry: WorkloadEntry) -> Iterable[tuple[str, str]]:
        for said in entry.spec.secrets:
            try:
                reference = self._granted(entry.metadata.tenant, getattr(said, "from"))
            except SecretError:
                continue  # `find` says why
            yield reference.mount, reference.path

    def _one(self, tenant: str, name: str, said: str) -> _Found | None:
        try:
            reference = self._granted(tenant, said)
            watched = self.watch.find((reference.mount, reference.path))
            if not watched.asked:
                return None
            if watched.version is None:
                return _Found(name, said, SecretStr(""), 0, watched.fault)
            value = watched.version.text(reference.key, said)
            return _Found(name, said, value, watched.version.number, watched.fault)
        except SecretError as error:
            return _Found(name, said, SecretStr(""), 0, str(error))

    def _granted(self, tenant: str, said: str) -> Reference:
        reference = Reference.parse(said.removeprefix(SCHEME))
        self.grants.check(tenant, reference)
        return reference


def _without(one: _Found, fault: str) -> _Found:
    return _Found(one.name, one.reference, SecretStr(""), 0, fault)


def _bounded(found: Sequence[_Found]) -> list[_Found]:
    """Leaves out the values of those that are too much together."""
    kept, total = [], 0
    for one in found:
        size = len(one.value.get_secret_value().encode())
        if total + size > MAX_TOTAL_BYTES:
            fault = f"{one.reference}: with it the entry's secrets would be more than {MAX_TOTAL_BYTES} bytes"
            one, size = _without(one, fault), 0
        kept.append(one)
        total += size
    return kept
