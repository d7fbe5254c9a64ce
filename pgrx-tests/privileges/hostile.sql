-- A schema whose every object raises XX999 when it is used in the place of one of pg_catalog or of ours.
CREATE SCHEMA evil;

CREATE FUNCTION evil.raise() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'a shadow was used' USING ERRCODE = 'XX999';
END
$$;

DO $$
DECLARE
    t text;
    o text;
    f text;
BEGIN
    FOREACH t IN ARRAY ARRAY['uuid', 'text', 'bigint', 'integer', 'smallint', 'name', 'oid', '"char"', 'timestamptz',
        'boolean', 'jsonb', 'regclass', 'interval', 'numeric', 'oid[]', 'text[]', 'name[]'] LOOP
        FOREACH o IN ARRAY ARRAY['=', '<>', '<', '>', '<=', '>=', '~'] LOOP
            EXECUTE format('CREATE FUNCTION evil.%I(%s, %2$s) RETURNS boolean LANGUAGE plpgsql AS
                $f$ BEGIN PERFORM evil.raise(); RETURN false; END $f$', 'compare_' || t || o, t);
            EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %2$s, FUNCTION = evil.%3$I)',
                o, t, 'compare_' || t || o);
        END LOOP;
        FOREACH o IN ARRAY ARRAY['+', '-', '||', '*', '/'] LOOP
            EXECUTE format('CREATE FUNCTION evil.%I(%s, %2$s) RETURNS %2$s LANGUAGE plpgsql AS
                $f$ BEGIN PERFORM evil.raise(); RETURN $1; END $f$', 'combine_' || t || o, t);
            EXECUTE format('CREATE OPERATOR evil.%s (LEFTARG = %s, RIGHTARG = %2$s, FUNCTION = evil.%3$I)',
                o, t, 'combine_' || t || o);
        END LOOP;
    END LOOP;
    FOREACH f IN ARRAY ARRAY[
        'clock_timestamp() RETURNS timestamptz', 'now() RETURNS timestamptz', 'gen_random_uuid() RETURNS uuid',
        'length(text) RETURNS integer', 'format(text, text) RETURNS text', 'format(text, text, text) RETURNS text',
        'to_jsonb(anyelement) RETURNS jsonb', 'quote_ident(text) RETURNS text', 'quote_literal(text) RETURNS text',
        'quote_ident(name) RETURNS text', 'pg_get_userbyid(oid) RETURNS name', 'pg_column_size(anyelement) RETURNS integer',
        'current_tenant() RETURNS uuid', 'required_tenant() RETURNS uuid', 'required_tenant_key() RETURNS bigint',
        'tenant_gauge_changed() RETURNS trigger', 'unnest(oid[]) RETURNS SETOF oid',
        'format_type(oid, integer) RETURNS text', 'string_agg(text, text) RETURNS text', 'uuid(text) RETURNS uuid',
        'int8(integer) RETURNS bigint', 'text(name) RETURNS text', 'aclexplode(aclitem[]) RETURNS SETOF record'
    ] LOOP
        EXECUTE format('CREATE FUNCTION evil.%s LANGUAGE plpgsql AS $f$ BEGIN PERFORM evil.raise(); END $f$', f);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['uuid', 'int8', 'int4', 'text', 'name', 'oid', 'regclass', 'timestamptz', 'bool', 'jsonb'] LOOP
        EXECUTE format('CREATE DOMAIN evil.%I AS pg_catalog.bytea CHECK (false)', t);
    END LOOP;
    FOREACH t IN ARRAY ARRAY['pg_class', 'pg_proc', 'pg_policy', 'pg_attribute', 'pg_inherits', 'pg_namespace', 'pg_index',
        'pg_depend', 'tenants', 'plans', 'usage', 'attachments', 'new_rows', 'old_rows'] LOOP
        EXECUTE format('CREATE VIEW evil.%I AS SELECT 1 / pg_catalog.pg_backend_pid() / 0 AS nothing', t);
        EXECUTE format('CREATE TEMP TABLE %I (nothing integer)', t);
    END LOOP;
END
$$;
