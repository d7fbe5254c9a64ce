-- Views over protected tables that are read with the rights of their owner.

CREATE FUNCTION tenant_rls.audit_definer_view()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- The tenant is the session's in any case; what counts is whether policies hold for the owner.
SELECT
    CASE WHEN bool_or(b.bypasses) THEN 'error' ELSE 'info' END, 'definer_view', c.oid::regclass::text,
    CASE
        WHEN bool_or(b.bypasses) THEN format('reads %s as %I, for which the policies do not hold: it shows all tenants', min(t.name), r.rolname)
        ELSE format('reads %s as its owner %I, for which the policies hold', min(t.name), r.rolname)
    END,
    format('ALTER VIEW %s SET (security_invoker = true)', c.oid::regclass)
FROM tenant_rls.audit_readers() AS v
JOIN tenant_rls.audit_tables() AS t ON t.relation = v.base
JOIN pg_class AS c ON c.oid = v.reader AND c.relkind = 'v'
JOIN pg_roles AS r ON r.oid = c.relowner
CROSS JOIN LATERAL (
    SELECT r.rolsuper OR r.rolbypassrls OR (NOT t.forced AND pg_has_role(r.oid, t.owner, 'USAGE')) AS bypasses
) AS b
WHERE NOT EXISTS (
    SELECT FROM pg_options_to_table(c.reloptions) AS x
    WHERE x.option_name = 'security_invoker' AND x.option_value::boolean
)
GROUP BY c.oid, r.rolname;
$$;
COMMENT ON FUNCTION tenant_rls.audit_definer_view() IS 'lint of tenant_audit: views over protected tables that are read with the rights of their owner';
