//! From the parcels of one block to the block, column by column. A column is the parcels' columns one after another;
//! what a batch has as an index into a dictionary of its own becomes the value, or an index into the block's
//! dictionary.

mod cgroups;
mod network;
mod overhead;
mod syscalls;
mod transitions;

use std::borrow::Cow;
use std::collections::HashMap;

use holdfast_proto::v1::{Gap, Listener, Outcome, Path, Process, StreamCounters};
use holdfast_proto::{FLAG_FINAL, FLAG_FIRST, FLAG_RESET_RECEIVED, FLAG_RESET_SENT};

use super::{BatchName, Content};
use crate::ingest::agent::Agent;
use crate::ingest::decode::{AgentSample, Connections, OpenConnections, SWITCHED};
use crate::store::Block;
use crate::store::native::{BlockBuilder, BlockError};
use crate::store::schema::{
    AGENT_SAMPLES, CGROUP_RECORDS, CONNECTION_RECORDS, CONNECTION_SAMPLES, GAP_RECORDS, LEDGER_SAMPLES,
    LISTENER_SAMPLES, NAMESPACE_SAMPLES, NODE_SESSIONS, OVERHEAD_SAMPLES, PEER_SAMPLES, SYSCALL_SAMPLES,
    TRANSITION_EVENTS,
};

/// The block of these contents of parcels, which are of one kind, with their agents; and its table.
pub fn block<'a>(
    parcels: impl IntoIterator<Item = (&'a Agent, &'a Content)>,
) -> Result<(&'static str, Block), BlockError> {
    let mut batches = Vec::new();
    let mut gaps = Vec::new();
    let mut looks = Vec::new();
    let mut listeners = Vec::new();
    let mut namespaces = Vec::new();
    let mut peers = Vec::new();
    let mut cgroups = Vec::new();
    let mut calls = Vec::new();
    let mut transitions = Vec::new();
    let mut costs = Vec::new();
    let mut samples = Vec::new();
    let mut agents = Vec::new();
    let mut sessions = Vec::new();
    for (agent, content) in parcels {
        match content {
            Content::Connections { batch, columns } => {
                batches.push(Delivered {
                    agent,
                    batch,
                    columns: &**columns,
                });
            }
            Content::Gaps {
                batch,
                gaps: rows,
                told_ns,
            } => gaps.extend(rows.iter().map(|gap| (agent, batch, *told_ns, gap))),
            Content::OpenConnections { batch, look } => looks.push((
                Delivered {
                    agent,
                    batch,
                    columns: &look.connections,
                },
                &**look,
            )),
            Content::Listeners { batch, look } => {
                // Checked when the batch came: each has a process.
                listeners.extend(look.listeners.iter().filter_map(|listener| {
                    Some(Listening {
                        agent,
                        batch,
                        observed_at_ns: look.observed_at_ns,
                        listener,
                        process: listener.process.as_ref()?,
                    })
                }));
            }
            Content::Namespaces { batch, look } => namespaces.push((agent, batch, look)),
            Content::Cgroups { batch, look } => {
                cgroups.extend(
                    look.cgroups
                        .iter()
                        .map(|cgroup| (agent, batch, look.observed_at_ns, cgroup)),
                );
            }
            Content::Peers { batch, look } => peers.push((agent, batch, look)),
            Content::Syscalls { batch, columns } => calls.push(Delivered {
                agent,
                batch,
                columns: &**columns,
            }),
            Content::Transitions { batch, columns } => transitions.push(Delivered {
                agent,
                batch,
                columns: &**columns,
            }),
            Content::Overhead { batch, intervals } => {
                costs.extend(intervals.iter().map(|interval| (agent, batch, interval)));
            }
            Content::Ledger {
                epoch,
                observed_at_ns,
                received_at_ns,
                is_final,
                counters,
            } => {
                samples.extend(counters.iter().map(|counters| Sample {
                    agent,
                    epoch: *epoch,
                    observed_at_ns: *observed_at_ns,
                    received_at_ns: *received_at_ns,
                    is_final: *is_final,
                    counters,
                }));
            }
            Content::Sample {
                epoch,
                observed_at_ns,
                sample,
            } => agents.push((agent, *epoch, *observed_at_ns, sample)),
            Content::Session {
                connected_at_ns,
                remote,
            } => sessions.push((agent, *connected_at_ns, &**remote)),
        }
    }
    let (table, block) = if !batches.is_empty() {
        (&CONNECTION_RECORDS, connection_records(&Rows::new(batches))?)
    } else if !gaps.is_empty() {
        (&GAP_RECORDS, gap_records(&gaps)?)
    } else if !looks.is_empty() {
        (&CONNECTION_SAMPLES, connection_samples(looks)?)
    } else if !listeners.is_empty() {
        (&LISTENER_SAMPLES, listener_samples(&listeners)?)
    } else if !namespaces.is_empty() {
        (&NAMESPACE_SAMPLES, network::namespace_samples(&namespaces)?)
    } else if !cgroups.is_empty() {
        (&CGROUP_RECORDS, cgroups::cgroup_records(&cgroups)?)
    } else if !peers.is_empty() {
        (&PEER_SAMPLES, network::peer_samples(&peers)?)
    } else if !calls.is_empty() {
        (&SYSCALL_SAMPLES, syscalls::syscall_samples(&calls)?)
    } else if !transitions.is_empty() {
        (&TRANSITION_EVENTS, transitions::transition_events(&transitions)?)
    } else if !costs.is_empty() {
        (&OVERHEAD_SAMPLES, overhead::overhead_samples(&costs)?)
    } else if !samples.is_empty() {
        (&LEDGER_SAMPLES, ledger_samples(&samples)?)
    } else if !agents.is_empty() {
        (&AGENT_SAMPLES, agent_samples(&agents)?)
    } else {
        (&NODE_SESSIONS, node_sessions(&sessions)?)
    };
    Ok((table.name, block))
}

