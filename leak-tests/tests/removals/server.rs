//! The server's clean-up code, piece by piece, and what notices that it is missing.
//!
//! Not in the list: bounds that refuse somebody instead of dropping something (places in a queue,
//! streams of a connection, requests on their way), and what only follows etcd.

use crate::Removal;

pub(crate) const REMOVALS: &[Removal] = &[
    // metrics.rs
    Removal {
        what: "a guard's gauge goes down when it is dropped",
        file: "server/src/metrics.rs",
        code: "        self.0.dec();",
        instead: "        let _ = &self.0;",
        caught_by: ("suite", "a watcher is dropped"),
    },
    // fanout/scopes.rs
    Removal {
        what: "a range's last subscriber is counted out",
        file: "server/src/fanout/scopes.rs",
        code: "        watched.subscribers -= 1;\n",
        instead: "",
        // A range that comes again keeps the count of scopes where it was after the warm-up.
        caught_by: ("suite", "ranges come and go"),
    },
    Removal {
        what: "a range that nobody watches leaves the table of ranges",
        file: "server/src/fanout/scopes.rs",
        code: r"        self.by_range
            .remove(scope.range())
            .map(|watched| watched.scope)
",
        instead: r"        self.by_range
            .get(scope.range())
            .map(|watched| Arc::clone(&watched.scope))
",
        caught_by: ("suite", "ranges come and go"),
    },
    Removal {
        what: "a range that nobody watches leaves the order of ranges",
        file: "server/src/fanout/scopes.rs",
        code: "        self.by_id.remove(&scope.id());\n",
        instead: "",
        caught_by: ("suite", "a watcher is dropped"),
    },
    Removal {
        what: "a length of prefixes that nobody watches leaves the table of lengths",
        file: "server/src/fanout/scopes.rs",
        code: "                    self.lengths.remove(&length);",
        instead: "                    let _ = length;",
        caught_by: ("suite", "prefixes of every length come and go"),
    },
    // fanout/subscriber.rs
    Removal {
        what: "a dropped stream leaves its range",
        file: "server/src/fanout/subscriber.rs",
        code: r"        let last = self.shared.lock().scopes.leave(&self.scope);
        drop(last);
",
        instead: "",
        caught_by: ("suite", "ranges come and go"),
    },
    Removal {
        what: "a dropped stream gives its slot in the range back",
        file: "server/src/fanout/subscriber.rs",
        code: "        self.scope.exit(self.slot);",
        instead: "        let _ = self.slot;",
        caught_by: ("suite", "one watcher stays and others come and go"),
    },
    // fanout/scope.rs
    Removal {
        what: "a stream's slot is taken out of the range's",
        file: "server/src/fanout/scope.rs",
        code: "        let slot = inner.streams.try_remove(slot);",
        instead: "        let _ = slot;\n        let slot = None::<Slot>;",
        caught_by: ("suite", "one watcher stays and others come and go"),
    },
    Removal {
        what: "a dropped stream that knows patches is counted out",
        file: "server/src/fanout/scope.rs",
        code: "            inner.patched -= 1;\n",
        instead: "",
        caught_by: ("suite", "nobody is left who takes patches"),
    },
    Removal {
        what: "a range remembers so many changes",
        file: "server/src/fanout/scope.rs",
        code: "        if inner.heads.len() > HEADS\n",
        instead: "        if false && inner.heads.len() > HEADS\n",
        caught_by: ("suite", "a value changes"),
    },
    Removal {
        what: "a range refers to its changes weakly",
        file: "server/src/fanout/scope.rs",
        code: "            batch: Arc::downgrade(batch),",
        instead: r"            batch: {
                std::mem::forget(Arc::clone(batch));
                Arc::downgrade(batch)
            },",
        caught_by: ("server", "a_range_keeps_no_change_that_the_log_let_go_of"),
    },
    Removal {
        what: "a change that a range forgets is let go of with its frame",
        file: "server/src/fanout/scope.rs",
        code: "            oldest.forget(self.id);\n",
        instead: "",
        // Bounded by the log.
        caught_by: (
            "server",
            "a_frame_that_is_made_anew_in_the_last_moment_goes_with_its_change",
        ),
    },
    Removal {
        what: "a range that goes takes its frames out of the log",
        file: "server/src/fanout/scope.rs",
        code: "        inner.heads.iter().for_each(|head| head.forget(self.id));",
        instead: "        let _ = (&inner.heads, self.id);",
        caught_by: ("suite", "clients from before a change come back"),
    },
    Removal {
        what: "a range's state at its birth is let go of once it is added up",
        file: "server/src/fanout/scope.rs",
        code: r"                self.birth
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .take();
                sum
",
        instead: "                sum\n",
        // One old state for each range that is watched: it does not grow.
        caught_by: ("server", "a_value_that_was_replaced_is_not_kept"),
    },
    Removal {
        what: "a change whose deltas are known is waited for no longer",
        file: "server/src/fanout/scope.rs",
        code: "        inner.unsettled.retain(|pending| pending.to != to);",
        instead: "        let _ = to;",
        // Its streams wait for ever.
        caught_by: ("suite", "a large value changes"),
    },
    Removal {
        what: "answers that nobody asks for are looked for now and then",
        file: "server/src/fanout/scope.rs",
        code: r"        let gone = self.answers().expire(Instant::now());
        drop(gone);
",
        instead: "",
        // Does not grow, and takes seconds to go.
        caught_by: (
            "server",
            "an_answer_that_nobody_asks_for_any_more_goes_however_rare_progress_is",
        ),
    },
    Removal {
        what: "a change that nobody gets by itself any more is let go of with its frame",
        file: "server/src/fanout/scope.rs",
        code: "            inner.heads[at].forget(self.id);\n",
        instead: "            let _ = at;\n",
        // Bounded by the log.
        caught_by: (
            "server",
            "a_client_that_comes_back_again_and_again_does_not_fill_the_log_with_its_frames",
        ),
    },
    // fanout/answers.rs
    Removal {
        what: "a range shares so many answers",
        file: "server/src/fanout/answers.rs",
        code: "        if self.0.len() < SHARED {",
        instead: "        let _ = SHARED;\n        {",
        caught_by: ("suite", "clients come back from revisions of their own"),
    },
    Removal {
        what: "an answer is shared for so long",
        file: "server/src/fanout/answers.rs",
        code: "            && now.saturating_duration_since(self.begun) < SHARED_FOR",
        instead: "            && self.begun <= now",
        // One old state for each range that somebody always comes for: it does not grow.
        caught_by: (
            "server",
            "an_answer_that_is_asked_for_again_and_again_gives_way_to_a_newer_one",
        ),
    },
    // fanout/mod.rs
    Removal {
        what: "batches whose deltas are known give their room to others",
        file: "server/src/fanout/mod.rs",
        code: "        published.unsettled.remove(&unsettled);\n",
        instead: "",
        // After 256 of them no delta is computed any more.
        caught_by: ("suite", "a large value changes"),
    },
    Removal {
        what: "ranges whose changes were held back are let go of with the flush",
        file: "server/src/fanout/mod.rs",
        code: "        let paced = std::mem::take(&mut self.0.lock().paced);",
        instead: "        let paced = self.0.lock().paced.clone();",
        caught_by: ("suite", "a watcher is dropped while changes are held back"),
    },
    Removal {
        what: "values that were replaced are not kept with the change",
        file: "server/src/fanout/mod.rs",
        code: "        let mut bases = std::mem::take(&mut batch.bases);",
        instead: "        let mut bases = batch.bases.clone();",
        // Bounded by the log, whose budget does not count them.
        caught_by: ("server", "a_value_that_was_replaced_is_not_kept"),
    },
    Removal {
        what: "old values of which nobody wants a delta are not kept",
        file: "server/src/fanout/mod.rs",
        code: "            bases.retain(|_| which.next() == Some(true));\n",
        instead: "            let _ = which.next();\n",
        // Until their batch is settled.
        caught_by: ("server", "old_values_are_kept_for_the_work_and_no_others"),
    },
    Removal {
        what: "a batch that waits for its deltas refers to its ranges weakly",
        file: "server/src/fanout/mod.rs",
        code: "            self.scopes.push(Arc::downgrade(scope));",
        instead: r"            std::mem::forget(Arc::clone(scope));
            self.scopes.push(Arc::downgrade(scope));",
        caught_by: (
            "server",
            "a_range_goes_with_its_last_stream_though_a_delta_is_computed_for_it",
        ),
    },
    Removal {
        what: "streams are told goodbye when the server shuts down",
        file: "server/src/fanout/mod.rs",
        code: "        let ended = published.end(Ending::Drain);",
        instead: "        let ended: Vec<Arc<Scope>> = Vec::new();",
        caught_by: ("suite", "the server is shut down"),
    },
    Removal {
        what: "no more subscriptions once the server shuts down",
        file: "server/src/fanout/mod.rs",
        code: "        published.draining = true;\n",
        instead: "",
        // For a call that came before and subscribes after.
        caught_by: (
            "server",
            "another_history_ends_streams_and_their_successors_stay",
        ),
    },
    Removal {
        what: "the bytes of a log that is replaced are counted out",
        file: "server/src/fanout/mod.rs",
        code: "                .dec_by(i64::try_from(old.log.bytes()).unwrap_or(i64::MAX));",
        instead: "                .dec_by(0);\n            drop(old);",
        caught_by: ("suite", "etcd's history is replaced"),
    },
    // fanout/unsettled.rs
    Removal {
        what: "so many batches wait for their deltas at most",
        file: "server/src/fanout/unsettled.rs",
        code: "            0..MOST => MOST_BYTES - self.bytes,\n            _ => 0,\n",
        instead: "            0..MOST => usize::MAX,\n            _ => usize::MAX - MOST_BYTES,\n",
        // As many as etcd brings before their jobs have had their turns.
        caught_by: ("server", "what_waits_is_bounded"),
    },
    Removal {
        what: "old values go with the work on their deltas",
        file: "server/src/fanout/unsettled.rs",
        code: "        (Arc::clone(&self.batch), std::mem::take(&mut self.bases))",
        instead: "        (Arc::clone(&self.batch), self.bases.clone())",
        // Until their batch is settled.
        caught_by: ("server", "old_values_are_kept_for_the_work_and_no_others"),
    },
    // store/log.rs
    Removal {
        what: "the change log drops what is oldest beyond its budget",
        file: "server/src/store/log.rs",
        code: "        while self.bytes > self.budget {",
        instead: "        while false && self.bytes > self.budget {",
        caught_by: ("suite", "a value changes"),
    },
    Removal {
        what: "what the change log drops is counted out",
        file: "server/src/store/log.rs",
        code: "        self.bytes -= oldest.bytes();\n",
        instead: "",
        // The opposite of a leak: a log that was full once stays empty, and every change is a
        // difference of states.
        caught_by: ("suite", "a value changes"),
    },
    Removal {
        what: "a batch without frames has no table of them",
        file: "server/src/store/log.rs",
        code: "            let table = frames.is_empty().then(|| std::mem::take(&mut *frames));",
        instead: "            let table = frames.is_empty().then(Frames::new);",
        // Bounded by the log.
        caught_by: ("heap", "who_does_not_read_costs_a_connection_and_no_queue"),
    },
    // store/writer.rs
    Removal {
        what: "the oldest deletes are forgotten beyond their bound",
        file: "server/src/store/writer.rs",
        code: "        while self.graves.len() > self.most_graves {",
        instead: "        while false && self.graves.len() > self.most_graves {",
        caught_by: ("suite", "keys come and go"),
    },
    Removal {
        what: "a delete that is forgotten leaves the table of deleted keys",
        file: "server/src/store/writer.rs",
        code: "                self.tombstones.remove(&key);\n",
        instead: "",
        caught_by: ("suite", "keys come and go"),
    },
    Removal {
        what: "a delete that is forgotten leaves the order of changes",
        file: "server/src/store/writer.rs",
        code: "                self.snapshot.forget(revision, &key);\n",
        instead: "",
        caught_by: ("suite", "keys come and go"),
    },
    Removal {
        what: "the delete of a key that comes back leaves the order of changes",
        file: "server/src/store/writer.rs",
        code: "            self.snapshot.forget(buried, &entry.key);",
        instead: "            let _ = buried;",
        caught_by: ("suite", "the same keys come and go"),
    },
    // store/snapshot.rs
    Removal {
        what: "a value that is replaced leaves the order of changes",
        file: "server/src/store/snapshot.rs",
        code: r"        if let Some(old) = &old {
            self.forget(old.entry.mod_revision, &old.entry.key);
        }
