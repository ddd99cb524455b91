//! Who is told when a verdict changes, as it is declared, and the template of what is sent. How it is decided what is told
//! is in [`crate::notify`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::problem::instead;
use super::state::Verdict;

/// Somebody who is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Receiver {
    pub name: String,
    pub kind: Kind,
    pub url: Given,
    /// What the authority's certificates are in that vouches for the URL's host; `None`: those of this machine.
    pub ca_file: Option<PathBuf>,
    /// Only verdicts of assertions that have all of these labels; `severity` and `assertion` can be asked for as well.
    pub matches: BTreeMap<String, String>,
    /// Which verdicts are told. `Holds` is told only of what was told otherwise before.
    pub on: Vec<Verdict>,
    /// What changes within so long of the first change of the same assertion is told with it.
    pub group_wait: Duration,
    /// What stays as it was told, and does not hold, is told again after so long.
    pub repeat: Option<Duration>,
    /// Messages that are sent within a minute at most; others wait.
    pub per_minute: u32,
    /// How long a message is tried.
    pub give_up_after: Duration,
    /// How long an answer is waited for.
    pub timeout: Duration,
}

/// How a receiver is spoken to.
#[derive(Clone, Debug, PartialEq)]
pub enum Kind {
    /// JSON by POST.
    Webhook {
        /// `None`: everything.
        body: Option<Template>,
        /// What the body is signed with.
        secret: Option<Given>,
    },
    /// The alerts of its API, version 2. The URL is that of the Alertmanager.
    Alertmanager,
    /// A text, as Slack's incoming webhooks take it.
    Slack,
    /// Is asked for by GET as long as assertions are judged: who hears nothing of it knows that they are not.
    DeadMansSwitch { every: Duration },
}

/// How often an Alertmanager is told what is still so, where `repeat` does not say: it forgets what it is not told again.
pub const ALERTMANAGER_REPEAT: Duration = Duration::from_secs(60);

/// A text, or where it is to be found when it is needed. Texts in files and variables are secrets, and never shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Given {
    Text(String),
    File(PathBuf),
    Variable(String),
}

impl Receiver {
    /// What is begun anew when it changes: what changed before is not told by the new definition.
    pub fn fingerprint(&self) -> u32 {
        crc32fast::hash(format!("{self:?}").as_bytes())
    }

    /// Whether a verdict is told to it, by what its assertion is labelled with.
    pub fn is_told_of(&self, assertion: &str, severity: &str, labels: &BTreeMap<String, String>) -> bool {
        self.matches.iter().all(|(name, value)| match name.as_str() {
            "assertion" => assertion == value,
            "severity" => severity == value,
            _ => labels.get(name) == Some(value),
        })
    }
}

/// What can stand in a template, `${so}`.
pub static FIELDS: [(&str, &str); 13] = [
    ("id", "names the message: the same when it is sent again"),
    ("receiver", "the receiver's name"),
    ("assertion", "the assertion's name"),
    (
        "verdict",
        "violated, unknown, pending, holds, or ended (it is judged no more): the worst in the message",
    ),
    ("keys", "what the verdicts are of, with commas between"),
    ("count", "how many verdicts the message has; a number"),
    ("summary", "all in a line"),
    ("text", "a line for each verdict"),
    ("severity", "of the assertion"),
    ("labels", "of the assertion; a JSON object"),
    ("description", "of the assertion"),
    ("runbook", "of the assertion"),
    (
        "notifications",
        "each verdict with all that is known; a JSON list",
    ),
];

/// Fields that are JSON as they are; all others stand inside of a JSON string.
const JSON_FIELDS: [&str; 3] = ["count", "labels", "notifications"];

/// JSON with named fields in it: `{"text": "${summary}"}`. `$$` is a dollar.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// A name of [`FIELDS`].
    Field(&'static str),
}

/// What is wrong with a template: at which character, and what.
#[derive(Debug, PartialEq, Eq)]
pub struct TemplateFault {
    pub character: usize,
    pub message: String,
}

