//! The API.

use axum::http::StatusCode;
use axum::routing::get;
use axum::{Extension, Json, Router, middleware};
use deadpool_postgres::{Config, ManagerConfig, Pool, RecyclingMethod, Runtime};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio_postgres::{NoTls, Row};
use uuid::Uuid;

use crate::tenant::{Error, Tenant, tenant_of};

#[derive(Deserialize)]
struct Order {
    item: String,
    /// A client that names another tenant here is refused by the server: 42501.
    tenant_id: Option<Uuid>,
}

async fn list_orders(Extension(tenant): Extension<Tenant>) -> Result<Json<Value>, Error> {
    let rows = tenant.db().await.query("SELECT id, item FROM orders ORDER BY id", &[]).await?;
    let orders: Vec<Value> = rows.iter().map(as_json).collect();
    Ok(Json(json!({ "settings": tenant.context["settings"], "orders": orders })))
}

async fn create_order(
    Extension(tenant): Extension<Tenant>,
    Json(order): Json<Order>,
) -> Result<(StatusCode, Json<Value>), Error> {
    let db = tenant.db().await;
    db.execute("SELECT * FROM tenant_quota_consume('api_requests')", &[]).await?;
    let insert = "INSERT INTO orders (tenant_id, item) VALUES (coalesce($1, required_tenant()), $2) RETURNING id, item";
    let made = db.query_one(insert, &[&order.tenant_id, &order.item]).await?;
    let answer = json!({ "settings": tenant.context["settings"], "order": as_json(&made) });
    Ok((StatusCode::CREATED, Json(answer)))
}

fn as_json(order: &Row) -> Value {
    json!({ "id": order.get::<_, i64>("id"), "item": order.get::<_, &str>("item") })
}

/// The API on `pool`, with `more` routes that act for the tenant of the request.
pub fn make_app(pool: Pool, more: Router) -> Router {
    Router::new()
        .route("/orders", get(list_orders).post(create_order))
        .merge(more)
        .layer(middleware::from_fn_with_state(pool, tenant_of))
}

/// Connections of `user` to where PGHOST, PGPORT and PGDATABASE say.
pub fn make_pool(user: &str, connections: usize) -> Pool {
    let environment = |name| std::env::var(name).ok();
    let mut config = Config::new();
    config.host = environment("PGHOST");
    config.port = environment("PGPORT").and_then(|port| port.parse().ok());
    config.dbname = environment("PGDATABASE");
    config.user = Some(user.into());
    // A connection that comes back loses its settings and temporary tables.
    config.manager = Some(ManagerConfig { recycling_method: RecyclingMethod::Clean });
    config.pool = Some(deadpool_postgres::PoolConfig::new(connections));
    config.create_pool(Some(Runtime::Tokio1), NoTls).expect("a good configuration")
}
