-- Rules of protected tables.

CREATE FUNCTION tenant_rls.audit_rule()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'rule', format('%I on %s', r.rulename, t.name),
    'a rule copies or redirects rows with the rights of the owner of the table',
    format('DROP RULE %I ON %s', r.rulename, t.name)
FROM tenant_rls.audit_tables() AS t
JOIN pg_rewrite AS r ON r.ev_class = t.relation;
$$;
COMMENT ON FUNCTION tenant_rls.audit_rule() IS 'lint of tenant_audit: rules of protected tables';
