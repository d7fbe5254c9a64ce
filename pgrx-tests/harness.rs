//! The server, databases, roles and connections of the tests.

use std::io::Write;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use postgres::error::{DbError, SqlState};
use postgres::{Client, NoTls, Row};

/// Settings of the test server.
pub const SETTINGS: &[&str] = &[
    "shared_preload_libraries = 'tenant_rls'",
    "max_connections = 200",
    "max_prepared_transactions = 10",
    // Each test has a database of its own, and each of those may have a worker.
    "max_worker_processes = 64",
    "tenant_rls.quota_databases = 4000",
    // Deadlocks are part of no test that passes.
    "deadlock_timeout = '200ms'",
    "fsync = off",
];

/// Two tenants that every test may register.
pub const A: &str = "aaaaaaaa-0000-4000-8000-00000000000a";
/// The other one.
pub const B: &str = "bbbbbbbb-0000-4000-8000-00000000000b";

struct Server {
    host: String,
    port: u16,
    superuser: String,
}

/// The server, started at the first use.
fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| {
        // The framework boots the server before it runs a test function. There is none to run: asking for one
        // that cannot exist is how a client test boots it too.
        let _ = pgrx_tests::run_test("boot", Some("schema \"tests\" does not exist"), SETTINGS.to_vec());
        let (mut client, _) = pgrx_tests::client().expect("the test server answers");
        let one = |client: &mut Client, sql: &str| client.query_one(sql, &[]).expect(sql).get::<_, String>(0);
        Server {
            host: "localhost".into(),
            port: one(&mut client, "SELECT current_setting('port')").parse().expect("a port"),
            superuser: one(&mut client, "SELECT session_user::text"),
        }
    })
}

/// A number that no other test of this run has.
fn unique() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A database with the extension, dropped with the server.
pub struct Db {
    name: String,
    number: u32,
}

impl Db {
    /// A database with the extension in schema public.
    pub fn new() -> Db {
        let db = Db::without_extension();
        db.admin().run("CREATE EXTENSION tenant_rls");
        db
    }

    /// A database without the extension.
    pub fn without_extension() -> Db {
        let number = unique();
        let name = format!("t{number}");
        connect("postgres", &server().superuser, "").run(&format!("CREATE DATABASE {name}"));
        Db { name, number }
    }

    /// A database with the extension whose texts may be any bytes.
    pub fn in_sql_ascii() -> Db {
        let number = unique();
        let name = format!("t{number}");
        connect("postgres", &server().superuser, "").run(&format!(
            "CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'"
        ));
        let db = Db { name, number };
        db.admin().run("CREATE EXTENSION tenant_rls");
        db
    }

    /// A database with the extension, tenants [`A`] and [`B`] on plan free, a protected table
    /// `orders(id int primary key, tenant_id uuid, note text)` with two rows of each, and a role
    /// [`Db::app`] that may act for every tenant and read and write the table.
    pub fn with_orders() -> Db {
        let db = Db::new();
        let app = db.app();
        db.role(&app, "LOGIN");
        db.admin().run(&format!(
            "CREATE TABLE orders (id int PRIMARY KEY, tenant_id uuid NOT NULL, note text);
             SELECT tenant_protect('orders');
             GRANT SELECT, INSERT, UPDATE, DELETE ON orders TO {app};
             SELECT tenant_create('{A}'), tenant_create('{B}');
             SELECT tenant_grant('{app}');
             INSERT INTO orders VALUES (1, '{A}', 'a1'), (2, '{A}', 'a2'), (3, '{B}', 'b3'), (4, '{B}', 'b4');"
        ));
        db
    }

    /// A copy of this database, which nobody is connected to; its roles are those of the original.
    pub fn copy(&self) -> Db {
        let name = format!("t{}", unique());
        let sql = format!("CREATE DATABASE {name} TEMPLATE {}", self.name);
        connect("postgres", &server().superuser, "").run(&sql);
        Db { name, number: self.number }
    }

    /// Drops the database, with whoever is connected to it.
    pub fn discard(self) {
        connect("postgres", &server().superuser, "")
            .run(&format!("DROP DATABASE {} WITH (FORCE)", self.name));
    }

    /// The name of this database's application role, which [`Db::with_orders`] makes.
    pub fn app(&self) -> String {
        self.role_name("app")
    }

