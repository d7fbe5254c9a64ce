//! The cache of a tenant: what it gives, what it costs others, and what becomes of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use postgres::Client;
use serde_json::{Value, json};

use crate::cluster::{Cluster, run};
use crate::harness::{A, B, Db, Session, answer, eventually, refuses, report};

fn get(client: &mut Client, key: &str) -> Option<String> {
    client.one(&format!("SELECT tenant_cache_get('{key}')::text"))
}

fn set(client: &mut Client, key: &str, value: &str) {
    client.run(&format!("SELECT tenant_cache_set('{key}', '{value}')"));
}

fn stats(client: &mut Client) -> Value {
    answer(client, "tenant_cache_stats()")
}

/// What is kept of the totals, and what the entries add up to, of all tenants.
#[track_caller]
fn totals_are_right(admin: &mut Client) {
    let kept: Vec<String> = admin
        .rows(
            "SELECT concat_ws(' ', tenant, key_count, total_size_bytes) FROM tenant_cache_usage
             WHERE (key_count, total_size_bytes) <> (0, 0) ORDER BY tenant",
        )
        .iter()
        .map(|row| row.get(0))
        .collect();
    let real: Vec<String> = admin
        .rows("SELECT concat_ws(' ', tenant_id, count(*), sum(size)) FROM tenant_rls.cache GROUP BY tenant_id ORDER BY tenant_id")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(kept, real);
}

/// What was set comes back, digit by digit, to its tenant alone.
#[test]
fn a_value_comes_back_to_its_tenant() {
    let db = Db::with_orders();
    let (mut a, mut b) = (db.connect_as(&db.app(), A), db.connect_as(&db.app(), B));
    assert_eq!(get(&mut a, "cart"), None);
    set(&mut a, "cart", "{\"price\": 1.10, \"n\": 12345678901234567890}");
    set(&mut b, "cart", "\"b\"");
    assert_eq!(get(&mut a, "cart").as_deref(), Some("{\"n\": 12345678901234567890, \"price\": 1.10}"));
    assert_eq!(get(&mut b, "cart").as_deref(), Some("\"b\""));
    set(&mut a, "cart", "null");
    assert_eq!(get(&mut a, "cart").as_deref(), Some("null"));
    assert_eq!(get(&mut a, "Cart"), None);
    for size in [100, 5_000, 10_000, 1_000_000] {
        a.run(&format!("SELECT tenant_cache_set('large', to_jsonb((SELECT string_agg(md5(n::text), '') FROM generate_series(1, {size} / 32) AS n)))"));
        assert!(a.one::<bool>(&format!(
            "SELECT tenant_cache_get('large') = to_jsonb((SELECT string_agg(md5(n::text), '') FROM generate_series(1, {size} / 32) AS n))"
        )));
    }
    totals_are_right(&mut db.admin());
}

/// An expired entry is never returned, though it is still there; a new time begins with each set.
#[test]
fn an_expired_entry_is_never_returned() {
    let db = Db::with_orders();
    let (mut a, mut admin) = (db.connect_as(&db.app(), A), db.admin());
    a.run("SELECT tenant_cache_set('short', '1', '200 ms'), tenant_cache_set('long', '1', '1 month')");
    a.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1");
    eventually(&mut a, "SELECT tenant_cache_get('short') IS NULL");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.cache WHERE key = 'short'"), 1);
    assert_eq!(get(&mut a, "long").as_deref(), Some("1"));
    assert!(!a.one::<bool>("SELECT tenant_cache_delete('short')"));
    a.run("COMMIT");
    a.run("SELECT tenant_cache_set('short', '2', '1 ms')");
    a.run("SELECT tenant_cache_set('short', '3')");
    thread::sleep(Duration::from_millis(20));
    assert_eq!(get(&mut a, "short").as_deref(), Some("3"));
    // Writes take expired entries along.
    a.run("SELECT tenant_cache_set('old' || n, '1', '1 ms') FROM generate_series(1, 50) AS n");
    eventually(
        &mut a,
        "SELECT key_count < 10 FROM generate_series(1, 20) AS n, tenant_cache_set('new', to_jsonb(n)), tenant_cache_stats() ORDER BY n DESC LIMIT 1",
    );
    assert_eq!(get(&mut a, "long").as_deref(), Some("1"));
    totals_are_right(&mut admin);
}