fn connection_records(rows: &Rows<'_>) -> Result<Block, BlockError> {
    let mut block = BlockBuilder::new(&CONNECTION_RECORDS, rows.rows)?;
    rows.owners(&mut block)?;
    block.enums("outcome", &rows.converted(|c| &c.outcome, u8::cast_signed))?;
    block.datetimes("recorded_at", &rows.joined(|c| &c.recorded_at_ns))?;
    rows.ends(&mut block)?;
    block.u64s("connect_us", &rows.joined(|c| &c.connect_us))?;
    block.u64s("duration_us", &rows.joined(|c| &c.duration_us))?;
    rows.volumes(&mut block)?;
    block.u16s("errno", &rows.converted(|c| &c.error, u16::from))?;
    let causes: Vec<u32> = rows.converted(|c| &c.local_cause, u32::from);
    block.low_cardinality("local_cause", &LOCAL_CAUSES, &causes)?;
    block.enums(
        "close_reason",
        &rows.converted(|c| &c.close_reason, u8::cast_signed),
    )?;
    rows.texts(|c| &c.path, |c| &c.paths, |path| path_text(path).into())
        .write(&mut block, "path")?;
    block.u64_arrays("step_us", &rows.step_ends(), &rows.joined(|c| &c.step_us))?;
    rows.cookies(&mut block)?;
    block.bools(
        "is_first",
        &rows.converted(|c| &c.flags, |flags: u8| flags & FLAG_FIRST != 0),
    )?;
    block.bools(
        "is_final",
        &rows.converted(|c| &c.flags, |flags: u8| flags & FLAG_FINAL != 0),
    )?;
    rows.names(&mut block)?;
    block.u8s("streamed", &rows.joined(|c| &c.streamed))?;
    block.nullable_u32s(
        "accept_wait_us",
        &rows.converted(|c| &c.accept_wait, |wait: u32| wait.checked_sub(1)),
    )?;
    block.enums("resets", &rows.converted(|c| &c.flags, resets))?;
    block.finish()
}

/// The number of the name in the column `resets`.
fn resets(flags: u8) -> i8 {
    let sent = i8::from(flags & FLAG_RESET_SENT != 0);
    sent + 2 * i8::from(flags & FLAG_RESET_RECEIVED != 0)
}

/// The names of the protocol's `LocalCause`, by its numbers.
pub const LOCAL_CAUSES: [&str; 14] = [
    "",
    "refused_by_peer",
    "icmp_port_unreachable",
    "no_answer",
    "no_route",
    "no_port",
    "local_filter",
    "host_unreachable",
    "net_unreachable",
    "icmp_prohibited",
    "reset_by_peer",
    "process_gave_up",
    "syn_retransmitted",
    "dissolved_by_kernel",
];

/// The name of a TCP state, by the kernel's numbers (include/net/tcp_states.h).
fn state_name(state: u8) -> &'static str {
    const NAMES: [&str; 13] = [
        "",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "CLOSE",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
        "NEW_SYN_RECV",
    ];
    NAMES.get(usize::from(state)).unwrap_or(&"")
}

