//! `holdfast overhead`.

use holdfast_proto::v1::OverheadRequest;
use serde::Deserialize;

use super::Failure;
use super::client::{Reach, print};
use super::table::{Align, BAD, Cell, FAINT, human_bytes, human_ns};
use crate::config::Span;

/// Show what each agent costs its node: CPU time of its process and of its programs in the kernel, and memory.
///
/// A line for each agent, and one for each of its programs. CPU is a share of the whole machine. The kernel measures the
/// programs for a part of the time only (MEASURED), because measuring costs too; what it measured is taken for all of it.
/// PROBES is what the agent's budget (--max-cpu) leaves of what it was told to watch; a change has a line of its own.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  holdfast overhead
  holdfast overhead --last 1d --json | jq '{node, cpu_ppm, changes}'
  holdfast sql 'SELECT node, max(cpu_ppm) FROM overhead GROUP BY node'")]
pub(super) struct Args {
    /// How far back
    #[arg(long, value_name = "TIME", default_value = "5m")]
    last: Span,

    #[command(flatten)]
    reach: Reach,
}

pub(super) async fn run(args: Args) -> Result<(), Failure> {
    let reach = &args.reach;
    let mut client = reach.connect().await?;
    let request = OverheadRequest {
        last_ns: u64::try_from(args.last.0.as_nanos()).unwrap_or(u64::MAX),
    };
    let chunks = client
        .overhead(request)
        .await
        .map_err(|status| reach.failure(&status))?;
    print(
        reach,
        chunks.into_inner(),
        COLUMNS,
        Row::lines,
        "no agent has reported what it costs; it does so every 10 s. holdfast nodes says who is up",
    )
    .await
}

/// A row of the answer: one start of one agent.
#[derive(Debug, Deserialize)]
struct Row {
    node: String,
    observed_ns: u64,
    measured_ns: u64,
    cpus: u32,
    agent_cpu_ns: u64,
    cpu_ppm: u32,
    budget_ppm: u32,
    step: String,
    resident_bytes: u64,
    ring_bytes: u64,
    ring_peak_bytes: u64,
    programs: Vec<String>,
    program_runs: Vec<u64>,
    program_run_ns: Vec<u64>,
    /// When, from which step, to which.
    changes: Vec<(String, String, String)>,
}

const COLUMNS: [(&str, Align); 9] = [
    ("NODE", Align::Left),
    ("PART", Align::Left),
    ("CPU", Align::Right),
    ("RUNS/S", Align::Right),
    ("A RUN", Align::Right),
    ("MEASURED", Align::Right),
    ("MEMORY", Align::Right),
    ("RING PEAK", Align::Right),
    ("PROBES", Align::Left),
];

impl Row {
    fn lines(&self) -> Vec<[Cell; COLUMNS.len()]> {
        let empty = || Cell::from("");
        let ppm = |ns: u64, of_ns: u64| {
            let of = u128::from(of_ns) * u128::from(self.cpus.max(1));
            u32::try_from(u128::from(ns) * 1_000_000 / of.max(1)).unwrap_or(u32::MAX)
        };
        let total = match self.budget_ppm {
            0 => share(self.cpu_ppm),
            budget => format!("{} of {}", share(self.cpu_ppm), share(budget)),
        };
        let measured = match self.measured_ns {
            0 => Cell::styled("not", BAD),
            ns => share(
                u32::try_from(u128::from(ns) * 1_000_000 / u128::from(self.observed_ns.max(1)))
                    .unwrap_or(u32::MAX),
            )
            .into(),
        };
        let mut lines = vec![[
            self.node.clone().into(),
            "all".into(),
            if self.budget_ppm != 0 && self.cpu_ppm > self.budget_ppm {
                Cell::styled(total, BAD)
            } else {
                total.into()
            },
            empty(),
            empty(),
            measured,
            human_bytes(self.resident_bytes).into(),
            format!(
                "{} of {}",
                human_bytes(self.ring_peak_bytes),
                human_bytes(self.ring_bytes)
            )
            .into(),
            step(&self.step),
        ]];
        let part = |name: &str, cpu: u32, runs: Cell, run: Cell| {
            [
                self.node.clone().into(),
                name.into(),
                share(cpu).into(),
                runs,
                run,
                empty(),
                empty(),
                empty(),
                empty(),
            ]
        };
        lines.push(part(
            "agent",
            ppm(self.agent_cpu_ns, self.observed_ns),
            empty(),
            empty(),
        ));
        let programs = self
            .programs
            .iter()
            .zip(&self.program_runs)
            .zip(&self.program_run_ns);
        for ((name, &runs), &run_ns) in programs {
            let per_s = runs as f64 * 1e9 / self.measured_ns.max(1) as f64;
            lines.push(part(
                name,
                ppm(run_ns, self.measured_ns),
                format!("{per_s:.0}").into(),
                human_ns(run_ns as f64 / runs.max(1) as f64).into(),
            ));
        }
        lines.extend(self.changes.iter().map(|(at, from, to)| {
            let mut line = std::array::from_fn(|_| empty());
            line[0] = self.node.clone().into();
            line[1] = Cell::styled(at.get(..19).unwrap_or(at), FAINT);
            line[COLUMNS.len() - 1] = format!("{from} -> {to}").into();
            line
        }));
        lines
    }
}

/// `0.12%`; what is less than can be told so, such as a small budget, with more digits: `0.001%`.
pub(super) fn share(ppm: u32) -> String {
    let percent = f64::from(ppm) / 10_000.0;
    match ppm {
        1..100 => format!("{percent}%"),
        _ => format!("{percent:.2}%"),
    }
}

/// What a budget left, red if that is not everything.
pub(super) fn step(name: &str) -> Cell {
    match name {
        "" => Cell::styled("-", FAINT),
        "full" => "full".into(),
        step => Cell::styled(step, BAD),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_is_not_nothing_is_never_shown_as_nothing() {
        for (ppm, expected) in [
            (0, "0.00%"),
            (1, "0.0001%"),
            (10, "0.001%"),
            (100, "0.01%"),
            (1_234, "0.12%"),
        ] {
            assert_eq!(share(ppm), expected);
        }
    }

    #[test]
    fn an_agent_is_shown_with_its_programs_and_its_changes() {
        let row: Row = serde_json::from_str(
            r#"{"node":"web-1","agent_id":"a","agent_epoch":7,"last_at":"2026-03-01 12:00:00.5",
            "observed_ns":300000000000,"measured_ns":15000000000,"cpus":2,"agent_cpu_ns":600000000,
            "programs_cpu_ns":6000000000,"cpu_ppm":11000,"budget_ppm":10000,"step":"syscalls_off",
            "resident_bytes":20971520,"ring_bytes":8388608,"ring_peak_bytes":208,"programs":["sys_exit"],
            "program_runs":[3000000],"program_run_ns":[300000000],
            "changes":[["2026-03-01 11:59:50.1","full","syscalls_off"]]}"#,
        )
        .unwrap();
        let lines = row.lines();
        let lines: Vec<_> = lines
            .iter()
            .map(|line| line.each_ref().map(|cell| cell.text.clone()).join("|"))
            .collect();
        assert_eq!(
            lines,
            [
                "web-1|all|1.10% of 1.00%|||5.00%|21.0 MB|208 B of 8.39 MB|syscalls_off",
                "web-1|agent|0.10%||||||",
                "web-1|sys_exit|1.00%|200000|100 ns||||",
                "web-1|2026-03-01 11:59:50|||||||full -> syscalls_off",
            ]
        );
    }
}
