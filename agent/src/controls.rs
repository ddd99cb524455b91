//! What the probes do at the moment: what the node's configuration says, changed by the collector as far as the
//! configuration lets it, less what the budget has given up.

pub mod settings;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use holdfast_agent_ebpf::{control::Control, event::ConnectionRecord};
use holdfast_proto::v1::{OffReason, ProbeReport, ProbeSettings, Stream, Watch};

use self::settings::{Allowed, Key, Settings, Transitions};
use crate::{
    clock,
    overhead::budget::{Step, Watched},
    probes::{ProbeError, Probes},
    syscalls::{
        Mode,
        watch::{Switch, Wanted},
    },
};

/// What is reported, for the threads that report it: the filter for what does not come through the ring, and which looks
/// are wanted.
#[derive(Debug)]
pub struct Shown {
    filter: RwLock<Control>,
    /// Since when looks are reported without a break, nanoseconds since the Unix epoch. Zero: they are not.
    open_connections: AtomicU64,
    listeners: AtomicU64,
    transitions: AtomicBool,
}

impl Default for Shown {
    /// Everything that is reported unless it is asked for.
    fn default() -> Self {
        Self {
            filter: RwLock::new(Control::NONE),
            open_connections: AtomicU64::new(now_ns()),
            listeners: AtomicU64::new(now_ns()),
            transitions: AtomicBool::new(false),
        }
    }
}

impl Shown {
    /// Whether the filter lets a record pass, as the programs decide it.
    pub fn passes(&self, record: &ConnectionRecord) -> bool {
        let control = self.filter.read().unwrap_or_else(PoisonError::into_inner);
        control.is_filtering == 0 || control.filter.passes(record)
    }

    /// Whether looks at open connections are wanted.
    pub fn open_connections(&self) -> bool {
        self.open_connections.load(Ordering::Relaxed) != 0
    }

    /// Whether looks at listeners are wanted.
    pub fn listeners(&self) -> bool {
        self.listeners.load(Ordering::Relaxed) != 0
    }

    /// Whether transitions are streamed.
    pub fn transitions(&self) -> bool {
        self.transitions.load(Ordering::Relaxed)
    }

    fn set(&self, settings: &Settings, control: &Control) {
        self.transitions
            .store(control.is_streaming != 0, Ordering::Relaxed);
        *self.filter.write().unwrap_or_else(PoisonError::into_inner) = *control;
        switch(&self.open_connections, settings.open_connections);
        switch(&self.listeners, settings.listeners);
    }
}

/// What was on before goes on from when it was switched on.
fn switch(since_ns: &AtomicU64, is_on: bool) {
    match (since_ns.load(Ordering::Relaxed), is_on) {
        (0, true) => since_ns.store(now_ns(), Ordering::Relaxed),
        (_, false) => since_ns.store(0, Ordering::Relaxed),
        (_, true) => {}
    }
}

fn now_ns() -> u64 {
    clock::wall_now().as_nanos() as u64
}

/// The switches. They borrow the probes, and do nothing once those are gone.
pub struct Controls {
    probes: Weak<Mutex<Probes>>,
    own: Settings,
    allowed: Allowed,
    /// The programs that count syscalls are loaded.
    can_count_syscalls: bool,
    /// They are not, though they are wanted.
    are_syscalls_refused: bool,
    state: Mutex<State>,
    syscalls: Arc<Wanted>,
    shown: Arc<Shown>,
}

struct State {
    /// What the collector wanted last, and what became of it.
    revision: u64,
    settings: Settings,
    refused: BTreeMap<String, String>,
    step: Step,
}

