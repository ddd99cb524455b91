//! Where this machine gets Debian's packages from: the mirrors in apt's configuration, which are asked for the kernels of
//! other releases too.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Debian's releases, as sources name them. Others that also use apt have other names.
const RELEASES: [&str; 11] = [
    "buster",
    "bullseye",
    "bookworm",
    "trixie",
    "forky",
    "sid",
    "oldoldstable",
    "oldstable",
    "stable",
    "testing",
    "unstable",
];

/// The keys of all releases, where a source names none.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One source that apt knows.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suite: String,
    signed_by: Option<String>,
}

/// The mirrors of the archive and of its security updates.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Mirrors {
    archive: Source,
    security: Option<Source>,
}

/// The mirrors that apt is configured with below `etc` (such as /etc/apt); `None` if none of them is Debian's.
pub(super) fn mirrors(etc: &Path) -> Option<Mirrors> {
    let parts = fs::read_dir(etc.join("sources.list.d"))
        .into_iter()
        .flatten()
        .flatten();
    let mut files: Vec<PathBuf> = parts.map(|entry| entry.path()).collect();
    files.sort();
    files.insert(0, etc.join("sources.list"));
    let sources: Vec<Source> = files
        .iter()
        .flat_map(|file| {
            let text = fs::read_to_string(file).unwrap_or_default();
            match file.extension().and_then(|extension| extension.to_str()) {
                Some("list") => one_line(&text),
                Some("sources") => stanzas(&text),
                _ => Vec::new(),
            }
        })
        .collect();
    let find = |suffix: &str| {
        let of_debian = |source: &&Source| {
            source
                .suite
                .strip_suffix(suffix)
                .is_some_and(|release| RELEASES.contains(&release))
        };
        sources.iter().find(of_debian).cloned()
    };
    Some(Mirrors {
        archive: find("")?,
        security: find("-security"),
    })
}

impl Mirrors {
    /// A source list with the releases whose kernels are tried.
    pub(super) fn list(&self) -> String {
        const ARCHIVE: [&str; 6] = [
            "bullseye",
            "bookworm",
            "bookworm-backports",
            "trixie",
            "trixie-backports",
            "sid",
        ];
        const SECURITY: [&str; 3] = ["bullseye-security", "bookworm-security", "trixie-security"];
        let line = |source: &Source, suite: &str| {
            let keys = source.signed_by.as_deref().unwrap_or(KEYRING);
            format!("deb [arch=amd64 signed-by={keys}] {} {suite} main\n", source.uri)
        };
        let archive = ARCHIVE.iter().map(|suite| line(&self.archive, suite));
        let security = self
            .security
            .iter()
            .flat_map(|source| SECURITY.iter().map(move |suite| line(source, suite)));
        archive.chain(security).collect()
    }
}

/// `deb [signed-by=FILE] URI SUITE COMPONENT...`, one on each line.
fn one_line(text: &str) -> Vec<Source> {
    let parse = |line: &str| {
        let rest = line.trim().strip_prefix("deb ")?.trim_start();
        let (options, rest) = match rest.strip_prefix('[') {
            Some(rest) => rest.split_once(']')?,
            None => ("", rest),
        };
        let mut words = rest.split_whitespace();
        let signed_by = options
            .split_whitespace()
            .find_map(|option| option.strip_prefix("signed-by="));
        Some(Source {
            uri: words.next()?.to_owned(),
            suite: words.next()?.to_owned(),
            signed_by: signed_by.map(str::to_owned),
        })
    };
    text.lines().filter_map(parse).collect()
}

/// Stanzas of `Key: value` lines, with empty lines between them (deb822). A key that is written into the source itself is not
/// understood: then Debian's own are used.
fn stanzas(text: &str) -> Vec<Source> {
    let mut sources = Vec::new();
    for stanza in text.split("\n\n") {
        let fields: BTreeMap<String, &str> = stanza
            .lines()
            .filter(|line| !line.starts_with(['#', ' ', '\t']))
            .filter_map(|line| line.split_once(':'))
            .map(|(key, value)| (key.to_ascii_lowercase(), value.trim()))
            .collect();
        let field = |key: &str| fields.get(key).copied().unwrap_or_default();
        if field("enabled") == "no" || !field("types").split_whitespace().any(|kind| kind == "deb") {
            continue;
        }
        for uri in field("uris").split_whitespace() {
            for suite in field("suites").split_whitespace() {
                sources.push(Source {
                    uri: uri.to_owned(),
                    suite: suite.to_owned(),
                    signed_by: Some(field("signed-by").to_owned()).filter(|keys| keys.starts_with('/')),
                });
            }
        }
    }
    sources
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mirrors by what is in `sources.list`, and in the two kinds of files beside it.
    fn check(files: &[(&str, &str)], expected: Option<(&str, Option<&str>)>) {
        let etc = tempfile::tempdir().unwrap();
        fs::create_dir(etc.path().join("sources.list.d")).unwrap();
        for (name, text) in files {
            fs::write(etc.path().join(name), text).unwrap();
        }
        let found = mirrors(etc.path());
        let found = found
            .as_ref()
            .map(|mirrors| (mirrors.archive.uri.as_str(), mirrors.security.as_ref()));
        let found = found.map(|(archive, security)| (archive, security.map(|source| source.uri.as_str())));
        assert_eq!(found, expected, "{files:?}");
    }

    #[test]
    fn mirrors_are_found_in_all_forms_that_apt_reads() {
        let stanza = "Types: deb deb-src\n# a comment\nURIs: http://mirror.invalid/debian\nSuites: bookworm bookworm-updates\n\
            Components: main\nSigned-By: /usr/share/keyrings/a.gpg\n\nTypes: deb\nURIs: http://mirror.invalid/security\n\
            Suites: bookworm-security\nComponents: main\n";
        let expected = Some((
            "http://mirror.invalid/debian",
            Some("http://mirror.invalid/security"),
        ));
        check(&[("sources.list.d/debian.sources", stanza)], expected);
        let lines = "# deb http://old.invalid/debian buster main\n\
            deb http://elsewhere.invalid/apt cloud-sdk-bookworm main\n\
            deb [arch=amd64 signed-by=/a.gpg] http://mirror.invalid/debian bookworm main contrib\n\
            deb http://mirror.invalid/security bookworm-security main\n";
        check(&[("sources.list", lines)], expected);
        check(&[("sources.list.d/a.list", lines)], expected);
    }

    #[test]
    fn where_no_source_is_debians_there_is_no_mirror() {
        check(&[], None);
        check(
            &[("sources.list", "deb http://mirror.invalid/ubuntu noble main\n")],
            None,
        );
        let disabled = "Enabled: no\nTypes: deb\nURIs: http://mirror.invalid/debian\nSuites: trixie\n";
        check(&[("sources.list.d/a.sources", disabled)], None);
    }

    #[test]
    fn the_list_asks_the_same_mirrors_for_other_releases() {
        let source = |uri: &str| Source {
            uri: uri.to_owned(),
            suite: "bookworm".to_owned(),
            signed_by: None,
        };
        let mirrors = Mirrors {
            archive: source("http://mirror.invalid/debian"),
            security: Some(source("http://mirror.invalid/security")),
        };
        let list = mirrors.list();
        assert_eq!(list.lines().count(), 9);
        assert!(
            list.contains("http://mirror.invalid/debian bullseye main"),
            "{list}"
        );
        assert!(
            list.contains("http://mirror.invalid/security trixie-security main"),
            "{list}"
        );
    }
}
