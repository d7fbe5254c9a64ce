//! SQL from Rust: prepared once per backend, run with the rights that the caller chooses.
//!
//! Every statement names schemas and operators in full, so no search_path can put another object in their
//! place.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int};

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::registry;

/// An argument of a statement; `None` is NULL.
pub type Argument = Option<pg_sys::Datum>;

/// A statement on our own tables, planned at its first use and kept for the life of the backend.
pub struct CachedPlan {
    sql: &'static CStr,
    types: &'static [pg_sys::Oid],
    plan: Backend<Cell<pg_sys::SPIPlanPtr>>,
}

/// One row of an answer; what is taken from it must be copied.
pub struct Row {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
}

impl Row {
    /// The value of a column (from 1), or `None` when it is NULL. `T` is the column's type.
    pub fn get<T: FromDatum>(&self, column: i32) -> Option<T> {
        let mut is_null = false;
        // SAFETY: tuple and descriptor are of the answer that SPI still holds.
        unsafe {
            let datum = pg_sys::heap_getattr(self.tuple, column, self.descriptor, &mut is_null);
            T::from_datum(datum, is_null)
        }
    }

    /// The value of a column whose type is a pointer of the server's own, such as `pg_ddl_command`.
    pub fn pointer<T>(&self, column: i32) -> *mut T {
        let mut is_null = false;
        // SAFETY: as in `get`; the caller says what the pointer is of.
        let datum = unsafe { pg_sys::heap_getattr(self.tuple, column, self.descriptor, &mut is_null) };
        if is_null { std::ptr::null_mut() } else { datum.cast_mut_ptr() }
    }
}

impl CachedPlan {
    /// A statement with parameters `$1` … of these types.
    pub const fn new(sql: &'static CStr, types: &'static [pg_sys::Oid]) -> CachedPlan {
        CachedPlan { sql, types, plan: Backend::new(Cell::new(std::ptr::null_mut())) }
    }

    /// Runs the statement and calls `each` for every row of the answer. Returns how many rows it touched.
    pub fn run(&self, arguments: &[Argument], each: impl FnMut(&Row)) -> u64 {
        debug_assert_eq!(arguments.len(), self.types.len());
        in_spi(|| {
            let plan = self.prepared();
            let (values, nulls) = split(arguments);
            // SAFETY: the plan is kept, the arrays are as long as its parameters. Read-write, so that it sees
            // what the calling statement has done so far.
            let code = unsafe {
                pg_sys::SPI_execute_plan(plan, values.as_ptr().cast_mut(), nulls.as_ptr(), false, 0)
            };
            finish_statement(code, self.sql, each)
        })
    }

    /// As [`CachedPlan::run`], on what is committed now, whatever the isolation level of the transaction.
    pub fn run_latest(&self, arguments: &[Argument], each: impl FnMut(&Row)) -> u64 {
        debug_assert_eq!(arguments.len(), self.types.len());
        in_spi(|| {
            let plan = self.prepared();
            let (values, nulls) = split(arguments);
            // SAFETY: as in `run`; the server takes a copy of the snapshot, which sees what this transaction has done.
            let code = unsafe {
                pg_sys::SPI_execute_snapshot(
                    plan,
                    values.as_ptr().cast_mut(),
                    nulls.as_ptr(),
                    pg_sys::GetLatestSnapshot(),
                    std::ptr::null_mut(),
                    false,
                    true,
                    0,
                )
            };
            finish_statement(code, self.sql, each)
        })
    }

    /// Runs the statement for its effect. Returns how many rows it touched.
    pub fn execute(&self, arguments: &[Argument]) -> u64 {
        self.run(arguments, |_| ())
    }

    /// Runs the statement and maps its first row, if there is one.
    pub fn first<T>(&self, arguments: &[Argument], mut map: impl FnMut(&Row) -> T) -> Option<T> {
        let mut first = None;
        self.run(arguments, |row| {
            if first.is_none() {
                first = Some(map(row));
            }
        });
        first
    }

    fn prepared(&self) -> pg_sys::SPIPlanPtr {
        if self.plan.get().is_null() {
            // SAFETY: SPI is connected; the type array is only read. A kept plan outlives the connection.
            unsafe {
                let plan = pg_sys::SPI_prepare(
                    self.sql.as_ptr(),
                    self.types.len() as c_int,
                    self.types.as_ptr().cast_mut(),
                );
                if plan.is_null() {
                    let code = pg_sys::SPI_result;
                    Error::Internal(format!("cannot plan {:?}: code {code}", self.sql)).raise();
                }
                pg_sys::SPI_keepplan(plan);
                self.plan.set(plan);
            }
        }
        self.plan.get()
    }
}

