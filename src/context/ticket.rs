//! Signed tickets: the tenant that somebody else vouches for.
//!
//! `set_tenant_ticket` checks a ticket against `tenant_rls.signing_keys` and sets its tenant. What the session keeps
//! of it, [`Ticket`], lives in the setting beside the tenant and goes the ways of the setting: a rollback brings the
//! one of before back. [`super::held`] asks in every statement whether it still holds: a comparison with the clock,
//! and a look at the keys when the registry has changed.
//!
//! Parallel workers get settings as text. A second setting, which only this file can fill, carries the ticket to
//! them; nothing else reads it.

pub mod token;

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};

use pgrx::datum::TimestampWithTimeZone;
use pgrx::pg_sys;
use pgrx::prelude::*;

use super::setting;
use crate::backend::Backend;
use crate::clock;
use crate::error::{Error, Result, or_raise};
use crate::gucs;
use crate::plan::{CachedPlan, as_owner};
use crate::registry::{self, Ways, keys::SigningKey};
use crate::tenant::TenantId;
pub use token::Ticket;
use token::{Algorithm, Carried, Claims, Key, LONGEST_NAME, Refusal, Token};

/// Microseconds from 1970 to 2000, where the server's clock begins.
const EPOCH: i64 = 946_684_800_000_000;

/// Whether what holds until then holds now.
#[inline]
pub fn in_time(until: Option<i64>) -> Result<()> {
    match until {
        Some(until) if clock::now() >= until => Err(Error::TicketEnded),
        _ => Ok(()),
    }
}

/// Until when the ticket holds, as its key stands now: a key that was changed, dropped or has run out takes its
/// tickets along.
pub fn until(ticket: &Ticket) -> Result<i64> {
    registry::keys::signing_keys()?
        .into_iter()
        .filter(in_force)
        .find_map(|row| {
            let (kid, until) = (row.kid.clone(), row.not_after);
            let key = key_of(row)?;
            (key.fingerprint(&kid) == ticket.key).then_some(until.min(ticket.expires_at))
        })
        .ok_or(Error::TicketEnded)
}

fn in_force(key: &SigningKey) -> bool {
    (key.not_before..key.not_after).contains(&clock::now())
}

fn key_of(row: SigningKey) -> Option<Key> {
    Key::new(Algorithm::parse(&row.algorithm)?, row.bytes).ok()
}

enum Failure {
    Refused(Refusal),
    Other(Error),
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        Failure::Refused(refusal)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Other(error)
    }
}

/// Sets the tenant that a ticket vouches for, and answers with it.
// The bytes of a text: what is no ticket need not be valid in any encoding.
#[pg_extern(sql = false)]
fn set_tenant_ticket(
    ticket: Option<&[u8]>,
    is_local: Option<bool>,
    fcinfo: pg_sys::FunctionCallInfo,
) -> pgrx::Uuid {
    // Until it has succeeded, the attempt counts as failed.
    setting::attempt_failed();
    or_raise(is_local.map(drop).ok_or(Error::Null("is_local")));
    let (tenant, ticket) = or_raise(accept(ticket));
    super::set(tenant, Some(ticket), is_local, fcinfo);
    pgrx::Uuid::from_bytes(*tenant.as_bytes())
}

fn accept(text: Option<&[u8]>) -> Result<(TenantId, Ticket)> {
    let text = text.ok_or(Error::Null("the ticket"))?;
    registry::accept_invalidations();
    check(text).map_err(|failure| match failure {
        Failure::Other(error) => error,
        Failure::Refused(refusal) => {
            // To the log alone: client_min_messages does not reach this level.
            ereport!(
                PgLogLevel::LOG_SERVER_ONLY,
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("ticket refused: {}", refusal.as_str())
            );
            Error::InvalidTicket
        }
    })
}

