//! Reading our own tables below SQL.
//!
//! A scan with the catalog snapshot sees what is committed now, at every isolation level and in parallel
//! workers; it asks for no privilege, plans nothing and runs nobody's code. This is the only file that knows
//! the order of our columns.

use std::ffi::{CString, c_int};

use pgrx::pg_sys;
use pgrx::{FromDatum, IntoDatum};

use crate::json::Json;
use crate::tenant::TenantId;

/// The number of the column `datallowconn` of `pg_database`, in all versions.
pub const DATABASE_ALLOWS_CONNECTIONS: i16 = pg_sys::Anum_pg_database_datallowconn as i16;

/// Column numbers of `tenant_rls.tenants`.
pub mod tenants {
    pub const TENANT_ID: i16 = 1;
    pub const TENANT_KEY: i16 = 2;
    pub const PLAN: i16 = 4;
    pub const REGION: i16 = 5;
    pub const STATUS: i16 = 6;
    pub const STATUS_REASON: i16 = 7;
    pub const SETTINGS: i16 = 8;
    pub const BILLING_ANCHOR: i16 = 9;
    pub const TIME_ZONE: i16 = 10;
    pub const CREATED_AT: i16 = 11;
}

/// Column numbers of `tenant_rls.resources`.
pub mod resources {
    pub const RESOURCE: i16 = 1;
    pub const KIND: i16 = 2;
    pub const UNIT: i16 = 3;
    pub const PERIOD: i16 = 4;
}

/// Column numbers of `tenant_rls.plan_limits`.
pub mod plan_limits {
    pub const PLAN: i16 = 1;
    pub const RESOURCE: i16 = 2;
    pub const QUOTA_LIMIT: i16 = 3;
    pub const ENFORCEMENT: i16 = 4;
    pub const MODE: i16 = 5;
}

/// Column numbers of `tenant_rls.overrides`.
pub mod overrides {
    pub const TENANT_ID: i16 = 1;
    pub const RESOURCE: i16 = 2;
    pub const QUOTA_LIMIT: i16 = 3;
    pub const EXPIRES_AT: i16 = 4;
}

/// Column numbers of `tenant_rls.billing_changes`.
pub mod billing_changes {
    pub const TENANT_ID: i16 = 1;
    pub const CHANGED_AT: i16 = 2;
    pub const BILLING_ANCHOR: i16 = 3;
    pub const TIME_ZONE: i16 = 4;
}

/// Column numbers of `tenant_rls.grants`.
pub mod grants {
    pub const ROLE_OID: i16 = 2;
    pub const TENANT_ID: i16 = 3;
    pub const TICKET_REQUIRED: i16 = 4;
}

/// Column numbers of `tenant_rls.features`.
pub mod features {
    pub const FEATURE: i16 = 1;
    pub const DEFAULT_VALUE: i16 = 2;
    pub const SALT: i16 = 3;
    pub const IS_ON: i16 = 4;
}

/// Column numbers of `tenant_rls.feature_values`.
pub mod feature_values {
    pub const FEATURE: i16 = 1;
    pub const PLAN: i16 = 2;
    pub const TENANT_ID: i16 = 3;
    pub const VALUE: i16 = 4;
    pub const ROLLOUT_PERCENT: i16 = 5;
    pub const EXPIRES_AT: i16 = 6;
}

/// Column numbers of `tenant_rls.settings`.
pub mod settings {
    pub const KEY: i16 = 1;
    pub const PLAN: i16 = 2;
    pub const VALUE: i16 = 3;
}

/// Column numbers of `tenant_rls.deployments`.
pub mod deployments {
    pub const DEPLOYMENT: i16 = 1;
    pub const IMAGE: i16 = 2;
    pub const SPEC: i16 = 3;
}

/// Column numbers of `tenant_rls.deployment_routes`.
pub mod deployment_routes {
    pub const DEPLOYMENT: i16 = 1;
    pub const PLAN: i16 = 2;
    pub const TENANT_ID: i16 = 3;
    pub const REGION: i16 = 4;
}

/// Column numbers of `tenant_rls.releases`.
pub mod releases {
    pub const RELEASE_ID: i16 = 1;
    pub const DEPLOYMENT: i16 = 2;
    pub const IMAGE: i16 = 3;
    pub const STATUS: i16 = 4;
}

