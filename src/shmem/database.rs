//! What is known of each database, for its sessions, its worker and the launcher.

use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pgrx::pg_sys;

use super::table::{Key, forget_entries};
use super::{HEADER, Held, PARTS, databases_of, header};
use crate::backend::Backend;

/// Bytes of an error that are kept for `tenant_worker_status()`.
const MOST_TEXT: usize = 256;

/// Keys that ask for a lease and that the worker finds without looking at all of them.
const MOST_ASKS: usize = 16;

/// What is known of a database.
#[repr(C)]
pub struct Database {
    oid: AtomicU32,
    loaded: AtomicBool,
    /// The ledger has rows, or something else is to be done: a worker is wanted.
    pub busy: AtomicBool,
    /// A caller waits for a lease: a worker is wanted at once.
    pub urgent: AtomicBool,
    /// Whether any reservation is held, or was since the server started.
    pub reserves: AtomicBool,
    generation: AtomicU64,
    /// The next time that something falls due, in microseconds since 2000-01-01.
    pub due_at: AtomicI64,
    /// The worker, 0 when there is none.
    pub worker: AtomicI32,
    latch: AtomicUsize,
    /// Waits for leases.
    pub(super) published: UnsafeCell<pg_sys::ConditionVariable>,
    guarded: UnsafeCell<Guarded>,
    /// Transactions of the worker that failed, one after the other.
    pub failures: AtomicU32,
    /// When the worker may be started again after a failure.
    pub retry_at: AtomicI64,
    /// When the worker was started.
    pub started_at: AtomicI64,
    /// When it last did something.
    pub worked_at: AtomicI64,
    /// Rows of the ledger that workers have folded since the server started.
    pub folded: AtomicI64,
    /// Leases that workers have extended since the server started.
    pub extended: AtomicI64,
    /// When it last failed, 0 for never.
    pub failed_at: AtomicI64,
}

/// What the lock of the databases guards.
#[repr(C)]
struct Guarded {
    asks: [Key; MOST_ASKS],
    ask_count: usize,
    failure: [u8; MOST_TEXT],
    failure_length: usize,
}

impl Database {
    /// Counts how often units were changed by other means.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// Whether every key with rows in the ledger has an entry.
    pub fn is_loaded(&self) -> bool {
        self.loaded.load(Ordering::SeqCst)
    }

    /// Says that every such key has one, unless units were changed since that generation.
    pub fn set_loaded(&self, generation: u64) {
        with_databases(pg_sys::LWLockMode::LW_EXCLUSIVE, |_| {
            if self.generation() == generation {
                self.loaded.store(true, Ordering::SeqCst);
            }
        });
    }

    /// Units were changed by other means.
    pub fn units_changed(&self) {
        with_databases(pg_sys::LWLockMode::LW_EXCLUSIVE, |_| {
            self.generation.fetch_add(1, Ordering::SeqCst);
            self.loaded.store(false, Ordering::SeqCst);
        });
    }

    /// The database.
    pub fn oid(&self) -> pg_sys::Oid {
        pg_sys::Oid::from(self.oid.load(Ordering::Relaxed))
    }

    /// Where to wait for leases.
    pub fn published(&self) -> *mut pg_sys::ConditionVariable {
        self.published.get()
    }

    /// This process is the worker from now on; false if there is another.
    pub fn begin_work(&self, now: i64) -> bool {
        // SAFETY: reads variables of the backend.
        let (pid, latch) = unsafe { (pg_sys::MyProcPid, pg_sys::MyLatch) };
        if self.worker.compare_exchange(0, pid, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return false;
        }
        self.latch.store(latch as usize, Ordering::SeqCst);
        self.started_at.store(now, Ordering::Relaxed);
        true
    }

    /// This process is no longer the worker.
    pub fn end_work(&self) {
        // SAFETY: as above.
        let pid = unsafe { pg_sys::MyProcPid };
        if self.worker.load(Ordering::SeqCst) == pid {
            self.latch.store(0, Ordering::SeqCst);
            self.worker.store(0, Ordering::SeqCst);
        }
    }

    /// Asks the worker for a lease, and wakes it or whoever starts it.
    pub fn ask(&self, key: &Key) {
        self.guarded(|guarded| {
            let count = guarded.ask_count;
            if count < MOST_ASKS && !guarded.asks[..count].contains(key) {
                guarded.asks[count] = *key;
                guarded.ask_count += 1;
            }
        });
        self.urgent.store(true, Ordering::SeqCst);
        let latch = match self.latch.load(Ordering::SeqCst) {
            0 => header().map_or(0, |header| header.launcher.load(Ordering::SeqCst)),
            latch => latch,
        };
        if latch != 0 {
            // SAFETY: the latch of a process slot, which stays in shared memory: at worst it wakes another process.
            unsafe { pg_sys::SetLatch(latch as *mut pg_sys::Latch) };
        }
    }

    /// The keys that ask for a lease; `None` if there may be more than are listed.
    pub fn take_asks(&self) -> Option<Vec<Key>> {
        let mut asks = Vec::with_capacity(MOST_ASKS);
        self.guarded(|guarded| {
            asks.extend_from_slice(&guarded.asks[..guarded.ask_count]);
            guarded.ask_count = 0;
        });
        (asks.len() < MOST_ASKS).then_some(asks)
    }

