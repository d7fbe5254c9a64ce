//! The examples of the documents, run by psql: an answer other than the printed one fails.
//!
//! In a page every block ```` ```sql ```` is run, in order, in a database of the page's own. The answer is the block
//! ```` ```text ```` that comes next, if one does before the next `sql` block or heading: all that psql prints.
//! A block without an answer must not fail. A block that starts with `-- as ROLE` runs in the session of that role,
//! which stays open for the page; others run in the superuser's.
//!
//! `TENANT_RLS_WRITE_DOCS=1` writes the answers into the pages instead.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, PipeReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::{env, fs, io};

use crate::harness::{Db, Session};

#[test]
fn readme() {
    check("README.md");
}

#[test]
fn registry() {
    check("docs/registry.md");
}

#[test]
fn context() {
    check("docs/context.md");
}

#[test]
fn tickets() {
    check("docs/tickets.md");
}

#[test]
fn poolers() {
    check("docs/poolers.md");
}

#[test]
fn isolation() {
    check("docs/isolation.md");
}

#[test]
fn guard() {
    check("docs/guard.md");
}

#[test]
fn repair() {
    check("docs/repair.md");
}

#[test]
fn lockdown() {
    check("docs/lockdown.md");
}

#[test]
fn prove() {
    check("docs/prove.md");
}

#[test]
fn audit() {
    check("docs/audit.md");
}

#[test]
fn quotas() {
    check("docs/quotas.md");
}

#[test]
fn usage() {
    check("docs/usage.md");
}

#[test]
fn features() {
    check("docs/features.md");
}

#[test]
fn settings() {
    check("docs/settings.md");
}

#[test]
fn deployments() {
    check("docs/deployments.md");
}

#[test]
fn cache() {
    check("docs/cache.md");
}

#[test]
fn adopting() {
    check("docs/adopting.md");
}

#[test]
fn operations() {
    check("docs/operations.md");
}

#[test]
fn the_tests_that_the_readme_names_exist() {
    let root = env!("CARGO_MANIFEST_DIR");
    let readme = fs::read_to_string(format!("{root}/README.md")).expect("README.md");
    let mut found = 0;
    for link in readme.split("[`").skip(1) {
        let Some((name, rest)) = link.split_once("`](pgrx-tests/") else { continue };
        let (file, _) = rest.split_once(')').expect("a link ends");
        let tests = fs::read_to_string(format!("{root}/pgrx-tests/{file}")).expect(file);
        assert!(tests.contains(&format!("#[test]\nfn {name}(")), "pgrx-tests/{file} has no test {name}");
        found += 1;
    }
    assert!(found > 20, "the README names {found} tests");
}

/// Roles have the names that readers see, and belong to the whole cluster: one page at a time.
fn one_page() -> MutexGuard<'static, ()> {
    static ONE: Mutex<()> = Mutex::new(());
    ONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn check(page: &str) {
    let _one = one_page();
    let path = format!("{}/{page}", env!("CARGO_MANIFEST_DIR"));
    let written = fs::read_to_string(&path).expect(page);
    let db = Db::without_extension();
    for role in roles(&written) {
        db.admin().run(&format!("DROP ROLE IF EXISTS {role}"));
    }
    let real = run(&db, page, &written);
    for role in roles(&written) {
        db.admin().run(&format!("DROP OWNED BY {role}; DROP ROLE {role}"));
    }
    if env::var_os("TENANT_RLS_WRITE_DOCS").is_some() {
        fs::write(&path, real).expect(page);
        return;
    }
    let mut at = 0;
    for (written, real) in written.lines().zip(real.lines()) {
        at += 1;
        assert_eq!(written, real, "{page}:{at}: the document is on the left, the server on the right");
    }
    assert_eq!(written.lines().count(), real.lines().count(), "{page}: answers have other lines");
}

/// The roles that a page makes.
fn roles(page: &str) -> Vec<&str> {
    let after = page.lines().filter_map(|line| line.strip_prefix("CREATE ROLE "));
    after.filter_map(|rest| rest.split([' ', ';']).next()).collect()
}

