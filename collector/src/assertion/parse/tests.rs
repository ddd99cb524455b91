use super::*;
use crate::store::evidence::columns;

fn parsed(text: &str) -> Result<Set, Vec<Problem>> {
    set(&[Source { file: "a.yaml", text }], columns)
}

/// One assertion with these lines beside its name, and the first problem.
fn check(lines: &str, expected: &str) {
    let indented: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!("groups:\n  web: role = web\nassertions:\n  - name: a\n{indented}");
    let problems = parsed(&text).expect_err(&text);
    assert_eq!(problems[0].to_string(), expected, "{text}");
}

#[test]
fn an_assertion_is_read() {
    let text = r#"
groups:
  web: role = web
  db:  role = db
assertions:
  - name: web reaches the database
    from: web
    to: db:5432
    where: comm = "nginx" and not connect_us > 3s
    expect:                          # all must hold
      - connect.p99 < 20ms
      - connect.refused_ratio < 0.1%
    over: 1m
    by: [from.node]
    for: 2m
    clear_after: 5m
    min_samples: 50
    severity: page
    labels: { team: shop }
  - name: queues
    on: web:80
    expect: listener.backlog_ratio < 80%
    over: 30s
    for: 3 of 5
    by: on.node
    quorum: ">= 95% of nodes"
"#;
    let set = parsed(text).expect("it is right");
    let [first, second] = &set.assertions[..] else {
        panic!("{set:?}");
    };
    assert_eq!(
        (first.over, first.every, first.pace),
        (
            Duration::from_secs(60),
            Duration::from_secs(5),
            Pace::For(Duration::from_secs(120))
        )
    );
    assert!(matches!(
        &first.subject,
        Subject::Client {
            to: Target { port: Some(5432), .. },
            ..
        }
    ));
    assert_eq!(first.labels["team"], "shop");
    assert!(first.filter.is_some() && first.min_samples == 50);
    assert!(matches!(&second.subject, Subject::Server { port: Some(80), .. }));
    assert_eq!(second.quorum, Some(Quorum { share: 0.95 }));
    assert_eq!(
        second.pace,
        Pace::Of {
            failures: 3,
            windows: 5
        }
    );
}

#[test]
fn a_fault_shows_its_place_and_what_was_expected() {
    check(
        "expect: connect.p98 < 1ms\nover: 1m",
        "a.yaml:5:13: there is no signal `connect.p98`, did you mean connect.p90?\n      expect: connect.p98 < 1ms\n              ^",
    );
    check(
        "expect: connect.count > 1\noevr: 1m",
        "a.yaml:6:5: unknown key `oevr`, did you mean over?\n      oevr: 1m\n      ^",
    );
    check(
        "expect: [connect.count > 1, connect.p99 < 20]\nover: 1m",
        "a.yaml:5:47: `connect.p99` is a time with its unit, such as 20ms; `20` is none\n      expect: [connect.count > 1, connect.p99 < 20]\n                                                ^",
    );
    check(
        "from: wbe\nexpect: connect.count > 1\nover: 1m",
        "a.yaml:5:11: there is no group `wbe`, did you mean web; one node is `node = wbe`\n      from: wbe\n            ^",
    );
    check(
        "where: comm = \"x\" and remote_prot = 5\nexpect: connect.count > 1\nover: 1m",
        "a.yaml:5:27: there is no column \"remote_prot\", did you mean remote_port?\n      where: comm = \"x\" and remote_prot = 5\n                            ^",
    );
}

