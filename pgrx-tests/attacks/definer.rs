//! Functions with the rights of others, and objects of the session in the place of ours.

use super::{Attack, Oracle, attack, no, ok};

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
        attack("an expression of the owner while rows are counted", "restricted operation",
            "CREATE TABLE trap (tenant_id uuid NOT NULL, note text); ALTER TABLE trap OWNER TO {owner}; INSERT INTO trap VALUES ('{A}', 'x');
             SET client_min_messages = error; SET ROLE {owner}; SELECT tenant_protect('trap');
             CREATE FUNCTION trap() RETURNS boolean LANGUAGE plpgsql AS
             $$ BEGIN PERFORM set_config('app.current_tenant', '{B}', false); RETURN true; END $$;
             CREATE FUNCTION count_trap() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; RESET ROLE;
             SELECT tenant_revoke('{owner}', '{A}')",
            vec![ok("SELECT target, row_count FROM tenant_storage WHERE target::text IN ('trap', 'orders') ORDER BY 1")]),
    ]
}
