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

/// What becomes of a command that would open a protected table, or of a new table that is not protected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PostgresGucEnum)]
pub enum Watch {
    /// Nothing is said.
    #[name = c"off"]
    Off,
    /// A WARNING.
    #[name = c"warn"]
    Warn,
    /// It is refused, or put right.
    #[name = c"on"]
    On,
}

// Silence is what users lose days to: a job that finds no rows looks like a job with nothing to do.
static MISSING_TENANT: GucSetting<MissingTenant> = GucSetting::<MissingTenant>::new(MissingTenant::Error);

// Rows that a temporary table or a held cursor carries to the next tenant are what poolers are feared for.
static GUARD_SWITCH: GucSetting<bool> = GucSetting::<bool>::new(true);

/// Whether a change of the tenant is refused while the session holds rows of another.
pub fn guard_switch() -> bool {
    GUARD_SWITCH.get()
}

// A guard that has to be switched on is found missing on the day after. Whoever means it says so, once, and it is
// written down.
static DDL_GUARD: GucSetting<Watch> = GucSetting::<Watch>::new(Watch::On);

/// What becomes of a command that would open a protected table.
pub fn ddl_guard() -> Watch {
    DDL_GUARD.get()
}

// Not every table with such a column holds rows of tenants: a list of tenants has one too. And a migration that goes
// on with the new table must know that it is protected.
static AUTO_PROTECT: GucSetting<Watch> = GucSetting::<Watch>::new(Watch::Warn);

/// What becomes of a new table with a tenant column.
pub fn auto_protect() -> Watch {
    AUTO_PROTECT.get()
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

// About 250 bytes each: 16 MiB for as many tenants as most databases have, times what they use.
static QUOTA_KEYS: GucSetting<i32> = GucSetting::<i32>::new(65_536);

/// Tenants, resources and periods whose units shared memory counts at a time.
pub fn quota_keys() -> usize {
    QUOTA_KEYS.get() as usize
}

// About two kilobytes each, and few servers have more databases with the extension.
static QUOTA_DATABASES: GucSetting<i32> = GucSetting::<i32>::new(64);

/// Databases of the server in which shared memory counts units.
pub fn quota_databases() -> usize {
    QUOTA_DATABASES.get() as usize
}

// Many times what an extension takes, and less than what a client waits for an answer.
static LEASE_TIMEOUT: GucSetting<i32> = GucSetting::<i32>::new(2000);

/// How long a call of mode leased waits for the worker, in milliseconds.
pub fn lease_timeout() -> i32 {
    LEASE_TIMEOUT.get()
}

// Every session of the database that listens hears of every tenant.
static NOTIFY: GucSetting<bool> = GucSetting::<bool>::new(false);

/// Whether a worker sends a NOTIFY when a tenant has crossed a threshold.
pub fn notify() -> bool {
    NOTIFY.get()
}

/// Defines the settings and reserves their prefix.
pub fn init() {
    // SAFETY: reads a variable of the process.
    if unsafe { pg_sys::process_shared_preload_libraries_in_progress } {
        GucRegistry::define_int_guc(
            c"tenant_rls.quota_keys",
            c"Tenants, resources and periods whose units shared memory counts at a time.",
            c"Those that nobody has used for longest make room; without room a key is counted in mode strict.",
            &QUOTA_KEYS,
            1024,
            100_000_000,
            GucContext::Postmaster,
            GucFlags::default(),
        );
        GucRegistry::define_int_guc(
            c"tenant_rls.quota_databases",
            c"Databases of the server in which shared memory counts units.",
            c"In others units are counted in mode strict.",
            &QUOTA_DATABASES,
            1,
            100_000,
            GucContext::Postmaster,
            GucFlags::default(),
        );
    }
    GucRegistry::define_int_guc(
        c"tenant_rls.lease_timeout",
        c"How long a call of mode leased waits for the worker that extends leases.",
        c"Then it is denied.",
        &LEASE_TIMEOUT,
        1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
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
    GucRegistry::define_enum_guc(
        c"tenant_rls.ddl_guard",
        c"What becomes of a command that would open a protected table.",
        c"on refuses it with 42501; warn and off let it through, and record it in tenant_rls.changes.",
        &DDL_GUARD,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_enum_guc(
        c"tenant_rls.auto_protect",
        c"What becomes of a new table with a column tenant_id.",
        c"on protects it, warn says that it is not protected.",
        &AUTO_PROTECT,
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
    GucRegistry::define_bool_guc(
        c"tenant_rls.notify",
        c"Sends a NOTIFY when a tenant has crossed a threshold of a limit.",
        c"By a background worker, on channel tenant_rls; read where it starts, so it belongs in the configuration or ALTER DATABASE.",
        &NOTIFY,
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
