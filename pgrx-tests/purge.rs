//! A deleted tenant is erased, and nobody else.

use std::thread;

use postgres::Client;

use crate::harness::{A, B, Db, Session, eventually, refuses, waiting};

/// Marks A as deleted.
fn delete(db: &Db) {
    db.admin().run(&format!("SELECT tenant_delete('{A}')"));
}

/// A role that runs the registry and owns nothing.
fn operator(db: &Db) -> Client {
    let name = db.role_name("office");
    db.role(&name, "LOGIN");
    db.admin().run(&format!("SELECT tenant_grant_operator('{name}')"));
    db.connect(&name)
}

fn purge() -> String {
    format!("CALL tenant_purge('{A}')")
}

/// The rows of each table that belong to A and to B, as "table a b", for superusers.
fn rows(client: &mut Client, tables: &[&str]) -> Vec<String> {
    let count = |client: &mut Client, table: &str, of: &str, key: u8| {
        client.one::<i64>(&format!(
            "SELECT count(*) FROM {table} AS t WHERE to_jsonb(t) ->> 'tenant_id' IN ('{of}', '{key}')"
        ))
    };
    tables
        .iter()
        .map(|table| format!("{table} {} {}", count(client, table, A, 1), count(client, table, B, 2)))
        .collect()
}

/// Tables of every kind, with three rows of A and of B in each.
fn shop() -> Db {
    let db = Db::new();
    let owner = db.role_name("owner");
    db.role(&owner, "LOGIN");
    db.role(&db.app(), "LOGIN");
    let app = db.app();
    let mut admin = db.admin();
    admin.run(&format!(
        "SELECT tenant_create('{A}', tenant_key => 1), tenant_create('{B}', tenant_key => 2);
         SELECT tenant_resource_define('things', 'gauge', 'thing', 'none'), tenant_plan_limit_set('free', 'things', 100);
         SELECT tenant_grant('{app}', '{A}'), tenant_grant('{app}', '{B}'), tenant_grant_operator('{owner}');
         GRANT CREATE ON SCHEMA public TO {owner};
         SET ROLE {owner};
         CREATE TABLE plain (id int PRIMARY KEY, tenant_id uuid NOT NULL);
         CREATE TABLE \"Keys\" (id int PRIMARY KEY, tenant_id bigint NOT NULL);
         CREATE TABLE parted (id int, tenant_id int NOT NULL) PARTITION BY RANGE (id);
         CREATE TABLE parted_low PARTITION OF parted FOR VALUES FROM (0) TO (2);
         CREATE TABLE parted_high PARTITION OF parted DEFAULT;
         CREATE TABLE base (id int, tenant_id uuid NOT NULL);
         CREATE TABLE child (extra text) INHERITS (base);
         SELECT tenant_protect('plain'), tenant_protect('\"Keys\"'), tenant_protect('parted'), tenant_protect('base');
         SELECT tenant_quota_attach('plain', 'things'), tenant_quota_attach('parted', 'things');
         -- A partition that the protection does not know yet.
         CREATE TABLE parted_late (id int, tenant_id int NOT NULL);
         ALTER TABLE parted ATTACH PARTITION parted_late FOR VALUES FROM (100) TO (200);
         GRANT SELECT, INSERT, UPDATE, DELETE ON plain TO {app};
         RESET ROLE;
         INSERT INTO plain VALUES (1, '{A}'), (2, '{A}'), (3, '{A}'), (4, '{B}'), (5, '{B}'), (6, '{B}');
         INSERT INTO \"Keys\" VALUES (1, 1), (2, 1), (3, 1), (4, 2), (5, 2), (6, 2);
         INSERT INTO parted VALUES (1, 1), (2, 1), (100, 1), (1, 2), (2, 2), (100, 2);
         INSERT INTO base VALUES (1, '{A}'), (1, '{B}');
         INSERT INTO child VALUES (1, '{A}'), (2, '{A}'), (1, '{B}'), (2, '{B}');
         SELECT tenant_quota_set('{A}', 'users', 7), tenant_quota_set('{B}', 'users', 7);
         SELECT tenant_billing_set('{A}', '2026-01-31', 'Europe/Zurich'), tenant_billing_set('{B}', '2026-01-31', 'Europe/Zurich')"
    ));
    admin.run("SELECT tenant_feature_define('dark', 'false'), tenant_deployment_define('api', '{\"image\": \"api:1\"}')");
    for tenant in [A, B] {
        admin.run(&format!(
            "SELECT tenant_feature_set('dark', 'true', 'tenant', '{tenant}'), tenant_route_set('{tenant}', 'api');
             SELECT tenant_release('api', 'api:2', 0, tenants => '{{{tenant}}}')"
        ));
        admin.run(&format!(
            "INSERT INTO tenant_rls.usage_history VALUES ('{tenant}', 'api_requests', '2020-01-01', '2020-02-01', 5);
             INSERT INTO tenant_rls.quota_events VALUES ('{tenant}', 'api_requests', '2020-01-01', 80, 8, 10)"
        ));
        db.connect_as(&app, tenant).run(
            "SELECT * FROM tenant_quota_consume('api_requests', 5, 'k');
             SELECT * FROM tenant_quota_reserve('api_requests', 2, '1 hour')",
        );
    }
    db
}

