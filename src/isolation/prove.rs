//! What `tenant_prove` cannot do in SQL: act as another role so that nothing it runs can get back.
//!
//! After SET ROLE the code of a trigger could RESET ROLE, and would be the superuser that asked for the proof. In
//! the security context of a SECURITY DEFINER function it cannot, and is otherwise what it would be in a session
//! of the role.

use std::ffi::{CStr, CString};

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::table;
use crate::error::{Error, or_raise};
use crate::plan::{as_table_owner_in, run_text};
use crate::registry;
use crate::tenant::TenantId;

/// The name of the role. Only a superuser may ask: the proof acts as any role, and reads what nobody else may.
#[pg_extern(sql = false)]
fn prove_check(role: Option<pg_sys::Oid>) -> String {
    let role = role.unwrap_or_else(|| Error::Null("the role").raise());
    // SAFETY: reads the backend's user, and looks the role up.
    let (superuser, known) =
        unsafe { (pg_sys::superuser(), !pg_sys::GetUserNameFromId(role, true).is_null()) };
    if !superuser {
        Error::NotPermitted { what: "must be superuser to prove isolation".into(), hint: "" }.raise();
    }
    if !known {
        Error::Unknown { what: "role", name: role.to_u32().to_string(), known: Vec::new(), hint: "" }.raise();
    }
    registry::role_name(role)
}

/// Acts as the role for the tenant until the subtransaction rolls back. It cannot end in another way: whoever
/// calls this raises afterwards.
#[pg_extern(sql = false)]
fn prove_enter(role: pg_sys::Oid, tenant: Uuid, search_path: &str) {
    // SAFETY: reads the depth of the transaction.
    if unsafe { pg_sys::GetCurrentTransactionNestLevel() } < 2 {
        Error::NotPermitted { what: "only tenant_prove calls this function".into(), hint: "" }.raise();
    }
    let tenant = TenantId::from_bytes(*tenant.as_bytes()).to_string();
    set(c"role", &registry::role_name(role));
    set(c"app.current_tenant", &tenant);
    set(c"search_path", search_path);
    let (mut user, mut context) = (pg_sys::InvalidOid, 0);
    // SAFETY: the end of the subtransaction puts back what it began with.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        pg_sys::SetUserIdAndSecContext(role, context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
    }
}

/// SET LOCAL.
fn set(name: &CStr, value: &str) {
    let Ok(value) = CString::new(value) else {
        Error::Internal("a setting holds a zero byte".into()).raise()
    };
    // SAFETY: both strings outlive the call; the caller of the SQL function is a superuser.
    unsafe {
        pg_sys::set_config_option(
            name.as_ptr(),
            value.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            0,
            false,
        );
    }
}

/// Runs a statement with the rights of the owner of a relation, its policies off. Answers with the first column, a
/// text, of the first row.
#[pg_extern(sql = false)]
fn prove_as_owner(relation: pg_sys::Oid, statement: &str) -> Option<String> {
    let table::Table { owner, schema, .. } = or_raise(table::find(relation));
    let mut answer = None;
    as_table_owner_in(owner, &schema, || {
        run_text(statement, &[], &[], |row| {
            if answer.is_none() {
                answer = row.get::<String>(1);
            }
        });
    });
    answer
}
