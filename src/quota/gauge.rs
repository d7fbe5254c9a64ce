//! Gauges that follow the rows of a protected table, or their bytes.
//!
//! Each table of the tree has statement triggers with transition tables: after an INSERT, UPDATE, DELETE, MERGE
//! or COPY they count the rows that came and went, by tenant, and move the gauge in the same transaction. A
//! statement on a partitioned table fires the triggers of that table alone, with the rows of all partitions, so
//! nothing counts twice. TRUNCATE counts before the rows go. Tables that leave the tree or are dropped take
//! their rows along, and a column that comes with a value, goes or changes its type changes the bytes of rows that
//! nobody writes: the gauge is counted again.
//!
//! # Lock protocol
//!
//! Triggers take units as any call does: the tenant, then the key, tenants in the order of their ids. Who attaches, detaches or
//! counts again locks the tables of the gauge against writers, then, to attach, the tables of units against all quota calls, then
//! the row of the resource, and last the keys that it corrects; all until the transaction ends. So a transaction that has used
//! the gauge by hand and then writes to a table that is being attached is a deadlock.

use std::collections::BTreeMap;
use std::rc::Rc;

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};

use super::{Key, escrow, exhausted, mode_of, reservation, tally};
use crate::context::fence;
use crate::error::{Error, Result, or_raise};
use crate::isolation::guard;
use crate::isolation::policy::{qualified, quote_literal};
use crate::isolation::rows::{self, Name, Scope, Size};
use crate::isolation::table::{self, Protected};
use crate::plan::{CachedPlan, Snapshot, as_owner, execute_text, read};
use crate::registry::{self, FUNCTION_INFO, Kind, Resource};
use crate::tenant::TenantId;

/// Events, with what each trigger needs beside them.
const TRIGGERS: [(&str, &str); 4] = [
    ("insert", "AFTER INSERT ON {} REFERENCING NEW TABLE AS new_rows"),
    ("update", "AFTER UPDATE ON {} REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"),
    ("delete", "AFTER DELETE ON {} REFERENCING OLD TABLE AS old_rows"),
    ("truncate", "BEFORE TRUNCATE ON {}"),
];

/// The resource, if it is a gauge.
fn checked_gauge(resource: Option<&str>) -> Result<String> {
    registry::accept_invalidations();
    let resource = registry::resource(resource.ok_or(Error::Null("the resource"))?)?;
    if resource.kind != Kind::Gauge {
        return Err(Error::NotAGauge { resource: resource.name.to_string() });
    }
    Ok(resource.name.to_string())
}

/// Refuses who does not run the registry: to attach a table sets the gauge to the rows of the table, for every
/// tenant, and whoever may create a table owns one.
fn check_operator() -> Result<()> {
    registry::accept_invalidations();
    if registry::rights(registry::acting_role())?.operator {
        return Ok(());
    }
    Err(Error::NotPermitted {
        what: "must be an operator to attach or detach a gauge".into(),
        hint: "A superuser can call tenant_grant_operator(role).",
    })
}

/// The protected root that `target` is, owned by the caller.
fn owned_root(target: Option<pg_sys::Oid>) -> Result<Protected> {
    let target = target.ok_or(Error::Null("the table"))?;
    let table = table::find(target)?;
    table.check_owner()?;
    let protected =
        table::protected(target)?.ok_or(Error::NotProtected { relation: table.display.clone() })?;
    if protected.root != target {
        return Err(Error::NotTheRoot { relation: table.display });
    }
    Ok(protected)
}

#[pg_extern(sql = false)]
fn tenant_quota_attach(target: Option<pg_sys::Oid>, resource: Option<&str>) {
    let attach = || {
        let root = owned_root(target)?;
        check_operator()?;
        if resource == Some(registry::cache::RESOURCE) {
            return Err(Error::WrongState {
                what: "cannot attach a table to gauge \"cache_bytes\"".into(),
                detail: "It follows the entries of the tenant's cache.".into(),
                hint: "Define a gauge of your own with tenant_resource_define.",
            });
        }
        let resource = checked_gauge(resource)?;
        table::lock_tree(root.relation, pg_sys::ShareRowExclusiveLock);
        // Calls by hand that are at work must end before the rows are what counts, and later ones must see it.
        registry::units::lock_usage()?;
        if attached_roots(&resource)?.contains(&root.relation) {
            return Err(Error::Exists {
                what: "attachment",
                name: resource,
                hint: "The gauge follows this table already.",
            });
        }
        reservation::end_all(&resource)?;
        for member in table::tree(root.relation) {
            follow(member, root.relation, &resource)?;
        }
        let behind = lock_and_count(&resource)?;
        for name in behind.strangers.keys() {
            name.known_tenant()?;
        }
        settle(&resource, behind).map(drop)
    };
    or_raise(attach());
}

