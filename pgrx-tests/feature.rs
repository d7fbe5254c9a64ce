//! Features: which value a tenant gets, and why.

use postgres::Client;
use serde_json::{Value, json};
use tenant_rls::feature::bucket::{BUCKETS, bucket};
use tenant_rls::tenant::TenantId;

use crate::harness::{A, B, Db, Session, answer, eventually, refuses};

/// A database with A on plan free and B on plan starter, and features of every kind.
fn shop() -> (Db, Client) {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_plan_change('{B}', 'starter')"));
    (db, admin)
}

fn feature(client: &mut Client, name: &str) -> Value {
    answer(client, &format!("tenant_feature('{name}')"))
}

fn resolved(value: Value, variant: &str, reason: &str) -> Value {
    json!({"value": value, "variant": variant, "reason": reason, "error_code": null})
}

/// The tenant's own value, its plan's, everybody's, the default, in this order; the reasons are those of OpenFeature.
#[test]
fn the_nearest_value_wins() {
    let (db, mut admin) = shop();
    let (mut a, mut b) = (db.connect_as(&db.app(), A), db.connect_as(&db.app(), B));
    admin.run("SELECT tenant_feature_define('theme', '\"plain\"')");
    assert_eq!(feature(&mut a, "theme"), resolved(json!("plain"), "default", "DEFAULT"));
    admin.run("SELECT tenant_feature_set('theme', '\"blue\"')");
    assert_eq!(feature(&mut a, "theme"), resolved(json!("blue"), "global", "STATIC"));
    admin.run("SELECT tenant_feature_set('theme', '\"silver\"', scope => 'plan', plan => 'starter')");
    assert_eq!(feature(&mut b, "theme"), resolved(json!("silver"), "plan", "TARGETING_MATCH"));
    assert_eq!(feature(&mut a, "theme"), resolved(json!("blue"), "global", "STATIC"));
    admin.run(&format!(
        "SELECT tenant_feature_set('theme', '{{\"name\": \"own\"}}', 'tenant', tenant => '{B}')"
    ));
    assert_eq!(feature(&mut b, "theme"), resolved(json!({"name": "own"}), "tenant", "TARGETING_MATCH"));
    admin.run("SELECT tenant_feature_switch('theme', false)");
    assert_eq!(feature(&mut b, "theme"), resolved(json!("plain"), "default", "DISABLED"));
    admin.run("SELECT tenant_feature_switch('theme', true)");
    // Each is taken back alone.
    admin.run(&format!("SELECT tenant_feature_unset('theme', 'tenant', tenant => '{B}')"));
    assert_eq!(feature(&mut b, "theme")["value"], "silver");
    admin.run("SELECT tenant_feature_unset('theme', 'plan', plan => 'starter')");
    assert_eq!(feature(&mut b, "theme")["value"], "blue");
    admin.run("SELECT tenant_feature_unset('theme')");
    assert_eq!(feature(&mut b, "theme")["value"], "plain");
}

/// What is not defined is an answer; without a tenant there is none.
#[test]
fn an_unknown_feature_is_an_answer() {
    let (db, mut admin) = shop();
    let mut a = db.connect_as(&db.app(), A);
    let unknown = json!({"value": null, "variant": null, "reason": "ERROR", "error_code": "FLAG_NOT_FOUND"});
    assert_eq!(feature(&mut a, "nothing"), unknown);
    assert!(!a.one::<bool>("SELECT tenant_feature_enabled('nothing')"));
    assert!(a.one::<bool>("SELECT tenant_feature_enabled('nothing', true)"));
    assert_eq!(a.one::<Option<bool>>("SELECT tenant_feature_enabled('nothing', NULL)"), None);
    admin.run("SELECT tenant_feature_define('checkout', 'true'), tenant_feature_define('theme', '\"true\"')");
    assert!(a.one::<bool>("SELECT tenant_feature_enabled('checkout')"));
    // Of another type: what a typed client gets then.
    assert!(!a.one::<bool>("SELECT tenant_feature_enabled('theme')"));
    assert!(a.one::<bool>("SELECT tenant_feature_enabled('theme', true)"));
    admin.run("SELECT tenant_feature_drop('checkout')");
    assert_eq!(feature(&mut a, "checkout"), unknown);
    let calls = ["SELECT tenant_feature(NULL)", "SELECT tenant_feature_enabled(NULL)"];
    refuses(&mut a, &calls.map(|call| (call, "22004")));
    let mut nobody = db.connect(&db.app());
    let calls = [
        "SELECT tenant_feature('theme')",
        "SELECT tenant_feature_enabled('theme')",
        "SELECT tenant_features()",
    ];
    refuses(&mut nobody, &calls.map(|call| (call, "55000")));
}

