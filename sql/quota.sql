-- What was used, and which gauges follow the rows of a table.
-- The order of the columns is known to src/registry/scan.rs and src/quota/strict.rs.

-- A row is updated for each call of strict mode: room on the page keeps updates heap-only.
CREATE TABLE tenant_rls.usage (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    resets_at timestamp with time zone NOT NULL,
    used bigint NOT NULL,
    CONSTRAINT usage_pkey PRIMARY KEY (tenant_id, resource, period_start),
    CONSTRAINT usage_used_check CHECK (used OPERATOR(pg_catalog.>=) 0)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- Closed periods: written once, so pages are full.
CREATE TABLE tenant_rls.usage_history (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    resets_at timestamp with time zone NOT NULL,
    used bigint NOT NULL,
    CONSTRAINT usage_history_pkey PRIMARY KEY (tenant_id, resource, period_start),
    CONSTRAINT usage_history_used_check CHECK (used OPERATOR(pg_catalog.>=) 0)
) WITH (fillfactor = 100);

CREATE TABLE tenant_rls.quota_events (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    threshold smallint NOT NULL,
    used bigint NOT NULL,
    quota_limit bigint NOT NULL,
    occurred_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT quota_events_pkey PRIMARY KEY (tenant_id, resource, period_start, threshold)
);

CREATE TABLE tenant_rls.attachments (
    relation regclass NOT NULL,
    root regclass NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    CONSTRAINT attachments_pkey PRIMARY KEY (relation, resource),
    CONSTRAINT attachments_resource_fkey FOREIGN KEY (resource) REFERENCES tenant_rls.resources (resource)
);
CREATE INDEX attachments_resource_idx ON tenant_rls.attachments (resource);

ALTER TABLE tenant_rls.usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.usage_history ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.quota_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.attachments ENABLE ROW LEVEL SECURITY;
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.usage', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.usage_history', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.quota_events', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.attachments', '');
COMMENT ON TABLE tenant_rls.usage IS 'units used, by tenant, resource and period';
COMMENT ON TABLE tenant_rls.usage_history IS 'units used in closed periods, which tenant_rls.close_periods has moved here from tenant_rls.usage';
COMMENT ON TABLE tenant_rls.quota_events IS 'when a tenant has crossed 80 and 100 per cent of a limit, once for each period and threshold';
COMMENT ON TABLE tenant_rls.attachments IS 'tables, partitions and children whose rows a gauge follows';

CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_rls.attachments
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.registry_changed();
CREATE TRIGGER record_change AFTER INSERT OR UPDATE OR DELETE ON tenant_rls.attachments
FOR EACH ROW EXECUTE FUNCTION tenant_rls.record_change();
CREATE TRIGGER record_truncate AFTER TRUNCATE ON tenant_rls.attachments
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.record_truncate();
ALTER TABLE tenant_rls.attachments ENABLE ALWAYS TRIGGER registry_changed;
ALTER TABLE tenant_rls.attachments ENABLE ALWAYS TRIGGER record_change;
ALTER TABLE tenant_rls.attachments ENABLE ALWAYS TRIGGER record_truncate;
CREATE TRIGGER restore_begins BEFORE INSERT ON tenant_rls.attachments
FOR EACH STATEMENT WHEN (pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.=) 0 AND tenant_rls.is_restoring())
EXECUTE FUNCTION tenant_rls.restore_begins();
CREATE TRIGGER restore_ends AFTER INSERT ON tenant_rls.attachments
FOR EACH STATEMENT WHEN (pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.=) 0 AND tenant_rls.is_restoring())
EXECUTE FUNCTION tenant_rls.restore_ends();
ALTER TABLE tenant_rls.attachments ENABLE ALWAYS TRIGGER restore_begins;
ALTER TABLE tenant_rls.attachments ENABLE ALWAYS TRIGGER restore_ends;

CREATE TYPE @extschema@.tenant_quota_result AS (
    allowed boolean,
    granted bigint,
    resource text,
    used bigint,
    held bigint,
    quota_limit bigint,
    remaining bigint,
    period_start timestamp with time zone,
    resets_at timestamp with time zone,
    retry_after interval,
    reason text,
    source text,
    enforcement text,
    mode text,
    reservation_id uuid
);
COMMENT ON TYPE @extschema@.tenant_quota_result IS
'the answer to a quota call: used is what counts now, the units of the caller included; quota_limit and remaining are NULL when unlimited';

