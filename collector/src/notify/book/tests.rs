use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::assertion::receiver::{Given, Kind, Template};

const SECOND_NS: i64 = 1_000_000_000;

pub(in crate::notify) fn receiver() -> Receiver {
    Receiver {
        name: "on-call".into(),
        kind: Kind::Webhook {
            body: None,
            secret: None,
        },
        url: Given::Text("http://localhost/".into()),
        ca_file: None,
        matches: BTreeMap::new(),
        on: vec![Verdict::Violated, Verdict::Unknown, Verdict::Holds],
        group_wait: Duration::ZERO,
        repeat: None,
        per_minute: 30,
        give_up_after: Duration::from_secs(3_600),
        timeout: Duration::from_secs(1),
    }
}

/// What a key came to in the window that ended so many seconds in.
pub(in crate::notify) fn change(at: i64, verdict: Verdict) -> Change {
    Change {
        assertion: "a".into(),
        key: "from.node web-1".into(),
        verdict,
        since_ns: at * SECOND_NS,
        window_from_ns: (at - 5) * SECOND_NS,
        window_to_ns: at * SECOND_NS,
        judged_ns: at * SECOND_NS,
        condition: "connect.p99 < 20ms".into(),
        value: Some(1.0),
        samples: 1,
        loss: Some(0),
        cause: String::new(),
        evidence: "{}".into(),
        severity: "page".into(),
        labels: BTreeMap::new(),
        revision: 0,
        fingerprint: 7,
    }
}

fn verdict_of(letter: char) -> Verdict {
    match letter {
        'H' => Verdict::Holds,
        'P' => Verdict::Pending,
        'V' => Verdict::Violated,
        _ => Verdict::Unknown,
    }
}

fn letter(verdict: Verdict) -> char {
    match verdict {
        Verdict::Holds => 'H',
        Verdict::Pending => 'P',
        Verdict::Violated => 'V',
        Verdict::Unknown => '?',
    }
}

/// Hears a change a second, and says what is told: `3V` is a violation in second 3.
fn told(receiver: Receiver, changes: &str) -> String {
    let mut book = Book::new(receiver, 0, Vec::new());
    let mut text = Vec::new();
    for (at, verdict) in changes.chars().enumerate() {
        let now_ns = at as i64 * SECOND_NS;
        if verdict != '.' {
            book.hear(
                &change(at as i64, verdict_of(verdict)),
                About::default(),
                now_ns,
                false,
            );
        }
        for message in book.due(now_ns, |_| Quiet::Never) {
            let each = message.notifications.iter().map(|one| letter(one.change.verdict));
            text.push(format!("{at}{}", each.collect::<String>()));
        }
    }
    text.join(" ")
}

#[test]
fn what_changes_is_told_and_what_never_failed_is_not_told_to_hold() {
    for (changes, expected) in [
        ("H", ""),
        ("HPH", ""),
        ("HPVH", "2V 3H"),
        ("?H", "0? 1H"),
        ("V?V", "0V 1? 2V"),
        // What was told is not told again: pending is no news to this receiver.
        ("VPV", "0V"),
        ("VPH", "0V 2H"),
        ("VHHVH", "0V 1H 3V 4H"),
    ] {
        assert_eq!(told(receiver(), changes), expected, "{changes}");
    }
}

#[test]
fn a_receiver_is_told_the_verdicts_that_it_wants() {
    let only = |on: &[Verdict], changes: &str| {
        told(
            Receiver {
                on: on.to_vec(),
                ..receiver()
            },
            changes,
        )
    };
    // It is not told that it holds; the next violation is another one all the same.
    assert_eq!(only(&[Verdict::Violated], "V?VHV"), "0V 4V");
    assert_eq!(only(&[Verdict::Violated], "VPVHPHV"), "0V 6V");
    assert_eq!(only(&[Verdict::Violated, Verdict::Holds], "?V?VHV"), "1V 4H 5V");
    assert_eq!(only(&[Verdict::Pending, Verdict::Violated], "HPVHP"), "1P 2V 4P");
}

#[test]
fn what_comes_within_a_while_is_told_at_once() {
    let waiting = Receiver {
        group_wait: Duration::from_secs(3),
        ..receiver()
    };
    assert_eq!(told(waiting, "V.H....V......"), "3VH 10V");
}

