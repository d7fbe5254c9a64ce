//! The functions that run the registry.

use pgrx::datum::{Interval, TimestampWithTimeZone};
use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use crate::context::fence;
use crate::error::{Error, Result, or_raise};
use crate::plan::{CachedPlan, as_owner};
use crate::quota::decision::Enforcement;
use crate::quota::period::{self, Period};
use crate::registry::{self, Kind};
use crate::tenant::{Status, TenantId};

const UUID: pg_sys::Oid = pg_sys::UUIDOID;
const TEXT: pg_sys::Oid = pg_sys::TEXTOID;
const INT8: pg_sys::Oid = pg_sys::INT8OID;
const TIMESTAMPTZ: pg_sys::Oid = pg_sys::TIMESTAMPTZOID;

/// The tenant that an argument names.
pub(crate) fn id_of(tenant: Option<Uuid>) -> Result<TenantId> {
    tenant.map(|uuid| TenantId::from_bytes(*uuid.as_bytes())).ok_or(Error::Null("the tenant"))
}

/// A tenant as an argument of a statement.
pub(crate) fn datum(id: TenantId) -> Option<pg_sys::Datum> {
    Uuid::from_bytes(*id.as_bytes()).into_datum()
}

/// The status of a tenant that exists, its row locked until the end of the transaction.
fn locked_status(id: TenantId) -> Result<Status> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT t.status FROM tenant_rls.tenants AS t WHERE t.tenant_id OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE",
        &[UUID],
    );
    let status = as_owner(|| SELECT.first(&[datum(id)], |row| row.get::<String>(1).unwrap_or_default()))?;
    status.as_deref().and_then(Status::parse).ok_or(Error::UnknownTenant(id))
}

/// As [`locked_status`], for calls that a deleted tenant refuses.
pub(crate) fn living_status(id: TenantId) -> Result<Status> {
    match locked_status(id)? {
        Status::Deleted => Err(Error::Deleted(id)),
        status => Ok(status),
    }
}

fn set_status(id: TenantId, status: Status, reason: Option<&str>) -> Result<()> {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.tenants SET status = $2, status_reason = $3 \
          WHERE tenants.tenant_id OPERATOR(pg_catalog.=) $1",
        &[UUID, TEXT, TEXT],
    );
    as_owner(|| UPDATE.execute(&[datum(id), status.as_str().into_datum(), reason.into_datum()]))?;
    Ok(())
}

/// A name that is one.
pub(crate) fn check_name<'a>(what: &'static str, name: Option<&'a str>) -> Result<&'a str> {
    match name {
        None => Err(Error::Null(what)),
        Some("") => Err(Error::Invalid {
            what,
            value: String::new(),
            hint: "Use a name of at least one character.".into(),
        }),
        Some(name) => Ok(name),
    }
}

fn names(plan: &CachedPlan) -> Result<Vec<String>> {
    let mut names = Vec::new();
    as_owner(|| plan.run(&[], |row| names.extend(row.get::<String>(1))))?;
    Ok(names)
}

fn plan_exists(plan: &str) -> Result<bool> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT true FROM tenant_rls.plans AS p WHERE p.plan OPERATOR(pg_catalog.=) $1",
        &[TEXT],
    );
    as_owner(|| SELECT.execute(&[plan.into_datum()]) > 0)
}

/// A plan that exists.
pub(crate) fn existing_plan(plan: Option<&str>) -> Result<&str> {
    static SELECT: CachedPlan =
        CachedPlan::new(c"SELECT p.plan FROM tenant_rls.plans AS p ORDER BY p.plan", &[]);
    let plan = plan.ok_or(Error::Null("the plan"))?;
    if plan_exists(plan)? {
        return Ok(plan);
    }
    Err(Error::Unknown {
        what: "plan",
        name: plan.into(),
        known: names(&SELECT)?,
        hint: "Define it with tenant_plan_define(plan).",
    })
}

