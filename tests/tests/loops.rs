//! An analyser that is itself mirrored, by a selection that is too wide, is not fed its own requests without end.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::{Arc, Mutex};
use std::time::Duration;

use lab::client::Connection;
use lab::data_plane::{DataPlane, instance, servers};
use lab::fabric::session::http_session;
use lab::network::Options;
use lab::nginx::Nginx;
use lab::process::wait_for;
use lab::rebuilder::{Rebuilder, binary};
use lab::world::Snapshot;

const REQUESTS: usize = 200;

#[test]
fn what_is_delivered_to_a_mirrored_analyser_does_not_come_back() {
    if lab::skip::no_lab("what_is_delivered_to_a_mirrored_analyser_does_not_come_back") {
        return;
    }
    let plane = DataPlane::new(Options::default()).unwrap();
    let (web, analyser) = (instance(1), instance(2));
    let mirror = |number, of: &lab::world::Instance| {
        http_session(&format!("tms-{number}"), of.primary_eni(), number, &[80])
    };
    let cloud = Snapshot {
        sessions: vec![mirror(1, &web), mirror(2, &analyser)],
        instances: vec![web.clone(), analyser.clone()],
        ..Snapshot::default()
    };
    let world = plane.mirrored(&Arc::new(Mutex::new(cloud))).unwrap();
    let [to, _] = servers(&analyser).unwrap();
    let rebuilder = Rebuilder::start(
        &plane.rebuilder,
        &binary().unwrap(),
        plane.vpc.directory(),
        &format!("http://{to}"),
        &[],
    )
    .unwrap();

    let mut client = Connection::open(&plane.client, servers(&web).unwrap()[0]).unwrap();
    for n in 0..REQUESTS {
        let request = format!("GET /once/{n} HTTP/1.1\r\nHost: h\r\n\r\n");
        client.send(request.as_bytes()).unwrap();
        client.answers(1).unwrap();
    }
    // Whoever else speaks to it is not analysed either.
    let mut other = Connection::open(&plane.client, to).unwrap();
    other
        .send(b"GET /to-the-analyser HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    other.answers(1).unwrap();
    rebuilder.settled(REQUESTS as u64).unwrap();

    // A delivery that comes back is there within milliseconds of the first; all copies are counted by then.
    let metrics = wait_for(
        "every mirrored packet is counted",
        Duration::from_secs(20),
        || {
            let metrics = rebuilder.metrics()?;
            let mirrored = world.packets_of("tms-1")? + world.packets_of("tms-2")?;
            Ok((metrics.packets() == mirrored).then_some(metrics))
        },
    )
    .unwrap();
    let outcomes = metrics.outcomes("rebuilder_packets_total");
    let looped = outcomes.get("loop").copied().unwrap_or_default();
    assert_eq!(looped, world.packets_of("tms-2").unwrap(), "{outcomes:?}");
    assert!(looped > 0, "the analyser was not mirrored: {outcomes:?}");

    let log = world.access_log(&analyser.id).unwrap();
    assert_eq!(log.len(), REQUESTS + 1, "each once, and the client's own");
    // Not drained: the connections to the analyser that it would close then are mirrored themselves, when nobody counts.
}

#[test]
fn a_host_with_the_analysers_address_that_opens_connections_is_named() {
    if lab::skip::no_lab("a_host_with_the_analysers_address_that_opens_connections_is_named") {
        return;
    }
    let plane = DataPlane::new(Options::default()).unwrap();
    let web = plane.web().unwrap();
    let _analyser =
        Nginx::plain_analyser(&plane.analyser, "analyser", plane.vpc.directory()).unwrap();
    let mut rebuilder = plane.rebuild(80, &[]).unwrap();
    // As a load balancer does towards the nodes behind it, if those are mirrored.
    let mut balancer = Connection::open(&plane.analyser, web.servers[0]).unwrap();
    balancer
        .send(b"GET /node HTTP/1.1\r\nHost: h\r\n\r\n")
        .unwrap();
    balancer.answers(1).unwrap();
    let metrics = rebuilder.settled(1).unwrap();
    assert!(
        metrics.count("rebuilder_analyser_opened_total") > 0,
        "{metrics:?}"
    );
    // It may be a client like any other, so it is analysed.
    assert_eq!(metrics.delivered(), 1);
    wait_for("the warning", Duration::from_secs(10), || {
        let log = rebuilder.process().output();
        Ok(log.contains("!asg:waf-*").then_some(()))
    })
    .unwrap();
    rebuilder.drained().unwrap();
}
