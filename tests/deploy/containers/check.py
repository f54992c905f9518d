"""Runs docker-compose.yml on Podman and checks the statements of docs/deployment.md about it. `run` builds the images.

Docker Compose talks to Podman's Docker-compatible API. Two differences to Docker are handled here: Podman has no
logging driver `local`, and without systemd it does not start healthchecks. Grafana has no replacement and is not started.
"""

import contextlib
import datetime
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request

WORK, REVISION = sys.argv[1:]
PROJECT = f"{WORK}/project"
SERVICES = ["sessiond", "redis", "redis-exporter", "prometheus"]
MEMBERS = {f"redis-{number}": f"172.31.241.1{number}" for number in range(1, 7)}
API, CLUSTER_API, PROMETHEUS = "http://127.0.0.1:3000", "http://127.0.0.1:3002", "http://127.0.0.1:9090"
MAX_IMAGE_BYTES = 40_000_000
MAX_SECONDS_TO_HEALTHY = 2
TIMEOUT_SECONDS = 60


def output_of(*words, **options):
    result = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    assert result.returncode == 0, f"{' '.join(words)}: {result.stdout}{result.stderr}"
    return result.stdout


def compose(*words):
    return output_of("docker-compose", "--profile", "cluster", *words, cwd=PROJECT, timeout=2 * TIMEOUT_SECONDS)


def up(*services):
    compose("up", "--detach", "--no-build", "--pull", "never", *services)
    for service in services:
        # A service without a healthcheck has no status.
        wait_for(f"{service} to be healthy", lambda: state(service)["Health"]["Status"] in ["", "healthy"])


def state(service):
    return json.loads(output_of("podman", "inspect", f"sessiond-{service}-1"))[0]["State"]


def podman_exec(service, *words):
    return output_of("podman", "exec", f"sessiond-{service}-1", *words)


def wait_for(what, holds):
    deadline = time.monotonic() + TIMEOUT_SECONDS
    while not holds():
        assert time.monotonic() < deadline, f"timed out waiting for {what}"
        time.sleep(0.1)


