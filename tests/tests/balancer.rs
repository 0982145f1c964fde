//! The lab's load balancer carries what it is given, to whom it should, and knows what became of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use lab::balancer::{Balancer, Check, State, Target, TargetGroup};
use lab::network::{Host, Interface, Options, REBUILDER_LINK, REBUILDER_UNDERLAY, Tunnel, Vpc};
use lab::process::{run, wait_for};

const SOURCE: &str = "172.31.7.7";
const PATIENCE: Duration = Duration::from_secs(20);

/// A target that keeps the source of each packet, and answers checks with a status that can be changed.
struct Stub {
    id: String,
    address: Ipv4Addr,
    status: Arc<AtomicU16>,
    from: Arc<Mutex<Vec<SocketAddr>>>,
    host: Host,
}

impl Stub {
    fn start(vpc: &Vpc, number: u8) -> Self {
        let id = format!("i-{number}");
        let address = Ipv4Addr::new(172, 31, 9, number);
        let host = vpc
            .host(&id, &[Interface::new(&id, &[&address.to_string()])])
            .unwrap();
        let status = Arc::new(AtomicU16::new(200));
        let its = Arc::clone(&status);
        let listener = host
            .namespace
            .run(|| TcpListener::bind((address, 9445)))
            .unwrap()
            .unwrap();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 1024]);
                let status = its.load(Ordering::Relaxed);
                // 0 stands for one that hangs.
                if status > 0 {
                    let _ = write!(stream, "HTTP/1.1 {status} so\r\nContent-Length: 0\r\n\r\n");
                } else {
                    thread::sleep(Duration::from_millis(800));
                }
            }
        });
        Self {
            id,
            address,
            status,
            from: Arc::default(),
            host,
        }
    }

    /// Keeps the sources of packets from now on; its link is there.
    fn listen(&self) {
        let socket = self
            .host
            .namespace
            .run(|| UdpSocket::bind((REBUILDER_UNDERLAY, 4789)))
            .unwrap()
            .unwrap();
        let from = Arc::clone(&self.from);
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((_, source)) = socket.recv_from(&mut buffer) {
                from.lock().unwrap().push(source);
            }
        });
    }

    fn target(&self, leaves_in: Option<f64>) -> Target {
        Target {
            id: self.id.clone(),
            address: self.address,
            leaves_in,
        }
    }

    /// Ports that packets came from since this was last asked.
    fn ports(&self) -> BTreeSet<u16> {
        let from = std::mem::take(&mut *self.from.lock().unwrap());
        assert!(
            from.iter().all(|it| it.ip().to_string() == SOURCE),
            "{from:?}"
        );
        from.iter().map(SocketAddr::port).collect()
    }
}

fn group(targets: Vec<Target>) -> TargetGroup {
    TargetGroup {
        arn: "arn:group".to_owned(),
        check: Check {
            interval: 0.2,
            timeout: 0.7,
            ..Check::default()
        },
        connection_termination: true,
        targets,
    }
}

/// A mirrored interface with many outer flows.
struct Source {
    sockets: Vec<UdpSocket>,
    _tunnel: Tunnel,
}

impl Source {
    fn new(vpc: &Vpc, flows: u16) -> Self {
        let tunnel = vpc.tunnel("tms-1", SOURCE, 1).unwrap();
        // Else the kernel leaves the sum to a device that is not there; real mirrored packets have none.
        let mut ethtool = tunnel.wire.command("ethtool");
        run(ethtool.args(["-K", "up0", "tx", "off"])).unwrap();
        let sockets = (0..flows).map(|number| {
            let bound = tunnel.wire.run(|| -> std::io::Result<UdpSocket> {
                let socket = UdpSocket::bind((SOURCE, 20000 + number))?;
                socket.connect((REBUILDER_UNDERLAY, 4789))?;
                Ok(socket)
            });
            bound.unwrap().unwrap()
        });
        Self {
            sockets: sockets.collect(),
            _tunnel: tunnel,
        }
    }

