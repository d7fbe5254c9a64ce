//! Unique keys: what an insert tells about rows that cannot be seen.

use super::{Attack, Oracle, attack, no, ok};

const TAKEN: &str =
    "**Unique constraints** without the tenant column tell that a value is taken by somebody.";

pub fn attacks() -> Vec<Attack> {
    let mine = |name, sql| attack(name, "policy", "", vec![ok(sql)]);
    vec![
        mine("insert a key that B has too", "INSERT INTO orders (id, note) VALUES (30, 'mine')"),
        mine("upsert a key that B has too", "INSERT INTO orders (id, note) VALUES (30, 'mine') ON CONFLICT (tenant_id, id) DO UPDATE SET note = 'mine' RETURNING *"),
        attack("upsert the key of a row of B", "check", "", vec![
            no("42501", "INSERT INTO orders (tenant_id, id, note) VALUES ('{B}', 30, 'mine') ON CONFLICT (tenant_id, id) DO UPDATE SET note = 'mine' RETURNING *")]),
        attack("do nothing about the key of a row of B", "check", "", vec![
            no("42501", "INSERT INTO orders (tenant_id, id, note) VALUES ('{B}', 30, 'mine') ON CONFLICT DO NOTHING")]),
        attack("upsert that moves the row", "check", "", vec![
            no("42501", "INSERT INTO orders (id, note) VALUES (1, 'mine') ON CONFLICT (tenant_id, id) DO UPDATE SET tenant_id = '{B}', id = 500")]),
        attack("upsert into a partition", "check", "", vec![
            no("42501", "INSERT INTO events_2026 VALUES ('{B}', '2026-05-01', 1, 'mine') ON CONFLICT (tenant_id, day, id) DO UPDATE SET note = 'mine'")]),
        attack("upsert through a view", "check", "", vec![
            no("42501", "INSERT INTO orders_invoker (tenant_id, id, note) VALUES ('{B}', 30, 'mine') ON CONFLICT (tenant_id, id) DO UPDATE SET note = 'mine'")]),
        // CVE-2017-15099, CVE-2026-120154: what DO UPDATE shows of the row that is in the way.
        attack("upsert a row of B over a key without a tenant", "policy", "", vec![
            super::any("INSERT INTO people (id, note) VALUES (2, 'mine') ON CONFLICT (id) DO UPDATE SET note = people.note RETURNING *")])
            .leaks(Oracle::Worlds, TAKEN),
        attack("a leaky condition of an upsert", "policy", "", vec![
            ok("CREATE FUNCTION pg_temp.leak(text) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN RAISE NOTICE '%', $1; RETURN true; END $$"),
            super::any("INSERT INTO people (id, note) VALUES (2, 'mine') ON CONFLICT (id) DO UPDATE SET note = 'mine' WHERE pg_temp.leak(people.note)")])
            .leaks(Oracle::Worlds, TAKEN).more_on_old_minors(),
        attack("a primary key without a tenant", "documented", "", vec![super::any("INSERT INTO people (id, note) VALUES (2, 'mine')")])
            .leaks(Oracle::Worlds, TAKEN),
        attack("an email without a tenant", "documented", "", vec![super::any("INSERT INTO people (id, email) VALUES (50, 'bob@example.com')")])
            .leaks(Oracle::Worlds, TAKEN),
        attack("an update to an email without a tenant", "documented", "", vec![super::any("UPDATE people SET email = 'bob@example.com'")])
            .leaks(Oracle::Worlds, TAKEN),
        attack("on conflict do nothing counts rows", "documented", "", vec![ok("INSERT INTO people (id, email) VALUES (50, 'bob@example.com') ON CONFLICT DO NOTHING")])
            .leaks(Oracle::Worlds, TAKEN),
    ]
}
