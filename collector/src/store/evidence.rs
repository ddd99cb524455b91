//! What assertions are judged by, as SQL: one question for each class of a schedule, and who was watching.
//!
//! The question of a class has two levels. The inner one groups the rows of the window by exactly the labels that the
//! class is told apart by, by which of its filters they pass (a bit each), and by the log bucket of their time and how
//! many limits it reaches; the outer one makes one row of each combination of labels. What belongs to which assertion
//! is decided in [`crate::assertion::evaluate`], so an assertion more costs the engine nothing.

use std::collections::HashSet;
use std::net::Ipv6Addr;
use std::time::Duration;

use futures_util::TryStreamExt;

use super::{
    Access, Query, Store, StoreError, answer_to,
    buckets::bucket_sql,
    condition::{Condition, filterable},
    questions::time_value,
    schema, statement,
};
use crate::assertion::cause::{Cause, OffReason, Switch};
use crate::assertion::coverage::{Report, Watch, Window};
use crate::assertion::evaluate::{LabelledRows, Node, Roster, SUMS};
use crate::assertion::group::Labelled;
use crate::assertion::plan::{Class, Kind};
use crate::assertion::signal::{Rows, Sum, Times};
use crate::filter;

/// Combinations of labels in one answer, and in a window that is put together. A hundred nodes that talk to each other over ten ports are as many.
pub const MOST_ROWS: usize = 100_000;

/// What the engine may take for one question, and how long. None of the tables has a projection that would answer one, and to
/// look for it takes a tenth of the time that a small question takes.
const SETTINGS: &str = "SETTINGS max_threads = 1, max_execution_time = 20, max_rows_to_group_by = 5000000, \
                        group_by_overflow_mode = 'throw', max_memory_usage = 1000000000, \
                        optimize_use_projections = 0, optimize_use_implicit_projections = 0";

/// Where the rows of a view are, and which rows of that table it has, in the words of the view. The columns of `attempts`
/// and `connections` are the table's, by the same names, and a question about the view takes a third longer to plan.
pub(super) fn below(rows: Rows) -> Option<(&'static str, &'static str)> {
    let (name, view) = match rows {
        Rows::Attempts => ("attempts", include_str!("views/attempts.sql")),
        Rows::Connections => ("connections", include_str!("views/connections.sql")),
        _ => return None,
    };
    let from = view.rsplit_once("\nFROM ").map(|(_, from)| from);
    let from = from.and_then(|from| from.split_once("\nCOMMENT"));
    let below = from.and_then(|(from, _)| from.split_once("\nWHERE "));
    // Of a view that is written in another way, the view.
    Some(below.unwrap_or((name, "true")))
}

/// What rows of a kind can be filtered by.
pub fn columns(rows: Rows) -> Vec<filter::Column> {
    match rows {
        Rows::Attempts => filterable(schema::attempts()),
        Rows::Connections => filterable(schema::connections()),
        Rows::Listeners => filterable(schema::listeners()),
        Rows::Syscalls => filterable(schema::syscalls()),
        Rows::Open => filterable(schema::open_connections()),
        Rows::Namespaces | Rows::Overhead | Rows::Sql | Rows::Agents => Vec::new(),
    }
}

/// Asks the question of a class about a window. The outer error is the store's, the inner one about the question.
/// `has_rollup`: somebody computes the store's minutes.
pub async fn ask(
    store: &dyn Store,
    class: &Class,
    window: Window,
    has_rollup: bool,
) -> Result<Result<Vec<LabelledRows>, Cause>, StoreError> {
    if let Some(sql) = &class.sql {
        return ask_in_own_words(store, sql, window).await;
    }
    let rows = match ask_for(store, question(class, window, has_rollup), row).await? {
        Ok(rows) => rows,
        Err(cause) => return Ok(Err(cause)),
    };
    if rows.len() > MOST_ROWS {
        return Ok(Err(Cause::TooMany { most: MOST_ROWS }));
    }
    Ok(Ok(rows))
}

/// Asks the question of a class about each part of a stretch, counted from zero. Of rows that are told by when they were
/// made: the parts of others do not add up.
pub async fn ask_in_parts(
    store: &dyn Store,
    class: &Class,
    stretch: Window,
    part_ns: i64,
) -> Result<Result<Vec<(u32, LabelledRows)>, Cause>, StoreError> {
    let answer = if stretch.to_ns - stretch.from_ns == part_ns {
        let question = question(class, stretch, false);
        ask_for(store, question, |line| row(line).map(|rows| (0, rows))).await?
    } else {
        ask_for(store, question_in_parts(class, stretch, part_ns), row_of_part).await?
    };
    Ok(answer.and_then(|rows| match rows.len() {
        0..=MOST_ROWS => Ok(rows),
        _ => Err(Cause::TooMany { most: MOST_ROWS }),
    }))
}

/// Asks for rows. The outer error is the store's, the inner one about the question.
async fn ask_for<T>(
    store: &dyn Store,
    question: Query,
    row: impl Fn(&str) -> Result<T, StoreError>,
) -> Result<Result<Vec<T>, Cause>, StoreError> {
    let answer = match answer_to(store, question).await {
        Ok(answer) => answer,
        Err(StoreError::Rejected { message, .. }) => return Ok(Err(Cause::Store(message))),
        // Its own bounds: another question may fit into them.
        Err(error) if is_about_its_size(&error) => return Ok(Err(Cause::Store(error.to_string()))),
        Err(error) => return Err(error),
    };
    let rows: Result<Vec<T>, _> = answer.lines().map(row).collect();
    Ok(rows.map_err(|error| Cause::Store(error.to_string())))
}

