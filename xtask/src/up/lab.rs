//! Hosts made of network namespaces: a bridge in a namespace of its own, and a cable from it to each node and to
//! this machine, where the collector runs.

use std::net::{Ipv4Addr, SocketAddr};

use crate::netns::{self, Netns};

/// The bench network of RFC 2544: no real network uses it.
const NETWORK: [u8; 2] = [198, 18];
/// All of it, as agents are told.
pub(super) const LAB_NETWORK: &str = "198.18.0.0/16";
/// This machine's end.
const GATEWAY_HOST: u8 = 1;
/// An address that every node takes for a neighbour, and that nobody has: what is sent to it vanishes.
const SILENT_HOST: u8 = 250;
const SILENT_MAC: &str = "02:00:00:00:00:fa";
/// Nodes have the hosts from here on.
const FIRST_NODE_HOST: u8 = 10;
/// So the last node stays below [`SILENT_HOST`]; an agent each is the real limit.
pub(super) const MOST_NODES: i64 = 50;

/// Ports of the traffic between nodes.
pub(super) const HTTP_PORT: u16 = 8080;
/// Nobody listens there.
pub(super) const CLOSED_PORT: u16 = 8081;

pub(crate) struct Lab {
    /// The third number of the network: other runs at the same time have another.
    subnet: u8,
    nodes: Vec<Node>,
    _uplink: Uplink,
    /// Last, so that what is plugged into it goes first.
    _bridge: Netns,
}

/// The cable's end on this machine. The kernel would remove it some time after the bridge's namespace.
struct Uplink {
    name: String,
}

impl Uplink {
    fn plug_into(bridge: &Netns, address: Ipv4Addr) -> anyhow::Result<Self> {
        // An interface's name has 15 characters at most.
        let name = format!("hf{}", std::process::id());
        netns::ip(&[
            "link",
            "add",
            &name,
            "type",
            "veth",
            "peer",
            "name",
            "up0",
            "netns",
            bridge.name(),
        ])?;
        let uplink = Self { name };
        bridge.ip(&["link", "set", "up0", "master", "br0", "up"])?;
        netns::ip(&["address", "add", &with_prefix(address), "dev", &uplink.name])?;
        netns::ip(&["link", "set", &uplink.name, "up"])?;
        Ok(uplink)
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        if let Err(error) = netns::ip(&["link", "delete", &self.name]) {
            eprintln!("warning: the interface {} stays behind: {error:#}", self.name);
        }
    }
}

pub(crate) struct Node {
    pub(crate) name: String,
    pub(super) role: &'static str,
    pub(crate) netns: Netns,
    pub(crate) address: Ipv4Addr,
}

impl Lab {
    pub(crate) fn create(count: u8) -> anyhow::Result<Self> {
        let pid = std::process::id();
        let subnet = (pid % 250) as u8;
        let bridge = Netns::create("bridge")?;
        bridge.ip(&["link", "add", "br0", "type", "bridge"])?;
        bridge.ip(&["link", "set", "br0", "up"])?;

        let uplink = Uplink::plug_into(&bridge, host(subnet, GATEWAY_HOST))?;
        let nodes = (0..count)
            .map(|index| Node::create(subnet, index, &bridge))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            subnet,
            nodes,
            _uplink: uplink,
            _bridge: bridge,
        })
    }

    pub(crate) fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// This machine as the nodes reach it.
    pub(super) fn gateway(&self) -> Ipv4Addr {
        host(self.subnet, GATEWAY_HOST)
    }

    pub(super) fn silent(&self) -> SocketAddr {
        (host(self.subnet, SILENT_HOST), HTTP_PORT).into()
    }
}

impl Node {
    fn create(subnet: u8, index: u8, bridge: &Netns) -> anyhow::Result<Self> {
        let name = format!("node-{}", index + 1);
        let port = format!("port{index}");
        let address = host(subnet, FIRST_NODE_HOST + index);
        let netns = Netns::create(&name)?;

        netns.ip(&[
            "link",
            "add",
            "eth0",
            "type",
            "veth",
            "peer",
            "name",
            &port,
            "netns",
            bridge.name(),
        ])?;
        bridge.ip(&["link", "set", &port, "master", "br0", "up"])?;
        netns.ip(&["address", "add", &with_prefix(address), "dev", "eth0"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        let silent = host(subnet, SILENT_HOST).to_string();
        netns.ip(&[
            "neighbour",
            "add",
            &silent,
            "lladdr",
            SILENT_MAC,
            "dev",
            "eth0",
            "nud",
            "permanent",
        ])?;
        // One repetition: the kernel gives up after 3 s instead of 2 minutes.
        netns.set("net/ipv4/tcp_syn_retries", "1")?;

        let role = if index == 0 { "web" } else { "client" };
        Ok(Self {
            name,
            role,
            netns,
            address,
        })
    }
}

fn host(subnet: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(NETWORK[0], NETWORK[1], subnet, host)
}

fn with_prefix(address: Ipv4Addr) -> String {
    format!("{address}/24")
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::path::Path;
    use std::thread;

    use super::*;

    #[test]
    fn nodes_reach_this_machine_under_their_own_addresses_and_nothing_stays_behind() {
        let lab = Lab::create(2).unwrap();
        let listener = TcpListener::bind((lab.gateway(), 0)).unwrap();
        let target = format!(
            "/dev/tcp/{}/{}",
            lab.gateway(),
            listener.local_addr().unwrap().port()
        );
        let accepting = thread::spawn(move || [0, 1].map(|_| listener.accept().unwrap().1.ip()));
        for node in lab.nodes() {
            let mut connect = node.netns.command(Path::new("bash"));
            assert!(
                connect
                    .args(["-c", &format!("exec 3<>{target}")])
                    .status()
                    .unwrap()
                    .success()
            );
        }
        let addresses = lab
            .nodes()
            .iter()
            .map(|node| std::net::IpAddr::from(node.address))
            .collect::<Vec<_>>();
        assert_eq!(accepting.join().unwrap().to_vec(), addresses);

        let names: Vec<String> = lab
            .nodes()
            .iter()
            .map(|node| node.netns.name().to_owned())
            .collect();
        let uplink = format!("/sys/class/net/hf{}", std::process::id());
        assert!(Path::new(&uplink).exists());
        drop(lab);
        assert!(!Path::new(&uplink).exists(), "{uplink} is still there");
        for name in names {
            assert!(
                !Path::new("/run/netns").join(&name).exists(),
                "{name} is still there"
            );
        }
    }
}
