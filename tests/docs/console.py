#!/usr/bin/env python3
"""Runs the commands in the `console` blocks of a page against the service at SESSIOND_URL, and compares the output.

The page's address is http://127.0.0.1:3000. `...` stands for any text. Times and `retry` may differ. Other ids and
positions than those of the page are learned from the output, and take their place from then on. `curl -N` stays open:
the `text` blocks after it are what it prints later.
"""

import os
import re
import subprocess
import sys
import threading

PAGE_URL = "http://127.0.0.1:3000"
OUTPUT_SECONDS_MAX = 60
ID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
POSITION = r"1(?:\.[0-9a-f]+){8}"
TIME = r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z"
TOKEN = re.compile(rf"(?P<learned>{ID}|{POSITION})|(?P<time>{TIME})|(?P<retry>(?<=retry: )\d+)|(?P<any>\.\.\.)")


class Stream:
    """A command that prints events until it is stopped."""

    def __init__(self, command):
        self.process = subprocess.Popen(["sh", "-c", f"exec {command}"], stdout=subprocess.PIPE, text=True)
        self.blocks, self.changed = [], threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        block = []
        for line in self.process.stdout:
            if line != "\n":
                block.append(line)
                continue
            with self.changed:
                # Comments are sent when there are no events.
                if block != [":\n"]:
                    self.blocks.append("".join(block))
                self.changed.notify()
            block = []

    def take(self, count):
        """The next `count` events, as printed."""
        with self.changed:
            self.changed.wait_for(lambda: len(self.blocks) >= count, OUTPUT_SECONDS_MAX)
            taken, self.blocks = self.blocks[:count], self.blocks[count:]
        return "\n".join(taken)

    def stop(self):
        self.process.kill()
        self.process.wait()


class Page:
    def __init__(self, name):
        self.name = name
        self.address = os.environ["SESSIOND_URL"]
        self.learned, self.variables, self.stream, self.commands = {}, "", None, 0

    def check(self, text):
        for language, block in re.findall(r"^```(console|text)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            if language == "text":
                self.compare("the stream", block, self.stream.take(count_events(block)))
                continue
            for command, expected in re.findall(r"^\$ ((?:.*\\\n)*.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                self.run(command, expected)
        self.close()

    def run(self, command, expected):
        self.commands += 1
        own = command.replace(PAGE_URL, self.address)
        own = re.sub(f"{ID}|{POSITION}", lambda token: self.learned.get(token[0], token[0]), own)
        if re.match(r"[A-Z]=", own):
            self.variables += own + "\n"
        elif own.startswith("curl -N"):
            self.close()
            self.stream = Stream(self.expanded(own))
            self.compare(command, expected, self.stream.take(count_events(expected)))
        else:
            shell = ["sh", "-c", self.variables + own]
            output = subprocess.run(shell, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
            self.compare(command, expected, output.stdout)

    def expanded(self, command):
        """The command with the values of variables, because it replaces the shell that has them."""
        values = dict(re.findall(r"([A-Z])=('[^']*'|\S+)", self.variables))
        return re.sub(r"\$([A-Z])", lambda name: values[name[1]], command)

    def compare(self, command, expected, output):
        expected, output = re.sub(r"\n ", "", expected).strip(), output.strip()
        pattern, names, end = "", {}, 0
        for token in TOKEN.finditer(expected):
            pattern += re.escape(expected[end : token.start()])
            end = token.end()
            if token["any"]:
                pattern += ".*?"
            elif token["time"]:
                pattern += TIME
            elif token["retry"]:
                pattern += r"\d+"
            elif token[0] in self.learned:
                pattern += re.escape(self.learned[token[0]])
            elif token[0] in names:
                pattern += f"(?P={names[token[0]]})"
            else:
                names[token[0]] = f"t{len(names)}"
                pattern += f"(?P<{names[token[0]]}>{ID if '-' in token[0] else POSITION})"
        found = re.fullmatch(pattern + re.escape(expected[end:]), output, re.DOTALL)
        if not found:
            sys.exit(f"{self.name}: {command}\nprinted\n{output}\nand the page has\n{expected}")
        self.learned |= {text: found[name] for text, name in names.items()}

    def close(self):
        if self.stream:
            self.stream.stop()
        self.stream = None


def count_events(block):
    return len(block.strip().split("\n\n"))


if __name__ == "__main__":
    for path in sys.argv[1:]:
        page = Page(path)
        with open(path, encoding="utf-8") as file:
            page.check(file.read())
        print(f"{page.commands} commands printed what the page has")
