//! `receivers`: who is told, and how.

use std::path::PathBuf;
use std::time::Duration;

use url::Url;

use super::{Fields, Key, Reader, Shape, checked_name, entries, key, text};
use crate::assertion::Origin;
use crate::assertion::document::{Node, Source};
use crate::assertion::problem::{Problem, instead};
use crate::assertion::receiver::{ALERTMANAGER_REPEAT, Given, Kind, Receiver, Template};
use crate::assertion::signal::Rows;
use crate::assertion::state::Verdict;
use crate::filter::Column;

/// In all files together: each has a task of its own.
pub const MOST_RECEIVERS: usize = 50;

const KINDS: &[&str] = &["webhook", "alertmanager", "slack", "dead_mans_switch"];

/// Keys that only one kind has a use for, and that kind.
const OF_ONE_KIND: [(&str, &str); 4] = [
    ("secret_file", "webhook"),
    ("secret_env", "webhook"),
    ("body", "webhook"),
    ("every", "dead_mans_switch"),
];

/// All that a dead man's switch has.
const OF_SWITCH: [&str; 8] = [
    "name", "kind", "url", "url_file", "url_env", "ca_file", "every", "timeout",
];

const VERDICTS: &[&str] = &["holds", "pending", "violated", "unknown"];

/// The keys of a receiver.
#[rustfmt::skip]
pub static RECEIVER_KEYS: [Key; 17] = [
    key("name", Shape::Text, "what it is called; unique in all files"),
    key("kind", Shape::Word(KINDS), "how it is spoken to: JSON by POST, the API (v2) of an Alertmanager whose URL is given, an incoming webhook of Slack or what is like it, or a URL that is asked for as long as assertions are judged"),
    key("url", Shape::Text, "where: http:// or https://"),
    key("url_file", Shape::Text, "instead of `url`, where that is a secret: a file that the URL is read from, whenever something is sent"),
    key("url_env", Shape::Text, "instead of `url`: a variable in the environment of the collector"),
    key("secret_file", Shape::Text, "what the body is signed with: a file, read whenever something is sent [not signed]"),
    key("secret_env", Shape::Text, "the same: a variable in the environment of the collector"),
    key("body", Shape::Text, "JSON with fields such as `${summary}` [everything]"),
    key("every", Shape::Time, "of a dead man's switch: how often it is asked for, from 10s to 1d [1m]"),
    key("ca_file", Shape::Text, "the authorities that may vouch for an https URL, as PEM [those that the machine trusts]"),
    key("match", Shape::TextMap, "only what has all of these labels; `severity` and `assertion` are asked for in the same way [everything]"),
    key("on", Shape::Texts, "which verdicts are told: unknown too, since what nobody can tell may be violated; holds only of what was told otherwise before [violated, unknown, holds]"),
    key("group_wait", Shape::Time, "what changes within so long of the first change of an assertion is told with it; what can be told no more, or again, with that of all others, unless there is a `body` [5s]"),
    key("repeat", Shape::Time, "what is still violated or unknown so long after it was told is told again, from 10s [never; an Alertmanager: 1m]"),
    key("per_minute", Shape::Number, "messages in a minute at most; others wait [30]"),
    key("give_up_after", Shape::Time, "how long a message is tried, from 1m to 7d [1d]"),
    key("timeout", Shape::Time, "how long an answer is waited for, from 100ms to 1m [10s]"),
];

impl<'a, F: Fn(Rows) -> Vec<Column>> Reader<'a, F> {
    pub(super) fn receivers(&mut self, source: Source<'a>, root: &'a Node) {
        for item in self.items(source, root, "receivers") {
            if self.is_enough() {
                break;
            }
            let before = self.problems.len();
            let receiver = self.receiver(source, item);
            let problems = &mut self.problems[before..];
            problems.sort_by_key(|problem| (problem.place.line, problem.place.column));
            if problems.is_empty() {
                self.set.receivers.extend(receiver);
            }
        }
    }

