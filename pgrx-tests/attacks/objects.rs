//! What an attacker can make of its own: tables, types, sequences, statistics, text search.

use super::{Attack, attack, no};

pub fn attacks() -> Vec<Attack> {
    vec![
        attack(
            "a table in the schema of the application",
            "catalog rights",
            "",
            vec![no("42501", "CREATE TABLE public.mine (id int)")],
        ),
        attack("a schema of its own", "catalog rights", "", vec![no("42501", "CREATE SCHEMA mine")]),
        attack(
            "a column added",
            "catalog rights",
            "",
            vec![no("42501", "ALTER TABLE orders ADD COLUMN spy text")],
        ),
        attack(
            "a default changed",
            "catalog rights",
            "",
            vec![no("42501", "ALTER TABLE orders ALTER COLUMN tenant_id SET DEFAULT '{B}'")],
        ),
        attack(
            "a type of the tenant column changed",
            "catalog rights",
            "",
            vec![no("42501", "ALTER TABLE orders ALTER COLUMN tenant_id TYPE text")],
        ),
        attack(
            "statistics of its own on a protected table",
            "catalog rights",
            "",
            vec![no("42501", "CREATE STATISTICS pg_temp.s ON tenant_id, note FROM orders")],
        ),
        attack(
            "an index of its own on a protected table",
            "catalog rights",
            "",
            vec![no("42501", "CREATE INDEX ON orders (note)")],
        ),
        attack(
            "a cluster of a protected table",
            "catalog rights",
            "",
            vec![no("42501", "CLUSTER orders USING orders_pkey")],
        ),
    ]
}
