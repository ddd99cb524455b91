//! Agents without a kernel, for `cargo xtask bench ingest`: each sends what a real one once recorded, as fast as the
//! collector acknowledges it, and at the end says how much that was and what it took.
//!
//! The batches come out of the spool of an agent that had no collector. They are taken apart once; from then on a
//! batch is copied with another sequence, opening time and cookie, so that this process needs almost no CPU and
//! everything that is measured is the collector's. What is sent follows the protocol to the letter: a hello, the
//! windows that the collector names, a status each second, and a row counts once it is acknowledged.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use clap::Parser;
use holdfast_agent::spool::disk::{Disk, Folder};
use holdfast_agent::spool::segment;
use holdfast_proto::PROTOCOL;
use holdfast_proto::v1::batch::Columns;
use holdfast_proto::v1::uplink_client::UplinkClient;
use holdfast_proto::v1::{
    AgentMessage, Batch, Hello, SealedBatch, Status, Stream, StreamCounters, Window, agent_message,
    collector_message,
};
use hyper_util::rt::TokioIo;
use prost::Message;
use prost::bytes::{BufMut, Bytes, BytesMut};
use prost::encoding::{WireType, encode_key, encode_varint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;

const DAY_NS: u64 = 86_400_000_000_000;
/// As the agent's own.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);
const SEND_QUEUE: usize = 4;
const WINDOW_BYTES: u32 = 4 << 20;

/// Send what an agent recorded, as many agents
#[derive(Parser)]
struct Arguments {
    /// The collector, HOST:PORT
    #[arg(long)]
    collector: String,

    /// The folder with the segments of an agent's spool
    #[arg(long)]
    recording: PathBuf,

    /// Agents, each with a connection, an id, and a place in the recording of its own
    #[arg(long, default_value_t = 1)]
    agents: u32,

    /// Send for so many seconds, from the start of the recording again whenever it ends; without it, each agent sends
    /// the recording once
    #[arg(long)]
    seconds: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let recording = Arc::new(Recording::read(&arguments.recording)?);
    let wire = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let cpu_before = cpu();
    let until = arguments
        .seconds
        .map(|seconds| started + Duration::from_secs(seconds));
    let mut agents = tokio::task::JoinSet::new();
    for number in 0..arguments.agents {
        let agent = Agent {
            number,
            epoch: wall_ns() / 1_000_000,
            recording: recording.clone(),
            first: recording.batches.len() * number as usize / arguments.agents as usize,
            until,
            wire: wire.clone(),
        };
        agents.spawn(agent.run(arguments.collector.clone()));
    }
    let mut sent = Sent::default();
    while let Some(done) = agents.join_next().await {
        let done = done??;
        sent.batches += done.batches;
        sent.rows += done.rows;
        sent.bytes += done.bytes;
    }
    let result = serde_json::json!({
        "batches": sent.batches,
        "rows": sent.rows,
        "message_bytes": sent.bytes,
        "wire_bytes": wire.load(Ordering::Relaxed),
        "cpu_ns": (cpu() - cpu_before).as_nanos() as u64,
        "wall_ns": started.elapsed().as_nanos() as u64,
    });
    println!("{result}");
    Ok(())
}

/// What was acknowledged.
#[derive(Default)]
struct Sent {
    batches: u64,
    rows: u64,
    /// Of the gRPC messages.
    bytes: u64,
}

/// The batches of connections of a spool.
struct Recording {
    batches: Vec<Recorded>,
    /// Sockets that the recording spans: a repetition adds as much to every cookie.
    cookies: i64,
    /// When its last row was made.
    last_ns: u64,
}

/// A batch, taken apart: what changes from one sending to the next, and the bytes that do not.
struct Recorded {
    rows: u32,
    /// When the kernel made its first and its last row.
    first_ns: u64,
    last_ns: u64,
    netns: u32,
    opened_ns: i64,
    /// The encoded differences of all rows behind the first.
    opened_deltas: Bytes,
    cookie: i64,
    cookie_deltas: Bytes,
    /// The encoded other columns.
    others: Bytes,
}

impl Recording {
    fn read(folder: &Path) -> anyhow::Result<Self> {
        let disk = Folder::open(folder).with_context(|| format!("cannot open {}", folder.display()))?;
        let mut batches = Vec::new();
        for number in disk.list()? {
            for (_, sealed) in segment::scan(&disk.read(number)?).records {
                if sealed.id.stream == Stream::Connections {
                    batches
                        .push(Recorded::take_apart(&sealed).context("a batch that an agent does not write")?);
                }
            }
        }
        ensure!(!batches.is_empty(), "{} has no batches", folder.display());
        let cookies = batches.iter().map(|batch| batch.cookie);
        let (least, most) = (cookies.clone().min().unwrap_or(0), cookies.max().unwrap_or(0));
        let last_ns = batches.iter().map(|batch| batch.last_ns).max().unwrap_or(0);
        Ok(Self {
            batches,
            cookies: most - least + 1,
            last_ns,
        })
    }
}

impl Recorded {
    fn take_apart(sealed: &segment::Sealed) -> Option<Self> {
        let batch = Batch::decode(sealed.encoded.clone()).ok()?;
        let Some(Columns::Connections(mut columns)) = batch.columns else {
            return None;
        };
        let (opened, cookies) = (
            std::mem::take(&mut columns.opened_ns_delta),
            std::mem::take(&mut columns.cookie_delta),
        );
        Some(Self {
            rows: batch.rows,
            first_ns: sealed.first_ns,
            last_ns: sealed.last_ns,
            netns: columns.processes.first()?.netns,
            opened_ns: *opened.first()?,
            opened_deltas: zigzag(&opened[1..]),
            cookie: *cookies.first()?,
            cookie_deltas: zigzag(cookies.get(1..)?),
            others: columns.encode_to_vec().into(),
        })
    }

    /// The batch again, under another name, `shift_ns` later and with cookies that are `cookie_shift` larger.
    fn again(&self, sequence: u64, boot_id: &str, shift_ns: i64, cookie_shift: i64) -> Bytes {
        let mut columns = BytesMut::with_capacity(
            self.opened_deltas.len() + self.cookie_deltas.len() + self.others.len() + 64,
        );
        for (tag, first, deltas) in [
            (1, self.opened_ns + shift_ns, &self.opened_deltas),
            (2, self.cookie + cookie_shift, &self.cookie_deltas),
        ] {
            let first = zigzag(&[first]);
            encode_key(tag, WireType::LengthDelimited, &mut columns);
            encode_varint((first.len() + deltas.len()) as u64, &mut columns);
            columns.put(first);
            columns.put(deltas.clone());
        }
        columns.put(self.others.clone());

        let head = Batch {
            stream: Stream::Connections.into(),
            sequence,
            rows: self.rows,
            boot_id: boot_id.to_owned(),
            clock_ns: 0,
            columns: None,
        };
        let mut batch = BytesMut::with_capacity(columns.len() + 128);
        head.encode(&mut batch).expect("the buffer grows");
        encode_key(CONNECTIONS_TAG, WireType::LengthDelimited, &mut batch);
        encode_varint(columns.len() as u64, &mut batch);
        batch.put(columns);
        batch.freeze()
    }

    /// How much later the batch may be so that it is recent and still lies within one UTC day.
    fn shift_ns(&self, wanted_ns: i64) -> i64 {
        let (first, last) = (
            self.first_ns.saturating_add_signed(wanted_ns),
            self.last_ns.saturating_add_signed(wanted_ns),
        );
        if first / DAY_NS == last / DAY_NS {
            return wanted_ns;
        }
        wanted_ns + (last / DAY_NS * DAY_NS - first) as i64
    }
}

/// `Batch.connections` in v1.proto.
const CONNECTIONS_TAG: u32 = 10;

/// Numbers as protobuf packs `sint64`.
fn zigzag(numbers: &[i64]) -> Bytes {
    let mut bytes = BytesMut::with_capacity(numbers.len() * 3 + 10);
    for number in numbers {
        encode_varint(((number << 1) ^ (number >> 63)) as u64, &mut bytes);
    }
    bytes.freeze()
}

struct Agent {
    number: u32,
    epoch: u64,
    recording: Arc<Recording>,
    /// The batch that it begins with.
    first: usize,
    until: Option<Instant>,
    /// Bytes that all agents gave to their sockets.
    wire: Arc<AtomicU64>,
}

impl Agent {
    async fn run(self, collector: String) -> anyhow::Result<Sent> {
        let wire = self.wire.clone();
        let dial = tower::service_fn(move |_| {
            let (collector, wire) = (collector.clone(), wire.clone());
            async move {
                let stream = TcpStream::connect(collector).await?;
                stream.set_nodelay(true)?;
                io::Result::Ok(TokioIo::new(Counted { stream, bytes: wire }))
            }
        });
        let channel = Endpoint::from_static("http://collector")
            .initial_stream_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .connect_with_connector(dial)
            .await
            .context("cannot connect to the collector")?;
        let (outgoing, queue) = mpsc::channel(SEND_QUEUE);
        outgoing.try_send(message(agent_message::Body::Hello(self.hello())))?;
        let answers = UplinkClient::new(channel)
            .deliver(ReceiverStream::new(queue))
            .await?;
        self.exchange(outgoing, answers.into_inner()).await
    }

    fn hello(&self) -> Hello {
        Hello {
            protocol: PROTOCOL,
            agent_id: format!("replay-{}", self.number),
            epoch: self.epoch,
            node: format!("replay-{}", self.number),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            boot_id: self.boot_id(),
            observed_netns: "all".to_owned(),
            ..Hello::default()
        }
    }

    fn boot_id(&self) -> String {
        format!("00000000-0000-4000-8000-{:012}", self.number)
    }

    async fn exchange(
        &self,
        outgoing: mpsc::Sender<AgentMessage>,
        mut answers: tonic::Streaming<holdfast_proto::v1::CollectorMessage>,
    ) -> anyhow::Result<Sent> {
        let welcome = answers
            .message()
            .await?
            .context("the collector closed the connection")?;
        let Some(collector_message::Body::Welcome(welcome)) = welcome.body else {
            bail!("no welcome: {welcome:?}");
        };
        let mut window = welcome.window.unwrap_or_default();
        let boot_id = self.boot_id();
        let mut flight = Flight::default();
        let mut sent = Sent::default();
        let mut tick = tokio::time::interval(STATUS_INTERVAL);
        let mut status = None;
        let mut position = 0;
        loop {
            let is_over = match self.until {
                Some(until) => Instant::now() >= until,
                None => position == self.recording.batches.len(),
            };
            if is_over && flight.batches.is_empty() {
                return Ok(sent);
            }
            let sends_batch = !is_over && flight.has_room(&window);
            tokio::select! {
                answer = answers.message() => {
                    let answer = answer?.context("the collector closed the connection")?;
                    match answer.body {
                        Some(collector_message::Body::Acknowledgement(acknowledgement)) => {
                            for sequence in acknowledgement.sequences {
                                let (rows, bytes) = flight.answered(sequence).context("an answer to nothing")?;
                                sent.batches += 1;
                                sent.rows += u64::from(rows);
                                sent.bytes += bytes;
                            }
                        }
                        Some(collector_message::Body::Refusal(refusal)) => {
                            bail!("batch {} was refused: {}", refusal.sequence, refusal.reason);
                        }
                        Some(collector_message::Body::Window(new)) => window = new,
                        _ => {}
                    }
                }
                permit = outgoing.reserve(), if status.is_some() || sends_batch => {
                    let permit = permit.context("the collector closed the connection")?;
                    if let Some(status) = status.take() {
                        permit.send(message(agent_message::Body::Status(status)));
                        continue;
                    }
                    let (sealed, rows) = self.batch(position, &boot_id);
                    position += 1;
                    let sequence = sealed.sequence;
                    let message = message(agent_message::Body::Batch(sealed));
                    flight.sent(sequence, rows, message.encoded_len() as u64);
                    permit.send(message);
                }
                _ = tick.tick() => status = Some(self.status(&sent, &flight)),
            }
        }
    }

    /// The next batch, and its rows. `position` counts from where the agent began.
    fn batch(&self, position: usize, boot_id: &str) -> (SealedBatch, u32) {
        let at = self.first + position;
        let batches = &self.recording.batches;
        let (recorded, repetition) = (&batches[at % batches.len()], at / batches.len());
        let ends_at_ns = if self.until.is_some() {
            recorded.last_ns
        } else {
            self.recording.last_ns
        };
        let shift_ns = recorded.shift_ns(wall_ns() as i64 - ends_at_ns as i64);
        let sequence = position as u64 + 1;
        let encoded = recorded.again(
            sequence,
            boot_id,
            shift_ns,
            repetition as i64 * self.recording.cookies,
        );
        let sealed = SealedBatch {
            epoch: self.epoch,
            stream: Stream::Connections.into(),
            sequence,
            checksum: crc32fast::hash(&encoded),
            encoded,
        };
        (sealed, recorded.rows)
    }

    fn status(&self, sent: &Sent, flight: &Flight) -> Status {
        let made = sent.rows + flight.rows;
        let counters = StreamCounters {
            stream: Stream::Connections.into(),
            netns: self.recording.batches[self.first].netns,
            opened: made,
            closed: made,
            received: made,
            unacknowledged: flight.rows,
            acknowledged: sent.rows,
            ..StreamCounters::default()
        };
        Status {
            observed_at_ns: wall_ns(),
            epoch: self.epoch,
            streams: vec![counters],
            ..Status::default()
        }
    }
}

/// What has no answer yet.
#[derive(Default)]
struct Flight {
    /// Rows and bytes by sequence.
    batches: HashMap<u64, (u32, u64)>,
    bytes: u64,
    rows: u64,
}

impl Flight {
    fn has_room(&self, window: &Window) -> bool {
        self.batches.is_empty() || (self.batches.len() < window.batches as usize && self.bytes < window.bytes)
    }

    fn sent(&mut self, sequence: u64, rows: u32, bytes: u64) {
        self.batches.insert(sequence, (rows, bytes));
        self.bytes += bytes;
        self.rows += u64::from(rows);
    }

    fn answered(&mut self, sequence: u64) -> Option<(u32, u64)> {
        let (rows, bytes) = self.batches.remove(&sequence)?;
        self.bytes -= bytes;
        self.rows -= u64::from(rows);
        Some((rows, bytes))
    }
}

/// A connection that counts what is written to it.
struct Counted {
    stream: TcpStream,
    bytes: Arc<AtomicU64>,
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, buffer);
        if let Poll::Ready(Ok(bytes)) = written {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        written
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, buffers);
        if let Poll::Ready(Ok(bytes)) = written {
            self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn message(body: agent_message::Body) -> AgentMessage {
    AgentMessage { body: Some(body) }
}

fn wall_ns() -> u64 {
    holdfast_agent::clock::wall_now().as_nanos() as u64
}

/// CPU time of this process.
fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), time.tv_nsec as u32)
}