    /// One packet in each flow.
    fn send(&self) {
        for socket in &self.sockets {
            socket.send(&[0; 100]).unwrap();
        }
    }
}

/// One at a time: what the first of them sends would have the others' checks time out.
static ALONE: Mutex<()> = Mutex::new(());

struct Lab {
    source: Source,
    stubs: Vec<Stub>,
    balancer: Balancer,
    vpc: Vpc,
    /// Dropped last.
    _alone: MutexGuard<'static, ()>,
}

impl Lab {
    /// So many targets, all of them healthy, and so many flows.
    fn new(targets: u8, flows: u16) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let vpc = Vpc::new(Options::default()).unwrap();
        let mut balancer = Balancer::start(&vpc).unwrap();
        let stubs: Vec<Stub> = (1..=targets)
            .map(|number| Stub::start(&vpc, number))
            .collect();
        for stub in &stubs {
            balancer.plug(&vpc, &stub.id, &stub.host).unwrap();
        }
        let source = Source::new(&vpc, flows);
        let mut lab = Self {
            source,
            stubs,
            balancer,
            vpc,
            _alone: alone,
        };
        lab.registered();
        for stub in &lab.stubs {
            lab.becomes(&stub.id, State::Healthy);
        }
        lab
    }

    fn registered(&mut self) {
        let targets = self.stubs.iter().map(|stub| stub.target(None)).collect();
        self.balancer.follow(&group(targets)).unwrap();
    }

    fn becomes(&self, id: &str, state: State) {
        wait_for(&format!("{id} is {state:?}"), PATIENCE, || {
            Ok((self.balancer.states().get(id) == Some(&state)).then_some(()))
        })
        .unwrap();
    }

    /// Sends one packet in each flow, waits until they have come, and gives where each flow goes.
    fn round(&self) -> BTreeMap<u16, String> {
        self.source.send();
        let mut seen = BTreeMap::new();
        wait_for("every packet arrives", PATIENCE, || {
            for stub in &self.stubs {
                seen.extend(stub.ports().into_iter().map(|port| (port, stub.id.clone())));
            }
            Ok((seen.len() == self.source.sockets.len()).then_some(()))
        })
        .unwrap_or_else(|error| panic!("{error:#}: {:?}", self.balancer.counts()));
        seen
    }
}

#[test]
fn packets_keep_their_source_and_flows_their_target_as_long_as_it_is_well() {
    let mut lab = Lab::new(3, 120);
    for stub in &lab.stubs {
        stub.listen();
    }
    let first = lab.round();
    let targets: BTreeSet<_> = first.values().cloned().collect();
    assert_eq!(targets.len(), 3, "all three take part");
    assert_eq!(lab.round(), first);

    // An unhealthy one: its flows move, after so many failed checks, and no others do.
    let begun = Instant::now();
    lab.stubs[0].status.store(503, Ordering::Relaxed);
    lab.becomes("i-1", State::Unhealthy);
    assert!(
        begun.elapsed() >= Duration::from_millis(200),
        "one failure is none"
    );
    assert!(lab.balancer.reason("i-1").unwrap().contains("[503]"));
    let second = lab.round();
    assert!(!second.values().any(|id| id == "i-1"));
    assert!(
        first
            .iter()
            .all(|(port, id)| id == "i-1" || second[port] == *id)
    );

    // One that hangs is no better than one that says no.
    lab.stubs[0].status.store(200, Ordering::Relaxed);
    lab.becomes("i-1", State::Healthy);
    lab.stubs[0].status.store(0, Ordering::Relaxed);
    lab.becomes("i-1", State::Unhealthy);
    lab.stubs[0].status.store(200, Ordering::Relaxed);
    lab.becomes("i-1", State::Healthy);
    assert_eq!(lab.round(), second, "what has moved does not come back");

    // A deregistering one: its flows go on until the delay is over, and move then.
    let [one, two, three] = [0, 1, 2].map(|index| lab.stubs[index].target(None));
    let leaving = lab.stubs[1].target(Some(1.5));
    let begun = Instant::now();
    lab.balancer
        .follow(&group(vec![one.clone(), leaving, three.clone()]))
        .unwrap();
    assert_eq!(lab.round(), second);
    assert!(
        begun.elapsed() < Duration::from_millis(1500),
        "the machine is too slow for this test"
    );
    thread::sleep(Duration::from_millis(1500).saturating_sub(begun.elapsed()));
    let third = lab.round();
    assert!(!third.values().any(|id| id == "i-2"));
    assert!(
        second
            .iter()
            .all(|(port, id)| id == "i-2" || third[port] == *id)
    );

    // All are ill: all registered ones get packets. None is registered: nobody does, and that is counted.
    lab.balancer.follow(&group(vec![one, two, three])).unwrap();
    lab.becomes("i-2", State::Healthy);
    for stub in &lab.stubs {
        stub.status.store(500, Ordering::Relaxed);
    }
    for id in ["i-1", "i-2", "i-3"] {
        lab.becomes(id, State::Unhealthy);
    }
    lab.round();
    lab.balancer.follow(&group(Vec::new())).unwrap();
    lab.source.send();
    wait_for("they are counted", PATIENCE, || {
        Ok((lab.balancer.counts().without_target == 120).then_some(()))
    })
    .unwrap();
    let counts = lab.balancer.stop().unwrap();
    assert_eq!(counts.taken, 8 * 120, "{counts:?}");
}

