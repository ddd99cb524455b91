//! A run as it is asked for, confirmed, and told while it is made: what `load tcp` and `load http` have in common.

use std::io::{self, BufRead, IsTerminal, Write};
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::time::Duration;

use anyhow::anyhow;
use holdfast_proto::v1::query_client::QueryClient;
use holdfast_proto::v1::{
    LoadCount, LoadCounts, LoadLoop, LoadMesh, LoadMessage, LoadPlan, LoadRequest, LoadStage, LoadStages,
    RunProgress, RunStop, load_message, load_plan, run_update,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::find_max::{Search, Shown};
use super::stages::{Rate, Stages};
use super::view::{Subject, View};
use crate::cli::Failure;
use crate::cli::client::Reach;
use crate::cli::runs::{Row, report};
use crate::config::Span;
use crate::runs::counts;
use crate::runs::expect::Expectation;
use crate::runs::planned;
use crate::runs::result::{decode, human};

/// What every kind of load takes.
#[derive(Debug, clap::Args)]
pub(super) struct Asked {
    /// So many a second instead, such as 500/s
    #[arg(long, value_name = "N/s", allow_hyphen_values = true, conflicts_with_all = ["stages", "concurrency"])]
    rate: Option<Rate>,

    /// Find the highest rate at which this holds and fewer than 0.1% fail, or of connections are lost (unless --expect says of
    /// these otherwise): run after run, each --for so long [default: 5s], beginning with --rate [default: 100/s]
    #[arg(long, value_name = "CONDITION", value_parser = condition, conflicts_with_all = ["stages", "concurrency"])]
    find_max: Option<String>,

    /// Rates that change, such as '0 -> 5000/s in 2m, hold 5m'
    #[arg(long, value_name = "STAGES", allow_hyphen_values = true, conflicts_with_all = ["concurrency", "duration"])]
    stages: Option<Stages>,

    /// So many at once instead, the next as soon as one is done
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one(), requires = "duration")]
    concurrency: Option<u64>,

    /// How long --rate, --concurrency, or a run of --find-max lasts
    #[arg(
        long = "for",
        id = "duration",
        value_name = "TIME",
        allow_hyphen_values = true
    )]
    duration: Option<Span>,

    /// How often there is a line, or what a terminal shows is drawn again
    #[arg(
        short,
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        default_value = "1s"
    )]
    interval: Span,

    /// A local address of the agents to connect from; each takes those in turn that are its own
    #[arg(long, value_name = "IP")]
    source: Vec<IpAddr>,

    /// A node to make the load from; may be given several times
    #[arg(long, value_name = "NODE")]
    node: Vec<String>,

    /// A label of the nodes to make the load from; may be given several times
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    from: Vec<(String, String)>,

    /// So many agents of those [default: one; with --node or --from: all of them]
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = whole::<u32>(1..=u32::MAX.into()))]
    agents: Option<u32>,

    /// Go on with the others if an agent is lost or reaches one of its caps, which else ends the run; unknown it is all the same
    #[arg(long)]
    keep_going: bool,

    /// What the run must show; may be given several times
    #[arg(long, value_name = "CONDITION", value_parser = condition)]
    expect: Vec<String>,

    /// Do not ask before load is made
    #[arg(short, long)]
    yes: bool,

    /// Say more: what is asked of the agents, and the latency of each interval, in a line each, also on a terminal
    #[arg(short, long)]
    debug: bool,

    #[command(flatten)]
    reach: Reach,
}

/// What is done with each connection, by every load of TCP connections.
#[derive(Debug, clap::Args)]
pub(super) struct Each {
    /// How long connections are kept open [default: until all are decided; with a rate or concurrency: not at all]
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    hold: Option<Span>,

    /// How long a handshake, or an answer, may take
    #[arg(
        short = 't',
        long,
        value_name = "TIME",
        allow_hyphen_values = true,
        default_value = "5s"
    )]
    dial_timeout: Span,

    /// Send so many bytes on each connection, and expect them back
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true, value_parser = whole::<u32>(1..=65_536))]
    payload: Option<u32>,

    /// How often the payload goes there and back
    #[arg(long, value_name = "N", allow_hyphen_values = true, value_parser = at_least_one(), default_value_t = 1, requires = "payload")]
    rounds: u64,
}

