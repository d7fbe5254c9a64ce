-- Policies that say the same of every row.

CREATE FUNCTION tenant_rls.audit_policy_constant()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- A condition that reads no column, or has a branch that is always true.
SELECT
    'warning', 'policy_constant', l.object,
    CASE
        WHEN x.clause IS NULL THEN 'has no condition'
        WHEN x.clause = 'false' THEN format('%s (false) lets no row through, which REVOKE says better', x.kind)
        ELSE format('%s (%s) says the same of every row', x.kind, x.clause)
    END,
    l.remove
FROM tenant_rls.audit_policies() AS l
CROSS JOIN LATERAL (
    SELECT v.kind, v.clause
    FROM (VALUES ('USING', l.using_clause, l.using_tree), ('WITH CHECK', l.check_clause, l.check_tree)) AS v (kind, clause, tree)
    WHERE v.tree !~ '\{VAR ' OR tenant_rls.audit_words(v.clause) ~ '\(true OR | OR true\M'
    OR l.using_tree IS NULL AND l.check_tree IS NULL
    ORDER BY v.kind
    LIMIT 1
) AS x;
$$;
COMMENT ON FUNCTION tenant_rls.audit_policy_constant() IS 'lint of tenant_audit: policies that say the same of every row';
