//! Multi-tenancy inside PostgreSQL: isolation by row, a validated tenant, quotas and usage.
//!
//! # Layout
//!
//! A subject is one file, the folder of its parts, one SQL file and one test file, all of one name. Imports run
//! one way: hooks, worker → subjects ([`isolation`], [`quota`], [`usage`], [`purge`], [`feature`], [`setting`], [`deployment`],
//! [`request`], [`cache`]) → [`context`] → [`registry`] → `plan`, `shmem`, `gucs`, `error`, [`tenant`]. Files marked "Pure"
//! import nothing of the server.

// Rights travel between functions as `Result`, whose error is an enum with the facts of the message.
#![allow(clippy::result_large_err)]

use pgrx::prelude::*;

mod backend;
pub mod cache;
mod call;
mod clock;
mod composite;
pub mod context;
pub mod deployment;
mod error;
pub mod feature;
mod gucs;
mod hooks;
pub mod isolation;
mod json;
mod lock;
mod plan;
pub mod purge;
pub mod quota;
pub mod registry;
pub mod request;
pub mod setting;
mod shmem;
pub mod tenant;
pub mod usage;
mod worker;

::pgrx::pg_module_magic!(name, version);

extension_sql_file!("../sql/registry.sql", name = "registry", bootstrap);
extension_sql_file!("../sql/context.sql", name = "context", requires = ["registry"]);
extension_sql_file!("../sql/ticket.sql", name = "ticket", requires = ["context"]);
extension_sql_file!("../sql/isolation.sql", name = "isolation", requires = ["ticket"]);
extension_sql_file!("../sql/audit.sql", name = "audit", requires = ["usage"]);
extension_sql_file!("../sql/quota.sql", name = "quota", requires = ["isolation"]);
extension_sql_file!("../sql/usage.sql", name = "usage", requires = ["quota"]);
extension_sql_file!("../sql/worker.sql", name = "worker", requires = ["usage"]);
extension_sql_file!("../sql/lockdown.sql", name = "lockdown", requires = ["worker"]);
extension_sql_file!("../sql/repair.sql", name = "repair", requires = ["lockdown"]);
extension_sql_file!("../sql/purge.sql", name = "purge", requires = ["repair"]);
extension_sql_file!("../sql/prove.sql", name = "prove", requires = ["purge"]);
extension_sql_file!("../sql/feature.sql", name = "feature", requires = ["prove"]);
extension_sql_file!("../sql/setting.sql", name = "setting", requires = ["feature"]);
extension_sql_file!("../sql/deployment.sql", name = "deployment", requires = ["setting"]);
extension_sql_file!("../sql/cache.sql", name = "cache", requires = ["deployment"]);
extension_sql_file!("../sql/comments.sql", name = "comments", requires = ["cache"]);
extension_sql_file!("../sql/guard.sql", name = "guard", requires = ["comments"]);
extension_sql_file!("../sql/privileges.sql", name = "privileges", finalize);

/// Called by the server when it loads the library.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    no_backtraces();
    gucs::init();
    registry::catalog::init();
    shmem::init();
    hooks::init();
    context::carrier::init();
    context::ticket::init();
    context::setting::init();
    quota::init();
    worker::init();
}

/// With RUST_BACKTRACE in the environment of the server, an error of the server's own that passes through our code would
/// tell clients its backtrace, in DETAIL. RUST_LIB_BACKTRACE is for those who want that.
fn no_backtraces() {
    const NAME: &str = "RUST_LIB_BACKTRACE";
    if std::env::var_os(NAME).is_none() {
        // SAFETY: the server has one thread when it loads a library.
        unsafe { std::env::set_var(NAME, "0") };
    }
}

/// What `cargo pgrx test` asks of a crate.
#[cfg(test)]
pub mod pg_test {
    /// Nothing to do once per run.
    pub fn setup(_options: Vec<&str>) {}

    /// Settings of the test server.
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        vec!["shared_preload_libraries = 'tenant_rls'"]
    }
}
