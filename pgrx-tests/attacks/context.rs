//! Setting the tenant: every path, every spelling.

use super::{Attack, attack, no, ok};

/// The read after a refusal: a session that ignores the error has no tenant.
const READ: &str = "SELECT note FROM orders";

pub fn attacks() -> Vec<Attack> {
    let mut attacks = paths();
    attacks.extend(spellings());
    attacks.extend(stored());
    attacks.extend(oracles());
    attacks
}

fn paths() -> Vec<Attack> {
    let refused = |name, sql| attack(name, "grant", "", vec![no("42501", sql), no("55000", READ)]);
    vec![
        refused("set", "SET app.current_tenant = '{B}'"),
        refused("set session", "SET SESSION app.current_tenant TO '{B}'"),
        attack(
            "set local",
            "grant",
            "",
            vec![
                ok("BEGIN"),
                no("42501", "SET LOCAL app.current_tenant = '{B}'"),
                ok("ROLLBACK"),
                no("55000", READ),
            ],
        ),
        refused("set_config", "SELECT set_config('app.current_tenant', '{B}', false)"),
        refused("set_config with null for is_local", "SELECT set_config('app.current_tenant', '{B}', NULL)"),
        refused(
            "set_config in the where clause of the read",
            "SELECT note FROM orders WHERE set_config('app.current_tenant', '{B}', true) <> ''",
        ),
        refused(
            "update pg_settings",
            "UPDATE pg_settings SET setting = '{B}' WHERE name = 'app.current_tenant'",
        ),
        refused("set_tenant", "SELECT set_tenant('{B}', false)"),
        refused("set_tenant_key", "SELECT set_tenant_key(2, false)"),
        refused("a do block", "DO $$ BEGIN PERFORM set_config('app.current_tenant', '{B}', false); END $$"),
        refused("dynamic sql", "DO $$ BEGIN EXECUTE format('SET app.current_tenant = %L', '{B}'); END $$"),
        refused(
            "a prepared statement",
            "PREPARE p AS SELECT set_config($1, $2, false); EXECUTE p ('app.current_tenant', '{B}')",
        ),
        refused("the name in upper case", "SET \"APP.CURRENT_TENANT\" = '{B}'"),
        attack(
            "a parameter of the protocol",
            "grant",
            "",
            vec![
                no("42501", "SELECT set_config('app.current_tenant', $1, false)").with("{B}"),
                no("55000", READ),
            ],
        ),
        attack(
            "the set clause of a function of its own",
            "grant",
            "",
            vec![
                ok(
                    "SET check_function_bodies = off; CREATE FUNCTION pg_temp.f() RETURNS SETOF text LANGUAGE sql SET app.current_tenant = '{B}' AS 'SELECT note FROM public.orders'",
                ),
                no("42501", "SELECT pg_temp.f()"),
            ],
        ),
        attack(
            "a failed attempt that is swallowed",
            "failed mark",
            "",
            vec![
                ok(
                    "DO $$ BEGIN PERFORM set_config('app.current_tenant', '{B}', false); EXCEPTION WHEN OTHERS THEN NULL; END $$",
                ),
                no("55000", "INSERT INTO orders (id, note) VALUES (77, 'meant for b')"),
            ],
        ),
        attack(
            "a failed attempt that is rolled back",
            "failed mark",
            "",
            vec![
                ok("BEGIN; SAVEPOINT s"),
                no("42501", "SELECT set_tenant('{B}')"),
                ok("ROLLBACK TO s"),
                no("55000", "UPDATE orders SET note = 'meant for b'"),
            ],
        ),
        attack(
            "a failed set_tenant of null",
            "failed mark",
            "",
            vec![no("22004", "SELECT set_tenant(NULL)"), no("55000", READ)],
        ),
        attack(
            "a failed set_tenant_key of null",
            "failed mark",
            "",
            vec![no("22004", "SELECT set_tenant_key(NULL)"), no("55000", READ)],
        ),
        attack("no tenant at all", "required", "", vec![no("55000", READ)]).by("app", ""),
        attack("no tenant on an empty table", "start hook", "", vec![no("55000", "SELECT note FROM empty")])
            .by("app", ""),
        attack("a reset", "required", "", vec![ok("RESET app.current_tenant"), no("55000", READ)]),
        attack("reset all", "required", "", vec![ok("RESET ALL"), no("55000", READ)]),
        attack("the empty text", "required", "", vec![ok("SET app.current_tenant = ''"), no("55000", READ)]),
        attack("at login by options", "grant", "", vec![no("42501", "connect -capp.current_tenant={B}")]),
        attack(
            "at login by options, in upper case",
            "grant",
            "",
            vec![no("42501", "connect -cAPP.Current_Tenant={B}")],
        ),
        attack(
            "at login with a missing tenant made silent",
            "settings",
            "",
            vec![no("42501", "connect -ctenant_rls.missing_tenant=empty")],
        ),
        attack(
            "silence for a missing tenant",
            "settings",
            "",
            vec![
                no("42501", "SET tenant_rls.missing_tenant = 'empty'"),
                ok("RESET app.current_tenant"),
                no("55000", READ),
            ],
        ),
        attack(
            "silence by update of pg_settings",
            "settings",
            "",
            vec![no(
                "42501",
                "UPDATE pg_settings SET setting = 'empty' WHERE name = 'tenant_rls.missing_tenant'",
            )],
        ),
        attack(
            "silence for the own role",
            "settings",
            "",
            vec![no("42501", "ALTER ROLE {app} IN DATABASE {db} SET tenant_rls.missing_tenant = 'empty'")],
        ),
        attack(
            "silence in the set clause of a function",
            "settings",
            "",
            vec![no(
                "42501",
                "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql SET tenant_rls.missing_tenant = 'empty' AS 'SELECT 1'",
            )],
        ),
        attack("row_security off", "row security", "", vec![ok("SET row_security = off"), no("42501", READ)]),
    ]
}

