//! Few requests at a time, as on a quiet network.

use std::collections::BTreeSet;
use std::sync::Mutex;

use super::*;
use RequestOutcome::*;

/// What an analyser was asked: the number of the connection, and the target.
type Log = Arc<Mutex<Vec<(usize, String)>>>;

/// Answers each request at once, or after a moment where its target ends so.
fn logging() -> (Peer, Log) {
    let log = Log::default();
    let kept = Arc::clone(&log);
    let peer = Peer::new(move |stream, number| {
        answer(stream, |request| {
            let target = target(request);
            if target.ends_with("/slow") {
                std::thread::sleep(Duration::from_millis(300));
            }
            kept.lock().unwrap().push((number, target));
            Some(OK.to_vec())
        });
    });
    (peer, log)
}

/// A worker whose connections have all shown that they stay open behind an answer.
fn proven(peer: &Peer) -> Worker {
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    let all = |w: &Worker| w.forwarder.proven() == ForwardOptions::default().connections;
    for _ in 0..1000 {
        if all(&worker) {
            break;
        }
        for _ in 0..20 {
            worker.submit(&get("/first"));
        }
        worker.run_idle(5);
    }
    assert!(all(&worker));
    worker
}

#[test]
fn those_of_a_turn_go_on_one_connection_and_those_of_the_next_on_another() {
    let (peer, log) = logging();
    let mut worker = proven(&peer);
    let mut used = Vec::new();
    for turn in 0..8 {
        log.lock().unwrap().clear();
        for i in 0..7 {
            worker.submit(&get(&format!("/{turn}/{i}")));
        }
        worker.run_idle(5);
        let seen = std::mem::take(&mut *log.lock().unwrap());
        let connections: BTreeSet<usize> = seen.iter().map(|(number, _)| *number).collect();
        assert_eq!((seen.len(), connections.len()), (7, 1), "{seen:?}");
        used.extend(connections);
    }
    let connections = worker.forwarder.proven();
    for turns in used.windows(connections) {
        let different: BTreeSet<_> = turns.iter().collect();
        assert_eq!(different.len(), connections, "{used:?}");
    }
}

#[test]
fn a_connection_that_waits_for_an_answer_gets_none_while_another_waits_for_none() {
    let (peer, log) = logging();
    let mut worker = proven(&peer);
    for turn in 0..3 {
        let before = worker.of(Delivered2xx);
        log.lock().unwrap().clear();
        worker.submit(&get("/slow"));
        worker.step();
        for i in 0..7 {
            worker.submit(&get(&format!("/{turn}/{i}")));
        }
        worker.run(5, |w| w.of(Delivered2xx) == before + 7);
        let answered = log.lock().unwrap().iter().any(|(_, t)| t == "/slow");
        assert!(!answered, "they waited behind the slow one");
        worker.run_idle(5);
    }
}

#[test]
fn an_answer_wakes_nobody_where_nobody_waits_for_it() {
    const TURN: Duration = Duration::from_millis(200);
    let (peer, _) = logging();
    let mut worker = proven(&peer);
    let before = worker.of(Delivered2xx);
    worker.submit(&get("/"));
    let begun = Instant::now();
    let waited = worker.forwarder.poll(TURN, begun);
    assert!(begun.elapsed() >= TURN, "{:?}", begun.elapsed());
    assert!(waited >= TURN, "{waited:?}");
    // It has come meanwhile, and is counted.
    assert_eq!(worker.of(Delivered2xx), before + 1);
    worker.forwarder.check();
}

#[test]
fn an_answer_wakes_whoever_waits_for_the_room_that_it_makes() {
    const TURN: Duration = Duration::from_secs(10);
    let (peer, _) = logging();
    let mut worker = proven(&peer);
    let begun = Instant::now();
    for i in 0..2000 {
        worker.submit(&get(&format!("/{i}")));
    }
    // Those that are written last nobody waits behind.
    while worker.forwarder.in_flight() > 128 {
        worker.forwarder.poll(TURN, Instant::now());
        worker.forwarder.check();
    }
    assert!(begun.elapsed() < TURN, "{:?}", begun.elapsed());
    worker.run_idle(5);
}
