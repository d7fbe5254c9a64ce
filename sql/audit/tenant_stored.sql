-- Tenants that are set by a role, a database or a function.

CREATE FUNCTION tenant_rls.audit_tenant_stored()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'tenant_stored', s.object,
    'sets app.current_tenant by itself: sessions act for a tenant that nobody chose',
    s.fix
FROM tenant_rls.audit_stored_settings() AS s
WHERE s.setting = 'app.current_tenant';
$$;
COMMENT ON FUNCTION tenant_rls.audit_tenant_stored() IS 'lint of tenant_audit: tenants that are set by a role, a database or a function';
