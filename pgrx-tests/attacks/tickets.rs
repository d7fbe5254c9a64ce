//! Tickets: forged, changed, worn out, shown again; and ways around them. The attacker has the login of a pool that may act
//! for every tenant by ticket alone, and what it has heard.

use super::{Attack, Step, no, ok};

/// The read after a refusal.
const READ: &str = "SELECT note FROM orders";

pub fn attacks() -> Vec<Attack> {
    let mut attacks = forged();
    attacks.extend(claims());
    attacks.extend(times());
    attacks.extend(used());
    attacks.extend(around());
    attacks
}

/// An attack by `pool`, which acts for nobody yet.
fn attack(name: &'static str, guard: &'static str, setup: &'static str, steps: Vec<Step>) -> Attack {
    super::attack(name, guard, setup, steps).by("pool", "")
}

fn forged() -> Vec<Attack> {
    let refused = |name, guard, sql| attack(name, guard, "", vec![no("42501", sql), no("55000", READ)]);
    vec![
        refused(
            "a ticket of alg none",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket none}', false)",
        ),
        refused(
            "a ticket of alg none for the other key",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket none for ed}', false)",
        ),
        refused(
            "a ticket that is signed but called none",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket alg:none}', false)",
        ),
        refused(
            "a ticket that is signed but called hs256",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket alg:hs256}', false)",
        ),
        refused(
            "a ticket that is signed but called HS512",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket alg:HS512}', false)",
        ),
        refused(
            "a ticket that is signed but called by nothing",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket alg:}', false)",
        ),
        refused(
            "a ticket that is signed but called EdDSA",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket alg:EdDSA}', false)",
        ),
        refused(
            "the public key as a secret",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket public key as secret}', false)",
        ),
        refused(
            "the public key as a secret, called EdDSA",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket public key as secret, called EdDSA}', false)",
        ),
        refused(
            "a signature of one key for the other",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket ed for hs}', false)",
        ),
        refused(
            "a signature of Ed25519 called HS256",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket ed called HS256}', false)",
        ),
        refused(
            "a signature of Ed25519 with the kid of the secret",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket ed with the kid of hs}', false)",
        ),
        refused(
            "a ticket without a signature",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket no signature}', false)",
        ),
        refused(
            "a signature of zeros",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket zeros}', false)",
        ),
        refused(
            "a signature of zeros by Ed25519",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket zeros for ed}', false)",
        ),
        refused(
            "a ticket by another secret",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket wrong secret}', false)",
        ),
        refused(
            "a ticket by the empty secret",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket empty secret}', false)",
        ),
        refused(
            "a ticket that brings its key along",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket wrong secret with its key}', false)",
        ),
        refused(
            "claims of another ticket",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket claims of another}', false)",
        ),
        refused(
            "a header of another ticket",
            "ticket algorithm",
            "SELECT set_tenant_ticket('{ticket header of another}', false)",
        ),
        refused(
            "a signature that is cut",
            "ticket signature",
            "SELECT set_tenant_ticket('{ticket cut}', false)",
        ),
        refused(
            "a signature with padding",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket padded}', false)",
        ),
        refused(
            "a ticket of four parts",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket a fourth part}', false)",
        ),
        refused(
            "a ticket of two parts",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket two parts}', false)",
        ),
        refused(
            "a ticket with a space",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket a space}', false)",
        ),
        refused(
            "a ticket with a line feed",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket a line feed}', false)",
        ),
        refused(
            "a ticket with a critical extension",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket header:,\"crit\":[\"exp\"]}', false)",
        ),
        refused(
            "a header with two algorithms",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket header:,\"alg\":\"none\"}', false)",
        ),
        refused(
            "a header with two kids",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket header:,\"kid\":\"ed\"}', false)",
        ),
        refused(
            "a list for a header",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket a list for a header}', false)",
        ),
        refused(
            "a header without a kid",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket no kid}', false)",
        ),
        refused(
            "a header without an algorithm",
            "ticket form",
            "SELECT set_tenant_ticket('{ticket no alg}', false)",
        ),
        refused(
            "a kid that nobody has",
            "ticket key",
            "SELECT set_tenant_ticket('{ticket kid:other}', false)",
        ),
        refused("the empty kid", "ticket key", "SELECT set_tenant_ticket('{ticket kid:}', false)"),
        refused("a kid in upper case", "ticket key", "SELECT set_tenant_ticket('{ticket kid:HS}', false)"),
        refused("a kid with a space", "ticket key", "SELECT set_tenant_ticket('{ticket kid:hs }', false)"),
        refused(
            "a kid with a statement inside",
            "ticket key",
            "SELECT set_tenant_ticket('{ticket kid:x'' OR true --}', false)",
        ),
        refused("a kid with a pattern", "ticket key", "SELECT set_tenant_ticket('{ticket kid:%}', false)"),
        refused(
            "a kid with a path",
            "ticket key",
            "SELECT set_tenant_ticket('{ticket kid:../../dev/null}', false)",
        ),
        refused(
            "a kid with a zero byte",
            "ticket key",
            "SELECT set_tenant_ticket('{ticket kid:hs\\u0000}', false)",
        ),
        refused(
            "a ticket of a megabyte",
            "ticket size",
            "SELECT set_tenant_ticket('{ticket a megabyte of claims}', false)",
        ),
        refused(
            "a ticket that is just too long",
            "ticket size",
            "SELECT set_tenant_ticket('{ticket just too long}', false)",
        ),
        refused("a megabyte that is no ticket", "ticket form", "SELECT set_tenant_ticket('{MB}', false)"),
        refused("a megabyte of dots", "ticket form", "SELECT set_tenant_ticket(repeat('.', 1000000), false)"),
        refused("the empty ticket", "ticket form", "SELECT set_tenant_ticket('', false)"),
        attack(
            "null for a ticket",
            "ticket form",
            "",
            vec![no("22004", "SELECT set_tenant_ticket(NULL, false)"), no("55000", READ)],
        ),
        attack(
            "null for is_local",
            "failed mark",
            "",
            vec![
                ok("SELECT set_tenant_ticket('{ticket a}', false)"),
                no("22004", "SELECT set_tenant_ticket('{ticket b}', NULL)"),
                no("55000", READ),
            ],
        ),
    ]
}

