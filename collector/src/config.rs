//! What `holdfast serve` runs with. A setting comes from its flag, else its environment variable, else the file that
//! `--config` names, else its default; every source takes the same text for the same setting, and no file is needed.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use toml::de::{DeTable, DeValue};

use crate::door::{self, Pace};
use crate::store::server::Server;
use crate::store::{rollups, schema};
use crate::trust;

/// Where the agents and the CLI dial.
const LISTEN: &str = "127.0.0.1:7443";

/// Where `/metrics` and `/healthz` answer.
const WEB: &str = "127.0.0.1:7070";

const DAY_S: u64 = 24 * 3600;

/// An agent's batch has up to 1 MiB. One that is larger than the limit is sent again for ever, and what is behind it
/// never comes.
const LEAST_BATCH_BYTES: usize = 2 << 20;
const MOST_BATCH_BYTES: usize = 64 << 20;

/// Below this the engine refuses merges and larger inserts.
const LEAST_ENGINE_BYTES: u64 = 1 << 30;

/// Where the embedded store keeps its rows when the process may write there.
const SYSTEM_FOLDER: &str = "/var/lib/holdfast";

/// The settings of `holdfast serve` as given on the command line or in the environment.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Settings {
    /// File with settings (TOML); its keys are the flags' names with `_` for `-`
    #[arg(long, env = "HOLDFAST_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Address that agents and the CLI dial [default: 127.0.0.1:7443]
    #[arg(long, env = "HOLDFAST_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,

    /// Address of /metrics and /healthz [default: 127.0.0.1:7070]
    #[arg(long, env = "HOLDFAST_WEB", value_name = "ADDRESS")]
    pub web: Option<SocketAddr>,

    /// Where rows are kept: embedded:DIR, or http://USER:PASSWORD@HOST:8123/DATABASE for a ClickHouse server
    /// (https://...:8443/... with TLS)
    /// [default: embedded:/var/lib/holdfast, or embedded:~/.local/share/holdfast where that cannot be written]
    // Text, and parsed by us: what the command line's parser refuses it prints, and with it the password.
    #[arg(long, env = "HOLDFAST_STORE", value_name = "STORE", hide_env_values = true)]
    pub store: Option<String>,

    /// PEM file with the authorities that may vouch for an https:// server, instead of this machine's
    #[arg(long, env = "HOLDFAST_STORE_CA", value_name = "FILE")]
    pub store_ca: Option<PathBuf>,

    /// Cluster that the ClickHouse server is one of: tables are then replicated and distributed over all of it.
    /// A name, or a macro of the servers such as {cluster}
    #[arg(long, env = "HOLDFAST_STORE_CLUSTER", value_name = "NAME")]
    pub store_cluster: Option<String>,

    /// How long rows are kept, from 1d to 3650d; a table may have a time of its own: 30d,gaps=365d,ledger=7d
    /// [default: 30d]
    #[arg(
        long,
        env = "HOLDFAST_RETENTION",
        value_name = "[TABLE=]TIME",
        value_delimiter = ','
    )]
    pub retention: Vec<Keep>,

    /// Largest message that an agent may send, in bytes; each agent may hold one that is not decoded yet, beside
    /// --gather-bytes [default: 4194304]
    #[arg(long, env = "HOLDFAST_MAX_BATCH_BYTES", value_name = "BYTES")]
    pub max_batch_bytes: Option<usize>,

    /// Rows that are gathered from all agents into one insert [default: 100000]
    #[arg(long, env = "HOLDFAST_GATHER_ROWS", value_name = "ROWS")]
    pub gather_rows: Option<usize>,

    /// Longest wait of a row for its insert [default: 500ms]
    #[arg(long, env = "HOLDFAST_GATHER_INTERVAL", value_name = "TIME")]
    pub gather_interval: Option<Span>,

    /// Memory for batches that are not stored yet, as they lie decoded in memory, in bytes, in equal shares for the
    /// agents; past its share an agent waits. Beside it there is one undecoded message for each agent, of up to
    /// --max-batch-bytes [default: 268435456]
    #[arg(long, env = "HOLDFAST_GATHER_BYTES", value_name = "BYTES")]
    pub gather_bytes: Option<usize>,

    /// Memory that the embedded store's engine may take, in bytes; queries and inserts that need more fail, and inserts
    /// are tried again. A ClickHouse server has its own bound [default: half of the machine's]
    #[arg(long, env = "HOLDFAST_ENGINE_MEMORY", value_name = "BYTES")]
    pub engine_memory: Option<u64>,

    /// Agents that may be connected at once, each by a connection of its own; one that says nothing for 30 s is sent away.
    /// There may be twice as many connections and 64 more, and one without a request for 10 s is closed [default: 1000]
    #[arg(long, env = "HOLDFAST_MAX_AGENTS", value_name = "COUNT")]
    pub max_agents: Option<usize>,

    /// Folder with assertions (files that end in .yaml) that are judged all the time; changes are taken up by themselves,
    /// and at SIGHUP [default: none]
    #[arg(long, env = "HOLDFAST_ASSERTIONS", value_name = "DIR")]
    pub assertions: Option<PathBuf>,
}

