//! tenant_repair and tenant_protect_plan.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::Client;

use crate::harness::{A, B, Db, Session, refuses};

/// A shop whose owner is no superuser, with customers 1 of A and 2 of B, and an order of each.
struct Shop {
    db: Db,
    owner: String,
}

impl Shop {
    fn new() -> Shop {
        let db = Db::with_orders();
        let owner = db.role_name("owner");
        db.role(&owner, "LOGIN");
        let app = db.app();
        db.admin().run(&format!(
            "DROP TABLE orders; CREATE SCHEMA shop; GRANT CREATE, USAGE ON SCHEMA shop TO {owner}; GRANT USAGE ON SCHEMA shop TO {app};
             ALTER ROLE {owner} SET search_path = shop, public; ALTER ROLE {app} SET search_path = shop, public;
             SET ROLE {owner}; SET search_path = shop, public;
             CREATE TABLE customers (id int PRIMARY KEY, tenant_id uuid NOT NULL, email text CONSTRAINT email_key UNIQUE DEFERRABLE,
                 phone text, boss int REFERENCES customers);
             CREATE UNIQUE INDEX \"phone (odd\" ON customers USING btree (lower(phone)) WHERE phone <> '';
             CREATE TABLE orders (id int PRIMARY KEY, tenant_id uuid NOT NULL,
                 customer_id int CONSTRAINT of_customer REFERENCES customers ON DELETE SET NULL DEFERRABLE);
             SELECT tenant_protect('customers'), tenant_protect('orders');
             GRANT SELECT, INSERT, UPDATE, DELETE ON customers, orders TO {app}; RESET ROLE;
             INSERT INTO customers VALUES (1, '{A}', 'a@', '1', NULL), (2, '{B}', 'b@', '2', NULL);
             INSERT INTO orders VALUES (1, '{A}', 1), (2, '{B}', 2)"
        ));
        Shop { db, owner }
    }

    fn admin(&self) -> Client {
        let mut admin = self.db.admin();
        admin.run("SET search_path = shop, public");
        admin
    }

    /// Runs statements as a role, past a guard that would keep it from making what is to be repaired.
    fn ddl(&self, role: &str, sql: &str) {
        let mut admin = self.admin();
        admin.run(
            "SELECT set_config(name, 'off', false) FROM pg_settings WHERE name = 'tenant_rls.ddl_guard'",
        );
        if !role.is_empty() {
            admin.run(&format!("SET ROLE {role}"));
        }
        admin.run(sql);
    }

    fn owner(&self) -> Client {
        self.db.connect(&self.owner)
    }

    fn app(&self) -> Client {
        self.db.connect_as(&self.db.app(), A)
    }
}

/// Statements and reasons of a repair.
fn repair(client: &mut Client, table: &str, apply: bool) -> Vec<(Option<String>, String)> {
    let rows =
        client.rows(&format!("SELECT statement, why FROM tenant_repair('{table}', {apply}) ORDER BY step"));
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

#[track_caller]
fn nothing_left(client: &mut Client, table: &str) {
    assert!(repair(client, table, false).is_empty());
    assert!(repair(client, table, true).is_empty());
}

fn constraint(client: &mut Client, name: &str) -> String {
    client.one(&format!(
        "SELECT pg_get_constraintdef(oid) || CASE WHEN convalidated THEN ' valid' ELSE '' END FROM pg_constraint WHERE conname = '{name}'"
    ))
}

fn identity_has_tenant(client: &mut Client, table: &str) -> bool {
    client.one(&format!(
        "SELECT EXISTS (SELECT FROM pg_index AS i JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attname = 'tenant_id'
         WHERE i.indrelid = '{table}'::regclass AND i.indisreplident AND a.attnum = ANY (i.indkey))"
    ))
}

