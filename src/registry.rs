//! Tenants, plans, limits and grants, as this backend knows them.
//!
//! # Always current
//!
//! Every table of the registry has a trigger that sends a relcache invalidation of the table when its
//! transaction commits. Each backend counts the invalidations it receives; what it knows is valid while the
//! count is the one it was learned at. The count is read before a lookup, so an invalidation that arrives
//! during the lookup is not lost. Nothing polls, and the steady state reads no table.
//!
//! A backend processes invalidations when it takes a new lock, which a session in mid-transaction may not do
//! for hours; so every statement that depends on the registry calls [`accept_invalidations`] once.

pub mod admin;
pub mod scan;

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::prelude::*;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::quota::decision::{Enforcement, Limit};
use crate::quota::period::{self, Billing, Change, Period, Window};
use crate::tenant::{Status, TenantId};
use scan::{Key, scan};

/// The tables of the extension in this database.
#[derive(Clone, Copy)]
struct Catalog {
    tenants: pg_sys::Oid,
    tenants_pkey: pg_sys::Oid,
    tenants_key: pg_sys::Oid,
    resources: pg_sys::Oid,
    plan_limits: pg_sys::Oid,
    plan_limits_pkey: pg_sys::Oid,
    overrides: pg_sys::Oid,
    overrides_pkey: pg_sys::Oid,
    billing_changes: pg_sys::Oid,
    billing_changes_pkey: pg_sys::Oid,
    grants: pg_sys::Oid,
    grants_tenant: pg_sys::Oid,
    operators: pg_sys::Oid,
    attachments: pg_sys::Oid,
    protected_tables: pg_sys::Oid,
    usage: pg_sys::Oid,
    usage_pkey: pg_sys::Oid,
    owner: pg_sys::Oid,
    extension_schema: pg_sys::Oid,
}

/// A tenant, as far as every call needs it.
pub struct Tenant {
    /// The uuid.
    pub id: TenantId,
    /// The bigint key, for tables that name tenants with numbers.
    pub key: Option<i64>,
    /// The plan.
    pub plan: Rc<str>,
    /// The status.
    pub status: Status,
    /// Why it is suspended, if it is and somebody said so.
    pub reason: Option<String>,
    /// When it was registered, in microseconds since 2000-01-01: tells a tenant from its successor of the same id.
    pub created_at: i64,
    billing: Box<[Change]>,
    quotas: RefCell<Vec<Rc<Quota>>>,
}

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
}

struct PlanLimit {
    limit: Limit,
    enforcement: Enforcement,
}

/// A limit of one tenant, with where it comes from.
pub struct Quota {
    /// The resource.
    pub resource: Rc<Resource>,
    /// Hard, soft or shadow.
    pub enforcement: Enforcement,
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
}

/// What a role may do.
#[derive(Clone, Copy, Default)]
pub struct Rights {
    /// Superuser or BYPASSRLS: policies do not hold for it.
    pub bypasses: bool,
    /// May act for every tenant.
    pub every: bool,
    /// May run the registry.
    pub operator: bool,
    /// Sees the usage of all tenants.
    pub sees_all: bool,
}

/// How a role may act for one tenant.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Grant {
    None,
    Ticket,
    Free,
}

type PlanLimits = HashMap<Rc<str>, PlanLimit>;

#[derive(Default)]
struct Cache {
    valid_at: u64,
    tenants: HashMap<TenantId, Option<Rc<Tenant>>>,
    keys: HashMap<i64, Option<TenantId>>,
    plans: HashMap<Rc<str>, Rc<PlanLimits>>,
    resources: Option<Rc<HashMap<Rc<str>, Rc<Resource>>>>,
    rights: HashMap<pg_sys::Oid, Rights>,
    grants: HashMap<(pg_sys::Oid, TenantId), Grant>,
}

/// Tenants that a backend remembers. A backend that serves more forgets all of them: 4096 entries are below
/// two megabytes, and looking one up again takes microseconds.
const MOST_TENANTS: usize = 4096;

static GENERATION: Backend<Cell<u64>> = Backend::new(Cell::new(1));
static TABLES_GENERATION: Backend<Cell<u64>> = Backend::new(Cell::new(1));
static CATALOG: Backend<Cell<Option<Catalog>>> = Backend::new(Cell::new(None));
static CATALOG_VALID: Backend<Cell<bool>> = Backend::new(Cell::new(false));
static CACHE: Backend<RefCell<Option<Cache>>> = Backend::new(RefCell::new(None));
static PROTECTED: Backend<RefCell<(u64, Option<HashSet<pg_sys::Oid>>)>> =
    Backend::new(RefCell::new((0, None)));

