//! Requests that hide another one from some servers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use lab::process::wait_for;
use lab::relay::Relay;

use super::bench::{Bench, asked, neighbour, outcome};
use super::one_at_a_time;

/// Where the relay listens, before the analyser.
const RELAY: u16 = 8081;

/// Each is one connection's bytes; `{n}` is a number that no other one has. To one server the rest is a body or does not
/// exist, to another it is a request.
const SMUGGLERS: [(&str, &str); 12] = [
    (
        "CL.TE",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 51\r\nTransfer-Encoding: chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\nX: y\r\n\r\n",
    ),
    (
        "TE.CL",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n\
         2c\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\nX: 12345\r\n0\r\n\r\n",
    ),
    (
        "TE.TE, an unknown coding",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\
         Transfer-Encoding: x\r\n\r\n5c\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, a prefix",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding: xchunked\r\n\r\n\
         5c\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, a space before the colon",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nTransfer-Encoding : chunked\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, a vertical tab",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\x0bchunked\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, behind a bare LF",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nX: y\nTransfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, folded",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\nContent-Length: 5\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "TE.TE, an underscore",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nTransfer_Encoding: chunked\r\nContent-Length: 5\r\n\r\n\
         0\r\n\r\nGET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "CL.0",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 44\r\n\r\n\
         GET /smuggled/{n} HTTP/1.1\r\nHost: h\r\nX: 123\r\n\r\n",
    ),
    (
        "CL.CL",
        "POST /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nContent-Length: 38\r\n\r\n\
         GET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
    (
        "a body that a GET has",
        "GET /smuggler/{n} HTTP/1.1\r\nHost: h\r\nContent-Length: 38\r\nContent-Length: 38\r\n\r\n\
         GET /smuggled/{n} HTTP/1.1\r\nHost: h\r\n\r\n",
    ),
];

#[test]
fn whoever_shares_connections_with_smugglers_gets_his_own_answers() {
    if lab::skip::no_lab("whoever_shares_connections_with_smugglers_gets_his_own_answers") {
        return;
    }
    let _alone = one_at_a_time();
    const NEIGHBOURS: usize = 800;
    let bench = Bench::new(RELAY);
    let relay = Relay::start(
        &bench.plane.analyser,
        RELAY,
        SocketAddr::from((Ipv4Addr::LOCALHOST, 80)),
    )
    .unwrap();
    let (targets, requests): (Vec<String>, Vec<Vec<u8>>) =
        (0..NEIGHBOURS).map(|n| neighbour("n", n)).unzip();
    bench.neighbours(&requests, 4, || {
        for round in 0..3 {
            for (number, (_, bytes)) in SMUGGLERS.iter().enumerate() {
                let n = format!("{:04}", 100 * round + number);
                bench.alone(bytes.replace("{n}", &n).as_bytes());
            }
        }
    });
    // How many requests a smuggler is to the rebuilder, its tables say; each of them is delivered.
    let metrics = wait_for("no request is in flight", Duration::from_secs(60), || {
        let metrics = bench.rebuilder.metrics()?;
        let all = metrics.requests() >= (NEIGHBOURS + 3 * SMUGGLERS.len()) as u64;
        Ok((all && metrics.count("rebuilder_requests_in_flight") == 0).then_some(metrics))
    })
    .unwrap();
    assert_eq!(metrics.delivered(), metrics.requests(), "{metrics:?}");

    // What the rebuilder wrote and read on each of its connections.
    let mut answered: BTreeMap<&str, usize> = BTreeMap::new();
    let mut expected: BTreeMap<String, u64> = BTreeMap::new();
    let (mut shared, mut quarantined) = (0, 0);
    for tape in relay.tapes() {
        let up = String::from_utf8_lossy(&tape.up).into_owned();
        let answers = tape.answers().unwrap();
        let own: Vec<&str> = up
            .lines()
            .filter_map(|line| line.split_once(' ')?.1.strip_suffix(" HTTP/1.1"))
            .filter(|target| target.contains("/n/"))
            .collect();
        if up.contains("/smugg") {
            quarantined += 1;
            assert_eq!(own, [""; 0], "with a disputed request: {up}");
            // One request of ours; what is in it may be two to others.
            assert_eq!(up.matches("X-Server-Port: ").count(), 1, "{up}");
            let first = answers.first().unwrap();
            *expected.entry(outcome(first.status)).or_default() += 1;
            continue;
        }
        shared += usize::from(!own.is_empty());
        assert_eq!(answers.len(), own.len(), "{up}");
        for (target, answer) in own.iter().zip(&answers) {
            assert_eq!(answer.echo.as_deref(), Some(*target));
            assert_eq!(Some(answer.status), asked(target));
            let known = targets.iter().find(|known| known == target).unwrap();
            *answered.entry(known).or_default() += 1;
            *expected.entry(outcome(answer.status)).or_default() += 1;
        }
    }
    assert_eq!(answered.len(), NEIGHBOURS);
    assert!(answered.values().all(|&times| times == 1));
    assert!((1..=4).contains(&shared), "{shared} shared connections");
    assert_eq!(
        quarantined,
        metrics.count("rebuilder_requests_quarantined_total")
    );
    assert!(
        quarantined >= 3 * SMUGGLERS.len() as u64 - 3,
        "{quarantined}"
    );
    assert_eq!(metrics.count("rebuilder_requests_resent_total"), 0);
    // And the rebuilder's own counts are those of these answers.
    assert_eq!(metrics.outcomes("rebuilder_requests_total"), expected);

    // nginx's own log: the same neighbours, and none on a connection of a smuggler.
    let log = bench.log(NEIGHBOURS + usize::try_from(quarantined).unwrap());
    let of = |part: &str| -> BTreeSet<u64> {
        let with = log.iter().filter(|entry| entry.line.contains(part));
        with.map(|entry| entry.connection).collect()
    };
    let (neighbours, smugglers) = (of("/n/"), of("/smugg"));
    assert!(neighbours.is_disjoint(&smugglers));
    assert_eq!(
        log.iter()
            .filter(|entry| entry.line.contains("/n/"))
            .count(),
        NEIGHBOURS
    );
    println!(
        "{NEIGHBOURS} neighbours on {shared} connections, {quarantined} quarantined: {expected:?}"
    );
    bench.rebuilder.drained().unwrap();
}
