//! Our tables in this database, and what this backend hears of their changes.

use std::cell::{Cell, RefCell};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::scan::{relation, scan};
use super::tables;
use crate::backend::Backend;
use crate::error::{Error, Result};

/// The tables of the extension in this database.
#[derive(Clone, Copy)]
pub(crate) struct Catalog {
    pub(super) tenants: pg_sys::Oid,
    pub(super) tenants_pkey: pg_sys::Oid,
    pub(super) tenants_key: pg_sys::Oid,
    pub(super) resources: pg_sys::Oid,
    pub(super) plan_limits: pg_sys::Oid,
    pub(super) plan_limits_pkey: pg_sys::Oid,
    pub(super) overrides: pg_sys::Oid,
    pub(super) overrides_pkey: pg_sys::Oid,
    pub(super) billing_changes: pg_sys::Oid,
    pub(super) billing_changes_pkey: pg_sys::Oid,
    pub(super) grants: pg_sys::Oid,
    pub(super) grants_tenant: pg_sys::Oid,
    pub(super) operators: pg_sys::Oid,
    pub(super) signing_keys: pg_sys::Oid,
    pub(super) signing_keys_pkey: pg_sys::Oid,
    pub(super) attachments: pg_sys::Oid,
    pub(super) features: pg_sys::Oid,
    pub(super) feature_values: pg_sys::Oid,
    pub(super) feature_values_tenant: pg_sys::Oid,
    pub(super) settings: pg_sys::Oid,
    pub(super) deployments: pg_sys::Oid,
    pub(super) deployment_routes: pg_sys::Oid,
    pub(super) deployment_routes_tenant: pg_sys::Oid,
    pub(super) releases: pg_sys::Oid,
    pub(super) release_targets: pg_sys::Oid,
    pub(super) release_targets_tenant: pg_sys::Oid,
    pub(super) cache: pg_sys::Oid,
    pub(super) cache_pkey: pg_sys::Oid,
    pub(super) cache_age: pg_sys::Oid,
    pub(super) cache_expiry: pg_sys::Oid,
    pub(super) cache_parts: pg_sys::Oid,
    pub(super) cache_parts_pkey: pg_sys::Oid,
    pub(super) protected_tables: pg_sys::Oid,
    pub(super) usage: pg_sys::Oid,
    pub(super) usage_pkey: pg_sys::Oid,
    pub(super) ledger: pg_sys::Oid,
    pub(super) leases: pg_sys::Oid,
    pub(super) reservations: pg_sys::Oid,
    pub(super) reservations_held: pg_sys::Oid,
    pub(super) owner: pg_sys::Oid,
    pub(super) extension_schema: pg_sys::Oid,
}

impl Catalog {
    /// Whether tables that this library knows are not there: an older SQL version has fewer.
    fn is_partial(&self) -> bool {
        self.release_targets_tenant == pg_sys::InvalidOid || self.cache_parts_pkey == pg_sys::InvalidOid
    }
}

static GENERATION: Backend<Cell<u64>> = Backend::new(Cell::new(1));

static DEFINITIONS_GENERATION: Backend<Cell<u64>> = Backend::new(Cell::new(1));

static ROLES_GENERATION: Backend<Cell<u64>> = Backend::new(Cell::new(1));

static BYPASSED: Backend<RefCell<Vec<pg_sys::Oid>>> = Backend::new(RefCell::new(Vec::new()));

/// The hash that invalidations call this database by.
static DATABASE: Backend<Cell<Option<u32>>> = Backend::new(Cell::new(None));

static CATALOG: Backend<Cell<Option<Catalog>>> = Backend::new(Cell::new(None));

static CATALOG_VALID: Backend<Cell<bool>> = Backend::new(Cell::new(false));

