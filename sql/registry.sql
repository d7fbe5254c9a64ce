-- Tenants, plans, resources and limits; who may act for whom; the record of every change.
-- Row level security without policies is the default deny: a careless GRANT opens nothing.
-- The order of the columns is known to src/registry/scan.rs.

CREATE SCHEMA tenant_rls;
REVOKE ALL ON SCHEMA tenant_rls FROM PUBLIC;

CREATE TABLE tenant_rls.plans (
    plan text COLLATE pg_catalog."C" NOT NULL,
    based_on text COLLATE pg_catalog."C",
    installed boolean NOT NULL DEFAULT false,
    created_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT plans_pkey PRIMARY KEY (plan),
    CONSTRAINT plans_name_check CHECK (pg_catalog.length(plan) OPERATOR(pg_catalog.>) 0)
);

CREATE TABLE tenant_rls.resources (
    resource text COLLATE pg_catalog."C" NOT NULL,
    kind text COLLATE pg_catalog."C" NOT NULL,
    unit text COLLATE pg_catalog."C" NOT NULL,
    period text COLLATE pg_catalog."C" NOT NULL,
    installed boolean NOT NULL DEFAULT false,
    created_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT resources_pkey PRIMARY KEY (resource),
    CONSTRAINT resources_name_check CHECK (pg_catalog.length(resource) OPERATOR(pg_catalog.>) 0),
    CONSTRAINT resources_kind_check
        CHECK (kind OPERATOR(pg_catalog.=) ANY (ARRAY['counter'::pg_catalog.text, 'gauge'::pg_catalog.text])),
    CONSTRAINT resources_period_check
        CHECK (period OPERATOR(pg_catalog.=) ANY (ARRAY[
            'second'::pg_catalog.text, 'minute'::pg_catalog.text, 'hour'::pg_catalog.text, 'day'::pg_catalog.text,
            'week'::pg_catalog.text, 'month'::pg_catalog.text, 'year'::pg_catalog.text, 'none'::pg_catalog.text])),
    CONSTRAINT resources_gauge_period_check
        CHECK (kind OPERATOR(pg_catalog.=) 'counter'::pg_catalog.text OR period OPERATOR(pg_catalog.=) 'none'::pg_catalog.text)
);

CREATE TABLE tenant_rls.plan_limits (
    plan text COLLATE pg_catalog."C" NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    quota_limit bigint,
    enforcement text COLLATE pg_catalog."C" NOT NULL DEFAULT 'hard',
    mode text COLLATE pg_catalog."C",
    installed boolean NOT NULL DEFAULT false,
    CONSTRAINT plan_limits_pkey PRIMARY KEY (plan, resource),
    CONSTRAINT plan_limits_plan_fkey FOREIGN KEY (plan) REFERENCES tenant_rls.plans (plan) ON DELETE CASCADE,
    CONSTRAINT plan_limits_resource_fkey FOREIGN KEY (resource) REFERENCES tenant_rls.resources (resource) ON DELETE CASCADE,
    CONSTRAINT plan_limits_limit_check CHECK (quota_limit OPERATOR(pg_catalog.>=) 0),
    CONSTRAINT plan_limits_enforcement_check
        CHECK (enforcement OPERATOR(pg_catalog.=) ANY (ARRAY[
            'hard'::pg_catalog.text, 'soft'::pg_catalog.text, 'shadow'::pg_catalog.text])),
    CONSTRAINT plan_limits_mode_check
        CHECK (mode OPERATOR(pg_catalog.=) ANY (ARRAY[
            'strict'::pg_catalog.text, 'escrow'::pg_catalog.text, 'leased'::pg_catalog.text]))
);

CREATE TABLE tenant_rls.tenants (
    tenant_id uuid NOT NULL,
    tenant_key bigint,
    name text,
    plan text COLLATE pg_catalog."C" NOT NULL,
    region text,
    status text COLLATE pg_catalog."C" NOT NULL DEFAULT 'active',
    status_reason text,
    settings jsonb NOT NULL DEFAULT '{}',
    billing_anchor timestamp with time zone,
    time_zone text COLLATE pg_catalog."C",
    created_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT tenants_pkey PRIMARY KEY (tenant_id),
    CONSTRAINT tenants_tenant_key_key UNIQUE (tenant_key),
    CONSTRAINT tenants_plan_fkey FOREIGN KEY (plan) REFERENCES tenant_rls.plans (plan),
    CONSTRAINT tenants_status_check
        CHECK (status OPERATOR(pg_catalog.=) ANY (ARRAY[
            'active'::pg_catalog.text, 'suspended'::pg_catalog.text, 'fenced'::pg_catalog.text, 'deleted'::pg_catalog.text]))
);