/// Whether a question took more time or memory than one may.
pub(super) fn is_about_its_size(error: &StoreError) -> bool {
    let text = error.to_string();
    ["TIMEOUT_EXCEEDED", "MEMORY_LIMIT_EXCEEDED"]
        .iter()
        .any(|name| text.contains(name))
}

/// The question of a class about a window.
pub fn question(class: &Class, window: Window, has_rollup: bool) -> Query {
    if let Some(sql) = &class.sql {
        return in_own_words(sql, window);
    }
    let mut params = Vec::new();
    let sql = match class.kind.rows {
        _ if has_rollup && is_of_minutes(class) => of_minutes(class, window),
        Rows::Listeners => of_listeners(class, &mut params),
        Rows::Namespaces => of_namespaces(),
        Rows::Overhead => of_overhead(),
        Rows::Open => of_open(class, &mut params),
        Rows::Syscalls if class.kind.times.is_some() => of_latencies(class, &mut params),
        _ => of_rows(class, false, &mut params),
    };
    about(class, window, sql, params)
}

/// The question of a class about each part of a stretch.
fn question_in_parts(class: &Class, stretch: Window, part_ns: i64) -> Query {
    let mut params = vec![
        ("begin".to_owned(), stretch.from_ns.to_string()),
        ("part".to_owned(), part_ns.to_string()),
    ];
    let sql = of_rows(class, true, &mut params);
    about(class, stretch, sql, params)
}

fn about(class: &Class, window: Window, sql: String, mut params: Vec<(String, String)>) -> Query {
    params.push(("from".to_owned(), time_value(window.from_ns)));
    params.push(("until".to_owned(), time_value(window.to_ns)));
    if !class.bounds.is_empty() {
        params.push(("bounds".to_owned(), statement::numbers_value(&class.bounds)));
    }
    Query {
        sql,
        params,
        format: "JSONCompactEachRow".into(),
        access: Access::Internal,
    }
}

/// How long a question of somebody's own may take: the others wait for it.
const OWN_WORDS_PATIENCE: Duration = Duration::from_secs(5);

/// Rows of its answer, each a verdict; and its bytes.
const OWN_WORDS_ROWS: usize = 1_000;
const OWN_WORDS_BYTES: usize = 4 << 20;

fn in_own_words(sql: &str, window: Window) -> Query {
    Query {
        sql: sql.to_owned(),
        params: vec![
            ("from".to_owned(), time_value(window.from_ns)),
            ("until".to_owned(), time_value(window.to_ns)),
        ],
        format: "JSONEachRow".into(),
        access: Access::ReadOnly,
    }
}

/// Asks what an assertion asks itself: read-only, with the window as parameters, and never for long. Whatever goes wrong
/// with it is its own, and no reason to think that the store is away: that shows in what is asked before it.
async fn ask_in_own_words(
    store: &dyn Store,
    sql: &str,
    window: Window,
) -> Result<Result<Vec<LabelledRows>, Cause>, StoreError> {
    let answered = async {
        let mut parts = store.query(in_own_words(sql, window)).await?;
        let mut whole = Vec::new();
        while let Some(part) = parts.try_next().await? {
            whole.extend_from_slice(&part);
            if whole.len() > OWN_WORDS_BYTES {
                return Err(StoreError::rejected(format!(
                    "an answer of more than {OWN_WORDS_BYTES} bytes"
                )));
            }
        }
        Ok(String::from_utf8_lossy(&whole).into_owned())
    };
    let answer = match tokio::time::timeout(OWN_WORDS_PATIENCE, answered).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(StoreError::Rejected { message, .. })) => return Ok(Err(Cause::Sql(message))),
        Ok(Err(error)) => return Ok(Err(Cause::Sql(error.to_string()))),
        Err(_) => {
            let patience = OWN_WORDS_PATIENCE.as_secs();
            return Ok(Err(Cause::Sql(format!("no answer within {patience} s"))));
        }
    };
    let lines: Vec<&str> = answer.lines().collect();
    if lines.len() > OWN_WORDS_ROWS {
        let message = format!("more than {OWN_WORDS_ROWS} rows");
        return Ok(Err(Cause::Sql(message)));
    }
    let rows: Result<Vec<LabelledRows>, Cause> = lines.into_iter().map(own_row).collect();
    let mut names = HashSet::new();
    let twice = |row: &&LabelledRows| !names.insert(row.comm.clone());
    if let Ok(rows) = &rows
        && let Some(row) = rows.iter().find(twice)
    {
        let message = format!(
            "two rows are called `{}`: columns beside `value` tell rows apart",
            row.comm
        );
        return Ok(Err(Cause::Sql(message)));
    }
    Ok(rows)
}

/// A row of an answer: its column `value`, and what the others call it.
fn own_row(line: &str) -> Result<LabelledRows, Cause> {
    let wrong = |what: String| Cause::Sql(what);
    let columns: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line)
        .map_err(|error| wrong(format!("the row {line} is not understood: {error}")))?;
    let text = |value: &serde_json::Value| match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let value = columns
        .get("value")
        .ok_or_else(|| wrong("its answer has no column `value`".to_owned()))?;
    let number = text(value)
        .parse::<f64>()
        .ok()
        .filter(|number| number.is_finite());
    let key: Vec<_> = columns
        .iter()
        .filter(|(name, _)| *name != "value")
        .map(|(name, value)| format!("{name}={}", text(value)))
        .collect();
    let mut sums = [0; SUMS];
    // A value that is none says nothing.
    sums[Sum::Rows as usize] = u64::from(number.is_some());
    Ok(LabelledRows {
        node: String::new(),
        remote: None,
        port: 0,
        service: String::new(),
        comm: key.join(", "),
        passes: 0,
        sums,
        largest: 0,
        fullest: number.unwrap_or_default(),
        histogram: Vec::new(),
    })
}

