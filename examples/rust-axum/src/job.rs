//! A nightly job: deletes old orders, tenant by tenant, each in a transaction of its own.

use deadpool_postgres::Pool;
use uuid::Uuid;

use crate::tenant::{Error, Tenant};

/// Calls `work` with every active tenant; returns those that failed. One that fails does not stop the others.
///
/// `office` connects as an operator, who may list the tenants; `pool` as the application, which may act for them.
pub async fn for_each_tenant<E: From<Error> + std::fmt::Debug>(
    office: &Pool,
    pool: &Pool,
    work: impl AsyncFn(&Tenant) -> Result<(), E>,
) -> Result<Vec<Uuid>, Error> {
    let mut failed = Vec::new();
    let tenants = office.get().await?.query("SELECT tenant_list()", &[]).await?;
    for id in tenants.iter().map(|row| row.get(0)) {
        match act_for(office, pool, id, &work).await {
            Ok(()) => {}
            Err(error) => {
                tracing::error!("tenant {id} failed: {error:?}");
                failed.push(id);
            }
        }
    }
    Ok(failed)
}

async fn act_for<E: From<Error>>(
    office: &Pool,
    pool: &Pool,
    id: Uuid,
    work: &impl AsyncFn(&Tenant) -> Result<(), E>,
) -> Result<(), E> {
    let tenant = match Tenant::begin(pool, id).await {
        Err(error) if error.1 && !is_active(office, id).await? => {
            tracing::info!("tenant {id} was suspended or deleted meanwhile: {error:?}");
            return Ok(());
        }
        tenant => tenant?,
    };
    match work(&tenant).await {
        Ok(()) => Ok(tenant.end("COMMIT").await?),
        Err(error) => {
            let _ = tenant.end("ROLLBACK").await; // a lost connection has rolled back
            Err(error)
        }
    }
}

/// Tells a tenant that is over from one that the role may not act for, which is a failure.
async fn is_active(office: &Pool, id: Uuid) -> Result<bool, Error> {
    let ask = "SELECT $1 IN (SELECT tenant_list())";
    Ok(office.get().await?.query_one(ask, &[&id]).await?.get(0))
}

pub async fn delete_old_orders(tenant: &Tenant) -> Result<(), Error> {
    // No WHERE tenant_id: the server adds it.
    tenant.db().await.execute("DELETE FROM orders WHERE created_at < now() - interval '1 year'", &[]).await?;
    Ok(())
}
