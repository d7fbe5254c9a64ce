//! Torture of the quotas: clients and an operator do what they like, processes are killed, and what the clients were told
//! must be what the database says.
//!
//! Rounds follow one another on the same data. In each, [`client`]s use random keys in random transactions, the
//! [`operator`](Torture::traffic) changes limits and modes and ends workers, and at a random moment a [`Fault`] strikes.
//! A client keeps in its [`Log`] what it was told: units that are acknowledged, and units of which it does not know because
//! the connection went away. What the database says must lie between the two ([`Torture::verify`]).
//!
//! `TENANT_RLS_TORTURE_SECONDS` says how long (`make torture`: 600), `TENANT_RLS_TORTURE_SEED` repeats what a run has
//! planned; how the processes meet is new in each.

mod client;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postgres::Client;

use crate::cluster::{Cluster, kill, try_connect};
use crate::harness::{A, B, Session, Stops, describe};
use crate::quota::concurrent::Random;
use client::Log;

/// The role of the clients.
const APP: &str = "app";

const TENANTS: [&str; 3] = [A, B, "cccccccc-0000-4000-8000-00000000000c"];

/// Resources and their modes, between which an operator changes them.
const RESOURCES: [Resource; 6] = [
    Resource { name: "strict", is_gauge: false, modes: &["strict"] },
    Resource { name: "escrow", is_gauge: false, modes: &["escrow"] },
    Resource { name: "leased", is_gauge: false, modes: &["leased"] },
    Resource { name: "mixed", is_gauge: false, modes: &["strict", "escrow", "leased"] },
    Resource { name: "seats", is_gauge: true, modes: &["escrow"] },
    Resource { name: "rooms", is_gauge: true, modes: &["strict", "escrow"] },
];

struct Resource {
    name: &'static str,
    is_gauge: bool,
    modes: &'static [&'static str],
}

impl Resource {
    /// Whether units may outlive the transaction that takes them.
    fn may_be_leased(&self) -> bool {
        self.modes.contains(&"leased")
    }
}

/// A tenant and a resource, by their places in the lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    tenant: usize,
    resource: usize,
}

impl Key {
    fn all() -> impl Iterator<Item = Key> {
        (0..TENANTS.len())
            .flat_map(|tenant| (0..RESOURCES.len()).map(move |resource| Key { tenant, resource }))
    }
}

impl fmt::Display for Key {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        write!(out, "{} of tenant {}", RESOURCES[self.resource].name, TENANTS[self.tenant])
    }
}

/// What happens to the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Nothing,
    /// A process that has the shared memory is killed: the postmaster starts all of them again.
    Backend,
    /// The postmaster is killed, and started again.
    Postmaster,
    /// The postmaster is killed, and the synchronous standby takes over.
    Promotion,
}

/// What a round is to be.
struct Plan {
    fault: Fault,
    before: Duration,
    after: Duration,
    /// Only units of leases are taken: no commit of a client flushes for the worker what it has written.
    leased_only: bool,
    clients: u64,
}

impl Plan {
    fn random(random: &mut Random) -> Plan {
        let fault = match random.below(20) {
            0 => Fault::Nothing,
            1..=12 => Fault::Backend,
            13..=16 => Fault::Postmaster,
            _ => Fault::Promotion,
        };
        let leased_only = random.below(4) == 0;
        // Units of a lease that has just begun are taken as soon as they are there.
        let before = if leased_only { random.below(300) } else { 200 + random.below(1500) };
        Plan {
            fault,
            before: Duration::from_millis(before),
            after: Duration::from_millis(200 + random.below(600)),
            leased_only,
            clients: 16,
        }
    }
}

/// What is known of a key after a round.
#[derive(Clone, Copy, Default)]
struct Known {
    /// Units used.
    used: i64,
    /// Units that crashes have stranded.
    stranded: i64,
    /// The highest limit since the last round.
    limit: i64,
    /// That of the last round: a lease may still have units that were granted then.
    limit_before: i64,
}

/// What the database says of a key.
struct Said {
    recorded: i64,
    used: i64,
    at_stake: i64,
    stranded: i64,
}

struct Torture {
    seed: u64,
    random: Random,
    cluster: Cluster,
    known: BTreeMap<Key, Known>,
    round: u64,
    faults: BTreeMap<Fault, u64>,
    worker_kills: u64,
    /// Processes of this cluster that were killed, its postmaster aside.
    kills: usize,
    calls: u64,
    commits: u64,
    began: Instant,
}

