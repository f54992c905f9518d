"""The scenarios of the load runs: what each sends, and to which sessions. The table of bench-load, bench-peers and
bench-instructions.

All sessions and messages are made by the server's own interface, so a scenario works with any layout of the keys.
"""

import argparse
import functools
import json
import uuid

from kit import NUMBER, PLACES, Part, new_session, pipelined, sessions_of

USERS = [f"user_{number:06}" for number in range(1000)]
# Sessions that messages are appended to. The service keeps 10,000 messages of a session: these many sessions have room
# for every run, so nothing is trimmed. Each has two messages at first, because a first append costs more.
APPENDING = 10_000
# Messages of each session whose messages are listed, and the bytes of a message's content.
LISTED = 50
CONTENT_BYTES = 220
CONTENT = ("Thank you for your message. We open at nine on Sundays. " * 4)[:CONTENT_BYTES]
# Active sessions of the business whose active sessions are listed, and the limit of a page.
ACTIVE, ACTIVE_PAGE = 200, 50
BUSY_BUSINESS = "busy"


def messages(*roles):
    """The body that appends a message of each role: an object for one, an array for more."""
    each = [json.dumps({"role": role, "content": CONTENT}, separators=(",", ":")) for role in roles]
    return each[0] if len(each) == 1 else "[" + ",".join(each) + "]"


class Calls:
    """The calls of a server with the service's interface. Sessions are made when a call first needs them."""

    KNOWN = {"get", "resume", "create", "heartbeat", "append", "list_messages", "list_active"}

    def __init__(self, server, known=None):
        self.server, self.known = server, known or self.KNOWN

    @functools.cached_property
    def ids(self):
        """Sessions of a thousand users."""
        return sessions_of(self.server, USERS)

    @functools.cached_property
    def listed(self):
        """The same sessions, with messages."""
        body = messages(*["user", "assistant"] * (LISTED // 2))
        pipelined(self.server, [("POST", path, body) for path in self.messages_of(self.ids)], 201)
        return self.ids

    @functools.cached_property
    def appending(self):
        ids = sessions_of(self.server, [f"appends_{number:06}" for number in range(APPENDING)])
        body = messages("user", "assistant")
        pipelined(self.server, [("POST", path, body) for path in self.messages_of(ids)], 201)
        return ids

    @functools.cached_property
    def active(self):
        return sessions_of(self.server, [f"active_{number:06}" for number in range(ACTIVE)], BUSY_BUSINESS)

    def messages_of(self, ids):
        return [f"/api/sessions/{id}/messages" for id in ids]

    def get(self):
        return Part("GET", [f"/api/sessions/{id}" for id in self.ids], has=(b'"userId"', 1))

    def resume(self):
        assert self.ids
        return Part("POST", ["/api/sessions"], [new_session(user) for user in USERS], has=(b'"userId"', 1))

    def create(self):
        return Part("POST", ["/api/sessions"], [new_session(f"new_{NUMBER}")], status=201, has=(b'"userId"', 1))

    def heartbeat(self):
        return Part("PATCH", [f"/api/sessions/{id}" for id in self.ids], ["{}"], has=(b'"userId"', 1))

    def append(self, *roles):
        paths, body = self.messages_of(self.appending), messages(*roles)
        return Part("POST", paths, [body], status=201, has=(b'"seq"', len(roles)))

    def list_messages(self, limit):
        paths = [f"{path}?limit={limit}" for path in self.messages_of(self.listed)]
        return Part("GET", paths, has=(b'"seq"', limit))

    def list_active(self):
        assert self.active
        path = f"/api/sessions/business/{BUSY_BUSINESS}/active?limit={ACTIVE_PAGE}"
        return Part("GET", [path], has=(b'"userId"', ACTIVE_PAGE))


class BareCalls(Calls):
    """bare axum has no sessions: any id will do."""

    KNOWN = {"get", "resume", "list_messages"}

    def __init__(self, server):
        super().__init__(server)
        self.ids = self.listed = [uuid.uuid4() for _ in USERS]


class Scenario:
    """Calls, each as (share of the requests, name in `Calls`, arguments). `requests` are one unit: requests a second
    and CPU per request are of units."""

    def __init__(self, does, *calls, requests=1):
        self.does, self.calls, self.requests = does, calls, requests

    def is_known_to(self, calls):
        return all(name in calls.known for _, name, *_ in self.calls)

    def parts(self, calls):
        """The requests, for a server whose calls these are."""
        parts = []
        for share, name, *arguments in self.calls:
            parts.append(getattr(calls, name)(*arguments))
            parts[-1].share = share
        return parts


SCENARIOS = {
    "get": Scenario("get a session by its id", (1, "get")),
    "resume": Scenario("get-or-create of a user who has an active session", (1, "resume")),
    "create": Scenario("get-or-create of a new user", (1, "create")),
    "heartbeat": Scenario("PATCH {} within the activity resolution", (1, "heartbeat")),
    "append_1": Scenario(f"append one message of {CONTENT_BYTES} bytes", (1, "append", "user")),
    "append_2": Scenario("append an array of two such messages", (1, "append", "user", "assistant")),
    "list_messages_10": Scenario("list the newest 10 messages", (1, "list_messages", 10)),
    "list_messages_50": Scenario("list the newest 50 messages", (1, "list_messages", 50)),
    "list_active": Scenario(f"list {ACTIVE_PAGE} of {ACTIVE} active sessions of a business", (1, "list_active")),
    "page_load": Scenario(
        "resume, then list 50 messages; a figure is of both", (0.5, "resume"), (0.5, "list_messages", 50), requests=2
    ),
    "turn": Scenario(
        "append the user's message, then the assistant's; a figure is of both",
        (0.5, "append", "user"),
        (0.5, "append", "assistant"),
        requests=2,
    ),
    "mixed": Scenario(
        "70 % resume, 20 % get, 8 % append_1, 2 % create",
        (0.7, "resume"),
        (0.2, "get"),
        (0.08, "append", "user"),
        (0.02, "create"),
    ),
}


def parser(description, others=None):
    """An argument parser that takes scenarios, and explains them. `others` are those of one program only, by name."""
    does = {name: scenario.does for name, scenario in SCENARIOS.items()} | (others or {})

    def known(name):
        if name not in does:
            raise argparse.ArgumentTypeError(f"no such scenario: {name}; there are {', '.join(does)}")
        return name

    width = max(map(len, does)) + 2
    table = "".join(f"  {name:{width}}{text}\n" for name, text in does.items())
    result = argparse.ArgumentParser(
        description=description,
        epilog=f"scenarios:\n{table}\nbenches/README.md says how they are measured, and lists environment variables.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("scenarios", metavar="SCENARIO", nargs="*", type=known, help="of those below; all by default")
    return result


def add_place(arguments):
    does = "; ".join(f"{place}: {where}" for place, where in PLACES.items())
    arguments.add_argument(
        "--place", choices=PLACES, action="append", help=f"{does}. May be repeated; both by default."
    )
