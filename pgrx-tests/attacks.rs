//! Attacks: what a tenant tries, with the login of the application, to reach another tenant.
//!
//! # Layout
//!
//! A module a class; an attack is data. [`world`] is what is attacked, [`mutation`] takes the guards out one by one and
//! says which attacks notice.
//!
//! # What counts as success
//!
//! Four questions that are asked of every attack: has the attacker seen something of B (a canary); does it see the same
//! when B has no rows; is everything of B, and every policy and privilege, as before; could B work while the
//! attacker's transaction was open. On top, each step says whether it must work or with which SQLSTATE it must be
//! refused: an attack whose setup fails, or which meets a missing function, has not been run and fails.

mod cache;
mod carry;
mod channels;
mod context;
mod cves;
mod definer;
mod features;
mod foreign;
mod guard;
mod inference;
mod leaky;
mod locks;
mod mutation;
mod objects;
mod own;
mod plans;
mod quota;
mod reads;
mod roles;
mod shadow;
mod stale;
mod tickets;
mod trees;
mod upsert;
mod world;
mod writes;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use postgres::error::DbError;
use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client, SimpleQueryMessage};

use crate::harness::{A, B, Db, Session};
use world::{CANARY, CANARY_NUMBER, Worlds, fill};

/// One attack.
pub struct Attack {
    /// What is tried.
    name: &'static str,
    /// What stands in the way.
    guard: &'static str,
    /// What a superuser prepares; must work.
    setup: &'static str,
    /// The attacker's role.
    role: &'static str,
    /// Whom its sessions act for at first; empty: nobody.
    tenant: &'static str,
    steps: Vec<Step>,
    /// Whether it may change the registry and policies, of its own tables: only the rows of B count.
    changes: bool,
    leak: Option<Leak>,
    /// Whether texts of B come with it where [`is_old_minor`].
    more_on_old_minors: bool,
}

/// What gets through by the design of the server, and the sentence of the documents that says so.
struct Leak(Oracle, &'static str);

/// The four questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Oracle {
    /// A text of B was seen.
    Canary,
    /// The two worlds look different.
    Worlds,
    /// Something of B, or a guard, has changed.
    Digest,
    /// B had to wait, or could not do what it wanted.
    Blocked,
}

/// An attack by `app`, which acts for A.
fn attack(name: &'static str, guard: &'static str, setup: &'static str, steps: Vec<Step>) -> Attack {
    Attack {
        name,
        guard,
        setup,
        role: "app",
        tenant: "{A}",
        steps,
        changes: false,
        leak: None,
        more_on_old_minors: false,
    }
}

/// Whether the server is of a minor that the README calls too old: row level security itself has holes there.
fn is_old_minor() -> bool {
    let version: i32 =
        Db::without_extension().admin().one("SELECT current_setting('server_version_num')::int");
    [(15, 20), (16, 16), (17, 12), (18, 7)]
        .iter()
        .any(|(major, minor)| version / 10_000 == *major && version % 10_000 < *minor)
}

impl Attack {
    /// By another role, acting for that tenant.
    fn by(self, role: &'static str, tenant: &'static str) -> Attack {
        Attack { role, tenant, ..self }
    }

    /// On tables of its own, which it may change.
    fn changes(self) -> Attack {
        Attack { changes: true, ..self }
    }

    /// Succeeds, as the documents say.
    fn leaks(self, oracle: Oracle, sentence: &'static str) -> Attack {
        Attack { leak: Some(Leak(oracle, sentence)), ..self }
    }

    /// On old minors more of it.
    fn more_on_old_minors(self) -> Attack {
        Attack { more_on_old_minors: true, ..self }
    }
}

/// One statement, or several in one message.
struct Step {
    /// The session: the attacker's if empty, else the role, with `#2` for its second one, `#new` for one that has set
    /// no tenant and `#b` for one that acts for B. `admin` is a superuser; what it, `b` and `#b` do is no attack.
    by: &'static str,
    /// `connect …` is a login with these options, which then reads the orders. `{said}` stands for what a trusted session
    /// was answered last.
    sql: &'static str,
    /// A parameter, sent apart from the statement.
    parameter: Option<&'static str>,
    expected: Expected,
}

