//! Shared memory: the keys whose units are counted there, and what is known of each database.
//!
//! # Words
//!
//! An *entry* is a quota key with its counters. It is *pinned* while a transaction has units in flight on it; a pinned
//! entry stays where it is. A *generation* of a database ends when its units were changed by other means, by SQL on our
//! tables: entries of an older one are looked up again as soon as nobody pins them. A database is *loaded* when every
//! key with rows in the ledger has an entry, so that a key without one has its units in `tenant_rls.usage` alone.
//!
//! # Lock protocol
//!
//! The table is divided into parts by the hash of the key, with a lock each. Counters are atomics: whoever counts holds
//! the lock of the part shared, or a pin. Who makes, removes or turns an entry into another kind holds it alone. Nothing
//! that can raise an error, wait or allocate in the server happens under such a lock. One more lock guards the list of
//! databases and the texts in it.
//!
//! Sizes are fixed when the server starts (`tenant_rls.quota_keys`, `tenant_rls.quota_databases`). When the table is full,
//! entries that nobody has used for longest make room; if there are none, the key is counted in mode strict.

use std::cell::{Cell, UnsafeCell};
use std::ffi::{c_int, c_long, c_void};
use std::mem::size_of;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::Backend;
use crate::gucs;
use crate::tenant::TenantId;

/// Parts of the table, a power of two.
const PARTS: usize = 32;

/// Bytes of the name of a resource that fit into a key; longer ones are counted in mode strict.
const MOST_NAME: usize = 64;

/// Bytes of an error that are kept for `tenant_worker_status()`.
const MOST_TEXT: usize = 256;

/// Keys that ask for a lease and that the worker finds without looking at all of them.
const MOST_ASKS: usize = 16;

/// A tenant, a resource and a period of one database.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    database: u32,
    length: u32,
    tenant: [u8; 16],
    period_start: i64,
    resource: [u8; MOST_NAME],
}

impl Key {
    /// The key in this database; `None` if the name does not fit. `period_start` in microseconds since 2000-01-01.
    pub fn new(tenant: TenantId, resource: &str, period_start: i64) -> Option<Key> {
        let mut name = [0; MOST_NAME];
        name.get_mut(..resource.len())?.copy_from_slice(resource.as_bytes());
        Some(Key {
            // SAFETY: reads a variable of the backend.
            database: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            length: resource.len() as u32,
            tenant: *tenant.as_bytes(),
            period_start,
            resource: name,
        })
    }

    /// Whose units.
    pub fn tenant(&self) -> TenantId {
        TenantId::from_bytes(self.tenant)
    }

    /// Of what.
    pub fn resource(&self) -> &str {
        std::str::from_utf8(&self.resource[..self.length as usize]).unwrap_or_default()
    }

    /// Since when, in microseconds since 2000-01-01.
    pub fn period_start(&self) -> i64 {
        self.period_start
    }

    fn is_here(&self) -> bool {
        // SAFETY: reads a variable of the backend.
        self.database == unsafe { pg_sys::MyDatabaseId }.to_u32()
    }
}

/// How the units of an entry are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// Between `inf` and `sup`: see `quota::escrow`.
    Escrow,
    /// Up to `granted`: see `quota::lease`.
    Leased,
}