fn check(text: &[u8]) -> std::result::Result<(TenantId, Ticket), Failure> {
    let token = Token::parse(text)?;
    let row = registry::keys::signing_key(token.kid())?.filter(in_force).ok_or(Refusal::UnknownKey)?;
    let until = row.not_after;
    let key = key_of(row).ok_or(Refusal::UnknownKey)?;
    let claims = token.verify(&key)?;
    claims.check(clock::now() + EPOCH, gucs::ticket_audience().as_deref())?;
    let expires_at = claims.expires_at - EPOCH;
    // What is refused for another reason is not used up by it.
    setting::admit(claims.tenant, Ways::Ticket)?;
    use_up(&claims, token.kid(), expires_at)?;
    Ok((claims.tenant, Ticket { expires_at: expires_at.min(until), key: key.fingerprint(token.kid()) }))
}

/// Uses a ticket with a `jti` up, also if the transaction is rolled back: whoever has seen it could show it again.
fn use_up(claims: &Claims, kid: &str, expires_at: i64) -> std::result::Result<(), Failure> {
    // An hour late, in case the clock is set back. Not for long, and waiting for nobody.
    static CLEAN_UP: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.used_tickets AS u WHERE u.digest OPERATOR(pg_catalog.=) ANY (ARRAY( \
          SELECT o.digest FROM tenant_rls.used_tickets AS o \
          WHERE o.expires_at OPERATOR(pg_catalog.<) (pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) '1 hour'::interval) \
          ORDER BY o.expires_at LIMIT 10 FOR UPDATE SKIP LOCKED))",
        &[],
    );
    let Some(digest) = claims.use_digest(kid) else { return Ok(()) };
    // SAFETY: reads variables of the backend.
    let (read_only, one_snapshot) = unsafe {
        (
            pg_sys::XactReadOnly || pg_sys::RecoveryInProgress(),
            pg_sys::XactIsoLevel >= pg_sys::XACT_REPEATABLE_READ as c_int,
        )
    };
    if read_only {
        return Err(Error::TicketNeedsWrite.into());
    }
    // Under one snapshot, rows that others have cleaned up meanwhile would raise.
    if !one_snapshot {
        as_owner(|| CLEAN_UP.execute(&[]))?;
    }
    if registry::keys::use_up(&digest, expires_at)? { Ok(()) } else { Err(Refusal::Replayed.into()) }
}

#[pg_extern(sql = false)]
fn tenant_signing_key_set(
    kid: Option<&str>,
    algorithm: Option<&str>,
    key: Option<&[u8]>,
    not_before: Option<TimestampWithTimeZone>,
    not_after: Option<TimestampWithTimeZone>,
) {
    static UPSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.signing_keys (kid, algorithm, key, not_before, not_after) VALUES ($1, $2, $3, $4, $5) \
          ON CONFLICT (kid) DO UPDATE SET algorithm = EXCLUDED.algorithm, key = EXCLUDED.key, \
          not_before = EXCLUDED.not_before, not_after = EXCLUDED.not_after",
        &[pg_sys::TEXTOID, pg_sys::TEXTOID, pg_sys::BYTEAOID, pg_sys::TIMESTAMPTZOID, pg_sys::TIMESTAMPTZOID],
    );
    let set = || {
        let kid = kid.ok_or(Error::Null("the kid"))?;
        let name = algorithm.ok_or(Error::Null("the algorithm"))?;
        let bytes = key.ok_or(Error::Null("the key"))?;
        if kid.is_empty() || kid.len() > LONGEST_NAME {
            let hint = format!("Use a name of 1 to {LONGEST_NAME} bytes.");
            return Err(Error::Invalid { what: "kid", value: kid.into(), hint });
        }
        let algorithm = Algorithm::parse(name).ok_or_else(|| Error::Invalid {
            what: "algorithm",
            value: name.into(),
            hint: "Use HS256 or EdDSA.".into(),
        })?;
        Key::new(algorithm, bytes.to_vec())
            .map_err(|why| Error::BadKey { algorithm: algorithm.as_str(), why })?;
        as_owner(|| {
            UPSERT.execute(&[
                kid.into_datum(),
                name.into_datum(),
                bytes.into_datum(),
                not_before.into_datum(),
                not_after.into_datum(),
            ])
        })
    };
    or_raise(set());
}

