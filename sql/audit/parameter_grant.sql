-- Privileges on settings that isolation rests on.

CREATE FUNCTION tenant_rls.audit_parameter_grant()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'parameter_grant', a.parname,
    format('%s may %s this setting', tenant_rls.audit_role(e.grantee), e.privilege_type),
    format('REVOKE %s ON PARAMETER %s FROM %s CASCADE', e.privilege_type,
        (SELECT string_agg(quote_ident(s), '.') FROM unnest(string_to_array(a.parname, '.')) AS s), tenant_rls.audit_role(e.grantee))
FROM pg_parameter_acl AS a
CROSS JOIN LATERAL aclexplode(a.paracl) AS e
WHERE e.grantee <> 10
AND (a.parname LIKE 'tenant\_rls.%'
    OR a.parname IN ('app.current_tenant', 'session_replication_role', 'event_triggers', 'session_preload_libraries', 'shared_preload_libraries'));
$$;
COMMENT ON FUNCTION tenant_rls.audit_parameter_grant() IS 'lint of tenant_audit: privileges on settings that isolation rests on';
