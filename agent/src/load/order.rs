//! What a run is called on the wire: the collector's plan becomes ours, our report becomes its. Pure.

use std::{net::IpAddr, net::SocketAddr, time::Duration};

use hdrhistogram::{
    Histogram,
    serialization::{Serializer, V2Serializer},
};
use holdfast_proto::v1::{LoadCounts, LoadEnd, LoadHttp, LoadLoss, LoadPlan, LoadReport, load_plan};

use super::{
    http::{Http, Tls, Version},
    outcome::{Answer, Loss, Outcome},
    plan::{Arrivals, Close, Nonsense, Payload, Plan, Stage, Udp},
    run::{End, Report},
    tally::Tally,
};

/// A plan and how often it is reported on, checked.
///
/// # Errors
/// If it makes no sense.
pub fn plan(wire: &LoadPlan) -> Result<(Plan, Duration), Nonsense> {
    let address = |text: &String| {
        // An IPv4 address in the dress of IPv6 is IPv4: for consent, for the sources that fit, and for what the kernel says of it.
        text.parse::<SocketAddr>()
            .map(|address| SocketAddr::new(address.ip().to_canonical(), address.port()))
            .map_err(|_| Nonsense(format!("the target {text:?} is no address with a port")))
    };
    let source = |text: &String| {
        text.parse::<IpAddr>()
            .map(|source| source.to_canonical())
            .map_err(|_| Nonsense(format!("the source {text:?} is no address")))
    };
    let arrivals = match &wire.arrivals {
        Some(load_plan::Arrivals::Count(count)) => Arrivals::Count {
            connections: count.connections,
            pause: Duration::from_nanos(count.pause_ns),
        },
        Some(load_plan::Arrivals::Stages(stages)) => Arrivals::Stages(
            stages
                .stages
                .iter()
                .map(|stage| Stage {
                    from_per_second: stage.from_per_second,
                    to_per_second: stage.to_per_second,
                    duration: Duration::from_nanos(stage.duration_ns),
                })
                .collect(),
        ),
        Some(load_plan::Arrivals::Loop(closed)) => Arrivals::Closed {
            concurrency: closed.concurrency,
            duration: Duration::from_nanos(closed.duration_ns),
        },
        None => {
            return Err(Nonsense(
                "a plan of a kind that this agent does not know: upgrade it".into(),
            ));
        }
    };
    let plan = Plan {
        targets: wire.targets.iter().map(address).collect::<Result<_, _>>()?,
        arrivals,
        first: wire.first,
        step: wire.step,
        hold: Duration::from_nanos(wire.hold_ns),
        timeout: Duration::from_nanos(wire.timeout_ns),
        payload: (wire.payload_bytes > 0).then_some(Payload {
            bytes: wire.payload_bytes as usize,
            rounds: wire.rounds,
        }),
        http: wire.http.as_ref().map(http).transpose()?,
        udp: wire.udp.map(|udp| Udp {
            bytes: udp.bytes as usize,
            is_one_way: udp.one_way,
        }),
        close: if wire.finish { Close::Finish } else { Close::Reset },
        sources: wire.sources.iter().map(source).collect::<Result<_, _>>()?,
    };
    if wire.interval_ns == 0 {
        return Err(Nonsense("reports without an interval".into()));
    }
    Ok((plan.check()?, Duration::from_nanos(wire.interval_ns)))
}

fn http(wire: &LoadHttp) -> Result<Http, Nonsense> {
    let status =
        |status: u32| u16::try_from(status).map_err(|_| Nonsense(format!("{status} is no status of HTTP")));
    Ok(Http {
        version: match wire.version {
            1 => Version::Http1,
            2 => Version::Http2,
            other => {
                return Err(Nonsense(format!(
                    "HTTP of the version {other} is nothing that this agent knows: upgrade it"
                )));
            }
        },
        tls: wire.tls.as_ref().map(|tls| Tls {
            name: tls.name.clone(),
            authorities: tls.authorities.to_vec(),
            is_blind: tls.trust_anybody,
        }),
        method: wire.method.clone(),
        authority: wire.authority.clone(),
        path: wire.path.clone(),
        fields: wire
            .fields
            .iter()
            .map(|field| (field.name.clone(), field.value.clone()))
            .collect(),
        body: wire.body.to_vec(),
        keep_alive: !wire.close,
        streams: wire.streams,
        connections: wire.connections,
        statuses: wire
            .statuses
            .iter()
            .map(|range| Ok((status(range.first)?, status(range.last)?)))
            .collect::<Result<_, Nonsense>>()?,
        wanted: wire.wanted.to_vec(),
    })
}