/// A key and its counters.
#[repr(C)]
pub struct Entry {
    /// Comes first: the server's hash tables demand it.
    key: Key,
    /// Transactions that have units in flight.
    pub pins: AtomicU32,
    kind: AtomicU32,
    generation: AtomicU64,
    /// Units used if all that is in flight is undone (escrow).
    pub inf: AtomicI64,
    /// Units used if all that is in flight comes to pass (escrow); units used (leased).
    pub sup: AtomicI64,
    /// Units that are durably accounted for, used or not (leased).
    pub granted: AtomicI64,
    /// Units of `granted` that the last extension added, the most that a crash strands (leased).
    pub chunk: AtomicI64,
    /// Units that a caller waits for, 0 when none does (leased).
    pub asked: AtomicI64,
    /// Units that were used, and when, at the last extension (leased).
    pub used_then: AtomicI64,
    /// See `used_then`; microseconds since 2000-01-01.
    pub extended_at: AtomicI64,
    /// The tables say what a crash would strand: it has been extended since it was begun (leased).
    pub noted: AtomicBool,
    /// Another mode is wanted: what is granted and unused is to be given back (leased).
    pub returning: AtomicBool,
    /// Rows of the ledger that are committed and not folded.
    pub unfolded: AtomicI64,
    /// The last call, in microseconds since 2000-01-01.
    pub called_at: AtomicI64,
    /// The end of the period, in microseconds since 2000-01-01.
    pub resets_at: AtomicI64,
    /// Whether reservations may hold some of the units.
    pub may_hold: AtomicBool,
    /// The most units that were ever committed at one time (escrow).
    pub peak: AtomicI64,
}

/// What the tables say of a key.
#[derive(Clone, Copy)]
pub struct Recorded {
    /// The units.
    pub units: i64,
    /// Rows of the ledger that they are in.
    pub unfolded: i64,
    /// Whether reservations may hold some of them.
    pub may_hold: bool,
    /// The generation of the database when they were read, or before.
    pub generation: u64,
}

impl Entry {
    /// The key.
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// How it is counted. Changes under the exclusive lock only.
    pub fn kind(&self) -> Kind {
        if self.kind.load(Ordering::Relaxed) == Kind::Leased as u32 { Kind::Leased } else { Kind::Escrow }
    }

    /// Counts it in another way. The caller holds the lock alone.
    pub fn set_kind(&self, kind: Kind) {
        self.kind.store(kind as u32, Ordering::Relaxed);
    }

    /// Counts on from there. The caller holds the lock alone, and nothing is in flight.
    pub fn set_units(&self, recorded: Recorded) {
        self.set_kind(Kind::Escrow);
        self.inf.store(recorded.units, Ordering::Relaxed);
        self.sup.store(recorded.units, Ordering::Relaxed);
        self.returning.store(false, Ordering::Relaxed);
        self.unfolded.store(recorded.unfolded, Ordering::Relaxed);
        self.may_hold.store(recorded.may_hold, Ordering::Relaxed);
        self.peak.store(recorded.units, Ordering::Relaxed);
        self.generation.store(recorded.generation, Ordering::Relaxed);
    }

    /// Whether its units were changed by other means since it was looked up.
    pub fn is_stale(&self) -> bool {
        database().is_some_and(|database| database.generation() != self.generation.load(Ordering::Relaxed))
    }

    /// Whether it can be dropped, and looked up again from `tenant_rls.usage` alone.
    pub fn is_settled(&self) -> bool {
        self.pins.load(Ordering::SeqCst) == 0
            && self.unfolded.load(Ordering::SeqCst) == 0
            && self.kind() == Kind::Escrow
    }
}

/// An entry that cannot go.
#[derive(Clone, Copy)]
pub struct Pinned(*const Entry);

impl Pinned {
    /// The entry.
    pub fn entry(&self) -> &Entry {
        // SAFETY: pinned entries are neither moved nor removed, and whoever unpins drops this.
        unsafe { &*self.0 }
    }