def run_healthchecks(stopped):
    """Runs the healthcheck, in place of systemd's timers, until a container is healthy."""
    while not stopped.wait(0.1):
        for container in output_of("podman", "ps", "--quiet", "--filter", "health=starting").split():
            command = ["podman", "healthcheck", "run", container]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def call(url, body=None, credential=None):
    """Returns the status and the body of the response. The status is 0 if there is no response."""
    headers = {"Content-Type": "application/json"}
    if credential:
        headers["Authorization"] = f"Bearer {credential}"
    request = urllib.request.Request(url, body and json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, None
    except OSError:
        return 0, None


class Load(threading.Thread):
    """Creates a session for one user after another. `acknowledged` has the ids of the created sessions."""

    def __init__(self, api, name):
        super().__init__(daemon=True)
        self.api, self.name, self.stopping = api, name, False
        self.acknowledged, self.statuses = [], {}
        self.longest_gap, self.last = 0, time.monotonic()

    def run(self):
        number = 0
        while not self.stopping:
            number += 1
            status, session = call(f"{self.api}/api/sessions", {"businessId": "b", "userId": f"{self.name}-{number}"})
            self.statuses[status] = self.statuses.get(status, 0) + 1
            if status == 201:
                self.acknowledged.append(session["sessionId"])
                now = time.monotonic()
                self.longest_gap, self.last = max(self.longest_gap, now - self.last), now

    def wait_for_more(self, count=100):
        wanted = len(self.acknowledged) + count
        wait_for("sessions to be created", lambda: len(self.acknowledged) >= wanted)

    def stop(self):
        self.stopping = True
        self.join()
        unexpected = self.statuses.keys() - {201, 503, 0}
        assert not unexpected, f"unexpected responses: {self.statuses}"

    def lost(self):
        return [id for id in self.acknowledged if call(f"{self.api}/api/sessions/{id}")[0] != 200]

    def verify(self):
        lost = self.lost()
        assert not lost, f"{len(lost)} of {len(self.acknowledged)} acknowledged sessions are lost"
        return f"all {len(self.acknowledged)} acknowledged sessions are there; {self.pause()}"

    def pause(self):
        return f"at most {self.longest_gap:.1f} s from one acknowledged create to the next; statuses {self.statuses}"


@contextlib.contextmanager
def load(api, name):
    running = Load(api, name)
    running.start()
    try:
        running.wait_for_more()
        yield running
    finally:
        running.stopping = True


def check_image():
    base = re.search(r"^FROM (\S+)$", open("deploy/Dockerfile", encoding="utf-8").read(), re.MULTILINE).group(1)
    sizes = [json.loads(output_of("podman", "image", "inspect", name))[0]["Size"] for name in ["sessiond", base]]
    own = sizes[0] - sizes[1]
    assert own <= MAX_IMAGE_BYTES, own
    for words, expected in [([], "credentials"), (["--allow-unauthenticated"], "REDIS_URL")]:
        command = ["podman", "run", "--rm", "--network", "none", "sessiond", *words]
        refused = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert refused.returncode == 2 and expected in refused.stdout, refused.stdout
    return f"{own / 1e6:.1f} MB without its base; does not start without credentials or REDIS_URL"


def check_start():
    up(*SERVICES)
    sessiond = state("sessiond")
    times = [sessiond["StartedAt"], sessiond["Health"]["Log"][-1]["End"]]
    started, healthy = [datetime.datetime.fromisoformat(re.sub(r"\.(\d{1,6})\d*", r".\1", text)) for text in times]
    seconds = (healthy - started).total_seconds()
    assert seconds <= MAX_SECONDS_TO_HEALTHY, seconds
    return f"sessiond is healthy {seconds:.2f} s after its start"


def confinement_problems(pid):
    status = dict(re.findall(r"^(\w+):\t(.*)$", open(f"/proc/{pid}/status", encoding="utf-8").read(), re.MULTILINE))
    if "0" in [*status["Uid"].split(), *status["Gid"].split()]:
        yield "is root"
    if any(int(status[name], 16) for name in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"]):
        yield "has capabilities"
    if status["NoNewPrivs"] != "1":
        yield "may gain privileges"
    if status["Seccomp"] != "2":
        yield "may call every system call"
    mounts = [line.split() for line in open(f"/proc/{pid}/mountinfo", encoding="utf-8")]
    (options,) = [mount[5].split(",") for mount in mounts if mount[4] == "/"]
    if "ro" not in options:
        yield "can write to its root file system"


def check_confinement(services):
    for service in services:
        problems = list(confinement_problems(state(service)["Pid"]))
        assert not problems, f"{service}: {problems}"
    return "not root, no capabilities, no new privileges, seccomp, read-only root: " + ", ".join(services)


def check_networks():
    for service in ["redis", "redis-exporter"]:
        routes = open(f"/proc/{state(service)['Pid']}/net/route", encoding="utf-8").read()
        assert "00000000" not in [line.split()[1] for line in routes.splitlines()], routes
    known = []
    for name in ["sessiond", "redis-exporter", "redis"]:
        command = ["podman", "exec", "sessiond-prometheus-1", "getent", "hosts", name]
        known.append(subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0)
    assert known == [True, True, False], known
    return "Redis and redis_exporter have no route to the outside; Prometheus cannot resolve the name of Redis"


def check_calls():
    body = {"businessId": "b", "userId": "outside"}
    (first, created), (second, found) = [call(f"{API}/api/sessions", body) for _ in range(2)]
    assert (first, second) == (201, 200) and created["sessionId"] == found["sessionId"], (first, second)
    return "calls from outside the containers create a session and find it"


def check_console():
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
             f"--user-data-dir={WORK}/chromium", "--virtual-time-budget=10000", "--dump-dom"]
    dom = output_of("chromium", *flags, f"{API}/")
    assert "Find a conversation" in dom, dom
    return "Chromium opens the console from outside the containers"


def check_prometheus():
    def targets():
        return call(f"{PROMETHEUS}/api/v1/targets")[1]["data"]["activeTargets"]

    def rules():
        groups = call(f"{PROMETHEUS}/api/v1/rules")[1]["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def query(text):
        return call(f"{PROMETHEUS}/api/v1/query?query={urllib.parse.quote(text)}")[1]["data"]["result"]

    wait_for("both targets to be up", lambda: [target["health"] for target in targets()] == ["up", "up"])
    wait_for("the rules to be evaluated", lambda: rules() and all(rule["health"] == "ok" for rule in rules()))
    for text in [f'sessiond_build_info{{revision="{REVISION}"}}', "redis_memory_used_bytes"]:
        wait_for(text, lambda: query(text))
    firing = [rule["name"] for rule in rules() if rule.get("state") == "firing"]
    assert not firing, firing
    return f"Prometheus scrapes sessiond and redis_exporter and evaluates {len(rules())} rules; no alert fires"


def check_redis_restart():
    with load(API, "restart") as running:
        killed = state("redis")["Pid"]
        os.kill(killed, signal.SIGKILL)
        wait_for("Redis to restart", lambda: state("redis")["Pid"] not in [0, killed])
        running.wait_for_more()
        running.stop()
    return f"Redis killed under load: restarted; {running.verify()}"


def check_stop():
    with load(API, "stop") as running:
        compose("stop", "sessiond", "redis")
        running.stop()
    codes = {service: state(service)["ExitCode"] for service in ["sessiond", "redis"]}
    assert codes == {"sessiond": 0, "redis": 0}, codes
    up("sessiond", "redis")
    return f"`compose stop` under load: both exit with 0; after `compose up` {running.verify()}"


def documented(language, after):
    """Returns the code block of docs/deployment.md that follows a text."""
    text = open("docs/deployment.md", encoding="utf-8").read()
    return re.search(rf"{re.escape(after)}.*?```{language}\n(.*?)```", text, re.DOTALL).group(1)


def check_override():
    os.mkdir(f"{PROJECT}/keys")
    keygen = ["podman", "run", "--rm", "--network", "none", "sessiond", "keygen", "--id", "check", "--business", "b"]
    made = subprocess.run(keygen, check=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with open(f"{PROJECT}/keys/keys.toml", "w", encoding="utf-8") as file:
        file.write(made.stdout)
    credential = made.stderr.split()[-1]
    with open(f"{PROJECT}/docker-compose.override.yml", "w", encoding="utf-8") as file:
        file.write(documented("yaml", "`docker-compose.override.yml`:"))
    output_of("sh", "-euc", documented("sh", "unless `.env` has better ones"), cwd=PROJECT)
    up("sessiond", "redis", "redis-exporter")
    url, body = f"{API}/api/sessions", {"businessId": "b", "userId": "override"}
    statuses = [call(url, body)[0], call(url, body, f"{credential}x")[0], call(url, body, credential)[0]]
    assert statuses == [401, 401, 201], statuses
    check_confinement(["sessiond"])
    reply = podman_exec("redis", "env", "REDISCLI_AUTH=insecure", "redis-cli", "--user", "sessiond", "ping")
    assert "NOAUTH" in reply, reply
    return "with the documented override and .env: 401 without a key, 201 with it; Redis has the new passwords"


def redis_cli(member, *words):
    script = 'REDISCLI_AUTH=$SESSIOND_REDIS_ADMIN_PASSWORD exec redis-cli --user admin --no-auth-warning "$@"'
    return podman_exec(member, "sh", "-c", script, "-", *words)


def roles(members):
    """Returns the members that are masters, with their replication offsets and those of their replicas."""
    masters = {}
    for member in members:
        replication = redis_cli(member, "info", "replication")
        if "role:master" in replication:
            offset = re.search(r"master_repl_offset:(\d+)", replication).group(1)
            masters[member] = offset, re.findall(r"slave\d+:.*state=online,offset=(\d+)", replication)
    return masters


def is_replicated():
    masters = roles(MEMBERS)
    return len(masters) == 3 and all(replicas == [offset] for offset, replicas in masters.values())


def check_cluster():
    up("sessiond-cluster")
    check_confinement([*MEMBERS, "sessiond-cluster"])
    with load(CLUSTER_API, "before") as before:
        before.stop()
    # Redis replicates asynchronously, so the test waits for it.
    wait_for("three masters with a complete replica each", is_replicated)
    victim = next(iter(roles(MEMBERS)))
    survivors = MEMBERS.keys() - {victim}
    with load(CLUSTER_API, "during") as during:
        compose("stop", "--timeout", "0", victim)
        wait_for("a failover", lambda: len(roles(survivors)) == 3)
        during.wait_for_more()
        during.stop()
    before.verify()
    compose("start", victim)
    wait_for("the old master to be a replica", is_replicated)
    # Also starts the service that makes the cluster, which must find it complete.
    up("sessiond-cluster")
    before.verify()
    counts = f"{len(before.acknowledged)} earlier sessions are there; of {len(during.acknowledged)} created meanwhile"
    report = f"{counts} {len(during.lost())} are lost; the old master is a replica after its start"
    return f"one of three masters killed under load: {during.pause()}; {report}"


def prepare_project():
    """Copies the compose file and what it mounts, so that the override and `.env` do not replace the user's."""
    os.mkdir(PROJECT)
    shutil.copytree("deploy", f"{PROJECT}/deploy")
    text = open("docker-compose.yml", encoding="utf-8").read()
    with open(f"{PROJECT}/docker-compose.yml", "w", encoding="utf-8") as file:
        file.write(text.replace("driver: local", "driver: json-file"))


def main():
    output_of("ip", "link", "set", "lo", "up")
    prepare_project()
    socket = f"{WORK}/podman.sock"
    os.environ["DOCKER_HOST"] = f"unix://{socket}"
    log = open(f"{WORK}/podman.log", "w", encoding="utf-8")
    command = ["podman", "system", "service", "--time", "0", f"unix://{socket}"]
    server = subprocess.Popen(command, stdout=log, stderr=log)
    stopped = threading.Event()
    healthchecks = threading.Thread(target=run_healthchecks, args=[stopped])
    try:
        wait_for("Podman", lambda: os.path.exists(socket))
        healthchecks.start()
        for name, check in [
            ("image", check_image),
            ("start", check_start),
            ("confinement", lambda: check_confinement(SERVICES)),
            ("networks", check_networks),
            ("calls", check_calls),
            ("console", check_console),
            ("Prometheus", check_prometheus),
            ("Redis restart", check_redis_restart),
            ("stop", check_stop),
            ("override", check_override),
            ("cluster", check_cluster),
        ]:
            print(f"{name}: {check()}", flush=True)
        print(f"container-check: passed at {REVISION}")
    except BaseException:
        logs = subprocess.run(["docker-compose", "--profile", "cluster", "logs", "--tail", "5"], cwd=PROJECT,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        print(logs.stdout, file=sys.stderr)
        raise
    finally:
        stopped.set()
        compose("down", "--volumes", "--timeout", "1")
        server.terminate()
        server.wait()


if __name__ == "__main__":
    main()
