//! Deployments: which program, in which version, serves a tenant, and where its data is.
//!
//! A tenant is served by the deployment that was chosen for it, else by that of its plan, else by the one for everybody
//! else; of these the one of its region goes first. A release brings a new image to named tenants, to a share of a plan,
//! or to a share of everybody, in the order of [`crate::feature::resolution`].

pub mod manifest;
pub mod resources;

use pgrx::datum::Array;
use pgrx::prelude::*;
use pgrx::{AnyNumeric, Uuid, pg_sys};

use crate::call::{argument, datum_argument, sql_function};
use crate::composite::composite;
use crate::context;
use crate::error::{Error, Result, or_raise};
use crate::feature::bucket::{Share, bucket};
use crate::feature::resolution::{Rule, resolve};
use crate::feature::{self, checked_percent};
use crate::json;
use crate::plan::{CachedPlan, Row, as_owner};
use crate::registry::admin::{datum, existing_plan, id_of, living_status};
use crate::registry::deployments::{Deployment, Deployments, Release, deployments};
use crate::registry::{self, Own, Tenant};
use crate::tenant::TenantId;
use manifest::{Spec, SpecError};

const UUID: pg_sys::Oid = pg_sys::UUIDOID;
const TEXT: pg_sys::Oid = pg_sys::TEXTOID;
const INT8: pg_sys::Oid = pg_sys::INT8OID;

impl From<SpecError> for Error {
    fn from(error: SpecError) -> Error {
        Error::Invalid { what: error.what, value: error.value, hint: error.hint }
    }
}

/// The name of the deployment that serves a tenant.
fn route<'a>(all: &'a Deployments, tenant: &Tenant, own: &'a Own) -> Option<&'a str> {
    if let Some(name) = &own.deployment {
        return Some(name);
    }
    let plan = Some(tenant.plan.clone());
    let routes = [(plan.clone(), own.region.clone()), (plan, None), (None, own.region.clone()), (None, None)];
    routes.iter().find_map(|route| all.routes.get(route)).map(String::as_str)
}

/// The release that reaches a tenant, if one does, and why.
fn release<'a>(
    name: &str,
    deployment: &'a Deployment,
    tenant: &Tenant,
    own: &Own,
) -> Option<(&'a Release, &'static str)> {
    const NAMED: Rule<()> = Rule { value: (), share: Share::ALL, expires_at: i64::MAX };
    let releases = &deployment.releases;
    let reached = |release: &Release, rules: [Option<&Rule<()>>; 3]| {
        // The image keeps its share when it is released again.
        let bucket = || bucket(&format!("{name}:{}", release.image), tenant.id);
        resolve(rules[0], rules[1], rules[2], i64::MIN, bucket).map(|hit| hit.scope.as_str())
    };
    let named = |release: &Release| own.releases.contains(&release.id).then_some(&NAMED);
    // Named tenants of all releases come before shares of the newest.
    let first = |rules: &dyn Fn(&'a Release) -> [Option<&'a Rule<()>>; 3]| {
        releases.iter().find_map(|release| Some((release, reached(release, rules(release))?)))
    };
    first(&|release| [named(release), None, None])
        .or_else(|| first(&|release| [None, release.plans.get(&tenant.plan), None]))
        .or_else(|| first(&|release| [None, None, release.global.as_ref()]))
}

sql_function!(
    /// Where a tenant is served.
    tenant_route,
    pg_finfo_tenant_route,
    |fcinfo| {
        let tenant = visible(argument(fcinfo, 0))?;
        let (all, own) = (deployments()?, registry::own(&tenant)?);
        let found = route(&all, &tenant, &own).and_then(|name| Some((name, all.all.get(name)?)));
        let Some((name, deployment)) = found else {
            return Err(Error::NotServed(tenant.id));
        };
        let release = release(name, deployment, &tenant, &own);
        let (image, source) = release.map_or((&deployment.image, "stable"), |(r, source)| (&r.image, source));
        let spec = &deployment.spec;
        let columns = [
            datum(tenant.id),
            name.into_datum(),
            image.as_str().into_datum(),
            source.into_datum(),
            release.map(|(release, _)| release.id).into_datum(),
            spec.tier.as_deref().into_datum(),
            own.region.as_deref().or(spec.region.as_deref()).into_datum(),
            spec.isolation.as_str().into_datum(),
            Some(deployment.location.datum()),
        ];
        Ok(composite(fcinfo, &columns))
    }
);

