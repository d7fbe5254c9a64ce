-- Publications that send the rows of all tenants.

CREATE FUNCTION tenant_rls.audit_publication_unfiltered()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- A fix of the whole publication, or of a schema in it, is one finding, however many tables it is about.
SELECT
    'warning', 'publication_unfiltered', quote_ident(p.pubname),
    format('sends the rows of all tenants of %s: a subscriber has no policies', string_agg(t.name, ', ' ORDER BY t.name)),
    CASE
        WHEN p.puballtables THEN format('DROP PUBLICATION %I', p.pubname)
        WHEN x.by_schema THEN format('ALTER PUBLICATION %I DROP TABLES IN SCHEMA %s', p.pubname, x.part::regnamespace)
        ELSE format('ALTER PUBLICATION %I DROP TABLE %s', p.pubname, x.part::regclass)
    END
FROM tenant_rls.audit_tables() AS t
JOIN pg_class AS c ON c.oid = t.relation
CROSS JOIN pg_publication AS p
LEFT JOIN pg_publication_rel AS r ON r.prpubid = p.oid AND r.prrelid = t.relation
LEFT JOIN pg_publication_namespace AS n ON n.pnpubid = p.oid AND n.pnnspid = c.relnamespace
CROSS JOIN LATERAL (
    SELECT false AS by_schema, NULL::oid AS part WHERE p.puballtables
    UNION ALL
    SELECT true, n.pnnspid WHERE n.oid IS NOT NULL
    UNION ALL
    SELECT false, r.prrelid WHERE r.oid IS NOT NULL AND r.prqual IS NULL
) AS x
GROUP BY p.pubname, p.puballtables, x.by_schema, x.part;
$$;
COMMENT ON FUNCTION tenant_rls.audit_publication_unfiltered() IS 'lint of tenant_audit: publications that send the rows of all tenants';