impl State {
    /// Every setting as it is in force: what the budget has given up is not.
    fn in_force(&self) -> BTreeMap<String, String> {
        let settings = &self.settings;
        let mut texts = settings.texts();
        let mut give_up = |key: Key, rest: String| {
            texts.insert(key.name().to_owned(), format!("{rest} (--max-cpu)"));
        };
        if self.step >= Step::SyscallsOff && settings.syscalls != Mode::Off {
            give_up(Key::Syscalls, Mode::Off.to_string());
        }
        if self.step >= Step::TransitionsOff && settings.transitions != Transitions::Closed {
            give_up(Key::Transitions, Transitions::Closed.to_string());
        }
        if self.step.followed_one_in() > settings.one_in {
            give_up(Key::Connections, format!("1/{}", self.step.followed_one_in()));
        }
        texts
    }
}

impl Controls {
    /// With everything on that the node's own settings say.
    pub fn new(
        probes: &Arc<Mutex<Probes>>,
        own: Settings,
        allowed: Allowed,
        can_count_syscalls: bool,
        are_syscalls_refused: bool,
        shown: Arc<Shown>,
    ) -> Self {
        let is_quiet = own.transitions == Transitions::Closed;
        let controls = Self {
            probes: Arc::downgrade(probes),
            allowed,
            can_count_syscalls,
            are_syscalls_refused,
            syscalls: Arc::new(Wanted::new(own.syscalls)),
            state: Mutex::new(State {
                revision: 0,
                settings: own.clone(),
                refused: BTreeMap::new(),
                step: Step::Full,
            }),
            own,
            shown,
        };
        if !is_quiet {
            controls.apply(&controls.lock());
        }
        controls
    }

    /// What is to be counted of the syscalls, for the thread that does it.
    pub fn syscalls(&self) -> Arc<Wanted> {
        Arc::clone(&self.syscalls)
    }

    /// Attaches and detaches the programs that count syscalls.
    pub fn switch_syscalls(&self) -> Switch {
        let probes = self.probes.clone();
        Box::new(move |mode| match probes.upgrade() {
            // A thread that panicked with them cannot have left them half switched.
            Some(probes) => probes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .count_syscalls(mode),
            None => Ok(()),
        })
    }

    /// Takes what the collector wants, if it wants anything new, and tells what the probes do.
    pub fn answer(self: &Arc<Self>) -> Box<dyn FnMut(Option<ProbeSettings>) -> ProbeReport + Send + Sync> {
        let controls = Arc::clone(self);
        Box::new(move |wanted| {
            let mut state = controls.lock();
            if let Some(wanted) = wanted {
                controls.take(&mut state, wanted);
            }
            ProbeReport {
                revision: state.revision,
                observed_at_ns: now_ns(),
                applied: state.in_force().into_iter().collect(),
                refused: state.refused.clone().into_iter().collect(),
            }
        })
    }

    /// Which of the streams that can be switched are on, since when, and why the others are not. `syscalls_since_ns`:
    /// since when calls are counted, zero if they are not.
    pub fn watches(&self, syscalls_since_ns: u64) -> Vec<Watch> {
        let state = self.lock();
        let syscalls_off = if self.are_syscalls_refused {
            OffReason::Kernel
        } else if state.settings.syscalls != Mode::Off && state.step >= Step::SyscallsOff {
            OffReason::Budget
        } else if state.settings.syscalls == Mode::Off && self.own.syscalls == Mode::Off {
            OffReason::Configuration
        } else {
            // It was off, where it is switched on at this moment.
            OffReason::Collector
        };
        let watch = |stream: Stream, since_ns: u64, off: OffReason| Watch {
            stream: stream.into(),
            since_ns,
            off: if since_ns == 0 {
                off.into()
            } else {
                OffReason::Unspecified.into()
            },
        };
        let looks = |since_ns: &AtomicU64| since_ns.load(Ordering::Relaxed);
        let (listeners, open) = (looks(&self.shown.listeners), looks(&self.shown.open_connections));
        vec![
            watch(Stream::Syscalls, syscalls_since_ns, syscalls_off),
            watch(Stream::Listeners, listeners, OffReason::Collector),
            watch(Stream::OpenConnections, open, OffReason::Collector),
        ]
    }

