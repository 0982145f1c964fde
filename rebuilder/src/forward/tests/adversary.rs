//! Against analysers that do not behave.

use std::net::Shutdown;

use super::*;
use RequestOutcome::*;

#[test]
fn a_peer_that_closes_inside_an_answer_has_taken_the_request_when_its_head_was_whole() {
    // First connection: head and half a body. Second: half a head. Then good.
    let peer = Peer::new(|mut stream, number| {
        let mut pending = Vec::new();
        read_request(&mut stream, &mut pending).unwrap();
        match number {
            0 => stream
                .write_all(b"HTTP/1.1 403 No\r\nContent-Length: 10\r\n\r\nhalf")
                .unwrap(),
            1 => stream.write_all(b"HTTP/1.1 403 No\r\nContent-").unwrap(),
            _ => {
                stream.write_all(OK).unwrap();
                answer_all(stream);
            }
        }
    });
    let mut worker = Worker::new(peer.address, one_connection(ForwardOptions::default()));
    worker.submit(&get("/a"));
    worker.submit(&get("/b"));
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 1), (Delivered4xx, 1)]);
    assert_eq!(worker.count(Counter::Resent), 1, "only /b, once");
    assert_eq!(peer.connections(), 3);
}

#[test]
fn a_black_hole_refuses_each_request_after_two_timeouts() {
    let peer = Peer::new(|stream, _| {
        std::thread::sleep(Duration::from_secs(15));
        drop(stream);
    });
    let mut worker = Worker::new(peer.address, short());
    for i in 0..6 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.submit(&disputed("/d"));
    worker.run_idle(8);
    assert_eq!(worker.outcomes(), [(RefusedByAnalyser, 7)]);
    assert_eq!(worker.count(Counter::AnswerTimeouts), 14);
}

#[test]
fn poll_never_waits_for_a_peer_that_does_not_read() {
    let peer = Peer::new(|stream, _| {
        std::thread::sleep(Duration::from_secs(15));
        drop(stream);
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    let body = vec![b'x'; 900_000];
    for _ in 0..80 {
        worker.submit(&post("/", &body));
    }
    let mut slowest = Duration::ZERO;
    for _ in 0..300 {
        let before = Instant::now();
        worker.forwarder.poll(Duration::ZERO, before);
        slowest = slowest.max(before.elapsed());
    }
    worker.forwarder.check();
    assert!(slowest < Duration::from_millis(250), "{slowest:?}");
    assert!(worker.forwarder.inflight_bytes() <= ForwardOptions::default().inflight_bytes);
    assert!(worker.forwarder.queued_bytes() <= ForwardOptions::default().queue_bytes);
    assert!(
        worker.of(QueueFull) > 0,
        "80 times 900 kB are more than 64 MiB"
    );
}

#[test]
fn an_analyser_that_closes_after_each_answer_gets_nothing_twice() {
    let peer = Peer::new(|mut stream, _| {
        let mut pending = Vec::new();
        read_request(&mut stream, &mut pending).unwrap();
        stream
            .write_all(b"HTTP/1.0 200 OK\r\n\r\nuntil close")
            .unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for i in 0..50 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 50)]);
    assert_eq!(worker.count(Counter::Resent), 0);
    assert_eq!(peer.connections(), 50);
}

#[test]
fn a_port_that_speaks_something_else_is_no_endless_loop() {
    let peer = Peer::new(|mut stream, _| {
        let _ = stream.write_all(b"220 mail.example ESMTP\r\n");
        let _ = stream.read(&mut [0; 1024]);
    });
    let mut worker = Worker::new(peer.address, short());
    worker.submit(&get("/a"));
    worker.submit(&disputed("/b"));
    worker.run_idle(5);
    assert_eq!(worker.of(RefusedByAnalyser) + worker.of(Delivered2xx), 2);
    assert_eq!(worker.of(RefusedByAnalyser), 2);
    assert!(peer.connections() < 60, "{}", peer.connections());
}

#[test]
fn an_analyser_that_closes_whatever_connects_is_not_asked_without_a_pause() {
    let peer = Peer::new(|stream, _| drop(stream));
    let mut worker = Worker::new(peer.address, short());
    for i in 0..50 {
        worker.submit(&get(&format!("/{i}")));
    }
    // A turn that comes late finds a connection established and closed at once, with nothing on it to be charged.
    let end = Instant::now() + Duration::from_secs(1);
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(3));
        worker.forwarder.poll(Duration::ZERO, Instant::now());
    }
    assert!(peer.connections() < 200, "{}", peer.connections());
}

