//! Idempotency keys: a request that is sent twice takes its units once.
//!
//! # What is kept
//!
//! The request and its answer, as a row of the transaction that took the units: both are there, or neither is. Denied
//! calls keep nothing, so they can be tried again. A row is kept until the period of the units is over, and at least a
//! day; an older one counts as none.
//!
//! # Lock protocol
//!
//! A call with a key holds the lock of that key until the transaction ends. So another call with the same key waits until
//! it is known whether the first one counts, and then looks at what is committed, at every isolation level. The lock
//! comes after that of the tenant and before those of units. A denied call, and one that found an answer, give it back.

use std::borrow::Cow;
use std::collections::BTreeMap;

use pgrx::prelude::*;
use pgrx::{Uuid, pg_sys};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::decision::{Enforcement, Reason, Verdict};
use super::period::{self, Window};
use super::result::Answer;
use super::{admitted, check_writer};
use crate::clock;
use crate::context;
use crate::error::{Error, Result};
use crate::json;
use crate::lock::{Class, Lock};
use crate::plan::{CachedPlan, as_owner};
use crate::registry::Source;
use crate::registry::admin::datum;
use crate::tenant::TenantId;

/// The longest key, in bytes.
const LONGEST_KEY: usize = 255;

/// How long an answer is kept at least, in microseconds.
const DAY: i64 = 86_400_000_000;

/// What is asked for, in the form in which two requests are compared.
pub struct Request {
    text: String,
    takes: bool,
}

impl Request {
    /// A call of that kind for units of resources.
    pub fn new(call: &str, amounts: &BTreeMap<String, i64>) -> Request {
        let text = json!({ "call": call, "amounts": amounts }).to_string();
        Request { text, takes: amounts.values().any(|amount| *amount > 0) }
    }

    /// A call of that kind for units of one resource.
    pub fn one(call: &str, resource: &str, amount: i64) -> Request {
        Request::new(call, &BTreeMap::from([(resource.to_string(), amount)]))
    }

    /// A reservation, for a time in microseconds.
    pub fn reservation(resource: &str, amount: i64, ttl: i64) -> Request {
        let text = json!({ "call": "reserve", "amounts": { resource: amount }, "ttl": ttl }).to_string();
        Request { text, takes: amount > 0 }
    }
}

/// The answers of `call`, or those that are stored under the key, for the tenant of the session.
pub fn once(key: &str, request: &Request, call: impl FnOnce() -> Result<Vec<Answer>>) -> Result<Vec<Answer>> {
    check_key(key)?;
    let tenant = context::required()?;
    if !request.takes {
        // It looks, and has no answer to keep: whatever is stored is that of another request.
        return match find(tenant.id, key, request)? {
            Some(_) => Err(used_otherwise(key)),
            None => call(),
        };
    }
    check_writer(&tenant)?;
    let lock = Lock::hashed(Class::Once, &(tenant.id, key));
    lock.acquire();
    // A suspended tenant is answered nothing, however long the call has waited.
    context::required()?;
    if let Some(found) = find(tenant.id, key, request)? {
        lock.release();
        return if found.same { replay(key, &found.answers) } else { Err(used_otherwise(key)) };
    }
    let answers = call()?;
    if answers.iter().all(|answer| answer.verdict.allowed) {
        store(tenant.id, key, request, &answers)?;
    } else {
        lock.release();
    }
    Ok(answers)
}

/// As [`once`], for a call that has one answer.
pub fn once_for_one(key: &str, request: &Request, call: impl FnOnce() -> Result<Answer>) -> Result<Answer> {
    let mut answers = once(key, request, || Ok(vec![call()?]))?;
    answers.pop().ok_or_else(|| unreadable(key))
}

fn check_key(key: &str) -> Result<()> {
    const WHAT: &str = "the idempotency key";
    match key.len() {
        0 => Err(Error::Invalid {
            what: "idempotency key",
            value: String::new(),
            hint: "Use a text that no other request has, or NULL.".into(),
        }),
        1..=LONGEST_KEY => Ok(()),
        bytes => Err(Error::TooLong { what: WHAT, bytes, most: LONGEST_KEY, hint: "Use a hash of it." }),
    }
}

fn used_otherwise(key: &str) -> Error {
    Error::Invalid {
        what: "idempotency key",
        value: key.into(),
        hint: "It belongs to another request: other amounts, resources or functions. Use a new key for each request.".into(),
    }
}

fn unreadable(key: &str) -> Error {
    Error::WrongState {
        what: "the stored answer cannot be read".into(),
        detail: format!("Idempotency key \"{key}\" has an answer that this version does not know."),
        hint: "Delete the row of tenant_rls.idempotency_keys, if the units may be taken again.",
    }
}

/// What is stored under a key.
struct Found {
    same: bool,
    answers: String,
}

/// What is committed now, and what this transaction has stored itself.
fn find(id: TenantId, key: &str, request: &Request) -> Result<Option<Found>> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT k.request OPERATOR(pg_catalog.=) $3, k.answers::pg_catalog.text FROM tenant_rls.idempotency_keys AS k \
          WHERE k.tenant_id OPERATOR(pg_catalog.=) $1 AND k.key OPERATOR(pg_catalog.=) $2 \
          AND k.expires_at OPERATOR(pg_catalog.>) pg_catalog.clock_timestamp()",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::JSONBOID],
    );
    let arguments = [datum(id), key.into_datum(), Some(json::parse(&request.text))];
    let mut found = None;
    as_owner(|| {
        SELECT.run_latest(&arguments, |row| {
            found =
                Some(Found { same: row.get(1).unwrap_or(false), answers: row.get(2).unwrap_or_default() });
        });
    })?;
    Ok(found)
}

