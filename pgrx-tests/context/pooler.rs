//! PgBouncer between clients and server: many clients share few connections, and no client sees a row of another
//! tenant.
//!
//! Every row carries the canary of its tenant, and the clients count what they see. They end transactions in all
//! ways, and leave in the middle. `TENANT_RLS_POOL_SECONDS` says how long (`make test-pool`: 60).

use std::process::Child;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{env, io, thread};

use postgres::{Client, NoTls, SimpleQueryMessage};

use crate::cluster::{command, free_port, run};
use crate::harness::{Db, Session, program, state};

const CLIENTS: u64 = 200;
const CONNECTIONS: u32 = 10;
const TENANTS: u64 = 50;
const ROWS: usize = 4;

/// A running PgBouncer before the test server.
struct Pooler {
    process: Child,
    directory: String,
    port: u16,
}

impl Pooler {
    /// `None` without a PgBouncer.
    fn start(db: &Db, mode: &str) -> Option<Pooler> {
        Pooler::start_with(db, mode, "")
    }

    fn start_with(db: &Db, mode: &str, more: &str) -> Option<Pooler> {
        let program = program("TENANT_RLS_PGBOUNCER", "a PgBouncer")?;
        let directory = run("mktemp", &["-d", "/tmp/tenant_rls-pool.XXXXXX"]).trim().to_string();
        let (host, server_port) = db.address();
        let port = free_port();
        let settings = format!(
            "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = trust\nauth_file = {directory}/users\npool_mode = {mode}\n\
             default_pool_size = {CONNECTIONS}\nmax_client_conn = 1000\nserver_reset_query = DISCARD ALL\n\
             logfile = {directory}/log\nlog_connections = 0\nlog_disconnections = 0\nlog_pooler_errors = 0\n{more}\n"
        );
        let write = "printf '%s' \"$1\" > \"$2\"";
        run("sh", &["-c", write, "sh", &settings, &format!("{directory}/ini")]);
        run("sh", &["-c", write, "sh", &format!("\"{}\" \"\"\n", db.app()), &format!("{directory}/users")]);
        let process = command(&program).args(["-q", &format!("{directory}/ini")]).spawn().expect("pgbouncer");
        let pooler = Pooler { process, directory, port };
        for _ in 0..500 {
            if pooler.connect(db).is_ok() {
                return Some(pooler);
            }
            thread::sleep(Duration::from_millis(20));
        }
        panic!("pgbouncer does not answer:\n{}", run("cat", &[&format!("{}/log", pooler.directory)]));
    }

    fn connect(&self, db: &Db) -> Result<Client, postgres::Error> {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port).dbname(db.name()).user(&db.app()).connect(NoTls)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        // As the user that it runs as: runuser hands the signal on.
        let stop = self.process.kill_gently();
        let ended = self.process.wait();
        assert!(thread::panicking() || (stop.is_ok() && ended.is_ok()));
        run("rm", &["-rf", &self.directory]);
    }
}

trait KillGently {
    fn kill_gently(&self) -> io::Result<()>;
}

impl KillGently for Child {
    fn kill_gently(&self) -> io::Result<()> {
        std::process::Command::new("kill").arg(self.id().to_string()).status().map(|_| ())
    }
}

/// What the clients have seen.
#[derive(Default)]
struct Count {
    transactions: AtomicU64,
    rows: AtomicU64,
    /// Rows of another tenant, or of a tenant when there was none.
    wrong: AtomicU64,
    /// Answers without all rows of the tenant.
    missing: AtomicU64,
    aborts: AtomicU64,
    disconnects: AtomicU64,
    discards: AtomicU64,
    errors: AtomicU64,
}

impl Count {
    fn add(&self, counter: &AtomicU64, number: u64) {
        counter.fetch_add(number, Ordering::Relaxed);
    }

    /// Reads all rows, as the tenant.
    fn read(&self, client: &mut Client, tenant: &str) -> Result<(), postgres::Error> {
        let mut seen = 0;
        for message in client.simple_query("SELECT canary, tenant_id FROM notes")? {
            let SimpleQueryMessage::Row(row) = message else { continue };
            let right = row.get(1) == Some(tenant) && row.get(0) == Some(&format!("canary of {tenant}"));
            self.add(&self.wrong, u64::from(!right));
            seen += 1;
        }
        self.add(&self.rows, seen as u64);
        self.add(&self.missing, u64::from(seen != ROWS));
        Ok(())
    }