    /// The name of a role that belongs to this test alone.
    pub fn role_name(&self, name: &str) -> String {
        format!("{name}_{}", self.number)
    }

    /// Makes a role.
    pub fn role(&self, name: &str, options: &str) {
        self.admin().run(&format!("CREATE ROLE {name} {options}"));
    }

    /// The name of the database.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A connection as superuser.
    pub fn admin(&self) -> Client {
        connect(&self.name, &server().superuser, "")
    }

    /// A connection as superuser that the DDL guard lets break what is protected.
    pub fn breaker(&self) -> Client {
        let mut client = self.admin();
        client.run("SET tenant_rls.ddl_guard = off");
        client
    }

    /// A connection as a role.
    pub fn connect(&self, role: &str) -> Client {
        connect(&self.name, role, "")
    }

    /// A connection as a role, with `PGOPTIONS`, or why there is none.
    pub fn try_connect(&self, role: &str, options: &str) -> Result<Client, postgres::Error> {
        try_connect(&self.name, role, options)
    }

    /// A connection as a role, with `PGOPTIONS`, and what the server tells it beside its answers.
    pub fn connect_listening(&self, role: &str, options: &str) -> (Client, Notices) {
        let mut config = config(&self.name, role, options);
        let notices = Notices::of(&mut config);
        let client = config.connect(NoTls).unwrap_or_else(|error| panic!("connect as {role}: {error}"));
        (client, notices)
    }

    /// A connection as a role whose session acts for a tenant.
    pub fn connect_as(&self, role: &str, tenant: &str) -> Client {
        let mut client = self.connect(role);
        client.run(&format!("SET app.current_tenant = '{tenant}'"));
        client
    }

    /// A connection as a role (`None`: superuser) that hands over every notice.
    pub fn open(&self, role: Option<&str>, hear: impl Fn(DbError) + Send + Sync + 'static) -> Client {
        let role = role.unwrap_or(&server().superuser);
        let mut config = config(&self.name, role, "");
        config.notice_callback(hear);
        config.connect(NoTls).unwrap_or_else(|error| panic!("connect as {role}: {error}"))
    }

    /// Host and port of the server, for programs.
    pub fn address(&self) -> (&'static str, u16) {
        (&server().host, server().port)
    }
}

fn connect(database: &str, role: &str, options: &str) -> Client {
    try_connect(database, role, options)
        .unwrap_or_else(|error| panic!("connect to {database} as {role}: {error}"))
}

fn try_connect(database: &str, role: &str, options: &str) -> Result<Client, postgres::Error> {
    config(database, role, options).connect(NoTls)
}

fn config(database: &str, role: &str, options: &str) -> postgres::Config {
    let server = server();
    let mut config = postgres::Config::new();
    config.host(&server.host).port(server.port).dbname(database).user(role);
    if !options.is_empty() {
        config.options(options);
    }
    config
}

/// The severities of the notices and warnings that a connection has received.
#[derive(Default)]
pub struct Notices(Arc<Mutex<Vec<String>>>);

impl Notices {
    /// Those of the connection that is made with it.
    pub fn of(config: &mut postgres::Config) -> Notices {
        let notices = Notices::default();
        let heard = notices.0.clone();
        config.notice_callback(move |notice| heard.lock().unwrap().push(notice.severity().to_string()));
        notices
    }

    /// The number of warnings since the last call.
    pub fn warnings(&self) -> usize {
        self.0.lock().unwrap().drain(..).filter(|severity| severity == "WARNING").count()
    }
}

/// What tests ask of a connection.
pub trait Session {
    /// Runs statements that must succeed, by the simple protocol.
    fn run(&mut self, sql: &str);

    /// The first column of the only row, by the extended protocol.
    fn one<T>(&mut self, sql: &str) -> T
    where
        T: for<'a> postgres::types::FromSql<'a>;

    /// The rows.
    fn rows(&mut self, sql: &str) -> Vec<Row>;

    /// The SQLSTATE of statements that must fail, by the simple protocol.
    fn fails(&mut self, sql: &str) -> String;

    /// Succeeds or fails: the SQLSTATE, or `None`.
    fn attempt(&mut self, sql: &str) -> Option<String>;
}

