"""Browsers' own store of certificates on Linux, filled as `certutil -A -t C,,` does; Chromium brings NSS."""

import sys
from ctypes import CDLL, POINTER, RTLD_GLOBAL, Structure, byref, c_char_p, c_int, c_uint, c_ulong, c_void_p
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

_VALID_CA, _TRUSTED_CA = 1 << 3, 1 << 4  # certdb.h


class _Trust(Structure):
    """What a certificate is trusted for (CERTCertTrust): servers, mail, programs."""

    _fields_ = [("servers", c_uint), ("mail", c_uint), ("programs", c_uint)]


def trust(directory: Path, certificate: x509.Certificate) -> None:
    """Has who uses a database of NSS trust a root for servers. Once in a process: NSS has one database."""
    directory.mkdir(parents=True)
    nss, smime = (CDLL(name, mode=RTLD_GLOBAL) for name in ("libnss3.so", "libsmime3.so"))
    nss.PK11_GetInternalKeySlot.restype = nss.CERT_GetDefaultCertDB.restype = c_void_p
    nss.PK11_InitPin.argtypes = [c_void_p, c_char_p, c_char_p]
    nss.PK11_ImportCert.argtypes = [c_void_p, c_void_p, c_ulong, c_char_p, c_int]
    nss.CERT_ChangeCertTrust.argtypes = [c_void_p, c_void_p, POINTER(_Trust)]
    smime.CERT_DecodeCertFromPackage.restype = c_void_p
    smime.CERT_DecodeCertFromPackage.argtypes = [c_char_p, c_int]
    _done(nss.NSS_Initialize(f"sql:{directory}".encode(), b"", b"", b"secmod.db", 0))
    slot = nss.PK11_GetInternalKeySlot()
    _done(nss.PK11_InitPin(slot, None, b""))
    der = certificate.public_bytes(Encoding.DER)
    found = smime.CERT_DecodeCertFromPackage(der, len(der))
    _done(nss.PK11_ImportCert(slot, found, 0, b"mesh", 0))
    trusted = _Trust(servers=_VALID_CA | _TRUSTED_CA)
    _done(nss.CERT_ChangeCertTrust(nss.CERT_GetDefaultCertDB(), found, byref(trusted)))
    nss.NSS_Shutdown()


def _done(status: int) -> None:
    if status != 0:
        raise OSError(f"NSS: {status}")


if __name__ == "__main__":
    trust(Path(sys.argv[1]), x509.load_pem_x509_certificate(sys.stdin.buffer.read()))
