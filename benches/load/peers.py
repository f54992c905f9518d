#!/usr/bin/env -S python3 -B
"""Compares sessiond with an earlier build of itself, with what its users would otherwise write or use, and with bare
commands of Redis: the same scenarios, in interleaved rounds of one run."""

import json
import pathlib
import subprocess
import sys
import time
import urllib.parse
import uuid

from kit import (
    BUSINESS,
    CONNECTIONS,
    OUT,
    PEERS,
    PLACES,
    ROUNDS,
    SECONDS,
    Cpu,
    Part,
    Redis,
    Server,
    Service,
    begin,
    free_port,
    get_or_create_script,
    on_processors,
    pipelined,
    processors,
    ratios,
    report,
    sessions_of,
    spread,
    wrk,
)
from scenarios import ACTIVE_PAGE, LISTED, SCENARIOS, USERS, BareCalls, Calls, add_place, messages, parser

# Milliseconds, as sessiond's defaults: idle timeout, maximum lifetime, retention, activity resolution.
SESSION_FIELDS = (
    "sessionId businessId userId locationId sessionType status title metadata messageCount version createdAt "
)
SESSION_FIELDS += "updatedAt lastActivityAt expiresAt activeUntil endedAt endReason largestMessage"
MEMORY_SESSIONS = 10_000
MEMORY = "bytes of Redis memory of a session and of a message"


# Peers: each starts a server and returns it with its calls.


def sessiond(redis, **options):
    server = Service(redis, **options)
    return server, Calls(server)


def rust(kind, workers):
    def start(redis):
        port = free_port()
        program = PEERS / "rust/release/sessiond-peers"
        server = Server([program, kind, port, workers, redis.url(), get_or_create_script()], port)
        return server, BareCalls(server) if kind == "bare" else Calls(server, PEER_KNOWS)

    return start


def node(program):
    def start(redis):
        port = free_port()
        server = Server(["node", PEERS / program, port, redis.url(), get_or_create_script()], port)
        return server, Calls(server, PEER_KNOWS)

    return start


def webdis(redis):
    port = free_port()
    config = OUT / f"webdis-{port}.json"
    # The other settings are those of the package.
    settings = {"redis_host": "127.0.0.1", "redis_port": redis.port, "http_host": "127.0.0.1", "http_port": port}
    settings |= {"threads": 2, "daemonize": False, "websockets": False, "verbosity": 0, "logfile": "/dev/null"}
    config.write_text(json.dumps(settings))
    server = Server(["webdis", config], port, cwd=OUT)
    return server, WebdisCalls(server, redis)


PEER_KNOWS = {"get", "resume", "create", "append", "list_messages"}


class WebdisCalls(Calls):
    """Commands as paths. The caller of the script passes an id and a time: the same each time, which makes no
    difference for a user with an active session."""

    def __init__(self, server, redis):
        super().__init__(server, {"get", "resume"})
        self.script, self.now_ms = redis.command("script", "load", get_or_create_script().read_text()), int(time.time() * 1000)
        self.ids = [uuid.uuid4() for _ in USERS]
        requests = [("GET", self.call(user, id)) for user, id in zip(USERS, self.ids)]
        pipelined(server, requests, 200, batch=1)

    def call(self, user, id):
        keys = [f"peer:a:{BUSINESS}:{user}", f"peer:h:{BUSINESS}:{user}", f"peer:b:{BUSINESS}", f"peer:s:{id}"]
        words = ["EVALSHA", self.script, 4, *keys, "peer:", id, self.now_ms, "return"]
        # webdis cannot pass an empty argument; any text but 1 says that the id is new.
        words += [BUSINESS, user, "0", "locationId", "L0100001", "sessionType", "general"]
        return "/" + "/".join(urllib.parse.quote(str(word), safe="") for word in [*words, "metadata", "{}"])

    def get(self):
        return Part("GET", [f"/HGETALL/peer:s:{id}" for id in self.ids], has=(b'"userId"', 1))

    def resume(self):
        return Part("GET", [self.call(user, uuid.uuid4()) for user in USERS], has=(b'"resumed"', 1))


PEERS_BY_NAME = {
    "bare axum": rust("bare", 0),
    "bare axum, 2 workers": rust("bare", 2),
    "axum + redis": rust("redis", 0),
    "axum + redis, 2 workers": rust("redis", 2),
    "webdis": webdis,
    "Fastify + ioredis": node("fastify/server.js"),
    "NestJS + ioredis": node("nestjs/dist/main.js"),
}


