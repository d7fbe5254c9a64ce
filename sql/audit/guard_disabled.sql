-- Triggers of the extension that are disabled.

CREATE FUNCTION tenant_rls.audit_guard_disabled()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'error', 'guard_disabled', quote_ident(e.evtname),
    'this event trigger of the extension is disabled',
    format('ALTER EVENT TRIGGER %I ENABLE', e.evtname)
FROM pg_event_trigger AS e
JOIN pg_depend AS d ON d.classid = 'pg_event_trigger'::regclass AND d.objid = e.oid AND d.deptype = 'e'
JOIN pg_extension AS x ON x.oid = d.refobjid AND x.extname = 'tenant_rls'
WHERE e.evtenabled IN ('D', 'R')
UNION ALL
SELECT
    'error', 'guard_disabled', format('%I on %s', g.tgname, g.tgrelid::regclass),
    'this trigger of the registry is disabled: sessions do not learn of changes, or nobody records them',
    format('ALTER TABLE %s ENABLE %sTRIGGER %I', g.tgrelid::regclass,
        CASE WHEN g.tgname IN ('registry_changed', 'record_change', 'record_truncate', 'restore_begins', 'restore_ends') THEN 'ALWAYS ' ELSE '' END,
        g.tgname)
FROM pg_trigger AS g
JOIN pg_class AS c ON c.oid = g.tgrelid AND c.relnamespace = 'tenant_rls'::regnamespace
WHERE g.tgenabled IN ('D', 'R') AND NOT g.tgisinternal;
$$;
COMMENT ON FUNCTION tenant_rls.audit_guard_disabled() IS 'lint of tenant_audit: triggers of the extension that are disabled';
