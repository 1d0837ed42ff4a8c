//! The client's clean-up code.
//!
//! What is taken out is as little as goes. A `Weak` made strong is a clone that is forgotten: that
//! keeps as much alive, and is one edit.

use crate::Removal;

pub(crate) const REMOVALS: &[Removal] = &[
    Removal {
        what: "a job is taken off the list when it is over",
        file: "client/src/blocking.rs",
        code: "lock(&self.running).remove(&self.name);",
        instead: "let _ = (&self.running, &self.name);",
        // One entry for each host and file in a client's options, so it never grows: what shows is
        // that a file is not read again.
        caught_by: ("client", "files_are_read_anew_and_only_up_to_their_limit"),
    },
    Removal {
        what: "a file that takes too long is given up",
        file: "client/src/blocking.rs",
        code: "match tokio::time::timeout(READ_WITHIN, read).await {",
        instead: "match Ok::<_, tokio::time::error::Elapsed>(read.await) {",
        caught_by: (
            "scripted",
            "one_that_hangs_is_named_and_no_fault_of_the_server",
        ),
    },
    Removal {
        what: "a callback's task is aborted when its guard is dropped",
        file: "client/src/callback.rs",
        code: "_task: AbortOnDropHandle::new(runtime.spawn(inventory.note(held, task))),",
        instead: "_task: {
                runtime.spawn(inventory.note(held, task));
                AbortOnDropHandle::new(runtime.spawn(async {}))
            },",
        caught_by: ("suite", "handles beside a watcher that stays"),
    },
    Removal {
        what: "a shutdown ends the subscriptions",
        file: "client/src/client.rs",
        code: "self.registry.close();",
        instead: "",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "a shutdown ends the transport",
        file: "client/src/client.rs",
        code: "self.transport.close();",
        instead: "",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "a single read has a limit",
        file: "client/src/get.rs",
        code: "match tokio::time::timeout(after, answer).await {",
        instead: "match Ok::<_, tokio::time::error::Elapsed>(answer.await) {",
        caught_by: ("suite", "a read takes too long"),
    },
    Removal {
        what: "a single read ends with a shutdown by itself",
        file: "client/src/get.rs",
        code: "() = closed => Err(",
        instead: "() = async { closed.await; std::future::pending().await } => Err(",
        caught_by: (
            "scripted",
            "a_shutdown_ends_a_read_whose_token_is_still_being_read",
        ),
    },
    Removal {
        what: "what is gone is taken out of the inventory",
        file: "client/src/inventory.rs",
        code: "let gone = items.try_remove(self.key);",
        instead: "let gone = (!items.contains(self.key)).then_some(());
        let _ = &mut items;",
        caught_by: ("suite", "a watcher is dropped"),
    },
    Removal {
        what: "that something is gone is told to who waits for quiescence",
        file: "client/src/inventory.rs",
        code: "self.inventory.0.count.send_replace(items.len());
        drop(items);
        drop(gone);",
        instead: "drop(items);
        drop(gone);",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "a subscription that is dropped is taken out of the registry",
        file: "client/src/registry.rs",
        code: "ranges.shared.remove(dropped.range());",
        instead: "let _ = &mut ranges;",
        caught_by: ("suite", "ranges come and go"),
    },
    Removal {
        what: "no watch begins after a shutdown",
        file: "client/src/registry.rs",
        code: "ranges.closed = true;",
        instead: "let _ = &mut ranges;",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "a shutdown ends each subscription",
        file: "client/src/registry.rs",
        code: "shared.end(Closed::Shutdown);",
        instead: "let _ = (shared, Closed::Shutdown);",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "the registry refers to subscriptions weakly",
        file: "client/src/registry.rs",
        code: "ranges.shared.insert(range, Arc::downgrade(&new));
        Ok(new)",
        instead: "ranges.shared.insert(range, Arc::downgrade(&new));
        std::mem::forget(Arc::clone(&new));
        Ok(new)",
        caught_by: ("suite", "ranges come and go"),
    },
    Removal {
        what: "a value does not keep the message that it came in",
        file: "client/src/replica.rs",
        code: "value: Bytes::copy_from_slice(&entry.value),
        ..entry
    }
}

