"""A connection to the control plane, mutual TLS with the context's certificate."""

import contextlib
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509

from meshwarden.certs.spiffe_id import InvalidSpiffeId, SpiffeId
from meshwarden.certs.svid import InvalidSvid, X509Svid
from meshwarden.controlplane.local.context import Context
from meshwarden.controlplane.local.error import LocalError
from meshwarden.v1.admin_service_pb2_grpc import AdminServiceStub
from meshwarden.v1.audit_service_pb2_grpc import AuditServiceStub
from meshwarden.v1.console_service_pb2_grpc import ConsoleServiceStub
from meshwarden.v1.cost_service_pb2_grpc import CostServiceStub
from meshwarden.v1.data_plane_service_pb2_grpc import DataPlaneServiceStub
from meshwarden.v1.operator_service_pb2_grpc import OperatorServiceStub
from meshwarden.v1.preview_service_pb2_grpc import PreviewServiceStub
from meshwarden.v1.resource_service_pb2_grpc import ResourceServiceStub
from meshwarden.v1.revision_service_pb2_grpc import RevisionServiceStub
from meshwarden.v1.rollout_service_pb2_grpc import RolloutServiceStub
from meshwarden.v1.session_service_pb2_grpc import SessionServiceStub

TIMEOUT_S = 15.0
READS = 3
AGAIN = "the mesh writes it anew when it starts: `meshwarden up`"


class Client:
    """The services of a control plane."""

    def __init__(self, channel: Any) -> None:
        self.admin: Any = AdminServiceStub(channel)
        self.audit: Any = AuditServiceStub(channel)
        self.console: Any = ConsoleServiceStub(channel)
        self.cost: Any = CostServiceStub(channel)
        self.data_plane: Any = DataPlaneServiceStub(channel)
        self.operator: Any = OperatorServiceStub(channel)
        self.preview: Any = PreviewServiceStub(channel)
        self.resource: Any = ResourceServiceStub(channel)
        self.revision: Any = RevisionServiceStub(channel)
        self.rollout: Any = RolloutServiceStub(channel)
        self.session: Any = SessionServiceStub(channel)


def read_certificate(context: Context) -> tuple[x509.Certificate, SpiffeId]:
    """Returns the operator's leaf certificate and who it says we are.

    Raises:
        LocalError: the file is not there or holds no SVID.
    """
    try:
        leaf = x509.load_pem_x509_certificates(Path(context.cert_file).read_bytes())[0]
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return leaf, SpiffeId.parse(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
    except (OSError, ValueError, IndexError, x509.ExtensionNotFound, InvalidSpiffeId) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise LocalError(
            f"{context.cert_file}: no operator certificate: {reason}",
            "is the mesh of this context running? `meshwarden up` starts one",
        ) from None


def credentials_of(context: Context) -> tuple[Any, list[tuple[str, Any]]]:
    """Returns the channel credentials and the channel options that reach the context's control plane and no other.

    Raises:
        LocalError: a file of the context can't be read, or is not what it should be.
    """
    _, spiffe_id = read_certificate(context)
    try:
        # gRPC says what is wrong with a file in lines of its own, and of the call only that it failed.
        roots = Path(context.ca_file).read_bytes()
        chain, key = _read_pair(context)
        x509.load_pem_x509_certificates(roots)
    except OSError as error:
        raise LocalError(f"{error.filename}: {error.strerror}") from None
    except ValueError:
        raise LocalError(f"{context.ca_file}: no certificates, in PEM", AGAIN) from None
    credentials = grpc.ssl_channel_credentials(roots, key, chain)
    return credentials, _options(spiffe_id.trust_domain)


def _read_pair(context: Context) -> tuple[bytes, bytes]:
    """Returns our certificates and their key, in PEM."""
    for attempt in range(READS):
        chain, key = Path(context.cert_file).read_bytes(), Path(context.key_file).read_bytes()
        try:
            X509Svid.load(chain, key)
            break
        except InvalidSvid as error:
            # The mesh may have renewed them between the two.
            if attempt == READS - 1:
                raise LocalError(f"{context.key_file}: no key to {context.cert_file}: {error}", AGAIN) from None
    return chain, key


@contextlib.contextmanager
def connect_anonymous(address: str, ca_file: Path, trust_domain: str) -> Iterator[Client]:
    """Opens a connection of whoever has no certificate yet; who answers must hold the control plane's.

    Raises:
        LocalError: the roots can't be read.
    """
    try:
        roots = ca_file.read_bytes()
        x509.load_pem_x509_certificates(roots)
    except OSError as error:
        raise LocalError(f"{error.filename}: {error.strerror}") from None
    except ValueError:
        raise LocalError(f"{ca_file}: no certificates, in PEM", "take ca.pem of the control plane's state") from None
    credentials = grpc.ssl_channel_credentials(roots)
    with grpc.secure_channel(address, credentials, options=_options(trust_domain)) as channel:
        yield Client(channel)


def _options(trust_domain: str) -> list[tuple[str, Any]]:
    return [
        # A DNS name that no CSR and no entry can obtain.
        ("grpc.ssl_target_name_override", f"controlplane.{trust_domain}"),
        # A proxy of the environment has no business between an operator and the mesh.
        ("grpc.enable_http_proxy", 0),
    ]


@contextlib.contextmanager
def connect(context: Context, now: datetime) -> Iterator[Client]:
    """Opens a connection; whoever answers must hold the control plane's certificate of our trust domain.

    Raises:
        LocalError: a file of the context can't be read, or our certificate has ended.
    """
    leaf, _ = read_certificate(context)
    if leaf.not_valid_after_utc <= now:
        raise LocalError(
            f"{context.cert_file}: the operator certificate ended at {leaf.not_valid_after_utc:%Y-%m-%d %H:%M:%S}Z",
            "the mesh renews it while it runs: start it again with `meshwarden up`",
        )
    credentials, options = credentials_of(context)
    with grpc.secure_channel(context.address, credentials, options=options) as channel:
        yield Client(channel)