/// What `holdfast serve` runs with, complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub listen: SocketAddr,
    pub web: SocketAddr,
    pub store: StoreLocation,
    pub retention: Retention,
    pub limits: Limits,
    /// What the embedded store's engine may take, in bytes; `None`: half of the machine's.
    pub engine_memory_bytes: Option<u64>,
    /// A folder; `None`: nothing is judged.
    pub assertions: Option<PathBuf>,
}

/// What bounds the ingest path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Of one message of an agent, as it travels.
    pub max_batch_bytes: usize,
    /// A block is inserted once it has so many rows. A batch is never split, so it may have up to one batch more.
    pub gather_rows: usize,
    /// A block is inserted once its oldest batch has waited so long.
    pub gather_interval: Duration,
    /// Of all batches that were read and are not stored, as they lie in memory. An agent whose next batch finds no
    /// room is not read until there is.
    pub gather_bytes: usize,
    /// Connected at once. Beside the room, each may hold one message that is not decoded yet.
    pub max_agents: usize,
    /// How long is waited for what an agent says. No setting: there is nobody who should want another.
    pub agents_pace: Pace,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_batch_bytes: 4 << 20,
            // Where the engine's cost per row stops falling, and a part is still a few megabytes.
            gather_rows: 100_000,
            // Half of the second that a row has from the kernel to the store.
            gather_interval: Duration::from_millis(500),
            // Two blocks of the largest size in flight, at 250 bytes a row, five times over.
            gather_bytes: 256 << 20,
            // A quarter of a megabyte of room for each, about one batch.
            max_agents: 1000,
            agents_pace: door::AGENTS_PACE,
        }
    }
}

/// A store, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreLocation {
    /// ClickHouse as a library, with its data in this folder.
    Embedded(PathBuf),
    /// A ClickHouse server by its HTTP interface.
    Server {
        url: String,
        /// Those who may vouch for it, in a PEM file; `None`: this machine's.
        authorities: Option<PathBuf>,
        /// The cluster that the tables lie on, if not on this server alone.
        cluster: Option<String>,
    },
}

impl FromStr for StoreLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some(("embedded", "")) => Err("`embedded:` names no folder; write embedded:DIR".to_owned()),
            Some(("embedded", folder)) => Ok(Self::Embedded(PathBuf::from(folder))),
            Some(("http" | "https", _)) => match Server::new(text, None) {
                Ok(_) => Ok(Self::Server {
                    url: text.to_owned(),
                    authorities: None,
                    cluster: None,
                }),
                Err(error) => Err(error.to_string()),
            },
            _ => Err(format!(
                "unknown store `{}`; write embedded:DIR, or http://USER@HOST:8123/DATABASE",
                without_password(text)
            )),
        }
    }
}

