//! A database with one of everything that a dump must carry.

use crate::harness::{A, B, Session};

use super::place::Place;
use super::state::{State, state};

/// A tenant that is suspended.
pub const SUSPENDED: &str = "cccccccc-0000-4000-8000-00000000000c";
/// A tenant that is fenced.
pub const FENCED: &str = "dddddddd-0000-4000-8000-00000000000d";
/// A tenant that is deleted.
pub const DELETED: &str = "eeeeeeee-0000-4000-8000-00000000000e";
/// A tenant with a billing anchor, on a plan of its own.
pub const BILLED: &str = "ffffffff-0000-4000-8000-00000000000f";

/// The partitioned table, whose names need quotes.
pub const PARTS: &str = r#""App Data"."Parts ""P""""#;

/// Roles are global to a cluster: their names hold the name of the database.
pub struct Roles {
    /// Owns the tables.
    pub owner: String,
    /// May act for every tenant.
    pub app: String,
    /// May act for [`A`]; its name needs quotes.
    pub one: String,
    /// May act for [`B`], with a ticket.
    pub ticket: String,
    /// Runs the registry.
    pub operator: String,
    /// May act for every tenant and runs the registry, but is not in the other cluster.
    pub absent: String,
}

/// A name as SQL takes it.
pub fn ident(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A role as an argument of type regrole.
pub fn regrole(name: &str) -> String {
    format!("'{}'", ident(name).replace('\'', "''"))
}

impl Roles {
    /// Names for the roles of a database.
    pub fn of(database: &str) -> Roles {
        let named = |name: &str| format!("{name}_{database}");
        Roles {
            owner: named("owner"),
            app: named("app"),
            one: named(r#"One "Role's""#),
            ticket: named("Ticket"),
            operator: named("operator"),
            absent: named("absent"),
        }
    }

    /// Makes the roles but the one that is absent elsewhere.
    pub fn create(&self, place: &Place) {
        for role in [&self.owner, &self.app, &self.one, &self.ticket, &self.operator] {
            place.admin().run(&format!("CREATE ROLE {} LOGIN", ident(role)));
        }
    }
}

/// A database that is dumped, its roles, and what it was like.
pub struct Original {
    pub place: Place,
    pub roles: Roles,
    pub state: State,
}

impl Original {
    /// In a new database of the test server.
    pub fn new(schema: &'static str) -> Original {
        Original::at(Place::new(schema))
    }

    /// In an empty database.
    pub fn at(place: Place) -> Original {
        let roles = Roles::of(&place.database);
        roles.create(&place);
        let mut admin = place.admin();
        admin.run(&format!(
            "CREATE ROLE {} LOGIN; CREATE SCHEMA IF NOT EXISTS {schema}; CREATE EXTENSION tenant_rls SCHEMA {schema}",
            roles.absent,
            schema = place.schema
        ));
        admin.run(PLANS);
        admin.run(&tenants());
        admin.run(EDGE);
        admin.run(&grants(&roles));
        admin.run(&tables(&roles, place.schema));
        admin.run(&rows());
        use_up(&place, &roles);
        admin.run(&statuses());
        let state = state(&place);
        Original { place, roles, state }
    }
}

/// Installed rows changed, deleted, and deleted and defined again; own ones beside them.
const PLANS: &str = "
    SELECT tenant_plan_limit_set('free', 'api_requests', 500);
    UPDATE tenant_rls.plan_limits SET enforcement = 'soft' WHERE plan = 'free' AND resource = 'users';
    DELETE FROM tenant_rls.plan_limits WHERE plan = 'professional' AND resource IN ('users', 'projects');
    SELECT tenant_plan_limit_set('professional', 'projects', 7, mode => 'strict');
    DELETE FROM tenant_rls.plans WHERE plan IN ('enterprise', 'starter');
    SELECT tenant_plan_define('starter', 'free');
    DELETE FROM tenant_rls.resources WHERE resource IN ('storage_bytes', 'compute_seconds');
    SELECT tenant_resource_define('compute_seconds', 'counter', 'second', 'year');
    SELECT tenant_resource_define('orders', 'gauge', 'order', 'none');
    SELECT tenant_resource_define('parts', 'gauge', 'part', 'none');
    SELECT tenant_resource_define('doc_bytes', 'gauge', 'byte', 'none');
    SELECT tenant_plan_define('gold', 'free');
    SELECT tenant_plan_limit_set('gold', 'api_requests', NULL, unlimited => true, enforcement => 'shadow');
    SELECT tenant_plan_limit_set('gold', 'compute_seconds', 0, mode => 'leased');
    SELECT tenant_plan_limit_set(p.plan, r.resource, 100)
    FROM (VALUES ('free'), ('starter'), ('gold')) AS p (plan), (VALUES ('orders'), ('parts'), ('doc_bytes')) AS r (resource);
";

fn tenants() -> String {
    format!(
        "SELECT tenant_create('{A}', 'free', 'Ann''s \"A\"', 'eu', 101), tenant_create('{B}', tenant_key => 102);
         SELECT tenant_create('{SUSPENDED}', 'starter', tenant_key => 103);
         SELECT tenant_create('{FENCED}', 'starter', tenant_key => 104), tenant_create('{DELETED}');
         SELECT tenant_create('{BILLED}', 'gold', tenant_key => 106);
         UPDATE tenant_rls.tenants SET settings = '{{\"theme\": \"dark\"}}' WHERE tenant_id = '{A}';
         SELECT tenant_billing_set('{BILLED}', '2026-01-31 10:00+00', 'Europe/Zurich');
         SELECT tenant_billing_set('{BILLED}', '2026-02-15 10:00+00', 'America/New_York');
         SELECT tenant_quota_set('{A}', 'api_requests', 700, expires_at => '2999-01-01');
         SELECT tenant_quota_set('{B}', 'parts', NULL, unlimited => true);
         SELECT tenant_quota_set('{B}', 'api_requests', 1, expires_at => '2001-01-01');"
    )
}

/// Features, settings, deployments and releases, of everybody, a plan and a tenant each.
const EDGE: &str = r#"
    SELECT tenant_feature_define('checkout', 'false'), tenant_feature_define('theme', '{"color": 1.10}', salt => 'a "salt"');
    SELECT tenant_feature_define('gone', '1e400'), tenant_feature_switch('gone', false);
    SELECT tenant_feature_set('checkout', 'true', rollout_percent => 12.345, expires_at => '2999-01-01');
    SELECT tenant_feature_set('checkout', '"gold"', 'plan', plan => 'gold');
    SELECT tenant_feature_set('checkout', '"own"', 'tenant', tenant => t) FROM tenant_list() AS t WHERE t::text LIKE 'aaaa%';
    SELECT tenant_setting_set('size', '1', 'global'), tenant_setting_set('size', '2', 'plan', plan => 'gold');
    SELECT tenant_deployment_define('api', '{"image": "api:1", "replicas": 3, "location": {"host": "db"}}');
    SELECT tenant_deployment_define('api-gold', '{"image": "api:1-gold", "plans": ["gold"], "region": "eu", "tier": "gold"}');
    SELECT tenant_route_set(t, 'api-gold') FROM tenant_list() AS t WHERE t::text LIKE 'bbbb%';
    SELECT tenant_release('api', 'api:2', 100), tenant_release_promote(1);
    SELECT tenant_release('api', 'api:3', 0, tenants => ARRAY(SELECT t FROM tenant_list() AS t WHERE t::text LIKE 'aaaa%'));
    SELECT tenant_release('api-gold', 'api:3-gold', 55.5, plan => 'gold');
    SELECT tenant_release('api', 'api:4', 1), tenant_release_rollback(4);
"#;

/// The privileges of the absent role are taken back: GRANT to a role that does not exist is an error of the
/// server, which a dump of any database meets.
fn grants(roles: &Roles) -> String {
    let Roles { app, one, ticket, operator, absent, .. } = roles;
    format!(
        "SELECT tenant_grant({app}), tenant_grant({one}, '{A}'), tenant_grant({ticket}, '{B}', true);
         SELECT tenant_grant_operator({operator});
         SELECT tenant_grant({absent}), tenant_grant({absent}, '{A}'), tenant_grant_operator({absent});
         DROP OWNED BY {absent_name};",
        app = regrole(app),
        one = regrole(one),
        ticket = regrole(ticket),
        operator = regrole(operator),
        absent = regrole(absent),
        absent_name = ident(absent),
    )
}

/// Plain, partitioned and inherited; uuid, bigint and integer; forced and not; with a policy of its own.
fn tables(roles: &Roles, schema: &str) -> String {
    let Roles { owner, app, one, .. } = roles;
    let one = ident(one);
    format!(
        "CREATE SCHEMA \"App Data\" AUTHORIZATION {owner};
         GRANT CREATE ON SCHEMA public TO {owner};
         GRANT USAGE ON SCHEMA {schema} TO {owner};
         SET ROLE {owner};
         CREATE TABLE orders (id int PRIMARY KEY, tenant_id uuid, note text);
         GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES (id) ON orders TO {app} WITH GRANT OPTION;
         GRANT SELECT ON orders TO {one};
         CREATE TABLE {PARTS} (id int, \"Tenant Key\" bigint NOT NULL) PARTITION BY RANGE (id);
         CREATE TABLE \"App Data\".parts_low PARTITION OF {PARTS} FOR VALUES FROM (0) TO (100);
         CREATE TABLE \"App Data\".parts_high PARTITION OF {PARTS} FOR VALUES FROM (100) TO (200);
         CREATE TABLE docs (id int PRIMARY KEY, tenant_id int NOT NULL DEFAULT 0);
         CREATE TABLE docs_scanned (pages int) INHERITS (docs);
         CREATE TABLE notes (id int, tenant_id uuid, is_open boolean);
         ALTER TABLE notes ENABLE ROW LEVEL SECURITY;
         CREATE POLICY open_notes ON notes USING (is_open);
         GRANT USAGE ON SCHEMA \"App Data\" TO {app};
         GRANT SELECT, INSERT, UPDATE, DELETE ON {PARTS}, docs, docs_scanned, notes TO {app};
         SELECT tenant_protect('orders'), tenant_protect('{PARTS}', 'Tenant Key');
         SELECT tenant_protect('docs'), tenant_protect('notes', force => false);
         RESET ROLE;
         SELECT tenant_quota_attach('orders', 'orders'), tenant_quota_attach('{PARTS}', 'parts');
         SELECT tenant_quota_attach('docs', 'parts'), tenant_quota_attach('docs', 'doc_bytes');"
    )
}

fn rows() -> String {
    format!(
        "INSERT INTO orders VALUES (1, '{A}', 'a'), (2, '{A}', 'a'), (3, '{A}', 'a'), (4, '{B}', 'b'), (5, '{B}', 'b');
         INSERT INTO orders VALUES (6, '{SUSPENDED}', 'c'), (7, '{FENCED}', 'd'), (8, '{BILLED}', 'f');
         INSERT INTO {PARTS} VALUES (1, 101), (2, 102), (101, 101);
         INSERT INTO docs VALUES (1, 101);
         INSERT INTO docs_scanned VALUES (2, 101, 10), (3, 102, 20);
         INSERT INTO notes VALUES (1, '{A}', true), (2, '{A}', false), (3, '{B}', true);
         INSERT INTO tenant_rls.usage VALUES ('{A}', 'api_requests', '2025-01-01', '2025-02-01', 77);
         INSERT INTO tenant_rls.usage_history VALUES ('{A}', 'api_requests', '2024-12-01', '2025-01-01', 66);"
    )
}

/// Units that a restored database must go on from.
fn use_up(place: &Place, roles: &Roles) {
    for (tenant, resource, amount) in
        [(A, "api_requests", 42), (B, "projects", 1), (BILLED, "api_requests", 5)]
    {
        let mut app = place.connect_as(&roles.app, tenant);
        app.run(&format!("SELECT FROM tenant_quota_consume('{resource}', {amount}, 'restored')"));
    }
    let mut app = place.connect_as(&roles.app, BILLED);
    app.run("SELECT FROM tenant_quota_reserve('api_requests', 50, '1 day', 'held')");
}

fn statuses() -> String {
    format!(
        "SELECT tenant_suspend('{SUSPENDED}', 'unpaid'), tenant_fence('{FENCED}'), tenant_delete('{DELETED}')"
    )
}