/// The last minutes are read from the rows: the store's minutes are computed some seconds after they ended, and again when
/// rows come late.
const MINUTES_BEHIND: &str = "INTERVAL 5 MINUTE";

const MINUTE_NS: i64 = 60_000_000_000;

/// Whether the store's minutes have what is asked for: sums of attempts over a long window, told apart by what minutes are
/// told apart by.
pub fn is_of_minutes(class: &Class) -> bool {
    let has_sums_alone = class.kind.rows == Rows::Attempts && class.kind.times.is_none();
    let is_long = class.over >= Duration::from_secs(1_800) && class.over.as_secs().is_multiple_of(60);
    has_sums_alone && is_long && !class.labels.remote && class.filters.is_empty()
}

fn of_minutes(class: &Class, window: Window) -> String {
    let role = if class.kind.is_server { "passive" } else { "active" };
    let [node, _, port, service, comm] = labels(class);
    let of_minutes: Vec<_> = (0..SUMS)
        .map(|at| {
            let sql = match at {
                at if at == Sum::Rows as usize => "sum(attempts - pending)",
                at if at == Sum::Established as usize => "sum(established)",
                at if at == Sum::Refused as usize => "sum(refused)",
                at if at == Sum::TimedOut as usize => "sum(timed_out)",
                at if at == Sum::Failed as usize => "sum(refused + timed_out + reset + unreachable + failed)",
                at if at == Sum::SynRetransmits as usize => "sum(syn_retransmits)",
                _ => "toUInt64(0)",
            };
            format!("toUInt64({sql}) AS s{at}")
        })
        .collect();
    let of_rows: Vec<_> = sums(class.kind)
        .into_iter()
        .enumerate()
        .map(|(at, sql)| format!("toUInt64({}) AS s{at}", sql.as_deref().unwrap_or("0")))
        .collect();
    let of_port = if class.labels.port { "port" } else { "0" };
    let outer: Vec<_> = (0..SUMS).map(|at| format!("toString(sum(s{at}))")).collect();
    let rows = |which: &str| {
        format!(
            "SELECT {node} AS l_node, toUInt16({port}) AS l_port, toString({service}) AS l_service, \
             toString({comm}) AS l_comm, {of_rows} FROM attempts WHERE role = '{role}' AND outcome != 'pending' \
             AND {which} GROUP BY l_node, l_port, l_service, l_comm",
            of_rows = of_rows.join(", "),
        )
    };
    let (from, until) = ("{from:DateTime64(9, 'UTC')}", "{until:DateTime64(9, 'UTC')}");
    let cut = format!("toStartOfMinute({until}) - {MINUTES_BEHIND}");
    let last = rows(&format!(
        "decided_at >= {cut} AND decided_at <= {until} AND recorded_at >= {cut}"
    ));
    let mut begin = format!("toStartOfMinute({from})");
    let mut first = String::new();
    if window.from_ns % MINUTE_NS != 0 {
        // Of the minute within which it begins, the rows.
        begin += " + INTERVAL 1 MINUTE";
        let of_first = format!("decided_at > {from} AND decided_at < {begin} AND recorded_at > {from}");
        first = format!("{} UNION ALL ", rows(&of_first));
    }
    format!(
        "SELECT l_node, '', l_port, l_service, l_comm, '0', [{outer}], '0', 0, [] FROM \
         ({first}SELECT {node} AS l_node, toUInt16({of_port}) AS l_port, toString({service}) AS l_service, \
         toString({comm}) AS l_comm, {of_minutes} FROM attempts_1m WHERE role = '{role}' \
         AND minute >= {begin} AND minute < {cut} \
         GROUP BY l_node, l_port, l_service, l_comm UNION ALL {last}) \
         GROUP BY l_node, l_port, l_service, l_comm LIMIT {limit} {SETTINGS}",
        outer = outer.join(", "),
        of_minutes = of_minutes.join(", "),
        limit = MOST_ROWS + 1,
    )
}

/// The labels' expressions, in the order of [`LabelledRows`]. What is not told apart is constant.
fn labels(class: &Class) -> [String; 5] {
    let port = match class.kind.rows {
        Rows::Attempts | Rows::Connections | Rows::Open if !class.kind.is_server => "remote_port",
        _ => "local_port",
    };
    let label = |is_told: bool, expression: &str, constant: &str| {
        if is_told {
            expression.to_owned()
        } else {
            constant.to_owned()
        }
    };
    [
        "node".to_owned(),
        label(class.labels.remote, "remote_ip", "''"),
        label(class.labels.port, port, "0"),
        label(class.labels.service, "service", "''"),
        label(class.labels.comm, "comm", "''"),
    ]
}

