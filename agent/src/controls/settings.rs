//! What can be told to the probes while they run, as people write it, and what of it the node's own configuration lets a
//! collector change.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    os::unix::fs::MetadataExt,
    path::{Component, Path},
    str::FromStr,
};

use holdfast_agent_ebpf::{
    control::{AF_INET, AF_INET6, ALL, Choice, Control, FILTER_VALUES, Filter, Network, words},
    limits::COMM_BYTES,
};

use crate::{
    config::Netns,
    setting::Setting,
    syscalls::Mode,
    workloads::{is_made, root_of_v2},
};

/// Takes a filter away, or switches a stream on.
const ANY: &str = "any";

/// Streams every transition.
const ALL_TRANSITIONS: &str = "all";

/// What is watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub syscalls: Mode,
    /// One connection in so many is followed.
    pub one_in: NonZeroU32,
    /// Whether looks at what is open are reported.
    pub open_connections: bool,
    pub listeners: bool,
    pub transitions: Transitions,
    shown: Selection,
}

/// Whose connections something is about: those that fit every kind of which there are values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    ports: Values<Port>,
    addresses: Values<Net>,
    cgroups: Values<Cgroup>,
    processes: Values<Process>,
    namespaces: Values<Namespace>,
}

/// Which transitions are streamed, of what the filters show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Transitions {
    /// None: the record of a connection tells them, once it is closed.
    #[default]
    Closed,
    /// Every one.
    All,
    /// Those of some.
    Of(Box<Selection>),
}

/// A setting that a collector can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Ports,
    Addresses,
    Cgroups,
    Processes,
    Namespaces,
    Connections,
    Syscalls,
    Transitions,
    OpenConnections,
    Listeners,
}

impl Key {
    pub const ALL: [Self; 10] = [
        Self::Ports,
        Self::Addresses,
        Self::Cgroups,
        Self::Processes,
        Self::Namespaces,
        Self::Connections,
        Self::Syscalls,
        Self::Transitions,
        Self::OpenConnections,
        Self::Listeners,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Ports => "ports",
            Self::Addresses => "addresses",
            Self::Cgroups => "cgroups",
            Self::Processes => "processes",
            Self::Namespaces => "namespaces",
            Self::Connections => "connections",
            Self::Syscalls => "syscalls",
            Self::Transitions => "transitions",
            Self::OpenConnections => "open-connections",
            Self::Listeners => "listeners",
        }
    }

    /// What the node's configuration calls the permission to change it.
    fn permission(self) -> &'static str {
        match self {
            Self::Ports | Self::Addresses | Self::Cgroups | Self::Processes | Self::Namespaces => "filters",
            Self::Connections => "connections",
            Self::Syscalls => "syscalls",
            Self::Transitions => "transitions",
            Self::OpenConnections | Self::Listeners => "streams",
        }
    }
}

impl FromStr for Key {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|key| key.name() == text);
        known.ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("this agent has no setting {text:?}; it has {names}")
        })
    }
}

/// What a collector may change here. Nothing, unless the node's configuration says more.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    filters: bool,
    streams: bool,
    transitions: bool,
    /// One connection in so many at the most; `None`: it may not be changed.
    connections: Option<NonZeroU32>,
    /// What costs most of what may be asked for; `None`: it may not be changed.
    syscalls: Option<Mode>,
}

impl Allowed {
    /// Whether syscalls may be switched on while the agent runs.
    pub fn syscalls(&self) -> bool {
        self.syscalls.is_some_and(|most| most != Mode::Off)
    }

    /// Whether a key may be changed at all. Asked before its value is looked at: a value may name a path of the node.
    fn check(&self, key: Key) -> Result<(), String> {
        let permission = key.permission();
        let is_allowed = match key {
            Key::Ports | Key::Addresses | Key::Cgroups | Key::Processes | Key::Namespaces => self.filters,
            Key::Transitions => self.transitions,
            Key::OpenConnections | Key::Listeners => self.streams,
            Key::Connections => self.connections.is_some(),
            Key::Syscalls => self.syscalls.is_some(),
        };
        is_allowed.then_some(()).ok_or_else(|| {
            format!(
                "this node lets no collector change it: {}",
                Setting("control").to(&self.and(permission))
            )
        })
    }

