//! The store of the simulation: it reads the blocks that the collector encodes, inserts each whole or not at all,
//! knows the last tokens as ClickHouse does, and fails in every way in which a server does: away, slow, restarted, full,
//! refusing, and with an unknown outcome.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use fastrand::Rng;
use holdfast_collector::store::{
    Block, Chunks, Query, Store, StoreError,
    schema::{CONNECTION_RECORDS, GAP_RECORDS, LEDGER_SAMPLES},
};
use holdfast_proto::v1::Stream;
use tokio::{
    sync::{oneshot, watch},
    time::sleep,
};

use crate::{
    native,
    oracle::{BatchName, Gap, Oracle, Row, RowName},
    trace::Trace,
};

/// Of a disk that is nearly full: rows that it has room for at once, at most. An agent's batch has up to 30.
const ROOM_ROWS: usize = 60;

/// Tokens that a table remembers: as many as the product's tables have.
const TOKENS: usize = 100;

/// A remote port that the store refuses: such a row is never stored.
pub(crate) const REFUSED_PORT: u16 = 666;

/// ClickHouse's code for a value that a table does not take (VIOLATED_CONSTRAINT), and for a table that is not there
/// (UNKNOWN_TABLE).
const VIOLATED_CONSTRAINT: u32 = 469;
const UNKNOWN_TABLE: u32 = 60;

/// How often the inserts of others are looked for until they have ended.
const FENCE_EVERY: Duration = Duration::from_millis(50);

const DAY_NS: u64 = 86_400_000_000_000;

/// What the store's clock says when a world begins, in milliseconds.
const BEGAN_MS: u64 = 1_000_000;

/// What the store does not do, so that a run of many worlds proves that it would be found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Lapse {
    #[default]
    None,
    /// It tells every collector that it has every agent.
    NoClaims,
    /// It begins inserts after their deadlines.
    NoDeadlines,
}

/// How the store does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Weather {
    Fair,
    Away,
    /// Inserts take seconds.
    Slow,
    /// Inserts take seconds to get there.
    Far,
    /// Answers get lost, before or after the rows are in.
    Uncertain,
    /// Its disk is nearly full: blocks find room or not, for others write and clear up as well. Some answers get lost, so one that
    /// finds none may be in already.
    Full,
    /// Refuses everything, whatever it holds.
    Sick,
}

/// The store of one world.
pub(crate) struct Engine {
    trace: Trace,
    oracle: Oracle,
    /// Whether several collectors may use it.
    is_shared: bool,
    lapse: Lapse,
    state: Mutex<State>,
}

struct State {
    rng: Rng,
    weather: Weather,
    /// Counts restarts: what ran before one has no effect after it.
    starts: u64,
    tokens: BTreeMap<String, VecDeque<String>>,
    /// Inserts that run, by number, and whose they are.
    running: BTreeMap<u64, u64>,
    last_insert: u64,
    last_connection: u64,
    /// By agent: claims, whose they are, and whether they are released.
    claims: BTreeMap<String, Vec<(u64, u64, bool)>>,
    /// The last counters of each start of each agent, of connections.
    ledger: BTreeMap<(usize, u64), BTreeMap<u32, Counts>>,
}

/// Agent's counters of one namespace, as stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) received: u64,
    pub(crate) announced: u64,
    pub(crate) acknowledged: u64,
    pub(crate) dropped: u64,
    pub(crate) refused: u64,
}

impl Engine {
    pub(crate) fn new(trace: Trace, oracle: Oracle, rng: Rng, is_shared: bool, lapse: Lapse) -> Arc<Self> {
        let state = State {
            rng,
            weather: Weather::Fair,
            starts: 0,
            tokens: BTreeMap::new(),
            running: BTreeMap::new(),
            last_insert: 0,
            last_connection: 0,
            claims: BTreeMap::new(),
            ledger: BTreeMap::new(),
        };
        Arc::new(Self {
            trace,
            oracle,
            is_shared,
            lapse,
            state: Mutex::new(state),
        })
    }

    pub(crate) fn set_weather(&self, weather: Weather) {
        self.lock().weather = weather;
    }

    /// Everything that runs ends, with or without an effect.
    pub(crate) fn restart(&self) {
        let mut state = self.lock();
        state.starts += 1;
        state.running.clear();
    }

