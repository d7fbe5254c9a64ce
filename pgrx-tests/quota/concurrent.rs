//! Several sessions on one key: never above the limit, nothing lost, nobody blocked by a denied call.

use std::thread;

use postgres::Client;
use serde_json::json;

use super::{VERDICT, fields, limited};
use crate::harness::{A, Db, Session, answer, recorded, waiting};

/// Connections at once.
pub const CONNECTIONS: u64 = 16;

/// Numbers that differ from thread to thread and are the same in every run.
pub struct Random(u64);

impl Random {
    /// Those of a thread, or of a seed.
    pub fn of(thread: u64) -> Random {
        Random((thread + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// Runs `work` in that many connections of the application, for tenant A, and adds up what they return.
pub fn in_parallel(db: &Db, connections: u64, work: impl Fn(&mut Client, &mut Random) -> i64 + Sync) -> i64 {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..connections)
            .map(|number| {
                scope.spawn(move || work(&mut db.connect_as(&db.app(), A), &mut Random::of(number)))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that ends well")).sum()
    })
}

/// What tenant_usage says that A has used of `calls`.
pub fn usage(db: &Db) -> i64 {
    db.connect_as(&db.app(), A).one("SELECT used FROM tenant_usage WHERE resource = 'calls'")
}

/// Takes a random amount with one of the two functions. What was granted, or `None` when the transaction failed.
fn take(client: &mut Client, random: &mut Random) -> Option<i64> {
    let amount = random.below(40);
    let function = if random.below(2) == 0 { "tenant_quota_consume" } else { "tenant_quota_try_consume" };
    let row = client
        .query_one(&format!("SELECT granted, used, quota_limit FROM {function}('calls', {amount})"), &[]);
    match row {
        Ok(row) => {
            let (granted, used, limit): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
            assert!(used <= limit, "{used} of {limit}");
            Some(granted)
        }
        Err(error) if error.code().is_some_and(|code| code.code() == "53400") => None,
        Err(error) => panic!("{error}"),
    }
}

/// A transaction of up to four calls, some in a savepoint that is rolled back, that ends in COMMIT or ROLLBACK.
/// Units committed.
pub fn transaction(client: &mut Client, random: &mut Random) -> i64 {
    let mut taken = 0;
    client.run("BEGIN");
    for _ in 0..=random.below(4) {
        client.run("SAVEPOINT s");
        match take(client, random) {
            Some(granted) if random.below(4) > 0 => {
                taken += granted;
                client.run("RELEASE s");
            }
            _ => client.run("ROLLBACK TO s"),
        }
    }
    if random.below(4) == 0 {
        client.run("ROLLBACK");
        return 0;
    }
    client.run("COMMIT");
    taken
}

/// Random amounts, both functions, savepoints, aborts: what was committed is what is recorded, below the limit.
#[test]
fn random_transactions_add_up() {
    let db = limited();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 8000, mode => 'strict')");
    let committed =
        in_parallel(&db, CONNECTIONS, |client, random| (0..40).map(|_| transaction(client, random)).sum());
    assert!(committed > 7900 && committed <= 8000, "{committed}: enough asks to come near the limit");
    assert_eq!(usage(&db), committed);
}

/// Asked for one by one, with aborts between, exactly the limit is granted.
#[test]
fn single_units_reach_exactly_the_limit() {
    let db = limited();
    db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 500, mode => 'strict')");
    let committed = in_parallel(&db, CONNECTIONS, |client, random| {
        let mut taken = 0;
        loop {
            let abort = random.below(5) == 0;
            client.run("BEGIN");
            let granted: i64 = client.one("SELECT granted FROM tenant_quota_try_consume('calls')");
            client.run(if abort { "ROLLBACK" } else { "COMMIT" });
            match (granted, abort) {
                (0, _) => return taken,
                (_, true) => {}
                _ => taken += 1,
            }
        }
    });
    assert_eq!((committed, usage(&db)), (500, 500));
}

/// At REPEATABLE READ and SERIALIZABLE, with retries on 40001 and 40P01: exactly the limit, nothing lost.
#[test]
fn higher_isolation_levels_reach_exactly_the_limit() {
    for level in ["REPEATABLE READ", "SERIALIZABLE"] {
        let db = limited();
        db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 100, mode => 'strict')");
        let committed = in_parallel(&db, 8, |client, _| {
            let mut taken = 0;
            loop {
                // The first statement takes the snapshot, so that others can be in between.
                let work = format!("BEGIN ISOLATION LEVEL {level}; SELECT count(*) FROM pg_class");
                client.run(&work);
                let call = client.query_one("SELECT granted FROM tenant_quota_try_consume('calls')", &[]);
                let ended =
                    call.and_then(|row| client.batch_execute("COMMIT").map(|()| row.get::<_, i64>(0)));
                match ended {
                    Ok(0) => return taken,
                    Ok(granted) => taken += granted,
                    Err(error) => {
                        let state = error.code().map_or("", |code| code.code());
                        assert!(matches!(state, "40001" | "40P01"), "{level}: {error}");
                        client.run("ROLLBACK");
                    }
                }
            }
        });
        assert_eq!((committed, usage(&db)), (100, 100), "{level}");
    }
}

