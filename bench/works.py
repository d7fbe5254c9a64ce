"""What is measured, against what, and the targets; and the databases that it needs."""

import hashlib
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache import PLAIN, TENANTS, Calls, Consuming, Invalidation, Redis
from harness import Server, Session, Side
from report import Line

HERE = Path(__file__).resolve().parent

# Tenant n is this with 100000000000 + n in place of the rest: pgbench can only make numbers.
PREFIX = "00000000-0000-4000-8000-"
FIRST = 100000000001
LARGE_TENANT = f"{PREFIX}{FIRST}"
CUSTOMER = hashlib.md5(b"customer 1").hexdigest()

# Keys of one tenant's cache, of which a thousand are invalidated.
MANY_KEYS = int(os.environ.get("TENANT_RLS_BENCH_KEYS", "10000000"))
# Rows of closed periods.
HISTORY = int(os.environ.get("TENANT_RLS_BENCH_HISTORY", "10000000"))
# Keys that one backend counts.
TOUCHED = int(os.environ.get("TENANT_RLS_BENCH_TOUCHED", "1000000"))

COMMON_SETTINGS = [
    "shared_buffers = '1500MB'",
    "max_wal_size = '8GB'",
    "checkpoint_timeout = '1h'",
    "max_connections = 100",
    # The launcher, and a worker for each database.
    "max_worker_processes = 16",
    "fsync = on",
    "synchronous_commit = on",
    # Sums of many short runs; a helper process would also hide CPU from us.
    "max_parallel_workers_per_gather = 0",
    "jit = off",
]


@dataclass
class Against:
    """A peer and what is asked of us: at most so many times its time and its server CPU, or at least so many times its
    calls a second."""

    side: str
    text: str
    time: float | None = None
    cpu: float | None = None
    rate: float | None = None


@dataclass
class Work:
    """One thing that is done, in one way of ours ("ours") and in those of its peers."""

    name: str
    text: str
    sides: dict[str, Side]
    against: list[Against]
    clients: int = 1
    calls: int = 200_000
    # A multiple of the usual rounds, where a very small difference is looked for.
    rounds: int = 1
    # A multiple of the usual seconds, where a worker that comes once a second is part of the cost.
    seconds: int = 1
    restarts: bool = False
    # Values of the script's variables, where the sides' plans are to be compared.
    sample: dict[str, str] | None = None
    # What else is to be said, when all rounds are over.
    note: Callable[[], str] | None = None
    # A line that is no ratio of the sides.
    also: Callable[[], Line] | None = None


@dataclass
class Memory:
    """Growth of a backend, in bytes; `measure` gives ours and, to see what the harness itself costs, the peer's."""

    name: str
    text: str
    peer: str
    at_most: int
    measure: Callable[[], tuple[int, int]]
    once: bool = False
    note: Callable[[], str] | None = None


@dataclass
class Rate:
    """Calls a second of server CPU, without a peer."""

    name: str
    text: str
    at_least: int
    measure: Callable[[], float]
    note: Callable[[], str]


@dataclass
class Wal:
    """Bytes of WAL that the server writes meanwhile, none of which are allowed."""

    name: str
    text: str
    measure: Callable[[], int]


@dataclass
class Elapsed:
    """Seconds by the clock of one call, without a peer."""

    name: str
    text: str
    at_most: float
    measure: Callable[[], float]
    note: Callable[[], str]


@dataclass
class Rates:
    """A chart of calls a second by clients, of each side."""

    name: str
    text: str
    sides: dict[str, Side]
    clients: tuple[int, ...]
    file: str
    seconds: int = 1


