#!/usr/bin/env -S python3 -B
"""Measures the service under load: at its peak rate, at half of it and above it; and bare axum in the same rounds."""

import http.client
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time

from kit import (
    BUSINESS,
    CONNECTIONS,
    OUT,
    PEERS,
    PLACES,
    ROUNDS,
    SECONDS,
    SESSIOND,
    Cpu,
    Oha,
    Part,
    Redis,
    Server,
    Service,
    begin,
    busy,
    cpu_us,
    free_port,
    new_session,
    on_processors,
    open_loop,
    pipelined,
    processors,
    ratio,
    report,
    sessions_of,
    setting,
    spread,
    status_of,
    wrk,
)
from scenarios import SCENARIOS, USERS, BareCalls, Calls, add_place, parser

OVERLOAD_SECONDS = setting("SESSIOND_OVERLOAD_SECONDS", 60)
# The most requests under way: they are not pipelined.
OVERLOAD_CONNECTIONS = setting("SESSIOND_OVERLOAD_CONNECTIONS", 500)
# Busy programs on the processor of the service and Redis.
OVERLOAD_BUSY = setting("SESSIOND_OVERLOAD_BUSY", 1)
# Rates of all requests, of a large business and its neighbours, as parts of the peak.
NEIGHBOURS_LOADS = [float(load) for load in setting("SESSIOND_NEIGHBOURS_LOADS", "0.05 0.1 0.25 0.5").split()]
CROWD = setting("SESSIOND_CROWD", 10_000)
SOAK_MINUTES = setting("SESSIOND_SOAK_MINUTES", 30.0)
SOAK_RATE = setting("SESSIOND_SOAK_RATE", 2000)
# The service has recovered when this many consecutive requests take at most this long.
NORMAL_SECONDS = 0.05
NORMAL_REQUESTS = 50


def parts_of(service, name):
    return SCENARIOS[name].parts(Calls(service))


def bare_axum(workers=0):
    port = free_port()
    return Server([PEERS / "rust/release/sessiond-peers", "bare", port, workers], port)


class Figures:
    """The figures of one scenario on one server, a value for each round."""

    def __init__(self, scenario):
        self.requests = scenario.requests
        self.peak, self.peak_cpu, self.peak_redis = [], [], []
        self.rate, self.open, self.open_cpu, self.open_redis = 0, [], [], []
        self.rss = 0

    def row(self, name):
        achieved = statistics.median(run["good"] / run["seconds"] for run in self.open) / self.requests
        return [
            name,
            spread(self.peak, 0),
            spread(self.peak_cpu),
            spread(self.peak_redis),
            f"{achieved:,.0f} of {self.rate / self.requests:,.0f}",
            *(spread((run[name] for run in self.open), 2) for name in ("p50", "p99", "p99.9")),
            spread(self.open_cpu),
            spread(self.open_redis),
            f"{self.rss:.0f}",
        ]


HEADINGS = ["scenario", "peak req/s", "service µs", "Redis µs", "open loop req/s", "p50 ms", "p99 ms", "p99.9 ms"]
HEADINGS += ["service µs", "Redis µs", "RSS MB"]


def closed(server, redis, parts, figures):
    with Cpu(service=server, redis=redis) as cpu:
        run = wrk(server, parts)
    units = run["requests"] / figures.requests
    figures.peak.append(units / run["seconds"])
    figures.peak_cpu.append(cpu.per("service", units))
    figures.peak_redis += [cpu.per("redis", units)] if redis else []


def open_at(server, redis, parts, figures):
    with Cpu(service=server, redis=redis) as cpu:
        run = open_loop(server, parts, figures.rate)
    figures.open.append(run)
    figures.open_cpu.append(cpu.per("service", run["good"] / figures.requests))
    figures.open_redis += [cpu.per("redis", run["good"] / figures.requests)] if redis else []
    figures.rss = server.rss_mb()


