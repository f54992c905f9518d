#!/usr/bin/env -S python3 -B
"""Measures turns and event streams: what a call with chunks and idle streams cost, how soon changes arrive, how long
a request to stop takes, what slow readers cost, and how streams leave a service that stops. benches/README.md describes
it.

All readers and writers are sockets of this process, in one epoll loop."""

import argparse
import collections
import json
import multiprocessing
import os
import re
import select
import signal
import socket
import sys
import time

from kit import (
    COUNT,
    Cpu,
    Part,
    Redis,
    Service,
    begin,
    on_processors,
    pipelined,
    processors,
    raw,
    read_response,
    report,
    sessions_of,
    spread,
    wrk,
)

EVENT = re.compile(rb"event: (\w+)\n(?:id: [^\n]*\n)?data: ([^\n]*)\n\n")


SERVERS, CLIENTS = processors("apart")


def started(server, *arguments):
    """A server, on the processors of servers."""
    with on_processors(SERVERS):
        return server(*arguments)


class Loop:
    """Sockets that are read when they have something."""

    def __init__(self):
        self.epoll, self.handlers = select.epoll(), {}

    def add(self, handler):
        self.handlers[handler.socket.fileno()] = handler
        self.epoll.register(handler.socket, select.EPOLLIN)

    def remove(self, handler):
        self.epoll.unregister(handler.socket)
        del self.handlers[handler.socket.fileno()]
        handler.socket.close()

    def close(self):
        for handler in list(self.handlers.values()):
            self.remove(handler)

    def run(self, seconds, until=lambda: False, tick=None):
        """Handles what comes for this long. Calls `tick` between."""
        end = time.monotonic() + seconds
        while (now := time.monotonic()) < end and not until():
            wait = min(end - now, tick(now) if tick else 1)
            for number, _ in self.epoll.poll(max(wait, 0)):
                if handler := self.handlers.get(number):
                    handler.readable()


class Reader:
    """A stream of a session. `seen` takes each event: its name, its data and the time. `on_end` is called once when the
    stream ends."""

    def __init__(self, loop, service, session, seen=None, query=""):
        self.loop, self.seen, self.received, self.is_ready, self.ended = loop, seen, b"", False, None
        self.on_end = lambda: None
        self.socket = socket.create_connection(("127.0.0.1", service.port))
        self.socket.sendall(raw("GET", f"/api/sessions/{session}/events{query}"))
        self.socket.setblocking(False)
        loop.add(self)

    def readable(self):
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        now = time.monotonic()
        if not data:
            self.end(now)
            self.loop.remove(self)
            return
        self.received += data
        if not self.is_ready:
            if b"event: ready\n" not in self.received:
                return
            self.is_ready, self.received = True, self.received.split(b"event: ready\n")[1].split(b"\n\n", 1)[1]
        last = 0
        for event in EVENT.finditer(self.received):
            if event[1] == b"bye":
                self.end(now)
            if self.seen:
                self.seen(event[1], event[2], now)
            last = event.end()
        # What is left is an event that has not come whole, or the frame of a chunk.
        self.received = self.received[last:][-65536:] if last else self.received[-65536:]

    def end(self, now):
        if not self.ended:
            self.ended = now
            self.on_end()