    /// Lets go of it.
    pub fn unpin(self) {
        self.entry().pins.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Pins an entry that was just found: for callers of [`look`], inside.
pub fn pin(entry: &Entry) -> Pinned {
    entry.pins.fetch_add(1, Ordering::SeqCst);
    Pinned(entry)
}

/// What is known of a database.
#[repr(C)]
pub struct Database {
    oid: AtomicU32,
    loaded: AtomicBool,
    /// The ledger has rows, or something else is to be done: a worker is wanted.
    pub busy: AtomicBool,
    /// A caller waits for a lease: a worker is wanted at once.
    pub urgent: AtomicBool,
    generation: AtomicU64,
    /// The next time that something falls due, in microseconds since 2000-01-01.
    pub due_at: AtomicI64,
    /// The worker, 0 when there is none.
    pub worker: AtomicI32,
    latch: AtomicUsize,
    /// Waits for leases.
    published: UnsafeCell<pg_sys::ConditionVariable>,
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

    /// The keys that ask for a lease; not all of them if there are many.
    pub fn take_asks(&self) -> Vec<Key> {
        let mut asks = Vec::with_capacity(MOST_ASKS);
        self.guarded(|guarded| {
            asks.extend_from_slice(&guarded.asks[..guarded.ask_count]);
            guarded.ask_count = 0;
        });
        asks
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
        for flag in [&self.busy, &self.urgent] {
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

#[repr(C)]
struct Header {
    /// The latch of the launcher, 0 when it does not run.
    launcher: AtomicUsize,
    count: usize,
}

/// What the postmaster has set up, inherited by every process of the server.
static HEADER: Backend<Cell<*mut Header>> = Backend::new(Cell::new(std::ptr::null_mut()));
static TABLE: Backend<Cell<*mut pg_sys::HTAB>> = Backend::new(Cell::new(std::ptr::null_mut()));
static LOCKS: Backend<Cell<*mut pg_sys::LWLockPadded>> = Backend::new(Cell::new(std::ptr::null_mut()));
static OWN: Backend<Cell<*const Database>> = Backend::new(Cell::new(std::ptr::null()));

static PREVIOUS_REQUEST: Backend<Cell<pg_sys::shmem_request_hook_type>> = Backend::new(Cell::new(None));
static PREVIOUS_STARTUP: Backend<Cell<pg_sys::shmem_startup_hook_type>> = Backend::new(Cell::new(None));

/// Asks for the memory. Called once, when the library is loaded; does nothing if that is too late.
pub fn init() {
    // SAFETY: reads and writes hook variables while the postmaster loads libraries.
    unsafe {
        if !pg_sys::process_shared_preload_libraries_in_progress {
            return;
        }
        PREVIOUS_REQUEST.set(pg_sys::shmem_request_hook);
        pg_sys::shmem_request_hook = Some(request);
        PREVIOUS_STARTUP.set(pg_sys::shmem_startup_hook);
        pg_sys::shmem_startup_hook = Some(startup);
    }
}

fn header_size() -> usize {
    size_of::<Header>() + gucs::quota_databases() * size_of::<Database>()
}

#[pg_guard]
unsafe extern "C-unwind" fn request() {
    // SAFETY: called by the server when memory can be asked for.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST.get() {
            previous();
        }
        let table = pg_sys::hash_estimate_size(gucs::quota_keys() as c_long, size_of::<Entry>());
        pg_sys::RequestAddinShmemSpace(header_size() + table);
        pg_sys::RequestNamedLWLockTranche(c"tenant_rls".as_ptr(), PARTS as c_int + 1);
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn startup() {
    // SAFETY: called by the server once its memory is there, before other processes are: after a crash once more.
    // The structs are valid when all bytes are zero, but for what is set here.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP.get() {
            previous();
        }
        let mut found = false;
        let header: *mut Header =
            pg_sys::ShmemInitStruct(c"tenant_rls".as_ptr(), header_size(), &mut found).cast();
        if !found {
            header.cast::<u8>().write_bytes(0, header_size());
            (*header).count = gucs::quota_databases();
            for number in 0..(*header).count {
                pg_sys::ConditionVariableInit((*databases_of(header).add(number)).published.get());
            }
        }
        let mut control = pg_sys::HASHCTL {
            keysize: size_of::<Key>(),
            entrysize: size_of::<Entry>(),
            num_partitions: PARTS as c_long,
            ..std::mem::zeroed()
        };
        let keys = gucs::quota_keys() as c_long;
        let flags = pg_sys::HASH_ELEM | pg_sys::HASH_BLOBS | pg_sys::HASH_PARTITION | pg_sys::HASH_FIXED_SIZE;
        let table =
            pg_sys::ShmemInitHash(c"tenant_rls keys".as_ptr(), keys, keys, &mut control, flags as c_int);
        LOCKS.set(pg_sys::GetNamedLWLockTranche(c"tenant_rls".as_ptr()));
        TABLE.set(table);
        HEADER.set(header);
    }
}

// The declarations of pgrx are guarded, which costs more than the calls. None of these raises while the memory is
// sound, and nothing in the frames that call them needs dropping.
unsafe extern "C-unwind" {
    fn LWLockAcquire(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) -> bool;
    fn LWLockRelease(lock: *mut pg_sys::LWLock);
    fn get_hash_value(table: *mut pg_sys::HTAB, key: *const c_void) -> u32;
    fn hash_search_with_hash_value(
        table: *mut pg_sys::HTAB,
        key: *const c_void,
        hash: u32,
        action: pg_sys::HASHACTION::Type,
        found: *mut bool,
    ) -> *mut c_void;
}

fn header() -> Option<&'static Header> {
    let header = HEADER.get();
    // SAFETY: null, or the memory that the server keeps for as long as it runs.
    (!header.is_null()).then(|| unsafe { &*header })
}

unsafe fn databases_of(header: *mut Header) -> *mut Database {
    // SAFETY: the caller's header is followed by the databases.
    unsafe { header.add(1).cast() }
}

/// Whether the library was loaded in time to have shared memory.
pub fn is_available() -> bool {
    !HEADER.get().is_null()
}

struct Held(*mut pg_sys::LWLock);

impl Held {
    fn take(number: usize, mode: pg_sys::LWLockMode::Type) -> Held {
        // SAFETY: the locks were set up with the table, whose users call this.
        unsafe {
            let lock = &raw mut (*LOCKS.get().add(number)).lock;
            LWLockAcquire(lock, mode);
            Held(lock)
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // SAFETY: taken by this process, and not released since.
        unsafe { LWLockRelease(self.0) };
    }
}

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
    sweep(|entry| gone.contains(&pg_sys::Oid::from(entry.key.database)));
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

struct Place {
    hash: u32,
    part: usize,
}

fn place(key: &Key) -> Place {
    // SAFETY: hashes the bytes of the key.
    let hash = unsafe { get_hash_value(TABLE.get(), std::ptr::from_ref(key).cast()) };
    Place { hash, part: hash as usize % PARTS }
}

unsafe fn search(key: &Key, hash: u32, action: pg_sys::HASHACTION::Type, found: &mut bool) -> *mut Entry {
    // SAFETY: the caller holds the lock of the part in the mode that the action needs.
    unsafe { hash_search_with_hash_value(TABLE.get(), std::ptr::from_ref(key).cast(), hash, action, found) }
        .cast()
}

/// Runs `with` on the entry of a key, if there is one. Others may count meanwhile.
pub fn look<T>(key: &Key, with: impl FnOnce(&Entry) -> T) -> Option<T> {
    let_entry(key, pg_sys::LWLockMode::LW_SHARED, with)
}

/// As [`look`], alone: nobody counts meanwhile, but for those that hold a pin.
pub fn change<T>(key: &Key, with: impl FnOnce(&Entry) -> T) -> Option<T> {
    let_entry(key, pg_sys::LWLockMode::LW_EXCLUSIVE, with)
}

fn let_entry<T>(key: &Key, mode: pg_sys::LWLockMode::Type, with: impl FnOnce(&Entry) -> T) -> Option<T> {
    if !is_available() {
        return None;
    }
    let place = place(key);
    let held = Held::take(place.part, mode);
    let mut found = false;
    // SAFETY: the lock is held; the entry stays for as long.
    let value = unsafe {
        let entry = search(key, place.hash, pg_sys::HASHACTION::HASH_FIND, &mut found);
        entry.as_ref().map(with)
    };
    drop(held);
    value
}

/// Makes the entry of a key, with those units, unless there is one. `false` when the table is full.
pub fn put(key: &Key, resets_at: i64, recorded: Recorded) -> bool {
    let place = place(key);
    for attempt in 0..2 {
        let held = Held::take(place.part, pg_sys::LWLockMode::LW_EXCLUSIVE);
        let mut found = false;
        // SAFETY: the lock is held alone. A new entry has its key, and is filled before anybody sees it.
        let made = unsafe {
            let entry = search(key, place.hash, pg_sys::HASHACTION::HASH_ENTER_NULL, &mut found);
            if !entry.is_null() && !found {
                entry
                    .cast::<u8>()
                    .add(size_of::<Key>())
                    .write_bytes(0, size_of::<Entry>() - size_of::<Key>());
                (*entry).resets_at.store(resets_at, Ordering::Relaxed);
                (*entry).called_at.store(crate::clock::now(), Ordering::Relaxed);
                (*entry).set_units(recorded);
            }
            !entry.is_null()
        };
        drop(held);
        if made {
            return true;
        }
        if attempt == 0 {
            make_room();
        }
    }
    false
}

/// Removes the entry of a key if it is settled. `false` if it must stay.
pub fn retire(key: &Key) -> bool {
    let place = place(key);
    let held = Held::take(place.part, pg_sys::LWLockMode::LW_EXCLUSIVE);
    let mut found = false;
    // SAFETY: the lock is held alone, and nobody pins what is removed.
    let retired = unsafe {
        let entry = search(key, place.hash, pg_sys::HASHACTION::HASH_FIND, &mut found);
        let settled = entry.as_ref().is_none_or(|entry| entry.is_settled() && !entry.is_stale());
        if settled && !entry.is_null() {
            search(key, place.hash, pg_sys::HASHACTION::HASH_REMOVE, &mut found);
        }
        settled
    };
    drop(held);
    retired
}

/// Calls `each` for all entries of this database. Others count meanwhile, nobody makes or removes entries.
pub fn each(mut each: impl FnMut(&Entry)) {
    if is_available() {
        let held: [Held; PARTS] = std::array::from_fn(|part| Held::take(part, pg_sys::LWLockMode::LW_SHARED));
        walk(|entry| {
            if entry.key.is_here() {
                each(entry);
            }
        });
        drop(held);
    }
}

fn walk(mut each: impl FnMut(&Entry)) {
    // SAFETY: the caller holds the locks of all parts. The scan is not left early. It does not outlive the locks.
    unsafe {
        let mut status: pg_sys::HASH_SEQ_STATUS = std::mem::zeroed();
        pg_sys::hash_seq_init(&mut status, TABLE.get());
        loop {
            let entry = pg_sys::hash_seq_search(&mut status).cast::<Entry>();
            let Some(entry) = entry.as_ref() else { break };
            each(entry);
        }
    }
}

/// Removes the entries that `goes` says of. The caller knows that nobody pins them.
fn sweep(mut goes: impl FnMut(&Entry) -> bool) {
    let held: [Held; PARTS] = std::array::from_fn(|part| Held::take(part, pg_sys::LWLockMode::LW_EXCLUSIVE));
    walk(|entry| {
        if goes(entry) {
            let key = entry.key;
            let mut found = false;
            // SAFETY: all locks are held alone; a scan may remove the entry that it is at.
            unsafe { search(&key, place(&key).hash, pg_sys::HASHACTION::HASH_REMOVE, &mut found) };
        }
    });
    drop(held);
}

/// Removes a tenth of the settled entries: those that nobody has called for longest.
fn make_room() {
    let mut ages = Vec::with_capacity(gucs::quota_keys());
    let held: [Held; PARTS] = std::array::from_fn(|part| Held::take(part, pg_sys::LWLockMode::LW_SHARED));
    walk(|entry| {
        if ages.len() < ages.capacity() && entry.is_settled() {
            ages.push(entry.called_at.load(Ordering::Relaxed));
        }
    });
    drop(held);
    if ages.is_empty() {
        return;
    }
    let nth = (ages.len() - 1) / 10;
    let (_, oldest, _) = ages.select_nth_unstable(nth);
    let oldest = *oldest;
    sweep(|entry| entry.is_settled() && entry.called_at.load(Ordering::Relaxed) <= oldest);
}