# Measuring


class Figures:
    """One subject's figures of one scenario in one place, a value for each round."""

    def __init__(self):
        self.rate, self.service, self.redis = [], [], []
        self.busy, self.rss_mb = [], []
        # Commands that Redis found in one read of a connection, including those inside of scripts.
        self.depths = []

    def cells(self):
        costs = [spread(self.rate, 0), spread(self.service), spread(self.redis)]
        return [*costs, spread(self.busy, 2), spread(self.depths)]

    def ratio_cells(self, base):
        return [ratios(mine, its) for mine, its in self.pairs(base)]

    def pairs(self, base):
        return (self.rate, base.rate), (self.service, base.service), (self.redis, base.redis)


class Subject:
    """A server with its own Redis, and the requests of the scenarios that it knows."""

    def __init__(self, start):
        self.redis = Redis()
        self.server, self.calls = start(self.redis)

    def prepare(self, names):
        known = [name for name in names if SCENARIOS[name].is_known_to(self.calls)]
        self.parts = {name: SCENARIOS[name].parts(self.calls) for name in known}

    def warm_up(self):
        for parts in self.parts.values():
            for part in parts:
                part.check(self.server)
            # Node's compiler needs it.
            wrk(self.server, parts, seconds=min(SECONDS, 2))

    def measure(self, name, figures):
        """Measures once."""
        for part in self.parts[name]:
            part.check(self.server)
        before = self.redis.figures()
        with Cpu(service=self.server, redis=self.redis) as cpu:
            run = wrk(self.server, self.parts[name])
        units = run["requests"] / SCENARIOS[name].requests
        figures.rate.append(units / run["seconds"])
        figures.service.append(cpu.per("service", units))
        figures.busy.append(sum(cpu.us.values()) / 1e6 / run["seconds"])
        figures.rss_mb.append(self.server.rss_mb())
        if isinstance(self.calls, BareCalls):
            return
        after = self.redis.figures()
        commands, reads = (after[key] - before[key] for key in ("total_commands_processed", "total_reads_processed"))
        figures.redis.append(cpu.per("redis", units))
        figures.depths.append(commands / max(reads, 1))

    def stop(self):
        self.server.stop()
        self.redis.stop()


def require_equal_sizes(ours, bare):
    """Ends the run unless bare axum's responses to a GET have about as many bytes as sessiond's."""
    for name in bare.parts:
        for ours_part, bare_part in zip(ours.parts[name], bare.parts[name]):
            sizes = [len(part.check(server)) for part, server in ((ours_part, ours.server), (bare_part, bare.server))]
            if bare_part.method == "GET" and not 0.95 < sizes[1] / sizes[0] < 1.05:
                sys.exit(f"{name}: bare axum returns {sizes[1]} bytes, sessiond {sizes[0]}")


class BareCommand:
    """A command that redis-benchmark sends to copies of what a scenario reads. `each` are in one request."""

    def __init__(self, name, copies_from, words, each=1, count=200_000):
        self.name, self.copies_from, self.words, self.each, self.count = name, copies_from, words, each, count

    def prepare(self, subject):
        self.copies = self.copies_from(subject)

    def measure(self, subject, figures, depth, of_servers):
        """Redis's CPU for a client that is on the processors of the service, has as many connections, and sends as many
        commands at a time as Redis found there."""
        depth = max(1, round(depth))
        figures.depths.append(depth)
        clients = len(subject.redis.command("client", "list", "type", "normal").splitlines()) - 1
        words = ["redis-benchmark", "-p", subject.redis.port, "-q", "-n", self.count, "-r", self.copies]
        words += ["-c", max(clients, 1), "-P", depth, *self.words]
        with on_processors(of_servers), Cpu(redis=subject.redis) as cpu:
            subprocess.run([str(word) for word in words], check=True, capture_output=True)
        figures.redis.append(cpu.per("redis", self.count) * self.each)


def copied_sessions(kind):
    """Copies of the hashes of sessions. redis-benchmark puts a number of twelve digits into a key."""

    def copy(subject):
        ids = getattr(subject.calls, kind)
        keys = [f"sd:{{{id[:4]}}}:s:{id}" for id in ids]
        if subject.redis.command("exists", *keys) != str(len(keys)):
            sys.exit(f"{keys[0]} is no session")
        commands = [(b"COPY", key.encode(), b"bench:%s:%012d" % (kind.encode(), n)) for n, key in enumerate(keys)]
        subject.redis.pipe(commands)
        return len(keys)

    return copy


