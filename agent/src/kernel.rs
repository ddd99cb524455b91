//! Which kernel this is, by its release, and what the programs need that older ones lack.

use rustix::system::uname;

/// The first two numbers of a kernel's release.
pub type Version = (u32, u32);

/// The oldest kernel that the agent is tested on. Older ones are tried all the same.
pub const SUPPORTED: Version = (6, 1);

/// What the programs cannot do without, and the first kernel that has it.
const NEEDED: [(&str, Version); 4] = [
    // BPF_TRACE_RAW_TP, kernel/bpf/verifier.c
    ("typed raw tracepoints", (5, 5)),
    ("a ring buffer for BPF", (5, 8)),
    // BPF_CMPXCHG, BPF_XCHG and BPF_FETCH; the verifier of an older one says "BPF_STX uses reserved fields".
    ("BPF atomics with results", (5, 12)),
    // bpf_get_socket_cookie, kernel/trace/bpf_trace.c
    ("socket cookies in tracing programs", (5, 12)),
];

/// As `uname -r` prints it.
pub fn release() -> String {
    uname().release().to_string_lossy().into_owned()
}

/// The version in a release; `None` if it does not begin with two numbers.
pub fn version(release: &str) -> Option<Version> {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What a kernel of this version lacks of what the programs need, each with the first kernel that has it; `None` if
/// nothing. A vendor may have given an old kernel what came later: only a kernel that has refused the programs is asked about.
pub fn lacking(version: Version) -> Option<String> {
    let lacking: Vec<String> = NEEDED
        .iter()
        .filter(|(_, since)| version < *since)
        .map(|(what, (major, minor))| format!("{what} ({major}.{minor})"))
        .collect();
    (!lacking.is_empty()).then(|| lacking.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_are_understood() {
        assert_eq!(version("6.18.44-fc-v669"), Some((6, 18)));
        assert_eq!(version("5.10.0-30-amd64"), Some((5, 10)));
        assert_eq!(version("mainline"), None);
    }

    #[test]
    fn what_a_kernel_lacks_is_named_with_the_one_that_has_it() {
        assert_eq!(
            lacking((5, 11)).as_deref(),
            Some("BPF atomics with results (5.12), socket cookies in tracing programs (5.12)")
        );
        assert_eq!(
            lacking((4, 19)).expect("all of it").matches("(5.").count(),
            NEEDED.len()
        );
        assert_eq!(lacking((5, 12)), None);
        assert_eq!(lacking(SUPPORTED), None);
    }
}