/// Column numbers of `tenant_rls.release_targets`.
pub mod release_targets {
    pub const RELEASE_ID: i16 = 1;
    pub const PLAN: i16 = 2;
    pub const TENANT_ID: i16 = 3;
    pub const ROLLOUT_PERCENT: i16 = 4;
}

/// Column numbers of `tenant_rls.signing_keys`.
pub mod signing_keys {
    pub const KID: i16 = 1;
    pub const ALGORITHM: i16 = 2;
    pub const KEY: i16 = 3;
    pub const NOT_BEFORE: i16 = 4;
    pub const NOT_AFTER: i16 = 5;
}

/// Column numbers of `tenant_rls.used_tickets`.
pub mod used_tickets {
    pub const DIGEST: i16 = 1;
}

/// Column numbers of `tenant_rls.operators`.
pub mod operators {
    pub const ROLE_OID: i16 = 2;
}

/// Column numbers of `tenant_rls.protected_tables`.
pub mod protected_tables {
    pub const RELATION: i16 = 1;
    pub const ROOT: i16 = 2;
    pub const TENANT_COLUMN: i16 = 3;
    pub const KEY_TYPE: i16 = 4;
    pub const FORCED: i16 = 5;
}

/// Column numbers of `tenant_rls.lockdowns`.
pub mod lockdowns {
    pub const OBJECT: i16 = 1;
}

/// Column numbers of `tenant_rls.attachments`.
pub mod attachments {
    pub const RESOURCE: i16 = 3;
}

/// Column numbers of `tenant_rls.usage`.
pub mod usage {
    pub const TENANT_ID: i16 = 1;
    pub const RESOURCE: i16 = 2;
    pub const PERIOD_START: i16 = 3;
    pub const USED: i16 = 5;
}

/// Column numbers of `tenant_rls.reservations`.
pub mod reservations {
    pub const TENANT_ID: i16 = 2;
    pub const RESOURCE: i16 = 3;
    pub const PERIOD_START: i16 = 4;
    pub const UNITS: i16 = 6;
    pub const EXPIRES_AT: i16 = 7;
}

/// Column numbers of `tenant_rls.quota_events`; its key begins with the columns of that of `usage`.
pub mod quota_events {
    pub const THRESHOLD: i16 = 4;
}

/// Column numbers of `tenant_rls.cache`.
pub mod cache {
    pub const TENANT_ID: i16 = 1;
    pub const EXPIRES_AT: i16 = 2;
    pub const SET_AT: i16 = 3;
    pub const SIZE: i16 = 4;
    pub const KEY: i16 = 6;
    pub const VALUE: i16 = 7;
}

/// Column numbers of `tenant_rls.cache_parts`.
pub mod cache_parts {
    pub const TENANT_ID: i16 = 1;
    pub const KEY_COUNT: i16 = 3;
    pub const SIZE: i16 = 4;
    pub const HITS: i16 = 5;
    pub const MISSES: i16 = 6;
    pub const EVICTIONS: i16 = 7;
}