/// Which of the filters rows pass, a bit each.
fn passes(class: &Class, params: &mut Vec<(String, String)>) -> String {
    if class.filters.is_empty() {
        return "toUInt64(0)".to_owned();
    }
    let bits = class.filters.iter().enumerate().map(|(bit, filter)| {
        let condition = Condition::of(filter);
        let mut sql = condition.sql;
        // Each filter counts its parameters from zero. Last ones first, so that p1 is not taken for the begin of p10.
        for (name, value) in condition.params.into_iter().rev() {
            sql = sql.replace(&format!("{{{name}:"), &format!("{{f{bit}{name}:"));
            params.push((format!("f{bit}{name}"), value));
        }
        // Of a value that is not known, nothing is.
        format!("bitShiftLeft(toUInt64(ifNull({sql}, false)), {bit})")
    });
    bits.collect::<Vec<_>>().join(" + ")
}

/// `in_parts`: the parts of the stretch are told apart too.
fn of_rows(class: &Class, in_parts: bool, params: &mut Vec<(String, String)>) -> String {
    let kind = class.kind;
    let role = if kind.is_server { "passive" } else { "active" };
    let (view, time, condition) = match kind.rows {
        Rows::Attempts => (
            "attempts",
            "decided_at",
            format!("role = '{role}' AND outcome != 'pending'"),
        ),
        Rows::Connections => ("connections", "closed_at", format!("role = '{role}'")),
        _ => ("syscalls", "ended_at", "true".to_owned()),
    };
    let (table, which) = below(kind.rows).unwrap_or((view, "true"));
    // Of attempts, what the partitions are told by: none is recorded before it was decided.
    let recorded = match kind.rows {
        Rows::Attempts => " AND recorded_at > {from:DateTime64(9, 'UTC')}",
        // When it was closed.
        Rows::Connections => {
            " AND recorded_at > {from:DateTime64(9, 'UTC')} AND recorded_at <= {until:DateTime64(9, 'UTC')}"
        }
        _ => "",
    };
    let (value, has_value) = match kind.times {
        Some(Times::Connect) => ("connect_us", "outcome = 'established'"),
        Some(Times::Duration) => ("duration_us", "outcome = 'established'"),
        Some(Times::RoundTrip) => ("toUInt64(srtt_us)", "srtt_us > 0"),
        Some(Times::AcceptWait) => (
            "toUInt64(ifNull(accept_wait_us, 0))",
            "accept_wait_us IS NOT NULL",
        ),
        // Those of syscalls are in arrays, and asked for on their own.
        Some(Times::Syscall) | None => ("toUInt64(0)", "false"),
    };
    let (bucket, reached) = if kind.times.is_none() {
        ("toUInt16(0)".to_owned(), "0".to_owned())
    } else {
        let reached = if class.bounds.is_empty() {
            "0".to_owned()
        } else {
            format!("arrayCount(bound -> {value} >= bound, {{bounds:Array(UInt64)}})")
        };
        (
            format!("if({has_value}, {}, toUInt16(0))", bucket_sql(value)),
            format!("if({has_value}, {reached}, 0)"),
        )
    };
    // What is not summed up is not asked for: planning a question of this length takes longer than its rows.
    let sums = sums(kind).into_iter().enumerate();
    let (inner_sums, outer_sums): (Vec<_>, Vec<_>) = sums
        .map(|(at, sum)| match sum {
            Some(sql) => (Some(format!("{sql} AS s{at}")), format!("toString(sum(s{at}))")),
            None => (None, "'0'".to_owned()),
        })
        .unzip();
    let inner_sums: Vec<_> = inner_sums.into_iter().flatten().collect();
    let [node, remote, port, service, comm] = labels(class);
    let passes = passes(class, params);
    // What is not told apart is neither grouped by nor planned for.
    let told = [
        (
            class.labels.remote,
            "l_remote",
            remote,
            "toString(l_remote)",
            "''",
        ),
        (class.labels.port, "l_port", port, "l_port", "0"),
        (class.labels.service, "l_service", service, "l_service", "''"),
        (class.labels.comm, "l_comm", comm, "l_comm", "''"),
        (
            !class.filters.is_empty(),
            "l_passes",
            passes,
            "toString(l_passes)",
            "'0'",
        ),
    ];
    let (mut named, mut by, mut outer) = (String::new(), String::new(), Vec::new());
    for (is_told, name, expression, shown, constant) in told {
        if is_told {
            named += &format!("{expression} AS {name}, ");
            by += &format!(", {name}");
        }
        outer.push(if is_told { shown } else { constant });
    }
    // The begin of a part is not in it.
    let (of_part, part) = if in_parts {
        let since = format!("toUnixTimestamp64Nano({time}) - {{begin:Int64}} - 1");
        (
            "l_part, ",
            format!("toUInt32(intDiv({since}, {{part:Int64}})) AS l_part, "),
        )
    } else {
        ("", String::new())
    };
    format!(
        "SELECT {of_part}node, {outer}, [{outer_sums}], \
         toString(max(largest)), 0, groupArrayIf((bucket, reached, toString(timed)), timed > 0) FROM \
         (SELECT {part}{node} AS node, {named}{bucket} AS bucket, {reached} AS reached, countIf({has_value}) AS timed, \
         maxIf({value}, {has_value}) AS largest, {inner_sums} FROM {table} \
         WHERE {time} > {{from:DateTime64(9, 'UTC')}} AND {time} <= {{until:DateTime64(9, 'UTC')}}{recorded} \
         AND {which} AND {condition} GROUP BY {of_part}node{by}, bucket, reached) \
         GROUP BY {of_part}node{by} LIMIT {limit} {SETTINGS}",
        outer = outer.join(", "),
        outer_sums = outer_sums.join(", "),
        inner_sums = inner_sums.join(", "),
        limit = MOST_ROWS + 1,
    )
}