#[cfg(test)]",
        instead: "..entry
    }
}

#[cfg(test)]",
        // A multiple of what is held, and no growth.
        caught_by: ("client", "a_value_does_not_pin_the_message_it_came_in"),
    },
    Removal {
        what: "what a shutdown waits for has a limit",
        file: "client/src/quiescence.rs",
        code: "tokio::time::timeout(limit, self.reached()).await.is_ok()",
        instead: "(self.reached().await, limit > Duration::ZERO).1",
        caught_by: ("scripted", "a_shutdown_names_what_holds_it_up"),
    },
    Removal {
        what: "a stream's line in the reports goes with it",
        file: "client/src/report.rs",
        code: "self.board.lock().lines.remove(&self.id);",
        instead: "let _ = (&self.board, self.id);",
        caught_by: ("suite", "handles beside a watcher that stays"),
    },
    Removal {
        what: "a watcher's sink goes with it",
        file: "client/src/sink.rs",
        code: "let sink = self.sinks.lock().sinks.remove(&self.id);",
        instead: "let sink = (&self.sinks, self.id);",
        caught_by: ("suite", "handles beside a watcher that stays"),
    },
    Removal {
        what: "watchers are told that no value will follow",
        file: "client/src/sink.rs",
        code: "            sink.close(reason);",
        instead: "            let _ = &sink;",
        caught_by: ("suite", "a watcher outlives its runtime"),
    },
    Removal {
        what: "a subscription's task is aborted when its last handle is dropped",
        file: "client/src/subscription/mod.rs",
        code: "task: AbortOnDropHandle::new(runtime.spawn(task.run().instrument(span))),",
        instead: "task: {
                runtime.spawn(task.run().instrument(span));
                AbortOnDropHandle::new(runtime.spawn(async {}))
            },",
        caught_by: ("suite", "a watcher is dropped"),
    },
    Removal {
        what: "a subscription's task is aborted by a shutdown",
        file: "client/src/subscription/mod.rs",
        code: "self.task.abort();",
        instead: "let _ = &self.task;",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "a subscription that is dropped tells the registry",
        file: "client/src/subscription/mod.rs",
        code: "registry.forget(self);",
        instead: "let _ = registry;",
        caught_by: ("suite", "ranges come and go"),
    },
    Removal {
        what: "a task that is gone leaves nobody waiting",
        file: "client/src/subscription/task.rs",
        code: "self.close(Closed::Ended);",
        instead: "let _ = Closed::Ended;",
        caught_by: ("suite", "a watcher outlives its runtime"),
    },
    Removal {
        what: "a stream that is silent is ended",
        file: "client/src/subscription/task.rs",
        code: "            Some(until) => {
                let work = tokio::time::timeout_at(until, work);
                self.serving(work).await.ok()
            }
            None => Some(self.serving(work).await),",
        instead: "            _ => Some(self.serving(work).await),",
        // Thirty seconds by default.
        caught_by: (
            "scripted",
            "silence_ends_a_stream_and_leaves_the_connection",
        ),
    },
    Removal {
        what: "a connection that disappointed is left",
        file: "client/src/subscription/task.rs",
        code: "connection.retire();",
        instead: "let _ = connection;",
        // It goes with its users all the same: what shows is where the next attempt goes.
        caught_by: (
            "scripted",
            "a_server_that_drains_is_left_although_others_still_use_the_connection",
        ),
    },
    Removal {
        what: "dialling TCP has a limit",
        file: "client/src/tcp.rs",
        code: "match timeout(TCP_WITHIN, work).await {",
        instead: "match Ok::<_, tokio::time::error::Elapsed>(work.await) {",
        // Four seconds.
        caught_by: ("client", "a_failure_names_the_addresses"),
    },
    Removal {
        what: "an attempt to connect has a limit",
        file: "client/src/transport/mod.rs",
        code: "match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {",
        instead: "match Ok::<_, tokio::time::error::Elapsed>(attempt.await) {",
        // Five seconds.
        caught_by: ("client", "what_was_waited_for_in_vain_is_said"),
    },
    Removal {
        what: "closing the transport cancels what it does",
        file: "client/src/transport/mod.rs",
        code: "self.closing.cancel();",
        instead: "let _ = &self.closing;",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "closing the transport ends a dial",
        file: "client/src/transport/mod.rs",
        code: "() = self.closing.cancelled() => Err(CallError::lost(CLOSED.to_owned())),",
        instead: "() = std::future::pending() => Err(CallError::lost(CLOSED.to_owned())),",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "the transport refers to its connection weakly",
        file: "client/src/transport/mod.rs",
        code: "slot.connection = Arc::downgrade(&connection);",
        instead: "slot.connection = Arc::downgrade(&connection);
                std::mem::forget(Arc::clone(&connection));",
        caught_by: ("suite", "a watcher is dropped"),
    },
    Removal {
        what: "a connection is dropped while nobody makes a request",
        file: "client/src/transport/requests.rs",
        code: "    fn drop(&mut self) {
        let _turn = self.turn.take();",
        instead: "    fn drop(&mut self) {",
        caught_by: ("client", "the_connection_is_dropped_in_its_turn"),
    },
    Removal {
        what: "a connection is dropped before others may make requests again",
        file: "client/src/transport/requests.rs",
        code: "        let _turn = self.turn.take();
        self.connection = None;",
        instead: "        let _turn = self.turn.take();",
        caught_by: ("client", "the_connection_is_dropped_in_its_turn"),
    },
    Removal {
        what: "closing the transport ends a connection's tasks",
        file: "client/src/transport/tasks.rs",
        code: "closing.run_until_cancelled(task).await;",
        instead: "let _ = closing;
            task.await;",
        caught_by: ("suite", "a client is shut down"),
    },
    Removal {
        what: "a connection's tasks end with it",
        file: "client/src/transport/tasks.rs",
        code: "set.spawn(self.inventory.note(held, task));",
        instead: "let _ = &mut set;
        tokio::spawn(self.inventory.note(held, task));",
        caught_by: ("suite", "a watcher is dropped"),
    },
    Removal {
        what: "tasks of a connection that ended are let go",
        file: "client/src/transport/tasks.rs",
        code: "while set.try_join_next().is_some() {}",
        instead: "",
        caught_by: ("suite", "handles beside a watcher that stays"),
    },
    Removal {
        what: "a connection's tasks refer to their owner weakly",
        file: "client/src/transport/tasks.rs",
        code: "Executor(Arc::downgrade(&self.0))",
        instead: "{
            std::mem::forget(Arc::clone(&self.0));
            Executor(Arc::downgrade(&self.0))
        }",
        caught_by: ("suite", "a watcher is dropped"),
    },
    // watcher.rs, entries.rs
    Removal {
        what: "a watch waits for its first value for so long",
        file: "client/src/watcher.rs",
        code: "                () = tokio::time::sleep(self.within) => {\n",
        instead: "                () = std::future::pending::<()>() => {\n",
        caught_by: ("scripted", "a_default_is_there_when_no_server_is"),
    },
    Removal {
        what: "a watch that will never have a value ends",
        file: "client/src/watcher.rs",
        code: "                error = shared.hopeless() => return Err(error),\n",
        instead: "",
        caught_by: ("suite", "a subscription is refused"),
    },
    Removal {
        what: "a watch of entries waits for its first state for so long",
        file: "client/src/entries.rs",
        code: "within = expired(self.within) => {",
        instead: "within = std::future::pending::<Duration>() => {",
        caught_by: ("scripted", "a_first_state_can_have_a_limit"),
    },
    Removal {
        what: "a watch of entries that will never have a state ends",
        file: "client/src/entries.rs",
        code: "                error = shared.hopeless() => return Err(error),\n",
        instead: "",
        caught_by: ("suite", "a subscription is refused"),
    },
    Removal {
        what: "a subscription ends when the right to its range is taken back",
        file: "client/src/subscription/task.rs",
        code: r#"                self.close(Closed::Revoked);
                return;
"#,
        instead: "",
        caught_by: ("suite", "a client is told to purge"),
    },
];