/// A percentage reaches the tenants whose bucket is below it, and a larger one those too that had it.
#[test]
fn a_rollout_grows() {
    let db = Db::new();
    let mut admin = db.admin();
    admin.run(
        "SELECT tenant_create(('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid) FROM generate_series(1, 400) AS n;
         SELECT tenant_feature_define('checkout', 'false'), tenant_feature_define('basket', 'false', salt => 'checkout')",
    );
    let tenants: Vec<String> =
        admin.rows("SELECT t::text FROM tenant_list() AS t").iter().map(|row| row.get(0)).collect();
    let mut on = |percent: &str, name: &str| -> Vec<String> {
        admin.run(&format!("SELECT tenant_feature_set('{name}', 'true', rollout_percent => {percent})"));
        let mut reached = Vec::new();
        for tenant in &tenants {
            admin.run(&format!("SET app.current_tenant = '{tenant}'"));
            let answer = feature(&mut admin, name);
            let is_on = answer["value"] == true;
            let reason = match (is_on, percent) {
                (_, "100") => "STATIC",
                (true, _) => "SPLIT",
                (false, _) => "DEFAULT",
            };
            assert_eq!(answer["reason"], reason, "{tenant} at {percent}");
            if is_on {
                reached.push(tenant.clone());
            }
        }
        admin.run("RESET app.current_tenant");
        reached
    };
    let mut before: Vec<String> = Vec::new();
    for (percent, share) in
        [("0", 0), ("0.5", 500), ("10", 10_000), ("33.333", 33_333), ("75", 75_000), ("100", BUCKETS)]
    {
        let reached = on(percent, "checkout");
        let expected: Vec<String> = tenants
            .iter()
            .filter(|tenant| bucket("checkout", TenantId::parse(tenant).unwrap()) < share)
            .cloned()
            .collect();
        assert_eq!(reached, expected, "{percent}");
        assert!(before.iter().all(|tenant| reached.contains(tenant)), "{percent} has dropped one");
        before = reached;
    }
    // One salt reaches the same tenants.
    assert_eq!(on("10", "checkout"), on("10", "basket"));
}

/// The share of a plan is one of its tenants; who is not in it goes on to the value for everybody.
#[test]
fn a_share_of_a_plan() {
    let (db, mut admin) = shop();
    let mut a = db.connect_as(&db.app(), A);
    let own = bucket("checkout", TenantId::parse(A).unwrap());
    let percent = |share: u32| f64::from(share) / 1000.0;
    admin.run(&format!(
        "SELECT tenant_feature_define('checkout', '0'), tenant_feature_set('checkout', '1');
         SELECT tenant_feature_set('checkout', '2', 'plan', plan => 'free', rollout_percent => {})",
        percent(own)
    ));
    assert_eq!(feature(&mut a, "checkout"), resolved(json!(1), "global", "STATIC"));
    admin.run(&format!(
        "SELECT tenant_feature_set('checkout', '2', 'plan', plan => 'free', rollout_percent => {})",
        percent(own + 1)
    ));
    assert_eq!(feature(&mut a, "checkout"), resolved(json!(2), "plan", "SPLIT"));
}

