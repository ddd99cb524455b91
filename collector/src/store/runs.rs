//! Runs in the store: the rows that are written while one lasts, and the questions about them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{
    Access, Query, Store, StoreError, answer_to,
    native::{BlockBuilder, BlockError},
    rollups::lines,
    schema::{LOAD_SAMPLES, RUN_RECORDS},
    statement::{numbers_value, text_value, texts_value},
};
use crate::runs::counts;
use crate::runs::result::{Connections, Kernel, Pair, PartOf, Times, buckets};
use crate::runs::seconds::{
    PairOverTime, PairSeconds, PairSlot, Seconds, pair_step_us, quantile_ns, step_us,
};
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
    /// Of a mesh: which other node it is about. Empty where targets are not told apart.
    pub to_node: String,
    pub observed_at_ns: i64,
    pub elapsed_us: u64,
    pub open: u64,
    pub most_open: u64,
    pub cpu_us: u64,
    pub counts: LoadCounts,
    /// SYNs that were sent again are not among them.
    pub lacks_handshakes: bool,
    pub connect: Option<Histogram<u64>>,
    pub network: Option<Histogram<u64>>,
    pub request: Option<Histogram<u64>>,
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
    block.low_cardinality("to_node", &column(samples, |sample| sample.to_node.clone()), &own)?;
    block.low_cardinality_constant("run_id", run_id)?;
    block.datetimes("observed_at", &column(samples, |sample| sample.observed_at_ns))?;
    block.u64s("elapsed_us", &column(samples, |sample| sample.elapsed_us))?;
    block.u64s("open", &column(samples, |sample| sample.open))?;
    block.u64s("most_open", &column(samples, |sample| sample.most_open))?;
    block.u64s("cpu_us", &column(samples, |sample| sample.cpu_us))?;
    for (index, name) in counts::NAMES.iter().enumerate() {
        if *name == counts::OF_HANDSHAKES {
            let known = |sample: &LoadSample| {
                (!sample.lacks_handshakes).then_some(counts::values(&sample.counts)[index])
            };
            block.nullable_u64s(name, &column(samples, known))?;
            continue;
        }
        let values = column(samples, |sample| counts::values(&sample.counts)[index]);
        block.u64s(name, &values)?;
    }
    type Of = fn(&LoadSample) -> Option<&Histogram<u64>>;
    let distributions: [(&str, &str, Of); 3] = [
        ("connect_buckets", "connect_counts", |sample| {
            sample.connect.as_ref()
        }),
        ("network_buckets", "network_counts", |sample| {
            sample.network.as_ref()
        }),
        ("request_buckets", "request_counts", |sample| {
            sample.request.as_ref()
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
        params: vec![("run_id".into(), text_value(run_id))],
        format: "JSONEachRow".into(),
        access: Access::Internal,
    }
}

/// The rows of [`runs`], a JSON object each.
pub async fn rows(store: &dyn Store, run_id: &str, limit: u64) -> Result<Vec<String>, StoreError> {
    let answer = answer_to(store, runs(run_id, limit)).await?;
    Ok(answer.lines().map(str::to_owned).collect())
}

/// What is in the store of a run that has no result.
#[derive(Debug, Default)]
pub struct Samples {
    /// Sums of the nodes' counts by name, without what not all of them could count, and beside them `most_open` and `elapsed_us`, the greatest of a node, and `cpu_us`.
    pub numbers: BTreeMap<String, u64>,
    /// Log buckets of microseconds and what is in each.
    pub connect: Vec<(u16, u64)>,
    pub network: Vec<(u16, u64)>,
    pub request: Vec<(u16, u64)>,
    /// By node; of lateness there is only how many were late.
    pub parts: Vec<PartOf>,
    /// Of a mesh, by pair. Where they were reached, and whether one was lost, was not stored.
    pub pairs: Vec<Pair>,
}

/// What nodes said of a run while it lasted.
pub async fn samples(store: &dyn Store, run_id: &str) -> Result<Samples, StoreError> {
    let params = vec![("run_id".to_owned(), text_value(run_id))];
    let sql = format!(
        "SELECT {}, max(most_open) AS most_open, max(elapsed_us) AS elapsed_us, sum(cpu_us) AS cpu_us \
         FROM run_results AS result WHERE run_id = {{run_id:String}}",
        sums("result")
    );
    let numbers = one(lines(store, sql, params.clone()).await?)?;

    #[derive(serde::Deserialize)]
    struct Part {
        node: String,
        most_open: u64,
        cpu_us: u64,
        #[serde(flatten)]
        counts: BTreeMap<String, Option<u64>>,
    }
    let sql = format!(
        "SELECT toString(node) AS node, most_open, cpu_us, {} FROM run_results WHERE run_id = {{run_id:String}} ORDER BY node",
        counts::NAMES.join(", ")
    );
    let parts: Vec<Part> = lines(store, sql, params.clone()).await?;
    let parts = parts.into_iter().map(|part| PartOf {
        node: part.node,
        counts: known(part.counts),
        most_open: part.most_open,
        cpu_ns: part.cpu_us * 1_000,
        ..PartOf::default()
    });
    let parts = parts.collect();

    #[derive(serde::Deserialize)]
    struct Times {
        connect: (Vec<u16>, Vec<u64>),
        network: (Vec<u16>, Vec<u64>),
        request: (Vec<u16>, Vec<u64>),
    }
    let sql = "SELECT sumMap(connect_buckets, connect_counts) AS connect, sumMap(network_buckets, network_counts) AS network, \
               sumMap(request_buckets, request_counts) AS request \
               FROM load_samples WHERE run_id = {run_id:String}";
    let Times {
        connect,
        network,
        request,
    } = one(lines(store, sql.into(), params.clone()).await?)?;
    Ok(Samples {
        numbers: known(numbers),
        connect: zipped(connect),
        network: zipped(network),
        request: zipped(request),
        parts,
        pairs: pairs(store, params).await?,
    })
}

/// Buckets of a sum of distributions, and what is in each.
fn zipped((ids, numbers): (Vec<u16>, Vec<u64>)) -> Vec<(u16, u64)> {
    ids.into_iter().zip(numbers).collect()
}

/// What the agents of a mesh did to each other.
async fn pairs(store: &dyn Store, params: Vec<(String, String)>) -> Result<Vec<Pair>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Row {
        sender: String,
        receiver: String,
        connect: (Vec<u16>, Vec<u64>),
        network: (Vec<u16>, Vec<u64>),
        #[serde(flatten)]
        counts: BTreeMap<String, Option<u64>>,
    }
    let sql = format!(
        "SELECT toString(sample.node) AS sender, toString(sample.to_node) AS receiver, {}, \
         sumMap(sample.connect_buckets, sample.connect_counts) AS connect, \
         sumMap(sample.network_buckets, sample.network_counts) AS network \
         FROM load_samples AS sample WHERE run_id = {{run_id:String}} AND to_node != '' GROUP BY sender, receiver ORDER BY sender, receiver",
        sums("sample")
    );
    let rows: Vec<Row> = lines(store, sql, params).await?;
    let pairs = rows.into_iter().map(|row| Pair {
        from: row.sender,
        to: row.receiver,
        counts: known(row.counts),
        connect: Times::of_buckets(&zipped(row.connect)),
        network: Times::of_buckets(&zipped(row.network)),
        is_over: true,
        ..Pair::default()
    });
    Ok(pairs.collect())
}

