//! What a tenant, an operator, a reader of statistics and a stranger see of usage.

use std::thread;

use postgres::Client;

use crate::harness::{A, B, Db, Session, eventually, refuses};

/// [`Db::with_orders`], with usage of both tenants now and in two months long gone, the first of which has been closed,
/// and an event of each.
fn used() -> Db {
    let db = Db::with_orders();
    db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_consume('api_requests', 2500)");
    db.connect_as(&db.app(), B).run("SELECT * FROM tenant_quota_consume('users', 3)");
    db.admin().run(&format!(
        "INSERT INTO tenant_rls.usage VALUES
             ('{A}', 'api_requests', '2020-01-01 00:00Z', '2020-02-01 00:00Z', 7),
             ('{B}', 'api_requests', '2020-01-01 00:00Z', '2020-02-01 00:00Z', 8);
         INSERT INTO tenant_rls.usage_history VALUES
             ('{A}', 'api_requests', '2019-12-01 00:00Z', '2020-01-01 00:00Z', 5),
             ('{B}', 'api_requests', '2019-12-01 00:00Z', '2020-01-01 00:00Z', 6);
         INSERT INTO tenant_rls.quota_events
         SELECT t, 'api_requests', '2019-12-01 00:00Z', 80, 8, 10 FROM unnest(ARRAY['{A}', '{B}']::uuid[]) AS t"
    ));
    db
}

/// A session of a new role that was made an operator, a reader of statistics, or nothing.
fn role(db: &Db, name: &str, grant: &str) -> Client {
    let name = db.role_name(name);
    db.role(&name, "LOGIN");
    db.admin().run(&grant.replace("{}", &name));
    db.connect(&name)
}

/// A column of a query as one string.
fn column(client: &mut Client, sql: &str) -> String {
    client.rows(sql).iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>().join(", ")
}

/// Whose rows a session sees in a view.
fn tenants(client: &mut Client, view: &str) -> String {
    column(client, &format!("SELECT DISTINCT left(tenant::text, 1) FROM {view} ORDER BY 1"))
}

const VIEWS: [&str; 4] = ["tenant_usage", "tenant_usage_history", "tenant_quota_events", "tenant_storage"];

/// Each resource with a limit, its use, and what is left; unlimited without per cent.
#[test]
fn usage_shows_each_resource_against_its_limit() {
    let db = used();
    let mut app = db.connect_as(&db.app(), A);
    db.admin().run("SELECT tenant_plan_limit_set('free', 'projects', NULL, true), tenant_plan_limit_set('free', 'users', 0, enforcement => 'soft')");
    let usage = column(
        &mut app,
        "SELECT concat_ws(' ', resource, used, held, coalesce(quota_limit::text, '-'), coalesce(remaining::text, '-'),
             coalesce(percent_used::text, '-'), enforcement, mode) FROM tenant_usage ORDER BY resource",
    );
    assert_eq!(
        usage,
        "api_requests 2500 0 10000 7500 25.0 hard escrow, cache_bytes 0 0 16777216 16777216 0.0 hard strict, \
         compute_seconds 0 0 36000 36000 0.0 hard escrow, projects 0 0 - - - hard escrow, storage_bytes 0 0 1073741824 1073741824 0.0 hard escrow, \
         users 0 0 0 0 0.0 soft escrow"
    );
}

/// The period of a counter is the running one, a gauge has none.
#[test]
fn usage_shows_the_running_period() {
    let db = used();
    let mut app = db.connect_as(&db.app(), A);
    let right: bool = app.one(
        "SELECT bool_and(CASE WHEN resource IN ('api_requests', 'compute_seconds')
             THEN period_start <= now() AND now() < resets_at
             ELSE period_start IS NULL AND resets_at IS NULL END) FROM tenant_usage",
    );
    assert!(right);
}

