-- Policies that say what another one says.

CREATE FUNCTION tenant_rls.audit_policy_duplicate()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'info', 'policy_duplicate', l.object,
    format('is policy "%s" once more: who changes one of them leaves the other as it was', min(o.polname)),
    l.remove
FROM tenant_rls.audit_policies() AS l
JOIN pg_policy AS p ON p.oid = l.oid
JOIN pg_policy AS o ON o.polrelid = p.polrelid AND o.oid <> p.oid
WHERE (o.polname IN ('tenant_isolation', 'tenant_boundary') OR o.polname < p.polname)
AND o.polcmd = p.polcmd
AND o.polpermissive = p.polpermissive
AND o.polroles <@ p.polroles AND o.polroles @> p.polroles
AND pg_get_expr(o.polqual, o.polrelid) IS NOT DISTINCT FROM l.using_clause
AND pg_get_expr(o.polwithcheck, o.polrelid) IS NOT DISTINCT FROM l.check_clause
GROUP BY l.object, l.remove;
$$;
COMMENT ON FUNCTION tenant_rls.audit_policy_duplicate() IS 'lint of tenant_audit: policies that say what another one says';
