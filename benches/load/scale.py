#!/usr/bin/env -S python3 -B
"""Measures the cost of calls with few sessions and with many, of pages of short and long lists, and of idle
connections. benches/README.md describes it, and the environment variables."""

import argparse
import socket
import statistics
import sys

from kit import (
    NUMBER,
    ROUNDS,
    SECONDS,
    Cpu,
    Part,
    Redis,
    Service,
    begin,
    new_session,
    pipelined,
    ratio,
    raw,
    read_response,
    report,
    sessions_of,
    setting,
    spread,
    wrk,
)

SESSIONS = setting("SESSIOND_SCALE_SESSIONS", 1_000_000)
FEW = min(10_000, SESSIONS // 10)
# Sessions of the user with many sessions, and messages of the session with many messages.
LARGE = setting("SESSIOND_SCALE_LARGE", 10_000)
IDLE = setting("SESSIOND_SCALE_IDLE", 10_000)
SAMPLE = 1000
# The service's default.
HINTS_MAX = 100_000
FILL_BATCH = 50_000
BUSINESS_PATH = "/api/sessions/business"
MESSAGE = '{"role":"user","content":"When do you open on Sundays?"}'


def user(number):
    return f"user_{number:09}"


class Keyspace:
    """A Redis, and a service that uses it."""

    def __init__(self):
        self.redis = Redis()
        self.service = Service(self.redis)

    def stop(self):
        self.service.stop()
        self.redis.stop()


def compared(*calls, numbers=10**9):
    """The cost of calls, each a part in a keyspace. Measured in alternating rounds, because the machine's pace
    changes."""
    rounds = [[once(keyspace, part, numbers) for keyspace, part in calls] for _ in range(ROUNDS)]
    return [Measured(each) for each in zip(*rounds)]


def once(keyspace, part, numbers):
    """Measures once: service µs, Redis µs, and p50 in ms over one connection."""
    with Cpu(service=keyspace.service, redis=keyspace.redis) as cpu:
        run = wrk(keyspace.service, [part], numbers=numbers)
    alone = wrk(keyspace.service, [part], seconds=max(1, SECONDS // 5), connections=1, numbers=numbers)
    return cpu.per("service", run["requests"]), cpu.per("redis", run["requests"]), alone["p50"]


class Measured:
    """The cost of one call."""

    def __init__(self, rounds):
        self.service_us, self.redis_us, self.p50_ms = zip(*rounds)

    def cells(self):
        return [spread(self.service_us), spread(self.redis_us), spread(self.p50_ms, 3)]

    def ratios_to(self, other):
        pairs = [(self.service_us, other.service_us), (self.redis_us, other.redis_us)]
        pairs += [(self.both_us(), other.both_us()), (self.p50_ms, other.p50_ms)]
        return [ratio(statistics.median(mine), statistics.median(others)) for mine, others in pairs]

    def both_us(self):
        return [service + redis for service, redis in zip(self.service_us, self.redis_us)]


COSTS = ["service µs", "Redis µs", "p50 ms, 1 connection"]


def fill(service, first, last):
    """Creates sessions of new users in the business `big`."""
    for start in range(first, last, FILL_BATCH):
        sessions_of(service, [user(number) for number in range(start, min(start + FILL_BATCH, last))], "big")
        print(f"{min(start + FILL_BATCH, last):,} sessions", file=sys.stderr, flush=True)


CALLS = ["get", "get_or_create, resuming", "list_active", "list_history", "list_messages"]


def calls(service, count, with_messages):
    """The calls to measure, for users spread over all users."""
    users = [user(number) for number in range(0, count, count // SAMPLE or 1)]
    # This also gives the service hints for them.
    ids = sessions_of(service, users, "big", wanted=200)
    bodies = [new_session(name, "big") for name in users]
    return {
        "get": Part("GET", [f"/api/sessions/{id}" for id in ids]),
        "get_or_create, resuming": Part("POST", ["/api/sessions"], bodies),
        "list_active": Part("GET", [f"{BUSINESS_PATH}/big/active"]),
        "list_history": Part("GET", [f"{BUSINESS_PATH}/big/user/{name}/history" for name in users]),
        "list_messages": Part("GET", [f"/api/sessions/{with_messages}/messages"]),
    }


def few_and_many(keyspaces, names):
    """Measures these calls with few sessions and with many. `keyspaces` maps a number of sessions to its keyspace."""
    parts, bytes_each = {}, {}
    for count, keyspace in keyspaces.items():
        service, redis = keyspace.service, keyspace.redis
        # Memory that the first session needs once (connections, scripts, the layout) does not count.
        [with_messages] = sessions_of(service, ["has_messages"], "other")
        append(service, with_messages, 50)
        empty = redis.figures()["used_memory"]
        fill(service, 0, count)
        bytes_each[count] = (redis.figures()["used_memory"] - empty) / count
        parts[count] = calls(service, count, with_messages)
    rows = []
    for name in names:
        few, many = compared(*((keyspace, parts[count][name]) for count, keyspace in keyspaces.items()))
        rows.append([name, *few.cells(), *many.cells(), *many.ratios_to(few)])
    headings = ["call", *(f"{cost}, {count:,}" for count in (FEW, SESSIONS) for cost in COSTS)]
    headings += [f"{cost}, ratio" for cost in ("service", "Redis", "both", "p50")]
    memory = ", ".join(f"{bytes_each[count]:,.0f} with {count:,}" for count in (FEW, SESSIONS))
    note = f"Bytes of Redis memory a session, with all its keys, all in one business: {memory}. "
    note += f"The service has {keyspaces[SESSIONS].service.rss_mb():.0f} MB. Each keyspace has its own Redis and "
    note += "service; measured in turn."
    report("bench-scale", f"{FEW:,} sessions and {SESSIONS:,}", headings, rows, note)
    if names != CALLS:
        return
    # No user has a hint if more users than hints call in turn.
    never_hinted = Part("POST", ["/api/sessions"], [new_session(f"user_{NUMBER}", "big")])
    if SESSIONS > 2 * HINTS_MAX:
        [cost] = compared((keyspaces[SESSIONS], never_hinted), numbers=SESSIONS)
        note = f"By the script: the service has hints for the last {HINTS_MAX:,} users."
        report("bench-scale", "Resuming users without a hint", COSTS, [cost.cells()], note)


def append(service, id, messages):
    """Appends this many messages to a session, in arrays of up to 100."""
    sizes = [100] * (messages // 100) + ([messages % 100] if messages % 100 else [])
    path = f"/api/sessions/{id}/messages"
    arrays = ["[" + ",".join([MESSAGE] * size) + "]" for size in sizes]
    pipelined(service, [("POST", path, array) for array in arrays], 201, connections=1, batch=10)


def small_and_large(keyspace):
    """Measures a page of each list, in a short list and in a long one."""
    service = keyspace.service
    page_of_history, page_of_active, page_of_messages = 20, 50, 50
    sessions_of(service, [user(number) for number in range(page_of_active)], "small")
    for name, sessions in (("has_few", page_of_history), ("has_many", LARGE)):
        replace = ("POST", "/api/sessions", new_session(name, "small_and_large", ifActive="replace"))
        pipelined(service, [replace] * sessions, 201, connections=1)
    ids = sessions_of(service, ["short", "long"], "small_and_large")
    for id, messages in zip(ids, (page_of_messages, LARGE)):
        append(service, id, messages)
    history = f"{BUSINESS_PATH}/small_and_large/user"
    pairs = {
        f"list_history of {page_of_history} and {LARGE:,} sessions": (
            f"{history}/has_few/history",
            f"{history}/has_many/history",
        ),
        f"list_messages of {page_of_messages} and {LARGE:,}": [f"/api/sessions/{id}/messages" for id in ids],
        f"list_active of {page_of_active} and {SESSIONS:,}": [
            f"{BUSINESS_PATH}/{name}/active" for name in ("small", "big")
        ],
    }
    rows = []
    for name, paths in pairs.items():
        small, large = compared(*((keyspace, Part("GET", [path])) for path in paths))
        rows.append([name, *small.cells(), *large.cells(), *large.ratios_to(small)])
    headings = ["one page of", *(f"{cost}, {size}" for size in ("small", "large") for cost in COSTS)]
    headings += [f"{cost}, ratio" for cost in ("service", "Redis", "both", "p50")]
    report("bench-scale", "A page of a short and of a long list", headings, rows)


def idle(redis):
    """Measures the memory of idle connections, each of which had one response."""
    service = Service(redis)
    before, connections = service.rss_mb(), []
    for _ in range(IDLE):
        connection = socket.create_connection(("127.0.0.1", service.port))
        connection.sendall(raw("GET", "/livez"))
        connections.append(connection)
    for connection in connections:
        with connection.makefile("rb") as stream:
            read_response(stream, 200)
    rss = service.rss_mb()
    row = [f"{before:.1f}", f"{rss:.1f}", f"{(rss - before) * 1024 / IDLE:.1f}"]
    report("bench-scale", f"{IDLE:,} idle connections", ["RSS MB before", "RSS MB with them", "KB each"], [row])
    for connection in connections:
        connection.close()
    service.stop()


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    does = f"measure only this, with {FEW:,} and with {SESSIONS:,} sessions; may be repeated"
    arguments.add_argument("--call", choices=CALLS, action="append", help=does)
    only = arguments.parse_args().call
    begin("bench-scale")
    keyspaces = {count: Keyspace() for count in (FEW, SESSIONS)}
    few_and_many(keyspaces, only or CALLS)
    if only:
        for keyspace in keyspaces.values():
            keyspace.stop()
        return
    keyspaces[FEW].stop()
    small_and_large(keyspaces[SESSIONS])
    keyspaces[SESSIONS].service.stop()
    idle(keyspaces[SESSIONS].redis)


main()