-- What a tenant's periods were counted from, in order: a change holds from the next period on.
CREATE TABLE tenant_rls.billing_changes (
    tenant_id uuid NOT NULL,
    changed_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    billing_anchor timestamp with time zone,
    time_zone text COLLATE pg_catalog."C",
    CONSTRAINT billing_changes_pkey PRIMARY KEY (tenant_id, changed_at),
    CONSTRAINT billing_changes_tenant_fkey FOREIGN KEY (tenant_id) REFERENCES tenant_rls.tenants (tenant_id) ON DELETE CASCADE
);

CREATE TABLE tenant_rls.overrides (
    tenant_id uuid NOT NULL,
    resource text COLLATE pg_catalog."C" NOT NULL,
    quota_limit bigint,
    expires_at timestamp with time zone,
    CONSTRAINT overrides_pkey PRIMARY KEY (tenant_id, resource),
    CONSTRAINT overrides_tenant_fkey FOREIGN KEY (tenant_id) REFERENCES tenant_rls.tenants (tenant_id) ON DELETE CASCADE,
    CONSTRAINT overrides_resource_fkey FOREIGN KEY (resource) REFERENCES tenant_rls.resources (resource) ON DELETE CASCADE,
    CONSTRAINT overrides_limit_check CHECK (quota_limit OPERATOR(pg_catalog.>=) 0)
);

-- tenant_id NULL: every tenant. role_oid is what counts; role_name is what a dump carries, so that
-- a role which is dropped and made again under the same name inherits nothing.
CREATE TABLE tenant_rls.grants (
    role_name text COLLATE pg_catalog."C" NOT NULL,
    role_oid oid,
    tenant_id uuid,
    ticket_required boolean NOT NULL DEFAULT false,
    CONSTRAINT grants_key UNIQUE NULLS NOT DISTINCT (role_name, tenant_id)
);
CREATE INDEX grants_tenant_idx ON tenant_rls.grants (tenant_id);

CREATE TABLE tenant_rls.operators (
    role_name text COLLATE pg_catalog."C" NOT NULL,
    role_oid oid,
    CONSTRAINT operators_pkey PRIMARY KEY (role_name)
);

-- Installed rows that were deleted: a restore, which first installs them again, deletes them once more.
CREATE TABLE tenant_rls.removed_defaults (
    relation text COLLATE pg_catalog."C" NOT NULL,
    key text[] COLLATE pg_catalog."C" NOT NULL,
    CONSTRAINT removed_defaults_pkey PRIMARY KEY (relation, key)
);

CREATE TABLE tenant_rls.changes (
    change_id bigint GENERATED BY DEFAULT AS IDENTITY,
    changed_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    changed_by text COLLATE pg_catalog."C" NOT NULL DEFAULT SESSION_USER,
    acting_as text COLLATE pg_catalog."C" NOT NULL,
    relation text COLLATE pg_catalog."C" NOT NULL,
    command text COLLATE pg_catalog."C" NOT NULL,
    old_row jsonb,
    new_row jsonb,
    CONSTRAINT changes_pkey PRIMARY KEY (change_id)
);

ALTER TABLE tenant_rls.plans ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.resources ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.plan_limits ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.billing_changes ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.overrides ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.grants ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.operators ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.removed_defaults ENABLE ROW LEVEL SECURITY;
ALTER TABLE tenant_rls.changes ENABLE ROW LEVEL SECURITY;

SELECT pg_catalog.pg_extension_config_dump('tenant_rls.plans', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.resources', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.plan_limits', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.tenants', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.billing_changes', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.overrides', '');
-- Only what gives something here is dumped: a restore looks the role up by its name, which another one may have by now.
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.grants', $condition$
    WHERE EXISTS (
        SELECT FROM pg_catalog.pg_roles AS r
        WHERE r.oid OPERATOR(pg_catalog.=) role_oid
        AND r.rolname::pg_catalog.text OPERATOR(pg_catalog.=) role_name)$condition$);
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.operators', $condition$
    WHERE EXISTS (
        SELECT FROM pg_catalog.pg_roles AS r
        WHERE r.oid OPERATOR(pg_catalog.=) role_oid
        AND r.rolname::pg_catalog.text OPERATOR(pg_catalog.=) role_name)$condition$);
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.removed_defaults', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.changes', '');
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.changes_change_id_seq', '');