    /// Notes that the worker failed, and why.
    pub fn note_failure(&self, text: &str, now: i64, retry_at: i64) {
        let length = text.floor_char_boundary(MOST_TEXT);
        self.guarded(|guarded| {
            guarded.failure[..length].copy_from_slice(&text.as_bytes()[..length]);
            guarded.failure_length = length;
        });
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.failed_at.store(now, Ordering::Relaxed);
        self.retry_at.store(retry_at, Ordering::Relaxed);
    }

    /// Why the worker last failed.
    pub fn failure(&self) -> Option<String> {
        let mut bytes = Vec::with_capacity(MOST_TEXT);
        self.guarded(|guarded| bytes.extend_from_slice(&guarded.failure[..guarded.failure_length]));
        (!bytes.is_empty()).then(|| String::from_utf8_lossy(&bytes).into_owned())
    }

    fn guarded(&self, with: impl FnOnce(&mut Guarded)) {
        with_databases(pg_sys::LWLockMode::LW_EXCLUSIVE, |_| {
            // SAFETY: the lock is held alone, and this is the only place that looks inside.
            with(unsafe { &mut *self.guarded.get() });
        });
    }

    /// Makes the slot free. The caller holds the lock of the databases alone.
    fn clear(&self) {
        self.loaded.store(false, Ordering::SeqCst);
        for flag in [&self.busy, &self.urgent, &self.reserves] {
            flag.store(false, Ordering::SeqCst);
        }
        for counter in [&self.due_at, &self.retry_at, &self.started_at, &self.worked_at, &self.folded] {
            counter.store(0, Ordering::SeqCst);
        }
        for counter in [&self.extended, &self.failed_at] {
            counter.store(0, Ordering::SeqCst);
        }
        self.failures.store(0, Ordering::SeqCst);
        self.worker.store(0, Ordering::SeqCst);
        self.latch.store(0, Ordering::SeqCst);
        // SAFETY: as in `guarded`.
        let guarded = unsafe { &mut *self.guarded.get() };
        (guarded.ask_count, guarded.failure_length) = (0, 0);
        self.oid.store(0, Ordering::SeqCst);
    }
}

static OWN: Backend<Cell<*const Database>> = Backend::new(Cell::new(std::ptr::null()));

fn with_databases<T>(mode: pg_sys::LWLockMode::Type, with: impl FnOnce(&[Database]) -> T) -> Option<T> {
    let header = header()?;
    let held = Held::take(PARTS, mode);
    // SAFETY: as many as the header says.
    let databases = unsafe { std::slice::from_raw_parts(databases_of(HEADER.get()), header.count) };
    let value = with(databases);
    drop(held);
    Some(value)
}

/// What is known of this database; `None` without shared memory, or if there are too many.
pub fn database() -> Option<&'static Database> {
    let own = OWN.get();
    if !own.is_null() {
        // SAFETY: a slot is given up only when its database is gone.
        return Some(unsafe { &*own });
    }
    // SAFETY: reads a variable of the backend.
    let oid = unsafe { pg_sys::MyDatabaseId }.to_u32();
    let found = find_database(oid)?;
    OWN.set(found);
    // SAFETY: as above.
    Some(unsafe { &*found })
}

fn find_database(oid: u32) -> Option<*const Database> {
    with_databases(pg_sys::LWLockMode::LW_EXCLUSIVE, |databases| {
        let of = |oid| databases.iter().find(|database| database.oid.load(Ordering::Relaxed) == oid);
        of(oid).or_else(|| of(0)).map(|database| {
            database.oid.store(oid, Ordering::Relaxed);
            std::ptr::from_ref(database)
        })
    })
    .flatten()
}

/// The database of that number: for the launcher.
pub fn database_of(oid: pg_sys::Oid) -> Option<&'static Database> {
    // SAFETY: as in `database`.
    find_database(oid.to_u32()).map(|database| unsafe { &*database })
}

/// All databases that are known.
pub fn databases() -> Vec<&'static Database> {
    let mut known = Vec::with_capacity(header().map_or(0, |header| header.count));
    with_databases(pg_sys::LWLockMode::LW_SHARED, |databases| {
        for database in databases {
            if database.oid.load(Ordering::Relaxed) != 0 {
                // SAFETY: shared memory outlives every process.
                known.push(unsafe { &*std::ptr::from_ref(database) });
            }
        }
    });
    known
}

/// Forgets databases that are gone, and their entries.
pub fn forget_databases(gone: &[pg_sys::Oid]) {
    if gone.is_empty() {
        return;
    }
    forget_entries(gone);
    with_databases(pg_sys::LWLockMode::LW_EXCLUSIVE, |databases| {
        databases.iter().filter(|database| gone.contains(&database.oid())).for_each(Database::clear);
    });
}

/// Tells the databases which process starts workers.
pub fn set_launcher(latch: *mut pg_sys::Latch) {
    if let Some(header) = header() {
        header.launcher.store(latch as usize, Ordering::SeqCst);
    }
}
