"""Values of the configuration that Vault has or opens, as they are there.

Each was read at start, or, where Vault was away then, is taken as soon as it can be. Of `vault:<mount>/<path>#<key>`
the version is looked at now and then (`SecretWatch`), and what a newer one says is applied where it can be while the
process runs; of the others it is said that a restart takes them. While Vault is away, or the secret is deleted, the
last value stands. What `transit:` has once given stands until the next start.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog
from pydantic import SecretStr

from meshwarden.controlplane.secrets.port import SecretError, SecretGone
from meshwarden.controlplane.secrets.reference import SCHEME, Reference
from meshwarden.controlplane.secrets.watch import Path, SecretWatch

WANTED_BY: Final = "configuration"
RESTART: Final = "takes effect when the control plane is started again"
ASK_AGAIN_S: Final = 5.0

log = structlog.get_logger()
Values = Mapping[str, SecretStr]
Apply = Callable[[Values], None]
Resolve = Callable[[str], Awaitable[SecretStr]]
"""Reads what a reference leads to; raises SecretError where it can't."""


@dataclass
class Setting:
    """A part of the configuration with secrets in it.

    Attributes:
        what: names it: "[[otlp]] tempo".
        references: {name: where it lies}, those into Vault and others.
        present: {name: the value in use}; one that could not be read yet is missing.
        apply: takes other values, or raises ValueError; None where only a start can.
    """

    what: str
    references: Mapping[str, str]
    present: Values = field(repr=False)
    apply: Apply | None = None
    # Why what Vault has isn't in use; empty if it is.
    fault: str = ""

    def missing(self) -> list[str]:
        """Which of its references could not be read yet."""
        return sorted(said for name, said in self.references.items() if name not in self.present)

    def places(self) -> dict[str, Reference]:
        """{name: reference}, of those into Vault."""
        return {
            name: Reference.parse(said.removeprefix(SCHEME))
            for name, said in self.references.items()
            if said.startswith(SCHEME)
        }

    def late(self) -> dict[str, str]:
        """{name: reference}, of those that could not be read yet and that nobody watches."""
        return {
            name: said
            for name, said in self.references.items()
            if name not in self.present and not said.startswith(SCHEME)
        }


class LiveSettings:
    """Applies newer values, and says which can't be."""

    def __init__(self, watch: SecretWatch, settings: Sequence[Setting], resolve: Resolve) -> None:
        """Has what the settings lead to watched from now on; `resolve` reads what can't be watched."""
        self._watch, self._settings, self._resolve = watch, settings, resolve
        watch.listen(self._moved)
        watch.want(WANTED_BY, {(one.mount, one.path) for setting in settings for one in setting.places().values()})

    def faults(self) -> list[str]:
        """Which values aren't those that Vault has, and why."""
        return [f"{setting.what}: {setting.fault}" for setting in self._settings if setting.fault]

    async def run(self) -> None:
        """Asks for what could not be read at start and isn't watched, until there is no such value."""
        while late := [setting for setting in self._settings if setting.late()]:
            await asyncio.sleep(ASK_AGAIN_S)
            for setting in late:
                await self._ask(setting)

    async def _ask(self, setting: Setting) -> None:
        before = setting.fault
        try:
            values = {name: await self._resolve(said) for name, said in setting.late().items()}
            self._take(setting, values, sorted(values))
            missing = setting.missing()
            setting.fault = f"waits for {', '.join(missing)}" if missing else ""
        except (SecretError, ValueError) as error:
            setting.fault = f"waits: {error}"
        self._say(setting, before)

    def _moved(self, paths: frozenset[Path]) -> None:
        for setting in self._settings:
            if any((place.mount, place.path) in paths for place in setting.places().values()):
                self._look(setting)

    def _look(self, setting: Setting) -> None:
        before, setting.fault = setting.fault, ""
        try:
            values = {name: value for name, place in setting.places().items() if (value := self._value(place))}
            moved = sorted(name for name, value in values.items() if value != setting.present.get(name))
            if moved:
                self._take(setting, values, moved)
            if missing := setting.missing():
                setting.fault = f"waits for {', '.join(missing)}"
        except (SecretGone, ValueError) as error:
            setting.fault = f"{'waits' if setting.missing() else 'the value in use stands'}: {error}"
        self._say(setting, before)

    def _say(self, setting: Setting, before: str) -> None:
        if setting.fault and setting.fault != before:
            log.warning("config.not_applied", setting=setting.what, reason=setting.fault)

    def _take(self, setting: Setting, values: Values, moved: Sequence[str]) -> None:
        where = ", ".join(setting.references[name] for name in moved)
        if setting.apply is None and not setting.missing():
            setting.fault = f"{where} is another in Vault by now, which {RESTART}"
            return
        present = {**setting.present, **values}
        if setting.apply is not None and present.keys() == setting.references.keys():
            setting.apply(present)
        setting.present = present
        log.info("config.applied", setting=setting.what, secrets=where)

    def _value(self, place: Reference) -> SecretStr | None:
        """What Vault has; None if it can't be read now, which the watch says."""
        version = self._watch.find((place.mount, place.path)).version
        return version.text(place.key, str(place)) if version is not None else None
