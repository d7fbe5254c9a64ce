-- Unique and exclusion constraints that hold across tenants.

CREATE FUNCTION tenant_rls.audit_unique_without_tenant()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- Who writes a key that is taken learns that it exists. A uuid cannot be guessed.
SELECT
    CASE WHEN k.guessable THEN 'warning' ELSE 'info' END, 'unique_without_tenant',
    format('%s on %s', i.indexrelid::regclass, t.name),
    'holds across tenants: a violation tells that another tenant has the key; foreign keys to it must be made composite first',
    CASE
        WHEN o.oid IS NOT NULL THEN format(
            'ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I %s', t.name, o.conname, o.conname,
            regexp_replace(pg_get_constraintdef(o.oid), '\(',
                format(CASE o.contype WHEN 'x' THEN '(%s WITH =, ' ELSE '(%s, ' END, replace(t.quoted_column, '\', '\\'))))
        ELSE format(
            'DROP INDEX %s; CREATE UNIQUE INDEX %I ON %s USING %I (%s, %s', i.indexrelid::regclass, c.relname, t.name, m.amname,
            t.quoted_column, substr(d.definition, length(d.head) + 1))
    END
FROM tenant_rls.audit_tables() AS t
JOIN pg_index AS i ON i.indrelid = t.relation AND (i.indisunique OR i.indisexclusion)
JOIN pg_class AS c ON c.oid = i.indexrelid AND NOT c.relispartition
JOIN pg_am AS m ON m.oid = c.relam
LEFT JOIN pg_constraint AS o ON o.conindid = i.indexrelid AND o.conrelid = i.indrelid AND o.contype IN ('p', 'u', 'x')
CROSS JOIN LATERAL (
    SELECT
        pg_get_indexdef(i.indexrelid) AS definition,
        format('CREATE UNIQUE INDEX %I ON %s%s USING %I (',
            c.relname, CASE WHEN c.relkind = 'I' THEN 'ONLY ' ELSE '' END, t.name, m.amname) AS head
) AS d
CROSS JOIN LATERAL (
    SELECT bool_and(coalesce(a.atttypid <> 'uuid'::regtype, true)) AS guessable
    FROM generate_series(0, i.indnkeyatts - 1) AS n
    LEFT JOIN pg_attribute AS a ON a.attrelid = t.relation AND a.attnum = i.indkey[n]
) AS k
WHERE NOT EXISTS (SELECT FROM generate_series(0, i.indnkeyatts - 1) AS n WHERE i.indkey[n] = t.attnum);
$$;
COMMENT ON FUNCTION tenant_rls.audit_unique_without_tenant() IS 'lint of tenant_audit: unique and exclusion constraints that hold across tenants';
