//! What shared memory counts of keys, against itself and against the tables.
//!
//! # Lock protocol
//!
//! Keeps nobody waiting. All entries are read under the shared locks of the table's parts, then the tables, then the entry of
//! each suspect again. Every call leaves its instant in the entry before it counts, so if both looks are equal nobody has counted
//! in between, and what the tables said then is what the entry should say. What a worker is about to tell an entry when its
//! transaction has committed is left out while it may be on the way. A disagreement counts if it is found several times.

use std::collections::HashMap;
use std::ffi::c_long;
use std::sync::atomic::Ordering::SeqCst;

use pgrx::{Uuid, pg_sys};

use super::Finding;
use crate::error::Result;
use crate::plan::{Snapshot, as_owner, read};
use crate::shmem::{self, Database, Kind};
use crate::tenant::TenantId;
use crate::{clock, gucs};

/// How often a disagreement must be found, and the pause between, in microseconds.
const TIMES: u32 = 4;
const PAUSE: c_long = 10_000;

/// An entry, as it is at one moment.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Look {
    called_at: i64,
    kind: Kind,
    is_stale: bool,
    is_over: bool,
    inf: i64,
    sup: i64,
    granted: i64,
    noted: bool,
    unfolded: i64,
    holds: bool,
    pins: u32,
}

impl Look {
    fn at(entry: &shmem::Entry) -> Look {
        Look {
            called_at: entry.called_at.load(SeqCst),
            kind: entry.kind(),
            is_stale: entry.is_stale(),
            is_over: entry.resets_at.load(SeqCst) <= clock::now(),
            inf: entry.inf.load(SeqCst),
            sup: entry.sup.load(SeqCst),
            granted: entry.granted.load(SeqCst),
            noted: entry.noted.load(SeqCst),
            unfolded: entry.unfolded.load(SeqCst),
            holds: entry.holds.load(SeqCst) > 0,
            pins: entry.pins.load(SeqCst),
        }
    }

    /// Whether the entry says what the tables say, or should.
    fn is_settled(&self) -> bool {
        self.pins == 0 && !self.is_stale
    }
}

/// Tenant, resource, start of the period.
type Name = (TenantId, String, i64);

fn name_of(key: &shmem::Key) -> Name {
    (key.tenant(), key.resource().to_string(), key.period_start())
}

/// What the tables say.
#[derive(Default)]
struct Tables {
    /// Units, and rows of the ledger that they are in.
    units: HashMap<Name, (i64, i64)>,
    /// Units in the history, of keys that are below zero: what comes back of a closed period is, until it is closed again.
    history: HashMap<Name, i64>,
    /// What a crash would strand.
    chunks: HashMap<Name, i64>,
    /// Units that reservations hold, and one of these.
    held: HashMap<Name, (i64, String)>,
    /// Transactions that may have units in flight.
    writers: i64,
    /// The worker is one of them.
    worker_writes: bool,
}

/// A disagreement that may be one under way.
struct Suspect {
    name: Name,
    finding: &'static str,
    expected: i64,
    actual: i64,
    /// The look that it is about; `None` if there is no entry.
    look: Option<Look>,
    /// The reservation that it is about: another one is another disagreement.
    reservation: Option<String>,
}

impl Suspect {
    fn is_that_of(&self, other: &Suspect) -> bool {
        (&self.name, self.finding, &self.reservation) == (&other.name, other.finding, &other.reservation)
    }
}

/// Keys of which shared memory and the tables know different things, and units below zero.
pub fn check(findings: &mut Vec<Finding>) -> Result<()> {
    let (tables, mut suspects) = suspects()?;
    for (name @ (tenant, resource, _), (units, _)) in &tables.units {
        let total = units + tables.history.get(name).copied().unwrap_or_default();
        if total < 0 {
            let tenant = Uuid::from_bytes(*tenant.as_bytes());
            findings.push((Some(tenant), Some(resource.clone()), "units below zero", Some(0), Some(total)));
        }
    }
    drop(tables);
    for _ in 1..TIMES {
        if suspects.is_empty() {
            return Ok(());
        }
        // SAFETY: sleeps for a moment, and can be cancelled after it.
        unsafe {
            pg_sys::pg_usleep(PAUSE);
            pg_sys::check_for_interrupts!();
        }
        let (_, mut again) = self::suspects()?;
        again.retain(|now| suspects.iter().any(|before| now.is_that_of(before)));
        suspects = again;
    }
    findings.extend(suspects.into_iter().map(|suspect| {
        let (tenant, resource, _) = suspect.name;
        let tenant = Uuid::from_bytes(*tenant.as_bytes());
        (Some(tenant), Some(resource), suspect.finding, Some(suspect.expected), Some(suspect.actual))
    }));
    Ok(())
}

