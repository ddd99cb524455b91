use std::collections::HashMap;

use super::*;
use crate::assertion::document::Source;
use crate::assertion::parse;
use crate::store::evidence;

const SECOND_NS: i64 = 1_000_000_000;

fn set() -> Set {
    let text = "
assertions:
  - name: web reaches the database
    from: role = web
    to: role = db
    expect: connect.failed_ratio < 1%
    over: 10s
    by: [from.node, to.node]
    severity: page
    labels: { team: db }
  - name: all of it
    expect: connect.failed_ratio < 1%
    over: 10s
  - name: asked
    sql: SELECT 1 AS value WHERE {from:DateTime64(9, 'UTC')} < {until:DateTime64(9, 'UTC')}
    expect: value < 1
    over: 10s
  - name: in the long run
    slo: connect.failed_ratio < 1%
";
    let source = Source { file: "a.yaml", text };
    parse::set(&[source], evidence::columns).unwrap()
}

fn request(name: &str) -> SetSilenceRequest {
    SetSilenceRequest {
        name: name.to_owned(),
        keys: vec![],
        labels: HashMap::new(),
        for_ns: 2 * 3_600_000_000_000,
        because: "repair".to_owned(),
        said_by: "ann@work".to_owned(),
    }
}

fn labelled(name: &str, labels: &[(&str, &str)]) -> SetSilenceRequest {
    let labels = labels
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()));
    SetSilenceRequest {
        labels: labels.collect(),
        ..request(name)
    }
}

fn keyed(name: &str, keys: &[&str]) -> SetSilenceRequest {
    SetSilenceRequest {
        keys: keys.iter().map(|&key| key.to_owned()).collect(),
        ..request(name)
    }
}

fn made(request: &SetSilenceRequest) -> Result<Silence, String> {
    check(request)
        .and_then(|()| declared(request, &set(), 0))
        .map_err(|error| error.to_string())
}

fn check_refused(request: &SetSilenceRequest, expected: &str) {
    let refused = made(request).unwrap_err();
    assert!(refused.contains(expected), "{refused}");
}

/// Whether a verdict of an assertion with the label `team=db` and the severity `page` is silenced a second after.
fn covers(request: &SetSilenceRequest, assertion: &str, key: &str) -> bool {
    let labels = [("team".to_owned(), "db".to_owned())].into();
    let of = Of {
        assertion,
        key,
        severity: "page",
        labels: &labels,
    };
    Silences::new(vec![made(request).unwrap()]).cover(of, SECOND_NS)
}

#[test]
fn a_silence_is_for_what_it_names() {
    let name = "web reaches the database";
    let (one, two) = ("from.node=web-1, to.node=db-1", "from.node=web-10, to.node=db-1");
    assert!(covers(&request(name), name, one));
    assert!(!covers(&request(name), "all of it", ""));
    // A part of a key is whole: web-10 is not web-1.
    let of_node = keyed(name, &["from.node=web-1"]);
    assert!(covers(&of_node, name, one));
    assert!(!covers(&of_node, name, two));
    let of_both = keyed(name, &["to.node=db-1", "from.node=web-10"]);
    assert!(!covers(&of_both, name, one));
    assert!(covers(&of_both, name, two));
    // By label it is for whatever has it, by severity too.
    assert!(covers(
        &labelled("", &[("team", "db"), ("severity", "page")]),
        "other",
        "x"
    ));
    // The rules of an objective are silent with it, and nothing else that begins alike.
    let objective = request("in the long run");
    assert!(covers(&objective, "in the long run: page-1h", ""));
    assert!(!covers(&objective, "in the long running", ""));
    assert!(!covers(&request(name), "web reaches the database: x", ""));
}