/// Registers the invalidation callbacks. Called once, when the library is loaded.
pub fn init() {
    // SAFETY: the callbacks are functions of this library, which is never unloaded. Registration allocates
    // nothing and is allowed in the postmaster.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::null());
        for cache in [pg_sys::SysCacheIdentifier::AUTHOID, pg_sys::SysCacheIdentifier::AUTHMEMMEMROLE] {
            pg_sys::CacheRegisterSyscacheCallback(cache as i32, Some(roles_changed), pg_sys::Datum::null());
        }
    }
}

// Callbacks run while invalidations are processed, also in an aborted transaction: they count, and no more.
unsafe extern "C-unwind" fn relation_changed(_arg: pg_sys::Datum, relation: pg_sys::Oid) {
    let Some(catalog) = CATALOG.get() else {
        bump();
        return;
    };
    if relation == pg_sys::InvalidOid {
        bump();
    } else if relation == catalog.protected_tables {
        TABLES_GENERATION.set(TABLES_GENERATION.get() + 1);
        CATALOG_VALID.set(false);
    } else if [
        catalog.tenants,
        catalog.resources,
        catalog.plan_limits,
        catalog.overrides,
        catalog.billing_changes,
        catalog.grants,
        catalog.operators,
        catalog.attachments,
    ]
    .contains(&relation)
    {
        GENERATION.set(GENERATION.get() + 1);
        CATALOG_VALID.set(false);
    }
}

unsafe extern "C-unwind" fn roles_changed(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    GENERATION.set(GENERATION.get() + 1);
}

fn bump() {
    GENERATION.set(GENERATION.get() + 1);
    TABLES_GENERATION.set(TABLES_GENERATION.get() + 1);
    CATALOG_VALID.set(false);
}

/// Counts the changes of the registry that this backend has heard of.
pub fn generation() -> u64 {
    GENERATION.get()
}

/// Hears of what other sessions have committed. Once per statement is enough, and costs a comparison when
/// there is nothing to hear.
#[inline]
pub fn accept_invalidations() {
    // The guarded declaration of pgrx costs more than the call. Nothing here needs dropping.
    unsafe extern "C-unwind" {
        fn AcceptInvalidationMessages();
    }
    // SAFETY: allowed wherever a lock could be taken, which holds for every function and hook of ours.
    unsafe { AcceptInvalidationMessages() }
}

/// The outer role: SET ROLE is followed, a SECURITY DEFINER function is not.
#[inline]
pub fn acting_role() -> pg_sys::Oid {
    // SAFETY: reads a variable of the backend.
    unsafe { pg_sys::GetOuterUserId() }
}

/// Whether the extension is installed in this database.
pub fn installed() -> bool {
    catalog().is_some()
}

/// The role that owns our tables.
pub fn owner() -> Result<pg_sys::Oid> {
    catalog().map(|c| c.owner).ok_or(Error::NotInstalled)
}

/// The schema of the functions that applications call.
pub fn extension_schema() -> Result<String> {
    let schema = catalog().ok_or(Error::NotInstalled)?.extension_schema;
    // SAFETY: returns a string of the current memory context, or null when the schema is gone.
    let name = unsafe { pg_sys::get_namespace_name(schema) };
    if name.is_null() {
        return Err(Error::NotInstalled);
    }
    // SAFETY: a schema name is a C string in the database's encoding, copied here.
    Ok(unsafe { std::ffi::CStr::from_ptr(name) }.to_string_lossy().into_owned())
}

fn catalog() -> Option<Catalog> {
    if CATALOG_VALID.get() {
        return CATALOG.get();
    }
    let found = find_catalog();
    CATALOG.set(found);
    // Without the extension there is nothing whose invalidation would tell that it has come.
    CATALOG_VALID.set(found.is_some());
    found
}

fn find_catalog() -> Option<Catalog> {
    use scan::relation;
    // SAFETY: syscache lookups of names that are C strings; the transaction state was checked by the caller
    // or is given by being in a function.
    unsafe {
        let schema = pg_sys::get_namespace_oid(c"tenant_rls".as_ptr(), true);
        if schema == pg_sys::InvalidOid {
            return None;
        }
        let tenants = relation("tenants", schema);
        if tenants == pg_sys::InvalidOid {
            return None;
        }
        // Anybody who may create schemas could make one of this name: the tables count only as members.
        let extension = pg_sys::get_extension_oid(c"tenant_rls".as_ptr(), true);
        if extension == pg_sys::InvalidOid
            || pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, tenants) != extension
        {
            return None;
        }
        let (owner, extension_schema) = extension_row(extension)?;
        let catalog = Catalog {
            tenants,
            tenants_pkey: relation("tenants_pkey", schema),
            tenants_key: relation("tenants_tenant_key_key", schema),
            resources: relation("resources", schema),
            plan_limits: relation("plan_limits", schema),
            plan_limits_pkey: relation("plan_limits_pkey", schema),
            overrides: relation("overrides", schema),
            overrides_pkey: relation("overrides_pkey", schema),
            billing_changes: relation("billing_changes", schema),
            billing_changes_pkey: relation("billing_changes_pkey", schema),
            grants: relation("grants", schema),
            grants_tenant: relation("grants_tenant_idx", schema),
            operators: relation("operators", schema),
            attachments: relation("attachments", schema),
            protected_tables: relation("protected_tables", schema),
            usage: relation("usage", schema),
            usage_pkey: relation("usage_pkey", schema),
            owner,
            extension_schema,
        };
        // While CREATE EXTENSION is still at work, the later tables do not exist.
        (catalog.attachments != pg_sys::InvalidOid).then_some(catalog)
    }
}

