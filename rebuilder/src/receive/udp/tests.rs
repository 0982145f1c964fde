use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use etherparse::PacketBuilder;

use super::*;

const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

fn sender() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").unwrap()
}

/// Loopback delivers within the call that sends, or in a moment where the machine is busy.
fn arrived() {
    std::thread::sleep(Duration::from_millis(200));
}

/// Drains until `count` datagrams came; fails after some seconds.
fn collect(receiver: &mut UdpReceiver, count: usize) -> Vec<Vec<u8>> {
    let started = Instant::now();
    let mut all = Vec::new();
    while all.len() < count {
        assert!(started.elapsed() < Duration::from_secs(5), "{}", all.len());
        let f = |frame: Frame<'_>| all.push(frame.data.to_vec());
        receiver.drain(usize::MAX, Timestamp(0), f).unwrap();
    }
    all
}

#[test]
fn datagrams_come_in_order_as_vxlan_frames_with_the_time_of_their_arrival() {
    let mut receiver = bind_group(LOOPBACK, 1, &UdpOptions::default())
        .unwrap()
        .remove(0);
    let sender = sender();
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let before = clock();
    // More than one batch.
    for n in 0..150u32 {
        let sent = sender.send_to(&n.to_be_bytes(), receiver.local_addr());
        assert_eq!(sent.unwrap(), 4);
    }
    let mut seen = Vec::new();
    let started = Instant::now();
    while seen.len() < 150 {
        assert!(started.elapsed() < Duration::from_secs(5), "{}", seen.len());
        let already = seen.len();
        let drained = receiver.drain(1_000, Timestamp(0), |frame| {
            assert_eq!(frame.link, LinkType::Vxlan);
            let ts = u128::from(frame.ts.0);
            assert!(before.as_nanos() <= ts && ts <= clock().as_nanos());
            seen.push(u32::from_be_bytes(frame.data.try_into().unwrap()));
        });
        let expected = Drained {
            datagrams: seen.len() - already,
            left: Left::Nothing,
        };
        assert_eq!(drained.unwrap(), expected);
    }
    assert_eq!(seen, (0..150).collect::<Vec<_>>());
}

#[test]
fn the_port_of_geneve_takes_geneve_and_every_other_one_vxlan() {
    assert_eq!(link_type(6081), LinkType::Geneve);
    for port in [4789, 8472, 1, 65_535] {
        assert_eq!(link_type(port), LinkType::Vxlan);
    }
}

#[test]
fn a_drain_stops_at_its_budget_and_says_that_more_may_wait() {
    let mut receiver = bind_group(LOOPBACK, 1, &UdpOptions::default())
        .unwrap()
        .remove(0);
    let sender = sender();
    for _ in 0..100 {
        sender.send_to(b"x", receiver.local_addr()).unwrap();
    }
    arrived();
    let mut drain = |budget| receiver.drain(budget, Timestamp(0), |_| {}).unwrap();
    let part = |datagrams, left| Drained { datagrams, left };
    assert_eq!(drain(70), part(70, Left::More));
    assert_eq!(drain(70), part(30, Left::Nothing));
    assert_eq!(drain(70), part(0, Left::Nothing));
}

#[test]
fn a_datagram_longer_than_the_buffer_is_cut_and_counted() {
    let mut receiver = bind_group(LOOPBACK, 1, &UdpOptions::default())
        .unwrap()
        .remove(0);
    let long: Vec<u8> = (0..=255).cycle().take(MAX_DATAGRAM + 1).collect();
    let sender = sender();
    let whole = &long[..MAX_DATAGRAM];
    sender.send_to(whole, receiver.local_addr()).unwrap();
    assert!(collect(&mut receiver, 1)[0] == whole);
    assert_eq!(receiver.truncated(), 0);
    sender.send_to(&long, receiver.local_addr()).unwrap();
    assert!(collect(&mut receiver, 1)[0] == whole);
    assert_eq!(receiver.truncated(), 1);
}

#[test]
fn what_the_kernel_drops_is_counted() {
    let options = UdpOptions {
        receive_buffer: 32 << 10,
    };
    let mut receiver = bind_group(LOOPBACK, 1, &options).unwrap().remove(0);
    assert_eq!(receiver.receive_buffer(), 32 << 10);
    assert_eq!(receiver.kernel_drops(), 0);
    let sender = sender();
    let sent = 500;
    for _ in 0..sent {
        sender.send_to(&[0; 1_000], receiver.local_addr()).unwrap();
    }
    arrived();
    let drained = receiver.drain(sent, Timestamp(0), |_| {}).unwrap();
    assert!(drained.datagrams < sent);
    let lost = u64::try_from(sent - drained.datagrams).unwrap();
    assert_eq!(receiver.kernel_drops(), lost);
}