/// The tenant of the session for NULL; another one for operators only.
fn visible(tenant: Option<Uuid>) -> Result<std::rc::Rc<Tenant>> {
    let Some(tenant) = tenant else { return context::required() };
    registry::accept_invalidations();
    let id = TenantId::from_bytes(*tenant.as_bytes());
    if registry::rights(registry::acting_role())?.operator {
        return registry::tenant(id)?.ok_or(Error::UnknownTenant(id));
    }
    context::held()?.filter(|held| held.id == id).ok_or_else(|| Error::NotPermitted {
        what: "permission denied for the route of another tenant".into(),
        hint: "Operators see the routes of all tenants.",
    })
}

/// The name of a deployment that exists, and its stable image; its row is locked until the end of the transaction.
fn existing(deployment: Option<&str>) -> Result<(&str, String)> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT d.image FROM tenant_rls.deployments AS d WHERE d.deployment OPERATOR(pg_catalog.=) $1 FOR UPDATE",
        &[TEXT],
    );
    let name = deployment.ok_or(Error::Null("the deployment"))?;
    let image =
        as_owner(|| SELECT.first(&[name.into_datum()], |row| row.get::<String>(1).unwrap_or_default()))?;
    Ok((name, image.map_or_else(|| unknown(name), Ok)?))
}

fn unknown<T>(name: &str) -> Result<T> {
    registry::accept_invalidations();
    let mut known: Vec<String> = deployments()?.all.keys().cloned().collect();
    known.sort();
    Err(Error::Unknown {
        what: "deployment",
        name: name.into(),
        known,
        hint: "Define it with tenant_deployment_define(deployment, spec).",
    })
}

sql_function!(
    /// Defines a deployment.
    tenant_deployment_define,
    pg_finfo_tenant_deployment_define,
    |fcinfo| {
        let name: Option<&str> = argument(fcinfo, 0);
        let name = name.ok_or(Error::Null("the deployment"))?;
        manifest::check_name(name)?;
        let definition = datum_argument(fcinfo, 1).ok_or(Error::Null("the definition"))?;
        let spec = Spec::parse(&json::text(definition))?;
        for plan in &spec.plans {
            existing_plan(Some(plan))?;
        }
        define(name, &spec, definition)?;
        set_routes(name, &spec)?;
        Ok(pg_sys::Datum::null())
    }
);

fn define(name: &str, spec: &Spec, definition: pg_sys::Datum) -> Result<()> {
    const STORED: &[pg_sys::Oid] = &[TEXT, TEXT, pg_sys::JSONBOID];
    // Image and plans have columns and rows of their own.
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.deployments (deployment, image, spec) \
          VALUES ($1, $2, $3 OPERATOR(pg_catalog.-) ARRAY['image', 'plans', 'default']::pg_catalog.text[]) \
          ON CONFLICT DO NOTHING",
        STORED,
    );
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.deployments \
          SET spec = $2 OPERATOR(pg_catalog.-) ARRAY['image', 'plans', 'default']::pg_catalog.text[] \
          WHERE deployments.deployment OPERATOR(pg_catalog.=) $1",
        &[TEXT, pg_sys::JSONBOID],
    );
    let definition = Some(definition);
    if let Some(image) = &spec.image
        && as_owner(|| INSERT.execute(&[name.into_datum(), image.as_str().into_datum(), definition]))? == 1
    {
        return Ok(());
    }
    let stable = match existing(Some(name)) {
        Err(Error::Unknown { .. }) => return Err(Error::Null("the image of a new deployment")),
        known => known?.1,
    };
    if spec.image.as_ref().is_some_and(|image| *image != stable) {
        return Err(Error::WrongState {
            what: format!("deployment \"{name}\" runs another image"),
            detail: format!("The stable image is \"{stable}\"."),
            hint: "Change it with tenant_release and tenant_release_promote, and leave image out of the definition.",
        });
    }
    as_owner(|| UPDATE.execute(&[name.into_datum(), definition]))?;
    Ok(())
}

