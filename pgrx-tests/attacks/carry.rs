//! Carrying rows across a change of the tenant, by a role that may act for both.

use super::{Attack, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    let mut attacks = statements();
    attacks.extend(sessions());
    attacks
        .into_iter()
        .map(|attack| if attack.role == "app" { attack.by("shared", "{A}") } else { attack })
        .collect()
}

/// One statement sees one tenant. The roundabout plans make the scan ask again for every row.
fn statements() -> Vec<Attack> {
    let plain = "SET enable_indexscan = off; SET enable_bitmapscan = off; BEGIN";
    vec![
        attack("set_config in the select list", "one statement", "", vec![ok(plain), no("55000", "SELECT note, set_config('app.current_tenant', '{B}', true) FROM orders")]),
        attack("set_tenant in the select list", "one statement", "", vec![ok(plain), no("55000", "SELECT note, set_tenant('{B}') FROM orders")]),
        attack("set_tenant_key in the select list", "one statement", "", vec![ok(plain), no("55000", "SELECT note, set_tenant_key(2) FROM invoices")]),
        attack("a switch in the where clause of a join", "one statement", "", vec![ok(plain),
            no("55000", "SELECT o.note, p.note FROM orders AS o JOIN orders AS p ON set_config('app.current_tenant', '{B}', true) <> ''")]),
        attack("a switch in returning", "one statement", "", vec![ok(plain), no("55000", "UPDATE orders SET note = note RETURNING set_tenant('{B}')")]),
        attack("a switch in the set list of an update", "one statement", "", vec![ok(plain), no("55000", "UPDATE orders SET note = set_config('app.current_tenant', '{B}', true)")]),
        attack("a switch in the source of an insert", "one statement", "", vec![ok(plain),
            no("55000", "INSERT INTO orders (id, note) SELECT id + 100, set_config('app.current_tenant', '{B}', true) FROM orders")]),
        attack("a switch in merge", "one statement", "", vec![ok(plain),
            no("55000", "MERGE INTO orders AS o USING orders AS s ON o.id = s.id WHEN MATCHED THEN UPDATE SET note = set_config('app.current_tenant', '{B}', true)")]),
        attack("a switch between two scalar subqueries", "one statement", "", vec![ok(plain),
            no("55000", "SELECT (SELECT max(note) FROM orders), set_config('app.current_tenant', '{B}', true), (SELECT max(note) FROM orders WHERE random() >= 0)")]),
        attack("a switch in a loop over rows", "one statement", "", vec![ok(plain),
            no("55000", "DO $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM orders LOOP PERFORM set_tenant('{B}'); RAISE NOTICE '%', r; END LOOP; END $$")]),
        attack("a switch in a row trigger", "one statement",
            "CREATE FUNCTION change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM set_tenant('{B}'); RETURN NEW; END $$;
             CREATE TRIGGER change AFTER INSERT ON orders FOR EACH ROW EXECUTE FUNCTION change()",
            vec![ok(plain), no("55000", "INSERT INTO orders (id) VALUES (101), (102)")]),
        attack("reset all in the middle of a scan", "generation", "", vec![
            ok("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE plpgsql AS $$ BEGIN EXECUTE 'RESET ALL'; RETURN 1; END $$"),
            ok(plain), no("55000", "SELECT note, pg_temp.f() FROM orders")]),
        attack("a cursor that has been read", "one statement", "", vec![
            ok("BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders"), ok("MOVE 1 FROM c"), no("55000", "SELECT set_tenant('{B}')"), ]),
        attack("a cursor that has been read, and a reset", "one statement", "", vec![
            ok("BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders"), ok("MOVE 1 FROM c"), no("55000", "SELECT reset_tenant()"), ]),
        attack("a cursor over the key table", "one statement", "", vec![
            ok("BEGIN; DECLARE c CURSOR FOR SELECT note FROM invoices"), ok("MOVE 1 FROM c"), no("55000", "SELECT set_tenant('{B}')"), ]),
        attack("a cursor of another tenant after a rollback to a savepoint", "generation", "", vec![
            ok("BEGIN; SET LOCAL enable_indexscan = off; SET LOCAL enable_bitmapscan = off; DECLARE c CURSOR FOR SELECT note FROM orders; SAVEPOINT s; SELECT set_tenant('{B}'); DO $$ DECLARE c refcursor := 'c'; BEGIN MOVE NEXT FROM c; END $$; ROLLBACK TO s"),
            no("55000", "FETCH ALL FROM c")]),
        attack("an index cursor of another tenant after a rollback to a savepoint", "generation", "", vec![
            ok("BEGIN; SET LOCAL enable_seqscan = off; DECLARE c CURSOR FOR SELECT note FROM orders ORDER BY id; SAVEPOINT s; SELECT set_tenant('{B}'); DO $$ DECLARE c refcursor := 'c'; BEGIN MOVE NEXT FROM c; END $$; ROLLBACK TO s"),
            no("55000", "FETCH ALL FROM c")]),
        attack("a cursor that leaves the set clause of a function", "generation",
            "CREATE FUNCTION open_b() RETURNS refcursor LANGUAGE plpgsql SET app.current_tenant = '{B}' AS
             $$ DECLARE c refcursor := 'c'; r record; BEGIN OPEN c FOR SELECT note FROM orders; FETCH c INTO r; RETURN c; END $$",
            vec![ok("BEGIN; SELECT open_b()"), no("55000", "FETCH ALL FROM c")]),
    ]
}

