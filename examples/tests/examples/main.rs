//! Each example, run as a program against a real etcd and a real server, with edits made by
//! `etcdctl`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(
    clippy::disallowed_methods,
    reason = "what is spawned is held by an AbortOnDropHandle"
)]

mod embed_in_axum;
mod hello_watch;
mod in_any_language;
mod python;
mod readme;
mod typed_hot_reload;
mod world;