#[test]
fn what_stays_is_told_again() {
    let repeating = Receiver {
        repeat: Some(Duration::from_secs(3)),
        ..receiver()
    };
    assert_eq!(told(repeating, "V.......H......"), "0V 3V 6V 8H");
}

/// A receiver that is down gets none of them for each time that it would have been told.
#[test]
fn what_was_not_sent_yet_is_not_told_again() {
    let repeating = |group_wait| Receiver {
        repeat: Some(Duration::from_secs(3)),
        group_wait: Duration::from_secs(group_wait),
        ..receiver()
    };
    let quiet = |_: &Change| Quiet::Never;
    let mut book = Book::new(repeating(0), 0, Vec::new());
    book.hear(&change(0, Verdict::Violated), About::default(), 0, false);
    let first = book.due(0, quiet);
    assert!(!book.is_any_to_repeat(2 * SECOND_NS, quiet));
    assert!(book.is_any_to_repeat(3 * SECOND_NS, quiet));
    book.put_off(3 * SECOND_NS, |id| id == first[0].notifications[0].id);
    assert!(book.due(3 * SECOND_NS, quiet).is_empty());
    assert!(!book.is_any_to_repeat(5 * SECOND_NS, quiet));
    // It was sent meanwhile.
    book.put_off(6 * SECOND_NS, |_| false);
    assert_eq!(book.due(6 * SECOND_NS, quiet)[0].notifications[0].repeat, 1);

    let mut book = Book::new(repeating(10), 0, Vec::new());
    book.hear(&change(0, Verdict::Violated), About::default(), 0, false);
    book.put_off(4 * SECOND_NS, |_| false);
    assert!(!book.is_any_to_repeat(4 * SECOND_NS, quiet));
}

#[test]
fn an_alertmanager_is_told_in_one_message_of_all_that_is_still_so() {
    let alertmanager = Receiver {
        kind: Kind::Alertmanager,
        repeat: Some(Duration::from_secs(60)),
        ..receiver()
    };
    let mut book = Book::new(alertmanager, 0, Vec::new());
    let mut told = Vec::new();
    for second in 0..=180 {
        let now_ns = second * SECOND_NS;
        if [0, 10, 20, 45].contains(&second) {
            let change = Change {
                assertion: format!("a{second}"),
                ..change(second, Verdict::Violated)
            };
            book.hear(&change, About::default(), now_ns, false);
        }
        let messages = book.due(now_ns, |_| Quiet::Never);
        told.extend(
            messages
                .iter()
                .map(|message| (second, message.assertion.clone(), message.notifications.len())),
        );
    }
    let told: Vec<_> = told
        .iter()
        .map(|(at, of, count)| (*at, of.as_str(), *count))
        .collect();
    let first = [(0, "a0", 1), (10, "a10", 1), (20, "a20", 1), (45, "a45", 1)];
    // The last one was told so shortly before that it is told with the others only the next time.
    assert_eq!(told[..4], first);
    assert_eq!(told[4..], [(60, "", 3), (105, "", 4), (165, "", 4)]);
}

