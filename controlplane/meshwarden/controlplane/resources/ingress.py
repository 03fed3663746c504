"""What an Ingress must hold, and what the entries that run it and lend it their identities must."""

from collections.abc import Iterable, Iterator
from ipaddress import ip_address
from typing import Any, Final
from urllib.parse import urlsplit

from cryptography import x509

from meshwarden.certs.error import UNREADABLE
from meshwarden.certs.jose import InvalidJose, parse_jwk, read_object
from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.controlplane.resources.model import ref_of, title
from meshwarden.controlplane.resources.reach import full
from meshwarden.controlplane.resources.view import View
from meshwarden.v1.resources_pb2 import Ingress, WorkloadEntry, WorkloadEntrySpec

MOST_ROUTES: Final = 4096
"""How many routes an ingress may become: they are looked at in turn."""
_MOST_KEYS: Final = 64
_SECRET: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_USER: Final = frozenset({"uid", "gid"})


def is_ingress(entry: Any) -> bool:
    """Whether a workload entry is an ingress's: it runs one, or lends one its identity."""
    return bool(entry.spec.data_plane == WorkloadEntrySpec.INGRESS)


def runs(entry: Any) -> bool:
    """Whether a workload entry runs ingresses of its service."""
    return is_ingress(entry) and not entry.spec.ingress


def lends(entry: Any, service: tuple[str, str]) -> bool:
    """Whether a workload entry lends its identity to the ingress that is a service."""
    return is_ingress(entry) and bool(entry.spec.ingress == "/".join(service))


def envoy_of(entry: Any) -> tuple[str, str] | None:
    """The ingress, (tenant, service), whose Envoys have a workload entry's identity; None if it is no ingress's."""
    own = entry.metadata.tenant, entry.spec.service
    return (full(*own) if runs(entry) else full("", entry.spec.ingress)) if is_ingress(entry) else None


def covers(host: str, domain: str) -> bool:
    """Whether a route's host, with a star or without, means all of a domain, which may have a star itself."""
    return host in ("*", domain) or (host.startswith("*.") and domain.endswith(host[1:]))


def is_address(host: str) -> bool:
    """Whether a URI's host is an IP address."""
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def entry_faults(entry: WorkloadEntry) -> Iterator[FieldFault]:
    """What a workload entry must hold by itself."""
    spec = entry.spec
    if not is_ingress(entry):
        if spec.ingress:
            yield FieldFault("spec.ingress", "only an entry with dataPlane INGRESS lends its identity")
        return
    if not spec.selectors.HasField("uid"):
        yield FieldFault("spec.selectors.uid", "is required: as whom the ingress's Envoy runs")
    for field, _ in spec.selectors.ListFields():
        if field.name not in _USER:
            text = "there is no program: an ingress's Envoy is its agent's own, by uid and gid alone"
            yield FieldFault(f"spec.selectors.{field.json_name}", text)
    for name, said in (("port", spec.port), ("version", spec.version)):
        if said:
            yield FieldFault(f"spec.{name}", "an ingress is no program that the mesh calls: leave it out")
    if spec.ingress.partition("/")[0] == entry.metadata.tenant:
        yield FieldFault("spec.ingress", "is of the same tenant, as whom its ingress calls by itself: leave it out")
    if spec.ingress and spec.secrets:
        yield FieldFault("spec.secrets", "the ingress's own entry names its secrets")