/// Makes the routes of a deployment those of its definition; what was chosen for single tenants stays.
fn set_routes(name: &str, spec: &Spec) -> Result<()> {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.deployment_routes AS r \
          WHERE r.deployment OPERATOR(pg_catalog.=) $1 AND r.tenant_id IS NULL \
          AND NOT COALESCE((r.region OPERATOR(pg_catalog.=) $3 OR (r.region IS NULL AND $3 IS NULL)) \
              AND CASE WHEN r.plan IS NULL THEN $4 ELSE r.plan OPERATOR(pg_catalog.=) ANY ($2) END, false)",
        &[TEXT, pg_sys::TEXTARRAYOID, TEXT, pg_sys::BOOLOID],
    );
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.deployment_routes (deployment, plan, region) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
        &[TEXT, TEXT, TEXT],
    );
    static OTHER: CachedPlan = CachedPlan::new(
        c"SELECT r.deployment FROM tenant_rls.deployment_routes AS r \
          WHERE (r.plan OPERATOR(pg_catalog.=) $1 OR (r.plan IS NULL AND $1 IS NULL)) \
          AND (r.region OPERATOR(pg_catalog.=) $2 OR (r.region IS NULL AND $2 IS NULL)) AND r.tenant_id IS NULL",
        &[TEXT, TEXT],
    );
    let everybody = spec.default.unwrap_or(spec.plans.is_empty());
    let region = || spec.region.as_deref().into_datum();
    as_owner(|| {
        DELETE.execute(&[
            name.into_datum(),
            spec.plans.clone().into_datum(),
            region(),
            everybody.into_datum(),
        ])
    })?;
    let plans = spec.plans.iter().map(|plan| Some(plan.as_str()));
    for plan in plans.chain(everybody.then_some(None)) {
        as_owner(|| INSERT.execute(&[name.into_datum(), plan.into_datum(), region()]))?;
        let serving = as_owner(|| OTHER.first(&[plan.into_datum(), region()], |row| row.get::<String>(1)))?;
        if serving.flatten().as_deref() != Some(name) {
            let whom = plan.map_or_else(|| "everybody else".into(), |plan| format!("plan {plan}"));
            return Err(Error::Exists {
                what: "route of",
                name: whom,
                hint: "Another deployment serves it. Name other plans or another region, or say \"default\": false for \
                       a deployment that serves nobody yet.",
            });
        }
    }
    Ok(())
}

#[pg_extern(sql = false)]
fn tenant_deployment_drop(deployment: Option<&str>) {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.deployments AS d WHERE d.deployment OPERATOR(pg_catalog.=) $1",
        &[TEXT],
    );
    let drop = || {
        let (name, _) = existing(deployment)?;
        as_owner(|| DELETE.execute(&[name.into_datum()]))
    };
    or_raise(drop());
}

#[pg_extern(sql = false)]
fn tenant_route_set(tenant: Option<Uuid>, deployment: Option<&str>) {
    static UPSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.deployment_routes (deployment, tenant_id) VALUES ($1, $2) \
          ON CONFLICT (plan, tenant_id, region) DO UPDATE SET deployment = EXCLUDED.deployment",
        &[TEXT, UUID],
    );
    let set = || {
        let id = id_of(tenant)?;
        living_status(id)?;
        let (name, _) = existing(deployment)?;
        as_owner(|| UPSERT.execute(&[name.into_datum(), datum(id)]))
    };
    or_raise(set());
}

#[pg_extern(sql = false)]
fn tenant_route_unset(tenant: Option<Uuid>) {
    static DELETE: CachedPlan = CachedPlan::new(
        c"DELETE FROM tenant_rls.deployment_routes AS r WHERE r.tenant_id OPERATOR(pg_catalog.=) $1",
        &[UUID],
    );
    let unset = || {
        let id = id_of(tenant)?;
        living_status(id)?;
        as_owner(|| DELETE.execute(&[datum(id)]))
    };
    or_raise(unset());
}