impl Each {
    /// The part of a plan that it says.
    pub(super) fn plan(&self) -> Result<LoadPlan, Failure> {
        Ok(LoadPlan {
            hold_ns: self.hold.map_or(Ok(0), |hold| nanoseconds("--hold", hold))?,
            timeout_ns: within("--dial-timeout", self.dial_timeout)?,
            payload_bytes: self.payload.unwrap_or(0),
            rounds: self.rounds,
            ..LoadPlan::default()
        })
    }
}

/// What is asked for.
pub(super) struct Load {
    /// Without its arrivals.
    pub(super) plan: LoadPlan,
    /// The targets as they were written, and as they are shown: with their addresses.
    pub(super) targets: Vec<String>,
    pub(super) named: Vec<String>,
    /// Of which there are so many, with such a pause, if nothing else is said.
    pub(super) count: LoadCount,
    /// What is counted: connections, or requests.
    pub(super) of_what: &'static str,
    /// Then the targets are the agents themselves.
    pub(super) mesh: Option<LoadMesh>,
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no label; write KEY=VALUE")),
    }
}

/// What a run can show, as it is written; the collector reads it again.
fn condition(text: &str) -> Result<String, String> {
    Expectation::parse(text).map(|_| text.to_owned())
}

/// The address of HOST:PORT.
pub(super) async fn resolve(target: &str) -> Result<SocketAddr, Failure> {
    let port = target.rsplit_once(':').map(|(_, port)| port);
    if !port.is_some_and(|port| port.parse::<u16>().is_ok_and(|port| port > 0)) {
        return Err(Failure::Usage(match port {
            Some(port) if port.parse::<i64>().is_ok() => anyhow!(
                "the target `{target}` has the port {port}, and ports are from 1 to 65535; write HOST:PORT"
            ),
            _ => anyhow!("the target `{target}` has no port; write HOST:PORT"),
        }));
    }
    let found = tokio::net::lookup_host(target).await;
    let mut found = found.map_err(|error| {
        Failure::Usage(anyhow!(
            "cannot resolve `{target}`: {error}; names are resolved on this machine, not by the agents: look at the name and at what \
             getent hosts says of it here, or give an address as the agents reach it, like 192.0.2.7:80"
        ))
    })?;
    found
        .next()
        .ok_or_else(|| Failure::Usage(anyhow!("`{target}` has no address; give one, like 192.0.2.7:80")))
}

/// The value of an option, as it travels.
pub(super) fn nanoseconds(option: &str, Span(span): Span) -> Result<u64, Failure> {
    u64::try_from(span.as_nanos()).map_err(|_| {
        Failure::Usage(anyhow!(
            "{option} {} is too long: at most 584 years",
            humantime::format_duration(span)
        ))
    })
}

/// The same of one in which something has to be done.
pub(super) fn within(option: &str, Span(span): Span) -> Result<u64, Failure> {
    if span.is_zero() {
        return Err(Failure::Usage(anyhow!(
            "{option} 0s is no time to do anything in: write more than 0, like 500ms"
        )));
    }
    nanoseconds(option, Span(span))
}

impl Asked {
    fn arrivals(&self, count: LoadCount) -> Result<load_plan::Arrivals, Failure> {
        let duration_ns = self
            .duration
            .map_or(Ok(0), |duration| within("--for", duration))?;
        Ok(if let Some(Stages(stages)) = &self.stages {
            load_plan::Arrivals::Stages(LoadStages {
                stages: stages.clone(),
            })
        } else if let Some(Rate(rate)) = self.rate {
            let stage = LoadStage {
                from_per_second: rate,
                to_per_second: rate,
                duration_ns,
            };
            load_plan::Arrivals::Stages(LoadStages { stages: vec![stage] })
        } else if let Some(concurrency) = self.concurrency {
            load_plan::Arrivals::Loop(LoadLoop {
                concurrency,
                duration_ns,
            })
        } else {
            load_plan::Arrivals::Count(count)
        })
    }

