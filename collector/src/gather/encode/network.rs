//! The blocks of looks at network namespaces and at trouble with peers.

use holdfast_proto::v1::{Namespace, Peer};

use super::{Agent, BatchName, Texts};
use crate::ingest::decode::{Namespaces, Peers};
use crate::store::Block;
use crate::store::native::{BlockBuilder, BlockError};
use crate::store::schema::{NAMESPACE_SAMPLES, PEER_SAMPLES};

/// A row, the look that it is from, and the batch that brought it.
struct Row<'a, Look, R> {
    agent: &'a Agent,
    batch: &'a BatchName,
    look: &'a Look,
    row: &'a R,
}

impl<Look, R> Row<'_, Look, R> {
    /// Who saw it: `agent_id` to `sequence`.
    fn names(rows: &[Self], block: &mut BlockBuilder) -> Result<(), BlockError> {
        Texts::of(rows.iter().map(|row| row.agent.id.as_str())).write(block, "agent_id")?;
        Texts::of(rows.iter().map(|row| row.batch.boot_id.as_str())).write(block, "boot_id")?;
        block.u64s("agent_epoch", &each(rows, |row| row.batch.epoch))?;
        block.u64s("sequence", &each(rows, |row| row.batch.sequence))
    }
}

fn each<T, V>(rows: &[T], value: impl Fn(&T) -> V) -> Vec<V> {
    rows.iter().map(value).collect()
}

pub(super) fn namespace_samples(looks: &[(&Agent, &BatchName, &Namespaces)]) -> Result<Block, BlockError> {
    let rows: Vec<Row<'_, Namespaces, Namespace>> = looks
        .iter()
        .flat_map(|&(agent, batch, look)| {
            look.namespaces.iter().map(move |row| Row {
                agent,
                batch,
                look,
                row,
            })
        })
        .collect();
    let counts = |count: fn(&Namespace) -> u64| each(&rows, |row| count(row.row));
    let mut block = BlockBuilder::new(&NAMESPACE_SAMPLES, rows.len())?;
    Texts::of(rows.iter().map(|row| row.agent.node.as_str())).write(&mut block, "node")?;
    block.datetimes("observed_at", &each(&rows, |row| row.look.observed_at_ns))?;
    block.u32s("netns", &each(&rows, |row| row.row.netns))?;
    let addresses: Vec<[u8; 16]> = rows
        .iter()
        .flat_map(|row| &row.row.addresses)
        .map(|address| address.as_ref().try_into().unwrap_or_default())
        .collect();
    let mut end = 0;
    let ends = each(&rows, |row| row.row.addresses.len() as u64)
        .into_iter()
        .map(|count| {
            end += count;
            end
        })
        .collect::<Vec<_>>();
    block.ipv6_arrays("addresses", &ends, &addresses)?;
    block.u64s("listen_overflows", &counts(|row| row.listen_overflows))?;
    block.u64s("listen_drops", &counts(|row| row.listen_drops))?;
    block.u64s("syn_queue_drops", &counts(|row| row.syn_queue_drops))?;
    block.u64s("syn_cookies", &counts(|row| row.syn_cookies))?;
    block.u64s("resets_sent", &counts(|row| row.resets_sent))?;
    block.u64s("attempt_fails", &counts(|row| row.attempt_fails))?;
    block.u64s("established_resets", &counts(|row| row.established_resets))?;
    block.u64s("retransmits", &counts(|row| row.retransmits))?;
    Row::names(&rows, &mut block)?;
    block.finish()
}

pub(super) fn peer_samples(looks: &[(&Agent, &BatchName, &Peers)]) -> Result<Block, BlockError> {
    let rows: Vec<Row<'_, Peers, Peer>> = looks
        .iter()
        .flat_map(|&(agent, batch, look)| {
            look.peers.iter().map(move |row| Row {
                agent,
                batch,
                look,
                row,
            })
        })
        .collect();
    let counts = |count: fn(&Peer) -> u64| each(&rows, |row| count(row.row));
    let mut block = BlockBuilder::new(&PEER_SAMPLES, rows.len())?;
    Texts::of(rows.iter().map(|row| row.agent.node.as_str())).write(&mut block, "node")?;
    block.datetimes("began_at", &each(&rows, |row| row.look.began_at_ns))?;
    block.datetimes("ended_at", &each(&rows, |row| row.look.ended_at_ns))?;
    block.u32s("netns", &each(&rows, |row| row.row.netns))?;
    block.ipv6s(
        "peer_ip",
        &each(&rows, |row| {
            row.row.address.as_ref().try_into().unwrap_or_default()
        }),
    )?;
    block.u16s("port", &each(&rows, |row| row.row.port as u16))?;
    block.u64s("resets_sent", &counts(|row| row.resets_sent))?;
    block.u64s("resets_received", &counts(|row| row.resets_received))?;
    block.u64s("retransmits", &counts(|row| row.retransmits))?;
    block.u64s("syn_retransmits", &counts(|row| row.syn_retransmits))?;
    block.u64s("syn_ack_retransmits", &counts(|row| row.syn_ack_retransmits))?;
    block.u64s("filtered", &counts(|row| row.filtered))?;
    Row::names(&rows, &mut block)?;
    block.finish()
}
