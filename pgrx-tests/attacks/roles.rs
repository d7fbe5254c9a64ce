//! Changes of role, and what comes with membership. Memberships are of roles that each attack has for itself.

use super::{Attack, Oracle, any, attack, no, ok};

const SHARED: &str = "**Sessions that share a role** are one to Postgres: each sees what the others run in `pg_stat_activity`, can cancel and end them, and can end what they have prepared.";

pub fn attacks() -> Vec<Attack> {
    let mut attacks = rights();
    attacks.extend(members());
    attacks.extend(shared());
    attacks
}

fn rights() -> Vec<Attack> {
    let closed = |name, sql| attack(name, "catalog rights", "", vec![no("42501", sql)]);
    vec![
        closed("become B's role", "SET ROLE {b}"),
        closed("become B's role as a session", "SET SESSION AUTHORIZATION {b}"),
        closed("make a superuser", "CREATE ROLE {own} SUPERUSER"),
        closed("give itself bypassrls", "ALTER ROLE {app} BYPASSRLS"),
        closed("grant itself a role", "GRANT {b} TO {app}"),
        closed(
            "a set clause with a role in a function",
            "CREATE FUNCTION pg_temp.f() RETURNS SETOF text LANGUAGE sql SET role = '{b}' AS 'SELECT note FROM public.orders'; SELECT pg_temp.f()",
        ),
        attack(
            "grant the table to a friend",
            "catalog rights",
            "",
            vec![
                any("GRANT SELECT ON orders TO {stranger}"),
                any("SET app.current_tenant = '{A}'").by("stranger"),
                no("55000", "SELECT * FROM orders").by("stranger"),
            ],
        ),
        attack(
            "a role with bypassrls",
            "documented",
            "CREATE ROLE {own} LOGIN BYPASSRLS; GRANT SELECT ON orders TO {own}",
            vec![ok("SELECT note FROM orders")],
        )
        .by("own", "")
        .leaks(
            Oracle::Canary,
            "**Superusers, roles with BYPASSRLS**, and without `force` owners see all rows.",
        ),
        attack(
            "cancel a session of B",
            "catalog rights",
            "",
            vec![
                ok("BEGIN").by("b"),
                no(
                    "42501",
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{db}' AND usename = '{b}'",
                ),
                ok("COMMIT").by("b"),
            ],
        ),
        attack(
            "what B is doing",
            "catalog rights",
            "",
            vec![
                ok("BEGIN; SELECT 'canary-b statement'").by("b"),
                ok(
                    "SELECT 1 / (count(*) > 0)::int, string_agg(DISTINCT query, '|') FROM pg_stat_activity WHERE datname = '{db}' AND usename = '{b}'",
                ),
                ok("COMMIT").by("b"),
            ],
        ),
        attack("an operator reads rows", "required", "", vec![no("55000", "SELECT * FROM orders")])
            .by("operator", ""),
        attack(
            "an operator acts for a tenant",
            "our functions",
            "",
            vec![no("42501", "SELECT set_tenant('{B}')")],
        )
        .by("operator", ""),
        attack("an operator sets a tenant", "grant", "", vec![no("42501", "SET app.current_tenant = '{B}'")])
            .by("operator", ""),
        attack(
            "an operator grants itself a tenant",
            "our functions",
            "",
            vec![no("42501", "SELECT tenant_grant('{operator}', '{B}')")],
        )
        .by("operator", ""),
        attack("a stranger sets a tenant", "grant", "", vec![no("42501", "SET app.current_tenant = '{A}'")])
            .by("stranger", ""),
        attack(
            "a stranger with rights on the table only",
            "grant",
            "GRANT SELECT ON orders TO {stranger}",
            vec![
                no("55000", "SELECT note FROM orders"),
                no("42501", "SET app.current_tenant = '{B}'"),
                no("55000", "SELECT note FROM orders"),
            ],
        )
        .by("stranger", ""),
    ]
}

macro_rules! others {
    () => {
        "datname = '{db}' AND usename = '{shared}' AND pid <> pg_backend_pid()"
    };
}