/// Counts without what nobody could count.
fn known(numbers: BTreeMap<String, Option<u64>>) -> BTreeMap<String, u64> {
    let known = numbers.into_iter();
    known.filter_map(|(name, number)| Some((name, number?))).collect()
}

/// Sums of the counts of `of` by name; NULL of what not all of them could count.
fn sums(of: &str) -> String {
    let sums: Vec<_> = counts::NAMES
        .iter()
        .map(|name| format!("if(count({of}.{name}) < count(), NULL, ifNull(sum({of}.{name}), 0)) AS {name}"))
        .collect();
    sums.join(", ")
}

/// A run second by second.
pub async fn seconds(store: &dyn Store, run_id: &str) -> Result<Seconds, StoreError> {
    let params = vec![("run_id".to_owned(), text_value(run_id))];
    #[derive(serde::Deserialize)]
    struct Longest {
        elapsed_us: u64,
    }
    let sql = "SELECT max(elapsed_us) AS elapsed_us FROM load_samples WHERE run_id = {run_id:String}";
    let Longest { elapsed_us } = one(lines(store, sql.into(), params.clone()).await?)?;
    let step_us = step_us(elapsed_us);
    // Of what may not be known there is no picture.
    let sums = |of: &str| {
        let sums: Vec<_> = counts::NAMES
            .iter()
            .filter(|name| **name != counts::OF_HANDSHAKES)
            .map(|name| format!("sum({of}.{name}) AS {name}"))
            .collect();
        sums.join(", ")
    };
    // A node's open connections are those of its last report of the slot; each pair of a mesh has reports of its own, of the same time.
    let sql = format!(
        "SELECT slot, min(one.since_us) AS since_us, max(one.until_us) AS until_us, sum(one.covered_us) AS covered_us, count() AS nodes, sum(one.open) AS open, \
         sumMap(one.connect.1, one.connect.2) AS connect, sumMap(one.network.1, one.network.2) AS network, \
         sumMap(one.request.1, one.request.2) AS request, {} FROM \
         (SELECT intDiv(intDiv(part.since_us + elapsed_us, 2), {step_us}) AS slot, node, min(part.since_us) AS since_us, max(elapsed_us) AS until_us, \
              intDiv(sum(elapsed_us - part.since_us), uniqExact(to_node)) AS covered_us, \
              argMax(part.open, elapsed_us) AS open, sumMap(connect_buckets, connect_counts) AS connect, \
              sumMap(network_buckets, network_counts) AS network, sumMap(request_buckets, request_counts) AS request, {} FROM \
              (SELECT *, lagInFrame(elapsed_us, 1, toUInt64(0)) OVER \
                   (PARTITION BY node, to_node ORDER BY elapsed_us ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS since_us \
               FROM load_samples WHERE run_id = {{run_id:String}}) AS part \
          GROUP BY slot, node) AS one \
         GROUP BY slot ORDER BY slot",
        sums("one"),
        sums("part")
    );
    let slots = lines(store, sql, params).await?;
    Ok(Seconds { step_us, slots })
}

