"""What is measured, against what, and the targets; and the databases that it needs."""

import hashlib
import os
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cache import PLAIN, TENANTS, Calls, Invalidation, Redis
from harness import Server, Session, Side

HERE = Path(__file__).resolve().parent

# Tenant n is this with 100000000000 + n in place of the rest: pgbench can only make numbers.
PREFIX = "00000000-0000-4000-8000-"
FIRST = 100000000001
LARGE_TENANT = f"{PREFIX}{FIRST}"
CUSTOMER = hashlib.md5(b"customer 1").hexdigest()

# Keys of one tenant's cache, of which a thousand are invalidated.
MANY_KEYS = int(os.environ.get("TENANT_RLS_BENCH_KEYS", "10000000"))

COMMON_SETTINGS = [
    "shared_buffers = '1500MB'",
    "max_wal_size = '8GB'",
    "checkpoint_timeout = '1h'",
    "max_connections = 50",
    "fsync = on",
    "synchronous_commit = on",
    # Sums of many short runs; a helper process would also hide CPU from us.
    "max_parallel_workers_per_gather = 0",
    "jit = off",
]


@dataclass
class Against:
    """A peer and what is asked of us: at most so many times its time and its server CPU."""

    side: str
    text: str
    time: float | None = None
    cpu: float | None = None


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
    restarts: bool = False
    # Values of the script's variables, where the sides' plans are to be compared.
    sample: dict[str, str] | None = None
    # What else is to be said, when all rounds are over.
    note: Callable[[], str] | None = None


@dataclass
class Memory:
    """Growth of a backend, in bytes; `measure` gives ours and, to see what the harness itself costs, the peer's."""

    name: str
    text: str
    peer: str
    at_most: int
    measure: Callable[[], tuple[int, int]]


class Databases:
    """Makes each database when it is first asked for."""

    def __init__(self, library: Server, plain: Server, keep: bool, progress):
        self.library = library
        self.plain = plain
        self.keep = keep
        self.progress = progress
        self.ready = set()
        self.made_of = ""
        self.running_redis = None

    def _origin(self):
        """Tells databases of one extension and one version of these files from those of another."""
        if not self.made_of:
            files = sorted(HERE.glob("*.sql")) + [Path(__file__), *self.library.extension_scripts()]
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
            server.sql(name, (HERE / "quota.sql").read_text())
            server.sql(name, "GRANT SELECT, INSERT, UPDATE, DELETE ON hand_limits, hand_usage TO bench_app")

        return self._make("bench_quota", make)

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
        if not self.running_redis:
            self.running_redis = Redis()
        return self.running_redis

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


