-- Roles of applications that run the registry.

CREATE FUNCTION tenant_rls.audit_app_role_operator()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT
    'warning', 'app_role_operator', quote_ident(g.name),
    format('acts for tenants and is an operator through %I: it can create and suspend tenants, and sees the usage of all', o.role_name),
    format('SELECT @extschema@.tenant_revoke_operator(%L)', quote_ident(o.role_name))
FROM tenant_rls.audit_app_roles() AS g
JOIN tenant_rls.operators AS o ON pg_has_role(g.role, o.role_oid, 'USAGE')
WHERE NOT EXISTS (SELECT FROM pg_roles AS s WHERE s.oid = g.role AND s.rolsuper);
$$;
COMMENT ON FUNCTION tenant_rls.audit_app_role_operator() IS 'lint of tenant_audit: roles of applications that run the registry';
