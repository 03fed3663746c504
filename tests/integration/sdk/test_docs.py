"""What docs/sdk.md prints runs as printed."""

import re
import textwrap
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[3] / "docs" / "sdk.md"
CALL, SERVE, CONFIGURE, AIO = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_examples_of_the_page(mesh: Any, port: int) -> None:
    serving = mesh.workload("platform", "orders", port)
    program = serving.start("-c", CONFIGURE + SERVE)
    mesh.until_open(serving, program)
    calling = mesh.workload("acme", "web").start("-c", CONFIGURE + CALL)
    assert calling.popen.stdout.readline() == "acme\n", "".join(calling.log)
    assert calling.popen.wait(60) == 0
    assert program.end() == 0


def test_the_example_of_an_aio_server(mesh: Any) -> None:
    body = textwrap.indent(f"{AIO}await server.start()\nawait server.stop(None)\n", "    ")
    imports = "import asyncio\nimport grpc\nfrom meshwarden import sdk\n"
    source = f"{imports}async def main():\n{body}\nasyncio.run(main())\n"
    program = mesh.workload("acme", "web").start("-c", source)
    assert program.popen.wait(60) == 0, "".join(program.log)