COMMENT ON SCHEMA tenant_rls IS 'tables of the extension tenant_rls; reached through its functions and views';
COMMENT ON TABLE tenant_rls.plans IS 'plans that tenants are on';
COMMENT ON TABLE tenant_rls.resources IS 'what is limited: a counter of a period, or a gauge';
COMMENT ON TABLE tenant_rls.plan_limits IS 'the limit of a resource on a plan; quota_limit NULL is unlimited, 0 is none, no row is an error';
COMMENT ON TABLE tenant_rls.tenants IS 'the tenants; settings are validated against this table';
COMMENT ON TABLE tenant_rls.billing_changes IS 'what the periods of a tenant were counted from, and since when';
COMMENT ON TABLE tenant_rls.overrides IS 'limits of one tenant that win over its plan until they expire';
COMMENT ON TABLE tenant_rls.grants IS 'which role may act for which tenant; tenant_id NULL is every tenant';
COMMENT ON TABLE tenant_rls.operators IS 'roles that run the registry and see the usage of all tenants';
COMMENT ON TABLE tenant_rls.removed_defaults IS 'installed rows that were deleted, so that a restore does not bring them back';
COMMENT ON TABLE tenant_rls.changes IS 'who changed what in the registry, when, from what to what';
COMMENT ON SEQUENCE tenant_rls.changes_change_id_seq IS 'numbers of changes';

-- The plans and limits that come with the extension. They stand before the triggers: a fresh
-- installation is no change.
INSERT INTO tenant_rls.resources (resource, kind, unit, period, installed)
VALUES
    ('api_requests', 'counter', 'request', 'month', true),
    ('storage_bytes', 'gauge', 'byte', 'none', true),
    ('compute_seconds', 'counter', 'second', 'month', true),
    ('users', 'gauge', 'user', 'none', true),
    ('projects', 'gauge', 'project', 'none', true),
    ('cache_bytes', 'gauge', 'byte', 'none', true);

INSERT INTO tenant_rls.plans (plan, installed)
VALUES ('free', true), ('starter', true), ('professional', true), ('enterprise', true);

INSERT INTO tenant_rls.plan_limits (plan, resource, quota_limit, installed)
VALUES
    ('free', 'api_requests', 10000, true),
    ('free', 'storage_bytes', 1073741824, true),
    ('free', 'compute_seconds', 36000, true),
    ('free', 'users', 3, true),
    ('free', 'projects', 1, true),
    ('free', 'cache_bytes', 16777216, true),
    ('starter', 'api_requests', 100000, true),
    ('starter', 'storage_bytes', 10737418240, true),
    ('starter', 'compute_seconds', 360000, true),
    ('starter', 'users', 10, true),
    ('starter', 'projects', 5, true),
    ('starter', 'cache_bytes', 67108864, true),
    ('professional', 'api_requests', 1000000, true),
    ('professional', 'storage_bytes', 107374182400, true),
    ('professional', 'compute_seconds', 3600000, true),
    ('professional', 'users', 50, true),
    ('professional', 'projects', 25, true),
    ('professional', 'cache_bytes', 268435456, true),
    ('enterprise', 'api_requests', NULL, true),
    ('enterprise', 'storage_bytes', 1073741824000, true),
    ('enterprise', 'compute_seconds', NULL, true),
    ('enterprise', 'users', NULL, true),
    ('enterprise', 'projects', NULL, true),
    ('enterprise', 'cache_bytes', 1073741824, true);

-- Every backend forgets what it knows of the registry when a change of it commits.
CREATE FUNCTION tenant_rls.registry_changed() RETURNS trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'registry_changed';
COMMENT ON FUNCTION tenant_rls.registry_changed() IS 'trigger: tells every backend to look the registry up again';

-- True while a dump is being loaded by the owner of the tables: pg_dump sets these two, our functions are not at work.
CREATE FUNCTION tenant_rls.is_restoring() RETURNS boolean
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'is_restoring_wrapper';
COMMENT ON FUNCTION tenant_rls.is_restoring() IS 'whether rows come from a dump rather than from a user';

