//! Signed tickets.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{current, notes};
use crate::harness::{A, B, Db, Session, eventually, waiting};

const SECRET: &[u8] = b"0123456789abcdef0123456789abcdef";

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

fn sign(secret: &[u8], alg: &str, claims: &str) -> String {
    let header = format!(r#"{{"alg":"{alg}","kid":"k"}}"#);
    let text = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims));
    let mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length").chain_update(&text);
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(mac.finalize().into_bytes()))
}

fn ticket(tenant: &str, seconds: u64, more: &str) -> String {
    sign(SECRET, "HS256", &format!(r#"{{"tenant":"{tenant}","exp":{}{more}}}"#, now() + seconds))
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
         SELECT tenant_signing_key_set('k', 'HS256', '{}')",
        String::from_utf8_lossy(SECRET)
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
    let claims = format!(r#"{{"tenant":"{A}","exp":{}}}"#, now() + 60);
    for bad in [
        String::new(),
        "a.b.c".into(),
        "a".repeat(1_000_000),
        good[..good.len() - 2].into(),
        sign(SECRET, "none", &claims),
        sign(SECRET, "EdDSA", &claims),
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
    let key = format!("SELECT tenant_signing_key_set('k', 'HS256', '{}'", String::from_utf8_lossy(SECRET));
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
        admin.run(&take);
        assert_eq!(session.fails("SELECT FROM orders"), state, "{take}");
        session.run("ROLLBACK");
        admin.run(&back);
    }
}

/// Of two sessions that show the same single-use ticket at once, one gets in.
#[test]
fn a_jti_is_used_once() {
    let db = Db::with_orders();
    let role = shop(&db);
    let (mut first, mut second) = (db.connect(&role), db.connect(&role));
    let once = ticket(A, 60, r#","jti":"1""#);
    first.run(&format!("BEGIN; {}; ROLLBACK; BEGIN; {}", set(&once), set(&once)));
    let call = set(&once);
    let other = std::thread::spawn(move || second.fails(&call));
    waiting(&mut db.admin(), 1);
    first.run("COMMIT");
    assert_eq!(other.join().expect("an answer"), "42501");
    assert_eq!(notes(&mut first), ["a1", "a2"]);
    assert_eq!(first.fails(&set(&once)), "42501");
    first.run("BEGIN READ ONLY");
    assert_eq!(first.fails(&set(&ticket(A, 60, r#","jti":"2""#))), "25006");
    first.run(&format!("ROLLBACK; BEGIN READ ONLY; {}", set(&ticket(A, 60, ""))));
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