/// A mesh second by second, pair by pair; without pairs for any other run.
pub async fn pair_seconds(store: &dyn Store, run_id: &str) -> Result<PairSeconds, StoreError> {
    let params = vec![("run_id".to_owned(), text_value(run_id))];
    #[derive(serde::Deserialize)]
    struct Size {
        elapsed_us: u64,
        pairs: u64,
    }
    let sql = "SELECT max(elapsed_us) AS elapsed_us, uniqExact(node, to_node) AS pairs FROM load_samples \
               WHERE run_id = {run_id:String} AND to_node != ''";
    let Size { elapsed_us, pairs } = one(lines(store, sql.into(), params.clone()).await?)?;
    if pairs == 0 {
        return Ok(PairSeconds::default());
    }
    let step_us = pair_step_us(elapsed_us, pairs);

    #[derive(serde::Deserialize)]
    struct Row {
        sender: String,
        receiver: String,
        connect: (Vec<u16>, Vec<u64>),
        #[serde(flatten)]
        slot: PairSlot,
    }
    let failed: Vec<_> = counts::ERRORS
        .iter()
        .map(|name| format!("sum(part.{name})"))
        .collect();
    let sql = format!(
        "SELECT toString(part.node) AS sender, toString(part.to_node) AS receiver, \
         intDiv(intDiv(part.since_us + part.elapsed_us, 2), {step_us}) AS slot, \
         min(part.since_us) AS since_us, max(part.elapsed_us) AS until_us, \
         sum(part.established) AS established, {} AS failed, \
         sumMap(part.connect_buckets, part.connect_counts) AS connect FROM \
         (SELECT *, lagInFrame(elapsed_us, 1, toUInt64(0)) OVER \
              (PARTITION BY node, to_node ORDER BY elapsed_us ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS since_us \
          FROM load_samples WHERE run_id = {{run_id:String}} AND to_node != '') AS part \
         GROUP BY sender, receiver, slot ORDER BY sender, receiver, slot",
        failed.join(" + ")
    );
    let rows: Vec<Row> = lines(store, sql, params).await?;
    let mut pairs: Vec<PairOverTime> = Vec::new();
    for row in rows {
        let Row {
            sender: from,
            receiver: to,
            connect,
            slot,
        } = row;
        let quantile = |share| quantile_ns(&connect, share).map(|ns| ns as u64);
        let slot = PairSlot {
            connect_p50_ns: quantile(0.5),
            connect_p99_ns: quantile(0.99),
            connect_max_ns: quantile(1.0),
            ..slot
        };
        match pairs.last_mut() {
            Some(pair) if pair.from == from && pair.to == to => pair.slots.push(slot),
            _ => pairs.push(PairOverTime {
                from,
                to,
                slots: vec![slot],
            }),
        }
    }
    Ok(PairSeconds { step_us, pairs })
}