    pub(super) fn is_closed_loop(&self) -> bool {
        self.concurrency.is_some()
    }

    /// The sources, from each of which each target can be reached.
    fn sources(&self, targets: &[String]) -> Result<Vec<String>, Failure> {
        let targets = targets
            .iter()
            .filter_map(|target| target.parse::<SocketAddr>().ok());
        for target in targets {
            if let Some(source) = self
                .source
                .iter()
                .find(|source| source.is_ipv4() != target.is_ipv4())
            {
                return Err(Failure::Usage(anyhow!(
                    "{target} cannot be reached from the source {source}: one is IPv4, the other IPv6"
                )));
            }
        }
        Ok(self.source.iter().map(ToString::to_string).collect())
    }

    /// A node has one value of a label, so no node has two.
    fn check_labels(&self) -> Result<(), Failure> {
        for (at, (key, value)) in self.from.iter().enumerate() {
            let mut earlier = self.from[..at].iter();
            if let Some((_, other)) = earlier.find(|(earlier, other)| earlier == key && other != value) {
                return Err(Failure::Usage(anyhow!(
                    "no node has both {key}={other} and {key}={value}, and --from takes those that have all: name the nodes with --node, \
                     or give them a label that they share"
                )));
            }
        }
        Ok(())
    }

    fn request(&self, load: &Load) -> Result<LoadRequest, Failure> {
        if self.duration.is_some()
            && self.rate.is_none()
            && self.concurrency.is_none()
            && self.find_max.is_none()
        {
            return Err(Failure::Usage(anyhow!(
                "--for needs --rate or --concurrency; --hold keeps connections open"
            )));
        }
        if self.rate.is_some() && self.duration.is_none() && self.find_max.is_none() {
            return Err(Failure::Usage(anyhow!("--rate needs --for, how long it lasts")));
        }
        if self.interval.0 < Duration::from_millis(100) {
            return Err(Failure::Usage(anyhow!(
                "--interval {} is too short: at least 100ms",
                humantime::format_duration(self.interval.0)
            )));
        }
        if load.mesh.is_some() && self.agents.is_some() {
            return Err(Failure::Usage(anyhow!(
                "a mesh is of all agents of its groups; --from and --node take some of them"
            )));
        }
        let arrivals = self.arrivals(load.count)?;
        let plan = LoadPlan {
            arrivals: Some(arrivals),
            sources: self.sources(&load.plan.targets)?,
            ..load.plan.clone()
        };
        let is_of_stages = matches!(plan.arrivals, Some(load_plan::Arrivals::Stages(_)));
        if is_of_stages && self.find_max.is_none() && planned(&plan) == 0 {
            let option = if self.stages.is_some() {
                "--stages"
            } else {
                "--rate"
            };
            return Err(Failure::Usage(anyhow!(
                "{option} comes to no attempt at all in its time: ask for a higher rate, or for longer"
            )));
        }
        for text in self.expect.iter().chain(&self.find_max) {
            let expectation = Expectation::parse(text).map_err(|why| Failure::Usage(anyhow!(why)))?;
            expectation
                .check(&plan)
                .map_err(|why| Failure::Usage(anyhow!(why)))?;
        }
        self.check_labels()?;
        let is_choice = !self.node.is_empty() || !self.from.is_empty() || load.mesh.is_some();
        Ok(LoadRequest {
            plan: Some(plan),
            nodes: self.node.clone(),
            labels: self.from.iter().cloned().collect(),
            agents: self.agents.unwrap_or(u32::from(!is_choice)),
            interval_ns: nanoseconds("--interval", self.interval)?,
            expect: self.expect.clone(),
            targets: load.targets.clone(),
            mesh: load.mesh.clone(),
            keep_going: self.keep_going,
        })
    }

