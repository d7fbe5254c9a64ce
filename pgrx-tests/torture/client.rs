//! A client: random transactions, and what it was told of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, Row};

use super::limits::Limits;
use super::{APP, Key, RESOURCES, TENANTS};
use crate::cluster::try_connect;
use crate::harness::describe;
use crate::quota::concurrent::Random;

/// What a client was told of a key.
#[derive(Clone, Copy, Default)]
pub struct Told {
    /// Units that it knows to be counted.
    pub acknowledged: i64,
    /// Units that it may have taken besides.
    pub taken: i64,
    /// Units that it may have given back besides (negative).
    pub taken_back: i64,
}

impl Told {
    pub fn and(self, other: Told) -> Told {
        Told {
            acknowledged: self.acknowledged + other.acknowledged,
            taken: self.taken + other.taken,
            taken_back: self.taken_back + other.taken_back,
        }
    }
}

/// A call for units of a key that may be leased: units that may have been handed out at any moment in between.
#[derive(Clone, Copy)]
pub struct Asked {
    pub key: Key,
    pub began: Instant,
    pub ended: Instant,
    pub units: i64,
    /// Whether it failed as a whole, and gave them back if it had them.
    pub failed: bool,
}

/// A request with an idempotency key whose answer is missing: it is sent again.
struct Request {
    key: Key,
    amount: i64,
    name: String,
}

/// What a client was told in a round.
#[derive(Default)]
pub struct Log {
    told: BTreeMap<Key, Told>,
    /// What was asked for of leases.
    pub asked: Vec<Asked>,
    unanswered: Vec<Request>,
    pub calls: u64,
    pub commits: u64,
}

impl Log {
    pub fn told(&self, key: Key) -> Told {
        self.told.get(&key).copied().unwrap_or_default()
    }

    fn acknowledged(&mut self, key: Key, units: i64) {
        self.told.entry(key).or_default().acknowledged += units;
    }

    fn unknown(&mut self, key: Key, units: i64) {
        let told = self.told.entry(key).or_default();
        if units > 0 { told.taken += units } else { told.taken_back += units }
    }
}

/// Why a statement came to nothing.
enum Failure {
    /// The connection went away.
    Lost,
    /// A limit or a rule said no: the statement did nothing.
    Denied,
    /// The transaction was picked out by the server.
    Undone,
    /// The time of a reservation was over.
    Expired,
    /// What must never be.
    Violation(String),
}

impl From<postgres::Error> for Failure {
    fn from(error: postgres::Error) -> Failure {
        let Some(report) = error.as_db_error() else { return Failure::Lost };
        match report.code().code() {
            // Below zero; given back in mode leased.
            "53400" | "22023" | "0A000" => Failure::Denied,
            "40001" | "40P01" => Failure::Undone,
            "55000" => Failure::Expired,
            "57P01" | "57P02" | "57P03" => Failure::Lost,
            _ => Failure::Violation(describe(&error)),
        }
    }
}

/// The most units that a call asks for.
pub const MOST_UNITS: i64 = 400;

/// The longest time that units are held for which nobody ends, in milliseconds; with periods, so that these end before.
const LONGEST_HOLD: u64 = 300;
const LONGEST_HOLD_OF_PERIODS: u64 = 1500;

type Outcome<T> = Result<T, Failure>;

/// Units by key, of a transaction or of a part of it.
type Units = BTreeMap<Key, i64>;

struct Worker<'a> {
    random: Random,
    log: Log,
    client: Client,
    tenant: usize,
    leased_only: bool,
    limits: &'a Limits,
    stop: &'a AtomicBool,
}

/// Works until it is told to stop. What it was told, or what it should never have been.
pub fn work(
    mut random: Random,
    port: &AtomicU16,
    leased_only: bool,
    limits: &Limits,
    stop: &AtomicBool,
) -> Result<Log, String> {
    let mut log = Log::default();
    while !stop.load(Ordering::SeqCst) {
        let Ok(client) = try_connect(port.load(Ordering::SeqCst), "postgres", APP) else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let mut worker = Worker { random, log, client, tenant: 0, leased_only, limits, stop };
        let ended = worker.session();
        (random, log) = (worker.random, worker.log);
        match ended {
            Err(Failure::Violation(what)) => return Err(what),
            Err(Failure::Expired) => return Err("55000 without a reservation whose time was over".into()),
            _ => {}
        }
    }
    for Request { key, amount, .. } in std::mem::take(&mut log.unanswered) {
        log.unknown(key, amount);
    }
    Ok(log)
}