/// Where room is needed, entries that have expired go before those that hold, however old these are.
#[test]
fn expired_entries_go_first() {
    let db = Db::with_orders();
    let (mut admin, mut a) = (db.admin(), db.connect_as(&db.app(), A));
    set(&mut a, "k0", "1");
    let one = stats(&mut a)["total_size_bytes"].as_i64().unwrap();
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'cache_bytes', {})", 5 * one));
    a.run("SELECT tenant_cache_set('k' || n, '1', '1 s') FROM generate_series(1, 4) AS n");
    eventually(&mut a, "SELECT tenant_cache_get('k4') IS NULL");
    for n in 5..=8 {
        set(&mut a, &format!("k{n}"), "1");
    }
    assert_eq!((get(&mut a, "k0").as_deref(), stats(&mut a)["evictions"].clone()), (Some("1"), json!(0)));
    set(&mut a, "k9", "1");
    assert_eq!((get(&mut a, "k0"), stats(&mut a)["evictions"].clone()), (None, json!(1)));
    totals_are_right(&mut admin);
}

/// A key, and the keys of a pattern; the keys of another tenant stay.
#[test]
fn keys_are_removed() {
    let db = Db::with_orders();
    let (mut a, mut b) = (db.connect_as(&db.app(), A), db.connect_as(&db.app(), B));
    let fill = "SELECT tenant_cache_set(k, '1') FROM unnest(ARRAY[
        'user:1:cart', 'user:1:name', 'user:2:cart', 'user:12:cart', 'users', 'user:*', 'a%b', 'a_b', 'ä', '']) AS k";
    for (pattern, count) in [
        ("user:1:cart", 1),
        ("user:*:cart", 3),
        ("user:?:cart", 2),
        ("user:[^1]:*", 1),
        ("user:\\*", 1),
        ("user*", 6),
        ("a_b", 1),
        ("a%", 0),
        ("?", 1),
        ("*", 10),
        ("", 1),
        ("nothing*", 0),
    ] {
        a.run(fill);
        b.run(fill);
        assert_eq!(a.one::<i64>(&format!("SELECT tenant_cache_invalidate('{pattern}')")), count, "{pattern}");
        assert_eq!(stats(&mut a)["key_count"], 10 - count, "{pattern}");
        assert_eq!(stats(&mut b)["key_count"], 10, "{pattern}");
        a.run("SELECT tenant_cache_invalidate('*')");
    }
    a.run(fill);
    assert!(a.one::<bool>("SELECT tenant_cache_delete('users')"));
    assert!(!a.one::<bool>("SELECT tenant_cache_delete('users')"));
    assert_eq!((get(&mut a, "users"), get(&mut b, "users").as_deref()), (None, Some("1")));
    totals_are_right(&mut db.admin());
}

/// Over the budget the tenant's own oldest entries go, and nobody else's.
#[test]
fn the_oldest_entries_go() {
    let db = Db::with_orders();
    let (mut admin, mut a, mut b) = (db.admin(), db.connect_as(&db.app(), A), db.connect_as(&db.app(), B));
    b.run("SELECT tenant_cache_set('k' || n, '1') FROM generate_series(1, 100) AS n");
    set(&mut a, "k0", "1");
    let one = stats(&mut a)["total_size_bytes"].as_i64().unwrap();
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'cache_bytes', {})", 5 * one));
    for n in 1..=4 {
        set(&mut a, &format!("k{n}"), "1");
    }
    assert_eq!(
        (stats(&mut a)["key_count"].clone(), stats(&mut a)["evictions"].clone()),
        (json!(5), json!(0))
    );
    // Set again, it is not the oldest any more.
    set(&mut a, "k0", "2");
    set(&mut a, "k5", "1");
    set(&mut a, "k6", "1");
    let there: Vec<bool> = (0..=6).map(|n| get(&mut a, &format!("k{n}")).is_some()).collect();
    assert_eq!(there, [true, false, false, true, true, true, true]);
    let now = stats(&mut a);
    assert_eq!((&now["evictions"], &now["budget"]), (&json!(2), &json!(5 * one)));
    assert!(now["total_size_bytes"].as_i64().unwrap() <= 5 * one);
    // An entry that is larger than the budget is not kept, nor is the value before it.
    a.run("SELECT tenant_cache_set('k6', to_jsonb(repeat('x', 10000)))");
    assert_eq!(get(&mut a, "k6"), None);
    assert_eq!(stats(&mut a)["key_count"], 4);
    // A smaller budget holds from the next write on.
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'cache_bytes', {})", 2 * one));
    set(&mut a, "k7", "1");
    assert_eq!(stats(&mut a)["key_count"], 2);
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'cache_bytes', 0)"));
    set(&mut a, "k8", "1");
    assert_eq!(get(&mut a, "k8"), None);
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'cache_bytes', NULL, unlimited => true)"));
    a.run("SELECT tenant_cache_set('k' || n, '1') FROM generate_series(1, 200) AS n");
    assert_eq!(stats(&mut a)["key_count"], 200);
    assert_eq!(stats(&mut a)["budget"], Value::Null);
    assert_eq!(stats(&mut b)["key_count"], 100);
    totals_are_right(&mut admin);
}

