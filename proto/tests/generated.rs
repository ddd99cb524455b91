//! The committed code is what the .proto files say.
use std::{fs, path::Path};

#[test]
fn the_committed_code_is_what_the_proto_files_generate() {
    check("holdfast/v1.proto", "holdfast.v1.rs");
    check("cri/v1.proto", "runtime.v1.rs");
}

fn check(source: &str, name: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let descriptors = protox::compile([source], [root.join("proto")]).expect("the .proto file parses");
    let out = tempfile::tempdir().expect("a temporary directory");
    tonic_prost_build::configure()
        .out_dir(out.path())
        .bytes(".")
        .compile_fds(descriptors)
        .expect("code is generated");
    let generated = fs::read_to_string(out.path().join(name)).expect("a generated file");

    let committed_path = root.join("src/generated").join(name);
    if std::env::var_os("HOLDFAST_BLESS").is_some() {
        fs::write(&committed_path, &generated).expect("the generated file is written");
    }
    let committed = fs::read_to_string(&committed_path).expect("a committed file");
    assert!(
        committed == generated,
        "proto/src/generated/{name} is out of date: HOLDFAST_BLESS=1 cargo test -p holdfast-proto"
    );
}