    /// The last counters of a start of an agent, all namespaces together.
    pub(crate) fn ledger(&self, node: usize, epoch: u64) -> Option<Counts> {
        let state = self.lock();
        let namespaces = state.ledger.get(&(node, epoch))?;
        Some(namespaces.values().fold(Counts::default(), |sum, counts| Counts {
            received: sum.received + counts.received,
            announced: sum.announced + counts.announced,
            acknowledged: sum.acknowledged + counts.acknowledged,
            dropped: sum.dropped + counts.dropped,
            refused: sum.refused + counts.refused,
        }))
    }

    /// The store's own clock.
    fn now_ms(&self) -> u64 {
        BEGAN_MS + self.trace.elapsed().as_millis() as u64
    }

    fn pause(&self, longest_ms: u64) -> Duration {
        Duration::from_millis(self.lock().rng.u64(0..=longest_ms))
    }

    /// What the server does with an insert that has arrived, whether or not anybody waits for the answer.
    async fn serve(
        self: Arc<Self>,
        table: String,
        token: String,
        block: Block,
        owner: u64,
        answer: oneshot::Sender<Result<(), StoreError>>,
    ) {
        let (insert, starts, weather, is_early, room_rows) = {
            let mut state = self.lock();
            state.last_insert += 1;
            let insert = state.last_insert;
            state.running.insert(insert, owner);
            let room_rows = match state.weather {
                Weather::Full => state.rng.usize(0..=ROOM_ROWS),
                _ => usize::MAX,
            };
            (insert, state.starts, state.weather, state.rng.bool(), room_rows)
        };
        // Decided where it begins, however long it then takes.
        let is_late = block
            .deadline_ms
            .is_some_and(|deadline_ms| self.now_ms() >= deadline_ms);
        if is_late && self.lapse != Lapse::NoDeadlines {
            self.trace.note("an insert is late (owner)", [owner, 0, 0, 0]);
            self.lock().running.remove(&insert);
            let _ = answer.send(Err(StoreError::LeaseEnded));
            return;
        }
        // Before it is known whether the block is stored already.
        if block.rows > room_rows {
            self.trace.note(
                "no room (rows, room)",
                [block.rows as u64, room_rows as u64, 0, 0],
            );
            self.lock().running.remove(&insert);
            let _ = answer.send(Err(StoreError::Full {
                message: "cannot reserve space".into(),
            }));
            return;
        }
        let longest_ms = if weather == Weather::Slow { 6_000 } else { 15 };
        let took = self.pause(longest_ms);
        if !is_early {
            sleep(took).await;
        }
        if self.lock().starts != starts {
            let _ = answer.send(Err(unavailable("the server was restarted")));
            return;
        }
        let outcome = self.apply(&table, &token, &block);
        if is_early {
            sleep(took).await;
        }
        self.lock().running.remove(&insert);
        // Nobody may listen any more.
        let _ = answer.send(if self.lock().starts == starts {
            outcome
        } else {
            Err(unavailable("the server was restarted"))
        });
    }

    /// Inserts a block, all of it or nothing.
    fn apply(&self, table: &str, token: &str, block: &Block) -> Result<(), StoreError> {
        {
            let mut state = self.lock();
            let tokens = state.tokens.entry(table.to_owned()).or_default();
            if tokens.iter().any(|known| known == token) {
                self.trace.note("a block that is known", [0; 4]);
                return Ok(());
            }
        }
        let columns = native::read(&block.native);
        assert_eq!(columns.rows, block.rows, "rows of a block");
        match table {
            table if table == CONNECTION_RECORDS.name => self.store_connections(&columns)?,
            table if table == GAP_RECORDS.name => self.store_gaps(&columns),
            table if table == LEDGER_SAMPLES.name => self.store_ledger(&columns),
            _ => {}
        }
        let mut state = self.lock();
        let tokens = state.tokens.entry(table.to_owned()).or_default();
        tokens.push_back(token.to_owned());
        if tokens.len() > TOKENS {
            tokens.pop_front();
        }
        Ok(())
    }

