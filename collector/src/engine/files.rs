//! The folder of assertions: read whole, and looked at for changes.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::assertion::Set;
use crate::assertion::document::{FILE_BYTES, Source};
use crate::assertion::parse::{self, MOST_FAULTS};
use crate::assertion::problem::{Place, Problem};
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
    #[error("more than {MOST_FILES} files in {}: put what belongs together into one", path.display())]
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
            let mut inside = Vec::new();
            for entry in fs::read_dir(path).map_err(unreadable)? {
                let path = entry.map_err(unreadable)?.path();
                if is_of_assertions(&path) && is_file(&path)? {
                    inside.push(path);
                }
            }
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

/// Whether what a folder has under a name of ours is a file. Folders within it are not looked at; whatever else there is somebody takes
/// for a file of assertions, and what stands in it would not be judged.
fn is_file(path: &Path) -> Result<bool, FilesError> {
    let unreadable = |cause: String| FilesError::Unreadable {
        path: path.to_owned(),
        cause,
    };
    match fs::metadata(path) {
        Ok(found) if found.is_file() || found.is_dir() => Ok(found.is_file()),
        Ok(_) => Err(unreadable(
            "it is no file; give it another name, or remove it".to_owned(),
        )),
        Err(error) if path.is_symlink() => Err(unreadable(format!(
            "it is a link that leads nowhere ({error}); mend it, or remove it"
        ))),
        Err(error) => Err(unreadable(error.to_string())),
    }
}

/// What an editor may put before a text in UTF-8.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// No more than one may have, and a byte by which that is seen.
fn text_of(path: &Path) -> Result<File, FilesError> {
    let read = || {
        let mut bytes = Vec::new();
        fs::File::open(path)?
            .take(FILE_BYTES as u64 + 1)
            .read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|error: std::io::Error| FilesError::Unreadable {
        path: path.to_owned(),
        cause: error.to_string(),
    })?;
    let name = path.display().to_string();
    if bytes.len() > FILE_BYTES {
        // Cut anywhere, and refused for its length.
        return Ok((name, String::from_utf8_lossy(&bytes).into_owned()));
    }
    match String::from_utf8(bytes) {
        Ok(text) => {
            let text = text
                .strip_prefix(BYTE_ORDER_MARK)
                .map(str::to_owned)
                .unwrap_or(text);
            Ok((name, text))
        }
        Err(error) => Err(FilesError::Wrong {
            problems: vec![no_utf8(&name, error.as_bytes(), error.utf8_error().valid_up_to())],
        }),
    }
}

/// Where the first byte is that belongs to no text.
fn no_utf8(file: &str, bytes: &[u8], valid: usize) -> Problem {
    let before = String::from_utf8_lossy(&bytes[..valid]);
    let line = before.rsplit('\n').next().unwrap_or_default();
    let place = Place {
        line: before.matches('\n').count() + 1,
        column: line.chars().count() + 1,
    };
    let text = String::from_utf8_lossy(bytes);
    Problem::new(
        file,
        &text,
        place,
        "this is no text in UTF-8: save the file in that encoding",
    )
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    use super::*;

    const RIGHT: &str = "assertions: [{ name: a, expect: connect.refused = 0, over: 5s }]\n";

    /// What is said of a folder in which there is something else beside a file that is right.
    fn said(name: &str, put: impl FnOnce(&Path)) -> String {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("right.yaml"), RIGHT).unwrap();
        let path = folder.path().join(name);
        put(&path);
        let said = match load(&[folder.path().to_owned()]) {
            Ok((_, set)) => format!("{} right", set.assertions.len()),
            Err(error) => error.to_string(),
        };
        said.replace(&path.display().to_string(), name)
    }

    #[test]
    fn what_somebody_takes_for_a_file_of_assertions_is_read_or_refused() {
        let lost = |cause: &str| {
            format!("cannot read a.yaml: it is a link that leads nowhere ({cause}); mend it, or remove it")
        };
        assert_eq!(
            said("a.yaml", |path| symlink("gone.yaml", path).unwrap()),
            lost("No such file or directory (os error 2)")
        );
        assert_eq!(
            said("a.yaml", |path| symlink("a.yaml", path).unwrap()),
            lost("Too many levels of symbolic links (os error 40)")
        );
        assert_eq!(
            said("a.yml", |path| drop(UnixListener::bind(path).unwrap())),
            "cannot read a.yml: it is no file; give it another name, or remove it"
        );
        // Folders within are not looked at, nor what an editor keeps for itself.
        assert_eq!(said("a.yaml", |path| fs::create_dir(path).unwrap()), "1 right");
        assert_eq!(
            said(".#a.yaml", |path| symlink("somebody@host", path).unwrap()),
            "1 right"
        );
        assert_eq!(said("a.txt", |path| symlink("gone", path).unwrap()), "1 right");
    }

    #[test]
    fn a_text_in_another_encoding_is_refused_in_its_place() {
        let check = |bytes: &[u8], expected: &str| {
            assert_eq!(said("a.yaml", |path| fs::write(path, bytes).unwrap()), expected);
        };
        check(
            b"groups: {}\n# \xc3\xa9 caf\xe9 au lait\n",
            "a.yaml:2:8: this is no text in UTF-8: save the file in that encoding\n  # \u{e9} caf\u{fffd} au lait\n         ^",
        );
        check(
            b"\xff\xfea\0s\0",
            "a.yaml:1:1: this is no text in UTF-8: save the file in that encoding\n  \u{fffd}\u{fffd}a\u{fffd}s\u{fffd}\n  ^",
        );
        // A mark before it that says that it is UTF-8 is none of its text.
        check(
            b"\xef\xbb\xbfgroup: {}\n",
            "a.yaml:1:1: unknown key `group`, did you mean groups?\n  group: {}\n  ^",
        );
    }

    #[test]
    fn a_file_that_is_too_large_is_not_read_to_its_end() {
        let expected = "a.yaml:1:1: a file of assertions has at most 1048576 bytes, this one has more";
        let said = said("a.yaml", |path| {
            fs::File::create(path).unwrap().set_len(100 << 20).unwrap();
        });
        assert_eq!(said, expected);
    }
}