",
        instead: "",
        caught_by: ("suite", "a value changes"),
    },
    Removal {
        what: "a value that is deleted leaves the order of changes",
        file: "server/src/store/snapshot.rs",
        code: "        self.forget(old.entry.mod_revision, key);\n",
        instead: "",
        caught_by: ("suite", "keys come and go"),
    },
    // encode/answer.rs
    Removal {
        what: "an answer gives its room on the shelf back",
        file: "server/src/encode/answer.rs",
        code: "        self.shelf.give_back(chunks.shelved);",
        instead: "        let _ = (chunks, &self.shelf);",
        // Room and not memory: after 32 MiB of answers no chunk is shared any more.
        caught_by: (
            "server",
            "an_answer_that_nobody_asks_for_any_more_goes_however_rare_progress_is",
        ),
    },
    Removal {
        what: "what has no room on the shelf goes with its reader",
        file: "server/src/encode/answer.rs",
        code: r"            Kept::There(Arc::downgrade(&frame))
        };
",
        instead: r"            Kept::Here(Arc::clone(&frame))
        };
",
        // A peak, gone with the answer.
        caught_by: (
            "server",
            "what_finds_no_place_on_the_shelf_is_shared_by_those_who_read_together_and_made_again",
        ),
    },
    Removal {
        what: "what is made again goes with its reader",
        file: "server/src/encode/answer.rs",
        code: "            made.frame = Kept::There(Arc::downgrade(&frame));",
        instead: "            made.frame = Kept::Here(Arc::clone(&frame));",
        // The shelf does not count it; gone with the answer.
        caught_by: (
            "server",
            "what_finds_no_place_on_the_shelf_is_shared_by_those_who_read_together_and_made_again",
        ),
    },
    // delta/jobs.rs
    Removal {
        what: "jobs that wait for others end with the prefix that they are for",
        file: "server/src/delta/jobs.rs",
        code: r"impl Jobs {
    /// None yet.",
        instead: r"impl Drop for Jobs {
    fn drop(&mut self) {
        self.tasks.detach_all();
    }
}