#[pg_extern(sql = false)]
fn tenant_create(
    tenant: Option<Uuid>,
    plan: Option<&str>,
    name: Option<&str>,
    region: Option<&str>,
    tenant_key: Option<i64>,
) -> Uuid {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.tenants (tenant_id, plan, name, region, tenant_key) VALUES ($1, $2, $3, $4, $5) \
          ON CONFLICT DO NOTHING",
        &[UUID, TEXT, TEXT, TEXT, INT8],
    );
    let create = || {
        let id = id_of(tenant)?;
        let plan = existing_plan(plan)?;
        let arguments =
            [datum(id), plan.into_datum(), name.into_datum(), region.into_datum(), tenant_key.into_datum()];
        if as_owner(|| INSERT.execute(&arguments))? == 1 {
            return Ok(id);
        }
        match locked_status(id) {
            Ok(Status::Deleted) => {
                Err(Error::WrongStatus { tenant: id, status: "deleted", hint: "Choose another id." })
            }
            Ok(_) => Err(Error::Exists { what: "tenant", name: id.to_string(), hint: "" }),
            Err(_) => Err(Error::Exists {
                what: "tenant key",
                name: tenant_key.unwrap_or_default().to_string(),
                hint: "Each tenant has a key of its own.",
            }),
        }
    };
    Uuid::from_bytes(*or_raise(create()).as_bytes())
}

#[pg_extern(sql = false)]
fn tenant_plan_change(tenant: Option<Uuid>, plan: Option<&str>) {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.tenants SET plan = $2 WHERE tenants.tenant_id OPERATOR(pg_catalog.=) $1",
        &[UUID, TEXT],
    );
    let change = || {
        let id = id_of(tenant)?;
        let plan = existing_plan(plan)?;
        living_status(id)?;
        as_owner(|| UPDATE.execute(&[datum(id), plan.into_datum()]))
    };
    or_raise(change());
}

#[pg_extern(sql = false)]
fn tenant_suspend(tenant: Option<Uuid>, reason: Option<&str>) {
    let suspend = || {
        let id = id_of(tenant)?;
        living_status(id)?;
        set_status(id, Status::Suspended, reason)
    };
    or_raise(suspend());
}

#[pg_extern(sql = false)]
fn tenant_resume(tenant: Option<Uuid>) {
    let resume = || {
        let id = id_of(tenant)?;
        match living_status(id)? {
            Status::Suspended => set_status(id, Status::Active, None),
            Status::Fenced => {
                Err(Error::WrongStatus { tenant: id, status: "fenced", hint: "Call tenant_unfence(tenant)." })
            }
            _ => Ok(()),
        }
    };
    or_raise(resume());
}

#[pg_extern(sql = false)]
fn tenant_fence(tenant: Option<Uuid>, timeout: Option<Interval>) {
    let fence = || {
        let id = id_of(tenant)?;
        let milliseconds = milliseconds(timeout.ok_or(Error::Null("the timeout"))?)?;
        // The lock comes first: a writer that waits for it must not hold a row that this one wants.
        fence::close(id, milliseconds)?;
        match living_status(id)? {
            Status::Suspended => Err(Error::WrongStatus {
                tenant: id,
                status: "suspended",
                hint: "Call tenant_resume(tenant) first.",
            }),
            Status::Fenced => Ok(()),
            _ => set_status(id, Status::Fenced, None),
        }
    };
    or_raise(fence());
}

fn milliseconds(interval: Interval) -> Result<i64> {
    const DAY: i128 = 86_400_000;
    let days = i128::from(interval.months()) * 30 + i128::from(interval.days());
    let total = days * DAY + i128::from(interval.micros()) / 1000;
    // Zero would switch the timeout off, and i32 is what lock_timeout holds.
    if (1..=i128::from(i32::MAX)).contains(&total) {
        return Ok(total as i64);
    }
    Err(Error::Invalid {
        what: "timeout",
        value: format!("{total} ms"),
        hint: "Use a time between one millisecond and 24 days.".into(),
    })
}