/// Texts that mean B, and texts that nearly do.
fn spellings() -> Vec<Attack> {
    let b = |name, sql| attack(name, "grant", "", vec![no("42501", sql), no("55000", READ)]);
    let bad = |name, sql| attack(name, "parser", "", vec![no("22023", sql), no("55000", READ)]);
    vec![
        b("upper case", "DO $$ BEGIN PERFORM set_config('app.current_tenant', upper('{B}'), false); END $$"),
        b("braces", "SET app.current_tenant = '{{B}}'"),
        b("no hyphens", "SELECT set_config('app.current_tenant', replace('{B}', '-', ''), false)"),
        b(
            "a hyphen after every four digits",
            "SET app.current_tenant = 'bbbb-bbbb-0000-4000-8000-0000-0000-000b'",
        ),
        b("an escape string", "SET app.current_tenant = E'\\x62bbbbbbb-0000-4000-8000-00000000000b'"),
        b(
            "a unicode escape string",
            "SET app.current_tenant = U&'\\0062bbbbbbb-0000-4000-8000-00000000000b'",
        ),
        bad("a space before", "SET app.current_tenant = ' {B}'"),
        bad("a space behind", "SET app.current_tenant = '{B} '"),
        bad("a line feed behind", "SET app.current_tenant = E'{B}\\n'"),
        bad("a tab before", "SET app.current_tenant = E'\\t{B}'"),
        bad("an open brace", "SET app.current_tenant = '{{B}'"),
        bad("a urn", "SET app.current_tenant = 'urn:uuid:{B}'"),
        bad("two tenants", "SET app.current_tenant = '{A},{B}'"),
        bad("a digit too few", "SET app.current_tenant = 'bbbbbbbb-0000-4000-8000-00000000000'"),
        bad("a digit too many", "SET app.current_tenant = '{B}b'"),
        bad(
            "full-width digits",
            "SELECT set_config('app.current_tenant', translate('{B}', '0', '０'), false)",
        ),
        bad("an invisible character", "SET app.current_tenant = U&'\\200B{B}'"),
        bad("a statement inside", "SET app.current_tenant = '{B}''; RESET ROLE; --'"),
        bad("a megabyte", "SET app.current_tenant = '{MB}'"),
        bad("the tenant and a megabyte", "SET app.current_tenant = '{A}{MB}'"),
        attack(
            "a zero byte",
            "failed mark",
            "",
            vec![
                no("22021", "SELECT set_config('app.current_tenant', $1, false)").with("{A}\0{B}"),
                ok(READ),
            ],
        ),
        attack(
            "percent signs in the refused text",
            "parser",
            "",
            vec![no("22023", "SET app.current_tenant = '%s%n%m%1$s'"), no("55000", READ)],
        ),
    ]
}