-- The arguments of the trigger are columns that are nobody's to read, in the record neither.
CREATE FUNCTION tenant_rls.record_change() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    secrets text[] := coalesce(TG_ARGV, '{}');
BEGIN
    IF tenant_rls.is_restoring() THEN
        RETURN NULL;
    END IF;
    INSERT INTO tenant_rls.changes (acting_as, relation, command, old_row, new_row)
    VALUES (
        tenant_rls.acting_role(),
        TG_TABLE_NAME,
        TG_OP,
        CASE WHEN TG_OP IN ('UPDATE', 'DELETE') THEN pg_catalog.to_jsonb(OLD) - secrets END,
        CASE WHEN TG_OP IN ('UPDATE', 'INSERT') THEN pg_catalog.to_jsonb(NEW) - secrets END
    );
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tenant_rls.record_change() IS 'trigger: writes a row of tenant_rls.changes for each row that changed';

CREATE FUNCTION tenant_rls.record_truncate() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO tenant_rls.changes (acting_as, relation, command)
    VALUES (tenant_rls.acting_role(), TG_TABLE_NAME, TG_OP);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tenant_rls.record_truncate() IS 'trigger: writes a row of tenant_rls.changes for a TRUNCATE';

CREATE FUNCTION tenant_rls.acting_role() RETURNS text
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'acting_role_wrapper';
COMMENT ON FUNCTION tenant_rls.acting_role() IS 'the role that counts for rights: SET ROLE is followed, a SECURITY DEFINER function is not';

-- pg_restore --jobs loads our tables side by side and knows nothing of the foreign keys between them, which the
-- dump as a whole satisfies: each table is loaded without their checks, one table at a time. What triggers insert
-- meanwhile is part of the load.
CREATE FUNCTION tenant_rls.restore_begins() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE tenant_rls.removed_defaults IN SHARE ROW EXCLUSIVE MODE;
    PERFORM pg_catalog.set_config('session_replication_role', 'replica', true);
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tenant_rls.restore_begins() IS 'trigger: the rows that follow come from a dump, in any order';

CREATE FUNCTION tenant_rls.restore_ends() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM pg_catalog.set_config('session_replication_role', s.reset_val, true)
    FROM pg_catalog.pg_settings AS s
    WHERE s.name = 'session_replication_role';
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tenant_rls.restore_ends() IS 'trigger: takes back what restore_begins set';

-- A dump holds the installed rows as their owner left them: they replace what CREATE EXTENSION has just installed.
CREATE FUNCTION tenant_rls.replace_default() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- An own row in the place of an installed one that was deleted comes as well.
    IF NOT NEW.installed AND NOT tenant_rls.is_restoring() THEN
        RETURN NEW;
    END IF;
    CASE TG_TABLE_NAME
        WHEN 'plans' THEN
            UPDATE tenant_rls.plans AS p
            SET based_on = NEW.based_on, installed = NEW.installed, created_at = NEW.created_at
            WHERE p.plan = NEW.plan AND p.installed;
        WHEN 'resources' THEN
            UPDATE tenant_rls.resources AS r
            SET kind = NEW.kind, unit = NEW.unit, period = NEW.period, installed = NEW.installed,
                created_at = NEW.created_at
            WHERE r.resource = NEW.resource AND r.installed;
        ELSE
            UPDATE tenant_rls.plan_limits AS l
            SET quota_limit = NEW.quota_limit, enforcement = NEW.enforcement, mode = NEW.mode,
                installed = NEW.installed
            WHERE l.plan = NEW.plan AND l.resource = NEW.resource AND l.installed;
    END CASE;
    IF FOUND THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION tenant_rls.replace_default() IS 'trigger: a row of a dump replaces the one just installed';