impl Template {
    pub fn parse(text: &str) -> Result<Self, TemplateFault> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('$') {
            plain.push_str(&rest[..at]);
            let begin = &rest[at..];
            let character = text[..text.len() - begin.len()].chars().count();
            let fault = |message: String| TemplateFault { character, message };
            rest = &begin[1..];
            if let Some(after) = rest.strip_prefix('$') {
                plain.push('$');
                rest = after;
                continue;
            }
            let named = rest.strip_prefix('{').and_then(|inner| inner.split_once('}'));
            let Some((name, after)) = named else {
                return Err(fault("a field is written `${name}`, and a dollar `$$`".into()));
            };
            let known = FIELDS.map(|(known, _)| known);
            let Some(field) = known.into_iter().find(|known| *known == name) else {
                let hint = instead(name, known.into_iter());
                return Err(fault(format!("there is no field `{name}`, {hint}")));
            };
            parts.push(Part::Text(std::mem::take(&mut plain)));
            parts.push(Part::Field(field));
            rest = after;
        }
        plain.push_str(rest);
        parts.push(Part::Text(plain));
        let template = Self(parts);
        let sample = template.fill(|field| match field {
            "count" => "1".into(),
            "labels" => "{}".into(),
            "notifications" => "[]".into(),
            _ => "x".into(),
        });
        match serde_json::from_str::<serde_json::Value>(&sample) {
            Ok(_) => Ok(template),
            Err(error) => Err(TemplateFault {
                character: 0,
                message: format!("with its fields filled in it is no JSON: {error}"),
            }),
        }
    }

    /// `value` gives a field's text; that of `count`, `labels` and `notifications` is JSON already.
    pub fn fill(&self, value: impl Fn(&str) -> String) -> String {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Text(plain) => text.push_str(plain),
                Part::Field(name) if JSON_FIELDS.contains(name) => text.push_str(&value(name)),
                Part::Field(name) => {
                    let quoted = serde_json::Value::String(value(name)).to_string();
                    text.push_str(&quoted[1..quoted.len() - 1]);
                }
            }
        }
        text
    }
}

/// The name of a label as an Alertmanager takes it: letters, digits and `_`, and no digit first.
pub fn label_name(name: &str) -> String {
    let valid = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
    let text: String = name.chars().map(valid).collect();
    if text.starts_with(|c: char| c.is_ascii_digit()) {
        format!("_{text}")
    } else {
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &str) {
        let filled = Template::parse(text).map(|template| {
            template.fill(|field| match field {
                "count" => "3".into(),
                "summary" => "it is \"violated\"\n".into(),
                other => format!("<{other}>"),
            })
        });
        let found = match filled {
            Ok(text) => text,
            Err(fault) => format!("{}: {}", fault.character, fault.message),
        };
        assert_eq!(found, expected, "{text}");
    }

    #[test]
    fn fields_are_filled_in_as_json() {
        check(
            r#"{"text": "${summary}", "n": ${count}, "price": "1$$"}"#,
            r#"{"text": "it is \"violated\"\n", "n": 3, "price": "1$"}"#,
        );
        check(r#"{"a": 1}"#, r#"{"a": 1}"#);
    }

    #[test]
    fn what_is_no_template_is_refused_with_its_place() {
        check(
            r#"{"text": "${sumary}"}"#,
            "10: there is no field `sumary`, did you mean summary?",
        );
        check(
            r#"{"text": "$summary"}"#,
            "10: a field is written `${name}`, and a dollar `$$`",
        );
        check(
            r#"{"text": ${summary}}"#,
            "0: with its fields filled in it is no JSON: expected value at line 1 column 10",
        );
    }

    #[test]
    fn labels_say_who_is_told() {
        let receiver = |matches: &[(&str, &str)]| Receiver {
            name: "a".into(),
            kind: Kind::Webhook {
                body: None,
                secret: None,
            },
            url: Given::Text("http://a".into()),
            ca_file: None,
            matches: matches
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
            on: vec![Verdict::Violated],
            group_wait: Duration::ZERO,
            repeat: None,
            per_minute: 1,
            give_up_after: Duration::ZERO,
            timeout: Duration::ZERO,
        };
        let labels = BTreeMap::from([("team".to_owned(), "db".to_owned())]);
        let told = |matches: &[(&str, &str)]| receiver(matches).is_told_of("a1", "page", &labels);
        assert!(told(&[]));
        assert!(told(&[("severity", "page"), ("team", "db"), ("assertion", "a1")]));
        for other in [
            [("severity", "ticket")],
            [("team", "web")],
            [("zone", "a")],
            [("assertion", "a2")],
        ] {
            assert!(!told(&other), "{other:?}");
        }
    }
}