/// The budgets of the installed plans; a plan without one has no cache.
#[test]
fn a_plan_has_a_budget() {
    let db = Db::with_orders();
    let (mut admin, mut a) = (db.admin(), db.connect_as(&db.app(), A));
    for (plan, megabytes) in [("free", 16), ("starter", 64), ("professional", 256), ("enterprise", 1024)] {
        admin.run(&format!("SELECT tenant_plan_change('{A}', '{plan}')"));
        assert_eq!(stats(&mut a)["budget"], megabytes << 20, "{plan}");
    }
    admin.run(&format!("SELECT tenant_plan_define('bare'), tenant_plan_change('{A}', 'bare')"));
    refuses(
        &mut a,
        &[("SELECT tenant_cache_set('k', '1')", "42704"), ("SELECT * FROM tenant_cache_stats()", "42704")],
    );
    assert_eq!(get(&mut a, "k"), None);
    // Soft: counted, and nothing goes.
    admin.run("SELECT tenant_plan_limit_set('bare', 'cache_bytes', 10, enforcement => 'soft')");
    set(&mut a, "k", "1");
    assert_eq!(get(&mut a, "k").as_deref(), Some("1"));
}

/// The view of usage and the quota functions know the cache; nobody changes its gauge by hand.
#[test]
fn the_cache_is_a_gauge() {
    let db = Db::with_orders();
    let mut a = db.connect_as(&db.app(), A);
    set(&mut a, "k", "1");
    let size = stats(&mut a)["total_size_bytes"].as_i64().unwrap();
    assert_eq!(a.one::<i64>("SELECT used FROM tenant_usage WHERE resource = 'cache_bytes'"), size);
    assert_eq!(a.one::<i64>("SELECT used FROM tenant_quota_check('cache_bytes')"), size);
    assert_eq!(a.fails("SELECT * FROM tenant_quota_consume('cache_bytes')"), "55000");
    assert_eq!(a.fails("SELECT * FROM tenant_quota_release('cache_bytes')"), "55000");
    let mut admin = db.admin();
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_quota_invariants"), 0);
    assert_eq!(admin.fails("SELECT tenant_quota_attach('orders', 'cache_bytes')"), "55000");
    admin.run("SELECT tenant_quota_attach('orders', 'projects')");
}

/// A set belongs to its transaction; a get sees what is committed now, at every isolation level.
#[test]
fn transactions() {
    let db = Db::with_orders();
    let (mut a, mut other) = (db.connect_as(&db.app(), A), db.connect_as(&db.app(), A));
    a.run("BEGIN; SELECT tenant_cache_set('k', '1'), tenant_cache_set('l', '1')");
    assert_eq!((get(&mut a, "k").as_deref(), get(&mut other, "k")), (Some("1"), None));
    a.run("SAVEPOINT s; SELECT tenant_cache_set('k', '2'), tenant_cache_delete('l'), tenant_cache_invalidate('*'); ROLLBACK TO s");
    assert_eq!((get(&mut a, "k").as_deref(), get(&mut a, "l").as_deref()), (Some("1"), Some("1")));
    a.run("ROLLBACK");
    assert_eq!((get(&mut a, "k"), stats(&mut a)["key_count"].clone()), (None, json!(0)));
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        set(&mut other, "k", "0");
        a.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT 1"));
        assert_eq!(get(&mut a, "k").as_deref(), Some("0"), "{level}");
        set(&mut other, "k", "1");
        set(&mut other, "m", "1");
        assert_eq!(get(&mut a, "k").as_deref(), Some("1"), "{level}");
        set(&mut a, "k", "2");
        assert_eq!(a.one::<i64>("SELECT tenant_cache_invalidate('m')"), 1, "{level}");
        a.run("COMMIT");
        assert_eq!(get(&mut other, "k").as_deref(), Some("2"), "{level}");
    }
    totals_are_right(&mut db.admin());
}

