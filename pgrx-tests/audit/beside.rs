//! tenant_audit beside pgrls, an audit of row level security that runs outside the database: on the broken databases of
//! [`breaks`](super::breaks), and on one that is broken for each rule of pgrls.
//!
//! `make audit-pgrls` prints both findings, code by code. Without pgrls, the rules that tenant_audit covers are tested.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;
use std::{env, fs};

use super::breaks::{self, CASES};
use crate::harness::{Db, Session};

/// A rule of pgrls.
struct Rule {
    id: &'static str,
    /// A way to break the database that pgrls finds under this rule; empty where the rule is about something else than
    /// a database of ours can have.
    broken: &'static str,
    /// Codes under which tenant_audit finds the same, separated by commas; empty if it has none.
    codes: &'static str,
}

const fn rule(id: &'static str, codes: &'static str, broken: &'static str) -> Rule {
    Rule { id, broken, codes }
}

/// Every rule of pgrls. Why some have no code: docs/audit.md.
const RULES: &[Rule] = &[
    rule("SEC001", "table_unprotected", "CREATE TABLE shop.more (tenant_id text NOT NULL); GRANT SELECT ON shop.more TO @app"),
    rule("SEC002", "not_forced", "ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY"),
    rule("SEC003", "permissive_policy", "CREATE POLICY p ON shop.orders FOR SELECT USING (id > 0)"),
    rule("SEC004", "policy_session", "CREATE TABLE shop.plain (who text); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON shop.plain TO @app USING (current_setting('app.who', true) IS NULL OR who = current_setting('app.who', true))"),
    rule("SEC005", "policy_constant", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (1 = 1)"),
    rule("SEC006", "policy_constant", "CREATE POLICY p ON shop.orders AS RESTRICTIVE FOR INSERT"),
    rule("SEC007", "policy_missing", "DROP POLICY tenant_boundary ON shop.orders"),
    rule("SEC008", "policy_constant", "CREATE TABLE shop.plain (n int); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON shop.plain TO @app USING (true)"),
    rule("SEC009", "privilege_without_policy", "CREATE TABLE shop.plain (n int); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY;
         GRANT SELECT ON shop.plain TO @app"),
    rule("SEC010", "policy_constant", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (false)"),
    rule("SEC011", "policy_constant", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (note = 'x' OR true)"),
    rule("SEC012", "policy_missing,privilege_without_policy", "DROP POLICY tenant_isolation ON shop.orders"),
    rule("SEC013", "definer_trigger", "CREATE FUNCTION shop.f() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = shop, pg_temp
         AS 'BEGIN RETURN NEW; END';
         CREATE TRIGGER g BEFORE INSERT ON shop.orders FOR EACH ROW EXECUTE FUNCTION shop.f()"),
    rule("SEC014", "definer_function", "CREATE FUNCTION shop.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = shop, pg_temp
         AS 'SELECT count(*) FROM orders'"),
    rule("SEC015", "definer_search_path", "CREATE FUNCTION shop.f() RETURNS int LANGUAGE sql SECURITY DEFINER AS 'SELECT 1'"),
    rule("SEC016", "bypass_role", "ALTER ROLE @other BYPASSRLS"),
    rule("SEC017", "leakproof_function", "CREATE FUNCTION shop.f(text) RETURNS boolean LEAKPROOF LANGUAGE sql AS 'SELECT true'"),
    rule("SEC018", "policy_session", "CREATE TABLE shop.plain (who text); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON shop.plain TO @app USING (who = current_user)"),
    rule("SEC019", "policy_session", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (note = current_setting('app.who'))"),
    rule("SEC020", "policy_constant", "CREATE TABLE shop.plain (n int); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON shop.plain TO @app USING (n = 1) WITH CHECK (true)"),
    rule("SEC021", "tenant_in_catalog", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (tenant_id = '@tenant')"),
    rule("SEC022", "privilege_without_policy", "CREATE TABLE shop.plain (n int); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON shop.plain FOR SELECT TO @app USING (n = 1); GRANT SELECT, UPDATE ON shop.plain TO @app"),
    rule("SEC023", "bypass_role", "ALTER ROLE @other BYPASSRLS; CREATE POLICY p ON shop.orders AS RESTRICTIVE TO @other USING (id > 0)"),
    rule("SEC024", "policy_session", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (note = current_setting('who', true))"),
    rule("SEC025", "policy_reads_open", "CREATE TABLE shop.members (id int, name text); GRANT SELECT, INSERT ON shop.members TO @app;
         CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (EXISTS (SELECT FROM shop.members AS m WHERE m.id = customer))"),
    rule("SEC026", "policy_session", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (note LIKE current_setting('app.who', true))"),
    rule("SEC027", "", "CREATE TABLE shop.drafts (tenant_id uuid NOT NULL, owner_id int); SELECT tenant_protect('shop.drafts')"),
    rule("SEC028", "policy_constant", "CREATE TABLE shop.plain (n int); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON shop.plain FOR INSERT TO @app WITH CHECK (true)"),
    rule("SEC029", "app_role_becomes", "ALTER ROLE @other BYPASSRLS; GRANT @other TO @app"),
    rule("SEC030", "tenant_column_nullable", "ALTER TABLE shop.free ALTER COLUMN tenant_id DROP NOT NULL"),
    rule("SEC031", "policy_constant", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (true)"),
    rule("SEC032", "rls_off", "ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY"),
    rule("SEC033", "policy_session", "CREATE POLICY p ON shop.orders AS RESTRICTIVE
         USING (current_setting('request.jwt.claims', true)::jsonb -> 'user_metadata' ->> 'role' = note)"),
    rule("SEC034", "", ""),
    rule("SEC035", "unique_without_tenant", "ALTER TABLE shop.orders ADD CONSTRAINT k UNIQUE (note, id)"),
    rule("SEC036", "", ""),
    rule("SEC037", "", ""),
    rule("SEC038", "policy_session", "CREATE TABLE shop.plain (who text); ALTER TABLE shop.plain ENABLE ROW LEVEL SECURITY;
         CREATE POLICY p ON shop.plain TO @app USING (NOT (current_setting('app.who', true) IS NOT NULL) OR who = current_setting('app.who', true))"),
    rule("SEC039", "permissive_policy", "CREATE POLICY p ON shop.orders FOR INSERT TO @app WITH CHECK (id > 0)"),
    rule("SEC040", "policy_changed", "ALTER POLICY tenant_isolation ON shop.orders WITH CHECK (note = 'x')"),
    rule("SEC041", "partition_unprotected", "CREATE TABLE shop.events_2 (LIKE shop.events); ALTER TABLE shop.events_2 OWNER TO @owner;
         ALTER TABLE shop.events ATTACH PARTITION shop.events_2 FOR VALUES FROM ('2027-01-01') TO ('2028-01-01'); GRANT SELECT ON shop.events_2 TO @app"),
    rule("SEC042", "definer_function", "CREATE FUNCTION shop.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = shop, pg_temp
         AS 'SELECT count(*) FROM orders'"),
    rule("SEC043", "partition_unprotected", "CREATE TABLE shop.child () INHERITS (shop.orders); GRANT SELECT ON shop.child TO @app"),
    rule("SEC044", "default_privileges", "ALTER DEFAULT PRIVILEGES FOR ROLE @owner IN SCHEMA shop GRANT SELECT ON TABLES TO PUBLIC"),
    rule("SEC045", "public_privilege", "ALTER TABLE shop.customers ADD COLUMN email text; GRANT SELECT (email) ON shop.customers TO PUBLIC"),
    rule("SEC046", "immutable_policy", "CREATE FUNCTION shop.who() RETURNS text IMMUTABLE LANGUAGE sql AS $$ SELECT current_setting('app.who', true) $$;
         CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (note = shop.who())"),
    rule("SEC047", "fk_without_tenant", "ALTER TABLE shop.customers ADD UNIQUE (id);
         ALTER TABLE shop.orders ADD COLUMN buyer int CONSTRAINT f REFERENCES shop.customers (id)"),
    rule("SEC048", "app_role_becomes,not_forced", "ALTER TABLE shop.orders NO FORCE ROW LEVEL SECURITY; GRANT @owner TO @app"),
    rule("SEC049", "rls_off", "ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY"),
    rule("SEC050", "", ""),
    rule("SEC051", "publication_unfiltered,rls_off", "ALTER TABLE shop.orders DISABLE ROW LEVEL SECURITY;
         CREATE PUBLICATION supabase_realtime FOR TABLE shop.orders"),
    rule("SEC052", "", ""),
    rule("SEC053", "foreign_table", "CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
         CREATE FOREIGN TABLE shop.far (tenant_id uuid, n int) SERVER s; GRANT SELECT ON shop.far TO @app"),
    rule("SEC054", "materialized_view", "CREATE MATERIALIZED VIEW shop.m AS SELECT * FROM shop.orders; GRANT SELECT ON shop.m TO @app"),
    rule("SEC055", "policy_session", "CREATE FUNCTION shop.require_tenant() RETURNS text STABLE LANGUAGE sql AS 'SELECT public.required_tenant()::text';
         CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (note = shop.require_tenant());
         CREATE POLICY p ON shop.customers AS RESTRICTIVE USING (name = current_setting('app.current_tenant', true))"),
    rule("PERF001", "policy_session", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (note = current_setting('app.who', true))"),
    rule("PERF002", "volatile_policy", "CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (random() < 2)"),
    rule("PERF003", "tenant_index_missing", "DROP INDEX shop.free_tenant_id_idx"),
    rule("PERF004", "", "CREATE INDEX ON shop.orders (note); CREATE POLICY p ON shop.orders AS RESTRICTIVE USING (lower(note) = 'x')"),
    rule("PERF005", "", ""),
    rule("HYG001", "", ""),
    rule("HYG002", "", "CREATE POLICY todo ON shop.orders AS RESTRICTIVE USING (id > 0)"),
    rule("HYG003", "policy_duplicate", "CREATE POLICY a ON shop.orders AS RESTRICTIVE USING (id > 0); CREATE POLICY b ON shop.orders AS RESTRICTIVE USING (id > 0)"),
    rule("HYG004", "", ""),
    rule("VIEW001", "definer_view", "CREATE VIEW shop.v AS SELECT * FROM shop.orders"),
    rule("VIEW002", "", "CREATE VIEW shop.v WITH (security_invoker) AS SELECT * FROM shop.orders"),
    rule("VIEW003", "materialized_view", "CREATE MATERIALIZED VIEW shop.m AS SELECT * FROM shop.orders; GRANT SELECT ON shop.m TO @app"),
    rule("VIEW004", "definer_function", "CREATE FUNCTION shop.f() RETURNS bigint LANGUAGE sql SECURITY DEFINER SET search_path = shop, pg_temp
         AS 'SELECT count(*) FROM shop.orders';
         CREATE VIEW shop.v WITH (security_invoker) AS SELECT shop.f()"),
];

/// pgrls, as its user would set it up for a database of [`sound`](super::sound): the schemas, the role that clients act
/// as, and the function that its policies compare with. Its own defaults are those of Supabase.
struct Pgrls {
    program: String,
    /// What it finds before anything is broken.
    before: BTreeSet<Finding>,
}

type Finding = (String, String, String);

impl Pgrls {
    fn from_env() -> Option<Pgrls> {
        let program = env::var("TENANT_RLS_PGRLS").ok()?;
        let mut pgrls = Pgrls { program, before: BTreeSet::new() };
        pgrls.before = pgrls.findings(&breaks::before());
        Some(pgrls)
    }

    /// Rule, location and message of each finding; roles are called as in a case.
    fn findings(&self, db: &Db) -> BTreeSet<Finding> {
        let (host, port) = db.address();
        let superuser: String = db.admin().one("SELECT session_user::text");
        let config =
            env::temp_dir().join(format!("tenant_rls-pgrls-{}-{}.toml", std::process::id(), db.name()));
        fs::write(&config, configuration(&db.app())).expect("a configuration is written");
        let output = Command::new(&self.program)
            .args(["lint", "--format", "json", "--schemas", "public,shop,tenant_rls", "--config"])
            .arg(&config)
            .args(["--database-url", &format!("postgresql://{superuser}@{host}:{port}/{}", db.name())])
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", self.program));
        fs::remove_file(&config).expect("a configuration is removed");
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{}: {error}: {}", self.program, String::from_utf8_lossy(&output.stderr))
        });
        let text = |finding: &serde_json::Value, key: &str| {
            let text = finding[key].as_str().expect("a text");
            ["app", "owner", "other"]
                .iter()
                .fold(text.to_string(), |text, role| text.replace(&db.role_name(role), &format!("@{role}")))
        };
        answer["violations"]
            .as_array()
            .expect("findings")
            .iter()
            .map(|finding| (text(finding, "rule_id"), text(finding, "location"), text(finding, "message")))
            .collect()
    }
}

fn configuration(app: &str) -> String {
    let mut text = String::new();
    for rule in ["SEC030", "SEC035", "SEC040"] {
        text += &format!(
            "[lint.rules.{rule}]\nauth_functions = [\"current_setting\", \"public.required_tenant\", \"required_tenant\"]\n"
        );
    }
    // Policies of PUBLIC are SEC003's.
    text += &format!("[lint.rules.SEC039]\nanon_roles = [\"{app}\"]\n");
    for (rule, key) in [("SEC042", "anon_roles"), ("SEC045", "grantees"), ("SEC047", "low_trust_roles")] {
        text += &format!("[lint.rules.{rule}]\n{key} = [\"{app}\", \"PUBLIC\"]\n");
    }
    for rule in ["SEC049", "SEC052", "SEC053", "SEC054"] {
        text += &format!(
            "[lint.rules.{rule}]\nschemas = [\"public\", \"shop\"]\ngrantees = [\"{app}\", \"PUBLIC\"]\n"
        );
    }
    text
}

/// The codes of tenant_audit and the rules of pgrls that are found after a database is broken, and not before.
#[derive(Default)]
struct Found {
    audit: BTreeSet<String>,
    pgrls: BTreeSet<String>,
}

fn find(broken: &str, pgrls: Option<&Pgrls>) -> Found {
    let audit = |db: &Db| -> BTreeSet<(String, String)> {
        db.admin()
            .rows("SELECT code, object FROM tenant_audit()")
            .iter()
            .map(|row| (row.get(0), row.get(1)))
            .collect()
    };
    let db = breaks::before();
    let before = audit(&db);
    db.breaker().run(&breaks::fill(&db, broken));
    let found = Found {
        audit: audit(&db).difference(&before).map(|(code, _)| code.clone()).collect(),
        pgrls: pgrls.map_or_else(BTreeSet::new, |pgrls| {
            pgrls.findings(&db).difference(&pgrls.before).map(|(rule, ..)| rule.clone()).collect()
        }),
    };
    breaks::restore_roles(&db);
    db.discard();
    found
}

fn codes(rule: &Rule) -> impl Iterator<Item = &'static str> {
    rule.codes.split(',').filter(|code| !code.is_empty())
}

/// What pgrls finds on a database that is broken for one of its rules, tenant_audit finds under the codes that the
/// documents name.
///
/// With TENANT_RLS_PGRLS, the program, it is asked too, and the findings of both go into TENANT_RLS_PGRLS_REPORT.
#[test]
fn what_a_rule_of_pgrls_finds_is_found() {
    let pgrls = Pgrls::from_env();
    let pgrls = pgrls.as_ref();
    let breakable: Vec<&Rule> = RULES.iter().filter(|rule| !rule.broken.is_empty()).collect();
    let check = |rule: &Rule| {
        let found = find(rule.broken, pgrls);
        for code in codes(rule) {
            assert!(found.audit.contains(code), "{}: {code} is not found, but {:?}", rule.id, found.audit);
        }
        assert!(
            pgrls.is_none() || found.pgrls.contains(rule.id),
            "{} is not found by pgrls, but {:?}",
            rule.id,
            found.pgrls
        );
        found
    };
    if pgrls.is_none() {
        std::thread::scope(|scope| {
            for rules in breakable.chunks(breakable.len().div_ceil(4)) {
                scope.spawn(move || {
                    rules.iter().filter(|rule| !rule.codes.is_empty()).for_each(|rule| drop(check(rule)))
                });
            }
        });
        return;
    }
    // Roles that policies do not hold are of the whole cluster, and pgrls looks at all: one after the other.
    let cases: Vec<(&str, Found)> = CASES.iter().map(|case| (case.code, find(case.broken, pgrls))).collect();
    let rules: Vec<(&str, Found)> = breakable.iter().map(|rule| (rule.id, check(rule))).collect();
    let file = env::var("TENANT_RLS_PGRLS_REPORT").expect("where the report goes");
    fs::write(&file, report(&cases, &rules)).expect("the report is written");
}

fn report(cases: &[(&str, Found)], rules: &[(&str, Found)]) -> String {
    let list = |set: &BTreeSet<String>| {
        if set.is_empty() { "-".to_string() } else { set.iter().cloned().collect::<Vec<_>>().join(" ") }
    };
    let mut codes: BTreeMap<&str, (usize, usize, usize, BTreeSet<String>)> = BTreeMap::new();
    for (code, found) in cases {
        let (all, by_us, by_pgrls, rules) = codes.entry(code).or_default();
        *all += 1;
        *by_us += usize::from(found.audit.contains(*code));
        *by_pgrls += usize::from(!found.pgrls.is_empty());
        rules.extend(found.pgrls.iter().cloned());
    }
    let mut text = format!("{:<26} broken  tenant_audit  pgrls  rules of pgrls\n", "code");
    for (code, (all, by_us, by_pgrls, rules)) in &codes {
        text += &format!("{code:<26} {all:>6}  {by_us:>12}  {by_pgrls:>5}  {}\n", list(rules));
    }
    text += &format!("\n{:<9} {:<46} pgrls\n", "rule", "tenant_audit");
    for (rule, found) in rules {
        text += &format!("{rule:<9} {:<46} {}\n", list(&found.audit), list(&found.pgrls));
    }
    let by_us: usize = codes.values().map(|(_, by_us, ..)| by_us).sum();
    let by_pgrls: usize = codes.values().map(|(_, _, by_pgrls, _)| by_pgrls).sum();
    let only: Vec<&str> =
        rules.iter().filter(|(_, found)| found.audit.is_empty()).map(|(rule, _)| *rule).collect();
    text += &format!(
        "\nbroken for a code of tenant_audit: {0} databases; tenant_audit finds {by_us}, pgrls {by_pgrls}\n\
         broken for a rule of pgrls: {1} databases; pgrls finds {1}, tenant_audit {2}\n\
         found by pgrls alone: {3}\n\
         rules of pgrls that no database of ours can break: {4}\n",
        cases.len(),
        rules.len(),
        rules.len() - only.len(),
        if only.is_empty() { "nothing".to_string() } else { only.join(" ") },
        RULES.iter().filter(|rule| rule.broken.is_empty()).map(|rule| rule.id).collect::<Vec<_>>().join(" "),
    );
    text
}

/// The documents name, for every rule of pgrls, the codes that find the same.
#[test]
fn the_documents_name_every_rule_of_pgrls() {
    let page = include_str!("../../docs/audit.md");
    let mut named = BTreeMap::new();
    for line in page.lines().filter(|line| {
        line.starts_with("| SEC")
            || line.starts_with("| PERF")
            || line.starts_with("| HYG")
            || line.starts_with("| VIEW")
    }) {
        let (rules, answer) = line[2..].split_once(" | ").expect("two columns");
        for rule in rules.split(", ") {
            assert!(named.insert(rule, answer).is_none(), "{rule} is named twice");
        }
    }
    assert_eq!(named.keys().copied().collect::<BTreeSet<_>>(), RULES.iter().map(|rule| rule.id).collect());
    for rule in RULES {
        for code in codes(rule) {
            assert!(named[rule.id].contains(&format!("`{code}`")), "{}: {code}", rule.id);
        }
    }
}