enum Expected {
    Works,
    Fails(&'static str),
    /// By the server's version or what the attack has left.
    Either,
}

/// A step that must work.
fn ok(sql: &'static str) -> Step {
    Step { by: "", sql, parameter: None, expected: Expected::Works }
}

/// A step that must be refused with that SQLSTATE.
fn no(state: &'static str, sql: &'static str) -> Step {
    Step { by: "", sql, parameter: None, expected: Expected::Fails(state) }
}

/// A step that may end either way.
fn any(sql: &'static str) -> Step {
    Step { by: "", sql, parameter: None, expected: Expected::Either }
}

impl Step {
    fn by(self, by: &'static str) -> Step {
        Step { by, ..self }
    }

    fn with(self, parameter: &'static str) -> Step {
        Step { parameter: Some(parameter), ..self }
    }
}

/// What is wrong: which question, or `None` for a step that did not end as it must; and the facts.
type Finding = (Option<Oracle>, String);

/// SQLSTATEs of a statement that has not been run: syntax, missing functions, tables, columns.
const NOT_RUN: [&str; 4] = ["42601", "42883", "42P01", "42703"];

/// The digest of a database from which the extension is gone.
const GONE: &str = "gone";

/// One world under attack.
struct Run<'a> {
    attack: &'a Attack,
    db: &'a Db,
    sessions: HashMap<&'static str, Client>,
    heard: Arc<Mutex<Vec<String>>>,
    transcript: Vec<String>,
    said: String,
    findings: Vec<Finding>,
    digest: String,
    admin: Client,
}