#[test]
fn what_cannot_be_is_refused() {
    for (lines, message) in [
        ("over: 1m", "this assertion has no `expect`"),
        (
            "slo: connect.failed_ratio < 0.1%\nover: 1m",
            "`over` does not go with `slo`",
        ),
        ("slo: connect.p99 < 20ms", "`slo` is a ratio of what may go wrong"),
        (
            "slo: connect.failed_ratio < 10%",
            "the rule `page-1h` could never fail",
        ),
        (
            "slo: connect.failed_ratio < 0.1%\nburn: { page-1h: 14x over 5m and 1h }",
            "the first window is the longer one",
        ),
        (
            "slo: connect.failed_ratio < 0.1%\nburn: { page-2h: off }",
            "there is no rule `page-2h`",
        ),
        (
            "burn: { page-2h: off }\nexpect: connect.count > 1\nover: 1m",
            "`burn` needs `slo`",
        ),
        (
            "sql: DROP TABLE connections\nexpect: value < 1\nover: 1m",
            "`sql` is one SELECT",
        ),
        (
            "sql: \"SELECT count() AS value FROM file('/etc/passwd')\"\nexpect: value < 1\nover: 1m",
            "`file()` reaches beyond the database",
        ),
        (
            "sql: SELECT count() AS value FROM system.one\nexpect: value < 1\nover: 1m",
            "`system.` is about the server",
        ),
        (
            "sql: \"SELECT count() AS value FROM attempts, mergeTreeIndex(currentDatabase(), connection_records)\"\nexpect: value < 1\nover: 1m",
            "`mergetreeindex()` reaches beyond the database",
        ),
        ("expect: connect.count > 1\nover: 400d", "`over` is from 1s to 1d"),
        (
            "expect: connect.count > 1\nover: 1m\nfor: 10d\nclear_after: 400d",
            "`clear_after` is 366d at most; `400d` is longer",
        ),
        (
            "sql: SELECT count() AS value FROM attempts\nexpect: value < 1\nover: 1m",
            "`sql` does not use the window",
        ),
        (
            "sql: SELECT 1 AS value WHERE now() > {from:DateTime} AND now() < {until:DateTime}\nexpect: connect.count > 1\nover: 1m",
            "`expect` is about `value` where there is `sql`; `connect.count` is not",
        ),
        (
            "expect: value < 1\nover: 1m",
            "`expect` is about `value` only with `sql`, which says what it is",
        ),
        (
            "to: 10.0.0.1\nexpect: connect.syn_dropped = 0\nover: 1m",
            "`connect.syn_dropped` is seen on the nodes that are connected to: `to` has to name them",
        ),
        (
            "expect: []\nover: 1m",
            "`expect` is empty: nothing would be asserted",
        ),
        (
            "expect:\nover: 1m",
            "`expect` is empty: nothing would be asserted",
        ),
        ("expect: connect.count > 1", "this assertion has no `over`"),
        (
            "expect: connect.count > 1\nover: 60",
            "`over` is a time with its unit, such as 30s or 5m; `60` is none",
        ),
        (
            "expect: connect.count > 1\nover: 100ms",
            "`over` is from 1s to 1d",
        ),
        ("expect: connect.count > 1\nover: 2d", "`over` is from 1s to 1d"),
        (
            "expect: connect.count > 1\nover: 1m\nevery: 2m",
            "`every` is from 500ms to the window's length, in half seconds: what is between would be missed",
        ),
        (
            "on: web\nexpect: listener.drops = 0\nover: 5s",
            "`over` is at least 20s for `listener.drops`: agents look at it from time to time",
        ),
        (
            "from: web\nexpect: node.up = true\nover: 5s",
            "`node.up` is read at the node (`on`): use `on`",
        ),
        (
            "to: web\non: web\nexpect: connect.count > 1\nover: 5s",
            "`to` is where clients connect to, `on` the end that listens: use one of them",
        ),
        (
            "on: 10.0.0.1\nexpect: connect.count > 1\nover: 5s",
            "`on` is a group of nodes, not an address: agents look at nodes",
        ),
        (
            "to: web:0\nexpect: connect.count > 1\nover: 5s",
            "a port is from 1 to 65535, 0 is not",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nby: [node]",
            "there is no dimension `node`, did you mean on.node?",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nby: on.node",
            "`on.node` needs `on`; here it is from.node or to.node",
        ),
        (
            "on: web\nexpect: syscall.count > 1\nover: 30s\nby: port",
            "what is asserted cannot be told apart by `port`",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nby: [service, service]",
            "`service` is there twice",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nfor: 6 of 5",
            "`for` is like `3 of 5`, of 64 windows at most; `6 of 5` is not",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nfor: 400d",
            "`for` is 366d at most; `400d` is longer",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nfor: soon",
            "`for` is a time such as 2m, or `3 of 5` windows; `soon` is neither",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nquorum: '>= 95% of nodes'",
            "`quorum` is a share of nodes: it needs `by` with one of from.node, to.node, on.node",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nno_data: fine",
            "`no_data` is one of unknown, holds, violated; `fine` is none",
        ),
        (
            "on: web\nexpect: node.up = true\nover: 5s\nwhere: comm = 'x'",
            "`where` chooses rows, and what is asserted is not made of rows",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nmin_samples: -1",
            "`min_samples` is a whole number, `-1` is none",
        ),
        (
            "expect: connect.count > 1\nover: 5s\ndeadline: 1h",
            "`deadline` is from 1s to 10m: evidence takes a second or two to come",
        ),
        (
            "expect: connect.count > 1\nover: 5s\nobjective: 99%",
            "unknown key `objective`, there are: ",
        ),
    ] {
        let indented: String = lines.lines().map(|line| format!("    {line}\n")).collect();
        let text = format!("groups:\n  web: role = web\nassertions:\n  - name: a\n{indented}");
        let problems = parsed(&text).expect_err(&text);
        assert!(
            problems[0].message.starts_with(message),
            "{text}: {}",
            problems[0].message
        );
    }
}

