//! Signing keys of tickets, as they are committed now, and the single-use tickets that were used.

use pgrx::{IntoDatum, pg_sys};

use super::catalog::{catalog, table};
use super::scan::{self, Key, Row, scan, signing_keys as column};
use crate::error::{Error, Result};

/// Class of the locks on tickets that are being used; SQL can take advisory locks of class 1 and 2 only.
const CLASS: u16 = 7220;

/// One row of `tenant_rls.signing_keys`.
pub struct SigningKey {
    /// The name that tickets call it by.
    pub kid: String,
    /// `HS256` or `EdDSA`.
    pub algorithm: String,
    /// The secret, or the public key.
    pub bytes: Vec<u8>,
    /// From when on it counts, in microseconds since 2000-01-01.
    pub not_before: i64,
    /// Until when it counts, in microseconds since 2000-01-01.
    pub not_after: i64,
}

fn key_of(row: &Row) -> SigningKey {
    SigningKey {
        kid: row.get(column::KID).unwrap_or_default(),
        algorithm: row.get(column::ALGORITHM).unwrap_or_default(),
        bytes: row.get(column::KEY).unwrap_or_default(),
        not_before: row.instant(column::NOT_BEFORE).unwrap_or(i64::MIN),
        not_after: row.instant(column::NOT_AFTER).unwrap_or(i64::MAX),
    }
}

/// The key of this name, or `None`.
pub fn signing_key(kid: &str) -> Result<Option<SigningKey>> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut found = None;
    scan(catalog.signing_keys, catalog.signing_keys_pkey, &[Key::Text(column::KID, kid)], |row| {
        found = Some(key_of(row));
    });
    Ok(found)
}

/// All keys.
pub fn signing_keys() -> Result<Vec<SigningKey>> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut keys = Vec::new();
    scan(catalog.signing_keys, pg_sys::InvalidOid, &[], |row| keys.push(key_of(row)));
    Ok(keys)
}

/// Uses a ticket up, now and for good, whatever becomes of the transaction. `false` if it was used before.
pub fn use_up(digest: &[u8; 32], expires_at: i64) -> Result<bool> {
    let part = |at: usize| u32::from_be_bytes([digest[at], digest[at + 1], digest[at + 2], digest[at + 3]]);
    let tag = pg_sys::LOCKTAG {
        // SAFETY: reads a variable of the backend.
        locktag_field1: unsafe { pg_sys::MyDatabaseId }.to_u32(),
        locktag_field2: part(0),
        locktag_field3: part(4),
        locktag_field4: CLASS,
        locktag_type: pg_sys::LockTagType::LOCKTAG_ADVISORY as u8,
        locktag_lockmethodid: pg_sys::USER_LOCKMETHOD as u8,
    };
    let (used_tickets, pkey) = (table("used_tickets"), table("used_tickets_pkey"));
    if used_tickets == pg_sys::InvalidOid || pkey == pg_sys::InvalidOid {
        return Err(Error::NotInstalled);
    }
    // SAFETY: the tag is complete; held for as long as the look and the row take, and released by the transaction
    // after an error.
    unsafe { pg_sys::LockAcquire(&tag, pg_sys::ExclusiveLock as i32, false, false) };
    let mut used = false;
    scan(used_tickets, pkey, &[Key::Bytes(scan::used_tickets::DIGEST, digest)], |_| used = true);
    if !used {
        let digest = digest.as_slice().into_datum().unwrap_or(pg_sys::Datum::null());
        scan::add_for_good(used_tickets, &mut [digest, pg_sys::Datum::from(expires_at)]);
    }
    // SAFETY: acquired above, once.
    unsafe { pg_sys::LockRelease(&tag, pg_sys::ExclusiveLock as i32, false) };
    Ok(!used)
}
