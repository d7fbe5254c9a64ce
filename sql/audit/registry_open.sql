-- Tables of the extension that are not closed.

CREATE FUNCTION tenant_rls.audit_registry_open()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'registry_open', c.oid::regclass::text,
    'row level security of this table of the extension is disabled',
    format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', c.oid::regclass)
FROM pg_class AS c
WHERE c.relnamespace = 'tenant_rls'::regnamespace AND c.relkind = 'r' AND NOT c.relrowsecurity
UNION ALL
SELECT
    'error', 'registry_open', c.oid::regclass::text,
    format('policy "%s" opens this table of the extension', l.polname),
    format('DROP POLICY %I ON %s', l.polname, c.oid::regclass)
FROM pg_class AS c
JOIN pg_policy AS l ON l.polrelid = c.oid
WHERE c.relnamespace = 'tenant_rls'::regnamespace
UNION ALL
SELECT DISTINCT
    'warning', 'registry_open', c.oid::regclass::text,
    format('%s has privileges on this table of the extension', tenant_rls.audit_role(e.grantee)),
    format('REVOKE ALL ON %s FROM %s CASCADE', c.oid::regclass, tenant_rls.audit_role(e.grantee))
FROM pg_class AS c
CROSS JOIN LATERAL aclexplode(c.relacl) AS e
WHERE c.relnamespace = 'tenant_rls'::regnamespace AND c.relkind IN ('r', 'S') AND e.grantee <> c.relowner;
$$;
COMMENT ON FUNCTION tenant_rls.audit_registry_open() IS 'lint of tenant_audit: tables of the extension that are not closed';
