-- Channels that policies do not reach: closed for the database by tenant_lockdown, opened again by tenant_lockdown_undo.

-- acl is what stood there before, as text: a dump goes to where the roles may not exist. NULL is the server's default.
CREATE TABLE tenant_rls.lockdowns (
    object text COLLATE pg_catalog."C" NOT NULL,
    acl text[] COLLATE pg_catalog."C",
    locked_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT lockdowns_pkey PRIMARY KEY (object)
);

ALTER TABLE tenant_rls.lockdowns ENABLE ROW LEVEL SECURITY;
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.lockdowns', '');
COMMENT ON TABLE tenant_rls.lockdowns IS
'what tenant_lockdown has closed, and the privileges from before; the row COMMANDS makes the library refuse commands';

CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_rls.lockdowns
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.registry_changed();
CREATE TRIGGER record_change AFTER INSERT OR UPDATE OR DELETE ON tenant_rls.lockdowns
FOR EACH ROW EXECUTE FUNCTION tenant_rls.record_change();
CREATE TRIGGER record_truncate AFTER TRUNCATE ON tenant_rls.lockdowns
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.record_truncate();
ALTER TABLE tenant_rls.lockdowns ENABLE ALWAYS TRIGGER registry_changed;
ALTER TABLE tenant_rls.lockdowns ENABLE ALWAYS TRIGGER record_change;
ALTER TABLE tenant_rls.lockdowns ENABLE ALWAYS TRIGGER record_truncate;

-- Built-in functions of each channel, and who needs them all the same.
CREATE FUNCTION tenant_rls.lockdown_channels() RETURNS TABLE (channel integer, pattern text, keepers text, why text)
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
VALUES
    (4, '^(pg_notify|pg_notification_queue_usage)$', NULL,
        'a NOTIFY reaches the sessions of all tenants'),
    (5, '^pg_(try_)?advisory_', NULL,
        'advisory locks are shared by all tenants: one can block another, or signal to it'),
    (6, '^pg_((total_)?relation|table|indexes|database|tablespace)_size$', 'pg_monitor',
        'sizes are of the rows of all tenants'),
    (7, '^pg_(stat_get_|stat_statements|current_wal_|last_wal_)', 'pg_monitor',
        'statistics count the rows and statements of all tenants, and show the queries of a role that they share'),
    (8, '^(pg_lock_status|pg_prepared_xact|pg_(safe_snapshot_)?blocking_pids|pg_isolation_test_session_is_blocked)$', 'pg_monitor',
        'locks and prepared transactions are of all tenants'),
    (9, '^pg_(cancel|terminate)_backend$', 'pg_signal_backend',
        'a role that tenants share may cancel and end the sessions of all of them'),
    (10, '^(lo_.*|loread|lowrite)$', NULL,
        'large objects belong to roles, not to tenants')
$$;
COMMENT ON FUNCTION tenant_rls.lockdown_channels() IS
'functions of the server by channel: a pattern of their names, and the roles that keep them';

-- What PUBLIC holds, and tenant_lockdown takes away.
CREATE FUNCTION tenant_rls.lockdown_open()
RETURNS TABLE (channel integer, object text, identity text, acl text[], keepers text, why text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT 2, 'DATABASE', format('DATABASE %I', d.datname), d.datacl::text[], NULL,
    'rows in temporary tables stay when a session goes on with another tenant'
FROM pg_database AS d
WHERE d.datname = current_database()
AND EXISTS (SELECT FROM aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) AS g
    WHERE g.grantee = 0 AND g.privilege_type = 'TEMPORARY')
UNION ALL
SELECT 3, format('SCHEMA %I', n.nspname), format('SCHEMA %I', n.nspname), n.nspacl::text[], NULL,
    'whoever may create functions and tables here can put them in the way of other sessions'
FROM pg_namespace AS n
WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
AND EXISTS (SELECT FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) AS g
    WHERE g.grantee = 0 AND g.privilege_type = 'CREATE')