const TABLES: [&str; 15] = [
    "plain",
    "\"Keys\"",
    "parted",
    "base",
    "tenant_rls.units",
    "tenant_rls.idempotency_keys",
    "tenant_rls.reservations",
    "tenant_rls.usage_history",
    "tenant_rls.quota_events",
    "tenant_rls.overrides",
    "tenant_rls.grants",
    "tenant_rls.billing_changes",
    "tenant_rls.feature_values",
    "tenant_rls.deployment_routes",
    "tenant_rls.release_targets",
];

/// Every table is emptied of the tenant, whatever its kind and the batch, by an operator who owns none of them;
/// other tenants keep everything.
#[test]
fn everything_of_the_tenant_goes() {
    for batch in [1, 2, 10_000] {
        let db = shop();
        let mut admin = db.admin();
        let before = rows(&mut admin, &TABLES);
        assert!(before.iter().all(|line| !line.contains(" 0")), "{before:?}");
        delete(&db);
        operator(&db).run(&format!("CALL tenant_purge('{A}', {batch})"));
        let after = rows(&mut admin, &TABLES);
        for (before, after) in before.iter().zip(&after) {
            let words: Vec<&str> = before.split(' ').collect();
            assert_eq!(*after, format!("{} 0 {}", words[0], words[2]), "batch {batch}");
        }
        assert_eq!(admin.rows(&format!("SELECT 1 FROM tenant_rls.tenants WHERE tenant_id = '{A}'")).len(), 0);
        assert_eq!(admin.rows("SELECT 1 FROM tenant_quota_invariants").len(), 0);
    }
}

/// What was erased is recorded, by table.
#[test]
fn the_purge_is_recorded() {
    let db = shop();
    delete(&db);
    let name = db.role_name("office");
    operator(&db).run(&purge());
    let erased = |table: &str| {
        db.admin().one::<String>(&format!(
            "SELECT acting_as || ' ' || (old_row -> 'erased' ->> '{table}') FROM tenant_rls.changes
             WHERE relation = 'tenants' AND command = 'PURGE' AND old_row ->> 'tenant_id' = '{A}'"
        ))
    };
    assert_eq!(erased("public.plain"), format!("{name} 3"));
    assert_eq!(erased("public.\"Keys\""), format!("{name} 3"));
    assert_eq!(erased("public.parted_late"), format!("{name} 1"));
    assert_eq!(erased("public.child"), format!("{name} 2"));
    assert_eq!(erased("tenant_rls.tenants"), format!("{name} 1"));
}