/// Runs `call` in a session whose snapshot is older than what `others` commits, and again if that is refused with
/// 40001.
fn with_old_snapshot(db: &Db, others: &str, call: &str) {
    let mut old = db.connect_as(&db.app(), A);
    old.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    db.connect_as(&db.app(), A).run(others);
    match old.attempt(call).as_deref() {
        None => old.run("COMMIT"),
        Some("40001") => {
            old.run("ROLLBACK");
            old.run(call);
        }
        Some(other) => panic!("{call}: {other}"),
    }
}

/// The first units of a period, committed by others after the snapshot: no grant that is not counted.
#[test]
fn an_old_snapshot_does_not_hide_the_first_units() {
    let db = limited();
    let (others, call) =
        ("SELECT * FROM tenant_quota_consume('calls', 3)", "SELECT * FROM tenant_quota_consume('calls', 2)");
    with_old_snapshot(&db, others, call);
    assert_eq!(usage(&db), 5);
}

/// Units that others gave back after the snapshot: no grant that is not counted.
#[test]
fn an_old_snapshot_does_not_hide_a_release() {
    let db = limited();
    db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_consume('seats', 10)");
    let (others, call) =
        ("SELECT * FROM tenant_quota_release('seats', 5)", "SELECT * FROM tenant_quota_consume('seats', 2)");
    with_old_snapshot(&db, others, call);
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 7);
}

/// Units that others took after the snapshot can be given back; nobody is told that they are not there.
#[test]
fn an_old_snapshot_does_not_hide_units_to_release() {
    let db = limited();
    let (others, call) =
        ("SELECT * FROM tenant_quota_consume('seats', 3)", "SELECT * FROM tenant_quota_release('seats', 2)");
    with_old_snapshot(&db, others, call);
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 1);
}

/// A limit that others have reached after the snapshot denies, as it does at READ COMMITTED.
#[test]
fn an_old_snapshot_does_not_hide_that_the_limit_is_reached() {
    let db = limited();
    let mut old = db.connect_as(&db.app(), A);
    old.run("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM pg_class");
    db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_consume('calls', 10)");
    let denied = answer(&mut old, "tenant_quota_check('calls')");
    assert_eq!(fields(&denied, VERDICT), json!([false, 0, 10, 0, "limit"]));
    assert!(matches!(&*old.fails("SELECT * FROM tenant_quota_consume('calls')"), "40001" | "53400"));
}

/// A call waits for the decision of the one before it, and takes what a rollback gave back.
#[test]
fn a_call_waits_for_an_undecided_one() {
    for (end, allowed) in [("COMMIT", false), ("ROLLBACK", true)] {
        let db = limited();
        let mut first = db.connect_as(&db.app(), A);
        first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 10)");
        thread::scope(|scope| {
            let second = scope.spawn(|| {
                answer(&mut db.connect_as(&db.app(), A), "tenant_quota_try_consume('calls')")["allowed"]
                    == true
            });
            waiting(&mut db.admin(), 1);
            first.run(end);
            assert_eq!(second.join().expect("an answer"), allowed, "{end}");
        });
    }
}