/// A get writes nothing: no transaction id is taken.
#[test]
fn a_get_writes_nothing() {
    let db = Db::with_orders();
    let mut a = db.connect_as(&db.app(), A);
    set(&mut a, "k", "1");
    a.run("BEGIN");
    a.run("SELECT tenant_cache_get('k'), tenant_cache_get('nothing'), (tenant_cache_stats()).hits");
    assert_eq!(a.one::<Option<String>>("SELECT pg_current_xact_id_if_assigned()::text"), None);
    a.run("SELECT tenant_cache_set('k', '1')");
    assert_ne!(a.one::<Option<String>>("SELECT pg_current_xact_id_if_assigned()::text"), None);
    a.run("COMMIT; BEGIN READ ONLY");
    // Also where the counts of a backend would be due.
    a.run("SELECT count(tenant_cache_get('k')) FROM generate_series(1, 10050)");
    assert_eq!(get(&mut a, "k").as_deref(), Some("1"));
    a.run("COMMIT");
}

/// Hits and misses of all sessions come together; those of a session that only reads after a while.
#[test]
fn hits_and_misses_are_counted() {
    let db = Db::with_orders();
    let (mut a, mut other, mut admin) =
        (db.connect_as(&db.app(), A), db.connect_as(&db.app(), A), db.admin());
    set(&mut a, "k", "1");
    a.run("SELECT tenant_cache_get('k'), tenant_cache_get('k'), tenant_cache_get('nothing')");
    let counts = |client: &mut Client| {
        let now = stats(client);
        (now["hits"].as_i64().unwrap(), now["misses"].as_i64().unwrap())
    };
    assert_eq!(counts(&mut a), (2, 1));
    assert_eq!(counts(&mut other), (0, 0));
    set(&mut a, "k", "2");
    assert_eq!((counts(&mut a), counts(&mut other)), ((2, 1), (2, 1)));
    other.run("SELECT count(tenant_cache_get('k')) FROM generate_series(1, 10000)");
    assert_eq!(counts(&mut a), (10_002, 1));
    assert_eq!(
        admin.one::<i64>(&format!("SELECT hits FROM tenant_cache_usage WHERE tenant = '{A}'")),
        10_002
    );
    assert_eq!(stats(&mut a)["total_size_mb"], json!(0.0));
}

/// Writing what was counted is put off while somebody would have to be waited for: a get waits for nobody.
#[test]
fn a_get_waits_for_nobody() {
    let db = Db::with_orders();
    let (mut a, mut other, mut admin) =
        (db.connect_as(&db.app(), A), db.connect_as(&db.app(), A), db.admin());
    set(&mut a, "k", "1");
    admin.run(&format!("BEGIN; SELECT tenant_fence('{A}')"));
    a.run("SET lock_timeout = '1s'; SELECT count(tenant_cache_get('k')) FROM generate_series(1, 10050)");
    assert_eq!(a.fails("SELECT tenant_cache_set('k', '2')"), "55P03");
    admin.run("COMMIT");
    assert_eq!(get(&mut a, "k").as_deref(), Some("1"));
    assert_eq!(stats(&mut other)["hits"], 0);
    admin.run(&format!("SELECT tenant_unfence('{A}')"));
    get(&mut a, "k");
    assert_eq!(stats(&mut other)["hits"], 10_052);
}

/// Only indexes are used, so no entry of another tenant is looked at.
#[test]
fn other_tenants_are_not_scanned() {
    let db = Db::with_orders();
    let app = db.app();
    db.admin().run(&format!("GRANT pg_read_all_stats TO {app}"));
    let mut a = db.connect_as(&app, A);
    db.connect_as(&app, B).run("SELECT tenant_cache_set('k' || n, '1') FROM generate_series(1, 5000) AS n");
    let scans = "SELECT sum(seq_scan)::bigint FROM pg_stat_xact_all_tables WHERE schemaname = 'tenant_rls' AND relname LIKE 'cache%'";
    let read = "SELECT sum(idx_tup_fetch)::bigint FROM pg_stat_xact_all_tables WHERE schemaname = 'tenant_rls' AND relname = 'cache'";
    a.run("BEGIN");
    for _ in 0..7 {
        a.run(
            "SELECT tenant_cache_set('k' || n, '1') FROM generate_series(1, 20) AS n;
             SELECT tenant_cache_get('k1'), tenant_cache_delete('k1'); SELECT * FROM tenant_cache_stats();
             SELECT tenant_cache_invalidate('k1*'); SELECT tenant_cache_invalidate('*')",
        );
    }
    assert_eq!(a.one::<i64>(scans), 0);
    assert!(a.one::<i64>(read) < 1500);
    a.run("COMMIT");
}

