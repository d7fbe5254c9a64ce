//! Erasing a deleted tenant: `CALL tenant_purge(tenant)`.
//!
//! # Order
//!
//! First everything that would keep the tenant from being erased as a whole is looked for; what is found raises, and
//! nothing has been erased. Then the tables are emptied, those that refer to others first, a batch a transaction.
//! Then the transactions that have written to these tables are waited for, and the tables emptied of what those
//! have left. Then, in one transaction, it is looked again, and the tenant itself goes with its usage, limits and
//! grants. Last, those that policies do not hold for and that began to write before the tenant was gone are waited
//! for once more, and what they have left goes too.
//!
//! # Lock protocol
//!
//! Every transaction begins with the fence: it waits for writers of the tenant, and for another purge of it.
//! Rows are read and deleted with the rights of the table's owner, as by foreign keys, so what users have made (triggers,
//! conditions of indexes) gets no more.

use std::collections::BTreeMap;

use pgrx::prelude::*;
use pgrx::{JsonB, Uuid, pg_sys};

use crate::context::fence;
use crate::error::{Error, Result, or_raise};
use crate::isolation::policy::quote_ident;
use crate::isolation::rows::{self, Name};
use crate::isolation::table::{self, Table};
use crate::plan::{CachedPlan, as_owner, as_table_owner, as_table_owner_in, execute_text, run_text};
use crate::registry::{self, FUNCTION_INFO};
use crate::shmem;
use crate::tenant::{Status, TenantId};

/// How often tables are emptied of rows that triggers have put back before that is called an obstacle.
const MOST_PASSES: usize = 4;

/// The deleted tenant.
struct Purge {
    id: TenantId,
    key: Option<i64>,
    /// Tells it from a successor of the same id; `None` when the registry no longer knows it.
    created_at: Option<i64>,
    batch_size: i64,
    /// Rows erased so far, by table.
    erased: BTreeMap<String, i64>,
}

/// A table that rows can lie in, and the condition that they belong to the tenant.
struct Part {
    table: Table,
    condition: String,
}

/// Tables that are emptied one by one, or have to be emptied by one statement.
struct Step {
    parts: Vec<Part>,
    together: bool,
}

/// `CALL tenant_purge(tenant, batch_size)`.
///
/// # Safety
///
/// Called by the server alone.
#[pg_guard]
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn tenant_purge(fcinfo: pg_sys::FunctionCallInfo) -> pg_sys::Datum {
    // SAFETY: the server hands a valid call of a procedure with two arguments; CALL leaves its context there.
    let (tenant, batch_size, atomic) = unsafe {
        let context = (*fcinfo).context;
        let atomic = context.is_null()
            || (*context).type_ != pg_sys::NodeTag::T_CallContext
            || (*context.cast::<pg_sys::CallContext>()).atomic;
        (pgrx::pg_getarg::<Uuid>(fcinfo, 0), pgrx::pg_getarg::<i32>(fcinfo, 1), atomic)
    };
    or_raise(run(tenant, batch_size, atomic));
    pg_sys::Datum::null()
}

/// Version record of [`tenant_purge`].
#[unsafe(no_mangle)]
pub extern "C" fn pg_finfo_tenant_purge() -> *const pg_sys::Pg_finfo_record {
    &FUNCTION_INFO
}

fn run(tenant: Option<Uuid>, batch_size: Option<i32>, atomic: bool) -> Result<()> {
    let tenant = tenant.ok_or(Error::Null("the tenant"))?;
    let batch_size = i64::from(batch_size.ok_or(Error::Null("the batch size"))?);
    if batch_size < 1 {
        return Err(Error::Invalid {
            what: "batch size",
            value: batch_size.to_string(),
            hint: "Use the number of rows of a transaction, at least one.".into(),
        });
    }
    if atomic {
        return Err(Error::InTransactionBlock { what: "CALL tenant_purge" });
    }
    let id = TenantId::from_bytes(*tenant.as_bytes());
    let (key, created_at) = match deleted_tenant(id) {
        Err(Error::UnknownTenant(_)) => (key_of_purged(id)?, None),
        tenant => tenant.map(|(key, created_at)| (key, Some(created_at)))?,
    };
    let mut purge = Purge { id, key, created_at, batch_size, erased: BTreeMap::new() };
    // SAFETY: the call allows commits. Paired with the finish below; after an error the end of the transaction
    // closes the connection.
    unsafe {
        pg_sys::SPI_connect_ext(pg_sys::SPI_OPT_NONATOMIC as i32);
    }
    purge.erase()?;
    // SAFETY: as above.
    unsafe { pg_sys::SPI_finish() };
    Ok(())
}