/// What a column must equal.
pub enum Key<'a> {
    /// A `uuid` column.
    Uuid(i16, TenantId),
    /// A `bigint` column.
    Int8(i16, i64),
    /// A `timestamptz` column, in microseconds since 2000-01-01.
    Instant(i16, i64),
    /// A `text` column of collation "C".
    Text(i16, &'a str),
    /// A `bytea` column.
    Bytes(i16, &'a [u8]),
    /// An `oid` column.
    Oid(i16, pg_sys::Oid),
    /// A column that is NULL.
    Null(i16),
}

/// One row, valid until the next.
pub struct Row {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Row {
    /// The value of a column, or `None` when it is NULL. `T` is the column's type.
    pub fn get<T: FromDatum>(&self, column: i16) -> Option<T> {
        let mut is_null = false;
        // SAFETY: the tuple and its descriptor come from the same open scan, which outlives the row, and the
        // column numbers above are those of the tables that the install script makes.
        unsafe {
            let datum = pg_sys::heap_getattr(self.tuple, c_int::from(column), self.descriptor, &mut is_null);
            T::from_datum(datum, is_null)
        }
    }

    /// The transaction that has replaced this row by a newer version and is still at work, if there is one.
    pub fn writer(&self) -> Option<pg_sys::TransactionId> {
        // SAFETY: the header of a tuple of the open scan; our rows are updated, and locked by nothing but updates.
        unsafe {
            let header = (*self.tuple).t_data;
            let mask = u32::from((*header).t_infomask);
            if mask & (pg_sys::HEAP_XMAX_INVALID | pg_sys::HEAP_XMAX_IS_MULTI | pg_sys::HEAP_XMAX_LOCK_ONLY)
                != 0
            {
                return None;
            }
            let xmax = (*header).t_choice.t_heap.t_xmax;
            (!pg_sys::TransactionIdIsCurrentTransactionId(xmax) && pg_sys::TransactionIdIsInProgress(xmax))
                .then_some(xmax)
        }
    }

    /// Whether it was written before that transaction. Freezing keeps the number.
    pub fn is_older_than(&self, transaction: pg_sys::TransactionId) -> bool {
        // SAFETY: the header of a tuple of the open scan; compares two numbers.
        unsafe {
            let xmin = (*(*self.tuple).t_data).t_choice.t_heap.t_xmin;
            pg_sys::TransactionIdPrecedes(xmin, transaction)
        }
    }

    /// A `uuid` column.
    pub fn tenant(&self, column: i16) -> Option<TenantId> {
        self.get::<pgrx::Uuid>(column).map(|uuid| TenantId::from_bytes(*uuid.as_bytes()))
    }

    /// A `timestamptz` column, in microseconds since 2000-01-01.
    pub fn instant(&self, column: i16) -> Option<i64> {
        self.get::<i64>(column)
    }

    /// A `jsonb` column, copied into the current memory context.
    pub fn server_json(&self, column: i16) -> Option<pg_sys::Datum> {
        let mut is_null = false;
        // SAFETY: as in `get`; detoasting makes a copy of what is not in the row as it is.
        unsafe {
            let datum = pg_sys::heap_getattr(self.tuple, c_int::from(column), self.descriptor, &mut is_null);
            (!is_null).then(|| pg_sys::Datum::from(pg_sys::pg_detoast_datum_copy(datum.cast_mut_ptr())))
        }
    }

    /// A `jsonb` column, copied.
    pub fn json(&self, column: i16) -> Option<Json> {
        let mut is_null = false;
        // SAFETY: as in `get`.
        unsafe {
            let datum = pg_sys::heap_getattr(self.tuple, c_int::from(column), self.descriptor, &mut is_null);
            (!is_null).then(|| Json::copy(datum))
        }
    }
}

/// Calls `each` for every row of `table` that matches `keys`, by `index` unless it is invalid.
///
/// Rows come in no promised order. `each` copies what it keeps.
pub fn scan(table: pg_sys::Oid, index: pg_sys::Oid, keys: &[Key], mut each: impl FnMut(&Row)) {
    walk(table, pg_sys::AccessShareLock, index, keys, |_, row| each(row));
}

/// As [`scan`], in the order of the index, until `each` answers false. The index must be valid.
pub fn scan_in_order(
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    keys: &[Key],
    mut each: impl FnMut(&Row) -> bool,
) {
    // SAFETY: as in `walk`.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::AccessShareLock as i32);
        let order = pg_sys::index_open(index, pg_sys::AccessShareLock as i32);
        let mut scan_keys: [pg_sys::ScanKeyData; 3] = std::mem::zeroed();
        for (scan_key, key) in scan_keys.iter_mut().zip(keys) {
            fill(scan_key, key);
        }
        let scan = pg_sys::systable_beginscan_ordered(
            relation,
            order,
            std::ptr::null_mut(),
            keys.len() as c_int,
            scan_keys.as_mut_ptr(),
        );
        let descriptor = (*relation).rd_att;
        loop {
            let tuple = pg_sys::systable_getnext_ordered(scan, pg_sys::ScanDirection::ForwardScanDirection);
            if tuple.is_null() || !each(&Row { tuple, descriptor }) {
                break;
            }
        }
        pg_sys::systable_endscan_ordered(scan);
        pg_sys::index_close(order, pg_sys::AccessShareLock as i32);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as i32);
    }
}

/// What became of a row that [`change`] was asked to change.
pub enum Changed {
    /// What the column holds now; `None` without such a row.
    Done(Option<i64>),
    /// Somebody else is changing the row by SQL, and nothing was done.
    Busy(pg_sys::TransactionId),
}

