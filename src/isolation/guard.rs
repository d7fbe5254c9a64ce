//! What keeps protected tables protected while commands change the database around them.
//!
//! # How it judges
//!
//! When a command has ended, an event trigger reads what it has done (`command`) and looks at what has come of it:
//! is row level security still on, are both policies as tenant_protect makes them, is the new partition protected. The
//! verdict is about the state, so that it does not matter how a command is written; what the command has touched only
//! says where to look, so that a table somebody has opened on purpose does not stand in the way of other commands.
//! What no state shows is read from the command: whether a constraint was validated, whether a column came with a
//! default.
//!
//! # What it does not watch
//!
//! Restores by a superuser, scripts of extensions, and the statements of our own functions (`plan::is_ours`).
//! `tenant_rls.ddl_guard` set to `off` or `warn` lets everything through; what `on` would have refused is then
//! recorded in `tenant_rls.changes`, in the same transaction.
//!
//! # Layout
//!
//! [`tree`]: partitions and children that come and go, new tables. `weakening`: what a command may have taken from
//! a protected table. `reader`: views, rules and functions that read around the policies. [`utility`]: commands
//! that fire no event triggers. `closing`: what stays when the extension goes.

mod closing;
mod command;
mod reader;
pub mod tree;
pub mod utility;
mod weakening;

use std::ffi::CStr;

use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};

use super::table;
use crate::error::{Error, Result, or_raise};
use crate::gucs::{self, Watch};
use crate::plan::{CachedPlan, as_owner, is_ours};
use crate::registry::{self, FUNCTION_INFO, admin};
use command::Change;
pub use command::reshaped;

/// Something that the guard refuses.
struct Finding {
    /// The object, for the record.
    object: String,
    /// What the command does, as in "cannot …".
    to: String,
    /// What would come of it.
    why: String,
    /// How to do it right.
    hint: String,
}

/// The hint where nothing else leads there.
fn take_back(table: &str) -> String {
    format!(
        "tenant_unprotect('{table}') takes the protection back. A superuser can SET tenant_rls.ddl_guard = off, which is recorded."
    )
}

/// Raises, warns, or only records, as the setting says.
fn weigh(tag: &str, finding: Finding) -> Result<()> {
    let watch = gucs::ddl_guard();
    if watch != Watch::On {
        record(tag, watch, &finding)?;
    }
    let Finding { to, why, hint, .. } = finding;
    let guarded = |refused| Error::Guarded { to, why, hint, refused };
    match watch {
        Watch::On => return Err(guarded(true)),
        Watch::Warn => guarded(false).warn(),
        Watch::Off => {}
    }
    Ok(())
}

/// Says something that the guard does not refuse.
fn advise(what: String, why: &str, hint: String) {
    if gucs::ddl_guard() != Watch::Off {
        Error::Advice { what, why: why.into(), hint }.warn();
    }
}

/// Writes down what was let through: who, when, which command, what object.
fn record(tag: &str, watch: Watch, finding: &Finding) -> Result<()> {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.changes (acting_as, relation, command, new_row) VALUES ($1, 'ddl_guard', $2, $3)",
        &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::JSONBOID],
    );
    let setting = if watch == Watch::Warn { "warn" } else { "off" };
    let row = JsonB(
        serde_json::json!({ "ddl_guard": setting, "object": finding.object, "let_through": finding.to }),
    );
    let acting_as = registry::role_name(registry::acting_role());
    as_owner(|| INSERT.execute(&[acting_as.into_datum(), tag.into_datum(), row.into_datum()]))?;
    Ok(())
}

/// Whether commands are watched at all just now.
fn at_work() -> bool {
    // SAFETY: reads variables of the backend.
    if unsafe { pg_sys::creating_extension || pg_sys::IsBinaryUpgrade } {
        return false;
    }
    registry::accept_invalidations();
    registry::installed() && !admin::is_restoring()
}

/// The event that an event trigger is called for.
///
/// # Safety
///
/// `fcinfo` is that of a call by the server, of an event trigger or of anything else, which is refused.
unsafe fn event(fcinfo: pg_sys::FunctionCallInfo) -> *mut pg_sys::EventTriggerData {
    // SAFETY: the server calls event triggers with an EventTriggerData as context.
    unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_EventTriggerData {
            Error::NotPermitted { what: "this function is an event trigger".into(), hint: "" }.raise();
        }
        context.cast()
    }
}

fn name_of(tag: pg_sys::CommandTag::Type) -> String {
    // SAFETY: the server knows the names of its tags, which are constants.
    unsafe { CStr::from_ptr(pg_sys::GetCommandTagName(tag)) }.to_string_lossy().into_owned()
}

/// Event trigger: judges what a command has done.
///
/// # Safety
///
/// Called by the server alone.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn ddl_guard(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the command is that of the event.
    let (ours, tag) = unsafe {
        let event = event(fcinfo);
        (is_ours((*event).parsetree), (*event).tag)
    };
    if !ours && at_work() {
        let tag = name_of(tag);
        or_raise(command::changes().into_iter().try_for_each(|change| judge(&tag, change)));
    }
    pg_sys::Datum::null()
}

/// Version record of [`ddl_guard`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_ddl_guard() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}

fn judge(tag: &str, change: Change) -> Result<()> {
    match change {
        Change::Made(relation) => tree::made(relation),
        Change::Joined(relation) => tree::joined(tag, relation),
        Change::Attached(parent) => tree::attached(tag, parent),
        Change::Detached(parent) => tree::detached(parent),
        Change::Left(relation) => tree::find_roots(relation),
        Change::RowSecurity(relation) => weakening::row_security(tag, relation),
        Change::Column { relation, name } => weakening::column(tag, relation, name.as_deref()),
        Change::Added { relation, column, has_default } => {
            weakening::added(tag, relation, column, has_default)
        }
        Change::Constraint(constraint) => weakening::constraint(tag, constraint),
        Change::Owner(relation) => {
            let owner = table::find(relation)?.owner;
            weakening::given(tag, relation, owner)?;
            reader::given(tag, relation, owner)
        }
        Change::Reader(relation) => reader::relation(tag, relation),
        Change::Policy { policy, name, made } => weakening::policy(tag, policy, &name, made),
        Change::Granted { relations, grantees } => weakening::granted(tag, &relations, &grantees),
        Change::Routine(routine) => reader::routine(tag, routine, None),
    }
}

/// Event trigger: judges what a command has dropped.
///
/// # Safety
///
/// Called by the server alone.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn drop_guard(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the command is that of the event.
    let (ours, tag) = unsafe {
        let event = event(fcinfo);
        (is_ours((*event).parsetree), (*event).tag)
    };
    if !ours && at_work() {
        or_raise(weakening::dropped(&name_of(tag)));
    }
    pg_sys::Datum::null()
}

/// Version record of [`drop_guard`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_drop_guard() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}
