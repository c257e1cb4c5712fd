#!/usr/bin/env python3
"""User-space instructions of Envoy per request: no filter, Envoy's own filters, haven.

`make bench` runs it. Each case is an Envoy of its own under callgrind. It is warmed until V8 has
compiled the hot functions; then several batches of requests on one keep-alive connection are
counted and the median batch is taken. The count hardly moves on a busy machine, where times do. It
leaves out the kernel, cache misses and waits. The column "allocator" is the part of tcmalloc, which
is slower here than in life: valgrind lacks rseq, which its per-CPU caches need. Proxied cases go to
an nginx that this script starts; direct ones end in Envoy with a direct_response.

--balance adds each balancing policy over 3 and over 1,000 endpoints.

--floors adds what the host alone charges for the calls that haven makes: rows of benches/floor, a
module that makes them and does nothing else. No filter of this ABI can go below, whatever it is
written in.
"""

import argparse
import concurrent.futures
import copy
import dataclasses
import json
import os
import pathlib
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "benches/envoy"
REQUEST = "/api/v1/items?id=1"
HEADERS = [
    "x-client: c1",
    "authorization: Bearer abcdefghijklmnopqrstuvwxyz0123456789",
    "x-request-tag: some-medium-length-value",
]
UPSTREAMS = 3
MANY = 1000
STACK = ["health_check", "fault", "local_ratelimit", "admission_control", "adaptive_concurrency"]
TOOLS = {
    "valgrind": "valgrind",
    "callgrind_control": "valgrind",
    "nginx": "nginx",
    "h2load": "nghttp2-client",
    "readelf": "binutils",
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One row: what stands in the filter chain, and how it should answer."""

    name: str
    route: str
    filters: tuple = ()
    haven: str | None = None
    cluster: str | None = None
    count_attempts: bool = False  # whether the proxy's answers have the number of its tries
    floor: str | None = None  # the calls that benches/floor is to make
    body: bool = True  # whether it has the callback for the response's body, too
    answer: int = 2  # class of the status: 2 for 2xx
    policy: str | None = None  # how haven picks an endpoint, where that is what is measured
    endpoints: int = 3

    @property
    def table(self):
        if self.policy is not None:
            return "balanced"
        return self.route if self.floor is None else "floor"


CASES = [
    Case("no filter", "proxied"),
    Case("native stack", "proxied", tuple(STACK), cluster="native"),
    Case("haven", "proxied", haven="haven-slice.json", cluster="haven"),
    Case(
        "haven, all of the chain",
        "proxied",
        haven="haven-full.json",
        cluster="haven",
        count_attempts=True,
    ),
    Case("no filter", "direct"),
    Case("native rate limit, shared", "direct", ("local_ratelimit_shared",)),
    Case("native rate limit per client", "direct", ("local_ratelimit",)),
    Case("haven, empty configuration", "direct", haven="haven-empty.json"),
    Case("haven rate limit, shared", "direct", haven="haven-shared.json"),
    Case("haven rate limit per client", "direct", haven="haven-limit.json"),
    Case("native 429", "direct", ("local_ratelimit_refusing",), answer=4),
    Case("haven 429, no quota headers", "direct", haven="haven-refusing-plain.json", answer=4),
    Case("haven 429", "direct", haven="haven-refusing.json", answer=4),
]
# Few endpoints and many. A route to as many with Envoy's own round robin shows which part of the
# difference is Envoy's.
BALANCED = [
    Case(
        f"{name}, {count}",
        "proxied",
        haven=haven,
        cluster=cluster,
        count_attempts=True,
        policy=policy,
        endpoints=count,
    )
    for name, haven, cluster, policy in [
        ("no filter", None, None, ""),
        *(
            (policy, "haven-balance.json", "haven", policy)
            for policy in (
                "round_robin",
                "least_request",
                "peak_ewma",
                "consistent_hash",
                "random",
                "first",
            )
        ),
    ]
    for count in (3, MANY)
]
FLOORS = [
    Case("haven's cluster, no filter", "proxied", cluster="haven"),
    Case("callbacks but for the response's body", "proxied", floor="", body=False),
    Case("callbacks alone", "proxied", floor=""),
    Case("+ ten metrics added to and read", "proxied", floor="gauges"),
    Case("+ clock, request and response headers", "proxied", floor="clock map answer"),
    Case("the same, + a request header added", "proxied", floor="clock map answer add"),
    Case(
        "the same, + a request header set, haven's cluster",
        "proxied",
        floor="clock map answer set",
        cluster="haven",
    ),
    Case(
        "the same, + the endpoint's address",
        "proxied",
        floor="clock map answer set address",
        cluster="haven",
    ),
    Case("callbacks but for the response's body", "direct", floor="", body=False),
    Case("callbacks alone", "direct", floor=""),
    Case("+ clock", "direct", floor="clock"),
    Case("+ clock, eleven headers removed", "direct", floor="clock remove"),
    Case("+ clock, request headers", "direct", floor="clock map"),
    Case("+ clock, request headers, compare-and-swap", "direct", floor="clock map shared"),
    Case("bare 429", "direct", floor="bare", answer=4),
    Case("429 with haven's headers and body", "direct", floor="full", answer=4),
    Case(
        "429, + clock, request headers, access log",
        "direct",
        floor="clock map state full",
        answer=4,
    ),
]


@dataclasses.dataclass
class Count:
    """What was measured of a case: instructions per request, by batch."""

    case: Case
    batches: list
    allocator: float
    bad: int

    @property
    def median(self):
        return statistics.median(self.batches)


class Failure(Exception):
    pass


def config(name):
    return json.loads((CONFIGS / name).read_text())


def find_tools():
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = {tool: shutil.which(tool, path=path) for tool in TOOLS}
    missing = {TOOLS[tool] for tool, where in found.items() if where is None}
    if missing:
        sys.exit(
            f"error: the benchmark needs {', '.join(t for t in TOOLS if not found[t])}\n"
            f"       on Debian and Ubuntu: sudo apt-get install {' '.join(sorted(missing))}"
        )
    return found


def free_ports(count):
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def socket_address(port, address="127.0.0.1"):
    return {"socket_address": {"address": address, "port_value": port}}


def http_filter(name, typed_config):
    return {"name": name, "typed_config": typed_config}


def addresses(case, upstreams):
    """The endpoints of a case, by address and port; many are addresses of the loopback."""
    if case.policy is None:
        return [("127.0.0.1", port) for port in upstreams]
    return [
        (f"127.0.{1 + number // 250}.{1 + number % 250}", upstreams[0])
        for number in range(case.endpoints)
    ]


def haven_config(case, endpoints):
    plugin = config(case.haven)
    for upstream in plugin.get("upstreams", {}).values():
        upstream["endpoints"] = [{"address": f"{address}:{port}"} for address, port in endpoints]
        if case.policy:
            upstream["load_balancer"] = {"policy": case.policy}
    return json.dumps(plugin)


def wasm_filter(wasm, plugin):
    return http_filter(
        "haven",
        {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm",
            "config": {
                "name": "haven",
                "failure_policy": "FAIL_RELOAD",
                "vm_config": {
                    "vm_id": "haven",
                    "runtime": "envoy.wasm.runtime.v8",
                    "code": {"local": {"filename": str(wasm)}},
                },
                "configuration": {
                    "@type": "type.googleapis.com/google.protobuf.StringValue",
                    "value": plugin,
                },
            },
        },
    )


def bootstrap(case, modules, port, admin, upstreams):
    """The Envoy config of a case."""
    envoy = config("bootstrap.json")
    envoy["admin"]["address"] = socket_address(admin)
    listener = envoy["static_resources"]["listeners"][0]
    listener["address"] = socket_address(port)
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager["route_config"]["virtual_hosts"][0]["routes"] = [config("routes.json")[case.route]]
    manager["route_config"]["virtual_hosts"][0][
        "include_attempt_count_in_response"
    ] = case.count_attempts
    native = config("filters.json")
    chain = [http_filter(name, native[name]) for name in case.filters]
    if case.haven:
        chain.append(wasm_filter(modules["haven"], haven_config(case, addresses(case, upstreams))))
    if case.floor is not None:
        chain.append(wasm_filter(modules["floor", case.body], case.floor))
    manager["http_filters"] = chain + manager["http_filters"]
    cluster = envoy["static_resources"]["clusters"][0]
    cluster["load_assignment"]["endpoints"][0]["lb_endpoints"] = [
        {"endpoint": {"address": socket_address(port, address)}}
        for address, port in addresses(case, upstreams)
    ]
    if case.cluster:
        cluster.update(copy.deepcopy(config("clusters.json")[case.cluster]))
    return envoy


class Nginx:
    """An upstream that answers a few bytes, on several ports."""

    def __init__(self, program, folder, ports):
        many = Case("", "", policy="", endpoints=MANY)
        listens = " ".join(
            f"listen {address}:{port};"
            for address, port in {*addresses(many, ports), *(("127.0.0.1", port) for port in ports)}
        )
        temporary = " ".join(
            f"{kind}_temp_path {folder};"
            for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        )
        path = folder / "nginx.conf"
        path.write_text(
            f"daemon off; master_process off; pid {folder}/nginx.pid;\n"
            f"error_log {folder}/nginx.log; events {{ worker_connections 8192; }}\n"
            "http { access_log off; keepalive_requests 1000000000; keepalive_timeout 1h;\n"
            f"{temporary} server {{ {listens}\n"
            'location / { default_type text/plain; return 200 "ok\\n"; } } }\n'
        )
        self.process = subprocess.Popen(
            [program, "-c", path, "-e", folder / "nginx.log"], stderr=subprocess.DEVNULL
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        stop(self.process)


def stop(process):
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Allocator:
    """The addresses of the Envoy binary that are tcmalloc's: those of its section google_malloc."""

    LOADED_AT = 0x108000  # where valgrind puts a position-independent program

    def __init__(self, readelf, envoy):
        sections = subprocess.run(
            [readelf, "-SW", envoy], capture_output=True, text=True, check=True
        ).stdout
        section = re.search(r"google_malloc\s+PROGBITS\s+(\w+)\s+\w+\s+(\w+)", sections)
        begin = int(section[1], 16) + self.LOADED_AT if section else 0
        self.range = range(begin, begin + int(section[2], 16) if section else 0)

    def instructions(self, dump):
        """Instructions of tcmalloc's own functions in a callgrind dump.

        Names occur once as `(id) name`, later as `(id)`.
        """
        total, inside, after_call, owned = 0, False, False, {}
        for line in dump.splitlines():
            if named := re.match(r"(c?fn)=\((\d+)\)(?: 0x([0-9a-f]+))?", line):
                kind, ident, address = named.groups()
                if address:
                    owned[ident] = int(address, 16) in self.range
                if kind == "fn":
                    inside = owned.get(ident, False)
            elif line.startswith("calls="):
                after_call = True
            elif line[:1] in set("+-*0123456789"):
                # The line after calls= is the callee's cost, which is counted at the callee.
                if inside and not after_call:
                    total += int(line.split()[1])
                after_call = False
        return total


class Bench:
    def __init__(self, options, tools, modules, folder, upstreams):
        self.options, self.tools, self.modules, self.folder, self.upstreams = (
            options,
            tools,
            modules,
            folder,
            upstreams,
        )
        self.allocator = Allocator(tools["readelf"], options.envoy)

    def load(self, port, requests, answer):
        """Sends requests one after another; how many were not answered as expected."""
        headers = [word for header in HEADERS for word in ("-H", header)]
        command = [
            self.tools["h2load"],
            "--h1",
            "-c",
            "1",
            "-t",
            "1",
            "-n",
            str(requests),
            *headers,
            f"http://127.0.0.1:{port}{REQUEST}",
        ]
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=True
        ).stdout
        return requests - int(re.search(rf"status codes:.*?(\d+) {answer}xx", output)[1])

    def control(self, process, *command):
        subprocess.run(
            [self.tools["callgrind_control"], *command, str(process.pid)],
            capture_output=True,
            timeout=120,
            check=True,
        )

    def start(self, case, folder, port, admin):
        path = folder / "envoy.json"
        path.write_text(json.dumps(bootstrap(case, self.modules, port, admin, self.upstreams)))
        command = [
            self.tools["valgrind"],
            "--tool=callgrind",
            "--instr-atstart=no",
            "--smc-check=all-non-file",
            f"--callgrind-out-file={folder}/dump",
            self.options.envoy,
            "--config-path",
            path,
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "error",
        ]
        with open(folder / "log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        end = time.monotonic() + 180
        while process.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}/ready", timeout=5) as reply:
                    if b"LIVE" in reply.read():
                        return process
            except OSError:
                pass
            time.sleep(0.2)
        stop(process)
        raise Failure(f"Envoy did not start: {(folder / 'log').read_text()[-600:].strip()}")

    def dumped(self, process, folder, number):
        """Asks for the next dump and reads it once it is whole."""
        path = folder / f"dump.{number}"
        self.control(process, "--dump")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if path.exists() and "\ntotals:" in (text := path.read_text()):
                return text
            time.sleep(0.05)
        raise Failure("callgrind wrote no dump")

    def measure(self, case):
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        port, admin = free_ports(2)
        process = self.start(case, folder, port, admin)
        try:
            self.load(port, self.options.warm, case.answer)
            self.control(process, "--instr=on")
            self.load(port, 200, case.answer)
            batches, allocated, bad = [], [], 0
            for number in range(1, self.options.batches + 1):
                self.control(process, "--zero")
                begun = time.monotonic()
                bad += self.load(port, self.options.requests, case.answer)
                took = time.monotonic() - begun
                dump = self.dumped(process, folder, 2 * number - 1)
                total = int(re.search(r"^totals: (\d+)", dump, re.M)[1])
                if case.policy is not None:
                    # What Envoy and haven do by the clock, whether or not requests come: in an
                    # Envoy that is slowed down fifty times fewer requests would share it.
                    self.control(process, "--zero")
                    time.sleep(took)
                    idle = self.dumped(process, folder, 2 * number)
                    total -= int(re.search(r"^totals: (\d+)", idle, re.M)[1])
                batches.append(total / self.options.requests)
                allocated.append(self.allocator.instructions(dump) / self.options.requests)
            if self.options.keep:
                self.options.keep.mkdir(parents=True, exist_ok=True)
                (self.options.keep / re.sub(r"\W+", "-", f"{case.table} {case.name}")).write_text(
                    dump
                )
            return Count(case, batches, statistics.median(allocated), bad)
        finally:
            stop(process)

    def attempt(self, case):
        try:
            count = self.measure(case)
        except (Failure, OSError, subprocess.SubprocessError) as error:
            return case, error
        print(f"    {case.table}, {case.name}: {count.median:,.0f}", file=sys.stderr, flush=True)
        return count


