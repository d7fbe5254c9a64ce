-- What background workers do, and what a crash has cost.

CREATE FUNCTION @extschema@.tenant_worker_status() RETURNS TABLE (
    pid integer,
    started_at timestamp with time zone,
    worked_at timestamp with time zone,
    rows_folded bigint,
    leases_moved bigint,
    failed_at timestamp with time zone,
    failure text
)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 1 AS 'MODULE_PATHNAME', 'tenant_worker_status_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_worker_status() IS
'what the background worker of this database did last, and how it failed; no row unless the library is preloaded. pid is NULL while there is nothing to do';

CREATE VIEW @extschema@.tenant_leases WITH (security_barrier) AS
SELECT v.tenant, v.resource, v.period_start, v.resets_at, v.at_stake, v.stranded
FROM (
    SELECT l.tenant_id AS tenant, l.resource, l.period_start, l.resets_at, l.chunk AS at_stake, l.stranded
    FROM tenant_rls.leases AS l
    WHERE NOT tenant_rls.sees_all() AND l.tenant_id OPERATOR(pg_catalog.=) @extschema@.current_tenant()
    UNION ALL
    SELECT l.tenant_id AS tenant, l.resource, l.period_start, l.resets_at, l.chunk AS at_stake, l.stranded
    FROM tenant_rls.leases AS l
    WHERE tenant_rls.sees_all()
) AS v;
COMMENT ON VIEW @extschema@.tenant_leases IS
'mode leased: at_stake is what a crash now would count as used at most, stranded what crashes have';
