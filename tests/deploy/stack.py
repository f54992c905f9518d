"""Runs the commands of docker-compose.yml for Redis, the cluster and sessiond as processes on loopback.

Each container becomes a process with an address of 127.0.0.0/8 and a temporary folder; these replace the addresses and
paths in the commands. Not tested: images, networks, users, mounts.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import compose

# Container addresses and what replaces them.
ADDRESSES = {"@redis:": "@127.0.77.2:", "172.31.241.": "127.0.77.", "'*' '-::*'": ""}
TIMEOUT_SECONDS = 30


def free_port():
    """A port that is free on every loopback address, with the one 10000 above for the cluster's bus."""
    while True:
        port = 12000 + int.from_bytes(os.urandom(2)) % 20000
        try:
            for wanted in [port, port + 10000]:
                with socket.socket() as probe:
                    probe.bind(("127.0.77.2", wanted))
            return port
        except OSError:
            pass


class Stack:
    def __init__(self, folder, config):
        self.folder, self.config, self.port, self.processes = folder, config, free_port(), []

    def localised(self, text, name):
        """Returns a container's command or variable with the addresses and paths of its process."""
        for container, local in ADDRESSES.items():
            text = text.replace(container, local)
        folder = f"{self.folder}/{name}"
        for container, local in [("/etc/sessiond", "deploy"), ("/tmp/", f"{folder}/"), ("/data", folder)]:
            text = text.replace(container, local)
        return text.replace(":6379", f":{self.port}").replace("$$", "$")

    def environment(self, name):
        variables = self.config["services"][name]["environment"]
        environment = {variable: self.localised(value, name) for variable, value in variables.items()}
        return {**environment, "PATH": os.environ["PATH"], "HOME": self.folder}

    def start(self, name, words, **more):
        log = open(f"{self.folder}/{name}.log", "w", encoding="utf-8")
        self.processes.append(subprocess.Popen(words, env={**self.environment(name), **more}, stdout=log, stderr=log))
        return self.processes[-1]

    def shell(self, name, address):
        """Returns a service's command. Its servers listen on `address`; redis-cli uses the stack's port by default."""
        service = self.config["services"][name]
        (script,) = service["command"]
        script = self.localised(script, name)
        # Outgoing connections use the same address, as in a container.
        listen = f"--port {self.port} --bind-source-addr {address} --bind {address}"
        script = script.replace("--bind", listen).replace("redis-cli", f"redis-cli -p {self.port}")
        return [*service["entrypoint"], script]

    def start_redis(self, name, address):
        os.mkdir(f"{self.folder}/{name}")
        self.start(name, self.shell(name, address))
        # The container's own healthcheck.
        script = self.localised(self.config["services"][name]["healthcheck"]["test"][1], name)
        script = script.replace("redis-cli", f"redis-cli -h {address} -p {self.port}")
        wait_for(name, lambda: succeeds(["sh", "-c", script], self.environment(name)))

    def start_sessiond(self, name, port):
        # The image listens on every address; the compose file publishes the port on loopback.
        listen = {"SESSIOND_LISTEN": f"127.0.0.1:{port}", "SESSIOND_METRICS_LISTEN": "127.0.0.1:0"}
        program = "target/debug/sessiond"
        self.start(name, [program], **listen)
        wait_for(name, lambda: succeeds([program, "healthcheck"], {**self.environment(name), **listen}))
        for number in range(20):
            body = json.dumps({"businessId": "b", "userId": f"user{number}"}).encode()
            url, headers = f"http://127.0.0.1:{port}/api/sessions", {"Content-Type": "application/json"}
            request = urllib.request.Request(url, body, headers)
            with urllib.request.urlopen(request) as response:
                assert response.status == 201, response.status

    def redis_cli(self, name, address, command):
        login = ["--user", "admin", "--no-auth-warning"]
        words = ["redis-cli", "-h", address, "-p", str(self.port), *login, *shlex.split(command)]
        environment = self.environment(name)
        environment["REDISCLI_AUTH"] = environment["SESSIOND_REDIS_ADMIN_PASSWORD"]
        return subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def succeeds(words, environment):
    return subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def wait_for(what, holds):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"timed out waiting for {what}")
        time.sleep(0.1)


def run(stack):
    stack.start_redis("redis", "127.0.77.2")
    stack.start_sessiond("sessiond", free_port())
    assert stack.redis_cli("redis", "127.0.77.2", "config get appendfsync").split() == ["appendfsync", "everysec"]

    members = [f"redis-{number}" for number in range(1, 7)]
    addresses = {}
    for name in members:
        container_address = stack.config["services"][name]["networks"]["cluster"]["ipv4_address"]
        addresses[name] = stack.localised(container_address, name)
        stack.start_redis(name, addresses[name])
    for _ in range(2):
        # The second run, as after a restart, finds the cluster complete.
        create = subprocess.run(
            stack.shell("cluster-create", ""), env=stack.environment("cluster-create"), timeout=TIMEOUT_SECONDS,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        assert create.returncode == 0, create.stdout
    stack.start_sessiond("sessiond-cluster", free_port())

    def is_replicated():
        roles = [stack.redis_cli(name, addresses[name], "info replication") for name in members]
        replicas = sum("role:slave" in role and "master_link_status:up" in role for role in roles)
        return replicas == 3 and sum("role:master" in role for role in roles) == 3

    wait_for("three masters with a replica each", is_replicated)


def main():
    with tempfile.TemporaryDirectory() as folder:
        stack = Stack(folder, compose.compose_config())
        try:
            run(stack)
        except BaseException:
            for process_log in sorted(os.listdir(folder)):
                if process_log.endswith(".log"):
                    lines = open(f"{folder}/{process_log}", encoding="utf-8").readlines()
                    print(process_log, *lines[-5:], file=sys.stderr)
            raise
        finally:
            # SIGKILL, because a replica that writes its first append-only file ignores SIGTERM.
            for process in stack.processes:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
