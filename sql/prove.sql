-- The live proof: what a role reaches of other tenants, found by trying. Everything runs in subtransactions that are
-- rolled back; TR000 is how they end. Tries run as the role, with the search_path of its sessions: every name in
-- their text is qualified.

CREATE FUNCTION tenant_rls.prove_check(role regrole) RETURNS text
LANGUAGE c STABLE AS 'MODULE_PATHNAME', 'prove_check_wrapper';
COMMENT ON FUNCTION tenant_rls.prove_check(regrole) IS 'the name of the role; refuses null, and a caller who is no superuser';

CREATE FUNCTION tenant_rls.prove_enter(role oid, tenant uuid, search_path text) RETURNS void
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'prove_enter_wrapper';
COMMENT ON FUNCTION tenant_rls.prove_enter(oid, uuid, text) IS
'acts as the role for the tenant, with no way back, until the subtransaction is rolled back';

CREATE FUNCTION tenant_rls.prove_as_owner(relation oid, statement text) RETURNS text
LANGUAGE c VOLATILE STRICT AS 'MODULE_PATHNAME', 'prove_as_owner_wrapper';
COMMENT ON FUNCTION tenant_rls.prove_as_owner(oid, text) IS
'runs a statement with the rights of the owner of a relation and without its policies';

-- failed_at is the table that an integrity error names; TR001 says that the role could not act for the tenant.
CREATE FUNCTION tenant_rls.prove_try(
    role oid,
    tenant uuid,
    statement text,
    asks boolean,
    OUT state text,
    OUT reached bigint,
    OUT answer text,
    OUT message text,
    OUT failed_at oid,
    OUT failed_by text
)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    acting boolean := false;
    schema_name text;
    table_name text;
    path text := (SELECT s.reset_val FROM pg_settings AS s WHERE s.name = 'search_path');
BEGIN
    BEGIN
        PERFORM tenant_rls.prove_enter(role, tenant, path);
        acting := true;
        IF asks THEN
            EXECUTE statement INTO answer;
        ELSE
            EXECUTE statement;
        END IF;
        GET DIAGNOSTICS reached = ROW_COUNT;
        RAISE SQLSTATE 'TR000';
    EXCEPTION
        WHEN SQLSTATE 'TR000' THEN
            state := '00000';
        WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS
                state = RETURNED_SQLSTATE, message = MESSAGE_TEXT, failed_by = CONSTRAINT_NAME,
                schema_name = SCHEMA_NAME, table_name = TABLE_NAME;
            IF NOT acting THEN
                state := 'TR001';
            END IF;
    END;
    SELECT c.oid INTO failed_at
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE n.nspname = schema_name AND c.relname = table_name;
END
$$;
COMMENT ON FUNCTION tenant_rls.prove_try(oid, uuid, text, boolean) IS 'what a statement of the role does, which is then rolled back';

-- A row that the statement meets raises 22012 before anything is done to it. The expression is volatile, so it is not
-- computed without a row, and names no column, so it needs no privilege to read.
CREATE FUNCTION tenant_rls.prove_tripwire() RETURNS text
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT '(1 OPERATOR(pg_catalog./) (pg_catalog.random() OPERATOR(pg_catalog.*) 0::pg_catalog.float8)::pg_catalog.int4) OPERATOR(pg_catalog.=) 1'
$$;
COMMENT ON FUNCTION tenant_rls.prove_tripwire() IS 'a condition that raises 22012 for the first row it is asked for';

