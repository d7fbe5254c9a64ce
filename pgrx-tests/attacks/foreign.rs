//! Foreign keys: references across, cascades across.

use super::{Attack, Oracle, any, attack, no, ok};

const ACROSS: &str = "**Foreign keys** are checked without policies, so a row may refer to a row of another tenant, and ON DELETE CASCADE reaches over.";

pub fn attacks() -> Vec<Attack> {
    vec![
        attack("refer to an order of B", "key with tenant", "", vec![no("23503", "INSERT INTO items (id, order_id, note) VALUES (50, 40, 'mine')")]),
        attack("refer to an order of B as B", "check", "", vec![no("42501", "INSERT INTO items VALUES ('{B}', 50, 40, 'mine')")]),
        attack("change a reference to an order of B", "key with tenant", "", vec![no("23503", "UPDATE items SET order_id = 40 WHERE id = 1")]),
        attack("cascade a delete", "policy", "", vec![ok("DELETE FROM orders")]),
        attack("cascade an update of the key", "policy", "", vec![ok("UPDATE orders SET id = id + 1000")]),
        attack("cascade an update of the tenant", "check", "", vec![no("42501", "UPDATE orders SET tenant_id = '{B}', id = id + 1000")]),
        attack("a key without a tenant tells that a row exists", "documented", "", vec![any("INSERT INTO badges (id, person) VALUES (50, 2)")])
            .leaks(Oracle::Worlds, ACROSS),
        attack("a reference that B cannot delete", "documented",
            "ALTER TABLE badges DROP CONSTRAINT badges_person_fkey, ADD FOREIGN KEY (person) REFERENCES people",
            vec![any("BEGIN; INSERT INTO badges (id, person) VALUES (50, 3)"), any("SET lock_timeout = '300ms'; DELETE FROM people WHERE id = 3").by("b")])
            .leaks(Oracle::Blocked, ACROSS),
        attack("an own foreign key to a protected table", "references privilege", "CREATE SCHEMA mine AUTHORIZATION {app}", vec![
            no("42501", "CREATE TABLE mine.probe (id int REFERENCES people (id))")]),
        attack("an own foreign key to the tenant's key", "references privilege", "CREATE SCHEMA mine AUTHORIZATION {app}", vec![
            no("42501", "CREATE TABLE mine.probe (t uuid, id int, FOREIGN KEY (t, id) REFERENCES orders (tenant_id, id))")]),
        attack("drop a foreign key", "catalog rights", "", vec![no("42501", "ALTER TABLE items DROP CONSTRAINT items_tenant_id_order_id_fkey")]),
    ]
}
