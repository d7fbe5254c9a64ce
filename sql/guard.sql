-- What keeps protected tables protected while commands change the database: src/isolation/guard.rs.
-- These come last: nothing in the install script needs to be watched.

CREATE FUNCTION tenant_rls.ddl_guard() RETURNS event_trigger
LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'ddl_guard';
COMMENT ON FUNCTION tenant_rls.ddl_guard() IS
'event trigger: protects new partitions, and refuses commands that would open a protected table';

CREATE FUNCTION tenant_rls.drop_guard() RETURNS event_trigger
LANGUAGE c SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'drop_guard';
COMMENT ON FUNCTION tenant_rls.drop_guard() IS 'event trigger: refuses to drop the policies of a protected table';

-- Event triggers of one event fire in the order of their names: a partition is protected before gauges follow it.
CREATE EVENT TRIGGER tenant_rls_ddl_guard ON ddl_command_end
WHEN TAG IN (
    'ALTER FOREIGN TABLE', 'ALTER FUNCTION', 'ALTER MATERIALIZED VIEW', 'ALTER POLICY', 'ALTER PROCEDURE', 'ALTER ROUTINE',
    'ALTER TABLE', 'ALTER VIEW', 'CREATE FOREIGN TABLE', 'CREATE FUNCTION', 'CREATE MATERIALIZED VIEW', 'CREATE POLICY',
    'CREATE PROCEDURE', 'CREATE RULE', 'CREATE SCHEMA', 'CREATE TABLE', 'CREATE TABLE AS', 'CREATE VIEW', 'GRANT', 'SELECT INTO')
EXECUTE FUNCTION tenant_rls.ddl_guard();
CREATE EVENT TRIGGER tenant_rls_drop_guard ON sql_drop
EXECUTE FUNCTION tenant_rls.drop_guard();
COMMENT ON EVENT TRIGGER tenant_rls_ddl_guard IS 'keeps protected tables protected while commands change the database';
COMMENT ON EVENT TRIGGER tenant_rls_drop_guard IS 'keeps the policies of protected tables';