def copied_messages(subject):
    """Lists with the messages of sessions, each as the JSON that the service returns."""
    paths = [f"{path}?limit={LISTED}" for path in subject.calls.messages_of(subject.calls.listed)]
    commands = []
    for number, page in enumerate(pipelined(subject.server, [("GET", path) for path in paths], 200)):
        key = b"bench:listed:%012d" % number
        texts = [json.dumps(message, separators=(",", ":")).encode() for message in json.loads(page)]
        commands += [(b"DEL", key), (b"RPUSH", key, *texts)]
    subject.redis.pipe(commands)
    return len(paths)


BARE_COMMANDS = {
    "get": BareCommand(
        "bare HMGET", copied_sessions("ids"), ["HMGET", "bench:ids:__rand_int__", *SESSION_FIELDS.split()]
    ),
    "list_messages_10": BareCommand("bare LRANGE", copied_messages, ["LRANGE", "bench:listed:__rand_int__", -10, -1]),
    "list_messages_50": BareCommand(
        "bare LRANGE", copied_messages, ["LRANGE", "bench:listed:__rand_int__", -50, -1], count=100_000
    ),
    "list_active": BareCommand(
        f"{ACTIVE_PAGE} bare HGETALL", copied_sessions("active"), ["HGETALL", "bench:active:__rand_int__"], ACTIVE_PAGE
    ),
}


class Comparison:
    """The figures of a run by place, scenario and name."""

    def __init__(self, starts, names):
        self.starts, self.names = starts, names
        self.figures = {}

    def of(self, place, name, subject):
        return self.figures.setdefault((place, name, subject), Figures())

    def run(self, place):
        of_servers, of_client = processors(place)
        with on_processors(of_servers):
            subjects = {name: Subject(start) for name, start in self.starts.items()}
        with on_processors(of_client):
            for subject in subjects.values():
                subject.prepare(self.names)
            ours = subjects["sessiond"]
            for name in self.names:
                if name in BARE_COMMANDS:
                    BARE_COMMANDS[name].prepare(ours)
            for subject in subjects.values():
                subject.warm_up()
                if isinstance(subject.calls, BareCalls):
                    require_equal_sizes(ours, subject)
            for round in range(ROUNDS):
                for name in self.names:
                    print(f"{place}, round {round + 1} of {ROUNDS}: {name}", file=sys.stderr, flush=True)
                    self.measure(place, name, subjects, of_servers)
        for subject in subjects.values():
            subject.stop()

    def measure(self, place, name, subjects, of_servers):
        for subject_name, subject in subjects.items():
            if name not in subject.parts:
                continue
            figures = self.of(place, name, subject_name)
            subject.measure(name, figures)
            if subject_name == "sessiond" and (bare := BARE_COMMANDS.get(name)):
                bare.measure(subject, self.of(place, name, bare.name), figures.depths[-1], of_servers)

    def report(self, places):
        costs, of_ours = ["req/s", "service µs", "Redis µs"], "sessiond / it: "
        headings = [""]
        for place in places:
            prefix = "" if place == places[0] else f"{place}: "
            headings += [f"{prefix}{cost}" for cost in [*costs, "busy", "commands a read"]]
            headings += [f"{prefix}{of_ours}{cost}" for cost in costs]
        headings += ["RSS MB"]
        note = f"{CONNECTIONS} connections; a Redis for each; {ROUNDS} interleaved rounds of {SECONDS} s; "
        note += "ratios are of one round. busy: processors that the service and Redis used; apart, if it is well below "
        note += "1, the client or something else was the limit, not the server. "
        note += "; ".join(f"{place}: {PLACES[place]}" for place in places) + "."
        for name in self.names:
            rows = [self.row(name, subject, places) for subject in self.subjects_of(name)]
            report("bench-peers", f"{name}: {SCENARIOS[name].does}", headings, rows, note)
        self.report_beside_get(places, costs)

    def subjects_of(self, name):
        return list(dict.fromkeys(subject for _, scenario, subject in self.figures if scenario == name))

    def row(self, name, subject, places):
        cells, rss_mb = [subject], []
        for place in places:
            ours, its = (self.of(place, name, each) for each in ("sessiond", subject))
            cells += its.cells()
            cells += ["-"] * 3 if its is ours else ours.ratio_cells(its)
            rss_mb += its.rss_mb
        return [*cells, f"{max(rss_mb):.0f}" if rss_mb else "-"]

    def report_beside_get(self, places, costs):
        if "get" not in self.names or len(self.names) == 1:
            return
        rows = []
        for name in self.names:
            ratio_cells = (
                self.of(place, name, "sessiond").ratio_cells(self.of(place, "get", "sessiond")) for place in places
            )
            rows.append([name, *(cell for cells in ratio_cells for cell in cells)])
        headings = ["sessiond", *(f"{place}: {cost} / get's" for place in places for cost in costs)]
        report("bench-peers", "Beside get", headings, rows, "Ratios are of one round.")


