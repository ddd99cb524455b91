//! The bytes of an agent's message, as they come from the network: each is refused with a reason, or taken.

#![no_main]

use holdfast_collector::ingest::agent::Agent;
use holdfast_collector::ingest::arrivals::Arrivals;
use holdfast_collector::ingest::decode::{self, restamp::NodeClock};
use holdfast_collector::runs::result::Outcome;
use holdfast_proto::v1::{AgentMessage, Stream, agent_message::Body, run_event::Event};
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// When the inputs of the corpus were made, in nanoseconds since the Unix epoch: the collector's time.
const NOW_NS: i64 = 1_795_000_000_000_000_000;

fuzz_target!(|bytes: &[u8]| {
    let Ok(message) = AgentMessage::decode(bytes) else {
        return;
    };
    match message.body {
        Some(Body::Hello(mut hello)) => {
            let unanswered = std::mem::take(&mut hello.unanswered);
            let epoch = hello.epoch;
            if let Ok(mut arrivals) = Arrivals::new(epoch, &unanswered) {
                for range in &unanswered {
                    let batches = [(range.epoch, range.first_sequence)];
                    arrivals.are_stored(range.stream(), &batches);
                    arrivals.arrived(range.epoch, range.stream(), range.last_sequence);
                }
                arrivals.arrived(epoch, Stream::Connections, u64::MAX);
            }
            // A reason is text that goes back.
            let _ = Agent::try_from(hello).map_err(|unwelcome| unwelcome.to_string());
        }
        Some(Body::Batch(sealed)) => {
            let _ = decode::sealed(&sealed, NOW_NS, &NodeClock::default()).map_err(|malformed| malformed.to_string());
        }
        Some(Body::Status(mut status)) => {
            decode::restamp::status(&mut status, NOW_NS);
            decode::leave_out_unknown(&mut status);
            let _ = decode::status(status, NOW_NS).map_err(|malformed| malformed.to_string());
        }
        Some(Body::Run(event)) => {
            if let Some(Event::Report(report)) = event.event {
                // Twice: the second is added to the first.
                let mut outcome = Outcome::default();
                for _ in 0..2 {
                    let _ = outcome
                        .add("node", &report)
                        .map_err(|unreadable| unreadable.to_string());
                }
            }
        }
        // Its fields are plain.
        Some(Body::Probes(_)) | None => {}
    }
});
