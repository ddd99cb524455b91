//! What receivers are told by a real collector: one that is killed, and a receiver that is down meanwhile.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use holdfast_collector::notify::book::{Message, Notification};
use holdfast_collector::store::notifications::{self, Outcome, State};
use ring::hmac;
use serde_json::Value;

use crate::harness::{database, folder};
use crate::serving::Serving;
use crate::synthetic::now_ns;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

const SECRET: &str = "s3cret";

/// A request that was read, and whether it was taken.
#[derive(Clone, Debug)]
struct Seen {
    head: String,
    body: Value,
    is_taken: bool,
}

#[derive(Default)]
struct Heard {
    is_open: bool,
    seen: Vec<Seen>,
}

/// Somebody who is told: answers 503 until it is opened, and 204 then.
struct Receiver {
    address: SocketAddr,
    heard: Arc<(Mutex<Heard>, Condvar)>,
}

impl Receiver {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let heard = Arc::<(Mutex<Heard>, Condvar)>::default();
        let hears = heard.clone();
        // It ends with the process of the tests.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever was killed while it spoke has said nothing.
                let _ = Self::answer(&mut stream.unwrap(), &hears);
            }
        });
        Self { address, heard }
    }

    fn answer(stream: &mut TcpStream, hears: &(Mutex<Heard>, Condvar)) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        let length =
            header(&head, "content-length").map_or(0, |text| text.parse().expect("a length is a number"));
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        check_signature(&head, &body);
        let (heard, changed) = hears;
        let mut heard = heard.lock().unwrap();
        let is_taken = heard.is_open;
        heard.seen.push(Seen {
            head,
            body: serde_json::from_slice(&body).expect("the body is JSON"),
            is_taken,
        });
        changed.notify_all();
        drop(heard);
        stream.write_all(match is_taken {
            true => b"HTTP/1.1 204 Taken\r\n\r\n",
            false => b"HTTP/1.1 503 Busy\r\ncontent-length: 5\r\n\r\nlater",
        })
    }

    fn open(&self) {
        self.heard.0.lock().unwrap().is_open = true;
    }

    /// Waits until it has seen enough.
    fn wait(&self, what: &str, is_enough: impl Fn(&[Seen]) -> bool) -> Vec<Seen> {
        let heard = self.heard.0.lock().unwrap();
        let (heard, waited) = self
            .heard
            .1
            .wait_timeout_while(heard, PATIENCE, |heard| !is_enough(&heard.seen))
            .unwrap();
        assert!(!waited.timed_out(), "{what} never came: {:?}", heard.seen);
        heard.seen.clone()
    }
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

fn check_signature(head: &str, body: &[u8]) {
    let signature = header(head, "holdfast-signature").expect("it is signed");
    let (seconds, hex) = signature
        .strip_prefix("t=")
        .and_then(|rest| rest.split_once(",v1="))
        .unwrap();
    let tag: Vec<u8> = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap())
        .collect();
    let signed = [format!("{seconds}.").as_bytes(), body].concat();
    let key = hmac::Key::new(hmac::HMAC_SHA256, SECRET.as_bytes());
    hmac::verify(&key, &signed, &tag).expect("the signature is right");
}

/// A message about these assertions.
fn message(id: &str, queued_ns: i64, assertions: &[&str]) -> Message {
    let notification = |assertion: &&str| {
        let notification = serde_json::json!({
            "id": format!("{id} {assertion}"), "told_before": null, "repeat": 0, "description": "", "runbook": "",
            "change": {
                "assertion": assertion, "key": "", "verdict": "violated", "since_ns": 0, "window_from_ns": 0,
                "window_to_ns": 0, "judged_ns": 0, "condition": "", "value": null, "samples": 0, "cause": "",
                "evidence": "", "severity": "", "labels": {}, "revision": 0, "fingerprint": 0,
            },
        });
        serde_json::from_value::<Notification>(notification).unwrap()
    };
    Message {
        id: id.to_owned(),
        receiver: "on-call".to_owned(),
        assertion: match assertions {
            [one] => (*one).to_owned(),
            _ => String::new(),
        },
        queued_ns,
        notifications: assertions.iter().map(notification).collect(),
    }
}

