-- A server whose minor version has known holes in row level security.

CREATE FUNCTION tenant_rls.audit_server_version()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'server_version', 'server',
    format('PostgreSQL %s lacks fixes of row level security that %s.%s has', current_setting('server_version'), m.major, m.minor),
    format('-- install PostgreSQL %s.%s or newer, and restart the server', m.major, m.minor)
FROM (VALUES (15, 20), (16, 16), (17, 12), (18, 7)) AS m (major, minor)
WHERE current_setting('server_version_num')::int / 10000 = m.major
AND current_setting('server_version_num')::int % 10000 < m.minor;
$$;
COMMENT ON FUNCTION tenant_rls.audit_server_version() IS 'lint of tenant_audit: a server whose minor version has known holes in row level security';
