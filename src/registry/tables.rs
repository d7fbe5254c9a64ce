//! Which relations are protected: asked for every table of every statement.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::hash::{BuildHasherDefault, Hasher};

use pgrx::pg_sys;

use super::catalog::catalog;
use super::scan::{self, scan};
use crate::backend::Backend;

/// A set of relations that every statement looks its tables up in.
type Relations = HashSet<pg_sys::Oid, BuildHasherDefault<OidHasher>>;

/// Spreads the bits of an oid. The standard hasher keeps strangers from choosing what collides, at the price of
/// many times as much; nobody chooses oids.
#[derive(Default)]
struct OidHasher(u64);

impl Hasher for OidHasher {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, oid: u32) {
        self.0 = (self.0 ^ u64::from(oid)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

static TABLES_GENERATION: Backend<Cell<u64>> = Backend::new(Cell::new(1));

static PROTECTED: Backend<RefCell<(u64, Option<Relations>)>> = Backend::new(RefCell::new((0, None)));

/// What is known is no longer valid.
pub(super) fn forget() {
    TABLES_GENERATION.set(TABLES_GENERATION.get() + 1);
}

/// Whether the relation is protected, if that is known without a look at a table.
pub fn known_protected(relation: pg_sys::Oid) -> Option<bool> {
    match &*PROTECTED.borrow() {
        (valid_at, Some(set)) if *valid_at == TABLES_GENERATION.get() => {
            Some(!set.is_empty() && set.contains(&relation))
        }
        _ => None,
    }
}

/// Whether the relation is a protected table, partition or child.
pub fn is_protected(relation: pg_sys::Oid) -> bool {
    if let Some(known) = known_protected(relation) {
        return known;
    }
    let generation = TABLES_GENERATION.get();
    let mut set = Relations::default();
    // Without the extension every invalidation counts, so that its arrival is heard.
    if let Some(catalog) = catalog() {
        scan(catalog.protected_tables, pg_sys::InvalidOid, &[], |row| {
            set.extend(row.get::<pg_sys::Oid>(scan::protected_tables::RELATION));
        });
    }
    let answer = set.contains(&relation);
    *PROTECTED.borrow_mut() = (generation, Some(set));
    answer
}
