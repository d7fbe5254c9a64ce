//! For whom a value of a feature or a setting is set: everybody, a plan, or one tenant.

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::admin::{datum, existing_plan, id_of, living_status};
use crate::error::{Error, Result};
use crate::feature::resolution::Scope;
use crate::tenant::TenantId;

/// One of the three.
#[derive(Clone, Copy)]
pub enum Target<'a> {
    /// All tenants.
    Everybody,
    /// The tenants of a plan that exists.
    Plan(&'a str),
    /// A tenant that exists and is not deleted; its row is locked until the end of the transaction.
    Tenant(TenantId),
}

impl Target<'_> {
    /// The plan, or NULL, as an argument of a statement.
    pub fn plan(self) -> Option<pg_sys::Datum> {
        if let Target::Plan(plan) = self { plan.into_datum() } else { None }
    }

    /// The tenant, or NULL, as an argument of a statement.
    pub fn tenant(self) -> Option<pg_sys::Datum> {
        if let Target::Tenant(id) = self { datum(id) } else { None }
    }
}

/// What the arguments of a call name. A tenant or plan that the scope does not ask for is a mistake: who forgets the
/// scope must not set a value for everybody.
pub fn target<'a>(scope: Option<&str>, tenant: Option<Uuid>, plan: Option<&'a str>) -> Result<Target<'a>> {
    let scope = scope.ok_or(Error::Null("the scope"))?;
    let other = |what, value: String| Error::Invalid {
        what,
        value,
        hint: format!("Scope {scope} takes none; use scope => '{what}'."),
    };
    match Scope::parse(scope) {
        Some(Scope::Tenant) => {
            if let Some(plan) = plan {
                return Err(other("plan", plan.into()));
            }
            let id = id_of(tenant)?;
            living_status(id)?;
            Ok(Target::Tenant(id))
        }
        Some(Scope::Plan) => {
            if let Some(tenant) = tenant {
                return Err(other("tenant", tenant.to_string()));
            }
            Ok(Target::Plan(existing_plan(plan)?))
        }
        Some(Scope::Global) => match (tenant, plan) {
            (None, None) => Ok(Target::Everybody),
            (Some(tenant), _) => Err(other("tenant", tenant.to_string())),
            (None, Some(plan)) => Err(other("plan", plan.into())),
        },
        None => Err(Error::Invalid {
            what: "scope",
            value: scope.into(),
            hint: "Use global, plan or tenant.".into(),
        }),
    }
}
