-- What was used, against what is allowed. A tenant sees its own; operators and pg_read_all_stats see all.
-- The two branches of each view are gated by a constant, so the branch that does not hold is never started.
-- They stand in a subquery, as a UNION ALL at the top of a view is flattened, and its security barrier with it.

CREATE FUNCTION tenant_rls.sees_all() RETURNS boolean
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'sees_all_wrapper';
COMMENT ON FUNCTION tenant_rls.sees_all() IS 'whether the role sees the usage of all tenants';

CREATE FUNCTION tenant_rls.usage_of(tenant uuid) RETURNS TABLE (
    resource text,
    period_start timestamp with time zone,
    resets_at timestamp with time zone,
    used bigint,
    held bigint,
    quota_limit bigint,
    remaining bigint,
    percent_used numeric,
    enforcement text,
    mode text
)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 5 AS 'MODULE_PATHNAME', 'usage_of_wrapper';
COMMENT ON FUNCTION tenant_rls.usage_of(uuid) IS
'the usage of one tenant in the current periods; of another than the current one only for roles that see all';

CREATE FUNCTION tenant_rls.storage_of(tenant uuid) RETURNS TABLE (
    owner_id uuid,
    target regclass,
    row_count bigint,
    total_bytes bigint
)
LANGUAGE c VOLATILE PARALLEL UNSAFE ROWS 100 AS 'MODULE_PATHNAME', 'storage_of_wrapper';
COMMENT ON FUNCTION tenant_rls.storage_of(uuid) IS
'rows and bytes of a tenant in each protected table; NULL is every tenant, for roles that see all';

CREATE FUNCTION tenant_rls.invariants() RETURNS TABLE (
    tenant uuid,
    resource text,
    finding text,
    expected bigint,
    actual bigint
)
LANGUAGE c STABLE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'invariants_wrapper';
COMMENT ON FUNCTION tenant_rls.invariants() IS 'where what is recorded and what is there disagree, in one snapshot';

CREATE FUNCTION tenant_rls.close_periods(batch bigint) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'close_periods_by_hand_wrapper';
COMMENT ON FUNCTION tenant_rls.close_periods(bigint) IS
'moves units of periods that ended more than an hour ago from tenant_rls.usage to tenant_rls.usage_history, batch rows at most; returns how many';

CREATE VIEW @extschema@.tenant_usage WITH (security_barrier) AS
SELECT
    v.tenant, v.resource, v.period_start, v.resets_at, v.used, v.held, v.quota_limit, v.remaining, v.percent_used,
    v.enforcement, v.mode
FROM (
    SELECT
        t.tenant_id AS tenant, u.resource, u.period_start, u.resets_at, u.used, u.held, u.quota_limit, u.remaining,
        u.percent_used, u.enforcement, u.mode
    FROM tenant_rls.tenants AS t
    CROSS JOIN LATERAL tenant_rls.usage_of(t.tenant_id) AS u
    WHERE NOT tenant_rls.sees_all() AND t.tenant_id OPERATOR(pg_catalog.=) @extschema@.current_tenant()
    UNION ALL
    SELECT
        t.tenant_id AS tenant, u.resource, u.period_start, u.resets_at, u.used, u.held, u.quota_limit, u.remaining,
        u.percent_used, u.enforcement, u.mode
    FROM tenant_rls.tenants AS t
    CROSS JOIN LATERAL tenant_rls.usage_of(t.tenant_id) AS u
    WHERE tenant_rls.sees_all()
) AS v;
COMMENT ON VIEW @extschema@.tenant_usage IS
'usage in the current periods against the limits; quota_limit, remaining and percent_used are NULL when unlimited';

CREATE VIEW @extschema@.tenant_usage_history WITH (security_barrier) AS
SELECT v.tenant, v.resource, v.period_start, v.period_end, v.used
FROM (
    SELECT u.tenant_id AS tenant, u.resource, u.period_start, u.resets_at AS period_end, u.used
    FROM tenant_rls.units AS u
    WHERE NOT tenant_rls.sees_all()
    AND u.tenant_id OPERATOR(pg_catalog.=) @extschema@.current_tenant()
    AND u.resets_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()
    UNION ALL
    SELECT h.tenant_id AS tenant, h.resource, h.period_start, h.resets_at AS period_end, h.used
    FROM tenant_rls.usage_history AS h
    WHERE NOT tenant_rls.sees_all() AND h.tenant_id OPERATOR(pg_catalog.=) @extschema@.current_tenant()
    UNION ALL
    SELECT u.tenant_id AS tenant, u.resource, u.period_start, u.resets_at AS period_end, u.used
    FROM tenant_rls.units AS u
    WHERE tenant_rls.sees_all() AND u.resets_at OPERATOR(pg_catalog.<=) pg_catalog.clock_timestamp()
    UNION ALL
    SELECT h.tenant_id AS tenant, h.resource, h.period_start, h.resets_at AS period_end, h.used
    FROM tenant_rls.usage_history AS h
    WHERE tenant_rls.sees_all()
) AS v;
COMMENT ON VIEW @extschema@.tenant_usage_history IS 'usage in closed periods';

CREATE VIEW @extschema@.tenant_quota_events WITH (security_barrier) AS
SELECT v.tenant, v.resource, v.period_start, v.threshold, v.used, v.quota_limit, v.occurred_at
FROM (
    SELECT
        e.tenant_id AS tenant, e.resource,
        CASE WHEN pg_catalog.isfinite(e.period_start) THEN e.period_start END AS period_start,
        e.threshold, e.used, e.quota_limit, e.occurred_at
    FROM tenant_rls.quota_events AS e
    WHERE NOT tenant_rls.sees_all() AND e.tenant_id OPERATOR(pg_catalog.=) @extschema@.current_tenant()
    UNION ALL
    SELECT
        e.tenant_id AS tenant, e.resource,
        CASE WHEN pg_catalog.isfinite(e.period_start) THEN e.period_start END AS period_start,
        e.threshold, e.used, e.quota_limit, e.occurred_at
    FROM tenant_rls.quota_events AS e
    WHERE tenant_rls.sees_all()
) AS v;
COMMENT ON VIEW @extschema@.tenant_quota_events IS
'when 80 and 100 per cent of a limit were reached, once for each period; period_start is NULL for the period none';

CREATE VIEW @extschema@.tenant_storage WITH (security_barrier) AS
SELECT v.tenant, v.target, v.row_count, v.total_bytes
FROM (
    SELECT s.owner_id AS tenant, s.target, s.row_count, s.total_bytes
    FROM tenant_rls.storage_of(@extschema@.current_tenant()) AS s
    WHERE NOT tenant_rls.sees_all() AND @extschema@.current_tenant() IS NOT NULL
    UNION ALL
    SELECT s.owner_id AS tenant, s.target, s.row_count, s.total_bytes
    FROM tenant_rls.storage_of(NULL) AS s
    WHERE tenant_rls.sees_all()
) AS v;
COMMENT ON VIEW @extschema@.tenant_storage IS
'rows and bytes per tenant and protected table, counted when the view is read; a bigint or integer key without a tenant is left out';

CREATE VIEW @extschema@.tenant_quota_invariants AS
SELECT i.tenant, i.resource, i.finding, i.expected, i.actual
FROM tenant_rls.invariants() AS i;
COMMENT ON VIEW @extschema@.tenant_quota_invariants IS
'must be empty, also while traffic runs: every place where usage, rows and registry disagree';
