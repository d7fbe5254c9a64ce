-- The tenant of a session, and who may act for whom.

CREATE FUNCTION @extschema@.set_tenant(tenant uuid, is_local boolean DEFAULT true) RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'set_tenant_wrapper';
COMMENT ON FUNCTION @extschema@.set_tenant(uuid, boolean) IS
'validates the tenant and sets app.current_tenant, until the end of the transaction or, with is_local false, of the session; returns the tenant. 42704 unknown, 42501 not granted, 55000 suspended, 22004 null';

CREATE FUNCTION @extschema@.set_tenant_key(tenant_key bigint, is_local boolean DEFAULT true) RETURNS uuid
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'set_tenant_key_wrapper';
COMMENT ON FUNCTION @extschema@.set_tenant_key(bigint, boolean) IS
'as set_tenant, for the tenant with this bigint key';

CREATE FUNCTION @extschema@.reset_tenant() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'reset_tenant_wrapper';
COMMENT ON FUNCTION @extschema@.reset_tenant() IS 'sets no tenant, for the session';

CREATE FUNCTION @extschema@.current_tenant() RETURNS uuid
LANGUAGE c STABLE PARALLEL SAFE LEAKPROOF AS 'MODULE_PATHNAME', 'current_tenant';
COMMENT ON FUNCTION @extschema@.current_tenant() IS 'the tenant of the session, or NULL when there is none or it no longer holds';

CREATE FUNCTION @extschema@.current_tenant_key() RETURNS bigint
LANGUAGE c STABLE PARALLEL SAFE LEAKPROOF AS 'MODULE_PATHNAME', 'current_tenant_key';
COMMENT ON FUNCTION @extschema@.current_tenant_key() IS 'the bigint key of the tenant of the session, or NULL';

CREATE FUNCTION @extschema@.required_tenant() RETURNS uuid
LANGUAGE c STABLE PARALLEL SAFE LEAKPROOF AS 'MODULE_PATHNAME', 'required_tenant';
COMMENT ON FUNCTION @extschema@.required_tenant() IS
'the tenant of the session, or error 55000; what policies and column defaults call';

CREATE FUNCTION @extschema@.required_tenant_key() RETURNS bigint
LANGUAGE c STABLE PARALLEL SAFE LEAKPROOF AS 'MODULE_PATHNAME', 'required_tenant_key';
COMMENT ON FUNCTION @extschema@.required_tenant_key() IS
'the bigint key of the tenant of the session, or error 55000; what policies on bigint and integer columns call';

CREATE FUNCTION @extschema@.tenant_context() RETURNS jsonb
LANGUAGE c VOLATILE PARALLEL UNSAFE AS 'MODULE_PATHNAME', 'tenant_context';
COMMENT ON FUNCTION @extschema@.tenant_context() IS
'tenantId, plan, region, features, featureValues, settings and status of the tenant of the session, in one object';

CREATE FUNCTION @extschema@.tenant_grant(role regrole) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'grant_every_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_grant(regrole) IS
'the role and its members may act for every tenant, and call the functions of applications';

CREATE FUNCTION @extschema@.tenant_grant(role regrole, tenant uuid, ticket_required boolean DEFAULT false) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'grant_one_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_grant(regrole, uuid, boolean) IS
'the role and its members may act for this tenant, and call the functions of applications';

CREATE FUNCTION @extschema@.tenant_grant_ticket(role regrole) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'grant_every_by_ticket_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_grant_ticket(regrole) IS
'as tenant_grant(role), but only with a ticket for the tenant: set_tenant and SET do not work. In the place of a grant without';

CREATE FUNCTION @extschema@.tenant_revoke(role regrole) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'revoke_every_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_revoke(regrole) IS 'takes tenant_grant(role) or tenant_grant_ticket(role) back';

CREATE FUNCTION @extschema@.tenant_revoke(role regrole, tenant uuid) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'revoke_one_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_revoke(regrole, uuid) IS 'takes tenant_grant(role, tenant) back';

CREATE FUNCTION @extschema@.tenant_grant_operator(role regrole) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'grant_operator_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_grant_operator(regrole) IS
'the role and its members may run the registry: create, plan, suspend, limits, the usage of all tenants';

CREATE FUNCTION @extschema@.tenant_revoke_operator(role regrole) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'revoke_operator_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_revoke_operator(regrole) IS 'takes tenant_grant_operator(role) back';