#[test]
fn answers_that_nobody_asked_for_are_nobody_s() {
    // Each request is answered a hundred times: the first one counts, and what comes behind it is not taken for answers
    // to requests that are sent later.
    let peer = Peer::new(|stream, _| {
        answer(stream, |request| {
            let status = &target(request)[1..];
            let head = format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\n\r\n");
            Some(head.repeat(100).into_bytes())
        });
    });
    let mut worker = Worker::new(peer.address, short());
    for _ in 0..10 {
        for status in ["200", "302", "404", "503"] {
            worker.submit(&get(&format!("/{status}")));
        }
    }
    worker.run_idle(10);
    let expected = [
        (Delivered2xx, 10),
        (Delivered3xx, 10),
        (Delivered4xx, 10),
        (Delivered5xx, 10),
    ];
    assert_eq!(worker.outcomes(), expected);
}

#[test]
fn a_hundred_interim_answers_are_none_and_endless_ones_break_the_connection() {
    let peer = Peer::new(|stream, _| {
        answer(stream, |request| {
            let interim = b"HTTP/1.1 100 Continue\r\n\r\n";
            let n = if target(request) == "/endless" {
                100_000
            } else {
                100
            };
            Some([interim.repeat(n), OK.to_vec()].concat())
        });
    });
    let mut worker = Worker::new(peer.address, short());
    worker.submit(&get("/endless"));
    for _ in 0..20 {
        worker.submit(&get("/"));
    }
    worker.run_idle(10);
    assert_eq!(
        worker.outcomes(),
        [(Delivered2xx, 20), (RefusedByAnalyser, 1)]
    );
}

#[test]
fn a_head_without_end_costs_the_request_it_answers_and_no_memory() {
    for bomb in [
        &b"X: xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"[..],
        b"X: y\r\n",
    ] {
        let peer = Peer::new(move |mut stream, _| {
            let mut pending = Vec::new();
            while let Some(request) = read_request(&mut stream, &mut pending) {
                if target(&request) != "/bomb" {
                    let _ = stream.write_all(OK);
                    continue;
                }
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
                let bombs = bomb.repeat(1000);
                // 64 MB; it is cut off long before.
                for _ in 0..64_000_000 / bombs.len() {
                    if stream.write_all(&bombs).is_err() {
                        return;
                    }
                }
            }
        });
        let mut worker = Worker::new(peer.address, short());
        worker.submit(&get("/bomb"));
        for i in 0..20 {
            worker.submit(&get(&format!("/{i}")));
        }
        worker.run_idle(10);
        assert_eq!(
            worker.outcomes(),
            [(Delivered2xx, 20), (RefusedByAnalyser, 1)]
        );
    }
}

#[test]
fn a_body_without_end_is_cut_off_and_nobody_behind_it_is_to_blame() {
    let peer = Peer::new(|mut stream, _| {
        let mut pending = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut pending) {
            if target(&request) != "/endless" {
                let _ = stream.write_all(OK);
                continue;
            }
            let _ = stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n");
            while stream.write_all(&[b'x'; 1000]).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    });
    let mut worker = Worker::new(peer.address, one_connection(short()));
    for i in 0..10 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.submit(&get("/endless"));
    for i in 10..20 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.run_idle(10);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 21)]);
    assert_eq!(worker.count(Counter::AnswerTimeouts), 1);
}

#[test]
fn a_408_that_crosses_a_request_is_no_answer_to_it() {
    const TIMEOUT: &[u8] =
        b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
    // The first connection was idle too long just as the second request came. `/slow` is answered 408 always.
    let peer = Peer::new(|mut stream, number| {
        let mut pending = Vec::new();
        let mut requests = 0;
        while let Some(request) = read_request(&mut stream, &mut pending) {
            requests += 1;
            let idle = number == 0 && requests == 2;
            if idle || target(&request) == "/slow" {
                let _ = stream.write_all(TIMEOUT);
                return;
            }
            let _ = stream.write_all(OK);
        }
    });
    let mut worker = Worker::new(peer.address, one_connection(short()));
    worker.submit(&get("/a"));
    worker.run_idle(5);
    worker.submit(&get("/b"));
    worker.submit(&get("/c"));
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 3)]);
    worker.submit(&get("/slow"));
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 3), (Delivered4xx, 1)]);
}