impl StoreLocation {
    fn trusting(self, authorities: Option<PathBuf>) -> Result<Self, String> {
        let Some(file) = authorities else { return Ok(self) };
        match self {
            Self::Server { url, cluster, .. } if url.starts_with("https:") => {
                trust::client(Some(&file)).map_err(|error| error.to_string())?;
                Ok(Self::Server {
                    url,
                    authorities: Some(file),
                    cluster,
                })
            }
            other => Err(format!(
                "store_ca is {}, and {other} has no certificate; name a server with --store https://...",
                file.display()
            )),
        }
    }

    fn in_cluster(self, name: Option<String>) -> Result<Self, String> {
        let Some(name) = name else { return Ok(self) };
        match self {
            Self::Embedded(_) => Err(format!(
                "store_cluster is {name}, and the embedded store is no cluster; name one of its servers with --store http://..."
            )),
            Self::Server { url, authorities, .. } => {
                Server::new(&url, None)
                    .map_err(|error| error.to_string())?
                    .in_cluster(&name)
                    .map_err(|error| error.to_string())?;
                Ok(Self::Server {
                    url,
                    authorities,
                    cluster: Some(name),
                })
            }
        }
    }
}

impl fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded(folder) => write!(f, "embedded:{}", folder.display()),
            Self::Server {
                url, cluster: None, ..
            } => f.write_str(&without_password(url)),
            Self::Server {
                url,
                cluster: Some(cluster),
                ..
            } => write!(f, "{} (cluster {cluster})", without_password(url)),
        }
    }
}

/// The text with what stands between `:` and `@` in a URL's authority left out: it goes to logs and terminals.
fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let authority_end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    match authority.rsplit_once('@') {
        Some((user, host)) => {
            let user = user.split(':').next().unwrap_or_default();
            format!("{scheme}://{user}@{host}{path}")
        }
        None => url.to_owned(),
    }
}

/// A length of time as people write it: `500ms`, `5m`, `30d`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| format!("`{text}` is no length of time; write it like 500ms, 5m or 30d"))
    }
}

/// One rule of `retention`: `30d` for every table, or `gaps=365d` for one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Keep {
    /// `None`: every table without a rule of its own.
    table: Option<&'static str>,
    days: u32,
}

impl FromStr for Keep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (table, time) = match text.split_once('=') {
            None => (None, text),
            Some((name, time)) => {
                let Some(table) = schema::table_called(name.trim()) else {
                    let known = schema::RETAINED.map(|(_, called)| called).join(", ");
                    return Err(format!(
                        "there is no table `{}`; the tables are {known}",
                        name.trim()
                    ));
                };
                (Some(table), time)
            }
        };
        let Span(time) = time.trim().parse()?;
        let days = time.as_secs() / DAY_S;
        match u32::try_from(days) {
            Ok(days @ 1..=schema::RETENTION_DAYS_MAX) => Ok(Self { table, days }),
            _ => Err(format!(
                "`{}` is not between 1d and {}d; rows are dropped by whole days",
                text.trim(),
                schema::RETENTION_DAYS_MAX
            )),
        }
    }
}

/// How long the rows of each table are kept, in days. The rollup is kept as long as what it is made of: what it lacks
/// of that it would be given again and again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    days: u32,
    /// Tables with a time of their own.
    by_table: BTreeMap<&'static str, u32>,
}

impl Default for Retention {
    fn default() -> Self {
        Self {
            days: schema::RETENTION_DAYS,
            by_table: BTreeMap::new(),
        }
    }
}

