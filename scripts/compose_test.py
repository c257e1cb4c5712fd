#!/usr/bin/env python3
"""Builds and starts docker-compose.yml on a real engine, sends requests, kills an upstream.

STAND_INS=1 makes local images in place of base images that cannot be pulled
(scripts/stand_in_images.sh). At the end all of it is removed; KEEP=1 leaves images and containers.
"""

import collections
import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
STAND_INS = os.environ.get("STAND_INS") == "1"
KEEP = os.environ.get("KEEP") == "1"
SERVICES = ["envoy", "upstream-a", "upstream-b", "upstream-c"]
REQUESTS = 300


def say(text):
    print(f"==> {text}", file=sys.stderr, flush=True)


def die(text, hint):
    sys.exit(f"error: {text}\n       {hint}")


def run(*command, check=True, capture=False):
    return subprocess.run(command, cwd=ROOT, check=check, text=True, capture_output=capture)


def succeeds(*command):
    return (
        shutil.which(command[0]) is not None
        and run(*command, check=False, capture=True).returncode == 0
    )


def compose_command():
    if not succeeds("docker", "info"):
        die(
            "no Docker engine answers",
            "install and start Docker, or run this as a user who may use it",
        )
    for command in (["docker", "compose"], ["docker-compose"]):
        if succeeds(*command, "version"):
            return [*command, "--project-name", "haven-test"]
    die("Docker Compose is missing", "on Debian: sudo apt-get install docker-compose")


def provide_base_images():
    """Says whether stand-ins were made."""
    lines = re.findall(r"^FROM (\S+)(?: AS (\S+))?", DOCKERFILE.read_text(), re.M)
    stages = {stage for _, stage in lines} | {"scratch"}
    # The plain Debian first: the other stand-ins are built on it.
    images = sorted(
        {image for image, _ in lines if image not in stages},
        key=lambda name: (not name.startswith("debian:"), name),
    )
    missing = [image for image in images if not succeeds("docker", "image", "inspect", image)]
    unreachable = []
    for image in missing:
        say(f"pulling {image}")
        if run("docker", "pull", "--quiet", image, check=False).returncode:
            unreachable.append(image)
    if unreachable and not STAND_INS:
        die(
            f"not to be had from a registry: {', '.join(unreachable)}",
            "make compose-test STAND_INS=1 makes local images of these names",
        )
    if unreachable:
        run("scripts/stand_in_images.sh", *unreachable)
    return bool(unreachable)


def remove_stand_ins():
    listing = run(
        "docker", "images", "--quiet", "--filter", "label=haven.stand-in=true", capture=True
    ).stdout
    if listing:
        run("docker", "rmi", "--force", *dict.fromkeys(listing.split()), check=False, capture=True)
        say("the stand-in images are gone again")


def get(url):
    """Status, headers and body; status 0 when there was no answer."""
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            return reply.status, reply.headers, reply.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()
    except OSError as error:
        return 0, {}, str(error).encode()


def server(headers, body):
    """Which upstream has answered; none if a fallback has, stale or not: it sets Proxy-Status."""
    try:
        return None if "proxy-status" in headers else json.loads(body)["served_by"]
    except (ValueError, KeyError, TypeError):
        return None


