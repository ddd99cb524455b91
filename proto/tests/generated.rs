//! The committed code is what the .proto file says.
use std::{fs, path::Path};

#[test]
fn the_committed_code_is_what_the_proto_file_generates() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors =
        protox::compile(["holdfast/v1.proto"], [root.join("proto")]).expect("the .proto file parses");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".")
        .compile_fds(descriptors)
        .expect("code is generated");
    let generated = fs::read_to_string(out.path().join("holdfast.v1.rs")).expect("a generated file");

    let committed_path = root.join("src/generated/holdfast.v1.rs");
    if std::env::var_os("HOLDFAST_BLESS").is_some() {
        fs::write(&committed_path, &generated).expect("the generated file is written");
    }
    let committed = fs::read_to_string(&committed_path).expect("a committed file");
    assert!(
        committed == generated,
        "proto/src/generated/holdfast.v1.rs is out of date: HOLDFAST_BLESS=1 cargo test -p holdfast-proto"
    );
}