    /// As the setting that allows this says it, with one permission more, which takes the place of a narrower one of its kind.
    fn and(&self, permission: &str) -> String {
        let (kind, _) = permission.split_once('=').unwrap_or((permission, ""));
        let most_of = |kind: &str, bound: Option<String>| match bound {
            Some(most) => format!("{kind}={most}"),
            None => kind.to_owned(),
        };
        let connections = |most: NonZeroU32| {
            let bound = (most != NonZeroU32::MAX).then(|| most.to_string());
            ("connections", most_of("connections", bound))
        };
        let syscalls = |most: Mode| {
            let bound = (most != Mode::Full).then(|| most.to_string());
            ("syscalls", most_of("syscalls", bound))
        };
        let named = |is_allowed: bool, kind: &'static str| is_allowed.then(|| (kind, kind.to_owned()));
        [
            named(self.filters, "filters"),
            named(self.streams, "streams"),
            named(self.transitions, "transitions"),
            self.connections.map(connections),
            self.syscalls.map(syscalls),
        ]
        .into_iter()
        .flatten()
        .filter(|(other, _)| *other != kind)
        .map(|(_, text)| text)
        .chain([permission.to_owned()])
        .collect::<Vec<_>>()
        .join(",")
    }

    /// Whether a key that may be changed may have this value. `settings` are those after the change.
    fn check_value(&self, key: Key, settings: &Settings) -> Result<(), String> {
        match (key, self.connections, self.syscalls) {
            (Key::Connections, Some(most), _) if settings.one_in > most => Err(format!(
                "this node follows at least one connection in {most}: {}",
                Setting("control").to(&self.and(&format!("connections={}", settings.one_in)))
            )),
            (Key::Syscalls, _, Some(most)) if cost(settings.syscalls) > cost(most) => Err(format!(
                "this node counts syscalls in the mode {most} at most: {}",
                Setting("control").to(&self.and(&format!("syscalls={}", settings.syscalls)))
            )),
            _ => Ok(()),
        }
    }
}

/// Modes by what they cost: calls that are measured, then whether any are counted.
fn cost(mode: Mode) -> (u8, u32) {
    match mode {
        Mode::Off => (0, 0),
        Mode::Counts => (1, 0),
        Mode::Sampled(one_in) => (2, u32::MAX / one_in),
        Mode::Full => (2, u32::MAX),
    }
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut allowed = Self::default();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            match part.split_once('=') {
                None if part == "none" => {}
                None if part == "all" => {
                    allowed = Self {
                        filters: true,
                        streams: true,
                        transitions: true,
                        connections: Some(NonZeroU32::MAX),
                        syscalls: Some(Mode::Full),
                    };
                }
                None if part == "filters" => allowed.filters = true,
                None if part == "streams" => allowed.streams = true,
                None if part == "transitions" => allowed.transitions = true,
                None if part == "connections" => allowed.connections = Some(NonZeroU32::MAX),
                None if part == "syscalls" => allowed.syscalls = Some(Mode::Full),
                Some(("connections", most)) => {
                    allowed.connections = Some(
                        most.parse()
                            .map_err(|_| format!("{part:?}: {most:?} is no number"))?,
                    );
                }
                Some(("syscalls", most)) => allowed.syscalls = Some(most.parse()?),
                _ => {
                    return Err(format!(
                        "{part:?} is none of none, all, filters, streams, transitions, connections[=N] and \
                         syscalls[=MODE]"
                    ));
                }
            }
        }
        Ok(allowed)
    }
}

/// Values of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Values<T> {
    Any,
    OneOf(Vec<T>),
    NoneOf(Vec<T>),
}

impl<T: FromStr<Err = String>> FromStr for Values<T> {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == ANY {
            return Ok(Self::Any);
        }
        let (is_negated, list) = match text.strip_prefix('!') {
            Some(list) => (true, list),
            None => (false, text),
        };
        let values: Vec<T> = list
            .split(',')
            .map(|value| value.trim().parse())
            .collect::<Result<_, _>>()?;
        if values.len() > FILTER_VALUES {
            return Err(format!(
                "{} values; a filter has {FILTER_VALUES} at most",
                values.len()
            ));
        }
        Ok(if is_negated {
            Self::NoneOf(values)
        } else {
            Self::OneOf(values)
        })
    }
}

