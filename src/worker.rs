//! Background workers: what is done for a database beside its sessions.
//!
//! One launcher runs for as long as the server takes writes. It starts a worker for a database that has something to do:
//! rows in the ledger, a caller that waits for a lease, something that has fallen due. The worker goes when it has found
//! nothing to do for a moment, so that it stands in nobody's way who drops or copies the database. An error of its own
//! ends it; it is started again after a pause, which grows.
//!
//! # Lock protocol
//!
//! Each transaction first takes the tables that it uses, if nobody has one of them for himself; then tenants, if they are not
//! fenced; then the lock of the ledger, where it folds; then rows. It waits for those rows of `tenant_rls.usage` that it folds
//! into, which only SQL by hand can have locked, and passes by what others have locked elsewhere. It tells entries of shared
//! memory what it has written when its transaction has committed, and holds no other lock then. One process at a time is the
//! worker of a database ([`Database::begin_work`]).

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgrx::bgworkers::{BackgroundWorker, BackgroundWorkerBuilder, BgWorkerStartTime, SignalWakeFlags};
#[cfg(not(feature = "pg18"))]
use pgrx::pg_sys::pqsignal;
#[cfg(feature = "pg18")]
use pgrx::pg_sys::pqsignal_be as pqsignal;
use pgrx::prelude::*;
use pgrx::{PgTryBuilder, pg_sys};

use crate::backend::Backend;
use crate::clock;
use crate::error::Result;
use crate::gucs;
use crate::quota::{self, events, lease, ledger};
use crate::registry::{self, scan};
use crate::shmem::{self, Database};
use crate::usage;

/// How often launcher and workers look.
const TICK: Duration = Duration::from_millis(500);
/// How often a worker folds the ledger and looks for what has fallen due, in microseconds.
const ROUND: i64 = 1_000_000;
/// Rounds without anything to do that a worker stays for.
const IDLE_ROUNDS: u32 = 1;
/// How often the launcher looks which databases there are, in microseconds.
const DATABASES: i64 = 60_000_000;
/// Rows that one transaction moves or removes at most.
const BATCH: i64 = 1000;
/// The shortest and the longest time until a worker looks again for what falls due, in microseconds.
const DUE: (i64, i64) = (10_000_000, 3_600_000_000);
/// The longest pause after failures, in microseconds.
const LONGEST_PAUSE: i64 = 60_000_000;

/// Registers the launcher. Called once, when the library is loaded; does nothing if that is too late.
pub fn init() {
    // SAFETY: reads a variable of the process.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        BackgroundWorkerBuilder::new("tenant_rls launcher")
            .set_type("tenant_rls launcher")
            .set_library("tenant_rls")
            .set_function("tenant_rls_launcher")
            .enable_spi_access()
            .set_start_time(BgWorkerStartTime::RecoveryFinished)
            .set_restart_time(Some(Duration::from_secs(1)))
            .load();
    }
}

/// The launcher. It is connected to no database: it reads the list of them.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tenant_rls_launcher(_argument: pg_sys::Datum) {
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGTERM);
    // SAFETY: once, at the start of a worker. No database and no role are named.
    unsafe {
        pg_sys::BackgroundWorkerInitializeConnection(std::ptr::null(), std::ptr::null(), 0);
        shmem::set_launcher(pg_sys::MyLatch);
    }
    let mut looked_at = i64::MIN;
    while BackgroundWorker::wait_latch(Some(TICK)) {
        let now = clock::now();
        if now.saturating_sub(looked_at) >= DATABASES {
            // At the first look each database gets a worker, which goes at once if it has nothing to do.
            look_at_databases(looked_at == i64::MIN);
            looked_at = now;
        }
        for database in shmem::databases() {
            if is_wanted(database, now) {
                launch(database, now);
            }
        }
    }
    shmem::set_launcher(std::ptr::null_mut());
    // Who leaves with 0 is never started again, and it may not be the server that has stopped it.
    // SAFETY: ends this process, whose frames hold nothing.
    unsafe { pg_sys::proc_exit(1) };
}