/// B has a session of the attacker's own role.
fn shared() -> Vec<Attack> {
    let by_shared =
        |name, steps| attack(name, "documented", "SELECT 'a database of its own'", steps).by("shared", "{A}");
    vec![
        by_shared(
            "what B is doing with the same role",
            vec![
                ok("BEGIN; SELECT 'canary-b statement'").by("shared#b"),
                ok(concat!("SELECT query FROM pg_stat_activity WHERE ", others!())),
            ],
        )
        .leaks(Oracle::Canary, SHARED),
        by_shared(
            "end a session of B with the same role",
            vec![
                ok("BEGIN; UPDATE orders SET note = note || '.' WHERE id = 10").by("shared#b"),
                ok(concat!(
                    "SELECT count(pg_terminate_backend(pid, 5000)) FROM pg_stat_activity WHERE ",
                    others!()
                )),
                ok("COMMIT").by("shared#b"),
            ],
        )
        .leaks(Oracle::Blocked, SHARED),
        by_shared(
            "end a prepared transaction of B with the same role",
            vec![
                ok("BEGIN; UPDATE orders SET note = note || '.' WHERE id = 10; PREPARE TRANSACTION '{db}'")
                    .by("shared#b"),
                ok("ROLLBACK PREPARED '{db}'"),
                ok("COMMIT PREPARED '{db}'").by("shared#b"),
            ],
        )
        .leaks(Oracle::Blocked, SHARED),
        attack(
            "rows of B with the same role",
            "policy",
            "",
            vec![
                ok("BEGIN; SELECT count(*) > -1 FROM orders").by("shared#b"),
                ok("SELECT note FROM orders ORDER BY id"),
                ok("COMMIT").by("shared#b"),
            ],
        )
        .by("shared", "{A}"),
    ]
}

fn members() -> Vec<Attack> {
    let member = "CREATE ROLE {own} LOGIN NOINHERIT; GRANT {app}, {b}, {stranger} TO {own}; GRANT SELECT ON orders TO {stranger}";
    vec![
        attack("a tenant of one role used by the next", "held", member, vec![
            ok("SET ROLE {app}; SET app.current_tenant = '{A}'; SELECT count(*) FROM orders"), ok("SET ROLE {stranger}"), no("42501", "SELECT note FROM orders")])
            .by("own", ""),
        attack("a tenant of a role that was given up", "held", member, vec![
            ok("SET ROLE {b}; SET app.current_tenant = '{B}'; SET ROLE {app}"), no("42501", "SELECT note FROM orders")]).by("own", ""),
        attack("a tenant set as a member, in a transaction that ends", "held", member, vec![
            ok("BEGIN; SET LOCAL ROLE {b}; SET app.current_tenant = '{B}'; COMMIT; SET ROLE {stranger}"), no("42501", "SELECT note FROM orders")]).by("own", ""),
        attack("a tenant of a role in a statement that is prepared", "held", member, vec![
            ok("SET ROLE {b}; SET app.current_tenant = '{B}'; PREPARE p AS SELECT note FROM orders; SET ROLE {app}"), no("42501", "EXECUTE p")]).by("own", ""),
        attack("a role that is rolled back", "held", member, vec![
            ok("BEGIN; SET LOCAL ROLE {app}; SAVEPOINT s; SET LOCAL ROLE {b}; ROLLBACK TO s"), no("42501", "SET app.current_tenant = '{B}'")]).by("own", ""),
        attack("a membership that is revoked while the session goes on", "held",
            "CREATE ROLE {own}_group; SELECT tenant_grant('{own}_group', '{B}'); CREATE ROLE {own} LOGIN; GRANT {own}_group TO {own}; GRANT SELECT ON orders TO {own}", vec![
            ok("SET app.current_tenant = '{B}'; SELECT count(*) > -1 FROM orders"), ok("REVOKE {own}_group FROM {own}").by("admin"), no("42501", "SELECT note FROM orders")])
            .by("own", ""),
        attack("a membership that is revoked in the middle of a transaction", "held",
            "CREATE ROLE {own}_group; SELECT tenant_grant('{own}_group', '{B}'); CREATE ROLE {own} LOGIN; GRANT {own}_group TO {own}; GRANT SELECT ON orders TO {own}", vec![
            ok("BEGIN ISOLATION LEVEL REPEATABLE READ; SET LOCAL app.current_tenant = '{B}'; SELECT count(*) > -1 FROM orders"), ok("REVOKE {own}_group FROM {own}").by("admin"), no("42501", "SELECT note FROM orders")])
            .by("own", ""),
        attack("a member of the owner of the tables", "force", "CREATE ROLE {own} LOGIN; GRANT {owner} TO {own}", vec![ok("SELECT note FROM orders ORDER BY id")]).by("own", "{A}"),
        attack("a member that becomes the owner of the tables", "force", "CREATE ROLE {own} LOGIN; GRANT {owner} TO {own}", vec![ok("SET ROLE {owner}; SELECT note FROM orders ORDER BY id")]).by("own", "{A}"),
    ]
}
