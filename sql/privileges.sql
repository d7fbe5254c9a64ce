-- Who may call and read what. Everything is taken from PUBLIC first, then given with a reason.

DO $$
DECLARE
    f regprocedure;
    v regclass;
BEGIN
    FOR f IN
        SELECT d.objid::pg_catalog.regprocedure
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_extension AS e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
        WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_proc'::pg_catalog.regclass
        AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
        AND d.deptype OPERATOR(pg_catalog.=) 'e'
        AND e.extname OPERATOR(pg_catalog.=) 'tenant_rls'
        AND NOT EXISTS (
            SELECT FROM pg_catalog.pg_proc AS p
            WHERE p.oid OPERATOR(pg_catalog.=) d.objid
            AND p.proname OPERATOR(pg_catalog.=) ANY (ARRAY[
                'current_tenant', 'current_tenant_key', 'required_tenant', 'required_tenant_key']::pg_catalog.name[]))
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON ROUTINE %s FROM PUBLIC', f);
    END LOOP;
    -- Tables and sequences too: the default privileges of the installing role may have opened them.
    FOR v IN
        SELECT d.objid::pg_catalog.regclass
        FROM pg_catalog.pg_depend AS d
        JOIN pg_catalog.pg_extension AS e ON e.oid OPERATOR(pg_catalog.=) d.refobjid
        WHERE d.classid OPERATOR(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass
        AND d.refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_extension'::pg_catalog.regclass
        AND d.deptype OPERATOR(pg_catalog.=) 'e'
        AND e.extname OPERATOR(pg_catalog.=) 'tenant_rls'
        AND EXISTS (
            SELECT FROM pg_catalog.pg_class AS c
            WHERE c.oid OPERATOR(pg_catalog.=) d.objid
            AND c.relkind OPERATOR(pg_catalog.=) ANY (ARRAY['r', 'v', 'S']::pg_catalog."char"[]))
    LOOP
        EXECUTE pg_catalog.format('REVOKE ALL ON %s FROM PUBLIC', v);
    END LOOP;
END
$$;

-- Policies, column defaults and views call these as whoever runs the statement. They tell the session its own tenant.
-- PUBLIC may call a function that has no list of privileges; a statement that checks one reads the list first, so
-- these get one only where default privileges have made one.
DO $$
DECLARE
    f regprocedure;
BEGIN
    FOR f IN
        SELECT p.oid::pg_catalog.regprocedure
        FROM pg_catalog.pg_proc AS p
        WHERE p.oid OPERATOR(pg_catalog.=) ANY (ARRAY[
            '@extschema@.current_tenant()'::pg_catalog.regprocedure,
            '@extschema@.current_tenant_key()'::pg_catalog.regprocedure,
            '@extschema@.required_tenant()'::pg_catalog.regprocedure,
            '@extschema@.required_tenant_key()'::pg_catalog.regprocedure]::pg_catalog.oid[])
        AND p.proacl IS NOT NULL
    LOOP
        EXECUTE pg_catalog.format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', f);
    END LOOP;
END
$$;

-- A table's owner may do these with its own rights; each checks the ownership itself.
GRANT EXECUTE ON FUNCTION @extschema@.tenant_protect(regclass, name, boolean) TO PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.tenant_unprotect(regclass) TO PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.tenant_protect_schema(regnamespace) TO PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.tenant_protect_plan(regclass, name) TO PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.tenant_repair(regclass, boolean) TO PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.tenant_quota_attach(regclass, text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.tenant_quota_detach(regclass, text) TO PUBLIC;
GRANT EXECUTE ON FUNCTION @extschema@.tenant_quota_reconcile(regclass) TO PUBLIC;

-- tenant_audit and tenant_assert are not here: what they find tells of the registry, and is for operators.

-- Views run the functions in them as whoever reads the view; each checks what that role may see.
GRANT EXECUTE ON FUNCTION tenant_rls.sees_all() TO PUBLIC;
GRANT EXECUTE ON FUNCTION tenant_rls.usage_of(uuid) TO PUBLIC;
GRANT EXECUTE ON FUNCTION tenant_rls.storage_of(uuid) TO PUBLIC;
GRANT EXECUTE ON FUNCTION tenant_rls.invariants() TO PUBLIC;

-- A table's owner creates the triggers that call this one, and writers of the table fire it.
GRANT EXECUTE ON FUNCTION @extschema@.tenant_gauge_changed() TO PUBLIC;

-- A function or table of the application's may be of a type that ours answer with.
GRANT USAGE ON TYPE @extschema@.tenant_quota_result TO PUBLIC;
GRANT USAGE ON TYPE @extschema@.tenant_feature_result TO PUBLIC;
GRANT USAGE ON TYPE @extschema@.tenant_route_result TO PUBLIC;
GRANT USAGE ON TYPE @extschema@.tenant_cache_stats_result TO PUBLIC;

-- The server's own role for statistics sees the usage of all tenants.
GRANT SELECT ON @extschema@.tenant_usage TO pg_read_all_stats;
GRANT SELECT ON @extschema@.tenant_usage_history TO pg_read_all_stats;
GRANT SELECT ON @extschema@.tenant_quota_events TO pg_read_all_stats;
GRANT SELECT ON @extschema@.tenant_storage TO pg_read_all_stats;
GRANT SELECT ON @extschema@.tenant_leases TO pg_read_all_stats;
GRANT EXECUTE ON FUNCTION @extschema@.tenant_worker_status() TO pg_read_all_stats;
GRANT SELECT ON @extschema@.tenant_quota_invariants TO pg_read_all_stats;
