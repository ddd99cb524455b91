//! What people want of the probes of which nodes, and how it reaches them. The store keeps it; each collector reads it again
//! and again, and tells each agent that is connected to it what is wanted of that agent whenever that has become
//! something else. So an agent that comes back, and a collector that starts again, end up with the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_proto::v1::{ProbeSettings, SetProbesRequest};
use tokio::sync::{Mutex, watch};
use tokio::time::MissedTickBehavior;
use tracing::{info, warn};

use crate::clock::WallClock;
use crate::ingest::agent::Agent;
use crate::store::probes::{self, Node, Wanted};
use crate::store::{Store, StoreError};

/// How often a collector looks whether another one was told something.
const LOOK: Duration = Duration::from_secs(2);

/// Takes a setting back.
const DEFAULT: &str = "default";

/// Bytes of a name or a value, and entries of one request.
const MAX_TEXT_BYTES: usize = 1_024;
const MAX_ENTRIES: usize = 64;

/// Everything that is wanted, in order of revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules(Vec<Wanted>);

impl Rules {
    /// What is wanted of one node's probes.
    pub fn of(&self, node: &str, labels: &BTreeMap<String, String>) -> ProbeSettings {
        let mut revision = 0;
        let mut values = BTreeMap::new();
        for wanted in self.0.iter().filter(|wanted| is_for(wanted, node, labels)) {
            revision = revision.max(wanted.revision);
            if wanted.value == DEFAULT {
                values.remove(&wanted.key);
            } else {
                values.insert(wanted.key.clone(), wanted.value.clone());
            }
        }
        ProbeSettings {
            revision,
            values: values.into_iter().collect(),
        }
    }

    fn newest(&self) -> u64 {
        self.0.last().map_or(0, |wanted| wanted.revision)
    }
}

fn is_for(wanted: &Wanted, node: &str, labels: &BTreeMap<String, String>) -> bool {
    let is_named = wanted.nodes.is_empty() || wanted.nodes.iter().any(|name| name == node);
    let is_labelled = wanted
        .labels
        .iter()
        .all(|(key, value)| labels.get(key) == Some(value));
    is_named && is_labelled
}

/// Why something cannot be wanted.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The request is at fault.
    #[error("{0}")]
    Request(String),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What all parts of a collector share of this.
pub struct Control {
    store: Arc<dyn Store>,
    clock: WallClock,
    rules: watch::Sender<Arc<Rules>>,
    /// Held while something is wanted: revisions count up.
    wanting: Mutex<()>,
}

impl Control {
    pub fn new(store: Arc<dyn Store>, clock: WallClock) -> Self {
        Self {
            store,
            clock,
            rules: watch::Sender::default(),
            wanting: Mutex::default(),
        }
    }

    /// What is wanted, as this collector knows it, and whenever it changes.
    pub fn rules(&self) -> watch::Receiver<Arc<Rules>> {
        self.rules.subscribe()
    }