impl Jobs {
    /// None yet.",
        caught_by: ("server", "jobs_end_with_ingest"),
    },
    Removal {
        what: "a job looks for deltas for so long",
        file: "server/src/delta/jobs.rs",
        code: "cancelled.is_cancelled() || std::time::Instant::now() >= until",
        instead: "cancelled.is_cancelled()",
        caught_by: ("server", "a_job_that_takes_long_ends_with_what_it_found"),
    },
    Removal {
        what: "a job that nobody waits for stops at its next value",
        file: "server/src/delta/jobs.rs",
        code: "            let _cancels = cancelled.clone().drop_guard();\n",
        instead: "",
        // It stops by itself after 100 ms.
        caught_by: ("server", "jobs_end_with_ingest"),
    },
    Removal {
        what: "a job that is late is not gone on with",
        file: "server/src/delta/jobs.rs",
        code: "                        waiting.job.abort();\n",
        instead: "",
        // It would have its turn all the same, and nobody would wait for it.
        caught_by: ("server", "what_is_not_found_in_time_travels_whole"),
    },
    Removal {
        what: "changes are held back for their deltas for so long",
        file: "server/src/delta/jobs.rs",
        code: "                () = sleep_until(until.unwrap_or_else(Instant::now)), if until.is_some() => {",
        instead: "                () = std::future::pending::<()>(), if until.is_some() => {",
        // Every job ends by itself: it shows only where many wait.
        caught_by: ("server", "what_is_not_found_in_time_travels_whole"),
    },
    // service/report.rs
    Removal {
        what: "a stream's reports go with it",
        file: "server/src/service/report.rs",
        code: "        self.watches.lock().remove(&self.id);",
        instead: "        let _ = (&self.watches, &self.id);",
        caught_by: ("suite", "a watcher is dropped"),
    },
    // service/stalls.rs
    Removal {
        what: "a dropped stream is no longer looked after",
        file: "server/src/service/stalls.rs",
        code: r"        let stream = self.stalls.lock().try_remove(self.slot);
        drop(stream);
",
        instead: "        let _ = self.slot;\n",
        caught_by: ("suite", "a watcher is dropped"),
    },
    Removal {
        what: "the connection of a client that does not read is closed",
        file: "server/src/service/stalls.rs",
        code: "                if connection.close() {",
        instead: "                if false && connection.close() {",
        caught_by: ("suite", "the server leaves a client that does not read"),
    },
    Removal {
        what: "an answer that is not read to its end ends with its connection",
        file: "server/src/service/stalls.rs",
        code: "        since(handed) >= timeout || (until > 0 && since(until.max(handed)) >= look)",
        instead: "        let _ = (until, look);\n        since(handed) >= timeout",
        // Ten minutes.
        caught_by: (
            "server",
            "an_answer_of_which_no_more_is_read_ends_with_its_connection",
        ),
    },
    // service/body.rs
    Removal {
        what: "an answer that is read too slowly is cut off",
        file: "server/src/service/body.rs",
        code: "            if self.answer.is_some() && self.stall.is_overdue() {",
        instead: "            if false && self.answer.is_some() && self.stall.is_overdue() {",
        // Ten minutes.
        caught_by: (
            "server",
            "an_answer_that_is_read_in_drips_ends_after_ten_minutes",
        ),
    },
    // service/connection.rs
    Removal {
        what: "a request that has arrived gives its room on the connection back",
        file: "server/src/service/connection.rs",
        code: r"        let arriving = &self.connection.0.arriving;
        arriving.fetch_sub(self.bytes, Ordering::Relaxed);
",
        instead: "        let _ = (self.connection, self.bytes);\n",
        // After 2 MiB every call on the connection is refused.
        caught_by: ("suite", "handles beside a watcher that stays"),
    },
    // service/serving.rs
    Removal {
        what: "streams that were begun as their connection ended are let go of",
        file: "server/src/service/serving.rs",
        code: r"        let begun = std::mem::take(&mut *self.begun.lock());
        drop(begun);
",
        instead: "",
        // The call and the end of the connection have to be read in one poll.
        caught_by: ("suite", "strangers call and are gone"),
    },
    Removal {
        what: "a connection that makes no call is ended",
        file: "server/src/service/serving.rs",
        code: "        if this.orders.has(Orders::END) || this.is_idle(cx) {",
        instead: "        if this.orders.has(Orders::END) {",
        caught_by: ("suite", "clients never finish the handshake"),
    },
    // service/listen.rs
    Removal {
        what: "a connection that ended is told nothing more",
        file: "server/src/service/listen.rs",
        code: r"        let gone = lock(&self.open).orders.try_remove(self.key);
        drop(gone);
",
        instead: "        let _ = self.key;\n",
        caught_by: ("suite", "a watcher is dropped"),
    },
    Removal {
        what: "a connection that ended gives its place to another",
        file: "server/src/service/listen.rs",
        code: "        let holding = (place, Held::new(&self.metrics.connections), among);",
        instead: r"        std::mem::forget(place);
        let holding = ((), Held::new(&self.metrics.connections), among);",
        // The fifth is never accepted.
        caught_by: ("suite", "a server of few connections"),
    },
    Removal {
        what: "a connection whose other end does not answer is ended",
        file: "server/src/service/listen.rs",
        code: "            .keep_alive_interval(self.ping)",
        instead: "            .keep_alive_interval(None::<Duration>)",
        caught_by: ("suite", "the network loses one direction for ever"),
    },
    Removal {
        what: "the shutdown ends the accept loop",
        file: "server/src/service/listen.rs",
        code: "        self.drain.cancel();\n",
        instead: "",
        caught_by: ("suite", "the server is shut down"),
    },
    Removal {
        what: "the accept loop ends as soon as the shutdown begins",
        file: "server/src/service/listen.rs",
        code: r"        self.drain
            .run_until_cancelled(self.accept_all(listener))
            .await;
",
        instead: "        self.accept_all(listener).await;\n",
        caught_by: ("server", "a_shutdown_waits_for_the_accept_loop"),
    },
    Removal {
        what: "the shutdown tells connections to take no more calls",
        file: "server/src/service/listen.rs",
        code: "        open.orders.iter().for_each(|(_, orders)| orders.drain());\n",
        instead: "",
        caught_by: (
            "suite",
            "the server is shut down while a stranger stays connected",
        ),
    },
    Removal {
        what: "a connection that comes in the last moment is cut off as well",
        file: "server/src/service/listen.rs",
        code: "        if all.ending {\n            orders.end();\n        }\n",
        instead: "",
        caught_by: (
            "server",
            "a_shutdown_at_its_deadline_cuts_off_who_came_in_the_last_moment",
        ),
    },
    Removal {
        what: "a connection that comes in the last moment is drained as well",
        file: "server/src/service/listen.rs",
        code: "        open.draining = true;\n",
        instead: "",
        caught_by: (
            "server",
            "a_shutdown_does_not_wait_for_who_came_in_the_last_moment",
        ),
    },
    Removal {
        what: "the shutdown says goodbye on every stream",
        file: "server/src/service/listen.rs",
        code: "        self.service.drain();\n",
        instead: "",
        caught_by: ("suite", "the server is shut down"),
    },
    Removal {
        what: "the shutdown has a deadline",
        file: "server/src/service/listen.rs",
        code: "            () = deadline => {}",
        instead: "            () = std::future::pending::<()>() => {}",
        caught_by: (
            "suite",
            "the server is shut down while a client does not read",
        ),
    },
    Removal {
        what: "what is left at the deadline of the shutdown is cut off",
        file: "server/src/service/listen.rs",
        code: "        for (_, orders) in &open.orders {\n            orders.end();\n        }\n",
        instead: "",
        caught_by: (
            "suite",
            "the server is shut down while a client does not read",
        ),
    },
    Removal {
        what: "the shutdown does not wait for those who agree on TLS",
        file: "server/src/service/listen.rs",
        code: "            () = self.drain.cancelled() => return,",
        instead: "            () = std::future::pending::<()>() => return,",
        caught_by: (
            "server",
            "a_tls_handshake_that_does_not_end_is_ended_and_leaves_nothing",
        ),
    },
    // service/mod.rs
    Removal {
        what: "those who watch the server's health are let go when it shuts down",
        file: "server/src/service/mod.rs",
        code: "            health.clear_service_status(name).await;",
        instead: "            let _ = (&mut health, name);",
        // By clients of gRPC that are not this library's.
        caught_by: (
            "server",
            "a_shutdown_does_not_wait_for_those_who_watch_its_health",
        ),
    },
    Removal {
        what: "those who watch the health of a server that was never in sync are let go when it shuts down",
        file: "server/src/service/mod.rs",
        code: "        if draining.run_until_cancelled(self.ready()).await.is_some() {",
        instead: r"        self.ready().await;
        {",
        caught_by: (
            "server",
            "a_shutdown_before_the_first_state_does_not_wait_for_those_who_watch_its_health",
        ),
    },
    Removal {
        what: "the server's health is not watched any more once it shuts down",
        file: "server/src/service/mod.rs",
        code: r#"            "/grpc.health.v1.Health/Watch" if self.is_draining() => {"#,
        instead: r#"            "/grpc.health.v1.Health/Watch" if false && self.is_draining() => {"#,
        // For a call that came before and is answered after.
        caught_by: (
            "server",
            "while_the_server_shuts_down_clients_are_told_when_to_come_back",
        ),
    },
    Removal {
        what: "those who look at what the server offers are let go when it shuts down",
        file: "server/src/service/mod.rs",
        code: "            Poll::Pending => this.drained.as_mut().poll(cx).map(|()| None),",
        instead: "            Poll::Pending => Poll::Pending,",
        // By tools that are not this library's.
        caught_by: (
            "server",
            "a_shutdown_does_not_wait_for_those_who_look_around",
        ),
    },
    Removal {
        what: "those who wait for a turn are let go when the server shuts down",
        file: "server/src/service/mod.rs",
        code: "        self.0.admission.close();\n",
        instead: "",
        caught_by: (
            "suite",
            "the server is shut down while a crowd waits for its turn",
        ),
    },
    // service/watch.rs
    Removal {
        what: "a client that is ahead of the server waits for so long at most",
        file: "server/src/service/watch.rs",
        code: r"                    let caught_up =
                        tokio::time::timeout(ANSWER_WITHIN, served.fanout.reached(since)).await;
                    caught_up.map_err(|_| behind())?;
",
        instead: "                    served.fanout.reached(since).await;\n",
        caught_by: (
            "server",
            "a_client_that_is_ahead_waits_for_the_server_to_catch_up",
        ),
    },
    Removal {
        what: "a client from before the log waits for what was then for so long at most",
        file: "server/src/service/watch.rs",
        code: "        let _ = tokio::time::timeout(ANSWER_WITHIN, reach_back).await;",
        instead: "        reach_back.await;",
        caught_by: (
            "server",
            "who_needs_to_know_what_etcd_does_not_say_is_not_kept_waiting",
        ),
    },
    // service/grpc.rs
    Removal {
        what: "a request that does not arrive is given up",
        file: "server/src/service/grpc.rs",
        code: r#"    let body = tokio::time::timeout(REQUEST_WITHIN, body).await;
    let body =
        body.map_err(|_| Status::deadline_exceeded("the request did not arrive in time"))??;
"#,
        instead: "    let body = body.await?;\n",
        // Ten seconds, and by no client of this library.
        caught_by: (
            "server",
            "a_client_that_stalls_after_its_headers_is_told_so",
        ),
    },
    // service/admission.rs
    Removal {
        what: "a dropped stream leaves the queue for a turn",
        file: "server/src/service/admission.rs",
        code: "        let waited = state.waiting.remove(&self.number);",
        instead: "        let waited = None::<Waiting>;",
        caught_by: ("suite", "a crowd is dropped while it waits for its turn"),
    },
    Removal {
        what: "a dropped stream is no longer among those that read",
        file: "server/src/service/admission.rs",
        code: "        let ran = state.running.remove(&self.number);",
        instead: "        let ran = None::<Running>;",
        caught_by: ("suite", "a crowd is dropped while it waits for its turn"),
    },
    Removal {
        what: "a turn that is over is given to the next",
        file: "server/src/service/admission.rs",
        code: r"            if !ran.idle {
                state.active -= 1;
            }
",
        instead: "",
        // The seventeenth never has its turn.
        caught_by: ("suite", "a range is read once"),
    },
    Removal {
        what: "the turn of a client that does not read is passed on",
        file: "server/src/service/admission.rs",
        code: "        state.active -= idle;",
        instead: "        let _ = idle;",
        caught_by: ("suite", "a crowd that does not read holds up nobody"),
    },
    Removal {
        what: "a turn that is over wakes who has the next",
        file: "server/src/service/admission.rs",
        code: r"        woken.into_iter().for_each(Waker::wake);
        drop((waited, ran));",
        instead: r"        drop((woken, waited, ran));",
        caught_by: ("server", "a_turn_that_is_over_wakes_who_has_the_next"),
    },
    Removal {
        what: "who waited for a turn for too long is sent away",
        file: "server/src/service/admission.rs",
        code: r"        woken.extend(late.filter_map(|waiting| waiting.waker.take()));
",
        instead: "        drop(late);
",
        caught_by: (
            "server",
            "who_waits_too_long_for_a_turn_is_told_when_to_come_back",
        ),
    },
    // ingest.rs
    Removal {
        what: "what etcd said of the past is let go of when it fails",
        file: "server/src/ingest.rs",
        code: r"        self.back = Back::Idle;
        self.publisher.give_up_back();
",
        instead: r"        self.publisher.give_up_back();
",
        caught_by: (
            "server",
            "what_etcd_said_of_the_past_is_let_go_of_when_it_fails",
        ),
    },
    Removal {
        what: "what etcd said of the past is let go of once all is adopted",
        file: "server/src/ingest.rs",
        code: r"                        self.back = Back::Idle;
                        let snapshot",
        instead: "                        let snapshot",
        caught_by: (
            "server",
            "what_etcd_said_of_the_past_is_let_go_of_once_all_is_adopted",
        ),
    },
    Removal {
        what: "an audit that etcd has no answer to ends",
        file: "server/src/ingest/audit.rs",
        code: "            None => self.stop(),",
        instead: "            None => {}",
        caught_by: (
            "server",
            "an_audit_that_etcd_has_no_answer_to_is_not_the_last",
        ),
    },
    Removal {
        what: "an audit ends when etcd is lost",
        file: "server/src/ingest.rs",
        code: r"                self.ask_back_again();
                self.audit.interrupt();
                return false;
",
        instead: r"                self.ask_back_again();
                return false;
",
        // One old state is kept, and there is no other audit: it does not grow.
        caught_by: ("server", "an_audit_that_etcd_was_lost_in_is_not_the_last"),
    },
    Removal {
        what: "what etcd was saying of the past is let go of when it is lost",
        file: "server/src/ingest.rs",
        code: r"                self.ask_back_again();
                self.audit.interrupt();
                return false;
",
        instead: r"                self.audit.interrupt();
                return false;
",
        // It is kept, and not asked for again: it does not grow.
        caught_by: (
            "server",
            "what_etcd_was_saying_of_the_past_as_it_was_lost_is_asked_for_again",
        ),
    },
    Removal {
        what: "an audit ends when the state is read anew",
        file: "server/src/ingest.rs",
        code: r"            Update::State(_) => {
                self.ask_back_again();
                self.audit.interrupt();
            }
