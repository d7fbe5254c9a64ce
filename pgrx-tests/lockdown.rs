//! tenant_lockdown: each channel open before, closed after, and as it was when taken back.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use postgres::Client;

use crate::harness::{A, B, Db, Session, refuses, waiting};

/// What a role of an application can do beside the policies, by channel. None of it leaves anything behind.
const CHANNELS: &[(&str, &[&str])] = &[
    ("lock", &["DO $$ BEGIN LOCK TABLE orders IN SHARE MODE; END $$"]),
    (
        "explain",
        &[
            "EXPLAIN SELECT * FROM orders",
            "EXPLAIN (ANALYZE) SELECT * FROM orders WHERE id > 0",
            "DO $$ BEGIN EXECUTE 'EXPLAIN SELECT * FROM orders'; END $$",
            "BEGIN; SET LOCAL debug_print_plan = on; SELECT * FROM orders; ROLLBACK",
        ],
    ),
    ("notify", &["LISTEN channel", "NOTIFY channel", "SELECT pg_notify('channel', 'text')"]),
    ("advisory", &["SELECT pg_advisory_xact_lock(1)", "SELECT pg_try_advisory_xact_lock_shared(1, 2)"]),
    (
        "sizes",
        &[
            "SELECT pg_relation_size('orders')",
            "SELECT pg_total_relation_size('orders')",
            "SELECT pg_database_size(current_database())",
        ],
    ),
    (
        "statistics",
        &[
            "SELECT query FROM pg_stat_activity",
            "SELECT n_live_tup FROM pg_stat_user_tables",
            "SELECT pg_stat_get_tuples_inserted('orders'::regclass)",
            "SELECT pg_current_wal_lsn()",
        ],
    ),
    ("locks", &["TABLE pg_locks", "TABLE pg_prepared_xacts", "SELECT pg_blocking_pids(1)"]),
    ("sessions", &["SELECT pg_cancel_backend(0)", "SELECT pg_terminate_backend(0)"]),
    ("large objects", &["SELECT lo_unlink(lo_create(0))", "SELECT lo_unlink(lo_from_bytea(0, 'bytes'))"]),
    ("temporary", &["CREATE TEMPORARY TABLE passing (); DROP TABLE passing"]),
    ("schema", &["CREATE FUNCTION own() RETURNS int RETURN 1; DROP FUNCTION own()"]),
];

/// Everything of the catalogs that a lockdown could touch.
fn privileges(admin: &mut Client) -> BTreeSet<String> {
    let facts: String = admin.one(
        "SELECT string_agg(fact, E'\\n' ORDER BY fact) FROM (
             SELECT format('%s %s', p.oid::regprocedure, coalesce(p.proacl::text, '-')) AS fact FROM pg_proc AS p
             UNION ALL SELECT format('%s %s', nspname, coalesce(nspacl::text, '-')) FROM pg_namespace WHERE nspname !~ '^pg_(toast_)?temp_'
             UNION ALL SELECT format('%s %s', datname, coalesce(datacl::text, '-'))
             FROM pg_database WHERE datname = current_database()
             UNION ALL SELECT format('init %s', i) FROM pg_init_privs AS i
             UNION ALL SELECT format('depend %s', d) FROM pg_shdepend AS d, pg_database AS b
             WHERE b.datname = current_database()
             AND (d.dbid = b.oid OR (d.dbid = 0 AND d.classid = 'pg_database'::regclass AND d.objid = b.oid))
             UNION ALL SELECT format('set %s', s) FROM pg_db_role_setting AS s, pg_database AS b
             WHERE s.setdatabase = b.oid AND b.datname = current_database()
             UNION ALL SELECT format('locked %s', l) FROM tenant_rls.lockdowns AS l) AS facts",
    );
    facts.lines().map(String::from).collect()
}

/// Says what differs, which are a few of thousands of lines.
#[track_caller]
fn assert_same(before: &BTreeSet<String>, after: &BTreeSet<String>) {
    let differing: Vec<_> = before.symmetric_difference(after).collect();
    assert!(differing.is_empty(), "{differing:#?}");
}

