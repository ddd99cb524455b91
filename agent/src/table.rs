//! The kernel's table of open connections: its notices mapped into the agent, so that a look costs no system call and the
//! programs never notice, and its records, which are read one by one where a notice says so. Connections that live longer
//! than a moment are announced from here; those that end before are announced by their end.

use std::{
    io,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aya::maps::{Array, MapData};
use holdfast_agent_ebpf::{
    event::{ConnectionRecord, flag, notice, role, state, step_offset_ns, step_state},
    limits::{PATH_STEPS, REGION, regions},
};

use crate::mapping::Mapping;

/// A record as aya wants it: plain integers.
type RecordWords = [u64; size_of::<ConnectionRecord>() / 8];

/// Notices in a cache line.
const LINE: usize = 8;

/// How long a connection that was not wanted is not asked for again: what is wanted may change.
const NOT_WANTED: Duration = Duration::from_secs(5);

/// The notices of the table and its records.
pub struct Table {
    notices: Mapping,
    /// Which regions of the notices the programs wrote to.
    news: Mapping,
    /// Which regions have notices, or had news the last time. A sweep looks through these and those with news; on an idle
    /// machine it looks through none.
    busy: Vec<AtomicBool>,
    records: Array<MapData, RecordWords>,
    /// The notices of connections that were not wanted lately, by their places, and since when.
    unwanted: Mutex<(Vec<u64>, Instant)>,
}

impl Table {
    /// Maps the notices of `places` connections.
    ///
    /// # Errors
    /// If the kernel does not map them: the map is smaller, or not mappable.
    pub fn map(
        notices: &MapData,
        news: &MapData,
        records: Array<MapData, RecordWords>,
        places: u32,
    ) -> io::Result<Self> {
        let regions = regions(places) as usize;
        Ok(Self {
            notices: Mapping::new(notices, places as usize)?,
            news: Mapping::new(news, regions)?,
            busy: (0..regions).map(|_| AtomicBool::new(false)).collect(),
            records,
            unwanted: Mutex::new((Vec::new(), Instant::now())),
        })
    }

    /// Hands over the first record of each connection whose handshake ended before `until_ns` (nanoseconds of the boot
    /// clock) and that nobody has announced, and takes the announcement: its end will know of it.
    ///
    /// `until_ns` lies at least some microseconds back: by then what the hook wrote is visible on every machine. One that is
    /// not `wanted` keeps its announcement.
    pub fn announce(
        &self,
        until_ns: u64,
        wanted: impl Fn(&ConnectionRecord) -> bool,
        mut first: impl FnMut(&ConnectionRecord),
    ) {
        let mut unwanted = self.unwanted.lock().unwrap_or_else(PoisonError::into_inner);
        if unwanted.1.elapsed() > NOT_WANTED {
            *unwanted = (Vec::new(), Instant::now());
        }
        for (region, busy) in self.busy.iter().enumerate() {
            // Most often there are none, and nothing is written.
            let news = &self.news.words()[region];
            let has_news = news.load(Ordering::Relaxed) != 0;
            if has_news {
                busy.store(true, Ordering::Relaxed);
                news.swap(0, Ordering::AcqRel);
            } else if !busy.load(Ordering::Relaxed) {
                continue;
            }
            let mut has_notices = false;
            for (place, told) in self.told(region) {
                has_notices = true;
                if !notice::is_unannounced(told)
                    || notice::opened_ns(told) >= until_ns
                    || unwanted.0.get(place) == Some(&told)
                {
                    continue;
                }
                let Some(record) = self.first(place, told, until_ns) else {
                    continue;
                };
                if !wanted(&record) {
                    unwanted.0.resize(self.notices.words().len(), 0);
                    unwanted.0[place] = told;
                } else if self.take(place, told) {
                    first(&record);
                }
            }
            // The program that wrote the news may have read them before they were taken and its notice may arrive only now:
            // where there were news, one more look finds it.
            busy.store(has_news || has_notices, Ordering::Relaxed);
        }
    }

    /// Hands over each attempt that began before `until_ns` (nanoseconds of the boot clock) and waits for its answer.
    pub fn pending(&self, until_ns: u64, mut each: impl FnMut(&ConnectionRecord)) {
        // In this order: news that are being taken have made the region busy.
        let is_busy = |region: &usize| {
            self.news.words()[*region].load(Ordering::Acquire) != 0
                || self.busy[*region].load(Ordering::Relaxed)
        };
        let regions = (0..self.busy.len()).filter(is_busy);
        for (place, told) in regions.flat_map(|region| self.told(region)) {
            if !notice::is_unannounced(told)
                && notice::opened_ns(told) < until_ns
                && let Some(record) = self.record(place, told)
                && record.role == role::ACTIVE
                && record.steps().len() == 1
                && record.steps().first().map(|&step| step_state(step)) == Some(state::SYN_SENT)
            {
                each(&ConnectionRecord {
                    flags: record.flags & flag::SEEDED,
                    ..without_volumes(record)
                });
            }
        }
    }

    /// The places of a region that have a notice, and it.
    fn told(&self, region: usize) -> impl Iterator<Item = (usize, u64)> {
        let first = region * REGION as usize;
        let notices = &self.notices.words()[first..];
        let notices = &notices[..notices.len().min(REGION as usize)];
        // Most of a table is most often empty: a cache line is passed over at once.
        let lines = notices.chunks(LINE).enumerate();
        lines
            .filter(|(_, line)| {
                line.iter()
                    .fold(0, |any, notice| any | notice.load(Ordering::Relaxed))
                    != 0
            })
            .flat_map(move |(index, line)| {
                let places = first + index * LINE..;
                places.zip(line.iter().map(|notice| notice.load(Ordering::Acquire)))
            })
            .filter(|(_, notice)| *notice != 0)
    }

    fn notice(&self, place: usize) -> &AtomicU64 {
        &self.notices.words()[place]
    }

    /// The record that a notice is about, if the hook did not write to it meanwhile; one that it did is looked at again the
    /// next time.
    fn record(&self, place: usize, told: u64) -> Option<ConnectionRecord> {
        let read = || {
            let words = self.records.get(&(place as u32), 0).ok()?;
            let mut bytes = [0; size_of::<ConnectionRecord>()];
            for (bytes, word) in bytes.chunks_exact_mut(8).zip(words) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            ConnectionRecord::from_bytes(&bytes)
        };
        // The hook adds to the path before anything else: the same twice means that it wrote nothing between.
        let record = read().filter(|record| record.opened_ns == notice::opened_ns(told))?;
        (read()? == record).then_some(record)
    }

    /// The first record of a connection, if its handshake ended before.
    fn first(&self, place: usize, told: u64, until_ns: u64) -> Option<ConnectionRecord> {
        let record = first_record(self.record(place, told)?)?;
        let decided_ns = record.opened_ns + record.steps().last().map_or(0, |&step| step_offset_ns(step));
        (decided_ns < until_ns).then_some(record)
    }

    /// Takes an announcement. It fails if the connection ended meanwhile: then its end is its first record too.
    fn take(&self, place: usize, told: u64) -> bool {
        self.notice(place)
            .compare_exchange(told, 0, Ordering::AcqRel, Ordering::Relaxed)
            .is_ok()
    }
}

/// What was known when the handshake ended: the path up to there, and nothing that is only written at the end.
fn first_record(record: ConnectionRecord) -> Option<ConnectionRecord> {
    let established = record
        .steps()
        .iter()
        .position(|&step| step_state(step) == state::ESTABLISHED)?;
    let mut path = [0; PATH_STEPS];
    path[..=established].copy_from_slice(&record.path[..=established]);
    Some(ConnectionRecord {
        path,
        path_len: established as u8 + 1,
        flags: flag::FIRST | flag::ESTABLISHED | record.flags & flag::SEEDED,
        retransmits: record.syn_retransmits.into(),
        ..without_volumes(record)
    })
}

/// Without what is right at the end only, and meanwhile belongs to whoever had the place before.
fn without_volumes(record: ConnectionRecord) -> ConnectionRecord {
    ConnectionRecord {
        bytes_sent: 0,
        bytes_retransmitted: 0,
        bytes_received: 0,
        segments_sent: 0,
        segments_received: 0,
        retransmits: 0,
        srtt_us: 0,
        error: 0,
        ..record
    }
}
