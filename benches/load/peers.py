#!/usr/bin/env -S python3 -B
"""Compares sessiond with what its users would otherwise write or use: the same two calls, in interleaved rounds of one
run.

`peers.py [--apart] [PEER ...]`: sessiond and these peers, all by default; with `--apart` the client has its own
processors. See benches/README.md.
"""

import json
import os
import statistics
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
    ROUNDS,
    SCRIPT,
    Cpu,
    Part,
    Redis,
    Server,
    Service,
    begin,
    free_port,
    new_session,
    on_processors,
    pipelined,
    ratio,
    report,
    sessions_of,
    spread,
    wrk,
)

USERS = [f"user_{number:06}" for number in range(1000)]
# Milliseconds, as sessiond's defaults: idle timeout, maximum lifetime, retention, activity resolution.
LIFECYCLE = (1_800_000, 86_400_000, 2_592_000_000, 60_000)
SESSION_FIELDS = (
    "sessionId businessId userId locationId sessionType status title metadata messageCount version createdAt "
)
SESSION_FIELDS += "updatedAt lastActivityAt expiresAt activeUntil endedAt endReason largestMessage"
PIPELINES = (1, 4, 8, 16)
CALLS = ("get", "resume")


class Peer:
    """A server, and its two calls on sessions of a thousand users in its own database."""

    def __init__(self, server, get, resume):
        self.server, self.parts = server, {"get": get, "resume": resume}
        self.rates = {call: [] for call in CALLS}
        self.cpu = {call: [] for call in CALLS}
        self.redis = {call: [] for call in CALLS}
        # Commands that Redis found in one read of a connection, including those inside of scripts.
        self.depths = {call: [] for call in CALLS}


def json_peer(server):
    """A peer with the service's own interface."""
    ids = sessions_of(server, USERS)
    get = Part("GET", [f"/api/sessions/{id}" for id in ids])
    return Peer(server, get, Part("POST", ["/api/sessions"], [new_session(user) for user in USERS]))


def sessiond(redis, database):
    return json_peer(Service(redis, database))


def rust(kind, workers):
    def start(redis, database):
        port = free_port()
        program = PEERS / "rust/release/sessiond-peers"
        server = Server([program, kind, port, workers, redis.url(database), SCRIPT], port)
        if kind == "redis":
            return json_peer(server)
        get = Part("GET", [f"/api/sessions/{uuid.uuid4()}" for _ in USERS])
        return Peer(server, get, Part("POST", ["/api/sessions"], [new_session(user) for user in USERS]))

    return start


def node(program):
    def start(redis, database):
        port = free_port()
        return json_peer(Server(["node", PEERS / program, port, redis.url(database), SCRIPT], port))

    return start


def webdis(redis, database):
    """Commands as paths. The caller of the script passes an id and a time: the same each time, which makes no
    difference for a user with an active session."""
    port = free_port()
    config = OUT / "webdis.json"
    # The other settings are those of the package.
    config.write_text(
        json.dumps(
            {
                "redis_host": "127.0.0.1",
                "redis_port": redis.port,
                "database": database,
                "http_host": "127.0.0.1",
                "http_port": port,
                "threads": 2,
                "daemonize": False,
                "websockets": False,
                "verbosity": 0,
                "logfile": "/dev/null",
            }
        )
    )
    server = Server(["webdis", config], port, cwd=OUT)
    script, now_ms = redis.command("script", "load", SCRIPT.read_text()), int(time.time() * 1000)

    def call(user, id):
        keys = [f"peer:a:{BUSINESS}:{user}", f"peer:h:{BUSINESS}:{user}", f"peer:b:{BUSINESS}", f"peer:s:{id}"]
        words = ["EVALSHA", script, 4, *keys, "peer:", id, now_ms, *LIFECYCLE, "return", 4]
        # webdis cannot pass an empty argument; any text but 1 says that the id is new.
        words += [BUSINESS, user, "0", "locationId", "L0100001", "sessionType", "general"]
        return "/" + "/".join(urllib.parse.quote(str(word), safe="") for word in [*words, "metadata", "{}"])

    ids = {user: uuid.uuid4() for user in USERS}
    pipelined(server, [("GET", call(user, id)) for user, id in ids.items()], 200, batch=1)
    get = Part("GET", [f"/HGETALL/peer:s:{id}" for id in ids.values()])
    return Peer(server, get, Part("GET", [call(user, uuid.uuid4()) for user in USERS]))


PEERS_BY_NAME = {
    "sessiond": sessiond,
    "bare axum": rust("bare", 0),
    "bare axum, 2 workers": rust("bare", 2),
    "axum + redis": rust("redis", 0),
    "axum + redis, 2 workers": rust("redis", 2),
    "webdis": webdis,
    "Fastify + ioredis": node("fastify/server.js"),
    "NestJS + ioredis": node("nestjs/dist/main.js"),
}


def check(name, peer):
    """Both calls must return a session, and the second one must not create it."""
    for call in CALLS:
        part = peer.parts[call]
        [body] = pipelined(peer.server, [(part.method, part.paths[0], part.bodies[0])], 200)
        if b"user_00000" not in body or b'"created"' in body:
            sys.exit(f"{name} does not return the session: the response to {call} is {body[:300]}")


