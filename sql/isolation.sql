-- Protected tables. undo is what tenant_protect changed, so that tenant_unprotect takes back that and no more.
-- The order of the columns is known to src/registry/scan.rs.

CREATE TABLE tenant_rls.protected_tables (
    relation regclass NOT NULL,
    root regclass NOT NULL,
    tenant_column name NOT NULL,
    key_type text COLLATE pg_catalog."C" NOT NULL,
    forced boolean NOT NULL,
    undo jsonb NOT NULL,
    protected_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    CONSTRAINT protected_tables_pkey PRIMARY KEY (relation),
    CONSTRAINT protected_tables_key_type_check
        CHECK (key_type OPERATOR(pg_catalog.=) ANY (ARRAY[
            'uuid'::pg_catalog.text, 'bigint'::pg_catalog.text, 'integer'::pg_catalog.text]))
);

ALTER TABLE tenant_rls.protected_tables ENABLE ROW LEVEL SECURITY;
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.protected_tables', '');
COMMENT ON TABLE tenant_rls.protected_tables IS 'tables, partitions and children that tenant_protect protects, and what it changed';

CREATE TRIGGER registry_changed AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON tenant_rls.protected_tables
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.registry_changed();
CREATE TRIGGER record_change AFTER INSERT OR UPDATE OR DELETE ON tenant_rls.protected_tables
FOR EACH ROW EXECUTE FUNCTION tenant_rls.record_change();
CREATE TRIGGER record_truncate AFTER TRUNCATE ON tenant_rls.protected_tables
FOR EACH STATEMENT EXECUTE FUNCTION tenant_rls.record_truncate();
ALTER TABLE tenant_rls.protected_tables ENABLE ALWAYS TRIGGER registry_changed;
ALTER TABLE tenant_rls.protected_tables ENABLE ALWAYS TRIGGER record_change;
ALTER TABLE tenant_rls.protected_tables ENABLE ALWAYS TRIGGER record_truncate;

CREATE FUNCTION @extschema@.tenant_protect(target regclass, tenant_column name DEFAULT 'tenant_id', force boolean DEFAULT true)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_protect_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_protect(regclass, name, boolean) IS
'makes the rows of a table, its partitions and children belong to tenants; may be called again';

CREATE FUNCTION @extschema@.tenant_unprotect(target regclass) RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_unprotect_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_unprotect(regclass) IS 'takes back exactly what tenant_protect did';

CREATE FUNCTION @extschema@.tenant_protect_schema(schema regnamespace) RETURNS TABLE (target regclass, result text)
LANGUAGE plpgsql VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF tenant_protect_schema.schema IS NULL THEN
        RAISE EXCEPTION 'the schema must not be null' USING ERRCODE = '22004', DETAIL = 'NULL is never read as everything.';
    END IF;
    -- A partition or child goes with a parent that is here, and alone where that is elsewhere.
    FOR target IN
        WITH candidates AS (
            SELECT c.oid, c.relname
            FROM pg_class AS c
            JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attname = 'tenant_id' AND NOT a.attisdropped
            WHERE c.relnamespace = tenant_protect_schema.schema
            AND c.relkind IN ('r', 'p')
        )
        SELECT f.oid::regclass
        FROM candidates AS f
        WHERE NOT EXISTS (
            SELECT FROM pg_inherits AS i
            JOIN candidates AS parent ON parent.oid = i.inhparent
            WHERE i.inhrelid = f.oid)
        ORDER BY f.relname
    LOOP
        BEGIN
            PERFORM @extschema@.tenant_protect(target);
            result := 'protected';
        EXCEPTION WHEN OTHERS THEN
            result := SQLSTATE || ': ' || SQLERRM;
        END;
        RETURN NEXT;
    END LOOP;
END
$$;
COMMENT ON FUNCTION @extschema@.tenant_protect_schema(regnamespace) IS
'protects every table of a schema that has a column tenant_id; result says protected, or why not';

CREATE FUNCTION tenant_rls.close_before_drop() RETURNS event_trigger
LANGUAGE c AS 'MODULE_PATHNAME', 'close_before_drop';
COMMENT ON FUNCTION tenant_rls.close_before_drop() IS
'event trigger: leaves protected tables closed when the extension is dropped with CASCADE';

CREATE EVENT TRIGGER tenant_rls_close_before_drop ON ddl_command_start
WHEN TAG IN ('DROP EXTENSION', 'DROP SCHEMA', 'DROP OWNED')
EXECUTE FUNCTION tenant_rls.close_before_drop();
COMMENT ON EVENT TRIGGER tenant_rls_close_before_drop IS 'leaves protected tables closed when the extension goes';

-- When the audit ran. A row is no part of the registry: nothing looks it up, so nothing is invalidated or recorded.
CREATE TABLE tenant_rls.audits (
    audited_at timestamp with time zone NOT NULL DEFAULT pg_catalog.clock_timestamp(),
    audited_by text COLLATE pg_catalog."C" NOT NULL,
    errors bigint NOT NULL,
    warnings bigint NOT NULL
);
CREATE INDEX audits_audited_at_idx ON tenant_rls.audits (audited_at);

ALTER TABLE tenant_rls.audits ENABLE ROW LEVEL SECURITY;
SELECT pg_catalog.pg_extension_config_dump('tenant_rls.audits', '');
COMMENT ON TABLE tenant_rls.audits IS 'when tenant_audit ran, as whom, and how many errors and warnings it found';

CREATE VIEW @extschema@.tenant_tables AS
SELECT
    p.relation AS target,
    p.root,
    p.tenant_column,
    p.key_type,
    c.relrowsecurity AND c.relforcerowsecurity AS forced,
    ARRAY(
        SELECT l.polname::pg_catalog.text
        FROM pg_catalog.pg_policy AS l
        WHERE l.polrelid OPERATOR(pg_catalog.=) p.relation
        ORDER BY 1
    ) AS policies,
    (
        SELECT i.indexrelid::pg_catalog.regclass
        FROM pg_catalog.pg_index AS i
        JOIN pg_catalog.pg_attribute AS a
            ON a.attrelid OPERATOR(pg_catalog.=) i.indrelid AND a.attnum OPERATOR(pg_catalog.=) i.indkey[0]
        WHERE i.indrelid OPERATOR(pg_catalog.=) p.relation
        AND a.attname OPERATOR(pg_catalog.=) p.tenant_column
        AND i.indpred IS NULL
        AND i.indisvalid
        ORDER BY i.indexrelid
        LIMIT 1
    ) AS tenant_index,
    c.reltuples::pg_catalog.int8 AS estimated_rows,
    (
        SELECT pg_catalog.max(a.audited_at)
        FROM tenant_rls.audits AS a
        WHERE a.audited_at OPERATOR(pg_catalog.>=) p.protected_at
    ) AS last_audit
FROM tenant_rls.protected_tables AS p
JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) p.relation;
COMMENT ON VIEW @extschema@.tenant_tables IS 'protected tables, partitions and children; estimated_rows is -1 before the first ANALYZE';
