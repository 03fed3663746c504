"""Schemathesis makes up requests by the document, good ones and bad ones, and holds the answers against it.

`MESHWARDEN_FUZZ=1` has it search for longer.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from rest_client import DEADLINE_S

pytestmark = pytest.mark.hypothesis

ROOT = Path(__file__).parents[3]
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "unsupported_method",
)
# Streams go on and on.
STREAMS = r"(:watch|:replay|/dataPlanes/\{dataPlane\})$"
SECONDS = 240 if "MESHWARDEN_FUZZ" in os.environ else 10


async def test_the_live_server_is_as_its_document_says(start: Any, tmp_path: Path) -> None:
    mesh = await start(rest={"listen": "127.0.0.1:0"})
    url = json.loads((mesh.directory / mesh.name / "server.json").read_text())["rest_url"]
    files = mesh.directory / f"operator-{mesh.name}"
    process = await asyncio.create_subprocess_exec(
        *(
            str(Path(sys.executable).with_name("schemathesis")),
            "--config-file",
            str(Path(__file__).with_name("schemathesis.toml")),
        ),
        *("run", str(ROOT / "docs" / "openapi.json"), "--url", url),
        # The name that its certificate has resolves to nothing; test_rest.py looks at it.
        *(
            "--tls-verify",
            "false",
            "--request-cert",
            str(files / "tls.crt"),
            "--request-cert-key",
            str(files / "tls.key"),
        ),
        *("--exclude-path-regex", STREAMS, "--checks", ",".join(CHECKS), "--phases", "coverage,fuzzing"),
        *("--max-time", str(SECONDS), "--max-examples", "1000", "--request-timeout", str(DEADLINE_S), "--no-shrink"),
        *("--suppress-health-check", "all", "--generation-database", "none", "--warnings", "off", "--no-color"),
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()[-8000:]
    assert b"generated" in said, said.decode()[-2000:]