/// Uncommitted units are in the view: the caller's, and those that others may still take. In mode strict those of others are
/// not.
#[test]
fn usage_shows_what_counts_for_the_caller() {
    let db = used();
    let usage = "SELECT used FROM tenant_usage WHERE resource = 'api_requests'";
    let (mut first, mut second) = (db.connect_as(&db.app(), A), db.connect_as(&db.app(), A));
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('api_requests', 500)");
    assert_eq!((first.one::<i64>(usage), second.one::<i64>(usage)), (3000, 3000));
    first.run("ROLLBACK");
    let mut admin = db.admin();
    admin.run("SELECT tenant_plan_limit_set('free', 'api_requests', 10000, mode => 'strict')");
    eventually(&mut second, "SELECT mode = 'strict' FROM tenant_usage WHERE resource = 'api_requests'");
    first.run("BEGIN; SELECT * FROM tenant_quota_consume('api_requests', 500)");
    assert_eq!((first.one::<i64>(usage), second.one::<i64>(usage)), (3000, 2500));
}

/// An own limit of a resource that the plan does not name is shown.
#[test]
fn usage_shows_overrides() {
    let db = used();
    db.admin().run(&format!("SELECT tenant_resource_define('seats', 'gauge', 'seat', 'none'); SELECT tenant_quota_set('{A}', 'seats', 4)"));
    let limit = "SELECT quota_limit FROM tenant_usage WHERE resource = 'seats'";
    assert_eq!(db.connect_as(&db.app(), A).one::<i64>(limit), 4);
    assert_eq!(db.connect_as(&db.app(), B).rows(limit).len(), 0);
}

/// What a session sees of closed periods.
fn history(client: &mut Client) -> String {
    column(
        client,
        "SELECT concat_ws(' ', left(tenant::text, 1), resource, used, (period_start AT TIME ZONE 'UTC')::date,
             (period_end AT TIME ZONE 'UTC')::date) FROM tenant_usage_history ORDER BY tenant, period_start",
    )
}

/// Closed periods, and those only, whether they have been moved or not.
#[test]
fn history_shows_closed_periods() {
    let db = used();
    assert_eq!(
        history(&mut db.connect_as(&db.app(), A)),
        "a api_requests 5 2019-12-01 2020-01-01, a api_requests 7 2020-01-01 2020-02-01"
    );
}

/// Closed periods are moved once, as many as are asked for at a time; nobody sees a difference.
#[test]
fn closed_periods_are_moved_once() {
    let db = used();
    let mut admin = db.admin();
    let before = (history(&mut admin), history(&mut db.connect_as(&db.app(), A)));
    let running = admin.one::<i64>("SELECT count(*) FROM tenant_rls.usage WHERE resets_at > now()");
    let close = "SELECT tenant_rls.close_periods(1)";
    assert_eq!((admin.one::<i64>(close), admin.one::<i64>(close), admin.one::<i64>(close)), (1, 1, 0));
    assert_eq!((history(&mut admin), history(&mut db.connect_as(&db.app(), A))), before);
    assert_eq!(admin.one::<i64>("SELECT count(*) FROM tenant_rls.usage"), running);
    assert_eq!(column(&mut admin, "SELECT i::text FROM tenant_quota_invariants AS i"), "");
}

/// A period that ended less than an hour ago stays; so does one whose row somebody is changing. What came late is added.
#[test]
fn periods_that_may_still_change_stay() {
    let db = used();
    let mut admin = db.admin();
    let close = "SELECT tenant_rls.close_periods(100)";
    admin.run("SET lock_timeout = '10s'");
    let mut late = db.admin();
    late.run("BEGIN; UPDATE tenant_rls.usage SET used = used + 1 WHERE resets_at < now()");
    admin.run(&format!(
        "INSERT INTO tenant_rls.usage VALUES ('{A}', 'api_requests', '2020-03-01', now() - interval '50 minutes', 9)"
    ));
    assert_eq!(admin.one::<i64>(close), 0);
    late.run("COMMIT");
    assert_eq!(admin.one::<i64>(close), 2);
    admin.run(&format!(
        "INSERT INTO tenant_rls.usage VALUES ('{A}', 'api_requests', '2020-01-01 00:00Z', '2020-02-01 00:00Z', 10)"
    ));
    assert_eq!(admin.one::<i64>(close), 1);
    let used = format!(
        "SELECT used FROM tenant_rls.usage_history WHERE tenant_id = '{A}' AND resets_at = '2020-02-01 00:00Z'"
    );
    assert_eq!(admin.one::<i64>(&used), 18);
}