fn claims() -> Vec<Attack> {
    let refused = |name, guard, sql| attack(name, guard, "", vec![no("42501", sql), no("55000", READ)]);
    vec![
        refused(
            "a ticket without an end",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket no exp}', false)",
        ),
        refused(
            "an end that is a text",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket exp as a text}', false)",
        ),
        refused(
            "an end that never comes",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket exp without end}', false)",
        ),
        refused(
            "an end that is null",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket exp null}', false)",
        ),
        refused("two ends", "ticket claims", "SELECT set_tenant_ticket('{ticket exp twice}', false)"),
        refused(
            "a ticket without a tenant",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket no tenant}', false)",
        ),
        refused(
            "a tenant that is null",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket tenant null}', false)",
        ),
        refused(
            "two tenants in a ticket",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket two tenants}', false)",
        ),
        refused(
            "a list of tenants",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket a list of tenants}', false)",
        ),
        refused(
            "a list for claims",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket a list for claims}', false)",
        ),
        refused(
            "an nbf that is null",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket more:B:,\"nbf\":null}', false)",
        ),
        refused(
            "a jti that is null",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket more:B:,\"jti\":null}', false)",
        ),
        refused(
            "a jti that is empty",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket more:B:,\"jti\":\"\"}', false)",
        ),
        refused(
            "a jti that is a number",
            "ticket claims",
            "SELECT set_tenant_ticket('{ticket more:B:,\"jti\":1}', false)",
        ),
        refused(
            "a ticket for somebody else",
            "ticket audience",
            "SELECT set_tenant_ticket('{ticket more:B:,\"aud\":\"other\"}', false)",
        ),
        refused(
            "a ticket for nobody",
            "ticket audience",
            "SELECT set_tenant_ticket('{ticket more:B:,\"aud\":[]}', false)",
        ),
        attack(
            "a ticket for another database",
            "ticket audience",
            "ALTER DATABASE {db} SET tenant_rls.ticket_audience = 'shop'",
            vec![
                no("42501", "SELECT set_tenant_ticket('{ticket more:B:,\"aud\":\"other\"}', false)"),
                no("55000", READ),
            ],
        ),
        attack(
            "a ticket for no database in one with a name",
            "ticket audience",
            "ALTER DATABASE {db} SET tenant_rls.ticket_audience = 'shop'",
            vec![no("42501", "SELECT set_tenant_ticket('{ticket b}', false)"), no("55000", READ)],
        ),
        attack(
            "another name for the database",
            "settings",
            "ALTER DATABASE {db} SET tenant_rls.ticket_audience = 'shop'",
            vec![
                no("42501", "SET tenant_rls.ticket_audience = 'other'"),
                no("42501", "SELECT set_tenant_ticket('{ticket more:B:,\"aud\":\"other\"}', false)"),
            ],
        ),
        refused(
            "a ticket of tomorrow",
            "ticket times",
            "SELECT set_tenant_ticket('{ticket nbf tomorrow}', false)",
        ),
        refused(
            "a ticket that has ended",
            "ticket times",
            "SELECT set_tenant_ticket('{ticket seconds:B:-1}', false)",
        ),
        refused(
            "a ticket that ends now",
            "ticket times",
            "SELECT set_tenant_ticket('{ticket seconds:B:0}', false)",
        ),
    ]
}

