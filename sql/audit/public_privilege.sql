-- Privileges of every role on protected tables.

CREATE FUNCTION tenant_rls.audit_public_privilege()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- Those for which no policy holds are unfiltered_privilege's.
SELECT
    'warning', 'public_privilege', t.name,
    format('PUBLIC has %s: every role has, also one that is made tomorrow', string_agg(x.privilege_type, ', ' ORDER BY x.privilege_type)),
    format('REVOKE %s ON %s FROM PUBLIC', string_agg(x.privilege_type, ', ' ORDER BY x.privilege_type), t.name)
FROM tenant_rls.audit_tables() AS t
CROSS JOIN LATERAL tenant_rls.audit_privileges(t.relation) AS x
WHERE x.grantee = 0
AND x.privilege_type IN ('SELECT', 'INSERT', 'UPDATE', 'DELETE')
GROUP BY t.name;
$$;
COMMENT ON FUNCTION tenant_rls.audit_public_privilege() IS 'lint of tenant_audit: privileges of every role on protected tables';