#[pg_extern(sql = false)]
fn tenant_release(
    deployment: Option<&str>,
    image: Option<&str>,
    rollout_percent: Option<AnyNumeric>,
    plan: Option<&str>,
    tenants: Option<Array<Uuid>>,
) -> i64 {
    static INSERT: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.releases (deployment, image, released_by) VALUES ($1, $2, $3) \
          ON CONFLICT (deployment, image) WHERE status OPERATOR(pg_catalog.=) 'active' DO NOTHING",
        &[TEXT, TEXT, TEXT],
    );
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT r.release_id FROM tenant_rls.releases AS r WHERE r.deployment OPERATOR(pg_catalog.=) $1 \
          AND r.image OPERATOR(pg_catalog.=) $2 AND r.status OPERATOR(pg_catalog.=) 'active'",
        &[TEXT, TEXT],
    );
    static TARGET: CachedPlan = CachedPlan::new(
        c"INSERT INTO tenant_rls.release_targets (release_id, plan, tenant_id, rollout_percent) VALUES ($1, $2, $3, $4) \
          ON CONFLICT (release_id, plan, tenant_id) DO UPDATE SET rollout_percent = EXCLUDED.rollout_percent",
        &[INT8, TEXT, UUID, pg_sys::NUMERICOID],
    );
    let release = || {
        let (name, stable) = existing(deployment)?;
        let image = image.ok_or(Error::Null("the image"))?;
        manifest::check_image(image)?;
        let percent = checked_percent(rollout_percent)?;
        let plan = plan.map(|plan| existing_plan(Some(plan))).transpose()?;
        let tenants = named_tenants(tenants)?;
        if image == stable {
            return Err(Error::Invalid {
                what: "image",
                value: image.into(),
                hint: "It is the stable image: every tenant of the deployment has it.".into(),
            });
        }
        let role = registry::role_name(registry::acting_role());
        as_owner(|| {
            INSERT.execute(&[name.into_datum(), image.into_datum(), role.into_datum()]);
            let id =
                SELECT.first(&[name.into_datum(), image.into_datum()], |row| row.get::<i64>(1)).flatten();
            TARGET.execute(&[id.into_datum(), plan.into_datum(), None, percent]);
            for tenant in tenants {
                TARGET.execute(&[id.into_datum(), None, datum(tenant), AnyNumeric::from(100).into_datum()]);
            }
            id.unwrap_or_default()
        })
    };
    or_raise(release())
}

/// Tenants that exist and are not deleted. An empty list names nobody, which is a mistake of whoever made it.
fn named_tenants(tenants: Option<Array<Uuid>>) -> Result<Vec<TenantId>> {
    let Some(tenants) = tenants else { return Ok(Vec::new()) };
    let named: Vec<TenantId> = tenants.iter().map(id_of).collect::<Result<_>>()?;
    if named.is_empty() {
        return Err(Error::Invalid {
            what: "list of tenants",
            value: "{}".into(),
            hint: "Name at least one tenant, or leave tenants out.".into(),
        });
    }
    for id in &named {
        living_status(*id)?;
    }
    Ok(named)
}

/// A release, its rows locked until the end of the transaction.
struct Stored {
    id: i64,
    deployment: String,
    image: String,
    status: String,
    previous_image: Option<String>,
    stable: String,
}

fn stored(release_id: Option<i64>) -> Result<Stored> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT r.release_id, r.deployment, r.image, r.status, r.previous_image, d.image \
          FROM tenant_rls.releases AS r \
          JOIN tenant_rls.deployments AS d ON d.deployment OPERATOR(pg_catalog.=) r.deployment \
          WHERE r.release_id OPERATOR(pg_catalog.=) $1 FOR UPDATE OF d, r",
        &[INT8],
    );
    let id = release_id.ok_or(Error::Null("the release"))?;
    let read = |row: &Row| Stored {
        id,
        deployment: row.get(2).unwrap_or_default(),
        image: row.get(3).unwrap_or_default(),
        status: row.get(4).unwrap_or_default(),
        previous_image: row.get(5),
        stable: row.get(6).unwrap_or_default(),
    };
    as_owner(|| SELECT.first(&[id.into_datum()], read))?.ok_or_else(|| Error::Unknown {
        what: "release",
        name: id.to_string(),
        known: Vec::new(),
        hint: "SELECT release_id FROM tenant_releases lists them.",
    })
}

fn end(id: i64, status: &str, previous_image: Option<&str>) {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.releases SET status = $2, previous_image = $3, ended_at = pg_catalog.clock_timestamp() \
          WHERE releases.release_id OPERATOR(pg_catalog.=) $1",
        &[INT8, TEXT, TEXT],
    );
    UPDATE.execute(&[id.into_datum(), status.into_datum(), previous_image.into_datum()]);
}

fn set_stable(deployment: &str, image: &str) {
    static UPDATE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.deployments SET image = $2 WHERE deployments.deployment OPERATOR(pg_catalog.=) $1",
        &[TEXT, TEXT],
    );
    UPDATE.execute(&[deployment.into_datum(), image.into_datum()]);
}

