//! A stand-in for a ClickHouse server: its HTTP interface, as far as our client uses it, over the real engine.
//!
//! Each request gets a connection of its own with the request's settings, as on a server. Nothing here judges
//! statements: what the server store refuses, it refuses itself.
//!
//! The example `clickhouse_http` runs the same in a process of its own, which can be measured and killed.

use std::{
    collections::HashMap,
    convert::Infallible,
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::Stream;
use holdfast_collector::store::{
    chdb::{Chdb, Connection, EngineError},
    embedded::engine_dir,
    library,
};
use http_body_util::{BodyExt, StreamBody};
use hyper::{
    Request, Response, StatusCode,
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    net::TcpListener,
    sync::{RwLock, mpsc},
    task::{JoinSet, spawn_blocking},
};
use tokio_stream::{StreamExt as _, wrappers::ReceiverStream};
use url::form_urlencoded;

/// What the server wants to hear.
pub(crate) const USER: &str = "tester";
pub(crate) const PASSWORD: &str = "s3cret/@";

/// Parameters of a request that are not settings.
const NOT_SETTINGS: &[&str] = &[
    "query",
    "query_id",
    "log_comment",
    "database",
    "default_format",
    "wait_end_of_query",
    "async_insert",
];

/// Statements that were read, and for which the library still makes a connection: a server knows of a statement from
/// the moment that it reads it.
static STARTING: AtomicUsize = AtomicUsize::new(0);

/// Held by every statement that is running: who can write to it knows that none is.
pub(crate) type Running = Arc<RwLock<()>>;

/// Serves on this port until it is dropped, its connections included. The engine has to be open on `folder`, and to
/// stay so. What is running then still ends, with an outcome that nobody is told.
pub(crate) async fn serve(listener: TcpListener, folder: &Path, running: Running) {
    let folder = Arc::from(folder);
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        // Those that have ended are forgotten.
        while connections.try_join_next().is_some() {}
        let folder = Arc::clone(&folder);
        let running = Arc::clone(&running);
        let respond = service_fn(move |request| respond(request, Arc::clone(&folder), Arc::clone(&running)));
        let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), respond);
        connections.spawn(async move {
            // The client went away, or an answer ended in its error.
            let _ = connection.await;
        });
    }
}

type Part = Result<Frame<Bytes>, io::Error>;

async fn respond(
    request: Request<Incoming>,
    folder: Arc<Path>,
    running: Running,
) -> Result<Response<StreamBody<impl Stream<Item = Part>>>, Infallible> {
    let (parts, body) = request.into_parts();
    let header = |name| {
        parts
            .headers
            .get(name)
            .and_then(|value| value.to_str().ok())
            .unwrap_or_default()
    };
    let allowed = header("x-clickhouse-user") == USER && header("x-clickhouse-key") == PASSWORD;
    let content_type = header("content-type").to_owned();
    let arguments = form_urlencoded::parse(parts.uri.query().unwrap_or_default().as_bytes());
    let arguments: HashMap<String, String> = arguments.into_owned().collect();
    let body = body
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .unwrap_or_default();

    let (sender, mut receiver) = mpsc::channel(4);
    if allowed {
        let running = running.read_owned().await;
        STARTING.fetch_add(1, Ordering::SeqCst);
        spawn_blocking(move || {
            let _running = running;
            if let Err(EngineError(message)) = run(&folder, &arguments, &content_type, &body, &sender) {
                let _ = sender.blocking_send(Err(message));
            }
        });
    } else {
        let message =
            format!("Code: 516. DB::Exception: {USER}: Authentication failed. (AUTHENTICATION_FAILED)");
        sender.try_send(Err(message)).unwrap();
    }
    // As a server, the status is known once there is something to send.
    let first = receiver.recv().await;
    let mut response = Response::builder();
    if let Some(Err(message)) = &first {
        let code = message
            .split("Code: ")
            .nth(1)
            .and_then(|rest| rest.split('.').next())
            .unwrap_or("1002");
        let status = if allowed {
            StatusCode::INTERNAL_SERVER_ERROR
        } else {
            StatusCode::FORBIDDEN
        };
        response = response
            .status(status)
            .header("x-clickhouse-exception-code", code.to_owned());
    }
    let first = first.map(|part| Ok(Frame::data(part.map_or_else(Bytes::from, Bytes::from))));
    let rest = ReceiverStream::new(receiver).map(|part| {
        part.map(|part| Frame::data(part.into()))
            .map_err(io::Error::other)
    });
    Ok(response
        .body(StreamBody::new(tokio_stream::iter(first).chain(rest)))
        .unwrap())
}