impl<'a> Run<'a> {
    fn new(attack: &'a Attack, db: &'a Db) -> Result<Run<'a>, Finding> {
        let mut admin = db.admin();
        if let Some(error) = failure(&mut admin, &fill(attack.setup, db)) {
            return Err((None, format!("not run: the setup failed: {error}")));
        }
        let mut run = Run {
            attack,
            db,
            sessions: HashMap::new(),
            heard: Arc::default(),
            transcript: Vec::new(),
            said: String::new(),
            findings: Vec::new(),
            digest: String::new(),
            admin,
        };
        run.digest = run.now();
        Ok(run)
    }

    /// The digest of B and its guards, as long as there is an extension.
    fn now(&mut self) -> String {
        if self.admin.one("SELECT to_regclass('tenant_rls.tenants') IS NULL") {
            return GONE.into();
        }
        self.admin.one(&fill(world::DIGEST, self.db))
    }

    fn steps(&mut self) {
        for step in &self.attack.steps {
            self.step(step);
        }
        self.life_of_b();
        for (name, mut session) in std::mem::take(&mut self.sessions) {
            if name != "b" {
                let _ = session.batch_execute("COMMIT");
            }
        }
        self.compare_digest();
        for transaction in
            self.admin.rows("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()")
        {
            self.admin.run(&format!("ROLLBACK PREPARED '{}'", transaction.get::<_, &str>(0)));
        }
    }

    fn step(&mut self, step: &Step) {
        let by = if step.by.is_empty() { self.attack.role } else { step.by };
        let of_b = by == "b" || by.ends_with("#b");
        let trusted = by == "admin" || of_b;
        let sql = fill(step.sql, self.db).replace("{said}", &self.said);
        if trusted {
            self.compare_digest();
        }
        let parameter = step.parameter.map(|parameter| fill(parameter, self.db));
        let (seen, state) = match sql.strip_prefix("connect ") {
            Some(options) => login(self.db, &login_of(self.db, by), options),
            None => run(self.session(by), &sql, parameter.as_deref()),
        };
        let mut lines = std::mem::take(&mut *self.heard.lock().unwrap());
        lines.extend(seen);
        if of_b && state.as_deref() == Some("55P03") {
            self.findings.push((Some(Oracle::Blocked), format!("B waited: {}", short(step.sql))));
        }
        self.check_state(step, of_b, state.as_deref(), &lines);
        if trusted {
            if let Some(line) = lines.into_iter().rev().find(|line| !line.starts_with('(')) {
                self.said = line;
            }
            self.digest = self.now();
            return;
        }
        for line in lines {
            let mut line = steady(&line.replace(self.db.name(), "{db}"));
            if step.sql.contains("{said}") && !self.said.is_empty() {
                line = line.replace(&self.said, "{said}");
            }
            let shown = line.to_lowercase();
            if shown.contains(CANARY) || shown.contains(CANARY_NUMBER) {
                self.findings
                    .push((Some(Oracle::Canary), format!("{} saw {}", short(step.sql), short(&line))));
            }
            self.transcript.push(line);
        }
    }

    fn check_state(&mut self, step: &Step, of_b: bool, state: Option<&str>, lines: &[String]) {
        let last = lines.last().map(String::as_str).unwrap_or_default();
        let wrong = match (&step.expected, state) {
            (_, Some(state)) if NOT_RUN.contains(&state) => format!("not run: {last}"),
            (Expected::Works, None) | (Expected::Either, _) => return,
            (Expected::Fails(expected), Some(state)) if *expected == state => return,
            (Expected::Fails(expected), _) => format!("not refused with {expected} but {last}"),
            // What B wants to do and cannot is the attacker's doing.
            _ if of_b => {
                self.findings
                    .push((Some(Oracle::Blocked), format!("B could not: {}: {last}", short(step.sql))));
                return;
            }
            _ => format!("refused: {last}"),
        };
        self.findings.push((None, format!("{}: {}", short(step.sql), short(&wrong))));
    }

    fn session(&mut self, name: &'static str) -> &mut Client {
        if !self.sessions.contains_key(name) {
            let role = name.split('#').next().unwrap_or(name);
            let heard = self.heard.clone();
            let hear = move |notice: DbError| heard.lock().unwrap().push(text_of(&notice));
            let login = login_of(self.db, role);
            let mut client = self.db.open((role != "admin").then_some(&login), hear);
            client.run("SET statement_timeout = '20s'; SET lock_timeout = '2s'");
            let tenant = match role {
                "b" => B,
                _ if name.ends_with("#b") => B,
                role if role == self.attack.role && !name.ends_with("#new") => self.attack.tenant,
                _ => "",
            };
            if !tenant.is_empty() {
                client.run(&fill(&format!("SET app.current_tenant = '{tenant}'"), self.db));
            }
            self.heard.lock().unwrap().clear();
            self.sessions.insert(name, client);
        }
        self.sessions.get_mut(name).expect("a session that is there")
    }

    fn compare_digest(&mut self) {
        let now = self.now();
        let rows = |digest: &str| digest.chars().take(32).collect::<String>();
        if self.attack.changes && rows(&now) == rows(&self.digest) {
            return;
        }
        if now != self.digest {
            let part = |at: usize| now.get(at * 32..at * 32 + 32) != self.digest.get(at * 32..at * 32 + 32);
            let changed = ["rows of B", "the registry", "policies or privileges"];
            let changed: Vec<_> = (0..3).filter(|at| part(*at)).map(|at| changed[at]).collect();
            self.findings.push((Some(Oracle::Digest), format!("changed: {}", changed.join(", "))));
            self.digest = now;
        }
    }

    fn life_of_b(&mut self) {
        // What B has been doing itself ends first.
        self.sessions.remove("b");
        if self.digest == GONE {
            return;
        }
        let mut b = self.db.connect(&self.db.role_name("b"));
        if let Some(error) = failure(&mut b, &fill(world::LIFE_OF_B, self.db)) {
            self.findings.push((Some(Oracle::Blocked), format!("B could not work: {error}")));
        }
    }
}

/// The name of a role; `own` is one that the setup has made.
fn login_of(db: &Db, role: &str) -> String {
    if role == "own" { format!("own_{}", db.name()) } else { db.role_name(role) }
}

/// What a client sees of a login, and of the orders after it.
fn login(db: &Db, role: &str, options: &str) -> (Vec<String>, Option<String>) {
    match db.try_connect(role, options) {
        Ok(mut client) => run(&mut client, "SELECT note FROM orders ORDER BY id", None),
        Err(error) => {
            let report = error.as_db_error();
            let state = report.map_or("no SQLSTATE".into(), |report| report.code().code().to_string());
            (vec![report.map_or(error.to_string(), text_of)], Some(state))
        }
    }
}

