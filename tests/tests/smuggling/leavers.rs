//! Requests that make nginx close the connection on which they come, by rows of the rebuilder's README.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lab::nginx::Entry;
use lab::process::wait_for;
use lab::rebuilder::Metrics;

use super::bench::{Bench, STATUSES, asked, neighbour, outcome};
use super::{one_at_a_time, rebuilder};

/// The rows of "Sharing a connection", each with what is sent. `{n}` is a number that no other one has.
fn leavers() -> Vec<(&'static str, String)> {
    let long = "x".repeat(9 * 1024);
    let large = "x".repeat(3 << 19);
    let larger = "x".repeat(3 << 20);
    let small = "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello";
    [
        ("close", "GET /leaver/{n} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"),
        ("HTTP/1.0", "GET /leaver/{n} HTTP/1.0\r\nHost: h\r\n\r\n"),
        ("no Host", "GET /leaver/{n} HTTP/1.1\r\n\r\n"),
        ("several Host", "GET /leaver/{n} HTTP/1.1\r\nHost: h\r\nHost: i\r\n\r\n"),
        ("CONNECT", "CONNECT leaver:{n} HTTP/1.1\r\nHost: leaver:{n}\r\n\r\n"),
        (
            "Upgrade",
            "GET /leaver/{n} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        ),
        ("odd method", "get /leaver/{n} HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("climbing path", "GET /../leaver/{n} HTTP/1.1\r\nHost: h\r\n\r\n"),
        ("disputed", &format!("POST /leaver/{{n}} HTTP/1.1\r\nHost: h\r\n{small}")),
        ("head > 8 KiB", &format!("GET /leaver/{{n}} HTTP/1.1\r\nHost: h\r\nX: {long}\r\n\r\n")),
        (
            "body > 1 MiB",
            &format!("POST /leaver/{{n}} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{large}", large.len()),
        ),
        (
            "body that nginx refuses",
            &format!("POST /leaver/{{n}} HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{larger}", larger.len()),
        ),
    ]
    .map(|(row, text)| (row, text.to_owned()))
    .into()
}

/// 1 % of requests are of one row; whatever nginx does about them, every other one is delivered once, with its own
/// status, and those of the row go alone.
/// `before`: requests that the rebuilder has had; `number`: none of the log has it or a later one.
fn one_row(bench: &Bench, before: usize, number: usize, row: &str, bytes: &str) -> usize {
    const NEIGHBOURS: usize = 198;
    const LEAVERS: usize = 2;
    let kind = row.replace([' ', '/', '.', '>'], "-");
    let begun = bench.settled(before);
    let (targets, requests): (Vec<String>, Vec<Vec<u8>>) =
        (0..NEIGHBOURS).map(|n| neighbour(&kind, n)).unzip();
    bench.neighbours(&requests, 3, || {
        for n in 0..LEAVERS {
            bench.alone(
                bytes
                    .replace("{n}", &format!("{:05}", number + n))
                    .as_bytes(),
            );
        }
    });
    let metrics = bench.settled(before + NEIGHBOURS + LEAVERS);
    assert_eq!(
        metrics.delivered(),
        metrics.requests(),
        "{row}: {metrics:?}"
    );

    let of_neighbours = |entry: &&Entry| entry.line.contains(&format!("/{kind}/"));
    let of_row = |entry: &&Entry| {
        (number..number + LEAVERS).any(|n| {
            entry
                .line
                .replace(':', "/")
                .contains(&format!("leaver/{n:05}"))
        })
    };
    let log = wait_for("nginx's log", Duration::from_secs(10), || {
        let log = bench.analyser.access_log()?;
        let whole = log.iter().filter(of_neighbours).count() >= NEIGHBOURS
            && log.iter().filter(of_row).count() >= LEAVERS;
        Ok(whole.then_some(log))
    })
    .unwrap_or_else(|error| panic!("{row}: {error}: {:?}", bench.analyser.access_log()));
    let own: Vec<&Entry> = log.iter().filter(of_neighbours).collect();
    let others: Vec<&Entry> = log.iter().filter(of_row).collect();
    let mut times: BTreeMap<&str, usize> = BTreeMap::new();
    for entry in &own {
        assert_eq!(
            Some(entry.status),
            asked(entry.target()),
            "{row}: {entry:?}"
        );
        *times.entry(entry.target()).or_default() += 1;
    }
    let resent = metrics.count("rebuilder_requests_resent_total")
        - begun.count("rebuilder_requests_resent_total");
    let twice = times.values().filter(|&&times| times > 1).count();
    assert!(
        targets
            .iter()
            .all(|target| times.contains_key(target.as_str())),
        "{row}"
    );
    assert!(
        twice as u64 <= resent,
        "{row}: {twice} twice, {resent} resent"
    );
    // Nobody else on the connection of one of the row, unless our rewriting has made it an ordinary request.
    for entry in &others {
        let with = log
            .iter()
            .filter(|it| it.connection == entry.connection)
            .count();
        if !entry.flags.contains("hop") {
            assert_eq!((with, entry.number), (1, 1), "{row}: {entry:?}");
        }
    }
    let statuses: BTreeSet<u16> = others.iter().map(|entry| entry.status).collect();
    let outcomes = |metrics: &Metrics, status| {
        let outcomes = metrics.outcomes("rebuilder_requests_total");
        outcomes.get(&outcome(status)).copied().unwrap_or(0)
    };
    for status in STATUSES {
        let of_class = |all: &[&Entry]| {
            let of_class = all
                .iter()
                .filter(|it| outcome(it.status) == outcome(status));
            of_class.count() as u64
        };
        let counted = outcomes(&metrics, status) - outcomes(&begun, status);
        if twice == 0 {
            assert_eq!(
                counted,
                of_class(&own) + of_class(&others),
                "{row}: {status}"
            );
        }
    }
    println!("{row}: nginx said {statuses:?}; resent {resent}, logged twice {twice}");
    before + NEIGHBOURS + LEAVERS
}

#[test]
fn requests_that_make_nginx_close_cost_their_neighbours_nothing() {
    if lab::skip::no_lab("requests_that_make_nginx_close_cost_their_neighbours_nothing") {
        return;
    }
    let _alone = one_at_a_time();
    let mut bench = Bench::new(80);
    let mut sent = 0;
    for (row, bytes) in leavers() {
        sent = one_row(&bench, sent, sent, row, &bytes);
    }
    // As captured, the first two make nginx close as well.
    bench.rebuilder.drained().unwrap();
    bench.rebuilder = rebuilder(&bench.plane, 80, &["--hop-by-hop", "keep"]);
    let mut sent = 0;
    for (row, bytes) in leavers().into_iter().take(2) {
        sent = one_row(&bench, sent, 50_000 + sent, &format!("{row} kept"), &bytes);
    }
    bench.rebuilder.drained().unwrap();
}
