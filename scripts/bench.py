#!/usr/bin/env python3
"""User-space instructions of Envoy per request: no filter, Envoy's own filters, haven.

`make bench` runs it, and writes the tables of docs/cost.md, each between its two marks there. Each
case is an Envoy of its own under callgrind. It is warmed until V8 has compiled the hot functions;
then several batches of requests on one keep-alive connection are counted and the median batch is
taken. The count hardly moves on a busy machine, where times do. It leaves out the kernel, cache
misses and waits. The column "allocator" is the part of tcmalloc, which is slower here than in life:
valgrind lacks rseq, which its per-CPU caches need. Proxied cases go to an nginx that this script
starts; direct ones end in Envoy with a direct_response.

--balance adds each balancing policy over 3 and over 1,000 endpoints.

The floors are what the host alone charges for the calls that haven makes: rows of benches/floor, a
module that makes them and does nothing else. No filter of this ABI can go below, whatever it is
written in.

Last, without callgrind, some of the proxied cases stand side by side under load: requests per
second, and times at half of what the proxy does without a filter, in rounds in turn.
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
DOCS = ROOT / "docs/cost.md"
REQUEST = "/api/v1/items?id=1"
SLOW = "/slow"  # of its answer's body the upstream sends a byte a second
HEADERS = [
    "x-client: c1",
    "authorization: Bearer abcdefghijklmnopqrstuvwxyz0123456789",
    "x-request-tag: some-medium-length-value",
]
UPSTREAMS = 3
MANY = 1000
# How many headers a request has on its way, Envoy's own included, in the cases with many.
MANY_HEADERS = 60
ROUNDS = 3
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
    edits: str = "{}"  # what replaces fields of haven's configuration, as JSON
    cluster: str | None = None
    manager: str = "{}"  # fields of the connection manager, as JSON
    base: str = "no filter"  # the row that it is held against
    exceptions: str = ""  # what of the wiring is there: the "matcher", or "all" with the access log
    more_headers: int = 0  # of the request
    count_attempts: bool = False  # whether the proxy's answers have the number of its tries
    floor: str | None = None  # the calls that benches/floor is to make
    body: bool = True  # whether it has the callback for the response's body, too
    answer: int = 2  # class of the status: 2 for 2xx
    policy: str | None = None  # how haven picks an endpoint, where that is what is measured
    endpoints: int = UPSTREAMS

    @property
    def table(self):
        if self.policy is not None:
            return "balanced"
        return self.route if self.floor is None else f"{self.route} floor"


# What the columns of a table are headed by.
TABLES = {
    "proxied": "proxied",
    "direct": "answered by Envoy itself",
    "direct floor": "the host alone",
    "proxied floor": "proxied, the host alone",
    "balanced": "balanced",
}
BY_EXCEPTION = '{"outcomes": "by_exception"}'
FORWARDED = '{"use_remote_address": true}'
BY_ADDRESS = json.dumps(
    {
        "client_ip": {"source": "x-forwarded-for", "trusted_hops": 1},
        "rate_limits": {"per-client": {"limit": 10**9, "key": ["client_ip"], "headers": "none"}},
    }
)
IGNORED = {
    "request_headers": "ignore",
    "health": {"livez": None, "readyz": None, "startupz": None, "health": None, "grpc": False},
}
IGNORE = json.dumps(IGNORED)
SPENT = {"limit": 1, "period": "1h", "headers": "none"}


def ten_limits():
    limit = {"limit": 10**9, "key": [{"header": "x-client"}], "headers": "none"}
    limits = {f"per-client-{number}": limit for number in range(10)}
    routes = [{"name": "all", "rate_limits": list(limits)}]
    return json.dumps({"rate_limits": limits, "routes": routes})


def many_routes(match):
    """Routes of which the last is taken."""
    routes = [{"name": f"r{number}", "match": match(number)} for number in range(499)]
    return json.dumps({"routes": [*routes, {"name": "all", "rate_limits": ["per-client"]}]})


def chain(name, more_headers=0, **options):
    """Haven's chain: a limit for each client, a breaker, a limit of what is in flight, balancing."""
    return Case(
        name,
        "proxied",
        haven="haven-chain.json",
        cluster="haven",
        more_headers=more_headers,
        base=f"no filter, {MANY_HEADERS} headers" if more_headers else "no filter",
        **options,
    )


