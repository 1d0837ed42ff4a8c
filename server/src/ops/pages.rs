//! What the admin endpoint serves: `/healthz`, `/readyz` and `/metrics`.

use std::fmt::Write as _;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;

use crate::metrics::Metrics;
use crate::service::Service;

/// The routes of the admin endpoint.
pub(crate) fn router(service: Service, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready).with_state(service))
        .route("/metrics", get(scrape).with_state(metrics))
}

/// Answers 200 once every prefix has its first state, until the server shuts down. It stays 200 while
/// etcd is gone: the state stays good, and taking all servers out of service would only take it away.
/// The body says how each prefix is.
async fn ready(State(service): State<Service>) -> impl IntoResponse {
    let mut text = String::new();
    let mut ready = !service.is_draining();
    if !ready {
        text.push_str("shutting down\n");
    }
    let memory = service.sessions().pressure().level();
    ready &= memory.allows_connections();
    if let Some(notice) = memory.notice() {
        let _ = writeln!(text, "{notice}");
    }
    for served in service.served() {
        let fanout = &served.fanout;
        let synced = fanout.is_synced();
        ready &= synced;
        // Writing to a string does not fail.
        let (prefix, revision) = (fanout.prefix(), fanout.revision());
        let _ = match (synced, fanout.trouble()) {
            (true, None) => writeln!(text, "{prefix}: in sync at revision {revision}"),
            (true, Some(reason)) => {
                let age = fanout.age().map_or_else(
                    || "never known to be etcd's".to_owned(),
                    |age| format!("last known to be etcd's {} s ago", age.as_secs()),
                );
                writeln!(text, "{prefix}: at revision {revision}, {age}: {reason}")
            }
            (false, None) => writeln!(text, "{prefix}: not in sync yet"),
            (false, Some(reason)) => writeln!(text, "{prefix}: not in sync: {reason}"),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use driftless_proto::{Epoch, KeyRange, Revision};
    use tokio::time::Instant;

    use super::*;
    use crate::encode::PinnedStates;
    use crate::fanout::{Limits, Publisher, fanout};
    use crate::ingest;
    use crate::memory::Level;
    use crate::service::{Intervals, Served};
    use crate::source::SourceHandle;
    use crate::store::Writer;
    use crate::store::{History, Proof, State as SourceState};

    fn service() -> (Service, Publisher) {
        let metrics = Metrics::new();
        let prefix = KeyRange::prefix("/c/").unwrap();
        let limits = Limits {
            log_bytes: 1024 * 1024,
            progress_interval: Duration::from_secs(3600),
            pinned: PinnedStates::new(usize::MAX, metrics.clone()),
        };
        let (publisher, fanout) = fanout(prefix, limits, metrics.clone(), Instant::now());
        let (handle, _) = SourceHandle::channel();
        let hour = Duration::from_secs(3600);
        let intervals = Intervals {
            progress: hour,
            ping: hour,
            report: hour,
        };
        let served = vec![Served {
            fanout,
            ingest: ingest::Handle::new(handle),
        }];
        (Service::new(served, intervals, hour, metrics), publisher)
    }

    async fn readiness(service: &Service) -> (StatusCode, String) {
        let response = ready(State(service.clone())).await.into_response();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 4096).await;
        (status, String::from_utf8(body.unwrap().to_vec()).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn readiness_says_how_each_prefix_is() {
        let (service, mut publisher) = service();
        let unready = StatusCode::SERVICE_UNAVAILABLE;
        let text = "/c/*: not in sync yet\n".to_owned();
        assert_eq!(readiness(&service).await, (unready, text));
        publisher.lost("nobody is there".to_owned());
        let text = "/c/*: not in sync: nobody is there\n".to_owned();
        assert_eq!(readiness(&service).await, (unready, text));

        let mut writer = Writer::new(SourceState {
            epoch: Epoch::of_cluster(1, ""),
            revision: Revision::new(7),
            entries: Vec::new(),
            history: History::Continues,
            asked_at: None,
        });
        publisher.publish_anew(writer.snapshot().clone(), Some(Instant::now()));
        let text = "/c/*: in sync at revision 7\n".to_owned();
        assert_eq!(readiness(&service).await, (StatusCode::OK, text));
        tokio::time::advance(Duration::from_secs(90)).await;
        publisher.lost("nobody is there".to_owned());
        let old = async |reason: &str| {
            let text = format!("/c/*: at revision 7, last known to be etcd's 90 s ago: {reason}\n");
            assert_eq!(readiness(&service).await, (StatusCode::OK, text));
        };
        old("nobody is there").await;
        publisher.lost("nobody is there any more".to_owned());
        old("nobody is there any more").await;
        // etcd is found, and has moved on.
        let revision = Revision::new(9);
        let asked_at = Instant::now();
        publisher.prove(Proof { asked_at, revision });
        let behind =
            "etcd is at revision 9, and the watch has not delivered what changed up to there";
        old(behind).await;
        writer.advance(Revision::new(8));
        publisher.advance(writer.snapshot().clone());
        let (_, text) = readiness(&service).await;
        assert!(
            text.contains("90 s ago") && text.ends_with(&format!("{behind}\n")),
            "{text}"
        );
        writer.advance(revision);
        publisher.advance(writer.snapshot().clone());
        let text = "/c/*: in sync at revision 9\n".to_owned();
        assert_eq!(readiness(&service).await, (StatusCode::OK, text));

        let pressure = service.sessions().pressure();
        for (level, status, notice) in [
            (Level::Tight, StatusCode::OK, "memory is tight"),
            (Level::Critical, unready, "memory is nearly used up"),
        ] {
            pressure.set(level);
            let (said, text) = readiness(&service).await;
            assert_eq!(said, status, "{text}");
            assert!(text.starts_with(notice), "{text}");
        }
        pressure.set(Level::Normal);
        assert_eq!(readiness(&service).await.0, StatusCode::OK);

        service.drain();
        let (status, text) = readiness(&service).await;
        assert_eq!(status, unready);
        assert!(text.starts_with("shutting down\n"), "{text}");
    }

    #[tokio::test]
    async fn metrics_are_scraped_as_openmetrics() {
        let response = scrape(State(Metrics::new())).await.into_response();
        let body = axum::body::to_bytes(response.into_body(), 1024 * 1024).await;
        let text = String::from_utf8(body.unwrap().to_vec()).unwrap();
        for name in ["driftless_streams 0", "driftless_changes_encoded_total 0"] {
            assert!(text.lines().any(|line| line == name), "{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