/// Sixteen sessions set, get, delete and invalidate one key, and others beside it, with four of another tenant: a value is
/// always one that was set, whole and by the tenant itself, and the totals are right in the end.
#[test]
fn sixteen_sessions_on_one_key() {
    let db = Db::with_orders();
    let app = db.app();
    let hits = AtomicU64::new(0);
    thread::scope(|scope| {
        for session in 0..20u64 {
            let (db, app, hits) = (&db, &app, &hits);
            scope.spawn(move || {
                let tenant = if session % 5 == 4 { B } else { A };
                let mut client = db.connect_as(app, tenant);
                let mut random = session.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
                for step in 0..150u64 {
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let key = if random >> 60 < 12 { "hot".to_string() } else { format!("k{session}") };
                    match random % 16 {
                        0..=5 => {
                            let text = format!("{tenant} {key} {session}.{step} ");
                            let length = (random >> 20) % 300 * 10;
                            client.run(&format!(
                                "SELECT tenant_cache_set('{key}', jsonb_build_array('{text}', repeat('x', {length}), {length}))"
                            ));
                        }
                        6 => client.run(&format!("SELECT tenant_cache_delete('{key}')")),
                        7 => client.run("SELECT tenant_cache_invalidate('ho?')"),
                        8 => client.run(&format!("BEGIN; SELECT tenant_cache_set('{key}', '[\"never\"]'); ROLLBACK")),
                        _ => {
                            let sql = format!("SELECT tenant_cache_get('{key}')::text");
                            if let Some(text) = client.one::<Option<String>>(&sql) {
                                let value: Value = serde_json::from_str(&text).expect("a whole value");
                                assert!(value[0].as_str().unwrap().starts_with(&format!("{tenant} {key} ")), "{text}");
                                assert_eq!(value[1].as_str().unwrap().len() as u64, value[2].as_u64().unwrap());
                                hits.fetch_add(1, Ordering::Relaxed);
                            }
                        }
                    }
                }
            });
        }
    });
    assert!(hits.load(Ordering::Relaxed) > 50);
    totals_are_right(&mut db.admin());
}

/// The changes of a key by many sessions. Each takes its number while its transaction has the row, so they are committed in
/// this order.
#[derive(Default)]
struct Changes {
    begun: AtomicU64,
    committed: AtomicU64,
    /// The last one that removes the key, as soon as it has its number.
    removal: AtomicU64,
}

impl Changes {
    /// Sets the key to the number of the change, or removes it by that statement.
    fn change(&self, client: &mut Client, tenant: &str, removal: Option<&str>) {
        client.run("BEGIN");
        set(client, "hot", &format!("[\"{tenant}\", -1]"));
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        match removal {
            None => set(client, "hot", &format!("[\"{tenant}\", {number}]")),
            Some(sql) => {
                self.removal.store(number, Ordering::SeqCst);
                client.run(sql);
            }
        }
        client.run("COMMIT");
        self.committed.fetch_max(number, Ordering::SeqCst);
    }

    /// Asks for the key. Whether it was there.
    #[track_caller]
    fn check(&self, client: &mut Client, tenant: &str) -> bool {
        let committed = self.committed.load(Ordering::SeqCst);
        let Some(text) = get(client, "hot") else {
            assert!(
                self.removal.load(Ordering::SeqCst) >= committed,
                "{committed} was set, and not removed since"
            );
            return false;
        };
        let value: Value = serde_json::from_str(&text).expect("a whole value");
        assert_eq!(value[0], tenant);
        assert!(value[1].as_i64() >= Some(committed as i64), "{text} after {committed} was committed");
        true
    }
}