    /// Gives up what a step of the budget says.
    pub fn give_up(self: &Arc<Self>) -> Box<dyn FnMut(Step) + Send> {
        let controls = Arc::clone(self);
        Box::new(move |step| {
            let mut state = controls.lock();
            state.step = step;
            controls.apply(&state);
        })
    }

    /// What there is to give up.
    pub fn watched(self: &Arc<Self>) -> Box<dyn Fn() -> Watched + Send> {
        let controls = Arc::clone(self);
        Box::new(move || {
            let state = controls.lock();
            Watched {
                syscalls: state.settings.syscalls != Mode::Off,
                transitions: state.settings.transitions != Transitions::Closed,
            }
        })
    }

    fn take(&self, state: &mut State, wanted: ProbeSettings) {
        let values: BTreeMap<_, _> = wanted.values.into_iter().collect();
        let (settings, refused) = self.own.with(&values, &self.allowed, self.can_count_syscalls);
        for (key, reason) in &refused {
            tracing::warn!(key, "a setting of the collector is refused: {reason}");
        }
        if settings != state.settings {
            let before = state.settings.texts();
            for (key, value) in settings.texts() {
                if before.get(&key) != Some(&value) {
                    tracing::info!(key, value, "changed by the collector");
                }
            }
        }
        state.revision = wanted.revision;
        state.settings = settings;
        state.refused = refused;
        self.apply(state);
    }

    fn apply(&self, state: &State) {
        let syscalls = if state.step >= Step::SyscallsOff {
            Mode::Off
        } else {
            state.settings.syscalls
        };
        self.syscalls.set(syscalls);
        // Of two parts of all connections the smaller one: neither the collector nor the budget wants more.
        let one_in = state.settings.one_in.max(state.step.followed_one_in());
        let control = state.settings.control(one_in, state.step < Step::TransitionsOff);
        self.shown.set(&state.settings, &control);
        if let Err(error) = self.control(&control) {
            tracing::error!("the probes go on as before: {:#}", anyhow::Error::new(error));
        }
    }

    fn control(&self, control: &Control) -> Result<(), ProbeError> {
        match self.probes.upgrade() {
            Some(probes) => probes
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .control(control),
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whole between any two statements: a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    fn controls() -> Arc<Controls> {
        // There are no probes: the switches do nothing, and say what they would.
        Arc::new(Controls {
            probes: Weak::new(),
            own: Settings::everything(Mode::Counts, Transitions::All),
            allowed: Allowed::default(),
            can_count_syscalls: true,
            are_syscalls_refused: false,
            state: Mutex::new(State {
                revision: 0,
                settings: Settings::everything(Mode::Counts, Transitions::All),
                refused: BTreeMap::new(),
                step: Step::Full,
            }),
            syscalls: Arc::new(Wanted::new(Mode::Counts)),
            shown: Arc::default(),
        })
    }

    #[test]
    fn what_the_budget_gives_up_is_not_in_force() {
        let controls = controls();
        let (mut answer, mut give_up) = (controls.answer(), controls.give_up());
        let mut in_force = |step| {
            give_up(step);
            let applied = answer(None).applied;
            ["syscalls", "transitions", "connections"].map(|key| applied[key].clone())
        };
        assert_eq!(in_force(Step::Full), ["counts", "all", "all"]);
        assert_eq!(in_force(Step::SyscallsOff), ["off (--max-cpu)", "all", "all"]);
        let sampled = Step::Sampled(NonZeroU32::new(4).expect("not zero"));
        assert_eq!(
            in_force(sampled),
            ["off (--max-cpu)", "closed (--max-cpu)", "1/4 (--max-cpu)"]
        );
        assert!(!controls.shown.transitions());
        assert_eq!(in_force(Step::Full), ["counts", "all", "all"]);
        assert!(controls.shown.transitions());
        assert_eq!(controls.syscalls.get(), Mode::Counts);
    }
}
