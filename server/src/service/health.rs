//! The standard health service, kept truthful.

use tonic_health::ServingStatus;

use super::Service;

/// The name under which the health of the service is reported.
const SERVICE: &str = "driftless.v1.Config";

impl Service {
    /// Keeps the standard health service truthful: it reports "not serving" until every prefix has its
    /// first state, and again once the server shuts down. Runs until it is dropped.
    pub(crate) async fn keep_health(&self) {
        let draining = &self.0.draining;
        self.set_serving(ServingStatus::NotServing).await;
        if draining.run_until_cancelled(self.ready()).await.is_some() {
            self.set_serving(ServingStatus::Serving).await;
            draining.cancelled().await;
        }
        self.set_serving(ServingStatus::NotServing).await;
        // Ends the open health watches, which would hold up the shutdown.
        let mut health = self.0.health.clone();
        for name in ["", SERVICE] {
            health.clear_service_status(name).await;
        }
        self.set_serving(ServingStatus::NotServing).await;
        std::future::pending().await
    }

    async fn set_serving(&self, status: ServingStatus) {
        self.0.health.set_service_status("", status).await;
        self.0.health.set_service_status(SERVICE, status).await;
    }
}
