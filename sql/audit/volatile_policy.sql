-- Policies that call volatile functions.

CREATE FUNCTION tenant_rls.audit_volatile_policy()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- Functions of the server leave no trace in pg_depend: the stored condition names every function by its oid.
SELECT DISTINCT
    'warning', 'volatile_policy', l.name,
    format('policy "%s" calls %s, which is volatile: it can answer differently for each row, and change the tenant between them', l.policy, p.oid::regprocedure),
    l.remove
FROM tenant_rls.audit_policies() AS l
CROSS JOIN LATERAL regexp_matches(concat(l.using_tree, l.check_tree), ':(?:op)?funcid (\d+)', 'g') AS f
JOIN pg_proc AS p ON p.oid = f[1]::oid AND p.provolatile = 'v';
$$;
COMMENT ON FUNCTION tenant_rls.audit_volatile_policy() IS 'lint of tenant_audit: policies that call volatile functions';
