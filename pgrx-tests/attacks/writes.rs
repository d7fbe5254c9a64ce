//! Writing, moving, deleting and locking rows of another tenant.

use super::{Attack, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    let check = |name, sql| attack(name, "check", "", vec![no("42501", sql)]);
    let policy = |name, sql| attack(name, "policy", "", vec![ok(sql)]);
    vec![
        check("insert a row of another tenant", "INSERT INTO orders VALUES ('{B}', 500, 'planted')"),
        check("insert by the bigint key", "INSERT INTO invoices VALUES (2, 500, 'planted')"),
        check("insert by the integer key", "INSERT INTO parcels VALUES (2, 500, 'planted')"),
        check("insert of a select", "INSERT INTO orders SELECT '{B}', 500 + id, 'planted' FROM orders"),
        check(
            "insert into a partition",
            "INSERT INTO events_2026 VALUES ('{B}', '2026-07-01', 500, 'planted')",
        ),
        check("insert into a leaf", "INSERT INTO events_2027_0 VALUES ('{B}', '2027-07-01', 500, 'planted')"),
        check("insert into a child", "INSERT INTO papers_old VALUES ('{B}', 500, 'planted')"),
        check(
            "insert through the partitioned table",
            "INSERT INTO events VALUES ('{B}', '2026-07-01', 500, 'planted')",
        ),
        check("insert through a view", "INSERT INTO orders_invoker VALUES ('{B}', 500, 'planted')"),
        check(
            "insert through a view of the owner",
            "INSERT INTO orders_owner VALUES ('{B}', 500, 'planted')",
        ),
        check("give a row away", "UPDATE orders SET tenant_id = '{B}', id = 500 WHERE id = 20"),
        check("give a row away by its key", "UPDATE invoices SET account_id = 2, id = 500"),
        check("give a row away from a partition", "UPDATE events_2026 SET tenant_id = '{B}', id = 500"),
        check(
            "give a row away while it moves to another partition",
            "UPDATE events SET tenant_id = '{B}', day = '2027-08-01', id = 500 WHERE day = '2026-05-01'",
        ),
        check(
            "give a row away in a view",
            "UPDATE orders_invoker SET tenant_id = '{B}', id = 500 WHERE id = 20",
        ),
        check(
            "give a row away by merge",
            "MERGE INTO orders AS o USING (VALUES (20)) AS v (id) ON o.id = v.id WHEN MATCHED THEN UPDATE SET tenant_id = '{B}', id = 500",
        ),
        check(
            "insert a row by merge",
            "MERGE INTO orders AS o USING (VALUES (500)) AS v (id) ON o.id = v.id WHEN NOT MATCHED THEN INSERT (tenant_id, id) VALUES ('{B}', v.id)",
        ),
        check(
            "insert in a data-modifying query",
            "WITH i AS (INSERT INTO orders VALUES ('{B}', 500, 'planted') RETURNING note) SELECT * FROM i",
        ),
        check("a row of no tenant", "INSERT INTO orders VALUES (NULL, 500, 'planted')"),
        attack(
            "copy rows in",
            "row security",
            "",
            vec![no("0A000", "COPY orders FROM STDIN\n{B}\t500\tplanted\t1\t{}\n")],
        ),
        policy("update everything", "UPDATE orders SET note = 'mine'"),
        policy("update by the tenant column", "UPDATE orders SET note = 'mine' WHERE tenant_id = '{B}'"),
        policy("update by the bigint key", "UPDATE invoices SET note = 'mine' WHERE account_id = 2"),
        policy(
            "update with a join",
            "UPDATE orders AS o SET note = p.note FROM orders AS p WHERE p.id = o.id",
        ),
        policy("update a partition", "UPDATE events_2026 SET note = 'mine'"),
        policy("update a leaf", "UPDATE events_2027_0 SET note = 'mine'"),
        policy("update a child", "UPDATE papers_old SET note = 'mine'"),
        policy("delete everything", "DELETE FROM items; DELETE FROM orders"),
        policy("delete using a join", "DELETE FROM items USING orders AS o WHERE items.order_id = o.id"),
        policy(
            "delete by merge",
            "MERGE INTO items AS o USING generate_series(1, 50) AS v (id) ON o.id = v.id WHEN MATCHED THEN DELETE",
        ),
        policy("delete from a leaf", "DELETE FROM events_2027_0"),
        policy("delete through a view of the owner", "DELETE FROM items; DELETE FROM orders_owner"),
        policy(
            "take a row over",
            "UPDATE orders SET tenant_id = '{A}', id = id + 1000 WHERE tenant_id = '{B}'",
        ),
        policy(
            "where current of a cursor",
            "BEGIN; DECLARE c CURSOR FOR SELECT * FROM orders FOR UPDATE; MOVE 1 FROM c; UPDATE orders SET note = 'mine' WHERE CURRENT OF c; COMMIT",
        ),
        policy(
            "lock all rows",
            "BEGIN; SELECT count(*) FROM (SELECT FROM orders FOR UPDATE) AS o; SELECT count(*) FROM (SELECT FROM people FOR UPDATE) AS p",
        ),
        policy(
            "lock all rows for key share",
            "BEGIN; SELECT count(*) FROM (SELECT FROM people FOR KEY SHARE) AS p; SELECT count(*) FROM (SELECT FROM orders FOR SHARE) AS o",
        ),
        policy(
            "an update that stays open",
            "BEGIN; UPDATE orders SET note = 'mine'; UPDATE people SET note = 'mine'; UPDATE events SET note = 'mine'",
        ),
        policy("a delete that stays open", "BEGIN; DELETE FROM badges; DELETE FROM people"),
    ]
}