-- The arguments of the triggers are the columns of the key.
CREATE FUNCTION tenant_rls.remember_removal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    removed jsonb[];
    kept jsonb;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        EXECUTE pg_catalog.format(
            'SELECT array_agg(to_jsonb(t)) FROM tenant_rls.%I AS t WHERE t.installed', TG_TABLE_NAME) INTO removed;
    ELSIF OLD.installed THEN
        removed := ARRAY[pg_catalog.to_jsonb(OLD)];
        IF TG_OP = 'UPDATE' THEN
            kept := pg_catalog.to_jsonb(NEW);
        END IF;
    END IF;
    INSERT INTO tenant_rls.removed_defaults (relation, key)
    SELECT TG_TABLE_NAME, ARRAY(SELECT r.gone ->> c FROM pg_catalog.unnest(TG_ARGV) AS c)
    FROM pg_catalog.unnest(removed) AS r (gone)
    WHERE EXISTS (SELECT FROM pg_catalog.unnest(TG_ARGV) AS c WHERE r.gone ->> c IS DISTINCT FROM kept ->> c)
    ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tenant_rls.remember_removal() IS
'trigger: keeps in mind that an installed row was deleted, renamed or truncated';

CREATE FUNCTION tenant_rls.repeat_removal() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF EXISTS (SELECT FROM tenant_rls.removed_defaults AS d WHERE d.relation = NEW.relation AND d.key = NEW.key) THEN
        RETURN NULL;
    END IF;
    CASE NEW.relation
        WHEN 'plans' THEN
            DELETE FROM tenant_rls.plans AS p WHERE p.plan = NEW.key[1] AND p.installed;
        WHEN 'resources' THEN
            DELETE FROM tenant_rls.resources AS r WHERE r.resource = NEW.key[1] AND r.installed;
        ELSE
            DELETE FROM tenant_rls.plan_limits AS l
            WHERE l.plan = NEW.key[1] AND l.resource = NEW.key[2] AND l.installed;
    END CASE;
    -- The deletion has written this very row.
    IF FOUND THEN
        RETURN NULL;
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION tenant_rls.repeat_removal() IS 'trigger: deletes an installed row that was deleted in the dumped database';

CREATE FUNCTION tenant_rls.record_billing() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' THEN
        IF OLD.billing_anchor IS DISTINCT FROM NEW.billing_anchor OR OLD.time_zone IS DISTINCT FROM NEW.time_zone THEN
            INSERT INTO tenant_rls.billing_changes (tenant_id, billing_anchor, time_zone)
            VALUES (NEW.tenant_id, NEW.billing_anchor, NEW.time_zone);
        END IF;
    ELSIF NOT tenant_rls.is_restoring() THEN
        INSERT INTO tenant_rls.billing_changes (tenant_id, changed_at, billing_anchor, time_zone)
        VALUES (NEW.tenant_id, '-infinity', NEW.billing_anchor, NEW.time_zone);
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tenant_rls.record_billing() IS 'trigger: keeps what the periods of a tenant were counted from before';

CREATE FUNCTION tenant_rls.resolve_role() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT a.oid INTO NEW.role_oid FROM pg_catalog.pg_authid AS a WHERE a.rolname = NEW.role_name;
    IF NOT FOUND THEN
        RAISE WARNING 'role "%" of a tenant grant does not exist', NEW.role_name
            USING HINT = 'The grant gives nothing. Create the role, then grant again.';
    END IF;
    RETURN NEW;
END
$$;
COMMENT ON FUNCTION tenant_rls.resolve_role() IS 'trigger: looks up the role that a grant names, in this cluster';

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY[
        'plans', 'resources', 'plan_limits', 'tenants', 'billing_changes', 'overrides', 'removed_defaults'
    ] LOOP
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER restore_begins BEFORE INSERT ON tenant_rls.%I FOR EACH STATEMENT '
            'WHEN (pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.=) 0 AND tenant_rls.is_restoring()) '
            'EXECUTE FUNCTION tenant_rls.restore_begins()', t);
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER restore_ends AFTER INSERT ON tenant_rls.%I FOR EACH STATEMENT '
            'WHEN (pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.=) 0 AND tenant_rls.is_restoring()) '
            'EXECUTE FUNCTION tenant_rls.restore_ends()', t);
        EXECUTE pg_catalog.format('ALTER TABLE tenant_rls.%I ENABLE ALWAYS TRIGGER restore_begins', t);
        EXECUTE pg_catalog.format('ALTER TABLE tenant_rls.%I ENABLE ALWAYS TRIGGER restore_ends', t);
    END LOOP;
END
$$;

