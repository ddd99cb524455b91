//! Syscalls are counted to the event, under the right process, and within their bounds. The oracle is a foreign program
//! that knows how many calls it makes.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    process::{Command, Stdio},
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use holdfast_agent::{
    probes::{Options, Probes},
    syscalls::{
        Mode, SAMPLED,
        interval::{Caller, Calls, Interval, Sum},
        kernel::Sizes,
        names::name,
        sweep::Sweeper,
    },
};

use crate::host::Host;

const EBADF: u16 = 9;
const ESRCH: u16 = 3;

/// Every such test sees the whole machine: the programs of two would only slow each other down.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The programs, counting.
struct Counting {
    probes: Probes,
    sweeper: Sweeper,
    interval: Interval,
    _alone: MutexGuard<'static, ()>,
}

impl Counting {
    fn with(mode: Mode, sizes: Sizes, only_netns: Option<u32>) -> Self {
        let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let mut probes = Probes::load(Options {
            only_netns,
            syscalls: Some(sizes),
            ..Options::default()
        })
        .expect("the programs load: these tests need root");
        let sweeper = Sweeper::new(probes.take_syscalls().expect("the tables"));
        probes.count_syscalls(mode).expect("the programs attach");
        Self {
            probes,
            sweeper,
            interval: Interval::default(),
            _alone: alone,
        }
    }

    fn sweep(&mut self) {
        self.sweeper
            .sweep(&mut self.interval)
            .expect("the counters can be read");
    }

    /// What came together since the last time.
    fn callers(&mut self) -> Vec<(Caller, Calls)> {
        self.sweep();
        std::mem::take(&mut self.interval).finish()
    }

    /// What the last program did that ran in a process.
    fn of(&mut self, pid: u32) -> BTreeMap<&'static str, Sum> {
        let programs = programs(&self.callers(), pid);
        programs
            .into_iter()
            .next_back()
            .map(|(_, calls)| calls)
            .unwrap_or_default()
    }
}

fn sizes() -> Sizes {
    Sizes::of_this_machine().expect("/sys is mounted")
}

/// The programs that ran in one process, by their names, each with its calls.
fn programs(callers: &[(Caller, Calls)], of: u32) -> Vec<(String, BTreeMap<&'static str, Sum>)> {
    callers
        .iter()
        .filter_map(|(caller, calls)| match caller {
            Caller::Process { pid, comm, .. } if *pid == of => Some((
                String::from_utf8_lossy(comm).trim_end_matches('\0').to_owned(),
                calls
                    .by_number
                    .iter()
                    .map(|(number, sum)| (name(*number), sum.clone()))
                    .collect(),
            )),
            _ => None,
        })
        .collect()
}

/// All calls of one name, whoever made them.
fn all(callers: &[(Caller, Calls)], syscall: &str) -> u64 {
    callers
        .iter()
        .flat_map(|(_, calls)| &calls.by_number)
        .filter(|(number, _)| name(**number) == syscall)
        .map(|(_, sum)| sum.calls())
        .sum()
}

/// Longer than a busy machine takes for anything here.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often a test is tried when calls were missed.
const ATTEMPTS: usize = 10;

/// Runs a test that counts exactly; once more if it fails and the kernel says that it started no program for some calls,
/// of which nobody knows whose they were. From some kernel after 6.12 on a task may be preempted in the programs that see
/// syscalls, and those of others are missed on its CPU until it goes on (docs/KERNELS.md).
fn unless_missed(mode: Mode, test: impl Fn(&mut Counting)) {
    unless_missed_with(mode, sizes(), None, test);
}

fn unless_missed_with(mode: Mode, sizes: Sizes, only_netns: Option<u32>, test: impl Fn(&mut Counting)) {
    for attempt in 1..=ATTEMPTS {
        let mut counting = Counting::with(mode, sizes, only_netns);
        let ended = catch_unwind(AssertUnwindSafe(|| test(&mut counting)));
        let Err(panic) = ended else { return };
        counting.sweep();
        let missed = counting.sweeper.totals().missed;
        if missed == 0 || attempt == ATTEMPTS {
            resume_unwind(panic);
        }
        eprintln!("{missed} calls were missed: once more");
    }
}