    fn describe(&self, load: &Load) -> String {
        if let Some(condition) = &self.find_max {
            return format!("the highest rate at which {condition}");
        }
        let of_what = load.of_what;
        match (&self.stages, self.rate, self.concurrency) {
            (Some(Stages(stages)), ..) => format!("{} stages", stages.len()),
            (_, Some(Rate(rate)), _) => format!("{rate} {of_what}/s"),
            (.., Some(concurrency)) => format!("{concurrency} {of_what} at once"),
            _ => format!(
                "{} {of_what}, one every {:?}",
                load.count.connections,
                Duration::from_nanos(load.count.pause_ns)
            ),
        }
    }
}

/// Which agents the collector chooses from, in words.
fn chosen(request: &LoadRequest) -> String {
    if let Some(mesh) = &request.mesh {
        let groups: Vec<_> = mesh
            .groups
            .iter()
            .map(|group| format!("{}={group}", mesh.label))
            .collect();
        return format!("all agents of {}, each to each other", groups.join(", "));
    }
    let mut of_which = String::new();
    if !request.nodes.is_empty() {
        of_which += &format!(" of {}", request.nodes.join(", "));
    }
    if !request.labels.is_empty() {
        let mut labels: Vec<_> = request
            .labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        labels.sort_unstable();
        of_which += &format!(" with {}", labels.join(", "));
    }
    match request.agents {
        0 => format!("all agents{of_which}"),
        1 => format!("one agent{of_which}"),
        number => format!("{number} agents{of_which}"),
    }
}

/// Nobody makes load by mistake: a person says yes, a script says --yes.
fn confirm(question: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::Usage(anyhow!(
            "this is no terminal, so nobody can say yes to {question}: give --yes"
        )));
    }
    let mut stderr = io::stderr().lock();
    let _ = write!(
        stderr,
        "{question}\nDo this only to what is yours. Type yes to go on: "
    );
    let _ = stderr.flush();
    let mut answer = String::new();
    io::stdin().lock().read_line(&mut answer)?;
    if answer.trim().eq_ignore_ascii_case("yes") || answer.trim().eq_ignore_ascii_case("y") {
        return Ok(());
    }
    Err(Failure::Usage(anyhow!("nothing was done")))
}

/// Makes the load that is asked for, once somebody has agreed.
pub(super) async fn make(asked: &Asked, load: &Load) -> Result<(), Failure> {
    let request = asked.request(load)?;
    let what = format!(
        "load on {}: {}, from {}",
        load.named.join(", "),
        asked.describe(load),
        chosen(&request)
    );
    if asked.yes {
        crate::cli::tell(&what);
    } else {
        confirm(&what)?;
    }
    if asked.debug {
        crate::cli::tell(&format!("asked of the agents: {:?}", request.plan));
    }
    let client = asked.reach.connect().await?;
    // From here on Ctrl-C stops the load, and the report is told all the same.
    let interrupts = signal(SignalKind::interrupt())
        .map_err(|error| Failure::Undone(anyhow!(error).context("cannot listen for Ctrl-C")))?;
    let mut desk = Desk {
        asked,
        client,
        interrupts,
    };
    if let Some(condition) = &asked.find_max {
        return find_max(&mut desk, request, condition).await;
    }
    let row = match one(&mut desk, request).await? {
        Made::Run(row) => row,
        Made::Refused(why) => return Err(why),
    };
    match row.verdict.as_str() {
        "holds" => Ok(()),
        "violated" => Err(Failure::DoesNotHold),
        _ => Err(Failure::Unknown),
    }
}

/// Where runs are made from.
struct Desk<'a> {
    asked: &'a Asked,
    client: QueryClient<Channel>,
    /// Ctrl-C. What comes while something else is done is not lost.
    interrupts: Signal,
}

/// What came of a run.
enum Made {
    Run(Box<Row>),
    /// It did not begin: the agents may not, or cannot.
    Refused(Failure),
}