def direct(name, haven, edits="{}", **options):
    return Case(name, "direct", haven=haven, edits=edits, **options)


WIRED = {"edits": BY_EXCEPTION, "exceptions": "all"}
# A request of h2load's has seven headers more than those of HEADERS.
MORE = MANY_HEADERS - len(HEADERS) - 7
CASES = [
    Case("no filter", "proxied"),
    Case("native stack", "proxied", tuple(STACK), cluster="native"),
    chain("haven, one endpoint", endpoints=1),
    chain("haven, three endpoints"),
    chain("haven by exception, one endpoint", endpoints=1, **WIRED),
    chain("haven by exception, three endpoints", **WIRED),
    Case(
        "haven, and an adaptive limit, breakers of endpoints, a timeout, a retry",
        "proxied",
        haven="haven-full.json",
        cluster="haven",
        count_attempts=True,
    ),
    Case(f"no filter, {MANY_HEADERS} headers", "proxied", more_headers=MORE),
    Case(
        f"native stack, {MANY_HEADERS} headers",
        "proxied",
        tuple(STACK),
        cluster="native",
        more_headers=MORE,
        base=f"no filter, {MANY_HEADERS} headers",
    ),
    chain(f"haven, one endpoint, {MANY_HEADERS} headers", MORE, endpoints=1),
    chain(f"haven by exception, one endpoint, {MANY_HEADERS} headers", MORE, endpoints=1, **WIRED),
    Case("no filter", "direct"),
    Case("native rate limit, shared", "direct", ("local_ratelimit_shared",)),
    Case("native rate limit per client", "direct", ("local_ratelimit",)),
    direct("haven, empty configuration", "haven-empty.json"),
    direct("haven rate limit, shared", "haven-shared.json"),
    direct(
        "haven rate limit, shared, behind the matcher", "haven-shared.json", exceptions="matcher"
    ),
    direct("haven rate limit, shared, no header read", "haven-shared.json", IGNORE),
    direct(
        "haven rate limit, shared, no header read, behind the matcher",
        "haven-shared.json",
        IGNORE,
        exceptions="matcher",
    ),
    direct("haven rate limit per client", "haven-limit.json"),
    direct(
        "haven rate limit per client, behind the matcher", "haven-limit.json", exceptions="matcher"
    ),
    direct("haven, ten limits per client", "haven-limit.json", ten_limits()),
    direct(
        "haven rate limit per client, the last of 500 routes by path",
        "haven-limit.json",
        many_routes(lambda number: {"prefix": f"/other/{number}"}),
    ),
    direct(
        "haven rate limit per client, the last of 500 routes by host",
        "haven-limit.json",
        many_routes(lambda number: {"hosts": [f"host-{number}.example.com"]}),
    ),
    Case("no filter, addresses forwarded", "direct", manager=FORWARDED),
    direct(
        "haven rate limit per client address",
        "haven-limit.json",
        BY_ADDRESS,
        manager=FORWARDED,
        base="no filter, addresses forwarded",
    ),
    direct(
        "haven rate limit per client address, behind the matcher",
        "haven-limit.json",
        BY_ADDRESS,
        manager=FORWARDED,
        exceptions="matcher",
        base="no filter, addresses forwarded",
    ),
    Case(
        "native 429, without a header or a reason",
        "direct",
        ("local_ratelimit_refusing",),
        answer=4,
    ),
    direct(
        "haven 429, shared",
        "haven-shared.json",
        json.dumps({"rate_limits": {"all": SPENT}}),
        answer=4,
    ),
    direct(
        "haven 429, shared, no header read",
        "haven-shared.json",
        json.dumps({**IGNORED, "rate_limits": {"all": SPENT}}),
        answer=4,
    ),
    direct(
        "haven 429, per client",
        "haven-limit.json",
        json.dumps({"rate_limits": {"per-client": {**SPENT, "key": [{"header": "x-client"}]}}}),
        answer=4,
    ),
    direct("haven 429, per client, with quota headers", "haven-refusing.json", answer=4),
]
# What stands side by side under load.
SIDES = (
    "no filter",
    "native stack",
    "haven, one endpoint",
    "haven by exception, one endpoint",
)
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
        return [("127.0.0.1", port) for port in upstreams[: case.endpoints]]
    return [
        (f"127.0.{1 + number // 250}.{1 + number % 250}", upstreams[0])
        for number in range(case.endpoints)
    ]


