//! The folder of assertions: read whole, and looked at for changes.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::assertion::Set;
use crate::assertion::document::{FILE_BYTES, Source};
use crate::assertion::parse::{self, MOST_FAULTS};
use crate::assertion::problem::Problem;
use crate::store::evidence;

/// Files in one folder.
const MOST_FILES: usize = 1_000;

/// Why there are no assertions.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: String },
    #[error("{}", text(problems))]
    Wrong { problems: Vec<Problem> },
    #[error("there are no assertions in {place}: write a file that ends in .yaml with `assertions:`")]
    None { place: String },
    #[error("more than {MOST_FILES} files in {}", path.display())]
    TooMany { path: PathBuf },
}

/// A fault after the other.
fn text(problems: &[Problem]) -> String {
    let mut lines: Vec<_> = problems.iter().map(ToString::to_string).collect();
    if problems.len() >= MOST_FAULTS {
        lines.push(format!(
            "no more than {MOST_FAULTS} faults are told at once: there may be others"
        ));
    }
    lines.join("\n")
}

/// A file's name and its text.
pub type File = (String, String);

/// Reads files, and of folders the files that end in `.yaml` or `.yml`, by name.
pub fn read(paths: &[PathBuf]) -> Result<Vec<File>, FilesError> {
    let mut files = Vec::new();
    for path in paths {
        let unreadable = |error: std::io::Error| FilesError::Unreadable {
            path: path.clone(),
            cause: error.to_string(),
        };
        let meta = fs::metadata(path).map_err(unreadable)?;
        if meta.is_dir() {
            let entries = fs::read_dir(path).map_err(unreadable)?;
            let mut inside: Vec<_> = entries
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .filter(|path| is_of_assertions(path) && path.is_file())
                .collect();
            inside.sort();
            if inside.len() > MOST_FILES {
                return Err(FilesError::TooMany { path: path.clone() });
            }
            for file in inside {
                files.push(text_of(&file)?);
            }
        } else {
            files.push(text_of(path)?);
        }
    }
    Ok(files)
}

fn is_of_assertions(path: &Path) -> bool {
    // An editor's own files begin with a dot or end in ~.
    let is_hidden = path
        .file_name()
        .is_some_and(|name| name.to_string_lossy().starts_with('.'));
    !is_hidden
        && path
            .extension()
            .is_some_and(|ending| ending == "yaml" || ending == "yml")
}

/// No more than one may have, and a byte by which that is seen.
fn text_of(path: &Path) -> Result<File, FilesError> {
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?
            .take(FILE_BYTES as u64 + 1)
            .read_to_end(&mut bytes)?;
        if bytes.len() > FILE_BYTES {
            // Cut anywhere, and refused for its length.
            return Ok(String::from_utf8_lossy(&bytes).into_owned());
        }
        String::from_utf8(bytes).map_err(|_| std::io::Error::other("it is no text in UTF-8"))
    };
    match read() {
        Ok(text) => Ok((path.display().to_string(), text)),
        Err(error) => Err(FilesError::Unreadable {
            path: path.to_owned(),
            cause: error.to_string(),
        }),
    }
}

/// What files declare. None at all is an error: whoever asserts nothing would be told that all holds.
pub fn declared(files: &[File]) -> Result<Set, FilesError> {
    let sources: Vec<_> = files.iter().map(|(file, text)| Source { file, text }).collect();
    let set = parse::set(&sources, evidence::columns).map_err(|problems| FilesError::Wrong { problems })?;
    if set.assertions.is_empty() {
        let names: Vec<_> = files.iter().map(|(name, _)| name.as_str()).collect();
        let place = if names.is_empty() {
            "the folder".to_owned()
        } else {
            names.join(", ")
        };
        return Err(FilesError::None { place });
    }
    Ok(set)
}

/// Reads files and folders, and what they declare.
pub fn load(paths: &[PathBuf]) -> Result<(Vec<File>, Set), FilesError> {
    let files = read(paths)?;
    match declared(&files) {
        Ok(set) => Ok((files, set)),
        Err(FilesError::None { .. }) => {
            let names: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
            Err(FilesError::None {
                place: names.join(", "),
            })
        }
        Err(error) => Err(error),
    }
}