/// Runs a statement made at run time, with parameters `$1` …, and calls `each` for every row. Identifiers in
/// `sql` must come from the quoting functions of `isolation::policy`.
pub fn run_text(sql: &str, types: &[pg_sys::Oid], arguments: &[Argument], each: impl FnMut(&Row)) -> u64 {
    debug_assert_eq!(arguments.len(), types.len());
    let Ok(sql) = CString::new(sql) else {
        Error::Internal("a statement holds a zero byte".into()).raise();
    };
    in_spi(|| {
        let (values, nulls) = split(arguments);
        // SAFETY: the text and the arrays outlive the call.
        let code = unsafe {
            pg_sys::SPI_execute_with_args(
                sql.as_ptr(),
                types.len() as c_int,
                types.as_ptr().cast_mut(),
                values.as_ptr().cast_mut(),
                nulls.as_ptr(),
                false,
                0,
            )
        };
        finish_statement(code, &sql, each)
    })
}

/// Runs a statement made at run time for its effect. Event triggers of ours let it pass: see [`is_ours`].
pub fn execute_text(sql: &str) -> u64 {
    let ours = Ours::announce(sql);
    let processed = run_text(sql, &[], &[], |_| ());
    drop(ours);
    processed
}

/// The statements that [`execute_text`] is running, as the parser has them, or null.
static OURS: Backend<Cell<*mut pg_sys::List>> = Backend::new(Cell::new(std::ptr::null_mut()));

/// Puts back what was being run before, also when an error unwinds.
struct Ours(*mut pg_sys::List);

impl Ours {
    fn announce(sql: &str) -> Ours {
        let Ok(sql) = CString::new(sql) else {
            Error::Internal("a statement holds a zero byte".into()).raise();
        };
        // SAFETY: the text is a C string; the list lives in the memory context of the caller, who outlives the
        // statement.
        Ours(
            OURS.replace(unsafe {
                pg_sys::raw_parser(sql.as_ptr(), pg_sys::RawParseMode::RAW_PARSE_DEFAULT)
            }),
        )
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        OURS.set(self.0);
    }
}

/// Whether a command is the very statement that a function of ours is running. A flag would not do: an index
/// expression or an operator of a user may run commands of its own meanwhile.
///
/// # Safety
///
/// `command` is a utility statement.
pub unsafe fn is_ours(command: *mut pg_sys::Node) -> bool {
    let list = OURS.get();
    if list.is_null() {
        return false;
    }
    // SAFETY: the parser makes lists of RawStmt; comparing reads both trees.
    unsafe {
        (0..(*list).length).any(|at| {
            let statement = pg_sys::list_nth(list, at).cast::<pg_sys::RawStmt>();
            pg_sys::equal((*statement).stmt.cast(), command.cast())
        })
    }
}

fn in_spi<T>(f: impl FnOnce() -> T) -> T {
    // SAFETY: connect and finish are paired; on an error the end of the (sub)transaction closes the
    // connection.
    unsafe {
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as c_int {
            Error::Internal("SPI_connect failed".into()).raise();
        }
        let value = f();
        pg_sys::SPI_finish();
        value
    }
}

fn split(arguments: &[Argument]) -> (Vec<pg_sys::Datum>, Vec<c_char>) {
    arguments
        .iter()
        .map(|argument| match argument {
            Some(datum) => (*datum, b' ' as c_char),
            None => (pg_sys::Datum::null(), b'n' as c_char),
        })
        .unzip()
}

fn finish_statement(code: c_int, sql: &CStr, mut each: impl FnMut(&Row)) -> u64 {
    if code < 0 {
        Error::Internal(format!("cannot run {sql:?}: code {code}")).raise();
    }
    // SAFETY: SPI_processed and SPI_tuptable are those of the statement that has just ended; they are read
    // before another one runs, because the rows are visited from this copy of the pointers.
    unsafe {
        let processed = pg_sys::SPI_processed;
        let table = pg_sys::SPI_tuptable;
        if !table.is_null() {
            for number in 0..(*table).numvals as usize {
                each(&Row { tuple: *(*table).vals.add(number), descriptor: (*table).tupdesc });
            }
        }
        processed
    }
}

/// The rights of another role, until dropped. After an error the end of the (sub)transaction restores them.
struct Rights {
    user: pg_sys::Oid,
    context: c_int,
}

impl Rights {
    fn take(role: pg_sys::Oid, flags: u32) -> Rights {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        // SAFETY: reads and writes the backend's current user, which `drop` puts back.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
            pg_sys::SetUserIdAndSecContext(role, context | flags as c_int);
        }
        Rights { user, context }
    }
}

