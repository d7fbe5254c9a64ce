//! Guards taken out: with each of them gone, attacks succeed. Those that are parts of the source are patches of
//! scripts/mutations.txt.

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::world::Worlds;
use super::{Attack, Copies, classes, try_attack};
use crate::harness::{Db, Session};

/// Runs for every protected table, or every one that the condition selects.
macro_rules! tables {
    ($condition:expr, $statement:expr) => {
        concat!(
            "DO $do$ DECLARE t text; BEGIN FOR t IN SELECT relation::text FROM tenant_rls.protected_tables WHERE ",
            $condition,
            " LOOP EXECUTE replace($st$",
            $statement,
            "$st$, '%t', t); END LOOP; END $do$"
        )
    };
}

/// A guard of the database, what the attacks on it say that they meet, and the statements that take it out.
const GUARDS: &[(&str, &str, &str)] = &[
    ("row security is off", "policy,force,members,check,row security,required,boundary,start hook,statistics", tables!("true", "ALTER TABLE %t DISABLE ROW LEVEL SECURITY")),
    ("row security is not forced", "force", tables!("true", "ALTER TABLE %t NO FORCE ROW LEVEL SECURITY")),
    ("partitions and children are open", "members,policy,check", tables!("relation <> root", "ALTER TABLE %t DISABLE ROW LEVEL SECURITY")),
    ("no boundary", "boundary", tables!("true", "DROP POLICY tenant_boundary ON %t")),
    ("rows may be written for anybody", "check,boundary", tables!("true", "ALTER POLICY tenant_boundary ON %t WITH CHECK (true); ALTER POLICY tenant_isolation ON %t WITH CHECK (true)"),
    ),
    ("rows of anybody may be read", "policy,members,statistics", tables!("true", "ALTER POLICY tenant_boundary ON %t USING (true); ALTER POLICY tenant_isolation ON %t USING (true)"),
    ),
    ("a keyed table is open", "policy,check", tables!("key_type <> 'uuid'", "ALTER TABLE %t DISABLE ROW LEVEL SECURITY")),
    ("TRUNCATE is granted", "truncate privilege", tables!("true", "GRANT TRUNCATE ON %t TO PUBLIC")),
    ("REFERENCES is granted", "references privilege", tables!("true", "GRANT REFERENCES ON %t TO PUBLIC")),
    ("TRIGGER is granted", "trigger privilege", tables!("true", "GRANT TRIGGER ON %t TO PUBLIC")),
    ("policies trust the setting", "held,invalidation,reborn,generation,failed mark,required,one statement,search path", "CREATE OR REPLACE FUNCTION public.required_tenant() RETURNS uuid LANGUAGE sql STABLE AS
         $$ SELECT nullif(current_setting('app.current_tenant', true), '')::uuid $$;
         CREATE OR REPLACE FUNCTION public.required_tenant_key() RETURNS bigint LANGUAGE sql STABLE AS
         $$ SELECT CASE current_setting('app.current_tenant', true) WHEN '{A}' THEN 1 WHEN '{B}' THEN 2 END::bigint $$",
    ),
    ("every role may act for every tenant", "grant,same error,outer role,held,catalog rights", "SELECT tenant_grant(r) FROM unnest(ARRAY['{app}', '{owner}', '{operator}', '{stranger}']::regrole[]) AS r"),
    ("grants to roles are not looked at", "grant,same error,outer role,failed mark", "INSERT INTO tenant_rls.grants (role_name, tenant_id) VALUES ('{app}', '{B}'), ('{app}', '{C}'), ('{owner}', '{B}')"),
    ("the registry tells nobody of changes", "invalidation,fence,reborn", "DO $$ DECLARE t text; BEGIN FOR t IN SELECT tgrelid::regclass FROM pg_trigger WHERE tgname = 'registry_changed' LOOP
         EXECUTE 'DROP TRIGGER registry_changed ON ' || t; END LOOP; END $$",
    ),
    ("triggers of the registry are not ALWAYS", "invalidation", "DO $$ DECLARE t text; BEGIN FOR t IN SELECT tgrelid::regclass FROM pg_trigger WHERE tgname = 'registry_changed' LOOP
         EXECUTE 'ALTER TABLE ' || t || ' ENABLE TRIGGER registry_changed'; END LOOP; END $$"),
    ("our tables are granted", "our privileges", "GRANT USAGE ON SCHEMA tenant_rls TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA tenant_rls TO PUBLIC",
    ),
    ("our tables have no row security", "our row security", "DO $$ DECLARE t text; BEGIN FOR t IN SELECT c.oid::regclass FROM pg_class AS c WHERE relnamespace = 'tenant_rls'::regnamespace AND relkind = 'r' LOOP
         EXECUTE 'ALTER TABLE ' || t || ' DISABLE ROW LEVEL SECURITY'; END LOOP; END $$",
    ),
    ("our tables are granted and have no row security", "our privileges", "GRANT USAGE ON SCHEMA tenant_rls TO PUBLIC; GRANT ALL ON ALL TABLES IN SCHEMA tenant_rls TO PUBLIC;
         DO $$ DECLARE t text; BEGIN FOR t IN SELECT c.oid::regclass FROM pg_class AS c WHERE relnamespace = 'tenant_rls'::regnamespace AND relkind = 'r' LOOP
         EXECUTE 'ALTER TABLE ' || t || ' DISABLE ROW LEVEL SECURITY'; END LOOP; END $$",
    ),
    ("our functions are granted", "our functions,our privileges", "GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA public TO PUBLIC; GRANT EXECUTE ON ALL FUNCTIONS IN SCHEMA tenant_rls TO PUBLIC; GRANT USAGE ON SCHEMA tenant_rls TO PUBLIC"),
    ("our event trigger does not close tables", "boundary stays", "DROP EVENT TRIGGER IF EXISTS none; ALTER EVENT TRIGGER tenant_rls_close_before_drop DISABLE"),
    ("commands are not watched", "ddl guard", "ALTER EVENT TRIGGER tenant_rls_ddl_guard DISABLE; ALTER EVENT TRIGGER tenant_rls_drop_guard DISABLE"),
    ("the guard lets everything through", "ddl guard", "ALTER DATABASE {db} SET tenant_rls.ddl_guard = off"),
    ("a missing tenant is silent", "required,start hook,failed mark,settings", "ALTER ROLE {app} SET tenant_rls.missing_tenant = 'empty'"),
    ("the usage views are no barriers", "usage barrier", "ALTER VIEW tenant_usage RESET (security_barrier); ALTER VIEW tenant_usage_history RESET (security_barrier); ALTER VIEW tenant_quota_events RESET (security_barrier); ALTER VIEW tenant_storage RESET (security_barrier); ALTER VIEW tenant_leases RESET (security_barrier)",
    ),
    ("everybody sees all usage", "usage rights,usage barrier", "CREATE OR REPLACE FUNCTION tenant_rls.sees_all() RETURNS boolean LANGUAGE sql STABLE AS 'SELECT true'"),
    ("the usage history has no filter", "usage rights,usage barrier", "CREATE OR REPLACE VIEW tenant_usage_history AS SELECT u.tenant_id AS tenant, u.resource, u.period_start, u.resets_at AS period_end, u.used FROM tenant_rls.usage AS u",
    ),
    ("gauges do not follow rows", "gauge trigger", "DO $$ DECLARE r record; BEGIN FOR r IN SELECT tgrelid::regclass AS t, tgname FROM pg_trigger WHERE tgfoid = 'public.tenant_gauge_changed'::regproc LOOP
         EXECUTE format('ALTER TABLE %s DISABLE TRIGGER %I', r.t, r.tgname); END LOOP; END $$",
    ),
    ("functions of ours have no search_path", "function path", "ALTER FUNCTION tenant_protect(regclass, name, boolean) RESET search_path; ALTER FUNCTION tenant_protect_schema(regnamespace) RESET search_path"),
    ("a definer function of the tables has no search_path", "search path", "ALTER FUNCTION orders_of_owner() RESET search_path; ALTER FUNCTION switch_as_owner(text) RESET search_path"),
    ("foreign keys do not name the tenant", "key with tenant", "ALTER TABLE items DROP CONSTRAINT items_tenant_id_order_id_fkey",
    ),
    ("the app may do what the owner may", "catalog rights,owner check,trigger privilege,references privilege,truncate privilege", "GRANT {owner} TO {app}"),
    ("the app may create objects", "catalog rights", "GRANT CREATE ON SCHEMA public TO {app}; GRANT CREATE ON SCHEMA tenant_rls TO {app}"),
    ("a plan without a limit has one", "limit,no limit", "INSERT INTO tenant_rls.plan_limits VALUES ('free', 'users', 100, 'hard') ON CONFLICT (plan, resource) DO UPDATE SET quota_limit = NULL; UPDATE tenant_rls.plan_limits SET quota_limit = NULL WHERE plan = 'free'"),
    ("limits are not hard", "limit", "UPDATE tenant_rls.plan_limits SET enforcement = 'shadow' WHERE plan = 'free'"),
    ("a gauge is a counter's equal", "gauge only", "UPDATE tenant_rls.resources SET kind = 'gauge', period = 'none' WHERE resource = 'calls'"),
    ("the gauge is detached", "attached,gauge trigger", "SELECT tenant_quota_detach('papers', 'papers')"),
    ("the app is a superuser", "catalog rights,our privileges,our functions,owner check,settings,operator check,row security,usage rights", "ALTER ROLE {app} SUPERUSER"),
    ("the operator is granted what an app is", "our functions", "SELECT tenant_grant('{operator}')"),
    ("the app is an operator", "our functions,operator check,usage rights", "SELECT tenant_grant_operator('{app}'); GRANT {operator} TO {app}"),
    ("names of resources are taken as they come", "unknown resource", "SELECT tenant_resource_define('Calls', 'counter', 'call', 'year'), tenant_resource_define('calls ', 'counter', 'call', 'year'), tenant_resource_define('nothing', 'counter', 'call', 'year')"),
];

/// What is no guard of the extension: privileges of the server, and what applications have made with care.
const NOT_OURS: [&str; 5] = [
    "the app is a superuser",
    "the app may do what the owner may",
    "the app may create objects",
    "a definer function of the tables has no search_path",
    "foreign keys do not name the tenant",
];

/// A guard that can be taken out, and how.
struct Mutation {
    name: String,
    /// The attacks that say that they meet one of these are tried.
    meets: Vec<String>,
    /// What is out of the library (scripts/mutations.txt).
    without: String,
    /// What is run in the database that is attacked.
    statements: String,
    /// What a superuser runs when it is over.
    after: String,
}

impl Mutation {
    fn of_the_database((name, meets, statements): &(&str, &str, &str)) -> Mutation {
        let fields = [name, meets, "", statements, ""].map(String::from);
        Mutation::new(&fields)
    }

    /// A line of `scripts/mutations.py list`; nothing for one that only tests notice.
    fn of_the_source(line: &str) -> Option<Mutation> {
        let fields: Vec<String> = line.split('\x1f').map(String::from).collect();
        (!fields[1].is_empty()).then(|| Mutation::new(&fields))
    }

    fn new(fields: &[String]) -> Mutation {
        let [name, meets, without, statements, after, ..] = fields else { panic!("{fields:?}") };
        Mutation {
            name: name.clone(),
            meets: meets.split(',').map(|label| label.trim().to_string()).collect(),
            without: without.clone(),
            statements: statements.clone(),
            after: after.clone(),
        }
    }

    /// Nothing is out: what is red now is broken anyway.
    fn nothing(attacks: &[Attack]) -> Mutation {
        let labels: BTreeSet<&str> = attacks.iter().map(|attack| attack.guard).collect();
        let labels: Vec<&str> = labels.into_iter().collect();
        Mutation::new(&["nothing", &labels.join(","), "", "", ""].map(String::from))
    }

    /// The attacks of these that notice it.
    fn noticed(&self, attacks: &[&Attack]) -> BTreeSet<&'static str> {
        let server = Db::without_extension();
        take_out(&server, &self.without);
        let worlds = Worlds::new(&self.statements);
        let red = red(attacks, &worlds);
        let mut admin = worlds.with_b.admin();
        self.after.split(';').filter(|sql| !sql.trim().is_empty()).for_each(|sql| admin.run(sql));
        take_out(&server, "");
        red
    }
}

