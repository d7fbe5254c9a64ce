-- Guards that a role, a database or a function switches off.

CREATE FUNCTION tenant_rls.audit_guard_stored()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'guard_stored', s.object,
    format('sets %s = %s: what it guards is open to these sessions', s.setting, s.value),
    s.fix
FROM tenant_rls.audit_stored_settings() AS s
WHERE s.setting = 'tenant_rls.ddl_guard' AND lower(s.value) <> 'on'
-- As the server reads a boolean.
OR s.setting IN ('tenant_rls.guard_switch', 'event_triggers') AND lower(s.value) ~ '^(of|f|n|0)'
OR s.setting = 'session_replication_role' AND lower(s.value) = 'replica';
$$;
COMMENT ON FUNCTION tenant_rls.audit_guard_stored() IS 'lint of tenant_audit: guards that a role, a database or a function switches off';