impl Drop for Rights {
    fn drop(&mut self) {
        // SAFETY: what `take` has read.
        unsafe { pg_sys::SetUserIdAndSecContext(self.user, self.context) };
    }
}

/// Runs `f` with the rights of the owner of our tables. Only statements on our own tables belong in it.
pub fn as_owner<T>(f: impl FnOnce() -> T) -> Result<T> {
    let rights = Rights::take(registry::owner()?, pg_sys::SECURITY_LOCAL_USERID_CHANGE);
    let value = f();
    drop(rights);
    Ok(value)
}

/// Settings that code of others may change, until dropped. After an error the end of the (sub)transaction restores
/// them.
struct Settings(c_int);

impl Settings {
    fn set(name: &CStr, value: &CStr) -> Settings {
        // SAFETY: `drop` closes the level; both strings outlive the call, which copies them.
        unsafe {
            let level = pg_sys::NewGUCNestLevel();
            pg_sys::set_config_option(
                name.as_ptr(),
                value.as_ptr(),
                pg_sys::GucContext::PGC_USERSET,
                pg_sys::GucSource::PGC_S_SESSION,
                pg_sys::GucAction::GUC_ACTION_SAVE,
                true,
                0,
                false,
            );
            Settings(level)
        }
    }

    /// As the server does for commands that run code of a table's owner: names mean what they mean in pg_catalog,
    /// or else in `schema` (quoted, or empty).
    fn open(schema: &str) -> Settings {
        let schema = if schema.is_empty() { String::new() } else { format!("{schema}, ") };
        let Ok(path) = CString::new(format!("pg_catalog, {schema}pg_temp")) else {
            Error::Internal("the name of a schema holds a zero byte".into()).raise();
        };
        Settings::set(c"search_path", &path)
    }
}

impl Drop for Settings {
    fn drop(&mut self) {
        // SAFETY: the level that `open` began; false takes back what was set in it.
        unsafe { pg_sys::AtEOXact_GUC(false, self.0) };
    }
}

/// Runs `f`, in which statements find their rows by an index, however few rows a table has.
pub fn with_indexes<T>(f: impl FnOnce() -> T) -> T {
    let settings = Settings::set(c"enable_seqscan", c"off");
    let value = f();
    drop(settings);
    value
}

/// Runs `f` with the rights of the owner of a user's table, with its policies off, as foreign key checks do.
///
/// Expressions that the table's owner wrote run in it, whoever has called: never with more than the owner's
/// rights, for no tenant ([`registry::acting_role`]), and what they set goes back with them.
pub fn as_table_owner<T>(owner: pg_sys::Oid, f: impl FnOnce() -> T) -> T {
    as_table_owner_in(owner, "", f)
}

/// As [`as_table_owner`], for statements that fire triggers: they find what lies in `schema` (quoted) without naming
/// it.
pub fn as_table_owner_in<T>(owner: pg_sys::Oid, schema: &str, f: impl FnOnce() -> T) -> T {
    let rights = Rights::take(
        owner,
        pg_sys::SECURITY_LOCAL_USERID_CHANGE
            | pg_sys::SECURITY_NOFORCE_RLS
            | pg_sys::SECURITY_RESTRICTED_OPERATION,
    );
    let settings = Settings::open(schema);
    let value = f();
    drop(settings);
    drop(rights);
    value
}

/// What a query sees.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Snapshot {
    /// What is committed now, whatever the isolation level of the transaction.
    Latest,
    /// What the statement that is running sees.
    Active,
}

/// Runs `f` with that snapshot.
pub fn with_snapshot<T>(snapshot: Snapshot, f: impl FnOnce() -> T) -> T {
    if snapshot == Snapshot::Active {
        return f();
    }
    // SAFETY: push and pop are paired; on an error the end of the (sub)transaction pops.
    unsafe {
        pg_sys::PushActiveSnapshot(pg_sys::GetLatestSnapshot());
        let value = f();
        pg_sys::PopActiveSnapshot();
        value
    }
}

/// Runs a query that changes nothing.
pub fn read(snapshot: Snapshot, sql: &str, each: impl FnMut(&Row)) -> u64 {
    let Ok(sql) = CString::new(sql) else {
        Error::Internal("a statement holds a zero byte".into()).raise();
    };
    in_spi(|| {
        with_snapshot(snapshot, || {
            // SAFETY: the text outlives the call; a read-only statement runs with the snapshot that is active.
            let code = unsafe { pg_sys::SPI_execute(sql.as_ptr(), true, 0) };
            finish_statement(code, &sql, each)
        })
    })
}
