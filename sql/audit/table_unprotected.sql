-- Tables with a tenant column that are not protected.

CREATE FUNCTION tenant_rls.audit_table_unprotected()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    CASE WHEN g.reached THEN 'error' ELSE 'warning' END, 'table_unprotected', c.oid::regclass::text,
    format('has the tenant column "%s" and is not protected%s', a.attname,
        CASE WHEN g.reached THEN ', and other roles have privileges on it' ELSE '' END),
    CASE
        WHEN k.type IS NULL THEN ''
        ELSE format('ALTER TABLE %s ALTER COLUMN %I TYPE %s USING %2$I::%3$s; ', c.oid::regclass, a.attname, k.type)
    END || format('SELECT @extschema@.tenant_protect(%L, %L)', c.oid::regclass, a.attname)
FROM pg_class AS c
JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
CROSS JOIN LATERAL (
    SELECT EXISTS (SELECT FROM aclexplode(c.relacl) AS x WHERE x.grantee <> c.relowner) AS reached
) AS g
JOIN pg_type AS y ON y.oid = a.atttypid
CROSS JOIN LATERAL (
    SELECT CASE
        WHEN a.atttypid IN ('uuid'::regtype, 'bigint'::regtype, 'integer'::regtype) THEN NULL
        WHEN y.typcategory = 'N' THEN 'bigint'
        ELSE 'uuid'
    END AS type
) AS k
WHERE c.relkind IN ('r', 'p')
AND c.relpersistence <> 't'
-- One named tenant_id is a tenant column whatever its type; tenant_protect takes these.
AND (a.attname = 'tenant_id' OR k.type IS NULL AND a.attname IN (SELECT p.tenant_column FROM tenant_rls.protected_tables AS p))
AND NOT tenant_rls.audit_of_system(c.relnamespace)
AND NOT EXISTS (SELECT FROM tenant_rls.protected_tables AS p WHERE p.relation = c.oid)
AND NOT EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhrelid = c.oid)
AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e');
$$;
COMMENT ON FUNCTION tenant_rls.audit_table_unprotected() IS 'lint of tenant_audit: tables with a tenant column that are not protected';
