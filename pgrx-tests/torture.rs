//! Torture of the quotas: clients and an operator do what they like, processes are killed, and what the clients were told
//! must be what the database says.
//!
//! Rounds follow one another on the same data. In each, [`client`]s use random keys in random transactions, the
//! [`operator`](Torture::traffic) changes limits, plans and modes and ends workers, and at a random moment a [`Fault`] strikes.
//! A client keeps in its [`Log`] what it was told: units that are acknowledged, and units of which it does not know because
//! the connection went away. What the database says must lie between the two ([`Torture::verify`]). Each answer is held
//! against the [`limits`] that may have been in force when it was asked for.
//!
//! `TENANT_RLS_TORTURE_SECONDS` says how long (`make torture`: 600), `TENANT_RLS_TORTURE_SEED` repeats what a run has
//! planned; how the processes meet is new in each.

mod client;
mod limits;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use postgres::Client;

use crate::cluster::{Cluster, kill, try_connect};
use crate::harness::{A, B, Session, Stops, describe};
use crate::quota::concurrent::Random;
use client::{Asked, Log, Told};
use limits::{Limits, Setting};

/// The role of the clients.
const APP: &str = "app";

const TENANTS: [&str; 3] = [A, B, "cccccccc-0000-4000-8000-00000000000c"];

/// Plans, between which tenants are moved.
const PLANS: [&str; 2] = ["free", "starter"];

/// Resources and their modes, between which an operator changes them.
const RESOURCES: [Resource; 10] = [
    Resource::counter("strict", &["strict"]),
    Resource::counter("escrow", &["escrow"]),
    Resource::counter("leased", &["leased"]),
    Resource::counter("mixed", &["strict", "escrow", "leased"]),
    Resource { is_gauge: true, ..Resource::counter("seats", &["escrow"]) },
    Resource { is_gauge: true, ..Resource::counter("rooms", &["strict", "escrow"]) },
    // Periods end while it runs.
    Resource { period: "second", ..Resource::counter("ticks", &["strict", "escrow"]) },
    Resource { period: "second", ..Resource::counter("rate", &["leased"]) },
    Resource { enforcement: "soft", ..Resource::counter("soft", &["strict", "escrow", "leased"]) },
    Resource { enforcement: "shadow", ..Resource::counter("shadow", &["strict", "escrow", "leased"]) },
];

struct Resource {
    name: &'static str,
    is_gauge: bool,
    period: &'static str,
    enforcement: &'static str,
    modes: &'static [&'static str],
}