/// `SYN_SENT>ESTABLISHED>FIN_WAIT1>CLOSE`; `...` before the last where steps in between were not recorded.
fn path_text(path: &Path) -> String {
    let mut text = String::new();
    for (step, state) in path.states.iter().enumerate() {
        if step > 0 {
            text.push('>');
        }
        if path.truncated && step + 1 == path.states.len() {
            text.push_str("...");
        }
        text.push_str(state_name(*state));
    }
    text
}

fn agent_samples(agents: &[(&Agent, u64, i64, &AgentSample)]) -> Result<Block, BlockError> {
    let counts = |count: fn(&AgentSample) -> u64| -> Vec<u64> {
        agents.iter().map(|(_, _, _, sample)| count(sample)).collect()
    };
    let mut block = BlockBuilder::new(&AGENT_SAMPLES, agents.len())?;
    Texts::of(agents.iter().map(|(agent, ..)| agent.node.as_str())).write(&mut block, "node")?;
    Texts::of(agents.iter().map(|(agent, ..)| agent.id.as_str())).write(&mut block, "agent_id")?;
    let epochs: Vec<u64> = agents.iter().map(|(_, epoch, ..)| *epoch).collect();
    block.u64s("agent_epoch", &epochs)?;
    let times: Vec<i64> = agents.iter().map(|(_, _, at_ns, _)| *at_ns).collect();
    block.datetimes("observed_at", &times)?;
    let offsets: Vec<i64> = agents.iter().map(|(.., sample)| sample.clock_offset_ns).collect();
    block.i64s("clock_offset_ns", &offsets)?;
    block.u64s("clock_error_ns", &counts(|sample| sample.clock_error_ns))?;
    block.u64s("spool_batches", &counts(|sample| sample.spool_batches))?;
    block.u64s("spool_memory_bytes", &counts(|sample| sample.spool_memory_bytes))?;
    block.u64s("spool_disk_bytes", &counts(|sample| sample.spool_disk_bytes))?;
    let failed: Vec<bool> = agents
        .iter()
        .map(|(.., sample)| sample.spool_disk_failed)
        .collect();
    block.bools("spool_disk_failed", &failed)?;
    let times = |time: fn(&AgentSample) -> i64| -> Vec<i64> {
        agents.iter().map(|(.., sample)| time(sample)).collect()
    };
    block.datetimes("received_at", &times(|sample| sample.received_at_ns))?;
    block.datetimes("watermark_at", &times(|sample| sample.watermark_ns))?;
    block.datetimes(
        "attempts_watermark_at",
        &times(|sample| sample.attempts_watermark_ns),
    )?;
    block.u64s("missing", &counts(|sample| sample.missing))?;
    block.u64s("lost", &counts(|sample| sample.lost))?;
    block.u64s("dropped", &counts(|sample| sample.dropped))?;
    block.u64s("syscalls_missing", &counts(|sample| sample.syscalls_missing))?;
    block.datetimes("syscalls_since", &times(|sample| sample.syscalls_since_ns))?;
    block.datetimes("listeners_since", &times(|sample| sample.listeners_since_ns))?;
    block.datetimes("open_connections_since", &times(|sample| sample.open_since_ns))?;
    let off: Vec<Vec<_>> = agents
        .iter()
        .map(|(.., sample)| {
            let named = SWITCHED.iter().zip(sample.off);
            named
                .filter_map(|((_, name), reason)| Some((*name, reason?)))
                .collect()
        })
        .collect();
    block.string_maps("off", &off)?;
    Texts::of(agents.iter().map(|(.., sample)| sample.rival.as_str())).write(&mut block, "rival")?;
    block.finish()
}