    /// Reads it again and again, until it is told to stop.
    pub async fn follow(&self, mut stopping: watch::Receiver<bool>) {
        let mut ticks = tokio::time::interval(LOOK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut is_failing = false;
        loop {
            tokio::select! {
                biased;
                _ = stopping.wait_for(|stopping| *stopping) => return,
                _ = ticks.tick() => {}
            }
            match self.look().await {
                Ok(()) => is_failing = false,
                Err(error) => {
                    if !std::mem::replace(&mut is_failing, true) {
                        warn!(
                            "what is wanted of probes cannot be read, agents go on as they were told: {error}"
                        );
                    }
                }
            }
        }
    }

    async fn look(&self) -> Result<(), StoreError> {
        let rules = Arc::new(Rules(probes::wanted(&*self.store).await?));
        self.rules.send_if_modified(|known| {
            let is_new = *known != rules;
            *known = rules;
            is_new
        });
        Ok(())
    }

    /// Wants something from now on, and gives its revision.
    ///
    /// # Errors
    /// If nothing can be wanted like this, or the store does not keep it.
    pub async fn want(&self, request: SetProbesRequest) -> Result<u64, ControlError> {
        check(&request)?;
        let _one_at_a_time = self.wanting.lock().await;
        self.look().await?;
        let now_ns = self.clock.now_ns();
        // A clock may be behind that of another collector.
        let revision = now_ns.unsigned_abs().max(self.rules.borrow().newest() + 1);
        let labels: BTreeMap<_, _> = request.labels.into_iter().collect();
        let values: BTreeMap<_, _> = request.values.into_iter().collect();
        let mut nodes = request.nodes;
        nodes.sort();
        nodes.dedup();
        let wanted: Vec<_> = values
            .into_iter()
            .map(|(key, value)| Wanted {
                revision,
                nodes: nodes.clone(),
                labels: labels.clone(),
                key,
                value,
            })
            .collect();
        probes::want(&*self.store, &wanted, now_ns).await?;
        for Wanted { key, value, .. } in &wanted {
            info!(?nodes, ?labels, key, value, "something is wanted of probes");
        }
        self.look().await?;
        Ok(revision)
    }

    /// What is wanted of each node's probes, and what they do.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn show(&self) -> Result<Vec<Shown>, StoreError> {
        let rules = Rules(probes::wanted(&*self.store).await?);
        let nodes = probes::nodes(&*self.store).await?;
        Ok(nodes.iter().flat_map(|node| shown(node, &rules)).collect())
    }
}

fn check(request: &SetProbesRequest) -> Result<(), ControlError> {
    let fault = |text: &str| Err(ControlError::Request(text.to_owned()));
    if request.values.is_empty() {
        return fault("nothing is set: write KEY=VALUE, such as syscalls=off");
    }
    if request.values.len() > MAX_ENTRIES || request.labels.len() > MAX_ENTRIES {
        return fault("more than 64 settings or labels at once");
    }
    let pairs = request.values.iter().chain(&request.labels);
    let texts = pairs.flat_map(|(key, value)| [key, value]).chain(&request.nodes);
    for text in texts {
        if text.len() > MAX_TEXT_BYTES || text.contains(char::is_control) {
            return fault("a name or a value has more than 1024 bytes, or a control character");
        }
    }
    Ok(())
}

/// One setting of one node.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Shown {
    pub node: String,
    pub up: bool,
    pub key: String,
    /// What is in force, as far as the agent said. Empty: it never did, or does not know the key.
    pub value: String,
    /// What is wanted; empty: nothing.
    pub wanted: String,
    pub state: State,
    /// Why it is refused.
    pub reason: String,
    /// Of what is wanted of the node; zero: nothing ever was.
    pub revision: u64,
}

/// How what is wanted and what is in force go together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Nothing is wanted: as the node's configuration says.
    Default,
    Applied,
    Refused,
    /// The agent has not answered yet.
    Pending,
}

fn shown(node: &Node, rules: &Rules) -> Vec<Shown> {
    let settings = rules.of(&node.node, &node.labels);
    let has_answered = node.revision == settings.revision;
    let keys = node.applied.keys().chain(settings.values.keys());
    let keys: std::collections::BTreeSet<_> = keys.collect();
    let text = |of: &BTreeMap<String, String>, key| of.get(key).cloned().unwrap_or_default();
    keys.into_iter()
        .map(|key| {
            let wanted = settings.values.get(key).cloned().unwrap_or_default();
            let reason = if has_answered {
                text(&node.refused, key)
            } else {
                String::new()
            };
            let state = match (wanted.is_empty(), has_answered, reason.is_empty()) {
                (_, false, _) => State::Pending,
                (true, true, _) => State::Default,
                (false, true, true) => State::Applied,
                (false, true, false) => State::Refused,
            };
            Shown {
                node: node.node.clone(),
                up: node.up,
                key: key.clone(),
                value: text(&node.applied, key),
                wanted,
                state,
                reason,
                revision: settings.revision,
            }
        })
        .collect()
}

/// What is wanted of an agent, and whenever it becomes something else.
pub struct Orders {
    rules: watch::Receiver<Arc<Rules>>,
    told: u64,
}

