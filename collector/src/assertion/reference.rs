//! What is written about the language, from the tables that the parser reads it with: the documentation of the signals,
//! and a JSON schema for editors.

use serde_json::{Map, Value, json};

use super::Dimension;
use super::parse::receivers::RECEIVER_KEYS;
use super::parse::trial::TEST_KEYS;
use super::parse::{FILE_KEYS, KEYS, MOST_CONDITIONS, RESERVED_LABELS, Shape};
use super::receiver::FIELDS;
use super::signal::{Measure, QUANTILES, Range, SIGNALS, Signal, Unit, names};
use super::state::Verdict;

/// `docs/SIGNALS.md`.
pub fn signals_document() -> String {
    let mut text = String::from(
        "# Signals and keys of assertions

Made from the tables in `collector/src/assertion`, by `holdfast check --signals`; a test holds the two together.

A signal is read at one end of a connection, over the rows of one window. A row belongs to the window in which its time
falls. Where there is nothing to read (no row, a quotient of nothing by nothing) a sum is 0 and everything else is
`Unknown`. A condition that what a signal can come to decides alone, such as `connect.count >= 0`, is refused.

## Signals

",
    );
    text.push_str(&signals_table());
    text.push_str("\nOf `NAME.p..` there are ");
    text.push_str(&QUANTILES.map(|(name, _)| name).join(", "));
    text.push_str(
        ". They are judged by counting, so a verdict is exact: `connect.p99 < 20ms` holds if at most one\nrow in a hundred took 20 ms \
         or more. The value that is shown is within 1.6 %.\n\n`syscall` takes names: `syscall(read, write).error_ratio < 1%`.\n\n## Keys \
         of an assertion\n\n| key | value | meaning [without it] |\n|---|---|---|\n",
    );
    for key in &KEYS {
        text.push_str(&format!(
            "| `{}` | {} | {} |\n",
            key.name,
            shape_text(key.shape),
            key.about
        ));
    }
    text.push_str("\n## Keys of a file\n\n| key | meaning |\n|---|---|\n");
    for (name, about) in FILE_KEYS {
        text.push_str(&format!("| `{name}` | {about} |\n"));
    }
    text.push_str("\n## Keys of a test\n\n| key | meaning |\n|---|---|\n");
    for (name, about) in TEST_KEYS {
        text.push_str(&format!("| `{name}` | {about} |\n"));
    }
    text.push_str("\n## Keys of a receiver\n\n| key | value | meaning [without it] |\n|---|---|---|\n");
    for key in &RECEIVER_KEYS {
        let shape = shape_text(key.shape);
        text.push_str(&format!("| `{}` | {shape} | {} |\n", key.name, key.about));
    }
    text.push_str("\nIn `body` there are, inside of strings unless it says otherwise:\n\n| field | meaning |\n|---|---|\n");
    for (name, about) in FIELDS {
        text.push_str(&format!("| `${{{name}}}` | {about} |\n"));
    }
    text
}

/// The signals, a line each.
pub fn signals_table() -> String {
    let mut text = String::from(
        "| signal | compared with | comes to | meaning | read at | rows |\n|---|---|---|---|---|---|\n",
    );
    for signal in &SIGNALS {
        text.push_str(&format!(
            "| `{}` | {} | {} | {} | {} | {} |\n",
            shown_name(signal),
            signal.unit.example(),
            range_text(signal),
            signal.about,
            signal.end.about(),
            signal.rows.about()
        ));
    }
    text
}

/// The signals for a terminal, a line each: the name and what it is.
pub fn signals_in_lines() -> String {
    let width = SIGNALS.iter().map(|signal| shown_name(signal).len()).max();
    let width = width.unwrap_or(0);
    let lines = SIGNALS
        .iter()
        .map(|signal| format!("  {:width$}  {}", shown_name(signal), signal.about));
    lines.collect::<Vec<_>>().join("\n")
}

fn shown_name(signal: &Signal) -> String {
    match signal.measure {
        Measure::Quantiles(_) => format!("{}.p..", signal.name),
        _ => signal.name.to_owned(),
    }
}

fn range_text(signal: &Signal) -> &'static str {
    match (signal.range, signal.unit) {
        (Range::Any, _) => "any number",
        (_, Unit::Truth) => "true or false",
        (Range::FromZero, _) => "0 or more",
        (Range::ZeroToOne, _) => "0% to 100%",
    }
}

fn shape_text(shape: Shape) -> String {
    match shape {
        Shape::Text => "text".into(),
        Shape::Texts => "text, or a list of them".into(),
        Shape::Time => "time, such as `5m`".into(),
        Shape::Number => "whole number".into(),
        Shape::Word(words) => words.join(", "),
        Shape::TextMap => "keys and texts".into(),
    }
}

