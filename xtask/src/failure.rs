//! What a failed command tells the shell.

use std::fmt;
use std::process::ExitCode;

/// Why a command ends without success, where it is not "it could not be done" (4). Wrong arguments (2) are clap's.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A check or a test failed.
    Check(String),
    /// A check failed, and what was printed says so already.
    Reported,
}

impl fmt::Display for Failure {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Check(message) => out.write_str(message),
            Self::Reported => out.write_str("see above"),
        }
    }
}

impl std::error::Error for Failure {}

/// Prints what went wrong, unless that was done, and returns the exit code that stands for it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let failure = error.downcast_ref();
    if !matches!(failure, Some(Failure::Reported)) {
        eprintln!("error: {error:#}");
    }
    ExitCode::from(match failure {
        Some(Failure::Check(_) | Failure::Reported) => 1,
        None => 4,
    })
}
