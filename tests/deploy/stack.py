"""Runs the very commands of docker-compose.yml for Redis, the cluster and sessiond, as processes on loopback.

Containers have addresses and folders of their own; here each gets an address of 127.0.0.0/8 and a temporary folder, and
the commands' addresses and paths are replaced by these. What is not shown: images, networks, users, mounts.
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

# Where a container's address is to be found here.
ADDRESSES = {"@redis:": "@127.0.77.2:", "172.31.241.": "127.0.77.", "'*' '-::*'": ""}
PATIENCE_SECONDS = 30


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

    def here(self, text, name):
        """What a container is told, as a process here has to be told it."""
        for there, here in ADDRESSES.items():
            text = text.replace(there, here)
        for there, here in [("/etc/sessiond", "deploy"), ("/tmp/", f"{self.folder}/{name}/"), ("/data", f"{self.folder}/{name}")]:
            text = text.replace(there, here)
        return text.replace(":6379", f":{self.port}").replace("$$", "$")

    def environment(self, name):
        told = self.config["services"][name]["environment"]
        environment = {variable: self.here(value, name) for variable, value in told.items()}
        return {**environment, "PATH": os.environ["PATH"], "HOME": self.folder}

    def start(self, name, words, **more):
        log = open(f"{self.folder}/{name}.log", "w", encoding="utf-8")
        self.processes.append(subprocess.Popen(words, env={**self.environment(name), **more}, stdout=log, stderr=log))
        return self.processes[-1]

    def shell(self, name, address):
        """A service's command. Its servers listen on this address, and its redis-cli asks there unless it says otherwise."""
        service = self.config["services"][name]
        (script,) = service["command"]
        script = self.here(script, name)
        # It also calls others from there, as a container does.
        listen = f"--port {self.port} --bind-source-addr {address} --bind {address}"
        script = script.replace("--bind", listen).replace("redis-cli", f"redis-cli -p {self.port}")
        return [*service["entrypoint"], script]

    def start_redis(self, name, address):
        os.mkdir(f"{self.folder}/{name}")
        self.start(name, self.shell(name, address))
        # Its own healthcheck says when it is there.
        script = self.here(self.config["services"][name]["healthcheck"]["test"][1], name)
        script = script.replace("redis-cli", f"redis-cli -h {address} -p {self.port}")
        wait_for(name, lambda: quietly(["sh", "-c", script], self.environment(name)))

    def start_sessiond(self, name, port):
        # The image listens on every address; what is published is on loopback.
        listen = {"SESSIOND_LISTEN": f"127.0.0.1:{port}", "SESSIOND_METRICS_LISTEN": "127.0.0.1:0"}
        program = "target/debug/sessiond"
        self.start(name, [program], **listen)
        wait_for(name, lambda: quietly([program, "healthcheck"], {**self.environment(name), **listen}))
        for number in range(20):
            body = json.dumps({"businessId": "b", "userId": f"user{number}"}).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/api/sessions", body, {"Content-Type": "application/json"})
            with urllib.request.urlopen(request) as answer:
                assert answer.status == 201, answer.status

    def ask(self, name, address, command):
        words = ["redis-cli", "-h", address, "-p", str(self.port), "--user", "admin", "--no-auth-warning", *shlex.split(command)]
        environment = {**self.environment(name), "REDISCLI_AUTH": self.environment(name)["SESSIOND_REDIS_ADMIN_PASSWORD"]}
        return subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def quietly(words, environment):
    return subprocess.run(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode == 0


def wait_for(what, holds):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"waited in vain for {what}")
        time.sleep(0.1)


def run(stack):
    stack.start_redis("redis", "127.0.77.2")
    stack.start_sessiond("sessiond", free_port())
    assert stack.ask("redis", "127.0.77.2", "config get appendfsync").split() == ["appendfsync", "everysec"]

    members = [f"redis-{number}" for number in range(1, 7)]
    addresses = {}
    for name in members:
        there = stack.config["services"][name]["networks"]["cluster"]["ipv4_address"]
        addresses[name] = stack.here(there, name)
        stack.start_redis(name, addresses[name])
    for _ in range(2):
        # The second time, as after a restart, there is nothing left to be done.
        create = subprocess.run(
            stack.shell("cluster-create", ""), env=stack.environment("cluster-create"), timeout=PATIENCE_SECONDS,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        assert create.returncode == 0, create.stdout
    stack.start_sessiond("sessiond-cluster", free_port())

    def is_replicated():
        roles = [stack.ask(name, addresses[name], "info replication") for name in members]
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
                    print(process_log, *open(f"{folder}/{process_log}", encoding="utf-8").readlines()[-5:], file=sys.stderr)
            raise
        finally:
            # Not by SIGTERM: a replica that writes its first append-only file would ignore it.
            for process in stack.processes:
                process.kill()
                process.wait()


if __name__ == "__main__":
    main()
