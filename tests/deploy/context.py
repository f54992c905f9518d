"""Copies the files that `docker build .` would send, according to .dockerignore, to a new folder.

The build must need no other files. Supports the part of the .dockerignore syntax that the file uses: the last pattern
that matches a path or a folder above it decides (https://docs.docker.com/build/concepts/context/#dockerignore-files).
"""

import fnmatch
import os
import shutil
import subprocess
import sys


def is_sent(path, patterns):
    parts = path.split("/")
    names = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    sent = True
    for pattern in patterns:
        wanted = pattern.removeprefix("!")
        # Unlike with fnmatch, `*` does not match a slash in .dockerignore.
        if any(name.count("/") == wanted.count("/") and fnmatch.fnmatchcase(name, wanted) for name in names):
            sent = pattern.startswith("!")
    return sent


def main():
    lines = open(".dockerignore", encoding="utf-8").read().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout.decode().split("\0")
    paths = [path for path in listed if path and os.path.exists(path) and is_sent(path, patterns)]
    shutil.rmtree(sys.argv[1], ignore_errors=True)
    for path in paths:
        target = os.path.join(sys.argv[1], path)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        shutil.copy2(path, target)
    print(f"{len(paths)} files")


if __name__ == "__main__":
    main()
