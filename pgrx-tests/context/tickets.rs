//! Signed tickets.

use super::standby::catch_up;
use super::ways::shop as shop_in;
use super::{current, notes};
use crate::cluster::Cluster;
use crate::harness::{A, B, Db, Session, eventually};
use crate::signer::{self, SECRET, claims, now};

const HEADER: &str = r#"{"alg":"HS256","kid":"k"}"#;

fn sign(secret: &[u8], alg: &str, claims: &str) -> String {
    signer::hs256(secret, &format!(r#"{{"alg":"{alg}","kid":"k"}}"#), claims)
}

fn ticket(tenant: &str, seconds: i64, more: &str) -> String {
    signer::hs256(SECRET.as_bytes(), HEADER, &claims(tenant, seconds, more))
}

fn set(ticket: &str) -> String {
    format!("SELECT set_tenant_ticket('{ticket}', false)")
}

/// A role that acts for [`A`] with a ticket, and the key.
fn shop(db: &Db) -> String {
    let role = db.role_name("ticket");
    db.role(&role, "LOGIN");
    db.admin().run(&format!(
        "GRANT SELECT ON orders TO {role}; SELECT tenant_grant('{role}', '{A}', ticket_required => true);
         SELECT tenant_signing_key_set('k', 'HS256', '{SECRET}')"
    ));
    role
}

/// A ticket sets its tenant, and nothing else does: not the same text again, not another tenant.
#[test]
fn only_a_ticket_sets_the_tenant() {
    let db = Db::with_orders();
    let mut session = db.connect(&shop(&db));
    for way in [
        format!("SET app.current_tenant = '{A}'"),
        format!("SELECT set_config('app.current_tenant', '{A}', true)"),
        format!("SELECT set_tenant('{A}', false)"),
        "SET tenant_rls.ticket = 'x'".into(),
        set(&ticket(B, 60, "")),
    ] {
        session.run(&set(&ticket(A, 60, "")));
        assert_eq!(notes(&mut session), ["a1", "a2"]);
        assert_eq!(session.fails(&way), "42501", "{way}");
    }
}

/// What is no valid ticket is refused, and leaves no tenant.
#[test]
fn what_is_no_ticket_is_refused() {
    let db = Db::with_orders();
    let mut session = db.connect(&shop(&db));
    let good = ticket(A, 60, "");
    let claims = claims(A, 60, "");
    for bad in [
        String::new(),
        "a.b.c".into(),
        "a".repeat(1_000_000),
        good[..good.len() - 2].into(),
        sign(SECRET.as_bytes(), "none", &claims),
        sign(SECRET.as_bytes(), "EdDSA", &claims),
        sign(&[1; 32], "HS256", &claims),
        ticket(A, 0, ""),
        ticket(A, 60, r#","nbf":4000000000"#),
        ticket(A, 60, r#","aud":"other""#),
        ticket(A, 60, &format!(r#","tenant":"{B}""#)),
    ] {
        session.run(&set(&good));
        assert_eq!(session.fails(&set(&bad)), "42501", "{bad:.60}");
        assert_eq!(session.fails("SELECT FROM orders"), "55000", "{bad:.60}");
    }
}

/// A ticket that runs out while the session is idle, or while a cursor is open, is out.
#[test]
fn expiry_is_checked_at_every_statement() {
    let db = Db::with_orders();
    let mut session = db.connect(&shop(&db));
    session.run(&set(&ticket(A, 3, "")));
    session.run("BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders; FETCH 1 FROM c; SAVEPOINT s");
    eventually(&mut db.admin(), &format!("SELECT extract(epoch FROM clock_timestamp()) > {}", now() + 3));
    assert_eq!(session.fails("FETCH 1 FROM c"), "42501");
    session.run("ROLLBACK TO s");
    assert_eq!(session.fails("SELECT FROM orders"), "42501");
    session.run("ROLLBACK");
    assert_eq!(current(&mut session), None);
    session.run(&set(&ticket(A, 60, "")));
    assert_eq!(notes(&mut session), ["a1", "a2"]);
}

/// Dropped and changed keys, revoked grants and suspensions hold at once.
#[test]
fn what_a_ticket_rests_on_can_be_taken() {
    let db = Db::with_orders();
    let role = shop(&db);
    let (mut session, mut admin) = (db.connect(&role), db.admin());
    let key = format!("SELECT tenant_signing_key_set('k', 'HS256', '{SECRET}'");
    for (take, state, back) in [
        ("SELECT tenant_signing_key_drop('k')".to_string(), "42501", format!("{key})")),
        (
            format!("SELECT tenant_signing_key_set('k', 'HS256', '{}')", "x".repeat(32)),
            "42501",
            format!("{key})"),
        ),
        (format!("{key}, not_after => now())"), "42501", format!("{key})")),
        (
            format!("SELECT tenant_revoke('{role}', '{A}')"),
            "42501",
            format!("SELECT tenant_grant('{role}', '{A}', true)"),
        ),
        (format!("SELECT tenant_suspend('{A}')"), "55000", format!("SELECT tenant_resume('{A}')")),
    ] {
        session.run(&format!("{}; BEGIN", set(&ticket(A, 60, ""))));
        assert_eq!(notes(&mut session), ["a1", "a2"]);
        session.run("DECLARE c CURSOR FOR SELECT note FROM orders; FETCH 1 FROM c; SAVEPOINT s");
        admin.run(&take);
        assert_eq!(session.fails("FETCH 1 FROM c"), state, "{take}, cursor");
        session.run("ROLLBACK TO s");
        assert_eq!(session.fails("SELECT FROM orders"), state, "{take}");
        session.run("ROLLBACK");
        admin.run(&back);
    }
}

/// A single-use ticket is used up by its first use, also by one that is still open, and by one that is rolled back: in
/// the transaction, to a savepoint, or with the connection.
#[test]
fn a_jti_is_used_once() {
    let db = Db::with_orders();
    let role = shop(&db);
    let (mut first, mut second) = (db.connect(&role), db.connect(&role));
    let once = |jti: &str| set(&ticket(A, 60, &format!(r#","jti":"{jti}""#)));
    first.run(&format!("BEGIN; {}", once("open")));
    assert_eq!(notes(&mut first), ["a1", "a2"]);
    assert_eq!(second.fails(&once("open")), "42501");
    first.run("ROLLBACK");
    for session in [&mut first, &mut second] {
        assert_eq!(session.fails(&once("open")), "42501");
    }
    first.run(&format!("BEGIN; SAVEPOINT s; {}; ROLLBACK TO s", once("savepoint")));
    assert_eq!(first.fails(&once("savepoint")), "42501");
    first.run("ROLLBACK");
    first.run(&format!("BEGIN; {}", once("closed")));
    drop(first);
    assert_eq!(second.fails(&once("closed")), "42501");
    second.run(&once("committed"));
    assert_eq!(notes(&mut second), ["a1", "a2"]);
    assert_eq!(second.fails(&once("committed")), "42501");
    // The same jti under another key is another ticket.
    db.admin().run(&format!("SELECT tenant_signing_key_set('l', 'HS256', '{SECRET}')"));
    let other = r#"{"alg":"HS256","kid":"l"}"#;
    second.run(&set(&signer::hs256(SECRET.as_bytes(), other, &claims(A, 60, r#","jti":"open""#))));
}

/// Under every isolation level, with a snapshot from before the use by another session.
#[test]
fn an_old_snapshot_knows_what_was_used() {
    let db = Db::with_orders();
    let role = shop(&db);
    let (mut first, mut second) = (db.connect(&role), db.connect(&role));
    for level in ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"] {
        let once = set(&ticket(A, 60, &format!(r#","jti":"{level}""#)));
        second.run(&format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class"));
        first.run(&once);
        assert_eq!(second.fails(&once), "42501", "{level}");
        second.run("ROLLBACK");
        second.run(&format!(
            "BEGIN ISOLATION LEVEL {level}; {}; COMMIT",
            set(&ticket(A, 60, &format!(r#","jti":"{level} 2""#)))
        ));
    }
}

/// Of many sessions that show the same single-use ticket at once, one gets in.
#[test]
fn one_of_many_gets_in() {
    let db = Db::with_orders();
    let role = shop(&db);
    for round in 0..20 {
        let once = set(&ticket(A, 60, &format!(r#","jti":"{round}""#)));
        let answers: Vec<_> = std::thread::scope(|scope| {
            let sessions: Vec<_> = (0..8)
                .map(|_| {
                    let (mut session, once) = (db.connect(&role), once.clone());
                    scope.spawn(move || session.attempt(&once))
                })
                .collect();
            sessions.into_iter().map(|session| session.join().expect("an answer")).collect()
        });
        assert_eq!(answers.iter().filter(|answer| answer.is_none()).count(), 1, "{answers:?}");
        assert!(answers.iter().flatten().all(|state| state == "42501"), "{answers:?}");
    }
    // Rows and entries agree.
    let mut admin = db.admin();
    admin.run("SET enable_seqscan = off");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.used_tickets WHERE digest >= ''"), 20);
    admin.run("SET enable_seqscan = on; SET enable_indexscan = off; SET enable_indexonlyscan = off; SET enable_bitmapscan = off");
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.used_tickets"), 20);
    admin.run("CREATE EXTENSION amcheck; SELECT bt_index_check(i, true) FROM unnest(ARRAY['tenant_rls.used_tickets_pkey', 'tenant_rls.used_tickets_expires_idx']::regclass[]) AS i");
    assert_eq!(admin.rows("SELECT * FROM verify_heapam('tenant_rls.used_tickets')").len(), 0);
    admin.run("VACUUM (FREEZE) tenant_rls.used_tickets");
    admin.run("DELETE FROM tenant_rls.used_tickets");
}

/// A crash, and a standby that takes over, do not give back what was used, even in a transaction that never ended.
#[test]
fn a_use_survives_crashes() {
    let primary = Cluster::start(&["wal_writer_delay = '10s'", "hot_standby_feedback = on"]);
    shop_in(&primary);
    primary.connect("shop", "postgres").run(&format!(
        "SELECT tenant_grant('app', '{A}', true), tenant_revoke('app'), tenant_signing_key_set('k', 'HS256', '{SECRET}')"
    ));
    let standby = primary.standby();
    let once = set(&ticket(A, 600, r#","jti":"1""#));
    let mut app = primary.connect("shop", "app");
    app.run(&format!("BEGIN; {once}"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
    assert_eq!(standby.connect("shop", "app").fails(&once), "25006");
    primary.crash();
    primary.up();
    let mut app = primary.connect("shop", "app");
    assert_eq!(app.fails(&once), "42501");
    app.run(&set(&ticket(A, 600, r#","jti":"2""#)));
    catch_up(&primary, &standby);
    primary.down();
    standby.promote();
    let mut app = standby.connect("shop", "app");
    for jti in 1..=2 {
        assert_eq!(app.fails(&set(&ticket(A, 600, &format!(r#","jti":"{jti}""#)))), "42501", "{jti}");
    }
    app.run(&set(&ticket(A, 600, r#","jti":"3""#)));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// A ticket that is refused for another reason than its text is not used up by that.
#[test]
fn what_is_refused_is_not_used_up() {
    let db = Db::with_orders();
    let role = shop(&db);
    let (mut session, mut admin, mut app) = (db.connect(&role), db.admin(), db.connect(&db.app()));
    let once = set(&ticket(A, 60, r#","jti":"1""#));
    admin.run(&format!("SELECT tenant_suspend('{A}')"));
    assert_eq!(session.fails(&once), "55000");
    admin.run(&format!("SELECT tenant_resume('{A}')"));
    session.run("BEGIN READ ONLY");
    assert_eq!(session.fails(&once), "25006");
    session.run(&format!("ROLLBACK; BEGIN READ ONLY; {}; ROLLBACK", set(&ticket(A, 60, ""))));
    // By a role that may act for all, while a statement that sees another tenant is open.
    app.run(&format!(
        "BEGIN; SELECT set_tenant('{B}'); DECLARE c CURSOR FOR SELECT FROM orders; FETCH 1 FROM c"
    ));
    assert_eq!(app.fails(&once), "55000");
    session.run(&once);
    assert_eq!(session.fails(&once), "42501");
}

/// Ed25519: the database holds the public key only.
#[test]
fn eddsa_is_checked() {
    let db = Db::with_orders();
    let mut session = db.connect(&shop(&db));
    let public = signer::public_key();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_signing_key_set('e', 'EdDSA', {})", signer::public_key_sql()));
    let header = |alg: &str| format!(r#"{{"alg":"{alg}","kid":"e"}}"#);
    let good = signer::eddsa(&header("EdDSA"), &claims(A, 60, ""));
    session.run(&set(&good));
    assert_eq!(notes(&mut session), ["a1", "a2"]);
    let mut tampered = good.clone().into_bytes();
    let middle = good.len() / 2;
    tampered[middle] = if tampered[middle] == b'x' { b'y' } else { b'x' };
    for bad in [
        // The public key is no secret: whoever knows it could sign with it, were the algorithm up to the ticket.
        signer::hs256(&public, &header("HS256"), &claims(A, 60, "")),
        signer::hs256(&public, &header("EdDSA"), &claims(A, 60, "")),
        signer::eddsa(&header("HS256"), &claims(A, 60, "")),
        signer::eddsa(&header("none"), &claims(A, 60, "")),
        signer::eddsa(r#"{"alg":"EdDSA","kid":"k"}"#, &claims(A, 60, "")),
        signer::eddsa(r#"{"alg":"EdDSA","kid":"unknown"}"#, &claims(A, 60, "")),
        signer::eddsa(&header("EdDSA"), &claims(B, 60, "")),
        signer::eddsa(&header("EdDSA"), &claims(A, -1, "")),
        String::from_utf8(tampered).expect("text"),
        format!("{}.", signer::unsigned(&header("EdDSA"), &claims(A, 60, ""))),
    ] {
        assert_eq!(session.fails(&set(&bad)), "42501", "{bad}");
        assert_eq!(session.fails("SELECT FROM orders"), "55000", "{bad}");
    }
    let zero = format!("SELECT tenant_signing_key_set('z', 'EdDSA', '\\x{}')", "00".repeat(32));
    assert_eq!(admin.fails(&zero), "22023");
    session.run(&set(&good));
    admin.run("SELECT tenant_signing_key_drop('e')");
    assert_eq!(session.fails("SELECT FROM orders"), "42501");
}

/// A database with a name takes tickets for it alone, one without a name none that are for somebody.
#[test]
fn the_audience_must_be_this_database() {
    let db = Db::with_orders();
    let role = shop(&db);
    let accepts = |session: &mut postgres::Client, aud: &str| {
        let more = if aud.is_empty() { String::new() } else { format!(r#","aud":{aud}"#) };
        session.attempt(&set(&ticket(A, 60, &more)))
    };
    let refused = Some("42501".to_string());
    let mut session = db.connect(&role);
    assert_eq!(session.fails("SET tenant_rls.ticket_audience = 'shop'"), "42501");
    assert_eq!(accepts(&mut session, ""), None);
    for aud in [r#""shop""#, r#"["shop"]"#, r#""""#, "[]", "null", "1"] {
        assert_eq!(accepts(&mut session, aud), refused, "without a name: {aud}");
    }
    db.admin().run(&format!("ALTER DATABASE {} SET tenant_rls.ticket_audience = 'shop'", db.name()));
    let mut session = db.connect(&role);
    for aud in [r#""shop""#, r#"["shop"]"#, r#"["other","shop"]"#] {
        assert_eq!(accepts(&mut session, aud), None, "{aud}");
    }
    for aud in
        ["", r#""other""#, r#""Shop""#, r#""shop ""#, r#"["other"]"#, "[]", "null", r#"{"shop":1}"#, "[1]"]
    {
        assert_eq!(accepts(&mut session, aud), refused, "{aud}");
    }
}

/// A role for all tenants that needs a ticket for each: what a pool runs as.
#[test]
fn a_role_for_all_needs_a_ticket_for_each() {
    let db = Db::with_orders();
    let (app, mut admin) = (db.app(), db.admin());
    admin.run(&format!(
        "SELECT tenant_grant_ticket('{app}'), tenant_signing_key_set('k', 'HS256', '{SECRET}')"
    ));
    let mut session = db.connect(&app);
    for tenant in [A, B] {
        for way in [format!("SELECT set_tenant('{tenant}')"), format!("SET app.current_tenant = '{tenant}'")]
        {
            assert_eq!(session.fails(&way), "42501", "{way}");
        }
        session.run(&set(&ticket(tenant, 60, "")));
        assert_eq!(current(&mut session).as_deref(), Some(tenant));
        assert_eq!(notes(&mut session).len(), 2);
    }
    // Which tenants and keys exist does not show.
    let unknown = "cccccccc-0000-4000-8000-00000000000c";
    admin.run(&format!("UPDATE tenant_rls.tenants SET tenant_key = 1 WHERE tenant_id = '{A}'"));
    let say = |session: &mut postgres::Client, sql: String| {
        crate::harness::report(session, &sql).message().to_string()
    };
    assert_eq!(
        say(&mut session, "SELECT set_tenant_key(1)".into()),
        say(&mut session, "SELECT set_tenant_key(2)".into())
    );
    assert_eq!(
        say(&mut session, format!("SELECT set_tenant('{A}')")),
        say(&mut session, format!("SELECT set_tenant('{unknown}')"))
    );
    assert_eq!(session.fails(&set(&ticket(unknown, 60, ""))), "42501");
    admin.run(&format!("SELECT tenant_grant('{app}')"));
    session.run(&format!("SET app.current_tenant = '{A}'"));
    admin.run(&format!("SELECT tenant_grant_ticket('{app}')"));
    assert_eq!(session.fails("SELECT FROM orders"), "42501");
    session.run(&set(&ticket(A, 60, "")));
    admin.run(&format!("SELECT tenant_revoke('{app}')"));
    assert_eq!(session.fails("SELECT FROM orders"), "42501");
    assert_eq!(admin.fails("SELECT tenant_grant_ticket(NULL)"), "22004");
}

/// Parallel workers know the ticket.
#[test]
fn parallel_workers_know_the_ticket() {
    let db = Db::with_orders();
    let role = shop(&db);
    db.admin().run(&format!(
        "INSERT INTO orders SELECT g, CASE WHEN g % 4 = 0 THEN '{A}' ELSE '{B}' END::uuid, 'x'
         FROM generate_series(5, 20000) AS g;
         ANALYZE orders"
    ));
    let mut session = db.connect(&role);
    session.run(&set(&ticket(A, 600, "")));
    session.run(
        "SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0;
         SET parallel_leader_participation = off;
         SET enable_indexscan = off; SET enable_bitmapscan = off; SET enable_indexonlyscan = off",
    );
    let query = "SELECT count(*) FROM orders WHERE note IS NOT NULL";
    // Other tests may have all workers of the server just now.
    let launched = (0..100).any(|_| {
        let plan = session.rows(&format!("EXPLAIN (ANALYZE, TIMING off) {query}"));
        plan.iter().any(|row| {
            let line = row.get::<_, String>(0);
            line.split_once("Workers Launched: ").is_some_and(|(_, workers)| workers != "0")
        })
    });
    assert!(launched, "no worker has run");
    assert_eq!(session.one::<i64>(query), 5001);
}

/// Keys are for superusers, weak ones for nobody, and the record of changes holds none.
#[test]
fn keys_are_kept() {
    let db = Db::with_orders();
    let role = shop(&db);
    let (mut session, mut admin) = (db.connect(&role), db.admin());
    let call = "SELECT tenant_signing_key_set('l', 'HS256', '0123456789abcdef0123456789abcdef')";
    assert_eq!(session.fails(call), "42501");
    admin.run(call);
    assert_eq!(session.fails("TABLE tenant_rls.signing_keys"), "42501");
    assert_eq!(admin.fails("SELECT tenant_signing_key_set('m', 'HS256', 'short')"), "22023");
    assert_eq!(admin.fails("SELECT tenant_signing_key_set('m', 'none', '')"), "22023");
    assert_eq!(admin.fails("SELECT tenant_signing_key_drop('unknown')"), "42704");
    admin.run("SELECT tenant_signing_key_drop('l')");
    let rows = "SELECT count(*) FROM tenant_rls.changes WHERE relation = 'signing_keys'";
    assert_eq!(admin.one::<i64>(rows), 3);
    assert_eq!(admin.one::<i64>(&format!("{rows} AND coalesce(new_row, old_row) ? 'key'")), 0);
}