class Databases:
    """Makes each database when it is first asked for."""

    def __init__(self, library: Server, plain: Server, keep: bool, progress):
        self.library = library
        self.plain = plain
        self.keep = keep
        self.progress = progress
        self.ready = set()
        self.made_of = ""
        self.running_redis = {}

    def _origin(self):
        """Tells databases of one extension and one version of these files from those of another."""
        if not self.made_of:
            files = sorted([*HERE.glob("*.sql"), *HERE.glob("*.c")]) + [Path(__file__), *self.library.extension_scripts()]
            self.made_of = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
        return self.made_of

    def _comment(self, server, name):
        query = f"SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = '{name}'"
        return server.sql("postgres", query)

    def _make(self, name, make, server=None):
        server = server or self.library
        if (server.name, name) in self.ready:
            return name
        if not (self.keep and self._comment(server, name) == self._origin()):
            self.progress(f"making the database {name}")
            server.sql(
                "postgres",
                "DO $$ BEGIN IF to_regrole('bench_app') IS NULL THEN CREATE ROLE bench_app LOGIN; END IF; END $$",
            )
            server.sql("postgres", f"DROP DATABASE IF EXISTS {name}")
            make(server, name)
            server.sql(name, "CREATE EXTENSION IF NOT EXISTS pg_prewarm")
            server.sql("postgres", f"COMMENT ON DATABASE {name} IS '{self._origin()}'")
        server.warm(name)
        self.ready.add((server.name, name))
        return name

    def _extension(self, server, name, tenants, plan="enterprise"):
        """tenant_rls, `tenants` tenants, and an app role that has what tenant_grant gives."""
        server.sql(
            name,
            f"""
            CREATE EXTENSION tenant_rls;
            SELECT tenant_grant('bench_app');
            -- As one statement: a million calls of tenant_create would take minutes.
            ALTER TABLE tenant_rls.tenants DISABLE TRIGGER record_change;
            INSERT INTO tenant_rls.tenants (tenant_id, plan)
            SELECT ('{PREFIX}' || {FIRST - 1} + n)::uuid, '{plan}' FROM generate_series(1, {tenants}) AS n;
            ALTER TABLE tenant_rls.tenants ENABLE ALWAYS TRIGGER record_change;
            VACUUM ANALYZE tenant_rls.tenants;
            """,
        )

    def orders(self):
        def make(server, name):
            source = (HERE / "orders.sql").read_text()
            digest = hashlib.sha256(source.encode()).hexdigest()
            data = "bench_orders_data"
            if self._comment(server, data) != digest:
                self.progress("loading 1 000 000 orders three times, about a minute")
                server.sql("postgres", f"DROP DATABASE IF EXISTS {data}")
                server.sql("postgres", f"CREATE DATABASE {data}")
                server.sql(data, source)
                server.sql("postgres", f"COMMENT ON DATABASE {data} IS '{digest}'")
            server.sql("postgres", f"CREATE DATABASE {name} TEMPLATE {data} STRATEGY file_copy")
            self._extension(server, name, 50)
            server.sql(
                name,
                """
                SELECT tenant_protect('orders');
                SELECT tenant_protect('order_items');
                SELECT tenant_protect('new_orders');
                GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO bench_app;
                """,
            )
            server.sql(name, (HERE / "document.sql").read_text())

        return self._make("bench_orders", make)

    def quota(self):
        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            self._extension(server, name, 1000)
            server.compile(HERE / "no_consume.c")
            server.sql(name, (HERE / "quota.sql").read_text())
            server.sql(name, "GRANT SELECT, INSERT, UPDATE, DELETE ON hand_limits, hand_usage, quota_orders TO bench_app")

        return self._make("bench_quota", make)

    def history(self, rows):
        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            self._extension(server, name, 1000)
            # As if a period were an hour.
            server.sql(
                name,
                f"""
                INSERT INTO tenant_rls.usage_history (tenant_id, resource, period_start, resets_at, used)
                SELECT ('{PREFIX}' || {FIRST} + n % 1000)::uuid, 'api_requests',
                    at.start, at.start + interval '1 hour', 1000
                FROM generate_series(0, {rows - 1}) AS n,
                    LATERAL (SELECT timestamptz '2000-01-01 00:00Z' + n / 1000 * interval '1 hour' AS start) AS at;
                VACUUM ANALYZE tenant_rls.usage_history;
                """,
            )

        return self._make(f"bench_history_{rows}", make)

    def features(self):
        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            self._extension(server, name, 1000)
            server.sql(
                name,
                """
                SELECT tenant_feature_define('f' || n, 'false'), tenant_feature_set('f' || n, 'true', rollout_percent => 50)
                FROM generate_series(1, 50) AS n;
                SELECT tenant_setting_set('size', '20', 'global');
                SELECT tenant_deployment_define('api', '{"image": "api:1"}'), tenant_release('api', 'api:2', 50);
                """,
            )

        return self._make("bench_features", make)

    def redis(self):
        return self._redis(durable=False)

    def durable_redis(self):
        return self._redis(durable=True)

    def _redis(self, durable):
        if durable not in self.running_redis:
            self.running_redis[durable] = Redis(durable)
        return self.running_redis[durable]

    def cache(self):
        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            self._extension(server, name, 1000)
            server.sql(
                name,
                """
                CREATE UNLOGGED TABLE plain_cache (
                    tenant_id uuid, key text COLLATE "C", value jsonb, expires_at timestamptz, PRIMARY KEY (tenant_id, key));
                GRANT SELECT, INSERT, UPDATE ON plain_cache TO bench_app;
                """,
            )

        return self._make("bench_cache", make)

    def cache_of_many(self):
        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            self._extension(server, name, 1000)
            # As one statement, for the time; what tenant_cache_set would have written.
            server.sql(
                name,
                f"""
                SELECT tenant_quota_set('{LARGE_TENANT}', 'cache_bytes', NULL, unlimited => true);
                INSERT INTO tenant_rls.cache (tenant_id, expires_at, set_at, size, replaced, key, value)
                SELECT '{LARGE_TENANT}', now() + interval '1 day', clock_timestamp(), 130, 0,
                    'many:' || n / 1000 || ':' || n % 1000, '{{"n": 1}}'
                FROM generate_series(0, {MANY_KEYS - 1}) AS n;
                INSERT INTO tenant_rls.cache_parts VALUES ('{LARGE_TENANT}', 0, {MANY_KEYS}, {MANY_KEYS * 130}, 0, 0, 0);
                VACUUM ANALYZE tenant_rls.cache;
                """,
            )

        return self._make("bench_cache_many", make)

    def tenants(self, number):
        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            self._extension(server, name, number)
            server.sql(
                name,
                f"""
                CREATE TABLE samples AS
                SELECT k AS n, '{PREFIX}' || {FIRST} + k * 7919 % {number} AS tenant
                FROM generate_series(1::bigint, 200000) AS k;
                CREATE INDEX ON samples (n);
                GRANT SELECT ON samples TO bench_app;
                VACUUM ANALYZE samples;
                """,
            )

        return self._make(f"bench_tenants_{number}", make)

    def ddl(self, kind):
        """A schema of 100 protected tables: `guard`, `unguarded` with the event triggers of the guard off, or `none`
        without the extension."""

        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            tables = "SELECT format('CREATE TABLE p%s (tenant_id uuid NOT NULL, id int)', n) FROM generate_series(1, 100) AS n"
            server.sql(name, f"GRANT CREATE ON SCHEMA public TO bench_app; {tables} \\gexec\n")
            if kind == "none":
                return
            self._extension(server, name, 1)
            server.sql(name, "SELECT FROM tenant_protect_schema('public')")
            if kind == "unguarded":
                server.sql(
                    name,
                    """
                    SET tenant_rls.ddl_guard = off;
                    ALTER EVENT TRIGGER tenant_rls_ddl_guard DISABLE;
                    ALTER EVENT TRIGGER tenant_rls_drop_guard DISABLE;
                    """,
                )

        return self._make(f"bench_ddl_{kind}", make)

    def protected(self, tables):
        """So many protected tables as an application has them: keys and references with the tenant, an index more,
        privileges of the application, rows of two tenants."""

        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            self._extension(server, name, 2)
            server.sql(
                name,
                f"""
                CREATE SCHEMA shop; GRANT USAGE ON SCHEMA shop TO bench_app;
                SELECT format('CREATE TABLE shop.t%1$s (tenant_id uuid NOT NULL, id int NOT NULL, parent int, note text,'
                    ' PRIMARY KEY (tenant_id, id), FOREIGN KEY (tenant_id, parent) REFERENCES shop.t%2$s (tenant_id, id))',
                    n, greatest(n - 1, 1)),
                    format('CREATE INDEX ON shop.t%s (tenant_id, note)', n),
                    format('INSERT INTO shop.t%s (tenant_id, id) SELECT tenant_id, 1 FROM tenant_rls.tenants', n),
                    format('SELECT FROM tenant_protect(''shop.t%s'')', n),
                    format('GRANT SELECT, INSERT, UPDATE, DELETE ON shop.t%s TO bench_app', n)
                FROM generate_series(1, {tables}) AS n \\gexec
                ANALYZE;
                """,
            )

        return self._make(f"bench_protected_{tables}", make)

    def unprotected(self, server):
        def make(server, name):
            server.sql("postgres", f"CREATE DATABASE {name}")
            if server is self.library:
                self._extension(server, name, 1)
            server.sql(
                name,
                """
                CREATE TABLE branches (bid int PRIMARY KEY, balance int NOT NULL, filler char(88));
                CREATE TABLE tellers (tid int PRIMARY KEY, bid int NOT NULL, balance int NOT NULL, filler char(84));
                CREATE TABLE accounts (aid int PRIMARY KEY, bid int NOT NULL, balance int NOT NULL, filler char(84));
                CREATE TABLE history (tid int, bid int, aid int, delta int, mtime timestamp, filler char(22));
                INSERT INTO branches SELECT n, 0, '' FROM generate_series(1, 10) AS n;
                INSERT INTO tellers SELECT n, 1 + n % 10, 0, '' FROM generate_series(1, 100) AS n;
                INSERT INTO accounts SELECT n, 1 + n % 10, 0, '' FROM generate_series(1, 1000000) AS n;
                GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO bench_app;
                VACUUM (FREEZE, ANALYZE);
                """,
            )

        return self._make("bench_unprotected", make, server)


