"""What a server and its machine do while a side runs: how busy the processors are, and what its sessions wait for."""

import os
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from harness import Session

# Between two looks at the sessions, in seconds.
PAUSE = 0.01
# A session without a wait event has a processor, or waits for one.
RUNNING = "a processor"
WAITS = {
    "Client:ClientRead": "the client",
    "IO:WALSync": "the disk (WAL)",
    "IO:WALWrite": "the disk (WAL)",
    "LWLock:WALWrite": "another's flush of WAL",
    "Lock:tuple": "a row lock",
    "Lock:transactionid": "a row lock",
    "Lock:advisory": "a quota lock",
}


@dataclass
class Profile:
    """Shares of the whole: of the processors' time, and of the looks at sessions."""

    user: float
    system: float
    waits: Counter

    @property
    def busy(self):
        return self.user + self.system


def ticks():
    """User, system and all ticks of the machine's processors."""
    user, nice, system, idle, iowait, irq, softirq, *_ = map(int, Path("/proc/stat").read_text().split()[1:9])
    return user + nice, system + irq + softirq, user + nice + system + idle + iowait + irq + softirq


def profile(server, run):
    """Watches `run()`."""
    waits, stop = Counter(), threading.Event()

    def watch():
        with Session(server, "postgres", "postgres") as session:
            while not stop.is_set():
                events = session.ask(
                    f"SELECT coalesce(wait_event_type || ':' || wait_event, '{RUNNING}') FROM pg_stat_activity"
                    " WHERE backend_type = 'client backend' AND usename = 'bench_app'"
                )
                waits.update(WAITS.get(event, event) for event in events.split("\n") if event)
                time.sleep(PAUSE)

    watcher = threading.Thread(target=watch)
    before = ticks()
    watcher.start()
    try:
        run()
    finally:
        after = ticks()
        stop.set()
        watcher.join()
    user, system, whole = (late - early for late, early in zip(after, before))
    looks = sum(waits.values()) or 1
    return Profile(user / whole, system / whole, Counter({wait: count / looks for wait, count in waits.items()}))


def limit_of(found):
    """What keeps the rate from growing, in words."""
    if found.busy > 0.9:
        return f"the {os.cpu_count()} processors"
    reasons = [(wait, share) for wait, share in found.waits.most_common() if wait not in (RUNNING, "the client")]
    if reasons and reasons[0][1] > 0.2:
        return reasons[0][0]
    return "the round trip: server and client wait for each other"