impl<T: fmt::Display> fmt::Display for Values<T> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (sign, values) = match self {
            Self::Any => return out.write_str(ANY),
            Self::OneOf(values) => ("", values),
            Self::NoneOf(values) => ("!", values),
        };
        let texts: Vec<_> = values.iter().map(ToString::to_string).collect();
        write!(out, "{sign}{}", texts.join(","))
    }
}

impl<T> Values<T> {
    fn choice(&self) -> Choice {
        Choice {
            is_set: u8::from(!matches!(self, Self::Any)),
            is_negated: u8::from(matches!(self, Self::NoneOf(_))),
        }
    }

    fn values(&self) -> &[T] {
        match self {
            Self::Any => &[],
            Self::OneOf(values) | Self::NoneOf(values) => values,
        }
    }
}

/// A port as a value of a filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Port(u16);

impl FromStr for Port {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(port) if port != 0 => Ok(Self(port)),
            _ => Err(format!("{text:?} is no port")),
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(out)
    }
}

/// A network namespace by its inode, and by its name if it was given so.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Namespace {
    inode: u32,
    name: Option<String>,
}

impl FromStr for Namespace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) => return Err("0 is no network namespace".to_owned()),
            Ok(inode) => return Ok(Self { inode, name: None }),
            Err(_) => {}
        }
        if text.is_empty() || text.starts_with('.') || text.contains('/') {
            return Err(format!(
                "{text:?} is no network namespace: write its inode, or its name in /run/netns"
            ));
        }
        match format!("/run/netns/{text}").parse() {
            Ok(Netns::Only(inode)) => Ok(Self {
                inode,
                name: Some(text.to_owned()),
            }),
            Ok(Netns::All) | Err(_) => Err(format!("there is no network namespace {text:?} in /run/netns")),
        }
    }
}

impl fmt::Display for Namespace {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.name {
            Some(name) => out.write_str(name),
            None => self.inode.fmt(out),
        }
    }
}

/// Addresses that begin alike: `10.0.0.0/8`, or one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Net {
    address: IpAddr,
    prefix: u32,
}

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, prefix) = text.split_once('/').unzip();
        let address: IpAddr = address
            .unwrap_or(text)
            .parse()
            .map_err(|_| format!("{text:?} is neither an address nor a network such as 10.0.0.0/8"))?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(prefix) => prefix
                .parse()
                .ok()
                .filter(|prefix| *prefix <= bits)
                .ok_or_else(|| format!("{text:?}: the prefix is a number up to {bits}"))?,
        };
        let net = Self { address, prefix };
        if net.masked() != address {
            return Err(format!(
                "{text:?} has bits behind its prefix: write {}/{prefix}",
                net.masked()
            ));
        }
        Ok(net.unmapped())
    }
}

impl fmt::Display for Net {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.address, self.prefix)
    }
}

impl Net {
    /// Of IPv4 if it is within ::ffff:0:0/96, where an IPv6 socket has IPv4 addresses: the programs look for those
    /// there too.
    fn unmapped(self) -> Self {
        match self.address {
            IpAddr::V6(v6) if self.prefix >= 96 => v6.to_ipv4_mapped().map_or(self, |v4| Self {
                address: v4.into(),
                prefix: self.prefix - 96,
            }),
            _ => self,
        }
    }

    fn mask(&self) -> u128 {
        let bits = if self.address.is_ipv4() { 32 } else { 128 };
        let ones = u128::MAX.checked_shl(bits - self.prefix).unwrap_or(0);
        if bits == 32 {
            ones & u128::from(u32::MAX)
        } else {
            ones
        }
    }