/// A reservation expires long after its period: its units come back while the worker moves the period into the history,
/// and it goes on.
#[test]
fn what_comes_back_of_a_closed_period_is_subtracted() {
    let db = used();
    let mut admin = db.admin();
    admin.run(&format!(
        "INSERT INTO tenant_rls.reservations (tenant_id, resource, period_start, resets_at, units, expires_at)
         VALUES ('{A}', 'api_requests', '2020-01-01 00:00Z', '2020-02-01 00:00Z', 3, now() - interval '1 second')"
    ));
    db.connect_as(&db.app(), A).run("SELECT * FROM tenant_quota_consume('api_requests')");
    let of_period = format!("tenant_id = '{A}' AND resets_at = '2020-02-01 00:00Z'");
    eventually(
        &mut admin,
        &format!("SELECT coalesce(sum(used), 0) = 4 FROM tenant_rls.usage_history WHERE {of_period}"),
    );
    assert_eq!(admin.rows(&format!("SELECT FROM tenant_rls.usage WHERE {of_period}")).len(), 0);
    assert_eq!(column(&mut admin, "SELECT i::text FROM tenant_quota_invariants AS i"), "");
    assert!(admin.one::<bool>("SELECT failure IS NULL FROM tenant_worker_status()"));
}

/// Moving is for the owner of the tables, and takes a number of rows.
#[test]
fn close_periods_refuses() {
    let db = used();
    let mut operator = role(&db, "operator", "SELECT tenant_grant_operator('{}')");
    assert_eq!(operator.fails("SELECT tenant_rls.close_periods(1)"), "42501");
    refuses(
        &mut db.admin(),
        &[
            ("SELECT tenant_rls.close_periods(NULL)", "22004"),
            ("SELECT tenant_rls.close_periods(0)", "22023"),
            ("SELECT tenant_rls.close_periods(-1)", "22023"),
        ],
    );
}

/// Rows and bytes of each protected table.
#[test]
fn storage_shows_rows_and_bytes() {
    let db = used();
    let mut app = db.connect_as(&db.app(), A);
    app.run("INSERT INTO orders VALUES (10, DEFAULT, repeat('x', 1000))");
    let storage = column(
        &mut app,
        "SELECT concat_ws(' ', target, row_count, total_bytes BETWEEN 1000 AND 2000) FROM tenant_storage",
    );
    assert_eq!(storage, "orders 3 t");
}

/// Storage of a table with a bigint key; rows of a key that no tenant has are nobody's.
#[test]
fn storage_shows_tables_with_keys() {
    let db = used();
    let mut admin = db.admin();
    admin.run(&format!(
        "UPDATE tenant_rls.tenants SET tenant_key = 7 WHERE tenant_id = '{A}';
         CREATE TABLE bills (tenant_id bigint); INSERT INTO bills VALUES (7), (8); SELECT tenant_protect('bills')"
    ));
    let bills = "SELECT concat_ws(' ', left(tenant::text, 1), row_count) FROM tenant_storage WHERE target = 'bills'::regclass";
    assert_eq!(column(&mut db.connect_as(&db.app(), A), bills), "a 1");
    assert_eq!(column(&mut db.connect_as(&db.app(), B), bills), "");
    assert_eq!(column(&mut admin, bills), "a 1");
}