/// How long before a window a look still counts as the one before: agents look every 10 s.
const LOOK_BEFORE: &str = "INTERVAL 30 SECOND";

/// What a cumulative counter grew by from the last look before the window to the last one in it. Where there was none
/// before, it grew from zero if its agent had looked before and did not find it: it is as new as that. Otherwise nobody
/// knows what it had counted already, and only what it grew by from the first look on is told. Of [`looked`].
fn grown(column: &str) -> String {
    let is_in = "observed_at > {from:DateTime64(9, 'UTC')}";
    let is_new =
        "min(found_at) > {from:DateTime64(9, 'UTC')} AND min(looked_at) <= {from:DateTime64(9, 'UTC')}";
    format!(
        "greatest(toInt64(maxIf({column}, {is_in})) - toInt64(multiIf(countIf(NOT ({is_in})) > 0, \
         maxIf({column}, NOT ({is_in})), {is_new}, 0, minIf({column}, {is_in}))), 0)"
    )
}

/// The looks of a window and shortly before, each with when its agent looked first and when it found this one first,
/// whatever was seen of it then: a row that passes a filter only later is not new.
fn looked(table: &str, one: &str) -> String {
    format!(
        "(SELECT *, min(observed_at) OVER (PARTITION BY agent_id) AS looked_at, \
         min(observed_at) OVER (PARTITION BY agent_id, {one}) AS found_at FROM {table} \
         WHERE observed_at > {{from:DateTime64(9, 'UTC')}} - {LOOK_BEFORE} \
         AND observed_at <= {{until:DateTime64(9, 'UTC')}})"
    )
}

/// The sums of a row, each as a text.
fn sums_texts(of: &[(Sum, &str)]) -> String {
    let texts: Vec<_> = (0..SUMS)
        .map(|at| {
            let found = of.iter().find(|(sum, _)| *sum as usize == at);
            found.map_or_else(|| "'0'".to_owned(), |(_, sql)| format!("toString({sql})"))
        })
        .collect();
    texts.join(", ")
}

/// Of each listener what it turned away, and how full its queue was.
fn of_listeners(class: &Class, params: &mut Vec<(String, String)>) -> String {
    let [node, _, port, service, comm] = labels(class);
    let passes = passes(class, params);
    format!(
        "SELECT l_node, '', l_port, l_service, l_comm, toString(l_passes), [{sums}], '0', max(fullest), [] FROM \
         (SELECT {node} AS l_node, {port} AS l_port, {service} AS l_service, {comm} AS l_comm, {passes} AS l_passes, \
         agent_id, netns, cookie, countIf(observed_at > {{from:DateTime64(9, 'UTC')}}) AS looks, {grown} AS dropped, \
         maxIf(backlog / greatest(backlog_limit, 1), observed_at > {{from:DateTime64(9, 'UTC')}}) AS fullest FROM {looked} \
         GROUP BY l_node, l_port, l_service, l_comm, l_passes, agent_id, netns, cookie HAVING looks > 0) \
         GROUP BY l_node, l_port, l_service, l_comm, l_passes LIMIT {limit} {SETTINGS}",
        sums = sums_texts(&[(Sum::Rows, "sum(looks)"), (Sum::Drops, "sum(dropped)")]),
        grown = grown("drops"),
        looked = looked("listeners", "netns, cookie"),
        limit = MOST_ROWS + 1,
    )
}

/// Of each node what its namespaces counted.
fn of_namespaces() -> String {
    format!(
        "SELECT l_node, '', 0, '', '', '0', [{sums}], '0', 0, [] FROM \
         (SELECT node AS l_node, agent_id, netns, countIf(observed_at > {{from:DateTime64(9, 'UTC')}}) AS looks, \
         {grown} AS grown FROM {looked} GROUP BY l_node, agent_id, netns HAVING looks > 0) \
         GROUP BY l_node LIMIT {limit} {SETTINGS}",
        sums = sums_texts(&[(Sum::Rows, "sum(looks)"), (Sum::Overflows, "sum(grown)")]),
        grown = grown("listen_overflows"),
        looked = looked("namespaces", "netns"),
        limit = MOST_ROWS + 1,
    )
}

/// Of each node the largest part of its CPU time that the agent took in an interval.
fn of_overhead() -> String {
    format!(
        "SELECT node, '', 0, '', '', '0', [{sums}], '0', \
         max((agent_cpu_ns + programs_cpu_ns) / greatest(1, cpus * dateDiff('nanosecond', began_at, ended_at))), [] \
         FROM overhead_samples WHERE ended_at > {{from:DateTime64(9, 'UTC')}} \
         AND ended_at <= {{until:DateTime64(9, 'UTC')}} GROUP BY node LIMIT {limit} {SETTINGS}",
        sums = sums_texts(&[(Sum::Rows, "count()")]),
        limit = MOST_ROWS + 1,
    )
}

