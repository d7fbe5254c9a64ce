//! Functions with the rights of others, and objects of the session in the place of ours.

use super::{Attack, Oracle, attack, no, ok};

/// A table of a role that owns nothing else and may act for every tenant, with rows of both. The planner asks the condition of
/// its index, in the session of whoever counts or analyzes the table.
const TRAP: &str = "CREATE ROLE {own} LOGIN; SELECT tenant_grant('{own}'); CREATE SCHEMA own AUTHORIZATION {own};
    GRANT SELECT ON orders TO {own}; SET ROLE {own}; SET client_min_messages = error;
    CREATE TABLE own.bait (tenant_id uuid NOT NULL, note text); CREATE TABLE own.seen (what text);
    INSERT INTO own.bait VALUES ('{A}', 'x'), ('{B}', 'x');
    CREATE FUNCTION own.trap() RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
    CREATE INDEX ON own.bait (note) WHERE own.trap();
    SELECT tenant_protect('own.bait');
    CREATE FUNCTION own.look() RETURNS void LANGUAGE plpgsql AS $$ BEGIN
        BEGIN INSERT INTO own.seen SELECT note FROM public.orders; EXCEPTION WHEN OTHERS THEN INSERT INTO own.seen VALUES (SQLSTATE); END;
        BEGIN PERFORM set_config('app.current_tenant', '{A}', false); EXCEPTION WHEN OTHERS THEN NULL; END;
    END $$;
    CREATE OR REPLACE FUNCTION own.trap() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS $$ BEGIN PERFORM own.look(); RETURN true; END $$;
    RESET ROLE";

pub fn attacks() -> Vec<Attack> {
    vec![
        attack("a definer function of the owner", "force", "", vec![ok("SELECT * FROM orders_of_owner() ORDER BY id")]),
        attack("a definer function of the owner that writes", "check", "", vec![no("42501", "SELECT write_as_owner('{B}')")]),
        attack("a definer function of the owner that switches", "outer role", "", vec![
            no("42501", "SELECT switch_as_owner('{B}')"), no("55000", "SELECT note FROM orders")]),
        attack("a definer function of a role for all tenants", "outer role",
            "CREATE FUNCTION peek() RETURNS SETOF text LANGUAGE plpgsql SECURITY DEFINER SET search_path = public, pg_temp AS
             $$ BEGIN PERFORM set_tenant('{B}'); RETURN QUERY SELECT note FROM orders; END $$; ALTER FUNCTION peek() OWNER TO {shared}",
            vec![no("42501", "SELECT peek()")]),
        attack("a definer function without a tenant", "required", "", vec![no("55000", "SELECT * FROM orders_of_owner()")]).by("app", ""),
        attack("a definer function of a superuser", "documented",
            "CREATE FUNCTION all_orders() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER AS 'SELECT note FROM public.orders'",
            vec![ok("SELECT all_orders()")])
            .leaks(Oracle::Canary, "The same goes for `SECURITY DEFINER` functions that such a role owns."),
        attack("an inlined function", "policy", "", vec![ok("SELECT note FROM orders_inlined() ORDER BY id")]),
        attack("an own definer function", "policy", "", vec![
            ok("CREATE FUNCTION pg_temp.mine() RETURNS SETOF orders LANGUAGE sql SECURITY DEFINER AS 'SELECT * FROM public.orders'; SELECT * FROM pg_temp.mine() ORDER BY id")]),
        attack("change a function of the owner", "catalog rights", "", vec![
            no("42501", "CREATE OR REPLACE FUNCTION orders_of_owner() RETURNS SETOF orders LANGUAGE sql AS 'SELECT * FROM orders'")]),
        attack("an expression of the owner while rows are counted", "restricted operation", TRAP, vec![
            ok("SELECT count(*) FROM tenant_storage").by("b"),
            ok("SELECT 1 / (count(*) > 0)::int FROM own.seen"), ok("SELECT DISTINCT what FROM own.seen ORDER BY what"),
            ok("SELECT 1 / (current_setting('app.current_tenant') = '{B}')::int").by("b")]).by("own", ""),
    ]
}
