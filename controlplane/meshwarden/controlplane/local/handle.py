"""What the checks hold of a running mesh: where everything is, and the hands to stop and start its parts."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from meshwarden.controlplane.local.otlp import OtlpReceiver


class Control(Protocol):
    """Stops and starts parts of a running mesh; each call returns when it is done."""

    async def stop_server(self) -> None:
        """Kills the control plane (SIGKILL) and leaves it down."""

    async def start_server(self) -> None:
        """Starts the control plane and waits until it listens."""

    async def restart_server(self) -> None:
        """Stops the control plane (SIGTERM), starts it and waits until it listens."""

    async def stop_vault(self) -> None:
        """Kills OpenBao (SIGKILL) and leaves it down."""

    async def start_vault_again(self) -> None:
        """Starts OpenBao; soon it is unsealed."""

    async def restart_sample(self, name: str) -> int:
        """Stops a sample, starts it anew and returns its new pid; it may not be healthy yet."""


@dataclass(frozen=True)
class VaultInfo:
    """The OpenBao server beside the mesh.

    Attributes:
        address: "http://127.0.0.1:PORT".
        mount: the path of the PKI engine; its root is at `/v1/<mount>/ca/pem`, for anybody.
        otlp_authorization: what the KV holds and the OTLP receiver must see.
        form: who signs leaves, "upstream" or "direct".
        token_file: holds the control plane's token.
        root_pem: the root, as it was when the mesh was started.
    """

    address: str
    mount: str
    otlp_authorization: str = field(repr=False)
    form: str
    token_file: Path
    root_pem: bytes = field(repr=False)

    def authority(self) -> dict[str, str]:
        """What the control plane's configuration says of it."""
        return {"address": self.address, "token": f"file:{self.token_file}", "mount": self.mount, "form": self.form}


@dataclass(frozen=True)
class MeshHandle:
    """A running mesh.

    Attributes:
        state_dir: holds up.json and all the rest.
        context: the name of its context: `meshwarden --context NAME …`.
        up_json: what up.json holds; its content is kept current.
        logs: holds `<name>.log` of each child.
        python: the command of this Python.
        meshwarden: the command of the operator's CLI, with this mesh's context.
        agent: the command `meshwarden-agent`.
        environment: what a process that a check starts should have, so that it can't outlive the mesh.
        control: stops and starts parts.
        otlp: where the control plane's traces go; None without `--check`.
        vault: None without `--vault`.
        vault_away: whether OpenBao is to be stopped while the checks run.
    """

    state_dir: Path
    context: str
    up_json: dict[str, Any]
    logs: Path
    python: tuple[str, ...]
    meshwarden: tuple[str, ...]
    agent: tuple[str, ...]
    environment: dict[str, str]
    control: Control
    otlp: OtlpReceiver | None = None
    vault: VaultInfo | None = None
    vault_away: bool = False

    async def stop_server(self) -> None:
        """Kills the control plane (SIGKILL) and leaves it down."""
        await self.control.stop_server()

    async def start_server(self) -> None:
        """Starts the control plane and waits until it listens."""
        await self.control.start_server()

    async def restart_server(self) -> None:
        """Stops the control plane (SIGTERM), starts it and waits until it listens."""
        await self.control.restart_server()

    async def restart_sample(self, name: str) -> int:
        """Stops a sample, starts it anew and returns its new pid; it may not be healthy yet."""
        return await self.control.restart_sample(name)
