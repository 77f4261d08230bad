"""`python -m tests.hostile.attack PORT KEY` is a process of hostile clients.

For each line that comes, {"entry": a name, "seconds": how long}, it does what the entry says again
and again, waits until all of it has ended, and answers with a line that counts how. It runs at the
lowest priority: what it costs to be hostile is not the server's.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import resource
import sys
import time
from collections import Counter

from tests.hostile.acts import Entry, Hostile
from tests.hostile.catalogue import ENTRIES

PATIENCE = 90.0
"""Seconds after which what has not ended hangs."""


async def attack(entry: Entry, hostile: Hostile, seconds: float) -> Counter[str]:
    """How the tries ended."""
    ended: Counter[str] = Counter()
    numbers = itertools.count()
    until = time.monotonic() + seconds

    async def client() -> None:
        while True:
            try:
                async with asyncio.timeout(PATIENCE):
                    found = await entry.act(hostile, next(numbers))
            except TimeoutError:
                found = "hangs"
            except OSError as error:
                found = f"no connection: {error}"
            ended[found] += 1
            if found.startswith(("429", "503")):
                await asyncio.sleep(0.01)  # a client in Python is slower than a refusal
            if time.monotonic() >= until:
                return

    await asyncio.gather(*(client() for _ in range(entry.clients)))
    return ended


def main() -> None:
    os.nice(19)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    hostile = Hostile(port=int(sys.argv[1]), key=sys.argv[2])
    for line in sys.stdin:
        asked = json.loads(line)
        entry = ENTRIES[asked["entry"]]
        print(json.dumps(asyncio.run(attack(entry, hostile, asked["seconds"]))), flush=True)


if __name__ == "__main__":
    main()