/// Registers the invalidation callbacks. Called once, when the library is loaded.
pub fn init() {
    // SAFETY: the callbacks are functions of this library, which is never unloaded. Registration allocates
    // nothing and is allowed in the postmaster.
    unsafe {
        pg_sys::CacheRegisterRelcacheCallback(Some(relation_changed), pg_sys::Datum::null());
        for cache in [
            pg_sys::SysCacheIdentifier::AUTHOID,
            pg_sys::SysCacheIdentifier::AUTHMEMMEMROLE,
            pg_sys::SysCacheIdentifier::DATABASEOID,
        ] {
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
        tables::forget();
        CATALOG_VALID.set(false);
    } else if [
        catalog.tenants,
        catalog.resources,
        catalog.plan_limits,
        catalog.overrides,
        catalog.billing_changes,
        catalog.grants,
        catalog.operators,
        catalog.signing_keys,
        catalog.attachments,
    ]
    .contains(&relation)
    {
        GENERATION.set(GENERATION.get() + 1);
        CATALOG_VALID.set(false);
    } else if [
        catalog.features,
        catalog.feature_values,
        catalog.settings,
        catalog.deployments,
        catalog.deployment_routes,
        catalog.releases,
        catalog.release_targets,
    ]
    .contains(&relation)
    {
        // What is defined for everybody, and what tenants have of their own.
        DEFINITIONS_GENERATION.set(DEFINITIONS_GENERATION.get() + 1);
        GENERATION.set(GENERATION.get() + 1);
        CATALOG_VALID.set(false);
    } else {
        tables::forget_policies(relation);
        // While the extension is being installed or updated its tables come one by one.
        if catalog.is_partial() {
            CATALOG_VALID.set(false);
        }
    }
}

unsafe extern "C-unwind" fn roles_changed(_arg: pg_sys::Datum, cache: i32, hash: u32) {
    // The owner of this database is a member of pg_database_owner; those of others are no matter.
    let is_database = cache == pg_sys::SysCacheIdentifier::DATABASEOID as i32;
    if is_database && hash != 0 && DATABASE.get().is_some_and(|own| own != hash) {
        return;
    }
    GENERATION.set(GENERATION.get() + 1);
    ROLES_GENERATION.set(ROLES_GENERATION.get() + 1);
    if !BYPASSED.borrow().is_empty() {
        // The server keeps a plan without policies when the role that it was made for becomes subject to them.
        // SAFETY: what the server itself does from such callbacks.
        unsafe { pg_sys::ResetPlanCache() };
    }
}

/// Counts the changes of roles and memberships that this backend has heard of.
pub fn roles_generation() -> u64 {
    ROLES_GENERATION.get()
}

/// Notes that plans may exist in which the role reads a protected table past its policies.
pub fn remember_bypass(role: pg_sys::Oid) {
    let mut roles = BYPASSED.borrow_mut();
    if !roles.contains(&role) {
        roles.push(role);
    }
}

/// Whether such plans may exist.
pub fn has_bypassed(role: pg_sys::Oid) -> bool {
    BYPASSED.borrow().contains(&role)
}

fn bump() {
    GENERATION.set(GENERATION.get() + 1);
    DEFINITIONS_GENERATION.set(DEFINITIONS_GENERATION.get() + 1);
    tables::forget();
    CATALOG_VALID.set(false);
}

/// Counts the changes of the registry that this backend has heard of.
pub fn generation() -> u64 {
    GENERATION.get()
}

/// Counts the changes of features, settings and deployments that this backend has heard of. Tenants come and go more
/// often than these change.
pub fn definitions_generation() -> u64 {
    DEFINITIONS_GENERATION.get()
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
///
/// Nobody (`InvalidOid`, which has no rights) in a security-restricted operation: there runs the code of a table's
/// owner, in the session of whoever has made the server or us look at the table.
#[inline]
pub fn acting_role() -> pg_sys::Oid {
    // As above: every statement on a protected table asks.
    unsafe extern "C-unwind" {
        fn GetOuterUserId() -> pg_sys::Oid;
    }
    if in_restricted_operation() {
        return pg_sys::InvalidOid;
    }
    // SAFETY: reads a variable of the backend, and raises nothing.
    unsafe { GetOuterUserId() }
}

/// Whether code of a table's owner runs in the session of somebody else, perhaps: while an index is built, a table
/// analyzed, a materialized view refreshed, and wherever we read or change a table as its owner.
#[inline]
pub fn in_restricted_operation() -> bool {
    unsafe extern "C-unwind" {
        fn InSecurityRestrictedOperation() -> bool;
    }
    // SAFETY: as in `acting_role`.
    unsafe { InSecurityRestrictedOperation() }
}

/// The role whose rights hold now, also inside a SECURITY DEFINER function.
#[inline]
pub fn current_role() -> pg_sys::Oid {
    unsafe extern "C-unwind" {
        fn GetUserId() -> pg_sys::Oid;
    }
    // SAFETY: as in `acting_role`.
    unsafe { GetUserId() }
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

pub(super) fn catalog() -> Option<Catalog> {
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
    // SAFETY: syscache lookups of names that are C strings; the transaction state was checked by the caller
    // or is given by being in a function.
    unsafe {
        if DATABASE.get().is_none() {
            let (own, none) = (pg_sys::Datum::from(pg_sys::MyDatabaseId), pg_sys::Datum::null());
            let cache = pg_sys::SysCacheIdentifier::DATABASEOID as i32;
            DATABASE.set(Some(pg_sys::GetSysCacheHashValue(cache, own, none, none, none)));
        }
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
            signing_keys: relation("signing_keys", schema),
            signing_keys_pkey: relation("signing_keys_pkey", schema),
            attachments: relation("attachments", schema),
            features: relation("features", schema),
            feature_values: relation("feature_values", schema),
            feature_values_tenant: relation("feature_values_tenant_idx", schema),
            settings: relation("settings", schema),
            deployments: relation("deployments", schema),
            deployment_routes: relation("deployment_routes", schema),
            deployment_routes_tenant: relation("deployment_routes_tenant_idx", schema),
            releases: relation("releases", schema),
            release_targets: relation("release_targets", schema),
            release_targets_tenant: relation("release_targets_tenant_idx", schema),
            cache: relation("cache", schema),
            cache_pkey: relation("cache_pkey", schema),
            cache_age: relation("cache_age_idx", schema),
            cache_expiry: relation("cache_expiry_idx", schema),
            cache_parts: relation("cache_parts", schema),
            cache_parts_pkey: relation("cache_parts_pkey", schema),
            protected_tables: relation("protected_tables", schema),
            usage: relation("usage", schema),
            usage_pkey: relation("usage_pkey", schema),
            ledger: relation("ledger", schema),
            leases: relation("leases", schema),
            reservations: relation("reservations", schema),
            reservations_held: relation("reservations_held_idx", schema),
            owner,
            extension_schema,
        };
        // While CREATE EXTENSION is still at work, the later tables do not exist.
        (catalog.attachments != pg_sys::InvalidOid).then_some(catalog)
    }
}

/// A table of ours that is asked for too rarely to be kept; `InvalidOid` where the SQL version does not have it.
pub fn table(name: &str) -> pg_sys::Oid {
    if !installed() {
        return pg_sys::InvalidOid;
    }
    // SAFETY: a syscache lookup of a name that is a C string.
    relation(name, unsafe { pg_sys::get_namespace_oid(c"tenant_rls".as_ptr(), true) })
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