/// A database in which everything is open: upgraded ones have CREATE on public for everybody.
fn open() -> Db {
    let db = Db::with_orders();
    db.admin().run("GRANT CREATE ON SCHEMA public TO PUBLIC");
    db
}

/// In the session of an application that was open before, as in one that comes later.
#[test]
fn each_channel_is_open_then_closed_then_open() {
    let db = open();
    let (mut admin, mut app) = (db.admin(), db.connect_as(&db.app(), A));
    let before = privileges(&mut admin);
    let open = |app: &mut Client| CHANNELS.iter().flat_map(|c| c.1).for_each(|sql| app.run(sql));
    open(&mut app);
    admin.run("SELECT * FROM tenant_lockdown(true)");
    for mut app in [app, db.connect_as(&db.app(), A)] {
        for (channel, statements) in CHANNELS {
            for sql in *statements {
                assert_eq!(app.fails(sql), "42501", "{channel}: {sql}");
                app.run("ROLLBACK");
            }
        }
        app.run("DO $$ BEGIN LOCK TABLE orders IN ROW EXCLUSIVE MODE; END $$; UNLISTEN *");
        assert_eq!(app.one::<i64>("SELECT count(*) FROM orders"), 2);
    }
    admin.run("SELECT * FROM tenant_lockdown_undo(true)");
    assert_same(&before, &privileges(&mut admin));
    open(&mut db.connect_as(&db.app(), A));
}

/// Access lists that are not the server's default come back too.
#[test]
fn access_lists_come_back_byte_for_byte() {
    let db = open();
    let (mut admin, role) = (db.admin(), db.role_name("role"));
    db.role(&role, "NOLOGIN");
    admin.run(&format!(
        "GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO {role} WITH GRANT OPTION;
         GRANT EXECUTE ON FUNCTION pg_relation_size(regclass), pg_cancel_backend(int) TO pg_monitor, pg_signal_backend, {role};
         REVOKE EXECUTE ON FUNCTION lo_create(oid) FROM PUBLIC; GRANT EXECUTE ON FUNCTION lo_open(oid, int) TO PUBLIC;
         GRANT TEMPORARY, CREATE ON DATABASE {} TO {role}; CREATE SCHEMA own; GRANT CREATE ON SCHEMA own TO {role}, PUBLIC",
        db.name()
    ));
    let before = privileges(&mut admin);
    admin.run("SELECT * FROM tenant_lockdown(true)");
    assert!(privileges(&mut admin) != before);
    admin.run("SELECT * FROM tenant_lockdown(true); SELECT * FROM tenant_lockdown_undo(true)");
    assert_same(&before, &privileges(&mut admin));
}

/// Without `apply` both functions only say what they would do: nothing after it was done.
#[test]
fn asking_changes_nothing() {
    let db = open();
    let mut admin = db.admin();
    let before = privileges(&mut admin);
    let steps = |admin: &mut Client, call: &str| admin.rows(&format!("SELECT * FROM {call}")).len();
    assert_eq!(steps(&mut admin, "tenant_lockdown()"), 10);
    assert_eq!(steps(&mut admin, "tenant_lockdown_undo()"), 0);
    assert_same(&before, &privileges(&mut admin));
    assert_eq!(steps(&mut admin, "tenant_lockdown(true)"), 10);
    let locked = privileges(&mut admin);
    assert_eq!(steps(&mut admin, "tenant_lockdown()"), 0);
    assert!(steps(&mut admin, "tenant_lockdown_undo()") > 0);
    assert_same(&locked, &privileges(&mut admin));
}

