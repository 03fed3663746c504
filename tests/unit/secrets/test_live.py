"""Values of the configuration that Vault could not be asked for at start: taken as soon as it can."""

import asyncio
import random
from collections.abc import Mapping

import pytest
from pydantic import SecretStr

from meshwarden.controlplane.gather.forward.backend import Away, GrpcTransport, Withheld
from meshwarden.controlplane.secrets import live
from meshwarden.controlplane.secrets import resolver as module
from meshwarden.controlplane.secrets.live import LiveSettings, Setting
from meshwarden.controlplane.secrets.port import SecretAway, SecretError, Version, VersionedSecrets
from meshwarden.controlplane.secrets.resolver import Secrets
from meshwarden.controlplane.secrets.watch import SecretWatch


class Vault(VersionedSecrets):
    """Has what a test says, {path: {key: value}}; None while it is away."""

    def __init__(self) -> None:
        self.there: Mapping[str, Mapping[str, str]] | None = None

    async def read_version(self, mount: str, path: str) -> Version:
        if self.there is None:
            raise SecretAway("Vault is sealed")
        return Version(1, self.there[path])

    async def newest(self, mount: str, path: str) -> int:
        return (await self.read_version(mount, path)).number


async def nothing(reference: str) -> SecretStr:
    raise AssertionError(f"{reference} is watched, or was read")


async def test_it_is_applied_once_all_of_it_is_there() -> None:
    vault, now_s, applied = Vault(), 0.0, list[Mapping[str, SecretStr]]()
    watch = SecretWatch(lambda: vault, random.Random(1), lambda: now_s)
    references = {"authorization": "vault:kv/a#key", "x-key": "vault:kv/b#key", "x-file": "file:/etc/key"}
    backend = Setting("[[otlp]] tempo", references, {"x-file": SecretStr("f")}, applied.append, "Vault was away")
    fixed = Setting("jwt_passphrase", {"": "vault:kv/a#key"}, {}, None, "Vault was away")
    settings = LiveSettings(watch, [backend, fixed], nothing)
    assert settings.faults() == ["[[otlp]] tempo: Vault was away", "jwt_passphrase: Vault was away"]
    task = asyncio.ensure_future(watch.run())

    async def looked(there: Mapping[str, Mapping[str, str]] | None) -> None:
        nonlocal now_s
        vault.there, now_s = there, now_s + 60
        watch._wake.set()
        for _ in range(20):
            await asyncio.sleep(0)

    await looked(None)
    assert len(settings.faults()) == 2
    await looked({"a": {"key": "one"}, "b": {"other": "x"}})
    assert settings.faults() == ["[[otlp]] tempo: waits: vault:kv/b#key: the secret has no text under 'key'"]
    assert applied == []
    watch._watched[("kv", "b")].version = None  # it is read again
    await looked({"a": {"key": "one"}, "b": {"key": "two"}})
    assert settings.faults() == []
    assert [{name: value.get_secret_value() for name, value in one.items()} for one in applied] == [
        {"x-file": "f", "authorization": "one", "x-key": "two"}
    ]
    # What only a start takes was taken then; another value waits for one.
    watch._watched[("kv", "a")].version = None
    await looked({"a": {"key": "three"}, "b": {"key": "two"}})
    (said,) = settings.faults()
    assert said.startswith("jwt_passphrase: vault:kv/a#key is another in Vault by now")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_what_transit_opens_is_asked_for_until_it_is_there(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(live, "ASK_AGAIN_S", 0.0)
    vault, applied, said = Vault(), list[Mapping[str, SecretStr]](), SecretStr("hunter2\nevil: yes")
    watch = SecretWatch(lambda: vault, random.Random(1), lambda: 0.0)
    answers: list[Exception | SecretStr] = [
        SecretAway("transit:transit/key#/a: Vault is sealed"),
        SecretError("transit:transit/key#/a: refused: it has no such version"),
        said,
        SecretStr("hunter2"),
    ]

    def apply(values: Mapping[str, SecretStr]) -> None:
        if "\n" in values["x-key"].get_secret_value():
            raise ValueError("header 'x-key': no header has this value")
        applied.append(values)

    references = {"x-key": "transit:transit/key#/a", "x-file": "file:/etc/key"}
    backend = Setting("[[otlp]] tempo", references, {"x-file": SecretStr("f")}, apply, "Vault was away")
    both = {"x-key": "transit:transit/key#/a", "authorization": "vault:kv/a#key"}
    other = Setting("[[otlp]] loki", both, {}, apply, "Vault was away")
    faults: list[str] = []

    async def resolve(reference: str) -> SecretStr:
        assert reference == "transit:transit/key#/a"
        if settings.faults()[0] not in faults:
            faults.append(settings.faults()[0])
        answer = answers[0] if len(answers) == 1 else answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    settings = LiveSettings(watch, [backend, other], resolve)
    async with asyncio.timeout(10):
        await settings.run()  # it ends when nothing is late
    assert [{name: value.get_secret_value() for name, value in one.items()} for one in applied] == [
        {"x-file": "f", "x-key": "hunter2"}
    ]
    # The rest of the other lies in Vault itself, which is watched.
    assert settings.faults() == ["[[otlp]] loki: waits for vault:kv/a#key"]
    assert other.present.keys() == {"x-key"}
    assert "hunter2" not in caplog.text + "".join(faults) + repr(backend)
    assert faults[0] == "[[otlp]] tempo: Vault was away"


async def test_where_nothing_is_late_nobody_asks() -> None:
    watch = SecretWatch(Vault, random.Random(1), lambda: 0.0)
    setting = Setting("[[otlp]] tempo", {"x-file": "file:/etc/key"}, {"x-file": SecretStr("f")}, None)
    async with asyncio.timeout(10):
        await LiveSettings(watch, [setting], nothing).run()


async def test_a_backend_that_waits_for_its_secret_is_sent_nothing() -> None:
    transport = GrpcTransport("http://127.0.0.1:9", Withheld("waits for its secret: Vault is sealed"))
    with pytest.raises(Away, match="waits for its secret: Vault is sealed"):
        await transport.send("span", "acme", [b""])
    await transport.close()


class Place:
    address, token, approle, ca_file, namespace = "http://127.0.0.1:9", "env:MW_TEST_TOKEN", None, None, None


async def test_whoever_asks_right_after_is_not_made_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MW_TEST_TOKEN", "hunter2")
    secrets, asked = Secrets(Place()), list[str]()

    async def read(name: str) -> SecretStr:
        asked.append(name)
        raise SecretAway("Vault is sealed")

    monkeypatch.setattr(secrets.vault(), "read", read)
    with pytest.raises(SecretAway):
        await secrets.resolve("vault:kv/a#b")
    for reference in ("vault:kv/c#d", "transit:transit/key#/file"):
        with pytest.raises(SecretAway, match="was away just now: Vault is sealed"):
            await secrets.resolve(reference)
    assert asked == ["kv/a#b"]
    # What lies elsewhere is read all the same, and later Vault is asked again.
    assert (await secrets.resolve("env:MW_TEST_TOKEN")).get_secret_value() == "hunter2"
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    with pytest.raises(SecretAway):
        await secrets.resolve("vault:kv/c#d")
    assert asked == ["kv/a#b", "kv/c#d"]
