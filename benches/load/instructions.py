#!/usr/bin/env -S python3 -B
"""How many instructions of the service a call takes, by valgrind: the same number whatever else the machine does, so that
two builds can be compared to the percent. The kernel's work is not in it. See benches/README.md."""

import re
import socket
import sys

from kit import Redis, Service, answer, begin, new_session, raw, report, sessions_of

CONNECTIONS = 8
# The start of the service is in both, and so not in the difference.
FEW, MANY = 2_000, 22_000
VALGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")


def instructions(redis, request_for, count):
    """What the service takes to start, to answer as many requests, and to stop."""
    service = Service(redis, 0, "--event-loops", "1", under=VALGRIND)
    streams = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(CONNECTIONS)]
    answers = [stream.makefile("rb") for stream in streams]
    request = request_for(service)
    for _ in range(count // CONNECTIONS):
        for stream in streams:
            stream.sendall(request)
        for stream in answers:
            answer(stream, 200)
    service.stop()
    found = re.search(r"I +refs: +([\d,]+)", service.log.read_text())
    return int(found[1].replace(",", "")) if found else sys.exit(f"valgrind says nothing: {service.log}")


def main():
    begin("bench-instructions")
    redis = Redis()

    def get(service):
        [session_id] = sessions_of(service, ["user"], wanted=200)
        return raw("GET", f"/api/sessions/{session_id}")

    def resume(service):
        return raw("POST", "/api/sessions", new_session("user"))

    maker = Service(redis)
    sessions_of(maker, ["user"])
    maker.stop()
    rows = []
    for name, request_for in [("get by id", get), ("get-or-create, resuming", resume)]:
        few, many = (instructions(redis, request_for, count) for count in (FEW, MANY))
        rows.append([name, f"{(many - few) / (MANY - FEW):,.0f}"])
    report("bench-instructions", "Instructions of the service a request", ["call", "instructions"], rows)


main()