/// Only a deleted tenant, only outside a transaction block, only by operators.
#[test]
fn what_is_refused() {
    let db = shop();
    let mut office = operator(&db);
    refuses(
        &mut office,
        &[
            (&purge(), "55000"),
            ("CALL tenant_purge('cccccccc-0000-4000-8000-00000000000c')", "42704"),
            ("CALL tenant_purge(NULL)", "22004"),
        ],
    );
    delete(&db);
    refuses(
        &mut office,
        &[
            (&format!("CALL tenant_purge('{A}', 0)"), "22023"),
            (&format!("CALL tenant_purge('{A}', NULL)"), "22004"),
        ],
    );
    office.run("BEGIN");
    assert_eq!(office.fails(&purge()), "25001");
    office.run("ROLLBACK");
    assert_eq!(office.fails(&format!("SELECT 1; {}", purge())), "25001");
    assert_eq!(db.connect(&db.app()).fails(&purge()), "42501");
    assert_eq!(rows(&mut db.admin(), &["plain"]), ["plain 3 3"]);
    office.run(&purge());
}

/// A writer that policies do not hold for and that began after the last look, before the tenant was gone, is waited
/// for, and its rows go too. If that takes too long, the next call goes on there.
#[test]
fn an_insert_behind_the_last_look_does_not_survive() {
    for interrupted in [false, true] {
        let db = shop();
        let mut admin = db.admin();
        delete(&db);
        // Between the last look and the end of the tenant.
        let mut lock = db.admin();
        lock.run(&format!("BEGIN; SELECT 1 FROM tenant_rls.overrides WHERE tenant_id = '{A}' FOR UPDATE"));
        let mut office = operator(&db);
        if interrupted {
            office.run("SET lock_timeout = '2s'");
        }
        let purging = thread::spawn(move || (office.attempt(&purge()), office));
        waiting(&mut admin, 1);
        let mut writer = db.admin();
        writer
            .run(&format!("BEGIN; INSERT INTO base VALUES (99, '{A}'); INSERT INTO \"Keys\" VALUES (99, 1)"));
        lock.run("COMMIT");
        if interrupted {
            let (state, mut office) = purging.join().expect("the purge ends");
            assert_eq!(state.as_deref(), Some("55006"));
            assert_eq!(
                admin.rows(&format!("SELECT FROM tenant_rls.tenants WHERE tenant_id = '{A}'")).len(),
                0
            );
            writer.run("COMMIT");
            assert_eq!(rows(&mut admin, &["base", "\"Keys\""]), ["base 1 3", "\"Keys\" 1 3"]);
            office.run(&purge());
        } else {
            eventually(
                &mut admin,
                &format!("SELECT NOT EXISTS (SELECT FROM tenant_rls.tenants WHERE tenant_id = '{A}')"),
            );
            waiting(&mut admin, 1);
            writer.run("COMMIT");
            assert_eq!(purging.join().expect("the purge ends").0, None);
        }
        assert_eq!(rows(&mut admin, &["base", "\"Keys\""]), ["base 0 3", "\"Keys\" 0 3"], "{interrupted}");
    }
}

/// A purge that is called again after it has ended finds nothing, and takes no row of a new tenant of that id or key.
#[test]
fn a_purge_that_is_called_again_spares_successors() {
    let db = shop();
    delete(&db);
    let (mut office, mut admin) = (operator(&db), db.admin());
    office.run(&purge());
    office.run(&purge());
    admin.run("SELECT tenant_create('cccccccc-0000-4000-8000-00000000000c', tenant_key => 1); INSERT INTO \"Keys\" VALUES (50, 1)");
    assert_eq!(office.fails(&purge()), "55000");
    admin.run("DELETE FROM tenant_rls.tenants WHERE tenant_key = 1; DELETE FROM \"Keys\" WHERE id = 50");
    // One that is being created is waited for.
    let mut creator = db.admin();
    creator.run("BEGIN; SELECT tenant_create('cccccccc-0000-4000-8000-00000000000c', tenant_key => 1)");
    let purging = thread::spawn(move || (office.attempt(&purge()), office));
    waiting(&mut admin, 1);
    creator.run("COMMIT");
    let (state, mut office) = purging.join().expect("the purge ends");
    assert_eq!(state.as_deref(), Some("55000"));
    admin.run("DELETE FROM tenant_rls.tenants WHERE tenant_key = 1");
    admin.run(&format!("SELECT tenant_create('{A}'); INSERT INTO base VALUES (1, '{A}')"));
    assert_eq!(office.fails(&purge()), "55000");
    assert_eq!(rows(&mut admin, &["base"]), ["base 1 3"]);
}

