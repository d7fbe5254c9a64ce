//! Which relations are protected: asked for every table of every statement.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use pgrx::pg_sys;

use super::catalog::{catalog, roles_generation};
use super::scan::{self, scan};
use crate::backend::Backend;

/// The protected relations, which every statement looks its tables up in. Of each, the role that was last found to be
/// subject to its policies, and the generation of the roles when it was.
type Relations = HashMap<pg_sys::Oid, Cell<Option<(pg_sys::Oid, u64)>>, BuildHasherDefault<OidHasher>>;

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

static POLICIES_GENERATION: Backend<Cell<u64>> = Backend::new(Cell::new(1));

static PROTECTED: Backend<RefCell<(u64, Option<Relations>)>> = Backend::new(RefCell::new((0, None)));

/// What is known is no longer valid.
pub(super) fn forget() {
    TABLES_GENERATION.set(TABLES_GENERATION.get() + 1);
}

/// The relation itself has changed: its owner, perhaps, or whether its policies are on.
pub(super) fn forget_policies(relation: pg_sys::Oid) {
    POLICIES_GENERATION.set(POLICIES_GENERATION.get() + 1);
    // Nothing that leads here runs while the set is borrowed for a change.
    with_entry(relation, |subject| subject.set(None));
}

/// Whether the policies of a protected relation hold for the role.
pub fn policies_hold(relation: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    unsafe extern "C-unwind" {
        fn InNoForceRLSOperation() -> bool;
    }
    let roles = roles_generation();
    // SAFETY: reads a variable of the backend. While a foreign key is checked, owners are not subject to policies.
    let usual = !unsafe { InNoForceRLSOperation() };
    if usual && with_entry(relation, |subject| subject.get() == Some((role, roles))) == Some(true) {
        return true;
    }
    let policies = POLICIES_GENERATION.get();
    // SAFETY: looks both up; a relation that is gone has no policies.
    let answer = unsafe { pg_sys::check_enable_rls(relation, role, true) };
    let holds = answer == pg_sys::CheckEnableRlsResult::RLS_ENABLED as i32;
    // What has changed during the lookup is looked up again.
    if holds && usual && roles == roles_generation() && policies == POLICIES_GENERATION.get() {
        with_entry(relation, |subject| subject.set(Some((role, roles))));
    }
    holds
}

fn with_entry<T>(
    relation: pg_sys::Oid,
    with: impl FnOnce(&Cell<Option<(pg_sys::Oid, u64)>>) -> T,
) -> Option<T> {
    match &*PROTECTED.borrow() {
        (valid_at, Some(set)) if *valid_at == TABLES_GENERATION.get() => set.get(&relation).map(with),
        _ => None,
    }
}

/// Whether the relation is protected, if that is known without a look at a table.
pub fn known_protected(relation: pg_sys::Oid) -> Option<bool> {
    match &*PROTECTED.borrow() {
        (valid_at, Some(set)) if *valid_at == TABLES_GENERATION.get() => {
            Some(!set.is_empty() && set.contains_key(&relation))
        }
        _ => None,
    }
}

/// Whether there are protected tables.
pub fn any_protected() -> bool {
    is_protected(pg_sys::InvalidOid);
    matches!(&*PROTECTED.borrow(), (_, Some(set)) if !set.is_empty())
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
            set.extend(
                row.get::<pg_sys::Oid>(scan::protected_tables::RELATION).map(|oid| (oid, Cell::default())),
            );
        });
    }
    let answer = set.contains_key(&relation);
    *PROTECTED.borrow_mut() = (generation, Some(set));
    answer
}
