use std::sync::Arc;

use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;

/// Far longer than anything takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Reads one request to its end, by its length.
async fn request(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    loop {
        let length = text
            .to_ascii_lowercase()
            .split_once("content-length: ")
            .and_then(|(_, rest)| rest.split_once("\r\n")?.0.parse::<usize>().ok());
        if let Some((_, body)) = text.split_once("\r\n\r\n")
            && body.len() >= length.unwrap_or(0)
        {
            return text;
        }
        let read = stream.read(&mut buffer).await.unwrap();
        assert!(read > 0, "the request ends early: {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
}

async fn ask(url: &str, authorities: Option<&Path>) -> Result<Answer, HttpError> {
    send(Request {
        url: &Url::parse(url).unwrap(),
        authorities,
        headers: &[("idempotency-key", "7".into())],
        body: Some(r#"{"a":1}"#.into()),
        timeout: PATIENCE,
    })
    .await
}

const ANSWER: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 5\r\n\r\nlater";

#[tokio::test]
async fn a_request_is_posted_and_its_answer_read() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let text = request(&mut stream).await;
        stream.write_all(ANSWER).await.unwrap();
        text
    });
    let answer = ask(&format!("http://{address}/a?b=c"), None).await.unwrap();
    assert_eq!(
        answer,
        Answer {
            status: 503,
            body: "later".into()
        }
    );
    let text = serving.await.unwrap();
    assert!(text.starts_with("POST /a?b=c HTTP/1.1\r\n"), "{text}");
    for part in [
        &format!("host: {address}\r\n"),
        "idempotency-key: 7\r\n",
        "content-type: application/json\r\n",
        "\r\n\r\n{\"a\":1}",
    ] {
        assert!(text.contains(part), "{part:?} in {text}");
    }
}

#[tokio::test]
async fn a_host_has_to_be_vouched_for() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key.into())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            // Whoever does not trust it ends the handshake.
            if let Ok(mut stream) = acceptor.accept(stream).await {
                request(&mut stream).await;
                stream.write_all(ANSWER).await.unwrap();
                stream.flush().await.unwrap();
            }
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let own = folder.path().join("own.pem");
    std::fs::write(&own, made.cert.pem()).unwrap();
    let url = format!("https://localhost:{port}/");
    assert_eq!(ask(&url, Some(&own)).await.unwrap().status, 503);

    let other = folder.path().join("other.pem");
    let stranger = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    std::fs::write(&other, stranger.cert.pem()).unwrap();
    let error = ask(&url, Some(&other)).await.unwrap_err().to_string();
    assert!(error.starts_with("no TLS with localhost: "), "{error}");
    let by_address = ask(&format!("https://127.0.0.1:{port}/"), Some(&own)).await;
    assert!(
        matches!(by_address, Err(HttpError::Insecure { .. })),
        "{by_address:?}"
    );
    std::fs::write(&other, "nothing").unwrap();
    let error = ask(&url, Some(&other)).await.unwrap_err().to_string();
    assert!(error.contains("there is no certificate in it"), "{error}");
}

#[tokio::test]
async fn who_does_not_answer_is_named_without_the_path() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let url = Url::parse(&format!("http://{address}/s3cret")).unwrap();
    let late = send(Request {
        url: &url,
        authorities: None,
        headers: &[],
        body: None,
        timeout: Duration::from_millis(10),
    })
    .await
    .unwrap_err()
    .to_string();
    assert_eq!(late, "127.0.0.1 gave no answer within 10ms");
    drop(listener);
    let refused = ask(&format!("http://{address}/s3cret"), None)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        refused.starts_with(&format!("{address} cannot be reached: ")) && !refused.contains("s3cret"),
        "{refused}"
    );
}
