"""[[attestor]], [operator_login] and [limits]: who is let in, and how much each may ask for."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from cryptography import x509
from pydantic import Field, field_validator, model_validator

from meshwarden.certs.error import UNREADABLE
from meshwarden.controlplane.config.value import LABEL, Frozen, SecretPlace
from meshwarden.controlplane.identity.node_name import MAX_TEMPLATE, NameTemplate
from meshwarden.controlplane.identity.rate import Limits, Pace


class AttestorConfig(Frozen):
    """How nodes prove who they are, beside join tokens."""

    FIELDS: ClassVar[tuple[str, ...]] = ()

    # The node's name, made of what is proved: "{common_name}".
    node: str = Field(max_length=MAX_TEMPLATE)
    # The tenants whose entries such nodes may serve; empty for any tenant's.
    tenants: tuple[Annotated[str, Field(pattern=f"^{LABEL}$")], ...] = Field(default=(), max_length=64)

    @model_validator(mode="after")
    def _named(self) -> Self:
        self.template()
        return self

    def template(self) -> NameTemplate:
        """What makes the node's name.

        Raises:
            InvalidTemplate: a ValueError; it is none.
        """
        return NameTemplate(self.node, self.FIELDS)


class X509PopAttestorConfig(AttestorConfig):
    """By a certificate that the machine has already, and proof of its key."""

    FIELDS = ("common_name", "dns_label", "serial", "fingerprint")

    kind: Literal["x509pop"]
    # PEM of the authorities of such certificates; none of ours.
    ca_file: Path
    node: str = Field(default="{common_name}", max_length=MAX_TEMPLATE)

    @field_validator("ca_file")
    @classmethod
    def _readable(cls, value: Path) -> Path:
        _authorities(value)
        return value

    def roots(self) -> tuple[x509.Certificate, ...]:
        """The authorities."""
        return _authorities(self.ca_file)


class VaultAttestorConfig(AttestorConfig):
    """By a login at the Vault under [vault], or the authority's."""

    FIELDS = ("entity_name", "entity_metadata.", "alias_name", "metadata.")

    kind: Literal["vault"]
    # The auth method by which nodes log in.
    mount: str = Field(default="approle", pattern=r"^[A-Za-z0-9_-]+(/[A-Za-z0-9_-]+)*$")
    # The policy that makes a token a node's.
    policy: str = Field(default="meshwarden-node", pattern=r"^[A-Za-z0-9_./-]{1,128}$")
    node: str = Field(default="{metadata.role_name}", max_length=MAX_TEMPLATE)


AnyAttestorConfig = Annotated[X509PopAttestorConfig | VaultAttestorConfig, Field(discriminator="kind")]


class GrantConfig(Frozen):
    """Whoever has the policy of Vault, by itself or by a group, or is the entity, operates so far."""

    policy: str = Field(default="", pattern=r"^[A-Za-z0-9_./-]{0,128}$")
    entity: str = Field(default="", max_length=255)
    role: Literal["viewer", "editor", "admin"]
    # Of this tenant alone; left out, of the mesh.
    tenant: str = Field(default="", pattern=f"^({LABEL})?$")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if bool(self.policy) == bool(self.entity):
            raise ValueError("say who: by policy or by entity, and not by both")
        if self.policy in ("default", "root"):
            raise ValueError(f"policy {self.policy!r} is everybody's, or nobody's: make one of your own")
        return self


class OperatorLoginConfig(Frozen):
    """Operators by a login at the Vault under [vault], or the authority's."""

    FIELDS: ClassVar[tuple[str, ...]] = ("entity_name", "entity_metadata.", "alias_name")

    # The auth methods whose logins count; "token" takes any token that has an entity.
    mounts: tuple[SecretPlace, ...] = Field(min_length=1, max_length=16)
    # The operator's name, after "vault-".
    name: str = Field(default="{alias_name}", max_length=MAX_TEMPLATE)
    # How long a login lasts.
    ttl_s: int = Field(default=3600, ge=60, le=3600)
    grants: tuple[GrantConfig, ...] = Field(min_length=1, max_length=256)

    @model_validator(mode="after")
    def _named(self) -> Self:
        self.template()
        return self

    def template(self) -> NameTemplate:
        """What makes the operator's name.

        Raises:
            InvalidTemplate: a ValueError; it is none.
        """
        return NameTemplate(self.name, self.FIELDS)


class LimitsConfig(Frozen):
    """How many certificates each may ask for; of each so many seconds' worth at once."""

    # From one address (of IPv6: one /64); ten seconds' worth at once.
    attests_per_address_per_s: float = Field(default=10.0, gt=0.0, le=10_000.0)
    # Of one node; forty seconds' worth at once.
    signs_per_node_per_s: float = Field(default=50.0, gt=0.0, le=10_000.0)
    # Of one tenant on all nodes; forty seconds' worth at once.
    signs_per_tenant_per_s: float = Field(default=500.0, gt=0.0, le=100_000.0)

    def paces(self) -> Limits:
        """What identity holds them to."""
        return Limits(
            attests_of_address=_pace(self.attests_per_address_per_s, 10),
            signs_of_node=_pace(self.signs_per_node_per_s, 40),
            signs_of_tenant=_pace(self.signs_per_tenant_per_s, 40),
        )


def _pace(per_s: float, seconds: int) -> Pace:
    return Pace(per_s, max(1, round(per_s * seconds)))


def _authorities(file: Path) -> tuple[x509.Certificate, ...]:
    """Reads the certificates of authorities from a PEM file.

    Raises:
        ValueError: it can't be read, holds none, or one that is no authority's.
    """
    try:
        found = tuple(x509.load_pem_x509_certificates(file.read_bytes()))
        authorities = all(one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca for one in found)
    except OSError as error:
        raise ValueError(f"{file}: {error.strerror}") from None
    except (x509.ExtensionNotFound, *UNREADABLE):
        raise ValueError(f"{file}: not certificates of authorities in PEM") from None
    if not authorities:
        raise ValueError(f"{file}: has a certificate that is no authority's")
    return found