fn store(id: TenantId, key: &str, request: &Request, answers: &[Answer]) -> Result<()> {
    // A row that is there has expired.
    static UPSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.idempotency_keys (tenant_id, key, request, answers, expires_at) \
          VALUES ($1, $2, $3, $4, $5) ON CONFLICT (tenant_id, key) DO UPDATE \
          SET request = EXCLUDED.request, answers = EXCLUDED.answers, expires_at = EXCLUDED.expires_at",
        &[pg_sys::UUIDOID, pg_sys::TEXTOID, pg_sys::JSONBOID, pg_sys::JSONBOID, pg_sys::TIMESTAMPTZOID],
    );
    let stored = Value::from_iter(answers.iter().map(|answer| json!(Stored::of(answer))));
    let last_end = answers.iter().map(|answer| period::to_postgres(answer.window.end)).max();
    let expires_at = last_end.unwrap_or_default().max(clock::now() + DAY);
    let arguments = [
        datum(id),
        key.into_datum(),
        Some(json::parse(&request.text)),
        Some(json::parse(&stored.to_string())),
        expires_at.into_datum(),
    ];
    as_owner(|| UPSERT.run_latest(&arguments, |_| ()))?;
    Ok(())
}

fn replay(key: &str, answers: &str) -> Result<Vec<Answer>> {
    let stored: Vec<Stored> = serde_json::from_str(answers).map_err(|_| unreadable(key))?;
    stored.into_iter().map(|stored| stored.answer().ok_or_else(|| unreadable(key))).collect()
}

/// An answer to an allowed call, as it is written down.
#[derive(Serialize, Deserialize)]
struct Stored {
    granted: i64,
    resource: String,
    used: i64,
    held: i64,
    quota_limit: Option<i64>,
    remaining: Option<i64>,
    /// In microseconds since 1970-01-01; none of a period without an end.
    period: Option<(i64, i64)>,
    source: String,
    enforcement: String,
    mode: String,
    reservation_id: Option<String>,
}

impl Stored {
    fn of(answer: &Answer) -> Stored {
        let Window { start, end } = answer.window;
        Stored {
            granted: answer.verdict.granted,
            resource: answer.resource.to_string(),
            used: answer.used,
            held: answer.held,
            quota_limit: answer.limit,
            remaining: answer.verdict.remaining,
            period: (end != period::INFINITY).then_some((start, end)),
            source: answer.source.as_str().into(),
            enforcement: answer.enforcement.as_str().into(),
            mode: answer.mode.clone().into_owned(),
            reservation_id: answer.reservation_id.map(|id| id.to_string()),
        }
    }

    fn answer(self) -> Option<Answer> {
        let Stored { granted, remaining, .. } = self;
        let reservation_id = match self.reservation_id {
            Some(text) => Some(Uuid::from_bytes(uuid::Uuid::parse_str(&text).ok()?.into_bytes())),
            None => None,
        };
        Some(Answer {
            verdict: Verdict { allowed: true, granted, reason: Reason::Replay, remaining },
            resource: self.resource.into(),
            used: self.used,
            held: self.held,
            limit: self.quota_limit,
            window: self.period.map_or(Window::ALWAYS, |(start, end)| Window { start, end }),
            retry_after: None,
            source: Source::parse(&self.source)?,
            enforcement: Enforcement::parse(&self.enforcement)?,
            mode: Cow::Owned(self.mode),
            reservation_id,
        })
    }
}

/// Deletes at most `batch` answers that are kept no longer. See [`sweep`](super::sweep).
pub fn forget_expired(batch: i64) -> Result<u64> {
    static TENANTS: CachedPlan = CachedPlan::new(
        c"SELECT DISTINCT old.tenant_id FROM ( \
              SELECT k.tenant_id FROM tenant_rls.idempotency_keys AS k \
              JOIN tenant_rls.tenants AS t ON t.tenant_id OPERATOR(pg_catalog.=) k.tenant_id \
              WHERE k.expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() \
              AND t.status OPERATOR(pg_catalog.=) ANY (ARRAY['active', 'suspended']::pg_catalog.text[]) \
              ORDER BY k.expires_at LIMIT $1) AS old LIMIT $2",
        &[pg_sys::INT8OID, pg_sys::INT8OID],
    );
    static DELETE: CachedPlan = CachedPlan::new(
        c"WITH old AS MATERIALIZED ( \
              SELECT k.tenant_id, k.key FROM tenant_rls.idempotency_keys AS k \
              WHERE k.expires_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp() \
              AND k.tenant_id OPERATOR(pg_catalog.=) ANY ($1) \
              ORDER BY k.expires_at LIMIT $2 FOR UPDATE SKIP LOCKED) \
          DELETE FROM tenant_rls.idempotency_keys AS k USING old \
          WHERE k.tenant_id OPERATOR(pg_catalog.=) old.tenant_id AND k.key OPERATOR(pg_catalog.=) old.key",
        &[pg_sys::UUIDARRAYOID, pg_sys::INT8OID],
    );
    let tenants = admitted(&TENANTS, batch)?;
    as_owner(|| DELETE.run_latest(&[tenants.into_datum(), batch.into_datum()], |_| ()))
}
