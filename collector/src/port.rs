//! Takes the collector's ports, and when one is taken finds out by whom (proc(5): net/tcp, net/tcp6, PID/fd).

use std::fs;
use std::io;
use std::net::SocketAddr;

use anyhow::{Context, anyhow};
use tokio::net::TcpListener;

/// TCP_LISTEN, as /proc/net/tcp writes it.
const LISTEN: &str = "0A";

/// Listens at `address`. `setting` names the flag that chooses another.
pub async fn listen(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| match error.kind() {
            io::ErrorKind::AddrInUse => {
                let owner = owner(address.port()).map_or_else(String::new, |owner| format!(" by {owner}"));
                anyhow!(
                    "port {} is taken{owner}; choose another with {setting}",
                    address.port()
                )
            }
            _ => anyhow!("{error}; choose another with {setting}"),
        })
        .with_context(|| format!("cannot listen at {address}"))
}

/// The process that listens at a port, as `name[pid]`; `None` where it cannot be found or may not be seen.
fn owner(port: u16) -> Option<String> {
    let inodes: Vec<String> = ["/proc/net/tcp", "/proc/net/tcp6"]
        .iter()
        .filter_map(|table| fs::read_to_string(table).ok())
        .flat_map(|table| listening_inodes(&table, port))
        .collect();
    let sockets: Vec<String> = inodes.iter().map(|inode| format!("socket:[{inode}]")).collect();
    let processes = fs::read_dir("/proc").ok()?.flatten();
    for process in processes.filter(|entry| entry.file_name().as_encoded_bytes()[0].is_ascii_digit()) {
        let Ok(descriptors) = fs::read_dir(process.path().join("fd")) else {
            continue;
        };
        let mut targets = descriptors
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok());
        if targets.any(|target| sockets.iter().any(|socket| target.as_os_str() == socket.as_str())) {
            let comm = fs::read_to_string(process.path().join("comm")).ok()?;
            return Some(format!(
                "{}[{}]",
                comm.trim_end(),
                process.file_name().to_string_lossy()
            ));
        }
    }
    None
}

/// The inodes of the sockets that listen at a port, from a table of /proc/net/tcp's form.
fn listening_inodes(table: &str, port: u16) -> Vec<String> {
    let port = format!(":{port:04X}");
    let row = |line: &str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, local, _, state, _, _, _, _, _, inode, ..] = fields[..] else {
            return None;
        };
        (local.ends_with(&port) && state == LISTEN).then(|| inode.to_owned())
    };
    table.lines().filter_map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listeners_at_the_port_are_found() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
            0: 0100007F:1D13 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0\n\
            1: 0100007F:1D13 0100007F:A001 01 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0\n\
            2: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0\n";
        assert_eq!(listening_inodes(table, 0x1d13), ["4711"]);
        assert!(listening_inodes(table, 80).is_empty());
    }

    #[tokio::test]
    async fn an_address_of_another_machine_is_an_error_that_says_what_to_change() {
        // Of TEST-NET-1 (RFC 5737): no machine has it.
        let error = listen("192.0.2.1:1".parse().unwrap(), "--web").await.unwrap_err();
        let error = format!("{error:#}");
        assert!(
            error.starts_with("cannot listen at 192.0.2.1:1: ")
                && error.ends_with("; choose another with --web"),
            "{error}"
        );
    }

    #[tokio::test]
    async fn a_taken_port_names_the_process_that_has_it() {
        let first = listen("127.0.0.1:0".parse().unwrap(), "--listen").await.unwrap();
        let address = first.local_addr().unwrap();
        let error = format!("{:#}", listen(address, "--listen").await.unwrap_err());
        let pid = std::process::id();
        assert!(
            error.starts_with(&format!(
                "cannot listen at {address}: port {} is taken by ",
                address.port()
            )),
            "{error}"
        );
        assert!(
            error.ends_with(&format!("[{pid}]; choose another with --listen")),
            "{error}"
        );
    }
}
