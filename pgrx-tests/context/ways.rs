//! The ways to set the tenant: each takes a good one and refuses the others.

use std::io::{Read, Write};
use std::net::TcpStream;

use postgres::Client;

use super::{UNKNOWN, current, notes};
use crate::cluster::Cluster;
use crate::harness::{A, B, Db, Session, state};

const SUSPENDED: &str = "dddddddd-0000-4000-8000-00000000000d";
const DELETED: &str = "eeeeeeee-0000-4000-8000-00000000000e";

/// A way to set the tenant, `{}` in the place of the value.
struct Way {
    set: &'static str,
    /// Whether it holds for the transaction only.
    local: bool,
}

impl Way {
    fn run(&self, client: &mut Client, value: &str) -> Result<Option<String>, String> {
        if self.local {
            client.run("BEGIN");
        }
        let refused = client.attempt(&self.set.replace("{}", value));
        let tenant = if refused.is_none() { current(client) } else { None };
        if self.local {
            client.run("ROLLBACK");
        }
        refused.map_or(Ok(tenant), Err)
    }
}

/// A database with a suspended and a deleted tenant.
fn database() -> Db {
    let db = Db::with_orders();
    db.admin().run(&format!(
        "SELECT tenant_create('{SUSPENDED}', tenant_key => 4), tenant_create('{DELETED}', tenant_key => 5);
         SELECT tenant_suspend('{SUSPENDED}'), tenant_delete('{DELETED}');
         UPDATE tenant_rls.tenants SET tenant_key = 1 WHERE tenant_id = '{A}';
         UPDATE tenant_rls.tenants SET tenant_key = 2 WHERE tenant_id = '{B}'"
    ));
    db
}

/// A role that may act for [`A`] alone.
fn one_tenant_role(db: &Db) -> String {
    let one = db.role_name("one");
    db.role(&one, "LOGIN");
    db.admin().run(&format!("SELECT tenant_grant('{one}', '{A}'); GRANT SELECT ON orders TO {one}"));
    one
}

/// What each way must refuse, and the SQLSTATE.
const REFUSED: [(&str, &str); 4] =
    [("nonsense", "22023"), (UNKNOWN, "42704"), (SUSPENDED, "55000"), (DELETED, "55000")];

#[track_caller]
fn takes_a_tenant(way: &Way, values: &[(&str, &str)]) {
    let db = database();
    let one = one_tenant_role(&db);
    for (value, tenant) in values {
        let mut app = db.connect(&db.app());
        assert_eq!(way.run(&mut app, value), Ok(Some(tenant.to_string())));
    }
    let (value, tenant) = values[0];
    assert_eq!(way.run(&mut db.connect(&one), value), Ok(Some(tenant.to_string())));
}

#[track_caller]
fn refuses(way: &Way, values: &[(&str, &str)]) {
    let db = database();
    for (value, code) in values {
        let mut app = db.connect_as(&db.app(), A);
        assert_eq!(way.run(&mut app, value), Err(code.to_string()), "{value}");
        assert_eq!(current(&mut app), None, "{value}");
        assert_eq!(app.fails("SELECT FROM orders"), "55000", "{value}");
    }
}

/// To a role of one tenant all others look alike, whether they exist or not.
#[track_caller]
fn refuses_alike(way: &Way, values: &[&str]) {
    let db = database();
    let one = one_tenant_role(&db);
    for value in values {
        let mut session = db.connect_as(&one, A);
        assert_eq!(way.run(&mut session, value), Err("42501".into()), "{value}");
        assert_eq!(session.fails("SELECT FROM orders"), "55000", "{value}");
    }
}

/// Three tests for each way that takes the text of a uuid.
macro_rules! ways {
    ($($name:ident: $set:expr, local: $local:expr;)*) => {$(
        mod $name {
            use super::*;

            const WAY: Way = Way { set: $set, local: $local };

            /// A tenant that the role may act for is taken.
            #[test]
            fn takes_a_tenant() {
                super::takes_a_tenant(&WAY, &[(A, A), (B, B)]);
            }

            /// Any other value is refused, and leaves no tenant.
            #[test]
            fn refuses() {
                // The functions take a uuid, so that bad text does not get as far as them.
                let skip = if WAY.set.contains("set_tenant(") { 1 } else { 0 };
                super::refuses(&WAY, &REFUSED[skip..]);
            }

            /// A role of one tenant learns nothing about others.
            #[test]
            fn refuses_alike() {
                super::refuses_alike(&WAY, &[B, UNKNOWN, SUSPENDED, DELETED]);
            }
        }
    )*};
}