#[pg_extern(sql = false)]
fn tenant_unfence(tenant: Option<Uuid>) {
    let unfence = || {
        let id = id_of(tenant)?;
        match living_status(id)? {
            Status::Fenced => set_status(id, Status::Active, None),
            Status::Suspended => Err(Error::WrongStatus {
                tenant: id,
                status: "suspended",
                hint: "Call tenant_resume(tenant).",
            }),
            _ => Ok(()),
        }
    };
    or_raise(unfence());
}

#[pg_extern(sql = false)]
fn tenant_delete(tenant: Option<Uuid>) {
    let delete = || {
        let id = id_of(tenant)?;
        match locked_status(id)? {
            Status::Deleted => Ok(()),
            _ => set_status(id, Status::Deleted, None),
        }
    };
    or_raise(delete());
}

#[pg_extern(sql = false)]
fn tenant_list(status: Option<&str>) -> SetOfIterator<'static, Uuid> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT t.tenant_id FROM tenant_rls.tenants AS t WHERE t.status OPERATOR(pg_catalog.=) $1 ORDER BY t.tenant_id",
        &[TEXT],
    );
    let list = || {
        let status = status.ok_or(Error::Null("the status"))?;
        let status = Status::parse(status).ok_or_else(|| Error::Invalid {
            what: "status",
            value: status.into(),
            hint: "Use active, suspended, fenced or deleted.".into(),
        })?;
        let mut tenants = Vec::new();
        as_owner(|| SELECT.run(&[status.as_str().into_datum()], |row| tenants.extend(row.get::<Uuid>(1))))?;
        Ok(tenants)
    };
    SetOfIterator::new(or_raise(list()))
}

#[pg_extern(sql = false)]
fn tenant_resource_define(
    resource: Option<&str>,
    kind: Option<&str>,
    unit: Option<&str>,
    period: Option<&str>,
) {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.resources (resource, kind, unit, period) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING",
        &[TEXT, TEXT, TEXT, TEXT],
    );
    let define = || {
        let resource = check_name("resource", resource)?;
        let kind = kind.ok_or(Error::Null("the kind"))?;
        let unit = check_name("unit", unit)?;
        // A gauge has no period; NULL says so as well as 'none'.
        let period = match (kind, period) {
            ("gauge", None) => "none",
            (_, None) => return Err(Error::Null("the period of a counter")),
            (_, Some(period)) => period,
        };
        if !matches!(kind, "counter" | "gauge") {
            return Err(Error::Invalid {
                what: "kind",
                value: kind.into(),
                hint: "Use counter or gauge.".into(),
            });
        }
        let known = Period::parse(period);
        if known.is_none() || (kind == "gauge" && known != Some(Period::None)) {
            let hint = if kind == "gauge" {
                "A gauge has the period none.".into()
            } else {
                format!("Use one of {}.", Period::ALL.map(Period::as_str).join(", "))
            };
            return Err(Error::Invalid { what: "period", value: period.into(), hint });
        }
        let arguments = [resource.into_datum(), kind.into_datum(), unit.into_datum(), period.into_datum()];
        if as_owner(|| INSERT.execute(&arguments))? == 0 {
            return Err(Error::Exists { what: "resource", name: resource.into(), hint: "" });
        }
        Ok(())
    };
    or_raise(define());
}