/// The page with the answers that the server gives.
fn run(db: &Db, page: &str, written: &str) -> String {
    let mut sessions = BTreeMap::new();
    let mut real = String::new();
    let mut answer: Option<Vec<String>> = None;
    let mut lines = written.lines().enumerate();
    while let Some((at, line)) = lines.next() {
        real += line;
        real += "\n";
        let mut rest = lines.by_ref().map(|(_, line)| line).take_while(|line| *line != "```");
        match line {
            "```sql" => {
                fail_unless_shown(page, answer.take());
                let block: Vec<&str> = rest.collect();
                let role = block[0].strip_prefix("-- as ").map_or("", |role| role.trim_end());
                let session = sessions.entry(role).or_insert_with(|| Psql::open(db, role));
                answer = Some(session.answer(&block.join("\n"), &format!("{page}:{}", at + 1)));
                push_block(&mut real, &block);
            }
            "```text" if answer.is_some() => {
                rest.by_ref().for_each(drop);
                push_block(&mut real, &answer.take().unwrap_or_default());
            }
            fence if fence.starts_with("```") => push_block(&mut real, &rest.collect::<Vec<_>>()),
            heading if heading.starts_with('#') => fail_unless_shown(page, answer.take()),
            _ => {}
        }
    }
    fail_unless_shown(page, answer);
    real
}

fn push_block<T: AsRef<str>>(page: &mut String, lines: &[T]) {
    for line in lines {
        *page += line.as_ref();
        *page += "\n";
    }
    *page += "```\n";
}

/// An answer that the page does not show may say anything but that a statement failed.
fn fail_unless_shown(page: &str, answer: Option<Vec<String>>) {
    let answer = answer.unwrap_or_default();
    let failed = answer.iter().any(|line| line.starts_with("ERROR:") || line.starts_with("FATAL:"));
    assert!(!failed, "{page}: a block without an answer failed: {answer:#?}");
}

/// The superuser has the name that messages in the documents show.
fn superuser(db: &Db) -> &'static str {
    db.admin().run(
        "DO $$ BEGIN IF to_regrole('postgres') IS NULL THEN CREATE ROLE postgres SUPERUSER LOGIN; END IF; END $$",
    );
    "postgres"
}

/// A psql that reads from us.
struct Psql {
    child: Child,
    stdin: ChildStdin,
    output: BufReader<PipeReader>,
}

/// What psql prints when it has come to the end of a block.
const END: &str = "@@ end of block";

impl Psql {
    fn open(db: &Db, role: &str) -> Psql {
        let (host, port) = db.address();
        let programs: String = db.admin().one("SELECT setting FROM pg_config WHERE name = 'BINDIR'");
        let role = if role.is_empty() { superuser(db) } else { role };
        let (reader, writer) = io::pipe().expect("a pipe");
        let mut child = Command::new(format!("{programs}/psql"))
            .args(["-X", "-q", "-h", host, "-p", &port.to_string(), "-d", db.name(), "-U", role])
            .env_clear()
            .env("PGTZ", "UTC")
            .env("PGCLIENTENCODING", "UTF8")
            .stdin(Stdio::piped())
            .stdout(writer.try_clone().expect("a pipe"))
            .stderr(writer)
            .spawn()
            .expect("psql starts");
        let stdin = child.stdin.take().expect("a pipe");
        Psql { child, stdin, output: BufReader::new(reader) }
    }

    /// All that psql prints for a block.
    fn answer(&mut self, block: &str, place: &str) -> Vec<String> {
        // \warn writes to stderr, which is the same pipe and is not buffered.
        write!(self.stdin, "{block}\n\\warn '{END}'\n").and_then(|()| self.stdin.flush()).expect(place);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).expect(place);
            assert!(read > 0, "{place}: psql has ended: {lines:#?}");
            let line = line.trim_end();
            if line == END {
                break;
            }
            lines.push(line.to_string());
        }
        while lines.last().is_some_and(String::is_empty) {
            lines.pop();
        }
        lines
    }
}

impl Drop for Psql {
    fn drop(&mut self) {
        let _ = self.stdin.write_all(b"\\q\n");
        let _ = self.child.wait();
    }
}
