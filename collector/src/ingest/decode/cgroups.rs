//! What the cgroups of a node are called, checked.

use holdfast_proto::v1::{Cgroup, CgroupRows};

use super::{Malformed, length, observed_at};

/// The kernel's paths have 4096 bytes at most.
const MAX_PATH_BYTES: usize = 4_096;

/// Names of Kubernetes have 253 bytes, values of labels 63; a little more is none of our business.
const MAX_NAME_BYTES: usize = 256;
const MAX_LABELS: usize = 64;

/// Cgroups that other rows of the node name.
#[derive(Clone, Debug, PartialEq)]
pub struct Cgroups {
    /// When, by the agent's clock.
    pub observed_at_ns: i64,
    pub cgroups: Vec<Cgroup>,
}

impl Cgroups {
    /// Memory that the rows occupy, give or take the allocator's part.
    pub fn heap_bytes(&self) -> usize {
        let text: usize = self.cgroups.iter().flat_map(texts).map(str::len).sum();
        self.cgroups.len() * size_of::<Cgroup>() + text
    }
}

fn texts(cgroup: &Cgroup) -> impl Iterator<Item = &str> {
    let labels = cgroup.pod_labels.iter().flat_map(|(key, value)| [key, value]);
    [
        &cgroup.path,
        &cgroup.service,
        &cgroup.unit,
        &cgroup.runtime,
        &cgroup.container_id,
        &cgroup.container_name,
        &cgroup.pod_uid,
        &cgroup.pod_name,
        &cgroup.pod_namespace,
        &cgroup.pod_owner,
    ]
    .into_iter()
    .chain(labels)
    .map(String::as_str)
}

pub(super) fn cgroups(look: CgroupRows, rows: usize, now_ns: i64) -> Result<Cgroups, Malformed> {
    if look.cgroups.len() != rows {
        return Err(length("cgroups", look.cgroups.len(), rows));
    }
    for (index, cgroup) in look.cgroups.iter().enumerate() {
        let fault = |fault| Malformed::Entry {
            dictionary: "cgroups",
            index,
            fault,
        };
        if cgroup.pod_labels.len() > MAX_LABELS {
            return Err(fault("has more than 64 labels"));
        }
        // The path is the first.
        if cgroup.path.len() > MAX_PATH_BYTES || texts(cgroup).skip(1).any(|text| text.len() > MAX_NAME_BYTES)
        {
            return Err(fault("has a name that is too long"));
        }
    }
    Ok(Cgroups {
        observed_at_ns: observed_at(look.observed_at_ns, now_ns)?,
        cgroups: look.cgroups,
    })
}
