-- Policies that ask the session themselves.

CREATE FUNCTION tenant_rls.audit_policy_session()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
-- On a protected table a restrictive policy can only narrow what the boundary lets through.
SELECT
    CASE WHEN l.protected AND NOT l.permissive THEN 'info' ELSE 'warning' END, 'policy_session', l.object,
    CASE
        WHEN x.words ~ '\mcurrent_setting\M' THEN 'reads a setting itself, which every session can set to what it likes'
        ELSE 'compares with the role, which is the same for all clients of a pool'
    END,
    l.remove
FROM tenant_rls.audit_policies() AS l
CROSS JOIN LATERAL (SELECT tenant_rls.audit_words(concat_ws(' ', l.using_clause, l.check_clause)) AS words) AS x
WHERE x.words ~ '\m(current_setting|CURRENT_USER|SESSION_USER|CURRENT_ROLE|USER)\M'
UNION ALL
SELECT
    'info', 'policy_session', l.object,
    'reads the tenant with current_tenant(), which is NULL without one: rows are missing where required_tenant() raises',
    format('ALTER POLICY %I ON %s', l.policy, l.name)
        || coalesce(' USING (' || regexp_replace(l.using_clause, '\mcurrent_tenant(_key)?\(', 'required_tenant\1(', 'g') || ')', '')
        || coalesce(' WITH CHECK (' || regexp_replace(l.check_clause, '\mcurrent_tenant(_key)?\(', 'required_tenant\1(', 'g') || ')', '')
FROM tenant_rls.audit_policies() AS l
WHERE tenant_rls.audit_words(concat_ws(' ', l.using_clause, l.check_clause)) ~ '\mcurrent_tenant(_key)?\(\)';
$$;
COMMENT ON FUNCTION tenant_rls.audit_policy_session() IS 'lint of tenant_audit: policies that ask the session themselves';