#[pg_extern(sql = false)]
fn tenant_quota_detach(target: Option<pg_sys::Oid>, resource: Option<&str>) {
    let detach = || {
        let root = owned_root(target)?;
        check_operator()?;
        let resource = resource.ok_or(Error::Null("the resource"))?;
        table::lock_tree(root.relation, pg_sys::ShareRowExclusiveLock);
        if !attached_roots(resource)?.contains(&root.relation) {
            return Err(Error::Unknown {
                what: "attachment",
                name: resource.into(),
                known: Vec::new(),
                hint: "The gauge does not follow this table.",
            });
        }
        for member in members_of(root.relation, resource)? {
            unfollow(member, resource)?;
        }
        reservation::end_all(resource)?;
        count_again(resource).map(drop)
    };
    or_raise(detach());
}

#[pg_extern(sql = false)]
fn tenant_quota_reconcile(target: Option<pg_sys::Oid>) -> i64 {
    let reconcile = || {
        let root = owned_root(target)?;
        let mut wrong = 0;
        for resource in resources_of(root.relation)? {
            wrong += count_again(&resource)?;
        }
        Ok(wrong)
    };
    or_raise(reconcile())
}

/// Gives a table of the tree the triggers, unless another gauge has done so, and notes what it counts for.
fn follow(member: pg_sys::Oid, root: pg_sys::Oid, resource: &str) -> Result<()> {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.attachments (relation, root, resource) VALUES ($1, $2, $3)",
        &[pg_sys::REGCLASSOID, pg_sys::REGCLASSOID, pg_sys::TEXTOID],
    );
    if resources_of(member)?.is_empty() {
        let name = table::find(member)?.qualified;
        let function = qualified(&registry::extension_schema()?, "tenant_gauge_changed");
        for (event, clause) in TRIGGERS {
            execute_text(&format!(
                "CREATE TRIGGER tenant_gauge_{event} {} FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
                clause.replace("{}", &name)
            ));
        }
    }
    as_owner(|| INSERT.execute(&[member.into_datum(), root.into_datum(), resource.into_datum()]))?;
    Ok(())
}

/// Takes back what [`follow`] did.
fn unfollow(member: pg_sys::Oid, resource: &str) -> Result<()> {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.attachments AS a \
          WHERE a.relation OPERATOR(pg_catalog.=) $1 AND a.resource OPERATOR(pg_catalog.=) $2",
        &[pg_sys::REGCLASSOID, pg_sys::TEXTOID],
    );
    as_owner(|| DELETE.execute(&[member.into_datum(), resource.into_datum()]))?;
    if resources_of(member)?.is_empty() {
        let name = table::find(member)?.qualified;
        for (event, _) in TRIGGERS {
            execute_text(&format!("DROP TRIGGER IF EXISTS tenant_gauge_{event} ON {name}"));
        }
    }
    Ok(())
}

/// How a table that a gauge follows names its tenants: as its root does, if it has joined the tree since that was
/// protected.
fn followed(relation: pg_sys::Oid) -> Result<Option<Protected>> {
    static ROOT: CachedPlan = CachedPlan::new(
        c"SELECT a.root::pg_catalog.oid FROM tenant_rls.attachments AS a \
          WHERE a.relation OPERATOR(pg_catalog.=) $1 LIMIT 1",
        &[pg_sys::REGCLASSOID],
    );
    if let Some(protected) = table::protected(relation)? {
        return Ok(Some(protected));
    }
    let root = as_owner(|| ROOT.first(&[relation.into_datum()], |row| row.get::<pg_sys::Oid>(1)))?.flatten();
    let protected = root.map(table::protected).transpose()?.flatten();
    Ok(protected.map(|root| Protected { relation, ..root }))
}

/// The gauges that the rows of a table count for.
fn resources_of(relation: pg_sys::Oid) -> Result<Vec<String>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT a.resource FROM tenant_rls.attachments AS a \
          WHERE a.relation OPERATOR(pg_catalog.=) $1 ORDER BY a.resource",
        &[pg_sys::REGCLASSOID],
    );
    let mut resources = Vec::new();
    as_owner(|| SELECT.run(&[relation.into_datum()], |row| resources.extend(row.get::<String>(1))))?;
    Ok(resources)
}

