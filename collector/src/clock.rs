//! The collector's wall clock, passed in: rows are checked against it and sessions are stamped with it. Everything that
//! only measures spans uses tokio's clock, which a simulation drives.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Where the time of day comes from.
#[derive(Clone)]
pub struct WallClock(Arc<dyn Fn() -> i64 + Send + Sync>);

impl WallClock {
    /// The machine's.
    pub fn system() -> Self {
        Self::new(|| {
            let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            i64::try_from(since_epoch.as_nanos()).unwrap_or(i64::MAX)
        })
    }

    /// A clock that tells what `now_ns` gives: nanoseconds since the Unix epoch.
    pub fn new(now_ns: impl Fn() -> i64 + Send + Sync + 'static) -> Self {
        Self(Arc::new(now_ns))
    }

    /// Nanoseconds since the Unix epoch.
    pub fn now_ns(&self) -> i64 {
        (self.0)()
    }
}

/// In nanoseconds; what is longer than 292 years is as long as that.
pub fn ns(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// Nanoseconds since the Unix epoch as `2026-03-01T12:00:00.500Z`.
pub fn utc(ns: i64) -> String {
    let time = UNIX_EPOCH + Duration::from_nanos(ns.max(0).unsigned_abs());
    humantime::format_rfc3339_millis(time).to_string()
}