/// What was open when each agent looked last, connections every 10 s, attempts that wait every second, and has not ended
/// since: a socket has one connection at a time, so its cookie tells which.
fn of_open(class: &Class, params: &mut Vec<(String, String)>) -> String {
    let role = if class.kind.is_server { "passive" } else { "active" };
    let [node, remote, port, service, comm] = labels(class);
    let passes = passes(class, params);
    let lately = "observed_at > {until:DateTime64(9, 'UTC')} - INTERVAL 25 SECOND \
                  AND observed_at <= {until:DateTime64(9, 'UTC')}";
    format!(
        "SELECT {node} AS l_node, toString({remote} AS l_remote), {port} AS l_port, {service} AS l_service, \
         {comm} AS l_comm, toString({passes} AS l_passes), [{sums}], '0', 0, [] FROM \
         (SELECT *, toUInt64(greatest(dateDiff('microsecond', opened_at, observed_at), 0)) AS open_us \
         FROM connection_samples WHERE {lately} AND role = '{role}') AS sample INNER JOIN \
         (SELECT agent_id, maxIf(observed_at, outcome != 'pending') AS looked, max(observed_at) AS glanced \
         FROM connection_samples WHERE {lately} GROUP BY agent_id) AS last USING agent_id LEFT JOIN \
         (SELECT agent_id, netns, cookie, max(recorded_at) AS ended_at FROM connection_records \
         WHERE is_final AND role = '{role}' AND recorded_at > {{until:DateTime64(9, 'UTC')}} - INTERVAL 25 SECOND \
         AND recorded_at <= {{until:DateTime64(9, 'UTC')}} \
         AND cookie GLOBAL IN (SELECT cookie FROM connection_samples WHERE {lately}) \
         GROUP BY agent_id, netns, cookie) AS ended USING (agent_id, netns, cookie) \
         WHERE ended_at <= observed_at AND if(outcome = 'pending', observed_at = glanced \
         AND observed_at > {{until:DateTime64(9, 'UTC')}} - INTERVAL 3 SECOND, observed_at = looked) \
         AND {{from:DateTime64(9, 'UTC')}} < {{until:DateTime64(9, 'UTC')}} \
         GROUP BY l_node, l_remote, l_port, l_service, l_comm, l_passes LIMIT {limit} {SETTINGS}",
        sums = sums_texts(&[
            (Sum::Rows, "sum(weight)"),
            (Sum::Established, "sumIf(weight, outcome != 'pending')"),
            (Sum::Waiting, "sumIf(weight, outcome = 'pending')"),
        ]),
        limit = MOST_ROWS + 1,
    )
}

/// The latencies of the calls that were measured: buckets of nanoseconds, and which limits their middles reach.
fn of_latencies(class: &Class, params: &mut Vec<(String, String)>) -> String {
    let [node, _, _, service, comm] = labels(class);
    let passes = passes(class, params);
    let reached = if class.bounds.is_empty() {
        "0".to_owned()
    } else {
        "arrayCount(bound -> of_ns >= bound * 1000, {bounds:Array(UInt64)})".to_owned()
    };
    format!(
        "SELECT l_node, '', 0, l_service, l_comm, toString(l_passes), [{sums}], '0', 0, \
         groupArrayIf((bucket, reached, toString(timed)), timed > 0) FROM \
         (SELECT {node} AS l_node, {service} AS l_service, {comm} AS l_comm, {passes} AS l_passes, bucket, \
         {reached} AS reached, sum(of_calls) AS timed FROM syscalls \
         ARRAY JOIN latency_buckets AS bucket, latency_ns AS of_ns, latency_calls AS of_calls \
         WHERE ended_at > {{from:DateTime64(9, 'UTC')}} AND ended_at <= {{until:DateTime64(9, 'UTC')}} \
         GROUP BY l_node, l_service, l_comm, l_passes, bucket, reached) \
         GROUP BY l_node, l_service, l_comm, l_passes LIMIT {limit} {SETTINGS}",
        sums = sums_texts(&[(Sum::Rows, "sum(timed)")]),
        limit = MOST_ROWS + 1,
    )
}

/// What each of the sums is, of rows that have it.
fn sums(kind: Kind) -> [Option<String>; SUMS] {
    let mut sums: [Option<String>; SUMS] = Default::default();
    let mut is = |sum: Sum, sql: &str| sums[sum as usize] = Some(sql.to_owned());
    match kind.rows {
        Rows::Attempts => {
            is(Sum::Rows, "count()");
            is(Sum::Established, "countIf(outcome = 'established')");
            for sum in [Sum::Refused, Sum::TimedOut, Sum::Failed] {
                is(
                    sum,
                    &format!("countIf({})", is_of_sum(kind.rows, sum).unwrap_or("false")),
                );
            }
            is(Sum::SynRetransmits, "sum(syn_retransmits)");
        }
        Rows::Connections => {
            is(Sum::Rows, "count()");
            is(Sum::BytesSent, "sum(bytes_sent)");
            is(Sum::BytesReceived, "sum(bytes_received)");
            is(Sum::Retransmits, "sum(retransmits)");
            is(Sum::SegmentsSent, "sum(segments_sent)");
            is(
                Sum::Resets,
                "countIf(close_reason IN ('reset_by_peer', 'reset_by_process'))",
            );
        }
        Rows::Syscalls => {
            is(Sum::Rows, "sum(calls)");
            is(Sum::Errors, "sum(errors)");
            if let Some(errno) = kind.errno {
                let of_errno = "sum(arraySum(arrayMap((errno, calls) -> if(errno = {errno}, calls, 0), errnos, errno_calls)))";
                is(Sum::Errno, &of_errno.replace("{errno}", &errno.to_string()));
            }
        }
        Rows::Listeners | Rows::Open | Rows::Namespaces | Rows::Overhead | Rows::Sql | Rows::Agents => {}
    }
    sums
}

