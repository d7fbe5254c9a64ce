-- Privileges that future tables give by themselves.

CREATE FUNCTION tenant_rls.audit_default_privileges()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT DISTINCT
    'warning', 'default_privileges',
    format('%I%s', pg_get_userbyid(d.defaclrole), CASE d.defaclnamespace WHEN 0 THEN '' ELSE ' in ' || d.defaclnamespace::regnamespace END),
    format('tables that this role makes give %s to %s', e.privilege_type, tenant_rls.audit_role(e.grantee)),
    format('ALTER DEFAULT PRIVILEGES FOR ROLE %I%s REVOKE %s ON TABLES FROM %s', pg_get_userbyid(d.defaclrole),
        CASE d.defaclnamespace WHEN 0 THEN '' ELSE ' IN SCHEMA ' || d.defaclnamespace::regnamespace END,
        e.privilege_type, tenant_rls.audit_role(e.grantee))
FROM pg_default_acl AS d
CROSS JOIN LATERAL aclexplode(d.defaclacl) AS e
WHERE d.defaclobjtype = 'r'
AND e.grantee <> d.defaclrole
AND (e.grantee = 0 OR e.privilege_type IN ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN'));
$$;
COMMENT ON FUNCTION tenant_rls.audit_default_privileges() IS 'lint of tenant_audit: privileges that future tables give by themselves';
