//! Against an analyser whose every byte the test decides.

use std::net::Shutdown;
use std::sync::Mutex;
use std::sync::mpsc::channel;

use super::*;
use RequestOutcome::*;

fn short() -> ForwardOptions {
    ForwardOptions {
        answer_timeout: Duration::from_millis(200),
        quarantine_timeout: Duration::from_millis(200),
        shut_after: Duration::from_millis(20),
        ..ForwardOptions::default()
    }
}

#[test]
fn the_wire_carries_the_captured_bytes_and_our_lines_in_order() {
    let (sent, received) = channel();
    let peer = Peer::new(move |mut stream, _| {
        let mut pending = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut pending) {
            sent.send(request).unwrap();
            stream.write_all(OK).unwrap();
        }
    });
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            connections: 1,
            ..ForwardOptions::default()
        },
    );
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
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            connections: 1,
            ..ForwardOptions::default()
        },
    );
    for i in 0..17 {
        worker.submit(&get(&format!("/{i}")));
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 17)]);
    assert_eq!(peer.connections(), 1);
}

#[test]
fn each_status_class_has_its_outcome() {
    let peer = Peer::new(|mut stream, _| {
        let mut pending = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut pending) {
            let status = target(&request).trim_start_matches('/').to_owned();
            let server = if status == "463" { "awselb/2.0" } else { "x" };
            let answer =
                format!("HTTP/1.1 {status} x\r\nServer: {server}\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(answer.as_bytes()).unwrap();
        }
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
    let peer = Peer::new(move |mut stream, _| {
        let mut pending = Vec::new();
        while let Some(request) = read_request(&mut stream, &mut pending) {
            let target = target(&request);
            log.lock().unwrap().push(target.clone());
            if target == "/poison" {
                return;
            }
            if stream.write_all(OK).is_err() {
                return;
            }
        }
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
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            connections: 1,
            ..ForwardOptions::default()
        },
    );
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
    for i in 0..400 {
        worker.submit(&get(&format!("/{i}")));
        worker.submit(&disputed(&format!("/{i}")));
        assert!(worker.forwarder.queued_bytes() <= queue_bytes);
    }
    for _ in 0..100 {
        worker.step();
    }
    let full = worker.of(QueueFull);
    assert_eq!(worker.outcomes(), [(QueueFull, full)]);
    assert!(
        worker.forwarder.queued_bytes() > queue_bytes - 2048,
        "filled to the cap"
    );
    let tried = worker.count(Counter::ConnectFailures);
    assert!((2..=20).contains(&tried), "with back-off: {tried}");

    let _peer = Peer::on(TcpListener::bind(address).unwrap(), |stream, _| {
        answer_all(stream);
    });
    let back = Instant::now();
    worker.run(3, |w| w.of(Delivered2xx) > 0);
    assert!(back.elapsed() < Duration::from_secs(2));
    worker.run_idle(5);
    assert_eq!(
        worker.outcomes(),
        [(Delivered2xx, 800 - full), (QueueFull, full)]
    );
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
        counters,
    };
    worker.submit(&get("/"));
    for _ in 0..10 {
        worker.step();
    }
    assert_eq!(worker.forwarder.in_flight(), 1);
    addresses.set(vec![peer.address]);
    worker.run_idle(3);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 1)]);
}

#[test]
fn a_disputed_request_is_alone_on_its_connection_and_our_side_is_shut_behind_it() {
    let (sent, received) = channel();
    let peer = Peer::new(move |mut stream, _| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        sent.send(all).unwrap();
        stream.write_all(OK).unwrap();
    });
    let mut worker = Worker::new(peer.address, short());
    // Two lengths: whoever takes the second sees another request in the body.
    let mut request = captured(
        b"POST /d HTTP/1.1\r\nHost: h\r\nContent-Length: 20\r\nContent-Length: 0\r\n\r\nGET /smuggled HTTP/1",
    );
    request.flags = Flags::DISPUTED;
    worker.submit(&request);
    worker.submit(&disputed("/e"));
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 2)]);
    assert_eq!(peer.connections(), 2);
    let mut bodies: Vec<Vec<u8>> = (0..2).map(|_| received.recv().unwrap()).collect();
    bodies.sort();
    assert!(bodies[0].starts_with(b"GET /e "));
    assert!(bodies[1].ends_with(b"\r\n\r\nGET /smuggled HTTP/1"));
    let flags = b"X-Mirror-Flags: disputed\r\n";
    assert!(
        bodies
            .iter()
            .all(|b| b.windows(flags.len()).any(|w| w == flags))
    );
}

#[test]
fn quarantine_is_capped_and_one_source_takes_a_quarter_of_it_at_most() {
    let open = Arc::new(Mutex::new((0_usize, 0_usize)));
    let count = Arc::clone(&open);
    let peer = Peer::new(move |mut stream, _| {
        {
            let mut open = count.lock().unwrap();
            open.0 += 1;
            open.1 = open.1.max(open.0);
        }
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        if target(&all) == "/slow" {
            std::thread::sleep(Duration::from_millis(300));
        }
        count.lock().unwrap().0 -= 1;
        let _ = stream.write_all(OK);
    });
    let mut worker = Worker::new(
        peer.address,
        ForwardOptions {
            quarantine_connections: 8,
            shut_after: Duration::from_millis(20),
            ..ForwardOptions::default()
        },
    );
    for _ in 0..6 {
        worker.submit(&from([10, 9, 9, 9], disputed("/slow")));
    }
    worker.submit(&from([10, 1, 1, 1], disputed("/quick")));
    worker.run(5, |w| w.of(Delivered2xx) == 1);
    assert!(
        worker.forwarder.in_flight() == 6,
        "the other source did not wait for the slow ones"
    );
    assert!(
        open.lock().unwrap().1 <= 3,
        "two of one source, one of the other"
    );
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 7)]);
    assert!(open.lock().unwrap().1 <= 3);
}

#[test]
fn nothing_follows_a_request_after_which_the_analyser_may_leave_http() {
    let seen = Arc::new(Mutex::new(Vec::<Vec<String>>::new()));
    let log = Arc::clone(&seen);
    let peer = Peer::new(move |mut stream, number| {
        let mut pending = Vec::new();
        loop {
            let request = read_request(&mut stream, &mut pending);
            let mut log = log.lock().unwrap();
            let len = log.len().max(number + 1);
            log.resize(len, Vec::new());
            let Some(request) = request else { return };
            log[number].push(target(&request));
            drop(log);
            if stream.write_all(OK).is_err() {
                return;
            }
        }
    });
    let mut worker = Worker::new(peer.address, ForwardOptions::default());
    for i in 0..20 {
        worker.submit(&get(&format!("/{i}")));
        worker.submit(&captured(
            b"GET /ws HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ));
        worker.submit(&captured(
            b"CONNECT shop:443 HTTP/1.1\r\nHost: shop:443\r\n\r\n",
        ));
    }
    worker.run_idle(5);
    assert_eq!(worker.outcomes(), [(Delivered2xx, 60)]);
    for connection in seen.lock().unwrap().iter() {
        let last = |t: &String| t == "/ws" || t == "shop:443";
        let leaving = connection.iter().filter(|t| last(t)).count();
        assert!(leaving <= 1 && (leaving == 0 || last(&connection[connection.len() - 1])));
    }
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
        assert!(now <= cap, "{now}");
        most.fetch_max(now, Ordering::Relaxed);
        w.forwarder.idle()
    });
    assert!(most.load(Ordering::Relaxed) > cap / 2);
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