    /// Each key is read for itself, as those of an assertion are.
    fn receiver(&mut self, source: Source<'a>, item: &'a Node) -> Option<Receiver> {
        let entries = self.keep(entries(source, item, "a receiver"))?;
        let known = RECEIVER_KEYS.map(|key| key.name);
        let is_known = self.check_keys(source, entries, &known);
        let fields = Fields {
            source,
            item,
            entries,
        };
        let is_due = |key: &str| is_known || fields.get(key).is_some();
        let name = match is_due("name") {
            true => {
                let outcome = self.receiver_name(&fields);
                self.keep(outcome)
            }
            false => None,
        };
        let kind_text = match is_due("kind") {
            true => self.keep(kind_text(&fields)),
            false => None,
        };
        let kind = kind_text.and_then(|kind| {
            for (name, _) in entries {
                let Ok(key) = text(source, name) else { continue };
                let is_of_other = OF_ONE_KIND
                    .iter()
                    .any(|(of_one, kinds_own)| *of_one == key && *kinds_own != kind);
                let is_none_of_switch =
                    kind == "dead_mans_switch" && known.contains(&key) && !OF_SWITCH.contains(&key);
                if is_of_other || is_none_of_switch {
                    let message = format!("`{key}` does nothing for a receiver of the kind {kind}");
                    self.problems.push(source.problem(name.place, message));
                }
            }
            match kind {
                "alertmanager" => Some((Kind::Alertmanager, Some(ALERTMANAGER_REPEAT))),
                "slack" => Some((Kind::Slack, None)),
                "dead_mans_switch" => {
                    let every = self.keep(time(&fields, "every", 10.0, 86_400.0))?;
                    let every = every.unwrap_or(Duration::from_secs(60));
                    Some((Kind::DeadMansSwitch { every }, None))
                }
                _ => {
                    let (body, secret) = (self.keep(body(&fields)), self.keep(secret(&fields)));
                    let (body, secret) = (body?, secret?);
                    Some((Kind::Webhook { body, secret }, None))
                }
            }
        });
        let url = match is_known
            || ["url", "url_file", "url_env"]
                .iter()
                .any(|key| fields.get(key).is_some())
        {
            true => self.keep(url(&fields)),
            false => None,
        };
        let ca_file = self.keep(path(&fields, "ca_file"));
        let matches = self.keep(fields.text_map("match"));
        let on = self.keep(on(&fields));
        let group_wait = self.keep(time(&fields, "group_wait", 0.0, 600.0));
        let repeat = self.keep(time(&fields, "repeat", 10.0, 30.0 * 86_400.0));
        let per_minute = self.keep(per_minute(&fields));
        let give_up_after = self.keep(time(&fields, "give_up_after", 60.0, 7.0 * 86_400.0));
        let timeout = self.keep(time(&fields, "timeout", 0.1, 60.0));
        let (kind, default_repeat) = kind?;
        Some(Receiver {
            name: name?,
            kind,
            url: url?,
            ca_file: ca_file?,
            matches: matches?,
            on: on?,
            group_wait: group_wait?.unwrap_or(Duration::from_secs(5)),
            repeat: repeat?.or(default_repeat),
            per_minute: per_minute?,
            give_up_after: give_up_after?.unwrap_or(Duration::from_secs(86_400)),
            timeout: timeout?.unwrap_or(Duration::from_secs(10)),
        })
    }

    fn receiver_name(&mut self, fields: &Fields<'a>) -> Result<String, Problem> {
        let source = fields.source;
        let node = needed(fields, "name")?;
        let name = checked_name(source, node)?.to_owned();
        if let Some(earlier) = self.receivers.get(&name) {
            let (file, line) = (&earlier.file, earlier.place.line);
            let message = format!("the receiver `{name}` is in {file}, line {line} already");
            return Err(source.problem(node.place, message));
        }
        if self.receivers.len() == MOST_RECEIVERS {
            return Err(source.problem(node.place, format!("more than {MOST_RECEIVERS} receivers")));
        }
        let origin = Origin {
            file: source.file.to_owned(),
            place: node.place,
        };
        self.receivers.insert(name.clone(), origin);
        Ok(name)
    }
}

fn needed<'a>(fields: &Fields<'a>, key: &str) -> Result<&'a Node, Problem> {
    let missing = || format!("this receiver has no `{key}`");
    fields
        .get(key)
        .ok_or_else(|| fields.source.problem(fields.item.place, missing()))
}

fn kind_text<'a>(fields: &Fields<'a>) -> Result<&'a str, Problem> {
    let node = needed(fields, "kind")?;
    let typed = text(fields.source, node)?;
    if !KINDS.contains(&typed) {
        let hint = instead(typed, KINDS.iter().copied());
        let message = format!("there is no kind of receiver `{typed}`, {hint}");
        return Err(fields.source.problem(node.place, message));
    }
    Ok(typed)
}