def build_floor(body):
    """Builds benches/floor, with or without the response body's callback; its path."""
    target = (
        pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
        / f"floor-{'with' if body else 'without'}-body"
    )
    command = [
        "cargo",
        "build",
        "--release",
        "--quiet",
        "--target",
        "wasm32-unknown-unknown",
        "--target-dir",
        target,
    ]
    subprocess.run([*command, *["--features=body"] * body], cwd=ROOT / "benches/floor", check=True)
    return target / "wasm32-unknown-unknown/release/floor.wasm"


def table(counts, name):
    """The rows of a table in markdown, each held against the row of its route without a filter."""
    rows = [count for count in counts if count.case.table == name]
    bases = {
        count.case.route: count.median
        for count in counts
        if count.case == Case("no filter", count.case.route)
    }
    if name == "balanced":
        bases = {
            count.case.route: count.median
            for count in rows
            if count.case.haven is None and count.case.endpoints == 3
        }
    lines = [
        f"| {name} | instructions per request | over no filter | ratio | allocator | spread | bad responses |",
        "|---|---|---|---|---|---|---|",
    ]
    for count in rows:
        median, base = count.median, bases.get(count.case.route)
        over, ratio = (f"{median - base:,.0f}", f"{median / base:.3f}") if base else ("", "")
        spread = (max(count.batches) - min(count.batches)) / median * 100
        lines.append(
            f"| {count.case.name} | {median:,.0f} | {over} | {ratio} | {count.allocator:,.0f} | {spread:.1f} % | {count.bad} |"
        )
    return "\n".join(lines)