class Caller:
    """A connection for one call at a time. `answered` takes the status, the body and the time."""

    def __init__(self, loop, service):
        self.socket = socket.create_connection(("127.0.0.1", service.port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.received, self.answered = b"", None
        loop.add(self)

    def call(self, method, path, body, answered):
        self.answered, self.sent = answered, time.monotonic()
        self.socket.sendall(raw(method, path, body))

    def readable(self):
        self.received += self.socket.recv(65536)
        head, found, body = self.received.partition(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1]) if found else 0
        if not found or len(body) < length:
            return
        self.received, answered, self.answered = body[length:], self.answered, None
        answered(int(head.split()[1]), body[:length], time.monotonic())


def percentiles(seconds):
    """In milliseconds."""
    ordered = sorted(seconds)
    at = lambda share: ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000
    return {"count": len(ordered), "p50": at(0.5), "p99": at(0.99), "max": ordered[-1] * 1000}


def text_of(found):
    return f"{found['count']} times, p50 {found['p50']:.2f} ms, p99 {found['p99']:.2f} ms, most {found['max']:.2f} ms"


def open_streams(loop, services, sessions, seen=None, query=""):
    """A stream of each session, on the services in turn, each up to `ready`."""
    readers = []
    for start in range(0, len(sessions), 100):
        part = [
            Reader(loop, services[(start + index) % len(services)], session, seen and seen(session), query)
            for index, session in enumerate(sessions[start : start + 100])
        ]
        loop.run(30, until=lambda: all(reader.is_ready for reader in part))
        if not all(reader.is_ready for reader in part):
            sys.exit("some streams did not begin")
        readers += part
    return readers


class Probe:
    """Reads a session again and again, in a process of its own, until it is stopped. As root the process runs before
    all others on its processor, so readers there do not delay it."""

    def __init__(self, service, session):
        self.waits, waits = multiprocessing.Pipe(duplex=False)
        self.ends = multiprocessing.Event()
        request = raw("GET", f"/api/sessions/{session}")
        self.process = multiprocessing.Process(target=self.run, args=(service.port, request, waits), daemon=True)
        self.process.start()

    def run(self, port, request, waits):
        if os.geteuid() == 0:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        found, stream = [], socket.create_connection(("127.0.0.1", port))
        responses = stream.makefile("rb")
        while not self.ends.wait(0.002):
            start = time.monotonic()
            stream.sendall(request)
            read_response(responses, 200)
            found.append(time.monotonic() - start)
        waits.send(found)

    def stop(self):
        """The percentiles of its calls."""
        self.ends.set()
        found = percentiles(self.waits.recv())
        self.process.join()
        return found


def idle(redis, args):
    """Memory and processor time of streams on which nothing happens."""
    service, loop = started(Service, redis), Loop()
    sessions = sessions_of(service, [f"idle{number}" for number in range(args.streams)])
    empty = service.rss_mb()
    open_streams(loop, [service], sessions)
    loop.run(5)
    memory = (service.rss_mb() - empty) * 1024 / len(sessions)
    with Cpu(service=service, redis=redis) as cpu:
        loop.run(args.seconds)
    share = {name: us / args.seconds / 10_000 for name, us in cpu.us.items()}
    print(f"idle: {len(sessions)} streams: {memory:.1f} KiB each; service {share['service']:.2f} %, "
          f"Redis {share['redis']:.2f} % of a core")
    loop.close()
    service.stop()
    streams = f"{len(sessions)} idle streams"
    return [
        (f"{streams}, memory of the service each", f"{memory:.1f} KiB", "20 KB"),
        (f"{streams}, service", f"{share['service']:.2f} % of a core", "5 %"),
        (f"{streams}, Redis", f"{share['redis']:.2f} % of a core", ""),
    ]


def delivery(redis, args):
    """Chunks of many turns are written on one service and read on the other, beside idle streams."""
    services, loop = [started(Service, redis), started(Service, redis)], Loop()
    idle = sessions_of(services[0], [f"quiet{number}" for number in range(args.streams)])
    open_streams(loop, services, idle)
    sessions = sessions_of(services[0], [f"busy{number}" for number in range(args.writers)])
    acknowledged, received, waits = {}, {}, []

    def seen(session):
        def take(name, data, now):
            if name != b"chunk":
                return
            event = json.loads(data)
            for number in range(event["from"], event["from"] + len(event["chunks"])):
                key = (session, event["turnId"], number)
                if key in received:
                    sys.exit(f"{key} came twice")
                received[key] = now
                if key in acknowledged:
                    waits.append(max(0, now - acknowledged[key]))
        return take

    open_streams(loop, services[1:], sessions, seen)
    begun = pipelined(services[0], [("POST", f"/api/sessions/{session}/turns", '{"turnId":"t","writer":"w"}')
                                    for session in sessions], 201)
    numbers = {json.loads(body)["sessionId"]: json.loads(body)["number"] for body in begun}
    free = collections.deque((Caller(loop, services[0]), session, [0]) for session in sessions)
    start, made = time.monotonic(), [0]

    def tick(now):
        while free and made[0] < (now - start) * args.rate:
            caller, session, count = free.popleft()
            made[0] += 1
            body = json.dumps({"number": numbers[session], "from": count[0], "chunks": ["text "]})

            def answered(status, body, now, caller=caller, session=session, count=count):
                if status != 200:
                    sys.exit(f"{status} {body}")
                key = (session, "t", count[0])
                acknowledged[key] = now
                # It may have come before the response.
                if key in received:
                    waits.append(0)
                count[0] += 1
                free.append((caller, session, count))

            caller.call("POST", f"/api/sessions/{session}/turns/t/chunks", body, answered)
        return 0.001

    with Cpu(writer=services[0], reader=services[1], redis=redis) as cpu:
        loop.run(args.seconds, tick=tick)
    loop.run(10, until=lambda: len(received) >= len(acknowledged))
    lost = len(set(acknowledged) - set(received))
    found = percentiles(waits)
    rate = made[0] / args.seconds
    share = {name: us / args.seconds / 10_000 for name, us in cpu.us.items()}
    print(f"delivery: {rate:.0f} events/s beside {len(idle)} idle streams: {text_of(found)}; lost {lost}; of a core: "
          + ", ".join(f"{name} {value:.1f} %" for name, value in share.items()))

    # A request to stop, until the event about it.
    stops, asked = [], {}

    def stopped(session):
        def take(name, data, now):
            if name == b"turn" and b'"cancelRequested":true' in data and session in asked:
                stops.append(now - asked.pop(session))
        return take

    open_streams(loop, services[1:], sessions, stopped)
    caller = Caller(loop, services[0])
    for session in sessions:
        asked[session] = time.monotonic()
        caller.call("POST", f"/api/sessions/{session}/turns/t/cancel", "", lambda *_: None)
        loop.run(5, until=lambda: session not in asked and not caller.answered)
    found_stops = percentiles(stops)
    print(f"stop: from the request to the event on the other service: {text_of(found_stops)}")
    loop.close()
    for service in services:
        service.stop()
    return [
        (f"{rate:.0f} events/s beside {len(idle)} idle streams on two services, from acknowledged to received",
         f"p50 {found['p50']:.2f} ms, p99 {found['p99']:.2f} ms; {lost} of {found['count']} lost", "p99 10 ms"),
        ("from a request to stop to its event on the other service", f"p99 {found_stops['p99']:.2f} ms", "p99 100 ms"),
    ]


def slow(redis, args):
    """Readers that take one byte a second, of sessions in which much is written."""
    service, loop = started(Service, redis), Loop()
    sessions = sessions_of(service, [f"slow{number}" for number in range(args.slow)])
    sockets = []
    for session in sessions:
        stream = socket.socket()
        # A small window: what the kernel would take is not kept by the service.
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.connect(("127.0.0.1", service.port))
        stream.sendall(raw("GET", f"/api/sessions/{session}/events"))
        stream.setblocking(False)
        sockets.append(stream)
    loop.run(2)
    before = service.rss_mb()
    other = sessions_of(service, ["other"])[0]
    probe = Probe(service, other)
    loop.run(3)
    alone, probe = probe.stop(), Probe(service, other)
    message = json.dumps({"role": "user", "content": "x" * 2000})
    peak = before
    for _ in range(args.rounds):
        pipelined(service, [("POST", f"/api/sessions/{session}/messages", message) for session in sessions], 201)
        for stream in sockets:
            try:
                stream.recv(1)
            except (BlockingIOError, ConnectionError):
                pass
        loop.run(0.1)
        peak = max(peak, service.rss_mb())
    beside = probe.stop()
    memory = (peak - before) * 1024 / len(sessions)
    print(f"slow: {len(sessions)} readers, {args.rounds * 2} KB due for each: {memory:.1f} KiB each; another call "
          f"p99 {alone['p99']:.2f} ms before, {beside['p99']:.2f} ms beside")
    for stream in sockets:
        stream.close()
    service.stop()
    return [
        (f"{len(sessions)} readers of 1 byte/s, memory of the service each", f"{memory:.1f} KiB", "64 KB"),
        ("another call beside them, p99", f"{alone['p99']:.2f} -> {beside['p99']:.2f} ms", ""),
    ]


def leave(redis, args):
    """One of two services stops, and each of its streams comes back to the other one as soon as it has ended."""
    runs = [leave_once(redis, args, number) for number in range(args.repeat)]
    codes, took, most, ratios = zip(*runs)
    ended = f"exit {' '.join(map(str, sorted(set(codes))))} after {max(took):.1f} s at most"
    return [
        (f"stop with {args.streams} streams, {args.repeat} times", ended, "exit 0 within 10 s"),
        ("streams that end in one second, most", f"{max(most):.2f} of all", "0.25"),
        ("p99 of another call on the other service, of that before", spread(ratios, 2), "3"),
    ]


def leave_once(redis, args, number):
    services = [started(Service, redis, 0, "--shutdown-grace", "10s"), started(Service, redis)]
    loop = Loop()
    sessions = sessions_of(services[0], [f"leaving{number}_{user}" for user in range(args.streams)])
    readers = open_streams(loop, services[:1], sessions)
    again, probe = [], Probe(services[1], sessions[0])
    loop.run(3)
    alone, probe = probe.stop(), Probe(services[1], sessions[0])
    for reader, session in zip(readers, sessions):
        reader.on_end = lambda session=session: again.append(Reader(loop, services[1], session))
    start = time.monotonic()
    services[0].process.send_signal(signal.SIGTERM)
    loop.run(20, until=lambda: len(again) == len(readers))
    code = services[0].process.wait(timeout=30)
    took = time.monotonic() - start
    loop.run(30, until=lambda: all(reader.is_ready for reader in again))
    seconds = collections.Counter(int(reader.ended - start) for reader in readers if reader.ended)
    most = max(seconds.values()) / len(readers)
    beside = probe.stop()
    print(f"leave: {len(readers)} streams: exit {code} after {took:.1f} s, {len(readers) - len(again)} without an end; "
          f"most in a second {most:.2f} of all; all back: {all(reader.is_ready for reader in again)}; another call p99 "
          f"{alone['p99']:.2f} ms before, {beside['p99']:.2f} ms meanwhile, ratio {beside['p99'] / alone['p99']:.2f}")
    loop.close()
    services[1].stop()
    return code, took, most, beside["p99"] / alone["p99"]


def chunks(redis, args):
    """Batches of five chunks, in a closed loop over a thousand turns. Nobody reads them. A get beside it."""
    service = started(Service, redis)
    sessions = sessions_of(service, [f"written{number}" for number in range(1000)])
    get = Part("GET", [f"/api/sessions/{session}" for session in sessions], has=(b'"userId"', 1))
    figures = {"a call": [], "get": []}
    for number in range(1, args.repeat + 1):
        # A new turn of each session in each round, so that its chunks are new.
        begin_turn = json.dumps({"turnId": f"t{number}", "writer": "bench", "ifOpen": "discard"})
        pipelined(service, [("POST", f"/api/sessions/{session}/turns", begin_turn) for session in sessions], 201)
        body = f'{{"number":{number},"from":{COUNT},"chunks":["Hello ","there, ","how ","are ","you?"]}}'
        paths = [f"/api/sessions/{session}/turns/t{number}/chunks" for session in sessions]
        for name, part in ("a call", Part("POST", paths, [body], has=(b'"nextChunk"', 1))), ("get", get):
            with Cpu(service=service, redis=redis) as cpu:
                run = wrk(service, [part], 2)
            each = cpu.per("service", run["requests"]), cpu.per("redis", run["requests"])
            figures[name].append((run["requests"] / run["seconds"], *each))
    service.stop()
    texts = {}
    for name, runs in figures.items():
        per_second, of_service, of_redis = (spread(column) for column in zip(*runs))
        texts[name] = f"service {of_service} µs, Redis {of_redis} µs, {per_second} a second"
        print(f"chunks: {name}: {texts[name]}")
    return [
        ("append five chunks, closed loop over 64 connections", texts["a call"], "service 25 µs, Redis 10 µs"),
        ("get beside it", texts["get"], ""),
    ]


SCENARIOS = {"chunks": chunks, "idle": idle, "delivery": delivery, "slow": slow, "leave": leave}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenarios", nargs="*", choices=[[], *SCENARIOS], help="default: all")
    parser.add_argument("--streams", type=int, default=10_000, help="idle streams")
    parser.add_argument("--writers", type=int, default=100, help="turns that are written at once")
    parser.add_argument("--rate", type=int, default=1000, help="chunk calls a second")
    parser.add_argument("--repeat", type=int, default=5, help="rounds of chunks and leave")
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--slow", type=int, default=1000, help="slow readers")
    parser.add_argument("--rounds", type=int, default=200, help="messages of 2 kB for each slow reader")
    args = parser.parse_args()
    os.sched_setaffinity(0, CLIENTS)
    begin("bench-streams")
    rows = []
    for name in args.scenarios or SCENARIOS:
        redis = started(Redis)
        rows += SCENARIOS[name](redis, args)
        redis.stop()
    report("bench-streams", "Event streams", ("figure", "measured", "bar"), rows)


if __name__ == "__main__":
    main()