/// The owner, who is subject to the policies and acts for nobody, repairs; a second time there is nothing to do.
#[test]
fn references_carry_the_tenant() {
    let shop = Shop::new();
    let (mut owner, mut app) = (shop.owner(), shop.app());
    app.run("INSERT INTO orders (id, customer_id) VALUES (3, 2); DELETE FROM orders WHERE id = 3");
    assert!(!repair(&mut owner, "orders", true).is_empty());
    assert_eq!(
        constraint(&mut owner, "of_customer"),
        "FOREIGN KEY (tenant_id, customer_id) REFERENCES customers(tenant_id, id) ON DELETE SET NULL (customer_id) DEFERRABLE valid"
    );
    assert_eq!(
        owner.one::<i64>(
            "SELECT count(*) FROM pg_constraint WHERE conrelid = 'orders'::regclass AND contype = 'f'"
        ),
        1
    );
    refuses(&mut app, &[("INSERT INTO orders (id, customer_id) VALUES (3, 2)", "23503")]);
    app.run("INSERT INTO orders (id, customer_id) VALUES (4, 1), (5, NULL)");
    app.run("DELETE FROM customers WHERE id = 1");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM orders WHERE customer_id IS NULL"), 3);
    nothing_left(&mut owner, "orders");
}

/// A reference of a table to itself, and what is no longer referred to after it.
#[test]
fn keys_carry_the_tenant() {
    let shop = Shop::new();
    let (mut owner, mut app) = (shop.owner(), shop.app());
    let taken = "INSERT INTO customers (id, email, phone) VALUES (3, 'b@', '2')";
    refuses(&mut app, &[(taken, "23505"), ("UPDATE customers SET boss = 9", "23503")]);
    app.run("UPDATE customers SET boss = 2");
    app.run("UPDATE customers SET boss = NULL");
    repair(&mut owner, "customers", true);
    app.run(taken);
    refuses(
        &mut app,
        &[
            ("INSERT INTO customers (id, email) VALUES (4, 'b@')", "23505"),
            ("INSERT INTO customers (id, phone) VALUES (4, '2')", "23505"),
            ("UPDATE customers SET boss = 2", "23503"),
        ],
    );
    app.run("INSERT INTO customers (id, phone) VALUES (4, ''), (5, '')");
    assert_eq!(constraint(&mut owner, "email_key"), "UNIQUE (tenant_id, email) DEFERRABLE valid");
    // The primary key stays: the foreign keys of others refer to it.
    assert_eq!(constraint(&mut owner, "customers_pkey"), "PRIMARY KEY (id) valid");
    assert!(identity_has_tenant(&mut owner, "customers"));
    nothing_left(&mut owner, "customers");
}

/// A unique constraint that foreign keys refer to stays until they have come over, and then goes.
#[test]
fn a_key_that_is_referred_to_goes_last() {
    let shop = Shop::new();
    let (mut owner, mut app) = (shop.owner(), shop.app());
    shop.ddl(
        &shop.owner,
        "ALTER TABLE customers ADD code int CONSTRAINT code_key UNIQUE; ALTER TABLE orders ADD code int REFERENCES customers (code)",
    );
    repair(&mut owner, "customers", true);
    assert_eq!(constraint(&mut owner, "code_key"), "UNIQUE (code) valid");
    repair(&mut owner, "orders", true);
    repair(&mut owner, "customers", true);
    assert_eq!(owner.one::<i64>("SELECT count(*) FROM pg_constraint WHERE conname = 'code_key'"), 0);
    shop.admin().run("UPDATE customers SET code = 7");
    refuses(&mut app, &[("INSERT INTO customers (id, code) VALUES (3, 7)", "23505")]);
    app.run("INSERT INTO orders (id, code) VALUES (3, 7)");
}

