//! Settings: which value a tenant gets.

use postgres::Client;
use serde_json::{Value, json};

use crate::harness::{A, B, Db, Session, refuses};

fn setting(client: &mut Client, key: &str) -> Option<String> {
    client.one(&format!("SELECT tenant_setting('{key}')::text"))
}

/// The tenant's own, its plan's, everybody's, the fallback, in this order, key by key.
#[test]
fn the_nearest_setting_wins() {
    let db = Db::with_orders();
    let (mut admin, mut a) = (db.admin(), db.connect_as(&db.app(), A));
    assert_eq!(setting(&mut a, "color"), None);
    assert_eq!(a.one::<String>("SELECT tenant_setting('color', '{\"a\": [1]}')::text"), "{\"a\": [1]}");
    admin.run(
        "SELECT tenant_setting_set('color', '\"red\"', 'global'), tenant_setting_set('size', '10', 'global')",
    );
    assert_eq!(setting(&mut a, "color").as_deref(), Some("\"red\""));
    admin.run("SELECT tenant_setting_set('color', '\"green\"', 'plan', plan => 'free')");
    assert_eq!(setting(&mut a, "color").as_deref(), Some("\"green\""));
    admin.run(&format!("SELECT tenant_setting_set('color', 'null', 'tenant', tenant => '{A}')"));
    // A null that was set is a value.
    assert_eq!(setting(&mut a, "color").as_deref(), Some("null"));
    assert_eq!(a.one::<String>("SELECT tenant_setting('color', '1')::text"), "null");
    let context: String = a.one("SELECT tenant_context()::text");
    let context: Value = serde_json::from_str(&context).unwrap();
    assert_eq!(context["settings"], json!({"color": null, "size": 10}));
    let mut b = db.connect_as(&db.app(), B);
    assert_eq!(setting(&mut b, "color").as_deref(), Some("\"green\""));
    admin.run(&format!("SELECT tenant_setting_unset('color', 'tenant', tenant => '{A}')"));
    assert_eq!(setting(&mut a, "color").as_deref(), Some("\"green\""));
    admin.run("SELECT tenant_setting_unset('color', 'plan', plan => 'free')");
    assert_eq!(setting(&mut a, "color").as_deref(), Some("\"red\""));
    admin.run("SELECT tenant_setting_unset('color', 'global')");
    assert_eq!(setting(&mut a, "color"), None);
    assert_eq!(setting(&mut a, "size").as_deref(), Some("10"));
}

/// The column of the tenants and the function are one thing.
#[test]
fn the_column_of_the_tenant_is_its_settings() {
    let db = Db::with_orders();
    let (mut admin, mut a) = (db.admin(), db.connect_as(&db.app(), A));
    admin.run(&format!(
        "UPDATE tenant_rls.tenants SET settings = '{{\"theme\": \"dark\"}}' WHERE tenant_id = '{A}'"
    ));
    assert_eq!(setting(&mut a, "theme").as_deref(), Some("\"dark\""));
    admin.run(&format!("SELECT tenant_setting_set('size', '1e400', 'tenant', tenant => '{A}')"));
    let settings = format!(
        "SELECT settings = '{{\"theme\": \"dark\", \"size\": 1e400}}' FROM tenant_rls.tenants WHERE tenant_id = '{A}'"
    );
    assert!(admin.one::<bool>(&settings));
    assert!(a.one::<bool>("SELECT (tenant_context() -> 'settings' -> 'size')::numeric = 1e400"));
    // What is no object has no keys, and does not stay in the way.
    admin.run(&format!("UPDATE tenant_rls.tenants SET settings = '[1]' WHERE tenant_id = '{A}'"));
    assert_eq!(setting(&mut a, "theme"), None);
    assert_eq!(a.one::<String>("SELECT (tenant_context() -> 'settings')::text"), "{}");
    admin.run(&format!(
        "SELECT tenant_setting_unset('theme', 'tenant', tenant => '{A}'), tenant_setting_set('size', '1', 'tenant', '{A}')"
    ));
    assert_eq!(setting(&mut a, "size").as_deref(), Some("1"));
}

