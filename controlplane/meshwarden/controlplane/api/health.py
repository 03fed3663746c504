"""How the control plane itself does, for `status` and `doctor`: gathered from all who notice what is wrong."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from meshwarden.certs.authority import slot
from meshwarden.certs.authority.port import Authority
from meshwarden.certs.authority.slot import Roots, SlotState
from meshwarden.certs.svid import X509Svid
from meshwarden.controlplane.audit.count import CountedAuditLog
from meshwarden.controlplane.gather.gather import Gather
from meshwarden.v1.admin_service_pb2 import ControlPlaneHealth


class Health:
    """Reads how the parts of a control plane do."""

    def __init__(
        self,
        *,
        state_dir: Path,
        authority: Authority,
        audit: CountedAuditLog,
        gather: Gather,
        secrets: Callable[[], Sequence[str]],
        settings: Callable[[], Sequence[str]],
        svid: Callable[[], X509Svid | None],
        roots: Callable[[], Roots],
    ) -> None:
        """Keeps whom to ask.

        Args:
            state_dir: holds the store.
            authority: signs.
            audit: may be refused by the disk.
            gather: may be refused by the disk, and by its backends.
            secrets: says which secrets of workloads can't be read, and why.
            settings: says which settings aren't as Vault has them, and why.
            svid: the control plane's own certificate.
            roots: the roots.
        """
        self._state_dir, self._authority, self._audit, self._gather = state_dir, authority, audit, gather
        self._svid, self._roots, self._secrets, self._settings = svid, roots, secrets, settings

    def read(self) -> ControlPlaneHealth:
        """How the control plane does."""
        disk = os.statvfs(self._state_dir)
        health = ControlPlaneHealth(
            authority_error=self._authority.fault,
            audit_error=self._audit.fault,
            report_error=self._gather.fault,
            disk_free_bytes=disk.f_bavail * disk.f_frsize,
            state_dir=str(self._state_dir),
            backends=self._gather.backends(),
            tail_sampling=self._gather.tail_sampling(),
            secrets_error=_few(self._secrets()),
            settings_error=_few(self._settings()),
        )
        svid = self._svid()
        if svid is not None:
            health.not_after.FromDatetime(svid.not_after)
        for root in slot.own(self._roots()):
            if root.state is SlotState.ACTIVE:
                health.root_not_after.FromDatetime(root.not_after)
        return health


def _few(faults: Sequence[str]) -> str:
    """The first of many, and how many there are."""
    rest = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{faults[0]}{rest}" if faults else ""
