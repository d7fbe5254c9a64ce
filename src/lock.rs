//! Locks of our own: heavyweight locks of the advisory kind, of classes that no SQL function can take. They belong to the
//! transaction, and the server's own detector finds deadlocks among them.
//!
//! # Lock protocol
//!
//! In the order of the classes: [`Class::Fence`], [`Class::Once`], [`Class::Turn`], [`Class::Key`], [`Class::Ledger`]. Of one class
//! a call takes one, or several in the order of the names. [`Class::CachePart`] comes with the rows of the cache,
//! [`Class::Ticket`] after all others. Who is held up by whom is in ARCHITECTURE.md, with a picture.

use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::pg_sys;

use crate::tenant::TenantId;

/// What is locked: `objsubid` in pg_locks. SQL can take advisory locks of class 1 and 2 only.
#[derive(Clone, Copy)]
pub enum Class {
    /// The writers of a tenant.
    Fence = 7215,
    /// The units of a quota key.
    Key = 7216,
    /// Whose turn it is to wait for a writer of a key.
    Turn = 7217,
    /// What a request does once: an idempotency key, the end of a reservation.
    Once = 7219,
    /// The ledger of a database, for who folds or counts it as a whole.
    Ledger = 7222,
    /// A ticket that is being used.
    Ticket = 7220,
    /// A part of the totals of a tenant's cache.
    CachePart = 7221,
}

/// A lock of this database. Two things of one class and the same words wait for each other, which is slower and as right.
pub struct Lock(pg_sys::LOCKTAG);

impl Lock {
    /// What those words stand for.
    pub fn new(class: Class, words: [u32; 2]) -> Lock {
        Lock(pg_sys::LOCKTAG {
            // SAFETY: reads a variable of the backend.
            locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
            locktag_field2: words[0],
            locktag_field3: words[1],
            locktag_field4: class as u16,
            locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
            locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
        })
    }

    /// Whatever can be hashed.
    pub fn hashed(class: Class, value: &impl Hash) -> Lock {
        let mut hasher = DefaultHasher::new();
        value.hash(&mut hasher);
        let hash = hasher.finish();
        Lock::new(class, [(hash >> 32) as u32, hash as u32])
    }

    /// A tenant, or a part of something of its. Of two tenants uuids make the same words rarely.
    pub fn of_tenant(class: Class, id: TenantId, part: u32) -> Lock {
        let word = |at| word(id.as_bytes(), at);
        Lock::new(class, [word(0) ^ word(4) ^ part, word(8) ^ word(12)])
    }

    fn take(&self, mode: u32, wait: bool) -> bool {
        self.try_take(mode, wait) != pg_sys::LockAcquireResult::LOCKACQUIRE_NOT_AVAIL
    }

    fn try_take(&self, mode: u32, wait: bool) -> pg_sys::LockAcquireResult::Type {
        // SAFETY: the tag is complete; the lock belongs to the transaction, which releases it. Waiting can be cancelled.
        of_transaction(|| unsafe { pg_sys::LockAcquire(&self.0, mode as i32, false, !wait) })
    }

    /// Takes the lock if nobody else has it.
    pub fn try_acquire(&self) -> bool {
        self.take(pg_sys::ExclusiveLock, false)
    }

    /// Waits for the lock.
    pub fn acquire(&self) {
        self.take(pg_sys::ExclusiveLock, true);
    }

    /// As [`Lock::acquire`]; false if the transaction had it already. It is to be released in either case.
    pub fn acquire_first(&self) -> bool {
        self.try_take(pg_sys::ExclusiveLock, true) != pg_sys::LockAcquireResult::LOCKACQUIRE_ALREADY_HELD
    }

    /// Shares the lock; false if somebody has it alone and nobody is to be waited for.
    pub fn share(&self, wait: bool) -> bool {
        self.take(pg_sys::ShareLock, wait)
    }

    /// Gives back what was acquired once; what an earlier call of the transaction holds stays.
    pub fn release(&self) {
        // SAFETY: the caller has acquired it.
        of_transaction(|| unsafe { pg_sys::LockRelease(&self.0, pg_sys::ExclusiveLock as i32, false) });
    }
}

/// Locks that `take` takes belong to the (sub)transaction, also where a cursor is being fetched from. A cursor's own go with
/// it when it fails in a savepoint, and what was done under them in the transaction around that stays.
pub fn of_transaction<T>(take: impl FnOnce() -> T) -> T {
    struct Before(pg_sys::ResourceOwner);
    impl Drop for Before {
        fn drop(&mut self) {
            // SAFETY: the owner that was the current one, which an error on the way has not ended yet.
            unsafe { pg_sys::CurrentResourceOwner = self.0 };
        }
    }
    // SAFETY: variables of the backend.
    let _before = unsafe {
        let before = Before(pg_sys::CurrentResourceOwner);
        pg_sys::CurrentResourceOwner = pg_sys::CurTransactionResourceOwner;
        before
    };
    take()
}

/// Four bytes as a number.
pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}