/// Two tables of two owners, and a key between them without the tenant: with rows of the tenant behind it nobody can say
/// whose rows refer to them.
#[test]
fn a_key_between_two_owners_must_carry_the_tenant() {
    let db = Db::with_orders();
    let owner = db.role_name("owner");
    db.role(&owner, "LOGIN");
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE TABLE items (id int PRIMARY KEY, tenant_id uuid NOT NULL, o int REFERENCES orders ON DELETE CASCADE);
         SELECT tenant_protect('items'); INSERT INTO items VALUES (1, '{B}', 3); ALTER TABLE items OWNER TO {owner}"
    ));
    delete(&db);
    assert_eq!(admin.fails(&purge()), "55000");
    assert_eq!(rows(&mut admin, &["orders"]), ["orders 2 2"]);
    admin.run(&format!("DELETE FROM orders WHERE tenant_id = '{A}'"));
    admin.run(&purge());
    assert_eq!(rows(&mut admin, &["orders", "items"]), ["orders 0 2", "items 0 1"]);
}

/// A procedure may call it, as long as it is not in a transaction block.
#[test]
fn it_can_be_called_by_a_procedure() {
    let db = shop();
    delete(&db);
    db.admin().run(&format!("DO $$ BEGIN CALL tenant_purge('{A}', 1); END $$"));
    assert_eq!(rows(&mut db.admin(), &["plain"]), ["plain 0 3"]);
}

/// A purged id can be created again; sessions of the one that is gone do not act for it.
#[test]
fn the_id_can_be_created_again() {
    let db = Db::with_orders();
    let mut old = db.connect_as(&db.app(), A);
    delete(&db);
    let mut admin = db.admin();
    admin.run(&purge());
    admin.run(&format!("SELECT tenant_create('{A}')"));
    assert_eq!(old.fails("SELECT * FROM orders"), "55000");
    let mut new = db.connect_as(&db.app(), A);
    assert_eq!(new.one::<i64>("SELECT count(*) FROM orders"), 0);
}

/// Rows that refer to others go first; tables that refer to themselves or in a ring go at once; deferred keys too.
#[test]
fn foreign_keys_are_followed() {
    for action in
        ["", "ON DELETE RESTRICT", "DEFERRABLE INITIALLY DEFERRED", "ON DELETE CASCADE", "ON DELETE SET NULL"]
    {
        let db = Db::new();
        let mut admin = db.admin();
        admin.run(&format!(
            "SELECT tenant_create('{A}'), tenant_create('{B}');
             CREATE TABLE c (tenant_id uuid NOT NULL, id int, b int, PRIMARY KEY (tenant_id, id));
             CREATE TABLE b (tenant_id uuid NOT NULL, id int, a int, PRIMARY KEY (tenant_id, id));
             CREATE TABLE a (tenant_id uuid NOT NULL, id int, PRIMARY KEY (tenant_id, id));
             CREATE TABLE self (tenant_id uuid NOT NULL, id int, parent int, PRIMARY KEY (tenant_id, id),
                 FOREIGN KEY (tenant_id, parent) REFERENCES self {action});
             CREATE TABLE ring1 (tenant_id uuid NOT NULL, id int, next int, PRIMARY KEY (tenant_id, id));
             CREATE TABLE ring2 (tenant_id uuid NOT NULL, id int, next int, PRIMARY KEY (tenant_id, id),
                 FOREIGN KEY (tenant_id, next) REFERENCES ring1 {action});
             INSERT INTO a SELECT t, n FROM unnest('{{{A}, {B}}}'::uuid[]) AS t, generate_series(1, 5) AS n;
             INSERT INTO b SELECT tenant_id, id, id FROM a; INSERT INTO c SELECT tenant_id, id, id FROM b;
             INSERT INTO self SELECT tenant_id, id, greatest(id - 1, 1) FROM a;
             INSERT INTO ring1 SELECT tenant_id, id, id FROM a; INSERT INTO ring2 SELECT tenant_id, id, id FROM a"
        ));
        admin.run(&format!(
            "ALTER TABLE c ADD FOREIGN KEY (tenant_id, b) REFERENCES b {action};
             ALTER TABLE b ADD FOREIGN KEY (tenant_id, a) REFERENCES a {action};
             ALTER TABLE ring1 ADD FOREIGN KEY (tenant_id, next) REFERENCES ring2 {action}"
        ));
        admin.run(&format!("SELECT tenant_protect_schema('public'); SELECT tenant_delete('{A}')"));
        admin.run(&format!("CALL tenant_purge('{A}', 2)"));
        assert_eq!(
            rows(&mut admin, &["a", "b", "c", "self", "ring1", "ring2"]),
            ["a 0 5", "b 0 5", "c 0 5", "self 0 5", "ring1 0 5", "ring2 0 5"],
            "{action}"
        );
    }
}

