//! Every setting of the extension but `app.current_tenant`, which has its own file.
//!
//! All are superuser-only: a role of the application can weaken none.

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

/// What a statement on a protected table gets when no tenant is set.
pub fn missing_tenant() -> MissingTenant {
    MISSING_TENANT.get()
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
    // SAFETY: the name is a string with a terminating zero; the call copies it.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"tenant_rls".as_ptr()) };
}
