//! Deployments: where a tenant is served, staged releases, and what Kubernetes is told.

use std::process::Command;
use std::{env, fs};

use postgres::Client;
use serde_json::{Value, json};
use tenant_rls::feature::bucket::bucket;
use tenant_rls::tenant::TenantId;

use crate::harness::{A, B, Db, Session, answer, program, refuses};

/// The two deployments of the source document.
const API: &str = r#"{
    "replicas": 3, "image": "myregistry/api:v2.0.0",
    "env": {"TENANT_ROUTING": "enabled", "FEATURE_FLAGS": {"configMap": "tenant-features", "key": "features.json"}}}"#;
const ENTERPRISE: &str = r#"{
    "plans": ["enterprise"], "app": "api-service", "tier": "enterprise", "replicas": 5, "port": 8080,
    "image": "myregistry/api:v2.0.0-enterprise", "isolation": "isolated",
    "location": {"host": "db-7.internal", "database": "shop", "schema": "acme"},
    "resources": {"requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}},
    "env": {"TENANT_ROUTING": "enabled", "FEATURE_FLAGS": {"configMap": "tenant-features", "key": "features.json"}}}"#;

fn define(name: &str, spec: &str) -> String {
    format!("SELECT tenant_deployment_define('{name}', '{spec}')")
}

/// A on plan free, B on plan enterprise, both deployments.
fn shop() -> (Db, Client) {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!("SELECT tenant_plan_change('{B}', 'enterprise')"));
    admin.run(&define("api-service", API));
    admin.run(&define("api-service-enterprise", ENTERPRISE));
    (db, admin)
}

fn route(client: &mut Client) -> Value {
    answer(client, "tenant_route()")
}

/// Deployment and image, for superusers.
fn served(admin: &mut Client, tenant: &str) -> String {
    admin.one(&format!("SELECT concat_ws(' ', deployment, image, source) FROM tenant_route('{tenant}')"))
}

/// The whole answer, of a plan with a deployment of its own and one without.
#[test]
fn a_route_says_all() {
    let (db, _) = shop();
    let mut a = db.connect_as(&db.app(), A);
    assert_eq!(
        route(&mut a),
        json!({
            "tenant": A, "deployment": "api-service", "image": "myregistry/api:v2.0.0", "source": "stable",
            "release_id": null, "tier": null, "region": null, "isolation": "shared", "location": {"database": db.name()},
        })
    );
    let mut b = db.connect_as(&db.app(), B);
    assert_eq!(
        route(&mut b),
        json!({
            "tenant": B, "deployment": "api-service-enterprise", "image": "myregistry/api:v2.0.0-enterprise",
            "source": "stable", "release_id": null, "tier": "enterprise", "region": null, "isolation": "isolated",
            "location": {"host": "db-7.internal", "database": "shop", "schema": "acme"},
        })
    );
}