impl Session for Client {
    #[track_caller]
    fn run(&mut self, sql: &str) {
        if let Err(error) = self.batch_execute(sql) {
            panic!("{sql}\n{}", describe(&error));
        }
    }

    #[track_caller]
    fn one<T>(&mut self, sql: &str) -> T
    where
        T: for<'a> postgres::types::FromSql<'a>,
    {
        match self.query_one(sql, &[]) {
            Ok(row) => row.get(0),
            Err(error) => panic!("{sql}\n{}", describe(&error)),
        }
    }

    #[track_caller]
    fn rows(&mut self, sql: &str) -> Vec<Row> {
        match self.query(sql, &[]) {
            Ok(rows) => rows,
            Err(error) => panic!("{sql}\n{}", describe(&error)),
        }
    }

    #[track_caller]
    fn fails(&mut self, sql: &str) -> String {
        self.attempt(sql).unwrap_or_else(|| panic!("{sql}\nsucceeded"))
    }

    fn attempt(&mut self, sql: &str) -> Option<String> {
        self.batch_execute(sql).err().map(|error| state(&error))
    }
}

/// The SQLSTATE of an error.
pub fn state(error: &postgres::Error) -> String {
    error.code().map_or_else(|| format!("no SQLSTATE: {error}"), |code: &SqlState| code.code().to_string())
}

/// An error in one line.
pub fn describe(error: &postgres::Error) -> String {
    match error.as_db_error() {
        Some(e) => format!("{}: {} {:?} {:?}", e.code().code(), e.message(), e.detail(), e.hint()),
        None => error.to_string(),
    }
}

/// The report of the error of a statement that must fail.
#[track_caller]
pub fn report(client: &mut Client, sql: &str) -> postgres::error::DbError {
    match client.batch_execute(sql) {
        Ok(()) => panic!("{sql}\nsucceeded"),
        Err(error) => error.as_db_error().unwrap_or_else(|| panic!("{sql}\n{error}")).clone(),
    }
}

/// Asserts the SQLSTATE of each statement.
#[track_caller]
pub fn refuses(client: &mut Client, statements: &[(&str, &str)]) {
    for (sql, state) in statements {
        assert_eq!(client.fails(sql), *state, "{sql}");
    }
}

/// The one row of a call in FROM as JSON: the answer of a quota function, field by field.
#[track_caller]
pub fn answer(client: &mut Client, call: &str) -> serde_json::Value {
    let text: String = client.one(&format!("SELECT to_jsonb(a)::text FROM {call} AS a"));
    serde_json::from_str(&text).expect("an object")
}

/// Units recorded for a tenant and resource, in all periods; for superusers.
#[track_caller]
pub fn recorded(client: &mut Client, tenant: &str, resource: &str) -> i64 {
    client.one(&format!(
        "SELECT coalesce(sum(used), 0)::bigint FROM tenant_rls.units
         WHERE tenant_id = '{tenant}' AND resource = '{resource}'"
    ))
}

/// Waits until a query answers true, and fails when it never does.
#[track_caller]
pub fn eventually(client: &mut Client, sql: &str) {
    for _ in 0..1000 {
        if client.one::<bool>(sql) {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{sql}\nwas never true");
}

/// The program, or the folder of programs, that the variable names. `make test` names all; without it the test is to end, and
/// it is said that it has proved nothing.
pub fn program(variable: &str, what: &str) -> Option<String> {
    let named = std::env::var(variable).ok();
    if named.is_none() {
        skipped(&format!("{variable} does not say where there is {what}; make test does"));
    }
    named
}

/// Tells what was not proved, and why. Past the test framework, which shows only what failed.
pub fn skipped(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let _ = writeln!(std::io::stderr(), "skipped: {test}: {why}");
}

/// Lets threads that look at the flag end when it is dropped, also when their test has panicked.
pub struct Stops<'a>(pub &'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Waits until that many sessions of the database wait for a lock.
#[track_caller]
pub fn waiting(client: &mut Client, sessions: u32) {
    eventually(
        client,
        &format!(
            "SELECT count(*) = {sessions} FROM pg_stat_activity
             WHERE datname = current_database() AND wait_event_type = 'Lock' AND backend_type = 'client backend'"
        ),
    );
}
