//! Every system call of the machine: that it was made, how it ended and, for some, how long it took.
//!
//! A call is counted where it returns, because only there its error is known; that takes one hook. Calls that never
//! return (`exit`, `exit_group`) are counted where the task ends. For a call that is measured a second hook
//! notes when it began, in the place of its thread.
//!
//! The threads' places are an array indexed by the thread's id: no lookup, no lock, nothing to allocate when a thread
//! begins. A place also remembers the thread's slot, so the process is looked up once for each thread.

use core::ptr;

use aya_ebpf::{
    bindings::BPF_F_MMAPABLE,
    helpers::generated::{bpf_get_prandom_u32, bpf_ktime_get_ns},
    macros::map,
    maps::Array,
};
use holdfast_agent_ebpf::{
    limits::THREADS as MAX_THREADS,
    syscall::{ABI_ENTRIES, Abi, Key, MAX_ERRNO, NO_NUMBER, OTHER_NUMBER, Thread, bucket, watcher},
};

use crate::{
    connects,
    kernel::{Regs, Task},
    processes, tallies,
};

#[map]
static THREADS: Array<Thread> = Array::with_max_entries(MAX_THREADS, BPF_F_MMAPABLE);

/// Of which calls the beginning is noted: those whose random number is not above this one. The agent changes it while the
/// programs run.
#[map]
static SAMPLING: Array<u32> = Array::with_max_entries(1, 0);

/// Places for threads less one; their number is a power of two.
#[unsafe(no_mangle)]
static THREAD_MASK: u32 = MAX_THREADS - 1;

/// See [`Abi`].
#[unsafe(no_mangle)]
static ABI: [u32; ABI_ENTRIES] = [NO_NUMBER; ABI_ENTRIES];

/// fork, vfork, clone and clone3 of 32-bit programs, on x86 and on Arm alike.
const COMPAT_FORKS: [u32; 4] = [2, 190, 120, 435];

/// exit, likewise.
const COMPAT_EXIT: u32 = 1;

const ENOSYS: i64 = 38;

/// A call begins.
#[inline(always)]
pub(crate) fn begin() {
    let task = Task::current();
    let Some(thread) = place(task.tid()) else { return };
    // SAFETY: the entry is live. It is this thread's, or one that shares its place wrote it: then it is not measured.
    unsafe {
        // Knuth's MMIX generator; its upper half is random enough, and it costs a multiplication.
        let random = (*thread)
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (*thread).random = random;
        let Some(&sampling) = SAMPLING.get(0) else { return };
        if (random >> 32) as u32 <= sampling {
            if Thread::is_same((*thread).word, Thread::word(task.pid(), task.tid(), 0)) {
                (*thread).began_ns = bpf_ktime_get_ns();
            }
        }
    }
}

/// A call returns.
#[inline(always)]
pub(crate) fn end(regs: Regs, result: i64) {
    connects::returns(watcher::COUNTING, regs, result);
    let task = Task::current();
    let Some(thread) = place(task.tid()) else { return };
    // SAFETY: the entry is live, and a word is read as a whole.
    let mut word = unsafe { ptr::read_volatile(&raw const (*thread).word) };
    if !Thread::is_same(word, Thread::word(task.pid(), task.tid(), 0)) {
        word = adopt(thread, task);
        // Its maker is counted for the call that made it.
        if is_birth(task, regs.number(), result) {
            return;
        }
    }
    let Call { number, errno } = call(task, regs.number(), result);
    let slot = Thread::slot(word);
    tallies::tally(Key::new(slot, number, errno));
    // SAFETY: as above.
    unsafe {
        let began_ns = (*thread).began_ns;
        if began_ns != 0 {
            (*thread).began_ns = 0;
            // Another thread in the same place would have written the word before the time.
            if Thread::is_same(ptr::read_volatile(&raw const (*thread).word), word) {
                let latency_ns = bpf_ktime_get_ns().wrapping_sub(began_ns);
                tallies::latency(Key::new(slot, number, bucket(latency_ns)));
            }
        }
    }
}

/// The task ends: perhaps by a call, which then does not return.
#[inline(always)]
pub(crate) fn task_ends() {
    let task = Task::current();
    let Some(thread) = place(task.tid()) else { return };
    let number = task.regs().number();
    // SAFETY: the entry is live, and a word is read and written as a whole.
    unsafe {
        if is_exit(task, number) {
            let mut word = ptr::read_volatile(&raw const (*thread).word);
            if !Thread::is_same(word, Thread::word(task.pid(), task.tid(), 0)) {
                word = adopt(thread, task);
            }
            let Call { number, errno } = call(task, number, 0);
            tallies::tally(Key::new(Thread::slot(word), number, errno));
        }
        ptr::write_volatile(&raw mut (*thread).word, 0);
    }
    if task.is_last_of_its_process() {
        processes::end(task.pid());
    }
}

