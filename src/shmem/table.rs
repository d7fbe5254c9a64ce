//! The keys, and what is counted of each.

use std::ffi::c_void;
use std::mem::size_of;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_sys;

use super::{Held, PARTS, TABLE, database, databases, is_available};
use crate::gucs;
use crate::tenant::TenantId;

/// Bytes of the name of a resource that fit into a key; longer ones are counted in mode strict.
const MOST_NAME: usize = 64;

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
    /// Units that were granted and not used when the worker last looked: what the tables say that a crash strands, or less
    /// (leased).
    pub chunk: AtomicI64,
    /// Units that a caller waits for, 0 when none does (leased).
    pub asked: AtomicI64,
    /// Units that were used, and when, at the last extension (leased).
    pub used_then: AtomicI64,
    /// See `used_then`; microseconds since 2000-01-01.
    pub extended_at: AtomicI64,
    /// The tables say what a crash would strand: it has been extended since it was begun (leased).
    pub noted: AtomicBool,
    /// Units that a call has taken of a lease that was over before it failed: to be given back.
    pub owed: AtomicI64,
    /// Another mode is wanted: what is granted and unused is to be given back (leased).
    pub returning: AtomicBool,
    /// Rows of the ledger that are committed and not folded.
    pub unfolded: AtomicI64,
    /// The last call, in microseconds since 2000-01-01.
    pub called_at: AtomicI64,
    /// The end of the period, in microseconds since 2000-01-01.
    pub resets_at: AtomicI64,
    /// 0 if no reservation holds some of the units; else it counts how often one was about to.
    pub holds: AtomicU32,
    /// The most units that were ever committed at one time (escrow), or that events know of (leased).
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
        self.holds.store(recorded.may_hold.into(), Ordering::Relaxed);
        self.peak.store(recorded.units, Ordering::Relaxed);
        self.generation.store(recorded.generation, Ordering::Relaxed);
    }

    /// Counts how often units had been changed by other means when it was looked up.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Relaxed)
    }

    /// Whether its units were changed by other means since it was looked up.
    pub fn is_stale(&self) -> bool {
        database().is_some_and(|database| database.generation() != self.generation.load(Ordering::Relaxed))
    }

    /// Whether it can be dropped, and looked up again from `tenant_rls.usage` alone.
    pub fn is_settled(&self) -> bool {
        self.pins.load(Ordering::SeqCst) == 0
            && self.unfolded.load(Ordering::SeqCst) == 0
            && self.owed.load(Ordering::SeqCst) == 0
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

// Declared as in `shmem.rs`, for the same reasons.
unsafe extern "C-unwind" {
    fn get_hash_value(table: *mut pg_sys::HTAB, key: *const c_void) -> u32;
    fn hash_search_with_hash_value(
        table: *mut pg_sys::HTAB,
        key: *const c_void,
        hash: u32,
        action: pg_sys::HASHACTION::Type,
        found: *mut bool,
    ) -> *mut c_void;
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

/// The entries of a tenant of this database are looked up again before they are used. To be called before what changes its
/// units by other means commits.
pub fn doubt_tenant(tenant: TenantId) {
    each(|entry| {
        if entry.key.tenant == *tenant.as_bytes() {
            entry.generation.store(u64::MAX, Ordering::SeqCst);
        }
    });
}

/// Removes the entries of a tenant of this database that is gone.
pub fn forget_tenant(tenant: TenantId) {
    if is_available() {
        sweep(|entry| {
            entry.key.is_here()
                && entry.key.tenant == *tenant.as_bytes()
                && entry.pins.load(Ordering::SeqCst) == 0
        });
    }
}

/// Removes the entries of databases that are gone.
pub(super) fn forget_entries(gone: &[pg_sys::Oid]) {
    sweep(|entry| gone.contains(&pg_sys::Oid::from(entry.key.database)));
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

/// Removes a tenth of the settled entries: those that nobody has called for longest. Of what was changed by other means it is
/// not known whether rows of the ledger are left.
fn make_room() {
    let generations: Vec<_> =
        databases().into_iter().map(|database| (database.oid().to_u32(), database.generation())).collect();
    let can_go =
        |entry: &Entry| entry.is_settled() && generations.contains(&(entry.key.database, entry.generation()));
    let mut ages = Vec::with_capacity(gucs::quota_keys());
    let held: [Held; PARTS] = std::array::from_fn(|part| Held::take(part, pg_sys::LWLockMode::LW_SHARED));
    walk(|entry| {
        if ages.len() < ages.capacity() && can_go(entry) {
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
    sweep(|entry| can_go(entry) && entry.called_at.load(Ordering::Relaxed) <= oldest);
}
