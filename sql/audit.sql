-- Everything by which isolation could fail. A lint is one function in a file of its own, sql/audit/<code>.sql; here are
-- what the lints share, and what runs them. They run as the owner of the extension: the registry is closed to others.

-- The protected tables, with what their policies must say and the call that makes them right.
CREATE FUNCTION tenant_rls.audit_tables()
RETURNS TABLE (
    relation oid, name text, owner oid, tenant_column name, quoted_column text, attnum smallint, enabled boolean, forced boolean,
    force boolean, is_partition boolean, condition text, protect text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    c.oid, c.oid::regclass::text, c.relowner, p.tenant_column, quote_ident(p.tenant_column), a.attnum, c.relrowsecurity, c.relforcerowsecurity,
    p.forced, c.relispartition,
    format('(%I = %s)', p.tenant_column,
        CASE p.key_type WHEN 'uuid' THEN '@extschema@.required_tenant()' ELSE '@extschema@.required_tenant_key()' END),
    format('SELECT @extschema@.tenant_protect(%L, %L, %L)', c.oid::regclass, p.tenant_column, p.forced)
FROM tenant_rls.protected_tables AS p
JOIN pg_class AS c ON c.oid = p.relation
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = p.tenant_column AND NOT a.attisdropped
$$;
COMMENT ON FUNCTION tenant_rls.audit_tables() IS 'for tenant_audit: the protected tables as the catalogs have them';

-- The roles that were granted tenants, and those that can act with their rights. The superuser that the cluster was
-- made with is no application, whatever it is a member of.
CREATE FUNCTION tenant_rls.audit_app_roles() RETURNS TABLE (role oid, name name)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
WITH RECURSIVE app AS (
    SELECT g.role_oid AS role FROM tenant_rls.grants AS g
    UNION
    SELECT m.member
    FROM pg_auth_members AS m
    JOIN app AS a ON a.role = m.roleid
    -- From PostgreSQL 16 on, who creates a role is a member of it that may only administer it.
    WHERE coalesce((to_jsonb(m) ->> 'inherit_option')::boolean, true) OR coalesce((to_jsonb(m) ->> 'set_option')::boolean, true)
)
SELECT r.oid, r.rolname
FROM app AS a
JOIN pg_roles AS r ON r.oid = a.role
WHERE r.oid <> 10
AND r.oid <> (SELECT x.extowner FROM pg_extension AS x WHERE x.extname = 'tenant_rls')
$$;
COMMENT ON FUNCTION tenant_rls.audit_app_roles() IS 'for tenant_audit: the roles that act for tenants';

-- Settings that roles, databases and functions bring along, with what takes one back.
CREATE FUNCTION tenant_rls.audit_stored_settings() RETURNS TABLE (object text, setting text, value text, fix text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT s.object, lower(split_part(c, '=', 1)), substr(c, strpos(c, '=') + 1), format('%s RESET %s', s.change, split_part(c, '=', 1))
FROM (
    SELECT
        CASE WHEN d.setrole = 0 THEN 'database' ELSE quote_ident(pg_get_userbyid(d.setrole)) END AS object,
        CASE
            WHEN d.setrole = 0 AND d.setdatabase = 0 THEN 'ALTER ROLE ALL'
            WHEN d.setrole = 0 THEN format('ALTER DATABASE %I', current_database())
            ELSE format('ALTER ROLE %I%s', pg_get_userbyid(d.setrole),
                CASE d.setdatabase WHEN 0 THEN '' ELSE format(' IN DATABASE %I', current_database()) END)
        END AS change,
        d.setconfig AS config
    FROM pg_db_role_setting AS d
    WHERE d.setdatabase IN (SELECT 0 UNION SELECT b.oid FROM pg_database AS b WHERE b.datname = current_database())
    UNION ALL
    SELECT p.oid::regprocedure::text, format('ALTER ROUTINE %s', p.oid::regprocedure), p.proconfig
    FROM pg_proc AS p
    WHERE p.proconfig IS NOT NULL
) AS s
CROSS JOIN LATERAL unnest(s.config) AS c
$$;
COMMENT ON FUNCTION tenant_rls.audit_stored_settings() IS 'for tenant_audit: settings that roles, databases and functions bring along';

-- Views and materialized views that read a table, directly or through other views.
CREATE FUNCTION tenant_rls.audit_readers() RETURNS TABLE (reader oid, base oid)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
WITH RECURSIVE direct AS (
    SELECT DISTINCT r.ev_class AS reader, d.refobjid AS base
    FROM pg_depend AS d
    JOIN pg_rewrite AS r ON r.oid = d.objid
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND r.ev_class <> d.refobjid
), readers AS (
    SELECT d.reader, d.base FROM direct AS d JOIN tenant_rls.protected_tables AS p ON p.relation = d.base
    UNION
    SELECT d.reader, r.base FROM direct AS d JOIN readers AS r ON r.reader = d.base
)
SELECT r.reader, r.base
FROM readers AS r
WHERE NOT EXISTS (
    SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = r.reader AND d.deptype = 'e')
$$;
COMMENT ON FUNCTION tenant_rls.audit_readers() IS 'for tenant_audit: views of protected tables';

-- SECURITY DEFINER functions of users, and whether the policies of some protected table do not hold for the owner.
CREATE FUNCTION tenant_rls.audit_definers() RETURNS TABLE (routine oid, bypasses boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    p.oid,
    r.rolsuper OR r.rolbypassrls OR EXISTS (
        SELECT FROM tenant_rls.audit_tables() AS t WHERE NOT t.forced AND pg_has_role(r.oid, t.owner, 'USAGE'))
FROM pg_proc AS p
JOIN pg_roles AS r ON r.oid = p.proowner
WHERE p.prosecdef
AND NOT tenant_rls.audit_of_system(p.pronamespace)
AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
$$;
COMMENT ON FUNCTION tenant_rls.audit_definers() IS 'for tenant_audit: functions that run as their owner';

CREATE FUNCTION tenant_rls.audit_of_system(schema oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT n.nspname ~ '^pg_' OR n.nspname IN ('information_schema', 'tenant_rls') FROM pg_namespace AS n WHERE n.oid = audit_of_system.schema
$$;
COMMENT ON FUNCTION tenant_rls.audit_of_system(oid) IS 'for tenant_audit: whether a schema is of the server or of the extension';

-- The policies of users, with their conditions as SQL has them and as the server stores them. Those of tenant_protect
-- have lints of their own; its boundary also closes a table from which the extension was dropped.
CREATE FUNCTION tenant_rls.audit_policies()
RETURNS TABLE (
    oid oid, relation oid, policy name, name text, object text, permissive boolean, protected boolean,
    using_clause text, using_tree text, check_clause text, check_tree text, remove text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT
    l.oid, c.oid, l.polname, c.oid::regclass::text, format('%I on %s', l.polname, c.oid::regclass), l.polpermissive, p.relation IS NOT NULL,
    pg_get_expr(l.polqual, c.oid), l.polqual::text, pg_get_expr(l.polwithcheck, c.oid), l.polwithcheck::text,
    format('DROP POLICY %I ON %s', l.polname, c.oid::regclass)
FROM pg_policy AS l
JOIN pg_class AS c ON c.oid = l.polrelid
LEFT JOIN tenant_rls.protected_tables AS p ON p.relation = c.oid
WHERE NOT tenant_rls.audit_of_system(c.relnamespace)
AND l.polname <> 'tenant_boundary'
AND (l.polname <> 'tenant_isolation' OR p.relation IS NULL)
$$;
COMMENT ON FUNCTION tenant_rls.audit_policies() IS 'for tenant_audit: the policies of users';

CREATE FUNCTION tenant_rls.audit_words(clause text) RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT regexp_replace(audit_words.clause, $re$'(?:[^']|'')*'|"(?:[^"]|"")*"$re$, '?', 'g')
$$;
COMMENT ON FUNCTION tenant_rls.audit_words(text) IS 'for tenant_audit: a condition without its literals and quoted names';

-- Privileges on a relation, and on columns of it.
CREATE FUNCTION tenant_rls.audit_privileges(relation oid) RETURNS TABLE (grantee oid, privilege_type text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT e.grantee, e.privilege_type FROM pg_class AS c, aclexplode(c.relacl) AS e WHERE c.oid = audit_privileges.relation
UNION
SELECT e.grantee, e.privilege_type FROM pg_attribute AS a, aclexplode(a.attacl) AS e WHERE a.attrelid = audit_privileges.relation
$$;
COMMENT ON FUNCTION tenant_rls.audit_privileges(oid) IS 'for tenant_audit: privileges on a relation, and on columns of it';

CREATE FUNCTION tenant_rls.audit_role(role oid) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE audit_role.role WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(audit_role.role)) END
$$;
COMMENT ON FUNCTION tenant_rls.audit_role(oid) IS 'for tenant_audit: a grantee as SQL names it';

-- MEMBER means more than that from PostgreSQL 16 on.
CREATE FUNCTION tenant_rls.audit_set_role() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE WHEN current_setting('server_version_num')::int >= 160000 THEN 'SET' ELSE 'MEMBER' END
$$;
COMMENT ON FUNCTION tenant_rls.audit_set_role() IS 'for tenant_audit: the privilege of SET ROLE';

-- The owner of the database, unless it is an application's role itself.
CREATE FUNCTION tenant_rls.audit_new_owner() RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT CASE
    WHEN EXISTS (SELECT FROM tenant_rls.audit_app_roles() AS g WHERE g.role = b.datdba) THEN 'CURRENT_USER'
    ELSE quote_ident(pg_get_userbyid(b.datdba))
END
FROM pg_database AS b
WHERE b.datname = current_database()
$$;
COMMENT ON FUNCTION tenant_rls.audit_new_owner() IS 'for tenant_audit: to whom a table goes that belongs to an application';

CREATE FUNCTION tenant_rls.crossing_rows(foreign_key oid) RETURNS bigint
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'crossing_rows_wrapper';
COMMENT ON FUNCTION tenant_rls.crossing_rows(oid) IS
'for tenant_audit: rows that refer to a row of another tenant; NULL when the tables are large or have different owners';

-- An expression of a table's owner that raises does not keep the rest of the audit from its readers.
CREATE FUNCTION tenant_rls.audit_crossing(foreign_key oid) RETURNS bigint
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN tenant_rls.crossing_rows(foreign_key);
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION tenant_rls.audit_crossing(oid) IS 'for tenant_audit: crossing_rows, or NULL when counting raises';

CREATE FUNCTION @extschema@.tenant_audit()
RETURNS TABLE (severity text, code text, object text, finding text, fix text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    errors bigint := 0;
    warnings bigint := 0;
BEGIN
    FOR severity, code, object, finding, fix IN
        SELECT l.severity, l.code, l.object, l.finding, l.fix
        FROM (
            SELECT * FROM tenant_rls.audit_app_role_attribute()
            UNION ALL
            SELECT * FROM tenant_rls.audit_app_role_becomes()
            UNION ALL
            SELECT * FROM tenant_rls.audit_app_role_operator()
            UNION ALL
            SELECT * FROM tenant_rls.audit_app_role_owner()
            UNION ALL
            SELECT * FROM tenant_rls.audit_bypass_role()
            UNION ALL
            SELECT * FROM tenant_rls.audit_channel_open()
            UNION ALL
            SELECT * FROM tenant_rls.audit_default_privileges()
            UNION ALL
            SELECT * FROM tenant_rls.audit_definer_function()
            UNION ALL
            SELECT * FROM tenant_rls.audit_definer_search_path()
            UNION ALL
            SELECT * FROM tenant_rls.audit_definer_trigger()
            UNION ALL
            SELECT * FROM tenant_rls.audit_definer_view()
            UNION ALL
            SELECT * FROM tenant_rls.audit_fk_without_tenant()
            UNION ALL
            SELECT * FROM tenant_rls.audit_foreign_table()
            UNION ALL
            SELECT * FROM tenant_rls.audit_guard_disabled()
            UNION ALL
            SELECT * FROM tenant_rls.audit_guard_stored()
            UNION ALL
            SELECT * FROM tenant_rls.audit_immutable_policy()
            UNION ALL
            SELECT * FROM tenant_rls.audit_leakproof_function()
            UNION ALL
            SELECT * FROM tenant_rls.audit_materialized_view()
            UNION ALL
            SELECT * FROM tenant_rls.audit_not_forced()
            UNION ALL
            SELECT * FROM tenant_rls.audit_not_preloaded()
            UNION ALL
            SELECT * FROM tenant_rls.audit_parameter_grant()
            UNION ALL
            SELECT * FROM tenant_rls.audit_partition_unprotected()
            UNION ALL
            SELECT * FROM tenant_rls.audit_permissive_policy()
            UNION ALL
            SELECT * FROM tenant_rls.audit_policy_changed()
            UNION ALL
            SELECT * FROM tenant_rls.audit_policy_constant()
            UNION ALL
            SELECT * FROM tenant_rls.audit_policy_duplicate()
            UNION ALL
            SELECT * FROM tenant_rls.audit_policy_missing()
            UNION ALL
            SELECT * FROM tenant_rls.audit_policy_reads_open()
            UNION ALL
            SELECT * FROM tenant_rls.audit_policy_session()
            UNION ALL
            SELECT * FROM tenant_rls.audit_policy_without_rls()
            UNION ALL
            SELECT * FROM tenant_rls.audit_privilege_without_policy()
            UNION ALL
            SELECT * FROM tenant_rls.audit_public_privilege()
            UNION ALL
            SELECT * FROM tenant_rls.audit_publication_unfiltered()
            UNION ALL
            SELECT * FROM tenant_rls.audit_registry_open()
            UNION ALL
            SELECT * FROM tenant_rls.audit_replica_identity()
            UNION ALL
            SELECT * FROM tenant_rls.audit_rls_off()
            UNION ALL
            SELECT * FROM tenant_rls.audit_rule()
            UNION ALL
            SELECT * FROM tenant_rls.audit_schema_create()
            UNION ALL
            SELECT * FROM tenant_rls.audit_server_version()
            UNION ALL
            SELECT * FROM tenant_rls.audit_statistics_view()
            UNION ALL
            SELECT * FROM tenant_rls.audit_table_unprotected()
            UNION ALL
            SELECT * FROM tenant_rls.audit_tenant_column_nullable()
            UNION ALL
            SELECT * FROM tenant_rls.audit_tenant_in_catalog()
            UNION ALL
            SELECT * FROM tenant_rls.audit_tenant_index_missing()
            UNION ALL
            SELECT * FROM tenant_rls.audit_tenant_stored()
            UNION ALL
            SELECT * FROM tenant_rls.audit_unfiltered_privilege()
            UNION ALL
            SELECT * FROM tenant_rls.audit_unique_without_tenant()
            UNION ALL
            SELECT * FROM tenant_rls.audit_volatile_policy()
        ) AS l
        ORDER BY array_position(ARRAY['error', 'warning', 'info'], l.severity), l.code, l.object, l.finding, l.fix
    LOOP
        errors := errors + (severity = 'error')::int;
        warnings := warnings + (severity = 'warning')::int;
        RETURN NEXT;
    END LOOP;
    -- A standby, or a transaction that only reads, can audit and leaves no trace.
    IF current_setting('transaction_read_only') = 'off' THEN
        INSERT INTO tenant_rls.audits (audited_by, errors, warnings)
        VALUES (tenant_rls.acting_role(), errors, warnings);
    END IF;
END
$$;
COMMENT ON FUNCTION @extschema@.tenant_audit() IS
'everything in this database by which isolation could fail: severity error, warning or info, and SQL that fixes it; errors first';

CREATE FUNCTION @extschema@.tenant_assert() RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_assert_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_assert() IS
'raises 55000 if tenant_audit has a finding of severity error; the DETAIL names the first ones';