BY_HAND = "the same with `WHERE tenant_id = $1`, no RLS"
DOCUMENT = "the policy of the source document"


def read(databases, name, text, script, loop, declare, options="", calls=200_000, document_time=1.0):
    """A SELECT in its three forms. {orders}, {items}, {where…} and {and…} stand for what differs."""

    def side(suffix, by_hand):
        def form(template, tenant):
            def where(column):
                return f"{column} = {tenant}"

            return template.format(
                orders=f"orders{suffix}",
                items=f"order_items{suffix}",
                where=f"WHERE {where('o.tenant_id')}" if by_hand else "",
                and_=f"AND {where('o.tenant_id')}" if by_hand else "",
                and_both=f"AND {where('o.tenant_id')} AND {where('t.tenant_id')}" if by_hand else "",
            )

        return Side(
            databases.library,
            databases.orders(),
            script=form(script, ":tenant"),
            loop=form(loop, "v_tenant"),
            declare=f"v_tenant uuid := '{LARGE_TENANT}'; {declare}",
            # A hand-written tenant_id = $1 would else be planned again for every call, which favours us.
            options=f"-c app.current_tenant={LARGE_TENANT} -c plan_cache_mode=force_generic_plan {options}",
            variables={"tenant": LARGE_TENANT},
        )

    return Work(
        name,
        text,
        {"ours": side("", False), "plain": side("_plain", True), "document": side("_document", False)},
        [Against("plain", BY_HAND, 1.05, 1.10), Against("document", DOCUMENT, document_time, document_time)],
        calls=calls,
        sample={"n": "4711"},
    )


def point(databases):
    return read(
        databases,
        "read-point",
        "point lookup by primary key",
        "\\set n 2 * random(0, 499999) + 1\n"
        "SELECT o.total, o.created_at FROM {orders} o WHERE o.id = md5(:n::text)::uuid {and_};\n",
        "SELECT o.total, o.created_at INTO v_total, v_at FROM {orders} o WHERE o.id = v_ids[1 + k % 10000] {and_};",
        "v_ids uuid[] := ARRAY(SELECT id FROM samples ORDER BY n); v_total numeric; v_at timestamp;",
    )


def newest(databases):
    return read(
        databases,
        "read-range",
        "range of one tenant, 50 rows in order of time",
        "\\set n random(1, 990000)\n"
        "SELECT o.id, o.total, o.created_at FROM {orders} o"
        " WHERE o.created_at >= timestamp '2024-01-01' + :n * interval '30 seconds' {and_}"
        " ORDER BY o.created_at LIMIT 50;\n",
        "PERFORM o.id, o.total, o.created_at FROM {orders} o WHERE o.created_at >= v_since[1 + k % 10000] {and_}"
        " ORDER BY o.created_at LIMIT 50;",
        "v_since timestamp[] := ARRAY(SELECT since FROM samples ORDER BY n);",
    )


def scan(databases):
    return read(
        databases,
        "read-scan",
        "sequential scan, half of 1 000 000 rows is the tenant's",
        "SELECT sum(o.total) FROM {orders} o {where};\n",
        "SELECT sum(o.total) INTO v_sum FROM {orders} o {where};",
        "v_sum numeric;",
        options="-c enable_indexscan=off -c enable_bitmapscan=off",
        calls=20,
        document_time=1 / 3,
    )


def join(databases):
    return read(
        databases,
        "read-join",
        "join of two protected tables",
        "\\set n 2 * random(0, 99999) + 1\n"
        "SELECT o.total, t.product, t.quantity, t.price FROM {orders} o JOIN {items} t ON t.order_id = o.id"
        " WHERE o.id = md5(:n::text)::uuid {and_both};\n",
        "PERFORM o.total, t.product, t.quantity, t.price FROM {orders} o JOIN {items} t ON t.order_id = o.id"
        " WHERE o.id = v_ids[1 + k % 10000] {and_both};",
        "v_ids uuid[] := ARRAY(SELECT id_with_items FROM samples ORDER BY n);",
    )