/// A report as it is sent.
pub fn report(report: &Report) -> LoadReport {
    let tally = &report.tally;
    let (end, reason) = match &report.end {
        None => (None, String::new()),
        Some(End::Finished) => (Some(LoadEnd::Finished), String::new()),
        Some(End::Stopped) => (Some(LoadEnd::Stopped), String::new()),
        Some(End::Capped(reason)) => (Some(LoadEnd::Capped), reason.clone()),
        Some(End::Failed(reason)) => (Some(LoadEnd::Failed), reason.clone()),
        Some(End::Orphaned) => (Some(LoadEnd::Orphaned), String::new()),
    };
    LoadReport {
        elapsed_ns: report.elapsed.as_nanos() as u64,
        counts: Some(counts(tally)),
        connect: histogram(&tally.connect),
        dial: histogram(&tally.dial),
        network: histogram(&tally.network),
        error: histogram(&tally.error),
        exchange: histogram(&tally.exchange),
        request: histogram(&tally.request),
        jitter: histogram(&tally.jitter),
        statuses: tally
            .statuses
            .iter()
            .map(|(&status, &count)| (status.into(), count))
            .collect(),
        remarks: tally.remarks.clone(),
        lateness: histogram(&tally.lateness),
        lost: tally
            .lost_at
            .iter()
            .map(|lost| LoadLoss {
                at_ns: lost.at_ns,
                cause: cause(lost.loss).to_owned(),
                count: lost.count,
            })
            .collect(),
        open: report.open,
        most_open: report.most_open,
        cpu_ns: report.cpu.as_nanos() as u64,
        watched_ns: report.watched.as_nanos() as u64,
        saturated_ns: report.saturated.as_nanos() as u64,
        denied: tally.denied,
        unanswered: tally.unanswered,
        withheld: tally.withheld,
        hindered: tally.hindered,
        lacks_handshakes: tally.lacks_handshakes,
        first_ns: report.first_ns.unwrap_or(0),
        end: end.map(Into::into),
        reason,
        target: 0,
    }
}

fn histogram(times: &Histogram<u64>) -> bytes::Bytes {
    if times.is_empty() {
        return bytes::Bytes::new();
    }
    let mut encoded = Vec::new();
    V2Serializer::new()
        .serialize(times, &mut encoded)
        .expect("a vector takes everything");
    encoded.into()
}

fn counts(tally: &Tally) -> LoadCounts {
    let lost = |loss: Loss| tally.losses[loss as usize];
    let answers = |answer: Answer| tally.answers[answer as usize];
    LoadCounts {
        started: tally.started,
        established: tally.count(Outcome::Established),
        refused: tally.count(Outcome::Refused) + answers(Answer::Refused),
        timed_out: tally.count(Outcome::TimedOut),
        reset: tally.count(Outcome::Reset),
        unreachable: tally.count(Outcome::Unreachable) + answers(Answer::Unreachable),
        local_files: tally.count(Outcome::LocalFiles),
        local_ports: tally.count(Outcome::LocalPorts),
        local_filter: tally.count(Outcome::LocalFilter),
        abandoned: tally.count(Outcome::Abandoned),
        failed: tally.count(Outcome::Failed),
        closed: tally.closed,
        closed_by_peer: lost(Loss::ClosedByPeer),
        reset_by_peer: lost(Loss::ResetByPeer),
        lost_timed_out: lost(Loss::TimedOut),
        lost_unreachable: lost(Loss::Unreachable),
        lost_failed: lost(Loss::Failed),
        late: tally.late,
        syn_retransmits: tally.syn_retransmits,
        bytes_sent: tally.bytes_sent,
        bytes_received: tally.bytes_received,
        requests: tally.requests,
        answered: answers(Answer::Expected),
        unexpected_status: answers(Answer::UnexpectedStatus),
        unexpected_body: answers(Answer::UnexpectedBody),
        request_timed_out: answers(Answer::TimedOut),
        request_lost: answers(Answer::Lost),
        malformed: answers(Answer::Malformed),
        unsent: answers(Answer::Unsent),
        request_abandoned: answers(Answer::Abandoned),
        insecure: tally.insecure,
        reordered: tally.reordered,
        duplicated: tally.duplicated,
    }
}

fn cause(loss: Loss) -> &'static str {
    match loss {
        Loss::ClosedByPeer => "closed_by_peer",
        Loss::ResetByPeer => "reset_by_peer",
        Loss::TimedOut => "lost_timed_out",
        Loss::Unreachable => "lost_unreachable",
        Loss::Failed => "lost_failed",
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::serialization::Deserializer;
    use holdfast_proto::v1::LoadCount;

    use super::*;

    #[test]
    fn a_plan_is_read_as_what_it_says_and_named_where_it_cannot_be() {
        let good = LoadPlan {
            targets: vec!["127.0.0.1:80".into()],
            arrivals: Some(load_plan::Arrivals::Count(LoadCount {
                connections: 5,
                pause_ns: 0,
            })),
            step: 1,
            timeout_ns: 1,
            interval_ns: 1,
            ..LoadPlan::default()
        };
        assert!(plan(&good).is_ok());
        let bad = |change: fn(&mut LoadPlan), part: &str| {
            let mut wire = good.clone();
            change(&mut wire);
            let error = plan(&wire).expect_err(part).to_string();
            assert!(error.contains(part), "{error}");
        };
        let mut dressed = good.clone();
        dressed.targets = vec!["[::ffff:127.0.0.1]:80".into()];
        dressed.sources = vec!["::ffff:127.0.0.2".into()];
        let (dressed, _) = plan(&dressed).expect("the same in the dress of IPv6");
        assert_eq!(dressed.targets[0].to_string(), "127.0.0.1:80");
        assert_eq!(dressed.sources[0].to_string(), "127.0.0.2");
        bad(|wire| wire.targets[0] = "web:80".into(), "web:80");
        bad(|wire| wire.sources = vec!["eth0".into()], "eth0");
        bad(|wire| wire.arrivals = None, "upgrade");
        bad(|wire| wire.interval_ns = 0, "interval");
    }

    #[test]
    fn a_distribution_arrives_as_it_was() {
        let mut times = super::super::tally::times();
        for value in [100, 2_000, 3_000_000] {
            times.saturating_record(value);
        }
        let encoded = histogram(&times);
        let decoded: Histogram<u64> = Deserializer::new()
            .deserialize(&mut encoded.as_ref())
            .expect("a histogram");
        assert_eq!(decoded, times);
        assert!(histogram(&super::super::tally::times()).is_empty());
    }
}
