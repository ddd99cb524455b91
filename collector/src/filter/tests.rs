use proptest::{collection::vec, prelude::*};

use super::*;

const OUTCOMES: &[(&str, i8)] = &[("established", 1), ("refused", 2), ("timed_out", 3)];

const COLUMNS: &[Column] = &[
    Column {
        name: "remote_port",
        kind: Kind::Number {
            max: 65_535,
            unit: Unit::One,
        },
    },
    Column {
        name: "connect_us",
        kind: Kind::Number {
            max: u64::MAX,
            unit: Unit::Microseconds,
        },
    },
    Column {
        name: "bytes_sent",
        kind: Kind::Number {
            max: u64::MAX,
            unit: Unit::Bytes,
        },
    },
    Column {
        name: "comm",
        kind: Kind::Text,
    },
    Column {
        name: "outcome",
        kind: Kind::Word(OUTCOMES),
    },
    Column {
        name: "remote_ip",
        kind: Kind::Address,
    },
    Column {
        name: "opened_at",
        kind: Kind::Time,
    },
];

/// Checks the printed form, which is canonical.
fn check(text: &str, expected: &str) {
    match Filter::parse(text, COLUMNS) {
        Ok(filter) => assert_eq!(filter.to_string(), expected),
        Err(error) => panic!("{error}"),
    }
}

fn check_error(text: &str, expected: &str) {
    match Filter::parse(text, COLUMNS) {
        Ok(filter) => panic!("{text} was taken as {filter}"),
        Err(error) => assert_eq!(error.to_string().lines().next().unwrap(), expected),
    }
}

#[test]
fn conditions_are_joined_with_the_usual_precedence() {
    check(
        "remote_port = 5432 and comm = 'nginx'",
        "remote_port = 5432 and comm = 'nginx'",
    );
    check(
        "remote_port=1 or remote_port=2 and remote_port==3",
        "remote_port = 1 or remote_port = 2 and remote_port = 3",
    );
    check(
        "(remote_port<1 OR remote_port>=2) AND remote_port<>3",
        "(remote_port < 1 or remote_port >= 2) and remote_port != 3",
    );
    check(
        "not remote_port = 1 and remote_port = 2",
        "not remote_port = 1 and remote_port = 2",
    );
    check(
        "not (remote_port = 1 and remote_port = 2)",
        "not (remote_port = 1 and remote_port = 2)",
    );
    check("((((remote_port <= 1))))", "remote_port <= 1");
    check(
        "(remote_port = 1 and remote_port = 2) and remote_port = 3",
        "(remote_port = 1 and remote_port = 2) and remote_port = 3",
    );
}

#[test]
fn numbers_take_the_unit_of_their_column() {
    check("connect_us > 20ms", "connect_us > 20000");
    check("connect_us > 1.5ms", "connect_us > 1500");
    check("connect_us > 20", "connect_us > 20");
    check("connect_us <= 2m", "connect_us <= 120000000");
    check("bytes_sent > 1MiB", "bytes_sent > 1048576");
    check("bytes_sent > 0.5KiB", "bytes_sent > 512");
    check("bytes_sent > 0.25KiB", "bytes_sent > 256");
    check("bytes_sent > 1.50kB", "bytes_sent > 1500");
    check("bytes_sent != 1_000", "bytes_sent != 1000");
    check(
        "connect_us < 18446744073709551615",
        "connect_us < 18446744073709551615",
    );
}

#[test]
fn values_are_what_their_column_holds() {
    check("comm = \"ngi'nx\"", "comm = 'ngi''nx'");
    check("comm = 'it''s'", "comm = 'it''s'");
    check("comm in ('a', \"b\")", "comm in ('a', 'b')");
    check("comm not in ('a')", "comm not in ('a')");
    check(
        "comm like 'ngin%' and comm not like '_'",
        "comm like 'ngin%' and comm not like '_'",
    );
    check(
        "outcome = refused or outcome in (timed_out, 'established')",
        "outcome = refused or outcome in (timed_out, established)",
    );
    check("remote_ip = 10.0.0.1", "remote_ip = 10.0.0.1");
    check("remote_ip = '10.0.0.1'", "remote_ip = 10.0.0.1");
    check("remote_ip = ::ffff:10.0.0.1", "remote_ip = 10.0.0.1");
    check("remote_ip = fe80::1", "remote_ip = fe80::1");
    check("remote_ip in 10.0.0.0/8", "remote_ip in (10.0.0.0/8)");
    check(
        "remote_ip not in (10.0.0.0/8, fe80::/10, ::1)",
        "remote_ip not in (10.0.0.0/8, fe80::/10, ::1)",
    );
    check("remote_ip in (0.0.0.0/0)", "remote_ip in (0.0.0.0/0)");
    check("opened_at >= '2026-01-31'", "opened_at >= '2026-01-31 00:00:00'");
    check(
        "opened_at < '2026-01-31T12:30:15.250Z'",
        "opened_at < '2026-01-31 12:30:15.25'",
    );
    check(
        "opened_at < 2024-02-29T12:30",
        "opened_at < '2024-02-29 12:30:00'",
    );
}