#[test]
fn the_drop_count_goes_on_when_the_kernels_32_bits_wrap() {
    let mut count = Wrapping::default();
    assert_eq!(count.update(u32::MAX - 1), 0xffff_fffe);
    assert_eq!(count.update(1), 0x1_0000_0001);
    assert_eq!(count.update(1), 0x1_0000_0001);
}

#[test]
fn a_taken_port_is_told_in_one_line_for_one_worker_and_for_many() {
    for (held, asked) in [(1, 1), (1, 4), (4, 1), (4, 4)] {
        let holder = bind_group(LOOPBACK, held, &UdpOptions::default()).unwrap();
        let addr = holder[0].local_addr();
        let e = bind_group(addr, asked, &UdpOptions::default()).unwrap_err();
        assert!(matches!(e, BindError::PortInUse { .. }), "{e}");
        let line = e.to_string();
        assert!(line.contains(&addr.to_string()) && line.contains("--listen"));
        assert!(!line.contains('\n'));
    }
}

#[test]
fn an_address_of_another_machine_is_told_in_one_line() {
    // TEST-NET-1, which no machine has.
    let addr = "192.0.2.1:0".parse().unwrap();
    let e = bind_group(addr, 2, &UdpOptions::default()).unwrap_err();
    assert!(matches!(e, BindError::NoSuchAddress { .. }), "{e}");
    assert!(!e.to_string().contains('\n'));
}

/// A mirrored packet of the connection, as a datagram's payload.
fn mirrored(vni: u32, src: (IpAddr, u16), dst: (IpAddr, u16), options: bool) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
    let builder = match (src.0, dst.0) {
        (IpAddr::V4(a), IpAddr::V4(b)) if options => {
            let mut header = etherparse::Ipv4Header::new(
                0,
                64,
                etherparse::IpNumber::TCP,
                a.octets(),
                b.octets(),
            )
            .unwrap();
            header.options = [1; 8].into();
            builder.ip(etherparse::IpHeaders::Ipv4(header, Default::default()))
        }
        (IpAddr::V4(a), IpAddr::V4(b)) => builder.ipv4(a.octets(), b.octets(), 64),
        (IpAddr::V6(a), IpAddr::V6(b)) => builder.ipv6(a.octets(), b.octets(), 64),
        _ => unreachable!(),
    };
    let mut datagram = vec![8, 0, 0, 0];
    datagram.extend((vni << 8).to_be_bytes());
    builder
        .tcp(src.1, dst.1, 1, 1_000)
        .write(&mut datagram, b"x")
        .unwrap();
    datagram
}

#[test]
fn both_directions_and_every_copy_of_a_connection_reach_one_worker_and_all_workers_work() {
    connections_reach_one_worker_each(LOOPBACK, |datagram| datagram);
}

#[test]
fn behind_a_gateway_load_balancer_too_all_workers_work() {
    // The port is what tells, so the address must be of this run alone.
    let [_, a, b, c] = std::process::id().to_be_bytes();
    let own = Ipv4Addr::new(127, a | 0x20, b, c);
    connections_reach_one_worker_each((own, GENEVE_PORT).into(), |datagram| {
        // RFC 8926 §3.4: 32 bytes of options (three of class 0x0108), then IPv4, UDP and VXLAN.
        let mut outer = vec![8, 0, 0x08, 0x00, 0, 0, 0, 0];
        for (kind, words) in [(1, 2), (2, 2), (3, 1)] {
            outer.extend([1, 8, kind, words]);
            outer.extend(vec![kind; usize::from(words) * 4]);
        }
        PacketBuilder::ipv4([172, 31, 0, 1], [172, 31, 0, 2], 255)
            .udp(65_500, 4789)
            .write(&mut outer, &datagram)
            .unwrap();
        outer
    });
}

#[test]
fn behind_one_and_two_vlan_tags_too_all_workers_work() {
    const TAGS: [&[u8]; 4] = [
        &[0x81, 0, 0x20, 7],
        &[0x88, 0xa8, 0, 99],
        &[0x88, 0xa8, 0, 99, 0x81, 0, 0x20, 7],
        &[0x81, 0, 0, 1, 0x81, 0, 0x20, 7],
    ];
    for tags in TAGS {
        connections_reach_one_worker_each(LOOPBACK, |mut datagram| {
            // Behind the VXLAN header and both MAC addresses.
            datagram.splice(20..20, tags.iter().copied());
            datagram
        });
    }
}