/// The roots of the tables that feed a gauge, in one order for everybody.
fn attached_roots(resource: &str) -> Result<Vec<pg_sys::Oid>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT a.root::pg_catalog.oid FROM tenant_rls.attachments AS a \
          WHERE a.resource OPERATOR(pg_catalog.=) $1 ORDER BY 1",
        &[pg_sys::TEXTOID],
    );
    let mut roots = Vec::new();
    as_owner(|| SELECT.run(&[resource.into_datum()], |row| roots.extend(row.get::<pg_sys::Oid>(1))))?;
    Ok(roots)
}

/// The tables that count for a gauge as parts of `root`.
fn members_of(root: pg_sys::Oid, resource: &str) -> Result<Vec<pg_sys::Oid>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT a.relation::pg_catalog.oid FROM tenant_rls.attachments AS a \
          WHERE a.root OPERATOR(pg_catalog.=) $1 AND a.resource OPERATOR(pg_catalog.=) $2 ORDER BY 1",
        &[pg_sys::REGCLASSOID, pg_sys::TEXTOID],
    );
    let mut members = Vec::new();
    let arguments = [root.into_datum(), resource.into_datum()];
    as_owner(|| SELECT.run(&arguments, |row| members.extend(row.get::<pg_sys::Oid>(1))))?;
    Ok(members)
}

/// Rows that came and went, by tenant. A row that names nobody must not come, and may go.
fn by_tenant(sizes: BTreeMap<Name, Size>) -> Result<BTreeMap<TenantId, Size>> {
    let mut sums = BTreeMap::new();
    for (name, size) in sizes {
        let tenant = match name.known_tenant() {
            Err(Error::UnknownTenant(_) | Error::UnknownKey(_)) if size.rows <= 0 => continue,
            tenant => tenant?,
        };
        sums.insert(tenant, size);
    }
    Ok(sums)
}

/// What a gauge counts of these rows.
fn units(resource: &Resource, size: Size) -> i64 {
    if resource.counts_bytes { size.bytes } else { size.rows }
}

/// The rows that are in a table or its tree. Their bytes only if asked for: that reads every value.
fn in_tables(
    protected: &Protected,
    scope: Scope,
    snapshot: Snapshot,
    bytes: bool,
) -> Result<BTreeMap<Name, Size>> {
    if bytes {
        return tally::of_tables(protected, scope, snapshot);
    }
    let counts = rows::count(&table::find(protected.relation)?, protected, scope, snapshot)?;
    Ok(counts.into_iter().map(|(name, rows)| (name, Size { rows, bytes: 0 })).collect())
}

/// The units behind a gauge.
#[derive(Default)]
pub struct Behind {
    /// Units of tenants.
    pub tenants: BTreeMap<TenantId, i64>,
    /// Units that name nobody who is registered: they count for no gauge.
    pub strangers: BTreeMap<Name, i64>,
}

/// Units of the rows behind a gauge.
pub fn units_behind(resource: &str, snapshot: Snapshot) -> Result<Behind> {
    let mut behind = Behind::default();
    let gauge = registry::resource(resource)?;
    for root in attached_roots(resource)? {
        let Some(protected) = table::protected(root)? else { continue };
        for (name, size) in in_tables(&protected, Scope::Tree, snapshot, gauge.counts_bytes)? {
            let sum = match name.registered()? {
                Some(tenant) => behind.tenants.entry(tenant).or_insert(0),
                None => behind.strangers.entry(name).or_insert(0),
            };
            *sum += units(&gauge, size);
        }
    }
    Ok(behind)
}

/// Counts the rows behind a gauge, with their tables locked against writers until the end of the transaction.
fn lock_and_count(resource: &str) -> Result<Behind> {
    // Who attaches another table to the same gauge meanwhile waits here, and then counts this one too.
    static LOCK: CachedPlan = CachedPlan::new(
        c"SELECT true FROM tenant_rls.resources AS r WHERE r.resource OPERATOR(pg_catalog.=) $1 FOR NO KEY UPDATE",
        &[pg_sys::TEXTOID],
    );
    as_owner(|| LOCK.execute(&[resource.into_datum()]))?;
    for root in attached_roots(resource)? {
        table::lock_tree(root, pg_sys::ShareRowExclusiveLock);
    }
    registry::accept_invalidations();
    units_behind(resource, Snapshot::Latest)
}

