//! The block of batches of syscalls.

use std::borrow::Cow;

use holdfast_proto::v1::SyscallCaller;

use super::{Delivered, Texts};
use crate::ingest::decode::Syscalls;
use crate::store::Block;
use crate::store::native::{BlockBuilder, BlockError};
use crate::store::schema::SYSCALL_SAMPLES;

/// A batch of the stream.
type Batch<'a> = Delivered<'a, Syscalls>;

pub(super) fn syscall_samples(batches: &[Batch<'_>]) -> Result<Block, BlockError> {
    let rows = batches.iter().map(|batch| batch.columns.rows).sum();
    let mut block = BlockBuilder::new(&SYSCALL_SAMPLES, rows)?;
    repeated_texts(batches, |batch| &batch.agent.node).write(&mut block, "node")?;
    caller_texts(batches, |caller| &caller.service).write(&mut block, "service")?;
    caller_texts(batches, |caller| &caller.comm).write(&mut block, "comm")?;
    names(batches).write(&mut block, "syscall")?;
    block.u32s("pid", &of_callers(batches, |caller| caller.pid))?;
    block.u64s("cgroup_id", &of_callers(batches, |caller| caller.cgroup_id))?;
    block.u32s("processes", &of_callers(batches, |caller| caller.processes))?;
    block.datetimes("began_at", &repeated(batches, |batch| batch.columns.began_at_ns))?;
    block.datetimes("ended_at", &repeated(batches, |batch| batch.columns.ended_at_ns))?;
    block.u64s("calls", &joined(batches, |columns| &columns.calls))?;
    block.u64s("errors", &joined(batches, |columns| &columns.errors))?;
    let errno_ends = ends(batches, |columns| &columns.errno_ends);
    block.u16_arrays("errnos", &errno_ends, &joined(batches, |columns| &columns.errno))?;
    block.u64_arrays(
        "errno_calls",
        &errno_ends,
        &joined(batches, |columns| &columns.errno_calls),
    )?;
    block.u32s(
        "measured_one_in",
        &repeated(batches, |batch| batch.columns.measured_one_in),
    )?;
    block.u64s("measured", &joined(batches, |columns| &columns.measured))?;
    let bucket_ends = ends(batches, |columns| &columns.bucket_ends);
    block.u16_arrays(
        "latency_buckets",
        &bucket_ends,
        &joined(batches, |columns| &columns.bucket),
    )?;
    block.u64_arrays(
        "latency_calls",
        &bucket_ends,
        &joined(batches, |columns| &columns.bucket_calls),
    )?;
    repeated_texts(batches, |batch| &batch.agent.id).write(&mut block, "agent_id")?;
    repeated_texts(batches, |batch| &batch.batch.boot_id).write(&mut block, "boot_id")?;
    block.u64s("agent_epoch", &repeated(batches, |batch| batch.batch.epoch))?;
    block.u64s("sequence", &repeated(batches, |batch| batch.batch.sequence))?;
    block.finish()
}

/// A column that the batches have as it is stored.
fn joined<'a, T: Copy + 'a>(batches: &[Batch<'a>], column: impl Fn(&'a Syscalls) -> &'a [T]) -> Vec<T> {
    batches
        .iter()
        .flat_map(|batch| column(batch.columns))
        .copied()
        .collect()
}

/// A column that is the same for all rows of a batch.
fn repeated<'a, T: Copy>(batches: &[Batch<'a>], value: impl Fn(&Batch<'a>) -> T) -> Vec<T> {
    let rows = |batch: &Batch<'a>| std::iter::repeat_n(value(batch), batch.columns.rows);
    batches.iter().flat_map(rows).collect()
}

/// Where each row's array ends among the elements of all batches.
fn ends<'a>(batches: &[Batch<'a>], ends: impl Fn(&'a Syscalls) -> &'a [u64]) -> Vec<u64> {
    let mut all = Vec::new();
    let mut before = 0;
    for batch in batches {
        let own = ends(batch.columns);
        all.extend(own.iter().map(|end| before + end));
        before += own.last().copied().unwrap_or_default();
    }
    all
}

/// A column whose values are those of the callers.
fn of_callers<T: Copy>(batches: &[Batch<'_>], value: impl Fn(&SyscallCaller) -> T) -> Vec<T> {
    let rows = |batch: &Batch<'_>| {
        let Syscalls { caller, callers, .. } = batch.columns;
        caller
            .iter()
            .map(|index| value(&callers[*index as usize]))
            .collect::<Vec<_>>()
    };
    batches.iter().flat_map(rows).collect()
}

fn repeated_texts<'a>(batches: &[Batch<'a>], text: impl Fn(&Batch<'a>) -> &'a str) -> Texts<'a> {
    let mut texts = Texts::with_capacity(0);
    for batch in batches {
        let place = texts.place(Cow::Borrowed(text(batch)));
        texts
            .indices
            .resize(texts.indices.len() + batch.columns.rows, place);
    }
    texts
}

fn caller_texts<'a>(batches: &[Batch<'a>], text: impl Fn(&'a SyscallCaller) -> &'a str) -> Texts<'a> {
    looked_up(batches, |columns| {
        (&columns.caller, columns.callers.iter().map(&text).collect())
    })
}

fn names<'a>(batches: &[Batch<'a>]) -> Texts<'a> {
    looked_up(batches, |columns| {
        (&columns.name, columns.names.iter().map(String::as_str).collect())
    })
}

/// A column of texts that the batches have in a dictionary: each row's index into it, and its entries.
fn looked_up<'a>(
    batches: &[Batch<'a>],
    column: impl Fn(&'a Syscalls) -> (&'a [u32], Vec<&'a str>),
) -> Texts<'a> {
    let mut texts = Texts::with_capacity(0);
    for batch in batches {
        let (indexes, entries) = column(batch.columns);
        let places: Vec<u32> = entries
            .into_iter()
            .map(|entry| texts.place(Cow::Borrowed(entry)))
            .collect();
        texts
            .indices
            .extend(indexes.iter().map(|index| places[*index as usize]));
    }
    texts
}