impl Retention {
    fn of(rules: &[Keep]) -> Result<Self, ConfigError> {
        let mut days = None;
        let mut by_table = BTreeMap::new();
        for rule in rules {
            let earlier = match rule.table {
                None => days.replace(rule.days),
                Some(table) => by_table.insert(table, rule.days),
            };
            if earlier.is_some() {
                let of = rule.table.unwrap_or("all tables");
                return Err(ConfigError::Retention { of });
            }
        }
        let retention = Self {
            days: days.unwrap_or(schema::RETENTION_DAYS),
            by_table,
        };
        let (raw, rollup) = (schema::CONNECTION_RECORDS.name, rollups::TABLE);
        if retention.days(rollup) < retention.days(raw) {
            return Err(ConfigError::RollupRetention {
                rollup: retention.days(rollup),
                raw: retention.days(raw),
            });
        }
        Ok(retention)
    }

    /// Of one table, by the table's own name.
    pub fn days(&self, table: &str) -> u32 {
        self.by_table.get(table).copied().unwrap_or(self.days)
    }
}

/// What is wrong with the settings; every message is one line that names the place.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    #[error("cannot read the settings in {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: String },
    #[error("{}:{line}:{column}: {message}", path.display())]
    File {
        path: PathBuf,
        line: usize,
        column: usize,
        message: String,
    },
    #[error("{0}")]
    Store(String),
    #[error("retention has two times for {of}; give one")]
    Retention { of: &'static str },
    #[error(
        "retention keeps connections_1m for {rollup}d, less than the connections that it is made of ({raw}d); give it {raw}d or more"
    )]
    RollupRetention { rollup: u32, raw: u32 },
    #[error("{setting} is {value}, which is {fault}")]
    Value {
        setting: &'static str,
        value: String,
        fault: &'static str,
    },
    #[error(
        "there is no folder for the rows: {SYSTEM_FOLDER} cannot be written, and neither XDG_DATA_HOME nor HOME is set; name one with --store embedded:DIR"
    )]
    NoFolder,
}

impl Config {
    /// Completes what the command line and the environment gave with the file and the defaults.
    pub fn load(settings: Settings) -> Result<Self, ConfigError> {
        let file = match &settings.config {
            Some(path) => {
                let text = fs::read_to_string(path).map_err(|error| ConfigError::Unreadable {
                    path: path.clone(),
                    cause: error.to_string(),
                })?;
                Settings::from_toml(path, &text)?
            }
            None => Settings::default(),
        };
        settings.or(file).complete(default_store)
    }
}

impl Settings {
    /// What is set here, and for the rest what is set there.
    fn or(self, other: Self) -> Self {
        Self {
            config: self.config.or(other.config),
            listen: self.listen.or(other.listen),
            web: self.web.or(other.web),
            store: self.store.or(other.store),
            store_ca: self.store_ca.or(other.store_ca),
            store_cluster: self.store_cluster.or(other.store_cluster),
            retention: if self.retention.is_empty() {
                other.retention
            } else {
                self.retention
            },
            max_batch_bytes: self.max_batch_bytes.or(other.max_batch_bytes),
            gather_rows: self.gather_rows.or(other.gather_rows),
            gather_interval: self.gather_interval.or(other.gather_interval),
            gather_bytes: self.gather_bytes.or(other.gather_bytes),
            engine_memory: self.engine_memory.or(other.engine_memory),
            max_agents: self.max_agents.or(other.max_agents),
            assertions: self.assertions.or(other.assertions),
        }
    }

