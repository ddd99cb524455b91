//! The block of batches of the stream of cgroups.

use holdfast_proto::v1::Cgroup;

use super::Texts;
use crate::gather::BatchName;
use crate::ingest::agent::Agent;
use crate::store::Block;
use crate::store::native::{BlockBuilder, BlockError};
use crate::store::schema::CGROUP_RECORDS;

/// A cgroup, whose it is, the batch that brought it, and when it was called so.
type Row<'a> = (&'a Agent, &'a BatchName, i64, &'a Cgroup);

pub(super) fn cgroup_records(rows: &[Row<'_>]) -> Result<Block, BlockError> {
    let text = |text: fn(&Cgroup) -> &str| Texts::of(rows.iter().map(move |(.., row)| text(row)));
    let mut block = BlockBuilder::new(&CGROUP_RECORDS, rows.len())?;
    Texts::of(rows.iter().map(|(agent, ..)| agent.node.as_str())).write(&mut block, "node")?;
    let ids: Vec<u64> = rows.iter().map(|(.., row)| row.id).collect();
    block.u64s("cgroup_id", &ids)?;
    let times: Vec<i64> = rows.iter().map(|(_, _, at_ns, _)| *at_ns).collect();
    block.datetimes("observed_at", &times)?;
    text(|row| &row.service).write(&mut block, "service")?;
    let paths: Vec<&str> = rows.iter().map(|(.., row)| row.path.as_str()).collect();
    block.strings("path", &paths)?;
    text(|row| &row.unit).write(&mut block, "unit")?;
    text(|row| &row.runtime).write(&mut block, "runtime")?;
    let containers: Vec<&str> = rows.iter().map(|(.., row)| row.container_id.as_str()).collect();
    block.strings("container_id", &containers)?;
    text(|row| &row.container_name).write(&mut block, "container_name")?;
    let uids: Vec<&str> = rows.iter().map(|(.., row)| row.pod_uid.as_str()).collect();
    block.strings("pod_uid", &uids)?;
    text(|row| &row.pod_name).write(&mut block, "pod_name")?;
    text(|row| &row.pod_namespace).write(&mut block, "pod_namespace")?;
    text(|row| &row.pod_owner).write(&mut block, "pod_owner")?;
    let labels: Vec<Vec<(String, String)>> = rows
        .iter()
        .map(|(.., row)| row.pod_labels.clone().into_iter().collect())
        .collect();
    block.string_maps("pod_labels", &labels)?;
    Texts::of(rows.iter().map(|(agent, ..)| agent.id.as_str())).write(&mut block, "agent_id")?;
    Texts::of(rows.iter().map(|(_, batch, ..)| batch.boot_id.as_str())).write(&mut block, "boot_id")?;
    let epochs: Vec<u64> = rows.iter().map(|(_, batch, ..)| batch.epoch).collect();
    block.u64s("agent_epoch", &epochs)?;
    let sequences: Vec<u64> = rows.iter().map(|(_, batch, ..)| batch.sequence).collect();
    block.u64s("sequence", &sequences)?;
    block.finish()
}
