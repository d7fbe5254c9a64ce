-- Roles of applications that can become one that policies do not hold.

CREATE FUNCTION tenant_rls.audit_app_role_becomes()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- Each membership that leads from an application's role to such a role is one finding.
SELECT DISTINCT
    'error', 'app_role_becomes', quote_ident(g.name),
    format('can become %I, which %s', d.rolname, d.why),
    format('REVOKE %I FROM %I%s', d.rolname, e.name, e.granted_by)
FROM tenant_rls.audit_app_roles() AS g
CROSS JOIN (
    SELECT r.oid, r.rolname, CASE
        WHEN r.rolsuper THEN 'is a superuser'
        WHEN r.rolbypassrls THEN 'has BYPASSRLS'
        WHEN r.rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program') THEN 'reaches the files of the server'
        ELSE 'owns protected tables'
    END AS why
    FROM pg_roles AS r
    WHERE r.rolsuper OR r.rolbypassrls
    OR r.rolname IN ('pg_read_server_files', 'pg_write_server_files', 'pg_execute_server_program')
    OR r.oid IN (SELECT t.owner FROM tenant_rls.audit_tables() AS t)
) AS d
JOIN LATERAL (
    SELECT b.rolname AS name, CASE
        WHEN current_setting('server_version_num')::int >= 160000 THEN format(' GRANTED BY %I', pg_get_userbyid(m.grantor))
        ELSE ''
    END AS granted_by
    FROM pg_auth_members AS m
    JOIN pg_roles AS b ON b.oid = m.member
    WHERE m.roleid = d.oid AND pg_has_role(g.role, m.member, tenant_rls.audit_set_role())
) AS e ON true
WHERE g.role <> d.oid
AND NOT EXISTS (SELECT FROM pg_roles AS s WHERE s.oid = g.role AND s.rolsuper)
AND pg_has_role(g.role, d.oid, tenant_rls.audit_set_role());
$$;
COMMENT ON FUNCTION tenant_rls.audit_app_role_becomes() IS 'lint of tenant_audit: roles of applications that can become one that policies do not hold';