/// Tenants that are written down to be used later.
fn stored() -> Vec<Attack> {
    vec![
        attack(
            "written down for the own role",
            "grant",
            "",
            vec![
                ok("ALTER ROLE {app} IN DATABASE {db} SET app.current_tenant = '{B}'"),
                no("55000", "connect -cwork_mem=1MB"),
            ],
        ),
        attack(
            "written down for the database",
            "catalog rights",
            "",
            vec![no("42501", "ALTER DATABASE {db} SET app.current_tenant = '{B}'")],
        ),
        attack(
            "written down by a superuser for a role that may not",
            "grant",
            "ALTER ROLE {app} IN DATABASE {db} SET app.current_tenant = '{B}'",
            vec![no("55000", READ)],
        )
        .by("app", ""),
        attack(
            "written down in a definer function of a superuser",
            "outer role",
            "CREATE FUNCTION visit_b() RETURNS SETOF text LANGUAGE sql SECURITY DEFINER SET app.current_tenant = '{B}' AS 'SELECT note FROM public.orders'",
            vec![no("42501", "SELECT visit_b()")],
        ),
        attack(
            "set in a definer function of a superuser",
            "outer role",
            "CREATE FUNCTION switch(t text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'SELECT set_config(''app.current_tenant'', t, false)'",
            vec![no("42501", "SELECT switch('{B}')"), no("55000", READ)],
        ),
        attack(
            "set in a definer function of an operator",
            "outer role",
            "CREATE FUNCTION switch(t text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'SELECT set_config(''app.current_tenant'', t, false)'; ALTER FUNCTION switch(text) OWNER TO {shared}",
            vec![no("42501", "SELECT switch('{B}')"), no("55000", READ)],
        ),
    ]
}

/// Which tenants exist must not show in the error.
fn oracles() -> Vec<Attack> {
    let same = |name, one: &'static str| attack(name, "same error", "", vec![ok(one)]);
    vec![
        same("a tenant that exists and one that does not", "DO $$ DECLARE e text[]; t text; BEGIN
            FOREACH t IN ARRAY ARRAY['{B}', '{C}', '{D}'] LOOP
                BEGIN PERFORM set_config('app.current_tenant', t, true); EXCEPTION WHEN OTHERS THEN e := e || (SQLSTATE || SQLERRM); END;
            END LOOP;
            ASSERT cardinality(e) = 3 AND e[1] = e[2] AND e[2] = e[3], e::text; END $$"),
        same("a key that exists and one that does not", "DO $$ DECLARE e text[]; k int; BEGIN
            FOREACH k IN ARRAY ARRAY[2, 3, 99] LOOP
                BEGIN PERFORM set_tenant_key(k); EXCEPTION WHEN OTHERS THEN e := e || (SQLSTATE || SQLERRM); END;
            END LOOP;
            ASSERT cardinality(e) = 3 AND e[1] = e[2] AND e[2] = e[3], e::text; END $$"),
        attack("the reason of a suspension", "same error", "", vec![no("42501", "SET app.current_tenant = '{C}'")]),
    ]
}
