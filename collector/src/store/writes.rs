//! What the engine writes is written, or its process ends.
//!
//! The engine (libchdb 26.7.2) takes a write that failed for one that did not. On a disk that is full it merges parts into
//! one whose files are all empty, and removes those that had the rows; an insert is answered as stored. So a write to its
//! folder that finds no space waits here until there is some, in a process that serves. In any other, and after any other
//! error, the process ends at once, as if it were killed: what was stored before is whole then, and what was not is sent again.
//!
//! The loader binds the engine's `write` to the one of this program, which `build.rs` has it export. The engine writes its
//! files with nothing else.
#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// How often a write that found no space is tried again.
const PAUSE: Duration = Duration::from_millis(50);

/// Tries until it is said what is waited for: a second.
const UNSAID: u32 = 20;

/// The exit code of a process that ends here: it could not be done.
const EXIT_UNDONE: c_int = 4;

/// The engine's folder, without links; `None` before there is an engine.
static FOLDER: Mutex<Option<PathBuf>> = Mutex::new(None);

/// Writes that wait for space.
static WAITING: AtomicUsize = AtomicUsize::new(0);

/// It was said that some wait.
static IS_SAID: AtomicBool = AtomicBool::new(false);

/// Whether one that finds no space waits; otherwise the process ends.
static IS_PATIENT: AtomicBool = AtomicBool::new(false);

/// From now on writes to files below this folder are the engine's.
pub(super) fn guard(folder: &Path) {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    *FOLDER.lock().unwrap_or_else(PoisonError::into_inner) = Some(folder);
}

/// From now on, until [`end`], the engine waits for space on its disk.
pub fn wait_for_space() {
    IS_PATIENT.store(true, Ordering::Release);
}

/// The engine is about to be closed, which waits for its merges. One that finds no space ends the process instead.
pub fn end() {
    IS_PATIENT.store(false, Ordering::Release);
}

/// Whether the engine waits for space on its disk.
pub fn are_waiting() -> bool {
    WAITING.load(Ordering::Acquire) > 0
}

/// write(2), for the whole program.
///
/// # Safety
/// As of write(2): `bytes` bytes can be read at `buffer`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn write(file: c_int, buffer: *const c_void, bytes: usize) -> isize {
    // SAFETY: the caller's promise is the kernel's condition.
    let attempt = || unsafe { libc::syscall(libc::SYS_write, file, buffer, bytes) } as isize;
    let written = attempt();
    if written >= 0 {
        return written;
    }
    // SAFETY: the address of this thread's errno is always valid.
    let errno = unsafe { *libc::__errno_location() };
    if !matches!(errno, libc::EINTR | libc::EAGAIN) && is_of_engine(file) {
        return insist(errno, attempt);
    }
    // SAFETY: likewise. Looking may have changed it.
    unsafe { *libc::__errno_location() = errno };
    written
}

/// Tries a write of the engine until it succeeds. `errno`: why it did not.
fn insist(mut errno: c_int, attempt: impl Fn() -> isize) -> isize {
    WAITING.fetch_add(1, Ordering::AcqRel);
    let mut tries = 0_u32;
    let written = loop {
        match errno {
            libc::EINTR | libc::EAGAIN => {}
            libc::ENOSPC | libc::EDQUOT => {
                if !IS_PATIENT.load(Ordering::Acquire) {
                    exit(
                        "the disk of the store is full: make space there, and try again; what was stored before is whole",
                    );
                }
                tries = tries.saturating_add(1);
                if tries == UNSAID && !IS_SAID.swap(true, Ordering::AcqRel) {
                    tracing::warn!(
                        "the disk of the store is full: what is to be written waits until there is space"
                    );
                }
                thread::sleep(PAUSE);
            }
            errno => exit(&format!(
                "the store cannot be written: {}",
                std::io::Error::from_raw_os_error(errno)
            )),
        }
        let written = attempt();
        if written >= 0 {
            break written;
        }
        // SAFETY: the address of this thread's errno is always valid.
        errno = unsafe { *libc::__errno_location() };
    };
    if WAITING.fetch_sub(1, Ordering::AcqRel) == 1 && IS_SAID.swap(false, Ordering::AcqRel) {
        tracing::info!("the disk of the store has space again");
    }
    written
}

/// Whether a descriptor is a file in the engine's folder.
fn is_of_engine(file: c_int) -> bool {
    let folder = FOLDER.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(folder) = folder.as_deref() else {
        return false;
    };
    std::fs::read_link(format!("/proc/self/fd/{file}")).is_ok_and(|path| path.starts_with(folder))
}

/// Ends the process as it stands: whatever runs on the way out would believe what was not written.
fn exit(reason: &str) -> ! {
    eprintln!("error: {reason}");
    // SAFETY: it ends the process, whatever its state.
    unsafe { libc::_exit(EXIT_UNDONE) }
}