def parse():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--envoy",
        type=pathlib.Path,
        default=os.environ.get("HAVEN_ENVOY"),
        help="Envoy binary (default $HAVEN_ENVOY)",
    )
    parser.add_argument(
        "--wasm",
        type=pathlib.Path,
        default=ROOT / "dist/haven.wasm",
        help="the filter (default dist/haven.wasm)",
    )
    parser.add_argument(
        "--only",
        default="",
        metavar="REGEX",
        help="the cases whose `route name` matches, e.g. 'proxied|429'",
    )
    parser.add_argument(
        "--floors", action="store_true", help="count what the host alone charges, too"
    )
    parser.add_argument(
        "--balance",
        action="store_true",
        help=f"count the balancing policies over 3 and {MANY} endpoints, too",
    )
    parser.add_argument("--requests", type=int, default=1000, help="requests in a batch (1000)")
    parser.add_argument("--batches", type=int, default=3, help="counted batches of a case (3)")
    parser.add_argument("--warm", type=int, default=6000, help="requests before the count (6000)")
    parser.add_argument(
        "--keep",
        type=pathlib.Path,
        metavar="FOLDER",
        help="leave each case's last callgrind dump there",
    )
    parser.add_argument("--jobs", type=int, default=2, help="cases at a time (2)")
    parser.add_argument(
        "--out",
        type=pathlib.Path,
        default=ROOT / "dist/bench.md",
        help="where the tables go as well (dist/bench.md)",
    )
    options = parser.parse_args()
    if not options.envoy or not options.envoy.exists():
        parser.error("no Envoy: run `make bench`, or give --envoy PATH")
    options.wasm = options.wasm.resolve()
    return options


