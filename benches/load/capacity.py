#!/usr/bin/env -S python3 -B
"""Measures how near a cluster comes to the formula of docs/capacity.md: three masters and three services, beside one of
each. benches/README.md describes it, and the environment variables."""

import argparse
import concurrent.futures
import os
import sys
import time

from kit import CONNECTIONS, ROUNDS, SECONDS, Cpu, Redis, Service, begin, free_port, ratios, report, spread, wrk
from scenarios import SCENARIOS, Calls

NODES = 3
SLOTS = 16_384
UNITS = {"page_load": "page loads", "turn": "turns"}


class Master(Redis):
    """A master of a cluster, with its share of the slots."""

    FLAGS = ("--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf")

    def __init__(self):
        # The default is a port that may not exist: 10,000 above the other.
        self.bus = free_port()
        self.FLAGS = (*Master.FLAGS, "--cluster-port", self.bus)
        super().__init__()


class Cluster:
    """Masters that know each other. It stands for one Redis in the configuration of a service."""

    def __init__(self):
        self.masters = [Master() for _ in range(NODES)]
        for number, master in enumerate(self.masters):
            bounds = [SLOTS * each // NODES for each in (number, number + 1)]
            master.command("cluster", "addslotsrange", str(bounds[0]), str(bounds[1] - 1))
            master.command("cluster", "meet", "127.0.0.1", str(self.masters[0].port), str(self.masters[0].bus))
        deadline = time.monotonic() + 30
        while not all("cluster_state:ok" in master.command("cluster", "info") for master in self.masters):
            if time.monotonic() > deadline:
                sys.exit("the cluster does not form")
            time.sleep(0.1)

    def url(self, _database=0):
        return f"redis-cluster://127.0.0.1:{self.masters[0].port}"

    def stop(self):
        for master in self.masters:
            master.stop()


class System:
    """Services with one worker each, and what they store sessions in."""

    def __init__(self, store, masters, services):
        self.store, self.masters = store, masters
        self.services = [Service(store, 0, "--event-loops", "1") for _ in range(services)]
        self.calls = Calls(self.services[0])

    def run(self, scenario):
        """Measures once: units a second, service µs, Redis µs and the client's µs of each unit."""
        parts = scenario.parts(self.calls)
        servers = {f"service{number}": server for number, server in enumerate(self.services)}
        servers |= {f"redis{number}": server for number, server in enumerate(self.masters)}
        before = client_us()
        with concurrent.futures.ThreadPoolExecutor() as pool, Cpu(**servers) as cpu:
            share = CONNECTIONS // len(self.services)
            runs = [pool.submit(wrk, service, parts, SECONDS, share) for service in self.services]
            requests = sum(run.result()["requests"] for run in runs)
        units = requests / scenario.requests
        used = [sum(us for name, us in cpu.us.items() if name.startswith(kind)) for kind in ("service", "redis")]
        return [units / SECONDS, *(us / units for us in (*used, client_us() - before))]

    def stop(self):
        for service in self.services:
            service.stop()
        self.store.stop()


def client_us():
    """CPU time of the load generators that have ended, and of this program."""
    times = os.times()
    return (times.user + times.system + times.children_user + times.children_system) * 1e6


def main():
    argparse.ArgumentParser(description=__doc__).parse_args()
    begin("bench-capacity")
    one = Redis()
    cluster = Cluster()
    systems = {"one": System(one, [one], 1), "cluster": System(cluster, cluster.masters, NODES)}
    rows = []
    for name, units in UNITS.items():
        rounds = {kind: [] for kind in systems}
        for _ in range(ROUNDS):
            for kind, system in systems.items():
                rounds[kind].append(system.run(SCENARIOS[name]))
        processors = os.cpu_count()
        # What the costs of one service and one Redis say that the processors carry, with the client's cost here.
        expected = [
            processors * 1e6 / (service + redis + there[3])
            for (_, service, redis, _), there in zip(rounds["one"], rounds["cluster"])
        ]
        for kind, label in {"one": "1 service, 1 Redis", "cluster": f"{NODES} services, {NODES} masters"}.items():
            rate, service, redis, client = zip(*rounds[kind])
            compared = ratios(rate, expected) if kind == "cluster" else "-"
            rows.append([units, label, spread(rate, 0), spread(service), spread(redis), spread(client), compared])
    headings = ["", "", "a second", "service µs", "Redis µs", "client µs", "of the formula"]
    note = f"{CONNECTIONS} connections; all on the same processors; {ROUNDS} interleaved rounds of {SECONDS} s."
    report("bench-capacity", "Page loads and turns", headings, rows, note)
    for system in systems.values():
        system.stop()


if __name__ == "__main__":
    main()