/// A JSON schema of a file, for editors.
pub fn schema() -> Value {
    let mut properties = Map::new();
    for key in &KEYS {
        properties.insert(key.name.to_owned(), property(key.name, key.shape, key.about));
    }
    let assertion = json!({
        "type": "object",
        "properties": properties,
        "required": ["name"],
        "anyOf": [{ "required": ["expect", "over"] }, { "required": ["slo"] }],
        "additionalProperties": false,
    });
    let test = json!({
        "type": "object",
        "properties": {
            "assertion": { "type": "string", "description": TEST_KEYS[0].1 },
            "given": { "type": "object", "additionalProperties": { "type": "string" }, "description": TEST_KEYS[1].1 },
            "expect": {
                "type": "object",
                "additionalProperties": { "enum": ["Holds", "Pending", "Violated", "Unknown"] },
                "description": TEST_KEYS[2].1,
            },
        },
        "required": ["assertion", "given", "expect"],
        "additionalProperties": false,
    });
    let mut properties = Map::new();
    for key in &RECEIVER_KEYS {
        properties.insert(key.name.to_owned(), property(key.name, key.shape, key.about));
    }
    let receiver = json!({
        "type": "object",
        "properties": properties,
        "required": ["name", "kind"],
        "anyOf": [{ "required": ["url"] }, { "required": ["url_file"] }, { "required": ["url_env"] }],
        "additionalProperties": false,
    });
    let labels_of_a_node = json!({
        "type": ["object", "null"],
        "additionalProperties": { "type": ["string", "number"] },
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Assertions of Holdfast",
        "type": "object",
        "properties": {
            "groups": { "type": "object", "additionalProperties": { "type": "string" }, "description": FILE_KEYS[0].1 },
            "assertions": { "type": "array", "items": assertion, "description": FILE_KEYS[1].1 },
            "tests": { "type": "array", "items": test, "description": FILE_KEYS[2].1 },
            "receivers": { "type": "array", "items": receiver, "description": FILE_KEYS[3].1 },
            "nodes": { "type": "object", "additionalProperties": labels_of_a_node, "description": FILE_KEYS[4].1 },
            "expect_nodes_for": property("expect_nodes_for", Shape::Time, FILE_KEYS[5].1),
        },
        "additionalProperties": false,
    })
}

fn property(name: &str, shape: Shape, about: &str) -> Value {
    const TIME: &str = r"^[0-9][0-9_.]*\s*(us|ms|s|m|h|d)$";
    let mut value = match shape {
        Shape::Text => json!({ "type": ["string", "number"] }),
        Shape::Time => json!({ "type": "string", "pattern": TIME }),
        Shape::Number => json!({ "type": "integer", "minimum": 0 }),
        Shape::Word(words) => json!({ "enum": words }),
        Shape::TextMap => {
            json!({ "type": "object", "additionalProperties": { "type": ["string", "number"] } })
        }
        Shape::Texts => {
            let item = match name {
                "by" => json!({ "enum": Dimension::ALL.map(Dimension::name) }),
                "on" => json!({ "enum": Verdict::ALL.map(Verdict::name) }),
                _ => {
                    let signals = names().map(|name| {
                        name.replace('.', "\\.")
                            .replacen("syscall", "syscall(\\([^)]*\\))?", 1)
                    });
                    let signals: Vec<_> = signals.collect();
                    json!({ "type": "string", "pattern": format!(r"^({})\s*[<>=!]", signals.join("|")) })
                }
            };
            json!({ "anyOf": [item, { "type": "array", "items": item, "minItems": 1 }] })
        }
    };
    match name {
        "expect" => value["anyOf"][1]["maxItems"] = json!(MOST_CONDITIONS),
        "labels" => {
            let reserved = RESERVED_LABELS.map(|(name, _)| name);
            value["propertyNames"] = json!({ "not": { "enum": reserved } });
        }
        _ => {}
    }
    value["description"] = json!(about);
    value
}

#[cfg(test)]
mod tests {
    use std::{env, fs, path::Path};

    use super::*;

    /// With HOLDFAST_BLESS set, files that differ are written anew.
    fn check(path: &str, made: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path);
        if env::var_os("HOLDFAST_BLESS").is_some() {
            fs::write(&path, made).expect("the file is written");
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == made,
            "{} is not what the tables say: HOLDFAST_BLESS=1",
            path.display()
        );
    }

    #[test]
    fn the_documentation_is_what_the_tables_say() {
        check("docs/SIGNALS.md", &signals_document());
    }

    #[test]
    fn the_schema_is_what_the_tables_say() {
        let schema = serde_json::to_string_pretty(&schema()).expect("it is JSON");
        check("deploy/assertions.schema.json", &format!("{schema}\n"));
    }
}