/// What a client sees of a statement, and the SQLSTATE if it fails.
fn run(client: &mut Client, sql: &str, parameter: Option<&str>) -> (Vec<String>, Option<String>) {
    let mut seen = Vec::new();
    let result = if let Some(parameter) = parameter {
        client.query(sql, &[&parameter]).map(|rows| seen.push(format!("{} rows", rows.len())))
    } else if sql.starts_with("COPY") && sql.contains("TO STDOUT") {
        client.copy_out(sql).map(|mut reader| {
            let mut text = String::new();
            reader.read_to_string(&mut text).expect("text");
            seen.push(text);
        })
    } else if sql.starts_with("COPY") && sql.contains("FROM STDIN") {
        let (statement, data) = sql.split_once('\n').unwrap_or((sql, ""));
        client.copy_in(statement).and_then(|mut writer| {
            writer.write_all(data.as_bytes()).expect("written");
            writer.finish().map(|rows| seen.push(format!("{rows} rows")))
        })
    } else {
        client.simple_query(sql).map(|messages| seen.extend(messages.iter().map(text_of_message)))
    };
    let mut notifications = client.notifications();
    let mut pending = notifications.iter();
    while let Ok(Some(notification)) = pending.next() {
        seen.push(format!("notification {} {}", notification.channel(), notification.payload()));
    }
    let Err(error) = result else { return (seen, None) };
    match error.as_db_error() {
        Some(report) => {
            seen.push(text_of(report));
            (seen, Some(report.code().code().to_string()))
        }
        None => (vec![error.to_string()], Some("no SQLSTATE".into())),
    }
}

fn text_of_message(message: &SimpleQueryMessage) -> String {
    match message {
        SimpleQueryMessage::Row(row) => {
            (0..row.len()).map(|at| row.get(at).unwrap_or("NULL")).collect::<Vec<_>>().join("|")
        }
        SimpleQueryMessage::CommandComplete(rows) => format!("({rows})"),
        _ => String::new(),
    }
}

/// Every field of a report that a client gets.
fn text_of(report: &DbError) -> String {
    let optional = [
        report.detail(),
        report.hint(),
        report.where_(),
        report.schema(),
        report.table(),
        report.column(),
        report.datatype(),
        report.constraint(),
    ];
    let mut text = format!("{} {} {}", report.severity(), report.code().code(), report.message());
    for field in optional.into_iter().flatten() {
        text.push_str(" / ");
        text.push_str(field);
    }
    text
}

/// Without what differs from run to run: the number of the session's schema, seconds until a period ends.
fn steady(line: &str) -> String {
    let mut steady = line.to_string();
    for mark in ["pg_temp_", "\"retry_after\":"] {
        let parts: Vec<&str> = steady.split(mark).collect();
        let rest = parts.iter().enumerate().map(|(at, part)| {
            if at == 0 { part } else { part.trim_start_matches(|c: char| c.is_ascii_digit()) }
        });
        steady = rest.collect::<Vec<_>>().join(mark);
    }
    steady
}

fn failure(client: &mut Client, sql: &str) -> Option<String> {
    client.batch_execute(sql).err().map(|error| error.as_db_error().map_or(error.to_string(), text_of))
}

fn short(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.chars().take(160).collect()
}

/// Copies of both worlds, kept from one attack to the next while nothing in them has changed.
struct Copies<'a> {
    worlds: &'a Worlds,
    kept: [Option<(Db, String)>; 2],
}

impl<'a> Copies<'a> {
    fn of(worlds: &'a Worlds) -> Copies<'a> {
        Copies { worlds, kept: [None, None] }
    }

    fn take(&mut self, at: usize) -> (Db, String) {
        self.kept[at].take().unwrap_or_else(|| {
            let db = [&self.worlds.with_b, &self.worlds.without_b][at].copy();
            let state = state(&db);
            (db, state)
        })
    }

    fn give_back(&mut self, at: usize, (db, before): (Db, String), reusable: bool) {
        if reusable && state(&db) == before { self.kept[at] = Some((db, before)) } else { db.discard() }
    }
}

impl Drop for Copies<'_> {
    fn drop(&mut self) {
        self.kept.iter_mut().filter_map(Option::take).for_each(|(db, _)| db.discard());
    }
}

