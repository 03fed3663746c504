"""What the system gets back, in a process of its own: what is set for a process can't be unset."""

import subprocess
import sys

PROGRAM = """
import sys
from meshwarden.sdk.heap import return_large_blocks

def resident_mib():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20

if sys.argv[1] == "returned":
    return_large_blocks()
bytes(30 << 20)  # a large message comes and goes
before, kept = resident_mib(), []
for _ in range(3):  # each time something small stays between the large ones
    blocks = []
    for _ in range(100):
        blocks.append(b"x" * (1 << 20))
        kept.append(b"y" * 8000)
    del blocks
print(resident_mib() - before)
"""


def left_mib(how: str) -> float:
    return float(subprocess.check_output([sys.executable, "-c", PROGRAM, how], text=True))


def test_what_large_messages_took_is_returned() -> None:
    assert left_mib("returned") < 20 < left_mib("left to glibc")
