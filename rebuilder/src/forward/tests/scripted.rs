//! Against an analyser whose every byte the test decides.

use std::sync::Mutex;
use std::sync::mpsc::channel;

use super::*;
use RequestOutcome::*;

#[test]
fn the_wire_carries_the_captured_bytes_and_our_lines_in_order() {
    let (sent, received) = channel();
    let peer = Peer::new(move |stream, _| {
        answer(stream, |request| {
            sent.send(request.to_vec()).unwrap();
            Some(OK.to_vec())
        });
    });
    let mut worker = Worker::new(peer.address, one_connection(ForwardOptions::default()));
    worker.submit(&get("/first?a=%27"));
    worker.submit(&post("/second", b"x=1&y=2"));
    worker.submit(&get("/third"));
    worker.run_idle(5);
    let ours = "X-Forwarded-For: 203.0.113.7\r\nX-Real-IP: 203.0.113.7\r\n\
                X-Server-Addr: 10.1.2.3\r\nX-Server-Port: 8080\r\n\r\n";
    let expected = [
        format!("GET /first?a=%27 HTTP/1.1\r\nHost: shop.example\r\n{ours}"),
        format!(
            "POST /second HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 7\r\n{ours}x=1&y=2"
        ),
        format!("GET /third HTTP/1.1\r\nHost: shop.example\r\n{ours}"),
    ];
    for expected in expected {
        let got = received.recv_timeout(Duration::from_secs(1)).unwrap();
        assert_eq!(String::from_utf8(got).unwrap(), expected);
    }
    assert_eq!(worker.outcomes(), [(Delivered2xx, 3)]);
    assert_eq!(worker.count(Counter::Resent), 0);
    assert_eq!(peer.connections(), 1);
}

#[test]
fn many_requests_are_in_flight_on_one_connection() {
    // The peer answers the first, and then nothing before it holds 16 more.
    let peer = Peer::new(|mut stream, _| {
        let mut pending = Vec::new();
        read_request(&mut stream, &mut pending).unwrap();
        stream.write_all(OK).unwrap();
        for _ in 0..16 {
            read_request(&mut stream, &mut pending).unwrap();
        }
        stream.write_all(&OK.repeat(16)).unwrap();
        answer_all(stream);
    });
    let mut worker = Worker::new(peer.address, one_connection(ForwardOptions::default()));
    for i in 0..17 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 17)]);
    assert_eq!(peer.connections(), 1);
}

