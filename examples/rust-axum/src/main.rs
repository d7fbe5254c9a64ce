//! Serves the API; with the argument `job`, runs the nightly job.

use std::process::ExitCode;

use axum::Router;
use tenant_rls_rust_axum::app::{make_app, make_pool};
use tenant_rls_rust_axum::job::{delete_old_orders, for_each_tenant};

#[tokio::main]
async fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let user = std::env::var("PGUSER").unwrap_or_else(|_| "shop".into());
    if std::env::args().nth(1).as_deref() == Some("job") {
        let failed = for_each_tenant(&make_pool("office", 1), &make_pool(&user, 1), delete_old_orders).await;
        return if failed.is_ok_and(|failed| failed.is_empty()) {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        };
    }
    let listener = tokio::net::TcpListener::bind("127.0.0.1:8000").await.expect("the port is free");
    axum::serve(listener, make_app(make_pool(&user, 5), Router::new())).await.expect("serving");
    ExitCode::SUCCESS
}
