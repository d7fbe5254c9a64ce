//! Resources, and the limits that tenants have for them.

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use pgrx::pg_sys;

use super::catalog::catalog;
use super::scan::{self, Key, scan};
use super::{Tenant, cache, cached};
use crate::error::{Error, Result};
use crate::quota::decision::{Enforcement, Limit};
use crate::quota::period::{self, Period, Window};
use crate::tenant::TenantId;

/// How the units of a resource come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Used up; starts again with each period.
    Counter,
    /// Taken and given back.
    Gauge,
}

/// What is counted.
pub struct Resource {
    /// The name.
    pub name: Rc<str>,
    /// Counter or gauge.
    pub kind: Kind,
    /// The period of a counter.
    pub period: Period,
    /// Whether the gauge follows the rows of a table.
    pub attached: bool,
    /// Whether it follows their bytes rather than their number.
    pub counts_bytes: bool,
}

/// How units are counted: see `quota::Mode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModeName {
    /// A row that one changes at a time.
    Strict,
    /// An interval in shared memory.
    Escrow,
    /// Chunks that are accounted for ahead.
    Leased,
}

impl ModeName {
    fn parse(text: &str) -> Option<ModeName> {
        match text {
            "strict" => Some(ModeName::Strict),
            "escrow" => Some(ModeName::Escrow),
            "leased" => Some(ModeName::Leased),
            _ => None,
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct PlanLimit {
    limit: Limit,
    enforcement: Enforcement,
    mode: Option<ModeName>,
}

/// A limit of one tenant, with where it comes from.
pub struct Quota {
    /// The resource.
    pub resource: Rc<Resource>,
    /// Hard, soft or shadow.
    pub enforcement: Enforcement,
    /// How units are to be counted, if the plan says so.
    pub mode: Option<ModeName>,
    plan_limit: Limit,
    own: Option<Override>,
    window: Cell<Window>,
}

#[derive(Clone, Copy)]
struct Override {
    limit: Limit,
    expires_at: i64,
}

impl Quota {
    /// The limit in force at `now` (Unix microseconds) and whether it is the tenant's own.
    pub fn limit(&self, now: i64) -> (Limit, Source) {
        match self.own {
            Some(own) if now < own.expires_at => (own.limit, Source::Override),
            _ => (self.plan_limit, Source::Plan),
        }
    }

    /// The period that contains `now` (Unix microseconds).
    pub fn window(&self, tenant: &Tenant, now: i64) -> Window {
        let known = self.window.get();
        if known.contains(now) {
            return known;
        }
        let window = period::effective_window(self.resource.period, &tenant.billing, now);
        self.window.set(window);
        window
    }
}

/// Where a limit comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The tenant's plan.
    Plan,
    /// The tenant's own limit.
    Override,
}

impl Source {
    /// The name that results and views show.
    pub fn as_str(self) -> &'static str {
        match self {
            Source::Plan => "plan",
            Source::Override => "override",
        }
    }

    /// The source that `as_str` writes as `text`.
    pub fn parse(text: &str) -> Option<Source> {
        [Source::Plan, Source::Override].into_iter().find(|source| source.as_str() == text)
    }
}

pub(super) type PlanLimits = HashMap<Rc<str>, PlanLimit>;

fn resources() -> Result<Rc<HashMap<Rc<str>, Rc<Resource>>>> {
    cached(
        |cache| cache.resources.clone(),
        || {
            let catalog = catalog().ok_or(Error::NotInstalled)?;
            let mut attached = HashSet::new();
            scan(catalog.attachments, pg_sys::InvalidOid, &[], |row| {
                attached.extend(row.get::<String>(scan::attachments::RESOURCE));
            });
            let mut all = HashMap::new();
            scan(catalog.resources, pg_sys::InvalidOid, &[], |row| {
                let name = row.get::<String>(scan::resources::RESOURCE).unwrap_or_default();
                let period = row.get::<String>(scan::resources::PERIOD).and_then(|p| Period::parse(&p));
                let kind = match row.get::<String>(scan::resources::KIND).as_deref() {
                    Some("counter") => Kind::Counter,
                    _ => Kind::Gauge,
                };
                // The cache is its own counter.
                let attached = attached.contains(&name) || name == cache::RESOURCE;
                let counts_bytes = row.get::<String>(scan::resources::UNIT).as_deref() == Some("byte");
                let name: Rc<str> = name.into();
                let period = period.unwrap_or(Period::None);
                all.insert(name.clone(), Rc::new(Resource { name, kind, period, attached, counts_bytes }));
            });
            Ok(Rc::new(all))
        },
        |cache, resources| cache.resources = Some(resources),
    )
}

/// The resource of this name.
pub fn resource(name: &str) -> Result<Rc<Resource>> {
    let all = resources()?;
    all.get(name).cloned().ok_or_else(|| {
        let mut known: Vec<String> = all.keys().map(|name| name.to_string()).collect();
        known.sort();
        Error::Unknown {
            what: "resource",
            name: name.into(),
            known,
            hint: "Define it with tenant_resource_define(resource, kind, unit, period).",
        }
    })
}

fn plan_limits(plan: &Rc<str>) -> Result<Rc<PlanLimits>> {
    cached(
        |cache| cache.plans.get(plan).cloned(),
        || {
            let catalog = catalog().ok_or(Error::NotInstalled)?;
            let mut limits = PlanLimits::new();
            let key = [Key::Text(scan::plan_limits::PLAN, plan)];
            scan(catalog.plan_limits, catalog.plan_limits_pkey, &key, |row| {
                let resource = row.get::<String>(scan::plan_limits::RESOURCE).unwrap_or_default();
                let enforcement =
                    row.get::<String>(scan::plan_limits::ENFORCEMENT).and_then(|e| Enforcement::parse(&e));
                let limit = PlanLimit {
                    limit: row.get(scan::plan_limits::QUOTA_LIMIT),
                    enforcement: enforcement.unwrap_or(Enforcement::Hard),
                    mode: row.get::<String>(scan::plan_limits::MODE).and_then(|mode| ModeName::parse(&mode)),
                };
                limits.insert(resource.into(), limit);
            });
            Ok(Rc::new(limits))
        },
        |cache, limits| {
            cache.plans.insert(plan.clone(), limits);
        },
    )
}

/// The limit of a resource for a tenant: its own, else its plan's.
pub fn quota(tenant: &Rc<Tenant>, name: &str) -> Result<Rc<Quota>> {
    // The quotas of a tenant live and die with its cache entry, so they are as valid as it is.
    if let Some(known) = tenant.quotas.borrow().iter().find(|quota| &*quota.resource.name == name) {
        return Ok(known.clone());
    }
    let resource = resource(name)?;
    let limits = plan_limits(&tenant.plan)?;
    let own = find_override(tenant.id, name)?;
    // Without a row of the plan the tenant's own limit must not end in "unlimited" when it expires.
    const NONE: PlanLimit = PlanLimit { limit: Some(0), enforcement: Enforcement::Hard, mode: None };
    let PlanLimit { limit: plan_limit, enforcement, mode } = match (limits.get(name), own) {
        (Some(limit), _) => *limit,
        (None, Some(_)) => NONE,
        (None, None) => return Err(Error::NoLimit { plan: tenant.plan.to_string(), resource: name.into() }),
    };
    // What only SQL by hand can say: a gauge gives back, which a lease cannot.
    let mode = mode.filter(|mode| *mode != ModeName::Leased || resource.kind == Kind::Counter);
    let quota = Rc::new(Quota { resource, enforcement, mode, plan_limit, own, window: Cell::new(EMPTY) });
    tenant.quotas.borrow_mut().push(quota.clone());
    Ok(quota)
}

/// The quota of a resource for a tenant that has no limit for it, which is none.
pub fn no_quota(name: &str) -> Result<Rc<Quota>> {
    let (enforcement, plan_limit, window) = (Enforcement::Hard, Some(0), Cell::new(EMPTY));
    Ok(Rc::new(Quota { resource: resource(name)?, enforcement, mode: None, plan_limit, own: None, window }))
}

/// The resources that a tenant has a limit for, by name.
pub fn limited_resources(tenant: &Tenant) -> Result<Vec<Rc<str>>> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut names: Vec<Rc<str>> = plan_limits(&tenant.plan)?.keys().cloned().collect();
    scan(
        catalog.overrides,
        catalog.overrides_pkey,
        &[Key::Uuid(scan::overrides::TENANT_ID, tenant.id)],
        |row| {
            names.extend(row.get::<String>(scan::overrides::RESOURCE).map(Rc::from));
        },
    );
    names.sort();
    names.dedup();
    Ok(names)
}

/// Contains no instant: the first use computes the window.
const EMPTY: Window = Window { start: 0, end: 0 };

fn find_override(id: TenantId, resource: &str) -> Result<Option<Override>> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut found = None;
    let keys = [Key::Uuid(scan::overrides::TENANT_ID, id), Key::Text(scan::overrides::RESOURCE, resource)];
    scan(catalog.overrides, catalog.overrides_pkey, &keys, |row| {
        found = Some(Override {
            limit: row.get(scan::overrides::QUOTA_LIMIT),
            expires_at: row.instant(scan::overrides::EXPIRES_AT).map_or(i64::MAX, period::from_postgres),
        });
    });
    Ok(found)
}