/// Makes one run, and tells it as it is made.
async fn one(desk: &mut Desk<'_>, request: LoadRequest) -> Result<Made, Failure> {
    let Desk {
        asked,
        client,
        interrupts,
    } = desk;
    let (say, said) = mpsc::channel(2);
    let message = |body| LoadMessage { body: Some(body) };
    let lasts_ns = lasts_ns(&request);
    let targets = request.targets.clone();
    let counted = Counted::of(request.plan.as_ref());
    // Room for it is certain: the channel is new.
    let _ = say.try_send(message(load_message::Body::Begin(request)));
    let updates = tokio::select! {
        updates = client.load(ReceiverStream::new(said)) => updates,
        // The collector stops what its caller leaves.
        _ = interrupts.recv() => return Err(Failure::Undone(anyhow!("stopped before it began: no load was made"))),
    };
    let mut updates = updates
        .map_err(|status| asked.reach.failure(&status))?
        .into_inner();
    let mut is_stopping = false;
    let mut run_id = String::new();
    // Cleared whichever way this is left.
    let mut view: Option<View> = None;
    // Why it is told no further; it goes on, for who leaves stops it.
    let mut untold: Option<io::Error> = None;
    let tell = |view: &mut Option<View>, line: &str| match view {
        Some(view) => view.say(line),
        None => crate::cli::tell(line),
    };
    loop {
        let update = tokio::select! {
            update = updates.message() => match update {
                Ok(update) => update,
                Err(status) if !run_id.is_empty() => return Err(lost(&asked.reach, &status, &run_id)),
                Err(status) if status.code() == Code::FailedPrecondition => {
                    return Ok(Made::Refused(asked.reach.failure(&status)));
                }
                Err(status) => return Err(asked.reach.failure(&status)),
            },
            _ = interrupts.recv() => {
                if is_stopping {
                    // Twice is meant: the collector stops the run when we are gone.
                    return Err(Failure::Undone(anyhow!("interrupted before the report")));
                }
                is_stopping = true;
                tell(&mut view, "stopping; once more to leave without the report");
                let _ = say.try_send(message(load_message::Body::Stop(RunStop {})));
                continue;
            }
        };
        match update.and_then(|update| update.body) {
            Some(run_update::Body::Begun(begun)) => {
                crate::cli::tell(&format!("run {} from {}", begun.run_id, begun.nodes.join(", ")));
                if !asked.reach.json && !asked.debug {
                    view = View::open(Subject {
                        run_id: begun.run_id.clone(),
                        nodes: begun.nodes,
                        targets: targets.clone(),
                        lasts_ns,
                    });
                }
                run_id = begun.run_id;
            }
            Some(run_update::Body::Progress(progress)) if untold.is_none() => {
                let told = match &mut view {
                    Some(view) => view.show(progress),
                    // Before anybody has reported there is nothing to tell.
                    None if asked.reach.json || progress.elapsed_ns == 0 => Ok(()),
                    None => write(&line(&progress, counted, asked.debug)),
                };
                if let Err(error) = told {
                    if error.kind() == io::ErrorKind::BrokenPipe {
                        return Err(Failure::NobodyReads);
                    }
                    view = None;
                    crate::cli::tell(&format!(
                        "cannot write the output: {error}; the run {run_id} goes on and is told no further, Ctrl-C stops it"
                    ));
                    untold = Some(error);
                }
            }
            Some(run_update::Body::Progress(_)) => {}
            Some(run_update::Body::Result(result)) => {
                drop(view.take());
                let row = Row::parse(&result.json)?;
                let text = if asked.reach.json {
                    format!("{}\n", result.json)
                } else {
                    report(&row, &row.summary()?)
                };
                untold
                    .map_or_else(|| write(&text), Err)
                    .map_err(|error| not_told(error, &row))?;
                return Ok(Made::Run(Box::new(row)));
            }
            None => {
                return Err(Failure::Undone(anyhow!(
                    "the collector at {} ended the run without a result; holdfast runs tells what is known",
                    asked.reach.collector
                )));
            }
        }
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// A run that cannot be told here: the disk may be full. What came of it is stored all the same, if the store has room.
fn not_told(error: io::Error, row: &Row) -> Failure {
    let run_id = &row.run_id;
    let where_it_is = if row.is_stored {
        format!("its result is stored, holdfast run show {run_id} has it")
    } else {
        // The last reason is why.
        format!(
            "its verdict is {}, and {}",
            row.verdict,
            row.reasons
                .last()
                .map_or("its result is not stored", String::as_str)
        )
    };
    match Failure::from(error) {
        Failure::Undone(error) => Failure::Undone(error.context(format!(
            "the run {run_id} is over and cannot be told; {where_it_is}"
        ))),
        failure => failure,
    }
}

/// A count of something that there has to be.
pub(in crate::cli) fn at_least_one() -> impl Fn(&str) -> Result<u64, String> + Clone {
    whole(1..=u64::MAX)
}

/// A whole number of a range, which is told to whoever writes another, or none.
pub(super) fn whole<T: TryFrom<u64>>(
    range: RangeInclusive<u64>,
) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        let number = number.and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| match (range.start(), range.end()) {
            (first, &u64::MAX) => format!("`{text}` is no whole number from {first} on"),
            (first, last) => format!("`{text}` is no whole number from {first} to {last}"),
        })
    }
}

