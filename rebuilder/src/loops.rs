//! Connections that the fleet makes itself. Where an interface of the analyser, or of a rebuilder, is mirrored by mistake,
//! each request that is delivered there comes back as a mirrored one and would be delivered again, for ever. So packets of
//! such connections end in [`PacketOutcome::Loop`](crate::telemetry::PacketOutcome::Loop).
//!
//! Recognised by addresses alone: what stands in a request its sender chooses, and could choose so as not to be analysed.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::forward::Addresses;

/// So long after a name stopped giving an address, connections to it are still the fleet's: a rebuilder keeps one for ten
/// minutes at most. Longer would hide an instance that got the address next.
const REMEMBERED: Duration = Duration::from_secs(600);

/// What a packet's two ends say about its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kin {
    /// It is not the fleet's.
    Stranger,
    /// It leads to the analyser, or this host opened it.
    Fleet,
    /// A host with the analyser's address opened it, to somebody else. A load balancer in front of nodes does that; so does
    /// any client that runs beside an analyser.
    OfAnalyser,
}

/// One worker's knowledge of the fleet's addresses.
#[derive(Debug)]
pub struct Loops {
    addresses: Arc<Addresses>,
    /// [`Addresses::answered`] when they were last looked at.
    answered: Option<u64>,
    /// The analyser's, and when each was last among the answers.
    analyser: Vec<(SocketAddr, Instant)>,
    /// Where this host's connections to the analyser come from.
    own: Vec<IpAddr>,
    /// A bit for each address that matters, so that nearly all packets need no search.
    marks: u64,
}

impl Loops {
    /// Of the fleet that forwards to `addresses`.
    #[must_use]
    pub fn new(addresses: Arc<Addresses>) -> Self {
        let mut loops = Self {
            addresses,
            answered: None,
            analyser: Vec::new(),
            own: Vec::new(),
            marks: 0,
        };
        loops.refresh();
        loops
    }

    /// Takes up what the resolver has said since. Cheap where that is nothing.
    pub fn refresh(&mut self) {
        let answered = self.addresses.answered();
        if self.answered.replace(answered) == Some(answered) {
            return;
        }
        let present = self.addresses.present();
        let own = present.iter().filter_map(|&to| source_towards(to));
        self.learn(&present, own.collect(), Instant::now());
    }

    fn learn(&mut self, present: &[SocketAddr], mut own: Vec<IpAddr>, now: Instant) {
        self.analyser
            .retain(|(address, seen)| !present.contains(address) && now - *seen < REMEMBERED);
        self.analyser
            .extend(present.iter().map(|&address| (address, now)));
        // Whoever analyses on this very host shares its loopback addresses with all that is captured on another one's.
        own.retain(|ip| !ip.is_loopback());
        own.sort_unstable();
        own.dedup();
        self.own = own;
        let analyser = self.analyser.iter().map(|(address, _)| address.ip());
        self.marks = analyser
            .chain(self.own.iter().copied())
            .fold(0, |marks, ip| marks | mark(ip));
    }

    /// Whose the connection between these ends is.
    #[inline]
    #[must_use]
    pub fn kin(&self, src: SocketAddr, dst: SocketAddr) -> Kin {
        if self.marks & (mark(src.ip()) | mark(dst.ip())) == 0 {
            return Kin::Stranger;
        }
        self.search(src, dst)
    }

    /// Whether a connection between these IPv4 addresses is a [`Kin::Stranger`] without a doubt.
    #[inline]
    #[must_use]
    pub fn is_strange(&self, addresses: [u32; 2]) -> bool {
        let marks = addresses.map(|address| 1_u64 << (address % 64));
        self.marks & (marks[0] | marks[1]) == 0
    }

    #[cold]
    fn search(&self, src: SocketAddr, dst: SocketAddr) -> Kin {
        // An answer's source is where its connection leads to; whoever opened one has the higher port, nearly always.
        let opener = if src.port() > dst.port() { src } else { dst };
        let mut analyser = self.analyser.iter().map(|(address, _)| *address);
        if analyser.any(|address| address == src || address == dst)
            || self.own.contains(&opener.ip())
        {
            return Kin::Fleet;
        }
        let mut analyser = self.analyser.iter().map(|(address, _)| address.ip());
        if !opener.ip().is_loopback() && analyser.any(|ip| ip == opener.ip()) {
            return Kin::OfAnalyser;
        }
        Kin::Stranger
    }
}

/// One bit of 64, by the byte in which neighbouring addresses differ most.
fn mark(ip: IpAddr) -> u64 {
    let last = match ip {
        IpAddr::V4(ip) => ip.octets()[3],
        IpAddr::V6(ip) => ip.octets()[15],
    };
    1 << (last % 64)
}

