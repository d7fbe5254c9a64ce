//! Every error and warning a user can meet: its SQLSTATE, message, facts and advice.
//!
//! The wording follows PostgreSQL's message style guide: the primary message in lower case without a full
//! stop, facts as sentences in DETAIL, advice as sentences in HINT. This is the only place in Rust that raises errors and
//! warnings. NOTICEs, which say what a function has done, and lines of the server's log are written where that is done.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::{PgLogLevel, PgSqlErrorCode};

use crate::tenant::TenantId;

/// What went wrong.
#[derive(Clone, Debug)]
pub enum Error {
    /// A protected row, or a function that needs one, was reached without a tenant.
    NoTenant,
    /// The last attempt to set a tenant failed, and nothing was set since.
    FailedAttempt,
    /// A tenant was asked for where code of a table's owner runs in the session of others.
    Restricted,
    /// The tenant changed while a statement that had used the old one was open.
    ChangedInStatement,
    /// Another tenant was asked for while a statement that has used the old one is open.
    SwitchInStatement,
    /// Another tenant was asked for while a cursor of the session holds rows of the old one.
    SwitchWithCursor,
    /// Another tenant was asked for while a temporary table may hold rows of the old one.
    SwitchWithTable { table: String },
    /// The text of the setting is not a uuid.
    NotAUuid(String),
    /// The setting came from where no session could be checked: a configuration file or the command line.
    NotFromThere,
    /// The setting came outside a transaction, where nothing can be looked up.
    NoTransaction,
    /// An argument was NULL where NULL could be read as everything.
    Null(&'static str),
    /// An argument has a value that its type allows and its meaning does not.
    Invalid { what: &'static str, value: String, hint: String },
    /// A text is longer than what it is kept in.
    TooLong { what: &'static str, bytes: usize, most: usize, hint: &'static str },
    /// A time that does not lie ahead.
    NotAhead { what: &'static str, value: String, hint: &'static str },
    /// No such tenant; said only to a role that may act for every tenant.
    UnknownTenant(TenantId),
    /// No tenant has this key; said only to a role that may act for every tenant.
    UnknownKey(i64),
    /// The role may not act for the tenant, whether the tenant exists or not.
    NotGranted { role: String },
    /// The role may act for the tenant only with a signed ticket.
    TicketRequired { role: String },
    /// A ticket that does not hold. Why is for the server's log alone: the answer must not help to make a better one.
    InvalidTicket,
    /// The ticket that the session acts with has expired, or its key is gone.
    TicketEnded,
    /// A ticket that is used once was shown where its use cannot be written down.
    TicketNeedsWrite,
    /// The bytes cannot be a key of that algorithm. Says why without showing them.
    BadKey { algorithm: &'static str, why: &'static str },
    /// The tenant is suspended.
    Suspended { tenant: TenantId, reason: Option<String> },
    /// The tenant is deleted.
    Deleted(TenantId),
    /// The tenant was purged and created again since the session set it.
    Reborn(TenantId),
    /// The tenant is fenced, and the statement writes.
    Fenced(TenantId),
    /// The tenant has no bigint key, and a table needs one.
    NoKey(TenantId),
    /// Writers of the tenant were still open when the time was up.
    StillWriting { tenant: TenantId, waited: String, hint: &'static str },
    /// A procedure that commits was called in a transaction block.
    InTransactionBlock { what: &'static str },
    /// Something keeps the tenant from being erased as a whole.
    CannotPurge { tenant: TenantId, why: String, hint: &'static str },
    /// The tenant, plan, resource … exists already.
    Exists { what: &'static str, name: String, hint: &'static str },
    /// The plan, resource … does not exist.
    Unknown { what: &'static str, name: String, known: Vec<String>, hint: &'static str },
    /// The tenant has another status than the call needs.
    WrongStatus { tenant: TenantId, status: &'static str, hint: &'static str },
    /// Something other than a tenant is not in the state that the call needs.
    WrongState { what: String, detail: String, hint: &'static str },
    /// No deployment is for the tenant.
    NotServed(TenantId),
    /// The plan says nothing about the resource.
    NoLimit { plan: String, resource: String },
    /// The role is not what the call needs.
    NotPermitted { what: String, hint: &'static str },
    /// The server would refuse the command, after a wait for a lock that would stop others.
    RefusedBeforeLock { what: String },
    /// The relation is of a kind that cannot be protected.
    WrongKind { relation: String, why: String, hint: &'static str },
    /// The call is about a whole tree, and names a part of it.
    NotTheRoot { relation: String },
    /// The table has no such column.
    NoColumn { relation: String, column: String },
    /// The tenant column has a type that tenants are not named with.
    WrongType { relation: String, column: String, type_name: String },
    /// The tenant column has rows without a tenant.
    Nulls { relation: String, column: String, count: i64 },
    /// The table is not protected, and the call needs it to be.
    NotProtected { relation: String },
    /// The plan is used up. The detail is a JSON object.
    Exhausted { resource: String, detail: String, gauge: bool },
    /// More was given back than was taken.
    BelowZero { resource: String, used: i64, amount: i64 },
    /// A counter cannot be given back.
    NotAGauge { resource: String },
    /// The gauge follows the rows of a table, and was changed by hand.
    Attached { resource: String },
    /// The role became subject to policies while a statement without them was about to start.
    RightsChanged { role: String },
    /// The audit has findings of severity error; the first of them.
    AuditFailed { count: u64, first: Vec<String> },
    /// The DDL guard refuses a command; with `refused` false, it only says that it would have.
    Guarded { to: String, why: String, hint: String, refused: bool },
    /// The DDL guard lets something pass that may not do what it seems to.
    Advice { what: String, why: String, hint: String },
    /// What was asked for is not possible in this mode or version.
    Unsupported { what: String, detail: String, hint: &'static str },
    /// A tenant was set for a transaction that ends with the call.
    NoEffect,
    /// A tenant was set by a role that policies do not hold for.
    Bypasses { role: String },
    /// The extension is not installed in this database, or its tables are gone.
    NotInstalled,
    /// What cannot happen.
    Internal(String),
}

/// The parts of an error report.
pub struct Text {
    /// The SQLSTATE.
    pub code: PgSqlErrorCode,
    /// The primary message.
    pub message: String,
    /// Facts.
    pub detail: Option<String>,
    /// Advice.
    pub hint: Option<String>,
}

impl Error {
    /// The SQLSTATE, message, detail and hint.
    pub fn text(&self) -> Text {
        use PgSqlErrorCode::*;
        let (code, message, detail, hint): (_, String, String, String) = match self {
            Error::NoTenant => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "no tenant is set".into(),
                "A protected table can be used only by a session that acts for a tenant.".into(),
                "Call set_tenant(tenant) first, in the same transaction.".into(),
            ),
            Error::FailedAttempt => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "no tenant is set".into(),
                "The last attempt to set a tenant failed, which leaves the session without one.".into(),
                "Call set_tenant(tenant) with a tenant that the role may act for.".into(),
            ),
            Error::Restricted => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "no tenant holds within a security-restricted operation".into(),
                "Code of a table's owner runs in it, whoever has begun it: by REFRESH MATERIALIZED VIEW, ANALYZE or CREATE INDEX, for instance.".into(),
                "A materialized view over protected tables belongs to a role with BYPASSRLS, and is no place for rows of tenants.".into(),
            ),
            Error::ChangedInStatement => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the tenant changed within a statement".into(),
                "One statement sees the rows of one tenant.".into(),
                "Set the tenant before the statement, or close the cursor first.".into(),
            ),
            Error::SwitchInStatement => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "cannot change the tenant while a statement that uses protected tables is open".into(),
                "One statement sees the rows of one tenant.".into(),
                "Finish the statement, or close the cursor, before setting another tenant.".into(),
            ),
            Error::SwitchWithCursor => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "cannot act for another tenant while a cursor holds rows of the last one".into(),
                "A cursor WITH HOLD, or one that has called a function, has read protected tables.".into(),
                "Close it, or call CLOSE ALL or DISCARD ALL, then set the tenant again.".into(),
            ),
            Error::SwitchWithTable { table } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "cannot act for another tenant while the session has temporary tables".into(),
                format!("Temporary table \"{table}\" may hold rows of the tenant that the session last acted for."),
                "Drop or truncate it, or call DISCARD TEMP or DISCARD ALL, then set the tenant again.".into(),
            ),
            Error::NotAUuid(value) => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "invalid value for parameter \"app.current_tenant\"".into(),
                format!("\"{}\" is not a uuid.", shorten(value)),
                "Use the uuid of a tenant, or set_tenant_key for a bigint key.".into(),
            ),
            Error::NotFromThere => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                "parameter \"app.current_tenant\" cannot be set in a configuration file or on the command line".into(),
                String::new(),
                "Call set_tenant(tenant) in the session.".into(),
            ),
            Error::NoTransaction => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "parameter \"app.current_tenant\" cannot be set outside a transaction".into(),
                String::new(),
                String::new(),
            ),
            Error::Null(what) => (
                ERRCODE_NULL_VALUE_NOT_ALLOWED,
                format!("{what} must not be null"),
                "NULL is never read as everything.".into(),
                String::new(),
            ),
            Error::Invalid { what, value, hint } => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid {what}: \"{}\"", shorten(value)),
                String::new(),
                hint.clone(),
            ),
            Error::TooLong { what, bytes, most, hint } => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("{what} is too long"),
                format!("It has {bytes} bytes; {most} are the most."),
                (*hint).into(),
            ),
            Error::NotAhead { what, value, hint } => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid {what}: \"{}\"", shorten(value)),
                "It is over when it begins.".into(),
                (*hint).into(),
            ),
            Error::UnknownTenant(tenant) => (
                ERRCODE_UNDEFINED_OBJECT,
                format!("tenant \"{tenant}\" does not exist"),
                String::new(),
                "Register it with tenant_create(tenant).".into(),
            ),
            Error::UnknownKey(key) => (
                ERRCODE_UNDEFINED_OBJECT,
                format!("no tenant has the key {key}"),
                String::new(),
                "Register it with tenant_create(tenant_key => …).".into(),
            ),
            Error::NotGranted { role } => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("role \"{role}\" may not act for this tenant"),
                String::new(),
                "Grant it with tenant_grant(role, tenant) or tenant_grant(role).".into(),
            ),
            Error::TicketRequired { role } => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("role \"{role}\" needs a ticket to act for this tenant"),
                "The role was granted the tenant with ticket_required.".into(),
                "Call set_tenant_ticket(ticket).".into(),
            ),
            Error::InvalidTicket => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "invalid ticket".into(),
                String::new(),
                "Get a new ticket from its issuer. The log of the server says why this one was refused.".into(),
            ),
            Error::TicketEnded => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                "the ticket of this session no longer holds".into(),
                "It has expired, or the key that signed it was changed or dropped.".into(),
                "Call set_tenant_ticket with a new ticket.".into(),
            ),
            Error::TicketNeedsWrite => (
                ERRCODE_READ_ONLY_SQL_TRANSACTION,
                "a ticket with a jti cannot be used in a read-only transaction".into(),
                "That it was used once has to be written down.".into(),
                "Use it on the primary in a transaction that may write, or a ticket without jti.".into(),
            ),
            Error::BadKey { algorithm, why } => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("invalid key for algorithm {algorithm}"),
                (*why).into(),
                String::new(),
            ),
            Error::Suspended { tenant, reason } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the tenant is suspended".into(),
                match reason {
                    Some(reason) => format!("Tenant {tenant} is suspended: {reason}."),
                    None => format!("Tenant {tenant} is suspended."),
                },
                "An operator can resume it with tenant_resume(tenant).".into(),
            ),
            Error::Deleted(tenant) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the tenant is deleted".into(),
                format!("Tenant {tenant} is deleted."),
                String::new(),
            ),
            Error::Reborn(tenant) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the tenant of this session was removed and created again".into(),
                format!("Tenant {tenant} is another tenant now."),
                "Call set_tenant(tenant) again.".into(),
            ),
            Error::Fenced(tenant) => (
                ERRCODE_READ_ONLY_SQL_TRANSACTION,
                "the tenant is fenced".into(),
                format!("Tenant {tenant} can be read, not written, until the fence is lifted."),
                "Try again later; an operator lifts the fence with tenant_unfence(tenant).".into(),
            ),
            Error::NoKey(tenant) => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "the tenant has no key".into(),
                format!("Tenant {tenant} was created without a tenant_key, which bigint and integer columns need."),
                "Set tenant_rls.tenants.tenant_key of this tenant.".into(),
            ),
            Error::StillWriting { tenant, waited, hint } => (
                ERRCODE_OBJECT_IN_USE,
                "the tenant still has writers".into(),
                format!("Transactions that write for tenant {tenant} were still open after {waited}."),
                (*hint).into(),
            ),
            Error::InTransactionBlock { what } => (
                ERRCODE_ACTIVE_SQL_TRANSACTION,
                format!("{what} cannot run inside a transaction block"),
                "It commits as it goes.".into(),
                "Call it on its own, outside BEGIN and COMMIT, functions and strings of several statements.".into(),
            ),
            Error::CannotPurge { tenant, why, hint } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("tenant \"{tenant}\" cannot be purged"),
                why.clone(),
                (*hint).into(),
            ),
            Error::Exists { what, name, hint } => (
                ERRCODE_DUPLICATE_OBJECT,
                format!("{what} \"{name}\" already exists"),
                String::new(),
                (*hint).into(),
            ),
            Error::Unknown { what, name, known, hint } => (
                ERRCODE_UNDEFINED_OBJECT,
                format!("{what} \"{}\" does not exist", shorten(name)),
                if known.is_empty() { String::new() } else { format!("Known: {}.", known.join(", ")) },
                (*hint).into(),
            ),
            Error::WrongStatus { tenant, status, hint } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the tenant is {status}"),
                format!("Tenant {tenant} is {status}."),
                (*hint).into(),
            ),
            Error::WrongState { what, detail, hint } => {
                (ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, what.clone(), detail.clone(), (*hint).into())
            }
            Error::NotServed(tenant) => (
                ERRCODE_UNDEFINED_OBJECT,
                "no deployment serves the tenant".into(),
                format!("Tenant {tenant} was not given one, and none is for its plan or for everybody else."),
                "Define one with tenant_deployment_define, or choose one with tenant_route_set.".into(),
            ),
            Error::NoLimit { plan, resource } => (
                ERRCODE_UNDEFINED_OBJECT,
                format!("plan \"{plan}\" has no limit for resource \"{resource}\""),
                "A limit that is missing is never read as unlimited.".into(),
                "Set one with tenant_plan_limit_set(plan, resource, quota_limit).".into(),
            ),
            Error::NotPermitted { what, hint } => {
                (ERRCODE_INSUFFICIENT_PRIVILEGE, what.clone(), String::new(), (*hint).into())
            }
            Error::RefusedBeforeLock { what } => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                what.clone(),
                "The command was refused before it waits for a lock that would stop all tenants.".into(),
                String::new(),
            ),
            Error::AuditFailed { count, first } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("the audit of this database has {count} findings of severity error"),
                first.join("\n"),
                "SELECT * FROM tenant_audit() lists all, each with SQL that fixes it.".into(),
            ),
            Error::RightsChanged { role } => (
                ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("the rights of role \"{role}\" changed while the statement was about to start"),
                "The policies of a protected table hold for the role now.".into(),
                "Run the statement again.".into(),
            ),
            Error::WrongKind { relation, why, hint } => (
                ERRCODE_WRONG_OBJECT_TYPE,
                format!("cannot protect \"{relation}\""),
                format!("\"{relation}\" {why}."),
                (*hint).into(),
            ),
            Error::NotTheRoot { relation } => (
                ERRCODE_WRONG_OBJECT_TYPE,
                format!("table \"{relation}\" is a partition or child of a protected table"),
                String::new(),
                "Name the root of the tree.".into(),
            ),
            Error::NoColumn { relation, column } => (
                ERRCODE_UNDEFINED_COLUMN,
                format!("column \"{column}\" of table \"{relation}\" does not exist"),
                String::new(),
                "Add the column, or name the tenant column in the second argument.".into(),
            ),
            Error::WrongType { relation, column, type_name } => (
                ERRCODE_DATATYPE_MISMATCH,
                format!("column \"{column}\" of table \"{relation}\" cannot hold a tenant"),
                format!("The column is of type {type_name}; a tenant column is uuid, bigint or integer."),
                String::new(),
            ),
            Error::Nulls { relation, column, count } => (
                ERRCODE_NOT_NULL_VIOLATION,
                format!("column \"{column}\" of table \"{relation}\" contains null values"),
                format!("Rows without a tenant: {count}."),
                "Give these rows a tenant, or delete them, then protect the table.".into(),
            ),
            Error::NotProtected { relation } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("table \"{relation}\" is not protected"),
                String::new(),
                "Call tenant_protect on it first; for a partition or child, on its root.".into(),
            ),
            Error::Exhausted { resource, detail, gauge } => (
                ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
                format!("quota of \"{resource}\" is used up"),
                detail.clone(),
                if *gauge {
                    "Release units, or delete rows that count, or move the tenant to a larger plan.".into()
                } else {
                    "Wait until the period resets, or move the tenant to a larger plan.".into()
                },
            ),
            Error::BelowZero { resource, used, amount } => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("cannot release more of \"{resource}\" than is used"),
                format!("{amount} units were given back, {used} are used."),
                "A release without a consume is a mistake of the application, or the gauge needs tenant_quota_reconcile.".into(),
            ),
            Error::NotAGauge { resource } => (
                ERRCODE_INVALID_PARAMETER_VALUE,
                format!("resource \"{resource}\" is not a gauge"),
                "Units of a counter are used up; they come back with the next period or a rollback.".into(),
                String::new(),
            ),
            Error::Attached { resource } if resource == "cache_bytes" => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "gauge \"cache_bytes\" follows the tenant's cache".into(),
                "It changes with the entries, and with nothing else.".into(),
                "Call tenant_cache_delete or tenant_cache_invalidate.".into(),
            ),
            Error::Attached { resource } => (
                ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!("gauge \"{resource}\" follows the rows of a table"),
                "It changes with the rows, and with nothing else.".into(),
                "Insert or delete rows, or call tenant_quota_detach first.".into(),
            ),
            Error::Guarded { to, why, hint, refused: true } => {
                (ERRCODE_INSUFFICIENT_PRIVILEGE, format!("cannot {to}"), why.clone(), hint.clone())
            }
            Error::Guarded { to, why, hint, refused: false } => (
                ERRCODE_WARNING,
                format!("tenant_rls.ddl_guard = on would refuse to {to}"),
                why.clone(),
                hint.clone(),
            ),
            Error::Advice { what, why, hint } => (ERRCODE_WARNING, what.clone(), why.clone(), hint.clone()),
            Error::Unsupported { what, detail, hint } => {
                (ERRCODE_FEATURE_NOT_SUPPORTED, what.clone(), detail.clone(), (*hint).into())
            }
            Error::NoEffect => (
                ERRCODE_WARNING,
                "set_tenant() without a transaction block has no effect: it holds until the end of the transaction"
                    .into(),
                String::new(),
                String::new(),
            ),
            Error::Bypasses { role } => (
                ERRCODE_WARNING,
                format!("policies do not hold for role \"{role}\", which is superuser or has BYPASSRLS"),
                String::new(),
                String::new(),
            ),
            Error::Internal(what) => (ERRCODE_INTERNAL_ERROR, what.clone(), String::new(), String::new()),
            Error::NotInstalled => (
                ERRCODE_UNDEFINED_OBJECT,
                "extension \"tenant_rls\" is not installed in this database".into(),
                String::new(),
                "Run CREATE EXTENSION tenant_rls.".into(),
            ),
        };
        let some = |text: String| if text.is_empty() { None } else { Some(text) };
        Text { code, message, detail: some(detail), hint: some(hint) }
    }

    /// Raises the error in the calling statement.
    pub fn raise(self) -> ! {
        ErrorReport::from(self).report(PgLogLevel::ERROR);
        unreachable!("an error report of level ERROR does not return")
    }

    /// Reports it as a WARNING, and goes on.
    pub fn warn(self) {
        ErrorReport::from(self).report(PgLogLevel::WARNING);
    }
}

impl From<Error> for ErrorReport {
    fn from(error: Error) -> ErrorReport {
        let text = error.text();
        let mut report = ErrorReport::new(text.code, text.message, "tenant_rls");
        if let Some(detail) = text.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = text.hint {
            report = report.set_hint(hint);
        }
        report
    }
}

/// The result of a function that can raise.
pub type Result<T> = std::result::Result<T, Error>;

/// The value, or its error raised in the calling statement.
pub fn or_raise<T>(result: Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => error.raise(),
    }
}

/// Client text as it goes into a message: a megabyte of it helps nobody.
fn shorten(text: &str) -> String {
    const MOST: usize = 64;
    if text.chars().count() <= MOST {
        return text.into();
    }
    text.chars().take(MOST).chain("…".chars()).collect()
}
