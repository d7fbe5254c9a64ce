-- Names and ids of tenants that every role can read in the catalogs.

CREATE FUNCTION tenant_rls.audit_tenant_in_catalog()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- Names are compared without regard to case and punctuation; a uuid is found within a text.
SELECT DISTINCT
    'warning', 'tenant_in_catalog', o.object,
    format('%s tells of tenant %s, and every role can read it', o.what, t.tenant_id),
    o.fix
FROM (
    SELECT quote_ident(r.rolname) AS object, 'the name of the role' AS what, r.rolname::text AS text,
        format('ALTER ROLE %I RENAME TO %I', r.rolname, 'role_' || r.oid) AS fix
    FROM pg_roles AS r
    UNION ALL
    SELECT n.oid::regnamespace::text, 'the name of the schema', n.nspname,
        format('ALTER SCHEMA %I RENAME TO %I', n.nspname, 'schema_' || n.oid)
    FROM pg_namespace AS n
    UNION ALL
    SELECT c.oid::regclass::text, 'the name of the table', c.relname, format('ALTER TABLE %s RENAME TO %I', c.oid::regclass, 'table_' || c.oid)
    FROM pg_class AS c
    WHERE c.relkind IN ('r', 'p') AND NOT tenant_rls.audit_of_system(c.relnamespace)
    UNION ALL
    SELECT l.object, 'the condition of the policy', concat_ws(' ', l.using_clause, l.check_clause), l.remove
    FROM tenant_rls.audit_policies() AS l
    UNION ALL
    SELECT i.identity, 'the comment on ' || i.type, d.description, format('COMMENT ON %s %s IS NULL', k.kind, i.identity)
    FROM pg_description AS d
    CROSS JOIN LATERAL pg_identify_object(d.classoid, d.objoid, d.objsubid) AS i
    JOIN (VALUES
        ('table', 'TABLE'), ('table column', 'COLUMN'), ('view', 'VIEW'), ('view column', 'COLUMN'), ('schema', 'SCHEMA'),
        ('function', 'FUNCTION'), ('index', 'INDEX'), ('materialized view', 'MATERIALIZED VIEW')
    ) AS k (type, kind) ON k.type = i.type
    WHERE d.objoid >= 16384
    UNION ALL
    SELECT quote_ident(r.rolname), 'the comment on the role', d.description, format('COMMENT ON ROLE %I IS NULL', r.rolname)
    FROM pg_shdescription AS d
    JOIN pg_roles AS r ON r.oid = d.objoid AND d.classoid = 'pg_authid'::regclass
) AS o
CROSS JOIN LATERAL (
    SELECT replace(replace(m[1], '_', ''), '-', '')::uuid AS id, NULL AS name
    FROM regexp_matches(lower(o.text), '([0-9a-f]{8}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{4}[-_]?[0-9a-f]{12})', 'g') AS m
    UNION ALL
    SELECT NULL, regexp_replace(lower(o.text), '[^[:alnum:]]', '', 'g')
) AS k
JOIN LATERAL (
    SELECT t.tenant_id FROM tenant_rls.tenants AS t WHERE t.tenant_id = k.id
    UNION ALL
    SELECT n.tenant_id
    FROM tenant_rls.tenants AS n
    WHERE length(k.name) > 3 AND regexp_replace(lower(n.name), '[^[:alnum:]]', '', 'g') = k.name
) AS t ON true;
$$;
COMMENT ON FUNCTION tenant_rls.audit_tenant_in_catalog() IS 'lint of tenant_audit: names and ids of tenants that every role can read in the catalogs';
