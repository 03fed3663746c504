"""Generates the descriptors of the SPIFFE Workload API that the agent loads: `python proto/spiffe/generate.py`.

Source: descriptor.proto of protobuf. tests/unit/agents/workload_api/test_workload_api.py holds the tree against it.
"""

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
OUT = HERE.parents[1] / "agents/meshwarden/agents/workload_api/workload_api.binpb"


def main(out: Path = OUT) -> None:
    """Writes the descriptors, with what they import, to `out`."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{HERE}",
            "--include_imports",
            f"--descriptor_set_out={out}",
            "workload_api.proto",
        ],
        check=True,
        cwd=HERE,
    )


if __name__ == "__main__":
    main()
