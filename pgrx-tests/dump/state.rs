//! All that a restored database must have in common with the original, as text.

use postgres::Client;

use crate::harness::Session;

use super::place::Place;

/// Kinds of things, and the things of each kind.
pub struct State(Vec<(String, Vec<String>)>);

impl State {
    /// The same, for a cluster without a role of this name.
    pub fn without_role(mut self, role: &str) -> State {
        let named = format!("\"role\": \"{role}\"");
        for (_, lines) in &mut self.0 {
            for line in lines.iter_mut() {
                *line = line.replace(&named, "\"role\": null");
            }
            lines.sort();
        }
        self
    }

    /// The things of one kind.
    pub fn of(&self, kind: &str) -> &[String] {
        &self.0.iter().find(|(name, _)| name == kind).unwrap_or_else(|| panic!("there is no {kind}")).1
    }

    /// Fails with what is lost and what is new.
    #[track_caller]
    pub fn assert_same(&self, other: &State) {
        let kinds = |state: &State| state.0.iter().map(|(kind, _)| kind.clone()).collect::<Vec<_>>();
        assert_eq!(kinds(self), kinds(other));
        for ((kind, before), (_, after)) in self.0.iter().zip(&other.0) {
            let lost: Vec<_> = before.iter().filter(|line| !after.contains(line)).collect();
            let new: Vec<_> = after.iter().filter(|line| !before.contains(line)).collect();
            assert!(lost.is_empty() && new.is_empty(), "{kind}: lost {lost:#?}\nnew {new:#?}");
            assert_eq!(before.len(), after.len(), "{kind}: some are there twice");
        }
    }
}

/// What a database is like now.
pub fn state(place: &Place) -> State {
    let mut client = place.admin();
    let tables = lines(
        &mut client,
        "SELECT relname::text FROM pg_class
        WHERE relnamespace = 'tenant_rls'::regnamespace AND relkind = 'r'
        -- Workers move units between these, and write events when they come: below as one.
        AND relname NOT IN ('usage', 'ledger', 'leases', 'usage_history', 'quota_events') ORDER BY 1",
    );
    // So that every name is printed with its schema.
    client.run("SET search_path = ''");
    let mut state: Vec<_> = tables
        .into_iter()
        .map(|table| {
            let rows = lines(&mut client, &rows_of(&table));
            (table, rows)
        })
        .collect();
    for (kind, sql) in KINDS {
        let sql = sql.replace("{schema}", place.schema);
        let sql = sql.replace("{users}", "NOT IN ('pg_catalog', 'information_schema', 'pg_toast')");
        state.push((kind.to_string(), lines(&mut client, &sql)));
    }
    State(state)
}

fn lines(client: &mut Client, sql: &str) -> Vec<String> {
    client.rows(sql).iter().map(|row| row.get(0)).collect()
}

/// A role has another oid in another cluster: its name, or null when it gives nothing.
fn rows_of(table: &str) -> String {
    let row = match table {
        "grants" | "operators" => {
            "to_jsonb(t) - 'role_oid' || jsonb_build_object('role', (SELECT rolname FROM pg_roles WHERE oid = t.role_oid))"
        }
        _ => "to_jsonb(t)",
    };
    format!("SELECT ({row})::text FROM tenant_rls.{table} AS t ORDER BY 1")
}

/// Privileges but MAINTAIN, which PostgreSQL 17 brought; the superuser may have another name elsewhere.
macro_rules! privileges {
    ($acl:literal, $kind:literal, $owner:literal) => {
        concat!(
            "(SELECT string_agg(concat_ws('/', CASE WHEN g.rolsuper THEN 'superuser' ELSE coalesce(g.rolname, 'PUBLIC') END, ",
            "x.privilege_type, x.is_grantable), ' ' ORDER BY g.rolsuper, g.rolname, x.privilege_type) ",
            "FROM aclexplode(coalesce(", $acl, ", acldefault(", $kind, ", ", $owner, "))) AS x ",
            "LEFT JOIN pg_roles AS g ON g.oid = x.grantee WHERE x.privilege_type <> 'MAINTAIN')"
        )
    };
}