/// Key of the tenant, which must be deleted, and when it was registered.
fn deleted_tenant(id: TenantId) -> Result<(Option<i64>, i64)> {
    registry::accept_invalidations();
    let tenant = registry::tenant(id)?.ok_or(Error::UnknownTenant(id))?;
    match tenant.status {
        Status::Deleted => Ok((tenant.key, tenant.created_at)),
        status => Err(Error::WrongStatus {
            tenant: id,
            status: status.as_str(),
            hint: "Call tenant_delete(tenant) first, and commit.",
        }),
    }
}

/// Key of a tenant that a purge has erased; it may have been interrupted before its last look at the tables.
fn key_of_purged(id: TenantId) -> Result<Option<i64>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT (c.old_row OPERATOR(pg_catalog.->>) 'tenant_key')::pg_catalog.int8 FROM tenant_rls.changes AS c \
          WHERE c.relation OPERATOR(pg_catalog.=) 'tenants' AND c.command OPERATOR(pg_catalog.=) 'PURGE' \
          AND c.old_row OPERATOR(pg_catalog.->>) 'tenant_id' OPERATOR(pg_catalog.=) $1 \
          ORDER BY c.change_id DESC LIMIT 1",
        &[pg_sys::TEXTOID],
    );
    as_owner(|| SELECT.first(&[id.to_string().into_datum()], |row| row.get::<i64>(1)))?
        .ok_or(Error::UnknownTenant(id))
}

/// Ends the transaction and begins the next.
fn commit() {
    // SAFETY: SPI is connected for this, and nothing here holds on to the transaction.
    unsafe {
        pg_sys::SPI_commit();
        pg_sys::EnsurePortalSnapshotExists();
    }
}

impl Purge {
    fn erase(&mut self) -> Result<()> {
        self.begin()?;
        if self.created_at.is_some() {
            self.check_covered(false)?;
        }
        let steps = self.steps()?;
        for part in steps.iter().flat_map(|step| &step.parts) {
            self.count(part);
        }
        commit();
        if self.created_at.is_some() {
            self.empty(&steps)?;
            self.finish(&steps)?;
            commit();
            shmem::forget_tenant(self.id);
            self.created_at = None;
            self.erased.clear();
        }
        self.sweep(&steps)
    }

    /// Empties the tables, waits for those that may have written meanwhile, and empties them again.
    fn empty(&mut self, steps: &[Step]) -> Result<()> {
        for pass in 0..MOST_PASSES {
            // Those that come after the first pass are as empty as what was waited for has left them.
            if self.pass(steps)? == 0 && pass > 0 {
                break;
            }
            if pass == 0 {
                self.wait(steps)?;
            }
        }
        Ok(())
    }

    /// One pass over all tables; how many rows were there.
    fn pass(&mut self, steps: &[Step]) -> Result<i64> {
        let mut deleted = 0;
        for step in steps {
            deleted += if step.together { self.empty_together(step)? } else { self.empty_parts(step)? };
        }
        Ok(deleted)
    }

    /// What was written, past the fence, between the last look and the end of the tenant.
    fn sweep(&mut self, steps: &[Step]) -> Result<()> {
        self.wait(steps)?;
        if self.pass(steps)? == 0 {
            return Ok(());
        }
        self.pass(steps)?;
        self.begin()?;
        self.check_empty(steps)?;
        self.record(&self.erased)
    }

    /// The fence; the tenant must be the one that it was; and deferred checks at once, as the server refuses to defer
    /// what the owner of a table has written.
    fn begin(&self) -> Result<()> {
        const HINT: &str = "End them and call again, with another lock_timeout if need be. What was erased so far stays erased.";
        // SAFETY: reads a setting.
        let timeout = i64::from(unsafe { pg_sys::LockTimeout });
        fence::close(self.id, timeout).map_err(|error| match error {
            Error::StillWriting { tenant, waited, .. } => Error::StillWriting { tenant, waited, hint: HINT },
            error => error,
        })?;
        match self.created_at {
            None => self.check_gone()?,
            Some(created_at) if deleted_tenant(self.id)?.1 != created_at => {
                return Err(Error::Reborn(self.id));
            }
            Some(_) => {}
        }
        execute_text("SET CONSTRAINTS ALL IMMEDIATE");
        Ok(())
    }

