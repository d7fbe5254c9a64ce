//! What has gone wrong in PostgreSQL around row security, tried on our tables. Others stand with their class.

use super::{Attack, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    vec![
        // CVE-2023-2455, CVE-2024-10976: row security below subqueries that was not tied to the role.
        attack("a query below a cte for two roles", "plan cache",
            "CREATE ROLE {own}_all BYPASSRLS; GRANT SELECT ON orders TO {own}_all; CREATE ROLE {own} LOGIN; GRANT {app}, {own}_all TO {own}",
            vec![
                ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS WITH c AS MATERIALIZED (SELECT note, id FROM orders) SELECT note FROM c WHERE id > $1 ORDER BY id"),
                ok("BEGIN; SET LOCAL ROLE {own}_all; EXPLAIN (COSTS off) EXECUTE p (1000); COMMIT"), ok("EXECUTE p (0)")]).by("own", "{A}"),
        attack("a query below a sublink for two roles", "plan cache",
            "CREATE ROLE {own}_all BYPASSRLS; GRANT SELECT ON orders TO {own}_all; CREATE ROLE {own} LOGIN; GRANT {app}, {own}_all TO {own}",
            vec![
                ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT i FROM generate_series(1, 60) AS i WHERE i > $1 AND EXISTS (SELECT FROM orders AS o WHERE o.id = i) ORDER BY i"),
                ok("BEGIN; SET LOCAL ROLE {own}_all; EXPLAIN (COSTS off) EXECUTE p (1000); COMMIT"), ok("EXECUTE p (0)")]).by("own", "{A}"),
        attack("a view with the rights of its reader for two roles", "plan cache",
            "CREATE ROLE {own}_all BYPASSRLS; GRANT SELECT ON orders, orders_invoker TO {own}_all; CREATE ROLE {own} LOGIN; GRANT {app}, {own}_all TO {own}",
            vec![
                ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders_invoker WHERE id > $1 ORDER BY id"),
                ok("BEGIN; SET LOCAL ROLE {own}_all; EXPLAIN (COSTS off) EXECUTE p (1000); COMMIT"), ok("EXECUTE p (0)")]).by("own", "{A}"),
        // CVE-2023-39418: MERGE did not ask the policies for UPDATE and SELECT.
        attack("merge and the policies of update", "boundary",
            "SET ROLE {owner}; CREATE POLICY wide ON people FOR SELECT USING (true); CREATE POLICY wide_update ON people FOR UPDATE USING (true); RESET ROLE",
            vec![ok("MERGE INTO people AS p USING (VALUES (2)) AS v (id) ON p.id = v.id WHEN MATCHED THEN UPDATE SET note = 'mine'")]),
        attack("merge and the policies of delete", "boundary",
            "SET ROLE {owner}; CREATE POLICY wide ON badges USING (true); RESET ROLE",
            vec![ok("MERGE INTO badges AS p USING (VALUES (2)) AS v (id) ON p.id = v.id WHEN MATCHED THEN DELETE")]),
        // CVE-2018-10925, CVE-2026-16237: upserts through views.
        attack("an upsert through a view of the owner", "check", "", vec![
            no("42501", "INSERT INTO orders_owner (tenant_id, id, note) VALUES ('{B}', 1, 'mine') ON CONFLICT (tenant_id, id) DO UPDATE SET note = 'mine' RETURNING *")]),
        // CVE-2019-10208, CVE-2026-116316: types of pg_temp inside definer functions.
        attack("a type of its own in the call of a definer function", "search path", "", vec![
            ok("CREATE TYPE pg_temp.text AS ENUM ('mine'); CREATE DOMAIN pg_temp.uuid AS pg_catalog.text; SET search_path = pg_temp, pg_catalog, public"),
            ok("SELECT note FROM public.orders_of_owner() ORDER BY id")]),
        // CVE-2024-10978: the role after a rollback of SET SESSION AUTHORIZATION.
        attack("a rollback of set session authorization", "catalog rights", "", vec![
            ok("BEGIN"), no("42501", "SET LOCAL SESSION AUTHORIZATION {b}"), ok("ROLLBACK"), no("42501", "SET app.current_tenant = '{B}'")]),
        // CVE-2021-3393: the message of a partition constraint.
        attack("the message of a moved row", "check", "", vec![
            no("23514", "UPDATE events SET tenant_id = '{B}', day = '2031-01-01'")]),
        // CVE-2026-14666: changes of roles and plans that are kept.
        attack("a plan from before a membership went", "held",
            "CREATE ROLE {own}_group; SELECT tenant_grant('{own}_group', '{B}'); CREATE ROLE {own} LOGIN; GRANT {own}_group TO {own}; GRANT SELECT ON orders TO {own}",
            vec![
                ok("SET app.current_tenant = '{B}'; SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT count(*) > -1 FROM orders; EXECUTE p"),
                ok("REVOKE {own}_group FROM {own}").by("admin"), no("42501", "EXECUTE p")]).by("own", ""),
        // CVE-2026-116327: leaky functions over the placeholder of CASE.
        attack("a leaky function in case", "policy", "", vec![
            ok("CREATE FUNCTION pg_temp.leak(text) RETURNS text LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '%', $1; RETURN $1; END $$"),
            ok("SELECT count(*) FROM orders WHERE CASE pg_temp.leak(note) WHEN 'x' THEN false ELSE true END")]),
        // CVE-2023-2454: the elements of CREATE SCHEMA came before the search_path of a definer function.
        attack("a definer function inside create schema", "server",
            "GRANT CREATE ON DATABASE {db} TO {app};
             CREATE FUNCTION last_order() RETURNS int LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS
             $$ BEGIN RETURN (SELECT max(id) FROM orders); END $$; ALTER FUNCTION last_order() OWNER TO {owner}",
            vec![
                ok("CREATE SCHEMA mine CREATE TABLE orders (id int) CREATE TABLE parts (id int) PARTITION BY LIST (id)
                    CREATE TABLE part PARTITION OF parts FOR VALUES IN (public.last_order())"),
                ok("SELECT 1 / (pg_get_expr(relpartbound, oid) = 'FOR VALUES IN (20)')::int FROM pg_class WHERE oid = 'mine.part'::regclass")]),
        // CVE-2023-5870: members of pg_signal_backend reached the workers of extensions, which run as a superuser.
        attack("signals to the worker of the extension", "server", "CREATE ROLE {own} LOGIN; GRANT pg_signal_backend TO {own}", vec![
            ok("SELECT pid FROM pg_stat_activity WHERE backend_type = 'tenant_rls launcher'").by("admin"),
            no("42501", "SELECT pg_cancel_backend({said})"), no("42501", "SELECT pg_terminate_backend({said})")]).by("own", ""),
        // CVE-2026-116311: DROP OWNED took roles out of restrictive policies.
        attack("drop owned and the boundary", "boundary",
            "SET ROLE {owner}; CREATE POLICY wide ON orders USING (true); RESET ROLE",
            vec![super::any("DROP OWNED BY {stranger}").by("stranger"), ok("SELECT note FROM orders ORDER BY id")]),
    ]
}