    fn store_connections(&self, columns: &native::Columns) -> Result<(), StoreError> {
        let mut batches = BTreeMap::<_, Vec<(RowName, Row)>>::new();
        let mut days = Vec::new();
        for row in 0..columns.rows {
            let remote_port = columns.number("remote_port", row) as u16;
            if remote_port == REFUSED_PORT {
                return Err(StoreError::Rejected {
                    code: VIOLATED_CONSTRAINT,
                    message: "a constraint is violated".into(),
                });
            }
            let name = BatchName {
                epoch: columns.number("agent_epoch", row),
                stream: Stream::Connections as i32,
                sequence: columns.number("sequence", row),
            };
            let stored = Row {
                recorded_ns: columns.number("recorded_at", row),
                netns: columns.number("netns", row) as u32,
                remote_port,
                bytes_sent: columns.number("bytes_sent", row),
                is_first: columns.number("is_first", row) != 0,
            };
            let row_name = RowName {
                cookie: columns.number("cookie", row),
                is_final: columns.number("is_final", row) != 0,
            };
            let node = node(columns.text("agent_id", row));
            batches.entry((node, name)).or_default().push((row_name, stored));
            days.push(columns.number("recorded_at", row) / DAY_NS);
        }
        days.dedup();
        if days.len() > 1 {
            self.trace
                .fault(|| format!("a block of connections is of the days {days:?}"));
        }
        for ((node, name), rows) in batches {
            self.trace.note(
                "stored (node, epoch, sequence, rows)",
                [node as u64, name.epoch, name.sequence, rows.len() as u64],
            );
            self.oracle.stored(node, name, &rows);
        }
        Ok(())
    }

    fn store_gaps(&self, columns: &native::Columns) {
        let mut batches = BTreeMap::<_, Vec<Gap>>::new();
        for row in 0..columns.rows {
            let name = BatchName {
                epoch: columns.number("reported_epoch", row),
                stream: Stream::Gaps as i32,
                sequence: columns.number("sequence", row),
            };
            let gap = Gap {
                epoch: columns.number("agent_epoch", row),
                stream: columns.number("stream", row) as i32,
                netns: columns.number("netns", row) as u32,
                first: columns.number("first_sequence", row),
                last: columns.number("last_sequence", row),
                rows: columns.number("rows", row),
            };
            let node = node(columns.text("agent_id", row));
            batches.entry((node, name)).or_default().push(gap);
        }
        for ((node, name), gaps) in batches {
            self.trace.note(
                "gaps stored (node, epoch, sequence, gaps)",
                [node as u64, name.epoch, name.sequence, gaps.len() as u64],
            );
            for gap in &gaps {
                self.trace.note(
                    "  gap (epoch, stream, first, last)",
                    [gap.epoch, gap.stream as u64, gap.first, gap.last],
                );
            }
            self.oracle.gaps_stored(node, name, &gaps);
        }
    }

    fn store_ledger(&self, columns: &native::Columns) {
        for row in 0..columns.rows {
            let number = |name| columns.number(name, row);
            let places = number("batching") + number("unacknowledged");
            let counts = Counts {
                received: number("received"),
                announced: number("announced"),
                acknowledged: number("acknowledged"),
                dropped: number("dropped"),
                refused: number("refused"),
            };
            if counts.received + counts.announced
                != places + counts.acknowledged + counts.dropped + counts.refused
            {
                self.trace
                    .fault(|| format!("a ledger does not close: {counts:?}, {places} on the way"));
            }
            if number("stream") as i32 != Stream::Connections as i32 {
                continue;
            }
            let key = (node(columns.text("agent_id", row)), number("agent_epoch"));
            let mut state = self.lock();
            let last = state
                .ledger
                .entry(key)
                .or_default()
                .entry(number("netns") as u32)
                .or_default();
            // Counters only grow; a sample that came late says nothing new.
            if counts.received + counts.announced >= last.received + last.announced {
                last.received = counts.received;
                last.announced = counts.announced;
                last.acknowledged = last.acknowledged.max(counts.acknowledged);
                last.dropped = last.dropped.max(counts.dropped);
                last.refused = last.refused.max(counts.refused);
            }
        }
    }

    /// Claims agents, or releases them.
    fn change_claims(&self, sql: &str, params: &[(String, String)]) {
        assert!(
            sql.starts_with("INSERT INTO agent_claims "),
            "not known here: {sql}"
        );
        let collector = number(param(sql, params, "collector"));
        let is_released = sql.contains("true FROM");
        for agent in texts(param(sql, params, "agents")) {
            let mut state = self.lock();
            let claims = state.claims.entry(agent.clone()).or_default();
            let of = |mine: bool| {
                let claims = claims
                    .iter()
                    .filter(move |(_, owner, _)| !mine || *owner == collector);
                claims.map(|(claim, ..)| *claim).max()
            };
            let claim = if is_released {
                of(true)
            } else {
                Some(of(false).unwrap_or(0) + 1)
            };
            let Some(claim) = claim else { continue };
            claims.push((claim, collector, is_released));
            self.trace.note(
                "claimed (node, claim, owner, released)",
                [node(&agent) as u64, claim, collector, u64::from(is_released)],
            );
        }
    }