/// What the tables say, and what does not look like that.
fn suspects() -> Result<(Tables, Vec<Suspect>)> {
    let Some(database) = shmem::database() else { return Ok((tables()?, Vec::new())) };
    let (generation, was_loaded, was_at_rest) =
        (database.generation(), database.is_loaded(), is_at_rest(database));
    let mut looks = Vec::with_capacity(gucs::quota_keys());
    shmem::each(|entry| looks.push((*entry.key(), Look::at(entry))));
    let tables = tables()?;
    let now = State {
        is_loaded: was_loaded && database.is_loaded() && database.generation() == generation,
        is_at_rest: was_at_rest && is_at_rest(database),
        has_worked: database.started_at.load(SeqCst) != 0 && database.failures.load(SeqCst) == 0,
        reserves: database.reserves.load(SeqCst),
    };
    let mut suspects = Vec::new();
    let mut known: HashMap<Name, Look> = HashMap::new();
    for (key, look) in looks {
        let name = name_of(&key);
        compare(&name, &look, &tables, &now, &mut suspects);
        known.insert(name, look);
    }
    missing(&known, &tables, &now, &mut suspects);
    suspects.retain(|suspect| {
        let (tenant, resource, start) = &suspect.name;
        let key = shmem::Key::new(*tenant, resource, *start);
        key.is_some_and(|key| shmem::look(&key, Look::at) == suspect.look)
    });
    Ok((tables, suspects))
}

/// What is known of the database.
struct State {
    /// Every key with rows in the ledger has an entry.
    is_loaded: bool,
    /// No worker has anything left to tell the entries.
    is_at_rest: bool,
    /// A worker has come through a round since the server started.
    has_worked: bool,
    /// Some reservation may hold units.
    reserves: bool,
}

fn is_at_rest(database: &Database) -> bool {
    database.worker.load(SeqCst) == 0
}

/// What is wrong with an entry.
fn compare(name: &Name, look: &Look, tables: &Tables, now: &State, suspects: &mut Vec<Suspect>) {
    let mut suspect = |finding, expected, actual| {
        let look = Some(*look);
        suspects.push(Suspect { name: name.clone(), finding, expected, actual, look, reservation: None });
    };
    let (units, rows) = tables.units.get(name).copied().unwrap_or_default();
    if i64::from(look.pins) > tables.writers {
        suspect("shared memory waits for transactions that are not there", tables.writers, look.pins.into());
    }
    if look.kind == Kind::Leased && look.sup > look.granted {
        suspect("a lease has handed out more than is accounted for", look.granted, look.sup);
    }
    if !look.is_settled() {
        return;
    }
    // What was counted in a period that is over may have moved to the history.
    let counted = match look.kind {
        Kind::Escrow => Some(look.sup),
        Kind::Leased => Some(look.granted).filter(|_| !tables.worker_writes),
    };
    if let Some(counted) = counted.filter(|counted| !look.is_over && *counted != units) {
        suspect("shared memory differs from the tables", units, counted);
    }
    if look.kind == Kind::Escrow && look.inf != look.sup {
        suspect("shared memory holds units that no transaction has in flight", look.inf, look.sup);
    }
    if now.is_at_rest && look.unfolded != rows {
        suspect("shared memory counts other rows of the ledger than there are", rows, look.unfolded);
    }
    let chunk = tables.chunks.get(name).copied().unwrap_or_default();
    if now.is_at_rest && look.kind == Kind::Leased && look.noted && chunk < look.granted - look.sup {
        suspect("a crash would strand more than the tables say", look.granted - look.sup, chunk);
    }
}

/// What the tables have of keys that should have an entry, or an entry of another kind.
fn missing(known: &HashMap<Name, Look>, tables: &Tables, now: &State, suspects: &mut Vec<Suspect>) {
    for (name, (units, reservation)) in &tables.held {
        let look = known.get(name).copied();
        let is_known = now.reserves && look.is_none_or(|look| look.kind == Kind::Escrow && look.holds);
        if now.is_loaded && !is_known && look.is_none_or(|look| look.is_settled()) {
            suspects.push(Suspect {
                name: name.clone(),
                finding: "shared memory does not know that reservations hold units",
                expected: *units,
                actual: 0,
                look,
                reservation: Some(reservation.clone()),
            });
        }
    }
    let mut suspect = |name: &Name, finding, expected, actual| {
        let look = known.get(name).copied();
        suspects.push(Suspect { name: name.clone(), finding, expected, actual, look, reservation: None });
    };
    for (name, (_, rows)) in tables.units.iter().filter(|(_, (_, rows))| *rows > 0) {
        if now.is_loaded && !known.contains_key(name) {
            suspect(name, "shared memory counts other rows of the ledger than there are", *rows, 0);
        }
    }
    for (name, chunk) in tables.chunks.iter().filter(|(_, chunk)| **chunk != 0) {
        let is_leased = known.get(name).is_some_and(|look| look.kind == Kind::Leased);
        if now.is_at_rest && now.has_worked && !is_leased {
            suspect(name, "a lease that nobody has is still at stake", 0, *chunk);
        }
    }
}

