//! What is known of a run by the time that somebody asks: its result with the records of kernels that have come since, and of
//! a run without a result what its nodes said until then.

use anyhow::Context;
use serde_json::Value;

use super::counts;
use super::result::{Summary, Times};
use crate::store::runs as store_runs;
use crate::store::{Store, StoreError};

/// Of a row of `runs`, as JSON, the same with all that is known now, and second by second if that is wanted, of a mesh also pair by pair.
///
/// # Errors
/// If the store has no answer.
pub async fn complete(store: &dyn Store, line: &str, with_seconds: bool) -> Result<String, StoreError> {
    match summary_of(line) {
        Ok((mut row, mut summary)) => {
            if !summary.is_over {
                let run_id = row["run_id"].as_str().unwrap_or_default();
                add_samples(&mut summary, &store_runs::samples(store, run_id).await?);
            }
            if !summary.connections.generators.is_empty() {
                let kernel = store_runs::kernel(store, &summary.connections).await?;
                // What is old enough is deleted, and the result outlives it.
                let known = summary.kernel.as_ref().map_or(0, |kernel| kernel.attempts);
                if kernel.attempts > 0 && kernel.attempts >= known {
                    summary.kernel = Some(kernel);
                }
            }
            row["result"] = Value::String(serde_json::to_string(&summary).expect("numbers and texts"));
            if with_seconds {
                let run_id = row["run_id"].as_str().unwrap_or_default();
                let seconds = store_runs::seconds(store, run_id).await?;
                let pairs = store_runs::pair_seconds(store, run_id).await?;
                row["seconds"] = serde_json::to_value(&seconds).expect("numbers and texts");
                if !pairs.pairs.is_empty() {
                    row["pair_seconds"] = serde_json::to_value(&pairs).expect("numbers and texts");
                }
            }
            Ok(row.to_string())
        }
        // The result of another version: whoever asks says so.
        Err(_) => Ok(line.to_owned()),
    }
}

fn summary_of(line: &str) -> anyhow::Result<(Value, Summary)> {
    let row: Value = serde_json::from_str(line)?;
    let result = row["result"].as_str().context("a run without a result")?;
    let summary = serde_json::from_str(result)?;
    Ok((row, summary))
}

fn add_samples(summary: &mut Summary, samples: &store_runs::Samples) {
    let number = |name: &str| samples.numbers.get(name).copied().unwrap_or(0);
    summary.elapsed_ns = number("elapsed_us") * 1_000;
    summary.cpu_ns = number("cpu_us") * 1_000;
    summary.most_open = number("most_open");
    let known = counts::NAMES
        .iter()
        .filter_map(|name| samples.numbers.get_key_value(*name));
    summary.counts = known.map(|(name, number)| (name.clone(), *number)).collect();
    summary.lacks_handshakes = !summary.counts.contains_key(counts::OF_HANDSHAKES);
    for (name, buckets) in [
        ("connect", &samples.connect),
        ("network", &samples.network),
        ("request", &samples.request),
    ] {
        if !buckets.is_empty() {
            summary.buckets.insert(name.to_owned(), buckets.clone());
        }
    }
    summary.parts.clone_from(&samples.parts);
    summary.pairs.clone_from(&samples.pairs);
    summary.connect = Times::of_buckets(&samples.connect);
    summary.network = Times::of_buckets(&samples.network);
    summary.request = Times::of_buckets(&samples.request);
}
