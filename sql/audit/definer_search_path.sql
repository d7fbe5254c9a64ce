-- Functions with the rights of their owner that look names up where a caller can put them.

CREATE FUNCTION tenant_rls.audit_definer_search_path()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'definer_search_path', p.oid::regprocedure::text,
    CASE
        WHEN s.path IS NULL THEN 'runs with the rights of its owner and the search_path of its caller'
        ELSE 'runs with the rights of its owner, and looks names up in pg_temp first'
    END,
    format('ALTER ROUTINE %s SET search_path = %s, pg_temp', p.oid::regprocedure,
        coalesce(nullif(regexp_replace(s.path, '^"?pg_temp"?(, *|$)|, *"?pg_temp"?(?=,|$)', '', 'g'), ''),
            'pg_catalog, ' || p.pronamespace::regnamespace::text))
FROM tenant_rls.audit_definers() AS d
JOIN pg_proc AS p ON p.oid = d.routine
LEFT JOIN LATERAL (
    SELECT substr(c, length('search_path=') + 1) AS path
    FROM unnest(p.proconfig) AS c
    WHERE c LIKE 'search\_path=%'
) AS s ON true
WHERE (s.path ~ 'pg_temp"? *$') IS NOT TRUE;
$$;
COMMENT ON FUNCTION tenant_rls.audit_definer_search_path() IS 'lint of tenant_audit: functions with the rights of their owner that look names up where a caller can put them';