def ingress_faults(resource: Ingress) -> Iterator[FieldFault]:
    """What an ingress must hold by itself."""
    spec = resource.spec
    yield from _listen_faults(spec)
    if spec.tls.WhichOneof("certificate") == "files":
        certificate, key = spec.tls.files.certificate, spec.tls.files.key
        if certificate.rpartition("/")[0] != key.rpartition("/")[0]:
            yield FieldFault("spec.tls.files.key", "is in another directory than the certificate")
    if spec.HasField("client_certificate"):
        if not spec.HasField("tls"):
            yield FieldFault("spec.clientCertificate", "callers show certificates by TLS alone: give spec.tls")
        yield from _pem_faults("spec.clientCertificate.ca", spec.client_certificate.ca)
        seen: set[tuple[str, str]] = set()
        for number, caller in enumerate(spec.client_certificate.callers):
            kind = caller.WhichOneof("says") or ""
            if (kind, said := getattr(caller, kind, "")) in seen:
                yield FieldFault(f"spec.clientCertificate.callers[{number}]", f"{said} is said already")
            seen.add((kind, said))
    yield from _jwt_faults(spec.jwt)
    callers = len(spec.client_certificate.callers) + sum(len(one.callers) for one in spec.jwt)
    yield from _size_faults(spec, callers)
    for number, route in enumerate(spec.routes):
        if not callers and not route.public:
            text = "nobody can call: say who may in spec.clientCertificate or spec.jwt, or make it public"
            yield FieldFault(f"spec.routes[{number}].public", text)


def _size_faults(spec: Any, callers: int) -> Iterator[FieldFault]:
    """Each host has the routes that are for it, each of which is there for each of the callers."""
    count = 0
    for domain in {host for route in spec.routes for host in route.hosts}:
        count += (callers + 1) * sum(any(covers(host, domain) for host in route.hosts) for route in spec.routes)
        if count > MOST_ROUTES:
            text = f"with {callers} callers they become more than the {MOST_ROUTES} routes that an ingress may have"
            yield FieldFault("spec.routes", text)
            return


def _listen_faults(spec: Any) -> Iterator[FieldFault]:
    host, _, port = spec.listen.rpartition(":")
    try:
        address = ip_address(host.strip("[]"))
    except ValueError:
        yield FieldFault("spec.listen", f"{host} is no IP address")
        return
    if not 0 < int(port) < 65536:
        yield FieldFault("spec.listen", f"{port} is no port: 1 to 65535")
    if not spec.HasField("tls") and not address.is_loopback:
        text = f"is required: without TLS an ingress listens on a loopback address alone, and {address} is none"
        yield FieldFault("spec.tls", text)


def _pem_faults(path: str, text: str) -> Iterator[FieldFault]:
    if "PRIVATE KEY" in text:
        yield FieldFault(path, "holds a private key: certificates alone belong here")
        return
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError:
        yield FieldFault(path, "is no PEM of certificates")
        return
    for number, one in enumerate(found):
        try:
            is_ca = one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        except (x509.ExtensionNotFound, *UNREADABLE):
            is_ca = False
        if not is_ca:
            yield FieldFault(path, f"its certificate {number + 1} is no certificate authority's")
            return


def _jwt_faults(said: Iterable[Any]) -> Iterator[FieldFault]:
    issuers: set[str] = set()
    for number, one in enumerate(said):
        path = f"spec.jwt[{number}]"
        if one.issuer in issuers:
            yield FieldFault(f"{path}.issuer", f"{one.issuer} stands here already")
        issuers.add(one.issuer)
        values: set[str] = set()
        for index, caller in enumerate(one.callers):
            if caller.value in values:
                yield FieldFault(f"{path}.callers[{index}].value", f"{caller.value} is said already")
            values.add(caller.value)
        if one.WhichOneof("keys") == "jwks":
            yield from _jwks_faults(f"{path}.jwks", one.jwks)
            continue
        try:
            place = urlsplit(one.jwks_uri.uri)
            fine = bool(place.hostname) and place.port != 0
        except ValueError:
            fine = False
        if not fine:
            yield FieldFault(f"{path}.jwksUri.uri", "has no host and port that there could be")
        elif not one.jwks_uri.ca and is_address(place.hostname or ""):
            yield FieldFault(
                f"{path}.jwksUri.ca", "is required: a system's authorities answer for names, not addresses"
            )
        if one.jwks_uri.ca:
            yield from _pem_faults(f"{path}.jwksUri.ca", one.jwks_uri.ca)