impl Torture {
    fn new(seed: u64) -> Torture {
        let cluster = Cluster::start(&[
            "shared_preload_libraries = 'tenant_rls'",
            "fsync = on",
            "synchronous_commit = on",
            // What has been written and not yet flushed is what a crash can lose: of a worker it stays so for a while.
            "commit_delay = 50000",
            "commit_siblings = 1",
            "deadlock_timeout = '100ms'",
            "max_connections = 100",
            "max_worker_processes = 16",
            "shared_buffers = '32MB'",
        ]);
        let mut admin = cluster.connect("postgres", "postgres");
        admin.run(&format!(
            "CREATE EXTENSION tenant_rls; CREATE ROLE {APP} LOGIN; ALTER ROLE {APP} SET commit_delay = 0;
             SELECT tenant_grant('{APP}')"
        ));
        for tenant in TENANTS {
            admin.run(&format!("SELECT tenant_create('{tenant}')"));
        }
        for Resource { name, is_gauge, .. } in RESOURCES {
            let kind = if is_gauge { "gauge" } else { "counter" };
            admin.run(&format!("SELECT tenant_resource_define('{name}', '{kind}', 'unit', 'none')"));
        }
        Torture {
            seed,
            random: Random::of(seed),
            cluster,
            known: Key::all().map(|key| (key, Known::default())).collect(),
            round: 0,
            faults: BTreeMap::new(),
            worker_kills: 0,
            kills: 0,
            calls: 0,
            commits: 0,
            began: Instant::now(),
        }
    }