/// A get that begins after a set, a delete or an invalidation was committed answers that or what came later, in all
/// sixteen sessions that change the key, at every isolation level.
#[test]
fn a_get_is_never_behind_what_is_committed() {
    let db = Db::with_orders();
    let app = db.app();
    let (of_a, of_b) = (Changes::default(), Changes::default());
    let hits = AtomicU64::new(0);
    thread::scope(|scope| {
        for session in 0..20usize {
            let (db, app, hits) = (&db, &app, &hits);
            let (tenant, changes) = if session % 5 == 4 { (B, &of_b) } else { (A, &of_a) };
            scope.spawn(move || {
                let mut client = db.connect_as(app, tenant);
                for step in 0..60 {
                    match (session + step) % 8 {
                        0 | 1 => changes.change(&mut client, tenant, None),
                        2 => changes.change(&mut client, tenant, Some("SELECT tenant_cache_delete('hot')")),
                        3 => {
                            changes.change(&mut client, tenant, Some("SELECT tenant_cache_invalidate('h*')"))
                        }
                        4 => client.run("BEGIN; SELECT tenant_cache_set('hot', '[\"never\", 0]'); ROLLBACK"),
                        5 => {
                            client.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM orders");
                            for _ in 0..4 {
                                hits.fetch_add(changes.check(&mut client, tenant).into(), Ordering::Relaxed);
                            }
                            client.run("COMMIT");
                        }
                        _ => _ = hits.fetch_add(changes.check(&mut client, tenant).into(), Ordering::Relaxed),
                    }
                }
            });
        }
    });
    assert!(hits.load(Ordering::Relaxed) > 50);
    totals_are_right(&mut db.admin());
}

/// Sessions fill a small cache at once: none waits for ever, and it ends within its budget.
#[test]
fn sixteen_sessions_over_the_budget() {
    let db = Db::with_orders();
    let app = db.app();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_quota_set('{A}', 'cache_bytes', 20000)"));
    thread::scope(|scope| {
        for session in 0..16 {
            let (db, app) = (&db, &app);
            scope.spawn(move || {
                let mut client = db.connect_as(app, A);
                for n in 0..60 {
                    client.run(&format!(
                        "SELECT tenant_cache_set('k{session}.{n}', to_jsonb(repeat('x', 200)))"
                    ));
                }
            });
        }
    });
    let mut a = db.connect_as(&app, A);
    set(&mut a, "last", "1");
    let now = stats(&mut a);
    assert!(now["total_size_bytes"].as_i64().unwrap() <= 20_000, "{now}");
    assert!(now["key_count"].as_i64().unwrap() > 40 && now["evictions"].as_i64().unwrap() > 800, "{now}");
    assert_eq!(get(&mut a, "last").as_deref(), Some("1"));
    totals_are_right(&mut admin);
}

/// An open transaction that has set, deleted and invalidated holds nobody up who asks for a key or sets another one.
#[test]
fn open_transactions_block_no_other_keys() {
    let db = Db::with_orders();
    let app = db.app();
    let mut open: Vec<Client> = (0..10).map(|_| db.connect_as(&app, A)).collect();
    let mut other = db.connect_as(&app, A);
    other.run(
        "SELECT tenant_cache_set('k' || n, '0') FROM generate_series(1, 30) AS n; SET lock_timeout = '5s'",
    );
    for (n, client) in open.iter_mut().enumerate() {
        client
            .run(&format!("BEGIN; SELECT tenant_cache_set('k{n}', '1'), tenant_cache_delete('k{}')", n + 10));
    }
    open[0].run("SELECT tenant_cache_invalidate('k2?')");
    assert_eq!(get(&mut other, "k1").as_deref(), Some("0"));
    assert_eq!(get(&mut other, "k12").as_deref(), Some("0"));
    assert_eq!(get(&mut other, "k22").as_deref(), Some("0"));
    set(&mut other, "new", "1");
    assert!(other.one::<bool>("SELECT tenant_cache_delete('k30')"));
    // The key itself waits, as any row.
    other.run("SET lock_timeout = '100ms'");
    assert_eq!(other.fails("SELECT tenant_cache_set('k1', '2')"), "55P03");
    for client in &mut open {
        client.run("COMMIT");
    }
    set(&mut other, "k1", "2");
    totals_are_right(&mut db.admin());
}