def insert(databases):
    def side(suffix, by_default=False):
        table = f"new_orders{suffix}"
        columns, values = "customer_id, total", "{customer}, 12.50"
        if not by_default:
            columns, values = f"tenant_id, {columns}", f"{{tenant}}, {values}"
        statement = f"INSERT INTO {table} ({columns}) VALUES ({values});"
        return Side(
            databases.library,
            databases.orders(),
            script=statement.format(tenant=":tenant", customer=":customer") + "\n",
            loop=statement.format(tenant="v_tenant", customer="v_customer"),
            declare=f"v_tenant uuid := '{LARGE_TENANT}'; v_customer uuid := '{CUSTOMER}';",
            options=f"-c app.current_tenant={LARGE_TENANT}",
            variables={"tenant": LARGE_TENANT, "customer": CUSTOMER},
            before=f"TRUNCATE {table};",
        )

    peers = [Against("plain", "the same, no RLS", 1.05, 1.10), Against("document", DOCUMENT, 1.0, 1.0)]
    sides = {"ours": side(""), "plain": side("_plain"), "document": side("_document")}
    by_default = {"ours": side("", True), "plain": side("_plain")}
    return [
        Work("insert", "INSERT", sides, peers),
        Work(
            "insert-default",
            "INSERT, the tenant by default",
            by_default,
            [Against("plain", "the tenant by hand, no RLS", 1.05, 1.10)],
        ),
    ]


def set_tenant(databases, number):
    database = databases.tenants(number)
    last = FIRST + number - 1
    pick = f"\\set n random({FIRST}, {last})\n"

    def side(script, loop, **more):
        return Side(
            databases.library,
            database,
            script=pick + script,
            loop=loop,
            declare="v_tenants text[] := ARRAY(SELECT tenant FROM samples WHERE n BETWEEN {first} AND {last} ORDER BY n);"
            " v_uuids uuid[] := v_tenants::uuid[];",
            **more,
        )

    words = "10 tenants" if number == 10 else f"{number:,} tenants".replace(",", " ")
    name = "10" if number == 10 else "1m"
    return [
        Work(
            f"set_tenant-{name}",
            f"`set_tenant(…, false)`, {words}",
            {
                "ours": side(
                    f"SELECT set_tenant(('{PREFIX}' || :n)::uuid, false);\n", "PERFORM set_tenant(v_uuids[i], false);"
                ),
                "plain": side(
                    f"SELECT set_config('my.x', '{PREFIX}' || :n, false);\n",
                    "PERFORM set_config('my.x', v_tenants[i], false);",
                ),
            },
            [Against("plain", "`SELECT set_config('my.x', …, false)`", 1.3)],
        ),
        Work(
            f"set_tenant-local-{name}",
            f"`BEGIN; set_tenant(…); COMMIT`, {words}",
            {
                "ours": side(
                    f"BEGIN;\nSELECT set_tenant(('{PREFIX}' || :n)::uuid);\nCOMMIT;\n",
                    "PERFORM set_tenant(v_uuids[i]);",
                    commit=True,
                ),
                "plain": side(
                    f"BEGIN;\nSELECT set_config('my.x', '{PREFIX}' || :n, true);\nCOMMIT;\n",
                    "PERFORM set_config('my.x', v_tenants[i], true);",
                    commit=True,
                ),
            },
            [Against("plain", "`BEGIN; SELECT set_config('my.x', …, true); COMMIT`", 1.3)],
        ),
        Work(
            f"set-{name}",
            f"`SET app.current_tenant`, {words}",
            {
                "ours": side(
                    f"SET app.current_tenant = '{PREFIX}:n';\n",
                    "EXECUTE 'SET app.current_tenant = ''' || v_tenants[i] || '''';",
                    protocol="simple",
                ),
                "plain": side(
                    f"SELECT set_config('my.x', '{PREFIX}:n', false);\n",
                    "EXECUTE 'SELECT set_config(''my.x'', ''' || v_tenants[i] || ''', false)';",
                    protocol="simple",
                ),
            },
            [Against("plain", "`SELECT set_config('my.x', …, false)`, unprepared", 1.3)],
        ),
    ]


# The mode that counts each resource of bench/quota.sql.
STRICT, ESCROW, LEASED = "api_requests", "escrow_requests", "leased_requests"
BY_UPDATE = "PL/pgSQL by hand, one conditional UPDATE"
# No side pays for the ledger that another has written.
FOLDED = """
DO $$ BEGIN WHILE EXISTS (SELECT FROM tenant_rls.ledger) LOOP PERFORM pg_sleep(0.02); END LOOP; END $$;
VACUUM tenant_rls.ledger; VACUUM tenant_rls.usage; VACUUM hand_usage;
"""


def consuming(databases, script, loop, **more):
    """A side that takes units and commits each call."""
    return Side(
        databases.library,
        databases.quota(),
        script=script,
        loop=loop,
        declare="v_ok boolean;",
        before=FOLDED,
        # The loop commits each call, as pgbench does; waiting for the disk is not CPU.
        loop_options="-c synchronous_commit=off",
        commit=True,
        **more,
    )


def hot(databases, resource):
    """Calls for one tenant."""
    return consuming(
        databases,
        script=f"SELECT allowed FROM tenant_quota_consume('{resource}');\n",
        loop=f"SELECT q.allowed INTO v_ok FROM tenant_quota_consume('{resource}') AS q;",
        options=f"-c app.current_tenant={LARGE_TENANT}",
    )


def by_hand(databases):
    return consuming(
        databases,
        script="SELECT hand_consume('api_requests');\n",
        loop="SELECT hand_consume('api_requests') INTO v_ok;",
        options=f"-c my.tenant={LARGE_TENANT}",
    )