#[test]
fn each_status_class_has_its_outcome() {
    let peer = Peer::new(|stream, _| {
        answer(stream, |request| {
            let status = target(request).trim_start_matches('/').to_owned();
            let server = if status == "463" { "awselb/2.0" } else { "x" };
            let head =
                format!("HTTP/1.1 {status} x\r\nServer: {server}\r\nContent-Length: 0\r\n\r\n");
            Some(head.into_bytes())
        });
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for status in ["200", "204", "302", "403", "404", "463", "500"] {
        worker.submit(&get(&format!("/{status}")));
    }
    worker.run_idle(5);
    assert_eq!(
        worker.outcomes(),
        [
            (Delivered2xx, 2),
            (Delivered3xx, 1),
            (Delivered4xx, 3),
            (Delivered5xx, 1)
        ]
    );
    let status = crate::telemetry::BalancerStatus::TooManyAddresses;
    assert_eq!(worker.counters.balancer_of(status), 1);
}

#[test]
fn a_request_that_makes_the_analyser_close_is_refused_after_two_and_harms_nobody() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    let peer = Peer::new(move |stream, _| {
        answer(stream, |request| {
            let target = target(request);
            log.lock().unwrap().push(target.clone());
            (target != "/poison").then(|| OK.to_vec())
        });
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for i in 0..200 {
        worker.submit(&get(&format!("/{i}")));
        if i % 50 == 25 {
            worker.submit(&get("/poison"));
        }
    }
    worker.run_idle(10);
    assert_eq!(
        worker.outcomes(),
        [(Delivered2xx, 200), (RefusedByAnalyser, 4)]
    );
    let seen = seen.lock().unwrap();
    let poison = seen.iter().filter(|t| *t == "/poison").count();
    // Twice as the oldest; once more for each time that the close lost the answers of those before it.
    assert!((8..20).contains(&poison), "{poison}");
    for i in 0..200 {
        assert!(seen.contains(&format!("/{i}")));
    }
}

#[test]
fn an_analyser_that_dies_takes_no_request_with_it() {
    // For 100 ms from the first request on, connections are still taken and closed, as the kernel does with those that
    // nobody accepts any more.
    let death = Arc::new(Mutex::new(None));
    let peer = Peer::new(move |mut stream, _| {
        let mut pending = Vec::new();
        while read_request(&mut stream, &mut pending).is_some() {
            let begun = *death.lock().unwrap().get_or_insert_with(Instant::now);
            if begun.elapsed() < Duration::from_millis(100) || stream.write_all(OK).is_err() {
                return;
            }
        }
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for i in 0..20 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 20)]);
}

#[test]
fn while_the_analyser_is_away_the_queue_fills_to_its_cap_and_delivery_resumes_by_itself() {
    // A port that nobody listens on: bound once, then let go.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let queue_bytes = 100 * 1024;
    let mut worker = Worker::new(
        address,
        ForwardOptions {
            queue_bytes,
            ..ForwardOptions::default()
        },
    );
    for i in 0..400_u16 {
        // Many sources: one alone may take half of the queue.
        let source = [10, 0, 0, i.to_be_bytes()[1] % 8];
        worker.submit(&from(source, get(&format!("/{i}"))));
        if i < 20 {
            worker.submit(&disputed(&format!("/{i}")));
        }
        assert!(worker.forwarder.queued_bytes() <= queue_bytes);
    }
    for _ in 0..100 {
        worker.step();
    }
    // Those were among the oldest.
    let full = worker.of(QueueFull);
    assert_eq!(worker.outcomes(), [(QueueFull, full), (QuarantineFull, 20)]);
    assert!(
        worker.forwarder.queued_bytes() > queue_bytes - 2048,
        "filled to the cap"
    );
    let tried = worker.count(Counter::ConnectFailures);
    assert!((2..=20).contains(&tried), "with back-off: {tried}");

    let served = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&served);
    let _peer = Peer::on(TcpListener::bind(address).unwrap(), move |stream, _| {
        answer(stream, |request| {
            log.lock().unwrap().push(target(request));
            Some(OK.to_vec())
        });
    });
    let back = Instant::now();
    worker.run(3, |w| w.of(Delivered2xx) > 0);
    assert!(back.elapsed() < Duration::from_secs(2));
    worker.run_idle(5);
    assert_eq!(
        worker.outcomes(),
        [
            (Delivered2xx, 400 - full),
            (QueueFull, full),
            (QuarantineFull, 20)
        ]
    );
    // The oldest made room.
    let mut served = std::mem::take(&mut *served.lock().unwrap());
    served.sort();
    let mut youngest: Vec<String> = (full..400).map(|i| format!("/{i}")).collect();
    youngest.sort();
    assert_eq!(served, youngest);
}

#[test]
fn no_address_counts_as_away_until_one_is_set() {
    let peer = Peer::new(|stream, _| answer_all(stream));
    let addresses = Arc::new(Addresses::default());
    let counters = Arc::new(WorkerCounters::default());
    let options = ForwardOptions {
        addresses: Arc::clone(&addresses),
        ..ForwardOptions::default()
    };
    let forwarder = Forwarder::new(options, Arc::clone(&counters)).unwrap();
    let mut worker = Worker {
        forwarder,
        addresses,
        counters,
    };
    worker.submit(&get("/"));
    for _ in 0..10 {
        worker.step();
    }
    assert_eq!(worker.forwarder.in_flight(), 1);
    worker.addresses.set(vec![peer.address]);
    worker.run_idle(3);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 1)]);
}

#[test]
fn a_connection_is_replaced_when_it_is_old() {
    let peer = Peer::new(|stream, _| answer_all(stream));
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            connections: 1,
            connection_age: Duration::from_millis(50),
            ..ForwardOptions::default()
        },
    );
    worker.submit(&get("/a"));
    worker.run_idle(5);
    std::thread::sleep(Duration::from_millis(60));
    worker.submit(&get("/b"));
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 2)]);
    assert_eq!(worker.count(Counter::Resent), 0);
    assert_eq!(peer.connections(), 2);
}

#[test]
fn the_inflight_cap_is_reached_and_a_request_beyond_it_goes_by_itself() {
    let most = Arc::new(AtomicUsize::new(0));
    let peer = Peer::new(|stream, _| answer_all(stream));
    let cap = 8 * 1024;
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            inflight_bytes: cap,
            ..ForwardOptions::default()
        },
    );
    for i in 0..100 {
        worker.submit(&post(&format!("/{i}"), &[b'x'; 1000]));
    }
    worker.run(5, |w| {
        let now = w.forwarder.inflight_bytes();
        assert!(
            now <= cap / 2,
            "{now}: half is the part of shared connections"
        );
        most.fetch_max(now, Ordering::Relaxed);
        w.forwarder.idle()
    });
    assert!(most.load(Ordering::Relaxed) > cap / 4);
    worker.submit(&post("/large", &vec![b'x'; 4 * cap]));
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 101)]);
}