    fn masked(&self) -> IpAddr {
        match self.address {
            IpAddr::V4(address) => Ipv4Addr::from_bits(address.to_bits() & self.mask() as u32).into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & self.mask()).into(),
        }
    }

    fn network(&self) -> Network {
        let in_memory = |bits: u128| {
            let bytes = bits.to_be_bytes();
            let (words, _) = bytes.as_chunks();
            std::array::from_fn(|word| u32::from_ne_bytes(words[word]))
        };
        match self.address {
            IpAddr::V4(address) => Network {
                address: [u32::from_ne_bytes(address.octets()), 0, 0, 0],
                mask: [(self.mask() as u32).to_be(), 0, 0, 0],
                family: AF_INET,
            },
            IpAddr::V6(address) => Network {
                address: in_memory(address.to_bits()),
                mask: in_memory(self.mask()),
                family: AF_INET6,
            },
        }
    }
}

/// The file system of cgroups of version 2 (include/uapi/linux/magic.h).
const CGROUP2_MAGIC: rustix::fs::FsWord = 0x6367_7270;

/// A cgroup (v2) by its id, and by its path if it was given so.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Cgroup {
    id: u64,
    path: Option<String>,
}

impl FromStr for Cgroup {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) => return Err("0 is no cgroup".to_owned()),
            // Rows have it, the sockets that the programs look at do not.
            Ok(id) if is_made(id) => {
                return Err(format!(
                    "{id} is a cgroup of version 1, by which nothing can be filtered: sockets do not know it"
                ));
            }
            Ok(id) => return Ok(Self { id, path: None }),
            Err(_) => {}
        }
        let below = Path::new(text.trim_start_matches('/'));
        if text.is_empty()
            || !below
                .components()
                .all(|part| matches!(part, Component::Normal(_)))
        {
            return Err(format!(
                "{text:?} is no path of a cgroup: write it from the root, without . and .."
            ));
        }
        let root = root_of_v2().ok_or("this machine has no cgroups of version 2")?;
        let folder = root.join(below);
        let absent = |error: &dyn fmt::Display| {
            let folder = folder.display();
            format!("there is no cgroup {text:?} on this node ({folder}: {error})")
        };
        let metadata = std::fs::metadata(&folder).map_err(|error| absent(&error))?;
        let kind = rustix::fs::statfs(&folder)
            .map_err(|error| absent(&error))?
            .f_type;
        if !metadata.is_dir() || kind != CGROUP2_MAGIC {
            return Err(absent(&"it is something else"));
        }
        Ok(Self {
            // The inode of its folder is its id (cgroup_ino, include/linux/cgroup.h).
            id: metadata.ino(),
            path: Some(text.to_owned()),
        })
    }
}

impl fmt::Display for Cgroup {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.path {
            Some(path) => out.write_str(path),
            None => self.id.fmt(out),
        }
    }
}

/// A process by its id, or processes by their command name.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Process {
    Id(u32),
    Name(String),
}

impl FromStr for Process {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.parse() {
            Ok(0) => Err("0 is no process".to_owned()),
            Ok(id) => Ok(Self::Id(id)),
            Err(_) if text.is_empty() => Err("a process has a name".to_owned()),
            Err(_) if text.len() >= COMM_BYTES => Err(format!(
                "{text:?} is longer than the {} bytes of a command name that the kernel keeps: write {:?}",
                COMM_BYTES - 1,
                text.get(..COMM_BYTES - 1).unwrap_or_default()
            )),
            Err(_) => Ok(Self::Name(text.to_owned())),
        }
    }
}

impl fmt::Display for Process {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(out),
            Self::Name(name) => out.write_str(name),
        }
    }
}

impl Selection {
    const EVERYTHING: Self = Self {
        ports: Values::Any,
        addresses: Values::Any,
        cgroups: Values::Any,
        processes: Values::Any,
        namespaces: Values::Any,
    };

    /// Sets one kind of values; `None` if the key is of another setting.
    fn set(&mut self, key: Key, value: &str) -> Option<Result<(), String>> {
        fn set<T: FromStr<Err = String>>(values: &mut Values<T>, text: &str) -> Result<(), String> {
            text.parse().map(|parsed| *values = parsed)
        }
        Some(match key {
            Key::Ports => set(&mut self.ports, value),
            Key::Addresses => set(&mut self.addresses, value),
            Key::Cgroups => set(&mut self.cgroups, value),
            Key::Processes => set(&mut self.processes, value),
            Key::Namespaces => set(&mut self.namespaces, value),
            Key::Connections | Key::Syscalls | Key::Transitions | Key::OpenConnections | Key::Listeners => {
                return None;
            }
        })
    }