/// What makes no sense, what may not be written, and who has no tenant.
#[test]
fn what_is_refused() {
    let db = Db::with_orders();
    let (mut admin, mut a) = (db.admin(), db.connect_as(&db.app(), A));
    let long = "x".repeat(1025);
    refuses(
        &mut a,
        &[
            ("SELECT tenant_cache_get(NULL)", "22004"),
            ("SELECT tenant_cache_set(NULL, '1')", "22004"),
            ("SELECT tenant_cache_set('k', NULL)", "22004"),
            ("SELECT tenant_cache_set('k', '1', NULL)", "22004"),
            ("SELECT tenant_cache_set('k', '1', '0 s')", "22023"),
            ("SELECT tenant_cache_set('k', '1', '-1 month')", "22023"),
            ("SELECT tenant_cache_set('k', '1', '400000 years')", "22008"),
            (&format!("SELECT tenant_cache_set('{long}', '1')"), "22023"),
            ("SELECT tenant_cache_delete(NULL)", "22004"),
            ("SELECT tenant_cache_invalidate(NULL)", "22004"),
            ("SELECT tenant_cache_key(NULL)", "22004"),
            ("SELECT * FROM tenant_cache_usage", "42501"),
            ("SELECT * FROM tenant_rls.cache", "42501"),
        ],
    );
    for call in [
        &format!("SELECT tenant_cache_set('{long}', '1')"),
        "SELECT tenant_cache_set('k', '1', '0 s')",
        "SELECT tenant_cache_invalidate(repeat('?', 4097))",
    ] {
        let report = report(&mut a, call);
        assert_eq!(
            (report.code().code(), report.detail().is_some(), report.hint().is_some()),
            ("22023", true, true)
        );
    }
    a.run("SELECT tenant_cache_invalidate(repeat('?', 4096))");
    assert_eq!(get(&mut a, &long), None);
    a.run(&format!("SELECT tenant_cache_set('{}', '1')", &long[1..]));
    let calls = [
        "SELECT tenant_cache_set('k', '1')",
        "SELECT tenant_cache_delete('k')",
        "SELECT tenant_cache_invalidate('k')",
    ];
    for call in calls {
        a.run(call);
        assert_eq!(a.fails(&format!("BEGIN READ ONLY; {call}")), "25006", "{call}");
        a.run("ROLLBACK");
    }
    set(&mut a, "k", "1");
    admin.run(&format!("SELECT tenant_fence('{A}')"));
    refuses(&mut a, &calls.map(|call| (call, "25006")));
    assert_eq!(get(&mut a, "k").as_deref(), Some("1"));
    admin.run(&format!("SELECT tenant_unfence('{A}'); SELECT tenant_suspend('{A}')"));
    let all = [
        &calls[..],
        &[
            "SELECT tenant_cache_get('k')",
            "SELECT * FROM tenant_cache_stats()",
            "SELECT tenant_cache_key('k')",
        ],
    ]
    .concat();
    let all: Vec<(&str, &str)> = all.into_iter().map(|call| (call, "55000")).collect();
    refuses(&mut a, &all);
    refuses(&mut db.connect(&db.app()), &all);
    let office = db.role_name("office");
    db.role(&office, "LOGIN");
    admin.run(&format!("SELECT tenant_grant_operator('{office}')"));
    let mut office = db.connect(&office);
    assert_eq!(
        office.one::<i64>(&format!("SELECT key_count FROM tenant_cache_usage WHERE tenant = '{A}'")),
        2
    );
    assert_eq!(office.fails("SELECT tenant_cache_get('k')"), "42501");
    let reader = db.role_name("reader");
    db.role(&reader, "LOGIN IN ROLE pg_read_all_data");
    let mut reader = db.connect(&reader);
    for table in ["tenant_cache_usage", "tenant_rls.cache", "tenant_rls.cache_parts"] {
        assert_eq!(reader.one::<i64>(&format!("SELECT count(*) FROM {table}")), 0, "{table}");
    }
}

/// The name of a key in a cache that tenants share.
#[test]
fn a_key_names_its_tenant() {
    let db = Db::with_orders();
    let mut a = db.connect_as(&db.app(), A);
    assert_eq!(a.one::<String>("SELECT tenant_cache_key('user:1')"), format!("tenant:{A}:user:1"));
}

/// The purge of a tenant erases its cache, and nobody else's.
#[test]
fn a_purged_tenant_has_no_entries() {
    let db = Db::with_orders();
    for tenant in [A, B] {
        set(&mut db.connect_as(&db.app(), tenant), "k", "1");
    }
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_delete('{A}')"));
    admin.run(&format!("CALL tenant_purge('{A}')"));
    for table in ["cache", "cache_parts"] {
        let tenants: String =
            admin.one(&format!("SELECT string_agg(DISTINCT tenant_id::text, ' ') FROM tenant_rls.{table}"));
        assert_eq!(tenants, B, "{table}");
    }
}

