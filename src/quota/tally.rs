//! How many rows there are, and how many bytes, by tenant: of a statement's transition tables, or of whole tables.
//!
//! The bytes of a row are those of its values in the columns of the root, before compression and wherever they are
//! kept. A row that a trigger sees has not been compressed yet, and the same row in the table has: only what does not
//! change by storing counts the same in both. So nothing is detoasted, no type's code runs, and headers, padding, NULLs
//! and indexes count nothing.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};

use pgrx::pg_sys;
use pgrx::prelude::*;
use pgrx::{PgTupleDesc, Uuid};

use crate::error::Result;
use crate::isolation::policy::KeyType;
use crate::isolation::rows::{Name, Scope, Size};
use crate::isolation::table::{self, Protected};
use crate::plan::{Snapshot, with_snapshot};
use crate::tenant::TenantId;

/// The columns of a relation that matter: positions in its rows, from 0.
struct Columns {
    tenant: usize,
    key: KeyType,
    /// With the length of their type, as pg_type has it.
    counted: Vec<(usize, i16)>,
    /// How many of the columns lead up to the last that matters.
    leading: i32,
}

impl Columns {
    /// Of a table, partition or child; `None` if it has no tenant column. Without `bytes` none is counted.
    ///
    /// # Safety
    ///
    /// The relation is open.
    unsafe fn of(relation: pg_sys::Relation, protected: &Protected, bytes: bool) -> Option<Columns> {
        // SAFETY: the descriptor of an open relation. That of the root is read without a lock: nobody can change columns
        // that this relation has inherited without one on this relation too.
        unsafe {
            let own = names(relation);
            let tenant = own.iter().find(|(_, name, _)| name.to_bytes() == protected.column.as_bytes())?.0;
            let mut counted = Vec::new();
            if bytes {
                let root = pg_sys::RelationIdGetRelation(protected.root);
                if root.is_null() {
                    return None;
                }
                let wanted = names(root);
                pg_sys::RelationClose(root);
                let matching =
                    own.iter().filter(|(_, name, _)| wanted.iter().any(|(_, other, _)| other == name));
                counted.extend(matching.map(|(at, _, length)| (*at, *length)));
            }
            let last = counted.iter().map(|(at, _)| *at).max().unwrap_or(0).max(tenant);
            Some(Columns { tenant, key: protected.key, counted, leading: last as i32 + 1 })
        }
    }

    /// Adds a row, or takes it away if `sign` is -1.
    ///
    /// # Safety
    ///
    /// The slot holds a row of the relation.
    unsafe fn add(&self, slot: *mut pg_sys::TupleTableSlot, sign: i64, sums: &mut BTreeMap<Name, Size>) {
        // SAFETY: columns are there once they are asked for, each of the type that the descriptor says.
        unsafe {
            pg_sys::slot_getsomeattrs(slot, self.leading);
            let value = |at: usize| (!*(*slot).tts_isnull.add(at)).then(|| *(*slot).tts_values.add(at));
            let name = value(self.tenant).and_then(|datum| match self.key {
                KeyType::Uuid => {
                    Uuid::from_datum(datum, false).map(|id| Name::Id(TenantId::from_bytes(*id.as_bytes())))
                }
                KeyType::BigInt => i64::from_datum(datum, false).map(Name::Key),
                KeyType::Integer => i32::from_datum(datum, false).map(|key| Name::Key(i64::from(key))),
            });
            let Some(name) = name else { return };
            let bytes = |(at, length): &(usize, i16)| value(*at).map_or(0, |datum| bytes_of(datum, *length));
            let size = sums.entry(name).or_default();
            size.rows += sign;
            size.bytes += sign * self.counted.iter().map(bytes).sum::<i64>();
        }
    }
}