class Stack:
    """The running services."""

    def __init__(self, compose, port):
        self.compose, self.base = compose, f"http://127.0.0.1:{port}"
        self.failures = []

    def container(self, service):
        return run(*self.compose, "ps", "-q", service, capture=True).stdout.strip()

    def wait_until_healthy(self, patience=120):
        end = time.monotonic() + patience
        waiting = list(SERVICES)
        while waiting:
            form = "{{.State.Health.Status}}"
            waiting = [
                s
                for s in waiting
                if run(
                    "docker", "inspect", "-f", form, self.container(s), capture=True
                ).stdout.strip()
                != "healthy"
            ]
            if waiting and time.monotonic() > end:
                raise RuntimeError(f"not healthy after {patience} s: {', '.join(waiting)}")
            time.sleep(0.5 if waiting else 0)

    def check(self, what, holds, seen=""):
        print(f"{'ok  ' if holds else 'FAIL'} {what}{': ' + str(seen) if seen else ''}", flush=True)
        if not holds:
            self.failures.append(what)

    def load(self):
        """Counts of statuses and of the upstreams that answered."""
        statuses, servers = collections.Counter(), collections.Counter()
        for _ in range(REQUESTS):
            status, headers, body = get(self.base + "/api/users")
            statuses[status] += 1
            servers[server(headers, body)] += 1
            time.sleep(0.02)  # below the reference config's rate limit
        return dict(statuses), {name: n for name, n in servers.items() if name}

    def plugin_is_whole(self):
        """Whether the image for Istio and Envoy Gateway has the form that they ask for."""
        image = "haven-plugin"
        run(
            "docker",
            "build",
            "--quiet",
            "--file",
            str(DOCKERFILE),
            "--target",
            "plugin",
            "--tag",
            image,
            ".",
            capture=True,
        )
        layers = run(
            "docker", "image", "inspect", "-f", "{{len .RootFS.Layers}}", image, capture=True
        ).stdout.strip()
        # It has no program, but a container needs the name of one.
        container = run("docker", "create", image, "none", capture=True).stdout.strip()
        copied = subprocess.run(
            ["docker", "cp", f"{container}:/plugin.wasm", "-"], capture_output=True, check=False
        ).stdout
        run("docker", "rm", container, capture=True)
        return layers == "1" and b"\0asm" in copied[:2048]

    def exercise(self):
        for path in ("/livez", "/readyz", "/health"):
            status, _, _ = get(self.base + path)
            self.check(f"GET {path} is 200", status == 200, status)
        statuses, servers = self.load()
        self.check(f"{REQUESTS} requests are 200", statuses == {200: REQUESTS}, statuses)
        self.check("all three upstreams answered", set(servers) == {"a", "b", "c"}, servers)
        run(*self.compose, "kill", "upstream-a", capture=True)
        statuses, servers = self.load()
        self.check(
            f"{REQUESTS} requests are 200 while one upstream is dead",
            statuses == {200: REQUESTS},
            statuses,
        )
        self.check("the two others answered", set(servers) == {"b", "c"}, servers)
        run(*self.compose, "start", "upstream-a", capture=True)
        self.wait_until_healthy()
        end = time.monotonic() + 60
        while "a" not in (servers := self.load()[1]) and time.monotonic() < end:
            time.sleep(1)
        self.check("the dead one is used again once it is back", "a" in servers, servers)
        form = "{{.Config.User}} {{.HostConfig.ReadonlyRootfs}}"
        ident = run(
            "docker", "inspect", "-f", form, self.container("envoy"), capture=True
        ).stdout.strip()
        self.check("the plugin image is one layer with /plugin.wasm", self.plugin_is_whole())
        self.check(
            "Envoy runs without root on a read-only file system", ident == "65532:65532 true", ident
        )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def main():
    compose = compose_command()
    stood_in = provide_base_images()
    port = os.environ.setdefault("HAVEN_PORT", str(free_port()))
    stack = Stack(compose, port)
    try:
        say("building the images and starting them")
        run(*compose, "up", "--detach", "--build")
        say("waiting until all four are healthy")
        stack.wait_until_healthy()
        stack.exercise()
        if stack.failures:
            run(*compose, "logs", "--tail=40", check=False)
    except (RuntimeError, subprocess.CalledProcessError) as error:
        run(*compose, "logs", "--tail=40", check=False)
        stack.check(str(error), False)
    finally:
        if KEEP:
            say(f"left running at {stack.base}; end it with: {' '.join(compose)} down --volumes")
        else:
            say("taking it down")
            run(*compose, "down", "--volumes", "--timeout", "5", check=False, capture=True)
            if stood_in:
                remove_stand_ins()
    if stack.failures:
        sys.exit(f"error: {len(stack.failures)} checks failed; what was seen stands above")
    print("docker-compose.yml works.")


if __name__ == "__main__":
    main()
