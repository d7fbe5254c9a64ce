"""The cache, and quotas, against Redis and tables by hand, by the client of cache_client.rs, which checks every answer."""

import atexit
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from harness import Failure, run

HERE = Path(__file__).resolve().parent

# Seconds that a value lives: it carries the instant at which they are over.
TTL = 3600
TENANTS = 16
KEYS = 250

OURS = ("SELECT tenant_cache_get($1)", "SELECT tenant_cache_set($1, $2::jsonb, '{ttl} s')")
PLAIN = (
    "SELECT value FROM plain_cache WHERE tenant_id = '{tenant}'::uuid AND key = $1 AND expires_at > clock_timestamp()",
    "INSERT INTO plain_cache VALUES ('{tenant}'::uuid, $1, $2::jsonb, clock_timestamp() + interval '{ttl} s')"
    " ON CONFLICT (tenant_id, key) DO UPDATE SET value = EXCLUDED.value, expires_at = EXCLUDED.expires_at",
)


class Redis:
    """Debian's redis-server, unpacked by scripts/setup, on a Unix socket. `durable` writes its log to disk every second, as
    one counts; else persistence is off, as a cache is run."""

    def __init__(self, durable=False):
        cache = os.environ.get("TENANT_RLS_CACHE")
        if not cache:
            cache = "/var/cache/tenant_rls" if os.geteuid() == 0 else f"{Path.home()}/.cache/tenant_rls"
        program = os.environ.get("TENANT_RLS_REDIS", f"{cache}/redis/usr/bin/redis-server")
        self.folder = tempfile.TemporaryDirectory(prefix="tenant_rls-redis.")
        self.socket = f"{self.folder.name}/socket"
        if not Path(program).exists():
            raise Failure(f"{program} is not there: scripts/setup --bench")
        self.process = subprocess.Popen(
            [program, "--port", "0", "--unixsocket", self.socket, "--save", "",
             "--appendonly", "yes" if durable else "no", "--appendfsync", "everysec", "--dir", self.folder.name],
            stdout=subprocess.DEVNULL,
        )
        atexit.register(self.stop)
        for _ in range(100):
            if Path(self.socket).exists():
                return
            time.sleep(0.05)
        raise Failure("redis-server does not start")

    def stop(self):
        self.process.terminate()
        self.process.wait()
        self.folder.cleanup()


class Client:
    """Runs cache_client against one side."""

    program = None

    def __init__(self, server, database="", statements=OURS, redis=None):
        self.server, self.database, self.statements, self.redis = server, database, statements, redis
        self.expires = 0

    @classmethod
    def build(cls):
        if not cls.program:
            cls.folder = tempfile.TemporaryDirectory(prefix="tenant_rls-client.")
            cls.program = f"{cls.folder.name}/cache_client"
            run(["rustc", "--edition", "2021", "-O", "-o", cls.program, HERE / "cache_client.rs"])

    def fill(self, **more):
        self.expires = int(time.time()) + TTL
        self.do("fill", **more)

    def do(self, what, seconds=0, clients=TENANTS, keys=KEYS, size=100, user="bench_app"):
        self.build()
        if self.redis:
            place = ["redis", self.redis.socket]
        else:
            host, port = self.server.environment["PGHOST"], self.server.environment["PGPORT"]
            place = ["pg", user, self.database, f"{host}/.s.PGSQL.{port}"]
        words = [*place, what, seconds, clients, keys, size, self.expires, *self.statements]
        return [float(word) for word in run([self.program, *words]).split()]


class Calls(Client):
    """A side of a Work: gets or sets of values of one size."""

    def __init__(self, *arguments, what, size, **more):
        super().__init__(*arguments, **more)
        self.what, self.size, self.filled = what, size, False

    def time(self, seconds, clients):
        if not self.filled:
            # The timed gets come long before the hour is over: that nothing outlives its time is seen here.
            self.do("probe", size=self.size)
            self.fill(size=self.size)
            self.filled = True
        return self.do(self.what, seconds, clients, KEYS, self.size)[0]


class Consuming(Client):
    """A side of a Work: units of one tenant taken, by a statement that answers `t`, or by EVAL in Redis."""

    def __init__(self, server, database="", statement="", redis=None):
        super().__init__(server, database, (statement, ""), redis)

    def time(self, seconds, clients):
        return self.do("consume", seconds, clients)[0]


class Invalidation(Client):
    """A side of a Work: 1 000 keys of a pattern among many."""

    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        self.filled = False
        # The slowest call of other clients in each round, in microseconds: meanwhile, and without it.
        self.waits = []

    def time(self, _seconds, _clients):
        if not self.filled:
            self.fill(clients=2, keys=2)
            self.filled = True
        spent, *waits = self.do("invalidate", keys=1000)
        self.waits.append(waits)
        return spent

    def wait(self):
        """Milliseconds: the slowest call meanwhile, and without it, medians of the rounds."""
        return [statistics.median(waits) / 1000 for waits in zip(*self.waits)]