def haven_config(case, endpoints):
    plugin = {**config(case.haven), **json.loads(case.edits)}
    for upstream in plugin.get("upstreams", {}).values():
        upstream["endpoints"] = [{"address": f"{address}:{port}"} for address, port in endpoints]
        if case.policy:
            upstream["load_balancer"] = {"policy": case.policy}
    return json.dumps(plugin)


def wasm(code, plugin):
    return {
        "name": "haven",
        "root_id": "haven",
        "failure_policy": "FAIL_RELOAD",
        "vm_config": {
            "vm_id": "haven",
            "runtime": "envoy.wasm.runtime.v8",
            "code": {"local": {"filename": str(code)}},
        },
        "configuration": {
            "@type": "type.googleapis.com/google.protobuf.StringValue",
            "value": plugin,
        },
    }


def wire(manager, plugin, exceptions):
    """Puts the filter into the chain, with so much of the wiring of docs/cost.md."""
    filters = "type.googleapis.com/envoy.extensions.filters.http.wasm.v3.Wasm"
    haven = http_filter("haven", {"@type": filters, "config": plugin})
    if exceptions:
        haven["typed_config"] = {
            "@type": "type.googleapis.com/envoy.extensions.common.matching.v3.ExtensionWithMatcher",
            "extension_config": dict(haven),
            "xds_matcher": config("exceptions.json")["matcher"],
        }
    if exceptions == "all":
        loggers = "type.googleapis.com/envoy.extensions.access_loggers.wasm.v3.WasmAccessLog"
        log = http_filter("haven", {"@type": loggers, "config": plugin})
        manager["access_log"] = [{**log, "filter": config("exceptions.json")["reported"]}]
        manager["route_config"]["virtual_hosts"][0]["include_request_attempt_count"] = True
    return haven


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
    manager.update(json.loads(case.manager))
    native = config("filters.json")
    filters = [http_filter(name, native[name]) for name in case.filters]
    if case.haven:
        plugin = wasm(modules["haven"], haven_config(case, addresses(case, upstreams)))
        filters.append(wire(manager, plugin, case.exceptions))
    if case.floor is not None:
        filters.append(wire(manager, wasm(modules["floor", case.body], case.floor), ""))
    manager["http_filters"] = filters + manager["http_filters"]
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
            f'location {SLOW} {{ limit_rate_after 512; limit_rate 1; return 200 "{"." * 999}"; }}\n'
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

    def h2load(self, port, case, *options):
        """Runs h2load, and returns what it prints."""
        more = [f"x-more-{number:02}: {'v' * 12}" for number in range(case.more_headers)]
        headers = [word for header in HEADERS + more for word in ("-H", header)]
        options = [str(option) for option in options]
        command = [self.tools["h2load"], "--h1", "-t", "1", *options, *headers]
        command.append(f"http://127.0.0.1:{port}{REQUEST}")
        return subprocess.run(
            command, capture_output=True, text=True, timeout=600, check=True
        ).stdout

    def load(self, port, requests, case):
        """Sends requests one after another; how many were not answered as expected."""
        output = self.h2load(port, case, "-c", 1, "-n", requests)
        return requests - int(re.search(rf"status codes:.*?(\d+) {case.answer}xx", output)[1])

    def prove(self, port):
        """Shows haven that the access log reports: a reply of haven's own, a client that leaves."""
        for path in ("/livez", SLOW):
            with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
                client.sendall(f"GET {path} HTTP/1.1\r\nhost: bench\r\n\r\n".encode())
                client.recv(1)

    def control(self, process, *command):
        subprocess.run(
            [self.tools["callgrind_control"], *command, str(process.pid)],
            capture_output=True,
            timeout=120,
            check=True,
        )

    def start(self, case, folder, port, counted=True):
        """An Envoy that is ready, under callgrind if it is `counted`."""
        (admin,), path = free_ports(1), folder / "envoy.json"
        path.write_text(json.dumps(bootstrap(case, self.modules, port, admin, self.upstreams)))
        callgrind = [
            self.tools["valgrind"],
            "--tool=callgrind",
            "--instr-atstart=no",
            "--smc-check=all-non-file",
            f"--callgrind-out-file={folder}/dump",
        ]
        command = [
            *callgrind * counted,
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
        end = time.monotonic() + 600
        while process.poll() is None and time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{admin}/ready", timeout=5) as reply:
                    if b"LIVE" in reply.read():
                        if case.exceptions == "all":
                            self.prove(port)
                        return process
            except OSError:
                pass
            time.sleep(0.2)
        stop(process)
        raise Failure(f"Envoy did not start: {(folder / 'log').read_text()[-600:].strip()}")

    def dumped(self, process, folder):
        """Asks for the next dump and reads it once it is whole."""
        path = folder / f"dump.{len(list(folder.glob('dump.*'))) + 1}"
        self.control(process, "--dump")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if path.exists() and "\ntotals:" in (text := path.read_text()):
                return text
            time.sleep(0.05)
        raise Failure("callgrind wrote no dump")

    def measure(self, case):
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        (port,) = free_ports(1)
        process = self.start(case, folder, port)
        try:
            self.load(port, self.options.warm, case)
            self.control(process, "--instr=on")
            self.load(port, 200, case)
            batches, allocated, bad = [], [], 0
            for _ in range(self.options.batches):
                self.control(process, "--zero")
                begun = time.monotonic()
                bad += self.load(port, self.options.requests, case)
                took = time.monotonic() - begun
                dump = self.dumped(process, folder)
                total = int(re.search(r"^totals: (\d+)", dump, re.M)[1])
                if case.policy is not None:
                    # What Envoy and haven do by the clock, whether or not requests come: in an
                    # Envoy that is slowed down fifty times fewer requests would share it.
                    self.control(process, "--zero")
                    time.sleep(took)
                    idle = self.dumped(process, folder)
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
            print(f"    {case.table}, {case.name}: {error}", file=sys.stderr, flush=True)
            return case, error
        spread = (max(count.batches) - min(count.batches)) / count.median * 100
        line = f"    {case.table}, {case.name}: {count.median:,.0f}, spread {spread:.1f} %"
        print(line, file=sys.stderr, flush=True)
        return count

    def side_by_side(self):
        """A table of cases under load: requests per second, and times at half of the first's."""
        cases = [next(case for case in CASES if case.name == name) for name in SIDES]
        found = {case: [] for case in cases}
        processes = []
        try:
            ports = dict(zip(cases, free_ports(len(cases))))
            for case in cases:
                folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
                processes.append(self.start(case, folder, ports[case], counted=False))
                self.load(ports[case], self.options.warm, case)
            half = None
            for _ in range(ROUNDS):
                for case in cases:
                    output = self.h2load(ports[case], case, "-c", 32, "-n", 50_000)
                    rate = float(re.search(r"([0-9.]+) req/s", output)[1])
                    half = half or rate / 2
                    found[case].append((rate, *self.times(ports[case], case, half)))
        finally:
            for process in processes:
                stop(process)
        medians = {
            case: [statistics.median(column) for column in zip(*rounds)]
            for case, rounds in found.items()
        }
        base = medians[cases[0]]
        lines = [
            f"| side by side | requests/s, 32 connections | ratio | median, µs, at {half:,.0f}/s | p99, µs | ratio |",
            "|---|---|---|---|---|---|",
        ]
        for case, (rate, median, p99) in medians.items():
            lines.append(
                f"| {case.name} | {rate:,.0f} | {rate / base[0]:.2f} | {median:,.0f} | {p99:,.0f} | {p99 / base[2]:.2f} |"
            )
        return "\n".join(lines)

    def times(self, port, case, rate):
        """Median and 99th percentile of a request's time in microseconds, at so many a second."""
        log, clients = self.folder / f"times-{port}", 16
        log.unlink(missing_ok=True)
        wanted = ["--rps", rate / clients, "-n", int(rate * 10), "--log-file", log]
        self.h2load(port, case, "-c", clients, *wanted)
        times = sorted(int(line.split()[2]) for line in log.read_text().splitlines())
        return [times[len(times) * part // 100] for part in (50, 99)]


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
    """The rows of a table in markdown, each held against its base."""
    rows = [count for count in counts if count.case.table == name]

    def median(base, route):
        found = (c.median for c in counts if (c.case.name, c.case.route) == (base, route))
        return next(found, None)

    lines = [
        f"| {TABLES[name]} | instructions | over its base | ratio | allocator |",
        "|---|---|---|---|---|",
    ]
    for count in rows:
        case = count.case
        base = f"no filter, {UPSTREAMS}" if name == "balanced" else case.base
        base = None if case.name == base else median(base, case.route)
        over, ratio = (
            (f"{count.median - base:,.0f}", f"{count.median / base:.2f}") if base else ("", "")
        )
        lines.append(
            f"| {case.name} | {count.median:,.0f} | {over} | {ratio} | {count.allocator:,.0f} |"
        )
    return "\n".join(lines)


def write_docs(tables, version):
    """Puts the tables between their marks in docs/cost.md."""
    page = DOCS.read_text()
    for name, text in {**tables, "version": f"Envoy {version}, one worker."}.items():
        begin, end = f"<!-- bench: {name} -->\n", "<!-- end -->"
        before, found, rest = page.partition(begin)
        if found:
            page = "".join((before, begin, text, "\n", end, rest.partition(end)[2]))
    DOCS.write_text(page)


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
        for case in CASES + BALANCED * options.balance + FLOORS
        if re.search(options.only, f"{case.table} {case.name}")
    ]
    modules = {"haven": options.wasm}
    for body in {case.body for case in cases if case.floor is not None}:
        modules["floor", body] = build_floor(body)
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
            bench = Bench(options, tools, modules, folder, upstreams)
            results = list(pool.map(bench.attempt, cases))
            sides = bench.side_by_side() if re.search(options.only, "side by side") else None
    counts = [result for result in results if isinstance(result, Count)]
    failures = [result for result in results if not isinstance(result, Count)]
    version = subprocess.run(
        [options.envoy, "--version"], capture_output=True, text=True, check=True
    )
    version = next((part for part in version.stdout.split("/") if re.match(r"[0-9.]+$", part)), "?")
    tables = {
        name: table(counts, name) for name in dict.fromkeys(count.case.table for count in counts)
    }
    if sides:
        tables["side by side"] = sides
    text = "\n\n".join([f"Envoy {version}, one worker", *tables.values()]) + "\n"
    print(text)
    options.out.parent.mkdir(exist_ok=True)
    options.out.write_text(text)
    if not options.only and not failures:
        write_docs(tables, version)
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