/// What an attack may have changed.
fn state(db: &Db) -> String {
    let mut admin = db.admin();
    if admin.one("SELECT to_regclass('tenant_rls.tenants') IS NULL") {
        return GONE.into();
    }
    let (digest, state): (String, String) =
        (admin.one(&fill(world::DIGEST, db)), admin.one(&fill(world::STATE, db)));
    digest + &state
}

/// Runs an attack in copies of both worlds. What is wrong; nothing if the attack has failed, or, where it
/// succeeds by design, has succeeded.
fn try_attack(attack: &Attack, copies: &mut Copies) -> Vec<String> {
    let mut transcripts = Vec::new();
    let mut findings = Vec::new();
    for (at, has_b) in [true, false].into_iter().enumerate() {
        let copy = copies.take(at);
        match Run::new(attack, &copy.0) {
            Err(finding) => findings.push(finding),
            Ok(mut run) => {
                run.steps();
                transcripts.push(std::mem::take(&mut run.transcript));
                // Without rows of B some steps may end otherwise: that is what the worlds' comparison is for.
                findings.extend(run.findings.drain(..).filter(|_| has_b));
            }
        }
        copies.give_back(at, copy, attack.setup.is_empty());
    }
    if let [with, without] = &transcripts[..]
        && with != without
    {
        let differing = with.iter().zip(without).find(|(with, without)| with != without);
        let (with, without) = differing.map_or(("more lines", "fewer lines"), |(a, b)| (a, b));
        findings.push((
            Some(Oracle::Worlds),
            format!("with rows of B {}, without {}", short(with), short(without)),
        ));
    }
    let Some(Leak(oracle, _)) = &attack.leak else {
        return findings.into_iter().map(|(_, text)| text).collect();
    };
    // Who sees a text of B sees another world too. Nothing else comes with what is documented.
    let more = attack.more_on_old_minors && is_old_minor();
    let comes_with =
        |found: &Oracle| found == oracle || *found == Oracle::Worlds || more && *found == Oracle::Canary;
    let others = findings.iter().filter(|(found, _)| !found.as_ref().is_some_and(comes_with));
    let mut wrong: Vec<String> = others.map(|(_, text)| text.clone()).collect();
    if !findings.iter().any(|(found, _)| *found == Some(*oracle)) {
        wrong.push(format!("no longer leaks ({oracle:?})"));
    }
    wrong
}

/// Every class, by name.
fn classes() -> Vec<(&'static str, Vec<Attack>)> {
    vec![
        ("cache", cache::attacks()),
        ("carry", carry::attacks()),
        ("channels", channels::attacks()),
        ("context", context::attacks()),
        ("definer", definer::attacks()),
        ("features", features::attacks()),
        ("foreign", foreign::attacks()),
        ("guard", guard::attacks()),
        ("cves", cves::attacks()),
        ("inference", inference::attacks()),
        ("leaky", leaky::attacks()),
        ("locks", locks::attacks()),
        ("objects", objects::attacks()),
        ("own", own::attacks()),
        ("plans", plans::attacks()),
        ("quota", quota::attacks()),
        ("reads", reads::attacks()),
        ("roles", roles::attacks()),
        ("shadow", shadow::attacks()),
        ("stale", stale::attacks()),
        ("tickets", tickets::attacks()),
        ("trees", trees::attacks()),
        ("upsert", upsert::attacks()),
        ("writes", writes::attacks()),
    ]
}

/// Runs all attacks of a class. With `TENANT_RLS_ATTACKS_REPORT` the names of those that noticed something are
/// appended to that file, for scripts/mutate-attacks.
fn run_class(attacks: Vec<Attack>) {
    let mut wrong = Vec::new();
    let mut copies = Copies::of(Worlds::whole());
    let only = std::env::var("TENANT_RLS_ATTACKS_ONLY").ok();
    for attack in attacks
        .iter()
        .filter(|attack| only.as_ref().is_none_or(|only| only.split(',').any(|g| g == attack.guard)))
    {
        let findings = try_attack(attack, &mut copies);
        if !findings.is_empty() {
            wrong.push((attack.name, findings.join("\n    ")));
        }
    }
    if let Some(file) = std::env::var_os("TENANT_RLS_ATTACKS_REPORT") {
        let lines: String = wrong.iter().map(|(name, _)| format!("{name}\n")).collect();
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(file).expect("the report");
        file.write_all(lines.as_bytes()).expect("the report");
    }
    let text: String = wrong.iter().map(|(name, findings)| format!("\n{name}\n    {findings}")).collect();
    assert!(wrong.is_empty(), "{} of {}{text}", wrong.len(), attacks.len());
}