/// The clocks of nodes of which nobody knows better may be so far from the collector's.
const MARGIN_NS: i64 = 2_000_000_000;

/// Ways to end, and causes, that are told apart; the most frequent ones.
pub const WAYS: usize = 20;

impl Connections {
    fn params(&self) -> Vec<(String, String)> {
        let nodes: Vec<_> = self.generators.iter().map(|(node, _)| node.clone()).collect();
        let pids: Vec<_> = self.generators.iter().map(|(_, pid)| u64::from(*pid)).collect();
        let addresses: Vec<_> = self.targets.iter().map(|(address, _)| address.clone()).collect();
        let ports: Vec<_> = self.targets.iter().map(|(_, port)| u64::from(*port)).collect();
        let margin_ns = match self.margin_ns {
            0 => MARGIN_NS,
            margin_ns => margin_ns.min(MARGIN_NS),
        };
        vec![
            ("began".into(), (self.began_at_ns - margin_ns).to_string()),
            (
                "ended".into(),
                self.ended_at_ns.saturating_add(margin_ns).to_string(),
            ),
            ("began_there".into(), (self.began_at_ns - MARGIN_NS).to_string()),
            (
                "ended_there".into(),
                self.ended_at_ns.saturating_add(MARGIN_NS).to_string(),
            ),
            ("nodes".into(), texts_value(&nodes)),
            ("pids".into(), numbers_value(&pids)),
            ("addresses".into(), texts_value(&addresses)),
            ("ports".into(), numbers_value(&ports)),
        ]
    }
}

/// A moment of the run, by the clocks of the nodes that make it.
const MEANWHILE: &str =
    "BETWEEN fromUnixTimestamp64Nano({began:Int64}, 'UTC') AND fromUnixTimestamp64Nano({ended:Int64}, 'UTC')";

/// The same by the clock of a target. What is found there is of a connection that was found here.
const MEANWHILE_THERE: &str = "BETWEEN fromUnixTimestamp64Nano({began_there:Int64}, 'UTC') \
    AND fromUnixTimestamp64Nano({ended_there:Int64}, 'UTC')";

/// In a minute of the run.
const MEANWHILE_OR_BESIDE: &str = "BETWEEN fromUnixTimestamp64Nano({began:Int64}, 'UTC') - INTERVAL 1 MINUTE \
    AND fromUnixTimestamp64Nano({ended:Int64}, 'UTC') + INTERVAL 1 MINUTE";

/// Rows whose other end is one of its targets.
const TOWARD: &str =
    "has(arrayZip({addresses:Array(String)}, {ports:Array(UInt16)}), (toString(remote_ip), remote_port))";

/// Rows whose process is a generator of the run and whose other end is one of its targets.
const OURS: &str = "role = 'active' \
    AND has(arrayZip({nodes:Array(String)}, {pids:Array(UInt32)}), (toString(node), pid)) \
    AND has(arrayZip({addresses:Array(String)}, {ports:Array(UInt16)}), (toString(remote_ip), remote_port))";

/// Rows of connections that never left their network namespace: from an address to itself, or with a loopback's. Others have the same addresses
/// and ports elsewhere.
const INSIDE: &str = "(local_ip = remote_ip OR arrayExists(ip -> ip = toIPv6('::1') \
    OR ip BETWEEN toIPv6('::ffff:127.0.0.0') AND toIPv6('::ffff:127.255.255.255'), [local_ip, remote_ip]))";