/// Which rows a sum is of, where it is not of all; of a sum of a column, those that have any.
pub(super) fn is_of_sum(rows: Rows, sum: Sum) -> Option<&'static str> {
    match (rows, sum) {
        (Rows::Attempts, Sum::Established) => Some("outcome = 'established'"),
        (_, Sum::Refused) => Some("outcome = 'refused'"),
        (_, Sum::TimedOut) => Some("outcome = 'timed_out'"),
        (_, Sum::Failed) => Some("outcome NOT IN ('established', 'aborted')"),
        (_, Sum::SynRetransmits) => Some("syn_retransmits > 0"),
        (_, Sum::Retransmits) => Some("retransmits > 0"),
        (_, Sum::Resets) => Some("close_reason IN ('reset_by_peer', 'reset_by_process')"),
        (_, Sum::Errors | Sum::Errno) => Some("errors > 0"),
        (_, Sum::Drops) => Some("drops > 0"),
        (_, Sum::Waiting) => Some("outcome = 'pending'"),
        _ => None,
    }
}

/// Numbers of 64 bits are quoted, or a reader of JSON would round them.
#[derive(serde::Deserialize)]
struct Row(
    String,
    String,
    u16,
    String,
    String,
    String,
    Vec<String>,
    String,
    f64,
    Vec<(u16, u8, String)>,
);

fn row(line: &str) -> Result<LabelledRows, StoreError> {
    let row: Row = serde_json::from_str(line).map_err(|_| no_row(line))?;
    labelled(row).ok_or_else(|| no_row(line))
}

/// With the part of the stretch in front.
fn row_of_part(line: &str) -> Result<(u32, LabelledRows), StoreError> {
    let (part, rest) = line
        .strip_prefix('[')
        .and_then(|line| line.split_once(','))
        .ok_or_else(|| no_row(line))?;
    let part = part.trim().parse().map_err(|_| no_row(line))?;
    Ok((part, row(&format!("[{rest}"))?))
}

fn no_row(line: &str) -> StoreError {
    StoreError::rejected(format!("the store's answer, {line:?}, is no row of evidence"))
}

fn labelled(row: Row) -> Option<LabelledRows> {
    let Row(node, remote, port, service, comm, passes, texts, largest, fullest, histogram) = row;
    let number = |text: &str| text.parse::<u64>().ok();
    let mut sums = [0; SUMS];
    for (sum, text) in sums.iter_mut().zip(&texts) {
        *sum = number(text)?;
    }
    let histogram = histogram
        .iter()
        .map(|(bucket, reached, count)| Some((*bucket, *reached, number(count)?)));
    Some(LabelledRows {
        node,
        remote: remote.parse::<Ipv6Addr>().ok(),
        port,
        service,
        comm,
        passes: number(&passes)?,
        sums,
        largest: number(&largest)?,
        fullest,
        histogram: histogram.collect::<Option<_>>()?,
    })
}

/// What the agents reported after `since_ns` and until `until_ns` by the collector's clock, in the order in which it came.
pub async fn reports(store: &dyn Store, since_ns: i64, until_ns: i64) -> Result<Vec<Report>, StoreError> {
    // A node's clock may be wrong by much; what it says is a day's partition away at most, or it is not looked for.
    let sql = "SELECT node, toString(agent_epoch) AS agent_epoch, toUnixTimestamp64Nano(observed_at) AS observed_ns, \
               toUnixTimestamp64Nano(received_at) AS received_ns, toUnixTimestamp64Nano(watermark_at) AS records_ns, \
               toUnixTimestamp64Nano(attempts_watermark_at) AS attempts_ns, toString(missing) AS missing, \
               toString(lost) AS lost, toString(dropped) AS dropped, toString(syscalls_missing) AS syscalls_missing, \
               toUnixTimestamp64Nano(syscalls_since) AS syscalls_since_ns, \
               toUnixTimestamp64Nano(listeners_since) AS listeners_since_ns, \
               toUnixTimestamp64Nano(open_connections_since) AS open_since_ns, off, \
               clock_offset_ns FROM agent_samples \
               WHERE observed_at > {since:DateTime64(9, 'UTC')} - INTERVAL 1 DAY \
               AND received_at > {since:DateTime64(9, 'UTC')} AND received_at <= {until:DateTime64(9, 'UTC')} \
               ORDER BY received_at, observed_at";
    let params = vec![
        ("since".to_owned(), time_value(since_ns)),
        ("until".to_owned(), time_value(until_ns)),
    ];
    lines::<ReportRow>(store, sql, params)
        .await
        .map(|rows| rows.into_iter().map(Report::from).collect())
}

/// When anybody was heard last until `now_ns`. `None`: nobody ever was.
pub async fn last_heard(store: &dyn Store, now_ns: i64) -> Result<Option<i64>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Last {
        heard_ns: serde_json::Value,
    }
    let sql = "SELECT toUnixTimestamp64Nano(max(received_at)) AS heard_ns FROM agent_samples \
               WHERE received_at <= {now:DateTime64(9, 'UTC')}";
    let params = vec![("now".to_owned(), time_value(now_ns))];
    let last: Vec<Last> = lines(store, sql, params).await?;
    let heard_ns = last.first().map(|last| signed(&last.heard_ns));
    Ok(heard_ns.filter(|heard_ns| *heard_ns > 0))
}