/// However many messages of one assertion are refused, those of others are sent.
#[tokio::test]
async fn of_each_assertion_the_first_message_is_to_be_sent() {
    let store = database().await;
    let now_ns = now_ns();
    for number in 0..250 {
        let refused = message(&format!("a{number:03}"), now_ns - 1_000 + number, &["a"]);
        notifications::queue(&*store, &refused, None).await.unwrap();
    }
    for (id, assertions) in [("b", &["b"][..]), ("c", &["a", "b"]), ("d", &["b", "c"])] {
        let message = message(id, now_ns, assertions);
        notifications::queue(&*store, &message, None).await.unwrap();
    }
    let settle = async |message: &str, assertion: &str, attempt: u32, state: State| {
        let outcome = Outcome {
            receiver: "on-call".to_owned(),
            message: message.to_owned(),
            assertion: assertion.to_owned(),
            state,
            at_ns: now_ns + i64::from(attempt),
            attempt,
            reason: String::new(),
        };
        notifications::settle(&*store, &outcome).await.unwrap();
    };
    let unsent = async || {
        let unsent = notifications::unsent(&*store, "on-call", now_ns).await.unwrap();
        unsent
            .into_iter()
            .map(|one| (one.message, one.assertion, one.attempts, one.notifications.len()))
            .collect::<Vec<_>>()
    };
    let row = |id: &str, of: &str, attempts, count| (id.to_owned(), of.to_owned(), attempts, count);
    settle("a000", "a", 1, State::Failed).await;
    settle("d", "", 1, State::Failed).await;
    let (b, c, d) = (row("b", "b", 0, 1), row("c", "", 0, 2), row("d", "", 1, 2));
    assert_eq!(unsent().await, [row("a000", "a", 1, 1), b.clone(), c, d.clone()]);
    let ids = notifications::unsent_ids(&*store, "on-call", now_ns)
        .await
        .unwrap();
    assert_eq!(ids.len(), 255);
    assert!(ids.contains("a000 a") && ids.contains("d c"), "{ids:?}");

    settle("a000", "a", 2, State::GivenUp).await;
    settle("c", "", 1, State::Sent).await;
    assert_eq!(unsent().await, [row("a001", "a", 0, 1), b, d]);
    let ids = notifications::unsent_ids(&*store, "on-call", now_ns)
        .await
        .unwrap();
    assert_eq!(ids.len(), 252);
}

/// Makes what holds fail, and what fails hold.
fn turn(serving: &Serving) {
    serving.run(&["probe", "set", "--all", "syscalls=default", "--wait", "1ms"]);
}

/// The ids and verdicts of what was taken, in order, each as often as it came.
fn taken(seen: &[Seen]) -> Vec<(String, String)> {
    let taken = seen.iter().filter(|request| request.is_taken);
    taken
        .flat_map(|request| request.body["notifications"].as_array().unwrap())
        .map(|one| {
            (
                one["id"].as_str().unwrap().to_owned(),
                one["verdict"].as_str().unwrap().to_owned(),
            )
        })
        .collect()
}