/// A limit that is lowered while a call waits is the one that counts for it.
#[test]
fn a_call_that_waited_meets_the_limit_of_now() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 1)");
    thread::scope(|scope| {
        let second =
            scope.spawn(|| answer(&mut db.connect_as(&db.app(), A), "tenant_quota_try_consume('calls', 9)"));
        waiting(&mut db.admin(), 1);
        db.admin().run("SELECT tenant_plan_limit_set('free', 'calls', 9, mode => 'strict')");
        first.run("COMMIT");
        let answer = second.join().expect("an answer");
        assert_eq!(fields(&answer, &["allowed", "used", "quota_limit"]), json!([false, 1, 9]));
    });
}

/// A tenant that is suspended while a call waits uses nothing any more.
#[test]
fn a_call_that_waited_meets_the_status_of_now() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 1)");
    thread::scope(|scope| {
        let second =
            scope.spawn(|| db.connect_as(&db.app(), A).fails("SELECT * FROM tenant_quota_consume('calls')"));
        waiting(&mut db.admin(), 1);
        db.admin().run(&format!("SELECT tenant_suspend('{A}')"));
        first.run("COMMIT");
        assert_eq!(second.join().expect("a SQLSTATE"), "55000");
    });
}

/// What is already committed up to the limit is denied without waiting for anybody.
#[test]
fn a_full_quota_is_denied_without_waiting() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("SELECT * FROM tenant_quota_consume('seats', 9)");
    first.run("BEGIN; SELECT * FROM tenant_quota_release('seats', 1)");
    let mut second = db.connect_as(&db.app(), A);
    second.run("SET lock_timeout = '5s'");
    assert_eq!(answer(&mut second, "tenant_quota_try_consume('seats', 2)")["allowed"], false);
    assert_eq!(second.fails("SELECT * FROM tenant_quota_try_consume('seats', 1)"), "55P03");
}

/// 16 calls for one place: one has it; the transactions of the 15 others stay open and block nobody.
#[test]
fn denied_calls_block_no_third_session() {
    let db = limited();
    let mut holder = db.connect_as(&db.app(), A);
    holder.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 4)");
    let mut losers: Vec<Client> = (0..CONNECTIONS).map(|_| db.connect_as(&db.app(), A)).collect();
    let winners: usize = thread::scope(|scope| {
        let calls: Vec<_> = losers
            .iter_mut()
            .map(|client| {
                scope.spawn(move || {
                    client.run("BEGIN");
                    let allowed = answer(client, "tenant_quota_try_consume('calls', 4)")["allowed"] == true;
                    if allowed {
                        client.run("COMMIT");
                    }
                    usize::from(allowed)
                })
            })
            .collect();
        waiting(&mut db.admin(), CONNECTIONS as u32);
        holder.run("COMMIT");
        calls.into_iter().map(|call| call.join().expect("an answer")).sum()
    });
    assert_eq!(winners, 1);
    let mut third = db.connect_as(&db.app(), A);
    third.run("SET lock_timeout = '5s'");
    assert_eq!(answer(&mut third, "tenant_quota_consume('calls', 2)")["used"], 10);
    let idle: i64 = db.admin().one(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'idle in transaction'",
    );
    assert_eq!(idle, CONNECTIONS as i64 - 1);
}

/// A denied call in a transaction that goes on blocks nobody, and keeps what the transaction took before.
#[test]
fn a_denied_call_keeps_what_its_transaction_holds() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 6)");
    assert_eq!(answer(&mut first, "tenant_quota_try_consume('calls', 5)")["allowed"], false);
    let mut second = db.connect_as(&db.app(), A);
    second.run("SET lock_timeout = '100ms'");
    // The units of the first are undecided: the second may not pass it.
    assert_eq!(second.fails("SELECT * FROM tenant_quota_consume('calls', 5)"), "55P03");
    first.run("ROLLBACK");
    second.run("SELECT * FROM tenant_quota_consume('calls', 5)");
    assert_eq!(usage(&db), 5);
}

/// Other resources and other tenants are not waited for.
#[test]
fn keys_do_not_wait_for_each_other() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls')");
    let mut second = db.connect_as(&db.app(), A);
    second.run("SET lock_timeout = '5s'; SELECT * FROM tenant_quota_consume('seats')");
    second.run(&format!(
        "SET app.current_tenant = '{}'; SELECT * FROM tenant_quota_consume('calls')",
        crate::harness::B
    ));
}