ways! {
    set: "SET app.current_tenant = '{}'", local: false;
    set_session: "SET SESSION app.current_tenant TO '{}'", local: false;
    set_local: "SET LOCAL app.current_tenant = '{}'", local: true;
    set_config: "SELECT set_config('app.current_tenant', '{}', false)", local: false;
    set_config_local: "SELECT set_config('app.current_tenant', '{}', true)", local: true;
    set_config_in_do: "DO $$ BEGIN PERFORM set_config('app.current_tenant', '{}', false); END $$", local: false;
    set_in_do: "DO $$ BEGIN SET app.current_tenant = '{}'; END $$", local: false;
    update_pg_settings: "UPDATE pg_settings SET setting = '{}' WHERE name = 'app.current_tenant'", local: false;
    set_tenant: "SELECT set_tenant('{}', false)", local: false;
    set_tenant_local: "SELECT set_tenant('{}')", local: true;
}

const BY_KEY: [Way; 2] = [
    Way { set: "SELECT set_tenant_key({}, false)", local: false },
    Way { set: "SELECT set_tenant_key({})", local: true },
];

/// A key of a tenant is taken.
#[test]
fn set_tenant_key_takes_a_tenant() {
    BY_KEY.iter().for_each(|way| takes_a_tenant(way, &[("1", A), ("2", B)]));
}

/// A key of no tenant, or of one that is locked out, is refused.
#[test]
fn set_tenant_key_refuses() {
    BY_KEY.iter().for_each(|way| refuses(way, &[("3", "42704"), ("4", "55000"), ("5", "55000")]));
}

/// A role of one tenant learns nothing about other keys.
#[test]
fn set_tenant_key_refuses_alike() {
    BY_KEY.iter().for_each(|way| refuses_alike(way, &["2", "3", "4", "5"]));
}

/// NULL is no tenant, and asking for it is a failed attempt.
#[test]
fn null_is_refused() {
    let db = database();
    for set in [
        "SELECT set_tenant(NULL)",
        "SELECT set_tenant(NULL, false)",
        "SELECT set_tenant_key(NULL)",
        "SELECT set_tenant((SELECT tenant_id FROM orders WHERE false))",
    ] {
        let mut app = db.connect_as(&db.app(), A);
        assert_eq!(app.fails(set), "22004", "{set}");
        assert_eq!(app.fails("SELECT FROM orders"), "55000", "{set}");
    }
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.fails(&format!("SELECT set_tenant('{A}', NULL)")), "22004");
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
}