    /// A session that has set no tenant reads nothing.
    fn read_without(&self, client: &mut Client) {
        match client.simple_query("SELECT canary FROM notes") {
            Ok(_) => self.add(&self.wrong, 1),
            Err(error) => self.add(&self.errors, u64::from(state(&error) != "55000")),
        }
    }
}

/// Numbers that look random, the same in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

fn tenant(number: u64) -> String {
    format!("{number:08x}-0000-4000-8000-000000000000")
}

/// The table and the tenants, each with its rows.
fn database() -> Db {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!(
        "CREATE TABLE notes (id int GENERATED ALWAYS AS IDENTITY, tenant_id uuid NOT NULL, canary text, visits int DEFAULT 0);
         SELECT tenant_protect('notes'); GRANT SELECT, INSERT, UPDATE, DELETE ON notes TO {}",
        db.app()
    ));
    for number in 1..=TENANTS {
        let id = tenant(number);
        admin.run(&format!(
            "SELECT tenant_create('{id}', tenant_key => {number});
             INSERT INTO notes (tenant_id, canary) SELECT '{id}', 'canary of {id}' FROM generate_series(1, {ROWS})"
        ));
    }
    db
}

/// One transaction that ends in one of many ways. `false`: the client is to leave.
fn transaction(
    client: &mut Client,
    count: &Count,
    dice: &mut Dice,
    id: &str,
) -> Result<bool, postgres::Error> {
    let key = u64::from_str_radix(&id[..8], 16).expect("a number");
    let set = match dice.below(4) {
        0 => format!("SELECT set_tenant_key({key})"),
        1 => format!("SET LOCAL app.current_tenant = '{id}'"),
        _ => format!("SELECT set_tenant('{id}')"),
    };
    client.batch_execute(&format!("BEGIN; {set}"))?;
    count.add(&count.transactions, 1);
    count.read(client, id)?;
    match dice.below(8) {
        0 => {
            count.add(&count.aborts, 1);
            client.batch_execute("ROLLBACK")?;
        }
        1 => {
            count.add(&count.aborts, 1);
            let failed = client.batch_execute("SELECT 1 / 0").is_err();
            count.add(&count.errors, u64::from(!failed));
            client.batch_execute("ROLLBACK")?;
        }
        2 => {
            // Refused, and the transaction with it.
            let other = client.batch_execute("SELECT set_tenant('ffffffff-0000-4000-8000-000000000000')");
            count.add(&count.errors, u64::from(other.is_ok()));
            client.batch_execute("ROLLBACK")?;
        }
        3 => {
            count.add(&count.disconnects, 1);
            return Ok(false);
        }
        _ => {
            client.batch_execute("UPDATE notes SET visits = visits + 1")?;
            client.batch_execute("COMMIT")?;
        }
    }
    count.read_without(client);
    // Whatever connection it is run in: nothing in there is missed by the next client.
    if dice.below(16) == 0 {
        count.add(&count.discards, 1);
        client.batch_execute("DISCARD ALL")?;
        count.read_without(client);
    }
    Ok(true)
}

/// What a client in session mode does besides: it leaves a tenant, a held cursor, a temporary table behind.
fn litter(client: &mut Client, count: &Count, dice: &mut Dice, id: &str) -> Result<(), postgres::Error> {
    client.batch_execute(&format!("SET app.current_tenant = '{id}'"))?;
    count.read(client, id)?;
    match dice.below(3) {
        0 => client.batch_execute("CREATE TEMPORARY TABLE kept AS SELECT * FROM notes"),
        1 => client.batch_execute("DECLARE kept CURSOR WITH HOLD FOR SELECT * FROM notes"),
        _ => client.batch_execute("PREPARE kept AS SELECT * FROM notes"),
    }
}

fn visit(
    pooler: &Pooler,
    db: &Db,
    count: &Count,
    dice: &mut Dice,
    sessions: bool,
) -> Result<(), postgres::Error> {
    let mut client = pooler.connect(db)?;
    count.read_without(&mut client);
    let calls = if sessions { 3 } else { 30 };
    for _ in 0..=dice.below(calls) {
        let id = tenant(1 + dice.below(TENANTS));
        if !transaction(&mut client, count, dice, &id)? {
            return Ok(());
        }
    }
    if sessions {
        let id = tenant(1 + dice.below(TENANTS));
        litter(&mut client, count, dice, &id)?;
    }
    Ok(())
}