/// All calls were counted, but for those that the kernel says it started no program for.
fn assert_within_missed(counted: u64, made: u64, missed: u64) {
    assert!(
        (made - missed.min(made)..=made).contains(&counted),
        "{counted} of {made} counted, {missed} missed"
    );
}

/// Likewise for the results of one call: none is of another kind, none is counted twice, and all that lack were missed.
fn assert_results(counted: &BTreeMap<u16, u64>, made: &BTreeMap<u16, u64>, missed: u64) {
    assert!(
        counted
            .iter()
            .all(|(kind, count)| made.get(kind).is_some_and(|made| count <= made)),
        "{counted:?} of {made:?}"
    );
    assert_within_missed(counted.values().sum(), made.values().sum(), missed);
}

fn results(succeeded: u64, failed: &[(u16, u64)]) -> BTreeMap<u16, u64> {
    let succeeded = (succeeded > 0).then_some((0, succeeded));
    succeeded.into_iter().chain(failed.iter().copied()).collect()
}

/// Runs a Python program to its end, and gives its process id and what it printed.
fn python(program: &str) -> (u32, String) {
    let child = Command::new("python3")
        .args(["-c", program])
        .stdout(Stdio::piped())
        .spawn()
        .expect("python3");
    let pid = child.id();
    let output = child.wait_with_output().expect("its end");
    assert!(output.status.success());
    (pid, String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn calls_and_errors_of_several_threads_are_exact_but_for_those_that_were_missed() {
    let mut counting = Counting::with(Mode::Counts, sizes(), None);
    let (pid, _) = python(
        "
import os, threading
def work(succeed, fail):
    for _ in range(succeed): os.getppid()
    for _ in range(fail):
        try: os.getpgid(0x3ffffff)
        except ProcessLookupError: pass
        try: os.read(999, 1)
        except OSError: pass
        os.getpgid(0)
threads = [threading.Thread(target=work, args=(20_000 + i, 1_000 + i)) for i in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
",
    );
    let calls = counting.of(pid);
    // Threads that preempt each other all the time, as in an emulated machine, have some missed at every attempt.
    let missed = counting.sweeper.totals().missed;
    assert_results(&calls["getppid"].results, &results(160_028, &[]), missed);
    assert_results(
        &calls["getpgid"].results,
        &results(8_028, &[(ESRCH, 8_028)]),
        missed,
    );
    assert_within_missed(calls["read"].results[&EBADF], 8_028, missed);
    assert!(
        calls.values().all(|sum| sum.latencies.is_empty()),
        "nothing is measured"
    );
}

#[test]
fn calls_that_return_twice_or_never_are_counted_once() {
    unless_missed(Mode::Counts, |counting| {
        let (pid, _) = python(
            "
import os, threading
for _ in range(5):
    threads = [threading.Thread(target=os.getppid) for _ in range(10)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
for _ in range(20):
    child = os.fork()
    if child == 0: os._exit(3)
    os.waitpid(child, 0)
",
        );
        let callers = counting.callers();
        let own = &programs(&callers, pid)[..];
        let [.., (_, calls)] = own else { panic!("{own:?}") };
        let made: u64 = ["clone", "clone3", "fork", "vfork"]
            .iter()
            .filter_map(|name| calls.get(name))
            .map(Sum::calls)
            .sum();
        assert_eq!(made, 70, "50 threads and 20 processes: {calls:?}");
        assert_eq!((calls["exit"].calls(), calls["exit_group"].calls()), (50, 1));
        let children: Vec<_> = callers
            .iter()
            .filter(|(caller, calls)| {
                matches!(caller, Caller::Process { pid: other, .. } if *other != pid)
                    && calls.by_number.values().map(Sum::calls).sum::<u64>() < 20
                    && all(&[(*caller, (*calls).clone())], "exit_group") == 1
                    && all(&[(*caller, (*calls).clone())], "clone") == 0
            })
            .collect();
        assert!(children.len() >= 20, "{children:?}");
    });
}

#[test]
fn a_signal_handlers_return_is_counted_by_its_name_and_is_no_error() {
    unless_missed(Mode::Counts, |counting| {
        let (pid, _) = python(
            "
import os, signal
signal.signal(signal.SIGUSR1, lambda *_: None)
for _ in range(300): os.kill(os.getpid(), signal.SIGUSR1)
",
        );
        let calls = counting.of(pid);
        assert_eq!(calls["rt_sigreturn"].results, results(300, &[]));
        assert!(!calls.contains_key("other"), "{calls:?}");
    });
}

#[test]
fn what_a_process_does_after_execve_is_another_programs() {
    let folder = tempfile::tempdir().expect("a folder");
    let after = folder.path().join("after-exec");
    let python3 = fs::canonicalize("/usr/bin/python3").expect("python3");
    std::os::unix::fs::symlink(python3, &after).expect("a link");
    unless_missed(Mode::Counts, |counting| {
        let program = format!(
            "
import os, threading
for _ in range(100): os.getppid()
child = os.fork()
if child == 0:
    for _ in range(200): os.getppid()
    then = 'import os\\nfor _ in range(300): os.getppid()'
    # Not by the first thread, whose id the new program gets.
    threading.Thread(target=os.execv, args=('{path}', ['after', '-c', then])).start()
    threading.Event().wait()
print(child)
os.waitpid(child, 0)
",
            path = after.display()
        );
        let (pid, child) = python(&program);
        let child: u32 = child.trim().parse().expect("a process id");
        let callers = counting.callers();
        let getppid = |pid| -> Vec<(String, u64)> {
            let mut calls: Vec<_> = programs(&callers, pid)
                .into_iter()
                .filter_map(|(comm, calls)| Some((comm, calls.get("getppid")?.calls())))
                // What a shell does that is in the way to Python.
                .filter(|(_, calls)| *calls >= 100)
                .collect();
            calls.sort_by_key(|(_, calls)| *calls);
            calls
        };
        assert_eq!(getppid(pid), [("python3".to_owned(), 100)]);
        assert_eq!(
            getppid(child),
            [("python3".to_owned(), 200), ("after-exec".to_owned(), 300)]
        );
    });
}

#[test]
fn two_thousand_processes_are_all_counted_and_their_slots_come_back() {
    unless_missed(Mode::Sampled(SAMPLED), |counting| {
        let before = counting.sweeper.slots_taken();
        let (pid, _) = python(&format!("PROCESSES = 2000\n{MANY_PROCESSES}"));
        counting.sweep();
        let while_ended = counting.sweeper.slots_taken();
        assert!(while_ended > before + 1_900, "{before} {while_ended}");
        // What ended is released by one sweep and given back by the next.
        let mut callers = counting.callers();
        let after = counting.sweeper.slots_taken();
        assert!(after < before + 300, "{before} {after}");
        callers.extend(counting.callers());
        let missed = counting.sweeper.totals().missed;
        assert_within_missed(all(&callers, "getpgid"), 2_000 * 50, missed);
        assert_eq!(counting.sweeper.totals().others, 0);
        let own = programs(&callers, pid);
        assert!(
            own.iter().all(|(_, calls)| !calls.contains_key("getpgid")),
            "{own:?}"
        );
    });
}

#[test]
fn processes_without_a_slot_are_counted_together() {
    let slots = 512;
    unless_missed_with(Mode::Counts, Sizes { slots, ..sizes() }, None, |counting| {
        let (_, _) = python(&format!("PROCESSES = 1000\n{MANY_PROCESSES}"));
        let callers = counting.callers();
        let missed = counting.sweeper.totals().missed;
        assert_within_missed(all(&callers, "getpgid"), 1_000 * 50, missed);
        let others: Vec<_> = callers
            .into_iter()
            .filter(|(caller, _)| *caller == Caller::Others)
            .collect();
        assert!(
            all(&others, "getpgid") >= (1_000 - u64::from(slots)) * 50 - missed,
            "{others:?}"
        );
        let totals = counting.sweeper.totals();
        assert!(totals.others >= all(&others, "getpgid"), "{totals:?}");
        assert!(counting.sweeper.slots_taken() <= slots as usize);

        // Once there is room again, a process has its own.
        counting.sweep();
        counting.sweep();
        let (pid, _) = python("import os\nfor _ in range(70): os.getpgid(0)");
        assert_eq!(counting.of(pid)["getpgid"].calls(), 70);
    });
}

/// As many processes at once, each of which makes 50 calls of one kind before all of them end.
const MANY_PROCESSES: &str = "
import os
hold, go = os.pipe()
children = []
for _ in range(PROCESSES):
    child = os.fork()
    if child == 0:
        os.close(go)
        for _ in range(50): os.getpgid(0)
        os.read(hold, 1)
        os._exit(0)
    children.append(child)
os.close(go)
for child in children: os.waitpid(child, 0)
";

/// As many processes at once, each of which makes 50 calls of one kind and then others, until the input ends.
const BUSY_CROWD: &str = "
import os, select, sys
hold, go = os.pipe()
children = []
for _ in range(PROCESSES):
    child = os.fork()
    if child == 0:
        os.close(go)
        for _ in range(50): os.getpgid(0)
        while not select.select([hold], [], [], 0.005)[0]: os.getppid()
        os._exit(0)
    children.append(child)
sys.stdin.read()
os.close(go)
for child in children: os.waitpid(child, 0)
";

#[test]
fn whoever_found_no_slot_gets_one_once_others_have_ended() {
    let host = Host::new();
    let few = Sizes { slots: 16, ..sizes() };
    let mut counting = Counting::with(Mode::Counts, few, Some(host.netns));
    let crowd = |processes: u32| {
        host.run(move || {
            Command::new("python3")
                .args(["-c", &format!("PROCESSES = {processes}\n{BUSY_CROWD}")])
                .stdin(Stdio::piped())
                .spawn()
                .expect("python3")
        })
    };
    // Processes with a slot that made calls since the sweep before.
    fn with_a_slot(counting: &mut Counting) -> usize {
        let callers = counting.callers();
        let is_busy = |(caller, _): &&(Caller, Calls)| matches!(caller, Caller::Process { .. });
        callers.iter().filter(is_busy).count()
    }
    let mut wait_until = |what: &str, is_so: &dyn Fn(usize, u64) -> bool| {
        let deadline = Instant::now() + PATIENCE;
        let mut others = counting.sweeper.totals().others;
        loop {
            thread::sleep(Duration::from_millis(50));
            let busy = with_a_slot(&mut counting);
            let all_others = counting.sweeper.totals().others;
            if is_so(busy, all_others - others) {
                return;
            }
            others = all_others;
            assert!(Instant::now() < deadline, "{what}: {busy} have a slot");
        }
    };
    let mut first = crowd(20);
    wait_until("all slots are taken", &|busy, others| busy >= 15 && others > 0);
    // They find no slot, and are told so once.
    let mut second = crowd(8);
    for _ in 0..10 {
        wait_until("others make calls", &|_, others| others > 0);
    }
    drop(first.stdin.take());
    assert!(first.wait().expect("its end").success());
    wait_until("each of the second has a slot", &|busy, others| {
        busy >= 8 && others == 0
    });
    drop(second.stdin.take());
    assert!(second.wait().expect("its end").success());
}

#[test]
fn an_idle_process_gives_its_slot_up_when_slots_are_scarce_and_gets_another() {
    // The slots are for those of this namespace: others on a busy machine would have taken them all.
    let host = Host::new();
    let few = Sizes { slots: 16, ..sizes() };
    unless_missed_with(Mode::Counts, few, Some(host.netns), |counting| {
        let mut idle = host.run(|| Command::new("python3")
            .args(["-c", "import os, sys\nfor line in sys.stdin:\n    for _ in range(60): os.getpgid(0)\n    print(flush=True)"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("python3"));
        let mut input = idle.stdin.take().expect("its input");
        let mut output = std::io::BufReader::new(idle.stdout.take().expect("its output"));
        let mut work = || {
            std::io::Write::write_all(&mut input, b"\n").expect("it reads");
            std::io::BufRead::read_line(&mut output, &mut String::new()).expect("it answers");
        };
        work();
        let mut callers = counting.callers();
        // A crowd that is busy fills the few slots, and asks for more at every look.
        let mut crowd = host.run(|| {
            Command::new("python3")
                .args(["-c", &format!("PROCESSES = 30\n{BUSY_CROWD}")])
                .stdin(Stdio::piped())
                .spawn()
                .expect("python3")
        });
        let deadline = Instant::now() + PATIENCE;
        while counting.sweeper.totals().evicted == 0 && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(50));
            callers.extend(counting.callers());
        }
        drop(crowd.stdin.take());
        assert!(crowd.wait().expect("its end").success());
        assert!(
            counting.sweeper.totals().evicted > 0,
            "{:?}",
            counting.sweeper.totals()
        );
        work();
        callers.extend(counting.callers());
        drop(input);
        assert!(idle.wait().expect("its end").success());
        let missed = counting.sweeper.totals().missed;
        assert_within_missed(all(&callers, "getpgid"), 60 + 30 * 50 + 60, missed);
    });
}

#[test]
fn the_measured_calls_are_a_fair_sample() {
    unless_missed(Mode::Sampled(SAMPLED), |counting| {
        // A rhythm of sixteen calls: a sample of every sixteenth would see one kind only.
        let (pid, _) = python(
            "
import os
for _ in range(20_000):
    os.getpgid(0)
    for _ in range(15): os.getppid()
",
        );
        let calls = counting.of(pid);
        for (syscall, count) in [("getpgid", 20_000_u64), ("getppid", 300_000)] {
            let sum = &calls[syscall];
            assert_eq!(sum.results, results(count, &[]));
            let measured: u64 = sum.latencies.values().sum();
            // Independent draws: six standard deviations are one failure in a billion.
            let (mean, deviation) = (count as f64 / 16.0, (count as f64 / 16.0 * 15.0 / 16.0).sqrt());
            assert!(
                (measured as f64 - mean).abs() < 6.0 * deviation,
                "{measured} of {count} {syscall}"
            );
        }
    });
}

#[test]
fn short_programs_do_not_all_measure_the_same_calls() {
    unless_missed(Mode::Sampled(SAMPLED), |counting| {
        python(&format!("PROCESSES = 400\n{MANY_PROCESSES}"));
        let callers = counting.callers();
        let measured: Vec<u64> = callers
            .iter()
            .flat_map(|(_, calls)| &calls.by_number)
            .filter(|(number, sum)| name(**number) == "getpgid" && sum.calls() == 50)
            .map(|(_, sum)| sum.latencies.values().sum())
            .collect();
        assert!(measured.len() > 100, "{measured:?}");
        let (least, most) = (measured.iter().min(), measured.iter().max());
        assert!(least < most, "{measured:?}");
        let total: u64 = callers
            .iter()
            .flat_map(|(_, calls)| &calls.by_number)
            .filter(|(number, _)| name(**number) == "getpgid")
            .flat_map(|(_, sum)| sum.latencies.values())
            .sum();
        // 20,000 calls: 1,250, and a standard deviation of 34.
        assert!((1_045..1_455).contains(&total), "{total}");
    });
}

#[test]
fn every_call_is_measured_when_all_are_asked_for_and_its_latency_is_true() {
    unless_missed(Mode::Full, |counting| {
        let (pid, _) = python(
            "
import os, time, select
for _ in range(3_000): os.getppid()
for _ in range(20): select.select([], [], [], 0.01)
",
        );
        let calls = counting.of(pid);
        let getppid = &calls["getppid"];
        assert_eq!(
            (getppid.calls(), getppid.latencies.values().sum::<u64>()),
            (3_000, 3_000)
        );
        let waited = calls
            .get("pselect6")
            .or_else(|| calls.get("select"))
            .expect("a select");
        assert_eq!((waited.calls(), waited.latencies.values().sum::<u64>()), (20, 20));
        let shortest = *waited.latencies.keys().next().expect("a latency");
        let shortest_ns = holdfast_agent_ebpf::syscall::bucket_begin_ns(shortest);
        assert!((9_000_000..1_000_000_000).contains(&shortest_ns), "{shortest_ns}");
    });
}

#[test]
fn another_network_namespace_is_hidden_and_counted() {
    let host = Host::new();
    unless_missed_with(Mode::Counts, sizes(), Some(host.netns), |counting| {
        let (outside, _) = python("import os\nfor _ in range(500): os.getpgid(0)");
        let (inside, _) = host.run(|| python("import os\nfor _ in range(400): os.getpgid(0)"));
        let callers = counting.callers();
        assert_eq!(all(&callers, "getpgid"), 400);
        assert!(programs(&callers, outside).is_empty());
        let inside = programs(&callers, inside);
        assert!(
            inside.iter().any(|(_, calls)| calls.contains_key("getpgid")),
            "{inside:?}"
        );
        assert!(counting.sweeper.totals().hidden >= 500);
    });
}

#[test]
fn counting_can_be_switched_while_it_runs() {
    const GETPPID: &str = "import os\nfor _ in range(600): os.getppid()";
    unless_missed(Mode::Counts, |counting| {
        let (pid, _) = python(GETPPID);
        assert!(counting.of(pid)["getppid"].latencies.is_empty());

        counting
            .probes
            .count_syscalls(Mode::Full)
            .expect("more is attached");
        let (pid, _) = python(GETPPID);
        assert_eq!(counting.of(pid)["getppid"].latencies.values().sum::<u64>(), 600);

        counting
            .probes
            .count_syscalls(Mode::Off)
            .expect("all is detached");
        counting.callers();
        let (pid, _) = python(GETPPID);
        assert!(counting.of(pid).is_empty(), "nothing is attached");

        counting.sweeper.clear();
        counting
            .probes
            .count_syscalls(Mode::Counts)
            .expect("it is attached again");
        let (pid, _) = python(GETPPID);
        let calls = counting.of(pid);
        assert_eq!(calls["getppid"].calls(), 600);
        assert!(calls["getppid"].latencies.is_empty());
    });
}

/// A 32-bit program without a library: 1,000 times getpid (20), then exit (1), both by `int 0x80`.
#[cfg(target_arch = "x86_64")]
#[test]
fn calls_of_a_32_bit_program_have_other_numbers_and_are_counted_as_other() {
    const CODE: [u8; 24] = [
        0xbe, 0xe8, 0x03, 0x00, 0x00, // mov esi, 1000
        0xb8, 0x14, 0x00, 0x00, 0x00, // mov eax, 20
        0xcd, 0x80, // int 0x80
        0x4e, // dec esi
        0x75, 0xf6, // jnz -10
        0x31, 0xdb, // xor ebx, ebx
        0xb8, 0x01, 0x00, 0x00, 0x00, // mov eax, 1
        0xcd, 0x80, // int 0x80
    ];
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("thirty-two");
    fs::write(&path, elf32(&CODE)).expect("a program");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    unless_missed(Mode::Full, |counting| {
        let child = Command::new(&path).spawn();
        let mut child = match child {
            Ok(child) => child,
            Err(error) => {
                eprintln!("this kernel runs no 32-bit programs: {error}");
                return;
            }
        };
        let pid = child.id();
        assert!(child.wait().expect("its end").success());
        let callers = counting.callers();
        let own = programs(&callers, pid);
        let (_, calls) = own
            .iter()
            .find(|(comm, _)| comm == "thirty-two")
            .expect("its own row");
        // The execve() that began it returns into it, as one of its own calls.
        assert_eq!(calls["other"].results, results(1_002, &[]), "{calls:?}");
        assert_eq!(calls.len(), 1, "{calls:?}");
    });
}

/// The smallest file that Linux runs as a 32-bit program on x86.
#[cfg(target_arch = "x86_64")]
fn elf32(code: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    let size = HEADERS + code.len() as u32;
    let mut file = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for half in [2_u16, 3] {
        file.extend(half.to_le_bytes()); // an executable, for i386
    }
    for word in [1, BASE + HEADERS, 52, 0, 0] {
        file.extend(word.to_le_bytes()); // version, entry, program headers, no sections, flags
    }
    for half in [52_u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes()); // sizes and numbers of the headers
    }
    for word in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        file.extend(word.to_le_bytes()); // load all of it, to be read and executed
    }
    file.extend(code);
    file
}
