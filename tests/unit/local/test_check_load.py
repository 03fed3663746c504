"""The load under a check ends with the check, also where that fails."""

from types import SimpleNamespace
from typing import Any

import pytest

from meshwarden.controlplane.local.check import identity
from meshwarden.controlplane.local.check.call import Probes
from meshwarden.controlplane.local.check.load import loaded
from meshwarden.controlplane.local.check.result import CheckFailed


class Probe:
    """Answers as a probe does, and knows what runs in it."""

    def __init__(self, name: str, *, code: str = "") -> None:
        self.name, self.running, self._code = name, set[str](), code

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        if op == "steady_start":
            self.running.add(fields["id"])
            return {"op": op}
        self.running.remove(fields["id"])
        return {"codes": {self._code or {"grpc": "OK", "http": "200"}[fields["id"]]: 7}}


def probes(**codes: str) -> Any:
    return Probes(*(Probe(name, code=codes.get(name, "")) for name in ("acme", "globex", "intruder")))  # type: ignore[arg-type]


def running(used: Any) -> list[set[str]]:
    return [used.acme.running, used.globex.running, used.intruder.running]


async def test_all_calls_are_counted_and_none_goes_on() -> None:
    used = probes()
    async with loaded(used) as load:
        assert running(used) == [{"grpc", "http"}, {"grpc", "http"}, set()]
        assert await load.unfailing() == 28
        assert running(used) == [set(), set(), set()]


@pytest.mark.parametrize("failing", ["acme", "globex"])
async def test_a_call_that_failed_is_told_and_the_others_stop(failing: str) -> None:
    used = probes(**{failing: "UNAVAILABLE"})
    with pytest.raises(CheckFailed, match=f"{failing}, .* got {{'UNAVAILABLE': 7}}"):
        async with loaded(used) as load:
            await load.unfailing()
    assert running(used) == [set(), set(), set()]


class Mesh:
    """A mesh whose control plane fails at what is asked of it."""

    handle = SimpleNamespace(vault=None)

    async def status(self) -> Any:
        return type("Status", (), {"nodes": ()})

    async def renew_svids(self) -> None:
        raise CheckFailed("no")


async def test_a_rotation_that_fails_leaves_no_load_behind() -> None:
    used = probes()
    with pytest.raises(CheckFailed, match=r"^no$"):
        await identity.rotation(Mesh(), used)  # type: ignore[arg-type]
    assert running(used) == [set(), set(), set()]