def memory(starts):
    """Bytes of Redis memory of what each makes."""
    rows = []
    for name, start in starts.items():
        subject = Subject(start)
        if not {"create", "append"} <= subject.calls.known:
            subject.stop()
            continue
        # What the first session and message need once does not count: scripts, connections.
        append(subject, sessions_of(subject.server, ["first"]), LISTED)
        used = [used_bytes(subject.redis)]
        sessions = sessions_of(subject.server, [f"memory_{number:06}" for number in range(MEMORY_SESSIONS)])
        used.append(used_bytes(subject.redis))
        append(subject, sessions[: MEMORY_SESSIONS // 2], 2)
        used.append(used_bytes(subject.redis))
        long = sessions[MEMORY_SESSIONS // 2 :][:1000]
        append(subject, long, LISTED)
        used.append(used_bytes(subject.redis))
        of_session, of_two, of_many = (after - before for before, after in zip(used, used[1:]))
        each = [of_session / MEMORY_SESSIONS, of_two / MEMORY_SESSIONS, of_many / (len(long) * LISTED)]
        rows.append([name, *each])
        subject.stop()
    ours = rows[0]
    cells = [
        [name, *(f"{value:,.0f}" for value in each), *(f"{mine / value:.2f}" for mine, value in zip(ours[1:], each))]
        for name, *each in rows
    ]
    of = ["a session without messages", "a message, 2 in a session", f"a message, {LISTED} in a session"]
    headings = ["", *of, *(f"sessiond / it: {each}" for each in of)]
    note = f"{MEMORY_SESSIONS:,} sessions; 2 messages in {MEMORY_SESSIONS // 2:,} of them, {LISTED} in {len(long):,}. "
    note += "The difference in `used_memory`, without buffers of connections and of the append-only file."
    report("bench-peers", f"memory: {MEMORY}", headings, cells, note)


def append(subject, ids, count):
    body = messages(*(["user", "assistant"] * count)[:count])
    pipelined(subject.server, [("POST", path, body) for path in subject.calls.messages_of(ids)], 201)


def used_bytes(redis):
    figures = redis.figures()
    return figures["used_memory"] - figures["mem_clients_normal"] - figures["mem_aof_buffer"]


def main():
    arguments = parser(__doc__, {"memory": MEMORY})
    arguments.add_argument(
        "--peer",
        metavar="NAME",
        choices=PEERS_BY_NAME,
        action="append",
        help=f"compare with this one only; may be repeated: {', '.join(PEERS_BY_NAME)}",
    )
    arguments.add_argument("--no-peers", action="store_true", help="compare with --baseline and bare commands only")
    arguments.add_argument("--baseline", metavar="PROGRAM", type=pathlib.Path, help="another build of sessiond")
    add_place(arguments)
    given = arguments.parse_args()
    begin("bench-peers", given.baseline)
    starts = {"sessiond": sessiond}
    if given.baseline:
        starts["baseline"] = lambda redis: sessiond(redis, program=given.baseline.resolve())
    if not given.no_peers:
        starts |= {name: PEERS_BY_NAME[name] for name in given.peer or PEERS_BY_NAME}
    names, places = given.scenarios or [*SCENARIOS, "memory"], given.place or [*PLACES]
    if "memory" in names:
        memory(starts)
    if steady := [name for name in SCENARIOS if name in names]:
        comparison = Comparison(starts, steady)
        try:
            for place in places:
                comparison.run(place)
        finally:
            # After an error, too: what was measured until then.
            comparison.report(places)


main()
