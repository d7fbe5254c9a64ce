//! What a role may do, and for whom.

use std::rc::Rc;

use pgrx::pg_sys;

use super::catalog::{Catalog, catalog};
use super::scan::{self, Key, scan};
use super::{Tenant, cached, make_room, tenant};
use crate::error::{Error, Result};
use crate::tenant::{Status, TenantId};

/// What a role may do.
#[derive(Clone, Copy, Default)]
pub struct Rights {
    /// Superuser or BYPASSRLS: policies do not hold for it.
    pub bypasses: bool,
    /// May act for every tenant.
    pub every: bool,
    /// May act for every tenant with a ticket.
    pub every_by_ticket: bool,
    /// May run the registry.
    pub operator: bool,
    /// Sees the usage of all tenants.
    pub sees_all: bool,
}

/// How a role may act for one tenant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Grant {
    None,
    Ticket,
    Free,
}

/// How a session asks for a tenant.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// By naming it.
    Name,
    /// With a ticket for it that holds now.
    Ticket,
}

/// What the role may do.
pub fn rights(role: pg_sys::Oid) -> Result<Rights> {
    cached(
        |cache| cache.rights.get(&role).copied(),
        || find_rights(role),
        |cache, rights| {
            cache.rights.insert(role, rights);
        },
    )
}

fn find_rights(role: pg_sys::Oid) -> Result<Rights> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    // SAFETY: syscache lookups by oid; a role that is gone is neither.
    let (superuser, bypasses) =
        unsafe { (pg_sys::superuser_arg(role), pg_sys::has_bypassrls_privilege(role)) };
    let mut rights = Rights { bypasses: superuser || bypasses, ..Rights::default() };
    let every = grant_of(&catalog, role, &Key::Null(scan::grants::TENANT_ID));
    rights.every = rights.bypasses || every == Grant::Free;
    rights.every_by_ticket = every == Grant::Ticket;
    rights.operator = superuser;
    scan(catalog.operators, pg_sys::InvalidOid, &[], |row| {
        rights.operator |=
            row.get::<pg_sys::Oid>(scan::operators::ROLE_OID).is_some_and(|of| has_role(role, of));
    });
    rights.sees_all = rights.operator || has_role(role, pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS));
    Ok(rights)
}

/// Whether `role` has the privileges of `of`, itself included. A role that is gone has none.
fn has_role(role: pg_sys::Oid, of: pg_sys::Oid) -> bool {
    // SAFETY: looks role memberships up; both are only numbers to it.
    unsafe { pg_sys::has_privs_of_role(role, of) }
}

/// Whether the role, or one that it can become by SET ROLE, may act for some tenant.
pub fn may_act(role: pg_sys::Oid) -> Result<bool> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut may = false;
    scan(catalog.grants, pg_sys::InvalidOid, &[], |row| {
        // SAFETY: looks role memberships up; both are only numbers to it.
        may |= row
            .get::<pg_sys::Oid>(scan::grants::ROLE_OID)
            .is_some_and(|of| unsafe { pg_sys::is_member_of_role_nosuper(role, of) });
    });
    Ok(may)
}

fn grant_of(catalog: &Catalog, role: pg_sys::Oid, key: &Key) -> Grant {
    let mut grant = Grant::None;
    let key = match key {
        Key::Uuid(column, id) => Key::Uuid(*column, *id),
        _ => Key::Null(scan::grants::TENANT_ID),
    };
    scan(catalog.grants, catalog.grants_tenant, &[key], |row| {
        if row.get::<pg_sys::Oid>(scan::grants::ROLE_OID).is_some_and(|of| has_role(role, of)) {
            if row.get::<bool>(scan::grants::TICKET_REQUIRED) == Some(false) {
                grant = Grant::Free;
            } else if grant == Grant::None {
                grant = Grant::Ticket;
            }
        }
    });
    grant
}

fn grant(role: pg_sys::Oid, id: TenantId) -> Result<Grant> {
    let rights = rights(role)?;
    if rights.every {
        return Ok(Grant::Free);
    }
    let one = cached(
        |cache| cache.grants.get(&(role, id)).copied(),
        || {
            let catalog = catalog().ok_or(Error::NotInstalled)?;
            Ok(grant_of(&catalog, role, &Key::Uuid(scan::grants::TENANT_ID, id)))
        },
        |cache, grant| {
            make_room(&mut cache.grants);
            cache.grants.insert((role, id), grant);
        },
    )?;
    Ok(if one == Grant::None && rights.every_by_ticket { Grant::Ticket } else { one })
}

/// The name of a role, for messages.
pub fn role_name(role: pg_sys::Oid) -> String {
    // SAFETY: returns a string of the current memory context, or null for a role that is gone.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        if name.is_null() {
            role.to_u32().to_string()
        } else {
            std::ffi::CStr::from_ptr(name).to_string_lossy().into()
        }
    }
}

/// The tenant, if it is registered, the role may act for it and its status lets it be read.
///
/// A role that may not act for every tenant learns nothing about tenants it was not granted: the answer is
/// the same whether they exist or not.
pub fn admit(role: pg_sys::Oid, id: TenantId, way: Ways) -> Result<Rc<Tenant>> {
    match grant(role, id)? {
        Grant::None => return Err(Error::NotGranted { role: role_name(role) }),
        Grant::Ticket if way == Ways::Name => return Err(Error::TicketRequired { role: role_name(role) }),
        Grant::Free | Grant::Ticket => {}
    }
    let Some(tenant) = tenant(id)? else {
        return Err(if rights(role)?.every {
            Error::UnknownTenant(id)
        } else {
            Error::NotGranted { role: role_name(role) }
        });
    };
    match tenant.status {
        Status::Active | Status::Fenced => Ok(tenant),
        Status::Suspended => Err(Error::Suspended { tenant: id, reason: tenant.reason.clone() }),
        Status::Deleted => Err(Error::Deleted(id)),
    }
}
