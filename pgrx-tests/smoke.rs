//! The way in: a tenant sees its rows, and only its rows.

use crate::harness::{A, B, Db, Session};

#[test]
fn a_tenant_sees_its_rows() {
    let db = Db::with_orders();
    let mut app = db.connect_as(&db.app(), A);
    assert_eq!(app.one::<i64>("SELECT count(*) FROM orders"), 2);
    app.run(&format!("SET app.current_tenant = '{B}'"));
    assert_eq!(app.one::<String>("SELECT min(note) FROM orders"), "b3");
}

#[test]
fn no_tenant_is_an_error() {
    let db = Db::with_orders();
    let mut app = db.connect(&db.app());
    assert_eq!(app.fails("SELECT count(*) FROM orders"), "55000");
}