fn ledger_samples(samples: &[Sample<'_>]) -> Result<Block, BlockError> {
    let counts = |count: fn(&StreamCounters) -> u64| -> Vec<u64> {
        samples.iter().map(|sample| count(sample.counters)).collect()
    };
    let each = |text: fn(&Agent) -> &str| Texts::of(samples.iter().map(|sample| text(sample.agent)));
    let streams: Vec<i8> = samples
        .iter()
        .map(|sample| sample.counters.stream as i8)
        .collect();
    let mut block = BlockBuilder::new(&LEDGER_SAMPLES, samples.len())?;
    each(|agent| &agent.node).write(&mut block, "node")?;
    each(|agent| &agent.id).write(&mut block, "agent_id")?;
    block.u64s(
        "agent_epoch",
        &samples.iter().map(|sample| sample.epoch).collect::<Vec<_>>(),
    )?;
    block.enums("stream", &streams)?;
    block.u32s(
        "netns",
        &samples
            .iter()
            .map(|sample| sample.counters.netns)
            .collect::<Vec<_>>(),
    )?;
    block.datetimes(
        "observed_at",
        &samples
            .iter()
            .map(|sample| sample.observed_at_ns)
            .collect::<Vec<_>>(),
    )?;
    block.u64s("opened", &counts(|counters| counters.opened))?;
    block.u64s("closed", &counts(|counters| counters.closed))?;
    block.u64s("open", &counts(|counters| counters.open))?;
    block.u64s("untracked", &counts(|counters| counters.untracked))?;
    block.u64s("unseen", &counts(|counters| counters.unseen))?;
    block.u64s("lost", &counts(|counters| counters.lost))?;
    block.u64s("filtered", &counts(|counters| counters.filtered))?;
    block.u64s("received", &counts(|counters| counters.received))?;
    block.u64s("batching", &counts(|counters| counters.batching))?;
    block.u64s("unacknowledged", &counts(|counters| counters.unacknowledged))?;
    block.u64s("acknowledged", &counts(|counters| counters.acknowledged))?;
    block.u64s("dropped", &counts(|counters| counters.dropped))?;
    block.u64s("refused", &counts(|counters| counters.refused))?;
    block.u64s("superseded", &counts(|counters| counters.superseded))?;
    block.u64s("missed", &counts(|counters| counters.missed))?;
    block.u64s("unsent", &counts(|counters| counters.unsent))?;
    block.u64s("seeded", &counts(|counters| counters.seeded))?;
    block.u64s("announced", &counts(|counters| counters.announced))?;
    block.u64s(
        "witnessed",
        &counts(|counters| counters.witnessed.unwrap_or_default()),
    )?;
    let witnessed: Vec<bool> = samples
        .iter()
        .map(|sample| sample.counters.witnessed.is_some())
        .collect();
    block.bools("is_witnessed", &witnessed)?;
    block.u64s("ended", &counts(|counters| counters.ended))?;
    block.bools(
        "is_final",
        &samples.iter().map(|sample| sample.is_final).collect::<Vec<_>>(),
    )?;
    block.u64s("unmeasured", &counts(|counters| counters.unmeasured))?;
    block.u64s("evicted", &counts(|counters| counters.evicted))?;
    block.u64s("sampled_out", &counts(|counters| counters.sampled_out))?;
    block.u64s("elsewhere", &counts(|counters| counters.elsewhere))?;
    let received: Vec<i64> = samples.iter().map(|sample| sample.received_at_ns).collect();
    block.datetimes("received_at", &received)?;
    block.finish()
}

fn node_sessions(sessions: &[(&Agent, i64, &str)]) -> Result<Block, BlockError> {
    let each = |text: fn(&Agent) -> &str| Texts::of(sessions.iter().map(|(agent, _, _)| text(agent)));
    let labels = |agent: &Agent| agent.labels.clone().into_iter().collect();
    let mut block = BlockBuilder::new(&NODE_SESSIONS, sessions.len())?;
    each(|agent| &agent.node).write(&mut block, "node")?;
    each(|agent| &agent.id).write(&mut block, "agent_id")?;
    block.u64s(
        "agent_epoch",
        &sessions
            .iter()
            .map(|(agent, _, _)| agent.epoch)
            .collect::<Vec<_>>(),
    )?;
    block.datetimes(
        "connected_at",
        &sessions.iter().map(|(_, at_ns, _)| *at_ns).collect::<Vec<_>>(),
    )?;
    block.strings(
        "remote",
        &sessions.iter().map(|(_, _, remote)| *remote).collect::<Vec<_>>(),
    )?;
    block.string_maps(
        "labels",
        &sessions
            .iter()
            .map(|(agent, _, _)| labels(agent))
            .collect::<Vec<_>>(),
    )?;
    each(|agent| &agent.version).write(&mut block, "version")?;
    each(|agent| &agent.boot_id).write(&mut block, "boot_id")?;
    each(|agent| &agent.kernel).write(&mut block, "kernel")?;
    each(|agent| &agent.architecture).write(&mut block, "architecture")?;
    each(|agent| &agent.observed_netns).write(&mut block, "observed_netns")?;
    let missing: Vec<_> = sessions
        .iter()
        .map(|(agent, _, _)| agent.missing_features.clone())
        .collect();
    block.string_arrays("missing_features", &missing)?;
    let addresses: Vec<_> = sessions
        .iter()
        .map(|(agent, _, _)| agent.addresses.clone())
        .collect();
    block.string_arrays("addresses", &addresses)?;
    block.finish()
}

/// A batch and who delivered it.
struct Delivered<'a, Columns = Connections> {
    agent: &'a Agent,
    batch: &'a BatchName,
    columns: &'a Columns,
}