macro_rules! class_tests {
    ($($class:ident),*) => {
        $(
            /// The attacks of that class fail.
            #[test]
            fn $class() {
                run_class($class::attacks());
            }
        )*
    };
}

mod suite {
    use super::*;

    class_tests!(
        cache, carry, channels, context, definer, features, foreign, guard, cves, inference, leaky, locks,
        objects, own, plans, quota, reads, roles, shadow, stale, tickets, trees, upsert, writes
    );
}

/// Names are those of the reports: each is there once.
#[test]
fn every_attack_has_a_name_of_its_own() {
    let mut names: Vec<&str> =
        classes().iter().flat_map(|(_, attacks)| attacks).map(|attack| attack.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
    assert!(count >= 150, "{count} attacks");
}

/// What succeeds by design is in the documents, word for word.
#[test]
fn every_leak_is_documented() {
    let pages = [
        include_str!("../docs/isolation.md"),
        include_str!("../docs/context.md"),
        include_str!("../docs/quotas.md"),
    ];
    let pages = pages.join(" ").split_whitespace().collect::<Vec<_>>().join(" ");
    for (_, attacks) in classes() {
        for attack in attacks {
            if let Some(Leak(_, sentence)) = attack.leak {
                assert!(pages.contains(sentence), "{}: {sentence}", attack.name);
            }
        }
    }
}

/// What docs/security.md names for a hole of the server is there: attacks, and tests.
#[test]
fn every_cve_has_its_vector() {
    let attacks: Vec<&str> =
        classes().iter().flat_map(|(_, attacks)| attacks).map(|attack| attack.name).collect();
    let mut folders = vec![std::path::PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/pgrx-tests"))];
    let mut tests = String::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                tests += &std::fs::read_to_string(path).expect("a file");
            }
        }
    }
    let rows = include_str!("../docs/security.md").lines().filter(|line| line.starts_with("| 20"));
    let mut count = 0;
    for row in rows {
        let vectors = row.trim_end_matches(" |").rsplit(" | ").next().unwrap_or_default();
        for vector in vectors.split("; ") {
            let found = match vector.split_once(": ") {
                Some(("attack", name)) => attacks.contains(&name),
                Some(("test", name)) => tests.contains(&format!("fn {name}()")),
                Some(("reason", _)) => break,
                _ => false,
            };
            assert!(found, "{vector} in {row}");
            count += 1;
        }
    }
    assert!(count > 0);
}

/// The oracles are not blind: in a world without policies a plain read finds B's rows, by each of them.
#[test]
fn the_oracles_see() {
    let open = Worlds::new(
        "ALTER TABLE orders DISABLE ROW LEVEL SECURITY; ALTER TABLE people DISABLE ROW LEVEL SECURITY",
    );
    let found = |steps: Vec<Step>, oracle: Oracle| {
        let attack = attack("", "", "", steps).leaks(oracle, "");
        assert_eq!(try_attack(&attack, &mut Copies::of(&open)), [""; 0], "{oracle:?}");
    };
    found(vec![ok("SELECT note FROM orders")], Oracle::Canary);
    found(vec![ok("SELECT count(*) FROM orders")], Oracle::Worlds);
    found(vec![ok("UPDATE people SET note = 'x'")], Oracle::Digest);
    found(vec![ok("BEGIN; UPDATE people SET note = note")], Oracle::Blocked);
    let silent = attack("", "", "", vec![ok("SELECT note FROM orders")]).by("shared", A);
    assert_ne!(try_attack(&silent, &mut Copies::of(&open)), [""; 0]);
    let not_run = attack("", "", "", vec![no("42883", "SELECT no_such_function()")]);
    let whole = &mut Copies::of(Worlds::whole());
    assert_ne!(try_attack(&not_run, whole), [""; 0]);
    let no_setup = attack("", "", "SELECT 1 / 0", vec![ok("SELECT 1")]);
    assert_ne!(try_attack(&no_setup, whole), [""; 0]);
}
