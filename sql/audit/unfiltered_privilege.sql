-- Privileges on protected tables that policies do not hold for.

CREATE FUNCTION tenant_rls.audit_unfiltered_privilege()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- MAINTAIN is known to PostgreSQL from 17 on.
SELECT
    CASE WHEN x.privilege_type = 'TRUNCATE' THEN 'error' ELSE 'warning' END, 'unfiltered_privilege', t.name,
    format('%s has %s, which is not subject to the policies', tenant_rls.audit_role(x.grantee), x.privilege_type),
    format('REVOKE %s ON %s FROM %s CASCADE', x.privilege_type, t.name, tenant_rls.audit_role(x.grantee))
FROM tenant_rls.audit_tables() AS t
CROSS JOIN LATERAL tenant_rls.audit_privileges(t.relation) AS x
WHERE x.grantee <> t.owner
AND x.privilege_type IN ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN');
$$;
COMMENT ON FUNCTION tenant_rls.audit_unfiltered_privilege() IS 'lint of tenant_audit: privileges on protected tables that policies do not hold for';