/// One row of counters.
struct Sample<'a> {
    agent: &'a Agent,
    epoch: u64,
    observed_at_ns: i64,
    received_at_ns: i64,
    is_final: bool,
    counters: &'a StreamCounters,
}

/// A listener, and the batch that brought it.
struct Listening<'a> {
    agent: &'a Agent,
    batch: &'a BatchName,
    observed_at_ns: i64,
    listener: &'a Listener,
    process: &'a Process,
}

fn listener_samples(listeners: &[Listening<'_>]) -> Result<Block, BlockError> {
    fn each<'a, T>(listeners: &'a [Listening<'a>], value: impl Fn(&Listening<'a>) -> T) -> Vec<T> {
        listeners.iter().map(value).collect()
    }
    let text = |value: fn(&Process) -> &str| Texts::of(listeners.iter().map(move |of| value(of.process)));
    let mut block = BlockBuilder::new(&LISTENER_SAMPLES, listeners.len())?;
    Texts::of(listeners.iter().map(|of| of.agent.node.as_str())).write(&mut block, "node")?;
    text(|process| &process.service).write(&mut block, "service")?;
    block.datetimes("observed_at", &each(listeners, |of| of.observed_at_ns))?;
    block.ipv6s(
        "local_ip",
        &each(listeners, |of| {
            of.listener.address.as_ref().try_into().unwrap_or_default()
        }),
    )?;
    block.u16s("local_port", &each(listeners, |of| of.listener.port as u16))?;
    block.u32s("pid", &each(listeners, |of| of.process.pid))?;
    text(|process| &process.comm).write(&mut block, "comm")?;
    block.enums(
        "attribution",
        &each(listeners, |of| of.listener.attribution as i8),
    )?;
    block.u32s("netns", &each(listeners, |of| of.process.netns))?;
    block.u64s("cgroup_id", &each(listeners, |of| of.process.cgroup_id))?;
    block.u32s("backlog", &each(listeners, |of| of.listener.backlog))?;
    block.u32s("backlog_limit", &each(listeners, |of| of.listener.backlog_limit))?;
    block.u32s("drops", &each(listeners, |of| of.listener.drops))?;
    block.u64s("cookie", &each(listeners, |of| of.listener.cookie))?;
    Texts::of(listeners.iter().map(|of| of.agent.id.as_str())).write(&mut block, "agent_id")?;
    Texts::of(listeners.iter().map(|of| of.batch.boot_id.as_str())).write(&mut block, "boot_id")?;
    block.u64s("agent_epoch", &each(listeners, |of| of.batch.epoch))?;
    block.u64s("sequence", &each(listeners, |of| of.batch.sequence))?;
    block.nullable_u64s(
        "namespace_overflows",
        &each(listeners, |of| of.listener.namespace_overflows),
    )?;
    block.nullable_u64s(
        "namespace_drops",
        &each(listeners, |of| of.listener.namespace_drops),
    )?;
    block.finish()
}

