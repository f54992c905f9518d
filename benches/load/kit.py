"""What the load runs share: servers as child processes, their CPU and memory, the load tools, and tables.

Uses only Python's standard library. The load comes from wrk (closed loop: as fast as responses arrive) and oha (open
loop: at a constant rate, independent of responses); this module starts them and reads their output.
"""

import atexit
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "target/bench"
LUA = pathlib.Path(__file__).with_name("wrk.lua")
SESSIOND = pathlib.Path(os.environ.get("SESSIOND_BENCH_PROGRAM", ROOT / "target/release/sessiond")).resolve()
FLAGS = os.environ.get("SESSIOND_BENCH_FLAGS", "").split()
PEERS = ROOT / "target/peers"
OHA = next(iter((ROOT / "target/tools").glob("oha-*/bin/oha")), None)
# In a request for wrk: nine digits, a new number each time.
NUMBER = "#" * 9
# A number that grows by 5 with each time through the requests.
COUNT = "@" * 9
BUSINESS = "B0100001"
CONNECTIONS = 64
# The default settings that the script has as constants.
SETTINGS = {
    "IDLE_MS": 1_800_000,
    "MAX_LIFETIME_MS": 86_400_000,
    "RETENTION_MS": 2_592_000_000,
    "RESOLUTION_MS": 60_000,
    "SESSIONS_MAX": 1_000,
}
# Where the servers and the client run.
PLACES = {"apart": "the servers on one processor, the client on another", "shared": "all on the same processors"}


def get_or_create_script():
    """A file with the script, and in it what the service sends in front of the script's second line."""
    engine, body = (ROOT / "lua/get_or_create.lua").read_text().split("\n", 1)
    names, values = zip(*SETTINGS.items())
    settings = f"local {', '.join(names)} = {', '.join(map(str, values))}"
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "get_or_create.lua"
    file.write_text("\n".join([engine, settings, (ROOT / "lua/common.lua").read_text(), body]))
    return file


def setting(name, default):
    """A number from the environment."""
    return type(default)(os.environ.get(name, default))


SECONDS = setting("SESSIOND_BENCH_SECONDS", 10)
ROUNDS = setting("SESSIOND_BENCH_ROUNDS", 3)


# Servers


class Server:
    """A child process that listens on its own port. It ends with this program. Its output goes to a file, its stderr to
    `stderr` if given."""

    def __init__(self, words, port, stderr=None, **options):
        self.port, self.base = port, f"http://127.0.0.1:{port}"
        # The number of the next request that has one.
        self.number = 0
        OUT.mkdir(parents=True, exist_ok=True)
        self.log = OUT / f"{pathlib.Path(words[0]).name}-{port}.log"
        environment = {"PATH": os.environ["PATH"], "NODE_ENV": "production"}
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(word) for word in words], stdout=log, stderr=stderr or log, env=environment, **options
            )
        self.pid = self.process.pid
        atexit.register(self.stop)
        deadline = time.monotonic() + 30
        while not is_open(port):
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{words[0]} did not start: {self.log.read_text()}")
            time.sleep(0.02)

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def cpu_us(self):
        return cpu_us(self.pid)

    def rss_mb(self):
        status = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) / 1024


def cpu_us(pid):
    """CPU time of a process's threads, from the nanosecond counters of the scheduler, not from ticks."""
    threads = pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1000


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Redis(Server):
    """A Redis on a TCP port, with an append-only file that is synced every second, like the embedded Redis. The file is
    not rewritten, because that would start a second process at an arbitrary moment."""

    FLAGS = ()

    def __init__(self):
        program = shutil.which("valkey-server") or shutil.which("redis-server")
        port = free_port()
        folder = OUT / f"redis-{port}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        words = ["--port", port, "--bind", "127.0.0.1", "--save", ""]
        words += ["--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0"]
        self.folder = folder
        super().__init__([program, *words, *self.FLAGS], port, cwd=folder)

    def stop(self):
        super().stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def url(self, database=0):
        return f"redis://127.0.0.1:{self.port}/{database}"

    def command(self, *words):
        """The reply to a command, as text."""
        words = ["redis-cli", "-p", str(self.port), *words]
        return subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()

    def pipe(self, commands):
        """Runs commands, each a list of words as bytes. For filling."""
        data = bytearray()
        for command in commands:
            data += b"*%d\r\n" % len(command)
            for word in command:
                data += b"$%d\r\n%s\r\n" % (len(word), word)
        run = subprocess.run(["redis-cli", "-p", str(self.port), "--pipe"], input=bytes(data), capture_output=True)
        if run.returncode or b"errors: 0," not in run.stdout:
            sys.exit(f"redis-cli --pipe: {run.stdout.decode()} {run.stderr.decode()}")

    def figures(self):
        """All numbers of INFO."""
        lines = (line.split(":", 1) for line in self.command("info").splitlines() if ":" in line)
        return {name: int(value) for name, value in lines if value.strip().isdigit()}


