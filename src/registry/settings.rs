//! Settings of plans, and those for everybody.

use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys;

use super::Kept;
use super::scan::{self, scan};
use crate::error::Result;
use crate::json::Json;

/// Settings by key, of each plan; of everybody under `None`.
pub type Settings = HashMap<Option<Rc<str>>, HashMap<Rc<str>, Json>>;

/// The settings that plans and everybody have.
pub fn settings() -> Result<Rc<Settings>> {
    static SETTINGS: Kept<Settings> = Kept::new();
    SETTINGS.get(|catalog| {
        use scan::settings as column;
        let mut found = Settings::new();
        // An older SQL version has none.
        if catalog.settings == pg_sys::InvalidOid {
            return found;
        }
        scan(catalog.settings, pg_sys::InvalidOid, &[], |row| {
            let Some(value) = row.json(column::VALUE) else { return };
            let key = row.get::<String>(column::KEY).unwrap_or_default();
            let plan = row.get::<String>(column::PLAN).map(Rc::from);
            found.entry(plan).or_default().insert(key.into(), value);
        });
        found
    })
}
