//! What the agent says of the kernel that it runs on: `check` and a start agree, and name what is missing.

use std::{
    collections::BTreeMap,
    process::{Command, Output},
};

use holdfast_agent::{
    check,
    kernel::{lacking, release, version},
    probes::{Options, Probes},
    syscalls::kernel::Sizes,
    workloads::cri::Runtimes,
};
use serde_json::Value;

/// Nobody listens there, so a start that gets so far goes on until it is told to stop.
const NOWHERE: &str = "http://127.0.0.1:1";

fn agent(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_holdfast-agent"))
        .args(arguments)
        .env_remove("RUST_LOG")
        .output()
        .expect("the agent")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// What `check` finds, by name: verdict, and what was found.
fn findings(output: &Output) -> BTreeMap<String, (String, String)> {
    let text = text(&output.stdout);
    let findings = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    findings
        .map(|finding| {
            let field = |name: &str| finding[name].as_str().expect(name).to_owned();
            (field("name"), (field("verdict"), field("found")))
        })
        .collect()
}

#[test]
fn a_kernel_is_refused_for_what_it_lacks_by_name_or_not_at_all() {
    let release = release();
    let version = version(&release).expect("a version");
    let checked = agent(&["check", "--json"]);
    let findings = findings(&checked);
    let verdict = |name: &str| findings[name].0.as_str();
    if lacking(version).is_none() {
        assert_eq!(checked.status.code(), Some(0), "{findings:#?}");
        for name in [
            "btf",
            "kernel_members",
            "programs_load",
            "survey",
            "namespaces",
            "owners",
            "syscalls",
        ] {
            assert_eq!(verdict(name), "ok", "{findings:#?}");
        }
        let kernel = if version < (6, 1) { "less" } else { "ok" };
        assert_eq!(verdict("kernel"), kernel, "{findings:#?}");
        return;
    }
    // The one that is tried: Debian's 5.10.
    let reason = format!(
        "Linux {release} lacks what the programs need: BPF atomics with results (5.12), \
         socket cookies in tracing programs (5.12); supported are 6.1 and later"
    );
    assert_eq!(checked.status.code(), Some(1));
    assert_eq!(findings["programs_load"], ("missing".into(), reason.clone()));
    assert_eq!(verdict("kernel"), "less");
    let started = agent(&["run", "--collector", NOWHERE]);
    assert_eq!(started.status.code(), Some(4));
    let said = text(&started.stderr);
    assert!(said.contains(&format!("holdfast-agent: {reason}: ")), "{said}");
    assert!(
        said.contains("BPF_STX uses reserved fields"),
        "the verifier's word: {said}"
    );
}

#[test]
fn what_is_missing_is_told_to_the_collector_by_the_names_that_check_prints() {
    if lacking(version(&release()).expect("a version")).is_some() {
        // It does not start there, so it tells nobody.
        return;
    }
    let findings = findings(&agent(&["check", "--json"]));
    let missing: Vec<&str> = findings
        .iter()
        .filter(|(_, (verdict, _))| verdict != "ok")
        .map(|(name, _)| name.as_str())
        .collect();
    let load = |syscalls| {
        Probes::load(Options {
            connections: 16,
            syscalls,
            ..Options::default()
        })
    };
    let probes = load(None).expect("loaded");
    let are_syscalls_refused = load(Some(Sizes::none())).is_err();
    let mut told = check::missing_features(&probes, are_syscalls_refused, None);
    let runtime = check::container_runtime(&Runtimes::Auto);
    told.extend(runtime.lacks().map(str::to_owned));
    told.sort();
    assert_eq!(told, missing);
}