fn tables() -> Result<Tables> {
    let mut tables = Tables::default();
    let mut each = |sql: &str, with: &mut dyn FnMut(&mut Tables, Name, &crate::plan::Row)| {
        as_owner(|| {
            read(Snapshot::Latest, sql, |row| {
                if let (Some(id), Some(resource), Some(start)) =
                    (row.get::<Uuid>(1), row.get::<String>(2), row.get::<i64>(3))
                {
                    let name = (TenantId::from_bytes(*id.as_bytes()), resource, start);
                    with(&mut tables, name, row);
                }
            })
        })
        .map(drop)
    };
    each(
        "SELECT s.tenant_id, s.resource, s.period_start, pg_catalog.sum(s.units)::pg_catalog.int8, \
             pg_catalog.sum(s.rows)::pg_catalog.int8, \
             CASE WHEN pg_catalog.sum(s.units)::pg_catalog.int8 OPERATOR(pg_catalog.<) 0 THEN ( \
                SELECT h.used FROM tenant_rls.usage_history AS h WHERE h.tenant_id OPERATOR(pg_catalog.=) s.tenant_id \
                AND h.resource OPERATOR(pg_catalog.=) s.resource \
                AND h.period_start OPERATOR(pg_catalog.=) s.period_start) END \
         FROM (SELECT u.tenant_id, u.resource, u.period_start, u.used AS units, 0 AS rows FROM tenant_rls.usage AS u \
               UNION ALL \
               SELECT l.tenant_id, l.resource, l.period_start, l.units, 1 FROM tenant_rls.ledger AS l) AS s \
         GROUP BY s.tenant_id, s.resource, s.period_start",
        &mut |tables, name, row| {
            let units = (row.get(4).unwrap_or_default(), row.get(5).unwrap_or_default());
            if let Some(closed) = row.get(6) {
                tables.history.insert(name.clone(), closed);
            }
            tables.units.insert(name, units);
        },
    )?;
    each(
        "SELECT l.tenant_id, l.resource, l.period_start, l.chunk FROM tenant_rls.leases AS l",
        &mut |tables, name, row| {
            tables.chunks.insert(name, row.get(4).unwrap_or_default());
        },
    )?;
    each(
        "SELECT r.tenant_id, r.resource, r.period_start, pg_catalog.sum(r.units)::pg_catalog.int8, \
             pg_catalog.min(r.reservation_id::pg_catalog.text) \
         FROM tenant_rls.reservations AS r WHERE r.state OPERATOR(pg_catalog.=) 'held' \
         GROUP BY r.tenant_id, r.resource, r.period_start",
        &mut |tables, name, row| {
            let held = (row.get(4).unwrap_or_default(), row.get(5).unwrap_or_default());
            tables.held.insert(name, held);
        },
    )?;
    // Who has units in flight, and the worker that writes for leases, has the ledger open: the lock comes before the first and
    // goes after the last.
    let worker = shmem::database().map_or(0, |database| database.worker.load(SeqCst));
    let sql = format!(
        "SELECT pg_catalog.count(DISTINCT l.virtualtransaction), \
             coalesce(pg_catalog.bool_or(l.pid OPERATOR(pg_catalog.=) {worker}), false) \
         FROM pg_catalog.pg_locks AS l WHERE l.locktype OPERATOR(pg_catalog.=) 'relation' \
         AND l.database OPERATOR(pg_catalog.=) ( \
             SELECT d.oid FROM pg_catalog.pg_database AS d \
             WHERE d.datname OPERATOR(pg_catalog.=) pg_catalog.current_database()) \
         AND l.relation OPERATOR(pg_catalog.=) 'tenant_rls.ledger'::pg_catalog.regclass::pg_catalog.oid \
         AND l.mode OPERATOR(pg_catalog.=) 'RowExclusiveLock' AND l.granted"
    );
    as_owner(|| {
        read(Snapshot::Latest, &sql, |row| {
            tables.writers = row.get(1).unwrap_or_default();
            tables.worker_writes = row.get(2).unwrap_or(true);
        })
    })?;
    Ok(tables)
}