#[test]
fn names_are_unique_in_all_files() {
    let one = "assertions:\n  - { name: a, expect: connect.count > 1, over: 5s }\n";
    let sources = [
        Source {
            file: "1.yaml",
            text: one,
        },
        Source {
            file: "2.yaml",
            text: one,
        },
    ];
    let problems = set(&sources, columns).expect_err("there are two");
    assert_eq!(
        problems[0].message,
        "the assertion `a` is in 1.yaml, line 2 already"
    );
    assert_eq!(problems[0].file, "2.yaml");
    let groups = "groups: { g: a = b }\n";
    let sources = [
        Source {
            file: "1.yaml",
            text: groups,
        },
        Source {
            file: "2.yaml",
            text: groups,
        },
    ];
    let problems = set(&sources, columns).expect_err("there are two");
    assert_eq!(
        problems[0].message,
        "the group `g` is defined in 1.yaml, line 1 already"
    );
}

#[test]
fn every_fault_is_told_at_once() {
    let text = "
groups: { a: b, b: a }
assertions:
  - { name: x, expect: connect.cuont > 1, over: 5s }
  - { name: y, from: a, expect: connect.count > 1, over: 5s }
  - { name: z, expect: connect.count > 1, ovre: 5s }
";
    let problems = parsed(text).expect_err("three faults");
    let messages: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(
        messages,
        [
            "the group is defined by itself: a -> b -> a",
            "there is no signal `connect.cuont`, did you mean connect.count?",
            "unknown key `ovre`, did you mean over?",
        ]
    );
}

/// What is wrong with a file, as `line: message`.
fn faults(text: &str) -> Vec<String> {
    let problems = parsed(text).expect_err(text);
    problems
        .iter()
        .map(|problem| format!("{}: {}", problem.place.line, problem.message))
        .collect()
}

#[test]
fn nodes_are_declared_once_and_with_labels() {
    let assertions = "assertions: [{ name: a, expect: connect.count > 1, over: 5s }]\n";
    let text = format!("nodes: {{ web-1: {{ role: web, rack: 7 }}, web-2: }}\n{assertions}");
    let labels = |set: &Set, node: &str| set.nodes.get(node).map(BTreeMap::len);
    let found = parsed(&text).expect("they are right");
    assert_eq!(
        (
            labels(&found, "web-1"),
            labels(&found, "web-2"),
            labels(&found, "db-1")
        ),
        (Some(2), Some(0), None)
    );
    assert_eq!(
        faults("\nnodes:\n  web-1: web\n  '': { role: web }\n  web-2: { role: [web] }\n"),
        [
            "3: `web-1` is keys and values, this is a text",
            "4: a name is a line of text without blanks around it",
            "5: expected a text, this is a list",
        ]
    );
    let sources = ["1.yaml", "2.yaml"].map(|file| Source { file, text: &text });
    let problems = set(&sources, columns).expect_err("there are two");
    assert_eq!(
        problems[0].message,
        "the node `web-1` is declared in 1.yaml, line 1 already"
    );
}

