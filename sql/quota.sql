-- What was used, and which gauges follow the rows of a table.
-- The order of the columns is known to src/registry/scan.rs and src/quota/strict.rs.

-- A row is updated for each call of strict mode: room on the page keeps updates heap-only.
CREATE TABLE tenant_rls.usage (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    resets_at timestamp with time zone NOT NULL,
    used bigint NOT NULL,
    CONSTRAINT usage_pkey PRIMARY KEY (tenant_id, resource, period_start)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 500);

-- What was added to that since, one row for each transaction and key, folded by a worker: written once, never updated.
-- An index would cost every transaction; the rows are few, as they are folded each second.
CREATE TABLE tenant_rls.ledger (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    resets_at timestamp with time zone NOT NULL,
    units bigint NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- What a crash would strand of the leases, and what crashes have stranded.
CREATE TABLE tenant_rls.leases (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    resets_at timestamp with time zone NOT NULL,
    chunk bigint NOT NULL,
    stranded bigint NOT NULL DEFAULT 0,
    CONSTRAINT leases_pkey PRIMARY KEY (tenant_id, resource, period_start)
) WITH (fillfactor = 50);

CREATE TABLE tenant_rls.idempotency_keys (
    tenant_id uuid NOT NULL,
    key text COLLATE pg_catalog."C" NOT NULL,
    request jsonb NOT NULL,
    answers jsonb NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    CONSTRAINT idempotency_keys_pkey PRIMARY KEY (tenant_id, key)
);
CREATE INDEX idempotency_keys_expires_at_idx ON tenant_rls.idempotency_keys (expires_at);

-- Quota calls read what is held by the second index, which has those rows alone.
CREATE TABLE tenant_rls.reservations (
    reservation_id uuid NOT NULL DEFAULT pg_catalog.gen_random_uuid(),
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    resets_at timestamp with time zone NOT NULL,
    units bigint NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    state text COLLATE pg_catalog."C" NOT NULL DEFAULT 'held',
    actual bigint,
    created_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT reservations_pkey PRIMARY KEY (reservation_id),
    CONSTRAINT reservations_units_check CHECK (units OPERATOR(pg_catalog.>) 0),
    CONSTRAINT reservations_state_check
        CHECK (state OPERATOR(pg_catalog.=) ANY (ARRAY[
            'held'::pg_catalog.text, 'settled'::pg_catalog.text, 'cancelled'::pg_catalog.text, 'expired'::pg_catalog.text])),
    CONSTRAINT reservations_actual_check
        CHECK ((state OPERATOR(pg_catalog.=) 'settled') OPERATOR(pg_catalog.=) (actual IS NOT NULL)
            AND actual OPERATOR(pg_catalog.>=) 0)
);
CREATE INDEX reservations_held_idx ON tenant_rls.reservations (tenant_id, resource, period_start)
WHERE state OPERATOR(pg_catalog.=) 'held';
CREATE INDEX reservations_due_idx ON tenant_rls.reservations (expires_at) WHERE state OPERATOR(pg_catalog.=) 'held';
CREATE INDEX reservations_ended_idx ON tenant_rls.reservations (expires_at) WHERE state OPERATOR(pg_catalog.<>) 'held';

-- Closed periods: written once, so pages are full. What comes back afterwards is subtracted: an INSERT that ends as an UPDATE
-- begins below zero, which a check would refuse.
CREATE TABLE tenant_rls.usage_history (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    resets_at timestamp with time zone NOT NULL,
    used bigint NOT NULL,
    CONSTRAINT usage_history_pkey PRIMARY KEY (tenant_id, resource, period_start)
) WITH (fillfactor = 100);

CREATE TABLE tenant_rls.quota_events (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    period_start timestamp with time zone NOT NULL,
    threshold smallint NOT NULL,
    used bigint NOT NULL,
    quota_limit bigint NOT NULL,
    occurred_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    notified boolean NOT NULL DEFAULT false,
    CONSTRAINT quota_events_pkey PRIMARY KEY (tenant_id, resource, period_start, threshold)
);
CREATE INDEX quota_events_new_idx ON tenant_rls.quota_events (occurred_at) WHERE NOT notified;

CREATE TABLE tenant_rls.attachments (
    relation regclass NOT NULL,
    root regclass NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    CONSTRAINT attachments_pkey PRIMARY KEY (relation, resource),
    CONSTRAINT attachments_resource_fkey FOREIGN KEY (resource) REFERENCES tenant_rls.resources (resource)
);
CREATE INDEX attachments_resource_idx ON tenant_rls.attachments (resource);

CREATE VIEW tenant_rls.units AS
SELECT s.tenant_id, s.resource, s.period_start, pg_catalog.max(s.resets_at) AS resets_at, pg_catalog.sum(s.units)::bigint AS used
FROM (
    SELECT u.tenant_id, u.resource, u.period_start, u.resets_at, u.used AS units
    FROM tenant_rls.usage AS u
    UNION ALL
    SELECT l.tenant_id, l.resource, l.period_start, l.resets_at, l.units
    FROM tenant_rls.ledger AS l
) AS s
GROUP BY s.tenant_id, s.resource, s.period_start;

ALTER TABLE tenant_rls.usage ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.ledger ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.leases ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.attachments ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.usage_history ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.quota_events ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.idempotency_keys ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.reservations ENABLE ROW LEVEL SECURITY;
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.usage', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.ledger', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.leases', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.idempotency_keys', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.reservations', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.usage_history', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.quota_events', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.attachments', '');
COMMENT ON TABLE tenant_rls.usage IS 'units used, by tenant, resource and period, without those in tenant_rls.ledger';
COMMENT ON TABLE tenant_rls.ledger IS 'units that transactions have added since, until a worker folds them into tenant_rls.usage';
COMMENT ON TABLE tenant_rls.idempotency_keys IS 'quota calls with an idempotency key, and what they were answered';
COMMENT ON TABLE tenant_rls.reservations IS 'units that are held, and what became of those that were';
COMMENT ON TABLE tenant_rls.usage_history IS 'units used in closed periods, which tenant_rls.close_periods has moved here from tenant_rls.usage';
COMMENT ON TABLE tenant_rls.quota_events IS 'when a tenant has crossed 80 and 100 per cent of a limit, once for each period and threshold';
COMMENT ON VIEW tenant_rls.units IS 'units used, by tenant, resource and period, as they are committed';
COMMENT ON TABLE tenant_rls.leases IS 'mode leased: units that a crash would strand, and those that crashes have stranded';

