-- What tenant_lockdown closes, or would close.

CREATE FUNCTION tenant_rls.audit_channel_open()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
WITH locked AS (
    SELECT EXISTS (SELECT FROM tenant_rls.lockdowns AS l WHERE l.object = 'COMMANDS') AS down
)
SELECT
    'info', 'channel_open', 'tenant_lockdown',
    'not called: LOCK TABLE, EXPLAIN, NOTIFY, advisory locks, sizes, statistics, other sessions and large objects are shared by all tenants',
    'SELECT * FROM @extschema@.tenant_lockdown(apply => true)'
FROM locked AS k
WHERE NOT k.down
UNION ALL
SELECT 'info', 'channel_open', o.identity, 'open to PUBLIC again: ' || o.why, 'SELECT * FROM @extschema@.tenant_lockdown(apply => true)'
FROM locked AS k
CROSS JOIN tenant_rls.lockdown_open() AS o
WHERE k.down
UNION ALL
SELECT 'warning', 'channel_open', s.object, format('sets lo_compat_privileges = %s: every role reads and writes all large objects', s.value), s.fix
FROM tenant_rls.audit_stored_settings() AS s
-- As the server reads a boolean.
WHERE s.setting = 'lo_compat_privileges'
AND lower(s.value) ~ '^(on|t|y|1)'
UNION ALL
SELECT
    'warning', 'channel_open', g.name, 'is on for the server: every role reads and writes all large objects',
    '-- set lo_compat_privileges = off in postgresql.conf, and reload'
FROM pg_settings AS g
WHERE g.name = 'lo_compat_privileges'
AND g.setting = 'on'
AND g.source IN ('configuration file', 'command line', 'environment variable');
$$;
COMMENT ON FUNCTION tenant_rls.audit_channel_open() IS 'lint of tenant_audit: what tenant_lockdown closes, or would close';