fn run(
    folder: &Path,
    arguments: &HashMap<String, String>,
    content_type: &str,
    body: &[u8],
    answer: &mpsc::Sender<Result<Vec<u8>, String>>,
) -> Result<(), EngineError> {
    let mut form = HashMap::new();
    if content_type.starts_with("multipart/") {
        form = multipart(content_type, body);
    }
    let params: Vec<(String, String)> = form
        .iter()
        .filter_map(|(name, value)| Some((name.strip_prefix("param_")?.to_owned(), value.clone())))
        .collect();
    let mut connection = connect(folder, arguments);
    STARTING.fetch_sub(1, Ordering::SeqCst);
    if let Some(database) = arguments.get("database") {
        connection.execute(&format!("USE {database}"), "Null", &[])?;
    }
    if let Some(insert) = arguments.get("query") {
        let insert = insert.strip_suffix(" FORMAT Native").unwrap();
        return connection.insert(insert, "Native", body);
    }
    let sql = form
        .remove("query")
        .unwrap_or_else(|| String::from_utf8(body.to_vec()).unwrap());
    let format = arguments
        .get("default_format")
        .map_or("TabSeparated", String::as_str);
    // The library gives queries ids of its own; the label of a connection stands for them.
    let asks_what_runs = sql.contains("FROM system.processes");
    let sql = if asks_what_runs || sql.starts_with("KILL QUERY") {
        sql.replace("query_id", "Settings['log_comment']")
    } else {
        sql
    };
    if asks_what_runs {
        while STARTING.load(Ordering::SeqCst) > 0 {
            std::thread::sleep(Duration::from_millis(1));
        }
        // From there to the engine's list it is not far.
        std::thread::sleep(Duration::from_millis(5));
    }
    if !sql
        .trim_start_matches('(')
        .trim_start()
        .to_lowercase()
        .starts_with("select")
    {
        let whole = connection.execute(&sql, format, &params)?;
        let _ = answer.blocking_send(Ok(whole));
        return Ok(());
    }
    let mut parts = connection.start(&sql, format, &params)?;
    while let Some(part) = parts.fetch()? {
        if answer.blocking_send(Ok(part)).is_err() {
            break;
        }
    }
    Ok(())
}

fn connect(folder: &Path, arguments: &HashMap<String, String>) -> Connection {
    let mut options = vec![format!("--path={}", engine_dir(folder).display())];
    options.push("--implicit_select=0".into());
    // Of an insert with a lease it ends in what the server store says there itself.
    let comments = ["query_id", "log_comment"].map(|name| arguments.get(name).map(String::as_str));
    let comments: Vec<&str> = comments.into_iter().flatten().collect();
    options.push(format!("--log_comment={}", comments.join(" ")));
    for (name, value) in arguments {
        if !NOT_SETTINGS.contains(&name.as_str()) {
            options.push(format!("--{name}={value}"));
        }
    }
    Chdb::load(&library::locate().unwrap())
        .unwrap()
        .connect(&options)
        .unwrap()
}

/// The fields of a form, by their names.
fn multipart(content_type: &str, body: &[u8]) -> HashMap<String, String> {
    let boundary = content_type.split_once("boundary=").unwrap().1.trim_matches('"');
    let text = String::from_utf8(body.to_vec()).unwrap();
    let delimiter = format!("--{boundary}");
    let fields = text.split(&delimiter).filter_map(|part| {
        let (head, value) = part.split_once("\r\n\r\n")?;
        let name = head.split_once("name=\"")?.1.split_once('"')?.0;
        Some((
            name.to_owned(),
            value.strip_suffix("\r\n").unwrap_or(value).to_owned(),
        ))
    });
    fields.collect()
}