-- Shared memory knows what the functions write. What is written by hand, by a purge or by a restore it looks up again.
CREATE FUNCTION tenant_rls.units_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'units_changed';
COMMENT ON FUNCTION tenant_rls.units_changed() IS 'trigger: tells shared memory that units were changed by other means';

CREATE TRIGGER units_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_rls.usage
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.units_changed();
CREATE TRIGGER units_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_rls.ledger
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.units_changed();
ALTER TABLE tenant_rls.usage ENABLE ALWAYS TRIGGER units_changed;
ALTER TABLE tenant_rls.ledger ENABLE ALWAYS TRIGGER units_changed;
-- What shared memory knows of an earlier installation in this database is not of these tables: the trigger says so.
DELETE FROM tenant_rls.ledger;
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
'takes amount units for the tenant of the session, or raises 53400 with a JSON object in DETAIL; once for each idempotency key';

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

CREATE FUNCTION @extschema@.tenant_quota_reserve(resource text, amount bigint, ttl interval, idempotency_key text DEFAULT NULL)
RETURNS @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_reserve';
COMMENT ON FUNCTION @extschema@.tenant_quota_reserve(text, bigint, interval, text) IS
'holds amount units for at most the time ttl (30 days), or raises 53400; the answer has the reservation_id';

CREATE FUNCTION @extschema@.tenant_quota_try_reserve(resource text, amount bigint, ttl interval, idempotency_key text DEFAULT NULL)
RETURNS @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_try_reserve';
COMMENT ON FUNCTION @extschema@.tenant_quota_try_reserve(text, bigint, interval, text) IS
'as tenant_quota_reserve, but a limit raises nothing: allowed says';

CREATE FUNCTION @extschema@.tenant_quota_settle(reservation_id uuid, actual bigint) RETURNS @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_settle';
COMMENT ON FUNCTION @extschema@.tenant_quota_settle(uuid, bigint) IS
'ends a reservation at the units that it really took; more than were held must fit in the limit, else 53400. 55000 when it has expired';

CREATE FUNCTION @extschema@.tenant_quota_cancel(reservation_id uuid) RETURNS @extschema@.tenant_quota_result
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_cancel';
COMMENT ON FUNCTION @extschema@.tenant_quota_cancel(uuid) IS
'ends a reservation and gives all its units back';

CREATE FUNCTION tenant_rls.quota_sweep(batch bigint DEFAULT 1000) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'quota_sweep_wrapper';
COMMENT ON FUNCTION tenant_rls.quota_sweep(bigint) IS
'ends reservations whose time is over, and forgets what is kept no longer, at most batch rows of each; waits for nobody. Returns how many rows it changed';

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
