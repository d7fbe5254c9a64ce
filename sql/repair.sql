-- Making a protected table right, and protecting a live one.

CREATE FUNCTION @extschema@.tenant_repair(target regclass, apply boolean DEFAULT false)
RETURNS TABLE (step integer, statement text, why text)
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_repair_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_repair(regclass, boolean) IS
'the statements that make keys, foreign keys, indexes, privileges, replica identity and views of a protected table carry the tenant; with apply => true, runs them';

CREATE FUNCTION @extschema@.tenant_protect_plan(target regclass, tenant_column name DEFAULT 'tenant_id')
RETURNS TABLE (step integer, statement text, lock text, in_transaction boolean, why text)
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp
AS 'MODULE_PATHNAME', 'tenant_protect_plan_wrapper';
COMMENT ON FUNCTION @extschema@.tenant_protect_plan(regclass, name) IS
'tenant_protect as steps for a large table that is written to: none keeps writers out for longer than a moment';
