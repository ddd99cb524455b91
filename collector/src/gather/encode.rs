//! From the parcels of one block to the block, column by column. A column is the parcels' columns one after another;
//! what a batch has as an index into a dictionary of its own becomes the value, or an index into the block's
//! dictionary.

use std::borrow::Cow;
use std::collections::HashMap;

use holdfast_proto::v1::{Gap, Path, StreamCounters};
use holdfast_proto::{FLAG_FINAL, FLAG_FIRST};

use super::{BatchName, Content, Parcel};
use crate::ingest::agent::Agent;
use crate::ingest::decode::{AgentSample, Connections};
use crate::store::Block;
use crate::store::native::{BlockBuilder, BlockError};
use crate::store::schema::{AGENT_SAMPLES, CONNECTION_RECORDS, GAP_RECORDS, LEDGER_SAMPLES, NODE_SESSIONS};

/// The block of these parcels, which are of one kind, and its table.
pub(super) fn block(parcels: &[Parcel]) -> Result<(&'static str, Block), BlockError> {
    let mut batches = Vec::new();
    let mut gaps = Vec::new();
    let mut samples = Vec::new();
    let mut agents = Vec::new();
    let mut sessions = Vec::new();
    for Parcel { agent, content, .. } in parcels {
        match content {
            Content::Connections { batch, columns } => {
                batches.push(Delivered {
                    agent,
                    batch,
                    columns,
                });
            }
            Content::Gaps { batch, gaps: rows } => {
                let recorded_at_ns = gaps_recorded_at_ns(rows);
                gaps.extend(rows.iter().map(|gap| (&**agent, batch, recorded_at_ns, gap)));
            }
            Content::Ledger {
                epoch,
                observed_at_ns,
                counters,
            } => {
                samples.extend(counters.iter().map(|counters| Sample {
                    agent,
                    epoch: *epoch,
                    observed_at_ns: *observed_at_ns,
                    counters,
                }));
            }
            Content::Sample {
                epoch,
                observed_at_ns,
                sample,
            } => agents.push((&**agent, *epoch, *observed_at_ns, sample)),
            Content::Session {
                connected_at_ns,
                remote,
            } => sessions.push((&**agent, *connected_at_ns, &**remote)),
        }
    }
    let (table, block) = if !batches.is_empty() {
        (&CONNECTION_RECORDS, connection_records(&Rows::new(batches))?)
    } else if !gaps.is_empty() {
        (&GAP_RECORDS, gap_records(&gaps)?)
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
    rows.repeated_texts(|batch| &batch.agent.node)
        .write(&mut block, "node")?;
    rows.texts(
        |c| &c.process,
        |c| &c.processes,
        |process| process.service.as_str().into(),
    )
    .write(&mut block, "service")?;
    block.enums("role", &rows.converted(|c| &c.role, u8::cast_signed))?;
    block.enums("outcome", &rows.converted(|c| &c.outcome, u8::cast_signed))?;
    block.datetimes("recorded_at", &rows.joined(|c| &c.recorded_at_ns))?;
    block.datetimes("opened_at", &rows.joined(|c| &c.opened_at_ns))?;
    block.datetimes("decided_at", &rows.joined(|c| &c.decided_at_ns))?;
    block.datetimes("closed_at", &rows.joined(|c| &c.closed_at_ns))?;
    block.u32s(
        "pid",
        &rows.looked_up(|c| &c.process, |c| &c.processes, |process| process.pid),
    )?;
    rows.texts(
        |c| &c.process,
        |c| &c.processes,
        |process| process.comm.as_str().into(),
    )
    .write(&mut block, "comm")?;
    block.enums(
        "attribution",
        &rows.converted(|c| &c.attribution, u8::cast_signed),
    )?;
    block.u32s(
        "netns",
        &rows.looked_up(|c| &c.process, |c| &c.processes, |process| process.netns),
    )?;
    block.u64s(
        "cgroup_id",
        &rows.looked_up(|c| &c.process, |c| &c.processes, |process| process.cgroup_id),
    )?;
    block.ipv6s(
        "local_ip",
        &rows.looked_up(|c| &c.local_address, |c| &c.addresses, |address| *address),
    )?;
    // Checked when the batch came: a port fits.
    block.u16s(
        "local_port",
        &rows.converted(|c| &c.local_port, |port: u32| port as u16),
    )?;
    block.ipv6s(
        "remote_ip",
        &rows.looked_up(|c| &c.remote_address, |c| &c.addresses, |address| *address),
    )?;
    block.u16s(
        "remote_port",
        &rows.converted(|c| &c.remote_port, |port: u32| port as u16),
    )?;
    block.u64s("connect_us", &rows.joined(|c| &c.connect_us))?;
    block.u64s("duration_us", &rows.joined(|c| &c.duration_us))?;
    block.u64s("bytes_sent", &rows.joined(|c| &c.bytes_sent))?;
    block.u64s("bytes_received", &rows.joined(|c| &c.bytes_received))?;
    block.u32s("segments_sent", &rows.joined(|c| &c.segments_sent))?;
    block.u32s("segments_received", &rows.joined(|c| &c.segments_received))?;
    block.u32s("retransmits", &rows.joined(|c| &c.retransmits))?;
    block.u8s("syn_retransmits", &rows.joined(|c| &c.syn_retransmits))?;
    block.u32s("srtt_us", &rows.joined(|c| &c.srtt_us))?;
    block.u16s("errno", &rows.converted(|c| &c.error, u16::from))?;
    // Agents of this protocol name no causes.
    block.low_cardinality_constant("local_cause", "")?;
    block.enums(
        "close_reason",
        &rows.converted(|c| &c.close_reason, u8::cast_signed),
    )?;
    rows.texts(|c| &c.path, |c| &c.paths, |path| path_text(path).into())
        .write(&mut block, "path")?;
    block.u64_arrays("path_us", &rows.path_ends(), &rows.joined(|c| &c.path_us))?;
    block.u64s("cookie", &rows.joined(|c| &c.cookie))?;
    block.bools(
        "is_first",
        &rows.converted(|c| &c.flags, |flags: u8| flags & FLAG_FIRST != 0),
    )?;
    block.bools(
        "is_final",
        &rows.converted(|c| &c.flags, |flags: u8| flags & FLAG_FINAL != 0),
    )?;
    rows.repeated_texts(|batch| &batch.agent.id)
        .write(&mut block, "agent_id")?;
    rows.repeated_texts(|delivered| &delivered.batch.boot_id)
        .write(&mut block, "boot_id")?;
    block.u64s("agent_epoch", &rows.repeated(|delivered| delivered.batch.epoch))?;
    block.u64s("sequence", &rows.repeated(|delivered| delivered.batch.sequence))?;
    block.finish()
}

/// `SYN_SENT>ESTABLISHED>FIN_WAIT1>CLOSE`; `...` before the last where steps in between were not recorded.
fn path_text(path: &Path) -> String {
    /// By the kernel's numbers (include/net/tcp_states.h).
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
    let mut text = String::new();
    for (step, state) in path.states.iter().enumerate() {
        if step > 0 {
            text.push('>');
        }
        if path.truncated && step + 1 == path.states.len() {
            text.push_str("...");
        }
        text.push_str(NAMES.get(usize::from(*state)).unwrap_or(&""));
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
    block.finish()
}

/// A batch and who delivered it.
struct Delivered<'a> {
    agent: &'a Agent,
    batch: &'a BatchName,
    columns: &'a Connections,
}

/// One row of counters.
struct Sample<'a> {
    agent: &'a Agent,
    epoch: u64,
    observed_at_ns: i64,
    counters: &'a StreamCounters,
}

