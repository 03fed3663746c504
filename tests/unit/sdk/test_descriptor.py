"""The limit on open files, in a process of its own: it can be lowered, not raised again."""

import resource
import subprocess
import sys

PROGRAM = """
import resource
from meshwarden.sdk.descriptor import allow_descriptors, connections
soft, hard = {limits}
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
allow_descriptors()
print(*resource.getrlimit(resource.RLIMIT_NOFILE), connections(3))
"""


def limits_after(limits: str) -> list[int]:
    command = [sys.executable, "-c", PROGRAM.format(limits=limits)]
    return [int(word) for word in subprocess.check_output(command, text=True).split()]


def test_the_soft_limit_goes_up_to_the_hard_one_and_no_further() -> None:
    assert limits_after("(64, 512)")[:2] == [512, 512]
    assert limits_after("(512, 512)")[:2] == [512, 512]


def test_a_fleet_of_thousands_has_a_place_where_the_descriptors_are() -> None:
    *_, places = limits_after("(512, min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))")
    assert 3 * places < min(20_000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert limits_after("(64, 512)")[2] == 149