/// NULL and a wrong scope set nothing; applications cannot set at all.
#[test]
fn bad_settings_are_refused() {
    let db = Db::with_orders();
    let (mut admin, mut a) = (db.admin(), db.connect_as(&db.app(), A));
    refuses(
        &mut admin,
        &[
            ("SELECT tenant_setting_set('color', '1', NULL)", "22004"),
            ("SELECT tenant_setting_set('color', '1', 'tenant')", "22004"),
            ("SELECT tenant_setting_set('color', '1', 'plan')", "22004"),
            ("SELECT tenant_setting_set('color', NULL, 'global')", "22004"),
            ("SELECT tenant_setting_set(NULL, '1', 'global')", "22004"),
            ("SELECT tenant_setting_set('', '1', 'global')", "22023"),
            ("SELECT tenant_setting_set('color', '1', 'all')", "22023"),
            (&format!("SELECT tenant_setting_set('color', '1', 'global', '{A}')"), "22023"),
            ("SELECT tenant_setting_set('color', '1', 'plan', plan => 'platinum')", "42704"),
            (
                "SELECT tenant_setting_set('color', '1', 'tenant', '99999999-0000-4000-8000-000000000009')",
                "42704",
            ),
            ("SELECT tenant_setting_unset('color', 'tenant')", "22004"),
        ],
    );
    assert_eq!(setting(&mut a, "color"), None);
    assert_eq!(a.fails("SELECT tenant_setting(NULL)"), "22004");
    assert_eq!(db.connect(&db.app()).fails("SELECT tenant_setting('color')"), "55000");
    let calls = [
        "SELECT tenant_setting_set('color', '1', 'global')",
        "SELECT tenant_setting_unset('color', 'global')",
    ];
    refuses(&mut a, &calls.map(|call| (call, "42501")));
    let office = db.role_name("office");
    db.role(&office, "LOGIN");
    admin.run(&format!("SELECT tenant_grant_operator('{office}')"));
    for call in calls {
        db.connect(&office).run(call);
    }
}

/// Two sessions set keys of one tenant: both stay.
#[test]
fn two_keys_at_once_both_stay() {
    let db = Db::with_orders();
    let mut first = db.admin();
    first.run(&format!("BEGIN; SELECT tenant_setting_set('one', '1', 'tenant', '{A}')"));
    std::thread::scope(|scope| {
        let second = scope.spawn(|| {
            db.admin().run(&format!("SELECT tenant_setting_set('two', '2', 'tenant', '{A}')"));
        });
        crate::harness::waiting(&mut db.admin(), 1);
        first.run("COMMIT");
        second.join().unwrap();
    });
    let mut a = db.connect_as(&db.app(), A);
    assert_eq!(a.one::<String>("SELECT (tenant_context() -> 'settings')::text"), "{\"one\": 1, \"two\": 2}");
}

/// Every change is recorded.
#[test]
fn changes_are_recorded() {
    let db = Db::with_orders();
    let mut admin = db.admin();
    admin.run(&format!(
        "TRUNCATE tenant_rls.changes; SELECT tenant_setting_set('color', '1', 'global'), tenant_setting_set('color', '2', 'tenant', '{A}');
         UPDATE tenant_rls.settings SET value = '3'; SELECT tenant_setting_unset('color', 'global')"
    ));
    let changes: Vec<String> = admin
        .rows("SELECT concat_ws(' ', relation, command, new_row -> 'value', new_row -> 'settings') FROM tenant_rls.changes ORDER BY change_id")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(
        changes,
        ["settings INSERT 1", "tenants UPDATE {\"color\": 2}", "settings UPDATE 3", "settings DELETE"]
    );
}
