//! The block of batches of the stream of overhead.

use holdfast_proto::v1::{Overhead, ProgramRuns};

use super::Texts;
use crate::gather::BatchName;
use crate::ingest::agent::Agent;
use crate::store::Block;
use crate::store::native::{BlockBuilder, BlockError};
use crate::store::schema::OVERHEAD_SAMPLES;

/// An interval, whose it is, and the batch that brought it.
type Row<'a> = (&'a Agent, &'a BatchName, &'a Overhead);

pub(super) fn overhead_samples(rows: &[Row<'_>]) -> Result<Block, BlockError> {
    let times = |time: fn(&Overhead) -> u64| -> Vec<i64> {
        // Checked when the batch came: a time fits.
        rows.iter().map(|(.., row)| time(row).cast_signed()).collect()
    };
    let numbers =
        |number: fn(&Overhead) -> u64| -> Vec<u64> { rows.iter().map(|(.., row)| number(row)).collect() };
    let small =
        |number: fn(&Overhead) -> u32| -> Vec<u32> { rows.iter().map(|(.., row)| number(row)).collect() };
    let mut block = BlockBuilder::new(&OVERHEAD_SAMPLES, rows.len())?;
    Texts::of(rows.iter().map(|(agent, ..)| agent.node.as_str())).write(&mut block, "node")?;
    block.datetimes("began_at", &times(|row| row.began_ns))?;
    block.datetimes("ended_at", &times(|row| row.ended_ns))?;
    block.u32s("cpus", &small(|row| row.cpus))?;
    block.u64s("agent_cpu_ns", &numbers(|row| row.agent_cpu_ns))?;
    block.u64s("programs_cpu_ns", &numbers(programs_cpu_ns))?;
    block.u64s("measured_ns", &numbers(|row| row.measured_ns))?;
    let names: Vec<Vec<String>> = rows
        .iter()
        .map(|(.., row)| row.programs.iter().map(|program| program.name.clone()).collect())
        .collect();
    block.string_arrays("programs", &names)?;
    let mut end = 0;
    let ends: Vec<u64> = rows
        .iter()
        .map(|(.., row)| {
            end += row.programs.len() as u64;
            end
        })
        .collect();
    let of_programs = |number: fn(&ProgramRuns) -> u64| -> Vec<u64> {
        rows.iter()
            .flat_map(|(.., row)| row.programs.iter().map(number))
            .collect()
    };
    block.u64_arrays("program_runs", &ends, &of_programs(|program| program.runs))?;
    block.u64_arrays("program_run_ns", &ends, &of_programs(|program| program.run_ns))?;
    block.u64s("resident_bytes", &numbers(|row| row.resident_bytes))?;
    block.u64s("ring_bytes", &numbers(|row| row.ring_bytes))?;
    block.u64s("ring_peak_bytes", &numbers(|row| row.ring_peak_bytes))?;
    block.u32s("budget_ppm", &small(|row| row.budget_ppm))?;
    Texts::of(rows.iter().map(|(.., row)| row.step.as_str())).write(&mut block, "step")?;
    Texts::of(rows.iter().map(|(.., row)| row.next_step.as_str())).write(&mut block, "next_step")?;
    Texts::of(rows.iter().map(|(agent, ..)| agent.id.as_str())).write(&mut block, "agent_id")?;
    Texts::of(rows.iter().map(|(_, batch, _)| batch.boot_id.as_str())).write(&mut block, "boot_id")?;
    let epochs: Vec<u64> = rows.iter().map(|(_, batch, _)| batch.epoch).collect();
    block.u64s("agent_epoch", &epochs)?;
    let sequences: Vec<u64> = rows.iter().map(|(_, batch, _)| batch.sequence).collect();
    block.u64s("sequence", &sequences)?;
    block.finish()
}

/// What was measured in a part of the interval, for all of it.
fn programs_cpu_ns(row: &Overhead) -> u64 {
    let measured: u128 = row
        .programs
        .iter()
        .map(|program| u128::from(program.run_ns))
        .sum();
    let interval = u128::from(row.ended_ns - row.began_ns);
    let scaled = measured * interval / u128::from(row.measured_ns.max(1));
    u64::try_from(scaled).unwrap_or(u64::MAX)
}