#[test]
fn how_long_nodes_are_expected_is_said_once_and_within_bounds() {
    let assertions = "assertions: [{ name: a, expect: connect.count > 1, over: 5s, deadline: 5m }]\n";
    let text = |time: &str| format!("expect_nodes_for: {time}\n{assertions}");
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    assert_eq!(
        parsed(assertions).expect("it is right").expected_for(),
        minutes(60)
    );
    for (time, expected) in [("5m", 5), ("90m", 90), ("1d", 24 * 60)] {
        let found = parsed(&text(time)).expect(time);
        assert_eq!(found.expected_for(), minutes(expected), "{time}");
    }
    let declared = "from 1m to 1d: a node that is to be missed for longer is declared, under `nodes`";
    for (time, expected) in [
        ("4m", "no less than the longest `deadline`, which is 5m of `a`"),
        ("59s", declared),
        ("25h", declared),
        ("0s", declared),
        ("60", "a time with its unit, such as 30m or 6h; `60` is none"),
        ("-1h", "a time with its unit, such as 30m or 6h; `-1h` is none"),
    ] {
        assert_eq!(
            faults(&text(time)),
            [format!("1: `expect_nodes_for` is {expected}")],
            "{time}"
        );
    }
    assert_eq!(faults(&text("[1h]")), ["1: expected a text, this is a list"]);
    assert_eq!(faults(&text("")), ["1: expected a text, this is nothing"]);
    let sources = ["1.yaml", "2.yaml"].map(|file| Source {
        file,
        text: "expect_nodes_for: 2h\n",
    });
    let problems = set(&sources, columns).expect_err("there are two");
    assert_eq!(
        problems[0].to_string(),
        "2.yaml:1:19: `expect_nodes_for` is in 1.yaml, line 1 already, and holds for all files\n  expect_nodes_for: 2h\n                    ^"
    );
}

#[test]
fn a_key_is_not_forgotten_before_it_is_judged_again() {
    let text = "
expect_nodes_for: 1m
assertions:
  - { name: often, expect: connect.count > 1, over: 5s, by: service }
  - { name: rare, expect: connect.count > 1, over: 3h, every: 3h, by: service }
";
    let found = parsed(text).expect("it is right");
    let remembered = |at: usize| found.remembered_for(&found.assertions[at]);
    assert_eq!(remembered(0), Duration::from_secs(120));
    assert_eq!(remembered(1), Duration::from_secs(6 * 3_600));
}

#[test]
fn every_key_of_an_assertion_tells_its_own_fault() {
    let text = "
groups: { web: role = web }
assertions:
  - name: a
    from: wbe
    to: dbb:5432
    expect:
      - connect.cuont > 1
      - connect.p99 < 20
      - connect.count > 1
    over: 5
    every: never
    by: from.nod
    for: soon
    clear_after: 1
    hold: x
    deadline: 1h
    min_samples: few
    no_data: fine
    quorum: most
    labels: { verdict: x, '': y }
receivers:
  - { name: r, kind: slck, url: 'ftp://x', on: gone, repeat: 1s, per_minute: 0 }
tests:
  - { assertion: b, given: { web-1 -> db-1: 'late x60s' }, expect: { 60: Holds } }
";
    let expected = [
        "5: there is no group `wbe`, did you mean web; one node is `node = wbe`",
        "6: there is no group `dbb`, there are: web, all; one node is `node = dbb`",
        "8: there is no signal `connect.cuont`, did you mean connect.count?",
        "9: `connect.p99` is a time with its unit, such as 20ms; `20` is none",
        "11: `over` is a time with its unit, such as 30s or 5m; `5` is none",
        "12: `every` is a time with its unit, such as 30s or 5m; `never` is none",
        "13: there is no dimension `from.nod`, did you mean from.node?",
        "14: `for` is a time such as 2m, or `3 of 5` windows; `soon` is neither",
        "15: `clear_after` is a time with its unit, such as 30s or 5m; `1` is none",
        "16: `hold` is a time with its unit, such as 30s or 5m; `x` is none",
        "17: `deadline` is from 1s to 10m: evidence takes a second or two to come",
        "18: `min_samples` is a whole number, `few` is none",
        "19: `no_data` is one of unknown, holds, violated; `fine` is none",
        "20: `quorum` is like `>= 95% of nodes`; `most` is not",
        "21: `verdict` is the verdict in notifications: give this label another name",
        "21: a label has a name",
        "25: there is no assertion `b`, did you mean a?",
        "25: ",
        "25: `60` is no time with its unit, such as 90s",
        "23: there is no kind of receiver `slck`, did you mean slack?",
        "23: `url` is a URL such as https://hooks.example.com/a",
        "23: there is no verdict `gone`, there are: holds, pending, violated, unknown",
        "23: `repeat` is from 10s to 30d",
        "23: `per_minute` is from 1 to 6000",
    ];
    let found = faults(text);
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}, not {expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn one_key_that_is_wrong_hides_no_other() {
    let text = "
assertions:
  - name: a
    expect: connect.count > 1
    over: 5s
    where: remote_prot = 5
    ignore: cmm = 'x'
  - name: b
    slo: connect.p99 < 5ms
    over: 5s
    burn:
      page-1h: soon
      page-2h: off
";
    let expected = [
        "6: there is no column \"remote_prot\"",
        "7: there is no column \"cmm\"",
        "9: `slo` is a ratio of what may go wrong",
        "10: `over` does not go with `slo`",
        "12: expected a rule such as",
        "13: there is no rule `page-2h`",
    ];
    let found = faults(text);
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}, not {expected}");
    }
    assert_eq!(found.len(), expected.len(), "{found:#?}");
}