/// A table of a role that acts for some tenants is counted for its members; one of a role that acts for all, or for
/// none, for everybody.
#[test]
fn storage_leaves_out_tables_of_tenants_roles() {
    let db = used();
    let (mut admin, login, app) = (db.admin(), db.role_name("login"), db.app());
    db.role(&login, "LOGIN");
    admin.run(&format!("CREATE SCHEMA own AUTHORIZATION {login}; SELECT tenant_grant('{login}', '{A}')"));
    let mut owner = db.connect_as(&login, A);
    owner.run("CREATE TABLE own.notes (tenant_id uuid NOT NULL); SELECT tenant_protect('own.notes'); INSERT INTO own.notes DEFAULT VALUES");
    let mut app = (db.connect_as(&app, A), app);
    let mut operator = role(&db, "operator", "SELECT tenant_grant_operator('{}')");
    let counted = |client: &mut Client| {
        column(
            client,
            "SELECT DISTINCT target::text FROM tenant_storage WHERE tenant = $$aaaaaaaa-0000-4000-8000-00000000000a$$ ORDER BY 1",
        )
    };
    assert_eq!(counted(&mut owner), "orders, own.notes");
    for client in [&mut app.0, &mut operator, &mut admin] {
        assert_eq!(counted(client), "orders");
    }
    admin.run(&format!("GRANT {login} TO {}", app.1));
    assert_eq!(counted(&mut app.0), "orders, own.notes");
    admin.run(&format!("REVOKE {login} FROM {}; SELECT tenant_grant('{login}')", app.1));
    for client in [&mut app.0, &mut operator, &mut admin] {
        assert_eq!(counted(client), "orders, own.notes");
    }
    admin.run(&format!("SELECT tenant_revoke('{login}'), tenant_grant_ticket('{login}')"));
    assert_eq!(counted(&mut app.0), "orders");
    admin.run(&format!("SELECT tenant_revoke('{login}'), tenant_revoke('{login}', '{A}')"));
    assert_eq!(counted(&mut app.0), "orders, own.notes");
}

/// A tenant sees its own rows in every view.
#[test]
fn a_tenant_sees_its_own() {
    let db = used();
    let mut app = db.connect_as(&db.app(), A);
    for view in VIEWS {
        assert_eq!(tenants(&mut app, view), "a", "{view}");
    }
    app.run(&format!("SET app.current_tenant = '{B}'"));
    for view in VIEWS {
        assert_eq!(tenants(&mut app, view), "b", "{view}");
    }
}

/// Operators and readers of statistics see all, without a tenant.
#[test]
fn operators_and_readers_of_statistics_see_all() {
    let db = used();
    let mut operator = role(&db, "operator", "SELECT tenant_grant_operator('{}')");
    let mut reader = role(&db, "reader", "GRANT pg_read_all_stats TO {}");
    for view in VIEWS {
        assert_eq!(tenants(&mut operator, view), "a, b", "{view}");
        assert_eq!(tenants(&mut reader, view), "a, b", "{view}");
    }
    operator.run("SELECT * FROM tenant_quota_invariants");
    reader.run("SELECT * FROM tenant_quota_invariants");
}

/// Without a tenant, and with one that is suspended, there are no rows.
#[test]
fn without_a_tenant_there_are_no_rows() {
    let db = used();
    let mut app = db.connect(&db.app());
    for view in VIEWS {
        assert_eq!(tenants(&mut app, view), "", "{view}");
    }
    app.run(&format!("SET app.current_tenant = '{A}'"));
    db.admin().run(&format!("SELECT tenant_suspend('{A}')"));
    for view in VIEWS {
        assert_eq!(tenants(&mut app, view), "", "{view}");
    }
}

/// Without a grant there is no view; the application has no invariants.
#[test]
fn strangers_are_refused() {
    let db = used();
    let mut stranger = role(&db, "stranger", "");
    for view in VIEWS {
        assert_eq!(stranger.fails(&format!("SELECT * FROM {view}")), "42501", "{view}");
    }
    for view in ["tenant_quota_invariants", "tenant_tables"] {
        assert_eq!(stranger.fails(&format!("SELECT * FROM {view}")), "42501", "{view}");
        assert_eq!(db.connect_as(&db.app(), A).fails(&format!("SELECT * FROM {view}")), "42501", "{view}");
    }
}

/// The functions behind the views check for themselves, even where the schema is open.
#[test]
fn functions_behind_the_views_refuse_other_tenants() {
    let db = used();
    let app = db.app();
    db.admin().run(&format!("GRANT USAGE ON SCHEMA tenant_rls TO {app}"));
    let mut app = db.connect_as(&app, A);
    refuses(
        &mut app,
        &[
            (&format!("SELECT * FROM tenant_rls.usage_of('{B}')"), "42501"),
            ("SELECT * FROM tenant_rls.usage_of(NULL)", "42501"),
            (&format!("SELECT * FROM tenant_rls.storage_of('{B}')"), "42501"),
            ("SELECT * FROM tenant_rls.storage_of(NULL)", "42501"),
            ("SELECT * FROM tenant_rls.invariants()", "42501"),
        ],
    );
    app.run(&format!("SELECT * FROM tenant_rls.usage_of('{A}'); SELECT * FROM tenant_rls.storage_of('{A}')"));
}

