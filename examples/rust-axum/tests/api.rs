//! Against a real server, over HTTP. `make examples` gives it a new database from examples/schema.sql.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use axum::extract::Query;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Extension, Json, Router};
use deadpool_postgres::Pool;
use futures_util::future::join_all;
use rand::prelude::*;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use tenant_rls_rust_axum::app::{make_app, make_pool};
use tenant_rls_rust_axum::job::{delete_old_orders, for_each_tenant};
use tenant_rls_rust_axum::tenant::{Error, Tenant};
use tokio::sync::Notify;
use uuid::Uuid;

/// The one tenant that the role partner may act for.
const PARTNERS: &str = "aaaaaaaa-0000-4000-8000-000000000001";
const CONNECTIONS: usize = 5;

/// How a request of `/unruly` ends, and how often.
const ENDS: [(&str, u32); 5] =
    [("works", 6), ("answers", 2), ("sql", 2), ("connection lost", 1), ("panics", 1)];

static CLIENT: LazyLock<Client> = LazyLock::new(Client::new);

/// Each answer, that of a failure too, carries the canary that the server gave for this request's transaction.
async fn write_then_fail_at_random(
    Extension(tenant): Extension<Tenant>,
    Query(query): Query<HashMap<String, String>>,
) -> Result<Response, Error> {
    let canary = tenant.context["settings"]["canary"].as_str().expect("a canary");
    tenant.db().await.execute("INSERT INTO orders (item) VALUES ($1)", &[&canary]).await?;
    tokio::time::sleep(Duration::from_millis(rand::random_range(0..20))).await;
    let db = tenant.db().await;
    db.execute("SELECT pg_sleep(random() / 100)", &[]).await?;
    let look = "SELECT array_agg(DISTINCT item), current_tenant(), pg_backend_pid() FROM orders";
    let row = db.query_one(look, &[]).await?;
    let answer = json!({
        "canary": canary, "tenant": tenant.context["tenantId"],
        "seen": row.get::<_, Vec<String>>(0), "acts_for": row.get::<_, Uuid>(1), "pid": row.get::<_, i32>(2),
    });
    let failed = match query["how"].as_str() {
        "works" => return Ok(Json(answer).into_response()),
        "answers" => Ok(0),
        "sql" => db.execute("SELECT 1 / 0", &[]).await,
        "connection lost" => db.execute("SELECT pg_terminate_backend(pg_backend_pid())", &[]).await,
        _ => std::panic::resume_unwind(Box::new("on purpose")),
    };
    assert_eq!(failed.is_err(), query["how"] != "answers");
    Ok((StatusCode::INTERNAL_SERVER_ERROR, Json(answer)).into_response())
}

async fn swallow_an_error(Extension(tenant): Extension<Tenant>) -> Result<&'static str, Error> {
    tenant.db().await.execute("INSERT INTO orders (item) VALUES ('lost')", &[]).await?;
    let _ = tenant.db().await.execute("SELECT 1 / 0", &[]).await;
    Ok("done")
}

/// The program behind a real socket; its address. It ends with the runtime of the test.
async fn serve(pool: Pool, more: Router) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move { axum::serve(listener, make_app(pool, more)).await });
    format!("http://{address}")
}

/// The program, its pool, and an operator.
struct World {
    url: String,
    pool: Pool,
    office: Pool,
}

impl World {
    async fn new() -> World {
        let unruly = Router::new()
            .route("/unruly", post(write_then_fail_at_random))
            .route("/swallows", post(swallow_an_error));
        let pool = make_pool("shop", CONNECTIONS);
        World { url: serve(pool.clone(), unruly).await, pool, office: make_pool("office", 1) }
    }

    async fn operate(&self, sql: &str, tenant: Uuid) {
        self.office.get().await.expect("office").execute(sql, &[&tenant]).await.expect(sql);
    }

    /// A new tenant, and its canary.
    async fn tenant(&self, plan: &str) -> (Uuid, String) {
        let (tenant, canary) = (Uuid::new_v4(), format!("canary {}", Uuid::new_v4()));
        let office = self.office.get().await.expect("office");
        office.execute("SELECT tenant_create($1, $2)", &[&tenant, &plan]).await.expect("a tenant");
        let set = "SELECT tenant_setting_set('canary', $1, 'tenant', tenant => $2)";
        office.execute(set, &[&json!(canary), &tenant]).await.expect("a canary");
        (tenant, canary)
    }