/// As [`scan`] for one row, and replaces a `bigint` column of it by what `change` makes of it; `None` leaves the
/// row.
///
/// Nothing here waits for another writer of the row, and no trigger or check runs: the caller holds a lock that
/// keeps other calls away, and vouches for the value. The transaction must be one that may write.
pub fn change(
    table: pg_sys::Oid,
    index: pg_sys::Oid,
    keys: &[Key],
    column: i16,
    mut change: impl FnMut(i64) -> Option<i64>,
) -> Changed {
    let mut now = None;
    let mut busy = None;
    let mut changed = false;
    walk(table, pg_sys::RowExclusiveLock, index, keys, |relation, row| {
        busy = row.writer();
        if busy.is_some() {
            return;
        }
        let before = row.get::<i64>(column).unwrap_or_default();
        let after = change(before);
        now = Some(after.unwrap_or(before));
        if let Some(after) = after {
            let (mut columns, mut values, mut nulls) =
                ([c_int::from(column)], [pg_sys::Datum::from(after)], [false]);
            // SAFETY: the row is that of the open scan; the arrays have one element, as said.
            unsafe {
                let new = pg_sys::heap_modify_tuple_by_cols(
                    row.tuple,
                    row.descriptor,
                    1,
                    columns.as_mut_ptr(),
                    values.as_mut_ptr(),
                    nulls.as_mut_ptr(),
                );
                pg_sys::CatalogTupleUpdate(relation, &mut (*new).t_self, new);
                pg_sys::heap_freetuple(new);
            }
            changed = true;
        }
    });
    if changed {
        // SAFETY: later reads of this transaction see the change.
        unsafe { pg_sys::CommandCounterIncrement() };
    }
    busy.map_or(Changed::Done(now), Changed::Busy)
}

/// Adds a row. Runs no trigger and no check: the caller vouches for the values, which are those of all columns.
pub fn add(table: pg_sys::Oid, values: &mut [pg_sys::Datum]) {
    let mut nulls = vec![false; values.len()];
    // SAFETY: the values are those of the table's columns, as the caller says; indexes are kept up. The lock stays until the
    // transaction ends.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::RowExclusiveLock as i32);
        let tuple = pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::CatalogTupleInsert(relation, tuple);
        pg_sys::heap_freetuple(tuple);
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
    }
}

