//! A web service whose greeting, rate limit and feature flags change while it serves.
//!
//! Every request loads the configuration once, which is wait-free, and answers from that state. So a
//! request sees all of an edit or nothing of it.
//!
//! ```text
//! embed_in_axum [URL [LISTEN]]
//! curl -i http://127.0.0.1:8080/
//! etcdctl put /config/web/greeting/text Hola
//! ```

// It prints its address, or why it did not start.
#![allow(clippy::print_stdout, clippy::print_stderr)]

use std::collections::BTreeMap;
use std::error::Error;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use driftless_client::{Client, KeyRange, WatchState, Watcher};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// The default of the first argument: where the driftless server listens.
const DEFAULT_SERVER: &str = "http://127.0.0.1:7400";

/// The default of the second argument: where this service listens.
const DEFAULT_LISTEN: &str = "127.0.0.1:8080";

const HELP: &str = "usage: embed_in_axum [URL [LISTEN]], LISTEN such as 127.0.0.1:8081";

/// Everything below `/config/web/`.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Web {
    greeting: Greeting,
    limit: Limit,
    /// `features/NAME`: `true` or `false`. A missing flag is off.
    features: BTreeMap<String, bool>,
}

/// Two keys that have to agree: edit them in one `etcdctl txn`.
#[derive(Deserialize)]
#[serde(default)]
struct Greeting {
    /// The answer's body.
    text: String,
    /// The answer's `content-language`.
    language: String,
}

#[derive(Deserialize)]
#[serde(default)]
struct Limit {
    /// Requests per second.
    rps: u32,
    /// Requests at once.
    burst: u32,
}

impl Default for Greeting {
    fn default() -> Self {
        Self {
            text: "Hello".to_owned(),
            language: "en".to_owned(),
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            rps: 1_000,
            burst: 1_000,
        }
    }
}

impl Web {
    /// Rejects a configuration with which a request could not be answered.
    fn check(&self) -> Result<(), &'static str> {
        if self.limit.rps == 0 || self.limit.burst == 0 {
            return Err("limit.rps and limit.burst must be at least 1");
        }
        HeaderValue::from_str(&self.greeting.language)
            .map_err(|_| "greeting.language must fit into a header")?;
        Ok(())
    }

    fn has(&self, feature: &str) -> bool {
        self.features.get(feature).copied().unwrap_or(false)
    }
}

/// Shared by all requests.
struct App {
    config: Watcher<Web>,
    bucket: Bucket,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("embed_in_axum: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run() -> Result<(), Box<dyn Error>> {
    // The library logs lost servers and rejected values, but never a value.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let mut args = std::env::args().skip(1);
    let server = args.next().unwrap_or_else(|| DEFAULT_SERVER.to_owned());
    if server.starts_with('-') {
        return Err(HELP.into());
    }
    let listen = args.next().unwrap_or_else(|| DEFAULT_LISTEN.to_owned());

    let client = Client::builder()
        .endpoint(server)
        .label("service", "embed_in_axum")
        .build()?;
    // The service starts only with a valid configuration. From then on it always has one.
    let config = client
        .watch::<Web>(KeyRange::prefix("/config/web/"))
        .validate(Web::check)
        .await?;
    let app = Arc::new(App {
        config,
        bucket: Bucket::new(),
    });
    let router = Router::new()
        .route("/", get(greet))
        .route("/healthz", get(health))
        .with_state(app);

    let listener = TcpListener::bind(&listen)
        .await
        .map_err(|error| format!("cannot listen on {listen}: {error}; {HELP}"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    println!("listening on http://{}", listener.local_addr()?);
    axum::serve(listener, router)
        .with_graceful_shutdown(async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = tokio::signal::ctrl_c() => {}
            }
        })
        .await?;
    Ok(()) // The watcher was dropped with the router: its stream and task are gone.
}

async fn greet(State(app): State<Arc<App>>) -> Response {
    // Once a request. Two loads may see two revisions.
    let config = app.config.load();
    let mut response = if app.bucket.take(&config.limit) {
        let text = if config.has("shout") {
            config.greeting.text.to_uppercase()
        } else {
            config.greeting.text.clone()
        };
        let language = [(header::CONTENT_LANGUAGE, config.greeting.language.clone())];
        (language, text).into_response()
    } else {
        let retry = [(header::RETRY_AFTER, "1")];
        (StatusCode::TOO_MANY_REQUESTS, retry, "slow down\n").into_response()
    };
    // Tells an operator whether this instance has an edit.
    let revision = HeaderValue::from(config.revision().get());
    response.headers_mut().insert("x-config-revision", revision);
    response
}

/// The answer of `/healthz`.
#[derive(Serialize)]
struct Health {
    /// `Live` while the configuration is known to be the one in etcd.
    subscription: String,
    /// The revision of the configuration in use.
    revision: i64,
    /// How old it may be.
    age_ms: Option<u128>,
    /// Why a newer one is not in use, and which key to fix. Never has a value.
    rejected: Option<String>,
}

/// Healthy while it can answer, even with an old configuration: if an orchestrator restarted services
/// because the configuration server is away, it would cause an outage.
async fn health(State(app): State<Arc<App>>) -> (StatusCode, Json<Health>) {
    let status = app.config.status();
    let code = match status.state {
        // No further change will arrive. Only a restart helps.
        WatchState::Closed => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    let health = Health {
        subscription: format!("{:?}", status.state),
        revision: app.config.load().revision().get(),
        age_ms: status.age().map(|age| age.as_millis()),
        rejected: status
            .last_rejection
            .map(|rejected| rejected.rejection.to_string()),
    };
    (code, Json(health))
}

/// A token bucket. Its size and rate may change between requests.
struct Bucket(Mutex<Level>);

struct Level {
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket of any size.
    fn new() -> Self {
        Self(Mutex::new(Level {
            tokens: f64::INFINITY,
            at: Instant::now(),
        }))
    }

    /// Takes a token, if there is one.
    fn take(&self, limit: &Limit) -> bool {
        let mut level = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let since = now.duration_since(level.at).as_secs_f64();
        let tokens = level.tokens + since * f64::from(limit.rps);
        level.tokens = tokens.min(f64::from(limit.burst));
        level.at = now;
        if level.tokens < 1.0 {
            return false;
        }
        level.tokens -= 1.0;
        true
    }
}
