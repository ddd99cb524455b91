//! What was asked of a run's agents, as it is stored with its result, shown, and compared with another run's. Pure.

use std::collections::BTreeMap;

use holdfast_proto::v1::{LoadPlan, LoadRequest, LoadTls, load_plan};
use serde::{Deserialize, Serialize};

use super::result::human;

/// A plan without what is secret or large: of header fields it has the names, of a body the length.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub protocol: String,
    /// The targets' addresses, as they were resolved.
    pub addresses: Vec<String>,
    pub arrivals: Arrivals,
    /// Which agents were asked for: nodes and labels, none: any; and how many, zero: all of those.
    pub nodes: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub agents: u32,
    pub timeout_ns: u64,
    /// Zero: not longer than the plan needs.
    pub hold_ns: u64,
    /// Of each connection, or of each datagram; zero: nothing was sent.
    pub payload_bytes: u32,
    pub rounds: u64,
    /// Connections were closed with a FIN, not with a reset.
    pub finish: bool,
    pub sources: Vec<String>,
    /// Of `load mesh` only: the label and the groups whose agents load each other; the load is that of each pair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mesh: Option<(String, Vec<String>)>,
    /// Of `load http` only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<Http>,
    /// The target counted datagrams and sent none back.
    #[serde(default)]
    pub one_way: bool,
}

/// When attempts were due.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Arrivals {
    Count { attempts: u64, pause_ns: u64 },
    Stages(Vec<Stage>),
    Loop { concurrency: u64, duration_ns: u64 },
}

impl Default for Arrivals {
    fn default() -> Self {
        Self::Stages(Vec::new())
    }
}

/// A rate that changes evenly.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    pub from_per_second: f64,
    pub to_per_second: f64,
    pub duration_ns: u64,
}

/// The request that was sent again and again.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Http {
    pub method: String,
    pub url: String,
    /// Names only: values may be secret.
    pub fields: Vec<String>,
    pub body_bytes: usize,
    /// A connection for each request.
    pub close: bool,
    /// Requests at once on a connection.
    pub streams: u32,
    /// Most connections at once; zero: as many as requests at once.
    pub connections: u64,
    /// Ranges of statuses, both ends included.
    pub statuses: Vec<(u32, u32)>,
    /// The server's certificate was not checked.
    pub trust_anybody: bool,
}

impl Plan {
    pub fn of(request: &LoadRequest, plan: &LoadPlan) -> Self {
        let (protocol, http) = match (&plan.http, &plan.udp) {
            (Some(http), _) => {
                let version = if http.version == 2 { "HTTP/2" } else { "HTTP/1.1" };
                let is_secure = http.tls.is_some();
                let protocol = format!("{version}{}", if is_secure { " over TLS" } else { "" });
                let scheme = if is_secure { "https" } else { "http" };
                let http = Http {
                    method: http.method.clone(),
                    url: format!("{scheme}://{}{}", http.authority, http.path),
                    fields: http.fields.iter().map(|field| field.name.clone()).collect(),
                    body_bytes: http.body.len(),
                    close: http.close,
                    streams: http.streams,
                    connections: http.connections,
                    statuses: http
                        .statuses
                        .iter()
                        .map(|range| (range.first, range.last))
                        .collect(),
                    trust_anybody: http
                        .tls
                        .as_ref()
                        .is_some_and(|LoadTls { trust_anybody, .. }| *trust_anybody),
                };
                (protocol, Some(http))
            }
            (None, Some(_)) => ("UDP".to_owned(), None),
            (None, None) => ("TCP".to_owned(), None),
        };
        Self {
            protocol,
            addresses: plan.targets.clone(),
            arrivals: arrivals(plan),
            nodes: request.nodes.clone(),
            labels: request.labels.clone().into_iter().collect(),
            agents: request.agents,
            timeout_ns: plan.timeout_ns,
            hold_ns: plan.hold_ns,
            payload_bytes: plan.udp.map_or(plan.payload_bytes, |udp| udp.bytes),
            rounds: plan.rounds,
            finish: plan.finish,
            mesh: request.mesh.clone().map(|mesh| (mesh.label, mesh.groups)),
            sources: plan.sources.clone(),
            http,
            one_way: plan.udp.is_some_and(|udp| udp.one_way),
        }
    }

