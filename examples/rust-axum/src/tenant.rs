//! The tenant of a request, for axum and deadpool-postgres. Copy this file.
//!
//! With `.layer(middleware::from_fn_with_state(pool, tenant_of))` each request is one transaction of the tenant that X-Tenant-ID
//! names; handlers get `Extension<Tenant>`. It ends before the answer leaves: COMMIT below status 400, else ROLLBACK.
use axum::extract::{Json, Request, State};
use axum::http::{StatusCode, header::RETRY_AFTER};
use axum::{middleware::Next, response::IntoResponse, response::Response, response::Result};
use deadpool_postgres::{Object, Pool, PoolError};
use serde_json::Value;
use tokio::sync::{MappedMutexGuard, Mutex, MutexGuard};
use uuid::Uuid;

/// The transaction of a request or job.
#[derive(Clone)]
pub struct Tenant {
    connection: std::sync::Arc<Mutex<Connection>>,
    pub context: Value, // tenant_context(): tenantId, plan, status, features, settings, …
}

/// Dropped before its transaction has ended, it is closed: it may be in the middle of something.
struct Connection(Option<Object>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.take().map(Object::take);
    }
}

impl Tenant {
    pub async fn begin(pool: &Pool, id: Uuid) -> Result<Self, Error> {
        let connection = Connection(Some(pool.get().await?));
        let this = Tenant { connection: std::sync::Arc::new(Mutex::new(connection)), context: Value::Null };
        this.db().await.batch_execute("BEGIN").await?;
        let set = this.db().await.execute("SELECT set_tenant($1)", &[&id]).await;
        if let Err(error) = set {
            this.end("ROLLBACK").await?;
            return Err(Error(error.into(), true));
        }
        let context = this.db().await.query_one("SELECT tenant_context()", &[]).await?.get(0);
        Ok(Tenant { context, ..this })
    }

    /// Panics after the end: code that goes on after the answer must not meet the next tenant on the same connection.
    pub async fn db(&self) -> MappedMutexGuard<'_, Object> {
        MutexGuard::map(self.connection.lock().await, |it| it.0.as_mut().expect("not ended"))
    }

    /// By COMMIT or ROLLBACK. Only a connection on which that works goes back to the pool.
    pub async fn end(self, how: &str) -> Result<(), Error> {
        let mut ending = Connection(self.connection.lock().await.0.take());
        // The SELECT fails if an error was swallowed: COMMIT would roll back, and say nothing.
        let statements = how.replace("COMMIT", "SELECT 1; COMMIT");
        ending.0.as_ref().expect("not ended").batch_execute(&statements).await?;
        drop(ending.0.take());
        Ok(())
    }
}

/// The middleware.
pub async fn tenant_of(pool: State<Pool>, mut request: Request, next: Next) -> Result<Response> {
    let mut ids = request.headers().get_all("x-tenant-id").iter();
    let id = ids.next().filter(|_| ids.next().is_none()).map(|id| Uuid::try_parse_ascii(id.as_bytes()));
    let Some(Ok(id)) = id else { Err((StatusCode::BAD_REQUEST, "X-Tenant-ID must be one uuid"))? };
    let tenant = Tenant::begin(&pool, id).await?;
    request.extensions_mut().insert(tenant.clone());
    let answer = next.run(request).await;
    match answer.status().as_u16() {
        ..400 => tenant.end("COMMIT").await?,
        _ => tenant.end("ROLLBACK").await.unwrap_or_default(), // a lost connection has rolled back
    }
    Ok(answer)
}

/// What went wrong in the database, as HTTP; and whether it was set_tenant that refused.
#[derive(Debug)]
pub struct Error(PoolError, pub bool);

impl<E: Into<PoolError>> From<E> for Error {
    fn from(error: E) -> Self {
        Error(error.into(), false)
    }
}

impl IntoResponse for Error {
    fn into_response(self) -> Response {
        let report = if let PoolError::Backend(error) = &self.0 { error.as_db_error() } else { None };
        let status = match (self.1, report.map_or("", |report| report.code().code())) {
            (_, "42501") | (true, "42704" | "55000") => StatusCode::FORBIDDEN,
            (_, "42704") => StatusCode::NOT_FOUND,
            (_, "25006") => StatusCode::SERVICE_UNAVAILABLE,
            (_, "53400") => StatusCode::TOO_MANY_REQUESTS,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        tracing::warn!("{status}: {self:?}"); // the answer does not say: nobody finds out which tenants there are
        let detail: Value = report.and_then(|it| serde_json::from_str(it.detail()?).ok()).unwrap_or_default();
        let wait = detail["retry_after"].as_u64().map(|wait| [(RETRY_AFTER, wait)]); // null: waiting does not help
        (status, wait, Json(detail)).into_response()
    }
}
