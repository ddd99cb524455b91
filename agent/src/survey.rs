//! Asking the kernel for every TCP socket of one network namespace: what was there before the agent, what is open now,
//! and who listens. The kernel shows the sockets of the namespace that the asking thread is in.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::AsFd, unix::fs::MetadataExt},
    path::Path,
    thread,
};

use aya::programs::iter::IterLink;
use holdfast_agent_ebpf::event::SocketReport;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Why a namespace was not surveyed.
#[derive(Debug, thiserror::Error)]
pub enum SurveyError {
    #[error("the kernel does not show its TCP sockets to programs: it needs bpf_iter_tcp, Linux 5.9")]
    Unsupported,
    #[error("cannot enter the network namespace {path}: that takes CAP_SYS_ADMIN")]
    Enter { path: String, source: io::Error },
    #[error("the kernel refuses the survey")]
    Start(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the survey cannot be read")]
    Read(#[source] io::Error),
}

/// Reports that are read at one go.
const REPORTS: usize = 512;

/// The iterator of one survey.
pub struct Surveyor {
    link: IterLink,
}

impl Surveyor {
    pub(crate) fn new(link: IterLink) -> Self {
        Self { link }
    }

    /// Surveys the namespace at `path` (such as /proc/1/ns/net), or that of the caller, and hands over each socket.
    ///
    /// # Errors
    /// See [`SurveyError`].
    pub fn survey(
        self,
        path: Option<&Path>,
        each: &mut (dyn FnMut(&SocketReport) + Send),
    ) -> Result<(), SurveyError> {
        let link = self.link;
        let Some(path) = path else {
            return read(link, each);
        };
        let enter = |source| SurveyError::Enter {
            path: path.display().to_string(),
            source,
        };
        let namespace = File::open(path).map_err(enter)?;
        // Where the agent is it need not go: that takes no capability.
        if is_here(&namespace).map_err(enter)? {
            return read(link, each);
        }
        // A thread of its own: it ends where it went.
        thread::scope(|scope| {
            let surveyor = thread::Builder::new()
                .name("survey".into())
                .spawn_scoped(scope, || {
                    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                        .map_err(|error| enter(error.into()))?;
                    read(link, each)
                });
            match surveyor {
                Ok(surveyor) => surveyor
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                Err(source) => Err(enter(source)),
            }
        })
    }
}

/// Whether this thread is in the namespace.
fn is_here(namespace: &File) -> io::Result<bool> {
    let here = fs::metadata("/proc/thread-self/ns/net")?;
    Ok(namespace.metadata()?.ino() == here.ino())
}

fn read(link: IterLink, each: &mut (dyn FnMut(&SocketReport) + Send)) -> Result<(), SurveyError> {
    let mut file = link
        .into_file()
        .map_err(|error| SurveyError::Start(Box::new(error)))?;
    let mut buffer = vec![0; REPORTS * size_of::<SocketReport>()];
    let mut filled = 0;
    loop {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => return Ok(()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SurveyError::Read(error)),
        }
        let whole = filled - filled % size_of::<SocketReport>();
        buffer[..whole]
            .chunks_exact(size_of::<SocketReport>())
            .filter_map(SocketReport::from_bytes)
            .for_each(|report| each(&report));
        buffer.copy_within(whole..filled, 0);
        filled -= whole;
    }
}
