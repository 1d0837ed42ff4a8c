//! A whole server as it is deployed, with its admin endpoint, in this process.

use std::net::{Ipv4Addr, SocketAddr};

use driftless_server::{ServeError, Server, SettingsBuilder};
use driftless_test_support::{eventually, http, in_time};
use leak_tests::{Scraped, Witnesses};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A running server. Dropping it kills the server; [`WholeServer::stop`] shuts it down.
pub(crate) struct WholeServer {
    pub(crate) address: SocketAddr,
    scheme: &'static str,
    pub(crate) admin: SocketAddr,
    shutdown: CancellationToken,
    running: JoinSet<Result<(), ServeError>>,
}

impl WholeServer {
    /// Starts a server with these settings, and waits until it is in sync.
    pub(crate) async fn start(settings: SettingsBuilder) -> Self {
        let settings = settings.admin((Ipv4Addr::LOCALHOST, 0).into());
        let server = Server::bind(settings.build().unwrap()).await.unwrap();
        let address = server.local_addr();
        let scheme = if server.is_tls() { "https" } else { "http" };
        let admin = server.admin_addr().unwrap();
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(server.run(shutdown.clone()));
        eventually("the server is in sync", || is_ready(admin)).await;
        Self {
            address,
            scheme,
            admin,
            shutdown,
            running,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// Asks the admin endpoint whether the server is ready.
    pub(crate) async fn is_ready(&self) -> bool {
        is_ready(self.admin).await
    }

    /// The metrics page of the admin endpoint.
    pub(crate) async fn metrics(&self) -> String {
        let page = http::get_async(self.admin, "/metrics").await;
        page.expect("a metrics page").1
    }

    /// The server's gauges and its number of metric series, as its metrics page shows them. Reading them
    /// takes a connection to the server in this process.
    pub(crate) fn scraped(&self) -> Witnesses {
        let address = self.admin.to_string();
        Witnesses::new()
            .and_all(Scraped::of_server(&address))
            .and(Scraped::series(address))
    }

    /// Shuts the server down. It must not have to cut off any client.
    pub(crate) async fn stop(self) {
        self.shut_down().await.unwrap();
    }

    /// Shuts the server down, and returns how that ended.
    pub(crate) async fn shut_down(mut self) -> Result<(), ServeError> {
        self.shutdown.cancel();
        let ended = in_time("the server ends", self.running.join_next()).await;
        ended.unwrap().unwrap()
    }
}

async fn is_ready(admin: SocketAddr) -> bool {
    let page = http::get_async(admin, "/readyz").await;
    page.is_some_and(|(status, _)| status == 200)
}
