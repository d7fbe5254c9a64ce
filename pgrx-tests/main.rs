//! Tests against a real server: real connections, roles without superuser.
//!
//! # Layout
//!
//! A module a subject. Each test makes a database of its own, so that tests run side by side; roles are global
//! to the cluster, so that their names are too. See [`harness`].

mod harness;

mod attacks;
mod audit;
mod cache;
mod cluster;
mod context;
mod deployment;
mod docs;
mod dump;
mod feature;
mod gauge;
mod guard;
mod invalidation;
mod isolation;
mod lockdown;
mod owners;
mod privileges;
mod prove;
mod purge;
mod quota;
mod registry;
mod repair;
mod setting;
mod signer;
mod torture;
mod usage;

/// What `cargo pgrx test` asks of a crate.
pub mod pg_test {
    /// Nothing to do once per run.
    pub fn setup(_options: Vec<&str>) {}

    /// Settings of the test server.
    pub fn postgresql_conf_options() -> Vec<&'static str> {
        crate::harness::SETTINGS.to_vec()
    }
}