/// The address that this host's connections to `to` come from. Nothing is sent.
fn source_towards(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ANALYSER: &str = "10.0.9.1:8080";
    const OWN: &str = "10.0.8.1";

    fn at(address: &str) -> SocketAddr {
        address.parse().unwrap()
    }

    fn knows(analyser: &[&str], own: &[&str], now: Instant) -> Loops {
        let mut loops = Loops::new(Arc::default());
        let analyser: Vec<_> = analyser.iter().map(|a| at(a)).collect();
        let own = own.iter().map(|ip| ip.parse().unwrap()).collect();
        loops.learn(&analyser, own, now);
        loops
    }

    fn both_ways(loops: &Loops, client: &str, server: &str) -> Kin {
        let kin = loops.kin(at(client), at(server));
        assert_eq!(kin, loops.kin(at(server), at(client)), "{client} {server}");
        kin
    }

    #[test]
    fn the_fleets_connections_are_its_own_and_nobody_elses() {
        let loops = knows(
            &[ANALYSER, "[2001:db8::9]:80"],
            &[OWN, "127.0.0.1"],
            Instant::now(),
        );
        let kin = |client, server| both_ways(&loops, client, server);
        assert_eq!(kin("10.0.0.7:40000", ANALYSER), Kin::Fleet);
        assert_eq!(kin("10.0.8.1:40000", ANALYSER), Kin::Fleet);
        assert_eq!(kin("[2001:db8::1]:40000", "[2001:db8::9]:80"), Kin::Fleet);
        // A rebuilder of this host, to where the analyser was.
        assert_eq!(kin("10.0.8.1:40000", "10.0.9.77:80"), Kin::Fleet);
        // Another service of the analyser's host, and one of this host, are worth analysing.
        assert_eq!(kin("10.0.0.7:40000", "10.0.9.1:80"), Kin::Stranger);
        assert_eq!(kin("10.0.0.7:40000", "10.0.8.1:80"), Kin::Stranger);
        // The same bit, another address.
        assert_eq!(kin("10.0.0.65:40000", "10.0.0.129:80"), Kin::Stranger);
        assert_eq!(kin("127.0.0.1:40000", "127.0.0.1:80"), Kin::Stranger);
        // Between a load balancer and a node behind it, or a client that lives beside the analyser.
        assert_eq!(kin("10.0.9.1:40000", "10.0.7.7:80"), Kin::OfAnalyser);
    }

    #[test]
    fn an_analyser_on_loopback_is_one_port_only() {
        let loops = knows(&["127.0.0.1:8080"], &["127.0.0.1"], Instant::now());
        let kin = |client, server| both_ways(&loops, client, server);
        assert_eq!(kin("127.0.0.1:40000", "127.0.0.1:8080"), Kin::Fleet);
        assert_eq!(kin("127.0.0.1:40000", "127.0.0.1:80"), Kin::Stranger);
    }

    #[test]
    fn an_address_is_the_analysers_until_no_rebuilder_can_be_connected_to_it() {
        let begun = Instant::now();
        let mut loops = knows(&[ANALYSER], &[], begun);
        let packet = (at("10.0.0.7:40000"), at(ANALYSER));
        let moved = [at("10.0.9.2:8080")];
        for (after, kin) in [(1, Kin::Fleet), (599, Kin::Fleet), (600, Kin::Stranger)] {
            loops.learn(&moved, vec![], begun + Duration::from_secs(after));
            assert_eq!(loops.kin(packet.0, packet.1), kin, "after {after} s");
        }
    }

    #[test]
    fn where_connections_come_from_is_asked_of_the_kernel() {
        let here = source_towards(at("127.0.0.1:9")).unwrap();
        assert_eq!(here, IpAddr::from([127, 0, 0, 1]));
        let resolved = Addresses::new(vec![at("127.0.0.1:8080")]);
        let loops = Loops::new(Arc::new(resolved));
        let packet = (at("127.0.0.1:40000"), at("127.0.0.1:8080"));
        assert_eq!(loops.kin(packet.0, packet.1), Kin::Fleet);
    }

    proptest! {
        #[test]
        fn who_is_strange_at_a_glance_is_a_stranger(
            known in prop::collection::vec(any::<u32>(), 0..4),
            ends: [u32; 2],
            ports: [u16; 2],
            met in any::<Option<prop::sample::Index>>(),
        ) {
            let mut ends = ends;
            if let Some(met) = met.filter(|_| !known.is_empty()) {
                ends[0] = *met.get(&known);
            }
            let ip = |address| IpAddr::from(std::net::Ipv4Addr::from_bits(address));
            let (analyser, own) = known.split_at(known.len() / 2);
            let mut loops = Loops::new(Arc::default());
            let analyser: Vec<_> = analyser.iter().map(|a| SocketAddr::new(ip(*a), ports[1])).collect();
            loops.learn(&analyser, own.iter().map(|a| ip(*a)).collect(), Instant::now());
            let [src, dst] = [0, 1].map(|n: usize| SocketAddr::new(ip(ends[n]), ports[n]));
            if loops.is_strange(ends) {
                prop_assert_eq!(loops.kin(src, dst), Kin::Stranger);
            }
            let marked = [src, dst].iter().any(|end| loops.marks & mark(end.ip()) != 0);
            prop_assert_eq!(loops.is_strange(ends), !marked);
        }

        /// The bits leave nothing out that a search would find.
        #[test]
        fn marks_only_save_time(
            analyser in prop::collection::vec(any::<SocketAddr>(), 1..20),
            own in prop::collection::vec(any::<IpAddr>(), 0..4),
            packet in any::<(SocketAddr, SocketAddr)>(),
            which in any::<prop::sample::Index>(),
        ) {
            let mut loops = Loops::new(Arc::default());
            loops.learn(&analyser, own, Instant::now());
            let theirs = *which.get(&analyser);
            for (src, dst) in [packet, (packet.0, theirs), (theirs, packet.1)] {
                prop_assert_eq!(loops.kin(src, dst), loops.search(src, dst));
            }
            prop_assert_eq!(loops.kin(packet.0, theirs), Kin::Fleet);
        }
    }
}
