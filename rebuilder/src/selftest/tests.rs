use super::*;
use crate::telemetry::{Metrics, WorkerCounters};

fn figures(count: impl FnOnce(&WorkerCounters)) -> Figures {
    let counters = Arc::new(WorkerCounters::default());
    count(&counters);
    assert!(counters.publish());
    Metrics::new(vec![counters]).totals()
}

#[test]
fn packets_that_do_not_arrive_are_a_failure_of_receiving_with_the_other_way_as_its_remedy() {
    let figures = figures(|counters| counters.packets(PacketOutcome::Control, 1));
    let line = |receive| stage(&figures, receive, 12, 2, 0).to_string();
    assert!(line("ring").starts_with("self-test: receiving: 1 of 12 packets came out of the ring"));
    assert!(line("ring").contains("--receive socket"));
    assert!(line("socket").contains("firewall"));
}

#[test]
fn packets_without_requests_are_a_failure_of_rebuilding_that_names_their_outcomes() {
    let figures = figures(|counters| {
        counters.packets(PacketOutcome::Control, 2);
        counters.packets(PacketOutcome::BadChecksum, 10);
    });
    let line = stage(&figures, "ring", 12, 2, 0).to_string();
    assert!(
        line.starts_with("self-test: rebuilding: 0 of 2 requests"),
        "{line}"
    );
    assert!(line.contains("control 2, bad_checksum 10"), "{line}");
}

#[test]
fn requests_that_stay_here_are_a_failure_of_forwarding() {
    let figures = figures(|counters| {
        counters.packets(PacketOutcome::Stream, 12);
        counters.add(Counter::Extracted, 2);
        counters.add(Counter::ConnectFailures, 3);
        counters.request(RequestOutcome::Delivered2xx);
    });
    let line = stage(&figures, "ring", 12, 2, 1).to_string();
    assert!(
        line.starts_with("self-test: forwarding: 1 of 2 requests"),
        "{line}"
    );
    assert!(
        line.contains("3 connections failed, outcomes: delivered_2xx 1"),
        "{line}"
    );
}

#[test]
fn a_changed_request_names_its_first_different_byte() {
    let connection = Connection::of(0, 1, 80).unwrap();
    let wanted = connection.expected();
    let mut got = wanted.clone();
    got[300] ^= 1;
    let SelfTestError::Changed { at, .. } = changed(&[Vec::new(), wanted], &got) else {
        panic!("another failure")
    };
    assert_eq!(at, 300);
}

#[test]
fn each_worker_gets_a_connection() {
    for workers in [1, 2, 3, 64, 256] {
        for worker in 0..workers {
            let Connection { client, server, .. } = Connection::of(worker, workers, 80).unwrap();
            assert_eq!(
                receive::owner(client.into(), server.into(), workers),
                worker
            );
        }
    }
}