/// The process is another program from here on: what it does is no longer counted for the one before.
#[inline(always)]
pub(crate) fn program_changes(old_tid: u32) {
    let task = Task::current();
    processes::end(task.pid());
    if old_tid != task.tid() {
        // Not the first thread called execve(): it got the first one's id.
        if let Some(thread) = place(old_tid) {
            // SAFETY: the entry is live, and a word is written as a whole.
            unsafe {
                if Thread::is_same((*thread).word, Thread::word(task.pid(), old_tid, 0)) {
                    ptr::write_volatile(&raw mut (*thread).word, 0);
                }
            }
        }
    }
    let Some(thread) = place(task.tid()) else { return };
    let word = Thread::word(task.pid(), task.tid(), 0);
    // SAFETY: as above.
    unsafe {
        if Thread::is_same((*thread).word, word) {
            // The running execve() goes on to be measured.
            let slot = processes::slot_of_current(task.pid());
            ptr::write_volatile(&raw mut (*thread).word, word | u64::from(slot));
        }
    }
}

/// Gives the place to the running thread, which has not been seen yet or shares it with another.
#[inline(always)]
fn adopt(thread: *mut Thread, task: Task) -> u64 {
    let slot = processes::slot_of_current(task.pid());
    let word = Thread::word(task.pid(), task.tid(), slot);
    // SAFETY: the entry is live. The time goes first: see `end`.
    unsafe {
        (*thread).began_ns = 0;
        // Or all threads would choose the same ones of their calls.
        (*thread).random = u64::from(bpf_get_prandom_u32()) << 32;
        ptr::write_volatile(&raw mut (*thread).word, word);
    }
    word
}

#[inline(always)]
fn place(tid: u32) -> Option<*mut Thread> {
    // SAFETY: a plain global. Volatile, or the compiler would use the value it sees here.
    let mask = unsafe { ptr::read_volatile(&raw const THREAD_MASK) };
    THREADS.get_ptr_mut(tid & mask)
}

/// What a call is counted as.
#[derive(Clone, Copy)]
struct Call {
    number: u16,
    errno: u16,
}

/// Under which number a call is counted, and which errno it gave.
#[inline(always)]
fn call(task: Task, number: u32, result: i64) -> Call {
    let is_compat = task.is_compat(abi(Abi::CompatBit));
    if number == NO_NUMBER && result != -ENOSYS {
        // rt_sigreturn put back the registers of what a signal had interrupted: what looks like a result is one of them.
        // The other way to lose the number is a tracer that takes it away, which gives ENOSYS.
        let number = if is_compat {
            OTHER_NUMBER
        } else {
            abi(Abi::RtSigreturn) as u16
        };
        return Call { number, errno: 0 };
    }
    let is_known = !is_compat && number < u32::from(OTHER_NUMBER);
    Call {
        number: if is_known { number as u16 } else { OTHER_NUMBER },
        errno: if (-MAX_ERRNO..0).contains(&result) {
            -result as u16
        } else {
            0
        },
    }
}

/// Whether a new task returns from the call that made it.
#[inline(always)]
fn is_birth(task: Task, number: u32, result: i64) -> bool {
    if result != 0 {
        return false;
    }
    if task.is_compat(abi(Abi::CompatBit)) {
        return COMPAT_FORKS.contains(&number);
    }
    [Abi::Fork, Abi::Vfork, Abi::Clone, Abi::Clone3]
        .iter()
        .any(|&fork| number == abi(fork))
}

/// Whether a task that ends does so by a call, and not by a signal.
#[inline(always)]
fn is_exit(task: Task, number: u32) -> bool {
    if task.is_compat(abi(Abi::CompatBit)) {
        number == COMPAT_EXIT || number == abi(Abi::CompatExitGroup)
    } else {
        number == abi(Abi::Exit) || number == abi(Abi::ExitGroup)
    }
}

#[inline(always)]
pub(crate) fn abi(entry: Abi) -> u32 {
    // SAFETY: the index is an entry's own place. Volatile, or the compiler would use the value it sees here.
    unsafe { ptr::read_volatile(&raw const ABI[entry as usize]) }
}
