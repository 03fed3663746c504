"""Callers whose identity or certificate is revoked, as far as they could call anybody.

Who enforces by the caller's name (both dialects' RBAC) is told of the denies that matter to a service: of callers that
some policy of it lets in. `Epochs` names the state of these when the last was added: an Envoy ends what is open by
taking filter chains of another name in the place of the old ones. What is allowed again, or ends, changes no name, for
there is nothing to be ended.
"""

import hashlib
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import NamedTuple

from meshwarden.certs.deny import DenyList
from meshwarden.certs.spiffe_id import Role, SpiffeId
from meshwarden.controlplane.policy.grant import Access
from meshwarden.controlplane.policy.neutral import Foreign, Name


class Denied(NamedTuple):
    """A caller, or one certificate.

    Attributes:
        caller: the service, or another trust domain's identity; None is whoever holds the certificate.
        serial: the certificate's number in hexadecimal; empty for every certificate of the caller.
        not_after: when it ends.
    """

    caller: Name | Foreign | None
    serial: str
    not_after: datetime


def read(deny_list: DenyList, trust_domain: str) -> frozenset[Denied]:
    """The denies of a list that are of workloads of the trust domain, of another one's identities, or of whoever."""
    found = set()
    for deny in deny_list:
        if not deny.spiffe_id:
            found.add(Denied(None, deny.serial, deny.not_after))
            continue
        identity = SpiffeId.parse(deny.spiffe_id)
        if identity.trust_domain != trust_domain:
            found.add(Denied(Foreign(identity.trust_domain, identity.path), deny.serial, deny.not_after))
        elif identity.role is Role.WORKLOAD:
            name = Name(identity.tenant or "", identity.service or "")
            found.add(Denied(name, deny.serial, deny.not_after))
    return frozenset(found)


def of(access: Access, denied: Iterable[Denied]) -> list[Denied]:
    """Those that matter to whoever has granted this access, in order."""
    found = [one for one in denied if one.caller is None or any(g.caller.fits(one.caller) for g in access.grants)]
    return sorted(found if access.grants else (), key=_order)


class Epochs:
    """The name of the last deny that each service had to end something for, and of what all had to."""

    def __init__(self) -> None:
        self._of: dict[Name, str] = {}
        self.of_all = ""
        """Of what all had to; empty if there was none."""

    def get(self, service: Name, present: Callable[[], Iterable[Denied]]) -> str:
        """The name; empty if there was none. Before anything was added it is that of what is `present`."""
        known = self._of.get(service)
        if known is None:
            known = self._of[service] = _name(present())
        return self.of_all + known

    def cut(self, mark: str) -> None:
        """All that is open to any service is to end; `mark` is another one each time."""
        self.of_all = mark

    def add(self, service: Name, present: Iterable[Denied]) -> None:
        """A deny has come to a service, of which these are `present` now."""
        self._of[service] = _name(present)


def _order(one: Denied) -> tuple[str, str, datetime]:
    return (str(one.caller or ""), one.serial, one.not_after)


def _name(present: Iterable[Denied]) -> str:
    text = "\n".join(f"{caller} {serial} {end.isoformat()}" for caller, serial, end in sorted(present, key=_order))
    return hashlib.sha256(text.encode()).hexdigest()[:16] if text else ""