-- What came of a try that must reach no row. seen: there is a row of another tenant to be reached. tree: tables whose
-- constraints are checked after the policies, so that one that fails says that the policies let the row pass.
CREATE FUNCTION tenant_rls.prove_judge(
    statement text,
    state text,
    reached bigint,
    message text,
    failed_at oid,
    seen boolean,
    tree oid[],
    OUT verdict text,
    OUT detail text
)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF (state = '22012' AND strpos(statement, tenant_rls.prove_tripwire()) > 0) OR (state = '00000' AND reached > 0) THEN
        verdict := 'LEAK';
        detail := statement;
    ELSIF state LIKE '23%' AND failed_at = ANY (tree) THEN
        verdict := 'LEAK';
        detail := format('%s -- the policies let it pass; %s', statement, message);
    ELSIF state <> '42501' AND reached IS DISTINCT FROM 0 THEN
        verdict := 'not proven';
        detail := format('%s: %s', state, message);
    ELSIF NOT seen THEN
        verdict := 'not proven';
        detail := 'no row of another tenant is there to be reached';
    ELSE
        verdict := 'isolated';
        detail := coalesce(message, 'no row was reached');
    END IF;
END
$$;
COMMENT ON FUNCTION tenant_rls.prove_judge(text, text, bigint, text, oid, boolean, oid[]) IS 'the verdict on a try';

CREATE FUNCTION tenant_rls.prove_copy(name text, columns text, content jsonb) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        'INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE SELECT %s FROM pg_catalog.jsonb_populate_record(NULL::%s, %L::pg_catalog.jsonb) AS r',
        name, columns, columns, name, content)
$$;
COMMENT ON FUNCTION tenant_rls.prove_copy(text, text, jsonb) IS 'the statement that inserts a row with this content';