/// Owner and schema of the extension, from `pg_extension` (oid, extname, extowner, extnamespace).
fn extension_row(extension: pg_sys::Oid) -> Option<(pg_sys::Oid, pg_sys::Oid)> {
    let mut found = None;
    // There is no scan key for oid columns: the table has a handful of rows.
    scan(pg_sys::ExtensionRelationId, pg_sys::InvalidOid, &[], |row| {
        if row.get::<pg_sys::Oid>(1) == Some(extension) {
            found = row.get::<pg_sys::Oid>(3).zip(row.get::<pg_sys::Oid>(4));
        }
    });
    found
}

/// Runs `with` on the cache after dropping what is no longer valid.
fn with_cache<T>(with: impl FnOnce(&mut Cache) -> T) -> T {
    let mut slot = CACHE.borrow_mut();
    let cache = slot.get_or_insert_with(Cache::default);
    let generation = generation();
    if cache.valid_at != generation || cache.tenants.len() >= MOST_TENANTS || cache.keys.len() >= MOST_TENANTS
    {
        *cache = Cache { valid_at: generation, ..Cache::default() };
    }
    with(cache)
}

/// A value from the cache, or looked up and kept. `lookup` runs while nothing is borrowed: it may process
/// invalidations, and what it found is then not kept.
fn cached<T: Clone>(
    get: impl FnOnce(&Cache) -> Option<T>,
    lookup: impl FnOnce() -> Result<T>,
    keep: impl FnOnce(&mut Cache, T),
) -> Result<T> {
    if let Some(known) = with_cache(|cache| get(cache)) {
        return Ok(known);
    }
    let before = generation();
    let value = lookup()?;
    with_cache(|cache| {
        if cache.valid_at == before {
            keep(cache, value.clone());
        }
    });
    Ok(value)
}

/// The tenant of this id, or `None`.
pub fn tenant(id: TenantId) -> Result<Option<Rc<Tenant>>> {
    cached(
        |cache| cache.tenants.get(&id).cloned(),
        || find_tenant(id),
        |cache, tenant| {
            cache.tenants.insert(id, tenant);
        },
    )
}

fn find_tenant(id: TenantId) -> Result<Option<Rc<Tenant>>> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut found = None;
    scan(catalog.tenants, catalog.tenants_pkey, &[Key::Uuid(scan::tenants::TENANT_ID, id)], |row| {
        let text = |column| row.get::<String>(column);
        let billed =
            row.instant(scan::tenants::BILLING_ANCHOR).is_some() || text(scan::tenants::TIME_ZONE).is_some();
        found = Some((
            Tenant {
                id,
                key: row.get(scan::tenants::TENANT_KEY),
                plan: text(scan::tenants::PLAN).unwrap_or_default().into(),
                // A status that this library does not know comes from a newer one: closed, not open.
                status: text(scan::tenants::STATUS)
                    .and_then(|s| Status::parse(&s))
                    .unwrap_or(Status::Suspended),
                reason: text(scan::tenants::STATUS_REASON),
                created_at: row.instant(scan::tenants::CREATED_AT).unwrap_or_default(),
                billing: Box::default(),
                quotas: RefCell::default(),
            },
            billed,
        ));
    });
    let Some((mut tenant, billed)) = found else { return Ok(None) };
    if billed {
        tenant.billing = find_billing(&catalog, id);
    }
    Ok(Some(Rc::new(tenant)))
}

fn find_billing(catalog: &Catalog, id: TenantId) -> Box<[Change]> {
    let mut changes = Vec::new();
    let key = [Key::Uuid(scan::billing_changes::TENANT_ID, id)];
    scan(catalog.billing_changes, catalog.billing_changes_pkey, &key, |row| {
        changes.push(Change {
            at: row
                .instant(scan::billing_changes::CHANGED_AT)
                .map_or(period::NEG_INFINITY, period::from_postgres),
            billing: Billing {
                anchor: row.instant(scan::billing_changes::BILLING_ANCHOR).map(period::from_postgres),
                zone: row
                    .get::<String>(scan::billing_changes::TIME_ZONE)
                    .and_then(|name| period::parse_zone(&name).ok()),
            },
        });
    });
    changes.sort_by_key(|change| change.at);
    changes.into()
}

