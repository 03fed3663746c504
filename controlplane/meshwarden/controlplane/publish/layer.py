"""What nodes are told that have the changes of rollouts: the mesh with these changes laid over it.

Nodes that have the changes of the same rollouts share a layer, which is forgotten when no session is on it. What the
changes don't touch is compiled once, for the mesh as it is, and is the same bytes for all.
"""

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Final

from meshwarden.controlplane.policy.compile import Parts
from meshwarden.controlplane.policy.endpoint import Place
from meshwarden.controlplane.policy.mesh import Change, Impact, Key, Mesh
from meshwarden.controlplane.policy.neutral import Name
from meshwarden.controlplane.policy.scope import touched
from meshwarden.controlplane.policy.stage import changes_of, has_changes
from meshwarden.controlplane.policy.variant import Asker
from meshwarden.controlplane.publish.compiled import Compiled, Scopes
from meshwarden.xds.snapshot import Resource

# Which rollouts: of each its key, and when it was proposed, since another one may take its name.
_Which = frozenset[tuple[Key, int]]
Turns = Callable[[float], object]


class Layer:
    """A mesh, and its compiled scopes."""

    def __init__(self, mesh: Mesh, scopes: Scopes) -> None:
        self.mesh: Final = mesh
        self.scopes: Final = scopes


class Overlay(Layer):
    """The mesh with the changes of rollouts laid over it."""

    def __init__(self, base: Layer, changes: Iterable[Change], now_s: Callable[[], float], turns: Turns) -> None:
        """Takes the mesh as it is; `apply` takes what becomes of it.

        Args:
            base: the mesh without the changes.
            changes: of the rollouts.
            now_s: as `Scopes` has it.
            turns: as `Scopes` has it.
        """
        self._base, self._over = base, {change.key: change.message for change in changes}
        mesh = base.mesh.fork()
        self.own = mesh.apply(Change(key, message) for key, message in self._over.items())
        """What the changes touch."""
        super().__init__(mesh, _Scopes(self, base, mesh, now_s, turns))

    def apply(self, changes: Iterable[Change]) -> Impact:
        """Takes changes of the mesh below; what the rollouts change stays as it is here."""
        found = list(changes)
        impact = self.mesh.apply(change for change in found if change.key not in self._over)
        if any(change.key.kind != "Endpoint" for change in found):
            was = [Change(key, self._base.mesh.find(*key)) for key in self._over]
            now = [Change(key, message) for key, message in self._over.items()]
            self.own = self.mesh.impact([*was, *now])
        return impact


class _Parts(Parts):
    """Parts of an overlay: of services that it doesn't touch, those of the mesh below."""

    def __init__(self, overlay: Overlay, base: Layer) -> None:
        super().__init__()
        self._overlay, self._base = overlay, base

    def get(self, mesh: Mesh, asker: Asker, service: Name) -> tuple[Resource, ...]:
        """See `Parts`."""
        if service in self._overlay.own.services:
            return super().get(mesh, asker, service)
        return self._base.scopes.parts.get(self._base.mesh, asker, service)

    def near(self, mesh: Mesh, service: Name, place: Place) -> tuple[Resource, ...]:
        """See `Parts`."""
        if service in self._overlay.own.services:
            return super().near(mesh, service, place)
        return self._base.scopes.parts.near(self._base.mesh, service, place)


class _Scopes(Scopes):
    """Scopes of an overlay: those that it doesn't touch are those of the mesh below."""

    def __init__(self, overlay: Overlay, base: Layer, mesh: Mesh, now_s: Callable[[], float], turns: Turns) -> None:
        super().__init__(mesh, now_s, turns, _Parts(overlay, base))
        self._overlay, self._base = overlay, base

    def get(self, scope: str) -> Compiled:
        """See `Scopes`."""
        return super().get(scope) if touched(scope, self._overlay.own) else self._base.scopes.get(scope)


class Layers:
    """The mesh as it is, and the overlays that somebody has asked for."""

    def __init__(self, base: Layer, now_s: Callable[[], float], turns: Turns) -> None:
        """Has none.

        Args:
            base: the mesh as it is.
            now_s: as `Scopes` has it.
            turns: as `Scopes` has it.
        """
        self.base, self._now_s, self._turns = base, now_s, turns
        self._overlays: dict[_Which, Overlay] = {}

    def of(self, node: str, place: Place) -> Layer:
        """What a node is told that says that it is at a place."""
        rollouts = [item for item in sorted(self.base.mesh.rollouts.items()) if has_changes(item[1], node, place)]
        if not rollouts:
            return self.base
        which = frozenset((key, rollout.status.start_time.ToNanoseconds()) for key, rollout in rollouts)
        known = self._overlays.get(which)
        if known is None:
            changes = [change for _, rollout in rollouts for change in changes_of(rollout)]
            known = self._overlays[which] = Overlay(self.base, changes, self._now_s, self._turns)
        return known

    def overlays(self) -> list[Overlay]:
        """Those that there are."""
        return list(self._overlays.values())

    def keep(self, used: Collection[Layer]) -> None:
        """Forgets the overlays that nobody is on."""
        self._overlays = {which: overlay for which, overlay in self._overlays.items() if overlay in used}

    def __iter__(self) -> Iterator[Layer]:
        yield self.base
        yield from self.overlays()


def is_staged(changes: Iterable[Change]) -> bool:
    """Whether a change may move nodes to another layer."""
    return any(change.key.kind == "Rollout" for change in changes)