UNION ALL
SELECT c.channel, format('FUNCTION %s', p.oid::regprocedure), p.oid::regprocedure::text, p.proacl::text[], c.keepers, c.why
FROM tenant_rls.lockdown_channels() AS c
JOIN pg_proc AS p ON p.proname ~ c.pattern AND p.prokind = 'f'
WHERE (p.pronamespace = 'pg_catalog'::regnamespace
    OR EXISTS (SELECT FROM pg_depend AS d JOIN pg_extension AS e ON e.oid = d.refobjid
        WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.refclassid = 'pg_extension'::regclass
        AND d.deptype = 'e' AND e.extname = 'pg_stat_statements'))
AND EXISTS (SELECT FROM aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS g
    WHERE g.grantee = 0 AND g.privilege_type = 'EXECUTE')
$$;
COMMENT ON FUNCTION tenant_rls.lockdown_open() IS 'what PUBLIC may do and tenant_lockdown would take away';

CREATE FUNCTION @extschema@.tenant_lockdown(apply boolean DEFAULT false)
RETURNS TABLE (step integer, statement text, why text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_open record;
BEGIN
    step := 0;
    FOR found_open IN
        SELECT 1 AS place, NULL::integer AS channel,
            'INSERT INTO tenant_rls.lockdowns (object) VALUES (''COMMANDS'')' AS statement,
            'LOCK TABLE that stops others, EXPLAIN, LISTEN and NOTIFY are refused to roles that act for tenants'
                || CASE WHEN current_setting('shared_preload_libraries') !~ '\ytenant_rls\y'
                    THEN '; not before tenant_rls is in shared_preload_libraries' ELSE '' END AS why
        WHERE NOT EXISTS (SELECT FROM tenant_rls.lockdowns AS l WHERE l.object = 'COMMANDS')
        UNION ALL
        SELECT o.channel, o.channel,
            CASE o.channel
                WHEN 2 THEN format('REVOKE TEMPORARY ON %s FROM PUBLIC', o.identity)
                ELSE format('REVOKE CREATE ON %s FROM PUBLIC', o.identity) END,
            o.why
        FROM tenant_rls.lockdown_open() AS o
        WHERE o.channel < 4
        UNION ALL
        SELECT o.channel, o.channel,
            format('REVOKE EXECUTE ON FUNCTION %s FROM PUBLIC', string_agg(o.identity, ', ' ORDER BY o.identity))
                || coalesce(format('; GRANT EXECUTE ON FUNCTION %s TO ',
                    string_agg(o.identity, ', ' ORDER BY o.identity)) || o.keepers, ''),
            o.why
        FROM tenant_rls.lockdown_open() AS o
        WHERE o.channel >= 4
        GROUP BY o.channel, o.keepers, o.why
        ORDER BY place, statement
    LOOP
        step := step + 1;
        statement := found_open.statement;
        why := found_open.why;
        IF apply THEN
            INSERT INTO tenant_rls.lockdowns (object, acl)
            SELECT o.object, o.acl
            FROM tenant_rls.lockdown_open() AS o
            WHERE o.channel = found_open.channel
            ON CONFLICT DO NOTHING;
            EXECUTE found_open.statement;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.tenant_lockdown(boolean) IS
'what is open beside the policies and the statements that close it; with apply => true, closes it. tenant_lockdown_undo takes it back';

-- GRANT leaves an access list where there was none, which a dump would carry on. So the list itself is put back,
-- unless somebody has changed it meanwhile.
CREATE FUNCTION @extschema@.tenant_lockdown_undo(apply boolean DEFAULT false)
RETURNS TABLE (step integer, statement text, why text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    undo record;
BEGIN
    step := 0;
    FOR undo IN
        WITH locked AS (
            SELECT l.object, l.acl, p.oid::regprocedure::text AS function, p.oid, p.proname
            FROM tenant_rls.lockdowns AS l
            LEFT JOIN pg_proc AS p
                ON p.oid = CASE WHEN l.object LIKE 'FUNCTION %' THEN to_regprocedure(substr(l.object, 10)) END
        )
        SELECT 1 AS place, 'GRANT TEMPORARY ON DATABASE ' || quote_ident(current_database()) || ' TO PUBLIC' AS statement,
            'PUBLIC had it' AS why
        FROM locked AS l WHERE l.object = 'DATABASE'
        UNION ALL
        SELECT 2, format('GRANT CREATE ON %s TO PUBLIC', l.object), 'PUBLIC had it'
        FROM locked AS l
        WHERE EXISTS (SELECT FROM pg_namespace AS n WHERE l.object = format('SCHEMA %I', n.nspname))
        UNION ALL
        SELECT 3, format('GRANT EXECUTE ON FUNCTION %s TO PUBLIC', string_agg(l.function, ', ' ORDER BY l.function)),
            'PUBLIC had it'
        FROM locked AS l WHERE l.function IS NOT NULL HAVING count(*) > 0
        UNION ALL
        SELECT 4, format('REVOKE EXECUTE ON FUNCTION %s FROM %s', string_agg(l.function, ', ' ORDER BY l.function), c.keepers),
            'tenant_lockdown gave it in the place of PUBLIC'
        FROM locked AS l JOIN tenant_rls.lockdown_channels() AS c ON l.proname ~ c.pattern
        WHERE c.keepers IS NOT NULL
        AND NOT EXISTS (SELECT FROM unnest(l.acl) AS a WHERE starts_with(a, c.keepers || '='))
        GROUP BY c.keepers
        UNION ALL
        SELECT 5, t.statement, 'the access list as it was, where it means the same'
        FROM (VALUES
            ('UPDATE pg_catalog.pg_database AS d SET datacl = l.acl::aclitem[] FROM tenant_rls.lockdowns AS l'
                ' WHERE l.object = ''DATABASE'' AND d.datname = current_database() AND tenant_rls.same_acl'
                '(coalesce(d.datacl, acldefault(''d'', d.datdba))::text[], coalesce(l.acl, acldefault(''d'', d.datdba)::text[]))'),
            ('UPDATE pg_catalog.pg_namespace AS n SET nspacl = l.acl::aclitem[] FROM tenant_rls.lockdowns AS l'
                ' WHERE l.object = format(''SCHEMA %I'', n.nspname) AND tenant_rls.same_acl'
                '(coalesce(n.nspacl, acldefault(''n'', n.nspowner))::text[], coalesce(l.acl, acldefault(''n'', n.nspowner)::text[]))'),
            ('UPDATE pg_catalog.pg_proc AS p SET proacl = l.acl::aclitem[] FROM tenant_rls.lockdowns AS l'
                ' WHERE l.object = format(''FUNCTION %s'', p.oid::regprocedure) AND tenant_rls.same_acl'
                '(coalesce(p.proacl, acldefault(''f'', p.proowner))::text[], coalesce(l.acl, acldefault(''f'', p.proowner)::text[]))')
        ) AS t (statement)
        WHERE EXISTS (SELECT FROM locked AS l WHERE l.object <> 'COMMANDS')
        UNION ALL
        SELECT 6, 'DELETE FROM tenant_rls.lockdowns', 'nothing is locked down any more'
        WHERE EXISTS (SELECT FROM locked)
        ORDER BY place, statement
    LOOP
        step := step + 1;
        statement := undo.statement;
        why := undo.why;
        IF apply THEN
            EXECUTE undo.statement;
        END IF;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.tenant_lockdown_undo(boolean) IS
'the statements that take tenant_lockdown back; with apply => true, takes it back and leaves no trace';

CREATE FUNCTION tenant_rls.same_acl(one text[], other text[]) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
SELECT ARRAY(SELECT a FROM unnest(one) AS a ORDER BY a) = ARRAY(SELECT a FROM unnest(other) AS a ORDER BY a)
$$;
COMMENT ON FUNCTION tenant_rls.same_acl(text[], text[]) IS 'whether two access lists give the same, in whatever order';