fn is_wanted(database: &Database, now: i64) -> bool {
    database.worker.load(Ordering::SeqCst) == 0
        && database.retry_at.load(Ordering::Relaxed) <= now
        && (database.busy.load(Ordering::SeqCst)
            || database.urgent.load(Ordering::SeqCst)
            || (1..=now).contains(&database.due_at.load(Ordering::Relaxed)))
}

/// Forgets databases that are gone, and notes those that there are.
fn look_at_databases(note_all: bool) {
    // In this order: one that is made meanwhile is not taken for one that is gone.
    let known = shmem::databases();
    let mut there = Vec::new();
    BackgroundWorker::transaction(std::panic::AssertUnwindSafe(|| {
        scan::scan(pg_sys::DatabaseRelationId, pg_sys::InvalidOid, &[], |row| {
            let allows_connections = row.get::<bool>(scan::DATABASE_ALLOWS_CONNECTIONS).unwrap_or_default();
            there.extend(row.get::<pg_sys::Oid>(1).map(|oid| (oid, allows_connections)));
        });
    }));
    let gone: Vec<_> = known
        .into_iter()
        .map(Database::oid)
        .filter(|known| !there.iter().any(|(oid, _)| oid == known))
        .collect();
    shmem::forget_databases(&gone);
    if note_all {
        for (oid, _) in there.into_iter().filter(|(_, allows_connections)| *allows_connections) {
            if let Some(database) = shmem::database_of(oid) {
                database.busy.store(true, Ordering::SeqCst);
            }
        }
    }
}

/// Starts a worker, unless the server has no room for one: then it is tried again.
fn launch(database: &Database, now: i64) {
    let started = BackgroundWorkerBuilder::new("tenant_rls worker")
        .set_type("tenant_rls worker")
        .set_library("tenant_rls")
        .set_function("tenant_rls_worker")
        .enable_spi_access()
        .set_start_time(BgWorkerStartTime::RecoveryFinished)
        .set_restart_time(None)
        .set_argument(Some(pg_sys::Datum::from(database.oid())))
        .load_dynamic();
    // A process that comes to nothing, in a database that lets nobody in for instance, is not to be started twice a second.
    let failures = database.failures.load(Ordering::Relaxed).min(6);
    let pause = if started.is_ok() { (ROUND << failures).min(LONGEST_PAUSE) } else { ROUND };
    database.retry_at.store(now + pause, Ordering::Relaxed);
    database.failures.fetch_add(1, Ordering::Relaxed);
}

/// The worker of one database.
#[pg_guard]
#[unsafe(no_mangle)]
pub extern "C-unwind" fn tenant_rls_worker(argument: pg_sys::Datum) {
    let oid = pg_sys::Oid::from(argument.value() as u32);
    // What would cancel a query only wakes it: a commit that no longer waits for its standby is not to be handed out.
    BackgroundWorker::attach_signal_handlers(SignalWakeFlags::SIGHUP | SignalWakeFlags::SIGINT);
    // SAFETY: a handler for this process.
    unsafe { pqsignal(pg_sys::SIGTERM as i32, Some(note_sigterm)) };
    BackgroundWorker::connect_worker_to_spi_by_oid(Some(oid), None);
    let Some(database) = shmem::database() else { return };
    if !database.begin_work(clock::now()) {
        return;
    }
    // SAFETY: the callback lives in this library, and reads what is set up for this process.
    unsafe { pg_sys::before_shmem_exit(Some(leave), pg_sys::Datum::null()) };
    // What is handed out must be on disk, and on the standbys that are waited for.
    // SAFETY: both strings outlive the call.
    unsafe {
        pg_sys::SetConfigOption(
            c"synchronous_commit".as_ptr(),
            c"on".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_OVERRIDE,
        );
    }
    PgTryBuilder::new(std::panic::AssertUnwindSafe(|| work(database)))
        .catch_others(|error| {
            note_failure(&error);
            error.rethrow()
        })
        .execute();
}