/// Rows of connections between addresses that do not say on which node the other end is: see [`Ambiguous`].
const AMBIGUOUS: &str = "({all_ambiguous:UInt8} \
    OR has(arrayZip({clients:Array(String)}, {servers:Array(String)}), \
        if(role = 'active', (toString(local_ip), toString(remote_ip)), (toString(remote_ip), toString(local_ip)))))";

/// Pairs of addresses that are told apart; of more none is trusted.
const MOST_AMBIGUOUS: usize = 256;

/// From whose address to which one a run's connections went where these two may be on other nodes too: bridges of containers have the same
/// addresses everywhere. The client's is had by several nodes, or no node is known to have it and the server's is. Where only the client's node
/// has its address, whoever saw a connection from there saw this one, also if several have the server's.
struct Ambiguous {
    pairs: Vec<(String, String)>,
}

impl Ambiguous {
    async fn of(store: &dyn Store, run: &Connections) -> Result<Self, StoreError> {
        let owners = format!(
            "SELECT ip, uniqExact(node) AS nodes FROM \
             (SELECT node, arrayJoin(addresses) AS ip FROM namespace_samples WHERE observed_at {MEANWHILE_OR_BESIDE}) GROUP BY ip"
        );
        let sql = format!(
            "SELECT toString(pair.client) AS client, toString(pair.server) AS server FROM \
             (SELECT DISTINCT local_ip AS client, remote_ip AS server FROM attempts \
              WHERE {OURS} AND outcome = 'established' AND decided_at {MEANWHILE}) AS pair \
             LEFT JOIN ({owners}) AS of_client ON pair.client = of_client.ip \
             LEFT JOIN ({owners}) AS of_server ON pair.server = of_server.ip \
             WHERE of_client.nodes > 1 OR (of_client.nodes = 0 AND of_server.nodes > 1) \
             ORDER BY client, server LIMIT {}",
            MOST_AMBIGUOUS + 1
        );
        #[derive(serde::Deserialize)]
        struct Pair {
            client: String,
            server: String,
        }
        let pairs: Vec<Pair> = lines(store, sql, run.params()).await?;
        let pairs = pairs.into_iter().map(|pair| (pair.client, pair.server));
        Ok(Self {
            pairs: pairs.collect(),
        })
    }

    fn params(&self) -> Vec<(String, String)> {
        let are_all = self.pairs.len() > MOST_AMBIGUOUS;
        let known = if are_all { &[] } else { &self.pairs[..] };
        let (clients, servers): (Vec<_>, Vec<_>) = known.iter().cloned().unzip();
        vec![
            ("all_ambiguous".into(), u8::from(are_all).to_string()),
            ("clients".into(), texts_value(&clients)),
            ("servers".into(), texts_value(&servers)),
        ]
    }
}

/// A process that takes connections at all has taken one that stood for so long, in microseconds: a machine that is busy needs less.
const TAKEN_WITHIN_US: u64 = 100_000;