/// Position, name and length of the columns of a relation. A virtual one has no value.
unsafe fn names(relation: pg_sys::Relation) -> Vec<(usize, CString, i16)> {
    // SAFETY: the relation is open; names end with a zero byte.
    unsafe {
        let descriptor = PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        let columns = descriptor.iter().enumerate();
        let columns = columns.filter(|(_, column)| !column.attisdropped && column.attgenerated as u8 != b'v');
        columns
            .map(|(at, column)| (at, CStr::from_ptr(column.attname.data.as_ptr()).into(), column.attlen))
            .collect()
    }
}

/// The bytes of a value whose type has that length.
unsafe fn bytes_of(datum: pg_sys::Datum, length: i16) -> i64 {
    // SAFETY: the length tells what the datum is.
    unsafe {
        match length {
            // The header of four bytes that an uncompressed value has is part of it.
            -1 => pg_sys::toast_raw_datum_size(datum) as i64,
            -2 => CStr::from_ptr(datum.cast_mut_ptr()).to_bytes_with_nul().len() as i64,
            length => i64::from(length),
        }
    }
}

/// What a statement has brought, less what it has taken.
///
/// # Safety
///
/// `data` is the context of the statement trigger that is running on the table.
pub unsafe fn changed(
    data: *mut pg_sys::TriggerData,
    protected: &Protected,
    bytes: bool,
) -> BTreeMap<Name, Size> {
    let mut sums = BTreeMap::new();
    // SAFETY: the trigger's relation is open, and its transition tables, if it has them, hold rows of it. A read pointer
    // of our own leaves those of other triggers where they are; the store goes with the statement.
    unsafe {
        let relation = (*data).tg_relation;
        let Some(columns) = Columns::of(relation, protected, bytes) else { return sums };
        for (store, sign) in [((*data).tg_newtable, 1), ((*data).tg_oldtable, -1)] {
            if store.is_null() {
                continue;
            }
            let slot =
                pg_sys::MakeSingleTupleTableSlot((*relation).rd_att, &raw const pg_sys::TTSOpsMinimalTuple);
            let pointer = pg_sys::tuplestore_alloc_read_pointer(store, pg_sys::EXEC_FLAG_REWIND as i32);
            pg_sys::tuplestore_select_read_pointer(store, pointer);
            pg_sys::tuplestore_rescan(store);
            while pg_sys::tuplestore_gettupleslot(store, true, false, slot) {
                pg_sys::check_for_interrupts!();
                columns.add(slot, sign, &mut sums);
            }
            pg_sys::ExecDropSingleTupleTableSlot(slot);
        }
    }
    sums
}

/// The rows that are in a table, or in its whole tree.
pub fn of_tables(protected: &Protected, scope: Scope, snapshot: Snapshot) -> Result<BTreeMap<Name, Size>> {
    let mut sums = BTreeMap::new();
    let members = match scope {
        Scope::Tree => table::tree(protected.relation),
        Scope::Only => vec![protected.relation],
    };
    with_snapshot(snapshot, || {
        for member in members {
            // SAFETY: the relation stays open and locked until the scan has ended, and the snapshot active; on an error
            // the transaction's resource owner closes both. No row is shown to anybody, so nobody's rights are asked.
            unsafe {
                let relation = pg_sys::table_open(member, pg_sys::AccessShareLock as i32);
                if (*(*relation).rd_rel).relkind as u8 == pg_sys::RELKIND_RELATION
                    && let Some(columns) = Columns::of(relation, protected, true)
                {
                    let slot = pg_sys::table_slot_create(relation, std::ptr::null_mut());
                    let scan = pg_sys::table_beginscan(
                        relation,
                        pg_sys::GetActiveSnapshot(),
                        0,
                        std::ptr::null_mut(),
                    );
                    while pg_sys::table_scan_getnextslot(
                        scan,
                        pg_sys::ScanDirection::ForwardScanDirection,
                        slot,
                    ) {
                        pg_sys::check_for_interrupts!();
                        columns.add(slot, 1, &mut sums);
                    }
                    pg_sys::table_endscan(scan);
                    pg_sys::ExecDropSingleTupleTableSlot(slot);
                }
                pg_sys::table_close(relation, pg_sys::NoLock as i32);
            }
        }
    });
    Ok(sums)
}