/// A function in WHERE that tells what it is given is given rows of the own tenant only.
#[test]
fn a_leaky_function_sees_no_other_tenant() {
    let db = used();
    let app = db.app();
    db.admin().run(&format!("CREATE SCHEMA loot AUTHORIZATION {app}"));
    let mut app = db.connect_as(&app, A);
    // Cheaper than the comparison of the tenant, and without an index that would do that first.
    app.run(&format!(
        "CREATE FUNCTION loot.take(tenant uuid) RETURNS boolean LANGUAGE plpgsql IMMUTABLE COST 0.0001 AS
         $$ BEGIN
             IF tenant <> '{A}' THEN RAISE 'looted' USING ERRCODE = 'XX999'; END IF;
             RETURN true;
         END $$;
         SET enable_indexscan = off; SET enable_bitmapscan = off"
    ));
    for view in VIEWS {
        app.run(&format!("SELECT * FROM {view} WHERE loot.take(tenant)"));
    }
    assert_eq!(app.fails(&format!("SELECT loot.take('{B}')")), "XX999");
}

/// Rights that end, end at the next statement.
#[test]
fn revoked_rights_end_at_once() {
    let db = used();
    let mut operator = role(&db, "operator", "SELECT tenant_grant_operator('{}')");
    operator.run("SELECT * FROM tenant_usage");
    db.admin().run(&format!("SELECT tenant_revoke_operator('{}')", db.role_name("operator")));
    assert_eq!(operator.fails("SELECT * FROM tenant_usage"), "42501");
}

/// While 8 sessions write, the invariants have nothing to say.
#[test]
fn invariants_are_empty_under_load() {
    let db = used();
    db.admin().run(
        "SELECT tenant_resource_define('rows', 'gauge', 'row', 'none'), tenant_plan_limit_set('free', 'rows', 1000);
         SELECT tenant_quota_attach('orders', 'rows')",
    );
    thread::scope(|scope| {
        let writers: Vec<_> = (0..8)
            .map(|session| {
                let db = &db;
                scope.spawn(move || {
                    let mut app = db.connect_as(&db.app(), if session % 2 == 0 { A } else { B });
                    for round in 0..30 {
                        let id = 100 + session * 1000 + round;
                        let end = if round % 4 == 3 { "ROLLBACK" } else { "COMMIT" };
                        app.run(&format!(
                            "BEGIN; INSERT INTO orders (id) VALUES ({id}), ({id} + 500);
                             DELETE FROM orders WHERE id = {id} - 1; SELECT * FROM tenant_quota_consume('compute_seconds'); {end}"
                        ));
                    }
                })
            })
            .collect();
        let mut admin = db.admin();
        while !writers.iter().all(|writer| writer.is_finished()) {
            assert_eq!(column(&mut admin, "SELECT i::text FROM tenant_quota_invariants AS i"), "");
        }
    });
    assert_eq!(db.admin().rows("SELECT * FROM tenant_quota_invariants").len(), 0);
}

/// Usage that belongs to nobody or to nothing is a finding.
#[test]
fn invariants_find_orphans() {
    let db = used();
    let mut admin = db.admin();
    let findings = "SELECT count(*) FROM tenant_quota_invariants";
    assert_eq!(admin.one::<i64>(findings), 0);
    admin.run(&format!("INSERT INTO tenant_rls.usage VALUES ('{A}', 'cows', '-infinity', 'infinity', 1)"));
    assert_eq!(admin.one::<i64>(findings), 1);
    admin.run("INSERT INTO tenant_rls.usage VALUES (gen_random_uuid(), 'users', '-infinity', 'infinity', 1)");
    assert_eq!(admin.one::<i64>(findings), 2);
    admin.run("INSERT INTO tenant_rls.usage_history VALUES (gen_random_uuid(), 'users', '2020-01-01', '2020-02-01', 1)");
    assert_eq!(admin.one::<i64>(findings), 3);
}