/// What an administrator has granted meanwhile stays.
#[test]
fn undo_keeps_what_others_have_granted() {
    let db = open();
    let (mut admin, role) = (db.admin(), db.role_name("role"));
    db.role(&role, "LOGIN");
    let public = "SELECT EXISTS (SELECT FROM pg_proc, aclexplode(proacl) AS g WHERE proname = 'pg_notify' AND grantee = 0)";
    admin.run(&format!(
        "SELECT * FROM tenant_lockdown(true); GRANT EXECUTE ON FUNCTION pg_notify(text, text) TO {role}"
    ));
    assert!(!admin.one::<bool>(public));
    db.connect(&role).run("SELECT pg_notify('channel', 'text')");
    admin.run("SELECT * FROM tenant_lockdown_undo(true)");
    assert!(admin.one::<bool>(public));
    admin.run("REVOKE EXECUTE ON FUNCTION pg_notify(text, text) FROM PUBLIC");
    db.connect(&role).run("SELECT pg_notify('channel', 'text')");
}

/// Monitoring and maintenance go on.
#[test]
fn those_who_watch_keep_what_they_need() {
    let db = open();
    let (mut admin, monitor, signaller) = (db.admin(), db.role_name("monitor"), db.role_name("signaller"));
    db.role(&monitor, "LOGIN IN ROLE pg_monitor");
    db.role(&signaller, "LOGIN IN ROLE pg_signal_backend");
    admin.run("SELECT * FROM tenant_lockdown(true)");
    let mut monitor = db.connect(&monitor);
    for channel in ["sizes", "statistics", "locks", "explain"] {
        for sql in CHANNELS.iter().filter(|c| c.0 == channel).flat_map(|c| c.1) {
            assert_ne!(
                monitor.attempt(sql.replace("orders", "pg_class").as_str()).as_deref(),
                Some("42501"),
                "{sql}"
            );
        }
    }
    assert_eq!(monitor.fails("SELECT pg_cancel_backend(0)"), "42501");
    db.connect(&signaller).run("SELECT pg_cancel_backend(0)");
    admin.run("EXPLAIN SELECT * FROM pg_class; LISTEN channel; BEGIN; LOCK TABLE orders; COMMIT");
}

/// Commands are refused to whoever can act for a tenant, whatever role it has taken for the moment.
#[test]
fn another_role_of_the_session_does_not_help() {
    let db = open();
    let [apps, others, login] = ["apps", "others", "login"].map(|name| db.role_name(name));
    db.role(&apps, "NOLOGIN");
    db.role(&others, "NOLOGIN");
    db.role(&login, &format!("LOGIN NOINHERIT IN ROLE {apps}, {others}"));
    let mut admin = db.admin();
    admin.run(&format!(
        "GRANT SELECT, UPDATE ON orders TO {others}; SELECT tenant_grant('{apps}', '{A}');
         CREATE FUNCTION locks() RETURNS void LANGUAGE plpgsql SECURITY DEFINER AS 'BEGIN LOCK TABLE orders; END';
         SELECT * FROM tenant_lockdown(true)"
    ));
    let lock = "DO $$ BEGIN LOCK TABLE orders; END $$";
    let mut session = db.connect(&login);
    session.run(&format!("SET ROLE {others}"));
    refuses(&mut session, &[(lock, "42501"), ("EXPLAIN SELECT 1", "42501"), ("LISTEN channel", "42501")]);
    // A function of a superuser has the superuser's rights, here as everywhere.
    session.run("SELECT locks()");
    admin.run(&format!("SELECT tenant_revoke('{apps}', '{A}')"));
    session.run(lock);
    admin.run(&format!("SELECT tenant_grant('{apps}', '{B}')"));
    assert_eq!(session.fails(lock), "42501");
}

/// A transaction at REPEATABLE READ that locks first sees what was committed until then.
#[test]
fn a_lock_takes_no_snapshot() {
    let db = open();
    let (mut admin, owner) = (db.admin(), db.role_name("owner"));
    db.role(&owner, "LOGIN");
    admin.run(&format!(
        "CREATE TABLE plain (id int); ALTER TABLE plain OWNER TO {owner}; SELECT * FROM tenant_lockdown(true)"
    ));
    let mut session = db.connect(&owner);
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    session.run("LOCK TABLE plain IN SHARE UPDATE EXCLUSIVE MODE");
    admin.run("INSERT INTO plain VALUES (1)");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM plain"), 1);
    admin.run("INSERT INTO plain VALUES (2)");
    assert_eq!(session.one::<i64>("SELECT count(*) FROM plain"), 1);
    session.run("COMMIT");
}

