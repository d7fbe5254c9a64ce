//! Orders of many tenants.

pub mod app;
pub mod job;
pub mod tenant;
