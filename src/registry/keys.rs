//! Signing keys of tickets, as they are committed now, and the single-use tickets that were used.

use pgrx::{IntoDatum, pg_sys};

use super::catalog::{catalog, table};
use super::scan::{self, Key, Row, scan, signing_keys as column};
use crate::error::{Error, Result};
use crate::lock::{Class, Lock, word};

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
    let lock = Lock::new(Class::Ticket, [word(digest, 0), word(digest, 4)]);
    let (used_tickets, pkey) = (table("used_tickets"), table("used_tickets_pkey"));
    if used_tickets == pg_sys::InvalidOid || pkey == pg_sys::InvalidOid {
        return Err(Error::NotInstalled);
    }
    // Held for as long as the look and the row take.
    lock.acquire();
    let mut used = false;
    scan(used_tickets, pkey, &[Key::Bytes(scan::used_tickets::DIGEST, digest)], |_| used = true);
    if !used {
        let digest = digest.as_slice().into_datum().unwrap_or(pg_sys::Datum::null());
        scan::add_for_good(used_tickets, &mut [digest, pg_sys::Datum::from(expires_at)]);
    }
    lock.release();
    Ok(!used)
}