/// When each start of an agent that was heard of after `since_ns`, until `now_ns`, was first heard of: node, epoch, and
/// nanoseconds since the Unix epoch by the node's clock.
pub async fn starts(
    store: &dyn Store,
    now_ns: i64,
    since_ns: i64,
) -> Result<Vec<(String, u64, i64)>, StoreError> {
    #[derive(serde::Deserialize)]
    struct Start {
        node: String,
        epoch: String,
        began_ns: serde_json::Value,
    }
    let sql = "SELECT node, toString(agent_epoch) AS epoch, toUnixTimestamp64Nano(min(observed_at)) AS began_ns \
               FROM agent_samples WHERE received_at <= {now:DateTime64(9, 'UTC')} GROUP BY node, agent_epoch \
               HAVING max(received_at) > {since:DateTime64(9, 'UTC')} ORDER BY agent_epoch";
    let params = vec![
        ("since".to_owned(), time_value(since_ns)),
        ("now".to_owned(), time_value(now_ns)),
    ];
    let starts: Vec<Start> = lines(store, sql, params).await?;
    Ok(starts
        .into_iter()
        .map(|start| {
            (
                start.node,
                start.epoch.parse().unwrap_or(0),
                signed(&start.began_ns),
            )
        })
        .collect())
}

/// The nodes that were heard of after `since_ns`, until `now_ns`, by name.
pub async fn roster(store: &dyn Store, now_ns: i64, since_ns: i64) -> Result<Roster, StoreError> {
    #[derive(serde::Deserialize)]
    struct Known {
        node: String,
        labels: std::collections::BTreeMap<String, String>,
        addresses: Vec<String>,
    }
    // Where it connected from is an address of it, as far as its network does not change addresses on the way.
    let sql = "SELECT node, labels, arrayPushBack(addresses, remote) AS addresses FROM \
               (SELECT * FROM node_sessions WHERE connected_at <= {now:DateTime64(9, 'UTC')} \
               ORDER BY connected_at DESC LIMIT 1 BY node) WHERE connected_at > {since:DateTime64(9, 'UTC')} \
               OR node IN (SELECT node FROM agent_samples WHERE observed_at > {since:DateTime64(9, 'UTC')} - INTERVAL 1 DAY \
               AND received_at > {since:DateTime64(9, 'UTC')} AND received_at <= {now:DateTime64(9, 'UTC')}) \
               ORDER BY node";
    let params = vec![
        ("since".to_owned(), time_value(since_ns)),
        ("now".to_owned(), time_value(now_ns)),
    ];
    let known: Vec<Known> = lines(store, sql, params).await?;
    let node = |known: Known| Node {
        addresses: known.addresses.iter().filter_map(|text| address(text)).collect(),
        labelled: Labelled {
            node: known.node,
            labels: known.labels,
        },
    };
    Ok(Roster {
        nodes: known.into_iter().map(node).collect(),
    })
}

/// An address, alone or with a port; loopback is everybody's.
fn address(text: &str) -> Option<Ipv6Addr> {
    let ip = text
        .parse()
        .or_else(|_| text.parse().map(|at: std::net::SocketAddr| at.ip()))
        .ok()?;
    let mapped = match ip {
        std::net::IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        std::net::IpAddr::V6(ip) => ip,
    };
    (!std::net::IpAddr::V6(mapped).to_canonical().is_loopback()).then_some(mapped)
}

/// Numbers of 64 bits come as numbers or as texts, as the store's settings have it.
#[derive(serde::Deserialize)]
struct ReportRow {
    node: String,
    agent_epoch: String,
    observed_ns: serde_json::Value,
    received_ns: serde_json::Value,
    records_ns: serde_json::Value,
    attempts_ns: serde_json::Value,
    missing: String,
    lost: String,
    dropped: String,
    syscalls_missing: String,
    syscalls_since_ns: serde_json::Value,
    listeners_since_ns: serde_json::Value,
    open_since_ns: serde_json::Value,
    off: std::collections::BTreeMap<String, String>,
    clock_offset_ns: serde_json::Value,
}

impl From<ReportRow> for Report {
    fn from(row: ReportRow) -> Self {
        let count = |text: &str| text.parse().unwrap_or(0);
        let watch = |switch: Switch| {
            let since_ns = match switch {
                Switch::Syscalls => &row.syscalls_since_ns,
                Switch::Listeners => &row.listeners_since_ns,
                Switch::OpenConnections => &row.open_since_ns,
            };
            let off = row.off.get(switch.name());
            Watch {
                since_ns: signed(since_ns),
                off: off.map_or(OffReason::Unsaid, |reason| OffReason::named(reason)),
            }
        };
        Self {
            watches: Switch::ALL.map(watch),
            lost: count(&row.lost),
            dropped: count(&row.dropped),
            syscalls_missing: count(&row.syscalls_missing),
            node: row.node,
            agent_epoch: row.agent_epoch.parse().unwrap_or(0),
            observed_ns: signed(&row.observed_ns),
            received_ns: signed(&row.received_ns),
            records_ns: signed(&row.records_ns),
            attempts_ns: signed(&row.attempts_ns),
            missing: count(&row.missing),
            clock_offset_ns: signed(&row.clock_offset_ns),
        }
    }
}

fn signed(value: &serde_json::Value) -> i64 {
    value
        .as_i64()
        .or_else(|| value.as_str().and_then(|text| text.parse().ok()))
        .unwrap_or(0)
}

async fn lines<T: serde::de::DeserializeOwned>(
    store: &dyn Store,
    sql: &str,
    params: Vec<(String, String)>,
) -> Result<Vec<T>, StoreError> {
    let question = Query {
        sql: sql.to_owned(),
        params,
        format: "JSONEachRow".into(),
        access: Access::Internal,
    };
    let answer = answer_to(store, question).await?;
    let line = |line| {
        serde_json::from_str(line)
            .map_err(|error| StoreError::rejected(format!("the store's answer {line:?}: {error}")))
    };
    answer.lines().map(line).collect()
}