/// A check waits for nobody.
#[test]
fn a_check_does_not_wait() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 10)");
    let mut second = db.connect_as(&db.app(), A);
    second.run("SET lock_timeout = '5s'");
    assert_eq!(answer(&mut second, "tenant_quota_check('calls')")["used"], 0);
}

/// Two sessions that name their resources in opposite orders do not wait for each other in a ring.
#[test]
fn consume_many_takes_keys_in_one_order() {
    let db = limited();
    db.admin().run(&format!(
        "SELECT tenant_quota_set('{A}', 'calls', NULL, true), tenant_quota_set('{A}', 'seats', NULL, true)"
    ));
    let orders = ["{\"calls\": 1, \"seats\": 1}", "{\"seats\": 1, \"calls\": 1}"];
    in_parallel(&db, 8, |client, random| {
        for _ in 0..50 {
            let amounts = orders[random.below(2) as usize];
            client.run(&format!("SELECT * FROM tenant_quota_consume_many('{amounts}')"));
        }
        0
    });
    assert_eq!((usage(&db), recorded(&mut db.admin(), A, "seats")), (400, 400));
}

/// A prepared transaction is undecided: others wait for it.
#[test]
fn a_prepared_transaction_is_waited_for() {
    let db = limited();
    let gid = db.name();
    db.connect_as(&db.app(), A)
        .run(&format!("BEGIN; SELECT * FROM tenant_quota_consume('calls', 10); PREPARE TRANSACTION '{gid}'"));
    let mut second = db.connect_as(&db.app(), A);
    second.run("SET lock_timeout = '100ms'");
    assert_eq!(second.fails("SELECT * FROM tenant_quota_consume('calls')"), "55P03");
    db.admin().run(&format!("COMMIT PREPARED '{gid}'"));
    assert_eq!(second.fails("SELECT * FROM tenant_quota_consume('calls')"), "53400");
}

/// A release that waits for others gives back although the plan no longer names the resource.
#[test]
fn a_release_that_waited_needs_no_limit() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("SELECT * FROM tenant_quota_consume('seats', 5)");
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('seats', 1)");
    db.admin().run(&format!("SELECT tenant_plan_define('bare'); SELECT tenant_plan_change('{A}', 'bare')"));
    thread::scope(|scope| {
        let release =
            scope.spawn(|| db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_release('seats', 5)"));
        waiting(&mut db.admin(), 1);
        first.run("COMMIT");
        release.join().expect("the units are given back");
    });
    assert_eq!(recorded(&mut db.admin(), A, "seats"), 1);
}

/// A gauge that is attached while a call is under way is not moved by that call.
#[test]
fn a_call_that_waited_for_an_attach_is_refused() {
    let db = limited();
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE TABLE rows (tenant_id uuid); INSERT INTO rows VALUES ('{A}'); SELECT tenant_protect('rows')"
    ));
    db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_consume('seats', 3)");
    admin.run("BEGIN; SELECT tenant_quota_attach('rows', 'seats')");
    thread::scope(|scope| {
        let call =
            scope.spawn(|| db.connect_as(&db.app(), A).fails("SELECT * FROM tenant_quota_consume('seats')"));
        waiting(&mut db.admin(), 1);
        admin.run("COMMIT");
        assert_eq!(call.join().expect("a SQLSTATE"), "55000");
    });
    assert_eq!(admin.rows("SELECT * FROM tenant_quota_invariants").len(), 0);
}

/// A session that dies leaves what it committed and takes along what it did not.
#[test]
fn a_session_that_dies_leaves_what_it_committed() {
    let db = limited();
    let mut first = db.connect_as(&db.app(), A);
    first.run("SELECT * FROM tenant_quota_consume('calls', 3)");
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('calls', 7)");
    let pid: i32 = first.one("SELECT pg_backend_pid()");
    db.admin().run(&format!("SELECT pg_terminate_backend({pid}, 10000)"));
    let taken = answer(&mut db.connect_as(&db.app(), A), "tenant_quota_consume('calls', 7)");
    assert_eq!(fields(&taken, VERDICT), json!([true, 7, 10, 0, "ok"]));
}
