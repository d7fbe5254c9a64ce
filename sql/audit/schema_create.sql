-- Schemas in which roles of applications can put objects.

CREATE FUNCTION tenant_rls.audit_schema_create()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'schema_create', n.oid::regnamespace::text,
    format('%s can create objects beside the ones that protect tables: what is looked up by name can be replaced', tenant_rls.audit_role(e.grantee)),
    format('REVOKE CREATE ON SCHEMA %s FROM %s CASCADE', n.oid::regnamespace, tenant_rls.audit_role(e.grantee))
FROM pg_namespace AS n
CROSS JOIN LATERAL aclexplode(n.nspacl) AS e
WHERE e.privilege_type = 'CREATE'
AND e.grantee <> n.nspowner
AND (e.grantee = 0 OR EXISTS (SELECT FROM tenant_rls.audit_app_roles() AS g WHERE g.role = e.grantee))
AND (n.oid = '@extschema@'::regnamespace OR EXISTS (
    SELECT FROM tenant_rls.audit_tables() AS t JOIN pg_class AS c ON c.oid = t.relation WHERE c.relnamespace = n.oid));
$$;
COMMENT ON FUNCTION tenant_rls.audit_schema_create() IS 'lint of tenant_audit: schemas in which roles of applications can put objects';