#[pg_extern(sql = false)]
fn tenant_plan_define(plan: Option<&str>, based_on: Option<&str>) {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.plans (plan, based_on) VALUES ($1, $2) ON CONFLICT DO NOTHING",
        &[TEXT, TEXT],
    );
    static COPY: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.plan_limits (plan, resource, quota_limit, enforcement, mode) \
          SELECT $1, l.resource, l.quota_limit, l.enforcement, l.mode \
          FROM tenant_rls.plan_limits AS l WHERE l.plan OPERATOR(pg_catalog.=) $2",
        &[TEXT, TEXT],
    );
    static COPY_FEATURES: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.feature_values (feature, plan, value, rollout_percent, expires_at) \
          SELECT v.feature, $1, v.value, v.rollout_percent, v.expires_at \
          FROM tenant_rls.feature_values AS v WHERE v.plan OPERATOR(pg_catalog.=) $2",
        &[TEXT, TEXT],
    );
    static COPY_SETTINGS: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.settings (key, plan, value) \
          SELECT s.key, $1, s.value FROM tenant_rls.settings AS s WHERE s.plan OPERATOR(pg_catalog.=) $2",
        &[TEXT, TEXT],
    );
    let define = || {
        let plan = check_name("plan", plan)?;
        if based_on.is_some() {
            existing_plan(based_on)?;
        }
        if as_owner(|| INSERT.execute(&[plan.into_datum(), based_on.into_datum()]))? == 0 {
            return Err(Error::Exists { what: "plan", name: plan.into(), hint: "" });
        }
        as_owner(|| {
            for copy in [&COPY, &COPY_FEATURES, &COPY_SETTINGS] {
                copy.execute(&[plan.into_datum(), based_on.into_datum()]);
            }
        })
    };
    or_raise(define());
}

/// NULL without `unlimited`, or both, are errors: nothing becomes unlimited by a missing value.
fn checked_limit(quota_limit: Option<i64>, unlimited: Option<bool>) -> Result<Option<i64>> {
    match (quota_limit, unlimited.ok_or(Error::Null("unlimited"))?) {
        (None, true) => Ok(None),
        (None, false) => Err(Error::Null("the limit")),
        (Some(limit), false) if limit >= 0 => Ok(Some(limit)),
        (Some(limit), false) => Err(Error::Invalid {
            what: "limit",
            value: limit.to_string(),
            hint: "Use 0 for none, or unlimited => true.".into(),
        }),
        (Some(limit), true) => Err(Error::Invalid {
            what: "limit",
            value: limit.to_string(),
            hint: "Give a limit or unlimited => true, not both.".into(),
        }),
    }
}

#[pg_extern(sql = false)]
fn tenant_plan_limit_set(
    plan: Option<&str>,
    resource: Option<&str>,
    quota_limit: Option<i64>,
    unlimited: Option<bool>,
    enforcement: Option<&str>,
    mode: Option<&str>,
) {
    static UPSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.plan_limits (plan, resource, quota_limit, enforcement, mode) \
          VALUES ($1, $2, $3, $4, $5) ON CONFLICT (plan, resource) DO UPDATE \
          SET quota_limit = EXCLUDED.quota_limit, enforcement = EXCLUDED.enforcement, mode = EXCLUDED.mode",
        &[TEXT, TEXT, INT8, TEXT, TEXT],
    );
    let set = || {
        let plan = existing_plan(plan)?;
        registry::accept_invalidations();
        let resource = registry::resource(resource.ok_or(Error::Null("the resource"))?)?;
        let limit = checked_limit(quota_limit, unlimited)?;
        let enforcement = enforcement.ok_or(Error::Null("the enforcement"))?;
        if Enforcement::parse(enforcement).is_none() {
            return Err(Error::Invalid {
                what: "enforcement",
                value: enforcement.into(),
                hint: "Use hard, soft or shadow.".into(),
            });
        }
        match mode {
            None | Some("strict" | "escrow") => {}
            Some("leased") if resource.kind == Kind::Counter => {}
            Some("leased") => {
                return Err(Error::Unsupported {
                    what: "a gauge cannot be leased".into(),
                    detail: "Mode leased keeps units after a rollback, which a gauge must give back.".into(),
                    hint: "Use mode strict or escrow.",
                });
            }
            Some(other) => {
                return Err(Error::Invalid {
                    what: "mode",
                    value: other.into(),
                    hint: "Use strict, escrow or leased, or NULL for the default.".into(),
                });
            }
        }
        let arguments = [
            plan.into_datum(),
            (&*resource.name).into_datum(),
            limit.into_datum(),
            enforcement.into_datum(),
            mode.into_datum(),
        ];
        as_owner(|| UPSERT.execute(&arguments))
    };
    or_raise(set());
}

