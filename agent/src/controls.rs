//! What the probes do at the moment: what the node's configuration says, changed by the collector as far as the
//! configuration lets it, less what the budget has given up.

pub mod settings;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use holdfast_agent_ebpf::{control::Control, event::ConnectionRecord};
use holdfast_proto::v1::{ProbeReport, ProbeSettings};

use self::settings::{Allowed, Settings};
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
    open_connections: AtomicBool,
    listeners: AtomicBool,
}

impl Default for Shown {
    /// Everything.
    fn default() -> Self {
        Self {
            filter: RwLock::new(Control::NONE),
            open_connections: AtomicBool::new(true),
            listeners: AtomicBool::new(true),
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
        self.open_connections.load(Ordering::Relaxed)
    }

    /// Whether looks at listeners are wanted.
    pub fn listeners(&self) -> bool {
        self.listeners.load(Ordering::Relaxed)
    }

    fn set(&self, settings: &Settings, control: &Control) {
        *self.filter.write().unwrap_or_else(PoisonError::into_inner) = *control;
        self.open_connections
            .store(settings.open_connections, Ordering::Relaxed);
        self.listeners.store(settings.listeners, Ordering::Relaxed);
    }
}

/// The switches. They borrow the probes, and do nothing once those are gone.
pub struct Controls {
    probes: Weak<Mutex<Probes>>,
    own: Settings,
    allowed: Allowed,
    /// The programs that count syscalls are loaded.
    can_count_syscalls: bool,
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

impl Controls {
    /// With everything on that the node's own settings say.
    pub fn new(
        probes: &Arc<Mutex<Probes>>,
        own: Settings,
        allowed: Allowed,
        can_count_syscalls: bool,
        shown: Arc<Shown>,
    ) -> Self {
        Self {
            probes: Arc::downgrade(probes),
            allowed,
            can_count_syscalls,
            syscalls: Arc::new(Wanted::new(own.syscalls)),
            state: Mutex::new(State {
                revision: 0,
                settings: own.clone(),
                refused: BTreeMap::new(),
                step: Step::Full,
            }),
            own,
            shown,
        }
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
                observed_at_ns: clock::wall_now().as_nanos() as u64,
                applied: state.settings.texts().into_iter().collect(),
                refused: state.refused.clone().into_iter().collect(),
            }
        })
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
        Box::new(move || Watched {
            syscalls: controls.lock().settings.syscalls != Mode::Off,
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
        let control = state.settings.control(one_in);
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