def measure(peer, call, redis):
    before = redis.figures()
    with Cpu(service=peer.server, redis=redis) as cpu:
        run = wrk(peer.server, [peer.parts[call]])
    after = redis.figures()
    commands, reads = (after[name] - before[name] for name in ("total_commands_processed", "total_reads_processed"))
    peer.rates[call].append(run["requests"] / run["seconds"])
    peer.cpu[call].append(cpu.per("service", run["requests"]))
    peer.redis[call].append(cpu.per("redis", run["requests"]))
    peer.depths[call].append(commands / max(reads, 1))


def connections_to(redis, database):
    clients = redis.command("client", "list", "type", "normal").splitlines()
    of_database = sum(1 for client in clients if f" db={database} " in client)
    # redis-cli itself is a client of database 0.
    return of_database - (database == 0)


def bare_hmget(redis, key, clients, pipeline):
    """Redis's CPU per HMGET of redis-benchmark."""
    words = ["redis-benchmark", "-p", redis.port, "-c", clients, "-P", pipeline, "-n", 300_000, "-q"]
    words += ["hmget", key, *SESSION_FIELDS.split()]
    with Cpu(redis=redis) as cpu:
        subprocess.run([str(word) for word in words], check=True, capture_output=True)
    return cpu.per("redis", 300_000)


def redis_baseline(peer, redis):
    id = peer.parts["get"].paths[0].rsplit("/", 1)[1]
    key = f"sd:{{{id[:4]}}}:s:{id}"
    if redis.command("exists", key) != "1":
        sys.exit(f"{key} is no session")
    depth, clients = statistics.median(peer.depths["get"]), connections_to(redis, database=0)
    equal = max(1, round(depth))
    ours, rows = statistics.median(peer.redis["get"]), []
    for pipeline in sorted({equal, *PIPELINES}):
        each = [bare_hmget(redis, key, clients, pipeline) for _ in range(ROUNDS)]
        name = f"-P {pipeline}" + (", the equal of sessiond" if pipeline == equal else "")
        rows.append([name, spread(each, 2), ratio(ours, statistics.median(each))])
    note = f"sessiond: {spread(peer.redis['get'], 2)} µs. Redis found {depth:.1f} commands in one read, by the "
    note += f"counters of INFO, on {clients} connection(s); redis-benchmark used as many."
    headings = ["redis-benchmark HMGET of the same session", "Redis µs each", "sessiond get / this"]
    report("bench-peers", "Get by id: Redis's CPU", headings, rows, note)


def main():
    words = sys.argv[1:]
    is_apart = "--apart" in words
    names = [word for word in words if word != "--apart"] or list(PEERS_BY_NAME)
    if unknown := set(names) - set(PEERS_BY_NAME):
        sys.exit(f"no such peer: {', '.join(unknown)}; there are {', '.join(PEERS_BY_NAME)}")
    begin("bench-peers")
    processors = sorted(os.sched_getaffinity(0))
    if is_apart and len(processors) < 2:
        sys.exit("--apart needs a processor for the servers and one for the client")
    of_servers, of_client = (processors[:1], processors[1:]) if is_apart else (processors, processors)
    with on_processors(of_servers):
        redis = Redis()
        names = ["sessiond", *(name for name in names if name != "sessiond")]
        peers = {name: PEERS_BY_NAME[name](redis, database) for database, name in enumerate(names)}
    with on_processors(of_client):
        apart = "the servers on one processor, the client on another"
        compare(peers, redis, apart if is_apart else "all on the same processors")


def compare(peers, redis, where):
    """Measures all peers in interleaved rounds, and prints the tables."""
    for name, peer in peers.items():
        check(name, peer)
    for call in CALLS:
        for peer in peers.values():
            # Warm-up: Node's compiler needs it.
            wrk(peer.server, [peer.parts[call]], seconds=2)
        for _ in range(ROUNDS):
            for peer in peers.values():
                measure(peer, call, redis)
        ours, rows = peers["sessiond"], []
        for name, peer in peers.items():
            is_bare = name.startswith("bare")
            each = [spread(peer.rates[call], 0), spread(peer.cpu[call])]
            each += ["-"] if is_bare else [spread(peer.redis[call])]
            pairs = ((ours.rates, peer.rates), (ours.cpu, peer.cpu), (ours.redis, peer.redis))
            ratios = [ratio(*(statistics.median(of[call]) for of in pair)) for pair in pairs]
            rows.append([name, *each, *ratios[:2], "-" if is_bare else ratios[2], f"{peer.server.rss_mb():.0f}"])
        headings = ["peer", "req/s", "service µs", "Redis µs"]
        headings += ["sessiond's req/s / its", "service µs", "Redis µs", "RSS MB"]
        title = {"get": "Get by id", "resume": "Get-or-create, resuming"}[call]
        note = f"{CONNECTIONS} connections; one Redis for all, a database each; {ROUNDS} interleaved rounds; {where}."
        report("bench-peers", title, headings, rows, note)
    redis_baseline(peers["sessiond"], redis)


main()
