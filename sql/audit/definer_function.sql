-- Functions that run with rights to which no policy holds.

CREATE FUNCTION tenant_rls.audit_definer_function()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'definer_function', p.oid::regprocedure::text,
    format('runs as %I, for which the policies do not hold, and %s can call it', r.rolname, x.names),
    format('REVOKE EXECUTE ON ROUTINE %s FROM %s CASCADE', p.oid::regprocedure, x.names)
FROM tenant_rls.audit_definers() AS d
JOIN pg_proc AS p ON p.oid = d.routine
JOIN pg_roles AS r ON r.oid = p.proowner
CROSS JOIN LATERAL (
    SELECT string_agg(DISTINCT tenant_rls.audit_role(e.grantee), ', ') AS names
    FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS e
    WHERE e.grantee <> p.proowner
    AND (e.grantee = 0 OR EXISTS (
        SELECT FROM tenant_rls.audit_app_roles() AS g WHERE pg_has_role(g.role, e.grantee, 'MEMBER')))
) AS x
WHERE d.bypasses
AND x.names IS NOT NULL
AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype);
$$;
COMMENT ON FUNCTION tenant_rls.audit_definer_function() IS 'lint of tenant_audit: functions that run with rights to which no policy holds';