/// A value ends by the clock: nobody writes, and a transaction that stays open sees it.
#[test]
fn a_value_expires_by_the_clock() {
    let (db, mut admin) = shop();
    let mut a = db.connect_as(&db.app(), A);
    admin.run(
        "SELECT tenant_feature_define('checkout', 'false');
         SELECT tenant_feature_set('checkout', 'true', expires_at => '2999-01-01')",
    );
    a.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    assert!(a.one::<bool>("SELECT tenant_feature_enabled('checkout')"));
    admin.run("SELECT tenant_feature_set('checkout', 'true', expires_at => clock_timestamp() + '300 ms')");
    eventually(&mut a, "SELECT NOT tenant_feature_enabled('checkout')");
    assert_eq!(feature(&mut a, "checkout"), resolved(json!(false), "default", "DEFAULT"));
    admin.run("SELECT tenant_feature_set('checkout', 'true', expires_at => '2001-01-01')");
    assert_eq!(feature(&mut a, "checkout")["reason"], "DEFAULT");
}

/// NULL, a wrong scope and a bad percentage set nothing.
#[test]
fn bad_values_are_refused() {
    let (db, mut admin) = shop();
    admin.run("SELECT tenant_feature_define('checkout', 'false'), tenant_create('cccccccc-0000-4000-8000-00000000000c')");
    admin.run("SELECT tenant_delete('cccccccc-0000-4000-8000-00000000000c')");
    let set = |rest: &str| format!("SELECT tenant_feature_set('checkout', 'true', {rest})");
    let calls = [
        (set("NULL"), "22004"),
        (set("'tenant'"), "22004"),
        (set("'tenant', tenant => (SELECT tenant_list('suspended'))"), "22004"),
        (set("'plan'"), "22004"),
        (set("rollout_percent => NULL"), "22004"),
        (set("'everybody'"), "22023"),
        (set(&format!("tenant => '{A}'")), "22023"),
        (set("plan => 'free'"), "22023"),
        (set(&format!("'plan', plan => 'free', tenant => '{A}'")), "22023"),
        (set(&format!("'tenant', plan => 'free', tenant => '{A}'")), "22023"),
        (set(&format!("'tenant', tenant => '{A}', rollout_percent => 50")), "22023"),
        (set("rollout_percent => -0.001"), "22023"),
        (set("rollout_percent => 100.001"), "22023"),
        (set("rollout_percent => 'NaN'"), "22023"),
        (set("rollout_percent => 'Infinity'"), "22023"),
        (set("'plan', plan => 'platinum'"), "42704"),
        (set("'tenant', tenant => '99999999-0000-4000-8000-000000000009'"), "42704"),
        (set("'tenant', tenant => 'cccccccc-0000-4000-8000-00000000000c'"), "55000"),
        ("SELECT tenant_feature_set('checkout', NULL)".into(), "22004"),
        ("SELECT tenant_feature_set(NULL, 'true')".into(), "22004"),
        ("SELECT tenant_feature_set('chekout', 'true')".into(), "42704"),
        ("SELECT tenant_feature_unset('chekout')".into(), "42704"),
        ("SELECT tenant_feature_unset('checkout', 'tenant')".into(), "22004"),
        ("SELECT tenant_feature_switch('chekout', false)".into(), "42704"),
        ("SELECT tenant_feature_switch('checkout', NULL)".into(), "22004"),
        ("SELECT tenant_feature_drop('chekout')".into(), "42704"),
        ("SELECT tenant_feature_define('checkout', 'true')".into(), "42710"),
        ("SELECT tenant_feature_define('', 'true')".into(), "22023"),
        ("SELECT tenant_feature_define(NULL, 'true')".into(), "22004"),
        ("SELECT tenant_feature_define('x', NULL)".into(), "22004"),
    ];
    for (call, state) in &calls {
        assert_eq!(admin.fails(call), *state, "{call}");
    }
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.feature_values"), 0);
    for call in [
        "'plan', plan => 'free', rollout_percent => 12.345",
        "rollout_percent => 100.0 / 3",
        "'global', NULL, NULL, 0",
    ] {
        admin.run(&set(call));
    }
    admin.run(&set(&format!("'tenant', tenant => '{A}'")));
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.feature_values"), 3);
    drop(db);
}