/// Tells the library, which scripts/mutate-attacks has built, what to do without.
fn take_out(server: &Db, without: &str) {
    let mut admin = server.admin();
    if admin.one("SELECT current_setting('tenant_rls.without', true) IS NULL") {
        assert_eq!(without, "", "this library has no mutations");
        return;
    }
    admin.run(&format!("ALTER SYSTEM SET tenant_rls.without = '{without}'"));
    admin.run("SELECT pg_reload_conf()");
    while server.admin().one::<String>("SHOW tenant_rls.without") != without {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

/// Prints which attacks notice which guard. `make attacks-mutation` calls it with a file to report to; without one
/// it makes sure that the guards can be taken out at all, and that the first one is noticed.
#[test]
fn guards() {
    let attacks: Vec<Attack> = classes().into_iter().flat_map(|(_, attacks)| attacks).collect();
    let Some(report) = std::env::var_os("TENANT_RLS_MUTATION_REPORT") else {
        let worlds = Worlds::new(GUARDS[0].2);
        let noticed = attacks
            .iter()
            .filter(|attack| attack.name.starts_with("select"))
            .all(|attack| !try_attack(attack, &mut Copies::of(&worlds)).is_empty());
        assert!(noticed, "a world without row security looks as one with it");
        return;
    };
    let mut report = std::fs::OpenOptions::new().append(true).create(true).open(report).expect("the report");
    let mut line = |text: String| writeln!(report, "{text}").expect("the report");
    for attack in &attacks {
        let kind = if attack.leak.is_some() { "leak" } else { "attack" };
        line(format!("{kind}\t{}\t{}", attack.name, attack.guard));
    }
    let source =
        std::env::var("TENANT_RLS_MUTATIONS").map(|path| std::fs::read_to_string(path).expect("a list"));
    let source = source.unwrap_or_default();
    let only = std::env::var("TENANT_RLS_MUTATION_ONLY").unwrap_or_default();
    let mutations = std::iter::once(Mutation::nothing(&attacks))
        .chain(GUARDS.iter().map(Mutation::of_the_database))
        .chain(source.lines().filter_map(Mutation::of_the_source));
    let is_wanted = |mutation: &Mutation| match only.as_str() {
        "--source" => !mutation.without.is_empty(),
        part => mutation.name.contains(part),
    };
    for mutation in mutations.filter(is_wanted) {
        let unknown =
            mutation.meets.iter().find(|label| attacks.iter().all(|attack| attack.guard != **label));
        assert_eq!(unknown, None, "{}: no attack meets this", mutation.name);
        let tried: Vec<&Attack> = attacks
            .iter()
            .filter(|attack| mutation.meets.iter().any(|label| label == attack.guard))
            .collect();
        let red = mutation.noticed(&tried);
        for name in &red {
            line(format!("red\t{}\t{name}", mutation.name));
        }
        let kind = if NOT_OURS.contains(&mutation.name.as_str()) { "server" } else { "guard" };
        line(format!("{kind}\t{}\t{}\t{}", mutation.name, red.len(), tried.len()));
    }
}

/// The attacks that notice that a guard is gone from these worlds.
fn red(attacks: &[&Attack], worlds: &Worlds) -> BTreeSet<&'static str> {
    let next = AtomicUsize::new(0);
    let red = Mutex::new(BTreeSet::new());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut copies = Copies::of(worlds);
                while let Some(attack) = attacks.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if !try_attack(attack, &mut copies).is_empty() {
                        red.lock().unwrap().insert(attack.name);
                    }
                }
            });
        }
    });
    red.into_inner().unwrap()
}