/// What the kernels recorded of a run's connections, at both ends. A connection is found at the other end by its addresses and
/// ports, by its node too where others have the same addresses, and by its namespace as well where it never left that; since a pair of ports
/// serves many connections one after another, of each pair no more than were made of it.
pub async fn kernel(store: &dyn Store, run: &Connections) -> Result<Kernel, StoreError> {
    let sql = format!(
        "SELECT count() AS attempts, countIf(outcome = 'established') AS established, countIf(outcome = 'refused') AS refused, \
         countIf(outcome = 'timed_out') AS timed_out, countIf(outcome = 'aborted') AS aborted, \
         sum(syn_retransmits) AS syn_retransmits, toUInt64(quantileExactLowIf(0.5)(connect_us, outcome = 'established')) AS connect_p50_us, \
         toUInt64(quantileExactLowIf(0.99)(connect_us, outcome = 'established')) AS connect_p99_us \
         FROM attempts WHERE {OURS} AND decided_at {MEANWHILE}"
    );
    let mut kernel: Kernel = one(lines(store, sql, run.params()).await?)?;
    if kernel.attempts == 0 {
        return Ok(kernel);
    }
    let ambiguous = Ambiguous::of(store, run).await?;
    let params = || [run.params(), ambiguous.params()].concat();

    #[derive(serde::Deserialize)]
    struct There {
        expected: u64,
        established: u64,
        taken: u64,
        served: u64,
        untaken: u64,
        untold: u64,
        nodes: Vec<String>,
    }
    let at = format!("if({INSIDE} OR {AMBIGUOUS}, toString(node), ''), if({INSIDE}, netns, 0)");
    let names = format!("local_ip, local_port, remote_ip, remote_port, ({at}) AS at");
    let by = "local_ip, local_port, remote_ip, remote_port, at";
    let is_taken = "(accept_wait_us IS NOT NULL OR attribution = 'exact' OR bytes_sent > 0)";
    // An address that another node has too does not say who has what is missing, and what was answered here was established somewhere.
    let owners = format!(
        "SELECT ip, groupUniqArray(toString(node)) AS nodes FROM \
         (SELECT node, arrayJoin(addresses) AS ip FROM namespace_samples WHERE observed_at {MEANWHILE_OR_BESIDE}) \
         WHERE has({{addresses:Array(String)}}, toString(ip)) GROUP BY ip"
    );
    let is_only_there = "inside != 0 OR (notEmpty(owners.nodes) AND hasAll(seen_by, owners.nodes))";
    // Of each target that any agent saw, for of the others nothing is missing.
    let sql = format!(
        "SELECT sum(made_toward) AS expected, sum(seen) AS established, sum(known_taken) AS taken, sum(answered) AS served, \
         sum(if(known_taken = 0, waited, 0)) AS untaken, sum(if({is_only_there}, answered_elsewhere, made_toward - seen)) AS untold, \
         groupUniqArrayArray(seen_by) AS nodes FROM \
         (SELECT mine.remote_ip AS ip, mine.remote_port, mine.at, tupleElement(mine.at, 2) AS inside, sum(made) AS made_toward, \
              sum(least(made, established_there)) AS seen, \
              sum(greatest(least(made, answered_here), least(made, established_there)) - least(made, established_there)) AS answered_elsewhere, \
              sum(least(made, taken_there)) AS known_taken, sum(least(made, served_there)) AS answered, \
              sum(least(made, waited_there)) AS waited, groupUniqArrayArray(nodes_there) AS seen_by FROM \
             (SELECT {names}, countIf(is_first) AS made, countIf(is_final AND bytes_received > 0) AS answered_here \
              FROM connection_records WHERE {OURS} AND outcome = 'established' AND decided_at {MEANWHILE} GROUP BY {by}) AS mine \
             LEFT JOIN \
             (SELECT {names}, countIf(is_first) AS established_there, \
                  greatest(countIf(is_first AND accept_wait_us IS NOT NULL), countIf(is_final AND {is_taken})) AS taken_there, \
                  countIf(is_final AND bytes_sent > 0) AS served_there, \
                  countIf(is_final AND NOT {is_taken} AND duration_us >= connect_us + {TAKEN_WITHIN_US}) AS waited_there, \
                  groupUniqArray(toString(node)) AS nodes_there \
              FROM connection_records WHERE role = 'passive' AND outcome = 'established' \
                  AND has({{ports:Array(UInt16)}}, local_port) AND decided_at {MEANWHILE_THERE} GROUP BY {by}) AS theirs \
             ON mine.local_ip = theirs.remote_ip AND mine.local_port = theirs.remote_port \
                 AND mine.remote_ip = theirs.local_ip AND mine.remote_port = theirs.local_port \
                 AND mine.at = theirs.at \
             GROUP BY mine.remote_ip, mine.remote_port, mine.at HAVING seen > 0) AS target \
         LEFT JOIN ({owners}) AS owners ON target.ip = owners.ip"
    );
    let There {
        expected,
        established,
        taken,
        served,
        untaken,
        untold,
        nodes,
    } = one(lines(store, sql, params()).await?)?;
    kernel.expected_at_target = expected;
    kernel.seen_by_target = established;
    kernel.taken_by_target = taken;
    kernel.served_by_target = served;
    let told = told(store, run, &nodes).await?;
    kernel.left_out_at_target = told.left_out;
    kernel.is_settled_at_target = told.settled > 0 && told.behind == 0;
    // Rows of a clock that is further off, or of which nobody knows, may lie where they are not looked for.
    let is_clock_near = told.starts > 0 && told.off_ns <= MARGIN_NS.unsigned_abs();
    kernel.untold_at_target = match is_clock_near {
        true => untold,
        false => expected.saturating_sub(established),
    };
    if untaken > 0 && see_accept(store, &nodes).await? {
        kernel.untaken_by_target = untaken;
    }

    if !ambiguous.pairs.is_empty() {
        let sql = format!(
            "SELECT countIf({AMBIGUOUS} AND NOT {INSIDE}) AS value FROM attempts \
             WHERE {OURS} AND outcome = 'established' AND decided_at {MEANWHILE}"
        );
        kernel.ambiguous = number(store, sql, params()).await?;
    }

    let ends = "close_reason, toString(node) AS node, pid, toString(comm) AS comm, count() AS connections, \
        toUnixTimestamp64Nano(min(closed_at)) AS first_at_ns, toUnixTimestamp64Nano(max(closed_at)) AS last_at_ns";
    let by = format!("GROUP BY close_reason, node, pid, comm ORDER BY connections DESC LIMIT {WAYS}");
    let here = format!(
        "SELECT {ends} FROM connections WHERE {OURS} AND outcome = 'established' AND decided_at {MEANWHILE} {by}"
    );
    kernel.ends = lines(store, here, run.params()).await?;
    let there = format!(
        "SELECT {ends} FROM connections WHERE role = 'passive' AND outcome = 'established' \
         AND has({{ports:Array(UInt16)}}, local_port) AND decided_at {MEANWHILE_THERE} \
         AND (remote_ip, remote_port, local_ip, local_port, ({at})) GLOBAL IN \
             (SELECT {names} FROM attempts WHERE {OURS} AND outcome = 'established' AND decided_at {MEANWHILE}) {by}"
    );
    kernel.ends_at_target = lines(store, there, params()).await?;

    // The first of a kind in a minute stand for all of them; where they are another run's, or another process', for ours too.
    let kind = "node, netns, remote_ip, remote_port, outcome, minute";
    let sql = format!(
        "SELECT toString(theirs.cause) AS cause, toString(theirs.outcome) AS outcome, theirs.is_confirmed AS is_confirmed, \
         toString(theirs.peer) AS node, toUInt64(round(sum(mine.made * theirs.weight))) AS attempts, \
         any(theirs.words) AS evidence FROM \
         (SELECT {kind}, count() AS made FROM \
              (SELECT *, toStartOfMinute(recorded_at) AS minute FROM attempts \
               WHERE {OURS} AND decided_at {MEANWHILE} AND outcome != 'pending' \
                   AND (outcome != 'established' OR syn_retransmits > 0)) \
          GROUP BY {kind}) AS mine \
         INNER JOIN \
         (SELECT {kind}, cause, is_confirmed, peer, any(told) AS words, \
              count() / sum(count()) OVER (PARTITION BY {kind}) AS weight FROM \
              (SELECT node, netns, remote_ip, remote_port, outcome, minute, cause, is_confirmed, peer_node AS peer, \
                   evidence AS told, is_ours, max(is_ours) OVER (PARTITION BY {kind}) AS are_some_ours FROM \
                   (SELECT *, toStartOfMinute(recorded_at) AS minute, ({} AND decided_at {MEANWHILE}) AS is_ours \
                    FROM attempt_causes WHERE {TOWARD} AND recorded_at {MEANWHILE_OR_BESIDE})) \
          WHERE is_ours = are_some_ours GROUP BY {kind}, cause, is_confirmed, peer) AS theirs \
         ON mine.node = theirs.node AND mine.netns = theirs.netns AND mine.remote_ip = theirs.remote_ip \
             AND mine.remote_port = theirs.remote_port AND mine.outcome = theirs.outcome AND mine.minute = theirs.minute \
         GROUP BY cause, outcome, is_confirmed, node ORDER BY attempts DESC LIMIT {WAYS}",
        OURS.replace("role = 'active' AND ", "")
    );
    kernel.causes = lines(store, sql, run.params()).await?;
    Ok(kernel)
}

