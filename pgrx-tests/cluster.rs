//! A server of its own, for the settings that the shared one cannot have.

use std::cell::Cell;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use postgres::{Client, NoTls};

use crate::harness::{Db, Notices, Session};

/// A cluster, stopped and deleted when dropped.
pub struct Cluster {
    programs: String,
    directory: String,
    port: u16,
    running: Cell<bool>,
}

impl Cluster {
    /// A running cluster with these lines in its postgresql.conf, of the version of the test server.
    pub fn start(settings: &[&str]) -> Cluster {
        Cluster::of(&tested_programs(), settings)
    }

    /// As [`Cluster::start`], of the version whose programs are in that directory.
    pub fn of(programs: &str, settings: &[&str]) -> Cluster {
        let cluster = Cluster::place(programs);
        let data = cluster.data();
        cluster.program("initdb", &["-D", &data, "-U", "postgres", "-A", "trust", "-N", "-k", "-E", "UTF8"]);
        let mut lines = vec![
            "fsync = off".to_string(),
            format!("port = {}", cluster.port),
            "unix_socket_directories = ''".into(),
        ];
        lines.extend(settings.iter().map(|line| line.to_string()));
        cluster.configure(&lines);
        cluster.up();
        cluster
    }

    /// A directory and a port.
    fn place(programs: &str) -> Cluster {
        let directory = run("mktemp", &["-d", "/tmp/tenant_rls-cluster.XXXXXX"]).trim().to_string();
        let port = free_port();
        Cluster { programs: programs.into(), directory, port, running: Cell::new(false) }
    }

    /// Adds lines to its postgresql.conf; the last one of a name counts.
    fn configure(&self, lines: &[String]) {
        for line in lines {
            let append = "printf '%s\\n' \"$1\" >> \"$2\"";
            run("sh", &["-c", append, "sh", line, &format!("{}/postgresql.conf", self.data())]);
        }
    }

    /// Adds a line to its postgresql.conf, for the next start.
    pub fn set(&self, line: &str) {
        self.configure(&[line.to_string()]);
    }

    /// Starts it again.
    pub fn up(&self) {
        let log = format!("{}/log", self.directory);
        self.program("pg_ctl", &["-D", &self.data(), "-s", "-w", "-l", &log, "start"]);
        self.running.set(true);
    }

    /// Stops it cleanly.
    pub fn down(&self) {
        self.program("pg_ctl", &["-D", &self.data(), "-s", "-m", "fast", "stop"]);
        self.running.set(false);
    }

    /// Stops it as a crash does: nothing is written that is not yet.
    pub fn crash(&self) {
        self.program("pg_ctl", &["-D", &self.data(), "-s", "-m", "immediate", "stop"]);
        self.running.set(false);
    }

    /// Kills the postmaster, and waits for the processes that it leaves behind: for as long as one of them has the shared
    /// memory, no other postmaster starts.
    pub fn kill(&self) {
        let pid_file = format!("{}/postmaster.pid", self.data());
        assert!(kill(run("head", &["-n", "1", &pid_file]).trim()), "there is a postmaster");
        self.running.set(false);
        let data = PathBuf::from(self.data());
        let is_of_data = |process: std::fs::DirEntry| {
            // Nobody may look at a process that is about to end.
            std::fs::read_link(process.path().join("cwd")).is_ok_and(|directory| directory == data)
        };
        while std::fs::read_dir("/proc").expect("processes").flatten().any(is_of_data) {
            thread::sleep(Duration::from_millis(10));
        }
        // Until somebody has asked for its end, the number of the postmaster is still taken, and the file counts.
        run("rm", &[&pid_file]);
    }

    /// The directory with its programs.
    pub fn programs(&self) -> &str {
        &self.programs
    }

    /// Its port, on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// A connection as a role.
    pub fn connect(&self, database: &str, role: &str) -> Client {
        try_connect(self.port, database, role).expect("the cluster answers")
    }

    /// A connection as a role, and what the server tells it beside its answers.
    pub fn connect_listening(&self, database: &str, role: &str) -> (Client, Notices) {
        let mut config = config(self.port, database, role);
        let notices = Notices::of(&mut config);
        (config.connect(NoTls).expect("the cluster answers"), notices)
    }

    /// What the server has logged.
    pub fn log(&self) -> String {
        run("cat", &[&format!("{}/log", self.directory)])
    }

    /// A running standby that streams from this cluster.
    pub fn standby(&self) -> Cluster {
        let standby = Cluster::place(&self.programs);
        let source = format!("host=127.0.0.1 port={} user=postgres", self.port);
        standby.program(
            "pg_basebackup",
            &["-D", &standby.data(), "-d", &source, "-R", "-X", "stream", "-c", "fast", "-N"],
        );
        standby.configure(&[format!("port = {}", standby.port)]);
        standby.up();
        standby
    }

    /// Ends the recovery of a standby.
    pub fn promote(&self) {
        self.program("pg_ctl", &["-D", &self.data(), "-s", "-w", "promote"]);
    }

    /// Its data directory.
    pub fn data(&self) -> String {
        format!("{}/data", self.directory)
    }

    fn program(&self, name: &str, arguments: &[&str]) {
        run(&format!("{}/{name}", self.programs), arguments);
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.running.get() {
            self.program("pg_ctl", &["-D", &self.data(), "-s", "-m", "immediate", "stop"]);
        }
        run("rm", &["-rf", &self.directory]);
    }
}

/// A connection to the cluster on that port, or why there is none.
pub fn try_connect(port: u16, database: &str, role: &str) -> Result<Client, postgres::Error> {
    config(port, database, role).connect(NoTls)
}

fn config(port: u16, database: &str, role: &str) -> postgres::Config {
    let mut config = postgres::Config::new();
    config.host("127.0.0.1").port(port).dbname(database).user(role);
    config
}

/// Kills a process of a cluster, which has no time to do anything about it. `false` if it has gone by itself.
pub fn kill(pid: &str) -> bool {
    command("kill").args(["-9", pid]).output().expect("kill").status.success()
}

/// A port on which nobody listens, and that no client is given, neither now nor while a server of it is down: below 32768,
/// where Linux begins with those. No two tests have the same.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = std::process::id() as u16 % 8000;
    loop {
        let port = 20000 + (first + NEXT.fetch_add(1, Ordering::Relaxed)) % 8000;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// The directory with the programs of the test server.
pub fn tested_programs() -> String {
    Db::without_extension().admin().one("SELECT setting FROM pg_config WHERE name = 'BINDIR'")
}

/// A program, to be run as postgres where root, which may not run a server, asks.
pub fn command(program: &str) -> Command {
    let is_root = Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n");
    let mut command = Command::new(if is_root { "runuser" } else { program });
    if is_root {
        command.args(["-u", "postgres", "--", program]);
    }
    // Some have set it for all that is written in Rust.
    command.current_dir("/").env("LC_ALL", "C").env("RUST_BACKTRACE", "1");
    command
}

/// The output of a program that must succeed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let output = command(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}