fn storm(mode: &str) {
    let db = database();
    let Some(pooler) = Pooler::start(&db, mode) else { return };
    let seconds = env::var("TENANT_RLS_POOL_SECONDS").map_or(2, |text| text.parse().expect("seconds"));
    let count = Count::default();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 1..=CLIENTS {
            let (pooler, db, count, stop) = (&pooler, &db, &count, &stop);
            scope.spawn(move || {
                let mut dice = Dice(number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
                while !stop.load(Ordering::Relaxed) {
                    if let Err(error) = visit(pooler, db, count, &mut dice, mode == "session") {
                        eprintln!("{mode}: {error} {:?}", error.as_db_error());
                        count.add(&count.errors, 1);
                    }
                }
            });
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            thread::sleep(Duration::from_millis(100));
        }
        stop.store(true, Ordering::Relaxed);
    });
    let servers: i64 = db.admin().one(&format!(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = '{}'",
        db.app()
    ));
    let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    eprintln!(
        "{mode} mode, {seconds} s, {CLIENTS} clients, {servers} server connections: {} transactions, {} rows, {} wrong, {} incomplete, {} aborts, {} disconnects, {} times DISCARD ALL, {} errors",
        of(&count.transactions),
        of(&count.rows),
        of(&count.wrong),
        of(&count.missing),
        of(&count.aborts),
        of(&count.disconnects),
        of(&count.discards),
        of(&count.errors)
    );
    assert_eq!(of(&count.wrong), 0, "rows of other tenants");
    assert_eq!(of(&count.missing), 0, "answers without all rows");
    assert_eq!(of(&count.errors), 0, "unexpected errors, or unexpected successes");
    assert!(servers <= i64::from(CONNECTIONS), "{servers} server connections");
    assert!(of(&count.rows) > 0 && of(&count.aborts) > 0 && of(&count.disconnects) > 0);
    assert!(of(&count.discards) > 0);
}

/// Transaction mode: set_tenant in each transaction, and nothing stays behind.
#[test]
fn transaction_mode_mixes_nothing() {
    storm("transaction");
}

/// Session mode: what a client leaves behind goes with DISCARD ALL.
#[test]
fn session_mode_mixes_nothing() {
    storm("session");
}

/// With server_reset_query_always a tenant of the session, a temporary table and a held cursor end with the transaction.
#[test]
fn a_reset_after_each_transaction_leaves_nothing() {
    let db = database();
    let more = "default_pool_size = 1\nserver_reset_query_always = 1";
    let Some(pooler) = Pooler::start_with(&db, "transaction", more) else { return };
    let (mut first, mut next) =
        (pooler.connect(&db).expect("a connection"), pooler.connect(&db).expect("one"));
    let count = Count::default();
    for leave in [
        "SELECT 1",
        "CREATE TEMPORARY TABLE kept AS SELECT * FROM notes",
        "DECLARE kept CURSOR WITH HOLD FOR SELECT * FROM notes",
    ] {
        first.run(&format!("BEGIN; SET app.current_tenant = '{}'; {leave}; COMMIT", tenant(1)));
        count.read_without(&mut next);
        next.run(&format!("BEGIN; SELECT set_tenant('{}')", tenant(2)));
        count.read(&mut next, &tenant(2)).expect("rows");
        next.run("COMMIT");
    }
    assert_eq!(count.wrong.into_inner() + count.missing.into_inner() + count.errors.into_inner(), 0);
}

/// What makes transaction mode unsafe: a tenant of the session stays in the server connection.
#[test]
fn a_tenant_of_the_session_stays_in_transaction_mode() {
    let db = database();
    let Some(pooler) = Pooler::start(&db, "transaction") else { return };
    let mut first = pooler.connect(&db).expect("a connection");
    first.run(&format!("SET app.current_tenant = '{}'", tenant(1)));
    let mut next = pooler.connect(&db).expect("a connection");
    let seen = next.simple_query("SELECT FROM notes").expect("rows of the tenant that was left behind");
    assert_eq!(seen.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count(), ROWS);
    // A tenant of the transaction takes its place.
    next.run(&format!("BEGIN; SELECT set_tenant('{}')", tenant(2)));
    let count = Count::default();
    count.read(&mut next, &tenant(2)).expect("rows");
    assert_eq!((count.wrong.into_inner(), count.missing.into_inner()), (0, 0));
}