/// One silent node is one message, whatever depends on it; what is wrong with a service has a message of its own.
#[test]
fn what_can_be_told_no_more_is_told_at_once_of_all_assertions() {
    let waiting = |kind| Receiver {
        kind,
        group_wait: Duration::from_secs(5),
        ..receiver()
    };
    let quiet = |_: &Change| Quiet::Never;
    let of = |assertion: &str, second: i64, verdict: Verdict| Change {
        assertion: assertion.into(),
        ..change(second, verdict)
    };
    let told = |kind: Kind, changes: &[Change]| -> Vec<(String, String)> {
        let mut book = Book::new(waiting(kind), 0, Vec::new());
        for change in changes {
            book.hear(change, About::default(), change.window_to_ns, false);
        }
        let messages = book.due(60 * SECOND_NS, quiet);
        assert!(book.lines.values().all(|line| line.waits_in.is_none()));
        let verdicts = |message: &Message| {
            let each = message.notifications.iter();
            each.map(|one| letter(one.change.verdict)).collect()
        };
        let told = messages
            .iter()
            .map(|message| (message.assertion.clone(), verdicts(message)));
        told.collect()
    };
    let told_of = |told: &[(&str, &str)]| -> Vec<(String, String)> {
        let told = told
            .iter()
            .map(|(of, verdicts)| ((*of).to_owned(), (*verdicts).to_owned()));
        told.collect()
    };
    let changes = [
        of("a", 1, Verdict::Unknown),
        of("b", 1, Verdict::Violated),
        of("c", 2, Verdict::Unknown),
        // What becomes of a key is told after what it was.
        of("b", 3, Verdict::Unknown),
        of("c", 4, Verdict::Violated),
        of("a", 5, Verdict::Holds),
    ];
    for kind in [Kind::Slack, Kind::Alertmanager] {
        assert_eq!(told(kind, &changes), told_of(&[("b", "V?"), ("", "??VH")]));
    }
    let template = Template::parse(r#"{ "text": "${assertion}" }"#).unwrap();
    let filled = Kind::Webhook {
        body: Some(template),
        secret: None,
    };
    assert_eq!(
        told(filled, &changes),
        told_of(&[("a", "?H"), ("b", "V?"), ("c", "?V")])
    );
}

#[test]
fn a_message_has_a_bound() {
    let mut book = Book::new(receiver(), 0, Vec::new());
    for key in 0..250 {
        let change = Change {
            key: key.to_string(),
            ..change(1, Verdict::Violated)
        };
        book.hear(&change, About::default(), 0, false);
    }
    let sizes: Vec<_> = book
        .due(0, |_| Quiet::Never)
        .iter()
        .map(|message| message.notifications.len())
        .collect();
    assert_eq!(sizes, [100, 100, 50]);
}

#[test]
fn what_changed_before_a_receiver_began_is_told_as_it_stands() {
    let mut book = Book::new(receiver(), 10 * SECOND_NS, Vec::new());
    let changes = [(1, 'V'), (2, 'H'), (3, '?'), (4, 'V')].map(|(at, letter)| change(at, verdict_of(letter)));
    book.replay(changes.to_vec(), 10 * SECOND_NS, |_| About::default(), |_| false);
    let messages = book.due(10 * SECOND_NS, |_| Quiet::Never);
    let told: Vec<_> = messages
        .iter()
        .flat_map(|message| &message.notifications)
        .map(|one| one.change.window_to_ns)
        .collect();
    assert_eq!(told, [4 * SECOND_NS]);
}

/// What a receiver is told while it is silent in these seconds: `changes` are as in [`told`].
fn told_around(receiver: Receiver, changes: &str, silence: std::ops::Range<i64>) -> String {
    let mut book = Book::new(receiver, 0, Vec::new());
    let mut text = Vec::new();
    for (at, verdict) in (0..).zip(changes.chars()) {
        let now_ns = at * SECOND_NS;
        let quiet = || match at {
            at if at < silence.start => Quiet::Never,
            at if at < silence.end => Quiet::Now,
            _ => Quiet::Until(silence.end * SECOND_NS),
        };
        if verdict != '.' {
            let change = change(at, verdict_of(verdict));
            book.hear(&change, About::default(), now_ns, quiet() == Quiet::Now);
        }
        for message in book.due(now_ns, |_| quiet()) {
            let each = message.notifications.iter().map(|one| letter(one.change.verdict));
            text.push(format!("{at}{}", each.collect::<String>()));
        }
    }
    text.join(" ")
}

#[test]
fn a_silence_holds_back_and_what_still_is_when_it_ends_is_told() {
    for (changes, silence, expected) in [
        ("V...H", 0..3, "3V 4H"),
        ("V.?..H", 0..3, "3? 5H"),
        // What began and ended in a silence is told to nobody.
        ("H.V.H..", 1..5, ""),
        ("VHVHV..", 1..6, "0V 6V"),
        // That it holds is told once the silence is over.
        ("V..H....", 1..5, "0V 5H"),
        // What was told before and is still so is told once more.
        ("V.......H", 2..5, "0V 5V 8H"),
        ("V.P.....H", 2..5, "0V 8H"),
        // What never failed has nothing to be told of.
        ("H.......", 2..5, ""),
    ] {
        assert_eq!(
            told_around(receiver(), changes, silence.clone()),
            expected,
            "{changes}, silent in {silence:?}"
        );
    }
}

#[test]
fn a_silence_takes_back_what_waits_for_others_to_be_told_with() {
    let waiting = || Receiver {
        group_wait: Duration::from_secs(3),
        ..receiver()
    };
    assert_eq!(told_around(waiting(), "V.........", 2..5), "8V");
    assert_eq!(told_around(waiting(), "V...H.....", 2..5), "");
    // It was sent already.
    assert_eq!(told_around(waiting(), "V...H.....", 4..5), "3V 8H");
    let repeating = Receiver {
        repeat: Some(Duration::from_secs(2)),
        ..receiver()
    };
    assert_eq!(told_around(repeating, "V.........", 3..6), "0V 2V 6V 8V");
}

#[test]
fn an_alertmanager_goes_on_to_hear_of_what_it_was_told_before_a_silence() {
    let alertmanager = || Receiver {
        kind: Kind::Alertmanager,
        repeat: Some(Duration::from_secs(2)),
        ..receiver()
    };
    // Or it would take it for resolved.
    assert_eq!(told_around(alertmanager(), "V.......", 1..6), "0V 2V 4V 6V");
    assert_eq!(told_around(alertmanager(), "V..H....", 1..6), "0V 2V 6H");
    // What became of it is held back: it was not resolved by that.
    assert_eq!(told_around(alertmanager(), "V..?....", 1..6), "0V 2V 4V 6?");
    let waiting = Receiver {
        group_wait: Duration::from_secs(1),
        ..alertmanager()
    };
    assert_eq!(told_around(waiting, "V..?......", 4..8), "1V 2V 4V 6V 9?");
    assert_eq!(told_around(alertmanager(), ".V......", 1..6), "6V");
}

#[test]
fn an_alertmanager_goes_on_to_hear_of_what_became_something_that_it_does_not_want_to_hear() {
    let alertmanager = |on: &[Verdict]| Receiver {
        kind: Kind::Alertmanager,
        repeat: Some(Duration::from_secs(2)),
        on: on.to_vec(),
        ..receiver()
    };
    let (violated, unknown, holds) = (Verdict::Violated, Verdict::Unknown, Verdict::Holds);
    // Of what nobody can tell, and of what fails not for long enough, nobody knows that it is over.
    assert_eq!(told(alertmanager(&[violated, holds]), "V?...H..."), "0V 2V 4V 5H");
    assert_eq!(
        told(alertmanager(&[violated, holds]), "V?P..V...H."),
        "0V 2V 4V 6V 8V 9H"
    );
    assert_eq!(told(alertmanager(&[violated]), "V?...H..V"), "0V 2V 4V 8V");
    assert_eq!(
        told(alertmanager(&[violated, unknown, holds]), "V?...H..."),
        "0V 1? 3? 5H"
    );
    // Others are told of what is so, and of nothing else.
    let webhook = Receiver {
        kind: receiver().kind,
        ..alertmanager(&[violated, holds])
    };
    assert_eq!(told(webhook, "V?...H..."), "0V 5H");
}

#[test]
fn what_was_held_back_is_told_as_it_stands_by_a_collector_that_starts_later() {
    let silence = 2 * SECOND_NS..6 * SECOND_NS;
    let changes = [(1, 'V'), (2, 'H'), (3, 'V'), (4, 'H'), (5, '?')];
    let changes = changes
        .map(|(at, letter)| change(at, verdict_of(letter)))
        .to_vec();
    let at_once = {
        let mut book = Book::new(receiver(), 0, Vec::new());
        book.hear(&changes[0], About::default(), SECOND_NS, false);
        book.due(SECOND_NS, |_| Quiet::Never)
    };
    let told: Vec<_> = at_once
        .iter()
        .flat_map(|message| &message.notifications)
        .map(|one| (SECOND_NS, one.clone()))
        .collect();
    let begin = |told: &[(i64, Notification)], now_ns| {
        let mut book = Book::new(receiver(), 0, told.to_vec());
        let is_silenced = |change: &Change| silence.contains(&change.judged_ns) || silence.contains(&now_ns);
        book.replay(changes.clone(), now_ns, |_| About::default(), is_silenced);
        book
    };
    let said = |messages: &[Message]| -> String {
        let notifications = messages.iter().flat_map(|message| &message.notifications);
        notifications.map(|one| letter(one.change.verdict)).collect()
    };
    // During the silence: nothing. After it: how it stands, and nothing of what was in between.
    let mut during = begin(&told, 5 * SECOND_NS);
    assert_eq!(said(&during.due(5 * SECOND_NS, |_| Quiet::Now)), "");
    let over = |_: &Change| Quiet::Until(silence.end);
    let from_memory = during.due(6 * SECOND_NS, over);
    assert_eq!(said(&from_memory), "?");
    let from_store = begin(&told, 9 * SECOND_NS).due(9 * SECOND_NS, over);
    assert_eq!(said(&from_store), "?");
    // Whoever decides it, it is the same notification.
    assert_eq!(from_memory[0].id, from_store[0].id);
}

#[test]
fn late_rows_take_back_what_was_told_of_their_window() {
    let mut book = Book::new(receiver(), 0, Vec::new());
    let revised = |at, verdict, revision| Change {
        revision,
        ..change(at, verdict)
    };
    let mut said = Vec::new();
    for change in [
        change(1, Verdict::Violated),
        change(5, Verdict::Unknown),
        // It was not told of that window, and other things are known since.
        revised(3, Verdict::Holds, 1),
        revised(1, Verdict::Holds, 1),
        revised(1, Verdict::Holds, 2),
        revised(5, Verdict::Holds, 1),
        change(6, Verdict::Holds),
    ] {
        book.hear(&change, About::default(), 0, false);
        for message in book.due(0, |_| Quiet::Never) {
            said.extend(message.notifications.into_iter().map(|one| {
                let at = one.change.window_to_ns / SECOND_NS;
                (at, one.change.revision, letter(one.change.verdict))
            }));
        }
    }
    assert_eq!(said, [(1, 0, 'V'), (5, 0, '?'), (1, 1, 'H'), (5, 1, 'H')]);
}

/// What a receiver that wants these verdicts is told of one key, if nothing ever fails.
fn model(on: &[Verdict], changes: &[(i64, Verdict)]) -> Vec<(i64, Verdict)> {
    let mut told: Vec<(i64, Verdict)> = Vec::new();
    let mut last = Verdict::Holds;
    for &(at, verdict) in changes {
        if on.contains(&verdict) && verdict != last {
            told.push((at, verdict));
        }
        if on.contains(&verdict) || verdict == Verdict::Holds {
            last = verdict;
        }
    }
    told
}

/// What may happen between two changes.
#[derive(Clone, Copy, Debug)]
enum Event {
    Nothing,
    /// What is due is stored.
    Store,
    /// What is due is decided, and the collector killed before it is stored.
    DecideAndKill,
    Kill,
    /// The last changes come once more, as those of a judge that was killed do: at another time.
    Again,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => Just(Event::Nothing),
        2 => Just(Event::Store),
        1 => Just(Event::DecideAndKill),
        1 => Just(Event::Kill),
        1 => Just(Event::Again),
    ]
}

