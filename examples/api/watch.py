"""Reads a mesh by REST and follows what changes, with Python's own library: `python examples/api/watch.py UP_JSON`."""

import http.client
import json
import socket
import ssl
import sys
import urllib.parse
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Mesh:
    """The REST API of a mesh that `meshwarden up` has started, as its operator."""

    def __init__(self, up_json: Path) -> None:
        up = json.loads(up_json.read_text())
        at = urllib.parse.urlsplit(up["rest"]["url"])
        self._place, self._name = (at.hostname, at.port), up["rest"]["server_name"]
        self._tls = ssl.create_default_context(cafile=up["control_plane"]["ca_file"])
        self._tls.load_cert_chain(up["admin"]["cert_file"], up["admin"]["key_file"])

    def ask(self, verb: str, path: str, body: Any = None, **headers: str) -> http.client.HTTPResponse:
        """Sends a request; whoever gets the response reads it."""
        connection = http.client.HTTPSConnection(self._name, timeout=60)
        # The control plane is known by its name, wherever it listens.
        connection.sock = self._tls.wrap_socket(socket.create_connection(self._place, 60), server_hostname=self._name)
        data = None if body is None else json.dumps(body)
        connection.request(verb, path, data, {"content-type": "application/json", **headers})
        return connection.getresponse()

    def get(self, path: str, **parameters: str) -> Any:
        """What a path says."""
        query = urllib.parse.urlencode(parameters)
        with self.ask("GET", f"{path}?{query}") as answer:
            found = json.load(answer)
        if answer.status != 200:
            raise RuntimeError(f"{found['title']}: {found['detail']}")
        return found

    def events(self, path: str, **headers: str) -> Iterator[tuple[str, Any]]:
        """The events of a stream, each with its id: to go on from there, say it as `Last-Event-ID`."""
        with self.ask("GET", path, accept="text/event-stream", **headers) as answer:
            number = ""
            for line in answer:
                name, _, value = line.decode().rstrip("\n").partition(": ")
                if name == "id":
                    number = value
                elif name == "data":
                    yield number, json.loads(value)


def main(up_json: Path) -> None:
    mesh = Mesh(up_json)
    for node in mesh.get("/v1/status")["nodes"]:
        print(node["node"], "connected" if node.get("connected") else "away", node.get("ackedRevision", 0))
    page = mesh.get("/v1/resources/Service", pageSize="2")
    while True:
        for service in page["resources"]:
            print(f"{service['metadata']['tenant']}/{service['metadata']['name']}")
        if "nextPageToken" not in page:
            break
        page = mesh.get("/v1/resources/Service", pageSize="2", pageToken=page["nextPageToken"])
    # All there is comes first, and the last of it has a cursor.
    for number, event in mesh.events("/v1/resources:watch?kinds=Tenant"):
        for change in event.get("events", []):
            print(change["ref"]["name"], "is there" if "resource" in change else "is gone")
        if number:
            print(f"what comes after {number} is news")
            break


if __name__ == "__main__":
    main(Path(sys.argv[1]))
