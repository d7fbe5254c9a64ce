-- A library that each session loads for itself.

CREATE FUNCTION tenant_rls.audit_not_preloaded()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'not_preloaded', 'shared_preload_libraries',
    'the library is not preloaded: a pooler that replays settings can mix tenants, and a plan that reads nothing does not ask for one',
    format('ALTER SYSTEM SET shared_preload_libraries = %s; -- then restart the server', string_agg(quote_literal(l.name), ', '))
FROM (
    SELECT btrim(s, ' "') AS name
    FROM unnest(string_to_array(current_setting('shared_preload_libraries'), ',')) AS s
    WHERE btrim(s) <> ''
    UNION ALL
    SELECT 'tenant_rls'
) AS l
HAVING count(*) FILTER (WHERE l.name ~ '(^|/)tenant_rls$') = 1;
$$;
COMMENT ON FUNCTION tenant_rls.audit_not_preloaded() IS 'lint of tenant_audit: a library that each session loads for itself';
