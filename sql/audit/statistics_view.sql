-- Views of the server from before the fix of CVE-2024-4317, which new minor versions do not change in old clusters.

CREATE FUNCTION tenant_rls.audit_statistics_view()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'statistics_view', c.relname::text,
    'shows values of columns to roles that may not read them (CVE-2024-4317): the database is older than the fix',
    '-- run fix-CVE-2024-4317.sql of PostgreSQL''s share directory in this database, as the release notes of 15.7 and 16.3 say'
FROM pg_class AS c
WHERE c.relnamespace = 'pg_catalog'::regnamespace
AND c.relname IN ('pg_stats_ext', 'pg_stats_ext_exprs')
AND c.relkind = 'v'
-- The fix asks for the rights of the table's owner.
AND pg_get_viewdef(c.oid) !~ 'pg_has_role\(c\.relowner';
$$;
COMMENT ON FUNCTION tenant_rls.audit_statistics_view() IS
'lint of tenant_audit: views of statistics from before the fix of CVE-2024-4317';
