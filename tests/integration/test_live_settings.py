"""What a real OpenBao has newer of a configuration's secrets: used by the next request, or said to need a start."""

import logging
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import pytest
from pydantic import SecretStr

sys.path.insert(0, str(Path(__file__).parents[1] / "contract"))

from openbao_server import OpenBao, serve

from meshwarden.controlplane.gather.forward.backend import HttpTransport
from meshwarden.controlplane.gather.forward.header import Headers
from meshwarden.controlplane.secrets.live import LiveSettings, Setting
from meshwarden.controlplane.secrets.resolver import Secrets
from meshwarden.controlplane.secrets.vault import VaultSecrets
from meshwarden.controlplane.secrets.watch import SecretWatch

REFERENCE = "vault:kv/meshwarden#otlp"


@pytest.fixture(scope="module")
def bao(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenBao]:
    with serve(tmp_path_factory.mktemp("openbao")) as server:
        yield server


@pytest.fixture
async def follow(bao: OpenBao) -> AsyncIterator[Any]:
    """Begins to look at a setting's values; gives what watches and what applies."""
    put(bao, otlp="hunter2", number="1")
    client = bao.client(bao.token(policies=("secrets",)), retry_s=0.2)
    async with anyio.create_task_group() as group:

        def begin(setting: Setting) -> tuple[SecretWatch, LiveSettings]:
            watch = SecretWatch(lambda: VaultSecrets(client), random.Random(1), time.monotonic, poll_s=0.2)
            settings = LiveSettings(watch, [setting], Secrets().resolve)
            group.start_soon(watch.run)
            return watch, settings

        yield begin
        group.cancel_scope.cancel()
    client.close()


def put(bao: OpenBao, **values: str) -> None:
    bao.admin.secrets.kv.v2.create_or_update_secret("meshwarden", values, mount_point="kv")


@pytest.fixture
def backend() -> Iterator[Any]:
    """An OTLP backend over HTTP, and what it is shown."""
    shown: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            shown.append(str(self.headers["authorization"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", shown
        server.shutdown()
        thread.join()


async def test_a_header_is_used_from_the_next_request_on(
    follow: Any, bao: OpenBao, backend: Any, until: Any, caplog: pytest.LogCaptureFixture, capsys: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    endpoint, shown = backend
    transport = HttpTransport(endpoint, Headers({"authorization": "hunter2"}))
    fixed = SecretStr("of-a-file")
    references = {"authorization": REFERENCE, "x-key": "file:/etc/key"}

    def apply(values: Any) -> None:
        assert values["x-key"] is fixed
        transport.use(Headers({name: value.get_secret_value() for name, value in values.items()}))

    setting = Setting("[[otlp]] tempo", references, {"authorization": SecretStr("hunter2"), "x-key": fixed}, apply)
    watch, settings = follow(setting)

    async def sends(value: str) -> bool:
        await transport.send("span", "acme", [b""])
        return bool(shown[-1] == value)

    assert await sends("hunter2")
    put(bao, otlp="hunter3", number="1")
    await until(lambda: sends("hunter3"), "the new one is used")
    # What makes no header isn't used, and is told without what it is.
    put(bao, otlp="hunter4\nevil: yes", number="1")
    await until(settings.faults, "it is told")
    assert settings.faults()[0].startswith("[[otlp]] tempo: the value in use stands: header 'authorization': ")
    assert await sends("hunter3")
    put(bao, number="1")
    await until(lambda: "no text under 'otlp'" in "".join(settings.faults()), "it is told that it is gone")
    bao.admin.secrets.kv.v2.delete_latest_version_of_secret("meshwarden", mount_point="kv")
    await until(watch.faults, "it is told that the secret is deleted")
    assert await sends("hunter3")
    put(bao, otlp="hunter5", number="1")
    await until(lambda: sends("hunter5"), "it is used again")
    assert settings.faults() == []
    said = caplog.text + "".join(capsys.readouterr()) + repr(setting) + "".join(settings.faults() + watch.faults())
    assert "config.applied" in said
    assert "config.not_applied" in said
    assert "hunter" not in said
    await transport.close()


async def test_what_opens_keys_takes_effect_at_the_next_start(follow: Any, bao: OpenBao, until: Any) -> None:
    watch, settings = follow(Setting("jwt_passphrase", {"": REFERENCE}, {"": SecretStr("hunter2")}))
    await until(lambda: watch.find(("kv", "meshwarden")).asked, "it is read")
    assert settings.faults() == []
    put(bao, otlp="hunter2", number="2")
    await until(lambda: watch.find(("kv", "meshwarden")).version.number > 1, "another version, and the same value")
    put(bao, otlp="hunter3", number="2")
    await until(settings.faults, "it is told")
    (said,) = settings.faults()
    assert said.startswith(f"jwt_passphrase: {REFERENCE} is another in Vault by now")
    assert "hunter" not in said
    put(bao, otlp="hunter2", number="2")
    await until(lambda: not settings.faults(), "it is as in Vault again")