/// The time of all gaps of one batch: that of its latest row, so that a batch is in one partition.
pub(super) fn gaps_recorded_at_ns(gaps: &[Gap]) -> i64 {
    let latest_ns = gaps.iter().map(|gap| gap.last_ns).max().unwrap_or(0);
    i64::try_from(latest_ns).unwrap_or(i64::MAX)
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
    block.u64s("rows", &numbers(|gap| gap.rows))?;
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

    /// Where each row's steps end in the joined `path_us`.
    fn path_ends(&self) -> Vec<u64> {
        let mut ends = Vec::with_capacity(self.rows);
        let mut before = 0;
        for batch in &self.batches {
            ends.extend(batch.columns.path_ends.iter().map(|end| before + end));
            before += batch.columns.path_us.len() as u64;
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
                        counters: vec![counters; 2],
                    },
                ),
            ] {
                let parcels = [parcel("a", content).await];
                let (found, block) = block(&parcels).unwrap();
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
            let delivered = |parcel: &'_ Parcel| match &parcel.content {
                Content::Connections { columns, .. } => columns.path_ends.clone(),
                _ => unreachable!("they are batches"),
            };
            assert_eq!(delivered(&parcels[0]), [4, 6, 7]);
            let batches = parcels.iter().map(|parcel| match &parcel.content {
                Content::Connections { batch: name, columns } => Delivered {
                    agent: &parcel.agent,
                    batch: name,
                    columns,
                },
                _ => unreachable!("they are batches"),
            });
            assert_eq!(Rows::new(batches.collect()).path_ends(), [4, 6, 7, 11, 13, 14]);
        });
    }
}