#[test]
fn what_is_not_answered_when_draining_ends_is_counted() {
    let peer = Peer::new(|mut stream, number| {
        let mut pending = Vec::new();
        read_request(&mut stream, &mut pending);
        if number == 0 {
            stream.write_all(OK).unwrap();
        }
        std::thread::sleep(Duration::from_secs(15));
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for i in 0..100 {
        worker.submit(&get(&format!("/{i}")));
        worker.submit(&disputed(&format!("/{i}")));
    }
    worker.run(5, |w| w.of(Delivered2xx) == 1);
    worker.forwarder.shut();
    worker.forwarder.check();
    assert!(worker.forwarder.idle());
    assert_eq!(worker.outcomes(), [(Delivered2xx, 1), (DrainTimeout, 199)]);
    assert_eq!(worker.forwarder.inflight_bytes(), 0);
}

#[test]
fn a_dead_address_beside_a_living_one_is_not_tried_again_and_again() {
    let peer = Peer::new(|stream, _| answer_all(stream));
    // A port that nobody listens on: bound once, then let go.
    let dead = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    worker.addresses.set(vec![dead, peer.address]);
    for i in 0..100 {
        worker.submit(&disputed(&format!("/{i}")));
        worker.submit(&get(&format!("/{i}")));
    }
    let begun = Instant::now();
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 200)]);
    // As many as were under way at once.
    assert!(worker.count(Counter::ConnectFailures) <= 20);
    assert!(begun.elapsed() < Duration::from_secs(2));
}

#[test]
fn an_address_that_is_added_later_gets_work_when_connections_are_replaced() {
    let [old, new] = [(), ()].map(|()| Peer::new(|stream, _| answer_all(stream)));
    let mut worker = Worker::new(
        old.address,
        ForwardOptions {
            connection_age: Duration::from_millis(100),
            ..ForwardOptions::default()
        },
    );
    worker.submit(&get("/"));
    worker.run_idle(5);
    worker.addresses.set(vec![old.address, new.address]);
    // A trickle that one connection would carry for ever.
    let end = Instant::now() + Duration::from_secs(5);
    while new.connections() == 0 && Instant::now() < end {
        worker.submit(&get("/"));
        worker.run_idle(5);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(new.connections() > 0);
    let ended: u64 = worker.outcomes().iter().map(|&(_, n)| n).sum();
    assert_eq!(worker.of(Delivered2xx), ended);
}

/// What a server may answer with between ordinary answers, and the status that counts.
const ANSWERS: [(&str, &[u8], RequestOutcome); 8] = [
    ("GET", OK, Delivered2xx),
    (
        "GET",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 302 Found\r\nContent-Length: 3\r\n\r\nabc",
        Delivered3xx,
    ),
    ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n", Delivered2xx),
    ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", Delivered2xx),
    ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 900\r\n\r\n", Delivered3xx),
    (
        "GET",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nf\r\nHTTP/1.1 500 no\r\n3;x=y\r\nabc\r\n0\r\nT: v\r\n\r\n",
        Delivered2xx,
    ),
    ("HEAD", b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n", Delivered5xx),
    ("GET", b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", Delivered4xx),
];

#[test]
fn sixteen_at_a_time_each_answer_of_any_kind_is_counted_with_its_request() {
    // The answers of a batch come together, cut anywhere.
    let peer = Peer::new(|mut stream, _| {
        let mut pending = Vec::new();
        let mut answers = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut pending) {
            let number: usize = target(&request)[1..].parse().unwrap();
            answers.extend_from_slice(ANSWERS[number % ANSWERS.len()].1);
            let batch_is_over = !pending.windows(4).any(|w| w == b"\r\n\r\n");
            if batch_is_over {
                for part in answers.chunks(1 + number % 97) {
                    if stream.write_all(part).is_err() {
                        return;
                    }
                }
                answers.clear();
            }
        }
    });
    let mut worker = Worker::new(peer.address, one_connection(ForwardOptions::default()));
    for number in 0..400 {
        let (method, ..) = ANSWERS[number % ANSWERS.len()];
        let head = format!("{method} /{number} HTTP/1.1\r\nHost: h\r\n\r\n");
        worker.submit(&captured(head.as_bytes()));
    }
    worker.run_idle(10);
    let of = |outcome| {
        let kinds = ANSWERS.iter().filter(|answer| answer.2 == outcome);
        (outcome, 50 * kinds.count() as u64)
    };
    assert_eq!(
        worker.outcomes(),
        [Delivered2xx, Delivered3xx, Delivered4xx, Delivered5xx].map(of)
    );
    assert_eq!(worker.count(Counter::Connects), 1);
    assert_eq!(worker.count(Counter::Resent), 0);
}

#[test]
fn a_close_in_the_middle_of_sixteen_is_charged_to_the_one_it_came_upon() {
    // Every tenth request is closed upon without a word, wherever in the pipeline it stands.
    let peer = Peer::new(|stream, _| {
        answer(stream, |request| {
            let number: usize = target(request)[1..].parse().unwrap();
            (number % 10 != 7).then(|| OK.to_vec())
        });
    });
    let mut worker = Worker::new(peer.address, one_connection(short()));
    for number in 0..100 {
        worker.submit(&get(&format!("/{number}")));
    }
    worker.run_idle(10);
    assert_eq!(
        worker.outcomes(),
        [(Delivered2xx, 90), (RefusedByAnalyser, 10)]
    );
}
