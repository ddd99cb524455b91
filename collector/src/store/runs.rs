//! Runs in the store: the rows that are written while one lasts, and the questions about them.

use super::{
    Access, Query, Store, StoreError, answer_to,
    buckets::bucket,
    native::{BlockBuilder, BlockError},
    schema::{LOAD_SAMPLES, RUN_RECORDS},
};
use crate::runs::counts;
use crate::runs::result::Kernel;
use hdrhistogram::Histogram;
use holdfast_proto::v1::LoadCounts;

/// A row of `run_records`.
#[derive(Clone, Debug, serde::Serialize)]
pub struct RunRecord {
    pub run_id: String,
    /// 1 when it began, 2 when it ended.
    #[serde(skip)]
    pub revision: u8,
    pub state: &'static str,
    pub verdict: String,
    #[serde(skip)]
    pub began_at_ns: i64,
    #[serde(skip)]
    pub ended_at_ns: i64,
    pub nodes: Vec<String>,
    pub targets: Vec<String>,
    pub expect: Vec<String>,
    pub reasons: Vec<String>,
    pub result: String,
}

/// A row of `load_samples`.
#[derive(Clone, Debug)]
pub struct LoadSample {
    pub node: String,
    pub observed_at_ns: i64,
    pub elapsed_us: u64,
    pub open: u64,
    pub most_open: u64,
    pub cpu_us: u64,
    pub counts: LoadCounts,
    pub connect: Option<Histogram<u64>>,
    pub network: Option<Histogram<u64>>,
}

/// Writes what is known of a run.
pub async fn record(store: &dyn Store, run: &RunRecord) -> Result<(), StoreError> {
    let block = run_block(run).map_err(|error| StoreError::rejected(error.to_string()))?;
    let token = format!("run-{}-{}", run.run_id, run.revision);
    store.insert(RUN_RECORDS.name, &token, block).await
}

fn run_block(run: &RunRecord) -> Result<super::Block, BlockError> {
    let mut block = BlockBuilder::new(&RUN_RECORDS, 1)?;
    block.low_cardinality_constant("node", "")?;
    block.strings("run_id", &[&run.run_id])?;
    block.u8s("revision", &[run.revision])?;
    block.low_cardinality_constant("state", run.state)?;
    block.low_cardinality_constant("verdict", &run.verdict)?;
    block.datetimes("began_at", &[run.began_at_ns])?;
    block.datetimes("ended_at", &[run.ended_at_ns])?;
    block.string_arrays("nodes", std::slice::from_ref(&run.nodes))?;
    block.string_arrays("targets", std::slice::from_ref(&run.targets))?;
    block.string_arrays("expect", std::slice::from_ref(&run.expect))?;
    block.string_arrays("reasons", std::slice::from_ref(&run.reasons))?;
    block.strings("result", &[&run.result])?;
    block.finish()
}

/// Writes what nodes did for a run. `part` tells the blocks of a run apart.
pub async fn sample(
    store: &dyn Store,
    run_id: &str,
    part: u64,
    samples: &[LoadSample],
) -> Result<(), StoreError> {
    if samples.is_empty() {
        return Ok(());
    }
    let block = sample_block(run_id, samples).map_err(|error| StoreError::rejected(error.to_string()))?;
    store
        .insert(LOAD_SAMPLES.name, &format!("load-{run_id}-{part}"), block)
        .await
}

fn sample_block(run_id: &str, samples: &[LoadSample]) -> Result<super::Block, BlockError> {
    fn column<T>(samples: &[LoadSample], value: impl Fn(&LoadSample) -> T) -> Vec<T> {
        samples.iter().map(value).collect()
    }
    let own: Vec<u32> = (0..samples.len() as u32).collect();
    let mut block = BlockBuilder::new(&LOAD_SAMPLES, samples.len())?;
    block.low_cardinality("node", &column(samples, |sample| sample.node.clone()), &own)?;
    block.low_cardinality_constant("run_id", run_id)?;
    block.datetimes("observed_at", &column(samples, |sample| sample.observed_at_ns))?;
    block.u64s("elapsed_us", &column(samples, |sample| sample.elapsed_us))?;
    block.u64s("open", &column(samples, |sample| sample.open))?;
    block.u64s("most_open", &column(samples, |sample| sample.most_open))?;
    block.u64s("cpu_us", &column(samples, |sample| sample.cpu_us))?;
    for (index, name) in counts::NAMES.iter().enumerate() {
        let values = column(samples, |sample| counts::values(&sample.counts)[index]);
        block.u64s(name, &values)?;
    }
    type Of = fn(&LoadSample) -> Option<&Histogram<u64>>;
    let distributions: [(&str, &str, Of); 2] = [
        ("connect_buckets", "connect_counts", |sample| {
            sample.connect.as_ref()
        }),
        ("network_buckets", "network_counts", |sample| {
            sample.network.as_ref()
        }),
    ];
    for (ids_name, counts_name, of) in distributions {
        let (mut ends, mut ids, mut numbers) = (Vec::new(), Vec::new(), Vec::new());
        for sample in samples {
            for (id, number) in of(sample).map(buckets).unwrap_or_default() {
                ids.push(id);
                numbers.push(number);
            }
            ends.push(ids.len() as u64);
        }
        block.u16_arrays(ids_name, &ends, &ids)?;
        block.u64_arrays(counts_name, &ends, &numbers)?;
    }
    block.finish()
}