/// Two collectors are killed and the receiver is down in between: each change arrives, always under the same id.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_changes_is_told_though_the_receiver_is_down_and_the_collector_is_killed() {
    let receiver = Receiver::start();
    let (store, assertions) = (folder("notify-store"), folder("notify-assertions"));
    let secret = assertions.join("secret");
    std::fs::write(&secret, format!("{SECRET}\n")).unwrap();
    let text = format!(
        "
assertions:
  - name: nothing odd is wanted
    description: the number of settings is even
    sql: >-
      SELECT toFloat64(countIf(set_at < {{until:DateTime64(9, 'UTC')}}) % 2) AS value FROM probe_settings
      WHERE {{from:DateTime64(9, 'UTC')}} < {{until:DateTime64(9, 'UTC')}}
    expect: value = 0
    over: 1s
    severity: page
    labels: {{ team: db }}
receivers:
  - name: on-call
    kind: webhook
    url: http://{}/hook
    secret_file: {}
    match: {{ severity: page, team: db }}
    on: [violated, holds]
    group_wait: 0s
  - name: of others
    kind: webhook
    url: http://{}/other
    match: {{ team: web }}
    on: [violated, holds]
    group_wait: 0s
",
        receiver.address,
        secret.display(),
        receiver.address,
    );
    std::fs::write(assertions.join("a.yaml"), text).unwrap();

    let serving = Serving::start(&store, &assertions);
    serving.comes_to("holds");
    turn(&serving);
    let refused = receiver.wait("the violation", |seen| !seen.is_empty());
    let waiting = serving.rows(&["notifications"]);
    assert_eq!(waiting.len(), 1, "{waiting:?}");
    assert_eq!(waiting[0]["verdict"], "violated");
    assert_ne!(waiting[0]["state"], "sent", "{waiting:?}");
    serving.kill();

    receiver.open();
    let serving = Serving::start(&store, &assertions);
    let seen = receiver.wait("the violation, again", |seen| !taken(seen).is_empty());
    let key = |request: &Seen| header(&request.head, "idempotency-key").unwrap().to_owned();
    let first: Vec<_> = seen.iter().map(key).collect();
    assert!(first.iter().all(|id| *id == key(&refused[0])), "{first:?}");
    turn(&serving);
    receiver.wait("what holds again", |seen| {
        taken(seen).iter().any(|(_, verdict)| verdict == "holds")
    });
    serving.kill();

    // The third one has nothing to tell, unless the row that says that it was taken was not written before the kill.
    let serving = Serving::start(&store, &assertions);
    serving.comes_to("holds");
    turn(&serving);
    let seen = receiver.wait("the second violation", |seen| {
        taken(seen)
            .iter()
            .filter(|(_, verdict)| verdict == "violated")
            .count()
            >= 2
            && taken(seen)
                .last()
                .is_some_and(|(_, verdict)| verdict == "violated")
    });
    let mut told = taken(&seen);
    told.dedup();
    let verdicts: Vec<_> = told.iter().map(|(_, verdict)| verdict.as_str()).collect();
    assert_eq!(verdicts, ["violated", "holds", "violated"], "{told:?}");
    assert_ne!(told[0].0, told[2].0);
    let one = &seen[0].body["notifications"][0];
    assert_eq!(one["description"], "the number of settings is even");
    assert_eq!(one["labels"]["team"], "db");
    assert!(seen.iter().all(|request| request.head.starts_with("POST /hook ")));

    let started = Instant::now();
    loop {
        let rows = serving.rows(&["notifications"]);
        let verdicts: Vec<_> = rows.iter().map(|row| row["verdict"].as_str().unwrap()).collect();
        assert_eq!(verdicts, ["violated", "holds", "violated"], "{rows:?}");
        if rows.iter().all(|row| row["state"] == "sent") {
            break;
        }
        assert!(started.elapsed() < PATIENCE, "not sent: {rows:?}");
        std::thread::sleep(Duration::from_millis(50));
    }
    serving.kill();
}

/// Answers whoever asks, and counts them.
fn switch() -> (SocketAddr, std::sync::mpsc::Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asked, asks) = std::sync::mpsc::channel();
    // It ends with the process of the tests.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut byte = [0];
            if stream.read(&mut byte).is_ok_and(|bytes| bytes > 0) {
                let _ = stream.write_all(b"HTTP/1.1 204 Alive\r\n\r\n");
                let _ = asked.send(());
            }
        }
    });
    (address, asks)
}

/// What was taken about an assertion: verdicts, and how often it was told before that it is still so. What came again under its
/// id, since a collector was killed before it had written down that it was taken, is told once.
fn told_of(seen: &[Seen], assertion: &str) -> Vec<(String, u64)> {
    let notifications = seen
        .iter()
        .filter(|request| request.is_taken)
        .flat_map(|request| request.body["notifications"].as_array().unwrap());
    let mut ids = std::collections::BTreeSet::new();
    let of_it = notifications.filter(|one| one["assertion"] == assertion);
    of_it
        .filter(|one| ids.insert(one["id"].to_string()))
        .map(|one| {
            (
                one["verdict"].as_str().unwrap().to_owned(),
                one["repeat"].as_u64().unwrap(),
            )
        })
        .collect()
}