    /// Rows of a successor look like those of the tenant that was erased: none must come in this transaction.
    fn check_gone(&self) -> Result<()> {
        static LOCK: CachedPlan = CachedPlan::new(c"LOCK TABLE tenant_rls.tenants IN SHARE MODE", &[]);
        as_owner(|| LOCK.execute(&[]))?;
        registry::accept_invalidations();
        let successor = registry::tenant(self.id)?.is_some();
        let namesake = self.key.map(registry::tenant_of_key).transpose()?.flatten().is_some();
        if successor || namesake {
            return Err(self.obstacle(
                "It was erased, and its id or key belongs to a new tenant by now.".into(),
                "Rows that were written while it was erased cannot be told from those of the new tenant.",
            ));
        }
        Ok(())
    }

    /// Waits for the transactions that may have left rows without the fence: those that policies do not hold for.
    fn wait(&self, steps: &[Step]) -> Result<()> {
        let tables: Vec<_> = steps.iter().flat_map(|step| &step.parts).map(|part| part.table.oid).collect();
        if !fence::wait_for_older_writers(&tables) {
            // SAFETY: reads a setting.
            let waited = format!("{} ms", unsafe { pg_sys::LockTimeout });
            return Err(Error::StillWriting {
                tenant: self.id,
                waited,
                hint: "Any transaction that has written to a protected table is waited for. End them and call again. \
                       What was erased so far stays erased.",
            });
        }
        commit();
        Ok(())
    }

    fn obstacle(&self, why: String, hint: &'static str) -> Error {
        Error::CannotPurge { tenant: self.id, why, hint }
    }

    /// Refuses what would leave rows of the tenant behind, or take those of others along.
    fn check_covered(&self, at_the_end: bool) -> Result<()> {
        static UNCOVERED: CachedPlan = CachedPlan::new(
            c"SELECT u.relation, u.tenant_column, u.key_type, u.stored FROM tenant_rls.purge_uncovered() AS u",
            &[],
        );
        let mut uncovered = Vec::new();
        as_owner(|| {
            UNCOVERED.run(&[], |row| {
                let text = |column| row.get::<String>(column).unwrap_or_default();
                let stored = row.get::<bool>(4).unwrap_or(false);
                uncovered.extend(row.get::<pg_sys::Oid>(1).map(|oid| (oid, text(2), text(3), stored)));
            });
        })?;
        for (oid, column, key_type, stored) in uncovered {
            if stored && !at_the_end {
                continue;
            }
            let relation = table::find(oid)?;
            if self.holds_rows(&relation, &column, &key_type)? {
                return Err(self.obstacle(
                    format!(
                        "{} is not protected and has rows of the tenant in column \"{column}\".",
                        relation.qualified
                    ),
                    if stored {
                        "REFRESH the materialized view, then call again."
                    } else {
                        "Delete the rows, or protect the table with tenant_protect(table), then call again. \
                         Nothing was erased."
                    },
                ));
            }
        }
        self.check_crossing()
    }

    /// Refuses when a row of another tenant, or of none, refers to one of the tenant's.
    fn check_crossing(&self) -> Result<()> {
        static CROSSING: CachedPlan = CachedPlan::new(
            c"SELECT c.constraint_name, c.child, c.parent, c.parent_owner, c.one_owner, c.crosses, c.has_rows \
              FROM tenant_rls.purge_crossing($1) AS c",
            &[pg_sys::UUIDOID],
        );
        let id = Uuid::from_bytes(*self.id.as_bytes());
        let mut keys = Vec::new();
        as_owner(|| {
            CROSSING.run(&[id.into_datum()], |row| {
                let text = |column| row.get::<String>(column).unwrap_or_default();
                let names = [text(1), text(2), text(3)];
                let owner = row.get::<pg_sys::Oid>(4).unwrap_or(pg_sys::InvalidOid);
                keys.push((names, owner, row.get::<bool>(5).unwrap_or(false), text(6), text(7)));
            });
        })?;
        for ([name, child, parent], owner, one_owner, crosses, has_rows) in keys {
            let query = if one_owner { crosses } else { has_rows };
            if as_table_owner(owner, || execute_text(&query)) == 0 {
                continue;
            }
            return Err(if one_owner {
                self.obstacle(
                    format!(
                        "Rows of table {child} that do not belong to the tenant refer to its rows in table {parent} by foreign key \"{name}\"."
                    ),
                    "Delete or change these rows, then call again.",
                )
            } else {
                self.obstacle(
                    format!(
                        "Table {child} refers to table {parent}, which has another owner, by foreign key \"{name}\" without the tenant: nobody may look which rows do."
                    ),
                    "Let the key carry the tenant (tenant_repair), or give both tables one owner, then call again.",
                )
            });
        }
        Ok(())
    }