fn ended(release: &Stored, hint: &'static str) -> Error {
    Error::WrongState {
        what: format!("release {} is not on its way", release.id),
        detail: format!("Its status is {}.", release.status),
        hint,
    }
}

#[pg_extern(sql = false)]
fn tenant_release_promote(release_id: Option<i64>) {
    // Whoever is on an older one goes along; a newer one is still to be decided.
    static SUPERSEDE: CachedPlan = CachedPlan::new(
        c"UPDATE tenant_rls.releases SET status = 'superseded', ended_at = pg_catalog.clock_timestamp() \
          WHERE releases.deployment OPERATOR(pg_catalog.=) $1 AND releases.status OPERATOR(pg_catalog.=) 'active' \
          AND releases.release_id OPERATOR(pg_catalog.<) $2",
        &[TEXT, INT8],
    );
    let promote = || {
        let release = stored(release_id)?;
        if release.status != "active" {
            return Err(ended(&release, "Release the image again with tenant_release."));
        }
        as_owner(|| {
            end(release.id, "promoted", Some(&release.stable));
            set_stable(&release.deployment, &release.image);
            SUPERSEDE.execute(&[release.deployment.as_str().into_datum(), release.id.into_datum()])
        })
    };
    or_raise(promote());
}

/// The promotion that is in force. Each ends the older releases on their way, so the newest was promoted last.
fn last_promoted(deployment: &str) -> Option<i64> {
    static SELECT: CachedPlan = CachedPlan::new(
        c"SELECT pg_catalog.max(r.release_id) FROM tenant_rls.releases AS r \
          WHERE r.deployment OPERATOR(pg_catalog.=) $1 AND r.status OPERATOR(pg_catalog.=) 'promoted'",
        &[TEXT],
    );
    SELECT.first(&[deployment.into_datum()], |row| row.get::<i64>(1)).flatten()
}

#[pg_extern(sql = false)]
fn tenant_release_rollback(release_id: Option<i64>) {
    let roll_back = || {
        let release = stored(release_id)?;
        // Its image may have been stable twice: the image alone does not tell which promotion is in force.
        let last = as_owner(|| last_promoted(&release.deployment))?;
        let in_force = last == Some(release.id) && release.image == release.stable;
        match (release.status.as_str(), &release.previous_image) {
            ("active", _) => as_owner(|| end(release.id, "rolled_back", None)),
            ("promoted", Some(previous)) if in_force => as_owner(|| {
                set_stable(&release.deployment, previous);
                end(release.id, "rolled_back", Some(previous));
            }),
            _ => Err(ended(
                &release,
                "Only a release on its way, or the one promoted last, can be rolled back.",
            )),
        }
    };
    or_raise(roll_back());
}

sql_function!(
    /// The Kubernetes Deployment of an image.
    tenant_deployment_manifest,
    pg_finfo_tenant_deployment_manifest,
    |fcinfo| {
        let name: Option<&str> = argument(fcinfo, 0);
        let name = name.ok_or(Error::Null("the deployment"))?;
        registry::accept_invalidations();
        let all = deployments()?;
        let Some(deployment) = all.all.get(name) else { return unknown(name) };
        let manifest = match argument::<i64>(fcinfo, 1) {
            None => deployment.spec.manifest(name, &deployment.image, None),
            Some(id) => {
                let release = deployment.releases.iter().find(|release| release.id == id);
                let release = release.ok_or_else(|| Error::Unknown {
                    what: "release",
                    name: id.to_string(),
                    known: deployment.releases.iter().map(|release| release.id.to_string()).collect(),
                    hint: "Name a release of this deployment that is on its way.",
                })?;
                let rules = release.plans.values().chain(&release.global);
                let share = rules.map(|rule| rule.share).max().unwrap_or(Share::NONE);
                let replicas = share.of(deployment.spec.replicas.unwrap_or(1));
                deployment.spec.manifest(name, &release.image, Some((id, replicas)))
            }
        };
        Ok(json::parse(&manifest.to_string()))
    }
);

sql_function!(
    /// The Kubernetes ConfigMap with the values of features.
    tenant_features_configmap,
    pg_finfo_tenant_features_configmap,
    |_| {
        registry::accept_invalidations();
        let tenant = context::held()?;
        let (values, _) = feature::values_and_names(tenant.as_deref())?;
        // As the server prints a jsonb, which other functions answer with.
        let features = json::text(json::parse(&values));
        Ok(json::parse(&manifest::configmap(&features).to_string()))
    }
);