CREATE TRIGGER replace_default BEFORE INSERT ON tenant_rls.plans
FOR EACH ROW EXECUTE FUNCTION tenant_rls.replace_default();
CREATE TRIGGER replace_default BEFORE INSERT ON tenant_rls.resources
FOR EACH ROW EXECUTE FUNCTION tenant_rls.replace_default();
CREATE TRIGGER replace_default BEFORE INSERT ON tenant_rls.plan_limits
FOR EACH ROW EXECUTE FUNCTION tenant_rls.replace_default();
CREATE TRIGGER remember_removal AFTER UPDATE OR DELETE ON tenant_rls.plans
FOR EACH ROW EXECUTE FUNCTION tenant_rls.remember_removal('plan');
CREATE TRIGGER remember_removal AFTER UPDATE OR DELETE ON tenant_rls.resources
FOR EACH ROW EXECUTE FUNCTION tenant_rls.remember_removal('resource');
CREATE TRIGGER remember_removal AFTER UPDATE OR DELETE ON tenant_rls.plan_limits
FOR EACH ROW EXECUTE FUNCTION tenant_rls.remember_removal('plan', 'resource');
CREATE TRIGGER remember_truncate BEFORE TRUNCATE ON tenant_rls.plans
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.remember_removal('plan');
CREATE TRIGGER remember_truncate BEFORE TRUNCATE ON tenant_rls.resources
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.remember_removal('resource');
CREATE TRIGGER remember_truncate BEFORE TRUNCATE ON tenant_rls.plan_limits
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.remember_removal('plan', 'resource');
CREATE TRIGGER repeat_removal BEFORE INSERT ON tenant_rls.removed_defaults
FOR EACH ROW WHEN (tenant_rls.is_restoring()) EXECUTE FUNCTION tenant_rls.repeat_removal();
CREATE TRIGGER record_billing_update AFTER UPDATE OF billing_anchor, time_zone ON tenant_rls.tenants
FOR EACH ROW EXECUTE FUNCTION tenant_rls.record_billing();
CREATE TRIGGER record_billing_insert AFTER INSERT ON tenant_rls.tenants
FOR EACH ROW WHEN (
    NEW.billing_anchor IS NOT NULL OR NEW.time_zone IS NOT NULL
) EXECUTE FUNCTION tenant_rls.record_billing();
CREATE TRIGGER resolve_role BEFORE INSERT ON tenant_rls.grants
FOR EACH ROW EXECUTE FUNCTION tenant_rls.resolve_role();
CREATE TRIGGER resolve_role BEFORE INSERT ON tenant_rls.operators
FOR EACH ROW EXECUTE FUNCTION tenant_rls.resolve_role();

ALTER TABLE tenant_rls.plans ENABLE ALWAYS TRIGGER replace_default;
ALTER TABLE tenant_rls.resources ENABLE ALWAYS TRIGGER replace_default;
ALTER TABLE tenant_rls.plan_limits ENABLE ALWAYS TRIGGER replace_default;
ALTER TABLE tenant_rls.plans ENABLE ALWAYS TRIGGER remember_removal;
ALTER TABLE tenant_rls.resources ENABLE ALWAYS TRIGGER remember_removal;
ALTER TABLE tenant_rls.plan_limits ENABLE ALWAYS TRIGGER remember_removal;
ALTER TABLE tenant_rls.plans ENABLE ALWAYS TRIGGER remember_truncate;
ALTER TABLE tenant_rls.resources ENABLE ALWAYS TRIGGER remember_truncate;
ALTER TABLE tenant_rls.plan_limits ENABLE ALWAYS TRIGGER remember_truncate;
ALTER TABLE tenant_rls.removed_defaults ENABLE ALWAYS TRIGGER repeat_removal;
ALTER TABLE tenant_rls.tenants ENABLE ALWAYS TRIGGER record_billing_update;
ALTER TABLE tenant_rls.tenants ENABLE ALWAYS TRIGGER record_billing_insert;
ALTER TABLE tenant_rls.grants ENABLE ALWAYS TRIGGER resolve_role;
ALTER TABLE tenant_rls.operators ENABLE ALWAYS TRIGGER resolve_role;