fn times() -> Vec<Attack> {
    let worn = |name, steps: Vec<Step>| attack(name, "ticket expiry", "", steps);
    // Long enough for what comes before the end, on a machine that is busy.
    let short = "SELECT set_tenant_ticket('{ticket seconds:A:4}', false)";
    let wait = "DO $$ BEGIN PERFORM pg_sleep(4); END $$";
    vec![
        worn(
            "a ticket that ends while the session is idle",
            vec![ok(short), ok(READ), ok(wait), no("42501", READ)],
        ),
        worn(
            "a ticket that ends in the middle of a transaction",
            vec![ok("BEGIN"), ok(short), ok(READ), ok(wait), no("42501", READ)],
        ),
        worn(
            "a ticket that ends while a cursor is open",
            vec![
                ok(short),
                ok("BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders"),
                ok("FETCH 1 FROM c"),
                ok(wait),
                no("42501", "FETCH ALL FROM c"),
            ],
        ),
        worn(
            "a prepared statement after the end of the ticket",
            vec![
                ok(short),
                ok(
                    "SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders; EXECUTE p",
                ),
                ok(wait),
                no("42501", "EXECUTE p"),
            ],
        ),
        worn(
            "a write after the end of the ticket",
            vec![ok(short), ok(wait), no("42501", "INSERT INTO orders (id) VALUES (900)")],
        ),
        worn(
            "a quota call after the end of the ticket",
            vec![ok(short), ok(wait), no("42501", "SELECT * FROM tenant_quota_consume('calls')")],
        ),
        worn(
            "the context after the end of the ticket",
            vec![ok(short), ok(wait), no("42501", "SELECT tenant_context()")],
        ),
        worn(
            "a statement in a loop after the end of the ticket",
            vec![
                ok(short),
                no("42501", "DO $$ BEGIN PERFORM pg_sleep(4); PERFORM count(*) FROM orders; END $$"),
            ],
        ),
        worn(
            "a table that is empty after the end of the ticket",
            vec![ok(short), ok(wait), no("42501", "SELECT * FROM empty")],
        ),
        attack(
            "a ticket of a key that was dropped",
            "ticket key held",
            "",
            vec![
                ok("SELECT set_tenant_ticket('{ticket a}', false)"),
                ok(READ),
                ok("SELECT tenant_signing_key_drop('hs')").by("admin"),
                no("42501", READ),
            ],
        ),
        attack(
            "a cursor under a ticket of a key that was dropped",
            "open cursor",
            "",
            vec![
                ok("SELECT set_tenant_ticket('{ticket a}', false)"),
                ok("BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders; FETCH 1 FROM c"),
                ok("SELECT tenant_signing_key_drop('hs')").by("admin"),
                no("42501", "FETCH ALL FROM c"),
            ],
        ),
        attack(
            "a ticket of a key that was changed",
            "ticket key held",
            "",
            vec![
                ok("SELECT set_tenant_ticket('{ticket a}', false)"),
                ok("BEGIN"),
                ok(READ),
                ok("SELECT tenant_signing_key_set('hs', 'HS256', 'another secret of thirty-two bytes')")
                    .by("admin"),
                no("42501", READ),
            ],
        ),
        attack(
            "a ticket of a key whose time is over",
            "ticket key held",
            "",
            vec![
                ok("SELECT set_tenant_ticket('{ticket a}', false)"),
                ok(READ),
                ok("UPDATE tenant_rls.signing_keys SET not_after = now() WHERE kid = 'hs'").by("admin"),
                no("42501", READ),
            ],
        ),
        attack(
            "a key whose time is over",
            "ticket key window",
            "UPDATE tenant_rls.signing_keys SET not_after = now()",
            vec![no("42501", "SELECT set_tenant_ticket('{ticket b}', false)"), no("55000", READ)],
        ),
        attack(
            "a key whose time has not come",
            "ticket key window",
            "UPDATE tenant_rls.signing_keys SET not_before = now() + '1 day'",
            vec![no("42501", "SELECT set_tenant_ticket('{ticket b}', false)"), no("55000", READ)],
        ),
        attack(
            "a ticket after its tenant was suspended",
            "invalidation",
            "",
            vec![
                ok("SELECT set_tenant_ticket('{ticket a}', false)"),
                ok(READ),
                ok("SELECT tenant_suspend('{A}')").by("admin"),
                no("55000", READ),
            ],
        ),
        attack(
            "a ticket after the grant was revoked",
            "invalidation",
            "",
            vec![
                ok("SELECT set_tenant_ticket('{ticket a}', false)"),
                ok(READ),
                ok("SELECT tenant_revoke('{pool}')").by("admin"),
                no("42501", READ),
            ],
        ),
    ]
}

