//! The part of this agent in runs: takes what the collector orders, asks this node's consent, and has it done on threads
//! that have nothing to do with delivery. One run at a time: two would be each other's noise.
//!
//! A run lives as long as the collector says that it is wanted. Whatever ends the connection ends it too.

use std::{
    sync::{Arc, atomic::Ordering},
    thread,
    time::Duration,
};

use holdfast_proto::v1::{LoadPlan, RunEvent, RunOrder, RunReady, RunRefusal, run_event, run_order};
use tokio::sync::mpsc;

use crate::load::{
    consent::Consent,
    order,
    run::{End, Prepared, Report, generate, prepare},
    tally::Tally,
    worker::{Shared, monotonic_ns},
};

/// Events that wait for the connection. A run that nobody hears of is over before there are more.
const EVENTS: usize = 64;

/// The agent's clock against the collector's, and how far off that may be, in nanoseconds; see
/// [`crate::clock_offset::ClockOffset::best`].
type Offset = Option<(i64, u64)>;

/// Runs of this agent.
pub struct Runs {
    consent: Consent,
    events: mpsc::Sender<RunEvent>,
    queue: mpsc::Receiver<RunEvent>,
    current: Option<Current>,
}

/// A run that was prepared.
struct Current {
    run_id: String,
    shared: Arc<Shared>,
    /// Until it is started.
    prepared: Option<(Prepared, Duration)>,
    /// Of the thread that makes it.
    generator: Option<thread::JoinHandle<()>>,
    prepared_ns: u64,
}

/// A run that was prepared and not started is forgotten after this, in nanoseconds: its collector is gone.
const FORGOTTEN_NS: u64 = 30_000_000_000;

impl Current {
    fn is_over(&self) -> bool {
        match &self.generator {
            Some(generator) => generator.is_finished(),
            None => monotonic_ns().saturating_sub(self.prepared_ns) > FORGOTTEN_NS,
        }
    }
}

impl Runs {
    pub fn new(consent: Consent) -> Self {
        let (events, queue) = mpsc::channel(EVENTS);
        Self {
            consent,
            events,
            queue,
            current: None,
        }
    }

    /// What there is to tell the collector, as it comes.
    pub async fn next(&mut self) -> RunEvent {
        // It never ends: one end of the channel is ours.
        match self.queue.recv().await {
            Some(event) => event,
            None => std::future::pending().await,
        }
    }

    /// Does what the collector orders. `wall_now_ns` is the agent's own clock.
    pub fn take(&mut self, order: RunOrder, offset: Offset, wall_now_ns: u64) {
        let RunOrder { run_id, order } = order;
        match order {
            Some(run_order::Order::Prepare(plan)) => match self.prepare(&run_id, &plan) {
                Ok(threads) => {
                    let (clock_offset_ns, clock_error_ns) = offset.unwrap_or((0, u64::MAX));
                    self.tell(
                        &run_id,
                        run_event::Event::Ready(RunReady {
                            clock_offset_ns,
                            clock_error_ns,
                            pid: std::process::id(),
                            threads: threads as u32,
                        }),
                    );
                }
                Err(reason) => {
                    tracing::warn!(run = run_id, "a run is refused: {reason}");
                    self.tell(&run_id, run_event::Event::Refusal(RunRefusal { reason }));
                }
            },
            Some(run_order::Order::Start(start)) => {
                // Both at once: the clocks' difference now is what counts.
                let start_wall_ns = start.at_ns.saturating_add_signed(offset.unwrap_or_default().0);
                let ahead_ns = start_wall_ns.saturating_sub(wall_now_ns);
                self.start(&run_id, monotonic_ns() + ahead_ns);
            }
            Some(run_order::Order::Beat(_)) => {
                if let Some(current) = self.of(&run_id) {
                    current.shared.beat_ns.store(monotonic_ns(), Ordering::Relaxed);
                }
            }
            Some(run_order::Order::Stop(_)) => {
                if let Some(current) = self.of(&run_id) {
                    current.shared.stop.store(true, Ordering::Relaxed);
                    if current.generator.is_none() {
                        self.current = None;
                    }
                }
            }
            // Something that a newer collector says; it hears nothing of us and gives up.
            None => {}
        }
    }

    fn of(&mut self, run_id: &str) -> Option<&mut Current> {
        self.current.as_mut().filter(|current| current.run_id == run_id)
    }

    fn prepare(&mut self, run_id: &str, plan: &LoadPlan) -> Result<u64, String> {
        if let Some(current) = self.current.as_ref().filter(|current| !current.is_over()) {
            return Err(format!(
                "this agent is busy with the run {}: wait for it, or stop it with holdfast run stop {}",
                current.run_id, current.run_id
            ));
        }
        let (plan, interval) = order::plan(plan).map_err(|nonsense| nonsense.to_string())?;
        self.consent.check(&plan).map_err(|refused| refused.to_string())?;
        let mut prepared = prepare(plan).map_err(|nonsense| nonsense.to_string())?;
        prepared.at_once = prepared.at_once.min(self.consent.connections);
        let threads = prepared.threads;
        self.current = Some(Current {
            run_id: run_id.to_owned(),
            shared: Arc::default(),
            prepared: Some((prepared, interval)),
            generator: None,
            prepared_ns: monotonic_ns(),
        });
        Ok(threads)
    }

    fn start(&mut self, run_id: &str, start_ns: u64) {
        let caps = self.consent.caps;
        let events = self.events.clone();
        let Some(current) = self.of(run_id) else { return };
        let Some((prepared, interval)) = current.prepared.take() else {
            return;
        };
        current.shared.beat_ns.store(monotonic_ns(), Ordering::Relaxed);
        let shared = Arc::clone(&current.shared);
        let id = run_id.to_owned();
        tracing::info!(run = id, targets = ?prepared.plan.targets, "load begins");
        let generator = thread::Builder::new().name("load".into()).spawn(move || {
            let send = |report: &Report| {
                if let Some(end) = &report.end {
                    tracing::info!(run = id, ?end, "load ends");
                }
                let event = run_event::Event::Report(order::report(report));
                // When there is no room the collector has heard nothing for a minute, and the run is given up.
                let _ = events.try_send(event_of(&id, event));
            };
            let made = generate(&prepared, caps, start_ns, interval, &shared, |report| {
                send(&report);
            });
            if let Err(error) = made {
                send(&Report {
                    elapsed: Duration::ZERO,
                    tally: Tally::default(),
                    open: 0,
                    most_open: 0,
                    cpu: Duration::ZERO,
                    first_ns: None,
                    end: Some(End::Failed(format!("no thread can be started: {error}"))),
                });
            }
        });
        match generator {
            Ok(generator) => current.generator = Some(generator),
            Err(error) => {
                let reason = format!("no thread can be started: {error}");
                self.tell(run_id, run_event::Event::Refusal(RunRefusal { reason }));
                self.current = None;
            }
        }
    }

    fn tell(&self, run_id: &str, event: run_event::Event) {
        let _ = self.events.try_send(event_of(run_id, event));
    }
}

impl Drop for Runs {
    fn drop(&mut self) {
        if let Some(current) = &self.current {
            current.shared.stop.store(true, Ordering::Relaxed);
        }
    }
}

fn event_of(run_id: &str, event: run_event::Event) -> RunEvent {
    RunEvent {
        run_id: run_id.to_owned(),
        event: Some(event),
    }
}
