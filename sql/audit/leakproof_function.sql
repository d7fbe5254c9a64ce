-- Functions that are trusted with rows before the policies are.

CREATE FUNCTION tenant_rls.audit_leakproof_function()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'leakproof_function', p.oid::regprocedure::text,
    'is LEAKPROOF: a condition that calls it is evaluated on rows of other tenants, before the policies',
    format('ALTER FUNCTION %s NOT LEAKPROOF', p.oid::regprocedure)
FROM pg_proc AS p
WHERE p.proleakproof
AND NOT tenant_rls.audit_of_system(p.pronamespace)
AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e');
$$;
COMMENT ON FUNCTION tenant_rls.audit_leakproof_function() IS 'lint of tenant_audit: functions that are trusted with rows before the policies are';