#[test]
fn what_would_take_for_ever_to_read_or_to_tell_is_cut_short() {
    let list = |count: usize, item: &dyn Fn(usize) -> String| {
        let items: Vec<_> = (0..count).map(item).collect();
        items.join("\n")
    };
    let conditions = |count| {
        let conditions = list(count, &|at| format!("      - connect.count != {at}"));
        format!("assertions:\n  - name: a\n    over: 5s\n    expect:\n{conditions}\n")
    };
    assert!(parsed(&conditions(100)).is_ok());
    assert_eq!(
        faults(&conditions(30_000)),
        ["105: `expect` has at most 100 conditions, this one has 30000"]
    );

    for text in [
        format!("groups:\n{}\n", list(10_000, &|at| format!("  g{at}: 'role ='"))),
        list(10_000, &|at| format!("key{at}: x")),
        format!(
            "assertions:\n{}\n",
            list(5_000, &|at| format!(
                "  - {{ name: a{at}, expect: connect.cuont > 1, over: 5s }}"
            ))
        ),
        format!(
            "assertions:\n  - name: a\n    slo: connect.failed_ratio < 0.1%\n    burn:\n{}\n",
            list(10_000, &|at| format!("      r{at}: soon"))
        ),
        format!(
            "assertions:\n  - name: a\n    over: 5s\n    expect: connect.count > 1\n    labels:\n{}\n",
            list(300, &|at| format!("      '{}': x", " ".repeat(at)))
        ),
        format!(
            "assertions: [{{ name: a, over: 5s, expect: connect.count > 1 }}]\ntests:\n{}\n",
            list(5_000, &|at| format!(
                "  - {{ assertion: other {at}, given: {{ a -> b: '5ms x5s' }}, expect: {{ 5s: Holds }} }}"
            ))
        ),
        format!(
            "receivers:\n{}\n",
            list(5_000, &|at| format!("  - {{ name: r{at}, kind: webhook }}"))
        ),
    ] {
        assert_eq!(faults(&text).len(), MOST_FAULTS, "{}", &text[..200]);
    }
}