def steady(names, place):
    """Measures each scenario at its peak, then at half of it; also bare axum, at the same rate, if it knows them."""
    of_servers, of_client = processors(place)
    with on_processors(of_servers):
        redis = Redis()
        service, bare = Service(redis), bare_axum()
    with on_processors(of_client):
        calls, bare_calls = Calls(service), BareCalls(bare)
        rows, ratios = [], []
        for name in names:
            scenario = SCENARIOS[name]
            parts = scenario.parts(calls)
            bare_parts = scenario.parts(bare_calls) if scenario.is_known_to(bare_calls) else None
            ours, axum = Figures(scenario), Figures(scenario)
            for part in parts:
                part.check(service)
            wrk(service, parts, seconds=1)
            for _ in range(ROUNDS):
                closed(service, redis, parts, ours)
                if bare_parts:
                    closed(bare, None, bare_parts, axum)
            ours.rate = axum.rate = round(statistics.median(ours.peak) * scenario.requests / 2)
            for _ in range(ROUNDS):
                open_at(service, redis, parts, ours)
                if bare_parts:
                    open_at(bare, None, bare_parts, axum)
            rows.append(ours.row(name))
            if bare_parts:
                rows.append(axum.row("bare axum"))
                ratios.append([name, *ratios_of(ours, axum)])
    title = f"{place}: at peak with {CONNECTIONS} connections, and open loop at half of that"
    report("bench-load", title, HEADINGS, rows, f"{place}: {PLACES[place]}.")
    headings = ["sessiond / bare axum", "service µs at peak", "service µs at half", "p99 at half", "p99.9 at half"]
    if ratios:
        report("bench-load", f"{place}: ratios to bare axum", headings, ratios)
    for server in (service, bare, redis):
        server.stop()


def ratios_of(ours, axum):
    def of(values):
        mine, other = (statistics.median(values(figures)) for figures in (ours, axum))
        return ratio(mine, other)

    yield of(lambda figures: figures.peak_cpu)
    yield of(lambda figures: figures.open_cpu)
    yield of(lambda figures: [run["p99"] for run in figures.open])
    yield of(lambda figures: [run["p99.9"] for run in figures.open])


def peak_of(service, parts):
    """Requests a second with 64 connections, after a second to warm up."""
    wrk(service, parts, seconds=1)
    run = wrk(service, parts, seconds=min(SECONDS, 5))
    return run["requests"] / run["seconds"]


def oha_peak(server, part, connections):
    """Successful requests a second of oha over this many connections, as fast as possible."""
    run = Oha(server, part, 10**6, min(SECONDS, 5), connections=connections, corrected=False).result()
    return run["good"] / run["seconds"]


