-- Materialized views of protected tables that others read.

CREATE FUNCTION tenant_rls.audit_materialized_view()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT
    'error', 'materialized_view', c.oid::regclass::text,
    format('holds rows of %s as its owner saw them, without policies, and %s can read it', t.name, tenant_rls.audit_role(x.grantee)),
    CASE
        WHEN x.grantee = c.relowner THEN format('ALTER MATERIALIZED VIEW %s OWNER TO %s', c.oid::regclass, tenant_rls.audit_new_owner())
        ELSE format('REVOKE ALL ON %s FROM %s CASCADE', c.oid::regclass, tenant_rls.audit_role(x.grantee))
    END
FROM tenant_rls.audit_readers() AS v
JOIN tenant_rls.audit_tables() AS t ON t.relation = v.base
JOIN pg_class AS c ON c.oid = v.reader AND c.relkind = 'm'
CROSS JOIN LATERAL (
    SELECT e.grantee FROM aclexplode(c.relacl) AS e WHERE e.grantee <> c.relowner
    UNION
    SELECT e.grantee FROM pg_attribute AS a, aclexplode(a.attacl) AS e WHERE a.attrelid = c.oid AND e.grantee <> c.relowner
    UNION
    SELECT g.role FROM tenant_rls.audit_app_roles() AS g WHERE g.role = c.relowner
) AS x;
$$;
COMMENT ON FUNCTION tenant_rls.audit_materialized_view() IS 'lint of tenant_audit: materialized views of protected tables that others read';
