//! Rows of a protected table, by tenant: counted with the rights of the table's owner, its policies off.

use std::collections::BTreeMap;

use pgrx::Uuid;

use super::policy::{KeyType, quote_ident};
use super::table::{Protected, Table};
use crate::error::{Error, Result};
use crate::plan::{Row, Snapshot, as_table_owner, read};
use crate::registry;
use crate::tenant::TenantId;

/// What a tenant column holds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A tenant's uuid.
    Id(TenantId),
    /// A tenant's key.
    Key(i64),
}

impl Name {
    /// What a tenant of this id and key is called in a column of that type; `None` when it has no key.
    pub fn in_column(id: TenantId, tenant_key: Option<i64>, key: KeyType) -> Option<Name> {
        match key {
            KeyType::Uuid => Some(Name::Id(id)),
            KeyType::BigInt | KeyType::Integer => tenant_key.map(Name::Key),
        }
    }

    /// Column 1 of `row`, of type `uuid` or `bigint`.
    pub fn in_row(row: &Row, key: KeyType) -> Option<Name> {
        match key {
            KeyType::Uuid => row.get::<Uuid>(1).map(|id| Name::Id(TenantId::from_bytes(*id.as_bytes()))),
            KeyType::BigInt | KeyType::Integer => row.get::<i64>(1).map(Name::Key),
        }
    }

    /// The tenant, or `None` for a key that no tenant has.
    pub fn tenant(self) -> Result<Option<TenantId>> {
        match self {
            Name::Id(id) => Ok(Some(id)),
            Name::Key(key) => registry::tenant_of_key(key),
        }
    }

    /// The tenant, if it is registered.
    pub fn registered(self) -> Result<Option<TenantId>> {
        let tenant = self.tenant()?.map(registry::tenant).transpose()?.flatten();
        Ok(tenant.map(|tenant| tenant.id))
    }

    /// The tenant, or an error for one that is not registered.
    pub fn known_tenant(self) -> Result<TenantId> {
        self.registered()?.ok_or(match self {
            Name::Id(id) => Error::UnknownTenant(id),
            Name::Key(key) => Error::UnknownKey(key),
        })
    }

    fn of(id: TenantId, key: KeyType) -> Result<Option<Name>> {
        let tenant_key = match key {
            KeyType::Uuid => None,
            KeyType::BigInt | KeyType::Integer => registry::tenant(id)?.and_then(|tenant| tenant.key),
        };
        Ok(Name::in_column(id, tenant_key, key))
    }

    fn literal(self) -> String {
        match self {
            Name::Id(id) => format!("'{id}'::pg_catalog.uuid"),
            Name::Key(key) => format!("({key})::pg_catalog.int8"),
        }
    }
}

/// The condition that a row `t` of the table belongs to whom the name means.
pub fn named(name: Name, protected: &Protected) -> String {
    format!("t.{} OPERATOR(pg_catalog.=) {}", quote_ident(&protected.column), name.literal())
}

/// Rows, and their bytes: as tuples if [`measure`] has read them.
#[derive(Clone, Copy, Default)]
pub struct Size {
    /// The number of rows.
    pub rows: i64,
    /// Their bytes.
    pub bytes: i64,
}

/// Which tables a count reads.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// The table and everything below it.
    Tree,
    /// The table alone.
    Only,
}

/// Rows by tenant.
pub fn count(
    table: &Table,
    protected: &Protected,
    scope: Scope,
    snapshot: Snapshot,
) -> Result<BTreeMap<Name, i64>> {
    let sizes = select(table, protected, scope, snapshot, "0", "");
    Ok(sizes.into_iter().map(|(name, size)| (name, size.rows)).collect())
}

/// Rows and bytes of one tenant, or of all.
pub fn measure(
    table: &Table,
    protected: &Protected,
    tenant: Option<TenantId>,
    snapshot: Snapshot,
) -> Result<BTreeMap<Name, Size>> {
    let filter = match tenant {
        None => String::new(),
        Some(id) => match Name::of(id, protected.key)? {
            None => return Ok(BTreeMap::new()),
            Some(name) => format!("WHERE {}", named(name, protected)),
        },
    };
    let bytes = "pg_catalog.sum(pg_catalog.pg_column_size(t.*))";
    Ok(select(table, protected, Scope::Tree, snapshot, bytes, &filter))
}

fn select(
    table: &Table,
    protected: &Protected,
    scope: Scope,
    snapshot: Snapshot,
    bytes: &str,
    filter: &str,
) -> BTreeMap<Name, Size> {
    let sql = format!(
        "SELECT t.{}{}, pg_catalog.count(*), {bytes}::pg_catalog.int8 FROM {}{} AS t {filter} GROUP BY 1",
        quote_ident(&protected.column),
        protected.key.cast(),
        if scope == Scope::Only { "ONLY " } else { "" },
        table.qualified,
    );
    let mut sizes = BTreeMap::new();
    as_table_owner(table.owner, || {
        read(snapshot, &sql, |row| {
            if let Some(name) = Name::in_row(row, protected.key) {
                sizes.insert(name, Size { rows: row.get(2).unwrap_or(0), bytes: row.get(3).unwrap_or(0) });
            }
        });
    });
    sizes
}