    /// Whether a relation that is not protected has rows of the tenant; read with the rights of its owner.
    fn holds_rows(&self, relation: &Table, column: &str, key_type: &str) -> Result<bool> {
        let key = registry::tenant(self.id)?.and_then(|tenant| tenant.key);
        let column = format!("t.{}", quote_ident(column));
        let condition = match (key_type, key) {
            ("uuid", _) => format!("{column} OPERATOR(pg_catalog.=) '{}'::pg_catalog.uuid", self.id),
            ("bigint" | "integer" | "smallint", None) => return Ok(false),
            ("bigint" | "integer" | "smallint", Some(key)) => {
                format!("{column} OPERATOR(pg_catalog.=) ({key})::pg_catalog.int8")
            }
            (_, key) => format!(
                "pg_catalog.lower({column}::pg_catalog.text) OPERATOR(pg_catalog.=) \
                 ANY (ARRAY['{}', '{}']::pg_catalog.text[])",
                self.id,
                key.map(|key| key.to_string()).unwrap_or_default()
            ),
        };
        let sql = format!("SELECT FROM {} AS t WHERE {condition} LIMIT 1", relation.qualified);
        Ok(as_table_owner(relation.owner, || execute_text(&sql)) > 0)
    }

    fn steps(&self) -> Result<Vec<Step>> {
        static ORDER: CachedPlan = CachedPlan::new(
            c"SELECT o.step, o.root, o.together FROM tenant_rls.purge_order() AS o ORDER BY 1, 2",
            &[],
        );
        let mut roots = Vec::new();
        as_owner(|| {
            ORDER.run(&[], |row| {
                let step = row.get::<i64>(1).unwrap_or_default();
                roots.extend(row.get::<pg_sys::Oid>(2).map(|root| (step, root, row.get(3).unwrap_or(true))));
            });
        })?;
        let mut steps: BTreeMap<i64, Step> = BTreeMap::new();
        for (number, root, together) in roots {
            let Some(protected) = table::protected(root)? else { continue };
            let Some(name) = Name::in_column(self.id, self.key, protected.key) else { continue };
            let condition = rows::named(name, &protected);
            let step = steps.entry(number).or_insert_with(|| Step { parts: Vec::new(), together });
            for member in table::tree(root) {
                let table = table::find(member)?;
                // The rows of a partitioned table lie in its partitions.
                if table.kind != 'p' {
                    step.parts.push(Part { table, condition: condition.clone() });
                }
            }
        }
        for step in steps.values().filter(|step| step.together) {
            if step.parts.iter().any(|part| part.table.owner != step.parts[0].table.owner) {
                let tables: Vec<_> = step.parts.iter().map(|part| part.table.qualified.as_str()).collect();
                return Err(self.obstacle(
                    format!("Tables {} refer to each other and have different owners.", tables.join(", ")),
                    "Give them one owner, or delete the rows of the tenant by hand. Nothing was erased.",
                ));
            }
        }
        Ok(steps.into_values().collect())
    }

    fn count(&self, part: &Part) -> i64 {
        let Part { table, condition } = part;
        let sql = format!("SELECT pg_catalog.count(*) FROM ONLY {} AS t WHERE {condition}", table.qualified);
        let mut count = 0;
        as_table_owner(table.owner, || {
            run_text(&sql, &[], &[], |row| count = row.get::<i64>(1).unwrap_or_default());
        });
        count
    }

    fn note(&mut self, part: &Part, rows: i64) {
        *self.erased.entry(part.table.qualified.clone()).or_default() += rows;
    }

    /// Empties table after table, a batch a transaction. What comes back meanwhile is left for another pass.
    fn empty_parts(&mut self, step: &Step) -> Result<i64> {
        let mut deleted = 0;
        for part in &step.parts {
            self.begin()?;
            let mut left = self.count(part);
            self.note(part, 0);
            while left > 0 {
                let rows = self.delete_batch(part);
                self.note(part, rows);
                commit();
                self.begin()?;
                // A trigger or a rule keeps the rows, which is found out at the end.
                left = if rows == 0 { 0 } else { left - rows };
                deleted += rows;
            }
            commit();
        }
        Ok(deleted)
    }

