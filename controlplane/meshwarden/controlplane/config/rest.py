"""[rest]: where programs and browsers reach the REST API, and by which certificate browsers know it."""

import ipaddress
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, model_validator

from meshwarden.controlplane.config.value import LABEL, Address, Frozen

HOST: Final = rf"^{LABEL}(\.{LABEL})*$"


class RestConfig(Frozen):
    """Where the REST API and the console are, with TLS: for who shows a certificate, or has logged in."""

    listen: Address = "127.0.0.1:7445"
    # By which names browsers find it, beside localhost and the name in `listen`; the first is what they are told. They
    # stand in the certificate that our own authority signs for browsers, and no workload's certificate has one of them.
    names: tuple[Annotated[str, Field(pattern=HOST, max_length=253)], ...] = Field(default=(), max_length=16)
    # What browsers are shown in place of that: a chain and its key, PEM; read again when they change.
    certificate: Path | None = None
    key: Path | None = None

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate and key: both, or none")
        return self

    @property
    def files(self) -> tuple[Path, Path] | None:
        """The chain and its key; None if there are none."""
        return (self.certificate, self.key) if self.certificate is not None and self.key is not None else None

    def web_names(self) -> tuple[str, ...]:
        """By which names browsers find it, the one that they are told first."""
        host = self._host()
        return tuple(dict.fromkeys((*self.names, *(() if _address(host) else (host.lower(),)), "localhost")))

    def web_host(self) -> str:
        """The host that browsers are told; empty if it listens on every address and has not been told its name."""
        host = self._host()
        address = _address(host)
        if self.names or address is None or address.is_loopback:
            return self.web_names()[0]
        return "" if address.is_unspecified else host

    def _host(self) -> str:
        return self.listen.rpartition(":")[0].strip("[]")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