def main():
    options = parse()
    tools = find_tools()
    cases = [
        case
        for case in CASES + BALANCED * options.balance + FLOORS * options.floors
        if re.search(options.only, f"{case.table} {case.name}")
    ]
    modules = {"haven": options.wasm}
    if options.floors:
        modules.update((("floor", body), build_floor(body)) for body in (True, False))
    print(
        f"==> counting {len(cases)} cases, about {len(cases) * 20 // options.jobs} s",
        file=sys.stderr,
        flush=True,
    )
    with tempfile.TemporaryDirectory(prefix="haven-bench-") as name:
        folder, upstreams = pathlib.Path(name), free_ports(UPSTREAMS)
        with Nginx(tools["nginx"], folder, upstreams), concurrent.futures.ThreadPoolExecutor(
            options.jobs
        ) as pool:
            results = list(
                pool.map(Bench(options, tools, modules, folder, upstreams).attempt, cases)
            )
    counts = [result for result in results if isinstance(result, Count)]
    failures = [result for result in results if not isinstance(result, Count)]
    version = (
        subprocess.run([options.envoy, "--version"], capture_output=True, text=True, check=True)
        .stdout.strip()
        .split("/")
    )
    tables = [table(counts, name) for name in dict.fromkeys(count.case.table for count in counts)]
    text = (
        "\n\n".join(
            [
                f"Envoy {next((part for part in version if re.match(r'[0-9.]+$', part)), '?')}, one worker, "
                f"median of {options.batches} x {options.requests} requests",
                *tables,
            ]
        )
        + "\n"
    )
    print(text)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(text)
    for case, error in failures:
        print(f"error: {case.route}, {case.name}: {error}", file=sys.stderr)
    for count in counts:
        if count.bad:
            print(
                f"error: {count.case.route}, {count.case.name}: {count.bad} responses were not {count.case.answer}xx",
                file=sys.stderr,
            )
    if failures or any(count.bad for count in counts):
        sys.exit(1)


if __name__ == "__main__":
    main()
