"""The mesh that the documentation's pages speak of, and a terminal at it."""

import json
import re
from pathlib import Path
from typing import Any

from tests.shell import Shell

from meshwarden.controlplane.local import record

ORDERS = """\
kind: RoutePolicy
metadata: {tenant: platform, name: orders}
spec: {service: orders, rules: [{split: [{version: v1, weight: 50}, {version: v2, weight: 50}]}]}
"""
ALLOWED = """\
kind: AccessPolicy
metadata: {tenant: platform, name: orders}
spec:
  service: orders
  allow: [{from: [{tenant: acme, service: web}, {tenant: globex, service: web}], methods: [/meshwarden.examples.v1.*]}]
"""


class Docs(Shell):
    """The mesh that the pages speak of, and a terminal at it."""

    def __init__(self, up: Any, directory: Path) -> None:
        super().__init__({**up.environment, "UP_JSON": str(up.state_dir / "up.json")}, directory)
        self.up = up

    def json(self, *arguments: str) -> Any:
        done = self.up.run(*arguments, "-o", "json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def does(self, *arguments: str) -> str:
        done = self.up.run(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return str(done.stdout + done.stderr)

    def apply(self, manifest: str, *arguments: str) -> str:
        """Applies a manifest and returns the revision."""
        path = self.directory / "applied.yaml"
        path.write_text(manifest)
        return found(r"revision (\d+)", self.does("apply", "-f", str(path), *arguments))

    def pid(self, name: str) -> int:
        (process,) = [one for one in record.load(self.up.state_dir) if one.name == name]
        return process.pid

    def envoy(self, workload: str) -> int:
        """The process of a sample's Envoy."""
        (directory,) = {
            Path(one["admin_socket"]).parent for one in self.up.up_json["envoys"] if one["name"] == f"acme/{workload}"
        }
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in self.up.left()}
        (pid,) = [pid for pid, line in lines.items() if b"envoy" in line.split(b"\0")[0] and bytes(directory) in line]
        return pid


def found(pattern: str, text: str) -> str:
    match = re.search(pattern, text)
    assert match, (pattern, text)
    return match[1]
