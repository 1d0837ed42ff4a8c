//! Each example, run as a program against a real etcd and a real server, with edits made by
//! `etcdctl`.
#![allow(clippy::unwrap_used, reason = "a panic is how a test fails")]
#![allow(
    clippy::disallowed_methods,
    reason = "what is spawned is held by an AbortOnDropHandle"
)]

#[path = "../../../server/tests/common/etcd.rs"]
mod etcd;
#[path = "../../../server/cli/tests/wrong_inputs/page.rs"]
#[allow(dead_code, reason = "its sections are counted by the other test")]
mod page;
#[path = "../../../server/tests/common/proxy.rs"]
mod proxy;

mod embed_in_axum;
mod hello_watch;
mod in_any_language;
mod program;
mod python;
mod readme;
mod typed_hot_reload;
mod world;