fn used() -> Vec<Attack> {
    let once = |name, steps: Vec<Step>| attack(name, "ticket once", "", steps);
    let heard = "SELECT set_tenant_ticket('{ticket more:B:,\"jti\":\"heard\"}', false)";
    vec![
        once("a ticket that B has used", vec![ok(heard).by("b"), no("42501", heard), no("55000", READ)]),
        once(
            "a ticket that B is using",
            vec![
                ok("BEGIN").by("b"),
                ok(heard).by("b"),
                no("42501", heard),
                no("55000", READ),
                ok("COMMIT").by("b"),
            ],
        ),
        once(
            "a ticket that B has used and rolled back",
            vec![
                ok("BEGIN").by("b"),
                ok(heard).by("b"),
                ok("ROLLBACK").by("b"),
                no("42501", heard),
                no("55000", READ),
            ],
        ),
        once(
            "a ticket that B has used and rolled back to a savepoint",
            vec![
                ok("BEGIN; SAVEPOINT s").by("b"),
                ok(heard).by("b"),
                ok("ROLLBACK TO s; COMMIT").by("b"),
                no("42501", heard),
                no("55000", READ),
            ],
        ),
        once(
            "a ticket that B has used, by an old snapshot",
            vec![
                ok("BEGIN ISOLATION LEVEL SERIALIZABLE; SELECT count(*) > 0 FROM pg_class"),
                ok(heard).by("b"),
                no("42501", heard),
            ],
        ),
        once(
            "a ticket that is shown again after a reset",
            vec![ok(heard).by("b"), ok("DISCARD ALL").by("b"), no("42501", heard), no("55000", READ)],
        ),
        once(
            "the same jti spelled otherwise",
            vec![
                ok(heard).by("b"),
                no("42501", "SELECT set_tenant_ticket('{ticket more:B:,\"jti\":\"\\u0068eard\"}', false)"),
                no("55000", READ),
            ],
        ),
        attack(
            "a single use in a read-only transaction",
            "ticket once",
            "",
            vec![ok("BEGIN READ ONLY"), no("25006", heard), ok("ROLLBACK"), no("55000", READ)],
        ),
        attack(
            "used tickets deleted",
            "our privileges",
            "",
            vec![no("42501", "DELETE FROM tenant_rls.used_tickets")],
        ),
        attack(
            "used tickets deleted with careless grants",
            "our row security",
            "GRANT USAGE ON SCHEMA tenant_rls TO {pool}; GRANT ALL ON ALL TABLES IN SCHEMA tenant_rls TO {pool}",
            vec![
                ok(heard).by("b"),
                ok("DELETE FROM tenant_rls.used_tickets"),
                no("42501", heard),
                no("55000", READ),
            ],
        ),
    ]
}

