//! Who this agent is: a name that people use, an id that outlives restarts, and a number for this start.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::Path,
};

use anyhow::Context;
use holdfast_proto::{PROTOCOL, v1::Hello};
use rustix::system::uname;

use crate::clock;

/// Where systemd and D-Bus keep the id of this installation of the operating system.
const MACHINE_ID: [&str; 2] = ["/etc/machine-id", "/var/lib/dbus/machine-id"];

/// A collector takes no more of one node.
const MAX_ADDRESSES: usize = 1024;

/// Longer names are refused: they are in every row.
const MAX_NAME_BYTES: usize = 253;

/// What the agent tells the collector of itself.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The machine's id and the node's name: two agents on one machine need two names.
    pub agent_id: String,
    pub node: String,
    pub labels: BTreeMap<String, String>,
    /// Milliseconds since the Unix epoch at this start.
    pub epoch: u64,
    pub boot_id: String,
    pub observed_netns: String,
    pub missing_features: Vec<String>,
}

impl Identity {
    /// Reads what the machine says of itself. `name` defaults to the host name.
    ///
    /// # Errors
    /// If the name cannot be used, or the kernel's boot id cannot be read.
    pub fn read(name: Option<&str>, labels: &[(String, String)]) -> anyhow::Result<Self> {
        let node = match name {
            Some(name) => name.to_owned(),
            None => uname().nodename().to_string_lossy().into_owned(),
        };
        check_name(&node).map_err(anyhow::Error::msg)?;
        let boot_id_path = "/proc/sys/kernel/random/boot_id";
        let boot_id =
            fs::read_to_string(boot_id_path).with_context(|| format!("cannot read {boot_id_path}"))?;
        let agent_id = match MACHINE_ID.iter().find_map(|path| machine_id(Path::new(path))) {
            Some(machine) => format!("{machine}/{node}"),
            None => {
                tracing::warn!("this machine has no /etc/machine-id: the agent is known by its name alone");
                node.clone()
            }
        };
        Ok(Self {
            agent_id,
            node,
            labels: labels.iter().cloned().collect(),
            epoch: clock::wall_now().as_millis() as u64,
            boot_id: boot_id.trim().to_owned(),
            observed_netns: String::new(),
            missing_features: Vec::new(),
        })
    }

    /// The first message on every connection to the collector, but for what the spool holds.
    pub fn hello(&self) -> Hello {
        let system = uname();
        Hello {
            protocol: PROTOCOL,
            agent_id: self.agent_id.clone(),
            epoch: self.epoch,
            node: self.node.clone(),
            labels: self.labels.clone().into_iter().collect(),
            version: env!("CARGO_PKG_VERSION").into(),
            boot_id: self.boot_id.clone(),
            kernel: system.release().to_string_lossy().into_owned(),
            architecture: system.machine().to_string_lossy().into_owned(),
            observed_netns: self.observed_netns.clone(),
            missing_features: self.missing_features.clone(),
            unanswered: Vec::new(),
            unsettled: Vec::new(),
            predecessors: Vec::new(),
            addresses: addresses(),
        }
    }
}

/// The addresses of the interfaces in the agent's network namespace, but for loopback. None if the kernel does not say.
fn addresses() -> Vec<bytes::Bytes> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::warn!("the addresses of this node are not known: {error}");
            return Vec::new();
        }
    };
    let addresses: BTreeSet<[u8; 16]> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            let mapped = match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped(),
                IpAddr::V6(ip) => ip,
            };
            (!ip.is_loopback()).then(|| mapped.octets())
        })
        .take(MAX_ADDRESSES)
        .collect();
    addresses
        .into_iter()
        .map(|octets| bytes::Bytes::copy_from_slice(&octets))
        .collect()
}

/// Whether a name can stand for a node.
///
/// # Errors
/// With a text for people if it cannot.
pub fn check_name(name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.contains(char::is_control) {
        return Err(format!(
            "the node name {name:?} must have 1 to {MAX_NAME_BYTES} bytes and no control characters: use --name"
        ));
    }
    Ok(())
}

/// Whether this installation has an id.
pub fn has_machine_id() -> bool {
    MACHINE_ID
        .iter()
        .any(|path| machine_id(Path::new(path)).is_some())
}

fn machine_id(path: &Path) -> Option<String> {
    let id = fs::read_to_string(path).ok()?;
    let id = id.trim();
    // An image that was never booted holds "uninitialized".
    (id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| id.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_is_the_same_at_every_start_and_differs_by_name() {
        let first = Identity::read(Some("a"), &[]).expect("an identity");
        let again = Identity::read(Some("a"), &[]).expect("an identity");
        let other = Identity::read(Some("b"), &[]).expect("an identity");
        assert_eq!(first.agent_id, again.agent_id);
        assert_ne!(first.agent_id, other.agent_id);
    }

    #[test]
    fn a_name_that_could_not_be_printed_is_refused() {
        for name in ["", "two\nlines", &"x".repeat(254)] {
            assert!(Identity::read(Some(name), &[]).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_machine_id_must_be_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("machine-id");
        fs::write(&path, "uninitialized\n").expect("written");
        assert_eq!(machine_id(&path), None);
        fs::write(&path, "0123456789abcdef0123456789abcdef\n").expect("written");
        assert_eq!(
            machine_id(&path).as_deref(),
            Some("0123456789abcdef0123456789abcdef")
        );
    }
}
