use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::*;

fn segment<'a>(src: &str, dst: &str, payload: &'a [u8]) -> Segment<'a> {
    Segment {
        ts: Timestamp(5),
        vni: Some(Vni(7)),
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
        seq: Seq(1),
        ack: Seq(2),
        flags: TcpFlags::ACK,
        urgent: 4,
        payload,
        cut: 3,
    }
}

/// Two workers, and a connection of the second.
fn two() -> (Handover, Handover, &'static str, &'static str) {
    let mut group = Handover::group(2);
    let (second, first) = (group.pop().unwrap(), group.pop().unwrap());
    let (src, dst) = ("10.0.0.1:1001", "10.0.0.2:80");
    let owner = receive::owner(src.parse().unwrap(), dst.parse().unwrap(), 2);
    assert_eq!(owner, 1);
    (first, second, src, dst)
}

#[test]
fn a_segment_of_another_worker_reaches_it_as_it_was() {
    let (mut first, mut second, src, dst) = two();
    let given = segment(src, dst, b"GET /");
    assert_eq!(second.route(&given), Route::Own);
    assert_eq!(first.route(&given), Route::Handed);
    // The answering direction is the same connection.
    assert_eq!(first.route(&segment(dst, src, b"")), Route::Handed);
    assert_eq!(second.take(|_| panic!("not flushed")), 0);
    assert_eq!((first.flush(), first.handed()), (0, 2));
    let mut got = Vec::new();
    let describe = |s: &Segment<'_>| {
        let payload = s.payload.to_vec();
        let numbers = (s.seq, s.ack, s.urgent, s.cut);
        (s.ts, s.vni, s.src, s.dst, numbers, s.flags, payload)
    };
    assert_eq!(second.take(|s| got.push(describe(s))), 2);
    assert_eq!(got[0], describe(&given));
    assert_eq!(got[1], describe(&segment(dst, src, b"")));
    assert_eq!(second.take(|_| panic!("twice")), 0);
}

proptest! {
    #[test]
    fn a_plain_segment_is_told_alike_in_the_quick_way(
        addresses: [u32; 2],
        ports: [u16; 2],
        workers in 1_usize..5,
    ) {
        let end = |n: usize| SocketAddr::new(Ipv4Addr::from_bits(addresses[n]).into(), ports[n]);
        let given = Segment { src: end(0), dst: end(1), ..segment("10.0.0.1:1", "10.0.0.2:2", b"") };
        let own = |mut worker: Handover| {
            let quick = worker.is_own(&(addresses, ports));
            assert_eq!(quick, worker.route(&given) == Route::Own);
            quick
        };
        let owners = Handover::group(workers).into_iter().map(own);
        prop_assert_eq!(owners.filter(|own| *own).count(), 1);
    }
}

#[test]
fn one_worker_hands_over_nothing() {
    let mut only = Handover::group(1).pop().unwrap();
    for port in 1..200 {
        let src = format!("10.0.0.1:{port}");
        let route = only.route(&segment(&src, "10.0.0.2:80", b"x"));
        assert_eq!(route, Route::Own);
    }
}

#[test]
fn the_cap_is_reached_and_what_has_no_room_is_refused() {
    let (mut first, mut second, src, dst) = two();
    let payload = [0; 60_000];
    let mut handed = 0;
    while first.route(&segment(src, dst, &payload)) == Route::Handed {
        handed += 1;
        // On its way or there: it counts.
        if handed % 7 == 0 {
            first.flush();
        }
    }
    assert_eq!(handed, MAX_HANDED_BYTES / Handed::cost(payload.len()));
    assert_eq!(first.route(&segment(src, dst, &payload)), Route::Full);
    first.flush();
    assert_eq!(second.take(|_| ()), handed);
    assert_eq!(first.route(&segment(src, dst, &payload)), Route::Handed);
}

#[test]
fn who_has_handed_over_much_reads_on_when_it_was_taken() {
    let (mut first, mut second, src, dst) = two();
    let payload = [0; LARGE_PAYLOAD];
    let most = first.may_read();
    assert!(most > 800);
    // It reads no more than it may, and so nothing is refused.
    let mut read = 0;
    loop {
        let may = first.may_read();
        if may == 0 {
            break;
        }
        for _ in 0..may.min(200) {
            assert_eq!(first.route(&segment(src, dst, &payload)), Route::Handed);
            read += 1;
        }
        first.flush();
    }
    assert!(read >= most, "{read} of {most}");
    assert!(second.may_read() > 0, "who is behind reads on");
    assert_eq!(second.take(|_| ()), read);
    assert_eq!(first.may_read(), most);
    // What comes too late takes no room.
    second.close(|_| ());
    first.route(&segment(src, dst, &payload));
    assert_eq!((first.flush(), first.may_read()), (1, most));
    assert_eq!(Handover::group(1).pop().unwrap().may_read(), usize::MAX);
}

#[test]
fn nothing_is_lost_when_workers_end_one_after_the_other() {
    let (mut first, mut second, src, dst) = two();
    first.route(&segment(src, dst, b"a"));
    first.flush();
    second.stop_sending();
    assert!(!second.is_last());
    first.route(&segment(src, dst, b"b"));
    first.flush();
    first.stop_sending();
    first.stop_sending();
    assert!(second.is_last());
    let mut got = 0;
    second.close(|_| got += 1);
    assert_eq!(got, 2);
    // Too late: its sender is told, for the packet needs an outcome.
    assert_eq!(first.route(&segment(src, dst, b"c")), Route::Handed);
    assert_eq!((first.flush(), first.handed()), (1, 2));
}

#[test]
fn nobody_waits_for_a_worker_that_panicked() {
    let (first, mut second, ..) = two();
    second.stop_sending();
    drop(first);
    assert!(second.is_last());
}