/// Rows that cross are counted, whoever they belong to; no more can be added; what is checked waits for them to go.
#[test]
fn rows_that_cross_are_reported() {
    let shop = Shop::new();
    let (mut admin, mut owner, mut app) = (shop.admin(), shop.owner(), shop.app());
    admin.run(&format!("INSERT INTO orders VALUES (3, '{B}', 1), (4, '{B}', 1)"));
    let told = |steps: &[(Option<String>, String)]| {
        steps.iter().filter(|(_, why)| why.ends_with("another tenant: 2")).count()
    };
    assert_eq!(told(&repair(&mut owner, "orders", false)), 4);
    let applied = repair(&mut owner, "orders", true);
    let left: Vec<_> = applied.iter().filter(|(_, why)| why.starts_with("not done")).collect();
    assert_eq!((left.len(), told(&applied)), (3, 4));
    assert!(!constraint(&mut admin, "of_customer_tenant").ends_with("valid"));
    refuses(&mut app, &[("INSERT INTO orders (id, customer_id) VALUES (5, 2)", "23503")]);
    admin.run("DELETE FROM orders WHERE id IN (3, 4)");
    assert!(repair(&mut owner, "orders", true).iter().all(|(_, why)| !why.starts_with("not done")));
    assert!(constraint(&mut admin, "of_customer").ends_with("valid"));
    nothing_left(&mut owner, "orders");
}

/// What is printed can be run, one statement after the other, and leaves nothing to do.
#[test]
fn printed_statements_do_the_same() {
    let shop = Shop::new();
    let mut admin = shop.admin();
    for table in ["customers", "orders"] {
        let before = repair(&mut admin, table, false);
        assert_eq!(repair(&mut admin, table, false), before);
        for round in 0..3 {
            let steps = repair(&mut admin, table, false);
            assert!(round < 2 || steps.is_empty(), "{steps:?}");
            for (statement, _) in steps {
                admin.run(&statement.expect("a statement"));
            }
        }
    }
    assert!(constraint(&mut admin, "of_customer").contains("(tenant_id, customer_id)"));
}

/// Partitions, policies, privileges, indexes, views.
#[test]
fn what_came_later_is_protected() {
    let shop = Shop::new();
    let (mut owner, mut app) = (shop.owner(), shop.app());
    let app_name = shop.db.app();
    let days = format!(
        "CREATE TABLE days (id int, day date, tenant_id uuid NOT NULL, customer_id int CONSTRAINT days_of REFERENCES customers,
             PRIMARY KEY (id, day), CONSTRAINT once UNIQUE (day, customer_id)) PARTITION BY RANGE (day);
         SELECT tenant_protect('days');
         CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM ('2020-01-01') TO ('2021-01-01');
         DROP INDEX days_tenant_id_idx; DROP POLICY tenant_boundary ON days;
         CREATE VIEW seen AS SELECT * FROM days; CREATE VIEW seen_twice AS SELECT * FROM seen;
         GRANT SELECT ON seen, seen_twice TO {app_name}; GRANT SELECT, TRUNCATE, INSERT ON days, days_1 TO {app_name}"
    );
    shop.ddl(&shop.owner, &days);
    shop.admin()
        .run(&format!("INSERT INTO days VALUES (1, '2020-05-05', '{A}', 1), (2, '2020-05-05', '{B}', 2)"));
    assert_eq!(app.one::<i64>("SELECT count(*) FROM days_1"), 2);
    app.run("BEGIN; TRUNCATE days; ROLLBACK");
    repair(&mut owner, "days_1", true);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM days_1"), 1);
    refuses(
        &mut app,
        &[
            ("TRUNCATE days", "42501"),
            ("INSERT INTO days (id, day, customer_id) VALUES (3, '2020-01-01', 2)", "23503"),
        ],
    );
    app.run("INSERT INTO days (id, day, customer_id) VALUES (3, '2020-01-01', 1)");
    assert_eq!(app.one::<i64>("SELECT count(*) FROM seen_twice"), 2);
    assert_eq!(constraint(&mut owner, "once"), "UNIQUE (tenant_id, day, customer_id) valid");
    assert!(identity_has_tenant(&mut owner, "days") && identity_has_tenant(&mut owner, "days_1"));
    nothing_left(&mut owner, "days");
}