/// A distribution of nanoseconds as log buckets of microseconds, in their order.
fn buckets(times: &Histogram<u64>) -> Vec<(u16, u64)> {
    let mut buckets = std::collections::BTreeMap::new();
    for value in times.iter_recorded() {
        let id = bucket(value.value_iterated_to() / 1_000);
        *buckets.entry(id).or_insert(0) += value.count_at_value();
    }
    buckets.into_iter().collect()
}

/// The runs whose id begins with `run_id`, the latest first.
pub fn runs(run_id: &str, limit: u64) -> Query {
    let limit = if limit == 0 {
        String::new()
    } else {
        format!(" LIMIT {limit}")
    };
    Query {
        sql: format!(
            "SELECT * FROM runs WHERE startsWith(run_id, {{run_id:String}}) ORDER BY began_at DESC, run_id{limit}"
        ),
        params: vec![("run_id".into(), super::statement::text_value(run_id))],
        format: "JSONEachRow".into(),
        access: Access::Internal,
    }
}

/// Which connections are a run's: those that one process of a node opened to the targets while it lasted.
pub struct Connections<'a> {
    /// Names of nodes and the process of each that made the load.
    pub generators: &'a [(String, u32)],
    /// Addresses, IPv4 as ::ffff:a.b.c.d, and ports.
    pub targets: &'a [(String, u16)],
    pub began_at_ns: i64,
    pub ended_at_ns: i64,
}

/// Clocks of the nodes may be so far from the collector's, and a record is decided so long after its attempt was made.
const MARGIN_NS: i64 = 2_000_000_000;

/// What the kernels recorded of a run's connections, at both ends.
pub async fn kernel(store: &dyn Store, run: &Connections<'_>) -> Result<Kernel, StoreError> {
    let quoted = |text: &str| format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"));
    let nodes: Vec<_> = run.generators.iter().map(|(node, _)| quoted(node)).collect();
    let pids: Vec<_> = run.generators.iter().map(|(_, pid)| pid.to_string()).collect();
    let addresses: Vec<_> = run.targets.iter().map(|(address, _)| quoted(address)).collect();
    let ports: Vec<_> = run.targets.iter().map(|(_, port)| port.to_string()).collect();
    let array = |values: Vec<String>| format!("[{}]", values.join(","));
    let sql = "
        WITH
            fromUnixTimestamp64Nano({began:Int64}, 'UTC') AS began, fromUnixTimestamp64Nano({ended:Int64}, 'UTC') AS ended,
            active AS
            (
                SELECT local_ip, local_port, remote_ip, remote_port, outcome, connect_us
                FROM attempts
                WHERE role = 'active' AND decided_at BETWEEN began AND ended
                    AND has(arrayZip({nodes:Array(String)}, {pids:Array(UInt32)}), (toString(node), pid))
                    AND has(arrayZip({addresses:Array(String)}, {ports:Array(UInt16)}), (toString(remote_ip), remote_port))
            ),
            passive AS
            (
                SELECT local_ip, local_port, remote_ip, remote_port, count() AS ends
                FROM attempts
                WHERE role = 'passive' AND outcome = 'established' AND decided_at BETWEEN began AND ended
                    AND has({ports:Array(UInt16)}, local_port)
                GROUP BY local_ip, local_port, remote_ip, remote_port
            )
        SELECT count(), countIf(outcome = 'established'), countIf(outcome = 'refused'), countIf(outcome = 'timed_out'),
            toUInt64(quantileExactIf(0.5)(connect_us, outcome = 'established')),
            toUInt64(quantileExactIf(0.99)(connect_us, outcome = 'established')),
            (
                SELECT sum(least(made, ends)) FROM
                (
                    SELECT local_ip, local_port, remote_ip, remote_port, count() AS made
                    FROM active WHERE outcome = 'established'
                    GROUP BY local_ip, local_port, remote_ip, remote_port
                ) AS mine
                INNER JOIN passive ON mine.local_ip = passive.remote_ip AND mine.local_port = passive.remote_port
                    AND mine.remote_ip = passive.local_ip AND mine.remote_port = passive.local_port
            )
        FROM active";
    let query = Query {
        sql: sql.into(),
        params: vec![
            ("began".into(), (run.began_at_ns - MARGIN_NS).to_string()),
            ("ended".into(), (run.ended_at_ns + MARGIN_NS).to_string()),
            ("nodes".into(), array(nodes)),
            ("pids".into(), array(pids)),
            ("addresses".into(), array(addresses)),
            ("ports".into(), array(ports)),
        ],
        format: "TabSeparated".into(),
        access: Access::Internal,
    };
    let answer = answer_to(store, query).await?;
    let numbers: Option<Vec<u64>> = answer
        .trim()
        .split('\t')
        .map(|number| {
            if number == "\\N" {
                Some(0)
            } else {
                number.parse().ok()
            }
        })
        .collect();
    match numbers.as_deref() {
        Some(
            &[
                attempts,
                established,
                refused,
                timed_out,
                connect_p50_us,
                connect_p99_us,
                seen_by_target,
            ],
        ) => Ok(Kernel {
            attempts,
            established,
            refused,
            timed_out,
            connect_p50_us,
            connect_p99_us,
            seen_by_target,
        }),
        _ => Err(StoreError::rejected(format!(
            "the store answers {answer:?} to the question for a run's connections"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_distribution_becomes_buckets_of_microseconds() {
        let mut times = Histogram::new(3).unwrap();
        for ns in [500, 900, 5_000, 5_200, 70_000] {
            times.record(ns).unwrap();
        }
        assert_eq!(buckets(&times), [(bucket(0), 2), (bucket(5), 2), (bucket(70), 1)]);
    }
}
