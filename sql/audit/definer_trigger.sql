-- Triggers of protected tables that run with rights to which no policy holds.

CREATE FUNCTION tenant_rls.audit_definer_trigger()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'definer_trigger', format('%I on %s', g.tgname, t.name),
    format('runs %s as %I, for which the policies do not hold, for every writer', p.oid::regprocedure, pg_get_userbyid(p.proowner)),
    format('ALTER ROUTINE %s SECURITY INVOKER', p.oid::regprocedure)
FROM tenant_rls.audit_tables() AS t
JOIN pg_trigger AS g ON g.tgrelid = t.relation AND NOT g.tgisinternal AND g.tgparentid = 0
JOIN tenant_rls.audit_definers() AS d ON d.routine = g.tgfoid AND d.bypasses
JOIN pg_proc AS p ON p.oid = d.routine;
$$;
COMMENT ON FUNCTION tenant_rls.audit_definer_trigger() IS 'lint of tenant_audit: triggers of protected tables that run with rights to which no policy holds';
