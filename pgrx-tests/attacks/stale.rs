//! Sessions that know what no longer holds.

use super::{Attack, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    let read = "SELECT note FROM orders";
    let after = |name, guard, change: &'static str, state: &'static str| {
        attack(
            name,
            guard,
            "",
            vec![ok("SELECT count(*) FROM orders"), ok(change).by("admin"), no(state, read)],
        )
    };
    let fetch = |name, what, change: &'static str, state: &'static str| {
        attack(
            name,
            "open cursor",
            "",
            vec![ok(what), ok("FETCH 1 FROM c"), ok(change).by("admin"), no(state, "FETCH ALL FROM c")],
        )
    };
    vec![
        after("a suspension", "invalidation", "SELECT tenant_suspend('{A}')", "55000"),
        after("a deletion", "invalidation", "SELECT tenant_delete('{A}')", "55000"),
        after("a revoked grant", "invalidation", "SELECT tenant_revoke('{app}', '{A}')", "42501"),
        after("a row of the registry that was deleted by hand", "invalidation", "DELETE FROM tenant_rls.tenants WHERE tenant_id = '{A}'", "42501"),
        after("a suspension by hand with triggers off", "invalidation", "SET session_replication_role = replica; UPDATE tenant_rls.tenants SET status = 'suspended' WHERE tenant_id = '{A}'; RESET session_replication_role", "55000"),
        after("grants deleted by hand", "invalidation", "DELETE FROM tenant_rls.grants WHERE role_name = '{app}'", "42501"),
        attack("a suspension in the middle of a transaction", "invalidation", "", vec![
            ok("BEGIN; SELECT count(*) FROM orders"), ok("SELECT tenant_suspend('{A}')").by("admin"), no("55000", read)]),
        attack("a suspension in a repeatable read transaction", "invalidation", "", vec![
            ok("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM orders"), ok("SELECT tenant_suspend('{A}')").by("admin"), no("55000", read)]),
        attack("a suspension under a generic plan", "invalidation", "", vec![
            ok("SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders; BEGIN; EXECUTE p"),
            ok("SELECT tenant_suspend('{A}')").by("admin"), no("55000", "EXECUTE p")]),
        attack("a revocation under a plan of plpgsql", "invalidation", "", vec![
            ok("CREATE FUNCTION pg_temp.f() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN (SELECT count(*) FROM orders); END $$; BEGIN; SELECT pg_temp.f()"),
            ok("SELECT tenant_revoke('{app}', '{A}')").by("admin"), no("42501", "SELECT pg_temp.f()")]),
        fetch("a cursor after a suspension", "BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders", "SELECT tenant_suspend('{A}')", "55000"),
        fetch("a cursor after a revocation", "BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders", "SELECT tenant_revoke('{app}', '{A}')", "42501"),
        fetch("a cursor that has sorted its rows, after a suspension", "BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders ORDER BY note", "SELECT tenant_suspend('{A}')", "55000"),
        fetch("a cursor over partitions after a deletion", "BEGIN; DECLARE c CURSOR FOR SELECT note FROM events", "SELECT tenant_delete('{A}')", "55000"),
        fetch("a cursor of a tenant that was born again", "BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders", "DELETE FROM tenant_rls.tenants WHERE tenant_id = '{A}'; SELECT tenant_create('{A}', 'free')", "55000"),
        attack("a cursor kept over the commit after a suspension", "open cursor", "", vec![
            ok("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT note FROM orders; FETCH 1 FROM c"),
            ok("SELECT tenant_suspend('{A}')").by("admin"), no("55000", "COMMIT"), no("34000", "FETCH ALL FROM c")]),
        attack("a cursor after a failed attempt", "open cursor", "", vec![
            ok("BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders; FETCH 1 FROM c; SAVEPOINT s"),
            no("55000", "SET app.current_tenant = '{D}'"), ok("ROLLBACK TO s"), no("55000", "FETCH ALL FROM c")]),
        attack("a tenant that was born again", "reborn", "", vec![
            ok("SELECT count(*) FROM orders"),
            ok("DELETE FROM tenant_rls.tenants WHERE tenant_id = '{A}'; SELECT tenant_create('{A}', 'free')").by("admin"),
            no("55000", read)]),
        attack("a quota call after a suspension", "invalidation", "", vec![
            ok("SELECT used FROM tenant_quota_consume('calls')"), ok("SELECT tenant_suspend('{A}')").by("admin"), no("55000", "SELECT used FROM tenant_quota_consume('calls')")]),
        attack("the context after a suspension", "invalidation", "", vec![
            ok("SELECT tenant_context() ->> 'plan'"), ok("SELECT tenant_suspend('{A}')").by("admin"), no("55000", "SELECT tenant_context()")]),
        attack("a write behind the fence", "fence", "", vec![
            ok("SELECT count(*) FROM orders"), ok("SELECT tenant_fence('{A}')").by("admin"), no("25006", "INSERT INTO orders (id) VALUES (300)")]),
        attack("an update behind the fence that finds nothing", "fence", "", vec![
            ok("SELECT tenant_fence('{A}')").by("admin"), no("25006", "UPDATE orders SET note = 'late' WHERE false")]),
        attack("a row lock behind the fence", "fence", "", vec![
            ok("SELECT tenant_fence('{A}')").by("admin"), no("25006", "SELECT note FROM orders FOR KEY SHARE")]),
        attack("a merge behind the fence", "fence", "", vec![
            ok("SELECT tenant_fence('{A}')").by("admin"),
            no("25006", "MERGE INTO orders AS o USING (VALUES (1)) AS v (id) ON o.id = v.id WHEN MATCHED THEN DELETE")]),
        attack("a data-modifying query behind the fence", "fence", "", vec![
            ok("SELECT tenant_fence('{A}')").by("admin"), no("25006", "WITH d AS (DELETE FROM items RETURNING id) SELECT * FROM d")]),
        attack("a quota call behind the fence", "fence", "", vec![
            ok("SELECT tenant_fence('{A}')").by("admin"), no("25006", "SELECT used FROM tenant_quota_consume('calls')")]),
        attack("a trigger of a read behind the fence", "fence",
            "CREATE FUNCTION write_log() RETURNS int LANGUAGE sql AS 'INSERT INTO public.orders (id) VALUES (301) RETURNING id'",
            vec![ok("SELECT tenant_fence('{A}')").by("admin"), no("25006", "SELECT write_log()")]),
        attack("writes that keep a fence of B waiting", "fence lock", "", vec![
            ok("BEGIN; UPDATE orders SET note = 'open'; INSERT INTO papers (id) VALUES (50)"),
            ok("SELECT tenant_fence('{B}', '1 s'), tenant_unfence('{B}')").by("admin")]),
    ]
}