    /// How agents stand to a collector.
    fn standings(&self, query: &Query) -> String {
        let collector = number(param(&query.sql, &query.params, "collector"));
        let mut lines = String::new();
        for agent in texts(param(&query.sql, &query.params, "agents")) {
            let state = self.lock();
            let Some(claims) = state.claims.get(&agent) else {
                continue;
            };
            let &(claim, owner, _) = claims.iter().max().expect("an agent has claims or none at all");
            let owner = if self.lapse == Lapse::NoClaims {
                collector
            } else {
                owner
            };
            let others = claims.iter().filter(|(_, owner, _)| *owner != collector);
            let is_contested = others.max().is_some_and(|(.., is_released)| !is_released);
            lines.push_str(&format!(
                "{claim}\t{owner}\t{}\t{agent}\n",
                u8::from(is_contested)
            ));
        }
        lines
    }

    /// Answers the questions that the collector asks before it lets an agent in: which of these batches have rows,
    /// and what the highest sequence of a start is; and those about claims.
    fn answer(&self, query: &Query) -> String {
        if query.sql == "SELECT toUnixTimestamp64Milli(now64(3))" {
            return format!("{}\n", self.now_ms());
        }
        if query.sql.contains(" FROM agent_claims ") {
            return self.standings(query);
        }
        let param = |name: &str| param(&query.sql, &query.params, name);
        let numbers = |name: &str| -> Vec<u64> {
            let list = param(name).trim_matches(['[', ']']).split(',');
            list.filter(|number| !number.is_empty())
                .map(|number| number.parse().expect("a number"))
                .collect()
        };
        let is_of = |table: &str| query.sql.contains(&format!(" FROM {table} "));
        let stream = if is_of(CONNECTION_RECORDS.name) {
            Stream::Connections
        } else if is_of(GAP_RECORDS.name) {
            Stream::Gaps
        } else {
            // Of the streams that no agent here has.
            Stream::Unspecified
        };
        let stored = |stream: Stream, epoch, first, last| {
            let name = |sequence| BatchName {
                epoch,
                stream: stream as i32,
                sequence,
            };
            self.oracle
                .stored_sequences(node(param("agent")), name(first), name(last))
        };
        if query.sql.starts_with("SELECT stream, newest ") {
            let of_stream = |stream: Stream| {
                let newest = stored(stream, numbers("epoch")[0], 0, u64::MAX).last().copied();
                format!("{}\t{}\n", stream as i32, newest.unwrap_or(0))
            };
            return [Stream::Connections, Stream::Gaps].map(of_stream).concat();
        }
        assert!(
            query.sql.contains("epoch, sequence FROM "),
            "a question that is not known here: {}",
            query.sql
        );
        let ranges = numbers("firsts").into_iter().zip(numbers("lasts"));
        let mut lines = String::new();
        for (epoch, (first, last)) in numbers("epochs").into_iter().zip(ranges) {
            for sequence in stored(stream, epoch, first, last) {
                self.trace.note(
                    "known (epoch, stream, sequence)",
                    [epoch, stream as u64, sequence, 0],
                );
                lines.push_str(&format!("{epoch}\t{sequence}\n"));
            }
        }
        lines
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn param<'a>(sql: &str, params: &'a [(String, String)], name: &str) -> &'a str {
    let found = params.iter().find(|(known, _)| known == name);
    &found.unwrap_or_else(|| panic!("{sql} has no {name}")).1
}

fn number(text: &str) -> u64 {
    text.parse().expect("a number")
}

/// The elements of an array of plain texts.
fn texts(array: &str) -> Vec<String> {
    let elements = array.trim_matches(['[', ']']).split(',');
    elements
        .map(|element| element.trim_matches('\'').to_owned())
        .collect()
}

/// The agent's number in its id.
fn node(agent_id: &str) -> usize {
    agent_id
        .strip_prefix("agent-")
        .and_then(|number| number.parse().ok())
        .expect("the id of an agent of this world")
}

fn unavailable(message: &str) -> StoreError {
    StoreError::Unavailable {
        message: message.into(),
    }
}

