//! Every setting of the extension but `app.current_tenant`, which has its own file.
//!
//! All are superuser-only: a role of the application can weaken none.

use std::ffi::CString;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting, PostgresGucEnum};
use pgrx::pg_sys;

/// What a statement on a protected table gets when no tenant is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum MissingTenant {
    /// An error.
    #[name = c"error"]
    Error,
    /// No rows.
    #[name = c"empty"]
    Empty,
}

// Silence is what users lose days to: a job that finds no rows looks like a job with nothing to do.
static MISSING_TENANT: GucSetting<MissingTenant> = GucSetting::<MissingTenant>::new(MissingTenant::Error);

// Rows that a temporary table or a held cursor carries to the next tenant are what poolers are feared for.
static GUARD_SWITCH: GucSetting<bool> = GucSetting::<bool>::new(true);

/// Whether a change of the tenant is refused while the session holds rows of another.
pub fn guard_switch() -> bool {
    GUARD_SWITCH.get()
}

// Two lines for each transaction that sets a tenant: for those who ask for it.
static LOG_SWITCH: GucSetting<bool> = GucSetting::<bool>::new(false);

/// Whether each change of the tenant is written to the server log.
pub fn log_switch() -> bool {
    LOG_SWITCH.get()
}

/// What a statement on a protected table gets when no tenant is set.
pub fn missing_tenant() -> MissingTenant {
    MISSING_TENANT.get()
}

// No audience of its own: a ticket for a named one is not for this database.
static TICKET_AUDIENCE: GucSetting<Option<CString>> = GucSetting::<Option<CString>>::new(None);

/// The audience that tickets must name, if this database has one.
pub fn ticket_audience() -> Option<String> {
    let audience = TICKET_AUDIENCE.get()?.to_string_lossy().into_owned();
    (!audience.is_empty()).then_some(audience)
}

/// Defines the settings and reserves their prefix.
pub fn init() {
    GucRegistry::define_enum_guc(
        c"tenant_rls.missing_tenant",
        c"What a statement on a protected table gets when no tenant is set.",
        c"error raises 55000; empty answers without rows. An attempt that failed raises in both.",
        &MISSING_TENANT,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"tenant_rls.guard_switch",
        c"Refuses another tenant while a cursor or temporary table of the session may hold rows of the last.",
        c"Cursors that are open in the transaction are refused in any case.",
        &GUARD_SWITCH,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_bool_guc(
        c"tenant_rls.log_switch",
        c"Writes a line to the server log for each change of the tenant.",
        c"With role, process, the tenant before and the tenant after.",
        &LOG_SWITCH,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_string_guc(
        c"tenant_rls.ticket_audience",
        c"The audience that tickets must name in their claim aud.",
        c"Empty: tickets that name one are refused.",
        &TICKET_AUDIENCE,
        GucContext::Suset,
        GucFlags::default(),
    );
    // SAFETY: the name is a string with a terminating zero; the call copies it.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"tenant_rls".as_ptr()) };
}
