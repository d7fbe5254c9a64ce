-- Roles of applications that policies cannot hold.

CREATE FUNCTION tenant_rls.audit_app_role_attribute()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'app_role_attribute', quote_ident(r.rolname),
    format('the role acts for tenants and is %s', a.attribute),
    format('ALTER ROLE %I NO%s', r.rolname, a.attribute)
FROM tenant_rls.audit_app_roles() AS g
JOIN pg_roles AS r ON r.oid = g.role
CROSS JOIN LATERAL (VALUES
    ('SUPERUSER', r.rolsuper), ('BYPASSRLS', r.rolbypassrls), ('CREATEROLE', r.rolcreaterole), ('REPLICATION', r.rolreplication)
) AS a (attribute, has)
WHERE a.has;
$$;
COMMENT ON FUNCTION tenant_rls.audit_app_role_attribute() IS 'lint of tenant_audit: roles of applications that policies cannot hold';