proptest! {
    /// Nothing is lost and nothing is told under two ids, whenever the collector is killed.
    #[test]
    fn what_is_told_is_what_was_to_be_told(
        steps in prop::collection::vec((0_usize..4, 0_usize..3, event()), 1..60),
        group_wait in 0_u64..4,
        on in prop::sample::subsequence(Verdict::ALL.to_vec(), 1..=4),
    ) {
        let receiver = Receiver { group_wait: Duration::from_secs(group_wait), on, ..receiver() };
        let mut book = Book::new(receiver.clone(), 0, Vec::new());
        let mut stored: Vec<(i64, Notification)> = Vec::new();
        let mut changes: Vec<Change> = Vec::new();
        let begin_again = |stored: &[(i64, Notification)], changes: &[Change], now_ns| {
            let mut book = Book::new(receiver.clone(), 0, stored.to_vec());
            book.replay(changes.to_vec(), now_ns, |_| About::default(), |_| false);
            book
        };
        let mut now_ns = 0;
        for (at, (verdict, key, event)) in steps.into_iter().enumerate() {
            now_ns = at as i64 * SECOND_NS;
            let change = Change { key: key.to_string(), ..change(at as i64, Verdict::ALL[verdict]) };
            changes.push(change.clone());
            book.hear(&change, About::default(), now_ns, false);
            match event {
                Event::Nothing => {}
                Event::Store => for message in book.due(now_ns, |_| Quiet::Never) {
                    stored.extend(message.notifications.into_iter().map(|one| (now_ns, one)));
                },
                Event::DecideAndKill => {
                    book.due(now_ns, |_| Quiet::Never);
                    book = begin_again(&stored, &changes, now_ns);
                }
                Event::Kill => book = begin_again(&stored, &changes, now_ns),
                Event::Again => for change in changes.iter().rev().take(5).rev() {
                    let again = Change { judged_ns: now_ns + 1, ..change.clone() };
                    book.hear(&again, About::default(), now_ns, false);
                },
            }
        }
        now_ns += 100 * SECOND_NS;
        for message in book.due(now_ns, |_| Quiet::Never) {
            stored.extend(message.notifications.into_iter().map(|one| (now_ns, one)));
        }
        let ids: BTreeSet<_> = stored.iter().map(|(_, one)| one.id.clone()).collect();
        prop_assert_eq!(ids.len(), stored.len(), "an id was stored twice");
        for key in 0..3 {
            let of_key = |change: &&Change| change.key == key.to_string();
            let heard: Vec<_> = changes.iter().filter(of_key).map(|one| (one.window_to_ns, one.verdict)).collect();
            let told: Vec<_> = stored
                .iter()
                .map(|(_, one)| &one.change)
                .filter(of_key)
                .map(|one| (one.window_to_ns, one.verdict))
                .collect();
            prop_assert_eq!(told, model(&receiver.on, &heard));
        }
    }
}