/// Applications read; operators define and set.
#[test]
fn who_may_set_a_feature() {
    let (db, mut admin) = shop();
    let office = db.role_name("office");
    db.role(&office, "LOGIN");
    admin.run(&format!("SELECT tenant_grant_operator('{office}')"));
    let calls = [
        "SELECT tenant_feature_define('checkout', 'false')",
        "SELECT tenant_feature_set('checkout', 'true')",
        "SELECT tenant_feature_unset('checkout')",
        "SELECT tenant_feature_switch('checkout', true)",
        "SELECT tenant_features_configmap()",
        "SELECT tenant_feature_drop('checkout')",
    ];
    let mut a = db.connect_as(&db.app(), A);
    refuses(&mut a, &calls.map(|call| (call, "42501")));
    let mut office = db.connect(&office);
    for call in calls {
        office.run(call);
    }
    office.run("SELECT tenant_feature_define('checkout', 'true')");
    assert!(a.one::<bool>("SELECT tenant_feature_enabled('checkout')"));
    assert_eq!(office.fails("SELECT tenant_feature('checkout')"), "42501");
}

/// All values in one object, numbers digit by digit.
#[test]
fn all_features_in_one_object() {
    let (db, mut admin) = shop();
    let mut a = db.connect_as(&db.app(), A);
    assert_eq!(a.one::<String>("SELECT tenant_features()::text"), "{}");
    admin.run(&format!(
        "SELECT tenant_feature_define('on', 'true'), tenant_feature_define('off', 'false'), tenant_feature_define('price', '1.10');
         SELECT tenant_feature_define('huge', '1e400'), tenant_feature_define('a \"name\"', 'null');
         SELECT tenant_feature_set('off', 'true', 'tenant', tenant => '{A}')"
    ));
    let all = "(tenant_features() - 'huge')::text";
    assert_eq!(
        a.one::<String>(&format!("SELECT {all}")),
        "{\"on\": true, \"off\": true, \"price\": 1.10, \"a \\\"name\\\"\": null}"
    );
    assert!(a.one::<bool>("SELECT (tenant_features() -> 'huge')::numeric = 1e400"));
    let mut b = db.connect_as(&db.app(), B);
    assert!(!b.one::<bool>("SELECT (tenant_features() -> 'off')::bool"));
    let context: String = a.one("SELECT (tenant_context() #- '{featureValues,huge}')::text");
    let context: Value = serde_json::from_str(&context).unwrap();
    assert_eq!(context["features"], json!(["off", "on"]));
    assert_eq!(context["featureValues"], json!({"on": true, "off": true, "price": 1.10, "a \"name\"": null}));
}

