#!/usr/bin/env -S python3 -B
"""Counts the service's instructions per call, by valgrind. The load of the machine does not change the number, so two
builds can be compared to about 1 %: arguments name further builds to count in the same run. The kernel's instructions
are not included. See benches/README.md."""

import re
import socket
import sys

from kit import SESSIOND, Redis, Service, begin, new_session, pipelined, raw, read_response, report, sessions_of

CONNECTIONS = 8
# Both counts include the start of the service, so the difference does not.
FEW, MANY = 1_000, 11_000
VALGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")
MESSAGE = '{"role":"user","content":"%s"}' % ("x" * 200)


def instructions(redis, program, request_for, status, count):
    """The instructions to start the service, to serve this many requests, and to stop it."""
    service = Service(redis, 0, "--event-loops", "1", under=VALGRIND, program=program)
    streams = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(CONNECTIONS)]
    responses = [stream.makefile("rb") for stream in streams]
    request = request_for(service)
    for _ in range(count // CONNECTIONS):
        for stream in streams:
            stream.sendall(request)
        for response in responses:
            read_response(response, status)
    service.stop()
    found = re.search(r"I +refs: +([\d,]+)", service.log.read_text())
    return int(found[1].replace(",", "")) if found else sys.exit(f"valgrind printed no count: {service.log}")


def messages_of(service, user):
    [session_id] = sessions_of(service, [user], wanted=200)
    return f"/api/sessions/{session_id}/messages"


def get(service):
    [session_id] = sessions_of(service, ["user"], wanted=200)
    return raw("GET", f"/api/sessions/{session_id}")


def resume(_service):
    return raw("POST", "/api/sessions", new_session("user"))


def append(service):
    return raw("POST", messages_of(service, "appends"), MESSAGE)


def list_messages(service):
    return raw("GET", f"{messages_of(service, 'lists')}?limit=50")


CALLS = [
    ("get by id", get, 200),
    ("get-or-create, resuming", resume, 200),
    ("append one message of 200 bytes", append, 201),
    ("list 50 messages of 200 bytes", list_messages, 200),
]


def main():
    begin("bench-instructions")
    programs = [SESSIOND, *sys.argv[1:]]
    redis = Redis()
    maker = Service(redis)
    sessions_of(maker, ["user", "appends", "lists"])
    for _ in pipelined(maker, [("POST", messages_of(maker, "lists"), MESSAGE)] * 50, 201):
        pass
    maker.stop()
    rows = []
    for name, request_for, status in CALLS:
        counts = []
        for program in programs:
            few, many = (instructions(redis, program, request_for, status, count) for count in (FEW, MANY))
            counts.append((many - few) / (MANY - FEW))
        rows.append([name, *(f"{count:,.0f}" for count in counts), *(f"{counts[0] / count:.3f}" for count in counts[1:])])
    others = range(1, len(programs))
    headings = ["call", "instructions", *(f"of build {number}" for number in others)]
    headings += [f"ratio to build {number}" for number in others]
    report("bench-instructions", "Instructions of the service per request", headings, rows)


main()
