//! The tenant that a session acts for.
//!
//! `app.current_tenant` is a request; what holds is decided when it is used, by [`held`]. See
//! [`setting`] for the ways in, `current` for what policies call, [`marker`] for the rule that one statement
//! sees one tenant, [`grant`] for who may act for whom, [`ticket`] for signed tickets.

pub mod carrier;
pub mod current;
pub mod fence;
pub mod grant;
pub mod marker;
pub mod setting;
pub mod switch_log;
pub mod ticket;

use std::cell::RefCell;
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use crate::backend::Backend;
use crate::error::{Error, Result, or_raise};
use crate::registry::{self, Tenant, Ways};
use crate::tenant::TenantId;
use ticket::Ticket;

/// What was found valid, and for what.
struct Held {
    registry: u64,
    setting: setting::Value,
    role: pg_sys::Oid,
    /// Until when, if it holds by a ticket.
    until: Option<i64>,
    tenant: Rc<Tenant>,
}

static HELD: Backend<RefCell<Option<Held>>> = Backend::new(RefCell::new(None));

/// The tenant that the session acts for now, `None` when none is set, or why the one that is set does not hold.
///
/// Call [`registry::accept_invalidations`] before, once per statement.
pub fn held() -> Result<Option<Rc<Tenant>>> {
    if setting::failed() {
        return Err(Error::FailedAttempt);
    }
    let value = setting::value();
    let Some(id) = value.tenant else { return Ok(None) };
    if registry::in_restricted_operation() {
        return Err(Error::Restricted);
    }
    let role = registry::acting_role();
    if let Some(held) = &*HELD.borrow()
        && held.registry == registry::generation()
        && held.setting == value
        && held.role == role
    {
        ticket::in_time(held.until)?;
        return Ok(Some(held.tenant.clone()));
    }
    let before = registry::generation();
    let ticket = if value.from_leader { ticket::from_leader(id) } else { value.ticket };
    let until = ticket.as_ref().map(ticket::until).transpose()?;
    ticket::in_time(until)?;
    let tenant = registry::admit(role, id, if ticket.is_some() { Ways::Ticket } else { Ways::Name })?;
    if value.created_at != 0 && value.created_at != tenant.created_at {
        return Err(Error::Reborn(id));
    }
    carrier::act_for(id, || Ok(registry::rights(role)?.bypasses))?;
    *HELD.borrow_mut() = Some(Held { registry: before, setting: value, role, until, tenant: tenant.clone() });
    Ok(Some(tenant))
}

/// The tenant that holds now, for functions that need one.
pub fn required() -> Result<Rc<Tenant>> {
    registry::accept_invalidations();
    held()?.ok_or(Error::NoTenant)
}

/// Sets the tenant, and answers with it.
#[pg_extern(sql = false)]
fn set_tenant(tenant: Option<Uuid>, is_local: Option<bool>, fcinfo: pg_sys::FunctionCallInfo) -> Uuid {
    let Some(tenant) = tenant else {
        setting::attempt_failed();
        Error::Null("the tenant").raise();
    };
    set(TenantId::from_bytes(*tenant.as_bytes()), None, is_local, fcinfo);
    tenant
}

/// Sets the tenant of a bigint key, and answers with its uuid.
#[pg_extern(sql = false)]
fn set_tenant_key(tenant_key: Option<i64>, is_local: Option<bool>, fcinfo: pg_sys::FunctionCallInfo) -> Uuid {
    // Until it has succeeded, the attempt counts as failed.
    setting::attempt_failed();
    let id = or_raise(tenant_of_key(tenant_key));
    set(id, None, is_local, fcinfo);
    Uuid::from_bytes(*id.as_bytes())
}

fn tenant_of_key(key: Option<i64>) -> Result<TenantId> {
    let key = key.ok_or(Error::Null("the tenant key"))?;
    registry::accept_invalidations();
    let role = registry::acting_role();
    let rights = registry::rights(role)?;
    match registry::tenant_of_key(key)? {
        Some(id) => Ok(id),
        None if rights.every => Err(Error::UnknownKey(key)),
        // As for a key that a tenant has.
        None if rights.every_by_ticket => Err(Error::TicketRequired { role: registry::role_name(role) }),
        None => Err(Error::NotGranted { role: registry::role_name(role) }),
    }
}

fn set(id: TenantId, ticket: Option<Ticket>, is_local: Option<bool>, fcinfo: pg_sys::FunctionCallInfo) {
    let Some(is_local) = is_local else {
        setting::attempt_failed();
        Error::Null("is_local").raise();
    };
    if let Some(ticket) = ticket {
        ticket::carry(id, ticket, is_local);
    }
    setting::set(Some(id), ticket, is_local);
    if is_local && is_alone(fcinfo) {
        Error::NoEffect.warn();
    }
}

/// Whether the call is a statement of its own, whose transaction ends with it. A call from inside a function
/// or a DO block is not: the rest of that still runs.
fn is_alone(fcinfo: pg_sys::FunctionCallInfo) -> bool {
    // SAFETY: reads the state of the transaction, and the contexts of the portal and the query that are
    // running this very call.
    unsafe {
        if pg_sys::IsTransactionBlock() || pg_sys::ActivePortal.is_null() {
            return false;
        }
        let query = (*(*fcinfo).flinfo).fn_mcxt;
        !query.is_null() && (*query).parent == (*pg_sys::ActivePortal).portalContext
    }
}

/// Sets no tenant, for the session, as RESET does.
#[pg_extern(sql = false)]
fn reset_tenant() {
    setting::set(None, None, false);
}

/// The role that counts for rights, for the record of changes.
#[pg_extern(sql = false)]
fn acting_role() -> String {
    registry::role_name(registry::acting_role())
}