/// Counts the rows behind a gauge and writes what differs. Returns how many values were wrong.
fn count_again(resource: &str) -> Result<i64> {
    settle(resource, lock_and_count(resource)?)
}

/// Writes what differs from the rows that were counted. Returns how many values were wrong.
fn settle(resource: &str, behind: Behind) -> Result<i64> {
    let mut counted = behind.tenants;
    let mut wrong = 0;
    for (tenant, used) in recorded(resource, Snapshot::Latest)? {
        let rows = counted.remove(&tenant).unwrap_or(0);
        if rows != used {
            correct(tenant, resource, rows - used)?;
            wrong += 1;
        }
    }
    for (tenant, rows) in counted {
        correct(tenant, resource, rows)?;
        wrong += 1;
    }
    Ok(wrong)
}

/// What the gauge says, by tenant, with what this transaction has moved and not yet written.
pub fn recorded(resource: &str, snapshot: Snapshot) -> Result<BTreeMap<TenantId, i64>> {
    let sql = format!(
        "SELECT u.tenant_id, u.used FROM tenant_rls.units AS u WHERE u.resource OPERATOR(pg_catalog.=) {}",
        quote_literal(resource)
    );
    let mut recorded = BTreeMap::new();
    as_owner(|| {
        read(snapshot, &sql, |row| {
            if let (Some(id), Some(used)) = (row.get::<Uuid>(1), row.get::<i64>(2)) {
                recorded.insert(TenantId::from_bytes(*id.as_bytes()), used);
            }
        });
    })?;
    for (tenant, units) in escrow::pending(resource) {
        *recorded.entry(tenant).or_default() += units;
    }
    Ok(recorded)
}

/// The gauges that follow rows.
pub fn attached() -> Result<Vec<String>> {
    let mut resources: Vec<String> = attachments()?.into_iter().map(|(_, resource)| resource).collect();
    resources.sort();
    resources.dedup();
    Ok(resources)
}

/// Moves a gauge to what was counted. Of a tenant that is not registered nothing is counted in shared memory.
fn correct(tenant: TenantId, resource: &str, units: i64) -> Result<()> {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.usage AS u SET used = u.used OPERATOR(pg_catalog.+) $3 \
          WHERE u.tenant_id OPERATOR(pg_catalog.=) $1 AND u.resource OPERATOR(pg_catalog.=) $2",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::INT8OID],
    );
    if let Some(known) = registry::tenant(tenant)? {
        let mut key = Key::to_give(known, resource)?;
        return mode_of(&key).force(&mut key, units);
    }
    let tenant = Uuid::from_bytes(*tenant.as_bytes());
    as_owner(|| UPDATE.execute(&[tenant.into_datum(), resource.into_datum(), units.into_datum()]))?;
    Ok(())
}

/// Moves gauges by rows that came (positive) and went (negative), in the order of the tenants.
fn move_gauges(gauges: &[Rc<Resource>], sizes: BTreeMap<TenantId, Size>) -> Result<()> {
    for gauge in gauges {
        for (tenant, size) in &sizes {
            move_gauge(*tenant, &gauge.name, units(gauge, *size))?;
        }
    }
    Ok(())
}

fn move_gauge(tenant: TenantId, resource: &str, delta: i64) -> Result<()> {
    if delta == 0 {
        return Ok(());
    }
    let tenant = registry::tenant(tenant)?.ok_or(Error::UnknownTenant(tenant))?;
    fence::enter(&tenant)?;
    if delta < 0 {
        let mut key = Key::to_give(tenant, resource)?;
        return mode_of(&key).give(&mut key, -delta).map(drop);
    }
    let mut key = Key::of(tenant, resource)?;
    let (verdict, used) = mode_of(&key).take(&mut key, delta)?;
    if verdict.allowed { Ok(()) } else { Err(exhausted(&key, &verdict, used, delta)) }
}

/// Trigger on the tables that gauges follow.
///
/// # Safety
///
/// Called by the server alone.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gauge_changed(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the server calls triggers with a TriggerData as context; anything else is refused.
    unsafe {
        let context = (*fcinfo).context;
        if context.is_null() || (*context).type_ != pg_sys::NodeTag::T_TriggerData {
            Error::NotPermitted { what: "this function is a trigger".into(), hint: "" }.raise();
        }
        or_raise(follow_rows(context.cast()));
    }
    pg_sys::Datum::null()
}