/// This worker is to end.
static STOPPED: AtomicBool = AtomicBool::new(false);

/// SIGTERM wakes the worker, which gives back what it holds and goes. It ends no wait of a commit for its standby: what has
/// been written would be stranded.
unsafe extern "C-unwind" fn note_sigterm(_signal: i32) {
    STOPPED.store(true, Ordering::SeqCst);
    // SAFETY: may be done in a signal handler.
    unsafe { pg_sys::SetLatch(pg_sys::MyLatch) };
}

fn is_stopped() -> bool {
    STOPPED.load(Ordering::SeqCst)
}

/// Keeps for `tenant_worker_status()` what ends this worker.
fn note_failure(error: &pg_sys::panic::CaughtError) {
    use pg_sys::panic::CaughtError::{ErrorReport, PostgresError, RustPanic};
    let (PostgresError(report) | ErrorReport(report) | RustPanic { ereport: report, .. }) = error;
    // Nothing was committed, and on the way here what was planned was undone.
    MOVES.set(false);
    if let Some(database) = shmem::database() {
        let retry_at = database.retry_at.load(Ordering::Relaxed);
        // What it was about to do is still to be done.
        database.busy.store(true, Ordering::SeqCst);
        database.note_failure(report.message(), clock::now(), retry_at);
    }
}

/// Whether leases are being moved: between what shared memory and what the tables say of them lies a commit.
static MOVES: Backend<Cell<bool>> = Backend::new(Cell::new(false));

unsafe extern "C-unwind" fn leave(_code: i32, _argument: pg_sys::Datum) {
    if let Some(database) = shmem::database() {
        if MOVES.get() {
            // Whether that has come to pass, the tables know.
            database.units_changed();
        }
        database.end_work();
    }
}

/// Runs `task` in a transaction of its own, if the extension is installed. Its tables stay for as long; if somebody has one of
/// them for himself, it is left for another time.
fn in_transaction<T: Default>(task: impl FnOnce() -> Result<T>) -> T {
    let mut value = T::default();
    let slot = &mut value;
    BackgroundWorker::transaction(std::panic::AssertUnwindSafe(|| {
        if registry::units::keep_tables() {
            *slot = crate::error::or_raise(task());
        } else if registry::installed()
            && let Some(database) = shmem::database()
        {
            database.busy.store(true, Ordering::SeqCst);
        }
    }));
    value
}

fn work(database: &'static Database) {
    database.busy.store(false, Ordering::SeqCst);
    let is_ready = in_transaction(|| {
        ledger::load()?;
        lease::note_stranded()?;
        Ok(true)
    });
    if !is_ready {
        // What kept it from the tables may last: the launcher takes its time.
        return;
    }
    let mut round_at = i64::MIN;
    let mut idle_rounds = 0;
    while !is_stopped() {
        let mut did = serve(database);
        let now = clock::now();
        if now.saturating_sub(round_at) >= ROUND {
            round_at = now;
            did += round(database);
            rest(database);
            idle_rounds = if did == 0 { idle_rounds + 1 } else { 0 };
        }
        if did > 0 {
            database.worked_at.store(now, Ordering::Relaxed);
        }
        if idle_rounds > IDLE_ROUNDS {
            let now = clock::now();
            // Leases behind a fence are given back when it has opened.
            let leases = lease::to_end(false).1;
            let due_at = if leases > 0 { now } else { in_transaction(quota::next_due).unwrap_or(i64::MAX) };
            database.due_at.store(due_at.clamp(now + DUE.0, now + DUE.1), Ordering::SeqCst);
            return;
        }
        let postmaster_is_there = BackgroundWorker::wait_latch(Some(TICK));
        if !postmaster_is_there {
            break;
        }
    }
    // The server stops: what is not used goes back, but for what callers lease meanwhile. If it is only this worker that is
    // stopped, another one folds that. Once more than needed: a call that fails as a whole gives back late.
    for _ in 0..=1 + lease::to_end(true).1 / lease::MOST_KEYS {
        extend(database, &lease::to_end(true).0);
    }
    tell(&lease::news());
    database.busy.store(true, Ordering::SeqCst);
}

