//! Requests of the load generator on real servers on loopback: HTTP/1.1, HTTP/2 and TLS of libraries that are not ours. Needs no
//! privileges.

use std::{
    convert::Infallible,
    io::{Read, Write},
    net::SocketAddr,
    sync::Arc,
    thread,
    time::Duration,
};

use bytes::Bytes;
use holdfast_agent::load::{
    consent::Consent,
    http::{Http, Tls, Version},
    outcome::{Answer, Loss, Outcome},
    plan::{Arrivals, Plan},
    run::prepare,
    tally::Tally,
};
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, server::conn, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::load::{UNBOUNDED, count, full_after_three, prepared, run, run_prepared, server};

/// `/missing` is not there, `/slow` never comes, `/late` after a while, everything else sends back what was sent, and a greeting before it.
async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    match request.uri().path() {
        "/slow" => std::future::pending().await,
        "/late" => {
            tokio::time::sleep(Duration::from_millis(50)).await;
            Ok(Response::new(Full::new(Bytes::from_static(b"hello"))))
        }
        "/missing" => {
            let mut response = Response::new(Full::new(Bytes::from_static(b"no")));
            *response.status_mut() = hyper::StatusCode::NOT_FOUND;
            Ok(response)
        }
        _ => {
            let sent = request
                .into_body()
                .collect()
                .await
                .map(http_body_util::Collected::to_bytes);
            let body = [b"hello ", sent.unwrap_or_default().as_ref()].concat();
            Ok(Response::new(Full::new(body.into())))
        }
    }
}

async fn serve<Io>(stream: Io, version: Version)
where
    Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let io = TokioIo::new(stream);
    // A client that resets is no matter of the test.
    let _ = match version {
        Version::Http1 => {
            conn::http1::Builder::new()
                .serve_connection(io, service_fn(answer))
                .await
        }
        Version::Http2 => {
            conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(io, service_fn(answer))
                .await
        }
    };
}

/// A server, for as long as the test's process lasts.
fn hyper_server(version: Version, tls: Option<TlsAcceptor>) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async move {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
            tell.send(listener.local_addr().expect("its address"))
                .expect("the test waits");
            while let Ok((stream, _)) = listener.accept().await {
                let tls = tls.clone();
                tokio::spawn(async move { one(stream, version, tls).await });
            }
        });
    });
    told.recv().expect("a server")
}

async fn one(stream: TcpStream, version: Version, tls: Option<TlsAcceptor>) {
    match tls {
        None => serve(stream, version).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, version).await;
            }
        }
    }
}

/// A server's side of TLS for localhost, and its authority in PEM.
fn identity(version: Version) -> (TlsAcceptor, Vec<u8>) {
    identity_with(version, |_| {})
}

/// The same with a certificate that is changed before it is signed.
fn identity_with(
    version: Version,
    change: impl FnOnce(&mut rcgen::CertificateParams),
) -> (TlsAcceptor, Vec<u8>) {
    let mut params = rcgen::CertificateParams::new(vec!["localhost".to_owned()]).expect("a name");
    change(&mut params);
    let signing_key = rcgen::KeyPair::generate().expect("a key");
    let cert = params.self_signed(&signing_key).expect("a certificate");
    let made = rcgen::CertifiedKey { cert, signing_key };
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a key that fits");
    config.alpn_protocols = vec![match version {
        Version::Http1 => b"http/1.1".to_vec(),
        Version::Http2 => b"h2".to_vec(),
    }];
    (TlsAcceptor::from(Arc::new(config)), made.cert.pem().into_bytes())
}

fn get(path: &str) -> Http {
    Http {
        version: Version::Http1,
        tls: None,
        method: "GET".into(),
        authority: "localhost".into(),
        path: path.into(),
        fields: vec![],
        body: vec![],
        keep_alive: true,
        streams: 1,
        connections: 5,
        statuses: vec![(200, 299)],
        wanted: b"hello".to_vec(),
    }
}

fn requests(target: SocketAddr, requests: u64, http: Http) -> Plan {
    Plan {
        http: Some(http),
        ..count(target, requests)
    }
}

fn answers(tally: &Tally, answer: Answer) -> u64 {
    let decided: u64 = tally.answers.iter().sum();
    assert_eq!(decided, tally.requests, "every request was decided");
    tally.answers[answer as usize]
}

