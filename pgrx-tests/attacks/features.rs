//! Features, settings, deployments: what another tenant has of its own, and giving oneself what operators give.

use super::own::CARELESS;
use super::{Attack, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    [values(), rights(), functions(), tables()].into_iter().flatten().collect()
}

fn values() -> Vec<Attack> {
    let read = |name, guard, sql| attack(name, guard, "", vec![ok(sql)]);
    vec![
        read("features: one that B has", "own feature", "SELECT * FROM tenant_feature('beta')"),
        read("features: whether B has it", "own feature", "SELECT tenant_feature_enabled('dark', false)"),
        read("features: all of them", "own feature", "SELECT tenant_features()"),
        read("features: those of the context", "own feature", "SELECT tenant_context() -> 'featureValues'"),
        read(
            "features: names with B's before them",
            "own feature",
            "SELECT * FROM unnest(ARRAY['{B}:beta', 'beta ', 'BETA', '*', 'beta']) AS f, tenant_feature(f)",
        ),
        read("settings: one that B has", "own setting", "SELECT tenant_setting('theme')"),
        read("settings: one with a fallback", "own setting", "SELECT tenant_setting('theme', '\"none\"')"),
        read("settings: those of the context", "own setting", "SELECT tenant_context() -> 'settings'"),
        read(
            "settings: names that look like paths",
            "own setting",
            "SELECT tenant_setting(k) FROM unnest(ARRAY['theme.color', '{theme}', '$.theme', '*', 'theme']) AS k",
        ),
        read("deployments: an image that B has", "own release", "SELECT * FROM tenant_route()"),
        read(
            "deployments: the image that B has, by the own name",
            "own release",
            "SELECT * FROM tenant_route('{A}')",
        ),
        attack(
            "deployments: the route of B",
            "route of another",
            "",
            vec![no("42501", "SELECT * FROM tenant_route('{B}')")],
        ),
        attack(
            "deployments: the route of a tenant that is suspended",
            "route of another",
            "",
            vec![no("42501", "SELECT * FROM tenant_route('{C}')")],
        ),
        attack(
            "deployments: whether there is a tenant, by its route",
            "route of another",
            "",
            vec![no("42501", "SELECT * FROM tenant_route('{D}')")],
        ),
        attack(
            "deployments: the routes of all",
            "route of another",
            "",
            vec![no("42501", "SELECT tenant_route(t) FROM unnest(ARRAY['{A}', '{B}']::uuid[]) AS t")],
        ),
        attack(
            "deployments: the route of B without a tenant",
            "route of another",
            "",
            vec![no("42501", "SELECT * FROM tenant_route('{B}')")],
        )
        .by("app", ""),
    ]
}

/// Whether what was given still holds, asked at every call.
fn rights() -> Vec<Attack> {
    let suspended = |name, sql| {
        let locked_out = ok("SELECT tenant_suspend('{A}')").by("admin");
        attack(name, "invalidation", "", vec![ok(sql), locked_out, no("55000", sql)])
    };
    vec![
        suspended("features: ask when suspended", "SELECT * FROM tenant_feature('beta')"),
        suspended("features: ask for all when suspended", "SELECT tenant_features()"),
        suspended("settings: ask when suspended", "SELECT tenant_setting('theme')"),
        suspended("deployments: ask when suspended", "SELECT image FROM tenant_route()"),
        attack(
            "features: keep one that was taken back",
            "invalidation",
            "SELECT tenant_feature_set('dark', 'true', 'tenant', tenant => '{A}')",
            vec![
                ok("SELECT 1 / tenant_feature_enabled('dark')::int"),
                ok("SELECT tenant_feature_unset('dark', 'tenant', tenant => '{A}')").by("admin"),
                ok("SELECT 1 / (NOT tenant_feature_enabled('dark'))::int"),
            ],
        ),
        attack(
            "settings: keep one that was taken back",
            "invalidation",
            "SELECT tenant_setting_set('theme', '\"mine\"', 'tenant', tenant => '{A}')",
            vec![
                ok("SELECT 1 / (tenant_setting('theme') = '\"mine\"')::int"),
                ok("SELECT tenant_setting_unset('theme', 'tenant', tenant => '{A}')").by("admin"),
                ok("SELECT 1 / (tenant_setting('theme') IS NULL)::int"),
            ],
        ),
        attack(
            "features: ask for B after a switch that failed",
            "failed mark",
            "",
            vec![
                no("42501", "SET app.current_tenant = '{B}'"),
                no("55000", "SELECT * FROM tenant_feature('beta')"),
                no("55000", "SELECT tenant_setting('theme')"),
                no("55000", "SELECT * FROM tenant_route()"),
            ],
        ),
    ]
}