/// Rows of others that refer to rows of the tenant, with or without CASCADE, stop the purge before it erases any.
#[test]
fn rows_of_others_are_not_taken_along() {
    for action in ["", "ON DELETE CASCADE", "ON DELETE SET NULL"] {
        let db = Db::with_orders();
        let mut admin = db.admin();
        admin.run(&format!(
            "CREATE TABLE items (id int PRIMARY KEY, tenant_id uuid NOT NULL, o int REFERENCES orders {action});
             SELECT tenant_protect('items');
             INSERT INTO items VALUES (1, '{A}', 1), (2, '{B}', 2), (3, '{B}', 3)"
        ));
        delete(&db);
        assert_eq!(admin.fails(&purge()), "55000", "{action}");
        assert_eq!(rows(&mut admin, &["orders", "items"]), ["orders 2 2", "items 1 2"], "{action}");
        admin.run("DELETE FROM items WHERE id = 2");
        admin.run(&purge());
        assert_eq!(rows(&mut admin, &["orders", "items"]), ["orders 0 2", "items 0 1"], "{action}");
    }
}

/// Rows of a table without a tenant go with their parents where the key says so, and stop the purge where not.
#[test]
fn rows_without_a_tenant_go_by_cascade_only() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(
        "CREATE TABLE lines (o int REFERENCES orders ON DELETE CASCADE); INSERT INTO lines VALUES (1), (2), (3);
         CREATE TABLE marks (o int REFERENCES orders); INSERT INTO marks VALUES (1), (3)",
    );
    delete(&db);
    assert_eq!(admin.fails(&purge()), "55000");
    assert_eq!(rows(&mut admin, &["orders"]), ["orders 2 2"]);
    admin.run("DELETE FROM marks WHERE o = 1");
    admin.run(&purge());
    assert_eq!(admin.one::<i64>("SELECT sum(o) FROM lines"), 3);
}

/// A table that is not protected and holds rows of the tenant stops the purge before it erases any.
#[test]
fn a_table_that_is_not_covered_stops_it() {
    for (column, value) in [
        ("tenant_id uuid", A.to_string()),
        ("tenant_id text", A.to_uppercase()),
        ("tenant_id bigint", "1".into()),
        ("owner_id uuid", A.into()),
    ] {
        let db = shop();
        let mut admin = db.admin();
        admin.run(&format!(
            "CREATE TABLE named (owner_id uuid NOT NULL); SELECT tenant_protect('named', 'owner_id');
             CREATE SCHEMA other; CREATE TABLE other.loose (id int, {column}); INSERT INTO other.loose VALUES (1, '{value}')"
        ));
        delete(&db);
        assert_eq!(admin.fails(&purge()), "55000", "{column}");
        assert_eq!(rows(&mut admin, &["plain"]), ["plain 3 3"], "{column}");
        admin.run("DELETE FROM other.loose");
        admin.run(&purge());
    }
}

/// A materialized view that still holds rows keeps the tenant until it is refreshed.
#[test]
fn a_materialized_view_must_be_refreshed() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    db.breaker().run("CREATE MATERIALIZED VIEW copies AS SELECT * FROM orders");
    delete(&db);
    assert_eq!(admin.fails(&purge()), "55000");
    admin.run("REFRESH MATERIALIZED VIEW copies");
    admin.run(&purge());
    assert_eq!(rows(&mut admin, &["orders", "copies"]), ["orders 0 2", "copies 0 2"]);
}