/// Once it is known, no table is looked at.
#[test]
fn the_steady_state_reads_no_table() {
    let (db, mut admin) = shop();
    admin.run(&format!(
        "SELECT tenant_feature_define('checkout', 'false'), tenant_feature_set('checkout', 'true', rollout_percent => 50);
         SELECT tenant_setting_set('color', '1', 'global'), tenant_deployment_define('api', '{{\"image\": \"api:1\"}}');
         SELECT tenant_feature_set('checkout', 'true', 'tenant', tenant => '{A}'); GRANT pg_read_all_stats TO {}",
        db.app()
    ));
    let mut a = db.connect_as(&db.app(), A);
    let calls = "PERFORM * FROM tenant_feature('checkout'); PERFORM tenant_feature_enabled('nothing');
                 PERFORM tenant_setting('color'); PERFORM * FROM tenant_route(); PERFORM tenant_context();";
    let scans =
        "SELECT coalesce(sum(seq_scan + coalesce(idx_scan, 0)), 0)::bigint FROM pg_stat_xact_all_tables
                 WHERE schemaname = 'tenant_rls'";
    a.run("BEGIN");
    a.run(&format!("DO $$ BEGIN {calls} END $$"));
    assert!(a.one::<i64>(scans) > 0, "the first call looks them up");
    // A busy server drops invalidations, its other databases' too, and has everything looked up again.
    let no_scan = (0..50).any(|_| {
        let before: i64 = a.one(scans);
        a.run(&format!("DO $$ BEGIN FOR n IN 1..20 LOOP {calls} END LOOP; END $$"));
        a.one::<i64>(scans) == before
    });
    assert!(no_scan);
    a.run("COMMIT");
}

/// Every change is recorded, by whom and from what to what, also by direct SQL.
#[test]
fn changes_are_recorded() {
    let (db, mut admin) = shop();
    let office = db.role_name("office");
    db.role(&office, "LOGIN");
    admin.run(&format!("SELECT tenant_grant_operator('{office}'); TRUNCATE tenant_rls.changes"));
    let mut operator = db.connect(&office);
    operator.run("SELECT tenant_feature_define('checkout', 'false')");
    operator.run("SELECT tenant_feature_set('checkout', '1')");
    operator.run("SELECT tenant_feature_set('checkout', '2')");
    operator.run("SELECT tenant_feature_switch('checkout', false)");
    admin.run("UPDATE tenant_rls.feature_values SET value = '3'; DELETE FROM tenant_rls.features; TRUNCATE tenant_rls.features CASCADE");
    let changes: Vec<String> = admin
        .rows(
            "SELECT concat_ws(' ', relation, command, acting_as, old_row -> 'value', new_row -> 'value', new_row -> 'is_on')
             FROM tenant_rls.changes ORDER BY change_id",
        )
        .iter()
        .map(|row| row.get(0))
        .collect();
    let superuser: String = admin.one("SELECT session_user::text");
    let expected = [
        format!("features INSERT {office} true"),
        format!("feature_values INSERT {office} 1"),
        format!("feature_values UPDATE {office} 1 2"),
        format!("features UPDATE {office} false"),
        format!("feature_values UPDATE {superuser} 2 3"),
        format!("features DELETE {superuser}"),
        format!("feature_values DELETE {superuser} 3"),
        format!("features TRUNCATE {superuser}"),
        format!("feature_values TRUNCATE {superuser}"),
    ];
    let mut sorted = changes.clone();
    sorted.sort();
    let mut wanted = expected.to_vec();
    wanted.sort();
    assert_eq!(sorted, wanted);
}

/// A plan that is based on another has its features and settings too.
#[test]
fn a_plan_is_based_on_another() {
    let (db, mut admin) = shop();
    admin.run(&format!(
        "SELECT tenant_feature_define('checkout', 'false'), tenant_setting_set('color', '\"red\"', 'plan', plan => 'free');
         SELECT tenant_feature_set('checkout', 'true', 'plan', plan => 'free');
         SELECT tenant_plan_define('team', 'free'), tenant_plan_change('{B}', 'team')"
    ));
    let mut b = db.connect_as(&db.app(), B);
    assert!(b.one::<bool>("SELECT tenant_feature_enabled('checkout')"));
    assert_eq!(b.one::<String>("SELECT tenant_setting('color') #>> '{}'"), "red");
    admin.run("SELECT tenant_plan_define('other')");
    admin.run(&format!("SELECT tenant_plan_change('{B}', 'other')"));
    assert!(!b.one::<bool>("SELECT tenant_feature_enabled('checkout')"));
}