def spread(databases, resource):
    """Calls for a thousand tenants in turn, ours and by hand."""
    pick = f"\\set n random({FIRST}, {FIRST + 999})\n"
    return {
        "ours": consuming(
            databases,
            script=pick + f"BEGIN;\nSELECT set_tenant(('{PREFIX}' || :n)::uuid);\n"
            f"SELECT allowed FROM tenant_quota_consume('{resource}');\nCOMMIT;\n",
            loop=f"PERFORM set_tenant(('{PREFIX}' || {FIRST} + k * 7919 % 1000)::uuid);"
            f" SELECT q.allowed INTO v_ok FROM tenant_quota_consume('{resource}') AS q;",
        ),
        "plain": consuming(
            databases,
            script=pick + f"BEGIN;\nSELECT set_config('my.tenant', '{PREFIX}' || :n, true);\n"
            "SELECT hand_consume('api_requests');\nCOMMIT;\n",
            loop=f"PERFORM set_config('my.tenant', '{PREFIX}' || {FIRST} + k * 7919 % 1000, true);"
            " SELECT hand_consume('api_requests') INTO v_ok;",
        ),
    }


def consume(databases):
    ours = {"ours": hot(databases, STRICT), "plain": by_hand(databases)}
    field_form = {
        "ours": consuming(
            databases,
            script=f"SELECT (tenant_quota_consume('{STRICT}')).allowed;\n",
            loop=f"SELECT (tenant_quota_consume('{STRICT}')).allowed INTO v_ok;",
            options=f"-c app.current_tenant={LARGE_TENANT}",
        ),
        "plain": ours["plain"],
    }
    peer = [Against("plain", BY_UPDATE, 1.0)]
    text = "`tenant_quota_consume`, strict"
    return [
        Work("consume-hot-1", f"{text}, one tenant, 1 client", ours, peer),
        Work("consume-field-1", "`(tenant_quota_consume(…)).allowed`, strict, one tenant, 1 client", field_form, peer),
        Work("consume-hot-16", f"{text}, one tenant, 16 clients", ours, peer, clients=16, calls=0),
        Work("consume-spread-1", f"`set_tenant`, {text}, 1000 tenants, 1 client", spread(databases, STRICT), peer),
        Work(
            "consume-spread-16",
            f"`set_tenant`, {text}, 1000 tenants, 16 clients",
            spread(databases, STRICT),
            peer,
            clients=16,
            calls=0,
        ),
    ]


def escrow(databases):
    one = {"ours": hot(databases, ESCROW), "plain": by_hand(databases)}
    many = spread(databases, ESCROW)
    text = "`tenant_quota_consume`, escrow"

    def work(name, where, sides, rate, clients):
        words = f"{where}, {clients} client{'s' if clients > 1 else ''}"
        calls = 200_000 if clients == 1 else 0
        return Work(name, words, sides, [Against("plain", BY_UPDATE, rate=rate)], clients=clients, calls=calls, seconds=3)

    return [
        work("escrow-hot-1", f"{text}, one tenant", one, 1.0, 1),
        work("escrow-hot-16", f"{text}, one tenant", one, 5.0, 16),
        work("escrow-hot-64", f"{text}, one tenant", one, 6.0, 64),
        work("escrow-spread-1", f"`set_tenant`, {text}, 1000 tenants", many, 1.0, 1),
        work("escrow-spread-16", f"`set_tenant`, {text}, 1000 tenants", many, 1.0, 16),
    ]


def escrow_transaction(databases):
    insert = "INSERT INTO quota_orders (tenant_id, total) VALUES (:tenant, 12.50);\n"

    def side(call):
        return Side(
            databases.library,
            databases.quota(),
            script=f"BEGIN;\n{insert}{call}COMMIT;\n",
            options=f"-c app.current_tenant={LARGE_TENANT}",
            variables={"tenant": LARGE_TENANT},
            before=f"{FOLDED} TRUNCATE quota_orders;",
        )

    return Work(
        "escrow-order-16",
        "`BEGIN; INSERT; tenant_quota_consume; COMMIT`, escrow, one tenant, 16 clients",
        {
            "ours": side(f"SELECT allowed FROM tenant_quota_consume('{ESCROW}');\n"),
            "plain": side(""),
            "one": side("SELECT 1;\n"),
        },
        [
            Against("plain", "`BEGIN; INSERT; COMMIT`", rate=0.8),
            Against("one", "`BEGIN; INSERT; SELECT 1; COMMIT`"),
        ],
        clients=16,
        calls=0,
        seconds=3,
    )


def leased(databases):
    def side(function):
        return Side(
            databases.library,
            databases.quota(),
            script=f"SELECT allowed FROM {function}(resource => '{LEASED}');\n",
            loop=f"SELECT q.allowed INTO v_ok FROM {function}(resource => '{LEASED}') AS q;",
            declare="v_ok boolean;",
            options=f"-c app.current_tenant={LARGE_TENANT}",
            before=FOLDED,
        )

    sides = {"ours": side("tenant_quota_consume"), "plain": side("no_consume")}
    peer = [Against("plain", "a function in C that does nothing, of the same type", rate=0.85)]
    note = (
        "`leased-hot-*`: the peer, bench/no_consume.c, answers with a constant of its plan; it does not even make a row."
    )
    works = [
        Work(
            f"leased-hot-{clients}",
            f"`tenant_quota_consume`, leased, one tenant, {clients} client{'s' if clients > 1 else ''}",
            sides,
            peer,
            clients=clients,
            calls=200_000 if clients == 1 else 0,
            seconds=3,
        )
        for clients in (1, 16, 64)
    ]
    works[0].note = lambda: note
    return works


def by_client(databases, statement):
    """A side whose client is that of the Redis side."""
    return Consuming(databases.library, databases.quota(), statement)


def ours_by_client(databases, resource):
    return by_client(databases, f"SELECT allowed FROM tenant_quota_consume('{resource}')")


def leased_redis(databases):
    return Work(
        "leased-redis-16",
        "`tenant_quota_consume`, leased, one tenant, 16 clients",
        {
            "ours": ours_by_client(databases, LEASED),
            "redis": Consuming(databases.library, redis=databases.durable_redis()),
        },
        [Against("redis", "Redis, `EVAL` with `INCRBY` and a limit, `appendfsync everysec`", rate=1.0)],
        clients=16,
        calls=0,
        seconds=3,
    )


