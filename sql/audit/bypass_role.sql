-- Other roles that policies do not hold.

CREATE FUNCTION tenant_rls.audit_bypass_role()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'info', 'bypass_role', quote_ident(r.rolname),
    'has BYPASSRLS: it sees the rows of all tenants; right for migrations, backfills and reports',
    format('ALTER ROLE %I NOBYPASSRLS', r.rolname)
FROM pg_roles AS r
WHERE r.rolbypassrls
AND NOT r.rolsuper
AND r.oid NOT IN (SELECT g.role FROM tenant_rls.audit_app_roles() AS g);
$$;
COMMENT ON FUNCTION tenant_rls.audit_bypass_role() IS 'lint of tenant_audit: other roles that policies do not hold';
