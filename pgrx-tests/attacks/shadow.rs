//! search_path: tables, functions, types and operators of the session in the place of the real ones.

use super::{Attack, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    vec![
        attack("a function required_tenant of its own", "search path", "", vec![
            ok("CREATE FUNCTION pg_temp.required_tenant() RETURNS uuid LANGUAGE sql AS $$ SELECT '{B}'::uuid $$; SET search_path = pg_temp, public"),
            ok("SELECT note FROM public.orders ORDER BY id")]),
        attack("an operator for uuids of its own", "search path", "", vec![
            ok("CREATE FUNCTION pg_temp.yes(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
                CREATE OPERATOR pg_temp.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = pg_temp.yes); SET search_path = pg_temp, pg_catalog, public"),
            ok("SELECT note FROM public.orders ORDER BY id")]),
        attack("an operator for the key of its own", "search path", "", vec![
            ok("CREATE FUNCTION pg_temp.yes(int8, int8) RETURNS boolean LANGUAGE sql AS 'SELECT true';
                CREATE OPERATOR pg_temp.= (LEFTARG = int8, RIGHTARG = int8, FUNCTION = pg_temp.yes); SET search_path = pg_temp, pg_catalog, public"),
            ok("SELECT note FROM public.invoices ORDER BY id")]),
        attack("a table pg_policy of its own", "search path", "", vec![
            ok("CREATE TEMPORARY TABLE pg_policy (polname name); CREATE TEMPORARY TABLE pg_class (oid oid, relrowsecurity boolean); SET search_path = pg_temp, pg_catalog, public"),
            ok("SELECT note FROM public.orders ORDER BY id")]),
        attack("a type uuid of its own", "search path", "", vec![
            ok("CREATE DOMAIN pg_temp.uuid AS text; SET search_path = pg_temp, pg_catalog, public"),
            no("42501", "SELECT public.set_tenant('{B}', false)")]),
        attack("a function set_config of its own", "search path", "", vec![
            ok("CREATE FUNCTION pg_temp.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT $2'; SET search_path = pg_temp, pg_catalog, public"),
            no("42501", "SELECT switch_as_owner('{B}')")]),
        attack("a table orders of its own, for a definer function", "search path", "", vec![
            ok("CREATE TEMPORARY TABLE orders (LIKE public.orders); INSERT INTO pg_temp.orders (tenant_id, id, note) VALUES ('{B}', 1, 'mine'); SET search_path = pg_temp, public"),
            ok("SELECT note FROM public.orders_of_owner() ORDER BY id")]),
        attack("operators of its own while the owner protects", "function path",
            "CREATE TABLE fresh (tenant_id uuid NOT NULL, note text); ALTER TABLE fresh OWNER TO {owner}; GRANT SELECT ON fresh TO {app};
             INSERT INTO fresh VALUES ('{A}', 'a'), ('{B}', 'safe')",
            vec![
                ok("CREATE FUNCTION pg_temp.no(name, name) RETURNS boolean LANGUAGE sql AS 'SELECT false';
                    CREATE OPERATOR pg_temp.= (LEFTARG = name, RIGHTARG = name, FUNCTION = pg_temp.no);
                    SET search_path = pg_temp, pg_catalog, public; SET client_min_messages = error"),
                ok("SELECT public.tenant_protect('public.fresh')"),
                ok("SELECT note FROM public.fresh"),
            ]).by("owner", "{A}").changes(),
        attack("a schema of its own in protect_schema", "function path",
            "CREATE SCHEMA shop AUTHORIZATION {owner}; SET ROLE {owner}; CREATE TABLE shop.fresh (tenant_id uuid NOT NULL, note text); RESET ROLE; GRANT USAGE ON SCHEMA shop TO {owner};
             INSERT INTO shop.fresh VALUES ('{A}', 'a'), ('{B}', 'safe')",
            vec![
                ok("CREATE TEMPORARY TABLE pg_class (oid oid, relnamespace oid, relkind \"char\", relname name); SET search_path = pg_temp, pg_catalog, public; SET client_min_messages = error"),
                ok("SELECT target, result FROM public.tenant_protect_schema('shop')"),
                ok("SELECT note FROM shop.fresh"),
            ]).by("owner", "{A}").changes(),
        attack("operators of its own in a quota call", "search path", "", vec![
            ok("CREATE FUNCTION pg_temp.yes(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
                CREATE OPERATOR pg_temp.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = pg_temp.yes); SET search_path = pg_temp, pg_catalog, public"),
            ok("SELECT allowed, used FROM public.tenant_quota_consume('calls', 2)")]),
        attack("operators of its own in the usage view", "search path", "", vec![
            ok("CREATE FUNCTION pg_temp.yes(uuid, uuid) RETURNS boolean LANGUAGE sql AS 'SELECT true';
                CREATE OPERATOR pg_temp.= (LEFTARG = uuid, RIGHTARG = uuid, FUNCTION = pg_temp.yes); SET search_path = pg_temp, pg_catalog, public"),
            ok("SELECT tenant, resource, used FROM public.tenant_usage ORDER BY resource")]),
        attack("a function sees_all of its own", "search path", "", vec![
            ok("CREATE FUNCTION pg_temp.sees_all() RETURNS boolean LANGUAGE sql AS 'SELECT true'; SET search_path = pg_temp, public"),
            ok("SELECT tenant, resource, used FROM tenant_usage ORDER BY resource")]),
        attack("an object in the schema of the extension", "catalog rights", "", vec![
            no("42501", "CREATE FUNCTION public.required_tenant(int) RETURNS uuid LANGUAGE sql AS 'SELECT NULL::uuid'")]),
        attack("an object in our schema", "catalog rights", "", vec![no("42501", "CREATE TABLE tenant_rls.mine ()")]),
        attack("replace a function of ours", "catalog rights", "", vec![
            no("42501", "CREATE OR REPLACE FUNCTION public.required_tenant() RETURNS uuid LANGUAGE sql AS $$ SELECT '{B}'::uuid $$")]),
        attack("a cast of its own", "catalog rights", "", vec![
            no("42501", "CREATE CAST (text AS uuid) WITH INOUT AS IMPLICIT")]),
    ]
}