/// Whoever has written for the tenant and is still in its transaction is waited for, and its rows go too: an
/// application that began before the tenant was deleted, and a role without policies that began at any time.
#[test]
fn an_insert_in_flight_does_not_survive() {
    for bypasses in [false, true] {
        let db = Db::with_orders();
        let mut writer = if bypasses { db.admin() } else { db.connect_as(&db.app(), A) };
        writer.run(&format!("BEGIN; INSERT INTO orders VALUES (9, '{A}', 'in flight')"));
        delete(&db);
        let mut office = operator(&db);
        office.run("SET lock_timeout = '50ms'");
        assert_eq!(office.fails(&purge()), "55006", "{bypasses}");
        office.run("RESET lock_timeout");
        let purging = thread::spawn(move || office.run(&purge()));
        waiting(&mut db.admin(), 1);
        writer.run("COMMIT");
        purging.join().expect("the purge ends");
        assert_eq!(rows(&mut db.admin(), &["orders"]), ["orders 0 2"], "{bypasses}");
    }
}

/// So is one that is prepared.
#[test]
fn a_prepared_insert_does_not_survive() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!(
        "BEGIN; INSERT INTO orders VALUES (9, '{A}', 'prepared'); PREPARE TRANSACTION '{}'",
        db.name()
    ));
    delete(&db);
    let mut office = operator(&db);
    office.run("SET lock_timeout = '50ms'");
    assert_eq!(office.fails(&purge()), "55006");
    admin.run(&format!("COMMIT PREPARED '{}'", db.name()));
    office.run(&purge());
    assert_eq!(rows(&mut admin, &["orders"]), ["orders 0 2"]);
}

/// Units that were taken in a transaction that is still open do not survive either.
#[test]
fn units_in_flight_do_not_survive() {
    let db = shop();
    let mut app = db.connect_as(&db.app(), A);
    app.run("BEGIN; SELECT * FROM tenant_quota_consume('users')");
    delete(&db);
    let mut office = operator(&db);
    office.run("SET lock_timeout = '50ms'");
    assert_eq!(office.fails(&purge()), "55006");
    app.run("COMMIT");
    office.run(&purge());
    assert_eq!(rows(&mut db.admin(), &["tenant_rls.units"]), ["tenant_rls.units 0 2"]);
}

/// Writers of other tenants go on while a purge waits.
#[test]
fn others_are_not_blocked() {
    let db = Db::with_orders();
    let mut writer = db.admin();
    writer.run(&format!("BEGIN; INSERT INTO orders VALUES (9, '{A}', 'in flight')"));
    delete(&db);
    let mut office = operator(&db);
    let purging = thread::spawn(move || office.run(&purge()));
    waiting(&mut db.admin(), 1);
    let mut other = db.connect_as(&db.app(), B);
    other.run("SET lock_timeout = '5s'; INSERT INTO orders (id, note) VALUES (10, 'b'); DELETE FROM orders WHERE id = 3");
    writer.run("ROLLBACK");
    purging.join().expect("the purge ends");
}

/// What is written behind the back of the last look finds no tenant any more.
#[test]
fn a_writer_behind_the_purge_finds_no_tenant() {
    let db = shop();
    let mut admin = db.admin();
    delete(&db);
    let mut lock = db.admin();
    lock.run(&format!("BEGIN; SELECT 1 FROM tenant_rls.overrides WHERE tenant_id = '{A}' FOR UPDATE"));
    let mut office = operator(&db);
    let purging = thread::spawn(move || office.run(&purge()));
    waiting(&mut admin, 1);
    let mut writer = db.admin();
    let writing = thread::spawn(move || writer.fails(&format!("INSERT INTO plain VALUES (99, '{A}')")));
    waiting(&mut admin, 2);
    lock.run("COMMIT");
    purging.join().expect("the purge ends");
    assert_eq!(writing.join().expect("the writer ends"), "55000");
    assert_eq!(rows(&mut admin, &["plain", "tenant_rls.units"]), ["plain 0 3", "tenant_rls.units 0 2"]);
}

