//! Deployments, whom they serve, and the releases that are on their way.

use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys;

use super::Kept;
use super::features::share;
use super::scan::{self, scan};
use crate::deployment::manifest::Spec;
use crate::error::Result;
use crate::feature::resolution::Rule;
use crate::json::{self, Json, Object, quote};

/// A deployment.
pub struct Deployment {
    /// The stable image.
    pub image: String,
    /// What was said of it.
    pub spec: Spec,
    /// Where its data are; of which nothing was said, in this database.
    pub location: Json,
    /// Releases that are on their way, the newest first.
    pub releases: Vec<Release>,
}

/// A release that is on its way.
pub struct Release {
    /// Its number.
    pub id: i64,
    /// The image.
    pub image: String,
    /// The share of everybody.
    pub global: Option<Rule<()>>,
    /// The shares of plans.
    pub plans: HashMap<Rc<str>, Rule<()>>,
}

/// Whom a route is for: a plan or everybody else, of a region or of all others.
pub type Route = (Option<Rc<str>>, Option<String>);

/// All of them.
#[derive(Default)]
pub struct Deployments {
    /// By name.
    pub all: HashMap<String, Deployment>,
    /// The deployment of each route.
    pub routes: HashMap<Route, String>,
}

/// This database, as a location.
fn here() -> pg_sys::Datum {
    // SAFETY: a string of the current memory context; the database that the session is connected to exists.
    let name = unsafe {
        std::ffi::CStr::from_ptr(pg_sys::get_database_name(pg_sys::MyDatabaseId)).to_string_lossy()
    };
    let mut location = Object::new();
    location.push("database", &quote(&name));
    json::parse(&location.finish())
}

/// The deployments that are defined.
pub fn deployments() -> Result<Rc<Deployments>> {
    static DEPLOYMENTS: Kept<Deployments> = Kept::new();
    DEPLOYMENTS.get(|catalog| {
        use scan::{deployment_routes as route, deployments as deployment, release_targets, releases};
        let mut found = Deployments::default();
        // An older SQL version has none.
        if catalog.release_targets_tenant == pg_sys::InvalidOid {
            return found;
        }
        scan(catalog.deployments, pg_sys::InvalidOid, &[], |row| {
            let Some(name) = row.get::<String>(deployment::DEPLOYMENT) else { return };
            let spec = row.json(deployment::SPEC);
            let deployment = Deployment {
                image: row.get(deployment::IMAGE).unwrap_or_default(),
                location: {
                    let location = spec.as_ref().and_then(|spec| spec.field("location"));
                    // SAFETY: the field of a jsonb is one.
                    unsafe { Json::copy(location.unwrap_or_else(here)) }
                },
                // It was checked when it was written.
                spec: spec.and_then(|spec| Spec::parse(&spec.text()).ok()).unwrap_or_default(),
                releases: Vec::new(),
            };
            found.all.insert(name, deployment);
        });
        scan(catalog.deployment_routes, pg_sys::InvalidOid, &[], |row| {
            if row.tenant(route::TENANT_ID).is_none() {
                let key = (row.get::<String>(route::PLAN).map(Rc::from), row.get(route::REGION));
                found.routes.insert(key, row.get(route::DEPLOYMENT).unwrap_or_default());
            }
        });
        let mut active = HashMap::new();
        scan(catalog.releases, pg_sys::InvalidOid, &[], |row| {
            if row.get::<String>(releases::STATUS).as_deref() == Some("active") {
                let id = row.get(releases::RELEASE_ID).unwrap_or_default();
                let image = row.get(releases::IMAGE).unwrap_or_default();
                let deployment = row.get::<String>(releases::DEPLOYMENT).unwrap_or_default();
                let release = Release { id, image, global: None, plans: HashMap::new() };
                active.insert(id, (deployment, release));
            }
        });
        scan(catalog.release_targets, pg_sys::InvalidOid, &[], |row| {
            let id = row.get::<i64>(release_targets::RELEASE_ID).unwrap_or_default();
            let Some((_, release)) = active.get_mut(&id) else { return };
            let share = share(row, release_targets::ROLLOUT_PERCENT);
            let rule = Rule { value: (), share, expires_at: i64::MAX };
            match (row.tenant(release_targets::TENANT_ID), row.get::<String>(release_targets::PLAN)) {
                // What one tenant has of its own is looked up with it.
                (Some(_), _) => {}
                (None, Some(plan)) => _ = release.plans.insert(plan.into(), rule),
                (None, None) => release.global = Some(rule),
            }
        });
        for (deployment, release) in active.into_values() {
            if let Some(deployment) = found.all.get_mut(&deployment) {
                deployment.releases.push(release);
            }
        }
        for deployment in found.all.values_mut() {
            deployment.releases.sort_by_key(|release| std::cmp::Reverse(release.id));
        }
        found
    })
}