#[test]
fn requests_are_answered_on_connections_that_are_used_again() {
    for version in [Version::Http1, Version::Http2] {
        let target = hyper_server(version, None);
        let http = Http { version, ..get("/") };
        let (tally, _) = run(requests(target, 200, http), UNBOUNDED, |_, _| {});
        assert_eq!(
            (tally.requests, answers(&tally, Answer::Expected)),
            (200, 200),
            "{version:?}"
        );
        assert_eq!(tally.statuses.get(&200), Some(&200));
        assert_eq!(
            (tally.request.len(), tally.exchange.len(), tally.lateness.len()),
            (200, 200, 200)
        );
        assert!(
            (1..=5).contains(&tally.started),
            "{version:?}: {} connections",
            tally.started
        );
        assert!(tally.exchange.value_at_quantile(0.5) <= tally.request.max());
    }
}

#[test]
fn a_request_that_waits_since_this_machine_allows_no_more_connections_says_so_however_it_ends() {
    let target = hyper_server(Version::Http1, None);
    let made = |path: &str, connections: u64, allowed: u64| {
        let http = Http {
            connections,
            ..get(path)
        };
        let mut plan = requests(target, 10, http);
        if path == "/slow" {
            plan.timeout = Duration::from_millis(500);
        }
        let mut prepared = prepared(plan);
        let consent = Consent {
            connections: allowed,
            ..Consent::nothing()
        };
        consent.bound(&mut prepared, 1);
        run_prepared(&prepared, UNBOUNDED, |_, _| {}).0
    };
    // Those that wait may each have their turn; or, of those that never get an answer, one more on each connection: the time of one that
    // was due a little later than the first one was sent is over a little later, too.
    for (path, answer, least) in [("/late", Answer::Expected, 10), ("/slow", Answer::Unsent, 6)] {
        let tally = made(path, 5, 2);
        let of_answer = answers(&tally, answer);
        assert_eq!(of_answer + answers(&tally, Answer::TimedOut), 10, "{tally:?}");
        assert!(of_answer >= least, "{tally:?}");
        assert!((1..=8).contains(&tally.hindered), "{path}: {}", tally.hindered);
        assert!(
            tally.remarks[0].contains("HOLDFAST_LOAD_CONNECTIONS="),
            "{tally:?}"
        );
    }
    // That a plan asks for no more is its own matter.
    assert_eq!(made("/late", 2, 5).hindered, 0);
}

#[test]
fn without_keep_alive_each_request_has_its_connection() {
    for version in [Version::Http1, Version::Http2] {
        let http = Http {
            version,
            keep_alive: false,
            ..get("/")
        };
        let (tally, _) = run(
            requests(hyper_server(version, None), 40, http),
            UNBOUNDED,
            |_, _| {},
        );
        assert_eq!(answers(&tally, Answer::Expected), 40, "{version:?}");
        assert_eq!(
            (tally.count(Outcome::Established), tally.closed),
            (40, 40),
            "{version:?}"
        );
    }
}

#[test]
fn a_body_goes_there_and_back_however_long_it_is() {
    // Longer than the windows of HTTP/2 and the buffers of sockets.
    let body: Vec<u8> = (0..3_000_000_u32).map(|place| (place % 251) as u8).collect();
    for version in [Version::Http1, Version::Http2] {
        let http = Http {
            version,
            method: "POST".into(),
            wanted: body[body.len() - 300..].to_vec(),
            body: body.clone(),
            ..get("/echo")
        };
        let (tally, _) = run(
            requests(hyper_server(version, None), 3, http),
            UNBOUNDED,
            |_, _| {},
        );
        assert_eq!(
            answers(&tally, Answer::Expected),
            3,
            "{version:?}: {:?}",
            tally.remarks
        );
        assert!(tally.bytes_sent >= 9_000_000 && tally.bytes_received >= 9_000_000);
    }
}

#[test]
fn a_closed_loop_has_so_many_requests_at_once() {
    for (version, streams, connections) in [(Version::Http1, 1, 4), (Version::Http2, 2, 2)] {
        let http = Http {
            version,
            streams,
            ..get("/")
        };
        let mut plan = requests(hyper_server(version, None), 1, http);
        plan.arrivals = Arrivals::Closed {
            concurrency: 4,
            duration: Duration::from_millis(400),
        };
        let (tally, last) = run(plan, UNBOUNDED, |_, _| {});
        assert!(tally.requests > 4, "{version:?}: {}", tally.requests);
        assert_eq!(answers(&tally, Answer::Expected), tally.requests);
        assert!(
            last.most_open <= connections,
            "{version:?}: {} at once",
            last.most_open
        );
    }
}