/// A collector's way to the store. Once the collector is dead, nothing that it asks for arrives any more.
pub(crate) struct Connection {
    engine: Arc<Engine>,
    is_alive: Arc<AtomicBool>,
    is_paused: watch::Receiver<bool>,
    /// Tells its inserts from those of others.
    number: u64,
}

impl Connection {
    /// A connection for as long as `is_alive`; nothing is sent or read while `is_paused`.
    pub(crate) fn new(
        engine: Arc<Engine>,
        is_alive: Arc<AtomicBool>,
        is_paused: watch::Receiver<bool>,
    ) -> Self {
        let number = {
            let mut state = engine.lock();
            state.last_connection += 1;
            state.last_connection
        };
        Self {
            engine,
            is_alive,
            is_paused,
            number,
        }
    }

    /// A message on its way, there or back.
    async fn travel(&self) {
        sleep(self.engine.pause(3)).await;
        // Nobody can end a pause of a collector that is gone.
        let _ = self.is_paused.clone().wait_for(|is_paused| !is_paused).await;
        if !self.is_alive.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Store for Connection {
    fn writer(&self) -> Option<u64> {
        self.engine.is_shared.then_some(self.number)
    }

    async fn fence(&self) -> Result<(), StoreError> {
        self.travel().await;
        let running = {
            let state = self.engine.lock();
            if state.weather == Weather::Away {
                return Err(unavailable("connection refused"));
            }
            state.running.keys().copied().collect::<Vec<_>>()
        };
        while running
            .iter()
            .any(|insert| self.engine.lock().running.contains_key(insert))
        {
            sleep(FENCE_EVERY).await;
        }
        self.travel().await;
        Ok(())
    }

    async fn insert(&self, table: &str, token: &str, block: Block) -> Result<(), StoreError> {
        self.travel().await;
        let weather = self.engine.lock().weather;
        let (lost_before, lost_after) = match weather {
            Weather::Away => return Err(unavailable("connection refused")),
            Weather::Sick => {
                return Err(StoreError::Rejected {
                    code: UNKNOWN_TABLE,
                    message: "there is no such table".into(),
                });
            }
            Weather::Uncertain => {
                let mut state = self.engine.lock();
                (state.rng.u8(0..4) == 0, state.rng.u8(0..3) == 0)
            }
            Weather::Full => (false, self.engine.lock().rng.u8(0..3) == 0),
            Weather::Far => {
                sleep(self.engine.pause(8_000)).await;
                // What is on its way inside a process ends with it.
                if !self.engine.is_shared {
                    self.travel().await;
                }
                (false, false)
            }
            Weather::Fair | Weather::Slow => (false, false),
        };
        if lost_before {
            return Err(unavailable("the connection broke on the way there"));
        }
        let (sender, answer) = oneshot::channel();
        let serving =
            self.engine
                .clone()
                .serve(table.to_owned(), token.to_owned(), block, self.number, sender);
        tokio::spawn(serving);
        if lost_after {
            self.travel().await;
            return Err(unavailable("the connection broke on the way back"));
        }
        let outcome = answer
            .await
            .unwrap_or_else(|_| Err(unavailable("the server is gone")));
        self.travel().await;
        outcome
    }

    async fn query(&self, query: Query) -> Result<Chunks, StoreError> {
        self.travel().await;
        let weather = self.engine.lock().weather;
        if weather == Weather::Away {
            return Err(unavailable("connection refused"));
        }
        let answer = self.engine.answer(&query);
        self.travel().await;
        Ok(Box::pin(tokio_stream::once(Ok(Bytes::from(answer)))))
    }

    async fn execute(&self, sql: &str) -> Result<(), StoreError> {
        panic!("the collector's data path executes nothing: {sql}");
    }

    async fn derive(&self, sql: &str, params: Vec<(String, String)>) -> Result<(), StoreError> {
        self.travel().await;
        let weather = self.engine.lock().weather;
        let is_lost = weather == Weather::Uncertain && self.engine.lock().rng.u8(0..4) == 0;
        if weather == Weather::Away || (is_lost && self.engine.lock().rng.bool()) {
            return Err(unavailable("connection refused"));
        }
        let longest_ms = if weather == Weather::Slow { 2_000 } else { 15 };
        sleep(self.engine.pause(longest_ms)).await;
        self.engine.change_claims(sql, &params);
        self.travel().await;
        if is_lost {
            return Err(unavailable("the connection broke on the way back"));
        }
        Ok(())
    }
}