impl Worker<'_> {
    /// Transactions for as long as the connection lasts.
    fn session(&mut self) -> Outcome<()> {
        self.repeat()?;
        while !self.stop.load(Ordering::SeqCst) {
            let tenant = self.below(TENANTS.len() as u64) as usize;
            self.act_for(tenant)?;
            let done = if self.below(3) == 0 { self.statement() } else { self.transaction() };
            match done {
                Err(Failure::Denied | Failure::Undone) | Ok(()) => {}
                failure => return failure,
            }
            if self.below(100) == 0 {
                return Ok(());
            }
        }
        Ok(())
    }

    fn act_for(&mut self, tenant: usize) -> Outcome<()> {
        self.tenant = tenant;
        Ok(self.client.batch_execute(&format!("SET app.current_tenant = '{}'", TENANTS[tenant]))?)
    }

    /// Sends requests again whose answers are missing. What is answered now is what has become of them.
    fn repeat(&mut self) -> Outcome<()> {
        while let Some(Request { key, amount, name }) = self.log.unanswered.pop() {
            let mut units = Units::new();
            let sent = self.act_for(key.tenant).and_then(|()| self.take_once(key, amount, &name, &mut units));
            match sent {
                Ok(()) => self.settle(&units, Log::acknowledged),
                Err(Failure::Denied) => {}
                Err(failure) => {
                    self.log.unanswered.push(Request { key, amount, name });
                    return Err(failure);
                }
            }
        }
        Ok(())
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.random.below(bound)
    }

    fn key(&mut self) -> Key {
        let resource = if self.leased_only {
            RESOURCES.iter().position(|resource| resource.name == "leased").expect("a leased resource")
        } else {
            self.below(RESOURCES.len() as u64) as usize
        };
        Key { tenant: self.tenant, resource }
    }

    fn amount(&mut self) -> i64 {
        let most = [5, 40, MOST_UNITS][self.below(3) as usize];
        1 + self.below(most as u64) as i64
    }

    /// A call that is a transaction of its own.
    fn statement(&mut self) -> Outcome<()> {
        let mut units = Units::new();
        let key = self.key();
        let amount = self.amount();
        if !RESOURCES[key.resource].may_be_leased() && self.below(3) == 0 {
            return self.request(key, amount);
        }
        match self.take(key, amount, &mut units) {
            Ok(()) => {
                self.log.commits += 1;
                self.settle(&units, Log::acknowledged);
                Ok(())
            }
            Err(Failure::Lost) => {
                // Of what may be leased this is noted already.
                if !RESOURCES[key.resource].may_be_leased() {
                    self.log.unknown(key, amount);
                }
                Err(Failure::Lost)
            }
            failure => failure,
        }
    }

    /// A call with an idempotency key, some of them twice.
    fn request(&mut self, key: Key, amount: i64) -> Outcome<()> {
        let mut units = Units::new();
        let name = format!("{:x}-{:x}", self.below(u64::MAX), self.below(u64::MAX));
        match self.take_once(key, amount, &name, &mut units) {
            Ok(()) => {}
            Err(Failure::Lost) => {
                self.log.unanswered.push(Request { key, amount, name });
                return Err(Failure::Lost);
            }
            failure => return failure,
        }
        self.log.commits += 1;
        self.settle(&units, Log::acknowledged);
        if self.below(2) == 0 {
            return Ok(());
        }
        let mut again = Units::new();
        match self.take_once(key, amount, &name, &mut again) {
            Ok(()) if again != units => {
                Err(Failure::Violation(format!("request {name} for {amount} of {key} was answered twice")))
            }
            Err(Failure::Denied) => {
                Err(Failure::Violation(format!("request {name} for {amount} of {key} was forgotten")))
            }
            done => done,
        }
    }

    fn take_once(&mut self, key: Key, amount: i64, name: &str, units: &mut Units) -> Outcome<()> {
        let resource = RESOURCES[key.resource].name;
        let call = format!("tenant_quota_try_consume('{resource}', {amount}, '{name}')");
        let before = units.clone();
        self.consume(&call, &[(key, amount)], units)?;
        // Nothing was stored.
        if *units == before { Err(Failure::Denied) } else { Ok(()) }
    }

    /// Some calls, some of them in savepoints, and an end.
    fn transaction(&mut self) -> Outcome<()> {
        let level = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"][self.below(3) as usize];
        self.client.batch_execute(&format!("BEGIN ISOLATION LEVEL {level}"))?;
        // What was taken, since the beginning and since each savepoint.
        let mut taken = vec![Units::new()];
        for _ in 0..=self.below(5) {
            match self.below(10) {
                0..=1 => {
                    self.client.batch_execute("SAVEPOINT s")?;
                    taken.push(Units::new());
                    continue;
                }
                2 if taken.len() > 1 => {
                    self.client.batch_execute("RELEASE s")?;
                    let inner = taken.pop().unwrap_or_default();
                    add(taken.last_mut().expect("the transaction"), &inner);
                    continue;
                }
                3 if taken.len() > 1 => {
                    self.client.batch_execute("ROLLBACK TO s")?;
                    taken.last_mut().expect("a savepoint").clear();
                    continue;
                }
                _ => {}
            }
            let units = taken.last_mut().expect("the transaction");
            match self.call(units) {
                Err(Failure::Denied) if taken.len() > 1 => {
                    self.client.batch_execute("ROLLBACK TO s")?;
                    taken.last_mut().expect("a savepoint").clear();
                }
                Err(Failure::Denied | Failure::Undone) => {
                    self.client.batch_execute("ROLLBACK")?;
                    return Ok(());
                }
                done => done?,
            }
        }
        match self.below(20) {
            0..=2 => {
                self.client.batch_execute("ROLLBACK")?;
                return Ok(());
            }
            // The connection is dropped in the middle.
            3 => return Err(Failure::Lost),
            _ => {}
        }
        let mut units = Units::new();
        taken.iter().for_each(|part| add(&mut units, part));
        match self.client.batch_execute("COMMIT").map_err(Failure::from) {
            Ok(()) => {
                self.log.commits += 1;
                self.settle(&units, Log::acknowledged);
                Ok(())
            }
            Err(Failure::Lost) => {
                self.settle(&units, Log::unknown);
                Err(Failure::Lost)
            }
            failure => failure,
        }
    }

    fn settle(&mut self, units: &Units, how: fn(&mut Log, Key, i64)) {
        for (key, units) in units {
            how(&mut self.log, *key, *units);
        }
    }

    /// A random call in a transaction.
    fn call(&mut self, units: &mut Units) -> Outcome<()> {
        let key = self.key();
        let amount = self.amount();
        let resource = &RESOURCES[key.resource];
        match self.below(8) {
            0 => self.take_many(units),
            1 if !resource.may_be_leased() => self.reserve(key, amount, units),
            2..=4 if resource.is_gauge => self.release(key, amount, units),
            _ => self.take(key, amount, units),
        }
    }

    fn rows(&mut self, sql: &str) -> Outcome<Vec<Row>> {
        self.log.calls += 1;
        Ok(self.client.query(sql, &[])?)
    }

    fn take(&mut self, key: Key, amount: i64, units: &mut Units) -> Outcome<()> {
        let resource = &RESOURCES[key.resource];
        // Only an answer says why a call is denied that no limit may deny.
        let raises = resource.is_hard() && self.below(2) == 0;
        let function = if raises { "tenant_quota_consume" } else { "tenant_quota_try_consume" };
        self.consume(&format!("{function}('{}', {amount})", resource.name), &[(key, amount)], units)
    }

    /// Several resources, all or nothing.
    fn take_many(&mut self, units: &mut Units) -> Outcome<()> {
        let amounts: BTreeMap<Key, i64> = (0..3).map(|_| (self.key(), self.amount())).collect();
        let amounts: Vec<(Key, i64)> = amounts.into_iter().collect();
        let fields: Vec<String> = amounts
            .iter()
            .map(|(key, amount)| format!("\"{}\": {amount}", RESOURCES[key.resource].name))
            .collect();
        self.consume(&format!("tenant_quota_consume_many('{{{}}}')", fields.join(", ")), &amounts, units)
    }

    /// A call that takes. Units of a lease count from the answer on, the others with the transaction.
    fn consume(&mut self, call: &str, amounts: &[(Key, i64)], units: &mut Units) -> Outcome<()> {
        let sql = format!("SELECT resource, allowed, granted, used, quota_limit, reason, mode FROM {call}");
        let began = Instant::now();
        let answered = self.rows(&sql);
        let ended = Instant::now();
        let leased = amounts.iter().filter(|(key, _)| RESOURCES[key.resource].may_be_leased());
        let failed = answered.is_err();
        let asked = |(key, units): &(Key, i64)| Asked { key: *key, began, ended, units: *units, failed };
        self.log.asked.extend(leased.clone().map(asked));
        let rows = match answered {
            Ok(rows) => rows,
            Err(failure) => {
                if matches!(failure, Failure::Lost | Failure::Undone) {
                    leased.for_each(|(key, amount)| self.log.unknown(*key, *amount));
                }
                return Err(failure);
            }
        };
        for row in rows {
            let name: &str = row.get("resource");
            let resource = RESOURCES.iter().position(|resource| resource.name == name).expect("a resource");
            let key = Key { tenant: self.tenant, resource };
            self.judge(call, key, &row, began)?;
            let granted: i64 = row.get("granted");
            if row.get::<_, &str>("mode") == "leased" {
                self.log.acknowledged(key, granted);
            } else if granted != 0 {
                *units.entry(key).or_default() += granted;
            }
        }
        Ok(())
    }

    /// Whether an answer may be, to a call that began then.
    fn judge(&self, call: &str, key: Key, row: &Row, began: Instant) -> Outcome<()> {
        let (allowed, reason): (bool, &str) = (row.get("allowed"), row.get("reason"));
        let (used, limit): (i64, i64) = (row.get("used"), row.get("quota_limit"));
        let violation = |what: String| {
            Err(Failure::Violation(format!("{call}, {key}: {what}, with {used} used of {limit}")))
        };
        if reason == "replay" {
            return Ok(());
        }
        let highest = self.limits.highest_since(key, began);
        if limit > highest {
            return violation(format!(
                "decided by a limit of before, when {highest} was the highest in force"
            ));
        }
        if !RESOURCES[key.resource].is_hard() {
            // Without a worker a lease has nothing to hand out.
            return if allowed || reason == "in_flight" {
                Ok(())
            } else {
                violation(format!("denied: {reason}"))
            };
        }
        if allowed && used > limit { violation("allowed".into()) } else { Ok(()) }
    }

    fn release(&mut self, key: Key, amount: i64, units: &mut Units) -> Outcome<()> {
        self.rows(&format!("SELECT tenant_quota_release('{}', {amount})", RESOURCES[key.resource].name))?;
        *units.entry(key).or_default() -= amount;
        Ok(())
    }

    /// A reservation, and mostly its end. What is held for a moment only counts as nothing, unless it is settled in time.
    fn reserve(&mut self, key: Key, amount: i64, units: &mut Units) -> Outcome<()> {
        let name = RESOURCES[key.resource].name;
        let is_short = self.below(2) == 0;
        let is_periodic = RESOURCES[key.resource].is_periodic();
        let longest = if is_periodic { LONGEST_HOLD_OF_PERIODS } else { LONGEST_HOLD };
        let ttl = if is_short { format!("{} milliseconds", 1 + self.below(longest)) } else { "1 day".into() };
        let rows = self.rows(&format!(
            "SELECT granted, reservation_id::text FROM tenant_quota_try_reserve('{name}', {amount}, '{ttl}')"
        ))?;
        let Some(reservation) = rows[0].get::<_, Option<String>>(1) else { return Ok(()) };
        let (call, actual) = match self.below(3) {
            0 => {
                *units.entry(key).or_default() += if is_short { 0 } else { amount };
                return Ok(());
            }
            1 => (format!("tenant_quota_cancel('{reservation}')"), 0),
            _ => {
                let actual = self.below(amount as u64 + 1) as i64;
                (format!("tenant_quota_settle('{reservation}', {actual})"), actual)
            }
        };
        match self.rows(&format!("SELECT {call}")) {
            Ok(_) => {}
            Err(Failure::Expired) if is_short => return Err(Failure::Denied),
            Err(failure) => return Err(failure),
        }
        *units.entry(key).or_default() += actual;
        Ok(())
    }
}

fn add(units: &mut Units, more: &Units) {
    for (key, more) in more {
        *units.entry(*key).or_default() += more;
    }
}