/// How long attempts are made, where their number is not known.
fn lasts_ns(request: &LoadRequest) -> Option<u64> {
    match request.plan.as_ref()?.arrivals.as_ref()? {
        load_plan::Arrivals::Loop(closed) => Some(closed.duration_ns),
        _ => None,
    }
}

/// A run under way went on without us, or ended with its collector.
fn lost(reach: &Reach, status: &Status, run_id: &str) -> Failure {
    match reach.failure(status) {
        Failure::Undone(error) => Failure::Undone(error.context(format!(
            "no more is heard of the run {run_id}; if its collector is gone its agents stop within a second, and holdfast run show \
             {run_id} tells what is known"
        ))),
        failure => failure,
    }
}

/// The first rate of a search, connections a second, and how long a run of it lasts, where nothing else is said.
const FIRST_RATE: f64 = 100.0;
const STEP: Duration = Duration::from_secs(5);

/// More is never asked for, connections a second; agents allow less.
const HIGHEST_RATE: f64 = 10_000_000.0;

/// What is expected at each rate: what was asked for, and where that says nothing of them, hardly any errors and losses. One that answers
/// nobody is fast.
fn expected_of_each(condition: &str, asked: &[String], is_of_connections: bool) -> Vec<String> {
    let mut expect = vec![condition.to_owned()];
    expect.extend_from_slice(asked);
    let says = |word: &str| expect.iter().any(|text| text.contains(word));
    let (of_errors, of_losses) = (
        says("error") || says("established"),
        says("lost") || says("closed"),
    );
    if !of_errors {
        expect.push("error_ratio < 0.1%".into());
    }
    if is_of_connections && !of_losses {
        expect.push("lost_ratio < 0.1%".into());
    }
    expect
}