/// A worker that has come this far works: the next one may come at once.
fn rest(database: &Database) {
    database.failures.store(0, Ordering::Relaxed);
    database.retry_at.store(0, Ordering::Relaxed);
}

/// Extends the leases that callers wait for. How many.
fn serve(database: &Database) -> usize {
    if !database.urgent.swap(false, Ordering::SeqCst) {
        return 0;
    }
    extend(database, &database.take_asks().unwrap_or_else(|| lease::to_end(false).0)).0
}

/// How many leases it has moved, and how many a fence has kept it from.
fn extend(database: &Database, asks: &[shmem::Key]) -> (usize, usize) {
    let (mut moved, mut fenced) = (0, 0);
    for asks in asks.chunks(quota::MOST_TENANTS as usize) {
        MOVES.set(true);
        let moves = in_transaction(|| lease::write(asks));
        fenced += moves.fenced;
        moved += moves.publish();
        MOVES.set(false);
    }
    database.extended.fetch_add(moved as i64, Ordering::Relaxed);
    (moved, fenced)
}

/// Writes events of the keys.
fn tell(keys: &[ledger::Folded]) {
    for keys in keys.chunks(quota::MOST_TENANTS as usize) {
        lease::told(&in_transaction(|| events::record_folded(keys)));
    }
}

/// What is done once a second. How much there was to do. Whoever waits for a lease is served between the steps, which are
/// short.
fn round(database: &Database) -> usize {
    database.busy.store(false, Ordering::SeqCst);
    let (keys, leases) = lease::to_end(false);
    // Whoever holds a lease gives it back before it goes, unless a fence is in the way, which may be so for long.
    let (moved, fenced) = extend(database, &keys);
    let mut did = moved + leases.saturating_sub(fenced);
    while !is_stopped() {
        let folded = in_transaction(ledger::fold);
        ledger::settle(&folded);
        tell(&folded);
        let rows: i64 = folded.iter().map(|key| key.rows).sum();
        database.folded.fetch_add(rows, Ordering::Relaxed);
        did += rows as usize + serve(database);
        // What comes meanwhile is for the next round.
        if rows < ledger::BATCH {
            break;
        }
    }
    tell(&lease::news());
    let tasks: [fn(i64) -> Result<u64>; 4] =
        [quota::sweep, usage::close_periods, lease::forget_closed, |batch| match gucs::notify() {
            true => events::notify(batch),
            false => Ok(0),
        }];
    for task in tasks {
        loop {
            let some = in_transaction(|| task(BATCH));
            did += some as usize + serve(database);
            if is_stopped() || some < BATCH as u64 {
                break;
            }
        }
    }
    did
}

/// What the worker of this database did last, and what went wrong.
#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn tenant_worker_status() -> TableIterator<
    'static,
    (
        name!(pid, Option<i32>),
        name!(started_at, Option<TimestampWithTimeZone>),
        name!(worked_at, Option<TimestampWithTimeZone>),
        name!(rows_folded, i64),
        name!(leases_moved, i64),
        name!(failed_at, Option<TimestampWithTimeZone>),
        name!(failure, Option<String>),
    ),
> {
    let instant = |at: i64| (at != 0).then(|| TimestampWithTimeZone::try_from(at).ok()).flatten();
    let row = shmem::database().map(|database| {
        let pid = database.worker.load(Ordering::SeqCst);
        (
            (pid != 0).then_some(pid),
            instant(database.started_at.load(Ordering::Relaxed)),
            instant(database.worked_at.load(Ordering::Relaxed)),
            database.folded.load(Ordering::Relaxed),
            database.extended.load(Ordering::Relaxed),
            instant(database.failed_at.load(Ordering::Relaxed)),
            database.failure(),
        )
    });
    TableIterator::new(row)
}
