-- Partitions and children that are read without policies when they are named.

CREATE FUNCTION tenant_rls.audit_partition_unprotected()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'partition_unprotected', i.inhrelid::regclass::text,
    format('is a partition or child of %s and not protected: a statement that names it sees all tenants', t.name),
    format('SELECT @extschema@.tenant_protect(%L, %L, %L)', i.inhrelid::regclass, t.tenant_column, t.force)
FROM tenant_rls.audit_tables() AS t
JOIN pg_inherits AS i ON i.inhparent = t.relation
JOIN pg_class AS c ON c.oid = i.inhrelid AND c.relkind IN ('r', 'p')
WHERE NOT EXISTS (SELECT FROM tenant_rls.protected_tables AS p WHERE p.relation = i.inhrelid)
UNION ALL
SELECT
    'error', 'partition_unprotected', t.name,
    format('is a partition or child of %s, which is not protected: who reads that one sees all tenants', i.inhparent::regclass),
    format('SELECT @extschema@.tenant_protect(%L, %L, %L)', i.inhparent::regclass, t.tenant_column, t.force)
FROM tenant_rls.audit_tables() AS t
JOIN pg_inherits AS i ON i.inhrelid = t.relation
WHERE NOT EXISTS (SELECT FROM tenant_rls.protected_tables AS p WHERE p.relation = i.inhparent);
$$;
COMMENT ON FUNCTION tenant_rls.audit_partition_unprotected() IS 'lint of tenant_audit: partitions and children that are read without policies when they are named';