    /// A connection as superuser, as soon as there is one.
    fn admin(&self) -> Client {
        loop {
            match try_connect(self.cluster.port(), "postgres", "postgres") {
                // Where the server is on its way down again, the next statement says so.
                Ok(mut client) => {
                    let _ = client.batch_execute("SET commit_delay = 0");
                    return client;
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
    }

    /// A round of traffic, a fault, and what has come of them. `settled`: the workers are given the time to come to rest.
    fn round(&mut self, plan: &Plan, settled: bool) {
        self.round += 1;
        let standby = (plan.fault == Fault::Promotion).then(|| self.standby());
        let mut admin = self.admin();
        for key in Key::all() {
            admin.run(&format!(
                "SELECT tenant_quota_unset('{}', '{}')",
                TENANTS[key.tenant], RESOURCES[key.resource].name
            ));
        }
        for resource in 0..RESOURCES.len() {
            self.change_limit(&mut admin, resource, None).expect("a limit that can be set");
        }
        drop(admin);
        let found = self.traffic(plan, standby).and_then(|logs| self.verify(plan, &logs, settled));
        if let Err(violation) = found {
            panic!(
                "torture with seed {}, round {} ({:?}{}): {violation}\n{}\n{}",
                self.seed,
                self.round,
                plan.fault,
                if plan.leased_only { ", leased only" } else { "" },
                self.crashes(),
                self.totals(),
            );
        }
    }

    /// A standby without which nothing is acknowledged any more.
    fn standby(&self) -> Cluster {
        // It is a copy of before the setting, which it must not have once it is alone.
        let standby = self.cluster.standby();
        let mut admin = self.admin();
        admin.run("ALTER SYSTEM SET synchronous_standby_names = '*'");
        admin.run("SELECT pg_reload_conf()");
        wait(&mut admin, "SELECT EXISTS (SELECT FROM pg_stat_replication WHERE sync_state = 'sync')");
        // Sessions of now wait for it: this one does not return before the standby has it.
        admin.run("SELECT pg_sleep(0.2); SELECT txid_current()");
        standby
    }

    /// Clients and an operator at work, with a fault among them.
    fn traffic(&mut self, plan: &Plan, standby: Option<Cluster>) -> Result<Vec<Log>, String> {
        let stop = AtomicBool::new(false);
        let port = AtomicU16::new(self.cluster.port());
        let seeds: Vec<u64> = (0..plan.clients).map(|_| self.random.below(u64::MAX)).collect();
        thread::scope(|scope| {
            let (stop, port) = (&stop, &port);
            let stops = Stops(stop);
            let clients: Vec<_> = seeds
                .into_iter()
                .map(|seed| scope.spawn(move || client::work(Random::of(seed), port, plan.leased_only, stop)))
                .collect();
            self.operate(plan.before, plan.leased_only)?;
            self.strike(plan, standby);
            port.store(self.cluster.port(), Ordering::SeqCst);
            self.operate(plan.after, plan.leased_only)?;
            drop(stops);
            clients.into_iter().map(|client| client.join().expect("a client that ends well")).collect()
        })
    }

    /// Changes limits and modes, and ends workers, for a while.
    fn operate(&mut self, time: Duration, leased_only: bool) -> Result<(), String> {
        let until = Instant::now() + time;
        let mut admin = self.admin();
        while Instant::now() < until {
            thread::sleep(Duration::from_millis(20 + self.random.below(120)));
            if admin.is_closed() {
                admin = self.admin();
            }
            match self.random.below(10) {
                0..=1 => {
                    let worker = if self.random.below(3) == 0 { "launcher" } else { "worker" };
                    let ended = admin.query(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = $1",
                        &[&format!("tenant_rls {worker}")],
                    );
                    self.worker_kills += ended.map_or(0, |rows| rows.len() as u64);
                }
                2..=5 if !leased_only => {
                    let resource = self.random.below(RESOURCES.len() as u64) as usize;
                    self.change_limit(&mut admin, resource, None)?;
                }
                6..=7 if !leased_only => {
                    let resource = self.random.below(RESOURCES.len() as u64) as usize;
                    let tenant = self.random.below(TENANTS.len() as u64) as usize;
                    self.change_limit(&mut admin, resource, Some(tenant))?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Sets a limit of the plan, or of a tenant alone; often one that is about to be reached, sometimes one that is passed.
    fn change_limit(
        &mut self,
        admin: &mut Client,
        resource: usize,
        tenant: Option<usize>,
    ) -> Result<(), String> {
        let Resource { name, modes, .. } = RESOURCES[resource];
        let keys =
            Key::all().filter(|key| key.resource == resource && tenant.is_none_or(|one| one == key.tenant));
        let keys: Vec<Key> = keys.collect();
        let used = keys.iter().map(|key| self.known[key].used).max().unwrap_or_default();
        let room = [50, 1000, 50_000, 1_000_000][self.random.below(4) as usize];
        let limit = (used - 20).max(0) + self.random.below(room) as i64;
        let sql = match tenant {
            Some(tenant) if self.random.below(3) == 0 => {
                format!("SELECT tenant_quota_unset('{}', '{name}')", TENANTS[tenant])
            }
            Some(tenant) => format!("SELECT tenant_quota_set('{}', '{name}', {limit})", TENANTS[tenant]),
            None => {
                let mode = modes[self.random.below(modes.len() as u64) as usize];
                format!("SELECT tenant_plan_limit_set('free', '{name}', {limit}, mode => '{mode}')")
            }
        };
        for key in keys {
            let known = self.known.get_mut(&key).expect("every key is known");
            known.limit = known.limit.max(limit);
        }
        match admin.batch_execute(&sql) {
            // The server may still be on its way down.
            Err(error) if error.as_db_error().is_some() && !admin.is_closed() => {
                Err(format!("{sql}: {}", describe(&error)))
            }
            _ => Ok(()),
        }
    }

    /// Waits until a worker is about to commit, if one is soon. Of leases nothing else is ever at risk.
    fn aim(&self, admin: &mut Client) {
        let writes = "SELECT EXISTS (SELECT FROM pg_stat_activity
             WHERE backend_type = 'tenant_rls worker' AND backend_xid IS NOT NULL)";
        let until = Instant::now() + Duration::from_millis(500);
        while Instant::now() < until && !admin.one::<bool>(writes) {}
    }

    fn strike(&mut self, plan: &Plan, standby: Option<Cluster>) {
        let mut admin = self.admin();
        let aim = |admin: &mut Client| {
            if plan.leased_only {
                self.aim(admin)
            }
        };
        match plan.fault {
            Fault::Nothing => {}
            Fault::Backend => {
                let victim = "SELECT pid::text FROM pg_stat_activity WHERE pid <> pg_backend_pid()
                     AND (usename = 'app' OR backend_type LIKE 'tenant_rls%') ORDER BY random() LIMIT 1";
                loop {
                    aim(&mut admin);
                    // One that has just gone by itself takes nobody along.
                    let found = admin.rows(victim).first().map(|row| row.get::<_, String>(0));
                    if found.is_some_and(|pid| kill(&pid)) && goes_down(&mut admin) {
                        break;
                    }
                }
                self.kills += 1;
            }
            Fault::Postmaster => {
                aim(&mut admin);
                self.cluster.kill();
                self.cluster.up();
            }
            Fault::Promotion => {
                aim(&mut admin);
                self.cluster.kill();
                let standby = standby.expect("a standby");
                standby.promote();
                self.cluster = standby;
                self.kills = 0;
            }
        }
        *self.faults.entry(plan.fault).or_default() += 1;
    }

    /// Compares what the clients were told with what the database says.
    fn verify(&mut self, plan: &Plan, logs: &[Log], settled: bool) -> Result<(), String> {
        let mut admin = self.admin();
        self.calls += logs.iter().map(|log| log.calls).sum::<u64>();
        self.commits += logs.iter().map(|log| log.commits).sum::<u64>();
        for key in Key::all() {
            let told = logs.iter().map(|log| log.told(key)).fold(client::Told::default(), client::Told::and);
            let known = self.known[&key];
            // What a call that failed as a whole has given back is at stake again, which the worker notes within a moment.
            let until = Instant::now() + Duration::from_secs(5);
            let Said { recorded, used, at_stake, stranded } = loop {
                let now = said(&mut admin, key);
                if now.recorded <= now.used + now.at_stake || Instant::now() > until {
                    break now;
                }
                thread::sleep(Duration::from_millis(50));
            };
            let least = known.used + told.acknowledged + told.taken_back;
            let mut most = known.used + told.acknowledged + told.taken;
            if plan.fault != Fault::Nothing {
                most += stranded + at_stake - known.stranded;
            }
            let facts = format!(
                "{key}: {} before, {} acknowledged, {}..{} unknown, {recorded} recorded, {used} used, {at_stake} at \
                 stake, {stranded} stranded ({} before), limit {} ({} before)",
                known.used,
                told.acknowledged,
                told.taken_back,
                told.taken,
                known.stranded,
                known.limit,
                known.limit_before
            );
            if used < least || used > most {
                return Err(format!("not between {least} and {most}: {facts}"));
            }
            if recorded < used || recorded > used + at_stake {
                return Err(format!("what is recorded is not what is used: {facts}"));
            }
            if recorded > known.limit.max(known.limit_before) {
                return Err(format!("above every limit: {facts}"));
            }
            self.known.insert(key, Known { used, stranded, limit: recorded, limit_before: known.limit });
        }
        let is_own = |line: &&str| {
            ["PANIC:", "TRAP:"].iter().any(|part| line.contains(part))
                || line.contains("was terminated by signal") && !line.contains("was terminated by signal 9")
        };
        if let Some(line) = self.cluster.log().lines().find(is_own) {
            return Err(format!("the server log says: {line}"));
        }
        let restarts = self.cluster.log().matches("server processes terminated; reinitializing").count();
        if restarts > self.kills {
            return Err(format!("the server has restarted {restarts} times for {} kills", self.kills));
        }
        let rest = "NOT EXISTS (SELECT FROM tenant_rls.ledger) AND NOT EXISTS (SELECT FROM tenant_leases WHERE at_stake <> 0)";
        let rest = if settled { rest } else { "true" };
        let sql = format!("SELECT NOT EXISTS (SELECT FROM tenant_quota_invariants) AND {rest}");
        if !is_soon(&mut admin, &sql) {
            let state = "SELECT concat_ws('; ',
                 (SELECT 'findings: ' || string_agg(i::text, ' ') FROM tenant_quota_invariants AS i),
                 (SELECT 'rows in the ledger: ' || count(*) FROM tenant_rls.ledger),
                 (SELECT 'at stake: ' || string_agg(l::text, ' ') FROM tenant_leases AS l WHERE at_stake <> 0),
                 (SELECT 'status: ' || s FROM tenant_worker_status() AS s),
                 (SELECT 'processes: ' || string_agg(concat_ws(' ', backend_type, state, wait_event), ', ')
                  FROM pg_stat_activity WHERE backend_type LIKE 'tenant_rls%'))";
            return Err(format!("the workers do not come to rest; {}", admin.one::<String>(state)));
        }
        if settled {
            for key in Key::all() {
                let said = said(&mut admin, key);
                if said.recorded != self.known[&key].used {
                    return Err(format!("{key}: {} recorded, {} used", said.recorded, self.known[&key].used));
                }
            }
        }
        Ok(())
    }

    /// What the server has logged of processes that went down.
    fn crashes(&self) -> String {
        let log = self.cluster.log();
        let lines: Vec<_> = log.lines().filter(|line| is_crash(line)).collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn totals(&self) -> String {
        let of = |fault| self.faults.get(&fault).copied().unwrap_or_default();
        format!(
            "{} rounds, {} calls, {} commits, {} backend kills, {} postmaster kills, {} promotions, {} worker kills, {} \
             seconds, seed {}",
            self.round,
            self.calls,
            self.commits,
            of(Fault::Backend),
            of(Fault::Postmaster),
            of(Fault::Promotion),
            self.worker_kills,
            self.began.elapsed().as_secs(),
            self.seed
        )
    }
}

/// What the database says of a key, in one snapshot.
fn said(admin: &mut Client, key: Key) -> Said {
    let row = &admin.rows(&format!(
        "SELECT coalesce(u.used, 0), coalesce(v.used, 0), coalesce(l.at_stake, 0), coalesce(l.stranded, 0)
         FROM (VALUES ('{}'::uuid, '{}')) AS k (tenant, resource)
         LEFT JOIN tenant_rls.units AS u ON u.tenant_id = k.tenant AND u.resource = k.resource
         LEFT JOIN tenant_rls.usage_of(k.tenant) AS v ON v.resource = k.resource
         LEFT JOIN tenant_leases AS l ON l.tenant = k.tenant AND l.resource = k.resource",
        TENANTS[key.tenant], RESOURCES[key.resource].name
    ))[0];
    Said { recorded: row.get(0), used: row.get(1), at_stake: row.get(2), stranded: row.get(3) }
}

/// Whether a line of the server log tells of a process that went down, or of a server that came up.
fn is_crash(line: &str) -> bool {
    [
        "PANIC:",
        "TRAP:",
        "was terminated by signal",
        "exited with exit code 2",
        "reinitializing",
        "ready to accept",
    ]
    .iter()
    .any(|part| line.contains(part))
}

/// Whether the server ends a connection within a moment.
fn goes_down(client: &mut Client) -> bool {
    let until = Instant::now() + Duration::from_secs(2);
    while Instant::now() < until {
        if client.batch_execute("SELECT 1").is_err() {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// Whether a query answers true within a while.
fn is_soon(client: &mut Client, sql: &str) -> bool {
    let until = Instant::now() + Duration::from_secs(30);
    while Instant::now() < until {
        match client.query_one(sql, &[]) {
            Ok(row) if row.get(0) => return true,
            Ok(_) => thread::sleep(Duration::from_millis(50)),
            Err(error) => panic!("{sql}\n{}", describe(&error)),
        }
    }
    false
}

fn wait(client: &mut Client, sql: &str) {
    assert!(is_soon(client, sql), "{sql}\nwas never true");
}

fn seed() -> u64 {
    match std::env::var("TENANT_RLS_TORTURE_SEED") {
        Ok(text) => text.parse().expect("a seed"),
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs(),
    }
}

/// A round with each kind of fault; or as many as fit into `TENANT_RLS_TORTURE_SECONDS`.
#[test]
fn a_short_torture() {
    let mut torture = Torture::new(seed());
    match std::env::var("TENANT_RLS_TORTURE_SECONDS") {
        Ok(text) => {
            let time = Duration::from_secs(text.parse().expect("seconds"));
            while torture.began.elapsed() < time {
                let plan = Plan::random(&mut torture.random);
                let settled = torture.round % 5 == 4;
                torture.round(&plan, settled);
                if torture.round.is_multiple_of(20) {
                    eprintln!("{}", torture.totals());
                }
            }
        }
        Err(_) => {
            for fault in [Fault::Nothing, Fault::Backend, Fault::Postmaster, Fault::Promotion] {
                let time = Duration::from_millis(600);
                let plan = Plan { fault, before: time, after: time, leased_only: false, clients: 6 };
                torture.round(&plan, fault == Fault::Promotion);
            }
        }
    }
    eprintln!("{}", torture.totals());
}