def _jwks_faults(path: str, text: str) -> Iterator[FieldFault]:
    try:
        keys = read_object(text.encode()).get("keys")
    except InvalidJose:
        keys = None
    if not isinstance(keys, list) or not 0 < len(keys) <= _MOST_KEYS or not all(isinstance(one, dict) for one in keys):
        yield FieldFault(path, f'is no JSON Web Key Set, {{"keys": […]}}, of 1 to {_MOST_KEYS} keys')
        return
    for number, key in enumerate(keys):
        if not _SECRET.isdisjoint(key):
            # Whoever may read this resource could sign by it.
            yield FieldFault(path, f"keys[{number}] holds a secret: give the public key alone")
            continue
        try:
            known = parse_jwk(key) is not None
        except InvalidJose as error:
            yield FieldFault(path, f"keys[{number}]: {error}")
            continue
        if not known or not all(isinstance(key.get(name, ""), str) for name in ("kid", "alg", "use")):
            yield FieldFault(path, f"keys[{number}] is no key of RSA, or of EC on P-256, P-384 or P-521")


def named_faults(resource: Ingress, view: View) -> Iterator[FieldFault]:
    """What an ingress names must be there: entries that run it, their secret, the services that it leads to."""
    tenant, spec = resource.metadata.tenant, resource.spec
    for other in view.of_service("Ingress", tenant, spec.service):
        if other.metadata.name != resource.metadata.name:
            yield FieldFault("spec.service", f"{title(ref_of(other))} is this service already")
    entries = [one for one in view.of_service("WorkloadEntry", tenant, spec.service) if runs(one)]
    if not entries:
        text = f"no workload entry of {tenant}/{spec.service} runs it: give one dataPlane INGRESS"
        yield FieldFault("spec.service", text)
    if spec.tls.WhichOneof("certificate") == "secret":
        for entry in entries:
            if spec.tls.secret not in [one.name for one in entry.spec.secrets]:  # type: ignore[union-attr]
                yield FieldFault("spec.tls.secret", f"{title(ref_of(entry))} has no secret of this name")
    for number, route in enumerate(spec.routes):
        owner, name = full(tenant, route.service)
        service = view.service(owner, name)
        path = f"spec.routes[{number}].service"
        if service is None or (owner != tenant and not {tenant, "*"} & set(service.spec.export_to)):
            # Of a service that isn't exported its tenant may not even say that it is there.
            yield FieldFault(path, f"tenant {tenant} sees no Service {owner}/{name}")


def lending_faults(resource: Any, view: View) -> Iterator[FieldFault]:
    """For whom an ingress calls must have lent it an identity on each of its nodes.

    Looked at when the ingress is applied; a tenant takes back what it has lent at any time.
    """
    if not isinstance(resource, Ingress):
        return
    tenant, spec = resource.metadata.tenant, resource.spec
    own = tenant, spec.service
    running = [one for one in view.of_service("WorkloadEntry", *own) if runs(one)]
    nodes = {node for entry in running for node in entry.spec.nodes}  # type: ignore[union-attr]
    known: dict[str, str] = {tenant: ""}
    for path, caller in _callers(spec):
        if caller not in known:
            known[caller] = _unlent(caller, own, nodes, view)
        if known[caller]:
            yield FieldFault(f"{path}.tenant", known[caller])


def _unlent(tenant: str, own: tuple[str, str], nodes: set[str], view: View) -> str:
    lent = {node for one in view.of("WorkloadEntry", tenant) if lends(one, own) for node in one.spec.nodes}  # type: ignore[union-attr]
    if missing := sorted(nodes - lent):
        where = "" if not lent else f" on node {missing[0]}"
        return (
            f"tenant {tenant} lends no identity{where}: it needs a WorkloadEntry of its own with dataPlane INGRESS and "
            f"ingress {'/'.join(own)}"
        )
    return ""


def _callers(spec: Any) -> Iterator[tuple[str, str]]:
    for number, caller in enumerate(spec.client_certificate.callers):
        yield f"spec.clientCertificate.callers[{number}]", caller.tenant
    for index, one in enumerate(spec.jwt):
        for number, caller in enumerate(one.callers):
            yield f"spec.jwt[{index}].callers[{number}]", caller.tenant