/// Between tables of two owners a key is added, and left to be validated by a superuser: the planner would evaluate
/// expressions of one owner with the rights of the other, or of the superuser.
#[test]
fn keys_between_two_owners_are_left_to_a_superuser() {
    let shop = Shop::new();
    let other = shop.db.role_name("other");
    shop.db.role(&other, "NOLOGIN");
    let mut admin = shop.admin();
    admin.run(&format!(
        "GRANT CREATE, USAGE ON SCHEMA shop TO {other}; ALTER TABLE customers OWNER TO {other}"
    ));
    admin.run("SELECT * FROM tenant_repair('customers', true)");
    let left = repair(&mut admin, "orders", true);
    assert!(constraint(&mut admin, "of_customer_tenant").ends_with(" NOT VALID"));
    let not_done: Vec<_> = left.iter().filter(|(_, why)| why.starts_with("not done")).collect();
    assert_eq!(not_done.len(), 3, "{left:?}");
    for (statement, _) in not_done {
        admin.run(statement.as_ref().expect("a statement"));
    }
    nothing_left(&mut admin, "orders");
}

/// Views of somebody else are named, and left to their owner.
#[test]
fn what_others_own_is_left_to_them() {
    let shop = Shop::new();
    let (mut admin, mut owner) = (shop.admin(), shop.owner());
    shop.ddl("", "CREATE VIEW of_admin AS SELECT * FROM orders");
    let left = repair(&mut owner, "orders", true).pop().expect("a step");
    assert!(left.0.expect("a statement").contains("of_admin") && left.1.starts_with("not done"));
    assert_eq!(repair(&mut admin, "orders", true).len(), 1);
    nothing_left(&mut owner, "orders");
}

/// A foreign key that cannot carry the tenant is named.
#[test]
fn what_cannot_be_repaired_is_named() {
    let shop = Shop::new();
    let mut owner = shop.owner();
    shop.ddl(
        &shop.owner,
        "CREATE TABLE numbers (id int PRIMARY KEY, tenant_id bigint NOT NULL, customer_id int REFERENCES customers);
         SELECT tenant_protect('numbers')",
    );
    let steps = repair(&mut owner, "numbers", true);
    assert_eq!(steps.iter().filter(|(statement, _)| statement.is_none()).count(), 1);
}

#[test]
fn callers_without_the_right_are_refused() {
    let shop = Shop::new();
    let (mut app, mut owner) = (shop.app(), shop.owner());
    owner.run("CREATE TABLE plain (tenant_id text)");
    refuses(
        &mut app,
        &[
            ("SELECT * FROM tenant_repair('orders')", "42501"),
            ("SELECT * FROM tenant_protect_plan('orders')", "42501"),
        ],
    );
    refuses(
        &mut owner,
        &[
            ("SELECT * FROM tenant_repair('plain')", "55000"),
            ("SELECT * FROM tenant_repair(NULL)", "22004"),
            ("SELECT * FROM tenant_repair('orders', NULL)", "22004"),
            ("SELECT * FROM tenant_protect_plan('plain')", "42804"),
            ("SELECT * FROM tenant_protect_plan('plain', 'other')", "42703"),
            ("SELECT * FROM tenant_protect_plan(NULL)", "22004"),
            ("SELECT * FROM tenant_protect_plan('pg_class')", "42809"),
        ],
    );
    owner.run("SELECT * FROM tenant_repair('orders'), tenant_protect_plan('orders')");
}

