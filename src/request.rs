//! What a middleware loads once per request: all that an application needs to know of the tenant, in one answer.

use pgrx::pg_sys;

use crate::call::sql_function;
use crate::error::Result;
use crate::json::{self, Object, quote, quote_or_null};
use crate::{context, feature, registry, setting};

sql_function!(
    /// Plan, region, status, features and settings of the tenant of the session.
    tenant_context,
    pg_finfo_tenant_context,
    |_| context()
);

fn context() -> Result<pg_sys::Datum> {
    let tenant = context::required()?;
    let own = registry::own(&tenant)?;
    let (values, names) = feature::values_and_names(Some(&tenant))?;
    let mut object = Object::new();
    object.push("tenantId", &quote(&tenant.id.to_string()));
    object.push("plan", &quote(&tenant.plan));
    object.push("region", &quote_or_null(own.region.as_deref()));
    object.push("features", &names);
    object.push("featureValues", &values);
    object.push("settings", &setting::effective(&tenant)?);
    object.push("status", &quote(tenant.status.as_str()));
    Ok(json::parse(&object.finish()))
}
