//! Partitions, children, views, rules and triggers of protected tables.

use super::{Attack, Oracle, attack, no, ok};

pub fn attacks() -> Vec<Attack> {
    let member = |name, sql| attack(name, "members", "", vec![ok(sql)]);
    vec![
        member("read a partition", "SELECT * FROM events_2026"),
        member("read a partition that is partitioned", "SELECT * FROM events_2027"),
        member("read a leaf", "SELECT * FROM events_2027_0"),
        member("read a child", "SELECT * FROM papers_old ORDER BY id"),
        attack("read through the partitioned table", "policy", "", vec![ok("SELECT * FROM events ORDER BY day")]),
        attack("read through the parent", "policy", "", vec![ok("SELECT * FROM papers ORDER BY id")]),
        attack("no tenant on a partition", "required", "", vec![no("55000", "SELECT * FROM events_2026")]).by("app", ""),
        attack("a view with the rights of its reader", "policy", "", vec![ok("SELECT * FROM orders_invoker ORDER BY id")]),
        attack("a view of the owner of the table", "force", "", vec![ok("SELECT * FROM orders_owner ORDER BY id")]),
        attack("a view with a check option", "check", "", vec![no("42501", "INSERT INTO orders_large VALUES ('{B}', 500, 'planted', 1)")]),
        attack("the owner itself", "force", "", vec![ok("SELECT * FROM orders ORDER BY id"), ok("SELECT * FROM events_2026")]).by("owner", "{A}"),
        attack("the owner writes", "force", "", vec![ok("UPDATE orders SET note = 'mine'"), no("42501", "INSERT INTO orders VALUES ('{B}', 500)")]).by("owner", "{A}"),
        attack("the owner without a tenant", "force", "", vec![no("55000", "SELECT * FROM orders")]).by("owner", ""),
        attack("a view of a superuser", "documented",
            "SET tenant_rls.ddl_guard = off; CREATE VIEW all_orders AS SELECT * FROM orders; GRANT SELECT ON all_orders TO {app}",
            vec![ok("SELECT * FROM all_orders")])
            .leaks(Oracle::Canary, "**Views** read with the rights of their owner. One that a superuser owns shows the rows of all tenants."),
        attack("a materialized view of a superuser", "documented",
            "SET tenant_rls.ddl_guard = off; CREATE MATERIALIZED VIEW all_orders AS SELECT * FROM orders; GRANT SELECT ON all_orders TO {app}",
            vec![ok("SELECT * FROM all_orders")])
            .leaks(Oracle::Canary, "A materialized view holds the rows that its owner saw when it was refreshed."),
        attack("refresh a materialized view of others", "catalog rights",
            "CREATE MATERIALIZED VIEW own_orders AS SELECT 1 AS one; GRANT SELECT ON own_orders TO {app}",
            vec![no("42501", "REFRESH MATERIALIZED VIEW own_orders")]),
        attack("a temporary view", "policy", "", vec![
            ok("CREATE TEMPORARY VIEW v AS SELECT * FROM orders; SELECT note FROM v ORDER BY id")]),
        attack("a view over a view of the owner", "force",
            "CREATE VIEW twice AS SELECT * FROM orders_owner; ALTER VIEW twice OWNER TO {owner}; GRANT SELECT ON twice TO {app}",
            vec![ok("SELECT note FROM twice ORDER BY id")]),
        attack("a rule that writes elsewhere", "check",
            "CREATE VIEW inbox AS SELECT NULL::uuid AS t, ''::text AS n WHERE false;
             ALTER VIEW inbox OWNER TO {owner};
             CREATE RULE send AS ON INSERT TO inbox DO INSTEAD INSERT INTO orders (tenant_id, id, note) VALUES (NEW.t, 600, NEW.n);
             GRANT INSERT ON inbox TO {app}",
            vec![no("42501", "INSERT INTO inbox VALUES ('{B}', 'planted')")]),
        attack("an own rule on a protected table", "catalog rights", "", vec![
            no("42501", "CREATE RULE r AS ON INSERT TO orders DO ALSO SELECT 1")]),
        attack("an own trigger on a protected table", "trigger privilege", "", vec![
            ok("CREATE FUNCTION pg_temp.spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE '%', NEW; RETURN NEW; END $$"),
            no("42501", "CREATE TRIGGER spy BEFORE INSERT OR UPDATE ON orders FOR EACH ROW EXECUTE FUNCTION pg_temp.spy()")]),
        attack("an own trigger on a partition", "trigger privilege", "", vec![
            ok("CREATE FUNCTION pg_temp.spy() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE '%', NEW; RETURN NEW; END $$"),
            no("42501", "CREATE TRIGGER spy BEFORE INSERT ON events_2027_0 FOR EACH ROW EXECUTE FUNCTION pg_temp.spy()")]),
        attack("a trigger that writes for another tenant", "check",
            "CREATE FUNCTION copy_order() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO items (tenant_id, id) VALUES (NEW.note::uuid, 800); RETURN NEW; END $$;
             CREATE TRIGGER copy AFTER INSERT ON orders FOR EACH ROW WHEN (NEW.id = 800) EXECUTE FUNCTION copy_order()",
            vec![no("42501", "INSERT INTO orders (id, note) VALUES (800, '{B}')")]),
        attack("a trigger before the row that moves it", "check",
            "CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.tenant_id := NEW.note::uuid; RETURN NEW; END $$;
             CREATE TRIGGER move BEFORE INSERT ON orders FOR EACH ROW WHEN (NEW.id = 800) EXECUTE FUNCTION move()",
            vec![no("42501", "INSERT INTO orders (id, note) VALUES (800, '{B}')")]),
        attack("transition tables", "policy",
            "CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ DECLARE r record; BEGIN FOR r IN SELECT * FROM old_rows LOOP RAISE NOTICE '%', r; END LOOP; RETURN NULL; END $$;
             CREATE TRIGGER tell AFTER UPDATE ON people REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT EXECUTE FUNCTION tell()",
            vec![ok("UPDATE people SET note = 'mine'")]),
        attack("a child of its own", "catalog rights", "", vec![no("42501", "CREATE TEMPORARY TABLE mine () INHERITS (papers)")]),
        attack("detach a partition", "catalog rights", "", vec![no("42501", "ALTER TABLE events DETACH PARTITION events_2026")]),
        attack("a permissive policy that is added by the owner", "boundary",
            "SET ROLE {owner}; CREATE POLICY wide ON orders USING (true) WITH CHECK (true); CREATE POLICY wide ON people USING (true) WITH CHECK (true); RESET ROLE",
            vec![ok("SELECT * FROM orders ORDER BY id"), ok("SELECT * FROM people")]),
        attack("a permissive policy, for writes", "boundary",
            "SET ROLE {owner}; CREATE POLICY wide ON orders USING (true) WITH CHECK (true); RESET ROLE",
            vec![no("42501", "INSERT INTO orders VALUES ('{B}', 500, 'planted')"), ok("UPDATE orders SET note = 'mine'")]),
        attack("a permissive policy on a leaf", "boundary",
            "SET ROLE {owner}; CREATE POLICY wide ON events_2027_0 USING (true); RESET ROLE",
            vec![ok("SELECT * FROM events_2027_0")]),
        attack("a permissive policy for one role and command", "boundary",
            "SET ROLE {owner}; CREATE POLICY wide ON orders FOR DELETE TO {app} USING (true); CREATE POLICY seen ON orders FOR SELECT TO {app} USING (true); RESET ROLE",
            vec![ok("DELETE FROM items; DELETE FROM orders")]),
    ]
}