/// The id of the tenant with this key, or `None`.
pub fn tenant_of_key(key: i64) -> Result<Option<TenantId>> {
    cached(
        |cache| cache.keys.get(&key).copied(),
        || {
            let catalog = catalog().ok_or(Error::NotInstalled)?;
            let mut found = None;
            scan(catalog.tenants, catalog.tenants_key, &[Key::Int8(scan::tenants::TENANT_KEY, key)], |row| {
                found = row.tenant(scan::tenants::TENANT_ID);
            });
            Ok(found)
        },
        |cache, id| {
            cache.keys.insert(key, id);
        },
    )
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
    rights.every =
        rights.bypasses || grant_of(&catalog, role, &Key::Null(scan::grants::TENANT_ID)) != Grant::None;
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
    if rights(role)?.every {
        return Ok(Grant::Free);
    }
    cached(
        |cache| cache.grants.get(&(role, id)).copied(),
        || {
            let catalog = catalog().ok_or(Error::NotInstalled)?;
            Ok(grant_of(&catalog, role, &Key::Uuid(scan::grants::TENANT_ID, id)))
        },
        |cache, grant| {
            if cache.grants.len() >= MOST_TENANTS {
                cache.grants.clear();
            }
            cache.grants.insert((role, id), grant);
        },
    )
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
pub fn admit(role: pg_sys::Oid, id: TenantId) -> Result<Rc<Tenant>> {
    match grant(role, id)? {
        Grant::None => return Err(Error::NotGranted { role: role_name(role) }),
        Grant::Ticket => return Err(Error::TicketRequired { role: role_name(role) }),
        Grant::Free => {}
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
                let attached = attached.contains(&name);
                let name: Rc<str> = name.into();
                let period = period.unwrap_or(Period::None);
                all.insert(name.clone(), Rc::new(Resource { name, kind, period, attached }));
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
    let (plan_limit, enforcement) = match (limits.get(name), own) {
        (Some(limit), _) => (limit.limit, limit.enforcement),
        // Without a row of the plan the tenant's own limit must not end in "unlimited" when it expires.
        (None, Some(_)) => (Some(0), Enforcement::Hard),
        (None, None) => return Err(Error::NoLimit { plan: tenant.plan.to_string(), resource: name.into() }),
    };
    let quota = Rc::new(Quota { resource, enforcement, plan_limit, own, window: Cell::new(EMPTY) });
    tenant.quotas.borrow_mut().push(quota.clone());
    Ok(quota)
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

/// The committed units of a tenant and resource in the period that starts then (microseconds since
/// 2000-01-01), this transaction's own included; `None` before the first.
pub fn used(id: TenantId, resource: &str, period_start: i64) -> Result<Option<i64>> {
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut used = None;
    let keys = [
        Key::Uuid(scan::usage::TENANT_ID, id),
        Key::Text(scan::usage::RESOURCE, resource),
        Key::Instant(scan::usage::PERIOD_START, period_start),
    ];
    scan(catalog.usage, catalog.usage_pkey, &keys, |row| used = row.get::<i64>(scan::usage::USED));
    Ok(used)
}

/// Whether the relation is a protected table, partition or child.
pub fn is_protected(relation: pg_sys::Oid) -> bool {
    let generation = TABLES_GENERATION.get();
    {
        let known = PROTECTED.borrow();
        if let (valid_at, Some(set)) = &*known
            && *valid_at == generation
        {
            return set.contains(&relation);
        }
    }
    let Some(catalog) = catalog() else { return false };
    let mut set = HashSet::new();
    scan(catalog.protected_tables, pg_sys::InvalidOid, &[], |row| {
        set.extend(row.get::<pg_sys::Oid>(scan::protected_tables::RELATION));
    });
    let answer = set.contains(&relation);
    *PROTECTED.borrow_mut() = (generation, Some(set));
    answer
}

/// Trigger on every table of the registry: tells all backends, when the transaction commits, that what they
/// know of the table is old.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn registry_changed(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the server calls triggers with a TriggerData as context; anything else is refused.
    unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
            Error::NotPermitted { what: "this function is a trigger".into(), hint: "" }.raise();
        }
        let data = context.cast::<pg_sys::TriggerData>();
        pg_sys::CacheInvalidateRelcache((*data).tg_relation);
    }
    pg_sys::Datum::null()
}

/// Version record of [`registry_changed`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_registry_changed() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}

/// What the server asks every C function for: its calling convention.
pub static FUNCTION_INFO: pg_sys::Pg_finfo_record = pg_sys::Pg_finfo_record { api_version: 1 };