class Service(Server):
    """sessiond as its users run it: metrics, validation, limits and request ids are on. The rate limit is off, because
    there is one caller, and sessions outlive the longest run. `under` is a program that runs it, with its arguments."""

    def __init__(self, redis, database=0, *flags, under=(), stderr=None, program=SESSIOND):
        port, metrics_port = free_port(), free_port()
        self.metrics_url = f"http://127.0.0.1:{metrics_port}/metrics"
        words = [*under, program, "--listen", f"127.0.0.1:{port}", "--metrics-listen", f"127.0.0.1:{metrics_port}"]
        words += ["--redis-url", redis.url(database), "--rate-limit", "0", "--idle-timeout", "12h"]
        super().__init__([*words, *FLAGS, *flags], port, stderr=stderr)
        deadline = time.monotonic() + 30
        while status_of(f"{self.base}/readyz") != 200:
            if time.monotonic() > deadline:
                sys.exit(f"sessiond is not ready: {self.log.read_text()}")
            time.sleep(0.02)

    def metrics(self):
        with urllib.request.urlopen(self.metrics_url, timeout=5) as response:
            return response.read().decode()

    def metric(self, name):
        """The value of a metric without labels."""
        return next(float(line.split()[1]) for line in self.metrics().splitlines() if line.startswith(f"{name} "))

    def statuses(self):
        """The number of responses so far, by status."""
        found = re.findall(r'^sessiond_http_requests_total\{.*status="(\d+)".*\} (\d+)', self.metrics(), re.MULTILINE)
        counts = collections.Counter()
        for status, count in found:
            counts[int(status)] += int(count)
        return counts


@contextlib.contextmanager
def on_processors(numbers):
    """Processes that are started meanwhile run on these processors only."""
    usual = os.sched_getaffinity(0)
    os.sched_setaffinity(0, numbers)
    try:
        yield
    finally:
        os.sched_setaffinity(0, usual)


def processors(place):
    """The processors of the servers, and those of the client."""
    numbers = sorted(os.sched_getaffinity(0))
    if place == "shared":
        return numbers, numbers
    if len(numbers) < 2:
        sys.exit("to keep the servers and the client apart takes two processors")
    return numbers[:1], numbers[1:]


def busy(count):
    """Child processes that are always busy."""
    programs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    for program in programs:
        atexit.register(program.kill)
    return programs


