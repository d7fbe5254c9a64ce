-- Privileges for which no policy lets a row through.

CREATE FUNCTION tenant_rls.audit_privilege_without_policy()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- Not a leak: SELECT, UPDATE and DELETE meet no row, and INSERT fails.
SELECT
    'info', 'privilege_without_policy', c.oid::regclass::text,
    format('%s has %s, and no permissive policy lets a row through', tenant_rls.audit_role(e.grantee),
        string_agg(DISTINCT e.privilege_type, ', ')),
    format('REVOKE %s ON %s FROM %s CASCADE', string_agg(DISTINCT e.privilege_type, ', '), c.oid::regclass, tenant_rls.audit_role(e.grantee))
FROM pg_class AS c
CROSS JOIN LATERAL aclexplode(c.relacl) AS e
JOIN (VALUES ('SELECT', 'r'), ('INSERT', 'a'), ('UPDATE', 'w'), ('DELETE', 'd')) AS k (privilege, command) ON k.privilege = e.privilege_type
WHERE c.relkind IN ('r', 'p')
AND c.relrowsecurity
AND e.grantee <> c.relowner
AND NOT tenant_rls.audit_of_system(c.relnamespace)
AND NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = e.grantee AND (r.rolsuper OR r.rolbypassrls))
AND NOT EXISTS (
    SELECT
    FROM pg_policy AS l
    CROSS JOIN LATERAL unnest(l.polroles) AS p
    WHERE l.polrelid = c.oid
    AND l.polpermissive
    AND l.polcmd IN ('*', k.command)
    -- A member of either one can use the privilege where the policy holds.
    AND CASE WHEN e.grantee = 0 OR p = 0 THEN true ELSE pg_has_role(e.grantee, p, 'MEMBER') OR pg_has_role(p, e.grantee, 'MEMBER') END)
GROUP BY c.oid, e.grantee;
$$;
COMMENT ON FUNCTION tenant_rls.audit_privilege_without_policy() IS 'lint of tenant_audit: privileges for which no policy lets a row through';
