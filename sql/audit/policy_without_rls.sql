-- Tables whose policies are not at work.

CREATE FUNCTION tenant_rls.audit_policy_without_rls()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'policy_without_rls', c.oid::regclass::text,
    'has policies, and row level security is disabled: they do nothing',
    format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', c.oid::regclass)
FROM pg_class AS c
WHERE NOT c.relrowsecurity
AND EXISTS (SELECT FROM pg_policy AS l WHERE l.polrelid = c.oid)
AND NOT EXISTS (SELECT FROM tenant_rls.protected_tables AS p WHERE p.relation = c.oid);
$$;
COMMENT ON FUNCTION tenant_rls.audit_policy_without_rls() IS 'lint of tenant_audit: tables whose policies are not at work';
