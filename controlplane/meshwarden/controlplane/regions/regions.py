"""All regions, as this one knows them."""

import math
from collections.abc import Callable, Coroutine, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

import anyio

from meshwarden.controlplane.gather.metrics.metrics import Sample
from meshwarden.controlplane.regions.inbox import Inbox
from meshwarden.controlplane.regions.puller import Puller
from meshwarden.v1.admin_service_pb2 import RegionState

# One that has told nothing new for so long is worth a word.
SILENT = timedelta(seconds=30)


class Regions:
    """This region and those that it asks."""

    def __init__(
        self,
        own: str,
        pullers: Sequence[Puller],
        inbox: Inbox,
        clock: Callable[[], datetime],
        askers: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
    ) -> None:
        """Puts them together.

        Args:
            own: our name.
            pullers: ask for what is counted, a region each.
            inbox: takes what they tell.
            clock: the present, aware.
            askers: what else goes on with them.
        """
        self._own, self._pullers, self._askers = own, pullers, askers
        self._inbox, self._clock = inbox, clock

    async def run(self) -> None:
        """Asks all of them until it is cancelled."""
        async with anyio.create_task_group() as group:
            for puller in self._pullers:
                group.start_soon(puller.run)
            for ask in self._askers:
                group.start_soon(ask)

    def age(self, region: str) -> timedelta | None:
        """How old what is known of a region is; None where nothing is known."""
        if region == self._own:
            return timedelta(0)
        heard = self._inbox.cursor(region).heard
        return None if heard is None else max(timedelta(0), self._clock() - heard)

    def states(self, *, whole: bool) -> list[RegionState]:
        """How it stands with each; the own one first.

        Args:
            whole: whether addresses and errors are told.
        """
        found = [RegionState(region=self._own, own=True, answers=True)]
        found[0].age.FromTimedelta(timedelta(0))
        for puller in self._pullers:
            state = RegionState(region=puller.peer.region, answers=puller.error == "")
            if (age := self.age(puller.peer.region)) is not None:
                state.age.FromTimedelta(age)
            if whole:
                state.error = puller.error or ""
                state.address = puller.peer.address
            found.append(state)
        return found

    def warnings(self) -> list[str]:
        """What an operator should know."""
        found = []
        for puller in self._pullers:
            age = self.age(puller.peer.region)
            if puller.error == "" and age is not None and age <= SILENT:
                continue
            old = "nothing is known of it" if age is None else f"what is known of it is {age.total_seconds():.0f} s old"
            found.append(f"region {puller.peer.region} does not answer at {puller.peer.address}; {old}")
        return found

    def ages(self) -> Iterable[Sample]:
        """For Prometheus: how old what is known of each other region is, infinite where nothing is."""
        for puller in self._pullers:
            age = self.age(puller.peer.region)
            yield (puller.peer.region,), math.inf if age is None else age.total_seconds()

    def answering(self) -> Iterable[Sample]:
        """For Prometheus: which of them answer."""
        for puller in self._pullers:
            yield (puller.peer.region,), float(puller.error == "")