CREATE FUNCTION tenant_rls.prove_table(
    role oid,
    target oid,
    tenant_column text,
    is_uuid boolean,
    tenant uuid,
    tenant_key bigint,
    spare uuid,
    spare_key bigint
) RETURNS TABLE (command text, verdict text, detail text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
    columns text;
    writable text;
    tree oid[];
    sample jsonb;
    owner uuid;
    seen boolean;
    mine text := CASE WHEN is_uuid THEN quote_literal(tenant) ELSE quote_literal(tenant_key) END;
    copy text;
    k record;
    t record;
BEGIN
    SELECT format('%I.%I', n.nspname, c.relname) INTO name
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = target;
    WITH RECURSIVE below AS (
        SELECT target AS relation
        UNION
        SELECT i.inhrelid FROM pg_inherits AS i JOIN below AS b ON i.inhparent = b.relation
    )
    SELECT array_agg(b.relation) INTO tree FROM below AS b;
    -- Foreign keys of other tables are checked even later.
    tree := tree || ARRAY(SELECT f.conrelid FROM pg_constraint AS f WHERE f.contype = 'f' AND f.confrelid = ANY (tree));
    SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) INTO columns
    FROM pg_attribute AS a
    WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '';
    SELECT quote_ident(a.attname) INTO writable
    FROM pg_attribute AS a
    WHERE a.attrelid = target AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' AND a.attidentity <> 'a'
    AND (a.attname = tenant_column OR has_column_privilege(role, target, a.attnum, 'UPDATE'))
    ORDER BY has_column_privilege(role, target, a.attnum, 'UPDATE') DESC, a.attname <> tenant_column
    LIMIT 1;

    BEGIN
        BEGIN
            FOR i IN 1..2 LOOP
                sample := tenant_rls.prove_as_owner(target, format(
                    'SELECT jsonb_build_object(''row'', to_jsonb(t), ''ctid'', t.ctid, ''tenant'', t.%I::text)::text FROM %s AS t LIMIT 1',
                    tenant_column, name));
                EXIT WHEN sample IS NOT NULL OR i = 2;
                PERFORM tenant_rls.prove_as_owner(target, format(
                    'INSERT INTO %s (%I) VALUES (%L)', name, tenant_column, CASE WHEN is_uuid THEN spare::text ELSE spare_key::text END));
            END LOOP;
        EXCEPTION WHEN OTHERS THEN
            sample := NULL;
        END;
        seen := sample IS NOT NULL;
        IF is_uuid THEN
            owner := sample ->> 'tenant';
        ELSE
            SELECT e.tenant_id INTO owner FROM tenant_rls.tenants AS e WHERE e.tenant_key = (sample ->> 'tenant')::bigint;
        END IF;
        FOR k IN
            VALUES
                (1, 'read', format('SELECT 1 FROM %s LIMIT 1', name)),
                (2, 'update', format('UPDATE %s SET %s = NULL WHERE %s', name, writable, tenant_rls.prove_tripwire())),
                (3, 'delete', format('DELETE FROM %s WHERE %s', name, tenant_rls.prove_tripwire())),
                (4, 'lock', format('SELECT 1 FROM %s LIMIT 1 FOR UPDATE', name)),
                (5, 'truncate', format('TRUNCATE %s', name)),
                (6, 'insert', tenant_rls.prove_copy(name, columns, sample -> 'row'))
        LOOP
            CONTINUE WHEN k.column2 = 'insert' AND NOT seen;
            t := tenant_rls.prove_try(role, tenant, k.column3, false);
            command := k.column2;
            SELECT j.verdict, j.detail INTO verdict, detail
            FROM tenant_rls.prove_judge(
                k.column3, t.state, CASE command WHEN 'truncate' THEN 1 ELSE t.reached END, t.message, t.failed_at, seen, tree) AS j;
            RETURN NEXT;
        END LOOP;

        -- The owner of the row gives it away.
        command := 'move';
        IF owner IS NULL THEN
            verdict := 'not proven';
            detail := 'no row of a tenant is there to be given away';
        ELSE
            UPDATE tenant_rls.tenants AS e SET status = 'active' WHERE e.tenant_id = owner AND e.status <> 'active';
            INSERT INTO tenant_rls.grants (role_name, tenant_id) VALUES (pg_get_userbyid(role), owner)
            ON CONFLICT ON CONSTRAINT grants_key DO UPDATE SET ticket_required = false;
            copy := format('UPDATE %s SET %I = %s', name, tenant_column, mine);
            IF has_table_privilege(role, target, 'SELECT') THEN
                copy := copy || format(' WHERE ctid OPERATOR(pg_catalog.=) %L::pg_catalog.tid', sample ->> 'ctid');
            END IF;
            t := tenant_rls.prove_try(role, owner, copy, false);
            SELECT j.verdict, j.detail INTO verdict, detail
            FROM tenant_rls.prove_judge(copy, t.state, t.reached, t.message, t.failed_at, true, tree) AS j;
            IF t.state = '00000' AND t.reached = 0 THEN
                verdict := 'not proven';
                detail := 'the role does not reach the row as its own tenant either';
            END IF;
        END IF;
        RETURN NEXT;
        RETURN QUERY SELECT * FROM tenant_rls.prove_keys(role, target, name, columns, tenant_column, mine, tenant, sample, tree);

        -- No row is reached by it: policies have no say, others wait.
        t := tenant_rls.prove_try(role, tenant, format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', name), false);
        command := 'lock table';
        verdict := CASE t.state WHEN '42501' THEN 'isolated' WHEN '00000' THEN 'derived' ELSE 'not proven' END;
        detail := coalesce(t.message, format('LOCK TABLE %s is granted: it reaches no row, and other tenants wait meanwhile', name));
        IF verdict = 'isolated' AND NOT seen THEN
            verdict := 'not proven';
            detail := 'no row of another tenant is there to be reached';
        END IF;
        RETURN NEXT;
        command := 'copy';
        verdict := 'derived';
        detail := 'COPY TO reads as SELECT does, see read; COPY FROM is refused while policies hold';
        RETURN NEXT;
        RAISE SQLSTATE 'TR000';
    EXCEPTION WHEN SQLSTATE 'TR000' THEN
        NULL;
    END;
END
$$;
COMMENT ON FUNCTION tenant_rls.prove_table(oid, oid, text, boolean, uuid, bigint, uuid, bigint) IS
'tries everything on one protected table, partition or child';

-- Keys that do not carry the tenant: a row of one tenant that meets, or refers to, a row of another.
CREATE FUNCTION tenant_rls.prove_keys(
    role oid,
    target oid,
    name text,
    columns text,
    tenant_column text,
    mine text,
    tenant uuid,
    sample jsonb,
    tree oid[]
) RETURNS TABLE (command text, verdict text, detail text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    own jsonb := jsonb_set(sample -> 'row', ARRAY[tenant_column], to_jsonb(trim(mine, '''')));
    statement text := tenant_rls.prove_copy(name, columns, own);
    key_columns text;
    key_names text[];
    k record;
    t record;
BEGIN
    command := 'upsert';
    SELECT string_agg(quote_ident(a.attname), ', '), array_agg(a.attname::text) INTO key_columns, key_names
    FROM (
        SELECT i.indexrelid, i.indrelid, i.indkey::int2[] AS numbers
        FROM pg_index AS i
        WHERE i.indrelid = target AND i.indisunique AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL
        AND NOT EXISTS (
            SELECT FROM pg_attribute AS a
            WHERE a.attrelid = target AND a.attnum = ANY (i.indkey::int2[]) AND a.attname = tenant_column)
        AND i.indnkeyatts = i.indnatts
        ORDER BY i.indexrelid
        LIMIT 1
    ) AS i
    JOIN pg_attribute AS a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.numbers);
    IF sample IS NULL THEN
        verdict := 'not proven';
        detail := 'no row of another tenant is there to be reached';
    ELSIF key_columns IS NULL OR EXISTS (SELECT FROM unnest(key_names) AS n WHERE own ->> n IS NULL) THEN
        verdict := 'isolated';
        detail := 'rows of two tenants never meet: no unique key without the tenant';
    ELSE
        statement := statement || format(' ON CONFLICT (%s) DO UPDATE SET %I = EXCLUDED.%I', key_columns, tenant_column, tenant_column);
        t := tenant_rls.prove_try(role, tenant, statement, false);
        SELECT j.verdict, j.detail INTO verdict, detail
        FROM tenant_rls.prove_judge(statement, t.state, t.reached, t.message, NULL, true, tree) AS j;
    END IF;
    RETURN NEXT;

    FOR k IN
        SELECT
            f.conname, f.confrelid::regclass AS parent,
            (SELECT string_agg(format('t.%I IS NOT NULL', a.attname), ' AND ')
                FROM pg_attribute AS a WHERE a.attrelid = target AND a.attnum = ANY (f.conkey)) AS filled
        FROM pg_constraint AS f
        JOIN tenant_rls.protected_tables AS p ON p.relation = f.confrelid
        WHERE f.conrelid = target AND f.contype = 'f' AND f.conparentid = 0
        ORDER BY f.conname
    LOOP
        command := format('reference %I', k.conname);
        verdict := NULL;
        BEGIN
            -- A row that refers to one of another tenant, which makes room for its copy.
            own := tenant_rls.prove_as_owner(target, format(
                'WITH gone AS (
                     DELETE FROM %s AS d WHERE (d.tableoid, d.ctid) = (
                         SELECT t.tableoid, t.ctid FROM %s AS t WHERE %s LIMIT 1) RETURNING d.*)
                 SELECT to_jsonb(g)::text FROM gone AS g', name, name, k.filled));
            IF own IS NULL THEN
                verdict := 'not proven';
                detail := format('no row refers to table %s', k.parent);
            ELSE
                own := jsonb_set(own, ARRAY[tenant_column], to_jsonb(trim(mine, '''')));
                statement := tenant_rls.prove_copy(name, columns, own);
                t := tenant_rls.prove_try(role, tenant, statement || '; SET CONSTRAINTS ALL IMMEDIATE', false);
                IF t.state = '00000' THEN
                    verdict := 'LEAK';
                    detail := statement;
                ELSIF t.state = '42501' OR (t.state = '23503' AND t.failed_by = k.conname) THEN
                    verdict := 'isolated';
                    detail := t.message;
                ELSE
                    verdict := 'not proven';
                    detail := format('%s: %s', t.state, t.message);
                END IF;
            END IF;
            RAISE SQLSTATE 'TR000';
        EXCEPTION
            WHEN SQLSTATE 'TR000' THEN
                NULL;
            WHEN OTHERS THEN
                verdict := 'not proven';
                detail := format('%s: %s', SQLSTATE, SQLERRM);
        END;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tenant_rls.prove_keys(oid, oid, text, text, text, text, uuid, jsonb, oid[]) IS
'tries to meet, and to refer to, rows of another tenant by keys';

-- Two worlds: an answer that changes when rows of others are not there depends on them.
CREATE FUNCTION tenant_rls.prove_worlds(role oid, tenant uuid, statement text, OUT verdict text, OUT detail text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    most CONSTANT bigint := 1000;
    here record;
    again record;
    there record;
    root oid;
    gone bigint := 0;
    emptied boolean := true;
    deleted bigint;
BEGIN
    here := tenant_rls.prove_try(role, tenant, statement, true);
    again := tenant_rls.prove_try(role, tenant, statement, true);
    BEGIN
        FOR root IN SELECT o.root FROM tenant_rls.purge_order() AS o ORDER BY o.step, o.root LOOP
            BEGIN
                deleted := tenant_rls.prove_as_owner(root, format(
                    'WITH gone AS (
                         DELETE FROM %s WHERE ctid = ANY (ARRAY(SELECT t.ctid FROM %s AS t LIMIT %s)) RETURNING 1)
                     SELECT count(*)::text FROM gone', root::regclass, root::regclass, most));
                gone := gone + deleted;
                emptied := emptied AND deleted < most;
            EXCEPTION WHEN OTHERS THEN
                emptied := false;
            END;
        END LOOP;
        there := tenant_rls.prove_try(role, tenant, statement, true);
        RAISE SQLSTATE 'TR000';
    EXCEPTION WHEN SQLSTATE 'TR000' THEN
        NULL;
    END;
    IF gone = 0 THEN
        verdict := 'not proven';
        detail := 'no row of another tenant is there to be reached';
    ELSIF here.state = '42501' THEN
        verdict := 'isolated';
        detail := here.message;
    ELSIF here.state <> '00000' THEN
        verdict := 'not proven';
        detail := format('%s: %s', here.state, here.message);
    ELSIF (again.state, again.answer) IS DISTINCT FROM (here.state, here.answer) THEN
        verdict := 'not proven';
        detail := 'the answer differs from call to call';
    ELSIF (there.state, there.answer) IS DISTINCT FROM (here.state, here.answer) THEN
        verdict := 'LEAK';
        detail := format('%s -- the answer is another one without rows of other tenants', statement);
    ELSIF NOT emptied THEN
        verdict := 'not proven';
        detail := 'the answer is the same without some of the rows of other tenants';
    ELSE
        verdict := 'isolated';
        detail := 'the answer is the same without rows of other tenants';
    END IF;
END
$$;
COMMENT ON FUNCTION tenant_rls.prove_worlds(oid, uuid, text) IS 'whether what a query answers depends on rows of other tenants';

CREATE FUNCTION tenant_rls.prove_view(role oid, target oid, tenant uuid, tenant_key bigint)
RETURNS TABLE (command text, verdict text, detail text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text;
    stored boolean;
    tenant_column text;
    seen boolean;
    statement text;
    k record;
    t record;
BEGIN
    SELECT format('%I.%I', n.nspname, c.relname), c.relkind = 'm' INTO name, stored
    FROM pg_class AS c
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    WHERE c.oid = target;
    SELECT format('v.%I IS DISTINCT FROM %L', a.attname, CASE a.atttypid WHEN 'uuid'::regtype THEN tenant::text ELSE tenant_key::text END)
    INTO tenant_column
    FROM pg_attribute AS a
    WHERE a.attrelid = target AND a.attnum > 0
    AND a.attname IN (SELECT p.tenant_column FROM tenant_rls.protected_tables AS p)
    AND a.atttypid IN ('uuid'::regtype, 'bigint'::regtype, 'integer'::regtype);
    BEGIN
        seen := tenant_rls.prove_as_owner(target, format('SELECT ''t'' FROM %s LIMIT 1', name)) IS NOT NULL;
    EXCEPTION WHEN OTHERS THEN
        -- The policies hold for the owner of the view: what is below it must have rows.
        SELECT coalesce(bool_or(tenant_rls.prove_as_owner(p.relation, format('SELECT ''t'' FROM %s LIMIT 1', p.relation)) IS NOT NULL), false)
        INTO seen
        FROM tenant_rls.protected_tables AS p;
    END;
    command := 'read';
    IF tenant_column IS NULL AND NOT stored THEN
        SELECT w.verdict, w.detail INTO verdict, detail
        FROM tenant_rls.prove_worlds(role, tenant, format(
            'SELECT pg_catalog.concat(pg_catalog.count(*), '' '', pg_catalog.sum(pg_catalog.hashtextextended(v::pg_catalog.text, 0))) FROM %s AS v',
            name)) AS w;
    ELSE
        -- What is stored is stored for everybody.
        statement := format('SELECT 1 FROM %s AS v%s LIMIT 1', name, ' WHERE ' || tenant_column);
        t := tenant_rls.prove_try(role, tenant, statement, false);
        SELECT j.verdict, j.detail INTO verdict, detail
        FROM tenant_rls.prove_judge(statement, t.state, t.reached, t.message, NULL, seen, NULL) AS j;
    END IF;
    RETURN NEXT;
    FOR k IN
        SELECT w.command, format(w.statement, name, tenant_rls.prove_tripwire(), quote_ident(a.attname)) AS statement
        FROM (VALUES (2, 'update', 'UPDATE %1$s SET %3$s = NULL WHERE %2$s'), (4, 'delete', 'DELETE FROM %1$s WHERE %2$s')) AS w (bit, command, statement)
        JOIN LATERAL (
            SELECT a.attname
            FROM pg_attribute AS a
            WHERE a.attrelid = target AND a.attnum > 0 AND pg_column_is_updatable(target, a.attnum, false)
            ORDER BY has_column_privilege(role, target, a.attnum, 'UPDATE') DESC, a.attnum
            LIMIT 1) AS a ON true
        WHERE pg_relation_is_updatable(target, false) & (1 << w.bit) <> 0
    LOOP
        t := tenant_rls.prove_try(role, tenant, k.statement, false);
        command := k.command;
        SELECT j.verdict, j.detail INTO verdict, detail
        FROM tenant_rls.prove_judge(k.statement, t.state, t.reached, t.message, NULL, seen, NULL) AS j;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION tenant_rls.prove_view(oid, oid, uuid, bigint) IS 'tries to reach rows of another tenant through a view';

CREATE FUNCTION @extschema@.tenant_prove(role regrole)
RETURNS TABLE (relation regclass, command text, verdict text, detail text)
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name text := tenant_rls.prove_check(role);
    tenant uuid := gen_random_uuid();
    spare uuid := gen_random_uuid();
    -- Keys of nobody, which an integer column can hold.
    tenant_key bigint := (SELECT least(min(t.tenant_key), -1000000) - 1 FROM tenant_rls.tenants AS t);
    r record;
BEGIN
    BEGIN
        PERFORM set_config('lock_timeout', '500ms', true);
        INSERT INTO tenant_rls.tenants (tenant_id, plan, tenant_key)
        SELECT t.id, (SELECT min(p.plan) FROM tenant_rls.plans AS p), t.key
        FROM (VALUES (tenant, tenant_key), (spare, tenant_key - 1)) AS t (id, key);
        INSERT INTO tenant_rls.grants (role_name, tenant_id) VALUES (name, tenant), (name, spare);

        FOR r IN
            WITH RECURSIVE tree AS (
                SELECT p.relation::oid AS relation, p.tenant_column, p.key_type FROM tenant_rls.protected_tables AS p
                UNION
                SELECT i.inhrelid, t.tenant_column, t.key_type
                FROM pg_inherits AS i
                JOIN tree AS t ON i.inhparent = t.relation
            )
            SELECT DISTINCT ON (t.relation) t.*
            FROM tree AS t
            JOIN pg_class AS c ON c.oid = t.relation
            ORDER BY t.relation
        LOOP
            BEGIN
                RETURN QUERY
                SELECT r.relation::regclass, p.*
                FROM tenant_rls.prove_table(
                    role, r.relation, r.tenant_column, r.key_type = 'uuid', tenant, tenant_key, spare, tenant_key - 1) AS p;
            EXCEPTION WHEN OTHERS THEN
                RETURN QUERY SELECT r.relation::regclass, 'all', 'not proven', format('%s: %s', SQLSTATE, SQLERRM);
            END;
        END LOOP;

        FOR r IN
            WITH RECURSIVE above AS (
                SELECT p.relation::oid AS relation FROM tenant_rls.protected_tables AS p
                UNION
                SELECT w.ev_class
                FROM above AS a
                JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.relation
                    AND d.classid = 'pg_rewrite'::regclass
                JOIN pg_rewrite AS w ON w.oid = d.objid
            )
            SELECT a.relation
            FROM above AS a
            JOIN pg_class AS c ON c.oid = a.relation
            WHERE c.relkind IN ('v', 'm')
            ORDER BY a.relation
        LOOP
            BEGIN
                RETURN QUERY
                SELECT r.relation::regclass, p.* FROM tenant_rls.prove_view(role, r.relation, tenant, tenant_key) AS p;
            EXCEPTION WHEN OTHERS THEN
                RETURN QUERY SELECT r.relation::regclass, 'all', 'not proven', format('%s: %s', SQLSTATE, SQLERRM);
            END;
        END LOOP;

        FOR r IN
            SELECT
                p.oid, format('%I.%I', n.nspname, p.proname) AS name, p.prokind = 'f' AND p.pronargs = p.pronargdefaults AS callable
            FROM pg_proc AS p
            JOIN pg_namespace AS n ON n.oid = p.pronamespace
            WHERE p.prosecdef
            AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'tenant_rls')
            AND p.prorettype NOT IN ('trigger'::regtype, 'event_trigger'::regtype)
            AND has_function_privilege(role, p.oid, 'EXECUTE')
            AND has_schema_privilege(role, n.oid, 'USAGE')
            AND NOT EXISTS (
                SELECT FROM pg_depend AS d
                WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e')
            ORDER BY p.oid
        LOOP
            relation := NULL;
            command := format('execute %s', r.oid::regprocedure);
            IF r.callable THEN
                SELECT w.verdict, w.detail INTO verdict, detail
                FROM tenant_rls.prove_worlds(role, tenant, format(
                    'SELECT pg_catalog.concat(pg_catalog.count(*), '' '', pg_catalog.sum(pg_catalog.hashtextextended(f::pg_catalog.text, 0))) FROM %s() AS f',
                    r.name)) AS w;
            ELSE
                verdict := 'derived';
                detail := 'a SECURITY DEFINER function that needs arguments was not called: it reaches what its owner reaches';
            END IF;
            RETURN NEXT;
        END LOOP;
        RAISE SQLSTATE 'TR000';
    EXCEPTION WHEN SQLSTATE 'TR000' THEN
        NULL;
    END;
END
$$;
COMMENT ON FUNCTION @extschema@.tenant_prove(regrole) IS
'the live proof: what the role reaches of other tenants, by trying, in subtransactions that are rolled back. isolated, LEAK with the statement, not proven, or derived. For superusers';
