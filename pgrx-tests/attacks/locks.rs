//! Commands that are refused, and would stop everybody while they wait to be: the attacker's other session uses the
//! tables, so whoever asks for a strong lock queues behind it, and B behind that.

use super::{Attack, Step, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    const OWN: &str = "SET client_min_messages = error;
        CREATE TEMPORARY TABLE parent (tenant_id uuid NOT NULL, id int NOT NULL, note text, amount bigint, doc jsonb,
            PRIMARY KEY (tenant_id, id)) PARTITION BY LIST (id);
        CREATE TEMPORARY TABLE own (tenant_id uuid, id int)";
    let waits = |name, sql| {
        attack(
            name,
            "strong lock",
            "",
            vec![
                ok("BEGIN; UPDATE orders SET note = note; UPDATE events SET note = note; SELECT count(*) FROM tenant_usage")
                    .by("app#2"),
                ok(OWN),
                no("42501", sql),
            ],
        )
    };
    let mut attacks = storage();
    attacks.extend([
        waits("a rule", "CREATE RULE r AS ON INSERT TO orders DO NOTHING"),
        waits("a rule in a block", "DO $$ BEGIN CREATE RULE r AS ON INSERT TO orders DO NOTHING; END $$"),
        waits("a rule on a partition", "CREATE RULE r AS ON INSERT TO events_2026 DO NOTHING"),
        waits("a rule on a view of ours", "CREATE RULE r AS ON INSERT TO tenant_usage DO INSTEAD NOTHING"),
        waits(
            "a trigger",
            "CREATE TRIGGER t BEFORE UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        ),
        waits(
            "a table that refers to the orders",
            "CREATE TEMPORARY TABLE r (t uuid, id int, FOREIGN KEY (t, id) REFERENCES orders)",
        ),
        waits("a foreign key that comes later", "ALTER TABLE own ADD FOREIGN KEY (tenant_id, id) REFERENCES orders"),
        waits("a column that refers to the orders", "ALTER TABLE own ADD COLUMN o int REFERENCES orders (id)"),
        waits(
            "a partition of others",
            "CREATE TEMPORARY TABLE p PARTITION OF events FOR VALUES FROM ('2030-01-01') TO ('2031-01-01')",
        ),
        waits("the orders attached", "ALTER TABLE parent ATTACH PARTITION orders FOR VALUES IN (1)"),
        waits("the orders detached", "ALTER TABLE parent DETACH PARTITION orders"),
        waits("the orders detached at last", "ALTER TABLE parent DETACH PARTITION orders FINALIZE"),
        waits("an index attached", "ALTER INDEX parent_pkey ATTACH PARTITION orders_pkey"),
        waits("an index that depends on an extension", "ALTER INDEX orders_pkey DEPENDS ON EXTENSION plpgsql"),
    ]);
    attacks
}

/// Own tables, protected so that everybody's `tenant_storage` could count them.
fn storage() -> Vec<Attack> {
    const OWN: &str = "CREATE SCHEMA mine AUTHORIZATION {app}";
    const TABLE: &str = "SET client_min_messages = error;
        CREATE TABLE mine.t (tenant_id uuid NOT NULL, id int); SELECT tenant_protect('mine.t')";
    const CONDITION: &str =
        "CREATE FUNCTION mine.f() RETURNS boolean IMMUTABLE LANGUAGE sql AS 'SELECT true';
        CREATE INDEX ON mine.t (id) WHERE mine.f()";
    let read =
        "SET statement_timeout = '5s'; SELECT count(*) >= 0 FROM tenant_storage; RESET statement_timeout";
    let counts = move |name, setup, steps: Vec<Step>| {
        // Another tenant, an operator, a superuser.
        let readers = ["b", "operator", "admin"].map(|reader| ok(read).by(reader));
        attack(name, "storage of others", setup, steps.into_iter().chain(readers).collect()).changes()
    };
    vec![
        counts("an own table that is being emptied", OWN, vec![ok(TABLE), ok("BEGIN; TRUNCATE mine.t")]),
        counts(
            "an own table whose condition raises",
            OWN,
            vec![
                ok(TABLE),
                ok(CONDITION),
                ok("CREATE OR REPLACE FUNCTION mine.f() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
                    $$ BEGIN RAISE 'no'; END $$"),
            ],
        ),
        counts(
            "an own table whose condition sleeps",
            OWN,
            vec![
                ok(TABLE),
                ok(CONDITION),
                ok("CREATE OR REPLACE FUNCTION mine.f() RETURNS boolean IMMUTABLE LANGUAGE plpgsql AS
                    $$ BEGIN PERFORM pg_sleep(60); RETURN true; END $$"),
            ],
        ),
        counts(
            "a table of another role of the attacker",
            "CREATE ROLE {own}_group; CREATE ROLE {own} LOGIN IN ROLE {own}_group; SELECT tenant_grant('{own}', '{A}');
             CREATE SCHEMA mine AUTHORIZATION {own}_group",
            vec![ok("SET ROLE {own}_group"), ok(TABLE), ok("BEGIN; TRUNCATE mine.t")],
        )
        .by("own", "{A}"),
    ]
}