#[test]
fn a_fault_is_told_once_and_not_again_by_what_depends_on_it() {
    for (text, expected) in [
        // What is missing stands under the key that is unknown.
        (
            "assertions:\n  - { name: a, expct: connect.count > 1, over: 5s }\n",
            &["2: unknown key `expct`, did you mean expect?"][..],
        ),
        // Where a node's signal is not known, `on` may be right.
        (
            "assertions:\n  - { name: a, expect: node.upp = true, over: 5s, by: on.node, quorum: '>= 95% of nodes' }\n",
            &["2: there is no signal `node.upp`, did you mean node.up?"],
        ),
        // A group that is wrong is there.
        (
            "groups: { web: 'role =' }\nassertions:\n  - { name: a, from: web, expect: connect.count > 1, over: 5s }\n",
            &["1: "],
        ),
        // Groups may stand under a key that nobody knows, and assertions too.
        (
            "grups: { web: role = web }\nassertions:\n  - { name: a, from: web, expect: connect.count > 1, over: 5s }\n",
            &["1: unknown key `grups`, did you mean groups?"],
        ),
        (
            "assrtions: []\ntests:\n  - { assertion: a, given: { a -> b: 'refused x5s' }, expect: { 5s: Holds } }\n",
            &["1: unknown key `assrtions`, did you mean assertions?"],
        ),
        (
            "groups: [web]\nassertions:\n  - { name: a, from: web, expect: connect.count > 1, over: 5s }\n",
            &["1: `groups` is keys and values, this is a list"],
        ),
        (
            "assertions: { a: b }\ntests:\n  - { assertion: a, given: { a -> b: 'refused x5s' }, expect: { 5s: Holds } }\n",
            &["1: `assertions` is a list (`- name: ...`), this is "],
        ),
        // The test may be of what has no right name; of a group that is not there that says nothing.
        (
            "assertions:\n  - { name: ' a', expect: connect.count > 1, over: 5s }\n  - { name: b, from: web, expect: connect.count > \
             1, over: 5s }\ntests:\n  - { assertion: a, given: { a -> b: 'refused x5s' }, expect: { 5s: Holds } }\n",
            &[
                "2: a name is a line of text without blanks around it",
                "3: there is no group `web`",
            ],
        ),
        // An objective that is wrong has no rules.
        (
            "assertions:\n  - { name: a, slo: connect.p99 < 5ms }\ntests:\n  - { assertion: 'a: page-1h', given: { a -> b: \
             'refused x5s' }, expect: { 5s: Holds } }\n",
            &["2: `slo` is a ratio of what may go wrong, above zero, such as `connect.failed_ratio < 0.1%`"],
        ),
        (
            "assertions:\n  - { name: a, expect: value < 1, from: all, sql: 'SELECT 1 AS value', over: 5s }\n",
            &["2: `from` does not go with `sql`: the question itself says what it is about"],
        ),
    ] {
        let found = faults(text);
        assert_eq!(found.len(), expected.len(), "{text}: {found:#?}");
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.starts_with(expected), "{text}: {found}");
        }
    }
    // The groups of a file that is no YAML are not known.
    let broken = Source {
        file: "1.yaml",
        text: "groups: { web: role = web\n",
    };
    let naming = Source {
        file: "2.yaml",
        text: "assertions:\n  - { name: a, from: web, expect: connect.count > 1, over: 5s }\n",
    };
    let problems = set(&[broken, naming], columns).expect_err("the first is no YAML");
    assert_eq!(problems.len(), 1, "{problems:?}");
}

#[test]
fn what_can_never_hold_or_never_fail_is_refused_in_its_place() {
    check(
        "expect: [connect.count > 1, connect.count >= 0]\nover: 5s",
        "a.yaml:5:47: this can never fail: `connect.count` is 0 or more; choose another limit\n      expect: [connect.count > 1, \
         connect.count >= 0]\n                                                ^",
    );
    check(
        "expect: [connect.p99 < 5ms, connect.p50 > 10ms]\nover: 5s",
        "a.yaml:5:33: `connect.p50 > 10ms` and `connect.p99 < 5ms` can never hold together\n      expect: [connect.p99 < 5ms, \
         connect.p50 > 10ms]\n                                  ^",
    );
}