#[test]
fn what_is_not_as_expected_is_told_by_its_kind() {
    let target = hyper_server(Version::Http1, None);
    let check = |http: Http, timeout_ms: u64, answer: Answer| {
        let mut plan = requests(target, 6, http);
        plan.timeout = Duration::from_millis(timeout_ms);
        let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
        assert_eq!(answers(&tally, answer), 6, "{answer:?}: {:?}", tally.answers);
        tally
    };
    let missing = check(get("/missing"), 20_000, Answer::UnexpectedStatus);
    assert_eq!(missing.statuses.get(&404), Some(&6));
    let other = Http {
        wanted: b"goodbye".to_vec(),
        ..get("/")
    };
    check(other, 20_000, Answer::UnexpectedBody);
    let slow = Http {
        connections: 12,
        ..get("/slow")
    };
    let slow = check(slow, 300, Answer::TimedOut);
    assert!(slow.error.min() >= 299_000_000, "{}", slow.error.min());
    // The server's kernel had them, and it was not we who were slow.
    assert!((1..=6).contains(&slow.withheld), "{}", slow.withheld);
}

#[test]
fn a_server_that_is_none_is_told_by_what_it_does() {
    let check = |target: SocketAddr, answer: Answer| {
        let (tally, _) = run(requests(target, 6, get("/")), UNBOUNDED, |_, _| {});
        assert_eq!(answers(&tally, answer), 6, "{answer:?}: {:?}", tally.answers);
        tally
    };
    let babbler = server(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"220 mail.example.com ESMTP\r\n");
        let _ = stream.read(&mut [0; 1024]);
    });
    let tally = check(babbler, Answer::Malformed);
    assert_eq!(tally.remarks, ["what comes is no HTTP/1.1 response"]);
    let quitter = server(|mut stream| {
        let _ = stream.read(&mut [0; 1024]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhello");
    });
    check(quitter, Answer::Lost);
    let closed = std::net::TcpListener::bind("127.0.0.1:0")
        .and_then(|listener| listener.local_addr())
        .expect("a port that nobody listens on");
    let tally = check(closed, Answer::Unsent);
    assert_eq!(tally.count(Outcome::Refused), 6);
    // The target said no to each, which no slowness of ours is part of.
    assert_eq!(tally.denied, 6);
    // Of the requests, not of their connections beside them.
    assert_eq!(tally.error.len(), 6);
}

#[test]
fn tls_is_spoken_with_whom_the_authority_knows_and_with_nobody_else() {
    for version in [Version::Http1, Version::Http2] {
        let (acceptor, authority) = identity(version);
        let target = hyper_server(version, Some(acceptor));
        let over = |name: &str, authorities: Vec<u8>, is_blind: bool| {
            let http = Http {
                version,
                tls: Some(Tls {
                    name: name.to_owned(),
                    authorities,
                    is_blind,
                }),
                ..get("/")
            };
            run(requests(target, 10, http), UNBOUNDED, |_, _| {}).0
        };
        let known = over("localhost", authority.clone(), false);
        assert_eq!(
            answers(&known, Answer::Expected),
            10,
            "{version:?}: {:?}",
            known.remarks
        );
        assert!(known.started <= 5 && known.insecure == 0);
        assert_eq!(answers(&over("127.0.0.1", vec![], true), Answer::Expected), 10);

        for refused in [
            over("localhost", identity(version).1, false),
            over("elsewhere", authority, false),
        ] {
            assert_eq!(
                (
                    answers(&refused, Answer::Unsent),
                    refused.denied,
                    refused.insecure > 0
                ),
                (10, 10, true)
            );
            assert!(
                refused.remarks[0].contains("certificate"),
                "{:?}",
                refused.remarks
            );
        }
    }
}

#[test]
fn what_is_wrong_with_a_certificate_is_said_and_what_to_do() {
    type Change = fn(&mut rcgen::CertificateParams);
    let unchanged: Change = |_| {};
    // The server's own certificate is trusted, or another one.
    let check = |change: Change, is_trusted: bool, name: &str, parts: &[&str]| {
        let (acceptor, own) = identity_with(Version::Http1, change);
        let target = hyper_server(Version::Http1, Some(acceptor));
        let http = Http {
            tls: Some(Tls {
                name: name.to_owned(),
                authorities: if is_trusted {
                    own
                } else {
                    identity(Version::Http1).1
                },
                is_blind: false,
            }),
            ..get("/")
        };
        let (tally, _) = run(requests(target, 3, http), UNBOUNDED, |_, _| {});
        assert!(
            tally.insecure > 0 && tally.remarks.len() == 1,
            "{:?}",
            tally.remarks
        );
        for part in [&["TLS: the server's certificate ", "--insecure"], parts].concat() {
            assert!(tally.remarks[0].contains(part), "{part}: {:?}", tally.remarks);
        }
    };
    check(
        |params| {
            params
                .distinguished_name
                .push(rcgen::DnType::CommonName, "another");
        },
        false,
        "localhost",
        &["authority that is not trusted", "--ca FILE"],
    );
    // Its authority has the name of the one that is trusted.
    check(
        unchanged,
        false,
        "localhost",
        &["is not signed with the key of the authority", "--ca FILE"],
    );
    check(
        unchanged,
        true,
        "elsewhere",
        &["is for localhost, and not for elsewhere"],
    );
    check(
        unchanged,
        true,
        "127.0.0.1",
        &["is for localhost, and not for 127.0.0.1"],
    );
    check(
        |params| params.not_after = rcgen::date_time_ymd(2020, 1, 1),
        true,
        "localhost",
        &["expired ", " days ago", "renew it"],
    );
    check(
        |params| params.not_before = rcgen::date_time_ymd(2999, 1, 1),
        true,
        "localhost",
        &["valid only in ", " days", "clock"],
    );
    // What openssl req -x509 makes, trusted or not.
    for is_trusted in [true, false] {
        check(
            |params| params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            is_trusted,
            "localhost",
            &["CA:TRUE", "basicConstraints=critical,CA:FALSE"],
        );
    }
}