    fn post(&self, path: &str, tenant: Uuid) -> RequestBuilder {
        CLIENT.post(format!("{}{path}", self.url)).header("X-Tenant-ID", tenant.to_string())
    }

    async fn order(&self, tenant: Uuid, item: &str) -> reqwest::Response {
        self.post("/orders", tenant).json(&json!({ "item": item })).send().await.expect("an answer")
    }

    async fn orders(&self, tenant: Uuid) -> Value {
        let get = CLIENT.get(format!("{}/orders", self.url)).header("X-Tenant-ID", tenant.to_string());
        let answer = get.send().await.expect("an answer");
        assert_eq!(answer.status(), 200);
        answer.json().await.expect("JSON")
    }

    async fn items(&self, tenant: Uuid) -> Vec<String> {
        let orders = self.orders(tenant).await;
        let items = orders["orders"].as_array().expect("orders").iter();
        items.map(|order| order["item"].as_str().expect("an item").into()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_requests_of_20_tenants_never_mix() {
    let world = World::new().await;
    let mut canaries = HashMap::new();
    for _ in 0..20 {
        let (tenant, canary) = world.tenant("starter").await;
        canaries.insert(tenant, canary);
    }
    let mut asked: Vec<(Uuid, &str)> = Vec::new();
    for at in 0..200 {
        let tenant = canaries.keys().nth(at % 20).expect("a tenant");
        asked.push((*tenant, ENDS.choose_weighted(&mut rand::rng(), |end| end.1).expect("an end").0));
    }
    asked.shuffle(&mut rand::rng());
    let requests =
        asked.iter().map(|(tenant, how)| world.post("/unruly", *tenant).query(&[("how", how)]).send());
    let answers = join_all(requests).await;

    let (mut worked, mut pids) = (HashMap::<Uuid, i64>::new(), HashSet::new());
    for ((tenant, how), answer) in asked.iter().zip(answers) {
        if *how == "panics" {
            assert!(answer.is_err(), "an answer from a handler that panicked");
            continue;
        }
        let answer = answer.expect("an answer");
        assert_eq!(answer.status(), if *how == "works" { 200 } else { 500 });
        let body: Value = answer.json().await.expect("JSON");
        let canary = &canaries[tenant];
        assert_eq!(
            body,
            json!({ "canary": canary, "tenant": tenant, "seen": [canary], "acts_for": tenant, "pid": body["pid"] })
        );
        pids.insert(body["pid"].as_i64());
        *worked.entry(*tenant).or_default() += i64::from(*how == "works");
    }
    let closed = asked.iter().filter(|(_, how)| ["connection lost", "panics"].contains(how)).count();
    assert!(pids.len() <= CONNECTIONS + closed, "{} connections", pids.len());
    // What worked is there, what failed is not; in the rows and in the gauge that follows them.
    for (tenant, canary) in canaries {
        let expected = worked.get(&tenant).copied().unwrap_or_default();
        assert_eq!(world.items(tenant).await, vec![canary; expected as usize]);
        let office = world.office.get().await.expect("office");
        let gauge = "SELECT used::bigint FROM tenant_usage WHERE tenant = $1 AND resource = 'orders'";
        let used = office.query_opt(gauge, &[&tenant]).await.expect("the gauge");
        assert_eq!(used.map_or(0, |row| row.get::<_, Option<i64>>(0).unwrap_or_default()), expected);
    }
    let status = world.pool.status();
    assert!(status.size <= CONNECTIONS && status.available == status.size, "a connection was not given back");
}

#[tokio::test]
async fn a_commit_that_rolls_back_is_no_success() {
    let world = World::new().await;
    let (tenant, _) = world.tenant("starter").await;
    assert_eq!(world.post("/swallows", tenant).send().await.expect("an answer").status(), 500);
    assert!(world.items(tenant).await.is_empty());
}

#[tokio::test]
async fn code_that_goes_on_after_the_answer_does_not_meet_the_next_tenant() {
    let world = World::new().await;
    let ((tenant, _), (next, _)) = (world.tenant("starter").await, world.tenant("starter").await);
    let kept: Arc<std::sync::Mutex<Option<Tenant>>> = Arc::default();
    let keep = kept.clone();
    let handler = |Extension(tenant): Extension<Tenant>| async move {
        *keep.lock().expect("the only one") = Some(tenant);
    };
    let url = serve(make_pool("shop", 1), Router::new().route("/keep", post(handler))).await;
    let world = World { url, ..world };
    assert_eq!(world.post("/keep", tenant).send().await.expect("an answer").status(), 200);
    let late = kept.lock().expect("the only one").take().expect("the transaction of a request");
    assert!(world.items(next).await.is_empty());
    let late = tokio::spawn(async move { late.db().await.execute("SELECT 1", &[]).await });
    assert!(late.await.is_err_and(|error| error.is_panic()));
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_transaction_along() {
    let world = World::new().await;
    let (tenant, _) = world.tenant("starter").await;
    let is_there = Arc::new(Notify::new());
    let notify = is_there.clone();
    let handler = |Extension(tenant): Extension<Tenant>| async move {
        tenant.db().await.execute("INSERT INTO orders (item) VALUES ('left')", &[]).await?;
        notify.notify_one();
        std::future::pending::<Result<(), Error>>().await
    };
    let url = serve(make_pool("shop", 1), Router::new().route("/waits", post(handler))).await;
    let world = World { url, ..world };
    let request = tokio::spawn(world.post("/waits", tenant).send());
    is_there.notified().await;
    request.abort();
    // The pool's only connection is free again, or this would wait for ever.
    assert!(world.items(tenant).await.is_empty());
}

#[tokio::test]
async fn a_request_without_one_good_tenant_is_400() {
    let world = World::new().await;
    let (tenant, canary) = world.tenant("starter").await;
    assert_eq!(world.order(tenant, &canary).await.status(), 201);
    assert_eq!(world.orders(tenant).await["settings"], json!({ "canary": canary }));
    let id = tenant.to_string();
    for ids in [&[][..], &[""], &["1' OR true"], &[&id, &id]] {
        let get = CLIENT.get(format!("{}/orders", world.url));
        let get = ids.iter().fold(get, |get, id| get.header("X-Tenant-ID", *id));
        assert_eq!(get.send().await.expect("an answer").status(), 400);
    }
}

#[tokio::test]
async fn a_tenant_that_it_may_not_act_for_is_403() {
    let world = World::new().await;
    let (tenant, _) = world.tenant("starter").await;
    assert_eq!(world.order(tenant, "a").await.status(), 201);
    assert_eq!(world.order(Uuid::new_v4(), "a").await.status(), 403); // 42704
    world.operate("SELECT tenant_suspend($1)", tenant).await;
    assert_eq!(world.order(tenant, "a").await.status(), 403); // 55000
    world.operate("SELECT tenant_resume($1)", tenant).await;
    assert_eq!(world.order(tenant, "a").await.status(), 201);

    let partner = World { url: serve(make_pool("partner", 1), Router::new()).await, ..world };
    assert_eq!(partner.order(PARTNERS.parse().expect("a uuid"), "a").await.status(), 201);
    assert_eq!(partner.order(tenant, "a").await.status(), 403); // 42501
}

#[tokio::test]
async fn an_order_for_another_tenant_is_403() {
    let world = World::new().await;
    let ((tenant, _), (other, _)) = (world.tenant("starter").await, world.tenant("starter").await);
    for (item, of, status) in [("a", tenant, 201), ("b", other, 403)] {
        let order = json!({ "item": item, "tenant_id": of });
        let answer = world.post("/orders", tenant).json(&order).send().await.expect("an answer");
        assert_eq!(answer.status(), status);
    }
    assert_eq!((world.items(tenant).await, world.items(other).await), (vec!["a".to_string()], vec![]));
}

#[tokio::test]
async fn a_used_up_quota_is_429() {
    let world = World::new().await;
    let (tenant, _) = world.tenant("starter").await;
    world.operate("SELECT tenant_quota_set($1, 'api_requests', 2)", tenant).await;
    assert_eq!(world.order(tenant, "a").await.status(), 201);
    assert_eq!(world.order(tenant, "a").await.status(), 201);
    let answer = world.order(tenant, "a").await;
    assert_eq!(answer.status(), 429);
    let wait: u64 = answer.headers()["Retry-After"].to_str().expect("text").parse().expect("seconds");
    assert!(wait > 0);
    let detail: Value = answer.json().await.expect("JSON");
    assert_eq!((&detail["resource"], &detail["quota_limit"]), (&json!("api_requests"), &json!(2)));
    assert_eq!((&detail["used"], &detail["tenant"]), (&json!(2), &json!(tenant)));
    assert_eq!(detail["retry_after"], json!(wait));
}

#[tokio::test]
async fn waiting_does_not_help_a_full_gauge() {
    let world = World::new().await;
    let (tenant, _) = world.tenant("starter").await;
    world.operate("SELECT tenant_quota_set($1, 'orders', 1)", tenant).await;
    assert_eq!(world.order(tenant, "a").await.status(), 201);
    let answer = world.order(tenant, "b").await;
    assert_eq!(answer.status(), 429);
    assert!(!answer.headers().contains_key("Retry-After"));
    assert_eq!(answer.json::<Value>().await.expect("JSON")["resource"], json!("orders"));
    assert_eq!(world.items(tenant).await, ["a"]);
}

#[tokio::test]
async fn what_the_plan_does_not_have_is_404() {
    let world = World::new().await;
    let (tenant, _) = world.tenant("viewer").await;
    assert_eq!(world.order(tenant, "a").await.status(), 404);
    world.operate("SELECT tenant_plan_change($1, 'starter')", tenant).await;
    assert_eq!(world.order(tenant, "a").await.status(), 201);
}

#[tokio::test]
async fn a_fenced_tenant_reads_and_gets_503_for_writes() {
    let world = World::new().await;
    let (tenant, _) = world.tenant("starter").await;
    assert_eq!(world.order(tenant, "a").await.status(), 201);
    world.operate("SELECT tenant_fence($1)", tenant).await;
    assert_eq!(world.order(tenant, "b").await.status(), 503);
    assert_eq!(world.items(tenant).await, ["a"]);
}

#[tokio::test]
async fn the_job_works_for_every_tenant() {
    let world = World::new().await;
    let mut tenants = Vec::new();
    for _ in 0..3 {
        let (tenant, _) = world.tenant("starter").await;
        world.order(tenant, "old").await;
        world.order(tenant, "new").await;
        let transaction = Tenant::begin(&world.pool, tenant).await.expect("a transaction");
        let age = "UPDATE orders SET created_at = now() - interval '2 years' WHERE item = 'old'";
        transaction.db().await.execute(age, &[]).await.expect(age);
        transaction.end("COMMIT").await.expect("a commit");
        tenants.push(tenant);
    }
    let unlucky = json!(tenants[1]);
    let fail_after_the_work = async |tenant: &Tenant| {
        delete_old_orders(tenant).await?;
        if tenant.context["tenantId"] == unlucky {
            tenant.db().await.batch_execute("SELECT 1 / 0").await?
        }
        Ok::<(), Error>(())
    };
    let failed = for_each_tenant(&world.office, &world.pool, fail_after_the_work).await.expect("a list");
    assert_eq!(failed, [tenants[1]]);
    assert_eq!(world.items(tenants[0]).await, ["new"]);
    assert_eq!(world.items(tenants[1]).await, ["old", "new"]);
    assert!(for_each_tenant(&world.office, &world.pool, delete_old_orders).await.expect("a list").is_empty());
    for tenant in tenants {
        assert_eq!(world.items(tenant).await, ["new"]);
    }
}

#[tokio::test]
async fn the_job_fails_for_tenants_that_its_role_may_not_act_for() {
    let world = World::new().await;
    let (tenant, _) = world.tenant("starter").await;
    let failed = for_each_tenant(&world.office, &make_pool("partner", 1), delete_old_orders).await;
    let failed = failed.expect("a list");
    assert!(failed.contains(&tenant) && !failed.contains(&PARTNERS.parse().expect("a uuid")));
}

#[tokio::test]
async fn the_job_leaves_out_who_is_suspended_meanwhile() {
    let world = World::new().await;
    let pair = [world.tenant("starter").await.0, world.tenant("starter").await.0];
    let worked = AtomicUsize::new(0);
    let suspend_the_other = async |tenant: &Tenant| {
        if let Some(at) = pair.iter().position(|id| tenant.context["tenantId"] == json!(id)) {
            worked.fetch_add(1, Ordering::Relaxed);
            world.operate("SELECT tenant_suspend($1)", pair[1 - at]).await;
        }
        Ok::<(), Error>(())
    };
    let failed = for_each_tenant(&world.office, &world.pool, suspend_the_other).await.expect("a list");
    assert!(failed.is_empty());
    assert_eq!(worked.load(Ordering::Relaxed), 1);
}
