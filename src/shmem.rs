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

mod database;
#[cfg(feature = "pg_test")]
mod disturb;
mod table;

use std::cell::Cell;
use std::ffi::{c_int, c_long};
use std::mem::size_of;
use std::sync::atomic::AtomicUsize;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::Backend;
use crate::gucs;
pub use database::{Database, database, database_of, databases, forget_databases, set_launcher};
pub use table::{
    Entry, Key, Kind, Pinned, Recorded, change, doubt_tenant, each, forget_tenant, look, pin, put, retire,
};

/// Parts of the table, a power of two.
const PARTS: usize = 32;

#[repr(C)]
struct Header {
    /// The latch of the launcher, 0 when it does not run.
    launcher: AtomicUsize,
    count: usize,
}

// What docs/operations.md says of `tenant_rls.quota_keys` and `tenant_rls.quota_databases`, without the server's own share.
const _: () = assert!(size_of::<Entry>() <= 240 && size_of::<Database>() <= 2048);

/// What the postmaster has set up, inherited by every process of the server.
static HEADER: Backend<Cell<*mut Header>> = Backend::new(Cell::new(std::ptr::null_mut()));
static TABLE: Backend<Cell<*mut pg_sys::HTAB>> = Backend::new(Cell::new(std::ptr::null_mut()));
static LOCKS: Backend<Cell<*mut pg_sys::LWLockPadded>> = Backend::new(Cell::new(std::ptr::null_mut()));

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