fn around() -> Vec<Attack> {
    let named = |name, sql| attack(name, "ticket required", "", vec![no("42501", sql), no("55000", READ)]);
    vec![
        named("a tenant by name", "SELECT set_tenant('{B}', false)"),
        named("a tenant by key", "SELECT set_tenant_key(2, false)"),
        named("a tenant by set", "SET app.current_tenant = '{B}'"),
        named("a tenant by set_config", "SELECT set_config('app.current_tenant', '{B}', false)"),
        named("a tenant by update of pg_settings", "UPDATE pg_settings SET setting = '{B}' WHERE name = 'app.current_tenant'"),
        attack("a tenant by options of the login", "ticket required", "", vec![no("42501", "connect -capp.current_tenant={B}")]),
        attack("a tenant written down for the pool", "ticket required", "", vec![
            ok("ALTER ROLE {pool} IN DATABASE {db} SET app.current_tenant = '{B}'"), no("55000", "connect -cwork_mem=1MB")]),
        attack("another tenant by name after a ticket", "ticket required", "", vec![
            ok("SELECT set_tenant_ticket('{ticket a}', false)"), no("42501", "SELECT set_tenant('{B}', false)"), no("55000", READ)]),
        attack("the tenant of a ticket, kept in a function", "ticket required", "", vec![
            ok("SELECT set_tenant_ticket('{ticket a}', false)"),
            no("42501", "CREATE FUNCTION pg_temp.f() RETURNS SETOF text LANGUAGE sql SET app.current_tenant FROM CURRENT AS 'SELECT note FROM public.orders'")]),
        attack("a definer function that sets by name", "ticket required",
            "CREATE FUNCTION switch(t text) RETURNS text LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS 'SELECT set_config(''app.current_tenant'', t, false)'",
            vec![no("42501", "SELECT switch('{B}')"), no("55000", READ)]),
        attack("the ticket of another session's setting", "ticket carrier", "", vec![no("42501", "SET tenant_rls.ticket = 'x'")]),
        attack("the ticket of the setting read", "ticket carrier", "", vec![
            ok("SELECT set_tenant_ticket('{ticket a}', false)"), no("42501", "SHOW tenant_rls.ticket"),
            ok("SELECT name FROM pg_settings WHERE name = 'tenant_rls.ticket'")]),
        attack("the ticket of the setting by options of the login", "ticket carrier", "", vec![no("42501", "connect -ctenant_rls.ticket=x")]),
        attack("parallel workers without a ticket", "ticket carrier", "", vec![
            ok("SELECT set_tenant_ticket('{ticket a}', false)"),
            ok("SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET enable_indexscan = off; SET enable_bitmapscan = off"),
            ok("SELECT count(*), max(note) FROM orders")]),
        attack("which tenants exist", "same error", "", vec![ok("DO $$ DECLARE e text[]; t text; BEGIN
            FOREACH t IN ARRAY ARRAY['{B}', '{C}', '{D}'] LOOP
                BEGIN PERFORM set_tenant(t::uuid); EXCEPTION WHEN OTHERS THEN e := e || (SQLSTATE || SQLERRM); END;
            END LOOP;
            ASSERT cardinality(e) = 3 AND e[1] = e[2] AND e[2] = e[3], e::text; END $$")]),
        attack("which keys exist", "same error", "", vec![ok("DO $$ DECLARE e text[]; k int; BEGIN
            FOREACH k IN ARRAY ARRAY[2, 3, 99] LOOP
                BEGIN PERFORM set_tenant_key(k); EXCEPTION WHEN OTHERS THEN e := e || (SQLSTATE || SQLERRM); END;
            END LOOP;
            ASSERT cardinality(e) = 3 AND e[1] = e[2] AND e[2] = e[3], e::text; END $$")]),
        attack("a ticket for a tenant that the role was not granted", "grant", "", vec![
            no("42501", "SELECT set_tenant_ticket('{ticket b}', false)"), no("55000", READ)]).by("app", "{A}"),
        attack("a ticket shown by a stranger", "our functions", "", vec![no("42501", "SELECT set_tenant_ticket('{ticket b}', false)")]).by("stranger", ""),
        attack("a switch by ticket within a statement", "one statement", "", vec![
            ok("SELECT set_tenant_ticket('{ticket a}', false)"),
            ok("SET enable_indexscan = off; SET enable_bitmapscan = off"),
            no("55000", "SELECT note, set_tenant_ticket('{ticket b}') FROM orders")]),
        attack("a held cursor across tickets", "safe switch", "", vec![
            ok("SELECT set_tenant_ticket('{ticket b}', false)"),
            ok("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT note FROM orders; COMMIT"),
            no("55000", "SELECT set_tenant_ticket('{ticket a}', false)")]),
        attack("a ticket of the transaction after its end", "transaction", "", vec![
            ok("BEGIN; SELECT set_tenant_ticket('{ticket b}'); COMMIT"), no("55000", READ)]),
        attack("the keys read", "our privileges", "", vec![no("42501", "SELECT * FROM tenant_rls.signing_keys")]),
        attack("the keys read with careless grants", "our row security",
            "GRANT USAGE ON SCHEMA tenant_rls TO {pool}; GRANT ALL ON ALL TABLES IN SCHEMA tenant_rls TO {pool}", vec![
            ok("SELECT * FROM tenant_rls.signing_keys"),
            no("42501", "INSERT INTO tenant_rls.signing_keys VALUES ('mine', 'HS256', '{secret}')")]),
        attack("a key of its own", "our functions", "", vec![no("42501", "SELECT tenant_signing_key_set('mine', 'HS256', '{secret}')")]),
        attack("a key dropped", "our functions", "", vec![no("42501", "SELECT tenant_signing_key_drop('hs')")]),
        attack("a key of its own, as an operator", "our functions", "", vec![no("42501", "SELECT tenant_signing_key_set('mine', 'HS256', '{secret}')")]).by("operator", ""),
        attack("the secret in the record of changes", "secret columns",
            "GRANT USAGE ON SCHEMA tenant_rls TO {pool}; GRANT SELECT ON tenant_rls.changes TO {pool}; CREATE POLICY open ON tenant_rls.changes USING (true)", vec![
            ok("SELECT 1 / (count(*) > 0)::int FROM tenant_rls.changes WHERE relation = 'signing_keys'"),
            ok("SELECT 1 / (count(*) = 0)::int FROM tenant_rls.changes AS c WHERE c::text ~ '3031323334|0123456789abcdef'")]),
    ]
}
