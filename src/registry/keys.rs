//! Signing keys of tickets, as they are committed now.

use pgrx::pg_sys;

use super::catalog::catalog;
use super::scan::{Key, Row, scan, signing_keys as column};
use crate::error::{Error, Result};

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