/// An unprotected table, plain or partitioned, with rows of both tenants.
fn unprotected(kind: &str) -> (Db, String) {
    let db = Db::with_orders();
    let (owner, app) = (db.role_name("owner"), db.app());
    db.role(&owner, "LOGIN");
    let parts = "CREATE TABLE live_1 PARTITION OF live FOR VALUES FROM (0) TO (1000);
         CREATE TABLE live_2 PARTITION OF live DEFAULT PARTITION BY RANGE (id);
         CREATE TABLE live_3 PARTITION OF live_2 DEFAULT; CREATE INDEX ON live_1 (tenant_id);";
    db.admin().run(&format!(
        "GRANT CREATE ON SCHEMA public TO {owner}; SET ROLE {owner}; CREATE TABLE live (id int, tenant_id uuid) {};
         GRANT SELECT, INSERT, UPDATE ON live TO {app}; RESET ROLE;
         INSERT INTO live SELECT g, CASE WHEN g % 2 = 0 THEN '{A}' ELSE '{B}' END::uuid FROM generate_series(1, 3000) AS g",
        if kind == "plain" { String::new() } else { format!("PARTITION BY RANGE (id); {parts}") }
    ));
    (db, owner)
}

fn plan(client: &mut Client) -> Vec<(String, String, bool)> {
    let rows =
        client.rows("SELECT statement, lock, in_transaction FROM tenant_protect_plan('live') ORDER BY step");
    rows.iter().map(|row| (row.get(0), row.get(1), row.get(2))).collect()
}

/// Writers of a test that has failed end by themselves.
const LONGEST: Duration = Duration::from_secs(60);

/// Every statement of a plan is run while others write; none of them is refused, and the table is protected.
#[test]
fn a_plan_runs_beside_writers() {
    for kind in ["plain", "partitioned"] {
        let (db, owner) = unprotected(kind);
        // Longer than the lock_timeout of the plan, as the server's default is: no writer gets 40P01 (docs/repair.md).
        db.admin().run(&format!("ALTER DATABASE {} SET deadlock_timeout = '10s'", db.name()));
        let mut owner = db.connect(&owner);
        let (stop, written, started) = (AtomicBool::new(false), AtomicU32::new(0), Instant::now());
        thread::scope(|scope| {
            for writer in 0..3 {
                let mut app = db.connect_as(&db.app(), A);
                let (stop, written) = (&stop, &written);
                scope.spawn(move || {
                    while !stop.load(Ordering::Relaxed) && started.elapsed() < LONGEST {
                        let write = format!("INSERT INTO live VALUES ({writer}, '{A}'); UPDATE live SET id = id WHERE id = 500");
                        match app.attempt(&write).as_deref() {
                            None => _ = written.fetch_add(1, Ordering::Relaxed),
                            Some(state) => panic!("{kind}: {state}"),
                        }
                    }
                });
            }
            for (statement, ..) in plan(&mut owner) {
                let before = written.load(Ordering::Relaxed);
                while let Some(state) = owner.attempt(&statement) {
                    assert_eq!(state, "55P03", "{statement}");
                }
                while written.load(Ordering::Relaxed) < before + 3 && started.elapsed() < LONGEST {
                    thread::yield_now();
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
        let mut app = db.connect_as(&db.app(), A);
        assert_eq!(
            app.one::<i64>("SELECT count(*) FROM live WHERE id > 0 AND id <> 1 AND id <> 2"),
            1499,
            "{kind}"
        );
        assert_eq!(app.one::<i64>(&format!("SELECT count(*) FROM live WHERE tenant_id = '{B}'")), 0);
        assert_eq!(
            owner.one::<i64>("SELECT count(*) FROM pg_constraint WHERE conname = 'tenant_present'"),
            0
        );
        assert!(plan(&mut owner).is_empty());
    }
}

/// The strongest lock of this transaction on a table, in the words of the documents, and the scans of tables until now.
fn locked_and_read(client: &mut Client) -> (String, i64) {
    let lock = client.one(
        "SELECT coalesce(upper(trim(regexp_replace(replace((array_agg(mode ORDER BY array_position(ARRAY['AccessShareLock',
             'RowShareLock', 'RowExclusiveLock', 'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
             'AccessExclusiveLock'], mode) DESC))[1], 'Lock', ''), '([A-Z])', ' \\1', 'g'))), 'NONE')
         FROM pg_locks WHERE pid = pg_backend_pid() AND relation IN (SELECT oid FROM pg_class WHERE relname LIKE 'live%' AND relkind IN ('r', 'p'))",
    );
    let scans = client.one(
        "SELECT coalesce(sum(pg_stat_get_xact_numscans(oid)), 0)::bigint FROM pg_class WHERE relname LIKE 'live%' AND relkind IN ('r', 'p')",
    );
    (lock, scans)
}

