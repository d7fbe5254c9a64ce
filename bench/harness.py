"""Runs pgbench and psql, reads the CPU time of a backend, alternates. Knows nothing of what is measured.

Time of a call: pgbench, one call a transaction, seen by the client. Round trips hide small costs in it, so also
CPU of a call: what the kernel charged to the server process over a loop that runs inside of it.
"""

import os
import re
import statistics
import subprocess
import tempfile
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

ALL_CPUS = os.sched_getaffinity(0)
ONE_CPU = max(ALL_CPUS)

REPO = Path(__file__).resolve().parent.parent


class Failure(Exception):
    """A command or statement failed; the text says which and why."""


@dataclass
class Server:
    """A private cluster of scripts/cluster and the programs that go with it."""

    name: str
    major: str
    settings: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    postmaster: int = 0

    def _cluster(self, command, *arguments):
        return ["scripts/cluster", command, "--name", self.name, "--pg", self.major, *arguments]

    def start(self):
        arguments = [word for setting in self.settings for word in ("--set", setting)]
        run(self._cluster("start", *arguments), cwd=REPO)
        exports = run(self._cluster("env"), cwd=REPO)
        text = run(["bash", "-c", 'eval "$1" && env -0', "bash", exports])
        self.environment = dict(pair.split("=", 1) for pair in text.split("\0") if "=" in pair)
        with Session(self, "postgres", "postgres") as session:
            status = Path(f"/proc/{session.pid}/status").read_text()
            self.postmaster = int(re.search(r"^PPid:\s*(\d+)", status, re.M)[1])

    def stop(self):
        run(self._cluster("stop"), cwd=REPO)

    def restart(self):
        self.stop()
        self.start()

    @contextmanager
    def pinned(self):
        """New server processes stay on one CPU."""
        os.sched_setaffinity(self.postmaster, {ONE_CPU})
        try:
            yield
        finally:
            os.sched_setaffinity(self.postmaster, ALL_CPUS)

    def warm(self, database):
        """Reads our tables in `database` into shared buffers."""
        self.sql(
            database,
            "SELECT count(pg_prewarm(oid)) FROM pg_class"
            " WHERE relnamespace IN (to_regnamespace('public'), to_regnamespace('tenant_rls')) AND relkind IN ('r', 'i')",
        )

    def extension_scripts(self):
        """The SQL that CREATE EXTENSION would run."""
        share = run(["pg_config", "--sharedir"], env=self.environment).strip()
        return sorted(Path(share, "extension").glob("tenant_rls--*.sql"))

    def compile(self, source):
        """Puts a C file, as a library named tenant_rls_… after it, where the server finds it."""

        def folder(kind):
            return run(["pg_config", kind], env=self.environment).strip()

        library = f"{folder('--pkglibdir')}/tenant_rls_{source.stem}.so"
        run(["cc", "-O2", "-fPIC", "-shared", f"-I{folder('--includedir-server')}", "-o", library, source])

    def client(self, database, user="postgres", options=""):
        """The environment of a client program."""
        return self.environment | {"PGDATABASE": database, "PGUSER": user, "PGOPTIONS": options}

    def sql(self, database, text, user="postgres", options=""):
        """Runs statements, each in its own transaction, and returns what they answer."""
        return run(
            ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1", "-f", "-"],
            env=self.client(database, user, options),
            stdin=text,
        ).strip()


def run(command, env=None, cwd=None, stdin=None):
    done = subprocess.run(
        [str(word) for word in command],
        env=env,
        cwd=cwd,
        input="" if stdin is None else stdin,
        text=True,
        capture_output=True,
    )
    if done.returncode != 0:
        raise Failure(f"{command[0]} failed:\n{(done.stdout + done.stderr).strip()}")
    return done.stdout


class Session:
    """One connection that stays open, by psql, so that its server process can be watched."""

    def __init__(self, server, database, user, options=""):
        self.errors = tempfile.TemporaryFile("w+")
        self.psql = subprocess.Popen(
            ["psql", "-XqAt", "-v", "ON_ERROR_STOP=1"],
            env=server.client(database, user, options),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )
        self.pid = int(self.ask("SELECT pg_backend_pid()"))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.psql.stdin.close()
        self.psql.wait()
        self.psql.stdout.close()
        self.errors.close()

    def ask(self, statement):
        end = "-- answered --"
        try:
            self.psql.stdin.write(f"{statement};\n\\echo {end}\n")
            self.psql.stdin.flush()
        except BrokenPipeError:
            pass
        lines = []
        for line in self.psql.stdout:
            if line.rstrip("\n") == end:
                return "\n".join(lines)
            lines.append(line.rstrip("\n"))
        self.psql.wait()
        self.errors.seek(0)
        raise Failure(f"a session ended:\n{self.errors.read().strip()}\nin: {statement}")

    def cpu(self):
        """Seconds of CPU that the server process has used, user and system."""
        try:
            # Nanoseconds; up to date, as the process sleeps while it waits for us.
            return int(Path(f"/proc/{self.pid}/schedstat").read_text().split()[0]) / 1e9
        except FileNotFoundError:
            fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def private_bytes(self):
        return private_bytes(self.pid)