    /// Names and values, for people: what is a matter of course is left out.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let is_tcp = self.protocol == "TCP";
        let mut facts = vec![
            ("protocol", self.protocol.clone()),
            ("load", self.load()),
            ("addresses", self.addresses.join(", ")),
            ("agents", self.chosen()),
            ("timeout", human(self.timeout_ns)),
        ];
        let mut add = |name, is_there: bool, value: String| {
            if is_there {
                facts.push((name, value));
            }
        };
        let counted = matches!(self.arrivals, Arrivals::Count { .. });
        let hold = match (self.hold_ns, counted) {
            (0, true) => "until all are decided".to_owned(),
            (0, false) => "not at all".to_owned(),
            (ns, true) => format!("{} from when all are decided", human(ns)),
            (ns, false) => human(ns),
        };
        if let Some((label, groups)) = &self.mesh {
            add(
                "mesh",
                true,
                format!("each of {label}={} to every other", groups.join(",")),
            );
        }
        add("hold", is_tcp, hold);
        let payload = format!(
            "{} bytes, {} times there and back",
            self.payload_bytes, self.rounds
        );
        add("payload", is_tcp && self.payload_bytes > 0, payload);
        add(
            "close",
            is_tcp,
            if self.finish { "FIN" } else { "RST" }.to_owned(),
        );
        let way = if self.one_way { "one way" } else { "there and back" };
        add(
            "datagrams",
            self.protocol == "UDP",
            format!("{} bytes, {way}", self.payload_bytes),
        );
        add("sources", !self.sources.is_empty(), self.sources.join(", "));
        let Some(http) = &self.http else {
            return facts;
        };
        let (server, path) = apart(&http.url);
        add("server", true, server.to_owned());
        add("request", true, format!("{} {path}", http.method));
        add("header fields", !http.fields.is_empty(), http.fields.join(", "));
        add("body", http.body_bytes > 0, format!("{} bytes", http.body_bytes));
        let keep = match (http.close, http.streams) {
            (true, _) => "one for each request".to_owned(),
            (false, streams @ 2..) => format!("kept, {streams} requests at once on each"),
            (false, _) => "kept".to_owned(),
        };
        let most = match http.connections {
            0 => String::new(),
            most => format!(", {most} at most"),
        };
        add("connections", true, keep + &most);
        let statuses: Vec<_> = http
            .statuses
            .iter()
            .map(|(first, last)| {
                if first == last {
                    first.to_string()
                } else {
                    format!("{first}-{last}")
                }
            })
            .collect();
        add("statuses", !statuses.is_empty(), statuses.join(", "));
        add("certificate", http.trust_anybody, "not checked".to_owned());
        facts
    }

    /// What of this plan is otherwise in `other`: a name and both values. Other targets, and the same ones at other addresses, are
    /// among it.
    pub fn differences(&self, other: &Self) -> Vec<(&'static str, String, String)> {
        let (mine, theirs) = (self.facts(), other.facts());
        let value = |facts: &[(&str, String)], name| {
            let fact = facts.iter().find(|(fact, _)| *fact == name);
            fact.map_or_else(|| "-".to_owned(), |(_, value)| value.clone())
        };
        let mut names: Vec<&'static str> = mine.iter().map(|(name, _)| *name).collect();
        let more = theirs.iter().map(|(name, _)| *name);
        names.extend(more.filter(|name| !mine.iter().any(|(mine, _)| mine == name)));
        names
            .into_iter()
            .map(|name| (name, value(&mine, name), value(&theirs, name)))
            .filter(|(_, mine, theirs)| mine != theirs)
            .collect()
    }

    /// When attempts were due, in words.
    pub fn load(&self) -> String {
        let of_what = match (&self.http, self.protocol.as_str()) {
            (Some(_), _) => "requests",
            (None, "UDP") => "datagrams",
            _ => "connections",
        };
        match &self.arrivals {
            Arrivals::Count { attempts, pause_ns } => {
                format!("{attempts} {of_what}, one every {}", human(*pause_ns))
            }
            Arrivals::Loop {
                concurrency,
                duration_ns,
            } => format!("{concurrency} {of_what} at once for {}", human(*duration_ns)),
            Arrivals::Stages(stages) => {
                let stage = |stage: &Stage| {
                    let (from, to, time) = (
                        stage.from_per_second,
                        stage.to_per_second,
                        human(stage.duration_ns),
                    );
                    if from == to {
                        format!("{from}/s for {time}")
                    } else {
                        format!("{from} -> {to}/s in {time}")
                    }
                };
                let stages: Vec<_> = stages.iter().map(stage).collect();
                format!("{of_what} at {}", stages.join(", "))
            }
        }
    }

    fn chosen(&self) -> String {
        let mut words = self.nodes.clone();
        words.extend(self.labels.iter().map(|(key, value)| format!("{key}={value}")));
        let number = match self.agents {
            0 => "all".to_owned(),
            number => number.to_string(),
        };
        if words.is_empty() {
            format!("{number} of all")
        } else {
            format!("{number} of {}", words.join(", "))
        }
    }
}

