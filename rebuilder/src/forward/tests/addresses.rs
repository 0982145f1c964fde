//! Several addresses of one analyser.

use std::sync::Mutex;

use super::*;
use RequestOutcome::*;

/// Answers each request after a moment, so that several connections are of use.
fn slow() -> Peer {
    Peer::new(|stream, _| {
        answer(stream, |_| {
            std::thread::sleep(Duration::from_millis(2));
            Some(OK.to_vec())
        });
    })
}

#[test]
fn connections_are_spread_evenly() {
    for connections in [4, 6] {
        let peers = [(); 3].map(|()| slow());
        let mut worker = Worker::new(
            peers[0].address,
            ForwardOptions {
                connections,
                ..ForwardOptions::default()
            },
        );
        worker
            .addresses
            .set(peers.iter().map(|peer| peer.address).collect());
        for i in 0..300 {
            worker.submit(&get(&format!("/{i}")));
        }
        worker.run_idle(10);
        assert_eq!(worker.outcomes(), [(Delivered2xx, 300)]);
        let each = peers.map(|peer| peer.connections());
        assert_eq!(each.iter().sum::<usize>(), connections, "{each:?}");
        assert!(
            each.iter()
                .all(|&n| n == connections / 3 || n == connections.div_ceil(3)),
            "{each:?}"
        );
    }
}

#[test]
fn an_address_that_is_gone_is_drained_and_gets_nothing_more() {
    let [kept, gone] = [(), ()].map(|()| {
        let log = Arc::new(Mutex::new(Vec::new()));
        let served = Arc::clone(&log);
        let peer = Peer::new(move |stream, _| {
            answer(stream, |request| {
                served.lock().unwrap().push(target(request));
                std::thread::sleep(Duration::from_millis(20));
                Some(OK.to_vec())
            });
        });
        (peer, log)
    });
    let mut worker = Worker::new(gone.0.address, ForwardOptions::default());
    let both = vec![kept.0.address, gone.0.address];
    worker.addresses.set(both.clone());
    for i in 0..100 {
        worker.submit(&get(&format!("/early/{i}")));
    }
    worker.run(5, |w| w.of(Delivered2xx) > 20);
    assert!(worker.forwarder.in_flight() > 0);
    // Missing once means nothing.
    worker.addresses.set(vec![kept.0.address]);
    worker.step();
    worker.addresses.set(both);
    for _ in 0..2 {
        worker.addresses.set(vec![kept.0.address]);
        worker.step();
    }
    for i in 0..100 {
        worker.submit(&get(&format!("/late/{i}")));
    }
    worker.run_idle(10);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 200)]);
    assert_eq!(
        worker.count(Counter::Resent),
        0,
        "what was on it is answered"
    );
    let of_gone = gone.1.lock().unwrap();
    assert!(of_gone.len() > 10, "it had its part: {}", of_gone.len());
    assert!(of_gone.iter().all(|target| target.starts_with("/early/")));
    drop(of_gone);
    let late = kept.1.lock().unwrap();
    let late = late.iter().filter(|target| target.starts_with("/late/"));
    assert_eq!(late.count(), 100);
}

#[test]
fn an_address_that_takes_connections_and_answers_nothing_gets_few() {
    let good = slow();
    let bad = Peer::new(|mut stream, _| {
        // Reads one request and closes.
        let _ = read_request(&mut stream, &mut Vec::new());
    });
    let mut worker = Worker::new(
        bad.address,
        ForwardOptions {
            // So that there is always one to be opened.
            connection_age: Duration::from_millis(20),
            ..short()
        },
    );
    worker.addresses.set(vec![bad.address, good.address]);
    let mut sent = 0;
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        worker.submit(&get(&format!("/{sent}")));
        sent += 1;
        worker.step();
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, sent)]);
    let (good, bad) = (good.connections(), bad.connections());
    assert!(good > 20, "{good}");
    // Those that were opened before the first had failed, what was charged and goes alone, and a try each time that it may
    // have recovered, of which a slow machine has time for more. Spread evenly, both would have as many.
    assert!(bad * 3 <= good, "{bad} beside {good}");
}
