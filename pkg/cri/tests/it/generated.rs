//! The committed code of the protocols is what their `.proto` files say.
//!
//! `RKUBE_UPDATE=1 cargo test -p rkube-cri generated` writes it anew.

use std::path::Path;

const PROTOS: [&str; 5] = ["api.proto", "containerd.proto", "events.proto", "images.proto", "leases.proto"];

#[test]
fn committed_code_matches_the_protocols() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let out = tempfile::tempdir().expect("a temporary folder");
    let descriptors = protox::compile(PROTOS, [root.join("proto")]).expect("the protocols compile");
    tonic_prost_build::configure()
        .build_server(false)
        .build_transport(false)
        .emit_rerun_if_changed(false)
        .out_dir(out.path())
        .compile_fds(descriptors)
        .expect("the code is generated");

    let committed = root.join("src/gen");
    let update = std::env::var_os("RKUBE_UPDATE").is_some();
    let mut stale = Vec::new();
    for entry in std::fs::read_dir(out.path()).expect("the folder is readable") {
        let entry = entry.expect("the folder is readable");
        let name = entry.file_name().into_string().expect("names are text");
        let generated = std::fs::read_to_string(entry.path()).expect("the file is readable");
        let target = committed.join(&name);
        if update {
            std::fs::write(&target, generated).expect("the source tree is writable");
        } else if normal(&std::fs::read_to_string(&target).unwrap_or_default()) != normal(&generated) {
            stale.push(name);
        }
    }
    assert!(stale.is_empty(), "not what the protocols say: {stale:?}; run with RKUBE_UPDATE=1");
}

/// Formatting is not part of the claim: the repository's rustfmt settings may move line breaks and
/// trailing commas.
fn normal(code: &str) -> String {
    code.chars().filter(|c| !c.is_whitespace() && !matches!(c, ',' | '{' | '}' | '(' | ')')).collect()
}
