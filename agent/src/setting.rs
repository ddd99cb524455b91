//! Where a setting of this agent would have to change: a refusal says which line of which file, not only which setting.

use std::{env, fs, path::PathBuf};

/// The file that the agent's environment is read from before it starts, as its unit says; the agent itself does not read it
/// but to name a line in it.
const FILE_VARIABLE: &str = "HOLDFAST_ENV_FILE";

/// A setting, by its flag without the dashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting(pub &'static str);

/// Where the settings of a process come from.
struct Sources {
    arguments: Vec<String>,
    is_in_environment: bool,
    /// Its name, and what is in it; empty if it cannot be read.
    file: Option<(PathBuf, String)>,
}

impl Setting {
    /// What to do so that it has this value.
    pub fn to(self, value: &str) -> String {
        let file = env::var_os(FILE_VARIABLE).map(PathBuf::from);
        let sources = Sources {
            arguments: env::args().collect(),
            is_in_environment: env::var_os(self.variable()).is_some(),
            file: file.map(|path| {
                let text = fs::read_to_string(&path).unwrap_or_default();
                (path, text)
            }),
        };
        self.to_in(value, &sources)
    }

    fn to_in(self, value: &str, sources: &Sources) -> String {
        let Self(flag) = self;
        let quote = if value.contains(' ') { "\"" } else { "" };
        let line = format!("{}={quote}{value}{quote}", self.variable());
        let own = format!("--{flag}");
        let is_own = |argument: &String| {
            argument
                .strip_prefix(&own)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('='))
        };
        if sources.arguments.iter().any(is_own) {
            return format!(
                "start the agent with --{flag} {quote}{value}{quote} in its command line, where it stands now"
            );
        }
        match &sources.file {
            Some((path, text)) => {
                let path = path.display();
                let lines: Vec<_> = text.lines().collect();
                let assigns = |line: &&str| {
                    line.split_once('=')
                        .is_some_and(|(name, _)| name.trim() == self.variable())
                };
                // Of several, the last one counts.
                match lines.iter().rposition(assigns) {
                    Some(before) => {
                        let number = before + 1;
                        format!("make line {number} of {path} {line} (--{flag}), and start the agent again")
                    }
                    None => format!("put the line {line} (--{flag}) into {path}, and start the agent again"),
                }
            }
            None if sources.is_in_environment => {
                format!("start the agent with {line} (--{flag}) in its environment, where it stands now")
            }
            None => format!(
                "start the agent with --{flag} {quote}{value}{quote}, or with {line} in its environment"
            ),
        }
    }

    fn variable(self) -> String {
        format!("HOLDFAST_{}", self.0.to_uppercase().replace('-', "_"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(arguments: &[&str], is_in_environment: bool, file: Option<&str>) -> String {
        let sources = Sources {
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            is_in_environment,
            file: file.map(|text| ("/etc/holdfast/agent.env".into(), text.to_owned())),
        };
        Setting("load-targets").to_in("127.0.0.0/8 10.0.0.1/32:80", &sources)
    }

    #[test]
    fn what_is_named_is_where_the_setting_comes_from() {
        let line = "HOLDFAST_LOAD_TARGETS=\"127.0.0.0/8 10.0.0.1/32:80\"";
        let file =
            "# The collector.\nHOLDFAST_COLLECTOR=http://10.0.0.5:7443\nHOLDFAST_LOAD_TARGETS=127.0.0.0/8\n";
        for (told, expected) in [
            (
                told(&["run", "--load-targets", "127.0.0.0/8"], true, Some(file)),
                "--load-targets \"127.0.0.0/8 10.0.0.1/32:80\" in its command line".to_owned(),
            ),
            (
                told(&["run", "--load-targets-x=1"], true, Some(file)),
                format!("line 3 of /etc/holdfast/agent.env {line}"),
            ),
            (
                told(&["run"], false, Some("HOLDFAST_COLLECTOR=x\n")),
                format!("put the line {line} (--load-targets) into /etc/holdfast/agent.env"),
            ),
            (
                told(&["run"], true, None),
                format!("with {line} (--load-targets) in its environment, where"),
            ),
            (
                told(&["run"], false, None),
                format!("--load-targets \"127.0.0.0/8 10.0.0.1/32:80\", or with {line}"),
            ),
        ] {
            assert!(told.contains(&expected), "{told:?} says nothing of {expected:?}");
        }
    }
}