/// What operators do.
fn functions() -> Vec<Attack> {
    let closed = |name, sql| attack(name, "our functions", "", vec![no("42501", sql)]);
    vec![
        closed(
            "features: give oneself one",
            "SELECT tenant_feature_set('beta', 'true', 'tenant', tenant => '{A}')",
        ),
        closed("features: give everybody one", "SELECT tenant_feature_set('beta', 'true')"),
        closed("features: take B's", "SELECT tenant_feature_unset('beta', 'tenant', tenant => '{B}')"),
        closed("features: switch one off", "SELECT tenant_feature_switch('beta', false)"),
        closed("features: drop one", "SELECT tenant_feature_drop('beta')"),
        closed("features: define one", "SELECT tenant_feature_define('mine', 'true')"),
        closed("features: the ConfigMap", "SELECT tenant_features_configmap()"),
        closed(
            "settings: set one's own",
            "SELECT tenant_setting_set('theme', '1', 'tenant', tenant => '{A}')",
        ),
        closed("settings: set B's", "SELECT tenant_setting_set('theme', '1', 'tenant', tenant => '{B}')"),
        closed("settings: set everybody's", "SELECT tenant_setting_set('theme', '1', 'global')"),
        closed("settings: take B's", "SELECT tenant_setting_unset('theme', 'tenant', tenant => '{B}')"),
        closed("deployments: move B", "SELECT tenant_route_set('{B}', 'api')"),
        closed(
            "deployments: release for B",
            "SELECT tenant_release('api', 'evil:1', 100, tenants => ARRAY['{B}']::uuid[])",
        ),
        closed("deployments: release for all", "SELECT tenant_release('api', 'evil:1', 100)"),
        closed("deployments: promote", "SELECT tenant_release_promote(1)"),
        closed("deployments: roll back", "SELECT tenant_release_rollback(1)"),
        closed(
            "deployments: define one",
            "SELECT tenant_deployment_define('evil', '{\"image\": \"evil:1\"}')",
        ),
        closed("deployments: drop one", "SELECT tenant_deployment_drop('api')"),
        closed("deployments: the manifest", "SELECT tenant_deployment_manifest('api')"),
    ]
}

fn tables() -> Vec<Attack> {
    let closed = |name, sql| attack(name, "our privileges", "", vec![no("42501", sql)]);
    let careless = |name, step| attack(name, "our row security", CARELESS, vec![step]);
    vec![
        closed("features: read the values of all", "SELECT * FROM tenant_rls.feature_values"),
        closed("settings: read those of plans", "SELECT * FROM tenant_rls.settings"),
        attack(
            "deployments: read the releases of all",
            "operator check",
            "",
            vec![no("42501", "SELECT * FROM tenant_releases")],
        ),
        closed("deployments: read whom a release is for", "SELECT * FROM tenant_rls.release_targets"),
        careless(
            "features: read the values with careless grants",
            ok("SELECT * FROM tenant_rls.feature_values"),
        ),
        careless(
            "features: change the values with careless grants",
            ok("UPDATE tenant_rls.feature_values SET value = 'true'; DELETE FROM tenant_rls.feature_values"),
        ),
        careless(
            "deployments: read whom a release is for with careless grants",
            ok("SELECT * FROM tenant_rls.release_targets"),
        ),
        careless(
            "deployments: take B's release with careless grants",
            ok("DELETE FROM tenant_rls.release_targets; UPDATE tenant_rls.deployments SET image = 'evil:1'"),
        ),
        attack(
            "deployments: the view of all with a careless grant",
            "usage rights",
            "GRANT SELECT ON tenant_releases TO {app}",
            vec![ok("SELECT * FROM tenant_releases")],
        ),
    ]
}