/// A step that keeps writers out reads no row, so that it is as short for ten million as for ten; and takes the lock
/// that it says.
#[test]
fn locks_that_stop_writers_are_short() {
    for kind in ["plain", "partitioned"] {
        let (db, owner) = unprotected(kind);
        let mut owner = db.connect(&owner);
        let mut reads = 0;
        for (statement, lock, in_transaction) in plan(&mut owner) {
            if !in_transaction {
                assert!(statement.contains(" INDEX CONCURRENTLY "), "{statement}");
                owner.run(&statement);
                continue;
            }
            owner.run("BEGIN");
            // What transactions before this one have counted is sent now and then.
            let (_, before) = locked_and_read(&mut owner);
            owner.run(&statement);
            let (taken, after) = locked_and_read(&mut owner);
            let scans = after - before;
            // Which tables an index that is attached locks depends on the server's version.
            if !statement.contains(" ATTACH PARTITION ") {
                assert_eq!(taken, lock.to_uppercase(), "{statement}");
            }
            if ["SHARE", "SHARE ROW EXCLUSIVE", "EXCLUSIVE", "ACCESS EXCLUSIVE"].contains(&taken.as_str()) {
                assert_eq!(scans, 0, "{statement}");
            }
            reads += scans;
            owner.run("COMMIT");
        }
        assert!(reads > 0, "VALIDATE reads the table");
    }
}

/// Without the plan tenant_protect reads the table under its lock.
#[test]
fn protecting_at_once_reads() {
    let (db, owner) = unprotected("plain");
    let mut owner = db.connect(&owner);
    owner.run("BEGIN; SELECT tenant_protect('live')");
    let (taken, scans) = locked_and_read(&mut owner);
    assert!(taken == "ACCESS EXCLUSIVE" && scans > 0);
}

/// A plan that was interrupted is taken up where it ended.
#[test]
fn a_plan_goes_on() {
    for kind in ["plain", "partitioned"] {
        let (db, owner) = unprotected(kind);
        let mut owner = db.connect(&owner);
        let mut steps = plan(&mut owner).len();
        while steps > 0 {
            let next =
                plan(&mut owner).into_iter().find(|(statement, ..)| !statement.contains("lock_timeout"));
            owner.run(&next.expect("a step").0);
            let left = plan(&mut owner).len();
            assert!(left < steps, "{left} of {steps}");
            steps = left;
        }

        assert!(owner.one::<bool>("SELECT relforcerowsecurity FROM pg_class WHERE relname = 'live'"));
    }
}

/// What CREATE INDEX CONCURRENTLY has left behind is dropped first.
#[test]
fn an_invalid_index_is_dropped() {
    let (db, owner) = unprotected("plain");
    db.admin().run("CREATE INDEX live_broken ON live (tenant_id); UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'live_broken'::regclass");
    let mut owner = db.connect(&owner);
    for (statement, ..) in plan(&mut owner) {
        owner.run(&statement);
    }
    assert!(owner.one::<bool>("SELECT bool_and(indisvalid) FROM pg_index WHERE indrelid = 'live'::regclass"));
}

/// A row without a tenant stops the plan, and says so.
#[test]
fn rows_without_a_tenant_stop_the_plan() {
    let (db, owner) = unprotected("plain");
    db.admin().run("INSERT INTO live VALUES (1, NULL)");
    let mut owner = db.connect(&owner);
    let failed = plan(&mut owner).into_iter().find_map(|(statement, ..)| owner.attempt(&statement));
    assert_eq!(failed.as_deref(), Some("23514"));
    db.admin().run("DELETE FROM live WHERE tenant_id IS NULL");
    for (statement, ..) in plan(&mut owner) {
        owner.run(&statement);
    }
}