#[test]
fn a_label_that_would_be_lost_in_notifications_is_refused() {
    for (labels, message) in [
        (
            "{ alertname: x }",
            "`alertname` is the assertion in notifications: give this label another name",
        ),
        (
            "{ key: x }",
            "`key` is the key of the verdict in notifications: give this label another name",
        ),
        (
            "{ severity: x }",
            "`severity` is the `severity` of the assertion in notifications: give this label another name",
        ),
        (
            "{ a-b: x, a_b: y }",
            "for an Alertmanager `a_b` and `a-b` are one label: give this one another name",
        ),
    ] {
        let text = format!(
            "assertions:\n  - {{ name: a, expect: connect.count > 1, over: 5s, labels: {labels} }}\n"
        );
        assert_eq!(faults(&text), [format!("2: {message}")], "{labels}");
    }
    let right = "assertions:\n  - { name: a, expect: connect.count > 1, over: 5s, labels: { team: x, Severity: y } }\n";
    assert_eq!(parsed(right).expect("it is right").assertions[0].labels.len(), 2);
}

#[test]
fn a_test_is_of_a_rule_and_not_of_its_objective() {
    let text = |name: &str| {
        format!(
            "assertions:\n  - {{ name: a, slo: connect.failed_ratio < 0.1%, burn: {{ page-6h: off, ticket-1d: off }} }}\n\
             tests:\n  - {{ assertion: '{name}', given: {{ a -> b: 'refused x5s' }}, expect: {{ 5s: Holds }} }}\n"
        )
    };
    assert_eq!(
        faults(&text("a")),
        ["4: `a` is an objective: test one of its rules, `a: page-1h`, `a: ticket-3d`"]
    );
    assert_eq!(parsed(&text("a: page-1h")).expect("it is right").tests.len(), 1);
}

#[test]
fn a_long_chain_of_groups_is_no_danger() {
    let mut text = "groups:\n  g0: a = b\n".to_owned();
    for at in 1..MOST_GROUPS {
        text.push_str(&format!("  g{at}: g{}\n", at - 1));
    }
    text.push_str(&format!(
        "assertions:\n  - {{ name: x, from: g{}, expect: connect.count > 1, over: 5s }}\n",
        MOST_GROUPS - 1
    ));
    let set = parsed(&text).expect("it is right");
    let node = super::group::Labelled::default();
    let membership = super::group::Membership::of(&set.groups, &[&node].into_iter());
    assert!(!membership.contains(set.assertions[0].observers(), 0, &node));
}