/// Only a superuser locks a database down, and opens it.
#[test]
fn an_application_cannot_undo() {
    let db = open();
    let (mut admin, mut app) = (db.admin(), db.connect(&db.app()));
    admin.run("SELECT * FROM tenant_lockdown(true)");
    refuses(
        &mut app,
        &[
            ("SELECT * FROM tenant_lockdown_undo(true)", "42501"),
            ("SELECT * FROM tenant_lockdown(true)", "42501"),
            ("DELETE FROM tenant_rls.lockdowns", "42501"),
        ],
    );
    admin.run("SELECT * FROM tenant_lockdown_undo(true)");
}

/// What the server refuses to the application after it has waited for a lock that stops others.
const REFUSED: &[&str] = &[
    "CREATE RULE r AS ON INSERT TO orders DO NOTHING",
    "CREATE TRIGGER t BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE TABLE mine.r (id int REFERENCES orders)",
    "CREATE TEMPORARY TABLE r (id int REFERENCES orders)",
    "ALTER TABLE mine.t ADD FOREIGN KEY (id) REFERENCES orders",
    "ALTER TABLE mine.t ADD COLUMN o int REFERENCES orders",
    "ALTER TABLE mine.parent ATTACH PARTITION orders FOR VALUES FROM (1) TO (9)",
    "ALTER TABLE mine.parent DETACH PARTITION orders",
    "ALTER TABLE mine.parent DETACH PARTITION orders FINALIZE",
    "ALTER INDEX mine.parent_pkey ATTACH PARTITION orders_pkey",
    "ALTER INDEX orders_pkey DEPENDS ON EXTENSION plpgsql",
    "CREATE TABLE mine.p PARTITION OF days FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')",
];

/// With a lockdown and without: while one session of A uses the tables and another tries such a command, B works.
#[test]
fn refused_commands_stop_nobody() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!(
        "CREATE TABLE days (tenant_id uuid NOT NULL, day date NOT NULL) PARTITION BY RANGE (day);
         CREATE TABLE days_2026 PARTITION OF days FOR VALUES FROM ('2026-01-01') TO ('2027-01-01');
         SELECT tenant_protect('days'); GRANT INSERT ON days TO {app};
         CREATE SCHEMA mine AUTHORIZATION {app}; SET ROLE {app};
         CREATE TABLE mine.parent (id int PRIMARY KEY) PARTITION BY RANGE (id); CREATE TABLE mine.t (id int)"
    ));
    let works = |id: i32| {
        format!("INSERT INTO orders (id) VALUES ({id}); INSERT INTO days (day) VALUES ('2026-05-01')")
    };
    for locked in [false, true] {
        if locked {
            db.admin().run("SELECT * FROM tenant_lockdown(true)");
        }
        let mut user = db.connect_as(&app, A);
        user.run(&format!("BEGIN; {}", works(100)));
        let mut b = db.connect_as(&app, B);
        b.run("SET lock_timeout = '2s'");
        for sql in REFUSED {
            let mut attacker = db.connect_as(&app, A);
            attacker.run("SET lock_timeout = '5s'");
            let pid: i32 = attacker.one("SELECT pg_backend_pid()");
            let attempt = thread::spawn(move || attacker.attempt(sql));
            let mut admin = db.admin();
            while !attempt.is_finished() && !waits(&mut admin, pid) {
                thread::sleep(Duration::from_millis(5));
            }
            assert_eq!(b.attempt(&format!("BEGIN; {}", works(200))), None, "B, beside {sql}");
            b.run("ROLLBACK");
            assert_eq!(attempt.join().expect("the attempt").as_deref(), Some("42501"), "{sql}");
        }
    }
}

fn waits(admin: &mut Client, pid: i32) -> bool {
    admin.one(&format!(
        "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid} AND wait_event_type = 'Lock')"
    ))
}