    /// Every kind as it is written.
    fn texts(&self) -> [(Key, String); 5] {
        [
            (Key::Ports, self.ports.to_string()),
            (Key::Addresses, self.addresses.to_string()),
            (Key::Cgroups, self.cgroups.to_string()),
            (Key::Processes, self.processes.to_string()),
            (Key::Namespaces, self.namespaces.to_string()),
        ]
    }

    /// As the programs know it.
    fn filter(&self) -> Filter {
        let mut filter = Filter {
            port: self.ports.choice(),
            network: self.addresses.choice(),
            cgroup: self.cgroups.choice(),
            process: self.processes.choice(),
            namespace: self.namespaces.choice(),
            ..Filter::NONE
        };
        for (place, port) in filter.ports.iter_mut().zip(self.ports.values()) {
            *place = port.0;
        }
        for (place, net) in filter.networks.iter_mut().zip(self.addresses.values()) {
            *place = net.network();
        }
        for (place, cgroup) in filter.cgroups.iter_mut().zip(self.cgroups.values()) {
            *place = cgroup.id;
        }
        for (place, namespace) in filter.namespaces.iter_mut().zip(self.namespaces.values()) {
            *place = namespace.inode;
        }
        for (place, process) in self.processes.values().iter().enumerate() {
            match process {
                Process::Id(id) => filter.pids[place] = *id,
                Process::Name(name) => {
                    let mut comm = [0; COMM_BYTES];
                    comm[..name.len()].copy_from_slice(name.as_bytes());
                    filter.comms[place] = words(&comm);
                }
            }
        }
        filter
    }
}

impl FromStr for Transitions {
    type Err = String;

    /// `closed`, `all`, or whose: `ports=5432;processes=nginx`.
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "closed" => return Ok(Self::Closed),
            ALL_TRANSITIONS => return Ok(Self::All),
            _ => {}
        }
        let mut selection = Selection::EVERYTHING;
        for part in text.split(';').map(str::trim).filter(|part| !part.is_empty()) {
            let set = part.split_once('=').and_then(|(name, value)| {
                let key = name.trim().parse().ok()?;
                selection.set(key, value.trim())
            });
            set.unwrap_or_else(|| {
                Err(format!(
                    "{part:?} is neither closed, nor all, nor whose transitions: write ports=, addresses=, cgroups=, \
                     processes= or namespaces=, several separated by semicolons"
                ))
            })?;
        }
        if selection == Selection::EVERYTHING {
            return Err(format!("{text:?} says nobody's transitions: write closed or all"));
        }
        Ok(Self::Of(Box::new(selection)))
    }
}

impl fmt::Display for Transitions {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => out.write_str("closed"),
            Self::All => out.write_str(ALL_TRANSITIONS),
            Self::Of(selection) => {
                let parts = selection.texts().into_iter().filter(|(_, text)| text != ANY);
                let parts: Vec<_> = parts
                    .map(|(key, text)| format!("{}={text}", key.name()))
                    .collect();
                out.write_str(&parts.join(";"))
            }
        }
    }
}

impl Settings {
    /// Everything, with syscalls in this mode, and these transitions.
    pub fn everything(syscalls: Mode, transitions: Transitions) -> Self {
        Self {
            syscalls,
            one_in: NonZeroU32::MIN,
            open_connections: true,
            listeners: true,
            transitions,
            shown: Selection::EVERYTHING,
        }
    }

    /// These settings with what a collector wants, as far as it may; and why not, by key.
    pub fn with(
        &self,
        wanted: &BTreeMap<String, String>,
        allowed: &Allowed,
        can_count_syscalls: bool,
    ) -> (Self, BTreeMap<String, String>) {
        let mut settings = self.clone();
        let mut refused = BTreeMap::new();
        for (name, value) in wanted {
            let changed = name.parse().and_then(|key| {
                allowed.check(key)?;
                let mut changed = settings.clone();
                changed.set(key, value)?;
                if key == Key::Syscalls && changed.syscalls != Mode::Off && !can_count_syscalls {
                    return Err("the kernel of this node refused the programs that count syscalls".to_owned());
                }
                allowed.check_value(key, &changed)?;
                Ok(changed)
            });
            match changed {
                Ok(changed) => settings = changed,
                Err(reason) => {
                    refused.insert(name.clone(), reason);
                }
            }
        }
        (settings, refused)
    }