def leased_inside(databases):
    calls = 1_000_000
    spent = []

    def measure():
        options = f"-c app.current_tenant={LARGE_TENANT}"
        statement = f"SELECT count(tenant_quota_consume('{LEASED}')) FROM generate_series(1, {calls})"
        with Session(databases.library, databases.quota(), "bench_app", options) as session:
            # The lease grows with the rate.
            session.ask(statement)
            before, begin = session.cpu(), time.monotonic()
            session.ask(statement)
            spent.append(time.monotonic() - begin)
            return calls / (session.cpu() - before)

    def note():
        rate = f"{calls / statistics.median(spent):,.0f}".replace(",", " ")
        return f"`leased-inside`: of server CPU; by the clock, waits for the worker and for a processor included, {rate} a second."

    text = "`count(tenant_quota_consume(…)) FROM generate_series(…)`, leased, 1 client"
    return Rate("leased-inside", text, calls, measure, note)


def denied(databases):
    options = f"-c app.current_tenant={LARGE_TENANT}"

    def side(function):
        return Side(
            databases.library,
            databases.quota(),
            script=f"SELECT allowed FROM {function}('denied_requests');\n",
            loop=f"SELECT q.allowed INTO v_ok FROM {function}('denied_requests') AS q;",
            declare="v_ok boolean;",
            options=options,
            before=FOLDED,
        )

    def wal():
        sizes = []
        with Session(databases.library, databases.quota(), "bench_app", options) as session:
            # Others write now and then; calls that write would do so each time.
            for _ in range(5):
                before = session.ask("SELECT pg_current_wal_insert_lsn()")
                session.ask("DO $$ BEGIN FOR n IN 1..10000 LOOP PERFORM tenant_quota_try_consume('denied_requests'); COMMIT; END LOOP; END $$")
                sizes.append(int(session.ask(f"SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '{before}')")))
        return min(sizes)

    # What there is, for those that come.
    databases.library.sql(
        databases.quota(),
        "SELECT FROM tenant_quota_try_consume('denied_requests', 10)",
        options=options,
    )
    flood = Work(
        "denied",
        "`tenant_quota_try_consume`, escrow, denied, 16 clients",
        {"ours": side("tenant_quota_try_consume"), "check": side("tenant_quota_check")},
        [Against("check", "`tenant_quota_check`", rate=0.9)],
        clients=16,
    )
    return [flood, Wal("denied-wal", "10 000 calls of `tenant_quota_try_consume`, escrow, denied", wal)]


def history(databases):
    def sides(script, loop):
        return {
            name: Side(
                databases.library,
                databases.history(rows),
                script=script,
                loop=loop,
                declare="v_ok boolean; v_used bigint;",
                options=f"-c app.current_tenant={LARGE_TENANT}",
                loop_options="-c synchronous_commit=off",
                before="VACUUM tenant_rls.usage; VACUUM tenant_rls.ledger;",
                commit=True,
            )
            for name, rows in (("ours", HISTORY), ("small", 10_000))
        }

    rows = f"{HISTORY:,} rows of history".replace(",", " ")
    peer = [Against("small", "10 000 rows of history", 1.05, 1.05)]
    return [
        Work(
            "history-consume",
            f"`tenant_quota_consume`, escrow, {rows}",
            sides(
                "SELECT allowed FROM tenant_quota_consume('api_requests');\n",
                "SELECT q.allowed INTO v_ok FROM tenant_quota_consume('api_requests') AS q;",
            ),
            peer,
        ),
        Work(
            "history-usage",
            f"a row of `tenant_usage`, {rows}",
            sides(
                "SELECT used FROM tenant_usage WHERE resource = 'api_requests';\n",
                "SELECT u.used INTO v_used FROM tenant_usage AS u WHERE u.resource = 'api_requests';",
            ),
            peer,
            calls=50_000,
        ),
    ]


def rates(databases):
    return Rates(
        "quota-rates",
        "What a quota costs: calls a second",
        {
            "does nothing": by_client(databases, f"SELECT allowed FROM no_consume(resource => '{LEASED}')"),
            "leased": ours_by_client(databases, LEASED),
            "Redis, EVAL": Consuming(databases.library, redis=databases.durable_redis()),
            "escrow": ours_by_client(databases, ESCROW),
            "strict": ours_by_client(databases, STRICT),
            "by hand, UPDATE": by_client(databases, "SELECT hand_consume('api_requests')"),
        },
        (1, 4, 16, 64),
        "quota-rates.svg",
        seconds=3,
    )


def check(databases):
    def side(script, loop):
        return Side(
            databases.library,
            databases.quota(),
            script=script,
            loop=loop,
            declare="v_ok boolean; v_one int;",
            options=f"-c app.current_tenant={LARGE_TENANT}",
        )

    return Work(
        "check",
        "`tenant_quota_check`",
        {
            "ours": side(
                "SELECT allowed FROM tenant_quota_check('api_requests');\n",
                "SELECT q.allowed INTO v_ok FROM tenant_quota_check('api_requests') AS q;",
            ),
            # An empty FROM clause would take the executor's shortcut inside PL/pgSQL; INTO does not.
            "plain": side("SELECT 1;\n", "SELECT 1 INTO v_one;"),
        },
        [Against("plain", "`SELECT 1`, prepared", 1.5)],
    )


def feature(databases):
    def side(script, loop):
        return Side(
            databases.library,
            databases.features(),
            script=script,
            loop=loop,
            declare="v_value jsonb; v_reason text; v_one int;",
            options=f"-c app.current_tenant={LARGE_TENANT}",
        )

    # An empty FROM clause would take the executor's shortcut inside PL/pgSQL; INTO does not.
    one = side("SELECT 1;\n", "SELECT 1 INTO v_one;")
    peer = [Against("plain", "`SELECT 1`, prepared", 1.5)]
    asked = {
        "feature": ("`tenant_feature`, a share of 50 %, 50 features", "value, reason", "tenant_feature('f25')"),
        "feature-enabled": ("`tenant_feature_enabled`", "t", "tenant_feature_enabled('f25') AS t"),
        "setting": ("`tenant_setting`", "t", "tenant_setting('size') AS t"),
        "route": ("`tenant_route`", "deployment, image", "tenant_route()"),
    }
    return [
        Work(
            name,
            text,
            {
                "ours": side(
                    f"SELECT {columns} FROM {call};\n", f"PERFORM {columns} FROM {call};"
                ),
                "plain": one,
            },
            peer,
        )
        for name, (text, columns, call) in asked.items()
    ]