/// A purge that was killed goes on where it was when it is called again.
#[test]
fn a_killed_purge_is_called_again() {
    let db = shop();
    let mut admin = db.admin();
    delete(&db);
    let mut lock = db.admin();
    lock.run(&format!("BEGIN; SELECT 1 FROM base WHERE tenant_id = '{A}' FOR UPDATE"));
    let mut office = operator(&db);
    let killed = thread::spawn(move || office.fails(&format!("CALL tenant_purge('{A}', 1)")));
    waiting(&mut admin, 1);
    assert_eq!(rows(&mut admin, &["plain", "base"]), ["plain 0 3", "base 3 3"]);
    admin.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'");
    killed.join().expect("the purge ends");
    lock.run("COMMIT");
    assert_eq!(
        admin.one::<String>(&format!("SELECT status FROM tenant_rls.tenants WHERE tenant_id = '{A}'")),
        "deleted"
    );
    assert_eq!(admin.rows("SELECT 1 FROM tenant_quota_invariants").len(), 0);
    admin.run(&purge());
    assert_eq!(rows(&mut admin, &["plain", "parted", "base"]), ["plain 0 3", "parted 0 3", "base 0 3"]);
}

/// Two purges of one tenant take turns; the one that comes too late finds nothing.
#[test]
fn two_purges_take_turns() {
    let db = shop();
    delete(&db);
    let mut lock = db.admin();
    lock.run(&format!("BEGIN; SELECT 1 FROM base WHERE tenant_id = '{A}' FOR UPDATE"));
    let callers: Vec<_> = [db.admin(), db.admin()]
        .into_iter()
        .map(|mut caller| thread::spawn(move || caller.attempt(&format!("CALL tenant_purge('{A}', 1)"))))
        .collect();
    waiting(&mut db.admin(), 2);
    lock.run("COMMIT");
    let mut ends: Vec<_> = callers.into_iter().map(|caller| caller.join().expect("a purge ends")).collect();
    ends.sort();
    assert_eq!(ends, [None, Some("42704".into())]);
}

/// Triggers of a table run with the rights of its owner, at once or deferred, also when a superuser purges.
#[test]
fn triggers_get_the_rights_of_the_owner() {
    let db = shop();
    let owner = db.role_name("owner");
    db.connect(&owner).run(
        "CREATE TABLE seen (who text, kind text);
         CREATE FUNCTION look() RETURNS trigger LANGUAGE plpgsql AS $$
         BEGIN INSERT INTO public.seen VALUES (current_user, TG_ARGV[0]); RETURN NULL; END $$;
         CREATE TRIGGER look AFTER DELETE ON plain FOR EACH ROW EXECUTE FUNCTION look('row');
         CREATE TRIGGER statement AFTER DELETE ON plain FOR EACH STATEMENT EXECUTE FUNCTION look('statement');
         CREATE CONSTRAINT TRIGGER late AFTER DELETE ON plain DEFERRABLE INITIALLY DEFERRED
             FOR EACH ROW EXECUTE FUNCTION look('late')",
    );
    delete(&db);
    let mut admin = db.admin();
    admin.run(&purge());
    let seen: Vec<String> = admin
        .rows("SELECT DISTINCT who || ' ' || kind FROM seen ORDER BY 1")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(seen, [format!("{owner} late"), format!("{owner} row"), format!("{owner} statement")]);
}

/// A trigger that keeps rows, or puts them back, keeps the tenant; the purge ends and says so.
#[test]
fn a_trigger_that_keeps_rows_keeps_the_tenant() {
    for (timing, body) in [
        ("BEFORE", "RETURN NULL;"),
        ("AFTER", "INSERT INTO public.plain VALUES (OLD.id, OLD.tenant_id); RETURN NULL;"),
    ] {
        let db = shop();
        delete(&db);
        let mut admin = db.admin();
        admin.run(&format!(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {body} END $$;
             CREATE TRIGGER keep {timing} DELETE ON plain FOR EACH ROW EXECUTE FUNCTION keep()"
        ));
        assert_eq!(admin.fails(&format!("CALL tenant_purge('{A}', 2)")), "55000", "{timing}");
        assert_eq!(rows(&mut admin, &["plain"]), ["plain 3 3"], "{timing}");
        admin.run("DROP TRIGGER keep ON plain");
        admin.run(&purge());
    }
}