fn connection_samples(looks: Vec<(Delivered<'_>, &OpenConnections)>) -> Result<Block, BlockError> {
    let (batches, looks): (Vec<_>, Vec<_>) = looks.into_iter().unzip();
    let mut observed_at_ns = Vec::new();
    let mut weight = Vec::new();
    for look in looks {
        let rows = look.connections.rows;
        observed_at_ns.resize(observed_at_ns.len() + rows, look.observed_at_ns);
        // Attempts that wait are all there.
        weight.extend(look.connections.outcome.iter().map(|&outcome| {
            if i32::from(outcome) == Outcome::Pending as i32 {
                1
            } else {
                look.one_in
            }
        }));
    }
    let rows = Rows::new(batches);
    let mut block = BlockBuilder::new(&CONNECTION_SAMPLES, rows.rows)?;
    rows.owners(&mut block)?;
    block.enums("outcome", &rows.converted(|c| &c.outcome, u8::cast_signed))?;
    block.datetimes("observed_at", &observed_at_ns)?;
    block.datetimes("opened_at", &rows.joined(|c| &c.recorded_at_ns))?;
    rows.ends(&mut block)?;
    block.u64s("connect_us", &rows.joined(|c| &c.connect_us))?;
    rows.volumes(&mut block)?;
    rows.texts(|c| &c.path, |c| &c.paths, |path| path_text(path).into())
        .write(&mut block, "path")?;
    block.u32s("weight", &weight)?;
    rows.cookies(&mut block)?;
    rows.names(&mut block)?;
    block.finish()
}

fn gap_records(gaps: &[(&Agent, &BatchName, i64, &Gap)]) -> Result<Block, BlockError> {
    let numbers =
        |number: fn(&Gap) -> u64| -> Vec<u64> { gaps.iter().map(|(_, _, _, gap)| number(gap)).collect() };
    let times = |time: fn(&Gap) -> u64| -> Vec<i64> {
        // Checked when the batch came: a time fits.
        numbers(time).into_iter().map(u64::cast_signed).collect()
    };
    let enums =
        |value: fn(&Gap) -> i32| -> Vec<i8> { gaps.iter().map(|(_, _, _, gap)| value(gap) as i8).collect() };
    let mut block = BlockBuilder::new(&GAP_RECORDS, gaps.len())?;
    Texts::of(gaps.iter().map(|(agent, ..)| agent.node.as_str())).write(&mut block, "node")?;
    Texts::of(gaps.iter().map(|(agent, ..)| agent.id.as_str())).write(&mut block, "agent_id")?;
    block.u64s("agent_epoch", &numbers(|gap| gap.epoch))?;
    block.enums("stream", &enums(|gap| gap.stream))?;
    block.enums("reason", &enums(|gap| gap.reason))?;
    let namespaces: Vec<u32> = gaps.iter().map(|(.., gap)| gap.netns).collect();
    block.u32s("netns", &namespaces)?;
    block.u64s("rows", &numbers(|gap| gap.rows))?;
    let at_least: Vec<bool> = gaps.iter().map(|(.., gap)| gap.at_least).collect();
    block.bools("at_least", &at_least)?;
    block.u64s("first_sequence", &numbers(|gap| gap.first_sequence))?;
    block.u64s("last_sequence", &numbers(|gap| gap.last_sequence))?;
    block.datetimes("first_at", &times(|gap| gap.first_ns))?;
    block.datetimes("last_at", &times(|gap| gap.last_ns))?;
    let recorded_at: Vec<i64> = gaps.iter().map(|(_, _, at_ns, _)| *at_ns).collect();
    block.datetimes("recorded_at", &recorded_at)?;
    let batches = |number: fn(&BatchName) -> u64| -> Vec<u64> {
        gaps.iter().map(|(_, batch, _, _)| number(batch)).collect()
    };
    block.u64s("reported_epoch", &batches(|batch| batch.epoch))?;
    block.u64s("sequence", &batches(|batch| batch.sequence))?;
    block.finish()
}

/// The rows of several batches, one after another.
struct Rows<'a> {
    batches: Vec<Delivered<'a>>,
    rows: usize,
}

impl<'a> Rows<'a> {
    fn new(batches: Vec<Delivered<'a>>) -> Self {
        let rows = batches.iter().map(|batch| batch.columns.rows).sum();
        Self { batches, rows }
    }

    /// Where it was seen, whose it is and who began it: `node`, `service`, `role`.
    fn owners(&self, block: &mut BlockBuilder) -> Result<(), BlockError> {
        self.repeated_texts(|batch| &batch.agent.node)
            .write(block, "node")?;
        self.texts(
            |c| &c.process,
            |c| &c.processes,
            |process| process.service.as_str().into(),
        )
        .write(block, "service")?;
        block.enums("role", &self.converted(|c| &c.role, u8::cast_signed))?;
        Ok(())
    }

    /// Both ends and the process of this one: `pid` to `remote_port`.
    fn ends(&self, block: &mut BlockBuilder) -> Result<(), BlockError> {
        block.u32s(
            "pid",
            &self.looked_up(|c| &c.process, |c| &c.processes, |process| process.pid),
        )?;
        self.texts(
            |c| &c.process,
            |c| &c.processes,
            |process| process.comm.as_str().into(),
        )
        .write(block, "comm")?;
        block.enums(
            "attribution",
            &self.converted(|c| &c.attribution, u8::cast_signed),
        )?;
        block.u32s(
            "netns",
            &self.looked_up(|c| &c.process, |c| &c.processes, |process| process.netns),
        )?;
        block.u64s(
            "cgroup_id",
            &self.looked_up(|c| &c.process, |c| &c.processes, |process| process.cgroup_id),
        )?;
        block.ipv6s(
            "local_ip",
            &self.looked_up(|c| &c.local_address, |c| &c.addresses, |address| *address),
        )?;
        // Checked when the batch came: a port fits.
        block.u16s(
            "local_port",
            &self.converted(|c| &c.local_port, |port: u32| port as u16),
        )?;
        block.ipv6s(
            "remote_ip",
            &self.looked_up(|c| &c.remote_address, |c| &c.addresses, |address| *address),
        )?;
        block.u16s(
            "remote_port",
            &self.converted(|c| &c.remote_port, |port: u32| port as u16),
        )?;
        Ok(())
    }