",
        instead: r"            Update::State(_) => self.ask_back_again(),
",
        caught_by: (
            "server",
            "an_audit_during_which_the_state_was_read_anew_is_not_the_last",
        ),
    },
    Removal {
        what: "what etcd was saying of the past is let go of when the state is read anew",
        file: "server/src/ingest.rs",
        code: r"            Update::State(_) => {
                self.ask_back_again();
                self.audit.interrupt();
            }
",
        instead: r"            Update::State(_) => self.audit.interrupt(),
",
        caught_by: (
            "server",
            "what_etcd_was_saying_of_the_past_as_the_state_was_read_anew_is_asked_for_again",
        ),
    },
    // source/mod.rs
    Removal {
        what: "who asks for etcd's revision waits for so long at most",
        file: "server/src/source/mod.rs",
        code: r"        tokio::time::timeout(ANSWER_WITHIN, answered)
            .await
            .ok()?
            .ok()
",
        instead: "        answered.await.ok()\n",
        caught_by: (
            "server",
            "who_needs_to_know_what_etcd_does_not_say_is_not_kept_waiting",
        ),
    },
    // source/etcd/history.rs
    Removal {
        what: "of etcd's history, so many keys are remembered",
        file: "server/src/source/etcd/history.rs",
        code: r"            if self.recent.len() == RECENT {
                self.recent.pop_front();
            }
