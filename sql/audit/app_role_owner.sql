-- Roles of applications that own what protects them.

CREATE FUNCTION tenant_rls.audit_app_role_owner()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'app_role_owner', t.name,
    format('belongs to %I, which acts for tenants: an owner can disable row level security', g.name),
    format('ALTER TABLE %s OWNER TO %s', t.name, tenant_rls.audit_new_owner())
FROM tenant_rls.audit_tables() AS t
JOIN tenant_rls.audit_app_roles() AS g ON g.role = t.owner;
$$;
COMMENT ON FUNCTION tenant_rls.audit_app_role_owner() IS 'lint of tenant_audit: roles of applications that own what protects them';
