//! What the engine counts of itself.

use prometheus::{Counter, IntCounter, IntGauge, IntGaugeVec, Opts, Registry};

use crate::assertion::state::Verdict;

/// The counters of the engine. Without `--assertions` they stay at zero.
pub struct Assertions {
    pub declared: IntGauge,
    /// 1 while the files are what is judged, 0 while they are wrong and those from before are.
    pub is_current: IntGauge,
    /// 1 while this collector judges, 0 while another one on its store does.
    pub is_judging: IntGauge,
    pub verdicts: IntGaugeVec,
    pub windows: IntCounter,
    pub given_up: IntCounter,
    pub seconds: Counter,
    pub failures: IntCounter,
}

impl Assertions {
    pub(super) fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let counters = Self {
            declared: IntGauge::new("holdfast_assertions", "Assertions that are judged.")?,
            is_current: IntGauge::new(
                "holdfast_assertions_current",
                "1 while the files are what is judged, 0 while they are wrong and those from before are judged on.",
            )?,
            is_judging: IntGauge::new(
                "holdfast_assertions_judging",
                "1 while this collector judges, 0 while another one on the same store does, or nothing is declared.",
            )?,
            verdicts: IntGaugeVec::new(
                Opts::new("holdfast_verdicts", "Keys of all assertions, by their verdict."),
                &["verdict"],
            )?,
            windows: IntCounter::new(
                "holdfast_assertion_windows_total",
                "Windows that were judged, for all assertions of one schedule at once.",
            )?,
            given_up: IntCounter::new(
                "holdfast_assertion_windows_given_up_total",
                "Windows that nothing was said of: too many waited, or the store did not answer.",
            )?,
            seconds: Counter::new("holdfast_assertion_seconds_total", "Time that judging took.")?,
            failures: IntCounter::new(
                "holdfast_assertion_failures_total",
                "Times that the store was away when windows were to be judged.",
            )?,
        };
        for verdict in Verdict::ALL {
            counters.verdicts.with_label_values(&[verdict.name()]);
        }
        counters.is_current.set(1);
        let collectors: [Box<dyn prometheus::core::Collector>; 8] = [
            Box::new(counters.declared.clone()),
            Box::new(counters.is_current.clone()),
            Box::new(counters.is_judging.clone()),
            Box::new(counters.verdicts.clone()),
            Box::new(counters.windows.clone()),
            Box::new(counters.given_up.clone()),
            Box::new(counters.seconds.clone()),
            Box::new(counters.failures.clone()),
        ];
        collectors
            .into_iter()
            .try_for_each(|collector| registry.register(collector))?;
        Ok(counters)
    }
}