    fn complete(
        self,
        store: impl FnOnce() -> Result<StoreLocation, ConfigError>,
    ) -> Result<Config, ConfigError> {
        let default = Limits::default();
        let limits = Limits {
            max_batch_bytes: self.max_batch_bytes.unwrap_or(default.max_batch_bytes),
            gather_rows: self.gather_rows.unwrap_or(default.gather_rows),
            gather_interval: self
                .gather_interval
                .map_or(default.gather_interval, |span| span.0),
            gather_bytes: self.gather_bytes.unwrap_or(default.gather_bytes),
            max_agents: self.max_agents.unwrap_or(default.max_agents),
            agents_pace: default.agents_pace,
        };
        let fault = |setting, value: &dyn fmt::Display, fault| {
            Err(ConfigError::Value {
                setting,
                value: value.to_string(),
                fault,
            })
        };
        if !(LEAST_BATCH_BYTES..=MOST_BATCH_BYTES).contains(&limits.max_batch_bytes) {
            return fault(
                "max_batch_bytes",
                &limits.max_batch_bytes,
                "not between 2097152 and 67108864",
            );
        }
        if !(1..=1_000_000).contains(&limits.gather_rows) {
            return fault("gather_rows", &limits.gather_rows, "not between 1 and 1000000");
        }
        if !(Duration::from_millis(1)..=Duration::from_secs(60)).contains(&limits.gather_interval) {
            let interval = humantime::format_duration(limits.gather_interval);
            return fault("gather_interval", &interval, "not between 1ms and 60s");
        }
        if limits.gather_bytes < 16 * limits.max_batch_bytes || limits.gather_bytes > u32::MAX as usize {
            let fault_text = "not between 16 times max_batch_bytes and 4 GiB";
            return fault("gather_bytes", &limits.gather_bytes, fault_text);
        }
        if !(1..=100_000).contains(&limits.max_agents) {
            return fault("max_agents", &limits.max_agents, "not between 1 and 100000");
        }
        if self.engine_memory.is_some_and(|bytes| bytes < LEAST_ENGINE_BYTES) {
            let bytes = self.engine_memory.unwrap_or_default();
            return fault(
                "engine_memory",
                &bytes,
                "below 1073741824, with which the engine cannot merge what it stores",
            );
        }
        Ok(Config {
            engine_memory_bytes: self.engine_memory,
            listen: self
                .listen
                .unwrap_or_else(|| LISTEN.parse().expect("the default is an address")),
            web: self
                .web
                .unwrap_or_else(|| WEB.parse().expect("the default is an address")),
            store: match self.store {
                Some(text) => text.parse().map_err(ConfigError::Store)?,
                None => store()?,
            }
            .trusting(self.store_ca)
            .and_then(|store| store.in_cluster(self.store_cluster))
            .map_err(ConfigError::Store)?,
            retention: Retention::of(&self.retention)?,
            limits,
            assertions: self.assertions,
        })
    }

    /// Reads a file of settings. Its keys are the flags' names with `_` for `-`; values are what a flag takes.
    fn from_toml(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let fault = |at: usize, message: String| {
            let (line, column) = line_and_column(text, at);
            ConfigError::File {
                path: path.to_owned(),
                line,
                column,
                message,
            }
        };
        let table = DeTable::parse(text).map_err(|error| {
            fault(
                error.span().map_or(0, |span| span.start),
                one_line(error.message()),
            )
        })?;
        let mut settings = Self::default();
        for (key, value) in table.get_ref() {
            let name = key.get_ref().as_ref();
            let written = match value.get_ref() {
                DeValue::String(text) => text.to_string(),
                DeValue::Integer(number) => number.to_string().replace('_', ""),
                _ => {
                    return Err(fault(
                        value.span().start,
                        format!("`{name}` takes a string or a whole number"),
                    ));
                }
            };
            settings.set(name, &written).map_err(|error| match error {
                SettingError::Unknown => fault(key.span().start, unknown_key(name)),
                SettingError::Value(message) => fault(value.span().start, format!("{name}: {message}")),
            })?;
        }
        Ok(settings)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), SettingError> {
        fn parsed<T: FromStr<Err: fmt::Display>>(value: &str) -> Result<Option<T>, SettingError> {
            let value = value
                .parse()
                .map_err(|error: T::Err| SettingError::Value(error.to_string()))?;
            Ok(Some(value))
        }
        match key {
            "listen" => self.listen = parsed(value)?,
            "web" => self.web = parsed(value)?,
            "store" => self.store = parsed::<StoreLocation>(value)?.map(|_| value.to_owned()),
            "store_ca" => self.store_ca = parsed(value)?,
            "store_cluster" => self.store_cluster = parsed(value)?,
            "retention" => {
                let rules = value.split(',').map(|rule| rule.trim().parse());
                self.retention = rules.collect::<Result<_, _>>().map_err(SettingError::Value)?;
            }
            "max_batch_bytes" => self.max_batch_bytes = parsed(value)?,
            "gather_rows" => self.gather_rows = parsed(value)?,
            "gather_interval" => self.gather_interval = parsed(value)?,
            "gather_bytes" => self.gather_bytes = parsed(value)?,
            "engine_memory" => self.engine_memory = parsed(value)?,
            "max_agents" => self.max_agents = parsed(value)?,
            "assertions" => self.assertions = parsed(value)?,
            _ => return Err(SettingError::Unknown),
        }
        Ok(())
    }
}

