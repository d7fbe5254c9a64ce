-- Policies that ask a table in which others can write what they like.

CREATE FUNCTION tenant_rls.audit_policy_reads_open()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT
    'warning', 'policy_reads_open', l.object,
    format('asks %s, whose row level security is disabled and which %s can change: who does lets itself in',
        c.oid::regclass, tenant_rls.audit_role(x.grantee)),
    format('REVOKE INSERT, UPDATE, DELETE, TRUNCATE ON %s FROM %s CASCADE', c.oid::regclass, tenant_rls.audit_role(x.grantee))
FROM tenant_rls.audit_policies() AS l
JOIN pg_depend AS d ON d.classid = 'pg_policy'::regclass AND d.objid = l.oid AND d.refclassid = 'pg_class'::regclass
JOIN pg_class AS c ON c.oid = d.refobjid AND c.relkind IN ('r', 'p') AND NOT c.relrowsecurity
CROSS JOIN LATERAL tenant_rls.audit_privileges(c.oid) AS x
WHERE c.oid <> l.relation
AND NOT tenant_rls.audit_of_system(c.relnamespace)
AND x.grantee <> c.relowner
AND x.privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE');
$$;
COMMENT ON FUNCTION tenant_rls.audit_policy_reads_open() IS 'lint of tenant_audit: policies that ask a table in which others can write what they like';