const KINDS: &[(&str, &str)] = &[
    (
        "extension",
        "SELECT concat_ws(' ', e.extname, e.extversion, e.extnamespace::regnamespace, c.name, c.condition)
        FROM pg_extension AS e, unnest(e.extconfig::regclass[]::text[], e.extcondition) AS c (name, condition)
        WHERE e.extname = 'tenant_rls' ORDER BY 1",
    ),
    // Row types and array types are members in newer versions only.
    (
        "members",
        "SELECT concat_ws(' ', i.type, i.identity)
        FROM pg_depend AS d, pg_identify_object(d.classid, d.objid, 0) AS i, pg_extension AS e
        WHERE d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
        AND NOT EXISTS (
            SELECT FROM pg_type AS t LEFT JOIN pg_class AS c ON c.oid = t.typrelid
            WHERE d.classid = 'pg_type'::regclass AND t.oid = d.objid AND (t.typelem <> 0 OR c.relkind <> 'c'))
        AND e.extname = 'tenant_rls' ORDER BY 1",
    ),
    (
        "functions",
        concat!(
            "SELECT concat_ws(' ', p.oid::regprocedure, p.prosecdef, p.proconfig::text, ",
            privileges!("p.proacl", "'f'", "p.proowner"),
            ") FROM pg_proc AS p
        JOIN pg_depend AS d ON d.objid = p.oid AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
        JOIN pg_extension AS e ON e.oid = d.refobjid AND e.extname = 'tenant_rls' ORDER BY 1"
        ),
    ),
    (
        "schemas",
        concat!(
            "SELECT concat_ws(' ', n.nspname, ",
            privileges!("n.nspacl", "'n'", "n.nspowner"),
            ")
        FROM pg_namespace AS n WHERE n.nspname !~ '^pg_' ORDER BY 1"
        ),
    ),
    (
        "relations",
        concat!(
            "SELECT concat_ws(' ', c.oid::regclass, c.relkind, c.relrowsecurity, c.relforcerowsecurity,
        c.reloptions::text, CASE WHEN o.rolsuper THEN 'superuser' ELSE o.rolname END, ",
            privileges!("c.relacl", "CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::\"char\"", "c.relowner"),
            ") FROM pg_class AS c JOIN pg_roles AS o ON o.oid = c.relowner
        WHERE c.relnamespace::regnamespace::text {users} AND c.relkind <> 'i' ORDER BY 1"
        ),
    ),
    (
        "columns",
        concat!(
            "SELECT concat_ws(' ', a.attrelid::regclass, a.attname, format_type(a.atttypid, a.atttypmod),
        a.attnotnull, a.attidentity, pg_get_expr(v.adbin, v.adrelid), ",
            privileges!("a.attacl", "'c'", "c.relowner"),
            ") FROM pg_attribute AS a
        JOIN pg_class AS c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'v')
        LEFT JOIN pg_attrdef AS v ON v.adrelid = a.attrelid AND v.adnum = a.attnum
        WHERE c.relnamespace::regnamespace::text {users} AND a.attnum > 0 AND NOT a.attisdropped ORDER BY 1"
        ),
    ),
    ("policies", "SELECT p::text FROM pg_policies AS p ORDER BY 1"),
    (
        "triggers",
        "SELECT concat_ws(' ', t.tgenabled, pg_get_triggerdef(t.oid)) FROM pg_trigger AS t
        WHERE NOT t.tgisinternal ORDER BY 1",
    ),
    (
        "event triggers",
        "SELECT concat_ws(' ', evtname, evtevent, evtfoid::regproc, evtenabled, evttags::text)
        FROM pg_event_trigger ORDER BY 1",
    ),
    ("indexes", "SELECT indexdef FROM pg_indexes WHERE schemaname {users} ORDER BY 1"),
    // PostgreSQL 18 keeps NOT NULL as constraints; the columns have it.
    (
        "constraints",
        "SELECT concat_ws(' ', conrelid::regclass, conname, pg_get_constraintdef(oid)) FROM pg_constraint
        WHERE contype <> 'n' AND connamespace::regnamespace::text {users} ORDER BY 1",
    ),
    ("usage now", "SELECT u::text FROM {schema}.tenant_usage AS u ORDER BY 1"),
    ("usage before", "SELECT u::text FROM {schema}.tenant_usage_history AS u ORDER BY 1"),
    (
        "units",
        "SELECT concat_ws(' ', s.tenant_id, s.resource, s.period_start, s.resets_at, sum(s.used)) FROM (
             SELECT u.tenant_id, u.resource, u.period_start, u.resets_at, u.used FROM tenant_rls.units AS u
             UNION ALL
             SELECT h.tenant_id, h.resource, h.period_start, h.resets_at, h.used FROM tenant_rls.usage_history AS h) AS s
         GROUP BY s.tenant_id, s.resource, s.period_start, s.resets_at ORDER BY 1",
    ),
    ("events", "SELECT e::text FROM {schema}.tenant_quota_events AS e WHERE e.occurred_at < '2026-01-01' ORDER BY 1"),
    ("storage", "SELECT s::text FROM {schema}.tenant_storage AS s ORDER BY 1"),
    ("tables", "SELECT (to_jsonb(t) - 'estimated_rows')::text FROM {schema}.tenant_tables AS t ORDER BY 1"),
    ("violated invariants", "SELECT i::text FROM {schema}.tenant_quota_invariants AS i ORDER BY 1"),
    ("orders", "SELECT o::text FROM public.orders AS o ORDER BY 1"),
    ("notes", "SELECT n::text FROM public.notes AS n ORDER BY 1"),
    ("docs", "SELECT concat_ws(' ', d.tableoid::regclass, d) FROM public.docs AS d ORDER BY 1"),
    (
        "parts",
        "SELECT concat_ws(' ', p.tableoid::regclass, p) FROM \"App Data\".\"Parts \"\"P\"\"\" AS p ORDER BY 1",
    ),
];