",
        instead: "",
        caught_by: ("suite", "keys come and go"),
    },
    Removal {
        what: "of etcd's history, each key is remembered once",
        file: "server/src/source/etcd/history.rs",
        code: "            self.recent.retain(|seen| seen.key() != change.key());\n",
        instead: "",
        caught_by: ("server", "the_latest_keys_are_remembered_each_once"),
    },
    Removal {
        what: "of etcd's history, nothing from before a new list is remembered",
        file: "server/src/source/etcd/history.rs",
        code: "        self.recent.clear();\n",
        instead: "",
        // Eight keys more with each list, which few rounds of a real etcd do not show.
        caught_by: ("server", "the_latest_keys_are_remembered_each_once"),
    },
    // source/etcd/connection.rs
    Removal {
        what: "an endpoint of etcd that does not answer is given up",
        file: "server/src/source/etcd/connection.rs",
        code: r"    match tokio::time::timeout(within, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(Error::Silent { what, within }),
    }
",
        instead: r"    let _ = (within, what);
    answer.await.map_err(Into::into)
",
        // The server waits, and holds no more than before.
        caught_by: (
            "etcd_source",
            "the_next_endpoint_is_tried_when_one_says_nothing",
        ),
    },
    // source/etcd/live.rs
    Removal {
        what: "a watch on which etcd is silent is given up",
        file: "server/src/source/etcd/live.rs",
        code: "            self.unheard += 1;",
        instead: "            let _ = &self.unheard;",
        // Pings find a stopped etcd as well: after some 15 s, and not within the suite's 150 ms.
        caught_by: ("suite", "etcd is stopped"),
    },
    // source/etcd/earlier.rs
    Removal {
        what: "what etcd tells of the past has a limit",
        file: "server/src/source/etcd/earlier.rs",
        code: "    let end = match timeout(READ_WITHIN, reading).await {",
        instead: "    let end = match Ok::<_, tokio::time::error::Elapsed>(reading.await) {",
        // The live watch does not end it: etcd goes on to say other things, and never this.
        caught_by: ("server", "an_etcd_that_never_says_what_was_is_given_up"),
    },
    // source/etcd/errand.rs
    Removal {
        what: "an errand that has said everything is let go of",
        file: "server/src/source/etcd/errand.rs",
        code: "        *errand = None;\n",
        instead: "",
        // One of each kind for a watch, until the next takes its place.
        caught_by: (
            "server",
            "all_is_said_in_order_and_then_the_errand_is_let_go_of",
        ),
    },
    // tls.rs
    Removal {
        what: "a TLS handshake that comes to no end is given up",
        file: "server/src/tls.rs",
        code: "        match timeout(within, accept).await {",
        instead: "        let _ = within;\n        match Ok::<_, tokio::time::error::Elapsed>(accept.await) {",
        caught_by: ("suite", "clients never agree on TLS"),
    },
    Removal {
        what: "a client that TLS turned down is listened to for so long",
        file: "server/src/tls.rs",
        code: "                let _ = timeout(LINGER.0, linger(io)).await;",
        instead: "                linger(io).await;",
        // Its own limit is 64 KiB, or its end: only one that stays and says nothing shows it.
        caught_by: ("server", "what_is_no_tls_is_told_so_and_let_go_soon"),
    },
    // admin.rs
    Removal {
        what: "connections to the admin endpoint end with the server",
        file: "server/src/admin.rs",
        code: "                connections.spawn(connection(stream, app.clone()));",
        instead: r"                tokio::spawn(connection(stream, app.clone()));
                connections.spawn(async {});",
        caught_by: (
            "suite",
            "the server is shut down while it is asked how it is",
        ),
    },
    Removal {
        what: "a connection to the admin endpoint that ended gives its place to another",
        file: "server/src/admin.rs",
        code: "            Some(_) = connections.join_next() => {}",
        instead: "            Some(()) = std::future::pending() => {}",
        caught_by: ("suite", "probes come and go"),
    },
    Removal {
        what: "a connection to the admin endpoint that is silent from the start is ended",
        file: "server/src/admin.rs",
        code: "    let Ok(Ok((start, is_http2))) = timeout(HEAD_WITHIN, begins(&mut io)).await else {",
        instead: "    let Ok((start, is_http2)) = begins(&mut io).await else {",
        // For ever, and sixty-four of them are all that there may be.
        caught_by: ("server", "a_connection_that_does_nothing_ends"),
    },
    Removal {
        what: "a connection to the admin endpoint that asks nothing is ended",
        file: "server/src/admin.rs",
        code: "        .header_read_timeout(HEAD_WITHIN);",
        instead: "        .header_read_timeout(None::<Duration>);",
        // It lives for five minutes at most.
        caught_by: ("server", "a_connection_that_does_nothing_ends"),
    },
    Removal {
        what: "a connection to the admin endpoint lives so long",
        file: "server/src/admin.rs",
        code: "        () = sleep(lifetime) => {}",
        instead: "        () = std::future::pending() => {}",
        caught_by: ("server", "a_connection_that_does_nothing_ends"),
    },
    Removal {
        what: "an answer of the admin endpoint that is not read is given up",
        file: "server/src/admin.rs",
        code: "    let _ = timeout(LAST_ANSWER_WITHIN, connection).await;",
        instead: "    let _ = connection.await;",
        caught_by: ("server", "a_connection_that_does_nothing_ends"),
    },
    Removal {
        what: "the tasks of an admin connection's streams refer to their owner weakly",
        file: "server/src/admin.rs",
        code: "    let executor = Streams(Arc::downgrade(&streams));",
        instead: r"    std::mem::forget(Arc::clone(&streams));
    let executor = Streams(Arc::downgrade(&streams));",
        // By clients that take it for the address of gRPC.
        caught_by: (
            "server",
            "the_tasks_of_http2_streams_go_with_them_and_with_their_connection",
        ),
    },
    Removal {
        what: "the tasks of an admin connection's streams that are over are let go of",
        file: "server/src/admin.rs",
        code: "        while streams.try_join_next().is_some() {}\n",
        instead: "",
        // Such a connection lives for 75 s, and 10 s more in which it drains.
        caught_by: (
            "server",
            "the_tasks_of_http2_streams_go_with_them_and_with_their_connection",
        ),
    },
    // server.rs
    Removal {
        what: "a server that is dropped cuts off who agrees on TLS",
        file: "server/src/server.rs",
        code: "        self.connections.drain();",
        instead: "",
        caught_by: (
            "server",
            "who_agrees_on_tls_is_cut_off_by_who_drops_the_engine",
        ),
    },
    Removal {
        what: "a server that is dropped cuts off its connections",
        file: "server/src/server.rs",
        code: "        self.connections.cut_off();",
        instead: "        let _ = &self.connections;",
        caught_by: ("suite", "servers die"),
    },
    Removal {
        what: "the server's end is noticed",
        file: "server/src/server.rs",
        code: "            () = shutdown.cancelled() => Ok(()),",
        instead: "            () = std::future::pending::<()>() => Ok(()),",
        caught_by: ("suite", "the server is shut down"),
    },
    Removal {
        what: "the server's tasks end with it, ingest and its watch among them",
        file: "server/src/server.rs",
        code: "        self.tasks.shutdown().await;",
        instead: "        self.tasks.detach_all();",
        caught_by: ("suite", "the server is shut down"),
    },
];