def cache(databases):
    database = databases.cache()
    server, redis = databases.library, databases.redis()

    def work(what, size, text):
        sides = {
            "ours": Calls(server, database, what=what, size=size),
            "redis": Calls(server, redis=redis, what=what, size=size),
            "table": Calls(server, database, PLAIN, what=what, size=size),
        }
        peers = [
            Against("redis", f"Redis, `{'GET' if what == 'get' else 'SETEX'}`", 1.25 if what == "get" else None),
            Against("table", "an unlogged table by hand, prepared"),
        ]
        if what == "get":
            # What is left of it when nothing is looked up: no function of a server like this can be faster.
            sides["true"] = Consuming(server, database, "SELECT true")
            peers.append(Against("true", "`SELECT true`, prepared"))
        return Work(f"cache-{what}-{size}", text, sides, peers, clients=TENANTS, calls=0)

    return [
        work(what, size, f"`tenant_cache_{what}`, {text}, {TENANTS} clients")
        for what in ("get", "set")
        for size, text in ((100, "100 B"), (10000, "10 kB"))
    ]


# What a busy machine may add to the slowest of thousands of calls. One that waits for the invalidation takes 300 ms.
PATIENCE = 4


def cache_invalidate(databases):
    server, redis = databases.library, databases.redis()
    sides = {
        "ours": Invalidation(server, databases.cache_of_many()),
        "redis": Invalidation(server, redis=redis),
    }
    databases.progress(f"filling Redis with {MANY_KEYS} keys")
    sides["redis"].do("fill-many", clients=1, keys=MANY_KEYS)

    def waits():
        meanwhile, without = sides["ours"].wait()
        return Line(
            "cache-invalidate",
            "the slowest get or set of other clients while an invalidation is open, of its tenant and of another",
            "the same without it",
            None,
            None,
            None,
            None,
            value=f"{meanwhile:.1f} ms / {without:.1f} ms",
            target=f"≤ {PATIENCE} times",
            met=meanwhile <= PATIENCE * without,
        )

    def note():
        meanwhile, without = sides["redis"].wait()
        return (
            "`cache-invalidate`: an invalidation here is a transaction that stays open for 300 ms more, of which its time"
            " leaves those out. The slowest get or set of other clients of Redis, while it answers `KEYS` and `DEL`, took"
            f" {meanwhile:.1f} ms, and {without:.1f} ms without (medians of the rounds)."
        )

    return Work(
        "cache-invalidate",
        f"`tenant_cache_invalidate`, 1 000 keys of {MANY_KEYS:,} of a tenant".replace(",", " "),
        sides,
        [Against("redis", "Redis, `KEYS` and `DEL`", 0.1)],
        clients=1,
        calls=0,
        note=note,
        also=waits,
    )


def unprotected(databases):
    scripts = {
        "select": (
            "\\set aid random(1, 1000000)\nSELECT balance FROM accounts WHERE aid = :aid;\n",
            "SELECT balance INTO v_balance FROM accounts WHERE aid = 1 + k * 7919 % 1000000;",
        ),
        "tpcb": (
            "\\set aid random(1, 1000000)\n\\set bid random(1, 10)\n\\set tid random(1, 100)\n"
            "\\set delta random(-5000, 5000)\n"
            "BEGIN;\n"
            "UPDATE accounts SET balance = balance + :delta WHERE aid = :aid;\n"
            "SELECT balance FROM accounts WHERE aid = :aid;\n"
            "UPDATE tellers SET balance = balance + :delta WHERE tid = :tid;\n"
            "UPDATE branches SET balance = balance + :delta WHERE bid = :bid;\n"
            "INSERT INTO history (tid, bid, aid, delta, mtime)"
            " VALUES (:tid, :bid, :aid, :delta, CURRENT_TIMESTAMP);\n"
            "COMMIT;\n",
            "UPDATE accounts SET balance = balance + 1 WHERE aid = 1 + k * 7919 % 1000000;"
            " SELECT balance INTO v_balance FROM accounts WHERE aid = 1 + k * 7919 % 1000000;"
            " UPDATE tellers SET balance = balance + 1 WHERE tid = 1 + k % 100;"
            " UPDATE branches SET balance = balance + 1 WHERE bid = 1 + k % 10;"
            " INSERT INTO history (tid, bid, aid, delta, mtime) VALUES (1, 1, k, 1, CURRENT_TIMESTAMP);",
        ),
    }

    def side(server, kind):
        script, loop = scripts[kind]
        return Side(
            server,
            databases.unprotected(server),
            script=script,
            loop=loop,
            declare="v_balance int;",
            loop_options="-c synchronous_commit=off",
            before="TRUNCATE history; VACUUM branches; VACUUM tellers; CHECKPOINT;" if kind == "tpcb" else "",
            commit=kind == "tpcb",
        )

    def sides(kind):
        return {"ours": side(databases.library, kind), "plain": side(databases.plain, kind)}

    peer = [Against("plain", "a server without the library", 1.01)]
    return [
        Work(
            "unprotected-select",
            "pgbench's SELECT, unprotected, library preloaded",
            sides("select"),
            peer,
            rounds=3,
            restarts=True,
        ),
        Work(
            "unprotected-tpcb",
            "pgbench's TPC-B, unprotected, library preloaded",
            sides("tpcb"),
            peer,
            calls=20_000,
            rounds=3,
            restarts=True,
        ),
    ]


