-- Tenants that are set by a role, a database or a function.

CREATE FUNCTION tenant_rls.audit_tenant_stored()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    'warning', 'tenant_stored', s.object,
    'sets app.current_tenant by itself: sessions act for a tenant that nobody chose',
    s.fix
FROM (
    SELECT
        CASE WHEN d.setrole = 0 THEN 'database' ELSE quote_ident(pg_get_userbyid(d.setrole)) END AS object,
        CASE
            WHEN d.setrole = 0 THEN format('ALTER DATABASE %I RESET app.current_tenant', current_database())
            ELSE format('ALTER ROLE %I%s RESET app.current_tenant', pg_get_userbyid(d.setrole),
                CASE d.setdatabase WHEN 0 THEN '' ELSE format(' IN DATABASE %I', current_database()) END)
        END AS fix,
        d.setconfig AS config
    FROM pg_db_role_setting AS d
    WHERE d.setdatabase IN (SELECT 0 UNION SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
    UNION ALL
    SELECT p.oid::regprocedure::text, format('ALTER ROUTINE %s RESET app.current_tenant', p.oid::regprocedure), p.proconfig
    FROM pg_proc AS p
    WHERE p.proconfig IS NOT NULL
) AS s
WHERE EXISTS (SELECT FROM unnest(s.config) AS c WHERE c ILIKE 'app.current\_tenant=%');
$$;
COMMENT ON FUNCTION tenant_rls.audit_tenant_stored() IS 'lint of tenant_audit: tenants that are set by a role, a database or a function';