-- The same three triggers on every table of the registry: a loop cannot drift.
DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY[
        'plans', 'resources', 'plan_limits', 'tenants', 'billing_changes', 'overrides', 'grants', 'operators'
    ] LOOP
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_rls.%I '
            'FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.registry_changed()', t);
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER record_change AFTER INSERT OR UPDATE OR DELETE ON tenant_rls.%I '
            'FOR EACH ROW EXECUTE FUNCTION tenant_rls.record_change()', t);
        EXECUTE pg_catalog.format(
            'CREATE TRIGGER record_truncate AFTER TRUNCATE ON tenant_rls.%I '
            'FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.record_truncate()', t);
        EXECUTE pg_catalog.format('ALTER TABLE tenant_rls.%I ENABLE ALWAYS TRIGGER registry_changed', t);
        EXECUTE pg_catalog.format('ALTER TABLE tenant_rls.%I ENABLE ALWAYS TRIGGER record_change', t);
        EXECUTE pg_catalog.format('ALTER TABLE tenant_rls.%I ENABLE ALWAYS TRIGGER record_truncate', t);
    END LOOP;
END
$$;

CREATE FUNCTION @extschema@.tenant_create(
    tenant uuid DEFAULT pg_catalog.gen_random_uuid(),
    plan text DEFAULT 'free',
    name text DEFAULT NULL,
    region text DEFAULT NULL,
    tenant_key bigint DEFAULT NULL
) RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_create_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_create(uuid, text, text, text, bigint) IS
'registers a tenant and returns its id. 42710 exists, 42704 unknown plan, 55000 deleted and not purged';

CREATE FUNCTION @extschema@.tenant_plan_change(tenant uuid, plan text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_plan_change_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_plan_change(uuid, text) IS
'moves a tenant to another plan: usage stays, the new limits count from the next call on';

CREATE FUNCTION @extschema@.tenant_suspend(tenant uuid, reason text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_suspend_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_suspend(uuid, text) IS
'locks a tenant out: sessions that act for it get error 55000 at their next statement';

CREATE FUNCTION @extschema@.tenant_resume(tenant uuid) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_resume_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_resume(uuid) IS 'takes tenant_suspend back';

CREATE FUNCTION @extschema@.tenant_fence(tenant uuid, timeout interval DEFAULT '30 s') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_fence_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_fence(uuid, interval) IS
'makes a tenant read-only (error 25006 for writers); returns when older writers have ended, or raises 55006 at the timeout';

CREATE FUNCTION @extschema@.tenant_unfence(tenant uuid) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_unfence_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_unfence(uuid) IS 'takes tenant_fence back';

CREATE FUNCTION @extschema@.tenant_delete(tenant uuid) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_delete_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_delete(uuid) IS 'marks a tenant as deleted and locks it out; its rows stay';

CREATE FUNCTION @extschema@.tenant_list(status text DEFAULT 'active') RETURNS SETOF uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_list_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_list(text) IS 'the tenants of that status, in the order of their ids: for jobs that walk the tenants';

CREATE FUNCTION @extschema@.tenant_resource_define(resource text, kind text, unit text, period text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_resource_define_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_resource_define(text, text, text, text) IS
'defines what can be limited: a counter of a period (second, minute, hour, day, week, month, year, none) or a gauge (period none)';

CREATE FUNCTION @extschema@.tenant_plan_define(plan text, based_on text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_plan_define_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_plan_define(text, text) IS 'defines a plan, with the limits, features and settings of another or with none';

CREATE FUNCTION @extschema@.tenant_plan_limit_set(
    plan text,
    resource text,
    quota_limit bigint,
    unlimited boolean DEFAULT false,
    enforcement text DEFAULT 'hard',
    mode text DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_plan_limit_set_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_plan_limit_set(text, text, bigint, boolean, text, text) IS
'sets the limit of a resource on a plan; quota_limit NULL needs unlimited => true (22004)';

CREATE FUNCTION @extschema@.tenant_billing_set(tenant uuid, anchor timestamp with time zone, time_zone text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_billing_set_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_billing_set(uuid, timestamp with time zone, text) IS
'counts the periods of a tenant from an anchor in a time zone, from the next period on; NULL, NULL: the calendar in UTC';

CREATE FUNCTION @extschema@.tenant_quota_set(
    tenant uuid,
    resource text,
    quota_limit bigint,
    unlimited boolean DEFAULT false,
    expires_at timestamp with time zone DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_set_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_quota_set(uuid, text, bigint, boolean, timestamp with time zone) IS
'a limit of one tenant, which wins over its plan until it expires';

CREATE FUNCTION @extschema@.tenant_quota_unset(tenant uuid, resource text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_quota_unset_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_quota_unset(uuid, text) IS 'takes tenant_quota_set back: the plan counts again';
