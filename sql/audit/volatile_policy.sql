-- Policies of protected tables that call volatile functions.

CREATE FUNCTION tenant_rls.audit_volatile_policy()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- Functions of the server leave no trace in pg_depend: the stored condition names every function by its oid.
SELECT DISTINCT
    'warning', 'volatile_policy', t.name,
    format('policy "%s" calls %s, which is volatile: it can answer differently for each row, and change the tenant between them', l.polname, p.oid::regprocedure),
    format('DROP POLICY %I ON %s', l.polname, t.name)
FROM tenant_rls.audit_tables() AS t
JOIN pg_policy AS l ON l.polrelid = t.relation AND l.polname NOT IN ('tenant_isolation', 'tenant_boundary')
CROSS JOIN LATERAL regexp_matches(concat(l.polqual::text, l.polwithcheck::text), ':(?:op)?funcid (\d+)', 'g') AS f
JOIN pg_proc AS p ON p.oid = f[1]::oid AND p.provolatile = 'v';
$$;
COMMENT ON FUNCTION tenant_rls.audit_volatile_policy() IS 'lint of tenant_audit: policies of protected tables that call volatile functions';
