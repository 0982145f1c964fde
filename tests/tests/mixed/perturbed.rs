//! Copies that are reordered, duplicated, cut and lost: every request against what was sent of it.

use lab::judge::Sent;
use lab::perturb::Settings;
use lab::rebuilder::last_figure;

use super::bench::{Outcome, run};
use super::traffic::Load;
use super::{PACKET_LENGTH, REORDERED_AND_DUPLICATED};

/// nginx's own list is the same as the clients'.
fn agrees_with_nginx(outcome: &Outcome) {
    let mut by_client: Vec<(String, String)> = outcome
        .sent
        .iter()
        .flat_map(|it| &it.requests)
        .map(|request| {
            let (method, target) = request.line();
            (
                String::from_utf8_lossy(method).into_owned(),
                String::from_utf8_lossy(target).into_owned(),
            )
        })
        .collect();
    let mut by_nginx: Vec<(String, String)> = outcome
        .log
        .iter()
        .map(|entry| (entry.method().to_owned(), entry.target().to_owned()))
        .collect();
    by_client.sort_unstable();
    by_nginx.sort_unstable();
    assert!(
        by_client == by_nginx,
        "the clients sent {} requests, nginx logged {}",
        by_client.len(),
        by_nginx.len()
    );
}

/// That the traffic is what this test says it is, as the relay has seen it.
fn is_what_it_says(outcome: &Outcome, load: &Load) {
    let (mut over_ipv6, mut one_byte, mut at_start, mut cut) = (0, 0, 0, 0);
    for it in &outcome.sent {
        let flow = outcome.ledger.flow(it.from, it.to).unwrap();
        over_ipv6 += if it.to.is_ipv6() {
            it.requests.len()
        } else {
            0
        };
        (one_byte, cut) = (one_byte + flow.one_byte, cut + flow.cut_bytes);
        at_start += baits(it).filter(|&at| flow.begins_segment(at)).count();
    }
    let requests = outcome.sent.iter().flat_map(|it| &it.requests);
    let largest = requests.map(|it| it.bytes.len()).max().unwrap();
    println!(
        "  {over_ipv6} over IPv6, {one_byte} segments of one byte, {at_start} segments begin with a body's request line, \
         {} copies with VLAN tags, {cut} bytes cut by the mirror, the largest request {largest} bytes",
        outcome.counts.tagged
    );
    assert!(over_ipv6 > load.requests / 10);
    assert!(one_byte > 150 * load.byte_by_byte as u64);
    assert!(at_start * load.bait_every > 4_000);
    assert!(outcome.counts.tagged > 1000);
    assert!(cut > 50_000 && largest > 20_000_000);
}

/// Where in the stream the request lines stand that bodies carry.
fn baits(it: &Sent) -> impl Iterator<Item = u64> {
    let mut begin = 0;
    it.requests.iter().flat_map(move |request| {
        let here = begin;
        begin += request.bytes.len() as u64;
        request.baits.iter().map(move |&at| here + at)
    })
}

#[test]
fn twenty_thousand_requests_survive_reordering_and_duplication_byte_for_byte() {
    let test = "twenty_thousand_requests_survive_reordering_and_duplication_byte_for_byte";
    if lab::skip::no_lab(test) || lab::skip::no_tool(test, "wrk") {
        return;
    }
    let load = Load {
        requests: 20_000,
        wrk: 4_000,
        curls: 60,
        curl_posts: 40,
        pipelines: 80,
        byte_by_byte: 30,
        bodies: 24,
        large: 2,
        paced: false,
        bait_every: 1,
        packet_length: Some(PACKET_LENGTH),
        captured: false,
        whole_heads: true,
    };
    let outcome = run(REORDERED_AND_DUPLICATED, load);
    let verdict = outcome.judge();
    outcome.report("reordered and duplicated", &verdict);
    is_what_it_says(&outcome, &load);
    agrees_with_nginx(&outcome);
    assert_eq!(verdict.fault_count, 0);
    assert!(verdict.requests >= 20_000);
    assert_eq!((verdict.exact, verdict.in_bodies), (verdict.untouched, 0));
    assert_eq!(verdict.truncated + verdict.lost, verdict.touched);
    assert_eq!(
        last_figure(&outcome.output, "skipped_bytes").unwrap(),
        verdict.skipped_bytes
    );
}

/// What must hold when copies are lost as well.
fn copies_are_lost(name: &str, per_mille: u32, paced: bool) {
    let load = Load {
        requests: 5_000,
        wrk: 1_000,
        curls: 16,
        curl_posts: 20,
        pipelines: 20,
        byte_by_byte: 15,
        bodies: 40,
        large: 1,
        paced,
        bait_every: 4,
        packet_length: Some(PACKET_LENGTH),
        captured: false,
        whole_heads: false,
    };
    let settings = Settings {
        seed: REORDERED_AND_DUPLICATED.seed + u64::from(per_mille),
        drop: per_mille,
        ..REORDERED_AND_DUPLICATED
    };
    let outcome = run(settings, load);
    let verdict = outcome.judge();
    outcome.report(name, &verdict);
    is_what_it_says(&outcome, &load);
    agrees_with_nginx(&outcome);
    assert_eq!(verdict.fault_count, 0);
    assert!(verdict.requests >= 5_000);
    // Each is exact, flagged, or its bytes are counted.
    assert_eq!(verdict.exact + verdict.passed_over, verdict.untouched);
    assert_eq!(verdict.truncated + verdict.lost, verdict.touched);
    let figure = |name| last_figure(&outcome.output, name).unwrap();
    let (skipped, shed) = (figure("skipped_bytes"), figure("shed_bytes"));
    if paced {
        assert_eq!((skipped, shed), (verdict.skipped_bytes, 0));
    } else {
        // A copy that is refused at a cap is counted each time that it comes.
        assert!((skipped..=skipped + shed).contains(&verdict.skipped_bytes));
        assert!(shed > 0, "the uploads have not reached the cap of a flow");
    }
}

#[test]
fn with_one_percent_of_copies_lost_each_request_is_exact_or_flagged_or_counted() {
    let test = "with_one_percent_of_copies_lost_each_request_is_exact_or_flagged_or_counted";
    if lab::skip::no_lab(test) || lab::skip::no_tool(test, "wrk") {
        return;
    }
    copies_are_lost("1 % lost", 10, true);
}

#[test]
fn with_five_percent_of_copies_lost_each_request_is_exact_or_flagged_or_counted() {
    let test = "with_five_percent_of_copies_lost_each_request_is_exact_or_flagged_or_counted";
    if lab::skip::no_lab(test) || lab::skip::no_tool(test, "wrk") {
        return;
    }
    copies_are_lost("5 % lost", 50, false);
}
