//! Cached plans: what was planned for one role or tenant is not run for another.

use super::{Attack, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    vec![
        // CVE-2016-2193.
        attack("a plan of another role", "plan cache",
            "CREATE ROLE {own}_all BYPASSRLS; GRANT SELECT ON orders TO {own}_all; CREATE ROLE {own} LOGIN; GRANT {app}, {own}_all TO {own}",
            vec![
                ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders WHERE id > $1 ORDER BY id"),
                ok("BEGIN; SET LOCAL ROLE {own}_all; EXPLAIN (COSTS off) EXECUTE p (1000); COMMIT"),
                ok("EXECUTE p (0)")]).by("own", "{A}"),
        attack("a plan from before a role lost bypassrls", "roles changed",
            "CREATE ROLE {own} LOGIN BYPASSRLS; GRANT SELECT ON orders TO {own}; SELECT tenant_grant('{own}', '{A}')",
            vec![
                ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders WHERE id > $1 ORDER BY id; EXPLAIN (COSTS off) EXECUTE p (1000)"),
                ok("ALTER ROLE {own} NOBYPASSRLS").by("admin"),
                super::any("EXECUTE p (0)")]),
        attack("a plan with index of another tenant", "policy", "", vec![
            ok("SET enable_seqscan = off; SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders WHERE tenant_id = $1 ORDER BY id"),
            ok("EXECUTE p ('{A}')"), ok("EXECUTE p ('{B}')")]),
        attack("a custom plan with a constant of another tenant", "policy", "", vec![
            ok("SET plan_cache_mode = force_custom_plan; PREPARE p AS SELECT note FROM orders WHERE tenant_id = $1 ORDER BY id"), ok("EXECUTE p ('{B}')")]),
        attack("a plan that was made without a tenant", "required", "", vec![
            ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders ORDER BY id"),
            no("55000", "EXECUTE p"), ok("SET app.current_tenant = '{A}'"), ok("EXECUTE p")]).by("app", ""),
        attack("a plan that outlives the tenant", "required", "", vec![
            ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM empty; EXECUTE p; RESET app.current_tenant"), no("55000", "EXECUTE p")]),
        attack("a constant plan that reads nothing", "start hook", "", vec![
            ok("PREPARE p AS SELECT note FROM orders WHERE false; RESET app.current_tenant"), no("55000", "EXECUTE p")]),
        attack("a plan folded at planning time", "policy", "", vec![ok("SELECT note FROM orders WHERE tenant_id = current_tenant() OR tenant_id = '{B}' ORDER BY id")]),
        attack("pruned partitions of a generic plan", "policy", "", vec![
            ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM events WHERE day = $1"), ok("EXECUTE p ('2026-05-01')"), ok("EXECUTE p ('2027-05-01')")]),
        attack("a plan of the row security of another setting", "row security", "", vec![
            ok("PREPARE p AS SELECT note FROM orders ORDER BY id; EXECUTE p; SET row_security = off"), no("42501", "EXECUTE p")]),
        attack("a function inlined for another role", "plan cache",
            "CREATE ROLE {own}_all BYPASSRLS; GRANT SELECT ON orders TO {own}_all; GRANT EXECUTE ON FUNCTION orders_inlined() TO {own}_all; CREATE ROLE {own} LOGIN; GRANT {app}, {own}_all TO {own}",
            vec![
                ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders_inlined() WHERE id > $1 ORDER BY id"),
                ok("BEGIN; SET LOCAL ROLE {own}_all; EXPLAIN (COSTS off) EXECUTE p (1000); COMMIT"),
                ok("EXECUTE p (0)")]).by("own", "{A}"),
        attack("a plan of a role that may not act", "outer role", "CREATE ROLE {own} LOGIN NOINHERIT; GRANT {stranger}, {app} TO {own}; GRANT SELECT ON orders TO {stranger}", vec![
            ok("SET ROLE {app}; SET app.current_tenant = '{A}'; PREPARE p AS SELECT note FROM orders; EXECUTE p"), ok("SET ROLE {stranger}"), no("42501", "EXECUTE p")]).by("own", ""),
    ]
}