CREATE FUNCTION @extschema@.tenant_quota_consume(resource text, amount bigint DEFAULT 1, idempotency_key text DEFAULT NULL)
RETURNS @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_consume';
COMMENT ON FUNCTION @extschema@.tenant_quota_consume(text, bigint, text) IS
'takes amount units for the tenant of the session, or raises 53400 with a JSON object in DETAIL';

CREATE FUNCTION @extschema@.tenant_quota_try_consume(resource text, amount bigint DEFAULT 1, idempotency_key text DEFAULT NULL)
RETURNS @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_try_consume';
COMMENT ON FUNCTION @extschema@.tenant_quota_try_consume(text, bigint, text) IS
'as tenant_quota_consume, but a limit raises nothing: allowed says';

CREATE FUNCTION @extschema@.tenant_quota_check(resource text, amount bigint DEFAULT 1) RETURNS @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_check';
COMMENT ON FUNCTION @extschema@.tenant_quota_check(text, bigint) IS
'what tenant_quota_try_consume would answer now; writes and locks nothing';

CREATE FUNCTION @extschema@.tenant_quota_release(resource text, amount bigint DEFAULT 1) RETURNS @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_release';
COMMENT ON FUNCTION @extschema@.tenant_quota_release(text, bigint) IS
'gives units of a gauge back; 22023 for a counter or below zero';

CREATE FUNCTION @extschema@.tenant_quota_consume_many(amounts jsonb, idempotency_key text DEFAULT NULL)
RETURNS SETOF @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_consume_many';
COMMENT ON FUNCTION @extschema@.tenant_quota_consume_many(jsonb, text) IS
'takes units of several resources, all or nothing: {"api_requests": 1, "compute_seconds": 20}';

CREATE FUNCTION @extschema@.tenant_quota_attach(target regclass, resource text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_quota_attach_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_quota_attach(regclass, text) IS
'lets a gauge follow the rows of a protected table, or their bytes if its unit is byte; several tables may feed one gauge';

CREATE FUNCTION @extschema@.tenant_quota_detach(target regclass, resource text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_quota_detach_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_quota_detach(regclass, text) IS
'takes tenant_quota_attach back: the rows of the table no longer count';

CREATE FUNCTION @extschema@.tenant_quota_reconcile(target regclass) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_quota_reconcile_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_quota_reconcile(regclass) IS
'counts the rows, or their bytes, behind the gauges of a table again; returns how many values were wrong. Blocks writers of these tables meanwhile';

CREATE FUNCTION @extschema@.tenant_plan_impact(plan text, limits jsonb)
RETURNS TABLE (tenant uuid, resource text, used bigint, quota_limit bigint, over_by bigint)
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_plan_impact';
COMMENT ON FUNCTION @extschema@.tenant_plan_impact(text, jsonb) IS
'which tenants of a plan use more than limits like {"users": 5, "projects": null} would allow; changes nothing. A limit of a tenant''s own that wins over the plan is the one that counts';

CREATE FUNCTION @extschema@.tenant_gauge_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'gauge_changed';
COMMENT ON FUNCTION @extschema@.tenant_gauge_changed() IS 'trigger: keeps the gauges of a table equal to its rows, or their bytes';

CREATE FUNCTION tenant_rls.gauge_follow_tree() RETURNS event_trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'gauge_follow_tree';
COMMENT ON FUNCTION tenant_rls.gauge_follow_tree() IS
'event trigger: partitions and children that come and go count, or no longer count, in the gauges of their root';

CREATE FUNCTION tenant_rls.relations_dropped() RETURNS event_trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'relations_dropped';
COMMENT ON FUNCTION tenant_rls.relations_dropped() IS
'event trigger: forgets dropped tables, and what their rows counted in gauges';

CREATE EVENT TRIGGER tenant_rls_follow_tree ON ddl_command_end
WHEN TAG IN (
    'CREATE TABLE', 'CREATE TABLE AS', 'ALTER TABLE', 'CREATE SCHEMA', 'IMPORT FOREIGN SCHEMA', 'CREATE FOREIGN TABLE', 'ALTER FOREIGN TABLE')
EXECUTE FUNCTION tenant_rls.gauge_follow_tree();
CREATE EVENT TRIGGER tenant_rls_relations_dropped ON sql_drop
EXECUTE FUNCTION tenant_rls.relations_dropped();
COMMENT ON EVENT TRIGGER tenant_rls_follow_tree IS 'keeps gauges right when partitions and children come and go';
COMMENT ON EVENT TRIGGER tenant_rls_relations_dropped IS 'forgets dropped tables, and keeps gauges right without their rows';
