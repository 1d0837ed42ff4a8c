//! The admin endpoint: is it alive, is it ready, what does it count. For probes and scrapers, on an
//! address of its own; never a value.

use std::fmt::Write;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use tokio::net::TcpListener;

use crate::metrics::Metrics;
use crate::service::Service;

/// `/healthz`, `/readyz` and `/metrics`.
pub(crate) fn router(service: Service, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready).with_state(service))
        .route("/metrics", get(scrape).with_state(metrics))
}

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, app: Router) {
    // `axum::serve` sleeps through errors of `accept` by itself and never returns.
    let _ = axum::serve(listener, app).await;
}

/// 200 once every prefix has its first state, and from then on: with etcd gone, what was read stays
/// good, and taking all servers out of service at once would only take it away. Says what is amiss
/// in either case.
async fn ready(State(service): State<Service>) -> impl IntoResponse {
    let mut text = String::new();
    let mut ready = true;
    for served in service.served() {
        let fanout = &served.fanout;
        let (clock, contact) = fanout.clock();
        let synced = fanout.is_synced();
        ready &= synced;
        // Writing to a string does not fail.
        let _ = match (synced, fanout.lost()) {
            (true, None) => writeln!(
                text,
                "{}: in sync at revision {}",
                fanout.prefix(),
                fanout.revision()
            ),
            (true, Some(reason)) => writeln!(
                text,
                "{}: at revision {}, but etcd was last heard of {} s ago: {reason}",
                fanout.prefix(),
                fanout.revision(),
                clock.saturating_sub(contact) / 1000,
            ),
            (false, None) => writeln!(text, "{}: not in sync yet", fanout.prefix()),
            (false, Some(reason)) => writeln!(text, "{}: not in sync: {reason}", fanout.prefix()),
        };
    }
    (
        if ready {
            StatusCode::OK
        } else {
            StatusCode::SERVICE_UNAVAILABLE
        },
        text,
    )
}

async fn scrape(State(metrics): State<Metrics>) -> impl IntoResponse {
    let mut text = String::new();
    match metrics.write(&mut text) {
        Ok(()) => (
            StatusCode::OK,
            [(
                CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        ),
        Err(_) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            [(CONTENT_TYPE, "text/plain")],
            String::new(),
        ),
    }
}
