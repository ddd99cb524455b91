//! The block of transitions that were streamed.

use super::{Delivered, Texts, state_name};
use crate::ingest::decode::Transitions;
use crate::store::Block;
use crate::store::native::{BlockBuilder, BlockError};
use crate::store::schema::TRANSITION_EVENTS;

pub(super) fn transition_events(batches: &[Delivered<'_, Transitions>]) -> Result<Block, BlockError> {
    let rows = batches.iter().map(|batch| batch.columns.rows).sum();
    let mut block = BlockBuilder::new(&TRANSITION_EVENTS, rows)?;
    each(batches, |of, _| of.agent.node.as_str()).write(&mut block, "node")?;
    each(batches, |of, row| process(of, row).service.as_str()).write(&mut block, "service")?;
    block.enums(
        "role",
        &all(batches, |of, row| of.columns.role[row].cast_signed()),
    )?;
    block.datetimes(
        "recorded_at",
        &all(batches, |of, row| of.columns.recorded_at_ns[row]),
    )?;
    block.datetimes("opened_at", &all(batches, |of, row| of.columns.opened_at_ns[row]))?;
    block.u8s("step", &all(batches, |of, row| of.columns.step[row]))?;
    each(batches, |of, row| state_name(of.columns.from_state[row])).write(&mut block, "from_state")?;
    each(batches, |of, row| state_name(of.columns.to_state[row])).write(&mut block, "to_state")?;
    block.u32s("pid", &all(batches, |of, row| process(of, row).pid))?;
    each(batches, |of, row| process(of, row).comm.as_str()).write(&mut block, "comm")?;
    block.enums(
        "attribution",
        &all(batches, |of, row| of.columns.attribution[row].cast_signed()),
    )?;
    block.u32s("netns", &all(batches, |of, row| process(of, row).netns))?;
    block.u64s("cgroup_id", &all(batches, |of, row| process(of, row).cgroup_id))?;
    let address = |of: &Delivered<'_, Transitions>, place: u32| of.columns.addresses[place as usize];
    block.ipv6s(
        "local_ip",
        &all(batches, |of, row| address(of, of.columns.local_address[row])),
    )?;
    // Checked when the batch came: a port fits.
    block.u16s(
        "local_port",
        &all(batches, |of, row| of.columns.local_port[row] as u16),
    )?;
    block.ipv6s(
        "remote_ip",
        &all(batches, |of, row| address(of, of.columns.remote_address[row])),
    )?;
    block.u16s(
        "remote_port",
        &all(batches, |of, row| of.columns.remote_port[row] as u16),
    )?;
    block.u64s("cookie", &all(batches, |of, row| of.columns.cookie[row]))?;
    each(batches, |of, _| of.agent.id.as_str()).write(&mut block, "agent_id")?;
    each(batches, |of, _| of.batch.boot_id.as_str()).write(&mut block, "boot_id")?;
    block.u64s("agent_epoch", &all(batches, |of, _| of.batch.epoch))?;
    block.u64s("sequence", &all(batches, |of, _| of.batch.sequence))?;
    block.finish()
}

fn process<'a>(of: &Delivered<'a, Transitions>, row: usize) -> &'a holdfast_proto::v1::Process {
    &of.columns.processes[of.columns.process[row] as usize]
}

fn all<'a, T>(
    batches: &[Delivered<'a, Transitions>],
    value: impl Fn(&Delivered<'a, Transitions>, usize) -> T,
) -> Vec<T> {
    let rows = batches
        .iter()
        .flat_map(|of| (0..of.columns.rows).map(move |row| (of, row)));
    rows.map(|(of, row)| value(of, row)).collect()
}

fn each<'a>(
    batches: &[Delivered<'a, Transitions>],
    text: impl Fn(&Delivered<'a, Transitions>, usize) -> &'a str,
) -> Texts<'a> {
    let rows = batches
        .iter()
        .flat_map(|of| (0..of.columns.rows).map(move |row| (of, row)));
    Texts::of(rows.map(|(of, row)| text(of, row)))
}