/// Clean-up code that is in no removal, since something else does the same: what it does, and what else
/// does it.
pub(crate) const DOUBLED: &[(&str, &str)] = &[
    (
        "HTTP/2's keepalive of the client (transport/mod.rs)",
        "a stream's silence and a read's limit end what it would end, a little later",
    ),
    (
        "a stream's line in the reports goes as the stream ends (subscription/task.rs)",
        "it goes with the next stream's, or with the subscription",
    ),
    (
        "an answer gives way to a newer one of its kind (fanout/answers.rs)",
        "it goes by itself ten seconds after it was asked for last, and there are eight at most",
    ),
    (
        "ranges whose changes are held back are let go of when etcd's history ends (fanout/mod.rs)",
        "the flush that was arranged lets go of them 20 ms later",
    ),
    (
        "ranges leave their tables when etcd's history ends, or the server (fanout/scopes.rs)",
        "their streams end then, and the last one takes its range out",
    ),
    (
        "a delete leaves the table of deleted keys when its key comes back (store/writer.rs)",
        "it leaves it with its place in the order of deletes, of which so many are remembered",
    ),
    (
        "questions that come while etcd is away are dropped (source/etcd/mod.rs)",
        "so many wait at most, and who asks does not wait for ever",
    ),
    (
        "etcd's connection is pinged, and connecting has a limit of its own (source/etcd/connection.rs)",
        "a watch that says nothing is given up sooner, and so is each request",
    ),
];