/// Makes runs until the highest rate is known at which the condition holds.
async fn find_max(desk: &mut Desk<'_>, request: LoadRequest, condition: &str) -> Result<(), Failure> {
    let asked = desk.asked;
    let is_of_connections = request
        .plan
        .as_ref()
        .is_some_and(|plan| plan.http.is_none() && plan.udp.is_none());
    let expect = expected_of_each(condition, &asked.expect, is_of_connections);
    let duration_ns = nanoseconds("--for", asked.duration.unwrap_or(Span(STEP)))?;
    // A run has at least one attempt.
    let lowest = (1e9 / duration_ns.max(1) as f64).ceil().max(1.0);
    let mut search = Search::new(lowest, HIGHEST_RATE);
    let mut next = Some(asked.rate.map_or(FIRST_RATE, |Rate(rate)| rate));
    let mut holds_in = String::new();
    let mut fails_in = (String::new(), String::new());
    while let Some(rate) = next {
        let stage = LoadStage {
            from_per_second: rate,
            to_per_second: rate,
            duration_ns,
        };
        let mut request = request.clone();
        request.expect.clone_from(&expect);
        if let Some(plan) = &mut request.plan {
            plan.arrivals = Some(load_plan::Arrivals::Stages(LoadStages { stages: vec![stage] }));
        }
        crate::cli::tell(&format!("trying {rate}/s"));
        let row = match one(desk, request).await {
            Ok(Made::Run(row)) => row,
            // More than an agent allows or can: beyond it nothing is known.
            Ok(Made::Refused(Failure::Undone(error))) if search.holds.is_some() => {
                fails_in = (String::new(), format!("{error:#}"));
                next = search.next(rate, Shown::Unknown);
                continue;
            }
            Ok(Made::Refused(why)) => return Err(why),
            // What was found is told, also where the search cannot go on.
            Err(why) => {
                if search.holds.is_some() {
                    let _ = conclude(asked, &search, &holds_in, &fails_in, condition);
                }
                return Err(why);
            }
        };
        if row.state == "stopped" {
            crate::cli::tell("stopped before the search was done");
            return match conclude(asked, &search, &holds_in, &fails_in, condition) {
                Err(failure @ (Failure::NobodyReads | Failure::Undone(_))) => Err(failure),
                _ => Err(Failure::Unknown),
            };
        }
        let shown = match row.verdict.as_str() {
            "holds" => Shown::Holds,
            "violated" => Shown::DoesNotHold,
            _ if row.summary().is_ok_and(|summary| !summary.are_agents_the_limit()) => Shown::Unproven,
            _ => Shown::Unknown,
        };
        if shown == Shown::Holds {
            holds_in = row.run_id;
        } else {
            fails_in = (row.run_id, row.reasons.join("; "));
        }
        next = search.next(rate, shown);
    }
    conclude(asked, &search, &holds_in, &fails_in, condition)
}

/// Says what a search found: the runs are those of the highest rate that holds and of the least that does not, with its reasons.
fn conclude(
    asked: &Asked,
    search: &Search,
    holds_in: &str,
    (fails_in, why): &(String, String),
    condition: &str,
) -> Result<(), Failure> {
    let shown = search.fails.map(|(_, shown)| shown);
    let is_of_the_target = shown == Some(Shown::DoesNotHold);
    let mut stdout = io::stdout();
    if asked.reach.json {
        let found = serde_json::json!({
            "find_max": condition,
            "holds_per_second": search.holds,
            "holds_in": holds_in,
            "fails_per_second": search.fails.map(|(rate, _)| rate),
            "fails_in": fails_in,
            "why": why,
            "limited_by": limit(shown).0,
        });
        writeln!(stdout, "{found}")?;
    } else {
        match search.holds {
            Some(rate) => writeln!(stdout, "=== {condition}: holds at {rate}/s (run {holds_in})")?,
            None => writeln!(stdout, "=== {condition}: holds at no rate that was tried")?,
        }
        if let Some((rate, shown)) = search.fails {
            writeln!(stdout, "    {} {rate}/s: {why}", limit(Some(shown)).1)?;
        }
    }
    match search.holds {
        Some(_) if is_of_the_target => Ok(()),
        None if is_of_the_target => Err(Failure::DoesNotHold),
        _ => Err(Failure::Unknown),
    }
}

/// What a search ended at, in a word and in words.
fn limit(shown: Option<Shown>) -> (&'static str, &'static str) {
    match shown {
        Some(Shown::DoesNotHold) => ("target", "not at"),
        Some(Shown::Unproven) => ("unknown", "unknown at"),
        Some(Shown::Unknown | Shown::Holds) | None => ("agents", "the agents were the limit at"),
    }
}

/// What a run is told by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    Connections,
    Requests,
    Datagrams,
}

impl Counted {
    fn of(plan: Option<&LoadPlan>) -> Self {
        match plan {
            Some(plan) if plan.udp.is_some() => Self::Datagrams,
            Some(plan) if plan.http.is_some() => Self::Requests,
            _ => Self::Connections,
        }
    }
}

