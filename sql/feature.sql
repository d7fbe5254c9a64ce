-- Features: what is on for which tenant.
-- The order of the columns is known to src/registry/scan.rs.

CREATE TABLE tenant_rls.features (
    feature text COLLATE pg_catalog."C" NOT NULL,
    default_value jsonb NOT NULL,
    salt text COLLATE pg_catalog."C" NOT NULL,
    is_on boolean NOT NULL DEFAULT true,
    created_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT features_pkey PRIMARY KEY (feature),
    CONSTRAINT features_name_check CHECK (pg_catalog.length(feature) OPERATOR(pg_catalog.>) 0)
);

-- Neither plan nor tenant: for everybody.
CREATE TABLE tenant_rls.feature_values (
    feature text COLLATE pg_catalog."C" NOT NULL,
    plan text COLLATE pg_catalog."C",
    tenant_id uuid,
    value jsonb NOT NULL,
    rollout_percent numeric(6, 3) NOT NULL DEFAULT 100,
    expires_at timestamp with time zone,
    CONSTRAINT feature_values_key UNIQUE NULLS NOT DISTINCT (feature, plan, tenant_id),
    CONSTRAINT feature_values_feature_fkey FOREIGN KEY (feature) REFERENCES tenant_rls.features (feature) ON DELETE CASCADE,
    CONSTRAINT feature_values_plan_fkey FOREIGN KEY (plan) REFERENCES tenant_rls.plans (plan) ON DELETE CASCADE,
    CONSTRAINT feature_values_tenant_fkey FOREIGN KEY (tenant_id) REFERENCES tenant_rls.tenants (tenant_id) ON DELETE CASCADE,
    CONSTRAINT feature_values_scope_check CHECK (plan IS NULL OR tenant_id IS NULL),
    CONSTRAINT feature_values_rollout_check
        CHECK (rollout_percent OPERATOR(pg_catalog.>=) 0 AND rollout_percent OPERATOR(pg_catalog.<=) 100)
);
CREATE INDEX feature_values_tenant_idx ON tenant_rls.feature_values (tenant_id);

COMMENT ON TABLE tenant_rls.features IS 'features, each with the value that holds where no other does';
COMMENT ON TABLE tenant_rls.feature_values IS 'values of features for one tenant, for a plan, or for everybody';

-- What every table of the registry has, on tables that come after it. Goes at the end of the installation.
CREATE PROCEDURE tenant_rls.join_registry(relations text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t text;
    trigger_name name;
    restoring text := 'FOR EACH STATEMENT WHEN (pg_trigger_depth() = 0 AND tenant_rls.is_restoring())';
BEGIN
    FOREACH t IN ARRAY relations LOOP
        EXECUTE format('ALTER TABLE tenant_rls.%I ENABLE ROW LEVEL SECURITY', t);
        PERFORM pg_extension_config_dump(format('tenant_rls.%I', t)::regclass, '');
        EXECUTE format(
            'CREATE TRIGGER restore_begins BEFORE INSERT ON tenant_rls.%I %s EXECUTE FUNCTION tenant_rls.restore_begins()',
            t, restoring);
        EXECUTE format(
            'CREATE TRIGGER restore_ends AFTER INSERT ON tenant_rls.%I %s EXECUTE FUNCTION tenant_rls.restore_ends()',
            t, restoring);
        EXECUTE format(
            'CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_rls.%I '
            'FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.registry_changed()', t);
        EXECUTE format(
            'CREATE TRIGGER record_change AFTER INSERT OR UPDATE OR DELETE ON tenant_rls.%I '
            'FOR EACH ROW EXECUTE FUNCTION tenant_rls.record_change()', t);
        EXECUTE format(
            'CREATE TRIGGER record_truncate AFTER TRUNCATE ON tenant_rls.%I '
            'FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.record_truncate()', t);
        -- One by one: ALL would be those of foreign keys too.
        FOR trigger_name IN
            SELECT g.tgname FROM pg_trigger AS g WHERE g.tgrelid = format('tenant_rls.%I', t)::regclass AND NOT g.tgisinternal
        LOOP
            EXECUTE format('ALTER TABLE tenant_rls.%I ENABLE ALWAYS TRIGGER %I', t, trigger_name);
        END LOOP;
    END LOOP;
END
$$;

CALL tenant_rls.join_registry(ARRAY['features', 'feature_values']);

CREATE TYPE @extschema@.tenant_feature_result AS (
    value jsonb,
    variant text,
    reason text,
    error_code text
);
COMMENT ON TYPE @extschema@.tenant_feature_result IS
'how a feature was resolved, in the words of OpenFeature: reason STATIC, DEFAULT, TARGETING_MATCH, SPLIT, DISABLED or ERROR; error_code FLAG_NOT_FOUND';

CREATE FUNCTION @extschema@.tenant_feature(feature text) RETURNS @extschema@.tenant_feature_result
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tenant_feature';
COMMENT ON FUNCTION @extschema@.tenant_feature(text) IS
'the value of a feature for the tenant of the session, and why. An unknown feature is an answer, not an error; 55000 without a tenant, 22004 null';

CREATE FUNCTION @extschema@.tenant_feature_enabled(feature text, fallback boolean DEFAULT false) RETURNS boolean
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tenant_feature_enabled';
COMMENT ON FUNCTION @extschema@.tenant_feature_enabled(text, boolean) IS
'the value of a boolean feature for the tenant of the session; the fallback for a feature that is unknown or no boolean';

CREATE FUNCTION @extschema@.tenant_features() RETURNS jsonb
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tenant_features';
COMMENT ON FUNCTION @extschema@.tenant_features() IS
'the values of all features for the tenant of the session, in one object: features.json';

CREATE FUNCTION @extschema@.tenant_feature_define(feature text, default_value jsonb, salt text DEFAULT NULL) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_feature_define';
COMMENT ON FUNCTION @extschema@.tenant_feature_define(text, jsonb, text) IS
'defines a feature and its default; features of one salt (default: the name) reach the same tenants at the same percentage. 42710 exists';

CREATE FUNCTION @extschema@.tenant_feature_set(
    feature text,
    value jsonb,
    scope text DEFAULT 'global',
    tenant uuid DEFAULT NULL,
    plan text DEFAULT NULL,
    rollout_percent numeric DEFAULT 100,
    expires_at timestamp with time zone DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_feature_set';
COMMENT ON FUNCTION @extschema@.tenant_feature_set(text, jsonb, text, uuid, text, numeric, timestamp with time zone) IS
'sets the value of a feature for everybody (scope global), a plan (plan) or one tenant (tenant), for a percentage of them, until it expires. 42704 unknown, 22004 null in its scope';

CREATE FUNCTION @extschema@.tenant_feature_unset(
    feature text,
    scope text DEFAULT 'global',
    tenant uuid DEFAULT NULL,
    plan text DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_feature_unset_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_feature_unset(text, text, uuid, text) IS
'takes tenant_feature_set of that scope back';

CREATE FUNCTION @extschema@.tenant_feature_switch(feature text, is_on boolean) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_feature_switch_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_feature_switch(text, boolean) IS
'off: every tenant gets the default, whatever was set (reason DISABLED); on: what was set holds again';

CREATE FUNCTION @extschema@.tenant_feature_drop(feature text) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_feature_drop_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_feature_drop(text) IS
'drops a feature and all its values. 42704 unknown';