/// Version record of [`gauge_changed`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_gauge_changed() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}

/// Moves the gauges of a table by the rows that a statement has brought and taken.
unsafe fn follow_rows(data: *mut pg_sys::TriggerData) -> Result<()> {
    // SAFETY: the data is that of the running trigger.
    let (relation, event) = unsafe { ((*(*data).tg_relation).rd_id, (*data).tg_event) };
    let Some(protected) = followed(relation)? else { return Ok(()) };
    registry::accept_invalidations();
    let names = resources_of(relation)?;
    let gauges = names.iter().map(|name| registry::resource(name)).collect::<Result<Vec<_>>>()?;
    let bytes = gauges.iter().any(|gauge| gauge.counts_bytes);
    let sizes = if event & pg_sys::TRIGGER_EVENT_OPMASK == pg_sys::TRIGGER_EVENT_TRUNCATE {
        let there = in_tables(&protected, Scope::Only, Snapshot::Latest, bytes)?;
        let gone = |size: Size| Size { rows: -size.rows, bytes: -size.bytes };
        there.into_iter().map(|(name, size)| (name, gone(size))).collect()
    } else {
        // SAFETY: as above.
        unsafe { tally::changed(data, &protected, bytes) }
    };
    move_gauges(&gauges, by_tenant(sizes)?)
}

/// Event trigger: tables that joined or left a tree that a gauge follows, or whose rows have other bytes.
///
/// # Safety
///
/// Called by the server alone.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn gauge_follow_tree(_fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let follow_tree = || {
        if !registry::installed() {
            return Ok(());
        }
        let reshaped = guard::reshaped();
        for (root, resource) in attachments()? {
            let known = members_of(root, &resource)?;
            let tree = table::tree(root);
            let joined: Vec<_> = tree.iter().filter(|member| !known.contains(member)).collect();
            let left: Vec<_> = known.iter().filter(|member| !tree.contains(member)).collect();
            for member in &joined {
                follow(**member, root, &resource)?;
            }
            for member in &left {
                unfollow(**member, &resource)?;
            }
            let has_other_bytes = tree.iter().any(|member| reshaped.contains(member))
                && registry::resource(&resource)?.counts_bytes;
            if !joined.is_empty() || !left.is_empty() || has_other_bytes {
                count_again(&resource)?;
            }
        }
        Ok(())
    };
    or_raise(follow_tree());
    pg_sys::Datum::null()
}

/// Version record of [`gauge_follow_tree`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_gauge_follow_tree() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}

fn attachments() -> Result<Vec<(pg_sys::Oid, String)>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT a.root::pg_catalog.oid, a.resource FROM tenant_rls.attachments AS a ORDER BY 1, 2",
        &[],
    );
    let mut attachments = Vec::new();
    as_owner(|| {
        SELECT.run(&[], |row| attachments.extend(row.get::<pg_sys::Oid>(1).zip(row.get::<String>(2))));
    })?;
    Ok(attachments)
}

/// Event trigger: forgets what is gone, and what its rows and values counted.
///
/// # Safety
///
/// Called by the server alone.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn relations_dropped(_fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    let forget = || {
        // DROP EXTENSION takes the tables along.
        if !registry::installed() {
            return Ok(());
        }
        let mut counted = table::forget_dropped()?;
        counted.extend(with_fewer_columns()?);
        counted.sort();
        counted.dedup();
        for resource in counted {
            count_again(&resource)?;
        }
        Ok(())
    };
    or_raise(forget());
    pg_sys::Datum::null()
}

/// The gauges of bytes that follow tables of which a column is being dropped.
fn with_fewer_columns() -> Result<Vec<String>> {
    static COLUMNS: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT d.objid FROM pg_catalog.pg_event_trigger_dropped_objects() AS d \
          WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass \
          AND d.objsubid OPERATOR(pg_catalog.>) 0",
        &[],
    );
    let mut relations = Vec::new();
    COLUMNS.run(&[], |row| relations.extend(row.get::<pg_sys::Oid>(1)));
    let mut gauges = Vec::new();
    for relation in relations {
        for resource in resources_of(relation)? {
            if registry::resource(&resource)?.counts_bytes {
                gauges.push(resource);
            }
        }
    }
    Ok(gauges)
}

/// Version record of [`relations_dropped`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_relations_dropped() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}
