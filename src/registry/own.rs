//! What one tenant has of its own, beside limits: its region, settings, values of features, deployment and releases.

use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys;

use super::catalog::catalog;
use super::features::{Value, rule};
use super::scan::{self, Key, scan};
use super::{Tenant, with_cache};
use crate::error::{Error, Result};
use crate::feature::resolution::Rule;
use crate::json::Json;

/// All of it.
#[derive(Default)]
pub struct Own {
    /// Its region.
    pub region: Option<String>,
    /// Its settings, an object by their keys.
    pub settings: Option<Json>,
    /// Its values of features.
    pub features: HashMap<Rc<str>, Rule<Value>>,
    /// The deployment that was chosen for it.
    pub deployment: Option<String>,
    /// Releases that name it.
    pub releases: Vec<i64>,
}

impl Own {
    fn size(&self) -> usize {
        let features: usize = self.features.values().map(|rule| rule.value.json.size() + 128).sum();
        features + self.settings.as_ref().map_or(0, Json::size) + self.releases.len() * 8
    }
}

/// What the tenant has of its own. It lives and dies with the tenant's entry in the cache, so it is as valid as that.
pub fn own(tenant: &Tenant) -> Result<Rc<Own>> {
    if let Some(known) = &*tenant.own.borrow() {
        return Ok(known.clone());
    }
    let own = Rc::new(find(tenant)?);
    *tenant.own.borrow_mut() = Some(own.clone());
    with_cache(|cache| cache.own_bytes += own.size());
    Ok(own)
}

fn find(tenant: &Tenant) -> Result<Own> {
    use scan::{deployment_routes, feature_values, release_targets, tenants};
    let catalog = catalog().ok_or(Error::NotInstalled)?;
    let mut own = Own::default();
    scan(catalog.tenants, catalog.tenants_pkey, &[Key::Uuid(tenants::TENANT_ID, tenant.id)], |row| {
        own.region = row.get(tenants::REGION);
        own.settings = row.json(tenants::SETTINGS);
    });
    // An older SQL version has only that.
    if catalog.release_targets_tenant == pg_sys::InvalidOid {
        return Ok(own);
    }
    let key = [Key::Uuid(feature_values::TENANT_ID, tenant.id)];
    scan(catalog.feature_values, catalog.feature_values_tenant, &key, |row| {
        own.features.extend(rule(row).map(|(name, rule)| (name.into(), rule)));
    });
    let key = [Key::Uuid(deployment_routes::TENANT_ID, tenant.id)];
    scan(catalog.deployment_routes, catalog.deployment_routes_tenant, &key, |row| {
        own.deployment = row.get(deployment_routes::DEPLOYMENT);
    });
    let key = [Key::Uuid(release_targets::TENANT_ID, tenant.id)];
    scan(catalog.release_targets, catalog.release_targets_tenant, &key, |row| {
        own.releases.extend(row.get::<i64>(release_targets::RELEASE_ID));
    });
    Ok(own)
}