fn end(at: i64) -> Change {
    Change {
        evidence: IS_OVER.into(),
        ..change(at, Verdict::Unknown)
    }
}

#[test]
fn what_is_judged_no_more_is_told_to_be_over_and_is_not_told_again() {
    let repeating = Receiver {
        repeat: Some(Duration::from_secs(3)),
        ..receiver()
    };
    let mut book = Book::new(repeating, 0, Vec::new());
    book.hear(&change(0, Verdict::Violated), About::default(), 0, false);
    assert_eq!(book.due(0, |_| Quiet::Never).len(), 1);
    book.hear(&end(1), About::default(), SECOND_NS, false);
    let messages = book.due(SECOND_NS, |_| Quiet::Never);
    assert!(messages[0].notifications[0].change.is_over());
    assert_eq!(messages[0].notifications[0].told_before, Some(Verdict::Violated));
    assert!(!book.is_any_open());
    assert!(book.due(60 * SECOND_NS, |_| Quiet::Never).is_empty());
    // It came again.
    book.hear(
        &change(70, Verdict::Violated),
        About::default(),
        70 * SECOND_NS,
        false,
    );
    assert_eq!(book.due(70 * SECOND_NS, |_| Quiet::Never).len(), 1);
}

#[test]
fn what_was_told_before_a_start_and_is_judged_no_more_is_over() {
    let notification = Notification {
        id: "1".into(),
        told_before: None,
        repeat: 0,
        description: String::new(),
        runbook: String::new(),
        change: change(0, Verdict::Violated),
    };
    let settled = |is_judged: bool| {
        let mut book = Book::new(receiver(), 0, vec![(0, notification.clone())]);
        book.settle(9 * SECOND_NS, |_, _| is_judged, |_| Over::NotDeclared, |_| false);
        book.due(9 * SECOND_NS, |_| Quiet::Never)
    };
    assert!(settled(true).is_empty());
    let told = settled(false);
    assert_eq!(told[0].notifications[0].change.said(), "ended");
    assert!(
        told[0].notifications[0]
            .change
            .cause
            .starts_with("no assertion of this name")
    );
}

#[test]
fn an_alertmanager_goes_on_to_hear_what_it_heard_before_a_start_as_it_heard_it() {
    let alertmanager = Receiver {
        kind: Kind::Alertmanager,
        repeat: Some(Duration::from_secs(60)),
        on: vec![Verdict::Violated, Verdict::Holds],
        ..receiver()
    };
    let mut before = Book::new(alertmanager.clone(), 0, Vec::new());
    before.hear(&change(1, Verdict::Violated), About::default(), SECOND_NS, false);
    let messages = before.due(SECOND_NS, |_| Quiet::Never);
    let told = (SECOND_NS, messages[0].notifications[0].clone());
    let mut book = Book::new(alertmanager, 0, vec![told]);
    book.replay(
        vec![change(1, Verdict::Violated), change(9, Verdict::Unknown)],
        10 * SECOND_NS,
        |_| About::default(),
        |_| false,
    );
    let messages = book.due(70 * SECOND_NS, |_| Quiet::Never);
    let again = &messages[0].notifications[0];
    assert_eq!(
        (again.change.verdict, again.change.since_ns, again.repeat),
        (Verdict::Violated, SECOND_NS, 1)
    );
}