impl Orders {
    /// For an agent that was told nothing yet.
    pub fn new(rules: watch::Receiver<Arc<Rules>>) -> Self {
        Self { rules, told: 0 }
    }

    /// The next settings that the agent has to be told; waits until there are some.
    pub async fn next(&mut self, agent: &Agent) -> ProbeSettings {
        loop {
            let settings = self.rules.borrow_and_update().of(&agent.node, &agent.labels);
            if settings.revision != self.told {
                self.told = settings.revision;
                return settings;
            }
            if self.rules.changed().await.is_err() {
                // Nobody can want anything any more.
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(revision: u64, nodes: &[&str], labels: &[(&str, &str)], key: &str, value: &str) -> Wanted {
        Wanted {
            revision,
            nodes: nodes.iter().map(|&name| name.to_owned()).collect(),
            labels: map(labels),
            key: key.to_owned(),
            value: value.to_owned(),
        }
    }

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    fn check(rules: &Rules, node: &str, labels: &[(&str, &str)], expected: (u64, &[(&str, &str)])) {
        let settings = rules.of(node, &map(labels));
        let values: BTreeMap<_, _> = settings.values.into_iter().collect();
        assert_eq!(
            (settings.revision, values),
            (expected.0, map(expected.1)),
            "{node}"
        );
    }

    #[test]
    fn of_what_is_wanted_of_a_node_the_latest_holds() {
        let rules = Rules(vec![
            wanted(1, &[], &[], "syscalls", "off"),
            wanted(2, &[], &[("role", "web")], "syscalls", "full"),
            wanted(3, &["db-1"], &[], "ports", "5432"),
            wanted(4, &["web-2"], &[], "syscalls", "default"),
        ]);
        check(&rules, "other", &[], (1, &[("syscalls", "off")]));
        check(&rules, "web-1", &[("role", "web")], (2, &[("syscalls", "full")]));
        check(
            &rules,
            "db-1",
            &[("role", "db")],
            (3, &[("syscalls", "off"), ("ports", "5432")]),
        );
        check(&rules, "web-2", &[("role", "web")], (4, &[]));
        check(&Rules::default(), "other", &[], (0, &[]));
    }

    #[test]
    fn a_setting_is_pending_until_the_agent_has_answered() {
        let rules = Rules(vec![
            wanted(5, &[], &[], "syscalls", "off"),
            wanted(5, &[], &[], "ports", "80"),
        ]);
        let node = |revision, refused: &[(&str, &str)]| Node {
            node: "web-1".to_owned(),
            up: true,
            labels: BTreeMap::new(),
            revision,
            applied: map(&[("connections", "all"), ("ports", "any"), ("syscalls", "off")]),
            refused: map(refused),
        };
        let states = |node: &Node, rules: &Rules| -> Vec<(String, State)> {
            shown(node, rules)
                .into_iter()
                .map(|row| (row.key, row.state))
                .collect()
        };
        let expected = |states: [State; 3]| -> Vec<(String, State)> {
            ["connections", "ports", "syscalls"]
                .map(str::to_owned)
                .into_iter()
                .zip(states)
                .collect()
        };
        assert_eq!(states(&node(4, &[]), &rules), expected([State::Pending; 3]));
        let refused = node(5, &[("ports", "not here")]);
        assert_eq!(
            states(&refused, &rules),
            expected([State::Default, State::Refused, State::Applied])
        );
        assert_eq!(shown(&refused, &rules)[1].reason, "not here");
        assert_eq!(
            states(&node(0, &[]), &Rules::default()),
            expected([State::Default; 3])
        );
    }

    #[test]
    fn a_request_has_to_say_what() {
        let nothing = SetProbesRequest::default();
        assert!(super::check(&nothing).is_err());
        let long = SetProbesRequest {
            values: [("ports".to_owned(), "1,".repeat(1_000))].into(),
            ..SetProbesRequest::default()
        };
        assert!(super::check(&long).is_err());
    }
}
