"""The files of a workload's own directory: its certificate with its key, and what to trust.

tls.crt, tls.key   the chain and its key
ca.crt             the roots of our own trust domain, and of no other
bundles.json       each trust domain's roots for itself: a SPIFFE bundle map, which C-core reads (gRFC A87)
"""

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from meshwarden.agents.workload.workload import Workload, make_directory
from meshwarden.certs import files
from meshwarden.certs.bundle import Bundle
from meshwarden.certs.bundle_document import TrustBundle, format_document
from meshwarden.certs.csr import check_key
from meshwarden.certs.jwt_bundle import JwtBundle
from meshwarden.certs.svid import X509Svid

BUNDLES = "bundles.json"


def content(svid: X509Svid, bundle: Bundle, foreign: Mapping[str, Bundle]) -> dict[str, bytes]:
    """What the files hold: `{name: content}`."""
    return {
        "tls.crt": svid.chain_pem(),
        "tls.key": svid.key_pem(),
        "ca.crt": bundle.pem(),
        BUNDLES: bundle_map((bundle, *foreign.values())),
    }


def bundle_map(bundles: Iterable[Bundle]) -> bytes:
    """The bundles in JSON, by their trust domains.

    Roots with a key that no certificate of ours may have are left out: whoever reads this refuses the rest with them.
    """
    found = {}
    for bundle in bundles:
        roots = tuple(root for root in bundle.roots if check_key(root.public_key()) is not None)
        if roots:
            name = bundle.trust_domain
            document = TrustBundle(name, replace(bundle, roots=roots), JwtBundle(name), bundle.revision)
            found[name] = json.loads(format_document(document))
    return json.dumps({"trust_domains": found}).encode()


def write(workload: Workload, named: Mapping[str, bytes]) -> None:
    """Puts all of them into a workload's directory in one step.

    Raises:
        OSError: they can't be written; what was there before stays.
    """
    make_directory(workload)
    is_root = os.geteuid() == 0
    uid, gid = (workload.uid, workload.gid) if is_root else (-1, -1)
    files.publish(workload.credentials, named, uid, gid)


def remove(directory: Path) -> None:
    """Takes them away."""
    files.remove(directory)
    with contextlib.suppress(OSError):  # not empty yet: who empties it removes it
        directory.parent.rmdir()