impl Resource {
    const fn counter(name: &'static str, modes: &'static [&'static str]) -> Resource {
        Resource { name, is_gauge: false, period: "none", enforcement: "hard", modes }
    }

    /// Whether units are counted from 0 again, so that only the sum over all periods is known.
    fn is_periodic(&self) -> bool {
        self.period != "none"
    }

    /// Whether a limit denies.
    fn is_hard(&self) -> bool {
        self.enforcement == "hard"
    }

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
    /// Units used, when that was last known exactly: of a key with periods, when the workers had last come to rest.
    used: i64,
    /// What clients were told since.
    told: Told,
    /// Units that crashes have stranded since.
    stranded: i64,
    /// Units at stake after the last round.
    at_stake: i64,
    /// The highest limit of the last round: a lease may still have units that were granted then.
    limit: i64,
}

/// What the database says of a key, in all its periods.
struct Said {
    recorded: i64,
    /// The most in one period of these rounds.
    most_recorded: i64,
    /// Without what is granted and unused; of a key with periods that is not to be seen.
    used: i64,
    at_stake: i64,
    stranded: i64,
    /// Units of reservations whose time is over, which were not given back yet.
    due: i64,
}

struct Torture {
    seed: u64,
    random: Random,
    cluster: Cluster,
    limits: Arc<Limits>,
    known: BTreeMap<Key, Known>,
    /// Units that were stranded when the round began.
    stranded: BTreeMap<Key, i64>,
    /// Whether it is sure that these are all of the crashes before.
    noted: bool,
    /// When this round and the one before began, by the clock of the server.
    since: [String; 2],
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
             ALTER ROLE {APP} SET log_min_messages = fatal;
             SELECT tenant_grant('{APP}')"
        ));
        for tenant in TENANTS {
            admin.run(&format!("SELECT tenant_create('{tenant}')"));
        }
        for Resource { name, is_gauge, period, .. } in RESOURCES {
            let kind = if is_gauge { "gauge" } else { "counter" };
            admin.run(&format!("SELECT tenant_resource_define('{name}', '{kind}', 'unit', '{period}')"));
        }
        Torture {
            seed,
            random: Random::of(seed),
            cluster,
            limits: Arc::new(Limits::new()),
            known: Key::all().map(|key| (key, Known::default())).collect(),
            stranded: BTreeMap::new(),
            noted: true,
            since: ["-infinity".into(), "-infinity".into()],
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
        let now: String = admin.one("SELECT clock_timestamp()::text");
        self.since = [now, std::mem::take(&mut self.since[0])];
        let mut settings: Vec<Setting> = Vec::new();
        settings.extend((0..TENANTS.len()).map(|tenant| Setting::Tenant { tenant, plan: 0 }));
        settings.extend(Key::all().map(|key| Setting::Own { key, limit: None }));
        for plan in 0..PLANS.len() {
            settings.extend((0..RESOURCES.len()).map(|resource| self.limit_of_plan(plan, resource)));
        }
        let sql: Vec<String> = settings.iter().map(|setting| self.sql(setting)).collect();
        let done: Result<(), ()> = self.limits.clone().set(&settings, || {
            admin.run(&sql.join(";"));
            Ok(true)
        });
        done.expect("limits that can be set");
        self.limits.begin_round();
        self.stranded = Key::all().map(|key| (key, self.said(&mut admin, key).stranded)).collect();
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
        let limits = self.limits.clone();
        let seeds: Vec<u64> = (0..plan.clients).map(|_| self.random.below(u64::MAX)).collect();
        thread::scope(|scope| {
            let (stop, port, limits) = (&stop, &port, &*limits);
            let stops = Stops(stop);
            let clients: Vec<_> = seeds
                .into_iter()
                .map(|seed| {
                    scope.spawn(move || client::work(Random::of(seed), port, plan.leased_only, limits, stop))
                })
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
                2 if !leased_only => age_periods(&mut admin)?,
                3..=8 if !leased_only => {
                    let setting = self.setting();
                    self.change(&mut admin, setting)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A random setting.
    fn setting(&mut self) -> Setting {
        let mut below = |bound: usize| self.random.below(bound as u64) as usize;
        let key = Key { tenant: below(TENANTS.len()), resource: below(RESOURCES.len()) };
        let plan = below(PLANS.len());
        match below(6) {
            0 => Setting::Tenant { tenant: key.tenant, plan },
            1 => Setting::Own { key, limit: None },
            2 => Setting::Own { key, limit: Some(self.limit(key)) },
            _ => self.limit_of_plan(plan, key.resource),
        }
    }

    fn limit_of_plan(&mut self, plan: usize, resource: usize) -> Setting {
        let keys = Key::all().filter(|key| key.resource == resource);
        let key = keys.max_by_key(|key| self.known[key].used).expect("a tenant");
        Setting::Plan { plan, resource, limit: self.limit(key) }
    }

    /// A limit, often one that is about to be reached, sometimes one that is passed.
    fn limit(&mut self, key: Key) -> i64 {
        // A key with periods begins at 0 again.
        let used = if RESOURCES[key.resource].is_periodic() { 0 } else { self.known[&key].used };
        let room = [50, 1000, 50_000, 1_000_000][self.random.below(4) as usize];
        (used - 20).max(0) + self.random.below(room) as i64
    }

    fn sql(&mut self, setting: &Setting) -> String {
        match *setting {
            Setting::Tenant { tenant, plan } => {
                format!("SELECT tenant_plan_change('{}', '{}')", TENANTS[tenant], PLANS[plan])
            }
            Setting::Own { key: Key { tenant, resource }, limit } => {
                let (tenant, name) = (TENANTS[tenant], RESOURCES[resource].name);
                match limit {
                    Some(limit) => format!("SELECT tenant_quota_set('{tenant}', '{name}', {limit})"),
                    None => format!("SELECT tenant_quota_unset('{tenant}', '{name}')"),
                }
            }
            Setting::Plan { plan, resource, limit } => {
                let Resource { name, enforcement, modes, .. } = RESOURCES[resource];
                let mode = modes[self.random.below(modes.len() as u64) as usize];
                format!(
                    "SELECT tenant_plan_limit_set('{}', '{name}', {limit}, enforcement => '{enforcement}', mode => '{mode}')",
                    PLANS[plan]
                )
            }
        }
    }

    /// Makes a setting. The server may go down meanwhile.
    fn change(&mut self, admin: &mut Client, setting: Setting) -> Result<(), String> {
        let sql = self.sql(&setting);
        self.limits.set(&[setting], || match admin.batch_execute(&sql) {
            Ok(()) => Ok(true),
            // The server may still be on its way down.
            Err(error) if error.as_db_error().is_some() && !admin.is_closed() => {
                Err(format!("{sql}: {}", describe(&error)))
            }
            Err(_) => Ok(false),
        })
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
        let noted = plan.fault == Fault::Nothing || self.is_stranding_noted(&mut admin);
        for key in Key::all() {
            let known = self.known[&key];
            let told = logs.iter().map(|log| log.told(key)).fold(known.told, Told::and);
            let least = known.used + told.acknowledged + told.taken_back;
            let most = known.used + told.acknowledged + told.taken;
            // What a call that failed as a whole has given back is at stake again, which the worker notes within a moment, and
            // units that are held for a moment still count.
            let until = Instant::now() + Duration::from_secs(5);
            let (now, stranded, surplus) = loop {
                let now = self.said(&mut admin, key);
                let stranded = now.stranded - self.stranded[&key];
                let lost = if plan.fault == Fault::Nothing { 0 } else { stranded + now.at_stake };
                let surplus = match RESOURCES[key.resource].is_periodic() {
                    true => now.recorded - most - known.stranded - stranded - now.at_stake - now.due,
                    false => (now.used - most - lost).max(now.recorded - now.used - now.at_stake - now.due),
                };
                if surplus <= 0 || now.used < least || Instant::now() > until {
                    break (now, stranded, surplus);
                }
                thread::sleep(Duration::from_millis(50));
            };
            let limit = self.limits.highest(key);
            let asked = logs.iter().flat_map(|log| &log.asked).filter(|asked| asked.key == key);
            let failed: Vec<i64> =
                asked.clone().filter(|asked| asked.failed).map(|asked| asked.units).collect();
            let at_hand = at_hand(asked, plan.clients);
            let facts = format!(
                "{key}: {} before, {} acknowledged, {}..{} unknown, {} recorded ({} in one period), {} used, {} at stake ({} \
                 before), {stranded} stranded now, {} since, {at_hand} at hand at most, {failed:?} given back by calls that failed, {} due, limit {limit} ({} before)",
                known.used,
                told.acknowledged,
                told.taken_back,
                told.taken,
                now.recorded,
                now.most_recorded,
                now.used,
                now.at_stake,
                known.at_stake,
                known.stranded,
                now.due,
                known.limit
            );
            if now.used < least || surplus > 0 {
                return Err(format!("not between {least} and {most}: {facts}"));
            }
            if now.recorded < now.used {
                return Err(format!("what is recorded is not what is used: {facts}"));
            }
            if RESOURCES[key.resource].is_hard() && now.most_recorded > limit.max(known.limit).max(known.used)
            {
                return Err(format!("above every limit: {facts}"));
            }
            // Of a crash before this round the worker may have been told in this one. At the end of a period there are two leases.
            let before = if self.noted { 0 } else { known.at_stake };
            let leases = if RESOURCES[key.resource].is_periodic() { 2 } else { 1 };
            let strandable =
                if plan.fault == Fault::Nothing { before } else { known.at_stake + leases * at_hand };
            if stranded > strandable {
                return Err(format!("more stranded than a chunk, {strandable}: {facts}"));
            }
            let at_stake = now.at_stake;
            let known = match RESOURCES[key.resource].is_periodic() {
                true => Known { told, stranded: known.stranded + stranded, at_stake, limit, ..known },
                false => Known { used: now.used, at_stake, limit, ..Known::default() },
            };
            self.known.insert(key, known);
        }
        self.noted = noted;
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
        let rest = "NOT EXISTS (SELECT FROM tenant_rls.ledger) AND NOT EXISTS (SELECT FROM tenant_leases WHERE at_stake <> 0)
             AND NOT EXISTS (SELECT FROM tenant_rls.reservations WHERE state = 'held' AND expires_at < clock_timestamp())";
        let rest = if settled { rest } else { "true" };
        let sql = format!("SELECT NOT EXISTS (SELECT FROM tenant_quota_invariants) AND {rest}");
        if !is_soon(&mut admin, &sql) {
            let state = "SELECT concat_ws('; ',
                 (SELECT 'findings: ' || string_agg(i::text, ' ') FROM tenant_quota_invariants AS i),
                 (SELECT 'rows in the ledger: ' || count(*) FROM tenant_rls.ledger),
                 (SELECT 'due: ' || count(*) FROM tenant_rls.reservations WHERE state = 'held' AND expires_at < clock_timestamp()),
                 (SELECT 'at stake: ' || string_agg(l::text, ' ') FROM tenant_leases AS l WHERE at_stake <> 0),
                 (SELECT 'status: ' || s FROM tenant_worker_status() AS s),
                 (SELECT 'processes: ' || string_agg(concat_ws(' ', backend_type, state, wait_event), ', ')
                  FROM pg_stat_activity WHERE backend_type LIKE 'tenant_rls%'))";
            return Err(format!("the workers do not come to rest; {}", admin.one::<String>(state)));
        }
        if settled {
            for key in Key::all() {
                let Said { recorded, used, .. } = self.said(&mut admin, key);
                let known = self.known.get_mut(&key).expect("every key is known");
                if RESOURCES[key.resource].is_periodic() {
                    let least = known.used + known.told.acknowledged + known.told.taken_back;
                    let most = known.used + known.told.acknowledged + known.told.taken + known.stranded;
                    if recorded < least || recorded > most {
                        return Err(format!(
                            "{key}: {recorded} recorded at rest, not between {least} and {most}"
                        ));
                    }
                    *known = Known { used, limit: known.limit, ..Known::default() };
                } else if recorded != known.used {
                    return Err(format!("{key}: {recorded} recorded, {} used", known.used));
                }
            }
            self.exceed(&mut admin)?;
        }
        Ok(())
    }

    /// Goes above limits that deny nothing: with a worker at hand every mode lets it.
    fn exceed(&mut self, admin: &mut Client) -> Result<(), String> {
        for key in Key::all().filter(|key| !RESOURCES[key.resource].is_hard()) {
            self.change(admin, Setting::Own { key, limit: Some(0) })?;
            let mut app = self.cluster.connect("postgres", APP);
            app.run(&format!("SET app.current_tenant = '{}'", TENANTS[key.tenant]));
            let call = format!(
                "SELECT granted, reason, mode FROM tenant_quota_try_consume('{}', 3)",
                RESOURCES[key.resource].name
            );
            let until = Instant::now() + Duration::from_secs(10);
            loop {
                let row = &app.rows(&call)[0];
                let (granted, reason, mode): (i64, &str, &str) = (row.get(0), row.get(1), row.get(2));
                self.known.get_mut(&key).expect("every key is known").used += granted;
                if granted == 3 {
                    break;
                }
                if granted != 0 || Instant::now() > until {
                    return Err(format!(
                        "{key}: a limit that denies nothing has denied in mode {mode}: {reason}"
                    ));
                }
            }
        }
        Ok(())
    }

    /// Waits until a worker has looked what the crash of this round has stranded. Whether that is sure: one that was ended
    /// may not have come so far.
    fn is_stranding_noted(&self, admin: &mut Client) -> bool {
        wait(
            admin,
            "SELECT coalesce(worked_at >= started_at, false) OR pid IS NULL AND started_at IS NOT NULL FROM tenant_worker_status()",
        );
        admin.one("SELECT coalesce(worked_at >= started_at, false) FROM tenant_worker_status()")
    }

    /// What the database says of a key, in one snapshot.
    fn said(&self, admin: &mut Client, key: Key) -> Said {
        let is_periodic = RESOURCES[key.resource].is_periodic();
        let row = &admin.rows(&format!(
            "WITH u AS (SELECT used, period_start FROM tenant_rls.units WHERE tenant_id = '{tenant}' AND resource = '{resource}'
                 UNION ALL
                 SELECT used, period_start FROM tenant_rls.usage_history WHERE tenant_id = '{tenant}' AND resource = '{resource}'),
             l AS (SELECT * FROM tenant_leases WHERE tenant = '{tenant}' AND resource = '{resource}'
                 AND resets_at > timestamptz '{since}' - interval '10 min')
             SELECT (SELECT coalesce(sum(used), 0)::bigint FROM u),
                 (SELECT coalesce(max(used), 0) FROM u WHERE NOT {is_periodic} OR period_start >= '{since_before}'),
                 (SELECT coalesce(sum(used), 0)::bigint FROM tenant_rls.usage_of('{tenant}') WHERE resource = '{resource}'),
                 (SELECT coalesce(sum(at_stake), 0)::bigint FROM l), (SELECT coalesce(sum(stranded), 0)::bigint FROM l),
                 (SELECT coalesce(sum(units), 0)::bigint FROM tenant_rls.reservations WHERE tenant_id = '{tenant}'
                  AND resource = '{resource}' AND state = 'held' AND expires_at <= clock_timestamp())",
            tenant = TENANTS[key.tenant],
            resource = RESOURCES[key.resource].name,
            since = self.since[0],
            since_before = self.since[1],
        ))[0];
        let recorded = row.get(0);
        let used = if is_periodic { recorded } else { row.get(2) };
        Said {
            recorded,
            most_recorded: row.get(1),
            used,
            at_stake: row.get(3),
            stranded: row.get(4),
            due: row.get(5),
        }
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

/// The most units of a key that a lease can have had at hand at one moment, by what was asked of it: as many as were used in a
/// second at the highest rate, of which the shortest time that is measured is a tenth of one; or as many as a caller waited
/// for. And what calls that failed as a whole have given back.
fn at_hand<'a>(asked: impl Iterator<Item = &'a Asked> + Clone, clients: u64) -> i64 {
    const PART: f64 = 0.01;
    const SHORTEST: f64 = 0.1;
    let Some(first) = asked.clone().map(|asked| asked.began).min() else { return 0 };
    let last = asked.clone().map(|asked| asked.ended).max().unwrap_or(first);
    let part = |at: Instant| ((at - first).as_secs_f64() / PART) as usize;
    // Units asked for until the end of each part, and answered before its beginning.
    let mut begun = vec![0; part(last) + 1];
    let mut ended = vec![0; part(last) + 2];
    for Asked { began, ended: end, units, .. } in asked {
        begun[part(*began)] += units;
        ended[part(*end) + 1] += units;
    }
    for at in 1..begun.len() {
        begun[at] += begun[at - 1];
        ended[at] += ended[at - 1];
    }
    let mut rate: f64 = 0.0;
    for (from, before) in ended.iter().enumerate() {
        for (to, until) in begun.iter().enumerate().skip(from) {
            let time = (to - from).saturating_sub(1) as f64 * PART;
            rate = rate.max((until - before) as f64 / time.max(SHORTEST));
        }
    }
    rate as i64 + clients as i64 * client::MOST_UNITS
}

/// Makes periods that are over two hours older: the worker closes them.
fn age_periods(admin: &mut Client) -> Result<(), String> {
    // Shared memory need not be told: it counts nothing else.
    let sql = "BEGIN; ALTER TABLE tenant_rls.usage DISABLE TRIGGER units_changed;
         UPDATE tenant_rls.usage SET resets_at = resets_at - interval '2 hours' WHERE resets_at < clock_timestamp();
         ALTER TABLE tenant_rls.usage ENABLE ALWAYS TRIGGER units_changed; COMMIT";
    match admin.batch_execute(sql) {
        // It locks the table that others lock rows of.
        Err(error) if error.code().is_some_and(|code| code.code() == "40P01") => {
            admin.run("ROLLBACK");
            Ok(())
        }
        Err(error) if error.as_db_error().is_some() && !admin.is_closed() => {
            Err(format!("{sql}: {}", describe(&error)))
        }
        _ => Ok(()),
    }
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
