"""What an external service must hold by itself: where calls may go, and how whoever is there is proved.

A tenant's manifests decide what every workload's Envoy connects to. So what lies on the node itself or its link (other
programs' ports, a cloud's metadata) is out of their reach, however its address is written; and so are names where
nothing proves who answers, since their owner leads them wherever it likes.
"""

import ipaddress
import re
from collections.abc import Iterator
from typing import Final

from cryptography import x509

from meshwarden.controlplane.resources.fault import FieldFault
from meshwarden.v1.resources_pb2 import ExternalServiceSpec

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
MAX_AUTHORITIES: Final = 16
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_IN_THE_CLEAR: Final = (ExternalServiceSpec.HTTP, ExternalServiceSpec.TCP)
# Where clouds tell programs their credentials, beside link-local addresses.
_METADATA: Final = frozenset(
    map(ipaddress.ip_address, ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254"))
)
# IPv6 addresses that stand for one of IPv4 in their last 32 bits: of NAT64 and, of old, "compatible" ones.
_EMBEDDING: Final = tuple(map(ipaddress.ip_network, ("64:ff9b::/96", "64:ff9b:1::/48", "::/96")))
_NONE_PROVED: Final = (
    "in the clear nothing proves who answers, and a name can be made to lead anywhere: give an IP address, or have an"
    " operator of the mesh say internal: true"
)


def external_faults(spec: ExternalServiceSpec) -> Iterator[FieldFault]:
    """The faults of a spec."""
    clear = spec.protocol in _IN_THE_CLEAR
    seen: set[tuple[str, int]] = set()
    for number, host in enumerate(spec.hosts):
        path, address = f"spec.hosts[{number}].address", find_address(host.address)
        if address is None and not _is_name(host.address):
            yield FieldFault(path, "is neither an IP address nor a name of DNS")
        elif (is_near(address) if address is not None else _is_near_name(host.address)) and not spec.internal:
            text = "is of the node itself or its link: an operator of the mesh may say internal: true"
            yield FieldFault(path, text)
        elif address is None and clear and not spec.internal:
            yield FieldFault(path, _NONE_PROVED)
        if (host.address, host.port) in seen:
            yield FieldFault(path, "stands here already")
        seen.add((host.address, host.port))
    yield from _clear_faults(spec) if clear else _tls_faults(spec)


def find_address(text: str) -> Address | None:
    """The IP address that a text is, if it is one."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def is_near(address: Address) -> bool:
    """Whether an address is of the node itself, of its link, or none that one could call."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is None and any(address in network for network in _EMBEDDING):
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_near(inner)
        if address.teredo is not None:
            return True
    return (
        address in _METADATA
        or address.is_loopback
        or address.is_link_local
        or address.is_unspecified
        or address.is_multicast
        or (isinstance(address, ipaddress.IPv4Address) and (address.is_reserved or address.packed[0] == 0))
    )


def _is_near_name(name: str) -> bool:
    return name in ("localhost", "localhost.localdomain") or name.endswith(".localhost")


def _is_name(text: str) -> bool:
    labels = text.split(".")
    # What ends in a number would be read as an address: "127.1", "0x7f000001", "2130706433".
    ends_in_number = re.fullmatch(r"[0-9]+|0x[0-9a-f]*", labels[-1]) is not None
    return not ends_in_number and all(_LABEL.fullmatch(label) for label in labels)


def _clear_faults(spec: ExternalServiceSpec) -> Iterator[FieldFault]:
    if spec.HasField("tls"):
        yield FieldFault("spec.tls", "only HTTPS and TLS have it")
    addresses = [find_address(host.address) for host in spec.hosts]
    leaves = any(address is None or not address.is_loopback for address in addresses)
    if leaves and not spec.insecure:
        text = "is required: calls would leave the node in the clear. Use HTTPS or TLS, or say insecure: true"
        yield FieldFault("spec.insecure", text)


def _tls_faults(spec: ExternalServiceSpec) -> Iterator[FieldFault]:
    if spec.insecure:
        yield FieldFault("spec.insecure", "is for HTTP and TCP; who answers by TLS is always proved")
    names = {host.address for host in spec.hosts}
    if spec.tls.sni:
        if find_address(spec.tls.sni) is not None or not _is_name(spec.tls.sni):
            yield FieldFault("spec.tls.sni", "is no name of DNS")
    elif len(names) != 1 or find_address(next(iter(names))) is not None:
        yield FieldFault("spec.tls.sni", "is required: the hosts are not one name that a certificate could have")
    if spec.tls.ca and (fault := _ca_fault(spec.tls.ca)):
        yield FieldFault("spec.tls.ca", fault)


def _ca_fault(text: str) -> str:
    if "PRIVATE KEY" in text:
        return "holds a private key: give certificates alone, and consider the key as lost"
    try:
        found = x509.load_pem_x509_certificates(text.encode())
    except ValueError as error:
        return f"is no certificates in PEM: {error}"
    if len(found) > MAX_AUTHORITIES:
        return f"has {len(found)} certificates, of which {MAX_AUTHORITIES} are taken"
    return ""
