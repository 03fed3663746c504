"""The secrets that an agent gives its Envoys of what lies outside of the mesh."""

import ssl
from pathlib import Path
from types import SimpleNamespace

import pytest

from meshwarden.agents.xds import sds
from meshwarden.xds import api


def trusted(monkeypatch: pytest.MonkeyPatch, own: Path | None, *others: Path) -> list[str]:
    """The authorities that are given, on a system where OpenSSL has its own and packages those."""
    monkeypatch.setattr(ssl, "get_default_verify_paths", lambda: SimpleNamespace(cafile=own and str(own)))
    monkeypatch.setattr(sds, "_BUNDLES", tuple(map(str, others)))
    return [
        api.to_dict(api.parse("envoy.extensions.transport_sockets.tls.v3.Secret", one.body))["validation_context"][
            "trusted_ca"
        ]["filename"]
        for one in sds.system_secrets()
    ]


def test_the_systems_authorities_are_found_where_it_has_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there, other, gone = tmp_path / "ca.pem", tmp_path / "other.pem", tmp_path / "gone.pem"
    for path in (there, other):
        path.write_text("")
    assert trusted(monkeypatch, there, other) == [str(there)]
    assert trusted(monkeypatch, gone, other) == [str(other)]
    assert trusted(monkeypatch, None, gone, other) == [str(other)]


def test_without_authorities_there_is_no_secret_that_would_trust_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "directory").mkdir()
    assert trusted(monkeypatch, None, tmp_path / "gone.pem", tmp_path / "directory") == []