/// Sends 200 connections, each with both directions and a copy of both, as `wrap` wraps them.
fn connections_reach_one_worker_each(listen: SocketAddr, wrap: impl Fn(Vec<u8>) -> Vec<u8>) {
    let mut group = bind_group(listen, 4, &UdpOptions::default()).unwrap();
    let to = group[0].local_addr();
    // The second copy comes from another machine.
    let senders = [sender(), sender()];
    // A small generator of our own (xorshift64), so that every run sees the same flows.
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()
    };
    let mut flow_of = BTreeMap::new();
    let mut owners = Vec::new();
    for flow in 0..200 {
        let mut address = || {
            let r = random();
            if flow % 2 == 0 {
                IpAddr::V4(Ipv4Addr::new(10, r[1], r[2], r[3]))
            } else {
                let low = u64::from_be_bytes(r);
                IpAddr::V6(Ipv6Addr::from((0x2600_1f18_u128 << 96) | u128::from(low)))
            }
        };
        let (a, b) = (address(), address());
        let r = random();
        let a = (a, u16::from_be_bytes([r[0], r[1]]));
        let b = (b, 8080);
        owners.push(steering::owner(a.into(), b.into(), 4));
        for (copy, sender) in senders.iter().enumerate() {
            let vni = u32::try_from(copy).unwrap() + 1;
            for packet in [
                mirrored(vni, a, b, false),
                mirrored(vni, b, a, flow % 4 == 0),
            ]
            .map(&wrap)
            {
                sender.send_to(&packet, to).unwrap();
                flow_of.insert(packet, flow);
            }
        }
    }
    assert_eq!(flow_of.len(), 800);
    arrived();
    let mut worker_of = BTreeMap::new();
    let mut load = Vec::new();
    for (worker, receiver) in group.iter_mut().enumerate() {
        let mut datagrams = 0;
        receiver
            .drain(usize::MAX, Timestamp(0), |frame| {
                datagrams += 1;
                let flow = flow_of[frame.data];
                let first = *worker_of.entry(flow).or_insert(worker);
                assert_eq!(first, worker, "flow {flow} reached two workers");
                // What a worker computes of a segment that the kernel could not read is what the kernel computes.
                assert_eq!(owners[flow], worker);
            })
            .unwrap();
        load.push(datagrams);
    }
    assert_eq!(load.iter().sum::<usize>(), 800);
    // An even share is 200.
    assert!(load.iter().all(|l| (100..=300).contains(l)), "{load:?}");
}

#[test]
fn what_is_no_ip_reaches_worker_zero_and_a_fragment_the_worker_of_its_addresses() {
    let mut group = bind_group(LOOPBACK, 4, &UdpOptions::default()).unwrap();
    let to = group[0].local_addr();
    let sender = sender();
    let at = |n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n));
    let mut arp = mirrored(1, (at(1), 1), (at(2), 2), false);
    arp[20..22].copy_from_slice(&[0x08, 0x06]);
    for datagram in [&b""[..], b"short", &arp] {
        sender.send_to(datagram, to).unwrap();
    }
    assert_eq!(collect(&mut group[0], 3).len(), 3);
    // Second halves of packets: where the ports would be stands anything.
    let mut fragments = Vec::new();
    for n in 0..32 {
        let mut fragment = mirrored(1, (at(1), n * 999), (at(2), n), false);
        fragment[28..30].copy_from_slice(&[0x00, 0xb9]);
        sender.send_to(&fragment, to).unwrap();
        fragments.push(fragment);
    }
    arrived();
    let mut loads = Vec::new();
    for receiver in &mut group {
        loads.push(receiver.drain(99, Timestamp(0), |_| {}).unwrap().datagrams);
    }
    loads.sort_unstable();
    assert_eq!(loads, [0, 0, 0, 32]);
}

#[test]
fn a_missing_permission_names_the_capability() {
    let refused = io::Error::from(io::ErrorKind::PermissionDenied);
    let addr = "0.0.0.0:53".parse().unwrap();
    let e = BindError::at(addr, "binding")(refused);
    assert_eq!(
        e.to_string(),
        "UDP 0.0.0.0:53: not permitted; a port below 1024 needs root or CAP_NET_BIND_SERVICE, or choose another with \
         --listen"
    );
}

#[test]
fn the_unspecified_ipv6_address_takes_both_families() {
    let any = SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
    let mut group = bind_group(any, 2, &UdpOptions::default()).unwrap();
    let port = group[0].local_addr().port();
    assert_eq!(group[1].local_addr().port(), port);
    sender().send_to(b"four", ("127.0.0.1", port)).unwrap();
    let six = UdpSocket::bind("[::1]:0").unwrap();
    six.send_to(b"six", ("::1", port)).unwrap();
    assert_eq!(
        collect(&mut group[0], 2),
        [b"four".to_vec(), b"six".to_vec()]
    );
}