#[test]
fn a_server_without_tls_is_told() {
    let http = Http {
        tls: Some(Tls {
            name: "localhost".to_owned(),
            authorities: vec![],
            is_blind: true,
        }),
        ..get("/")
    };
    let target = server(|mut stream| {
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let _ = stream.read(&mut [0; 64]);
    });
    let (tally, _) = run(requests(target, 1, http), UNBOUNDED, |_, _| {});
    assert!(
        tally.remarks[0].contains("it may speak http://"),
        "{:?}",
        tally.remarks
    );
}

#[test]
fn a_server_that_does_not_answer_to_tls_is_too_late_and_not_untrusted() {
    let http = Http {
        tls: Some(Tls {
            name: "localhost".to_owned(),
            authorities: vec![],
            is_blind: true,
        }),
        ..get("/")
    };
    let mut kept = Vec::new();
    let target = server(move |stream| kept.push(stream));
    let mut plan = requests(target, 4, http);
    plan.timeout = Duration::from_millis(300);
    let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
    assert_eq!(
        (
            answers(&tally, Answer::Unsent),
            tally.insecure,
            tally.denied,
            tally.unanswered
        ),
        (4, 0, 0, 0),
        "{:?}",
        tally.remarks
    );
    let established = tally.count(Outcome::Established);
    assert!(established > 0);
    assert_eq!(
        (tally.losses[Loss::TimedOut as usize], tally.closed),
        (established, 0)
    );
    assert_eq!(tally.remarks, ["the handshake of TLS took too long"]);
}

#[test]
fn a_request_that_found_no_connection_while_nothing_answered_is_told() {
    let (_listener, target) = full_after_three();
    let http = Http {
        connections: 40,
        ..get("/")
    };
    let mut plan = requests(target, 10, http);
    plan.timeout = Duration::from_millis(600);
    let (tally, _) = run(plan, UNBOUNDED, |_, _| {});
    let unsent = answers(&tally, Answer::Unsent);
    assert!(unsent >= 5, "{:?}", tally.answers);
    assert_eq!((tally.unanswered, tally.denied), (unsent, 0));
}

#[test]
fn a_server_that_speaks_another_version_is_told() {
    let (acceptor, authority) = identity(Version::Http1);
    let http = Http {
        version: Version::Http2,
        tls: Some(Tls {
            name: "localhost".to_owned(),
            authorities: authority,
            is_blind: false,
        }),
        ..get("/")
    };
    let target = hyper_server(Version::Http1, Some(acceptor));
    let (tally, _) = run(requests(target, 3, http), UNBOUNDED, |_, _| {});
    assert_eq!(
        (answers(&tally, Answer::Unsent), tally.insecure),
        (3, 3),
        "{:?}",
        tally.remarks
    );
    assert!(
        tally.remarks[0].contains("leave --http2 away"),
        "{:?}",
        tally.remarks
    );
}

#[test]
fn terms_that_cannot_be_met_are_refused_before_anything_is_sent() {
    let refused = |tls: Tls, part: &str| {
        let http = Http {
            tls: Some(tls),
            ..get("/")
        };
        let target = "127.0.0.1:9".parse().expect("an address");
        let error = prepare(requests(target, 1, http)).expect_err(part).to_string();
        assert!(error.contains(part), "{error}");
    };
    let tls = Tls {
        name: "localhost".into(),
        authorities: b"no certificate".to_vec(),
        is_blind: false,
    };
    refused(tls.clone(), "no certificate");
    refused(
        Tls {
            name: "a b".into(),
            is_blind: true,
            ..tls
        },
        "a b",
    );
}