enum SettingError {
    Unknown,
    Value(String),
}

/// The keys of a file of settings.
const KEYS: [&str; 13] = [
    "listen",
    "web",
    "store",
    "store_ca",
    "store_cluster",
    "retention",
    "max_batch_bytes",
    "gather_rows",
    "gather_interval",
    "gather_bytes",
    "engine_memory",
    "max_agents",
    "assertions",
];

fn unknown_key(name: &str) -> String {
    /// Jaro-Winkler similarity from which two words are taken for the same, misspelled; clap's own.
    const SIMILAR: f64 = 0.7;
    let similarity = |key: &&str| strsim::jaro_winkler(name, key);
    match KEYS.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b))) {
        Some(key) if similarity(key) >= SIMILAR => format!("unknown key `{name}`; did you mean `{key}`?"),
        _ => format!("unknown key `{name}`; the keys are {}", KEYS.join(", ")),
    }
}

/// Both counted from 1, the column in characters.
fn line_and_column(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    (
        before.matches('\n').count() + 1,
        before[line_start..].chars().count() + 1,
    )
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The embedded store, in the system's folder when it can be written, else in the user's.
fn default_store() -> Result<StoreLocation, ConfigError> {
    let system = PathBuf::from(SYSTEM_FOLDER);
    if fs::create_dir_all(&system).is_ok() && is_writable(&system) {
        return Ok(StoreLocation::Embedded(system));
    }
    let set = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let user = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    let folder = user.ok_or(ConfigError::NoFolder)?.join("holdfast");
    Ok(StoreLocation::Embedded(folder))
}

fn is_writable(folder: &Path) -> bool {
    let probe = folder.join(format!(".writable-{}", std::process::id()));
    let written = fs::write(&probe, []).is_ok();
    written && fs::remove_file(&probe).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let error = Settings::from_toml(Path::new("h.toml"), text).unwrap_err();
        assert_eq!(error.to_string(), expected);
    }

    fn somewhere() -> Result<StoreLocation, ConfigError> {
        Ok(StoreLocation::Embedded("/data".into()))
    }

    #[test]
    fn a_misspelled_key_is_named_with_its_place_and_the_right_word() {
        check(
            "\nlisen = \"[::]:1\"",
            "h.toml:2:1: unknown key `lisen`; did you mean `listen`?",
        );
        check(
            "web = \"[::]:1\"\n  gather_row = 1",
            "h.toml:2:3: unknown key `gather_row`; did you mean `gather_rows`?",
        );
    }

    #[test]
    fn a_key_like_no_other_lists_the_keys() {
        let error = Settings::from_toml(Path::new("h.toml"), "zzz = 1")
            .unwrap_err()
            .to_string();
        assert!(
            error.starts_with("h.toml:1:1: unknown key `zzz`; the keys are listen, web, store"),
            "{error}"
        );
    }

    #[test]
    fn every_listed_key_can_be_set() {
        for key in KEYS {
            let outcome = Settings::default().set(key, "\0");
            assert!(
                matches!(outcome, Err(SettingError::Value(_)))
                    || key.starts_with("store")
                    || key == "assertions",
                "{key}"
            );
        }
    }

    #[test]
    fn a_bad_value_is_named_with_its_place() {
        check(
            "store = \"s3://x\"",
            "h.toml:1:9: store: unknown store `s3://x`; write embedded:DIR, or http://USER@HOST:8123/DATABASE",
        );
        check("web = [1]", "h.toml:1:7: `web` takes a string or a whole number");
        check(
            "retention = \"a while\"",
            "h.toml:1:13: retention: `a while` is no length of time; write it like 500ms, 5m or 30d",
        );
    }

    #[test]
    fn broken_toml_is_named_with_its_place() {
        let error = Settings::from_toml(Path::new("h.toml"), "gather_rows = 1\nlisten").unwrap_err();
        assert_eq!(error.to_string(), "h.toml:2:7: key with no value, expected `=`");
    }

    #[test]
    fn a_flag_beats_the_file_and_the_file_beats_the_default() {
        let file = Settings::from_toml(
            Path::new("h.toml"),
            "listen = \"127.0.0.1:1\"\nweb = \"127.0.0.1:2\"\ngather_rows = 5\nretention = \"2d\"",
        );
        let flags = Settings {
            web: Some("127.0.0.1:3".parse().unwrap()),
            ..Settings::default()
        };
        let config = flags.or(file.unwrap()).complete(somewhere).unwrap();
        assert_eq!(config.listen, "127.0.0.1:1".parse().unwrap());
        assert_eq!(config.web, "127.0.0.1:3".parse().unwrap());
        assert_eq!(config.limits.gather_rows, 5);
        assert_eq!(config.retention.days("connection_records"), 2);
        assert_eq!(config.limits.gather_interval, Duration::from_millis(500));
    }

    #[test]
    fn nothing_set_gives_the_defaults() {
        let config = Settings::default().complete(somewhere).unwrap();
        assert_eq!(config.listen.to_string(), LISTEN);
        assert_eq!(config.web.to_string(), WEB);
        assert_eq!(config.retention.days("connection_records"), 30);
        assert_eq!(config.limits, Limits::default());
    }

    #[test]
    fn a_value_out_of_its_range_is_refused() {
        let settings = Settings {
            gather_rows: Some(0),
            ..Settings::default()
        };
        let error = settings.complete(somewhere).unwrap_err();
        assert_eq!(
            error.to_string(),
            "gather_rows is 0, which is not between 1 and 1000000"
        );
    }

    #[test]
    fn an_engine_with_too_little_memory_is_refused() {
        let with = |engine_memory| {
            let settings = Settings {
                engine_memory: Some(engine_memory),
                ..Settings::default()
            };
            settings.complete(somewhere)
        };
        assert_eq!(with(2 << 30).unwrap().engine_memory_bytes, Some(2 << 30));
        assert_eq!(
            with(1_000).unwrap_err().to_string(),
            "engine_memory is 1000, which is below 1073741824, with which the engine cannot merge what it stores"
        );
    }

    fn keep(rules: &str) -> Result<Retention, String> {
        let mut settings = Settings::default();
        match settings.set("retention", rules) {
            Ok(()) => {}
            Err(SettingError::Value(message)) => return Err(message),
            Err(SettingError::Unknown) => panic!("retention is a key"),
        }
        match settings.complete(somewhere) {
            Ok(config) => Ok(config.retention),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn each_table_may_be_kept_for_a_time_of_its_own() {
        let retention = keep("30d, gaps=365d,ledger_samples=7d").unwrap();
        for (table, days) in [
            ("connection_records", 30),
            ("gap_records", 365),
            ("ledger_samples", 7),
            ("agent_samples", 30),
        ] {
            assert_eq!(retention.days(table), days, "{table}");
        }
        assert_eq!(keep("connections=3d").unwrap().days("gap_records"), 30);
    }

    #[test]
    fn a_retention_that_cannot_be_is_refused() {
        for (rules, message) in [
            (
                "1h",
                "`1h` is not between 1d and 3650d; rows are dropped by whole days",
            ),
            (
                "gaps=4000d",
                "`gaps=4000d` is not between 1d and 3650d; rows are dropped by whole days",
            ),
            (
                "gap=1d",
                "there is no table `gap`; the tables are connections, connections_1m, gaps, nodes, agent_samples, ledger, \
                 open_connections, listeners, refused_batches, syscalls, transitions, overhead, namespaces, peers, probe_reports, cgroups, \
                 verdicts, notifications, runs, \
                 load_samples, attempt_causes",
            ),
            ("gaps=", "`` is no length of time; write it like 500ms, 5m or 30d"),
            (
                "gaps=1d,gap_records=2d",
                "retention has two times for gap_records; give one",
            ),
            (
                "30d,connections_1m=7d",
                "retention keeps connections_1m for 7d, less than the connections that it is made of (30d); give it 30d or more",
            ),
            ("1d,2d", "retention has two times for all tables; give one"),
        ] {
            assert_eq!(keep(rules).unwrap_err(), message, "{rules}");
        }
    }

    #[test]
    fn authorities_need_a_server_with_tls() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ca.pem");
        let config = |store: &str| {
            let settings = Settings {
                store: Some(store.to_owned()),
                store_ca: Some(file.clone()),
                ..Settings::default()
            };
            settings.complete(somewhere).map(|config| config.store)
        };
        let (secure, plain) = ("https://ada:secret@db:8443/h", "http://ada:secret@db:8123/h");
        let error = config(secure).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the authorities in "), "{error}");
        assert_eq!(
            config(plain).unwrap_err().to_string(),
            format!(
                "store_ca is {}, and http://ada@db:8123/h has no certificate; name a server with --store https://...",
                file.display()
            )
        );
        let authority = rcgen::generate_simple_self_signed(vec!["db".to_owned()]).unwrap();
        std::fs::write(&file, authority.cert.pem()).unwrap();
        let StoreLocation::Server { authorities, .. } = config(secure).unwrap() else {
            panic!("a server is one");
        };
        assert_eq!(authorities.as_ref(), Some(&file));
    }

    #[test]
    fn a_cluster_needs_a_server() {
        let config = |store: &str, cluster: &str| {
            let settings = Settings {
                store: Some(store.to_owned()),
                store_cluster: Some(cluster.to_owned()),
                ..Settings::default()
            };
            settings
                .complete(somewhere)
                .map(|config| config.store.to_string())
        };
        assert_eq!(
            config("http://db:8123/h", "{cluster}").unwrap(),
            "http://db:8123/h (cluster {cluster})"
        );
        assert_eq!(
            config("embedded:/x", "prod").unwrap_err().to_string(),
            "store_cluster is prod, and the embedded store is no cluster; name one of its servers with --store http://..."
        );
        assert_eq!(
            config("http://db:8123/h", "a b").unwrap_err().to_string(),
            "\"a b\" cannot be the name of a cluster: use letters, digits, - and _, or a macro such as {cluster}"
        );
    }

    #[test]
    fn a_password_is_not_shown() {
        let store: StoreLocation = "http://ada:secret@db:8123/holdfast".parse().unwrap();
        assert_eq!(store.to_string(), "http://ada@db:8123/holdfast");
        for wrong in [
            "ftp://ada:secret@db/x",
            "https://ada:secret@db:99999/x",
            "http://ada:secret@db:99999/x",
        ] {
            let settings = Settings {
                store: Some(wrong.to_owned()),
                ..Settings::default()
            };
            let error = settings.complete(somewhere).unwrap_err().to_string();
            assert!(error.contains("db") && !error.contains("secret"), "{error}");
        }
    }
}