/// Owners, those who were granted the privilege, and commands that have nothing to do: all as without the library.
#[test]
fn commands_that_are_allowed_run() {
    let db = Db::with_orders();
    let owner = db.role_name("owner");
    db.role(&owner, "LOGIN");
    let trigger = "FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()";
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE SCHEMA work AUTHORIZATION {owner}; ALTER ROLE {owner} SET search_path = work, public;
         CREATE TABLE shared (id int PRIMARY KEY, other int UNIQUE); GRANT TRIGGER, REFERENCES (id) ON shared TO {owner};
         CREATE TABLE theirs (id int PRIMARY KEY) PARTITION BY RANGE (id)"
    ));
    let mut session = db.connect(&owner);
    for sql in [
        "CREATE TABLE parent (id int PRIMARY KEY) PARTITION BY RANGE (id)",
        "CREATE TABLE one PARTITION OF parent FOR VALUES FROM (1) TO (2)",
        "CREATE TABLE two (id int PRIMARY KEY)",
        "ALTER TABLE parent ATTACH PARTITION two FOR VALUES FROM (2) TO (3)",
        "ALTER TABLE parent DETACH PARTITION two",
        "CREATE TABLE child (id int REFERENCES two, two int)",
        "ALTER TABLE child ADD COLUMN three int REFERENCES two, ADD FOREIGN KEY (two) REFERENCES two",
        &format!("CREATE TRIGGER t BEFORE UPDATE ON child {trigger}"),
        "CREATE RULE r AS ON DELETE TO child DO INSTEAD NOTHING",
        "CREATE INDEX i ON ONLY parent (id); CREATE INDEX i_one ON one (id)",
        "ALTER INDEX i_one DEPENDS ON EXTENSION plpgsql",
        "CREATE TABLE refers (id int REFERENCES shared)",
        &format!("CREATE TRIGGER t BEFORE UPDATE ON shared {trigger}"),
        "CREATE TEMPORARY TABLE passing (id int PRIMARY KEY)",
        "CREATE TEMPORARY TABLE passing_child (id int REFERENCES passing)",
        "CREATE TABLE IF NOT EXISTS two PARTITION OF theirs FOR VALUES FROM (1) TO (2)",
        "ALTER TABLE child ADD COLUMN IF NOT EXISTS three int REFERENCES theirs",
        "ALTER TABLE IF EXISTS nothing ADD FOREIGN KEY (id) REFERENCES theirs",
    ] {
        session.run(sql);
    }
    // A partition that belongs to somebody else.
    admin.run("ALTER TABLE work.one OWNER TO CURRENT_USER");
    session.run("ALTER INDEX i ATTACH PARTITION i_one");
    session.run("ALTER TABLE parent DETACH PARTITION one");
    refuses(
        &mut session,
        &[
            ("CREATE RULE r AS ON INSERT TO nothing DO NOTHING", "42P01"),
            ("ALTER TABLE refers ADD FOREIGN KEY (id) REFERENCES shared (other)", "42501"),
            ("ALTER TABLE parent DETACH PARTITION two", "42P01"),
        ],
    );
}

/// A name that means an own table when the command begins to wait means no other when the wait is over.
#[test]
fn a_name_keeps_its_meaning() {
    let db = Db::with_orders();
    let app = db.app();
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE SCHEMA mine AUTHORIZATION {app}; SET ROLE {app}; CREATE TABLE mine.orders (id int)"
    ));
    let mut user = db.connect_as(&app, A);
    user.run("BEGIN; UPDATE orders SET note = note");
    let mut holder = db.connect(&app);
    holder.run("BEGIN; SELECT FROM mine.orders");
    let mut attacker = db.connect(&app);
    attacker.run("SET search_path = mine, public; SET lock_timeout = '5s'");
    let attempt = thread::spawn(move || attacker.attempt("CREATE RULE r AS ON INSERT TO orders DO NOTHING"));
    waiting(&mut admin, 1);
    holder.run("ALTER TABLE mine.orders RENAME TO gone; COMMIT");
    assert_eq!(attempt.join().expect("the attempt").as_deref(), Some("42P01"));
}