fn arrivals(plan: &LoadPlan) -> Arrivals {
    match &plan.arrivals {
        Some(load_plan::Arrivals::Count(count)) => Arrivals::Count {
            attempts: count.connections,
            pause_ns: count.pause_ns,
        },
        Some(load_plan::Arrivals::Loop(closed)) => Arrivals::Loop {
            concurrency: closed.concurrency,
            duration_ns: closed.duration_ns,
        },
        Some(load_plan::Arrivals::Stages(stages)) => {
            let stage = |stage: &holdfast_proto::v1::LoadStage| Stage {
                from_per_second: stage.from_per_second,
                to_per_second: stage.to_per_second,
                duration_ns: stage.duration_ns,
            };
            Arrivals::Stages(stages.stages.iter().map(stage).collect())
        }
        None => Arrivals::default(),
    }
}

/// A URL as its server and what is asked of it.
fn apart(url: &str) -> (&str, &str) {
    let host = url.find("://").map_or(0, |at| at + "://".len());
    let path = url[host..].find('/').map_or(url.len(), |at| host + at);
    url.split_at(path)
}

#[cfg(test)]
mod tests {
    use holdfast_proto::v1::{LoadCount, LoadHttp, LoadHttpField, LoadStage, LoadStages};

    use super::*;

    fn stages(rates: &[(f64, f64)]) -> LoadPlan {
        let stage = |&(from_per_second, to_per_second): &(f64, f64)| LoadStage {
            from_per_second,
            to_per_second,
            duration_ns: 60_000_000_000,
        };
        LoadPlan {
            targets: vec!["10.0.0.1:80".into()],
            arrivals: Some(load_plan::Arrivals::Stages(LoadStages {
                stages: rates.iter().map(stage).collect(),
            })),
            timeout_ns: 5_000_000_000,
            ..LoadPlan::default()
        }
    }

    #[test]
    fn a_plan_says_what_was_asked_for() {
        let request = LoadRequest {
            labels: [("role".to_owned(), "web".to_owned())].into(),
            agents: 3,
            ..LoadRequest::default()
        };
        let plan = Plan::of(&request, &stages(&[(0.0, 500.0), (500.0, 500.0)]));
        assert_eq!(
            plan.facts(),
            [
                ("protocol", "TCP"),
                ("load", "connections at 0 -> 500/s in 60.0 s, 500/s for 60.0 s"),
                ("addresses", "10.0.0.1:80"),
                ("agents", "3 of role=web"),
                ("timeout", "5.00 s"),
                ("hold", "not at all"),
                ("close", "RST"),
            ]
            .map(|(name, value)| (name, value.to_owned()))
        );
        let json = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&json).unwrap(), plan);
    }

    #[test]
    fn what_is_secret_in_a_request_is_not_kept() {
        let plan = LoadPlan {
            http: Some(LoadHttp {
                version: 2,
                tls: Some(LoadTls::default()),
                method: "POST".into(),
                authority: "web:8443".into(),
                path: "/a".into(),
                fields: vec![LoadHttpField {
                    name: "Authorization".into(),
                    value: "Bearer hush".into(),
                }],
                body: b"hush".to_vec().into(),
                ..LoadHttp::default()
            }),
            arrivals: Some(load_plan::Arrivals::Count(LoadCount {
                connections: 7,
                pause_ns: 1_000_000,
            })),
            ..LoadPlan::default()
        };
        let plan = Plan::of(&LoadRequest::default(), &plan);
        let json = serde_json::to_string(&plan).unwrap();
        assert!(json.contains("Authorization") && !json.contains("hush"), "{json}");
        let facts = plan.facts();
        assert!(
            facts.contains(&("server", "https://web:8443".into()))
                && facts.contains(&("request", "POST /a".into())),
            "{facts:?}"
        );
        assert!(
            facts.contains(&("load", "7 requests, one every 1.00 ms".into())),
            "{facts:?}"
        );
    }

    #[test]
    fn plans_are_told_apart_by_what_differs() {
        let request = LoadRequest::default();
        let one = Plan::of(&request, &stages(&[(100.0, 100.0)]));
        let mut other = Plan::of(&request, &stages(&[(200.0, 200.0)]));
        assert!(one.differences(&one).is_empty());
        other.sources = vec!["127.0.0.2".into()];
        assert_eq!(
            one.differences(&other),
            [
                (
                    "load",
                    "connections at 100/s for 60.0 s".to_owned(),
                    "connections at 200/s for 60.0 s".to_owned()
                ),
                ("sources", "-".to_owned(), "127.0.0.2".to_owned()),
            ]
        );
    }
}