/// Nobody is told of what is silenced, also by a collector that starts meanwhile, until the silence is over; of all else
/// everybody is, and a dead man's switch is held.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_silenced_is_judged_and_told_once_the_silence_is_over() {
    let receiver = Receiver::start();
    receiver.open();
    let (alive, asks) = switch();
    let (store, assertions) = (folder("silence-store"), folder("silence-assertions"));
    let secret = assertions.join("secret");
    std::fs::write(&secret, SECRET).unwrap();
    let odd = "sql: \"SELECT toFloat64(countIf(set_at < {until:DateTime64(9, 'UTC')}) % 2) AS value FROM probe_settings \
               WHERE {from:DateTime64(9, 'UTC')} < {until:DateTime64(9, 'UTC')}\"";
    let text = format!(
        "
assertions:
  - {{ name: quiet, {odd}, expect: value = 0, over: 1s }}
  - {{ name: loud, {odd}, expect: value = 0, over: 1s }}
receivers:
  - name: on-call
    kind: webhook
    url: http://{}/hook
    secret_file: {}
    on: [violated, holds]
    group_wait: 0s
  - {{ name: alive, kind: dead_mans_switch, url: 'http://{alive}/', every: 10s }}
",
        receiver.address,
        secret.display(),
    );
    std::fs::write(assertions.join("a.yaml"), text).unwrap();
    let holds = |name: &'static str| move |row: &Value| row["assertion"] == name && row["verdict"] == "holds";

    let serving = Serving::start(&store, &assertions);
    serving.wait("quiet holds", holds("quiet"));
    serving.wait("loud holds", holds("loud"));
    for (call, said) in [
        (
            &["silence", "qiet", "--for", "1h", "--because", "x"][..],
            "there is no assertion `qiet`, did you mean quiet?",
        ),
        (
            &["verdicts", "--history", "qiet"],
            "there is no verdict of an assertion `qiet`, did you mean quiet?",
        ),
    ] {
        let typo = serving.output(call);
        assert_eq!(typo.status.code(), Some(2), "{typo:?}");
        let error = String::from_utf8(typo.stderr).unwrap();
        assert!(error.contains(said), "{error}");
    }
    assert!(serving.run(&["verdicts", "--history", "quiet"]).contains("holds"));
    let silences = serving.rows(&["silence", "quiet", "--for", "1h", "--because", "it is repaired"]);
    assert_eq!(silences.len(), 1, "{silences:?}");
    assert_eq!(silences[0]["state"], "active");
    assert!(
        silences[0]["said_by"].as_str().unwrap().starts_with("ann@"),
        "{silences:?}"
    );
    assert_eq!(silences[0]["because"], "it is repaired");

    turn(&serving);
    let is_silenced =
        |row: &Value| row["assertion"] == "quiet" && row["verdict"] == "violated" && row["silenced"] == true;
    serving.wait("silenced, and violated", is_silenced);
    let seen = receiver.wait("the other violation", |seen| !told_of(seen, "loud").is_empty());
    assert_eq!(told_of(&seen, "quiet"), []);
    serving.kill();
    // What was asked before this start is not of it.
    asks.try_iter().for_each(drop);

    let serving = Serving::start(&store, &assertions);
    turn(&serving);
    receiver.wait("that the other holds", |seen| told_of(seen, "loud").len() == 2);
    turn(&serving);
    let seen = receiver.wait("the other's next violation", |seen| {
        told_of(seen, "loud").len() == 3
    });
    assert_eq!(told_of(&seen, "quiet"), []);
    serving.wait("silenced, and violated", is_silenced);
    assert!(serving.run(&["verdicts"]).contains("silenced"));
    assert!(asks.recv_timeout(PATIENCE).is_ok(), "the switch was let go");

    let ended = serving.rows(&["silence", "quiet", "--end", "--because", "done"]);
    assert_eq!(
        (&ended[0]["state"], &ended[0]["ended_because"]),
        (&"ended".into(), &"done".into())
    );
    receiver.wait("the violation", |seen| {
        told_of(seen, "quiet") == [("violated".to_owned(), 0)]
    });
    // Told already, and still so when another silence is over by itself.
    serving.run(&["silence", "quiet", "--for", "1s", "--because", "a moment"]);
    let seen = receiver.wait("that it is still violated", |seen| {
        told_of(seen, "quiet").len() > 1
    });
    assert_eq!(told_of(&seen, "quiet")[1..], [("violated".to_owned(), 1)]);
    assert_eq!(serving.rows(&["silences"]), Vec::<Value>::new());
    let all = serving.rows(&["silences", "--all"]);
    let states: Vec<_> = all.iter().map(|row| row["state"].as_str().unwrap()).collect();
    assert_eq!(states, ["ended", "over"], "{all:?}");
    serving.kill();
}