#[test]
fn a_silence_begins_and_is_over() {
    let silence = Silence {
        begun_ns: 10,
        until_ns: 20,
        ..made(&request("all of it")).unwrap()
    };
    let silences = Silences::new(vec![silence]);
    let labels = BTreeMap::new();
    let of = |assertion| Of {
        assertion,
        key: "",
        severity: "",
        labels: &labels,
    };
    let quiet = |at_ns| silences.quiet(of("all of it"), at_ns);
    assert_eq!(
        [9, 10, 19, 20, 99].map(quiet),
        [
            Quiet::Never,
            Quiet::Now,
            Quiet::Now,
            Quiet::Until(20),
            Quiet::Until(20)
        ]
    );
    assert_eq!(silences.quiet(of("asked"), 15), Quiet::Never);
    // Somebody may have been silent between two times.
    assert!(silences.touch(of("all of it"), 5, 10));
    assert!(silences.touch(of("all of it"), 19, 30));
    assert!(!silences.touch(of("all of it"), 5, 9));
    assert!(!silences.touch(of("all of it"), 20, 30));
}

#[test]
fn a_silence_has_an_end_a_reason_and_something_that_it_is_for() {
    let with = |change: fn(&mut SetSilenceRequest)| {
        let mut request = request("all of it");
        change(&mut request);
        request
    };
    assert!(made(&with(|_| {})).is_ok());
    check_refused(&with(|request| request.for_ns = 999_999_999), "from 1s to 30d");
    check_refused(&with(|request| request.for_ns = u64::MAX), "none lasts for ever");
    check_refused(&with(|request| request.because = "  ".into()), "why?");
    check_refused(
        &with(|request| request.because = "a\nb".into()),
        "control character",
    );
    check_refused(&with(|request| request.name.clear()), "what is to be silent?");
    check_refused(&with(|request| request.said_by.clear()), "who says so?");
    check_refused(
        &request("web reaches the databse"),
        "there is no assertion `web reaches the databse`, did you mean web reaches the database?",
    );
    check_refused(&request("x"), "in the long run, ");
    check_refused(&keyed("all of it", &["from.node=a"]), "one verdict for all of it");
    let name = "web reaches the database";
    check_refused(&keyed(name, &["from.nod=a"]), "did you mean from.node?");
    check_refused(&keyed(name, &["web-1"]), "no part of a key");
    check_refused(&keyed(name, &[""]), "no part of a key");
    check_refused(
        &labelled(name, &[("team", "web")]),
        "it does not have the labels team=web",
    );
    check_refused(
        &labelled("", &[("severity", "none")]),
        "no assertion has the labels severity=none",
    );
    // What a question of one's own calls its rows is its own.
    assert!(made(&keyed("asked", &["anything"])).is_ok());
}

#[test]
fn a_silence_is_ended_by_its_name() {
    let named = |request: &SetSilenceRequest, id: &str| Silence {
        id: id.to_owned(),
        ..made(request).unwrap()
    };
    let name = "web reaches the database";
    let active = vec![
        named(&request(name), "1"),
        named(&keyed(name, &["from.node=a"]), "2"),
        named(&request("all of it"), "3"),
        named(&labelled("", &[("team", "db")]), "4"),
    ];
    let end = |request: SetSilenceRequest| {
        let ended = ended(&SetSilenceRequest { for_ns: 0, ..request }, active.clone());
        ended
            .map(|silences| {
                silences
                    .into_iter()
                    .map(|silence| silence.id)
                    .collect::<Vec<_>>()
                    .join(" ")
            })
            .map_err(|error| error.to_string())
    };
    assert_eq!(end(request(name)), Ok("1 2".to_owned()));
    assert_eq!(end(keyed(name, &["from.node=a"])), Ok("2".to_owned()));
    assert_eq!(end(labelled("", &[("team", "db")])), Ok("4".to_owned()));
    assert!(
        end(request("all of ot"))
            .unwrap_err()
            .contains("did you mean all of it?")
    );
    assert!(
        end(keyed(name, &["from.node=b"]))
            .unwrap_err()
            .contains("no silence is for these keys")
    );
    assert!(
        ended(&request(name), vec![])
            .unwrap_err()
            .to_string()
            .contains("no silence to end")
    );
}