#[test]
fn a_slip_is_answered_with_what_was_meant() {
    check_error(
        "remot_port = 1",
        "there is no column \"remot_port\", did you mean remote_port? (line 1, column 1)",
    );
    check_error(
        "xyz = 1",
        "there is no column \"xyz\", there are: remote_port, connect_us, bytes_sent, comm, outcome, remote_ip, opened_at \
         (line 1, column 1)",
    );
    check_error(
        "outcome = refusd",
        "outcome is never \"refusd\", did you mean refused? (line 1, column 11)",
    );
    check_error(
        "outcome = no",
        "outcome is never \"no\", it is one of established, refused, timed_out (line 1, column 11)",
    );
}

#[test]
fn a_value_of_another_type_is_an_error_that_says_which_is_wanted() {
    check_error(
        "remote_port = 'x'",
        "remote_port is a number: leave the quotes out (line 1, column 15)",
    );
    check_error(
        "remote_port = x",
        "remote_port is a number, \"x\" is none (line 1, column 15)",
    );
    check_error(
        "remote_port = 65536",
        "remote_port is at most 65535, 65536 is more (line 1, column 15)",
    );
    check_error(
        "remote_port = 1ms",
        "remote_port has no unit, so \"ms\" means nothing (line 1, column 15)",
    );
    check_error(
        "remote_port = 1.5",
        "remote_port is a whole number of its unit, 1.5 is not (line 1, column 15)",
    );
    check_error(
        "remote_port = -1",
        "remote_port is a number, \"-1\" is none (line 1, column 15)",
    );
    check_error(
        "connect_us = 1.0005ms",
        "connect_us is a whole number of its unit, 1.0005ms is not (line 1, column 14)",
    );
    check_error(
        "connect_us = 1MiB",
        "\"MiB\" is no unit of connect_us, use one of d, h, m, s, ms, us (line 1, column 14)",
    );
    check_error(
        "connect_us = 99999999999999999999d",
        "connect_us is at most 18446744073709551615, 99999999999999999999d is more (line 1, column 14)",
    );
    check_error(
        "comm = nginx",
        "comm is a text: put it in quotes, 'nginx' (line 1, column 8)",
    );
    check_error(
        "comm < 'a'",
        "comm has no order: use =, !=, in or like (line 1, column 6)",
    );
    check_error(
        "remote_port like '5%'",
        "remote_port is no text: use = or in (line 1, column 13)",
    );
    check_error(
        "remote_ip = 10.0.0",
        "remote_ip is an address, \"10.0.0\" is none: 10.0.0.1, ::1, 10.0.0.0/8 (line 1, column 13)",
    );
    check_error(
        "remote_ip in 10.0.0.0/33",
        "a network has a number of bits from 0 to 32, \"33\" is none (line 1, column 14)",
    );
    check_error(
        "remote_ip in 10.0.0.1/8",
        "10.0.0.1/8 is an address in a network: the network is 10.0.0.0/8 (line 1, column 14)",
    );
    check_error(
        "remote_ip = 10.0.0.0/8",
        "a network is compared with `in`: remote_ip in 10.0.0.0/8 (line 1, column 13)",
    );
    check_error(
        "opened_at > '2026-02-29'",
        "opened_at is a time in UTC, \"2026-02-29\" is none: '2026-01-31 23:59:59.5' (line 1, column 13)",
    );
}

#[test]
fn an_unfinished_filter_is_an_error_that_says_what_is_missing() {
    check_error("", "expected a column, got the end (line 1, column 1)");
    check_error(
        "remote_port",
        "expected =, !=, <, <=, >, >=, `in` or `like`, got the end (line 1, column 12)",
    );
    check_error(
        "remote_port =",
        "expected a value of remote_port, got the end (line 1, column 14)",
    );
    check_error(
        "(remote_port = 1",
        "expected `and`, `or` or ), got the end (line 1, column 17)",
    );
    check_error(
        "remote_port in (1",
        "expected , or ), got the end (line 1, column 18)",
    );
    check_error(
        "remote_port = 1 remote_port = 2",
        "expected `and`, `or` or the end, got remote_port (line 1, column 17)",
    );
    check_error("comm = 'x", "this ' has no end (line 1, column 8)");
    check_error(
        "comm like x",
        "expected a pattern in quotes, such as 'ngin%', got x (line 1, column 11)",
    );
    check_error(
        "remote_port ! 1",
        "expected != or `not`, got ! (line 1, column 13)",
    );
    check_error("comm = 'x'; drop table t", "unexpected ';' (line 1, column 11)");
}

#[test]
fn the_caret_stands_below_the_place() {
    let error = Filter::parse("comm = 'ä'\n  and remot_port = 1", COLUMNS).unwrap_err();
    assert_eq!(
        error.to_string(),
        "there is no column \"remot_port\", did you mean remote_port? (line 2, column 7)\n    and remot_port = 1\n        ^"
    );
}

