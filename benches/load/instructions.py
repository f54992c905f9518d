#!/usr/bin/env -S python3 -B
"""Counts the service's instructions per request, by valgrind. The load of the machine does not change the number, so
two builds can be compared to about 1 %. The kernel's instructions are not included."""

import itertools
import pathlib
import re
import socket
import sys

from kit import NUMBER, SESSIOND, Redis, Service, begin, raw, read_response, report, requests_of
from scenarios import SCENARIOS, Calls, parser

CONNECTIONS = 8
# Both counts include the start of the service, so the difference does not.
FEW, MANY = 1_000, 11_000
VALGRIND = ("valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null")


class Build:
    """A build of the service, with a Redis that has the sessions of the scenarios."""

    # The next new user of any build.
    numbers = itertools.count()

    def __init__(self, program, names):
        self.program, self.redis = program, Redis()
        maker = Service(self.redis, program=program)
        calls = Calls(maker)
        self.parts = {name: SCENARIOS[name].parts(calls) for name in names}
        for parts in self.parts.values():
            for part in parts:
                part.check(maker)
        maker.stop()

    def per_unit(self, name):
        few, many = (self.instructions(self.parts[name], count) for count in (FEW, MANY))
        return (many - few) / (MANY - FEW) * SCENARIOS[name].requests

    def instructions(self, parts, count):
        """The instructions to start the service, to serve this many requests, and to stop it."""
        service = Service(self.redis, 0, "--event-loops", "1", under=VALGRIND, program=self.program)
        streams = [socket.create_connection(("127.0.0.1", service.port)) for _ in range(CONNECTIONS)]
        responses = [stream.makefile("rb") for stream in streams]
        requests = itertools.cycle(requests_of(parts))
        statuses = {part.status for part in parts}
        for _ in range(count // CONNECTIONS):
            for stream in streams:
                method, path, body = next(requests)
                stream.sendall(raw(method, path, body.replace(NUMBER, f"i{next(self.numbers)}")))
            for response in responses:
                read_response(response, *statuses)
        service.stop()
        found = re.search(r"I +refs: +([\d,]+)", service.log.read_text())
        return int(found[1].replace(",", "")) if found else sys.exit(f"valgrind printed no count: {service.log}")


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--baseline", metavar="PROGRAM", type=pathlib.Path, help="another build of sessiond")
    given = arguments.parse_args()
    begin("bench-instructions", given.baseline)
    names = [name for name in SCENARIOS if name in (given.scenarios or SCENARIOS)]
    builds = [Build(program, names) for program in (SESSIOND, given.baseline and given.baseline.resolve()) if program]
    rows = []
    for name in names:
        counts = [build.per_unit(name) for build in builds]
        print(f"{name}: {counts}", file=sys.stderr, flush=True)
        row = [name, *(f"{count:,.0f}" for count in counts)]
        rows.append([*row, *(f"{counts[0] / count:.3f}" for count in counts[1:])])
    headings = ["scenario", "instructions", *(["baseline", "of the baseline"] if given.baseline else [])]
    report("bench-instructions", "Instructions of the service per request", headings, rows)


main()