/// Adds a row that stays whatever becomes of the transaction: like one of COPY FREEZE it counts as older than every
/// transaction, so everybody sees it at once and no rollback takes it back. It is on disk when this returns.
///
/// `values` are those of all columns. The caller holds a lock that keeps others from adding the same, has looked that it
/// is not there, and vouches for the values: no trigger or check runs.
pub fn add_for_good(table: pg_sys::Oid, values: &mut [pg_sys::Datum]) {
    const MOST: usize = pg_sys::INDEX_MAX_KEYS as usize;
    let mut nulls = vec![false; values.len()];
    // SAFETY: the values are those of the table's columns, as the caller says; the indexes are the table's own, on
    // plain columns, so their keys are found by number. Relations stay locked until the transaction ends. Nothing
    // interrupts between the row and its entries; an error would reset the count.
    unsafe {
        let relation = pg_sys::table_open(table, pg_sys::RowExclusiveLock as i32);
        let tuple = pg_sys::heap_form_tuple((*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
        pg_sys::InterruptHoldoffCount += 1;
        pg_sys::heap_insert(
            relation,
            tuple,
            pg_sys::GetCurrentCommandId(true),
            pg_sys::HEAP_INSERT_FROZEN as c_int,
            std::ptr::null_mut(),
        );
        let indexes = pg_sys::RelationGetIndexList(relation);
        for at in 0..if indexes.is_null() { 0 } else { (*indexes).length } {
            let index =
                pg_sys::index_open(pg_sys::list_nth_oid(indexes, at), pg_sys::RowExclusiveLock as i32);
            let info = pg_sys::BuildIndexInfo(index);
            let mut keys = [pg_sys::Datum::null(); MOST];
            let mut key_nulls = [false; MOST];
            for key in 0..(*info).ii_NumIndexAttrs as usize {
                keys[key] = values[(*info).ii_IndexAttrNumbers[key] as usize - 1];
            }
            let unique = if (*info).ii_Unique {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_YES
            } else {
                pg_sys::IndexUniqueCheck::UNIQUE_CHECK_NO
            };
            pg_sys::index_insert(
                index,
                keys.as_mut_ptr(),
                key_nulls.as_mut_ptr(),
                &mut (*tuple).t_self,
                relation,
                unique,
                false,
                info,
            );
            pg_sys::index_close(index, pg_sys::NoLock as i32);
        }
        pg_sys::InterruptHoldoffCount -= 1;
        pg_sys::table_close(relation, pg_sys::NoLock as i32);
        pg_sys::XLogFlush(pg_sys::XactLastRecEnd);
    }
}

fn walk(
    table: pg_sys::Oid,
    lock: u32,
    index: pg_sys::Oid,
    keys: &[Key],
    mut each: impl FnMut(pg_sys::Relation, &Row),
) {
    // SAFETY: the relation stays open and locked until the scan has ended; on an error the transaction's
    // resource owner closes both.
    unsafe {
        let relation = pg_sys::table_open(table, lock as i32);
        walk_open(relation, index, keys, |row| each(relation, row));
        // A writer's lock stays until the transaction ends.
        let unlock = if lock == pg_sys::AccessShareLock { lock } else { pg_sys::NoLock };
        pg_sys::table_close(relation, unlock as i32);
    }
}

/// As [`scan`] without keys, of a relation that is open.
///
/// # Safety
///
/// The relation stays open meanwhile.
pub unsafe fn scan_open(relation: pg_sys::Relation, each: impl FnMut(&Row)) {
    // SAFETY: the caller's.
    unsafe { walk_open(relation, pg_sys::InvalidOid, &[], each) };
}

unsafe fn walk_open(
    relation: pg_sys::Relation,
    index: pg_sys::Oid,
    keys: &[Key],
    mut each: impl FnMut(&Row),
) {
    // SAFETY: the keys live until after systable_endscan, as do the datums they point to.
    unsafe {
        let mut scan_keys: [pg_sys::ScanKeyData; 3] = std::mem::zeroed();
        for (scan_key, key) in scan_keys.iter_mut().zip(keys) {
            fill(scan_key, key);
        }
        let scan = pg_sys::systable_beginscan(
            relation,
            index,
            index != pg_sys::InvalidOid,
            std::ptr::null_mut(),
            keys.len() as c_int,
            scan_keys.as_mut_ptr(),
        );
        let descriptor = (*relation).rd_att;
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            each(&Row { tuple, descriptor });
        }
        pg_sys::systable_endscan(scan);
    }
}

unsafe fn fill(scan_key: &mut pg_sys::ScanKeyData, key: &Key) {
    let equal = pg_sys::BTEqualStrategyNumber as u16;
    let (column, function, datum) = match key {
        Key::Uuid(column, tenant) => {
            (*column, pg_sys::F_UUID_EQ, pgrx::Uuid::from_bytes(*tenant.as_bytes()).into_datum())
        }
        Key::Int8(column, value) => (*column, pg_sys::F_INT8EQ, value.into_datum()),
        Key::Instant(column, value) => (*column, pg_sys::F_TIMESTAMPTZ_EQ, value.into_datum()),
        Key::Text(column, value) => (*column, pg_sys::F_TEXTEQ, value.into_datum()),
        Key::Bytes(column, value) => (*column, pg_sys::F_BYTEAEQ, value.into_datum()),
        Key::Oid(column, value) => (*column, pg_sys::F_OIDEQ, value.into_datum()),
        Key::Null(column) => {
            scan_key.sk_flags = (pg_sys::SK_ISNULL | pg_sys::SK_SEARCHNULL) as c_int;
            scan_key.sk_attno = *column;
            return;
        }
    };
    let datum = datum.unwrap_or(pg_sys::Datum::null());
    // SAFETY: scan_key is a zeroed ScanKeyData, and the function compares the type of the datum.
    unsafe { pg_sys::ScanKeyInit(scan_key, column, equal, pg_sys::Oid::from(function), datum) };
}

/// The relation of that name in the schema, or `InvalidOid`.
pub fn relation(name: &str, schema: pg_sys::Oid) -> pg_sys::Oid {
    let Ok(name) = CString::new(name) else { return pg_sys::InvalidOid };
    // SAFETY: the name is a C string that outlives the call.
    unsafe { pg_sys::get_relname_relid(name.as_ptr(), schema) }
}
