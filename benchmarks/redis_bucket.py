"""The usual other way: a token bucket in Redis, asked at each call."""

import shutil
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Final

import redis

from benchmarks.process import Broken, child, cpu_s, say
from benchmarks.result import Case

DECISIONS, TENANTS = 20_000, 1000
# One key a tenant: what is in the bucket, and since when. Redis' own clock counts, as it does for who shares it.
BUCKET: Final = """
local now = redis.call('TIME')
now = tonumber(now[1]) + tonumber(now[2]) / 1e6
local known = redis.call('HMGET', KEYS[1], 'left', 'at')
local left, at = tonumber(known[1]) or tonumber(ARGV[2]), tonumber(known[2]) or now
left = math.min(tonumber(ARGV[2]), left + (now - at) * tonumber(ARGV[1]))
local allowed = 0
if left >= 1 then left = left - 1; allowed = 1 end
redis.call('HSET', KEYS[1], 'left', left, 'at', now)
redis.call('EXPIRE', KEYS[1], 60)
return allowed
"""


async def cases(directory: Path, rounds: int, ours: Callable[[], tuple[float, float]]) -> AsyncIterator[Case]:
    """Yields CPU and time of a decision.

    Args:
        directory: for the server's socket.
        rounds: how often each side has its turn.
        ours: CPU and time of a decision of ours, in µs.

    Raises:
        Broken: there is no redis-server.
    """
    say("quota: beside a bucket in Redis")
    program = shutil.which("redis-server")
    if program is None:
        raise Broken("redis-server is missing: make deps installs it")
    path = directory / "redis.sock"
    command = [program, "--port", "0", "--unixsocket", str(path), "--save", "", "--dir", str(directory)]
    cpu = Case("quota", "peer, Redis bucket, CPU", "a token bucket in Redis, on a Unix socket: client and server", "µs")
    wait = Case("quota", "peer, Redis bucket, time", "the same: until the answer is there", "µs")
    async with child("redis", command, directory) as server:
        await server.until_listening(path)
        with redis.Redis(unix_socket_path=str(path)) as client:
            decide = client.register_script(BUCKET)
            for _ in range(rounds):
                begun_s, cpu_begun_s = time.perf_counter(), time.process_time() + cpu_s(server.pid)
                for number in range(DECISIONS):
                    decide(keys=[f"tenant-{number % TENANTS}"], args=[1_000_000, 1_000_000])
                took = time.process_time() + cpu_s(server.pid) - cpu_begun_s, time.perf_counter() - begun_s
                mine = ours()
                cpu.add(mine[0], took[0] / DECISIONS * 1e6)
                wait.add(mine[1], took[1] / DECISIONS * 1e6)
    yield cpu
    yield wait
