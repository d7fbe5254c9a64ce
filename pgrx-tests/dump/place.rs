//! Where a database is, and the programs that carry it from one place to another.

use postgres::{Client, NoTls};

use crate::cluster::{Cluster, command, run, tested_programs};
use crate::harness::{Db, Session};

/// A database of some server.
#[derive(Clone)]
pub struct Place {
    host: String,
    port: u16,
    superuser: String,
    /// The schema of the extension.
    pub schema: &'static str,
    /// The name of the database.
    pub database: String,
}

impl Place {
    /// A new database of the test server, without the extension.
    pub fn new(schema: &'static str) -> Place {
        let db = Db::without_extension();
        let (host, port) = db.address();
        let superuser = db.admin().one("SELECT current_user::text");
        Place { host: host.into(), port, superuser, schema, database: db.name().into() }
    }

    /// A new database of a cluster, without the extension.
    pub fn in_cluster(cluster: &Cluster, database: &str) -> Place {
        cluster.connect("postgres", "postgres").run(&format!("CREATE DATABASE {database}"));
        Place {
            host: "127.0.0.1".into(),
            port: cluster.port(),
            superuser: "postgres".into(),
            schema: "public",
            database: database.into(),
        }
    }

    /// The same database in another cluster.
    pub fn moved_to(&self, cluster: &Cluster) -> Place {
        Place { port: cluster.port(), ..self.clone() }
    }

    /// A connection as superuser.
    pub fn admin(&self) -> Client {
        self.connect(&self.superuser)
    }

    /// A connection as a role, with the schema of the extension in its search_path.
    pub fn connect(&self, role: &str) -> Client {
        let mut config = postgres::Config::new();
        config.host(&self.host).port(self.port).dbname(&self.database).user(role);
        config.options(&format!("-c timezone=UTC -c search_path=public,{}", self.schema));
        config
            .connect(NoTls)
            .unwrap_or_else(|error| panic!("connect to {} as {role}: {error}", self.database))
    }

    /// A connection as a role whose session acts for a tenant.
    pub fn connect_as(&self, role: &str, tenant: &str) -> Client {
        let mut client = self.connect(role);
        client.run(&format!("SET app.current_tenant = '{tenant}'"));
        client
    }
}

/// A directory for dumps, deleted when dropped.
pub struct Scratch(String);

impl Scratch {
    /// An empty one, which the user of the servers may write to.
    pub fn new() -> Scratch {
        Scratch(run("mktemp", &["-d", "/tmp/tenant_rls-dump.XXXXXX"]).trim().into())
    }

    /// The path of a file in it.
    pub fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.0)
    }

    /// Its own path.
    pub fn path(&self) -> &str {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        run("rm", &["-rf", &self.0]);
    }
}

/// Client programs of one version.
pub struct Programs(String);

impl Programs {
    /// Those of the test server.
    pub fn tested() -> Programs {
        Programs(tested_programs())
    }

    /// Those in a directory.
    pub fn at(directory: &str) -> Programs {
        Programs(directory.into())
    }

    /// The directory that they are in.
    pub fn path(&self) -> String {
        self.0.clone()
    }

    /// The major version.
    pub fn major(&self) -> u32 {
        let version = run(&format!("{}/pg_config", self.0), &["--version"]);
        let digits = version.trim_start_matches(|c: char| !c.is_ascii_digit());
        let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
        digits[..end].parse().expect(&version)
    }

    /// Dumps a whole database.
    pub fn dump(&self, from: &Place, options: &[&str], file: &str) {
        let messages = self.run("pg_dump", from, &[options, &["-f", file]].concat());
        assert_eq!(messages, "", "pg_dump");
    }

    /// Restores a plain dump, stopping at the first error. What psql said beside it.
    pub fn restore_plain(&self, file: &str, to: &Place) -> String {
        self.run("psql", to, &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-o", "/dev/null", "-f", file])
    }

    /// Restores a dump of another format. What pg_restore said.
    pub fn restore(&self, file: &str, to: &Place, options: &[&str]) -> String {
        self.run("pg_restore", to, &[options, &[file]].concat())
    }

    /// The messages of a program that must succeed, none of them an error.
    fn run(&self, name: &str, place: &Place, arguments: &[&str]) -> String {
        let (success, messages) = self.attempt(name, place, arguments);
        assert!(success && !messages.to_lowercase().contains("error"), "{name}: {messages}");
        messages
    }

    /// Whether a program succeeds, and its messages.
    pub fn attempt(&self, name: &str, place: &Place, arguments: &[&str]) -> (bool, String) {
        let output = command(&format!("{}/{name}", self.0))
            .args(["-h", &place.host, "-p", &place.port.to_string(), "-U", &place.superuser])
            .args(["-d", &place.database])
            .args(arguments)
            .output()
            .expect(name);
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}
