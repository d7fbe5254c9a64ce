-- What it takes to make a protected tree right, in order. Runs with the search_path of tenant_repair, pg_catalog.
-- $1 root, $2 and $3 all protected relations and their tenant columns, $4 tenant_protect(…) of the root as it is
-- recorded, $5 the predicate of its policies.
WITH RECURSIVE tree AS (
    SELECT $1 AS oid
    UNION
    SELECT i.inhrelid FROM pg_inherits AS i JOIN tree AS t ON i.inhparent = t.oid
), protected AS (
    SELECT c.oid, c.relname, c.relkind, c.relowner, c.relnamespace, format('%I.%I', n.nspname, c.relname) AS name,
        c.relreplident, a.attname AS tenant, a.attnum, a.atttypid, t.oid IS NOT NULL AS is_member
    FROM unnest($2, $3) AS p (relation, tenant)
    JOIN pg_class AS c ON c.oid = p.relation
    JOIN pg_namespace AS n ON n.oid = c.relnamespace
    JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = p.tenant::name AND NOT a.attisdropped
    LEFT JOIN tree AS t ON t.oid = c.oid
), wrong AS (
    SELECT format('%s is not protected', t.oid::regclass) AS what
    FROM tree AS t WHERE NOT EXISTS (SELECT FROM protected AS p WHERE p.oid = t.oid)
    UNION ALL
    SELECT format('%s has not the policies', t.oid::regclass)
    FROM tree AS t JOIN pg_class AS c USING (oid)
    WHERE NOT c.relrowsecurity OR 2 <> (
        SELECT count(*) FROM pg_policy AS l
        WHERE l.polrelid = t.oid AND l.polcmd = '*' AND l.polroles = '{0}'::oid[]
        AND l.polname = CASE WHEN l.polpermissive THEN 'tenant_isolation' ELSE 'tenant_boundary' END
        AND pg_get_expr(l.polqual, l.polrelid) = $5 AND pg_get_expr(l.polwithcheck, l.polrelid) = $5)
    UNION ALL
    SELECT format('%s of %s to %s', g.privilege_type, t.oid::regclass,
        CASE g.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(g.grantee)::text END)
    FROM tree AS t JOIN pg_class AS c USING (oid), LATERAL (
        SELECT * FROM aclexplode(c.relacl)
        UNION ALL
        SELECT x.* FROM pg_attribute AS a, aclexplode(a.attacl) AS x WHERE a.attrelid = c.oid) AS g
    WHERE g.grantee <> c.relowner AND g.privilege_type IN ('TRUNCATE', 'REFERENCES', 'TRIGGER', 'MAINTAIN')
    UNION ALL
    SELECT format('no index of %s starts with %I', p.oid::regclass, p.tenant)
    FROM protected AS p
    WHERE p.is_member AND NOT EXISTS (
        SELECT FROM pg_index AS i
        WHERE i.indrelid = p.oid AND i.indkey[0] = p.attnum AND i.indpred IS NULL AND i.indisvalid)
), keys AS (
    SELECT p.*, i.indexrelid, x.relname AS index_name, i.indisprimary, i.indisreplident,
        i.indisvalid AND i.indpred IS NULL AND i.indexprs IS NULL AND i.indimmediate AS is_plain,
        ARRAY(SELECT k FROM unnest(i.indkey[0:i.indnkeyatts - 1]) AS k ORDER BY 1) AS columns,
        ARRAY(SELECT k FROM unnest(i.indkey[0:i.indnkeyatts - 1]) WITH ORDINALITY AS u (k, at) ORDER BY at) AS key,
        NOT x.relispartition AS is_own,
        u.conname, u.condeferrable, u.condeferred, pg_get_constraintdef(u.oid) AS definition,
        EXISTS (SELECT FROM pg_constraint AS f WHERE f.contype = 'f' AND f.conindid = i.indexrelid) AS is_referenced
    FROM protected AS p
    JOIN pg_index AS i ON i.indrelid = p.oid AND i.indisunique
    JOIN pg_class AS x ON x.oid = i.indexrelid
    LEFT JOIN pg_constraint AS u ON u.conrelid = p.oid AND u.conindid = i.indexrelid AND u.contype IN ('p', 'u')
), references_out AS (
    SELECT f.oid, f.conname, f.conrelid, f.confrelid, f.conkey, f.confkey, f.conpfeqop,
        m.name, m.tenant, m.attnum, m.relkind, m.relowner,
        r.name AS other, r.tenant AS other_tenant, r.attnum AS other_attnum, r.relkind AS other_kind, r.relowner AS other_owner,
        f.confupdtype, f.confdeltype, f.condeferrable, f.condeferred,
        COALESCE(f.confdelsetcols, f.conkey) AS set_columns,
        f.confupdtype IN ('a', 'r', 'c') AND (f.confmatchtype = 's' OR cardinality(f.conkey) = 1)
            AND (m.atttypid = 'uuid'::regtype) = (r.atttypid = 'uuid'::regtype) AS can_be_made,
        n.conname AS made, n.convalidated AS is_valid
    FROM pg_constraint AS f
    JOIN protected AS m ON m.oid = f.conrelid AND m.is_member
    JOIN protected AS r ON r.oid = f.confrelid
    LEFT JOIN LATERAL (
        SELECT n.conname, n.convalidated FROM pg_constraint AS n
        WHERE n.contype = 'f' AND n.conrelid = f.conrelid AND n.confrelid = f.confrelid AND n.conparentid = 0
        AND ARRAY(SELECT format('%s %s', a, b) FROM unnest(n.conkey, n.confkey) AS k (a, b) ORDER BY 1)
            = ARRAY(SELECT format('%s %s', a, b)
                FROM unnest(f.conkey || m.attnum, f.confkey || r.attnum) AS k (a, b) ORDER BY 1)
        ORDER BY n.oid LIMIT 1) AS n ON true
    WHERE f.contype = 'f' AND f.conparentid = 0
    AND NOT EXISTS (SELECT FROM unnest(f.conkey, f.confkey) AS k (a, b) WHERE k.a = m.attnum AND k.b = r.attnum)
), columns_of AS (
    -- Names of the columns of both sides, and the condition that joins them.
    SELECT f.oid,
        string_agg(quote_ident(a.attname), ', ' ORDER BY k.at) AS here,
        string_agg(quote_ident(b.attname), ', ' ORDER BY k.at) AS there,
        string_agg(format('r.%I OPERATOR(%I.%s) f.%I', b.attname, s.nspname, o.oprname, a.attname), ' AND ' ORDER BY k.at) AS joined,
        (SELECT string_agg(quote_ident(d.attname), ', ' ORDER BY d.attnum) FROM pg_attribute AS d
            WHERE d.attrelid = f.conrelid AND d.attnum = ANY (f.set_columns)) AS set_here
    FROM references_out AS f, unnest(f.conkey, f.confkey, f.conpfeqop) WITH ORDINALITY AS k (a, b, equal, at)
    JOIN pg_operator AS o ON o.oid = k.equal
    JOIN pg_namespace AS s ON s.oid = o.oprnamespace,
    pg_attribute AS a, pg_attribute AS b
    WHERE a.attrelid = f.conrelid AND a.attnum = k.a AND b.attrelid = f.confrelid AND b.attnum = k.b
    GROUP BY f.oid, f.conrelid, f.set_columns
), needed AS (
    -- Keys that stay as they are get one with the tenant beside them: composite foreign keys refer to it.
    SELECT k.oid, k.key, k.columns FROM keys AS k
    WHERE k.is_member AND k.is_own AND (k.indisprimary OR k.is_referenced) AND NOT k.attnum = ANY (k.key)
    AND NOT 0 = ANY (k.key)
    UNION
    SELECT f.confrelid, f.confkey, ARRAY(SELECT c FROM unnest(f.confkey) AS c ORDER BY 1) FROM references_out AS f
    WHERE f.can_be_made
), beside AS (
    SELECT DISTINCT ON (d.oid, d.columns) p.*, d.columns, d.key,
        c.names, substr(p.relname, 1, 24) || '_' || substr(md5(concat_ws(' ', p.relname, p.tenant, c.names)), 1, 8) || '_tenant_key' AS short,
        format('%s_%s_%s_key', p.relname, p.tenant, c.plain) AS long
    FROM needed AS d JOIN protected AS p USING (oid), LATERAL (
        SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY u.at) AS names, string_agg(a.attname, '_' ORDER BY u.at) AS plain
        FROM unnest(d.key) WITH ORDINALITY AS u (k, at)
        JOIN pg_attribute AS a ON a.attrelid = d.oid AND a.attnum = u.k) AS c
    WHERE NOT EXISTS (
        SELECT FROM keys AS k
        WHERE k.oid = d.oid AND k.is_plain
        AND k.columns = ARRAY(SELECT c FROM unnest(d.columns || p.attnum) AS c ORDER BY 1))
    ORDER BY d.oid, d.columns, d.key
), named AS (
    SELECT b.*, CASE WHEN octet_length(b.long) > 63
        OR EXISTS (SELECT FROM pg_class AS c WHERE c.relname = b.long::name AND c.relnamespace = b.relnamespace)
        THEN b.short ELSE b.long END AS index_name
    FROM beside AS b
), replaced AS (
    SELECT k.*, 'tenant_' || substr(md5(k.index_name), 1, 16) || '_key' AS new_name,
        CASE k.relkind WHEN 'p' THEN '' ELSE 'CONCURRENTLY ' END AS concurrently,
        format('CREATE UNIQUE INDEX %I ON %s%s USING btree (', k.index_name,
            CASE k.relkind WHEN 'p' THEN 'ONLY ' ELSE '' END, k.oid::regclass) AS head,
        CASE WHEN k.condeferrable THEN ' DEFERRABLE' ELSE '' END
            || CASE WHEN k.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END AS timing,
        -- One that was made for foreign keys, which have referred to the old one.
        EXISTS (SELECT FROM keys AS o WHERE o.oid = k.oid AND o.is_plain AND k.is_plain
            AND o.columns = ARRAY(SELECT c FROM unnest(k.columns || k.attnum) AS c ORDER BY 1)) AS has_one
    FROM keys AS k
    WHERE k.is_member AND k.is_own AND NOT k.indisprimary AND NOT k.is_referenced AND NOT k.attnum = ANY (k.key)
    AND NOT k.indisreplident
), views AS (
    SELECT t.oid FROM tree AS t
    UNION
    SELECT v.oid
    FROM views AS w
    JOIN pg_depend AS d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = w.oid AND d.classid = 'pg_rewrite'::regclass
    JOIN pg_rewrite AS r ON r.oid = d.objid
    JOIN pg_class AS v ON v.oid = r.ev_class AND v.relkind = 'v'
), steps AS (
    SELECT 10 AS place, '' AS sorted, 'SELECT ' || $4 AS statement, string_agg(w.what, ', ' ORDER BY w.what) AS why,
        NULL::oid AS runner, $1 AS concerned, NULL::oid AS reader, NULL::oid AS other, NULL::text AS crossing, false AS waits
    FROM wrong AS w HAVING count(*) > 0
    UNION ALL
    SELECT 20, b.name, format('CREATE UNIQUE INDEX %s%I ON %s (%I, %s)',
            CASE b.relkind WHEN 'p' THEN '' ELSE 'CONCURRENTLY ' END, b.index_name, b.name, b.tenant, b.names),
        format('foreign keys that carry the tenant refer to it; the key (%s) stays, for what refers to it', b.names),
        NULL, b.oid, NULL, NULL, NULL, false
    FROM named AS b
    UNION ALL
    SELECT 30, concat_ws(' ', f.name, f.conname, s.part), s.statement, s.why,
        CASE WHEN s.is_check THEN f.relowner END, f.conrelid, f.relowner, f.other_owner,
        format('SELECT count(*) FROM %s%s AS f JOIN %s%s AS r ON %s WHERE f.%I OPERATOR(pg_catalog.<>) r.%I',
            CASE f.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END, f.name,
            CASE f.other_kind WHEN 'p' THEN '' ELSE 'ONLY ' END, f.other, c.joined, f.tenant, f.other_tenant),
        s.waits
    FROM references_out AS f
    JOIN columns_of AS c USING (oid),
    LATERAL (SELECT COALESCE(f.made, substr(f.conname, 1, 56) || '_tenant') AS made) AS n,
    LATERAL (
        SELECT '1' AS part, format('ALTER TABLE %s ADD CONSTRAINT %I FOREIGN KEY (%I, %s) REFERENCES %s (%I, %s)%s%s%s%s',
                f.name, n.made, f.tenant, c.here, f.other, f.other_tenant, c.there,
                CASE f.confupdtype WHEN 'c' THEN ' ON UPDATE CASCADE' WHEN 'r' THEN ' ON UPDATE RESTRICT' ELSE '' END,
                CASE f.confdeltype WHEN 'c' THEN ' ON DELETE CASCADE' WHEN 'r' THEN ' ON DELETE RESTRICT'
                    WHEN 'n' THEN format(' ON DELETE SET NULL (%s)', c.set_here)
                    WHEN 'd' THEN format(' ON DELETE SET DEFAULT (%s)', c.set_here) ELSE '' END,
                CASE WHEN f.condeferrable THEN ' DEFERRABLE' ELSE '' END
                    || CASE WHEN f.condeferred THEN ' INITIALLY DEFERRED' ELSE '' END,
                CASE f.relkind WHEN 'p' THEN '' ELSE ' NOT VALID' END) AS statement,
            format('foreign keys are checked without policies: by %I a row may refer to a row of another tenant', f.conname) AS why,
            true AS is_check, f.relkind = 'p' AS waits
        WHERE f.made IS NULL
        UNION ALL
        SELECT '2', format('ALTER TABLE %s VALIDATE CONSTRAINT %I', f.name, n.made),
            'as a role with BYPASSRLS, or by tenant_repair(…, true): others would check the rows of one tenant', true, true
        WHERE f.relkind <> 'p' AND f.is_valid IS NOT TRUE
        UNION ALL
        SELECT '3', format('ALTER TABLE %s DROP CONSTRAINT %I', f.name, f.conname), 'the new one has taken its place', false, true
        UNION ALL
        SELECT '4', format('ALTER TABLE %s RENAME CONSTRAINT %I TO %I', f.name, n.made, f.conname), 'applications know the name', false, true
    ) AS s
    WHERE f.can_be_made
    UNION ALL
    SELECT 30, f.name || ' ' || f.conname, NULL,
        format('foreign key %I of %s leaves the tenant out and cannot be made to carry it: the tenant columns differ in type, '
            'or it is MATCH FULL, or ON UPDATE SET NULL or SET DEFAULT', f.conname, f.name),
        NULL, f.conrelid, NULL, NULL, NULL, false
    FROM references_out AS f WHERE NOT f.can_be_made
    UNION ALL
    SELECT 40, concat_ws(' ', r.name, r.index_name, s.part), s.statement, s.why, NULL, r.oid, NULL, NULL, NULL, false
    FROM replaced AS r,
    LATERAL (
        SELECT '1' AS part, format('CREATE UNIQUE INDEX %s%I ON %s USING btree (%I, %s', r.concurrently, r.new_name, r.name, r.tenant,
            substr(pg_get_indexdef(r.indexrelid), length(r.head) + 1)) AS statement,
            format('%I tells that a value is taken by another tenant, and keeps each from using it', r.index_name) AS why
        WHERE starts_with(pg_get_indexdef(r.indexrelid), r.head) AND (r.relkind <> 'p' OR r.conname IS NULL) AND NOT r.has_one
        UNION ALL
        SELECT '2', CASE
            WHEN r.has_one AND r.conname IS NOT NULL THEN format('ALTER TABLE %s DROP CONSTRAINT %I', r.name, r.conname)
            WHEN r.conname IS NULL THEN format('DROP INDEX %s', r.indexrelid::regclass)
            WHEN r.relkind = 'p' THEN format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I %s%I, %s', r.name, r.conname, r.conname,
                left(r.definition, strpos(r.definition, '(')), r.tenant, substr(r.definition, strpos(r.definition, '(') + 1))
            ELSE format('ALTER TABLE %s DROP CONSTRAINT %I, ADD CONSTRAINT %I UNIQUE USING INDEX %I%s',
                r.name, r.conname, r.conname, r.new_name, r.timing) END,
            'each tenant has its own values from now on; ON CONFLICT must name the tenant column too'
        WHERE starts_with(pg_get_indexdef(r.indexrelid), r.head)
        UNION ALL
        SELECT '3', format('ALTER INDEX %s.%I RENAME TO %I', r.relnamespace::regnamespace, r.new_name, r.index_name), 'the name stays'
        WHERE starts_with(pg_get_indexdef(r.indexrelid), r.head) AND r.conname IS NULL AND NOT r.has_one
    ) AS s
    UNION ALL
    SELECT 50, p.name, format('ALTER TABLE ONLY %s REPLICA IDENTITY USING INDEX %I', p.name, n.index_name),
        'a row filter on the tenant column needs it in the replica identity', NULL, p.oid, NULL, NULL, NULL, false
    FROM protected AS p
    JOIN keys AS k ON k.oid = p.oid AND NOT p.attnum = ANY (k.key)
        AND CASE p.relreplident WHEN 'd' THEN k.indisprimary WHEN 'i' THEN k.indisreplident ELSE false END,
    LATERAL (
        SELECT n.index_name FROM (
            SELECT e.index_name, e.columns FROM keys AS e WHERE e.oid = p.oid AND e.is_plain
            UNION ALL
            SELECT b.index_name, ARRAY(SELECT c FROM unnest(b.columns || b.attnum) AS c ORDER BY 1) FROM named AS b WHERE b.oid = p.oid
        ) AS n
        WHERE p.attnum = ANY (n.columns)
        AND NOT EXISTS (SELECT FROM pg_attribute AS a
            WHERE a.attrelid = p.oid AND a.attnum = ANY (n.columns) AND NOT a.attnotnull)
        ORDER BY n.columns @> k.columns DESC, cardinality(n.columns), n.index_name LIMIT 1) AS n
    WHERE p.is_member
    UNION ALL
    SELECT 60, v.oid::regclass::text, format('ALTER VIEW %s SET (security_invoker = true)', v.oid::regclass),
        'it reads with the rights of its owner; its readers need privileges on the tables that it reads',
        NULL, v.oid, NULL, NULL, NULL, false
    FROM views AS v JOIN pg_class AS c USING (oid)
    WHERE c.relkind = 'v'
    AND NOT EXISTS (SELECT FROM pg_options_to_table(c.reloptions) AS o WHERE o.option_name = 'security_invoker' AND o.option_value::boolean)
)
SELECT s.statement, s.why, s.runner, s.crossing, s.waits, s.reader,
    s.reader IS NULL OR s.reader = s.other AS one_owner,
    pg_has_role(c.relowner, 'USAGE') AS may, pg_get_userbyid(c.relowner)::text
FROM steps AS s JOIN pg_class AS c ON c.oid = s.concerned
ORDER BY s.place, s.sorted, s.statement