#[test]
fn an_objective_is_an_assertion_for_each_rule_of_its_budget() {
    let set = parsed(
        "assertions:
  - name: a
    from: all
    slo: connect.failed_ratio < 0.1%
    burn: { ticket-3d: off, mine: 2x over 30m and 3m }
",
    )
    .expect("it is right");
    let shown: Vec<_> = set
        .assertions
        .iter()
        .map(|assertion| {
            let expect: Vec<_> = assertion.expect.iter().map(ToString::to_string).collect();
            format!(
                "{} [{}] {}",
                assertion.name,
                assertion.severity,
                expect.join(" and ")
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            "a: mine [] connect.failed_ratio < 0.2% over 30m and connect.failed_ratio < 0.2% over 3m",
            "a: page-1h [page] connect.failed_ratio < 1.44% over 1h and connect.failed_ratio < 1.44% over 5m",
            "a: page-6h [page] connect.failed_ratio < 0.6% over 6h and connect.failed_ratio < 0.6% over 30m",
            "a: ticket-1d [ticket] connect.failed_ratio < 0.3% over 1d and connect.failed_ratio < 0.3% over 2h",
        ]
    );
    for condition in set.assertions.iter().flat_map(|assertion| &assertion.expect) {
        let back = Condition::read_back(&condition.to_string()).expect("its own text");
        assert_eq!((back.over, back.signal), (condition.over, condition.signal));
    }
}

/// One receiver with these lines beside its name, and the first problem.
fn check_receiver(lines: &str, expected: &str) {
    let indented: String = lines.lines().map(|line| format!("    {line}\n")).collect();
    let text = format!("receivers:\n  - name: r\n{indented}");
    let problems = parsed(&text).expect_err(&text);
    assert_eq!(problems[0].to_string(), expected, "{text}");
}

#[test]
fn a_receiver_is_read() {
    use crate::assertion::receiver::{Given, Kind};
    let text = r#"
receivers:
  - name: on-call
    kind: webhook
    url_file: /etc/holdfast/hook
    secret_env: HOOK_SECRET
    body: '{"text": "${summary}"}'
    match: { severity: page }
    on: [violated, holds]
    group_wait: 30s
    repeat: 4h
    per_minute: 5
  - { name: other, kind: webhook, url: "https://hooks.example.com/a" }
"#;
    let set = parsed(text).expect("it is right");
    let [first, second] = &set.receivers[..] else {
        panic!("{set:?}");
    };
    assert_eq!(first.url, Given::File("/etc/holdfast/hook".into()));
    assert!(matches!(
        &first.kind,
        Kind::Webhook { body: Some(_), secret: Some(Given::Variable(name)) } if name == "HOOK_SECRET"
    ));
    assert_eq!(first.matches["severity"], "page");
    assert_eq!(
        (first.repeat, first.per_minute, first.on.len()),
        (Some(Duration::from_secs(4 * 3_600)), 5, 2)
    );
    assert_eq!(
        (second.group_wait, second.repeat, second.on.len()),
        (Duration::from_secs(5), None, 3)
    );
    assert_ne!(first.fingerprint(), second.fingerprint());
}

#[test]
fn a_receiver_that_is_wrong_shows_its_place() {
    check_receiver(
        "kind: webhok\nurl: http://a",
        "a.yaml:3:11: there is no kind of receiver `webhok`, did you mean webhook?\n      kind: webhok\n            ^",
    );
    check_receiver(
        "kind: webhook\nurl: hooks.example.com",
        "a.yaml:4:10: `url` is a URL such as https://hooks.example.com/a\n      url: hooks.example.com\n           ^",
    );
    check_receiver(
        "kind: webhook\nurl: http://a\nrepeet: 1h",
        "a.yaml:5:5: unknown key `repeet`, did you mean repeat?\n      repeet: 1h\n      ^",
    );
    check_receiver(
        "kind: webhook",
        "a.yaml:2:5: this receiver has no `url`, `url_file` or `url_env`\n    - name: r\n      ^",
    );
    check_receiver(
        "kind: webhook\nurl: http://a\nurl_env: HOOK",
        "a.yaml:5:14: `url` and `url_env`: use one of them\n      url_env: HOOK\n               ^",
    );
    check_receiver(
        "kind: webhook\nurl: http://a\nbody: '{\"text\": \"${sumary}\"}'",
        "a.yaml:5:22: there is no field `sumary`, did you mean summary?\n      body: '{\"text\": \"${sumary}\"}'\n                       ^",
    );
    check_receiver(
        "kind: webhook\nurl: http://a\non: holds",
        "a.yaml:5:9: `on` is violated, unknown or pending, or several of them: that it holds is told of what was told otherwise\n      \
         on: holds\n          ^",
    );
    check_receiver(
        "kind: slack\nurl: http://a\nbody: '{}'",
        "a.yaml:5:5: `body` does nothing for a receiver of the kind slack\n      body: '{}'\n      ^",
    );
    check_receiver(
        "kind: dead_mans_switch\nurl: http://a\non: violated",
        "a.yaml:5:5: `on` does nothing for a receiver of the kind dead_mans_switch\n      on: violated\n      ^",
    );
    check_receiver(
        "kind: webhook\nurl: http://a\nrepeat: 1s",
        "a.yaml:5:13: `repeat` is from 10s to 30d\n      repeat: 1s\n              ^",
    );
}

#[test]
fn the_example_of_receivers_is_right() {
    let set = parsed(include_str!("../../../../deploy/receivers.yaml")).expect("it is right");
    assert_eq!(set.receivers.len(), 5);
}

#[test]
fn an_assertion_whose_group_is_another_one_means_something_else() {
    let fingerprint = |groups: &str| {
        let text = format!(
            "groups: {{ {groups} }}\nassertions: [{{ name: a, from: web, expect: connect.refused = 0, over: 5s }}]\n"
        );
        let set = parsed(&text).unwrap_or_else(|problems| panic!("{problems:?}"));
        set.assertions[0].fingerprint()
    };
    let first = fingerprint("web: role = web");
    assert_eq!(fingerprint("db: role = db, web:   role  =  web"), first);
    assert_ne!(fingerprint("web: role = shop"), first);
    let nested = |zone: &str| fingerprint(&format!("web: role = web and near, near: zone = {zone}"));
    assert_ne!(nested("a"), nested("b"));
}
