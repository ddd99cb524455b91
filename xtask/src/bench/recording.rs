//! Real rows for `bench ingest`: the spool of an agent that had no collector while [`mix`](super::mix) made traffic.

use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};

use super::mix;
use crate::netns::Netns;
use crate::process::{Place, Service};
use crate::up::system::Binaries;
use crate::{span, workspace};

/// Long enough for a million rows or so: within one compressed block of the store nothing is there twice, however
/// often the recording is repeated.
const DURATION: Duration = Duration::from_secs(90);
/// How long the agent may take to load its programs.
const ATTACH_PATIENCE: Duration = Duration::from_secs(20);
/// What it then writes to its log.
const ATTACHED: &str = "watching TCP connections";
/// Nobody listens there.
const NO_COLLECTOR: &str = "http://127.0.0.1:1";

/// The folder with the segments of the recording, which is made unless one of this very agent is there.
pub(super) fn provide(binaries: &Binaries) -> anyhow::Result<PathBuf> {
    let folder = workspace::target_dir()?.join("bench-recording");
    let (spool, complete) = (folder.join("spool"), folder.join("complete"));
    let written = |path: &PathBuf| fs::metadata(path).and_then(|file| file.modified());
    let agent_built = written(&binaries.agent).unwrap_or(SystemTime::UNIX_EPOCH);
    if written(&complete).is_ok_and(|recorded| recorded > agent_built) {
        return Ok(spool);
    }
    eprintln!("recording {} of traffic", span::show(DURATION));
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let netns = Netns::create("record")?;
    mix::prepare(&netns)?;
    let log = folder.join("agent.log");
    let arguments = [
        "run",
        "--collector",
        NO_COLLECTOR,
        "--name",
        "recorded",
        "--netns",
        &format!("/run/netns/{}", netns.name()),
        "--max-cpu",
        "off",
        "--state",
        &spool.display().to_string(),
    ];
    let place = Place {
        log: Some(log.clone()),
        ..Place::default()
    };
    let mut agent = Service::start("agent", &binaries.agent, &arguments.map(str::to_owned), place)?;
    let started = Instant::now();
    while !fs::read_to_string(&log).unwrap_or_default().contains(ATTACHED) {
        if let Some(why) = agent.ended() {
            anyhow::bail!(why);
        }
        ensure!(
            started.elapsed() < ATTACH_PATIENCE,
            "the agent has not attached its programs within {} s; see {}",
            ATTACH_PATIENCE.as_secs(),
            log.display()
        );
        thread::sleep(Duration::from_millis(100));
    }
    let mut traffic = netns.command(&std::env::current_exe()?);
    let status = traffic
        .args(["mix", "--for", &format!("{}s", DURATION.as_secs())])
        .status()?;
    ensure!(status.success(), "the traffic failed ({status})");
    let status = agent.stop()?;
    ensure!(
        status.success(),
        "the agent did not end well ({status}); see {}",
        log.display()
    );
    fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(spool)
}