/// What agents say of their records of the run's time.
#[derive(serde::Deserialize)]
struct Told {
    /// Connections that they did not record, of any.
    left_out: u64,
    /// Starts of agents of which all that was made until the run's end is stored, and those of which it may not be.
    settled: u64,
    behind: u64,
    /// All starts that said anything around that time, also those that were over before the run, and how far their clocks may be from the
    /// collector's at most.
    starts: u64,
    off_ns: u64,
}

async fn told(store: &dyn Store, run: &Connections, nodes: &[String]) -> Result<Told, StoreError> {
    // A connection is told when it is established, or when it is over: each has a mark. A start that was over before the run has no part in it.
    let sql = format!(
        "SELECT toUInt64(ifNull(sumIf(grown, is_of_run), 0)) AS left_out, countIf(is_of_run AND mark > {{ended:Int64}}) AS settled, \
             countIf(is_of_run AND mark <= {{ended:Int64}}) AS behind, count() AS starts, toUInt64(ifNull(max(off), 0)) AS off_ns FROM \
         (SELECT max(missing) - min(missing) AS grown, max(abs(clock_offset_ns) + clock_error_ns) AS off, \
              max(toUnixTimestamp64Nano(observed_at) - clock_offset_ns) >= {{began:Int64}} AS is_of_run, \
              max(toUnixTimestamp64Nano(least(watermark_at, attempts_watermark_at)) - clock_offset_ns) AS mark \
          FROM agent_samples WHERE has({{seen_by:Array(String)}}, toString(node)) AND observed_at {MEANWHILE_OR_BESIDE} \
          GROUP BY agent_id, agent_epoch)"
    );
    let mut params = run.params();
    params.push(("seen_by".into(), texts_value(nodes)));
    one(lines(store, sql, params).await?)
}