    fn delete_batch(&self, part: &Part) -> i64 {
        let Part { table: Table { qualified, schema, owner, kind, .. }, condition } = part;
        let sql = if *kind == 'f' {
            format!("DELETE FROM ONLY {qualified} AS t WHERE {condition}")
        } else {
            format!(
                "DELETE FROM ONLY {qualified} AS t WHERE {condition} AND t.ctid OPERATOR(pg_catalog.=) ANY (ARRAY( \
                   SELECT t.ctid FROM ONLY {qualified} AS t WHERE {condition} LIMIT {}))",
                self.batch_size
            )
        };
        as_table_owner_in(*owner, schema, || execute_text(&sql)) as i64
    }

    /// Empties tables that refer to each other, or to themselves: the checks come when all rows are gone.
    fn empty_together(&mut self, step: &Step) -> Result<i64> {
        self.begin()?;
        let deletes: Vec<String> = step
            .parts
            .iter()
            .enumerate()
            .map(|(number, Part { table, condition })| {
                format!(
                    "d{number} AS (DELETE FROM ONLY {} AS t WHERE {condition} RETURNING 1)",
                    table.qualified
                )
            })
            .collect();
        let counts: Vec<String> =
            (0..deletes.len()).map(|number| format!("(SELECT pg_catalog.count(*) FROM d{number})")).collect();
        let sql = format!("WITH {} SELECT {}", deletes.join(", "), counts.join(", "));
        let mut rows = Vec::new();
        let Table { owner, schema, .. } = &step.parts[0].table;
        as_table_owner_in(*owner, schema, || {
            run_text(&sql, &[], &[], |row| {
                rows.extend(
                    (1..=counts.len() as i32).map(|column| row.get::<i64>(column).unwrap_or_default()),
                );
            });
        });
        commit();
        for (part, rows) in step.parts.iter().zip(&rows) {
            self.note(part, *rows);
        }
        Ok(rows.iter().sum())
    }

    /// Looks again, and erases the tenant itself.
    fn finish(&self, steps: &[Step]) -> Result<()> {
        static REGISTRY: CachedPlan = CachedPlan::new(
            c"SELECT r.relation, r.deleted FROM tenant_rls.purge_registry($1) AS r",
            &[pg_sys::UUIDOID],
        );
        self.begin()?;
        self.check_covered(true)?;
        self.check_empty(steps)?;
        let id = Uuid::from_bytes(*self.id.as_bytes());
        let mut erased = self.erased.clone();
        // Nothing of the tenant is in flight behind the fence. Entries of others need not be looked up again.
        shmem::doubt_tenant(self.id);
        registry::units::open_units()?;
        let write = registry::units::OwnWrite::begin();
        as_owner(|| {
            REGISTRY.run(&[id.into_datum()], |row| {
                let table = format!("tenant_rls.{}", row.get::<String>(1).unwrap_or_default());
                erased.insert(table, row.get(2).unwrap_or_default());
            });
        })?;
        drop(write);
        self.record(&erased)
    }

    fn check_empty(&self, steps: &[Step]) -> Result<()> {
        for part in steps.iter().flat_map(|step| &step.parts) {
            let rows = self.count(part);
            if rows > 0 {
                return Err(self.obstacle(
                    format!("{rows} rows of the tenant are in table {} again, or still.", part.table.qualified),
                    "Look for writers with BYPASSRLS, and for triggers or rules that keep rows, then call again.",
                ));
            }
        }
        Ok(())
    }

    /// Says what was erased, to the caller and in the record of changes.
    fn record(&self, erased: &BTreeMap<String, i64>) -> Result<()> {
        static RECORD: CachedPlan = CachedPlan::new(
            c"INSERT INTO tenant_rls.changes (acting_as, relation, command, old_row) \
              VALUES ($1, 'tenants', 'PURGE', $2)",
            &[pg_sys::TEXTOID, pg_sys::JSONBOID],
        );
        for (table, rows) in erased {
            pgrx::notice!("table {table}: {rows} rows erased");
        }
        let record = serde_json::json!({
            "tenant_id": self.id.to_string(), "tenant_key": self.key, "erased": erased,
        });
        let role = registry::role_name(registry::acting_role());
        as_owner(|| RECORD.execute(&[role.into_datum(), JsonB(record).into_datum()]))?;
        Ok(())
    }
}
