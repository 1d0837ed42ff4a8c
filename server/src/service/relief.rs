//! What the service does when memory gets short, besides refusing what comes.

use super::Service;
use crate::memory::Level;
use crate::session::Shedding;

impl Service {
    /// Drops caches and refuses those that wait for a permit while memory is tight, and ends connections
    /// and streams while it is nearly used up. Runs until it is dropped.
    pub(crate) async fn relieve_memory(&self) {
        let shedding = Shedding::new(self.0.sessions.clone());
        let mut levels = self.0.sessions.pressure().subscribe();
        loop {
            let level = *levels.borrow_and_update();
            for served in self.served() {
                served.fanout.keep_chunks(level == Level::Normal).await;
            }
            if level != Level::Normal {
                self.0.sessions.admission().wake_waiting();
            }
            // The sender lives as long as the sessions, so a change is all that can come.
            tokio::select! {
                _ = levels.changed() => {}
                () = shedding.run(), if level == Level::Critical => {}
            }
        }
    }
}
