//! Lets the engine's library, which is loaded at run time, find this program's `write`: see `src/store/writes.rs`.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rustc-link-arg=-Wl,--export-dynamic-symbol=write");
}