def status_of(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            return response.status
    except OSError as error:
        return getattr(error, "code", None)


class Cpu:
    """CPU time of servers during a `with` block. None is no server."""

    def __init__(self, **servers):
        self.servers = {name: server for name, server in servers.items() if server}

    def __enter__(self):
        self.before = {name: server.cpu_us() for name, server in self.servers.items()}
        return self

    def __exit__(self, *_):
        self.us = {name: server.cpu_us() - self.before[name] for name, server in self.servers.items()}

    def per(self, name, requests):
        return self.us.get(name, 0.0) / max(requests, 1)


# Requests


class Part:
    """Requests of one kind: any of the paths with any of the bodies. `share` is the share of a scenario's requests.
    Each response has the status, and its body has a text this many times."""

    def __init__(self, method, paths, bodies=("",), share=1.0, status=200, has=(b"", 1)):
        self.method, self.paths, self.bodies, self.share = method, list(paths), list(bodies), share
        self.status, self.has = status, has

    def requests(self, count):
        """Method, path and body of this many requests."""
        for index in range(count):
            yield self.method, self.paths[index % len(self.paths)], self.bodies[index % len(self.bodies)]

    def check(self, server):
        """Ends the run unless the response to a request is the one that is wanted. Returns its body."""
        method, path, body = next(self.requests(1))
        if NUMBER in body:
            body, server.number = body.replace(NUMBER, f"{server.number:09}"), server.number + 1
        [response] = pipelined(server, [(method, path, body)], self.status)
        text, times = self.has
        if text and response.count(text) != times:
            sys.exit(f"{method} {path}: {text} is {response.count(text)} times, not {times}, in {response[:300]}")
        return response


def requests_of(parts):
    """The requests of several parts, by their shares. Parts with equal shares take turns: a user's second request
    follows his first. Others are shuffled."""
    total = max(1000, *(len(part.paths) for part in parts))
    of_parts = [list(part.requests(max(1, round(total * part.share)))) for part in parts]
    if len({len(requests) for requests in of_parts}) == 1:
        return [request for requests in zip(*of_parts) for request in requests]
    requests = [request for requests in of_parts for request in requests]
    random.Random(1).shuffle(requests)
    return requests


def new_session(user, business=BUSINESS, **members):
    return json.dumps({"businessId": business, "userId": user, **members}, separators=(",", ":"))


def pipelined(server, requests, wanted, connections=8, batch=50):
    """Sends requests, (method, path, body) each, over a few connections, many at a time, and returns the bodies of the
    responses, in no particular order. For filling, not for measuring."""
    from concurrent.futures import ThreadPoolExecutor

    def send(part):
        bodies = []
        with socket.create_connection(("127.0.0.1", server.port)) as stream, stream.makefile("rb") as responses:
            for start in range(0, len(part), batch):
                stream.sendall(b"".join(raw(*request) for request in part[start : start + batch]))
                bodies += [read_response(responses, wanted) for _ in part[start : start + batch]]
        return bodies

    parts = [part for part in (requests[start::connections] for start in range(connections)) if part]
    with ThreadPoolExecutor(connections) as pool:
        return [body for bodies in pool.map(send, parts) for body in bodies]


def raw(method, path, body=""):
    length = f"content-type: application/json\r\ncontent-length: {len(body)}\r\n" if body else ""
    return f"{method} {path} HTTP/1.1\r\nhost: bench\r\n{length}\r\n{body}".encode()


def read_response(stream, *wanted):
    """The body of the next response, which must have one of the statuses."""
    status, length = stream.readline().split()[1:2], 0
    while (line := stream.readline().strip().lower()) != b"":
        if line.startswith(b"content-length:"):
            length = int(line.split(b":")[1])
    body = stream.read(length)
    if int(status[0]) not in wanted:
        sys.exit(f"{status[0].decode()} instead of {wanted}: {body[:300]}")
    return body


def sessions_of(server, users, business=BUSINESS, wanted=201):
    """Creates the users' sessions and returns their ids."""
    requests = [("POST", "/api/sessions", new_session(user, business)) for user in users]
    return [json.loads(body)["sessionId"] for body in pipelined(server, requests, wanted)]


# Load


def wrk(server, parts, seconds=SECONDS, connections=CONNECTIONS, numbers=10**9):
    """Runs a closed loop over this many connections. Ends the run if a response has another status than it should."""
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / f"wrk-{server.port}.requests"
    lines = [" ".join(request).rstrip() for request in requests_of(parts)]
    file.write_text("\n".join(lines) + "\n")
    before = server.statuses() if isinstance(server, Service) else {}
    words = ["wrk", "-t", "1", "-c", connections, "-d", f"{seconds}s", "--timeout", "10s", "-s", LUA, server.base]
    words += ["--", file, server.number, numbers]
    run = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
    result = json.loads(run.stdout.split("RESULT ")[1])
    # Requests under way at the end have a number too.
    server.number += result["requests"] + connections
    # wrk tells only statuses of 400 and more; sessiond counts them all.
    statuses = server.statuses() - before if isinstance(server, Service) else {}
    if result["errors"] or result["broken"] or set(statuses) - {part.status for part in parts}:
        text = f"{result['errors']} of {result['requests']} responses have a status of 400 or more, and "
        text += f"{result['broken']} connections or requests failed"
        text += f"; sessiond counts by status: {dict(statuses)}" if statuses else ""
        sys.exit(f"{text}. The first request is {lines[0][:120]}")
    return result


class Oha:
    """A running oha: requests of one part, `rate` a second. With `corrected`, latencies count from when a request was
    due, not from when a connection was free for it."""

    def __init__(
        self,
        server,
        part,
        rate=None,
        seconds=SECONDS,
        count=None,
        connections=CONNECTIONS,
        corrected=True,
        headers=(),
    ):
        self.rate, self.seconds = rate, seconds
        self.files = [OUT / f"oha-{server.port}-{id(self)}.{kind}" for kind in ("urls", "bodies")]
        words = [OHA, "--no-tui", "--output-format", "json", "--stats-success-breakdown", "-c", connections]
        words += ["-m", part.method]
        for header in headers:
            words += ["-H", header]
        words += ["-n", count] if count else ["-z", f"{seconds}s", "-w", "-q", rate]
        words += ["--latency-correction"] if corrected and rate else []
        if part.bodies != [""]:
            self.files[1].write_text("\n".join(part.bodies) + "\n")
            words += ["-T", "application/json", "-Z", self.files[1]]
        if len(part.paths) > 1:
            self.files[0].write_text("".join(f"{server.base}{path}\n" for path in part.paths))
            words += ["--urls-from-file", self.files[0]]
        else:
            words += [f"{server.base}{part.paths[0]}"]
        self.process = subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def result(self):
        out, errors = self.process.communicate()
        for file in self.files:
            file.unlink(missing_ok=True)
        if self.process.returncode:
            sys.exit(f"oha: {errors}")
        result = json.loads(out)
        statuses = {int(status): count for status, count in result["statusCodeDistribution"].items()}
        percentiles = result["latencyPercentilesSuccessful"]
        return {
            "statuses": statuses,
            "requests": sum(statuses.values()),
            "good": sum(count for status, count in statuses.items() if status < 300),
            "broken": sum(result["errorDistribution"].values()),
            "seconds": result["summary"]["total"],
            # In milliseconds.
            **{name: (percentiles[name] or 0) * 1000 for name in ("p50", "p99", "p99.9")},
        }


def open_loop(server, parts, rate, seconds=SECONDS):
    """Runs all parts at once, each at its share of the rate. Returns the result of the whole; its percentiles are those
    of the worst part."""
    with_numbers = [numbered(part, rate * part.share * seconds) for part in parts]
    runs = [
        Oha(server, part, rate * part.share, seconds, connections=max(4, round(CONNECTIONS * part.share)))
        for part in with_numbers
    ]
    results = [run.result() for run in runs]
    whole = {name: sum(result[name] for result in results) for name in ("requests", "good", "broken")}
    whole |= {name: max(result[name] for result in results) for name in ("p50", "p99", "p99.9", "seconds")}
    if whole["good"] < whole["requests"] or whole["broken"]:
        sys.exit(f"requests failed: {[result['statuses'] for result in results]}, {whole['broken']} broken")
    return whole


def numbered(part, requests):
    """Makes twenty times as many bodies as requests if each must be new: oha takes a body at random."""
    if not any(NUMBER in body for body in part.bodies):
        return part
    start = time.monotonic_ns() % 10**6
    count = max(1000, round(20 * requests))
    bodies = [part.bodies[0].replace(NUMBER, f"o{start}_{number}") for number in range(count)]
    return Part(part.method, part.paths, bodies, part.share, part.status, part.has)


# Tables


def spread(values, digits=1):
    """The median, and the range if there is more than one value."""
    values = list(values)
    if not values:
        return "-"
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def ratio(value, base):
    return f"{value / base:.2f}" if base else "-"


def ratios(values, bases):
    """The ratio in each round: the median, and the range."""
    return spread((value / base for value, base in zip(values, bases)), 2)


def report(name, title, headings, rows, *notes):
    """A markdown table: printed, and appended to the run's file below target/bench/."""
    lines = [f"### {title}", "", "| " + " | ".join(headings) + " |", "|" + "---|" * len(headings)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    text = "\n".join([*lines, "", *notes, *([""] if notes else [])])
    print(text, flush=True)
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{name}.md").open("a") as file:
        file.write(text + "\n")


def begin(name, baseline=None):
    """Starts the run's file with the time, the revision and the machine."""
    # For many connections; child processes inherit it.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    OUT.mkdir(parents=True, exist_ok=True)
    if not SESSIOND.exists():
        sys.exit("run this by make, which builds and installs what is needed")
    if baseline and not os.access(baseline, os.X_OK):
        sys.exit(f"--baseline: {baseline} is no program")
    revision = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, cwd=ROOT
    ).stdout.strip()
    version = subprocess.run(["redis-cli", "--version"], capture_output=True, text=True).stdout.strip()
    program = " ".join([str(SESSIOND.relative_to(ROOT) if SESSIOND.is_relative_to(ROOT) else SESSIOND.name), *FLAGS])
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    text = (
        f"## make {name}, {time.strftime('%Y-%m-%d %H:%M')}\n\n"
        f"`{program}` of {revision}, {os.cpu_count()} processors, {version}, {ROUNDS} rounds of {SECONDS} s; "
        f"load of the machine before: {load}.\n"
    )
    (OUT / f"{name}.md").write_text(text + "\n")
    print(text, flush=True)