#[test]
fn what_is_sent_to_a_host_that_is_gone_is_counted_until_its_checks_fail() {
    let mut lab = Lab::new(2, 100);
    for stub in &lab.stubs {
        stub.listen();
    }
    let first = lab.round();
    let gone = lab.stubs.remove(0);
    let its = first.values().filter(|id| **id == gone.id).count();
    lab.vpc.cut(&gone.host).unwrap();
    lab.balancer.cut(&gone.id).unwrap();
    lab.source.send();
    wait_for("they are counted", PATIENCE, || {
        let lost = lab.balancer.counts().to_the_gone;
        Ok((lost == u64::try_from(its).unwrap()).then_some(()))
    })
    .unwrap();
    lab.becomes("i-1", State::Unhealthy);
    let second = lab.round();
    assert!(second.values().all(|id| id == "i-2"));
    lab.balancer.stop().unwrap();
}

/// More than the lab's own traffic is: 50,000 packets of 600 bytes a second, for as long as it takes to see that.
#[test]
fn fifty_thousand_packets_a_second_go_through_and_none_is_lost() {
    const PACKETS: u32 = 100_000;
    const A_SECOND: u32 = 50_000;
    let mut lab = Lab::new(2, 50);
    let before: u64 = arrived(&lab);
    let begun = Instant::now();
    for number in 0..PACKETS {
        let due = begun + Duration::from_secs(1) * number / A_SECOND;
        let now = Instant::now();
        if due > now {
            thread::sleep(due - now);
        }
        let flow = usize::try_from(number).unwrap() % lab.source.sockets.len();
        lab.source.sockets[flow].send(&[0; 558]).unwrap();
    }
    let took = begun.elapsed();
    let all = u64::from(PACKETS);
    wait_for("every packet arrives", PATIENCE, || {
        Ok((arrived(&lab) - before == all).then_some(()))
    })
    .unwrap();
    let behind = begun.elapsed() - took;
    let counts = lab.balancer.stop().unwrap();
    assert_eq!((counts.taken, counts.sent.values().sum()), (all, all));
    println!("{PACKETS} packets in {took:?}, the last of them {behind:?} later");
    assert!(behind < Duration::from_secs(1), "it lags {behind:?} behind");
}

fn arrived(lab: &Lab) -> u64 {
    let of = |stub: &Stub| {
        stub.host
            .namespace
            .counters(REBUILDER_LINK)
            .unwrap()
            .received
    };
    lab.stubs.iter().map(of).sum()
}