/// The tenant's own deployment, that of its plan and region, of its plan, of its region, of everybody else.
#[test]
fn the_nearest_deployment_serves() {
    let (db, mut admin) = shop();
    let tenant = "cccccccc-0000-4000-8000-00000000000c";
    admin.run(&format!("SELECT tenant_create('{tenant}', 'enterprise', region => 'eu')"));
    assert_eq!(served(&mut admin, tenant), "api-service-enterprise myregistry/api:v2.0.0-enterprise stable");
    admin.run(&define("eu", r#"{"region": "eu", "image": "eu:1"}"#));
    admin.run(&define("eu-enterprise", r#"{"region": "eu", "plans": ["enterprise"], "image": "eu:2"}"#));
    assert_eq!(served(&mut admin, tenant), "eu-enterprise eu:2 stable");
    admin.run(&format!("SELECT tenant_plan_change('{tenant}', 'free')"));
    assert_eq!(served(&mut admin, tenant), "eu eu:1 stable");
    assert_eq!(served(&mut admin, A), "api-service myregistry/api:v2.0.0 stable");
    let region =
        |admin: &mut Client| admin.one::<String>(&format!("SELECT region FROM tenant_route('{tenant}')"));
    assert_eq!(region(&mut admin), "eu");
    admin.run(&define("own", r#"{"default": false, "image": "own:1", "region": "us"}"#));
    admin.run(&format!("SELECT tenant_route_set('{tenant}', 'own'), tenant_route_set('{A}', 'own')"));
    assert_eq!(served(&mut admin, tenant), "own own:1 stable");
    admin.run(&format!("SELECT tenant_route_set('{A}', 'eu'), tenant_route_unset('{tenant}')"));
    assert_eq!(
        (served(&mut admin, tenant), served(&mut admin, A)),
        ("eu eu:1 stable".into(), "eu eu:1 stable".into())
    );
    admin.run("SELECT tenant_deployment_drop('eu')");
    assert_eq!(served(&mut admin, tenant), "api-service myregistry/api:v2.0.0 stable");
    drop(db);
}

/// The tenant of the session for everybody, others for operators.
#[test]
fn who_sees_which_route() {
    let (db, mut admin) = shop();
    let mut a = db.connect_as(&db.app(), A);
    a.run(&format!("SELECT * FROM tenant_route('{A}')"));
    assert_eq!(a.fails(&format!("SELECT * FROM tenant_route('{B}')")), "42501");
    assert_eq!(a.fails("SELECT * FROM tenant_route('99999999-0000-4000-8000-000000000009')"), "42501");
    let mut nobody = db.connect(&db.app());
    refuses(
        &mut nobody,
        &[
            ("SELECT * FROM tenant_route()", "55000"),
            (&format!("SELECT * FROM tenant_route('{A}')"), "42501"),
        ],
    );
    let office = db.role_name("office");
    db.role(&office, "LOGIN");
    admin.run(&format!("SELECT tenant_grant_operator('{office}'), tenant_suspend('{A}')"));
    let mut office = db.connect(&office);
    assert_eq!(served(&mut office, A), "api-service myregistry/api:v2.0.0 stable");
    refuses(
        &mut office,
        &[
            ("SELECT * FROM tenant_route()", "55000"),
            ("SELECT * FROM tenant_route('99999999-0000-4000-8000-000000000009')", "42704"),
        ],
    );
    assert_eq!(a.fails("SELECT * FROM tenant_route()"), "55000");
    admin.run("DELETE FROM tenant_rls.deployments");
    assert_eq!(office.fails(&format!("SELECT * FROM tenant_route('{B}')")), "42704");
}

/// A share of the tenants, by a bucket that the image keeps, and no tenant falls out while the share grows.
#[test]
fn a_release_grows() {
    let db = Db::new();
    let mut admin = db.admin();
    admin.run("SELECT tenant_create(('00000000-0000-4000-8000-' || lpad(n::text, 12, '0'))::uuid) FROM generate_series(1, 300) AS n");
    admin.run(&define("api", r#"{"image": "api:1"}"#));
    let reached = |admin: &mut Client, image: &str| -> Vec<String> {
        let sql = format!(
            "SELECT r.tenant::text FROM tenant_list() AS t, tenant_route(t) AS r WHERE r.image = '{image}' ORDER BY 1"
        );
        admin.rows(&sql).iter().map(|row| row.get(0)).collect()
    };
    let tenants = reached(&mut admin, "api:1");
    assert_eq!(tenants.len(), 300);
    let mut before: Vec<String> = Vec::new();
    let mut ids = Vec::new();
    for percent in [0, 5, 20, 60, 100] {
        ids.push(admin.one::<i64>(&format!("SELECT tenant_release('api', 'api:2', {percent})")));
        let now = reached(&mut admin, "api:2");
        let expected: Vec<String> = tenants
            .iter()
            .filter(|t| bucket("api:api:2", TenantId::parse(t).unwrap()) < percent * 1000)
            .cloned()
            .collect();
        assert_eq!(now, expected, "{percent}");
        assert!(before.iter().all(|tenant| now.contains(tenant)), "{percent} has dropped one");
        before = now;
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "the same release");
    // Taken back and released again it reaches the same tenants.
    admin.run(&format!("SELECT tenant_release('api', 'api:2', 20), tenant_release_rollback({})", ids[0]));
    assert_eq!(reached(&mut admin, "api:2").len(), 0);
    let again: i64 = admin.one("SELECT tenant_release('api', 'api:2', 20)");
    assert_ne!(again, ids[0]);
    let expected =
        tenants.iter().filter(|t| bucket("api:api:2", TenantId::parse(t).unwrap()) < 20_000).count();
    assert_eq!(reached(&mut admin, "api:2").len(), expected);
}

/// Named tenants, a plan, everybody: in this order, and the newest release first.
#[test]
fn a_release_to_a_plan_and_to_named_tenants() {
    let (db, mut admin) = shop();
    admin.run(&format!("SELECT tenant_plan_change('{B}', 'starter')"));
    admin.run(&format!("SELECT tenant_release('api-service', 'api:3', 0, tenants => ARRAY['{A}']::uuid[])"));
    assert_eq!(served(&mut admin, A), "api-service api:3 tenant");
    assert_eq!(served(&mut admin, B), "api-service myregistry/api:v2.0.0 stable");
    admin.run("SELECT tenant_release('api-service', 'api:4', 100, plan => 'starter')");
    assert_eq!(served(&mut admin, B), "api-service api:4 plan");
    admin.run("SELECT tenant_release('api-service', 'api:5', 100)");
    assert_eq!(
        (served(&mut admin, A), served(&mut admin, B)),
        ("api-service api:3 tenant".into(), "api-service api:4 plan".into())
    );
    let other = "cccccccc-0000-4000-8000-00000000000c";
    admin.run(&format!("SELECT tenant_create('{other}')"));
    assert_eq!(served(&mut admin, other), "api-service api:5 global");
    // Of two that name it, the newer.
    admin.run(&format!(
        "SELECT tenant_release('api-service', 'api:5', 100, tenants => ARRAY['{A}', '{B}']::uuid[])"
    ));
    assert_eq!(
        (served(&mut admin, A), served(&mut admin, B)),
        ("api-service api:5 tenant".into(), "api-service api:5 tenant".into())
    );
    drop(db);
}

/// Promoted: everybody has it, and older ones end. Rolled back: everybody has the one before.
#[test]
fn promote_and_roll_back() {
    let (db, mut admin) = shop();
    let mut a = db.connect_as(&db.app(), A);
    let release = |admin: &mut Client, image: &str| -> i64 {
        admin.one(&format!(
            "SELECT tenant_release('api-service', '{image}', 0, tenants => ARRAY['{A}']::uuid[])"
        ))
    };
    let (two, three) = (release(&mut admin, "api:2"), release(&mut admin, "api:3"));
    let four: i64 = admin.one("SELECT tenant_release('api-service', 'api:4', 0)");
    admin.run(&format!("SELECT tenant_release_promote({three})"));
    assert_eq!(route(&mut a)["image"], "api:3");
    assert_eq!(route(&mut a)["source"], "stable");
    admin.run("SELECT tenant_release('api-service', 'api:4', 100)");
    assert_eq!(route(&mut a)["image"], "api:4", "a newer one is still on its way");
    admin.run(&format!("SELECT tenant_release_promote({four})"));
    for (call, state) in [
        (format!("SELECT tenant_release_promote({four})"), "55000"),
        (format!("SELECT tenant_release_promote({two})"), "55000"),
        (format!("SELECT tenant_release_rollback({two})"), "55000"),
        (format!("SELECT tenant_release_rollback({three})"), "55000"),
        ("SELECT tenant_release_rollback(4711)".into(), "42704"),
        ("SELECT tenant_release_promote(NULL)".into(), "22004"),
        ("SELECT tenant_release_rollback(NULL)".into(), "22004"),
    ] {
        assert_eq!(admin.fails(&call), state, "{call}");
    }
    admin.run(&format!("SELECT tenant_release_rollback({four})"));
    assert_eq!(route(&mut a)["image"], "api:3");
    admin.run(&format!("SELECT tenant_release_rollback({three})"));
    assert_eq!(route(&mut a)["image"], "myregistry/api:v2.0.0");
    let history: Vec<String> = admin
        .rows("SELECT concat_ws(' ', image, status, previous_image, rollout_percent, tenants) FROM tenant_releases ORDER BY release_id")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        history,
        [
            format!("api:2 superseded 0.000 {{{A}}}"),
            format!("api:3 rolled_back myregistry/api:v2.0.0 0.000 {{{A}}}"),
            "api:4 rolled_back api:3 100.000".into(),
        ]
    );
}

/// Of an image that was promoted twice, the later promotion is rolled back, and the earlier one is not.
#[test]
fn an_earlier_promotion_of_the_stable_image_stays() {
    let (db, mut admin) = shop();
    let mut promoted = |image: &str| -> i64 {
        let id = admin.one(&format!("SELECT tenant_release('api-service', '{image}', 100)"));
        admin.run(&format!("SELECT tenant_release_promote({id})"));
        id
    };
    let (first, between, last) = (promoted("api:2"), promoted("api:3"), promoted("api:2"));
    let rollback = |id: i64| format!("SELECT tenant_release_rollback({id})");
    assert_eq!(admin.fails(&rollback(first)), "55000");
    assert_eq!(served(&mut admin, A), "api-service api:2 stable");
    for (id, image) in [(last, "api:3"), (between, "api:2"), (first, "myregistry/api:v2.0.0")] {
        admin.run(&rollback(id));
        assert_eq!(served(&mut admin, A), format!("api-service {image} stable"));
    }
    drop(db);
}

/// What makes no sense is refused, and changes nothing.
#[test]
fn bad_deployments_are_refused() {
    let (db, mut admin) = shop();
    let before: String =
        admin.one("SELECT string_agg(r::text, '|' ORDER BY r) FROM tenant_rls.deployment_routes AS r");
    let calls = [
        (define("web", r#"{"image": "web:1"}"#), "42710"),
        (define("web", r#"{"image": "web:1", "plans": ["free", "enterprise"]}"#), "42710"),
        (define("web", r#"{"image": "web:1", "plans": ["platinum"]}"#), "42704"),
        (define("web", r#"{"default": false}"#), "22004"),
        (define("web", r#"{"image": "web:1", "default": false, "replica": 3}"#), "22023"),
        (define("Web", r#"{"image": "web:1", "default": false}"#), "22023"),
        (define("web", r#"[]"#), "22023"),
        (define("web", r#"{"image": "web:1", "default": false, "replicas": 1e400}"#), "22023"),
        (define("web", r#"{"image": "web:1", "default": false, "env": {"A": {"secret": "s", "key": "k", "as": "b"}}}"#), "22023"),
        (define("web", r#"{"image": "web:1", "default": false, "resources": {"limits": {"foo": "1"}}}"#), "22023"),
        (define("api-service", r#"{"image": "api:9"}"#), "55000"),
        ("SELECT tenant_deployment_define(NULL, '{}')".into(), "22004"),
        ("SELECT tenant_deployment_define('web', NULL)".into(), "22004"),
        ("SELECT tenant_deployment_drop('web')".into(), "42704"),
        (format!("SELECT tenant_route_set('{A}', 'web')"), "42704"),
        ("SELECT tenant_route_set(NULL, 'api-service')".into(), "22004"),
        (format!("SELECT tenant_route_set('{A}', NULL)"), "22004"),
        ("SELECT tenant_route_unset(NULL)".into(), "22004"),
        ("SELECT tenant_release('web', 'web:2', 10)".into(), "42704"),
        ("SELECT tenant_release('api-service', NULL, 10)".into(), "22004"),
        ("SELECT tenant_release('api-service', 'api:2', NULL)".into(), "22004"),
        ("SELECT tenant_release('api-service', 'api 2', 10)".into(), "22023"),
        ("SELECT tenant_release('api-service', 'api:2', 101)".into(), "22023"),
        ("SELECT tenant_release('api-service', 'myregistry/api:v2.0.0', 10)".into(), "22023"),
        ("SELECT tenant_release('api-service', 'api:2', 10, 'platinum')".into(), "42704"),
        ("SELECT tenant_release('api-service', 'api:2', 10, tenants => '{}')".into(), "22023"),
        ("SELECT tenant_release('api-service', 'api:2', 10, tenants => '{NULL}')".into(), "22004"),
        ("SELECT tenant_release('api-service', 'api:2', 10, tenants => '{99999999-0000-4000-8000-000000000009}')".into(), "42704"),
        ("SELECT tenant_deployment_manifest('web')".into(), "42704"),
        ("SELECT tenant_deployment_manifest('api-service', 1)".into(), "42704"),
        ("SELECT tenant_deployment_manifest(NULL)".into(), "22004"),
    ];
    for (call, state) in &calls {
        assert_eq!(admin.fails(call), *state, "{call}");
    }
    let after: String =
        admin.one("SELECT string_agg(r::text, '|' ORDER BY r) FROM tenant_rls.deployment_routes AS r");
    assert_eq!(before, after);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.releases"), 0);
    admin.run(&define("web", r#"{"image": "web:1", "plans": ["free"]}"#));
    // Again with other plans and without the image, which stays.
    admin.run(&define("web", r#"{"plans": ["starter"], "replicas": 2}"#));
    assert_eq!(served(&mut admin, A), "api-service myregistry/api:v2.0.0 stable");
    admin.run(&format!("SELECT tenant_plan_change('{A}', 'starter')"));
    assert_eq!(served(&mut admin, A), "web web:1 stable");
    // Another region: the old route is no longer its own.
    admin.run(&define("web", r#"{"plans": ["starter"], "region": "eu"}"#));
    assert_eq!(served(&mut admin, A), "api-service myregistry/api:v2.0.0 stable");
    admin.run(&define("web", r#"{"plans": ["starter"]}"#));
    assert_eq!(served(&mut admin, A), "web web:1 stable");
    drop(db);
}

/// Applications read their route; operators do the rest.
#[test]
fn who_may_deploy() {
    let (db, mut admin) = shop();
    let mut a = db.connect_as(&db.app(), A);
    let id: i64 = admin.one("SELECT tenant_release('api-service', 'api:2', 10)");
    let calls = [
        define("web", r#"{"image": "web:1", "default": false}"#),
        format!("SELECT tenant_route_set('{A}', 'web')"),
        format!("SELECT tenant_route_unset('{A}')"),
        "SELECT tenant_release('web', 'web:2', 10)".into(),
        format!("SELECT tenant_release_promote({id})"),
        format!("SELECT tenant_release_rollback({id})"),
        "SELECT tenant_deployment_manifest('web')".into(),
        "SELECT * FROM tenant_releases".into(),
        "SELECT tenant_deployment_drop('web')".into(),
    ];
    for call in &calls {
        assert_eq!(a.fails(call), "42501", "{call}");
    }
    let office = db.role_name("office");
    db.role(&office, "LOGIN");
    admin.run(&format!("SELECT tenant_grant_operator('{office}')"));
    for call in &calls {
        db.connect(&office).run(call);
    }
    // The history names tenants.
    admin.run("SELECT tenant_release('api-service', 'api:3', 10)");
    let reader = db.role_name("reader");
    db.role(&reader, "LOGIN IN ROLE pg_read_all_data");
    for (role, sees) in [(&office, true), (&reader, false)] {
        assert_eq!(db.connect(role).one::<bool>("SELECT count(*) > 0 FROM tenant_releases"), sees, "{role}");
    }
    let by: String =
        admin.one(&format!("SELECT released_by FROM tenant_rls.releases WHERE release_id = {id}"));
    assert_eq!(by, admin.one::<String>("SELECT session_user::text"));
}

/// The manifests are those of the source document.
#[test]
fn manifests_say_what_was_defined() {
    let (db, mut admin) = shop();
    let mut object = |call: &str| -> Value {
        serde_json::from_str(&admin.one::<String>(&format!("SELECT {call}::text"))).unwrap()
    };
    let environment = json!([
        {"name": "FEATURE_FLAGS", "valueFrom": {"configMapKeyRef": {"name": "tenant-features", "key": "features.json"}}},
        {"name": "TENANT_ROUTING", "value": "enabled"},
    ]);
    let labels = json!({"app": "api-service", "app.kubernetes.io/instance": "api-service"});
    assert_eq!(
        object("tenant_deployment_manifest('api-service')"),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "api-service", "labels": labels},
            "spec": {
                "replicas": 3,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{"name": "api-service", "image": "myregistry/api:v2.0.0", "env": environment}]},
                },
            },
        })
    );
    let labels = json!({"app": "api-service", "tier": "enterprise", "app.kubernetes.io/instance": "api-service-enterprise"});
    assert_eq!(
        object("tenant_deployment_manifest('api-service-enterprise')"),
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "api-service-enterprise", "labels": labels},
            "spec": {
                "replicas": 5,
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [{
                        "name": "api-service-enterprise", "image": "myregistry/api:v2.0.0-enterprise",
                        "ports": [{"containerPort": 8080}], "env": environment,
                        "resources": {
                            "requests": {"cpu": "500m", "memory": "512Mi"}, "limits": {"cpu": "1000m", "memory": "1Gi"}},
                    }]},
                },
            },
        })
    );
    drop(db);
}

/// A release has objects of its own, with its share of the pods.
#[test]
fn a_release_has_a_manifest() {
    let (db, mut admin) = shop();
    let id: i64 = admin.one("SELECT tenant_release('api-service-enterprise', 'api:3', 30)");
    admin.run("SELECT tenant_release('api-service-enterprise', 'api:3', 50, plan => 'enterprise')");
    let facts = format!(
        "SELECT concat_ws(' ', m #>> '{{metadata,name}}', m #>> '{{spec,replicas}}', m #>> '{{spec,template,spec,containers,0,image}}')
         FROM tenant_deployment_manifest('api-service-enterprise', {id}) AS m"
    );
    assert_eq!(admin.one::<String>(&facts), format!("api-service-enterprise-r{id} 3 api:3"));
    assert_eq!(admin.fails(&format!("SELECT tenant_deployment_manifest('api-service', {id})")), "42704");
    drop(db);
}

/// The ConfigMap holds the features of the tenant of the session, or what holds for everybody.
#[test]
fn a_configmap_holds_the_features() {
    let (_db, mut admin) = shop();
    admin.run(&format!(
        "SELECT tenant_feature_define('checkout', 'false'), tenant_feature_define('basket', '1.10'), tenant_feature_define('half', '0');
         SELECT tenant_feature_set('checkout', 'true', 'tenant', '{A}'), tenant_feature_set('half', '1', rollout_percent => 99.999);
         SELECT tenant_feature_set('basket', '2', 'plan', plan => 'free')"
    ));
    let features = "SELECT tenant_features_configmap() #>> '{data,features.json}'";
    assert_eq!(admin.one::<String>(features), "{\"half\": 0, \"basket\": 1.10, \"checkout\": false}");
    admin.run(&format!("SET app.current_tenant = '{A}'"));
    assert!(admin.one::<bool>(&format!("SELECT ({features})::jsonb = tenant_features()")));
    assert!(admin.one::<bool>("SELECT tenant_feature_enabled('checkout')"));
}

/// A validator that others publish, with the schemas of Kubernetes: `make setup` installs it.
#[test]
fn a_published_validator_takes_the_manifests() {
    let Some(program) = program("TENANT_RLS_KUBERNETES_VALIDATE", "a kubernetes-validate") else { return };
    let validate = |manifest: &str, version: &str| validate(&program, manifest, version);
    let (db, mut admin) = shop();
    let id: i64 = admin.one("SELECT tenant_release('api-service-enterprise', 'api:3', 30)");
    admin.run("SELECT tenant_feature_define('checkout', 'true')");
    admin.run(&define(
        "all",
        r#"{"image": "all:1", "default": false, "namespace": "shop", "container": "main", "labels": {"example.com/team": "a"},
            "env": {"PASSWORD": {"secret": "all", "key": "password"}}, "resources": {"limits": {"memory": "1.5Gi"}}}"#,
    ));
    let objects = [
        "tenant_deployment_manifest('api-service')".to_string(),
        "tenant_deployment_manifest('api-service-enterprise')".into(),
        format!("tenant_deployment_manifest('api-service-enterprise', {id})"),
        "tenant_deployment_manifest('all')".into(),
        "tenant_features_configmap()".into(),
    ];
    for object in &objects {
        let text: String = admin.one(&format!("SELECT jsonb_pretty({object})"));
        for version in ["1.25.0", "1.37.0"] {
            assert_eq!(validate(&text, version), Ok(()), "{object}");
        }
    }
    // It looks: what is not right is found.
    for wrong in [
        "|| '{\"spec\": {}}'",
        "|| '{\"specs\": {}}'",
        "#- '{spec,selector}'",
        "|| '{\"metadata\": {\"name\": 1}}'",
    ] {
        let text: String =
            admin.one(&format!("SELECT jsonb_pretty(tenant_deployment_manifest('all') {wrong})"));
        assert!(validate(&text, "1.37.0").is_err(), "{wrong}");
    }
    drop(db);
}

fn validate(program: &str, manifest: &str, version: &str) -> Result<(), String> {
    let file = env::temp_dir().join(format!(
        "tenant_rls-manifest-{}-{:?}.json",
        std::process::id(),
        std::thread::current().id()
    ));
    fs::write(&file, manifest).expect("a manifest is written");
    let output = Command::new(program).args(["--strict", "--quiet", "-k", version]).arg(&file).output();
    fs::remove_file(&file).expect("a manifest is removed");
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)))
}

/// Every change is recorded.
#[test]
fn changes_are_recorded() {
    let (db, mut admin) = shop();
    admin.run("TRUNCATE tenant_rls.changes");
    let id: i64 = admin.one("SELECT tenant_release('api-service', 'api:2', 10)");
    admin.run(&format!(
        "SELECT tenant_release_promote({id}); SELECT tenant_route_set('{A}', 'api-service');
         UPDATE tenant_rls.deployments SET spec = '{{}}' WHERE deployment = 'api-service'"
    ));
    let changes: Vec<String> = admin
        .rows("SELECT concat_ws(' ', relation, command, new_row ->> 'image', new_row ->> 'status') FROM tenant_rls.changes ORDER BY change_id")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        changes,
        [
            "releases INSERT api:2 active",
            "release_targets INSERT",
            "releases UPDATE api:2 promoted",
            "deployments UPDATE api:2",
            "deployment_routes INSERT",
            "deployments UPDATE api:2",
        ]
    );
    drop(db);
}