/// From one statement to the next.
fn sessions() -> Vec<Attack> {
    let from_b = |name, guard, steps| attack(name, guard, "", steps).by("shared", "{B}");
    vec![
        from_b(
            "a cursor that has not been read",
            "policy",
            vec![
                ok("BEGIN; DECLARE c CURSOR FOR SELECT note FROM orders"),
                ok("SELECT set_tenant('{A}')"),
                ok("FETCH ALL FROM c"),
            ],
        ),
        from_b(
            "a prepared statement of another tenant",
            "policy",
            vec![ok("PREPARE p AS SELECT note FROM orders; SET app.current_tenant = '{A}'"), ok("EXECUTE p")],
        ),
        from_b(
            "a generic plan",
            "policy",
            vec![
                ok(
                    "SET plan_cache_mode = force_generic_plan; PREPARE p AS SELECT note FROM orders WHERE id > $1; EXPLAIN (COSTS off) EXECUTE p (1000)",
                ),
                ok("SET app.current_tenant = '{A}'"),
                ok("EXECUTE p (0)"),
            ],
        ),
        from_b(
            "a plan of plpgsql",
            "policy",
            vec![
                ok(
                    "CREATE FUNCTION pg_temp.f() RETURNS SETOF text LANGUAGE plpgsql AS $$ BEGIN RETURN QUERY SELECT note FROM orders; END $$",
                ),
                ok(
                    "DO $$ BEGIN FOR i IN 1..10 LOOP PERFORM pg_temp.f(); END LOOP; END $$; SET app.current_tenant = '{A}'",
                ),
                ok("SELECT pg_temp.f()"),
            ],
        ),
        from_b(
            "a tenant that ended with its transaction",
            "transaction",
            vec![
                ok("RESET app.current_tenant"),
                ok("BEGIN; SELECT set_tenant('{B}'); COMMIT"),
                no("55000", "SELECT note FROM orders"),
            ],
        ),
        from_b(
            "a tenant that was rolled back",
            "transaction",
            vec![
                ok("RESET app.current_tenant; SET app.current_tenant = '{A}'"),
                ok("BEGIN; SELECT set_tenant('{B}', false); ROLLBACK"),
                ok("SELECT note FROM orders"),
            ],
        ),
        from_b(
            "a tenant of an exception block",
            "transaction",
            vec![
                ok("SET app.current_tenant = '{A}'"),
                ok(
                    "DO $$ BEGIN BEGIN PERFORM set_tenant('{B}', false); RAISE division_by_zero; EXCEPTION WHEN division_by_zero THEN NULL; END; END $$",
                ),
                ok("SELECT note FROM orders"),
            ],
        ),
        from_b(
            "a prepared transaction",
            "transaction",
            vec![
                ok(
                    "SET app.current_tenant = '{A}'; BEGIN; SELECT set_tenant('{B}'); UPDATE orders SET id = id WHERE false; PREPARE TRANSACTION '{db}'",
                ),
                ok("SELECT note FROM orders"),
            ],
        ),
        from_b(
            "parallel workers",
            "policy",
            vec![
                ok(
                    "SET app.current_tenant = '{A}'; SET parallel_setup_cost = 0; SET parallel_tuple_cost = 0; SET min_parallel_table_scan_size = 0; SET enable_indexscan = off; SET enable_bitmapscan = off",
                ),
                ok("SELECT count(*), max(note) FROM orders"),
            ],
        ),
        from_b(
            "a temporary table",
            "safe switch",
            vec![
                ok("CREATE TEMPORARY TABLE kept AS SELECT 'mine' AS note"),
                ok("DO $$ BEGIN INSERT INTO kept SELECT note FROM orders; END $$"),
                no("55000", "SET app.current_tenant = '{A}'"),
                ok("DROP TABLE kept; SET app.current_tenant = '{A}'"),
                ok("SELECT note FROM orders"),
            ],
        ),
        from_b(
            "a temporary table that was dropped and comes back",
            "safe switch",
            vec![
                ok("CREATE TEMPORARY TABLE kept AS SELECT 'mine' AS note"),
                ok("DO $$ BEGIN INSERT INTO kept SELECT note FROM orders; END $$"),
                ok("BEGIN; DROP TABLE kept; SET app.current_tenant = '{A}'; ROLLBACK"),
                no("55000", "SET app.current_tenant = '{A}'"),
                ok("DROP TABLE kept; SET app.current_tenant = '{A}'"),
                ok("SELECT note FROM orders"),
            ],
        ),
        from_b(
            "a cursor with hold",
            "safe switch",
            vec![
                ok("BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT note FROM orders; COMMIT"),
                no("55000", "SET app.current_tenant = '{A}'"),
                ok("CLOSE c; SET app.current_tenant = '{A}'"),
                ok("SELECT note FROM orders"),
            ],
        ),
    ]
}