/// One of the keys that a text is given by, if any.
fn given(fields: &Fields<'_>, keys: [Option<&'static str>; 3]) -> Result<Option<Given>, Problem> {
    let there: Vec<_> = keys
        .into_iter()
        .flatten()
        .filter_map(|key| Some((key, fields.get(key)?)))
        .collect();
    if let [(first, _), (second, node), ..] = there[..] {
        let message = format!("`{first}` and `{second}`: use one of them");
        return Err(fields.source.problem(node.place, message));
    }
    let Some((key, node)) = there.first() else {
        return Ok(None);
    };
    let value = text(fields.source, node)?;
    if value.trim().is_empty() {
        return Err(fields.source.problem(node.place, format!("`{key}` is empty")));
    }
    Ok(Some(if key.ends_with("_file") {
        Given::File(value.into())
    } else if key.ends_with("_env") {
        Given::Variable(value.to_owned())
    } else {
        Given::Text(value.to_owned())
    }))
}

fn url(fields: &Fields<'_>) -> Result<Given, Problem> {
    let Some(given) = given(fields, [Some("url"), Some("url_file"), Some("url_env")])? else {
        let message = "this receiver has no `url`, `url_file` or `url_env`";
        return Err(fields.source.problem(fields.item.place, message));
    };
    if let Given::Text(text) = &given {
        checked_url(text).map_err(|message| fields.wrong("url", &message))?;
    }
    Ok(given)
}

/// What is expected instead, if it is none.
pub fn checked_url(text: &str) -> Result<Url, String> {
    match Url::parse(text.trim()) {
        Ok(url) if matches!(url.scheme(), "http" | "https") && url.has_host() => {
            if url.username().is_empty() && url.password().is_none() {
                Ok(url)
            } else {
                Err("a URL without a user in it: nothing would be sent of it".into())
            }
        }
        _ => Err("a URL such as https://hooks.example.com/a".into()),
    }
}

fn secret(fields: &Fields<'_>) -> Result<Option<Given>, Problem> {
    given(fields, [None, Some("secret_file"), Some("secret_env")])
}

fn path(fields: &Fields<'_>, key: &str) -> Result<Option<PathBuf>, Problem> {
    Ok(fields.text(key)?.map(PathBuf::from))
}

fn body(fields: &Fields<'_>) -> Result<Option<Template>, Problem> {
    let Some(node) = fields.get("body") else {
        return Ok(None);
    };
    match Template::parse(text(fields.source, node)?) {
        Ok(template) => Ok(Some(template)),
        Err(fault) => Err(fields.source.problem_within(node, fault.character, fault.message)),
    }
}

fn on(fields: &Fields<'_>) -> Result<Vec<Verdict>, Problem> {
    if fields.get("on").is_none() {
        return Ok(vec![Verdict::Violated, Verdict::Unknown, Verdict::Holds]);
    }
    let mut on = Vec::new();
    for node in fields.texts("on") {
        let name = text(fields.source, node)?;
        let verdict = VERDICTS
            .iter()
            .find(|known| **known == name)
            .and_then(|name| Verdict::named(name));
        let Some(verdict) = verdict else {
            let hint = instead(name, VERDICTS.iter().copied());
            return Err(fields
                .source
                .problem(node.place, format!("there is no verdict `{name}`, {hint}")));
        };
        if !on.contains(&verdict) {
            on.push(verdict);
        }
    }
    if on.iter().all(|verdict| *verdict == Verdict::Holds) {
        return Err(fields.wrong(
            "on",
            "violated, unknown or pending, or several of them: that it holds is told of what was told otherwise",
        ));
    }
    Ok(on)
}

fn per_minute(fields: &Fields<'_>) -> Result<u32, Problem> {
    match fields.number("per_minute")? {
        None => Ok(30),
        Some(number @ 1..=6_000) => Ok(number as u32),
        Some(_) => Err(fields.wrong("per_minute", "from 1 to 6000")),
    }
}

/// A time between two, in seconds.
fn time(fields: &Fields<'_>, key: &str, least: f64, most: f64) -> Result<Option<Duration>, Problem> {
    let Some(time) = fields.time(key)? else {
        return Ok(None);
    };
    if (least..=most).contains(&time.as_secs_f64()) {
        return Ok(Some(time));
    }
    let shown = |seconds| crate::assertion::condition::duration_text(Duration::from_secs_f64(seconds));
    Err(fields.wrong(key, &format!("from {} to {}", shown(least), shown(most))))
}
