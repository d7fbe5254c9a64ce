-- Settings: customisation without a fork. A tenant's own are in tenant_rls.tenants.settings, the others here.
-- The order of the columns is known to src/registry/scan.rs.

CREATE TABLE tenant_rls.settings (
    key text COLLATE pg_catalog."C" NOT NULL,
    plan text COLLATE pg_catalog."C",
    value jsonb NOT NULL,
    CONSTRAINT settings_key UNIQUE NULLS NOT DISTINCT (key, plan),
    CONSTRAINT settings_plan_fkey FOREIGN KEY (plan) REFERENCES tenant_rls.plans (plan) ON DELETE CASCADE,
    CONSTRAINT settings_key_check CHECK (pg_catalog.length(key) OPERATOR(pg_catalog.>) 0)
);
COMMENT ON TABLE tenant_rls.settings IS 'settings of plans; plan NULL is everybody. Those of one tenant are in tenants.settings';

CALL tenant_rls.join_registry(ARRAY['settings']);

CREATE FUNCTION @extschema@.tenant_setting(key text, fallback jsonb DEFAULT NULL) RETURNS jsonb
LANGUAGE c STABLE PARALLEL SAFE AS 'MODULE_PATHNAME', 'tenant_setting';
COMMENT ON FUNCTION @extschema@.tenant_setting(text, jsonb) IS
'a setting for the tenant of the session: its own, else its plan''s, else everybody''s, else the fallback. 55000 without a tenant, 22004 null';

CREATE FUNCTION @extschema@.tenant_setting_set(
    key text,
    value jsonb,
    scope text,
    tenant uuid DEFAULT NULL,
    plan text DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_setting_set';
COMMENT ON FUNCTION @extschema@.tenant_setting_set(text, jsonb, text, uuid, text) IS
'sets a setting for everybody (scope global), a plan (plan) or one tenant (tenant). 42704 unknown, 22004 null in its scope';

CREATE FUNCTION @extschema@.tenant_setting_unset(
    key text,
    scope text,
    tenant uuid DEFAULT NULL,
    plan text DEFAULT NULL
) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_setting_unset_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_setting_unset(text, text, uuid, text) IS
'takes tenant_setting_set of that scope back';