/// PGOPTIONS start a session with a tenant.
#[test]
fn options_take_a_tenant() {
    let db = database();
    let mut app = db.try_connect(&db.app(), &format!("-c app.current_tenant={A}")).expect("a good tenant");
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// PGOPTIONS with another value start no session.
#[test]
fn options_refuse() {
    refuses_to_start(|db, role, value| {
        db.try_connect(role, &format!("-c app.current_tenant={value}")).err().map(|error| state(&error))
    });
}

/// Each value that a role may not start with, and the SQLSTATE.
#[track_caller]
fn refuses_to_start(start: impl Fn(&Db, &str, &str) -> Option<String>) {
    let db = database();
    let one = one_tenant_role(&db);
    let app = db.app();
    let all = REFUSED.map(|(value, code)| (&app, value, code));
    let alike = [B, UNKNOWN, SUSPENDED, DELETED].map(|value| (&one, value, "42501"));
    for (role, value, code) in all.into_iter().chain(alike) {
        assert_eq!(start(&db, role, value).as_deref(), Some(code), "{value}");
    }
}

/// Logs in with the setting itself among the startup parameters, as poolers hand them on: the value that the server reports,
/// or the SQLSTATE. The driver of the tests cannot, so this speaks the protocol.
fn start_with(db: &Db, role: &str, value: &str) -> Result<String, String> {
    let mut server = TcpStream::connect(db.address()).expect("the server listens");
    let mut packet = 196_608_i32.to_be_bytes().to_vec();
    for text in ["user", role, "database", db.name(), "app.current_tenant", value, ""] {
        packet.extend([text.as_bytes(), &[0]].concat());
    }
    let length = (packet.len() + 4) as i32;
    server.write_all(&[&length.to_be_bytes()[..], &packet].concat()).expect("a startup packet");
    let mut reported: Option<String> = None;
    loop {
        let mut head = [0; 5];
        server.read_exact(&mut head).expect("a message");
        let length = i32::from_be_bytes(head[1..].try_into().expect("four bytes"));
        let mut body = vec![0; length as usize - 4];
        server.read_exact(&mut body).expect("a whole message");
        let body = String::from_utf8_lossy(&body);
        match head[0] {
            b'S' => reported = body.strip_prefix("app.current_tenant\0").map(Into::into).or(reported),
            b'E' => {
                return Err(body
                    .split('\0')
                    .find_map(|field| field.strip_prefix('C'))
                    .expect("a code")
                    .into());
            }
            b'Z' => return Ok(reported.expect("the setting is reported").trim_end_matches('\0').into()),
            _ => {}
        }
    }
}

/// A startup parameter starts a session with a tenant.
#[test]
fn startup_parameters_take_a_tenant() {
    let db = database();
    let one = one_tenant_role(&db);
    for (role, tenant) in [(&db.app(), A), (&db.app(), B), (&one, A)] {
        assert_eq!(start_with(&db, role, tenant), Ok(tenant.into()));
    }
}

/// A startup parameter with another value starts no session.
#[test]
fn startup_parameters_refuse() {
    refuses_to_start(|db, role, value| start_with(db, role, value).err());
}

/// A function's SET clause is in force inside, and gone outside.
#[test]
fn a_function_sets_its_tenant() {
    let db = database();
    let mut app = db.connect_as(&db.app(), B);
    app.run(&format!(
        "CREATE FUNCTION pg_temp.as_a() RETURNS text LANGUAGE sql SET app.current_tenant = '{A}'
         AS 'SELECT min(note) FROM orders'"
    ));
    assert_eq!(app.one::<String>("SELECT pg_temp.as_a()"), "a1");
    assert_eq!(notes(&mut app), ["b3", "b4"]);
}

/// A function whose SET clause names what it may not does not run, and leaves no tenant.
#[test]
fn a_function_is_refused_its_tenant() {
    let db = database();
    let one = one_tenant_role(&db);
    let app = db.app();
    let all = REFUSED[1..].iter().map(|(value, code)| (&app, *value, *code));
    let alike = [B, UNKNOWN].map(|value| (&one, value, "42501"));
    for (role, value, code) in all.chain(alike) {
        let mut session = db.connect_as(role, A);
        // Creating a function whose body is checked is an attempt, too.
        session.run(&format!(
            "SET check_function_bodies = off;
             CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET app.current_tenant = '{value}' AS 'SELECT 1'"
        ));
        assert_eq!(session.fails("SELECT pg_temp.f()"), code, "{value}");
        assert_eq!(session.fails("SELECT FROM orders"), "55000", "{value}");
    }
}

/// Bad text is refused where it is written down: in a function, a role, a database.
#[test]
fn bad_text_is_not_stored() {
    let db = database();
    let mut admin = db.admin();
    let app = db.app();
    let database = db.name();
    for sql in [
        "CREATE OR REPLACE FUNCTION f() RETURNS int LANGUAGE sql SET app.current_tenant = '{}' AS 'SELECT 1'"
            .into(),
        format!("ALTER ROLE {app} SET app.current_tenant = '{{}}'"),
        format!("ALTER DATABASE {database} SET app.current_tenant = '{{}}'"),
    ] {
        assert_eq!(admin.fails(&sql.replace("{}", "nonsense")), "22023", "{sql}");
        admin.run(&sql.replace("{}", A));
    }
}

/// Writing a tenant down is no attempt to act for it.
#[test]
fn storing_a_tenant_sets_none() {
    let db = database();
    let mut app = db.connect_as(&db.app(), A);
    app.run(&format!("ALTER ROLE {} SET app.current_tenant = '{SUSPENDED}'", db.app()));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// What a setting can be stored for.
const STORED: [&str; 3] = ["ROLE {role}", "DATABASE {database}", "ROLE {role} IN DATABASE {database}"];

/// A tenant that a role or database names is there at login.
#[test]
fn a_stored_tenant_is_taken_at_login() {
    for target in STORED {
        let db = database();
        let target = target.replace("{role}", &db.app()).replace("{database}", db.name());
        db.admin().run(&format!("ALTER {target} SET app.current_tenant = '{A}'"));
        assert_eq!(notes(&mut db.connect(&db.app())), ["a1", "a2"], "{target}");
    }
}

/// What fails at login gives a warning and no tenant, but a session.
#[test]
fn a_stored_tenant_is_checked_at_login() {
    let db = database();
    let one = one_tenant_role(&db);
    let mut admin = db.admin();
    for target in STORED {
        for (role, value) in
            [(db.app(), UNKNOWN), (db.app(), SUSPENDED), (db.app(), DELETED), (one.clone(), B)]
        {
            let target = target.replace("{role}", &role).replace("{database}", db.name());
            admin.run(&format!("ALTER {target} SET app.current_tenant = '{value}'"));
            let (mut session, notices) = db.connect_listening(&role, "");
            assert_eq!(session.fails("SELECT FROM orders"), "55000", "{target} {value}");
            assert_eq!(notices.warnings(), 1, "{target} {value}");
            assert_eq!(current(&mut session), None, "{target} {value}");
            session.run(&format!("SET app.current_tenant = '{A}'"));
            assert_eq!(notes(&mut session), ["a1", "a2"], "{target} {value}");
            admin.run(&format!("ALTER {target} RESET app.current_tenant"));
        }
    }
}

/// ALTER SYSTEM cannot give the whole cluster a tenant.
#[test]
fn alter_system_is_refused() {
    let db = database();
    let mut admin = db.admin();
    assert_eq!(admin.fails(&format!("ALTER SYSTEM SET app.current_tenant = '{A}'")), "55P02");
    admin.run(&format!("SET app.current_tenant = '{A}'"));
}

/// Gives a cluster a database `shop` with a table, two tenants and a role `app`.
pub(super) fn shop(cluster: &Cluster) {
    cluster.connect("postgres", "postgres").run("CREATE DATABASE shop");
    cluster.connect("shop", "postgres").run(&format!(
        "CREATE EXTENSION tenant_rls;
         CREATE ROLE app LOGIN;
         CREATE TABLE orders (id int PRIMARY KEY, tenant_id uuid NOT NULL, note text);
         SELECT tenant_protect('orders');
         GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO app;
         SELECT tenant_create('{A}'), tenant_create('{B}');
         SELECT tenant_grant('app');
         INSERT INTO orders VALUES (1, '{A}', 'a1'), (2, '{A}', 'a2'), (3, '{B}', 'b3'), (4, '{B}', 'b4')"
    ));
}

/// postgresql.conf cannot give sessions a tenant.
#[test]
fn the_configuration_file_is_refused() {
    let line = format!("app.current_tenant = '{A}'");
    let cluster = Cluster::start(&["shared_preload_libraries = 'tenant_rls'", &line]);
    shop(&cluster);
    let mut app = cluster.connect("shop", "app");
    assert_eq!(current(&mut app), None);
    assert_eq!(app.fails("SELECT FROM orders"), "55000");
    app.run(&format!("SET app.current_tenant = '{A}'"));
    assert_eq!(notes(&mut app), ["a1", "a2"]);
}

/// A value from before the library was loaded is checked when it loads, before a protected row is read: what fails gives a
/// warning and no tenant.
#[test]
fn a_value_from_before_the_library_is_checked() {
    let cluster = Cluster::start(&[]);
    shop(&cluster);
    cluster.connect("shop", "postgres").run(&format!(
        "SELECT tenant_create('{SUSPENDED}'), tenant_create('{DELETED}'); CREATE ROLE one LOGIN;
         SELECT tenant_suspend('{SUSPENDED}'), tenant_delete('{DELETED}'), tenant_grant('one', '{A}');
         GRANT SELECT ON orders TO one"
    ));
    for role in ["app", "one"] {
        let (mut session, notices) = cluster.connect_listening("shop", role);
        session.run(&format!("SET app.current_tenant = '{A}'"));
        assert_eq!(notes(&mut session), ["a1", "a2"], "{role}");
        assert_eq!(notices.warnings(), 0, "{role}");
    }
    let values = ["nonsense", UNKNOWN, SUSPENDED, DELETED].map(|value| ("app", value));
    for (role, value) in values.into_iter().chain([("one", B)]) {
        let (mut session, notices) = cluster.connect_listening("shop", role);
        session.run(&format!("SET app.current_tenant = '{value}'"));
        assert_eq!(notices.warnings(), 0, "{role} {value}");
        assert_eq!(session.fails("SELECT FROM orders"), "55000", "{role} {value}");
        assert_eq!(notices.warnings(), 1, "{role} {value}");
        session.run(&format!("SET app.current_tenant = '{A}'"));
        assert_eq!(notes(&mut session), ["a1", "a2"], "{role} {value}");
    }
}
