//! A client: random transactions, and what it was told of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::thread;
use std::time::Duration;

use postgres::{Client, Row};

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

/// What a client was told in a round.
#[derive(Default)]
pub struct Log {
    told: BTreeMap<Key, Told>,
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
            "57P01" | "57P02" | "57P03" => Failure::Lost,
            _ => Failure::Violation(describe(&error)),
        }
    }
}

type Outcome<T> = Result<T, Failure>;

/// Units by key, of a transaction or of a part of it.
type Units = BTreeMap<Key, i64>;

struct Worker<'a> {
    random: Random,
    log: Log,
    client: Client,
    tenant: usize,
    leased_only: bool,
    stop: &'a AtomicBool,
}

/// Works until it is told to stop. What it was told, or what it should never have been.
pub fn work(
    mut random: Random,
    port: &AtomicU16,
    leased_only: bool,
    stop: &AtomicBool,
) -> Result<Log, String> {
    let mut log = Log::default();
    while !stop.load(Ordering::SeqCst) {
        let Ok(client) = try_connect(port.load(Ordering::SeqCst), "postgres", APP) else {
            thread::sleep(Duration::from_millis(20));
            continue;
        };
        let mut worker = Worker { random, log, client, tenant: 0, leased_only, stop };
        let ended = worker.session();
        (random, log) = (worker.random, worker.log);
        if let Err(Failure::Violation(what)) = ended {
            return Err(what);
        }
    }
    Ok(log)
}

impl Worker<'_> {
    /// Transactions for as long as the connection lasts.
    fn session(&mut self) -> Outcome<()> {
        while !self.stop.load(Ordering::SeqCst) {
            self.tenant = self.below(TENANTS.len() as u64) as usize;
            self.client.batch_execute(&format!("SET app.current_tenant = '{}'", TENANTS[self.tenant]))?;
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
        let most = [5, 40, 400][self.below(3) as usize];
        1 + self.below(most) as i64
    }

    /// A call that is a transaction of its own.
    fn statement(&mut self) -> Outcome<()> {
        let mut units = Units::new();
        let key = self.key();
        let amount = self.amount();
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
        let function = if self.below(2) == 0 { "tenant_quota_consume" } else { "tenant_quota_try_consume" };
        self.consume(
            &format!("{function}('{}', {amount})", RESOURCES[key.resource].name),
            &[(key, amount)],
            units,
        )
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
        let sql = format!("SELECT resource, allowed, granted, used, quota_limit, mode FROM {call}");
        let rows = match self.rows(&sql) {
            Ok(rows) => rows,
            Err(failure) => {
                if matches!(failure, Failure::Lost | Failure::Undone) {
                    let leased = amounts.iter().filter(|(key, _)| RESOURCES[key.resource].may_be_leased());
                    leased.for_each(|(key, amount)| self.log.unknown(*key, *amount));
                }
                return Err(failure);
            }
        };
        for row in rows {
            let name: &str = row.get("resource");
            let (granted, used, limit): (i64, i64, i64) =
                (row.get("granted"), row.get("used"), row.get("quota_limit"));
            if row.get("allowed") && used > limit {
                return Err(Failure::Violation(format!(
                    "{call} was allowed with {used} used of {limit} {name}"
                )));
            }
            let resource = RESOURCES.iter().position(|resource| resource.name == name).expect("a resource");
            let key = Key { tenant: self.tenant, resource };
            if row.get::<_, &str>("mode") == "leased" {
                self.log.acknowledged(key, granted);
            } else {
                *units.entry(key).or_default() += granted;
            }
        }
        Ok(())
    }

    fn release(&mut self, key: Key, amount: i64, units: &mut Units) -> Outcome<()> {
        self.rows(&format!("SELECT tenant_quota_release('{}', {amount})", RESOURCES[key.resource].name))?;
        *units.entry(key).or_default() -= amount;
        Ok(())
    }

    /// A reservation, and mostly its end.
    fn reserve(&mut self, key: Key, amount: i64, units: &mut Units) -> Outcome<()> {
        let name = RESOURCES[key.resource].name;
        let rows = self.rows(&format!(
            "SELECT granted, reservation_id::text FROM tenant_quota_try_reserve('{name}', {amount}, '1 day')"
        ))?;
        let Some(reservation) = rows[0].get::<_, Option<String>>(1) else { return Ok(()) };
        *units.entry(key).or_default() += amount;
        let (call, actual) = match self.below(3) {
            0 => return Ok(()),
            1 => (format!("tenant_quota_cancel('{reservation}')"), 0),
            _ => {
                let actual = self.below(amount as u64 + 1) as i64;
                (format!("tenant_quota_settle('{reservation}', {actual})"), actual)
            }
        };
        self.rows(&format!("SELECT {call}"))?;
        *units.entry(key).or_default() -= amount - actual;
        Ok(())
    }
}

fn add(units: &mut Units, more: &Units) {
    for (key, more) in more {
        *units.entry(*key).or_default() += more;
    }
}