/// Where a run stands.
fn line(progress: &RunProgress, counted: Counted, debug: bool) -> String {
    let all: LoadCounts = progress.counts.unwrap_or_default();
    let total = if progress.planned > 0 {
        progress.planned
    } else {
        all.started
    };
    let debug = |line: String| match decode(&progress.connect) {
        Ok(Some(times)) if debug => format!(
            "{line}; {} p50 {}, p99 {}\n",
            if counted == Counted::Connections {
                "connect"
            } else {
                "request"
            },
            human(times.value_at_quantile(0.5)),
            human(times.value_at_quantile(0.99))
        ),
        _ => line + "\n",
    };
    let seconds = progress.elapsed_ns as f64 / 1e9;
    let errors = counts::request_errors(&all);
    let under_way = all
        .requests
        .saturating_sub(all.answered + errors + all.request_abandoned);
    if counted == Counted::Datagrams {
        return debug(format!(
            "{seconds:>7.1}s  Datagrams: {}, Under way: {under_way}, Arrived: {}, Lost: {}, Refused: {}, Other errors: {}",
            all.requests,
            all.answered,
            all.request_timed_out,
            all.refused,
            errors.saturating_sub(all.request_timed_out + all.refused),
        ));
    }
    if counted == Counted::Requests {
        return debug(format!(
            "{seconds:>7.1}s  Requests: {}, Under way: {under_way}, Answered: {}, Error: {errors}, Connections: {}, Failed connections: {}",
            all.requests,
            all.answered,
            progress.open,
            counts::errors(&all) + all.insecure,
        ));
    }
    debug(format!(
        "{seconds:>7.1}s  Total: {total}, Dialing: {}, Established: {}, Closed: {}, Error: {}, Not initiated: {}",
        all.started.saturating_sub(counts::decided(&all)),
        progress.open,
        all.closed + counts::lost(&all),
        counts::errors(&all),
        total.saturating_sub(all.started),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_search_expects_neither_errors_nor_losses_unless_it_was_told_what_to_expect_of_them() {
        let check = |condition: &str, asked: &[&str], of_connections, added: &[&str]| {
            let asked: Vec<_> = asked.iter().map(|text| (*text).to_owned()).collect();
            let expect = expected_of_each(condition, &asked, of_connections);
            assert_eq!(expect[1 + asked.len()..], *added, "{condition} {asked:?}");
        };
        let (errors, losses) = ("error_ratio < 0.1%", "lost_ratio < 0.1%");
        check("connect.p99 < 5ms", &[], true, &[errors, losses]);
        check("connect.p99 < 5ms", &["lost < 10"], true, &[errors]);
        check("error_ratio < 1%", &[], true, &[losses]);
        check(
            "connect.p99 < 5ms",
            &["established > 5", "lost_ratio < 1%"],
            true,
            &[],
        );
        check("request.p99 < 5ms", &[], false, &[errors]);
    }

    #[test]
    fn what_is_unknown_for_another_reason_is_no_limit_of_the_agents() {
        assert_eq!(limit(Some(Shown::Unproven)), ("unknown", "unknown at"));
        assert_eq!(limit(Some(Shown::Unknown)).0, "agents");
        assert_eq!(limit(Some(Shown::DoesNotHold)).0, "target");
    }

    #[test]
    fn a_line_says_where_every_connection_is() {
        let progress = RunProgress {
            elapsed_ns: 1_500_000_000,
            counts: Some(LoadCounts {
                started: 60,
                established: 50,
                refused: 4,
                closed: 2,
                reset_by_peer: 1,
                ..LoadCounts::default()
            }),
            open: 47,
            planned: 100,
            connect: Default::default(),
        };
        assert_eq!(
            line(&progress, Counted::Connections, true),
            "    1.5s  Total: 100, Dialing: 6, Established: 47, Closed: 3, Error: 4, Not initiated: 40\n"
        );
        let progress = RunProgress {
            counts: Some(LoadCounts {
                requests: 60,
                answered: 40,
                refused: 5,
                request_timed_out: 4,
                unsent: 1,
                ..LoadCounts::default()
            }),
            ..progress
        };
        assert_eq!(
            line(&progress, Counted::Datagrams, false),
            "    1.5s  Datagrams: 60, Under way: 10, Arrived: 40, Lost: 4, Refused: 5, Other errors: 1\n"
        );
    }
}