    fn set(&mut self, key: Key, value: &str) -> Result<(), String> {
        let on = |value: &str| match value {
            "on" => Ok(true),
            "off" => Ok(false),
            _ => Err(format!("{value:?} is neither on nor off")),
        };
        match key {
            Key::Ports | Key::Addresses | Key::Cgroups | Key::Processes | Key::Namespaces => {
                return self.shown.set(key, value).unwrap_or(Ok(()));
            }
            Key::Transitions => self.transitions = value.parse()?,
            Key::Connections => self.one_in = one_in(value)?,
            Key::Syscalls => self.syscalls = value.parse()?,
            Key::OpenConnections => self.open_connections = on(value)?,
            Key::Listeners => self.listeners = on(value)?,
        }
        Ok(())
    }

    /// Every setting as it is written.
    pub fn texts(&self) -> BTreeMap<String, String> {
        let on = |is_on: bool| if is_on { "on" } else { "off" }.to_owned();
        let connections = match self.one_in {
            NonZeroU32::MIN => "all".to_owned(),
            one_in => format!("1/{one_in}"),
        };
        let others = [
            (Key::Connections, connections),
            (Key::Syscalls, self.syscalls.to_string()),
            (Key::Transitions, self.transitions.to_string()),
            (Key::OpenConnections, on(self.open_connections)),
            (Key::Listeners, on(self.listeners)),
        ];
        let texts = self.shown.texts().into_iter().chain(others);
        texts.map(|(key, text)| (key.name().to_owned(), text)).collect()
    }

    /// As the programs know it, where one connection in so many is followed, and transitions are streamed if they may be.
    pub fn control(&self, one_in: NonZeroU32, may_stream: bool) -> Control {
        let filter = self.shown.filter();
        let (streamed, is_streaming) = match &self.transitions {
            Transitions::Closed => (Filter::NONE, false),
            Transitions::All => (Filter::NONE, true),
            Transitions::Of(selection) => (selection.filter(), true),
        };
        Control {
            filter,
            largest_followed: ALL / one_in,
            is_filtering: u32::from(filter != Filter::NONE),
            streamed,
            is_streaming: u32::from(is_streaming && may_stream),
            is_selecting: u32::from(streamed != Filter::NONE),
        }
    }
}

/// `all`, or `1/16`.
fn one_in(text: &str) -> Result<NonZeroU32, String> {
    if text == "all" {
        return Ok(NonZeroU32::MIN);
    }
    text.strip_prefix("1/")
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| format!("{text:?} is neither all nor a part such as 1/16"))
}

#[cfg(test)]
mod tests {
    use holdfast_agent_ebpf::event::ConnectionRecord;

    use super::*;
    use crate::syscalls::SAMPLED;

    fn wanted(values: &[(&str, &str)]) -> BTreeMap<String, String> {
        values
            .iter()
            .map(|&(key, value)| (key.to_owned(), value.to_owned()))
            .collect()
    }

    fn own() -> Settings {
        Settings::everything(Mode::Sampled(SAMPLED), Transitions::Closed)
    }

    fn check(key: &str, value: &str, expected: Result<&str, &str>) {
        let all = "all".parse().expect("everything is allowed");
        let (settings, refused) = own().with(&wanted(&[(key, value)]), &all, true);
        match expected {
            Ok(text) => {
                assert_eq!(refused, BTreeMap::new());
                assert_eq!(settings.texts()[key], text);
            }
            Err(part) => {
                assert!(refused[key].contains(part), "{refused:?}");
                assert_eq!(settings, own(), "what is refused changes nothing");
            }
        }
    }