    /// What it carried: `bytes_sent` to `srtt_us`.
    fn volumes(&self, block: &mut BlockBuilder) -> Result<(), BlockError> {
        block.u64s("bytes_sent", &self.joined(|c| &c.bytes_sent))?;
        block.u64s("bytes_received", &self.joined(|c| &c.bytes_received))?;
        block.u32s("segments_sent", &self.joined(|c| &c.segments_sent))?;
        block.u32s("segments_received", &self.joined(|c| &c.segments_received))?;
        block.u32s("retransmits", &self.joined(|c| &c.retransmits))?;
        block.u8s("syn_retransmits", &self.joined(|c| &c.syn_retransmits))?;
        block.u32s("srtt_us", &self.joined(|c| &c.srtt_us))?;
        Ok(())
    }

    /// `cookie`.
    fn cookies(&self, block: &mut BlockBuilder) -> Result<(), BlockError> {
        block.u64s("cookie", &self.joined(|c| &c.cookie))?;
        Ok(())
    }

    /// The batch that brought the row: `agent_id` to `sequence`.
    fn names(&self, block: &mut BlockBuilder) -> Result<(), BlockError> {
        self.repeated_texts(|batch| &batch.agent.id)
            .write(block, "agent_id")?;
        self.repeated_texts(|delivered| &delivered.batch.boot_id)
            .write(block, "boot_id")?;
        block.u64s("agent_epoch", &self.repeated(|delivered| delivered.batch.epoch))?;
        block.u64s("sequence", &self.repeated(|delivered| delivered.batch.sequence))?;
        Ok(())
    }

