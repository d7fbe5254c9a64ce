//! Writers of a tenant, and the fence that waits for them.
//!
//! # Lock protocol
//!
//! Every transaction that writes rows of a tenant holds a lock of its own kind on the tenant, in share mode,
//! until it ends. [`close`] takes it exclusively: it waits for the writers that are at work, and those that
//! come later wait for it, then see the fence.

use std::cell::Cell;
use std::ffi::CString;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::lock::{Class, Lock};
use crate::registry::{self, Tenant};
use crate::tenant::{Status, TenantId};

/// The tenant whose share lock the current transaction holds: asking again is a comparison.
static SHARED: Backend<Cell<Option<(pg_sys::LocalTransactionId, pg_sys::SubTransactionId, TenantId)>>> =
    Backend::new(Cell::new(None));

fn lock(id: TenantId) -> Lock {
    Lock::of_tenant(Class::Fence, id, 0)
}

/// Admits a writer: keeps a fence from closing until the transaction ends, and refuses behind a closed one.
///
/// `tenant` is what the registry says now: its invalidations have just been accepted.
pub fn enter(tenant: &Tenant) -> Result<()> {
    admit(tenant, true).map(drop)
}

/// As [`enter`], for a write that can as well be left out: waits for nobody, and answers whether it was admitted.
pub fn try_enter(tenant: &Tenant) -> bool {
    admit(tenant, false).unwrap_or(false)
}

fn admit(tenant: &Tenant, wait: bool) -> Result<bool> {
    // The guarded declaration of pgrx costs more than the call, which every writer makes.
    unsafe extern "C-unwind" {
        fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;
    }
    // SAFETY: reads the backend's own state.
    let now = unsafe { (local_transaction(), GetCurrentSubTransactionId()) };
    let known = (now.0, now.1, tenant.id);
    if SHARED.get() == Some(known) {
        return open(tenant).map(|()| true);
    }
    if !lock(tenant.id).share(wait) {
        return Ok(false);
    }
    SHARED.set(Some(known));
    registry::accept_invalidations();
    // What happened while this waited is seen only now.
    match registry::tenant(tenant.id)? {
        Some(now) if now.created_at != tenant.created_at => Err(Error::Reborn(tenant.id)),
        Some(now) => open(&now).map(|()| true),
        // Purged while this waited: whatever is written now would stay for ever.
        None => Err(Error::Deleted(tenant.id)),
    }
}

fn open(tenant: &Tenant) -> Result<()> {
    if tenant.status == Status::Fenced { Err(Error::Fenced(tenant.id)) } else { Ok(()) }
}

unsafe fn local_transaction() -> pg_sys::LocalTransactionId {
    // SAFETY: a backend has its entry for as long as it can run a function.
    unsafe {
        #[cfg(any(feature = "pg15", feature = "pg16"))]
        return (*pg_sys::MyProc).lxid;
        #[cfg(not(any(feature = "pg15", feature = "pg16")))]
        return (*pg_sys::MyProc).vxid.lxid;
    }
}

/// Waits until no other transaction writes for the tenant, and keeps new writers out until this one ends.
pub fn close(id: TenantId, timeout_ms: i64) -> Result<()> {
    let lock = lock(id);
    // SAFETY: the setting is put back at the end of this function or, after an error, of the transaction.
    let level = unsafe { pg_sys::NewGUCNestLevel() };
    let text = CString::new(timeout_ms.to_string()).unwrap_or_default();
    // SAFETY: as above; both strings outlive the calls. A lock that is not had in time raises 55P03, which is
    // raised again under its own name: nothing goes on after it in this transaction.
    unsafe {
        pg_sys::set_config_option(
            c"lock_timeout".as_ptr(),
            text.as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        let got = PgTryBuilder::new(|| {
            lock.acquire();
            true
        })
        .catch_when(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, |_| false)
        .execute();
        if !got {
            return Err(Error::StillWriting {
                tenant: id,
                waited: format!("{timeout_ms} ms"),
                hint: "End them, or call again with a longer timeout. Nothing was changed.",
            });
        }
        pg_sys::AtEOXact_GUC(true, level);
    }
    Ok(())
}

/// Waits for the transactions that have written, or locked for writing, one of the tables; holds up nobody. Answers
/// false if the lock_timeout of the session was over first.
pub fn wait_for_older_writers(tables: &[pg_sys::Oid]) -> bool {
    PgTryBuilder::new(|| {
        for table in tables {
            let tag = pg_sys::LOCKTAG {
                // SAFETY: reads a variable of the backend.
                locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
                locktag_field2: table.to_u32(),
                locktag_field3: 0,
                locktag_field4: 0,
                locktag_type: pg_sys::LockTagType::LOCKTAG_RELATION as u8,
                locktag_lockmethodid: pg_sys::DEFAULT_LOCKMETHOD as u8,
            };
            // SAFETY: the tag is complete. Writers hold ROW EXCLUSIVE, which conflicts with SHARE, to their end.
            unsafe { pg_sys::WaitForLockers(tag, pg_sys::ShareLock as i32, false) };
        }
        true
    })
    .catch_when(PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE, |_| false)
    .execute()
}