def ddl(databases):
    def side(kind, create, drop):
        return Side(
            databases.library,
            databases.ddl(kind),
            script=f"BEGIN;\n{create};\n{drop};\nCOMMIT;\n",
            loop=f"{create}; {drop};",
            protocol="simple",
            loop_options="-c synchronous_commit=off",
            before="VACUUM;",
            commit=True,
        )

    def work(name, text, create, drop):
        sides = {peer: side(kind, create, drop) for peer, kind in
                 (("ours", "guard"), ("plain", "unguarded"), ("none", "none"))}
        peers = [Against("plain", "the guard's event triggers disabled", 1.10, 1.10),
                 Against("none", "a database without the extension")]
        return Work(name, text, sides, peers, calls=4000)

    return [
        work("ddl-table", "`CREATE TABLE`, `DROP TABLE`, 100 protected tables beside it",
             "CREATE TABLE fresh (id int PRIMARY KEY, note text)", "DROP TABLE fresh"),
        work("ddl-alter", "`ALTER TABLE … ADD COLUMN`, `DROP COLUMN`, of an unprotected table",
             "CREATE TABLE fresh (id int); ALTER TABLE fresh ADD COLUMN note text; ALTER TABLE fresh DROP COLUMN note", "DROP TABLE fresh"),
    ]


def audit(databases):
    database, found = databases.protected(1000), []

    def measure():
        with Session(databases.library, database, "postgres") as session:
            begin = time.monotonic()
            found.append(session.ask("SELECT count(*) FROM tenant_audit()"))
            return time.monotonic() - begin

    def note():
        return f"`audit-1000`: in a session that has just begun; {found[-1]} findings."

    return Elapsed("audit-1000", "`tenant_audit()`, 1 000 protected tables", 2, measure, note)


def memory(databases):
    def growth(call):
        with Session(databases.library, databases.tenants(1_000_000), "bench_app") as session:

            def touch(tenants):
                session.ask(
                    f"DO $$ DECLARE t text; BEGIN FOR n IN 1..{tenants} LOOP"
                    f" t := '{PREFIX}' || {FIRST - 1} + n; {call} END LOOP; END $$"
                )

            touch(10)
            before = session.private_bytes()
            touch(10_000)
            return session.private_bytes() - before

    def measure():
        ours = growth("PERFORM set_tenant(t::uuid, false); PERFORM allowed FROM tenant_quota_check('api_requests');")
        return ours, growth("PERFORM set_config('my.x', t, false); PERFORM 1 FROM generate_series(1, 1);")

    return Memory(
        "memory",
        "memory of a backend after touching 10 000 tenants (`set_tenant`, `tenant_quota_check`)",
        "before",
        8 << 20,
        measure,
    )


def memory_of_keys(databases):
    """One backend takes a unit of each of so many keys, more than shared memory has room for."""
    server, database = databases.library, databases.tenants(1_000_000)
    free = "SELECT pg_size_pretty(size) FROM pg_shmem_allocations WHERE name IS NULL"
    frees = []

    def growth(call):
        with Session(server, database, "bench_app") as session:

            def touch(first, last):
                session.ask(
                    f"DO $$ DECLARE t text; BEGIN FOR n IN {first}..{last} LOOP"
                    f" t := '{PREFIX}' || {FIRST - 1} + n; {call}"
                    " IF n % 1000 = 0 THEN COMMIT; END IF; END LOOP; END $$"
                )

            touch(1, 1000)
            before = session.private_bytes()
            touch(1001, TOUCHED)
            return session.private_bytes() - before

    def measure():
        frees.append(server.sql(database, free))
        ours = growth("PERFORM set_tenant(t::uuid, false); PERFORM allowed FROM tenant_quota_consume('api_requests');")
        frees.append(server.sql(database, free))
        return ours, growth("PERFORM set_config('my.x', t, false); PERFORM 1 FROM generate_series(1, 1);")

    def note():
        keys = server.sql(database, "SHOW tenant_rls.quota_keys")
        return f"Shared memory has room for {keys} keys; of what the server has in reserve, {frees[0]} were free before and {frees[1]} after."

    return Memory(
        "memory-keys",
        f"memory of a backend after `tenant_quota_consume` of {TOUCHED:,} keys, escrow".replace(",", " "),
        "before",
        8 << 20,
        measure,
        once=True,
        note=note,
    )


# Name of a group → its works; a group's databases are only made when one of its names is wanted.
GROUPS: dict[str, tuple[list[str], Callable[[Databases], list]]] = {
    "read": (
        ["read-point", "read-range", "read-scan", "read-join"],
        lambda d: [point(d), newest(d), scan(d), join(d)],
    ),
    "insert": (["insert", "insert-default"], insert),
    "set-10": (["set_tenant-10", "set_tenant-local-10", "set-10"], lambda d: set_tenant(d, 10)),
    "set-1m": (["set_tenant-1m", "set_tenant-local-1m", "set-1m"], lambda d: set_tenant(d, 1_000_000)),
    "consume": (
        ["consume-hot-1", "consume-field-1", "consume-hot-16", "consume-spread-1", "consume-spread-16"],
        consume,
    ),
    "escrow": (["escrow-hot-1", "escrow-hot-16", "escrow-hot-64", "escrow-spread-1", "escrow-spread-16"], escrow),
    "escrow-order": (["escrow-order-16"], lambda d: [escrow_transaction(d)]),
    "leased": (["leased-hot-1", "leased-hot-16", "leased-hot-64"], leased),
    "leased-redis": (["leased-redis-16"], lambda d: [leased_redis(d)]),
    "leased-inside": (["leased-inside"], lambda d: [leased_inside(d)]),
    "denied": (["denied", "denied-wal"], denied),
    "history": (["history-consume", "history-usage"], history),
    "quota-rates": (["quota-rates"], lambda d: [rates(d)]),
    "check": (["check"], lambda d: [check(d)]),
    "feature": (["feature", "feature-enabled", "setting", "route"], feature),
    "cache": (["cache-get-100", "cache-get-10000", "cache-set-100", "cache-set-10000"], cache),
    "cache-invalidate": (["cache-invalidate"], lambda d: [cache_invalidate(d)]),
    "unprotected": (["unprotected-select", "unprotected-tpcb"], unprotected),
    "ddl": (["ddl-table", "ddl-alter"], ddl),
    "audit": (["audit-1000"], lambda d: [audit(d)]),
    "memory": (["memory"], lambda d: [memory(d)]),
    "memory-keys": (["memory-keys"], lambda d: [memory_of_keys(d)]),
}