def private_bytes(pid):
    """Memory that belongs to a process of the server alone: neither files nor shared buffers."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"^RssAnon:\s*(\d+) kB", status, re.M)[1]) * 1024


@dataclass
class Side:
    """One of the things compared. `script` is for pgbench; `loop` is PL/pgSQL that makes a call: the k-th of a round,
    the i-th of a block, which `declare` may prepare for the calls {first} to {last}."""

    server: Server
    database: str
    script: str
    loop: str = ""
    declare: str = ""
    user: str = "bench_app"
    options: str = ""
    loop_options: str = ""
    protocol: str = "prepared"
    variables: dict[str, str] = field(default_factory=dict)
    before: str = ""
    commit: bool = False

    def prepare(self):
        if self.before:
            self.server.sql(self.database, self.before)

    def time(self, seconds, clients):
        """Microseconds of a transaction."""
        self.prepare()
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(self.script)
            script.flush()
            defines = [f"-D{name}={value}" for name, value in self.variables.items()]
            command = ["pgbench", "-n", "-M", self.protocol, "-T", seconds, "-c", clients, "-j", min(clients, 2)]
            command += [*defines, "-f", script.name]
            environment = self.server.client(self.database, self.user, self.options)
            out = run(command, env=environment)
        # The latency that pgbench prints has three digits of a millisecond: too few.
        rate = re.search(r"^tps = ([0-9.]+) \(without initial", out, re.M)
        failed = re.search(r"^number of failed transactions: ([1-9]\d*)", out, re.M)
        if not rate or failed or float(rate[1]) == 0:
            raise Failure(f"pgbench:\n{out}")
        return clients / float(rate[1]) * 1e6

    def block(self, first, last, idle=False):
        """A DO block that makes the calls from `first` to `last`, or only gets ready for them."""
        end = "COMMIT;" if self.commit else ""
        declare = self.declare.format(first=first, last=last)
        return (
            f"DO $loop$ DECLARE k bigint; {declare} BEGIN FOR i IN 1..{0 if idle else last - first + 1} LOOP"
            f" k := {first - 1} + i; {self.loop} {end} END LOOP; END $loop$"
        )

    def session(self):
        with self.server.pinned():
            return Session(self.server, self.database, self.user, f"{self.options} {self.loop_options}")

    def plan(self, sample):
        """The kinds of nodes of the plan that the script's one statement, prepared, comes to use."""
        (statement,) = [line for line in self.script.splitlines() if not line.startswith("\\")]
        names = []

        def number(match):
            if match[1] not in names:
                names.append(match[1])
            return f"${names.index(match[1]) + 1}"

        query = re.sub(r"(?<!:):(\w+)", number, statement.rstrip(";"))
        arguments = ", ".join(f"'{(self.variables | sample)[name]}'" for name in names)
        execute = f"EXECUTE q({arguments})" if names else "EXECUTE q"
        with Session(self.server, self.database, self.user, self.options) as session:
            session.ask(f"PREPARE q AS {query}")
            for _ in range(6):
                session.ask(f"BEGIN; {execute}; ROLLBACK")
            lines = session.ask(f"EXPLAIN (COSTS OFF, FORMAT JSON) {execute}")
        return " / ".join(re.findall(r'"Node Type": "([^"]+)"', lines))


def alternating(number, sides):
    """Forwards and backwards in turn, so that a drift of the machine hits all sides."""
    return list(sides) if number % 2 == 0 else list(reversed(sides))


def restart(sides):
    """A server that has just started has its memory elsewhere, which makes a few percent: not the same for all time."""
    for side in sides.values():
        side.server.restart()
        side.server.warm(side.database)


def times(sides, rounds, seconds, clients, restarts, progress):
    """Microseconds of a transaction, each side once a round."""
    samples = {name: [] for name in sides}
    for number in range(rounds):
        progress(number + 1, rounds)
        if restarts and number % 3 == 0:
            restart(sides)
        if number == 0 or restarts and number % 3 == 0:
            for side in sides.values():
                side.time(1, clients)
        for name in alternating(number, sides):
            samples[name].append(sides[name].time(seconds, clients))
    return samples


SLICES = 10


def cpus(sides, rounds, calls, restarts, progress):
    """Microseconds of CPU of the server process, a call. A round is cut into slices that alternate, in sessions
    that stay; what a block needs before its first call is left out."""
    samples = {name: [] for name in sides}
    size = max(calls // SLICES, 2)
    for number in range(rounds):
        progress(number + 1, rounds)
        if restarts:
            restart(sides)
        spent = dict.fromkeys(sides, 0.0)
        for side in sides.values():
            side.prepare()
        with ExitStack() as stack:
            sessions = {name: stack.enter_context(side.session()) for name, side in sides.items()}

            def cost(name, *block):
                before = sessions[name].cpu()
                sessions[name].ask(sides[name].block(*block))
                return sessions[name].cpu() - before

            for name in sides:
                cost(name, 1, max(size // 10, 1))
            for piece in range(SLICES):
                first, last = piece * size + 1, (piece + 1) * size
                for name in alternating(piece, sides):
                    spent[name] += cost(name, first, last) - cost(name, first, last, True)
        for name, seconds in spent.items():
            samples[name].append(seconds / (size * SLICES) * 1e6)
    return samples


@dataclass
class Ratio:
    """Ours to the peer's, round by round."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(ours, peers):
        ratios = sorted(a / b for a, b in zip(ours, peers))
        if len(ratios) < 4:
            return Ratio(statistics.median(ratios), ratios[0], ratios[-1])
        quarters = statistics.quantiles(ratios, n=4, method="inclusive")
        return Ratio(statistics.median(ratios), quarters[0], quarters[2])