#[pg_extern(sql = false)]
fn tenant_billing_set(tenant: Option<Uuid>, anchor: Option<TimestampWithTimeZone>, time_zone: Option<&str>) {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.tenants SET billing_anchor = $2, time_zone = $3 \
          WHERE tenants.tenant_id OPERATOR(pg_catalog.=) $1",
        &[UUID, TIMESTAMPTZ, TEXT],
    );
    let set = || {
        let id = id_of(tenant)?;
        living_status(id)?;
        if anchor.is_none() && time_zone.is_some() {
            return Err(Error::Null("the anchor of a time zone"));
        }
        if anchor.as_ref().is_some_and(|anchor| anchor.is_infinity() || anchor.is_neg_infinity()) {
            return Err(Error::Invalid {
                what: "anchor",
                value: "infinity".into(),
                hint: "Use a finite instant.".into(),
            });
        }
        if let Some(zone) = time_zone
            && period::parse_zone(zone).is_err()
        {
            return Err(Error::Invalid {
                what: "time zone",
                value: zone.into(),
                hint: "Use a name of the IANA time zone database, such as Europe/Zurich.".into(),
            });
        }
        as_owner(|| UPDATE.execute(&[datum(id), anchor.into_datum(), time_zone.into_datum()]))
    };
    or_raise(set());
}

#[pg_extern(sql = false)]
fn tenant_quota_set(
    tenant: Option<Uuid>,
    resource: Option<&str>,
    quota_limit: Option<i64>,
    unlimited: Option<bool>,
    expires_at: Option<TimestampWithTimeZone>,
) {
    static UPSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.overrides (tenant_id, resource, quota_limit, expires_at) VALUES ($1, $2, $3, $4) \
          ON CONFLICT (tenant_id, resource) DO UPDATE \
          SET quota_limit = EXCLUDED.quota_limit, expires_at = EXCLUDED.expires_at",
        &[UUID, TEXT, INT8, TIMESTAMPTZ],
    );
    let set = || {
        let id = id_of(tenant)?;
        living_status(id)?;
        registry::accept_invalidations();
        let resource = registry::resource(resource.ok_or(Error::Null("the resource"))?)?;
        let limit = checked_limit(quota_limit, unlimited)?;
        let arguments =
            [datum(id), (&*resource.name).into_datum(), limit.into_datum(), expires_at.into_datum()];
        as_owner(|| UPSERT.execute(&arguments))
    };
    or_raise(set());
}

#[pg_extern(sql = false)]
fn tenant_quota_unset(tenant: Option<Uuid>, resource: Option<&str>) {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.overrides AS o \
          WHERE o.tenant_id OPERATOR(pg_catalog.=) $1 AND o.resource OPERATOR(pg_catalog.=) $2",
        &[UUID, TEXT],
    );
    let unset = || {
        let id = id_of(tenant)?;
        living_status(id)?;
        registry::accept_invalidations();
        let resource = registry::resource(resource.ok_or(Error::Null("the resource"))?)?;
        as_owner(|| DELETE.execute(&[datum(id), (&*resource.name).into_datum()]))
    };
    or_raise(unset());
}

/// Whether rows come from a dump that the owner of our tables loads. pg_dump sets both; an operator reaches
/// the tables through functions only, which have taken the owner's rights by then, and the owner could
/// disable the triggers as well.
#[pg_extern(sql = false)]
pub fn is_restoring() -> bool {
    // SAFETY: reads settings and the backend's user; the security context tells whether a function of ours
    // has lent its rights.
    unsafe {
        let (mut user, mut context) = (pg_sys::InvalidOid, 0);
        pg_sys::GetUserIdAndSecContext(&mut user, &mut context);
        !pg_sys::check_function_bodies
            && !pg_sys::row_security
            && pg_sys::superuser_arg(registry::acting_role())
    }
}