    #[test]
    fn a_setting_is_told_as_it_is_written() {
        for (key, value) in [
            ("ports", "80,443"),
            ("ports", "!22"),
            ("ports", "any"),
            ("addresses", "10.0.0.0/8,fd00::/8"),
            ("cgroups", "17"),
            ("processes", "nginx,77"),
            ("connections", "1/16"),
            ("connections", "all"),
            ("namespaces", "!4026531840"),
            ("syscalls", "sampled=64"),
            ("transitions", "all"),
            ("transitions", "closed"),
            ("transitions", "ports=5432,80;processes=!nginx;namespaces=7"),
            ("open-connections", "off"),
            ("listeners", "on"),
        ] {
            check(key, value, Ok(value));
        }
        check("addresses", "10.1.2.3", Ok("10.1.2.3/32"));
        check("addresses", "::ffff:10.0.0.0/104", Ok("10.0.0.0/8"));
        check("addresses", "::ffff:0:0/95", Err("write ::fffe:0:0/95"));
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_could() {
        for (key, value, part) in [
            ("ports", "http", "\"http\" is no port"),
            ("ports", "0", "no port"),
            ("ports", "1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17", "16 at most"),
            ("addresses", "10.0.0.1/8", "write 10.0.0.0/8"),
            ("addresses", "10.0.0.0/33", "up to 32"),
            ("cgroups", "/no/such/group", "no cgroup"),
            ("cgroups", "0", "0 is no cgroup"),
            ("cgroups", "18433695719759423843", "a cgroup of version 1"),
            ("cgroups", "", "no path of a cgroup"),
            ("cgroups", "../../../etc/passwd", "no path of a cgroup"),
            ("cgroups", "/a/../../../etc", "no path of a cgroup"),
            (
                "processes",
                "a-name-that-is-too-long",
                "write \"a-name-that-is-\"",
            ),
            ("connections", "half", "1/16"),
            ("connections", "1/0", "1/16"),
            ("syscalls", "some", "sampled=N"),
            ("listeners", "yes", "neither on nor off"),
            ("namespaces", "../etc", "write its inode"),
            ("namespaces", "no-such-namespace", "in /run/netns"),
            ("transitions", "everything", "nor whose transitions"),
            ("transitions", "syscalls=off", "nor whose transitions"),
            ("transitions", "ports=any", "write closed or all"),
            ("transitions", "ports=http", "no port"),
        ] {
            check(key, value, Err(part));
        }
        let all = "all".parse().expect("everything is allowed");
        let (_, refused) = own().with(&wanted(&[("port", "80")]), &all, true);
        assert!(refused["port"].contains("it has ports, addresses"), "{refused:?}");
    }

    #[test]
    fn the_node_decides_what_may_be_changed_and_the_refusal_says_how() {
        let change = |allowed: &str, key: &str, value: &str| {
            let allowed = allowed.parse().expect("permissions");
            let (_, mut refused) = own().with(&wanted(&[(key, value)]), &allowed, true);
            refused.remove(key)
        };
        let refused = change("none", "ports", "80").expect("refused");
        assert!(
            refused.contains("--control filters, or with HOLDFAST_CONTROL=filters"),
            "{refused}"
        );
        for path in ["../../../etc/passwd", "../../../no/such/file", "/no/such/group"] {
            // Not a word of what is there.
            assert_eq!(change("none", "cgroups", path), Some(refused.clone()));
        }
        assert_eq!(change("filters", "ports", "80"), None);
        assert_eq!(change("filters,syscalls=counts", "syscalls", "counts"), None);
        assert_eq!(change("syscalls=sampled", "syscalls", "off"), None);
        let refused = change("syscalls=sampled", "syscalls", "full").expect("refused");
        assert!(refused.contains("--control syscalls=full"), "{refused}");
        let refused = change("connections=4", "connections", "1/16").expect("refused");
        assert!(refused.contains("at least one connection in 4"), "{refused}");
        assert_eq!(change("connections=16", "connections", "1/16"), None);
        // What is allowed already stays so.
        for (allowed, key, value, wanted) in [
            (
                "filters,streams",
                "transitions",
                "all",
                "filters,streams,transitions",
            ),
            (
                "streams,connections=4",
                "connections",
                "1/16",
                "streams,connections=16",
            ),
            (
                "syscalls=counts,filters",
                "syscalls",
                "full",
                "filters,syscalls=full",
            ),
            (
                "connections=4,syscalls",
                "ports",
                "80",
                "connections=4,syscalls,filters",
            ),
        ] {
            let refused = change(allowed, key, value).expect("refused");
            assert!(refused.contains(&format!("--control {wanted},")), "{refused}");
            assert_eq!(change(wanted, key, value), None, "{wanted}");
        }
        assert_eq!(change("transitions", "transitions", "all"), None);
        assert!(change("streams", "connections", "1/2").is_some());
        for bad in ["filter", "syscalls=some", "connections=x", "all=1"] {
            assert!(bad.parse::<Allowed>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_refused_setting_does_not_hold_up_the_others() {
        let allowed = "filters".parse().expect("permissions");
        let (settings, refused) =
            own().with(&wanted(&[("ports", "80"), ("syscalls", "off")]), &allowed, true);
        assert_eq!(settings.texts()["ports"], "80");
        assert_eq!(settings.syscalls, own().syscalls);
        assert_eq!(refused.keys().collect::<Vec<_>>(), ["syscalls"]);
    }

    #[test]
    fn what_the_programs_get_is_what_was_written() {
        let all = "all".parse().expect("everything is allowed");
        let values = [
            ("ports", "!22"),
            ("addresses", "10.0.0.0/8,fd00::/8"),
            ("processes", "nginx"),
        ];
        let (settings, _) = own().with(&wanted(&values), &all, true);
        let filter = settings.control(NonZeroU32::MIN, true).filter;
        let mut record = ConnectionRecord {
            family: 2,
            remote_address: [u32::from_ne_bytes([10, 9, 8, 7]), 0, 0, 0],
            remote_port: 80,
            ..ConnectionRecord::ZERO
        };
        record.comm[..5].copy_from_slice(b"nginx");
        assert!(filter.passes(&record));
        let elsewhere = ConnectionRecord {
            remote_address: [u32::from_ne_bytes([11, 9, 8, 7]), 0, 0, 0],
            ..record
        };
        assert!(!filter.passes(&elsewhere));
        assert!(!filter.passes(&ConnectionRecord {
            remote_port: 22,
            ..record
        }));
        let mut v6 = ConnectionRecord { family: 10, ..record };
        v6.local_address = [u32::from_ne_bytes([0xfd, 0, 0, 1]), 0, 0, 1];
        assert!(filter.passes(&v6));
        let mut mapped = ConnectionRecord { family: 10, ..record };
        mapped.remote_address = [0, 0, 0xffff_u32.to_be(), record.remote_address[0]];
        assert!(filter.passes(&mapped));
        mapped.remote_address[3] = elsewhere.remote_address[0];
        assert!(!filter.passes(&mapped));
        assert_eq!(own().control(NonZeroU32::MIN, true), Control::NONE);
    }

    #[test]
    fn transitions_are_of_those_that_were_asked_for_and_never_beyond_the_budget() {
        let all = "all".parse().expect("everything is allowed");
        let control = |value: &str, may_stream| {
            let (settings, refused) = own().with(&wanted(&[("transitions", value)]), &all, true);
            assert_eq!(refused, BTreeMap::new());
            settings.control(NonZeroU32::MIN, may_stream)
        };
        let everybody = control("all", true);
        assert_eq!((everybody.is_streaming, everybody.is_selecting), (1, 0));
        assert_eq!(control("all", false).is_streaming, 0);
        assert_eq!(control("closed", true), Control::NONE);
        let some = control("ports=5432;namespaces=9", true);
        assert_eq!(
            (some.is_streaming, some.is_selecting, some.is_filtering),
            (1, 1, 0)
        );
        let record = ConnectionRecord {
            remote_port: 5_432,
            netns: 9,
            ..ConnectionRecord::ZERO
        };
        assert!(some.streamed.passes(&record));
        assert!(!some.streamed.passes(&ConnectionRecord { netns: 8, ..record }));
        assert!(!some.streamed.passes(&ConnectionRecord {
            remote_port: 80,
            ..record
        }));
    }
}