#[test]
fn a_filter_is_bounded() {
    let deep = format!("{}remote_port = 1{}", "(".repeat(65), ")".repeat(65));
    check_error(&deep, "nested deeper than 64 (line 1, column 65)");
    check_error(&"not ".repeat(100), "nested deeper than 64 (line 1, column 257)");
    check_error(
        &" ".repeat(70_000),
        "a filter has at most 65536 bytes, this one 70000 (line 1, column 1)",
    );
}

#[test]
fn a_network_is_a_range_of_addresses() {
    let range = |address: &str, bits| {
        let (first, last) = Network {
            address: address.parse().unwrap(),
            bits,
        }
        .range();
        format!("{first} {last}")
    };
    assert_eq!(range("10.0.0.0", 8), "10.0.0.0 10.255.255.255");
    assert_eq!(range("10.1.2.3", 32), "10.1.2.3 10.1.2.3");
    assert_eq!(range("0.0.0.0", 0), "0.0.0.0 255.255.255.255");
    assert_eq!(
        range("fe80::", 10),
        "fe80:: febf:ffff:ffff:ffff:ffff:ffff:ffff:ffff"
    );
    assert_eq!(range("::", 0), ":: ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff");
}

fn operator() -> impl Strategy<Value = Operator> {
    prop_oneof![
        Just(Operator::Equal),
        Just(Operator::NotEqual),
        Just(Operator::Less),
        Just(Operator::LessOrEqual),
        Just(Operator::Greater),
        Just(Operator::GreaterOrEqual),
    ]
}

fn network() -> impl Strategy<Value = Value> {
    let v4 = (any::<u32>(), 0_u8..=32).prop_map(|(address, bits)| {
        let host = u32::MAX.checked_shr(bits.into()).unwrap_or(0);
        Network {
            address: IpAddr::V4((address & !host).into()),
            bits,
        }
    });
    let v6 = (any::<u128>(), 0_u8..=128).prop_map(|(address, bits)| {
        let host = u128::MAX.checked_shr(bits.into()).unwrap_or(0);
        Network {
            address: IpAddr::V6((address & !host).into()),
            bits,
        }
    });
    prop_oneof![v4, v6].prop_map(Value::Network)
}

fn leaf() -> impl Strategy<Value = Filter> {
    let unordered = prop_oneof![Just(Operator::Equal), Just(Operator::NotEqual)];
    let address = any::<IpAddr>().prop_map(|address| Value::Address(address.to_canonical()));
    let word = prop_oneof![Just("established"), Just("refused"), Just("timed_out")].prop_map(Value::Word);
    prop_oneof![
        (operator(), any::<u16>()).prop_map(|(operator, port)| Filter::Compare {
            column: "remote_port",
            operator,
            value: Value::Number(port.into())
        }),
        (operator(), any::<u64>()).prop_map(|(operator, us)| Filter::Compare {
            column: "connect_us",
            operator,
            value: Value::Number(us)
        }),
        (unordered, any::<String>()).prop_map(|(operator, text)| Filter::Compare {
            column: "comm",
            operator,
            value: Value::Text(text)
        }),
        (any::<bool>(), vec(word, 1..4)).prop_map(|(negated, values)| Filter::In {
            column: "outcome",
            negated,
            values
        }),
        (any::<bool>(), vec(prop_oneof![address, network()], 1..4)).prop_map(|(negated, values)| {
            Filter::In {
                column: "remote_ip",
                negated,
                values,
            }
        }),
        (any::<bool>(), any::<String>()).prop_map(|(negated, pattern)| Filter::Like {
            column: "comm",
            negated,
            pattern
        }),
    ]
}

fn any_filter() -> impl Strategy<Value = Filter> {
    leaf().prop_recursive(5, 32, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 2..4).prop_map(Filter::And),
            vec(inner.clone(), 2..4).prop_map(Filter::Or),
            inner.prop_map(|inner| Filter::Not(Box::new(inner))),
        ]
    })
}

proptest! {
    #[test]
    fn what_is_printed_parses_to_the_same(filter in any_filter()) {
        prop_assert_eq!(Filter::parse(&filter.to_string(), COLUMNS), Ok(filter));
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in any::<String>()) {
        let _ = Filter::parse(&text, COLUMNS);
    }

    #[test]
    fn no_sequence_of_pieces_makes_the_parser_panic(
        pieces in vec(
            prop_oneof![
                Just("remote_port"), Just("connect_us"), Just("comm"), Just("outcome"), Just("remote_ip"), Just("opened_at"),
                Just("="), Just("!"), Just("<"), Just("in"), Just("not"), Just("like"), Just("and"), Just("("), Just(")"),
                Just(","), Just("1.5ms"), Just("1."), Just("."), Just("1e9"), Just("10.0.0.0/08"), Just("::/129"), Just("'ä"),
                Just("'"), Just("\""), Just("\n"), Just("2026-99-99"), Just("2026-01-01T"), Just("0.99999999999999999999s"),
            ],
            0..12,
        ),
        separator in prop_oneof![Just(""), Just(" ")],
    ) {
        let text = pieces.join(separator);
        if let Err(error) = Filter::parse(&text, COLUMNS) {
            prop_assert!(error.line >= 1 && error.column >= 1);
        }
    }
}
