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
//!
//! # Layout
//!
//! This file has the tenants and the cache; `catalog` the tables and the invalidations, `rights` who may do
//! what, `keys` what tickets are signed with, `limits` resources and quotas, `units` what is used and held, `tables` what
//! is protected, `features`, `settings` and `deployments` what is defined of them for everybody, `own` what one tenant
//! has of them, `cache` the rows of tenants' caches; `scan` reads rows, `admin` is the SQL functions, `target` whom a
//! value is meant for.

pub mod admin;
pub mod cache;
pub mod catalog;
pub mod deployments;
pub mod features;
pub mod keys;
pub mod limits;
pub mod own;
pub mod rights;
pub mod scan;
pub mod settings;
pub mod tables;
pub mod target;
pub mod units;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys;

use crate::backend::Backend;
use crate::error::{Error, Result};
use crate::quota::period::{self, Billing, Change};
use crate::tenant::{Status, TenantId};
pub(crate) use catalog::Catalog;
use catalog::catalog;
pub use catalog::{
    FUNCTION_INFO, accept_invalidations, acting_role, current_role, definitions_generation, extension_schema,
    generation, in_restricted_operation, installed, owner, roles_generation,
};
use limits::PlanLimits;
pub use limits::{Kind, ModeName, Quota, Resource, Source, limited_resources, no_quota, quota, resource};
pub use own::{Own, own};
use rights::Grant;
pub use rights::{Rights, Ways, admit, may_act, rights, role_name};
use scan::{Key, scan};
pub use tables::{any_protected, is_protected, known_protected, policies_hold};
pub use units::Holds;

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
    own: RefCell<Option<Rc<Own>>>,
}

#[derive(Default)]
struct Cache {
    valid_at: u64,
    /// Bytes that tenants have of their own in this cache.
    own_bytes: usize,
    tenants: HashMap<TenantId, Option<Rc<Tenant>>>,
    keys: HashMap<i64, Option<TenantId>>,
    plans: HashMap<Rc<str>, Rc<PlanLimits>>,
    resources: Option<Rc<HashMap<Rc<str>, Rc<Resource>>>>,
    rights: HashMap<pg_sys::Oid, Rights>,
    grants: HashMap<(pg_sys::Oid, TenantId), Grant>,
}

impl Cache {
    /// Forgets everything, and keeps the memory for what comes next.
    fn forget(&mut self) {
        self.tenants.clear();
        self.own_bytes = 0;
        self.keys.clear();
        self.plans.clear();
        self.resources = None;
        self.rights.clear();
        self.grants.clear();
    }
}

/// Makes room in a map that has as many tenants as a backend remembers.
fn make_room<K, V>(map: &mut HashMap<K, V>) {
    if map.len() >= MOST_TENANTS {
        map.clear();
    }
}

/// Tenants that a backend remembers. A backend that serves more forgets all of them: 4096 entries are below
/// two megabytes, and looking one up again takes microseconds.
const MOST_TENANTS: usize = 4096;

/// Bytes of what tenants have of their own (settings, values of features) that a backend remembers before it forgets its
/// tenants.
const MOST_OWN_BYTES: usize = 2 << 20;

static CACHE: Backend<RefCell<Option<Cache>>> = Backend::new(RefCell::new(None));

/// Runs `with` on the cache after dropping what is no longer valid.
fn with_cache<T>(with: impl FnOnce(&mut Cache) -> T) -> T {
    let mut slot = CACHE.borrow_mut();
    let cache = slot.get_or_insert_with(Cache::default);
    let generation = generation();
    if cache.valid_at != generation {
        cache.forget();
        cache.valid_at = generation;
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

/// Something of which there is one, known until something that defines it has changed.
pub(crate) struct Kept<T>(Backend<RefCell<Option<Known<T>>>>);

/// A generation, and what was found at it.
type Known<T> = (u64, Rc<T>);

impl<T> Kept<T> {
    /// Nothing yet.
    pub(crate) const fn new() -> Kept<T> {
        Kept(Backend::new(RefCell::new(None)))
    }

    /// What is known, else what `lookup` finds, which runs while nothing is borrowed.
    pub(crate) fn get(&self, lookup: impl FnOnce(&Catalog) -> T) -> Result<Rc<T>> {
        if let Some((valid_at, value)) = &*self.0.borrow()
            && *valid_at == definitions_generation()
        {
            return Ok(value.clone());
        }
        let before = definitions_generation();
        let value = Rc::new(lookup(&catalog().ok_or(Error::NotInstalled)?));
        *self.0.borrow_mut() = Some((before, value.clone()));
        Ok(value)
    }
}

/// The tenant of this id, or `None`.
pub fn tenant(id: TenantId) -> Result<Option<Rc<Tenant>>> {
    cached(
        |cache| cache.tenants.get(&id).cloned(),
        || find_tenant(id),
        |cache, tenant| {
            if cache.own_bytes > MOST_OWN_BYTES {
                cache.tenants.clear();
                cache.own_bytes = 0;
            }
            make_room(&mut cache.tenants);
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
                own: RefCell::default(),
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
            make_room(&mut cache.keys);
            cache.keys.insert(key, id);
        },
    )
}
