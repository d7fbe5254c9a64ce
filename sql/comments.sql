-- A trigger is what its function does: the comment of the one is that of the other.

DO $$
DECLARE
    t record;
BEGIN
    FOR t IN
        SELECT g.tgname, g.tgrelid::pg_catalog.regclass AS relation, pg_catalog.obj_description(g.tgfoid, 'pg_proc') AS text
        FROM pg_catalog.pg_trigger AS g
        JOIN pg_catalog.pg_class AS c ON c.oid OPERATOR(pg_catalog.=) g.tgrelid
        WHERE c.relnamespace OPERATOR(pg_catalog.=) 'tenant_rls'::pg_catalog.regnamespace
        AND NOT g.tgisinternal
    LOOP
        EXECUTE pg_catalog.format(
            'COMMENT ON TRIGGER %I ON %s IS %L', t.tgname, t.relation, pg_catalog.replace(t.text, 'trigger: ', ''));
    END LOOP;
END
$$;
