//! The checked-in code matches the `.proto` files.
//!
//! Run with `DRIFTLESS_REGENERATE=1` to generate it again after a change of the contract.

use std::fs;
use std::path::{Path, PathBuf};

use prost_build::Config;

/// Messages with values, or with digests, which are as secret as values. `src/redact.rs` has their
/// `Debug`.
const NO_DERIVED_DEBUG: [&str; 8] = [
    ".driftless.v1.Have",
    ".driftless.v1.Entry",
    ".driftless.v1.Snapshot",
    ".driftless.v1.Diff",
    ".driftless.v1.Current",
    ".driftless.v1.Progress",
    ".driftless.v1.DeltaOp.op",
    ".driftless.v1.DeltaOp",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Generates into `out` with a compiler that is itself a library, so that nobody needs `protoc`.
fn generate(out: &Path) {
    let protos = root().join("proto");
    let descriptors =
        protox::compile(["driftless/v1/config.proto"], [&protos]).expect("config.proto compiles");
    let mut config = Config::new();
    config
        .out_dir(out)
        .bytes(["."])
        .btree_map(["."])
        .skip_debug(NO_DERIVED_DEBUG)
        .file_descriptor_set_path(out.join("descriptors.bin"));
    tonic_prost_build::configure()
        .out_dir(out)
        .build_transport(false)
        .codec_path("crate::codec::CountingCodec")
        .client_mod_attribute("driftless.v1", "#[cfg(feature = \"client\")]")
        .server_mod_attribute("driftless.v1", "#[cfg(feature = \"server\")]")
        .compile_fds_with_config(descriptors.clone(), config)
        .expect("the descriptors generate");
    fs::write(
        out.join("descriptors.bin"),
        prost::Message::encode_to_vec(&descriptors),
    )
    .expect("writable");
}

#[test]
fn generated_code_is_current() {
    let fresh = root().join("../target/generated-check");
    let checked_in = root().join("src/generated");
    fs::create_dir_all(&fresh).expect("target is writable");
    generate(&fresh);
    for name in ["driftless.v1.rs", "descriptors.bin"] {
        let made = fs::read(fresh.join(name)).expect("was generated");
        if std::env::var_os("DRIFTLESS_REGENERATE").is_some() {
            fs::create_dir_all(&checked_in).expect("src is writable");
            fs::write(checked_in.join(name), &made).expect("src is writable");
        }
        let held = fs::read(checked_in.join(name)).unwrap_or_default();
        assert!(
            made == held,
            "src/generated/{name} is not what the .proto says; run: \
             DRIFTLESS_REGENERATE=1 cargo test -p driftless-proto --test generated"
        );
    }
}