def overload():
    """Sends twice the peak rate, and measures the recovery afterwards. The service and Redis share one processor with
    busy programs: otherwise no client on the same machine could send as much."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2:
        sys.exit("overload needs a processor for the service and one for the client")
    of_service, of_client = {processors[0]}, set(processors[1:])
    with on_processors(of_service):
        redis = Redis()
        service, bare = Service(redis), bare_axum()
    with on_processors(of_client):
        resume = parts_of(service, "resume")
        client_max = oha_peak(bare, resume[0], OVERLOAD_CONNECTIONS)
        with on_processors(of_service):
            busy_programs = busy(OVERLOAD_BUSY)
        # The cost of more connections for a server that does nothing, after a warm-up.
        oha_peak(bare, resume[0], CONNECTIONS)
        bare_peak, bare_goodput = (oha_peak(bare, resume[0], each) for each in (CONNECTIONS, OVERLOAD_CONNECTIONS))
        bare.stop()
        # With the same client, because its requests are longer than those of wrk.
        oha_peak(service, resume[0], CONNECTIONS)
        peak = oha_peak(service, resume[0], CONNECTIONS)
        load = Oha(service, resume[0], 2 * peak, OVERLOAD_SECONDS, connections=OVERLOAD_CONNECTIONS, corrected=False)
        with Cpu(service=service, redis=redis) as cpu:
            health, client_us = watch(service, load.process)
            run = load.result()
    shares = [us / run["seconds"] / 1e6 for us in (cpu.us["service"], cpu.us["redis"], client_us)]
    recovery = recovery_ms(service, resume[0].bodies[0])
    goodput, shed = run["good"] / run["seconds"], run["statuses"].get(503, 0) / run["seconds"]
    headings = [
        "peak req/s",
        "twice that",
        "client's most",
        "responses /s",
        "goodput req/s",
        "of peak",
        "bare axum's of its peak",
        "503 /s",
        "other",
        "accepted p50 ms",
    ]
    headings += [
        "p99 ms",
        "p99.9 ms",
        "slowest /livez ms",
        "normal again after ms",
        "processors of service / Redis / client",
    ]
    other = run["requests"] - run["good"] - run["statuses"].get(503, 0) + run["broken"]
    row = [
        f"{peak:,.0f}",
        f"{2 * peak:,.0f}",
        f"{client_max:,.0f}",
        f"{run['requests'] / run['seconds']:,.0f}",
        f"{goodput:,.0f}",
        ratio(goodput, peak),
        ratio(bare_goodput, bare_peak),
    ]
    row += [f"{shed:,.0f}", other, *(f"{run[name]:.1f}" for name in ("p50", "p99", "p99.9"))]
    row += [f"{health:.1f}", f"{recovery:.0f}", " / ".join(f"{share:.2f}" for share in shares)]
    note = f"Over {OVERLOAD_CONNECTIONS} connections; latencies from sending. {OVERLOAD_BUSY} busy programs on the "
    note += "processor of the service and Redis. `client's most`: requests a second of the same client with bare axum, "
    note += "without those programs. If that is less than twice the peak, the client is the limit, and this table "
    note += "shows little. "
    note += f"`bare axum's of its peak`: its rate over {OVERLOAD_CONNECTIONS} connections divided by that over "
    note += f"{CONNECTIONS}, beside those programs."
    report("bench-load", f"Resume at twice the peak rate for {OVERLOAD_SECONDS} s", headings, [row], note)
    for program in busy_programs:
        program.kill()
    service.stop()
    redis.stop()


def watch(service, process):
    """Requests /livez every 50 ms until the process ends. Returns the slowest response in milliseconds, and the CPU
    time of the process when it was last measured."""
    slowest, client_us = 0.0, 0.0
    while process.poll() is None:
        started = time.monotonic()
        if status_of(f"{service.base}/livez") != 200:
            sys.exit("/livez fails under load")
        slowest = max(slowest, (time.monotonic() - started) * 1000)
        client_us = max(client_us, cpu_us(process.pid))
        # oha's output stays in the pipe until it is read: it is a few kilobytes.
        time.sleep(0.05)
    return slowest, client_us


def recovery_ms(service, body):
    """Milliseconds until the first of NORMAL_REQUESTS consecutive requests with a normal response."""
    began = time.monotonic()
    first, normal = began, 0
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=5)
    while normal < NORMAL_REQUESTS:
        if normal == 0:
            first = time.monotonic()
        if first - began > 60:
            sys.exit("the service has not recovered a minute after an overload")
        started = time.monotonic()
        connection.request("POST", "/api/sessions", body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        is_normal = response.status == 200 and time.monotonic() - started < NORMAL_SECONDS
        normal = normal + 1 if is_normal else 0
    return (first - began) * 1000


def neighbours():
    """One business sends nine tenths of all requests: measures the p99 of the others at several loads. bare axum gets
    as many requests. It knows no businesses, so its p99 shows the effect of the machine and the client."""
    redis = Redis()
    service, bare = Service(redis), bare_axum(workers=2)
    sessions_of(service, USERS, "big")
    small = [(f"small_{number % 100}", user) for number, user in enumerate(USERS)]
    bodies = [new_session(user, business) for business, user in small]
    pipelined(service, [("POST", "/api/sessions", body) for body in bodies], 201)
    big = Part("POST", ["/api/sessions"], [new_session(user, "big") for user in USERS])
    others = Part("POST", ["/api/sessions"], bodies)
    peak, rows = peak_of(service, [others]), []
    for load in NEIGHBOURS_LOADS:
        rate = round(peak * load)
        # The third has as many requests, but of many businesses: the difference is the effect of one large business.
        kinds = {
            "alone": (service, None),
            "beside it": (service, big),
            "beside many": (service, others),
            "bare alone": (bare, None),
            "bare beside": (bare, big),
        }
        p99 = {name: [] for name in kinds}
        for _ in range(ROUNDS):
            for name, (server, part) in kinds.items():
                runs = [Oha(server, others, rate * 0.1)]
                runs += [Oha(server, part, rate * 0.9)] if part else []
                p99[name].append([run.result()["p99"] for run in runs][0])
        alone, beside, among, bare_alone, bare_beside = (statistics.median(values) for values in p99.values())
        row = [f"{rate:,}", f"{load:.2f}", *(spread(values, 2) for values in p99.values())]
        rows.append([*row, ratio(beside, alone), ratio(bare_beside, bare_alone), ratio(beside, among)])
    report(
        "bench-load",
        "One business with 90 % of all requests: the others' p99",
        ["req/s in all", "of the peak", "alone ms", "beside it ms", "beside as many requests of many ms"]
        + ["bare axum alone ms", "bare axum beside it ms", "beside it / alone", "bare axum's"]
        + ["beside it / beside many"],
        rows,
        "Resuming. The others have a tenth of the requests, also when they are alone.",
    )
    service.stop()
    bare.stop()
    redis.stop()


def api_key(business):
    """A new API key of a business: its credential, and its entry for the key file."""
    words = [SESSIOND, "keygen", "--business", business]
    run = subprocess.run([str(word) for word in words], check=True, capture_output=True, text=True)
    return run.stderr.split(":", 1)[1].strip(), run.stdout


class PageReader(threading.Thread):
    """Reads all messages of a session, page after page, repeatedly until `done` is set."""

    def __init__(self, service, path, credential):
        super().__init__()
        self.service, self.path, self.credential = service, path, credential
        self.bytes, self.rejected, self.done = 0, 0, threading.Event()

    def run(self):
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=30)
        path = f"{self.path}?limit=1000"
        buffer = bytearray(1 << 20)
        while not self.done.is_set():
            connection.request("GET", path, headers={"authorization": f"Bearer {self.credential}"})
            response = connection.getresponse()
            while read := response.readinto(buffer):
                self.bytes += read
            link = re.match('<([^>]*)>; rel="prev"', response.getheader("link") or "")
            if response.status == 503:
                self.rejected += 1
                self.done.wait(float(response.getheader("retry-after")))
            elif response.status == 200:
                path = link.group(1) if link else f"{self.path}?limit=1000"
            else:
                sys.exit(f"the response to a page was {response.status}")


def large_reads():
    """Eight readers of one credential read a session of 250 MB, page after page: measures the requests of another."""
    # The servers on one processor, the clients on the other.
    os.sched_setaffinity(0, {0})
    redis = Redis()
    keys = [api_key(business) for business in ("heavy", BUSINESS)]
    file = OUT / "large-reads-keys.toml"
    file.write_text("\n".join(entry for _, entry in keys))
    heavy, light = (credential for credential, _ in keys)
    service = Service(redis, 0, "--api-keys-file", file)
    os.sched_setaffinity(0, {1})

    def call(credential, method, path, body):
        connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=30)
        headers = {"authorization": f"Bearer {credential}", "content-type": "application/json"}
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        if response.status not in (200, 201):
            sys.exit(f"{response.status} for {method} {path}: {response.read()}")
        return json.loads(response.read())

    path = f"/api/sessions/{call(heavy, 'POST', '/api/sessions', new_session('u', 'heavy'))['sessionId']}/messages"
    message = json.dumps({"role": "user", "content": "x" * 250_000})
    for _ in range(1000):
        call(heavy, "POST", path, message)
    others = Part("POST", ["/api/sessions"], [new_session(user) for user in USERS])
    for body in others.bodies:
        call(light, "POST", "/api/sessions", body)
    header = [f"authorization: Bearer {light}"]
    rows = []
    for rate in (500, 2000):
        alone, beside, served, read, rejected, rss = [], [], [], [], [], []
        for _ in range(ROUNDS):
            alone.append(Oha(service, others, rate, headers=header).result()["p99"])
            readers = [PageReader(service, path, heavy) for _ in range(8)]
            for reader in readers:
                reader.start()
            started = time.monotonic()
            load = Oha(service, others, rate, headers=header)
            while load.process.poll() is None:
                rss.append(service.rss_mb())
                time.sleep(0.02)
            run = load.result()
            for reader in readers:
                reader.done.set()
            seconds = time.monotonic() - started
            for reader in readers:
                reader.join()
            beside.append(run["p99"])
            served.append(100 * run["good"] / (run["requests"] + run["broken"]))
            read.append(sum(reader.bytes for reader in readers) / seconds / 1e6)
            rejected.append(sum(reader.rejected for reader in readers) / seconds)
        row = [f"{rate:,}", spread(alone, 2), spread(beside, 2)]
        row += [ratio(statistics.median(beside), statistics.median(alone)), f"{min(served):.2f}", spread(read, 0)]
        rows.append([*row, spread(rejected), f"{max(rss):.0f}"])
    headings = ["others' req/s", "p99 alone ms", "p99 beside ms", "ratio", "others' served %", "read MB/s"]
    headings += ["pages rejected /s", "RSS MB at most"]
    note = "Resuming, by another credential. Each reader follows `Link` from the newest page to the oldest."
    report("bench-load", "Beside 8 readers of 250 MB each", headings, rows, note)
    service.stop()
    redis.stop()
    file.unlink()
    os.sched_setaffinity(0, {0, 1})


def crowd():
    """Many concurrent first requests of one user create one session."""
    redis = Redis()
    service = Service(redis)
    rows = []
    for round in range(ROUNDS):
        part = Part("POST", ["/api/sessions"], [new_session(f"crowd_{round}")])
        run = Oha(service, part, count=CROWD, connections=CROWD).result()
        statuses = run["statuses"]
        other = run["requests"] - sum(statuses.get(status, 0) for status in (200, 201, 503)) + run["broken"]
        if statuses.get(201) != 1:
            sys.exit(f"{statuses.get(201)} sessions were created: {statuses}")
        row = [*(statuses.get(status, 0) for status in (201, 200, 503)), other, f"{run['seconds']:.2f}"]
        rows.append([*row, *(f"{run[name]:.0f}" for name in ("p50", "p99", "p99.9")), f"{service.rss_mb():.0f}"])
    headings = ["201", "200", "503", "other", "all in s", "p50 ms", "p99 ms", "p99.9 ms", "RSS MB after"]
    note = "Each on its own connection, including the time to connect. Percentiles are of requests that got a session."
    report("bench-load", f"{CROWD:,} concurrent POSTs of one user", headings, rows, note)
    service.stop()
    redis.stop()


def log():
    """The cost of a log line for every response: with a reader, a stuck reader, a full disk, and without the lines."""
    redis = Redis()
    (read, read_pipe), (stuck, unread_pipe) = os.pipe(), os.pipe()
    reader = subprocess.Popen(["cat"], stdin=read, stdout=subprocess.DEVNULL)
    every_response = ["--log", "info,fred=error,sessiond::access=debug"]
    kinds = {
        "none": ([], read_pipe),
        "read": (every_response, read_pipe),
        "not read": (every_response, unread_pipe),
        "full disk": (every_response, os.open("/dev/full", os.O_WRONLY)),
    }
    services, rows = {}, []
    for database, (name, (flags, stderr)) in enumerate(kinds.items()):
        services[name] = Service(redis, database, *flags, stderr=stderr)
    work = {name: parts_of(service, "resume") for name, service in services.items()}
    peak, cpu_each, rss = ({name: [] for name in kinds} for _ in range(3))
    for name, service in services.items():
        wrk(service, work[name], seconds=1)
    for _ in range(ROUNDS):
        for name, service in services.items():
            with Cpu(service=service) as cpu:
                run = wrk(service, work[name])
            peak[name].append(run["requests"] / run["seconds"])
            cpu_each[name].append(cpu.per("service", run["requests"]))
            rss[name].append(service.rss_mb())
    for name, service in services.items():
        ratios = [
            spread((one / base for one, base in zip(peak[name], peak[other])), 2) for other in ("none", "read")
        ]
        dropped = f"{service.metric('sessiond_log_lines_dropped_total'):,.0f}"
        memory = f"{rss[name][0]:.1f}", f"{rss[name][-1]:.1f}"
        rows.append([name, spread(peak[name], 0), *ratios, spread(cpu_each[name]), *memory, dropped])
    headings = ["log of every response", "req/s", "of none", "of read", "service µs", "RSS MB after the first round"]
    headings += ["after the last", "dropped lines"]
    note = "Resuming, 64 connections, alternating rounds; ratios are of one round. The reader is `cat`, on the same "
    note += "processors."
    report("bench-load", "The log of every response, by what reads stderr", headings, rows, note)
    for service in services.values():
        started = time.monotonic()
        service.stop()
        if service.process.returncode != 0 or time.monotonic() - started > 5:
            sys.exit(f"a service did not stop cleanly within 5 s: {service.process.returncode}")
    redis.stop()
    for descriptor in (read, read_pipe, stuck, unread_pipe, kinds["full disk"][1]):
        os.close(descriptor)
    reader.wait()


def soak():
    """Memory of the service during the mixed scenario at a constant rate."""
    redis = Redis()
    service = Service(redis)
    mixed = parts_of(service, "mixed")
    samples, done = [], threading.Event()

    def sample():
        started = time.monotonic()
        while not done.wait(5):
            samples.append((time.monotonic() - started, service.rss_mb()))

    sampling = threading.Thread(target=sample)
    sampling.start()
    deadline = time.monotonic() + 60 * SOAK_MINUTES
    slowest = 0.0
    while (left := deadline - time.monotonic()) > 1:
        # Several runs, because oha keeps its measurements in memory.
        slowest = max(slowest, open_loop(service, mixed, SOAK_RATE, seconds=round(min(left, 60)))["p99"])
    done.set()
    sampling.join()
    if len(samples) < 10:
        sys.exit("too short: fewer than 10 samples")
    tenths = [samples[len(samples) * tenth // 10 : len(samples) * (tenth + 1) // 10] for tenth in range(10)]
    rows = [
        [f"{part[0][0] / 60:.1f} to {part[-1][0] / 60:.1f}", f"{max(rss for _, rss in part):.1f}"] for part in tenths
    ]
    note = f"Mixed, {SOAK_RATE:,} requests a second; the worst p99 of a minute was {slowest:.2f} ms."
    report("bench-load", f"Memory over {SOAK_MINUTES:g} minutes", ["minutes", "RSS MB at most"], rows, note)
    service.stop()
    redis.stop()


OTHERS = {
    "overload": (overload, f"resume at twice the peak rate, over {OVERLOAD_CONNECTIONS} connections"),
    "neighbours": (neighbours, "the p99 of others beside one business with 90 % of the requests"),
    "large-reads": (large_reads, "the p99 of another key beside eight readers of 250 MB each"),
    "crowd": (crowd, f"{CROWD:,} concurrent POSTs of one user"),
    "log": (log, "the cost of a log line for every response"),
    "soak": (soak, f"memory during `mixed`, for {SOAK_MINUTES:g} minutes; only if named"),
}


def main():
    arguments = parser(__doc__, {name: does for name, (_, does) in OTHERS.items()})
    add_place(arguments)
    given = arguments.parse_args()
    names = given.scenarios or [*SCENARIOS, *(name for name in OTHERS if name != "soak")]
    begin("bench-load")
    if chosen := [name for name in SCENARIOS if name in names]:
        for place in given.place or PLACES:
            steady(chosen, place)
    for name in names:
        if name in OTHERS:
            OTHERS[name][0]()


main()