    /// A column that the batches have as it is stored.
    fn joined<T: Copy + 'a>(&self, column: impl Fn(&'a Connections) -> &'a [T]) -> Vec<T> {
        let mut joined = Vec::with_capacity(self.rows);
        for batch in &self.batches {
            joined.extend_from_slice(column(batch.columns));
        }
        joined
    }

    /// A column that the batches have in another type.
    fn converted<S: Copy + 'a, T>(
        &self,
        column: impl Fn(&'a Connections) -> &'a [S],
        convert: impl Fn(S) -> T,
    ) -> Vec<T> {
        let mut converted = Vec::with_capacity(self.rows);
        for batch in &self.batches {
            converted.extend(column(batch.columns).iter().map(|value| convert(*value)));
        }
        converted
    }

    /// A column whose values are in the batches' dictionaries.
    fn looked_up<E, T: Copy>(
        &self,
        index: impl Fn(&'a Connections) -> &'a [u32],
        entries: impl Fn(&'a Connections) -> &'a [E],
        value: impl Fn(&E) -> T,
    ) -> Vec<T>
    where
        E: 'a,
    {
        let mut looked_up = Vec::with_capacity(self.rows);
        for batch in &self.batches {
            let values: Vec<T> = entries(batch.columns).iter().map(&value).collect();
            looked_up.extend(index(batch.columns).iter().map(|index| values[*index as usize]));
        }
        looked_up
    }

    /// Where each row's steps end in the joined `step_us`.
    fn step_ends(&self) -> Vec<u64> {
        let mut ends = Vec::with_capacity(self.rows);
        let mut before = 0;
        for batch in &self.batches {
            ends.extend(batch.columns.step_ends.iter().map(|end| before + end));
            before += batch.columns.step_us.len() as u64;
        }
        ends
    }

    /// A column that is the same for all rows of a batch.
    fn repeated<T: Copy>(&self, value: impl Fn(&Delivered<'a>) -> T) -> Vec<T> {
        let mut repeated = Vec::with_capacity(self.rows);
        for batch in &self.batches {
            repeated.resize(repeated.len() + batch.columns.rows, value(batch));
        }
        repeated
    }

    /// A column of texts that the batches have in their dictionaries: one dictionary for all, and each row's index.
    fn texts<E: 'a>(
        &self,
        index: impl Fn(&'a Connections) -> &'a [u32],
        entries: impl Fn(&'a Connections) -> &'a [E],
        text: impl Fn(&'a E) -> Cow<'a, str>,
    ) -> Texts<'a> {
        let mut texts = Texts::with_capacity(self.rows);
        for batch in &self.batches {
            let places: Vec<u32> = entries(batch.columns)
                .iter()
                .map(|entry| texts.place(text(entry)))
                .collect();
            texts
                .indices
                .extend(index(batch.columns).iter().map(|index| places[*index as usize]));
        }
        texts
    }

    /// A text that is the same for all rows of a batch.
    fn repeated_texts(&self, text: impl Fn(&Delivered<'a>) -> &'a str) -> Texts<'a> {
        let mut texts = Texts::with_capacity(self.rows);
        for batch in &self.batches {
            let place = texts.place(Cow::Borrowed(text(batch)));
            texts
                .indices
                .resize(texts.indices.len() + batch.columns.rows, place);
        }
        texts
    }
}

/// A column with a dictionary.
struct Texts<'a> {
    dictionary: Vec<Cow<'a, str>>,
    places: HashMap<Cow<'a, str>, u32>,
    indices: Vec<u32>,
}

impl<'a> Texts<'a> {
    fn with_capacity(rows: usize) -> Self {
        Self {
            dictionary: Vec::new(),
            places: HashMap::new(),
            indices: Vec::with_capacity(rows),
        }
    }

    fn of(texts: impl Iterator<Item = &'a str>) -> Self {
        let mut column = Self::with_capacity(0);
        for text in texts {
            let place = column.place(Cow::Borrowed(text));
            column.indices.push(place);
        }
        column
    }

    fn write(&self, block: &mut BlockBuilder, name: &str) -> Result<(), BlockError> {
        block.low_cardinality(name, &self.dictionary, &self.indices)
    }

    /// The text's place in the dictionary; it is put there if it is not.
    fn place(&mut self, text: Cow<'a, str>) -> u32 {
        if let Some(place) = self.places.get(&text) {
            return *place;
        }
        let place = self.dictionary.len() as u32;
        self.dictionary.push(text.clone());
        self.places.insert(text, place);
        place
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::gather::tests::{batch, parcel, run};

    #[test]
    fn a_path_is_the_names_of_its_states() {
        let text = |states: &'static [u8], truncated| {
            let states = Bytes::from_static(states);
            path_text(&Path { states, truncated })
        };
        assert_eq!(text(&[2, 1, 4, 7], false), "SYN_SENT>ESTABLISHED>FIN_WAIT1>CLOSE");
        assert_eq!(text(&[3, 1, 7], true), "SYN_RECV>ESTABLISHED>...CLOSE");
        assert_eq!(text(&[2], false), "SYN_SENT");
    }

    #[test]
    fn dictionaries_are_merged_and_indices_follow() {
        let mut texts = Texts::with_capacity(0);
        let places: Vec<u32> = ["b", "a", "b", "", "a"]
            .into_iter()
            .map(|text| texts.place(text.into()))
            .collect();
        assert_eq!(places, [0, 1, 0, 2, 1]);
        assert_eq!(texts.dictionary, ["b", "a", ""]);
    }

    #[test]
    fn every_kind_of_parcel_is_a_block_that_its_table_declares() {
        run(async {
            let remote = "10.0.0.1:5000".to_owned();
            let counters = StreamCounters {
                stream: 1,
                ..StreamCounters::default()
            };
            for (table, rows, content) in [
                ("connection_records", 3, batch(1, 3, 0)),
                (
                    "node_sessions",
                    1,
                    Content::Session {
                        connected_at_ns: 1,
                        remote,
                    },
                ),
                (
                    "agent_samples",
                    1,
                    Content::Sample {
                        epoch: 7,
                        observed_at_ns: 1,
                        sample: AgentSample::default(),
                    },
                ),
                (
                    "ledger_samples",
                    2,
                    Content::Ledger {
                        epoch: 7,
                        observed_at_ns: 1,
                        received_at_ns: 1,
                        is_final: true,
                        counters: vec![counters; 2],
                    },
                ),
            ] {
                let parcels = [parcel("a", content).await];
                let contents = parcels.iter().map(|parcel| (&*parcel.agent, &parcel.content));
                let (found, block) = block(contents).unwrap();
                assert_eq!((found, block.rows), (table, rows));
            }
        });
    }

    #[test]
    fn steps_of_joined_batches_end_where_they_end() {
        run(async {
            let parcels = [
                parcel("a", batch(1, 3, 0)).await,
                parcel("b", batch(1, 3, 0)).await,
            ];
            let delivered = |parcel: &'_ super::super::Parcel| match &parcel.content {
                Content::Connections { columns, .. } => columns.step_ends.clone(),
                _ => unreachable!("they are batches"),
            };
            assert_eq!(delivered(&parcels[0]), [1, 1, 1]);
            let batches = parcels.iter().map(|parcel| match &parcel.content {
                Content::Connections { batch: name, columns } => Delivered {
                    agent: &parcel.agent,
                    batch: name,
                    columns: &**columns,
                },
                _ => unreachable!("they are batches"),
            });
            assert_eq!(Rows::new(batches.collect()).step_ends(), [1, 1, 1, 2, 2, 2]);
        });
    }
}