/// A dump does not carry it.
#[test]
fn a_dump_has_no_entries() {
    let db = Db::with_orders();
    set(&mut db.connect_as(&db.app(), A), "k", "\"canary of the cache\"");
    let (host, port) = db.address();
    let programs: String = db.admin().one("SELECT setting FROM pg_config WHERE name = 'BINDIR'");
    let superuser: String = db.admin().one("SELECT session_user::text");
    let port = port.to_string();
    let dump = run(&format!("{programs}/pg_dump"), &["-h", host, "-p", &port, "-U", &superuser, db.name()]);
    assert!(dump.contains("COPY tenant_rls.tenants") && !dump.contains("canary of the cache"));
}

/// A cluster with the extension and a tenant.
fn cluster() -> Cluster {
    let cluster = Cluster::start(&[
        "shared_preload_libraries = 'tenant_rls'",
        "wal_level = replica",
        "max_wal_senders = 4",
    ]);
    cluster.connect("postgres", "postgres").run(&format!(
        "CREATE EXTENSION tenant_rls; SELECT tenant_create('{A}'); CREATE ROLE app LOGIN; SELECT tenant_grant('app');
         ALTER ROLE app SET app.current_tenant = '{A}'"
    ));
    cluster
}

/// A connection to a server that is starting anew.
fn reconnect(cluster: &Cluster) -> Client {
    for _ in 0..500 {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(cluster.port()).dbname("postgres").user("app");
        // Connections from before the crash end; a new one may still reach the old server.
        if let Ok(mut client) = config.connect(postgres::NoTls)
            && client.attempt("SELECT 1").is_none()
            && cluster.log().contains("all server processes terminated; reinitializing")
        {
            return client;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the server has not started anew:\n{}", cluster.log());
}

/// A backend is killed, the server starts anew: the cache is empty, and everything goes on.
#[test]
fn after_a_crash_it_is_empty() {
    let cluster = cluster();
    let mut app = cluster.connect("postgres", "app");
    set(&mut app, "k", "1");
    cluster.connect("postgres", "postgres").run("CHECKPOINT");
    let pid: i32 = app.one("SELECT pg_backend_pid()");
    run("kill", &["-9", &pid.to_string()]);
    let mut app = reconnect(&cluster);
    assert_eq!(get(&mut app, "k"), None);
    assert_eq!(stats(&mut app)["key_count"], 0);
    set(&mut app, "k", "2");
    assert_eq!(get(&mut app, "k").as_deref(), Some("2"));
    assert_eq!(app.one::<i64>("SELECT tenant_cache_invalidate('*')"), 1);
    assert_eq!(app.one::<i64>("SELECT used FROM tenant_quota_consume('api_requests')"), 1);
    totals_are_right(&mut cluster.connect("postgres", "postgres"));
}

/// On a standby a get answers NULL and a set is refused; after its promotion there is a cache again.
#[test]
fn a_standby_has_no_cache() {
    let cluster = cluster();
    let mut app = cluster.connect("postgres", "app");
    set(&mut app, "k", "1");
    let standby = cluster.standby();
    let mut reader = standby.connect("postgres", "app");
    assert_eq!(get(&mut reader, "k"), None);
    assert_eq!(stats(&mut reader)["key_count"], 0);
    for call in [
        "SELECT tenant_cache_set('k', '1')",
        "SELECT tenant_cache_delete('k')",
        "SELECT tenant_cache_invalidate('*')",
    ] {
        let error = report(&mut reader, call);
        // The environment of the server asks for backtraces, which are not for clients.
        assert_eq!((error.code().code(), error.detail()), ("25006", None), "{call}");
    }
    reader.run("SELECT * FROM tenant_usage; SELECT * FROM tenant_quota_check('cache_bytes')");
    assert_eq!(get(&mut app, "k").as_deref(), Some("1"));
    standby.promote();
    eventually(&mut reader, "SELECT NOT pg_is_in_recovery()");
    assert_eq!(get(&mut reader, "k"), None);
    set(&mut reader, "k", "2");
    assert_eq!(get(&mut reader, "k").as_deref(), Some("2"));
}