#[pg_extern(sql = false)]
fn tenant_signing_key_drop(kid: Option<&str>) {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.signing_keys AS k WHERE k.kid OPERATOR(pg_catalog.=) $1",
        &[pg_sys::TEXTOID],
    );
    let drop = || {
        let kid = kid.ok_or(Error::Null("the kid"))?;
        match as_owner(|| DELETE.execute(&[kid.into_datum()]))? {
            0 => Err(Error::Unknown { what: "signing key", name: kid.into(), known: Vec::new(), hint: "" }),
            _ => Ok(()),
        }
    };
    or_raise(drop());
}

/// The name of the setting that carries a ticket to parallel workers.
const CARRIER: &CStr = c"tenant_rls.ticket";

/// The storage that the server assigns the carrier's text to.
struct Text(Cell<*mut c_char>);
// SAFETY: only the server writes it, in the one thread of the backend.
unsafe impl Sync for Text {}
static CARRIED: Text = Text(Cell::new(std::ptr::null_mut()));

static CARRYING: Backend<Cell<bool>> = Backend::new(Cell::new(false));

/// Defines the carrier.
pub fn init() {
    let flags = pg_sys::GUC_NO_SHOW_ALL
        | pg_sys::GUC_NOT_IN_SAMPLE
        | pg_sys::GUC_DISALLOW_IN_FILE
        | pg_sys::GUC_SUPERUSER_ONLY;
    // SAFETY: the strings are static, the storage lives as long as the library, which is never unloaded, and the
    // hook has the server's signature.
    unsafe {
        pg_sys::DefineCustomStringVariable(
            CARRIER.as_ptr(),
            c"Carries the ticket of the session to parallel workers.".as_ptr(),
            c"Nobody can set it.".as_ptr(),
            CARRIED.0.as_ptr(),
            c"".as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            flags as c_int,
            Some(check_carrier),
            None,
            None,
        );
    }
}

/// Lays a ticket ready for parallel workers, for as long as the tenant that is about to be set with it.
pub fn carry(tenant: TenantId, ticket: Ticket, is_local: bool) {
    let Ok(text) = CString::new(Carried(tenant, ticket).to_string()) else { return };
    let action =
        if is_local { pg_sys::GucAction::GUC_ACTION_LOCAL } else { pg_sys::GucAction::GUC_ACTION_SET };
    CARRYING.set(true);
    // SAFETY: both strings outlive the call, which copies them.
    unsafe {
        pg_sys::set_config_option(
            CARRIER.as_ptr(),
            text.as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            action,
            true,
            0,
            false,
        );
    }
    CARRYING.set(false);
}

/// In a parallel worker: the ticket that its leader acts for this tenant with, if that holds. One that was left
/// behind by an earlier tenant vouches for nothing.
pub fn from_leader(tenant: TenantId) -> Option<Ticket> {
    let text = CARRIED.0.get();
    if text.is_null() {
        return None;
    }
    // SAFETY: the server keeps a C string there, which is read before anything can change it.
    let Carried(of, ticket) = Carried::parse(unsafe { CStr::from_ptr(text) }.to_str().ok()?)?;
    (of == tenant && clock::now() < ticket.expires_at).then_some(ticket)
}

// Raises nothing, so it needs no guard.
unsafe extern "C-unwind" fn check_carrier(
    new: *mut *mut c_char,
    _extra: *mut *mut c_void,
    _source: pg_sys::GucSource::Type,
) -> bool {
    // SAFETY: the server hands a pointer to its copy of the new text, which is not null as the boot value is not;
    // the rest reads a variable of the backend.
    let (empty, in_worker) = unsafe { (**new == 0, pg_sys::InitializingParallelWorker) };
    empty || in_worker || CARRYING.take()
}