/// Whether the agents of all these nodes see where accept() returns.
async fn see_accept(store: &dyn Store, nodes: &[String]) -> Result<bool, StoreError> {
    let sql = "SELECT count() AS value FROM nodes \
               WHERE has({seen_by:Array(String)}, toString(node)) AND has(missing_features, 'failed_connects')";
    let params = vec![("seen_by".to_owned(), texts_value(nodes))];
    Ok(number(store, sql.into(), params).await? == 0)
}

/// Whether an agent runs where one of the run's targets is, as far as addresses tell: what is on a generator's own loopback is there.
pub async fn is_target_watched(store: &dyn Store, run: &Connections) -> Result<bool, StoreError> {
    let is_loopback = |(address, _): &(String, u16)| {
        let address = address.parse::<IpAddr>();
        address.is_ok_and(|address| address.to_canonical().is_loopback())
    };
    if run.targets.iter().any(is_loopback) {
        return Ok(true);
    }
    let sql = format!(
        "SELECT count() AS value FROM namespaces WHERE observed_at {MEANWHILE_OR_BESIDE} \
         AND hasAny(arrayMap(address -> toString(address), addresses), {{addresses:Array(String)}})"
    );
    Ok(number(store, sql, run.params()).await? > 0)
}

async fn number(store: &dyn Store, sql: String, params: Vec<(String, String)>) -> Result<u64, StoreError> {
    #[derive(serde::Deserialize)]
    struct Number {
        value: u64,
    }
    let Number { value } = one(lines(store, sql, params).await?)?;
    Ok(value)
}

fn one<T>(rows: Vec<T>) -> Result<T, StoreError> {
    rows.into_iter()
        .next()
        .ok_or_else(|| StoreError::rejected("the store gives no row where there is always one"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_what_came_meanwhile_as_far_as_its_clocks_can_be_trusted() {
        let check = |margin_ns, expected_ns: i64| {
            let run = Connections {
                began_at_ns: 10_000_000_000,
                ended_at_ns: 20_000_000_000,
                margin_ns,
                ..Connections::default()
            };
            let params = run.params();
            let value = |name: &str| -> i64 {
                let found = params.iter().find(|(called, _)| called == name);
                found.expect("a parameter").1.parse().expect("a number")
            };
            assert_eq!(
                (value("began"), value("ended")),
                (10_000_000_000 - expected_ns, 20_000_000_000 + expected_ns),
                "{margin_ns}"
            );
            // Of a target's clock nothing is known.
            assert_eq!(
                (value("began_there"), value("ended_there")),
                (8_000_000_000, 22_000_000_000)
            );
        };
        check(13_000_000, 13_000_000);
        // A result of before it was known, and a clock that is far off.
        check(0, MARGIN_NS);
        check(i64::MAX, MARGIN_NS);
    }
}
