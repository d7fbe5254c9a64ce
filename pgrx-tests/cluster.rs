//! A server of its own, for the settings that the shared one cannot have.

use std::net::TcpListener;
use std::process::Command;

use postgres::{Client, NoTls};

use crate::harness::{Db, Session};

/// A cluster, stopped and deleted when dropped.
pub struct Cluster {
    programs: String,
    directory: String,
    port: u16,
}

impl Cluster {
    /// A running cluster with these lines in its postgresql.conf, of the version of the test server.
    pub fn start(settings: &[&str]) -> Cluster {
        let programs = Db::without_extension().admin().one("SELECT setting FROM pg_config WHERE name = 'BINDIR'");
        let directory = run("mktemp", &["-d", "/tmp/tenant_rls-cluster.XXXXXX"]).trim().to_string();
        let port = TcpListener::bind(("127.0.0.1", 0)).and_then(|free| free.local_addr()).expect("a port").port();
        let cluster = Cluster { programs, directory, port };
        let data = cluster.data();
        cluster.program("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "-N", "-E", "UTF8"]);
        let mut lines = vec!["fsync = off".to_string(), format!("port = {port}"), "unix_socket_directories = ''".into()];
        lines.extend(settings.iter().map(|line| line.to_string()));
        for line in lines {
            let append = "printf '%s\\n' \"$1\" >> \"$2\"";
            run("sh", &["-c", append, "sh", &line, &format!("{data}/postgresql.conf")]);
        }
        cluster.program("pg_ctl", &["-D", &data, "-s", "-w", "-l", &format!("{}/log", cluster.directory), "start"]);
        cluster
    }

    /// A connection as a role.
    pub fn connect(&self, database: &str, role: &str) -> Client {
        let mut config = postgres::Config::new();
        config.host("127.0.0.1").port(self.port).dbname(database).user(role);
        config.connect(NoTls).expect("the cluster answers")
    }

    fn data(&self) -> String {
        format!("{}/data", self.directory)
    }

    fn program(&self, name: &str, arguments: &[&str]) {
        run(&format!("{}/{name}", self.programs), arguments);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.program("pg_ctl", &["-D", &self.data(), "-s", "-m", "immediate", "stop"]);
        run("rm", &["-rf", &self.directory]);
    }
}

/// The output of a program, run as postgres where root, which may not run a server, asks.
fn run(program: &str, arguments: &[&str]) -> String {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let mut command = Command::new(if is_root { "runuser" } else { program });
    if is_root {
        command.args(["-u", "postgres", "--", program]);
    }
    let output = command.args(arguments).current_dir("/").output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
