-- Functions of policies that read the session and say that they never change.

CREATE FUNCTION tenant_rls.audit_immutable_policy()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT
    'error', 'immutable_policy', p.oid::regprocedure::text,
    format('is IMMUTABLE, reads the session and is called by policy "%s" of %s: a cached plan keeps the answer of another session', l.polname, l.polrelid::regclass),
    format('ALTER FUNCTION %s STABLE', p.oid::regprocedure)
FROM pg_policy AS l
CROSS JOIN LATERAL regexp_matches(concat(l.polqual::text, l.polwithcheck::text), ':(?:op)?funcid (\d+)', 'g') AS f
JOIN pg_proc AS p ON p.oid = f[1]::oid AND p.provolatile = 'i'
WHERE NOT tenant_rls.audit_of_system(p.pronamespace)
AND p.prosrc ~* '\m(current_setting|current_user|session_user|current_tenant|required_tenant)\M';
$$;
COMMENT ON FUNCTION tenant_rls.audit_immutable_policy() IS 'lint of tenant_audit: functions of policies that read the session and say that they never change';