def consume(databases):
    database = databases.quota()
    clean = "VACUUM tenant_rls.usage; VACUUM hand_usage;"
    # The loop commits each call, as pgbench does; waiting for the disk is not CPU.
    loop_options = "-c synchronous_commit=off"
    hot = {
        "ours": Side(
            databases.library,
            database,
            script="SELECT allowed FROM tenant_quota_consume('api_requests');\n",
            loop="SELECT q.allowed INTO v_ok FROM tenant_quota_consume('api_requests') AS q;",
            options=f"-c app.current_tenant={LARGE_TENANT}",
        ),
        "plain": Side(
            databases.library,
            database,
            script="SELECT hand_consume('api_requests');\n",
            loop="SELECT hand_consume('api_requests') INTO v_ok;",
            options=f"-c my.tenant={LARGE_TENANT}",
        ),
    }
    field_form = {
        "ours": Side(
            databases.library,
            database,
            script="SELECT (tenant_quota_consume('api_requests')).allowed;\n",
            loop="SELECT (tenant_quota_consume('api_requests')).allowed INTO v_ok;",
            options=f"-c app.current_tenant={LARGE_TENANT}",
        ),
        "plain": hot["plain"],
    }
    pick = f"\\set n random({FIRST}, {FIRST + 999})\n"
    spread = {
        "ours": Side(
            databases.library,
            database,
            script=pick + f"BEGIN;\nSELECT set_tenant(('{PREFIX}' || :n)::uuid);\n"
            "SELECT allowed FROM tenant_quota_consume('api_requests');\nCOMMIT;\n",
            loop=f"PERFORM set_tenant(('{PREFIX}' || {FIRST} + k * 7919 % 1000)::uuid);"
            " SELECT q.allowed INTO v_ok FROM tenant_quota_consume('api_requests') AS q;",
        ),
        "plain": Side(
            databases.library,
            database,
            script=pick + f"BEGIN;\nSELECT set_config('my.tenant', '{PREFIX}' || :n, true);\n"
            "SELECT hand_consume('api_requests');\nCOMMIT;\n",
            loop=f"PERFORM set_config('my.tenant', '{PREFIX}' || {FIRST} + k * 7919 % 1000, true);"
            " SELECT hand_consume('api_requests') INTO v_ok;",
        ),
    }
    for side in [*hot.values(), *field_form.values(), *spread.values()]:
        side.declare = "v_ok boolean;"
        side.before = clean
        side.loop_options = loop_options
        side.commit = True

    peer = [Against("plain", "PL/pgSQL by hand, one conditional UPDATE", 1.0)]
    return [
        Work("consume-hot-1", "`tenant_quota_consume`, one tenant, 1 client", hot, peer),
        Work("consume-field-1", "`(tenant_quota_consume(…)).allowed`, one tenant, 1 client", field_form, peer),
        Work("consume-hot-16", "`tenant_quota_consume`, one tenant, 16 clients", hot, peer, clients=16, calls=0),
        Work("consume-spread-1", "`set_tenant`, `tenant_quota_consume`, 1000 tenants, 1 client", spread, peer),
        Work(
            "consume-spread-16",
            "`set_tenant`, `tenant_quota_consume`, 1000 tenants, 16 clients",
            spread,
            peer,
            clients=16,
            calls=0,
        ),
    ]


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
        return Work(
            f"cache-{what}-{size}",
            text,
            {
                "ours": Calls(server, database, what=what, size=size),
                "redis": Calls(server, redis=redis, what=what, size=size),
                "table": Calls(server, database, PLAIN, what=what, size=size),
            },
            [
                Against("redis", f"Redis, `{'GET' if what == 'get' else 'SETEX'}`", 1.25 if what == "get" else None),
                Against("table", "an unlogged table by hand, prepared"),
            ],
            clients=TENANTS,
            calls=0,
        )

    return [
        work(what, size, f"`tenant_cache_{what}`, {text}, {TENANTS} clients")
        for what in ("get", "set")
        for size, text in ((100, "100 B"), (10000, "10 kB"))
    ]


def cache_invalidate(databases):
    waits = {"ours": [], "redis": []}
    server, redis = databases.library, databases.redis()
    sides = {
        "ours": Invalidation(server, databases.cache_of_many(), worst=waits["ours"]),
        "redis": Invalidation(server, redis=redis, worst=waits["redis"]),
    }
    databases.progress(f"filling Redis with {MANY_KEYS} keys")
    sides["redis"].do("fill-many", clients=1, keys=MANY_KEYS)

    def note():
        worst = {name: statistics.median(samples) / 1000 for name, samples in waits.items()}
        return (
            f"`cache-invalidate`: the slowest get of another client meanwhile took {worst['ours']:.1f} ms"
            f" here and {worst['redis']:.1f} ms in Redis (medians of the rounds)."
        )

    return Work(
        "cache-invalidate",
        f"`tenant_cache_invalidate`, 1 000 keys of {MANY_KEYS:,} of a tenant".replace(",", " "),
        sides,
        [Against("redis", "Redis, `KEYS` and `DEL`", 0.1)],
        clients=1,
        calls=0,
        note=note,
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
    "check": (["check"], lambda d: [check(d)]),
    "feature": (["feature", "feature-enabled", "setting", "route"], feature),
    "cache": (["cache-get-100", "cache-get-10000", "cache-set-100", "cache-set-10000"], cache),
    "cache-invalidate": (["cache-invalidate"], lambda d: [cache_invalidate(d)]),
    "unprotected": (["unprotected-select", "unprotected-tpcb"], unprotected),
    "ddl": (["ddl-table", "ddl-alter"], ddl),
    "memory": (["memory"], lambda d: [memory(d)]),
}
