//! The server store, where it is alone: credentials, servers that are not there or are none.

use holdfast_collector::store::{Store, StoreError, server::Server};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::clickhouse_http::{self, PASSWORD, USER};

#[tokio::test(flavor = "multi_thread")]
async fn a_password_can_be_kept_out_of_the_url() {
    let address = clickhouse_http::serve().await;
    let server = Server::new(&format!("http://{USER}@{address}/credentials"), Some(PASSWORD)).unwrap();
    server.prepare().await.unwrap();
    match Server::new(&format!("http://{USER}:wrong@{address}/"), None)
        .unwrap()
        .prepare()
        .await
    {
        Err(StoreError::Unavailable { message }) => {
            assert!(message.contains("Authentication failed"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_server_that_is_not_there_is_worth_another_try() {
    // Bound and let go of: nobody listens there.
    let address = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let server = Server::new(&format!("http://me:secret@{address}/"), None).unwrap();
    match server.execute("SELECT 1").await {
        Err(StoreError::Unavailable { message }) => {
            assert!(
                message.contains(&address.to_string()) && message.contains("refused"),
                "{message}"
            );
            assert!(!message.contains("secret"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn something_that_is_no_clickhouse_is_said_to_be_none() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut request = [0; 4096];
        assert!(stream.read(&mut request).await.unwrap() > 0);
        stream
            .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
            .await
            .unwrap();
    });
    match Server::new(&format!("http://{address}/"), None)
        .unwrap()
        .execute("SELECT 1")
        .await
    {
        Err(StoreError::Rejected { message, .. }) => {
            assert!(
                message.contains("is no ClickHouse server") && message.contains("404"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
}
