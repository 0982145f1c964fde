//! The lab's network load balancer: real mirrored packets to the targets of a target group, as a Network Load Balancer
//! hands them on. It keeps their source, as AWS does for UDP; it counts every packet that it takes, sends or drops.
//!
//! Each target has a link of its own to it, on which it has the load balancer's address: so a packet is handed on as it
//! is. Checks go from an address in the VPC to the target's own address there.
//!
//! ```text
//!  nlb ═══ in0 │ flow table │ tN ═══ nlb0 target N
//!              │  checks    │ eth0 ══ vpc ══ eth0 target N
//! ```

pub mod health;
pub mod table;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;

use crate::network::{Host, Interface, RELAY_IN, Vpc};
use crate::sys;

pub use health::{Check, State};
pub use table::{Flow, Table, Told};

/// Where its health checks come from.
pub const ADDRESS: &str = "172.31.240.40";

/// What may wait in its socket: seconds of what two cores can send.
const RECEIVE_BUFFER: usize = 128 << 20;
/// Frames that are taken at once, and the longest of them.
const BATCH: usize = 64;
const MAX_FRAME: usize = 10 << 10;
/// How long a read waits.
const TICK: Duration = Duration::from_millis(5);
/// How long a frame is offered to a link that takes none now.
const STUBBORN: Duration = Duration::from_millis(100);

/// A target group as the emulator shows it (`GET /_lab/network`).
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct TargetGroup {
    /// Its ARN.
    pub arn: String,
    /// How its targets are checked.
    pub check: Check,
    /// `deregistration_delay.connection_termination.enabled`.
    pub connection_termination: bool,
    /// Its targets, those included whose delay is not over.
    pub targets: Vec<Target>,
}

/// A target as the emulator shows it.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Target {
    /// The instance.
    pub id: String,
    /// Its address in the VPC, which is asked for its health.
    pub address: Ipv4Addr,
    /// Seconds until its deregistration delay is over; null while it is registered.
    pub leaves_in: Option<f64>,
}

/// What became of the packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Mirrored packets taken.
    pub taken: u64,
    /// Those that each target's link took.
    pub sent: BTreeMap<String, u64>,
    /// Those of flows whose target's host is gone.
    pub to_the_gone: u64,
    /// Those for which there was no target at all.
    pub without_target: u64,
    /// Those that a link did not take for so long that they were dropped.
    pub refused: u64,
    /// Frames that were no mirrored packets.
    pub other: u64,
}

#[derive(Debug, Default)]
struct Inner {
    table: Table,
    check: Check,
    links: BTreeMap<String, Arc<File>>,
    counts: Counts,
    /// Why the last check of a target failed.
    reasons: BTreeMap<String, String>,
}

#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    inner: Mutex<Inner>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stopping(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

/// A running load balancer.
#[derive(Debug)]
pub struct Balancer {
    host: Host,
    shared: Arc<Shared>,
    carrier: Option<JoinHandle<io::Result<io::Result<u64>>>>,
    checkers: BTreeMap<String, Checker>,
    /// Its device for each target.
    devices: BTreeMap<String, String>,
}

/// Asks one target, until it is dropped.
#[derive(Debug)]
struct Checker {
    stop: Arc<AtomicBool>,
}

impl Drop for Checker {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl Balancer {
    /// Puts one behind the mirroring of `vpc`, without targets.
    ///
    /// # Errors
    /// Where its links or sockets cannot be made.
    pub fn start(vpc: &Vpc) -> anyhow::Result<Self> {
        let host = vpc.host("balancer", &[Interface::new("balancer", &[ADDRESS])])?;
        host.namespace.without_ipv6()?;
        vpc.behind_a_balancer(&host)?;
        let from = host.namespace.index(RELAY_IN)?;
        let input = host
            .namespace
            .run(|| sys::packet_socket(from, true, RECEIVE_BUFFER, TICK))??;
        let shared = Arc::<Shared>::default();
        let its = Arc::clone(&shared);
        let carrier = host.namespace.spawn(move || {
            // Before all others: a busy machine would hold packets longer than any network does.
            sys::run_first();
            carry(&input, &its)
        })?;
        Ok(Self {
            host,
            shared,
            carrier: Some(carrier),
            checkers: BTreeMap::new(),
            devices: BTreeMap::new(),
        })
    }

    /// Gives a target's host the link that mirrored packets arrive on.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn plug(&mut self, vpc: &Vpc, id: &str, target: &Host) -> anyhow::Result<()> {
        let device = format!("t{}", self.devices.len());
        self.devices.insert(id.to_owned(), device.clone());
        let inside = &self.host.namespace;
        vpc.target_link(inside, &device, target)?;
        vpc.introduce(target, &self.host)?;
        let index = inside.index(&device)?;
        let link = inside.run(|| {
            let link = sys::packet_socket(index, false, 0, TICK)?;
            sys::bypass_queue(&link)?;
            Ok::<_, io::Error>(link)
        })??;
        self.shared
            .lock()
            .links
            .insert(id.to_owned(), Arc::new(link));
        Ok(())
    }

    /// Takes a target's link away, as when its host dies. What is still sent to it is counted.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut(&self, id: &str) -> anyhow::Result<()> {
        let device = self
            .devices
            .get(id)
            .with_context(|| format!("no link to {id}"))?;
        self.host.namespace.ip(&format!("link del {device}"))?;
        Ok(())
    }

    /// Takes over what a target group says now: its targets, its checks.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub fn follow(&mut self, group: &TargetGroup) -> anyhow::Result<()> {
        let told: Vec<Told> = group
            .targets
            .iter()
            .map(|target| Told {
                id: target.id.clone(),
                leaves_in: target.leaves_in.map(Duration::from_secs_f64),
            })
            .collect();
        {
            let mut inner = self.shared.lock();
            inner.check = group.check.clone();
            inner
                .table
                .follow(&told, group.connection_termination, Instant::now());
        }
        let registered = |id: &str| {
            let mut targets = group.targets.iter();
            targets.any(|target| target.id == id && target.leaves_in.is_none())
        };
        self.checkers.retain(|id, _| registered(id));
        for target in &group.targets {
            if registered(&target.id) && !self.checkers.contains_key(&target.id) {
                let checker = self.check(target)?;
                self.checkers.insert(target.id.clone(), checker);
            }
        }
        Ok(())
    }

    fn check(&self, target: &Target) -> anyhow::Result<Checker> {
        let stop = Arc::<AtomicBool>::default();
        let (its_stop, shared) = (Arc::clone(&stop), Arc::clone(&self.shared));
        let (id, address) = (target.id.clone(), target.address);
        self.host.namespace.spawn(move || {
            let over = || its_stop.load(Ordering::Relaxed) || shared.stopping();
            while !over() {
                let begun = Instant::now();
                let check = shared.lock().check.clone();
                let result = check.ask(address);
                if over() {
                    return;
                }
                let mut inner = shared.lock();
                inner.table.checked(&id, result.is_ok(), &check);
                match result {
                    Ok(()) => inner.reasons.remove(&id),
                    Err(error) => inner.reasons.insert(id.clone(), format!("{error:#}")),
                };
                drop(inner);
                let next = begun + Duration::from_secs_f64(check.interval);
                while !over() && Instant::now() < next {
                    thread::sleep(Duration::from_millis(10));
                }
            }
        })?;
        Ok(Checker { stop })
    }

    /// Registered targets and how they are.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, State> {
        self.shared.lock().table.states()
    }

    /// Why the last check of a target failed, if it did.
    #[must_use]
    pub fn reason(&self, id: &str) -> Option<String> {
        self.shared.lock().reasons.get(id).cloned()
    }

    /// Flows that each target holds, and how many have moved so far.
    #[must_use]
    pub fn flows(&self) -> (BTreeMap<String, usize>, u64) {
        let inner = self.shared.lock();
        (inner.table.flows(), inner.table.moved())
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.shared.lock().counts.clone()
    }

    /// Ends it: what has come is handed on.
    ///
    /// # Errors
    /// Where anything was lost that is in no count.
    pub fn stop(&mut self) -> anyhow::Result<Counts> {
        self.shared.stop.store(true, Ordering::Relaxed);
        let carrier = self
            .carrier
            .take()
            .context("the load balancer is stopped")?;
        let Ok(end) = carrier.join() else {
            bail!("the load balancer panicked");
        };
        let kernel_drops = end?.context("the load balancer's sockets")?;
        let counts = self.counts();
        let input = self.host.namespace.counters(RELAY_IN)?;
        let sent: u64 = counts.sent.values().sum();
        let known = sent + counts.to_the_gone + counts.without_target + counts.refused;
        if kernel_drops > 0
            || input.received_dropped > 0
            || input.received != counts.taken + counts.other
            || counts.taken != known
        {
            bail!("void: {counts:?}; the kernel dropped {kernel_drops}; {input:?}");
        }
        Ok(counts)
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(carrier) = self.carrier.take() {
            let _ = carrier.join();
        }
    }
}

/// Hands on what comes until it is told to stop; gives how many frames the kernel had no room for.
fn carry(input: &File, shared: &Shared) -> io::Result<u64> {
    let mut buffers = sys::Buffers::new(BATCH, MAX_FRAME);
    loop {
        let stopping = shared.stopping();
        let received = buffers.receive(input).map(Vec::from_iter);
        match received {
            Ok(lengths) => {
                hand_on(&buffers.frames(&lengths), shared)?;
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if stopping {
                    return Ok(u64::from(sys::packet_drops(input)?));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

fn hand_on(frames: &[&[u8]], shared: &Shared) -> io::Result<()> {
    let now = Instant::now();
    let mut batches: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
    let mut inner = shared.lock();
    for frame in frames {
        let Some(flow) = flow_of(frame) else {
            inner.counts.other += 1;
            continue;
        };
        inner.counts.taken += 1;
        match inner.table.route(flow, now) {
            Some(target) => batches.entry(target).or_default().push(frame),
            None => inner.counts.without_target += 1,
        }
    }
    let links: BTreeMap<usize, (String, Option<Arc<File>>)> = batches
        .keys()
        .map(|&target| {
            let id = inner.table.id(target).to_owned();
            let link = inner.links.get(&id).cloned();
            (target, (id, link))
        })
        .collect();
    drop(inner);
    for (frames, (id, link)) in batches.values().zip(links.into_values()) {
        let (sent, fate) = match link {
            Some(link) => send(&link, frames)?,
            None => (0, Fate::Gone),
        };
        let mut inner = shared.lock();
        let left = u64::try_from(frames.len() - sent).unwrap_or_default();
        match fate {
            Fate::Gone => inner.counts.to_the_gone += left,
            Fate::Refused => inner.counts.refused += left,
        }
        let sent = u64::try_from(sent).unwrap_or_default();
        *inner.counts.sent.entry(id).or_default() += sent;
    }
    Ok(())
}

/// What became of frames that were not sent.
enum Fate {
    Gone,
    Refused,
}

/// Gives frames to a link: how many it took, and what became of the rest.
fn send(link: &File, frames: &[&[u8]]) -> io::Result<(usize, Fate)> {
    let patience = Instant::now() + STUBBORN;
    let mut sent = 0;
    while let Some(rest) = frames.get(sent..).filter(|rest| !rest.is_empty()) {
        match sys::send_all(link, rest) {
            Ok(taken) => sent += taken,
            Err(error) => match error.raw_os_error() {
                Some(libc::ENXIO | libc::ENODEV | libc::ENETDOWN) => return Ok((sent, Fate::Gone)),
                Some(libc::ENOBUFS | libc::EAGAIN) if Instant::now() < patience => {
                    thread::sleep(Duration::from_micros(200));
                }
                Some(libc::ENOBUFS | libc::EAGAIN) => return Ok((sent, Fate::Refused)),
                _ => return Err(error),
            },
        }
    }
    Ok((sent, Fate::Refused))
}

/// The flow of a frame that is a whole IPv4 packet to UDP 4789.
fn flow_of(frame: &[u8]) -> Option<Flow> {
    const UDP: u8 = 17;
    let word = |at: usize| -> Option<u16> {
        Some(u16::from_be_bytes(frame.get(at..at + 2)?.try_into().ok()?))
    };
    let address = |at: usize| -> Option<Ipv4Addr> {
        let bytes: [u8; 4] = frame.get(at..at + 4)?.try_into().ok()?;
        Some(bytes.into())
    };
    if word(12)? != 0x0800 || *frame.get(14)? != 0x45 || *frame.get(23)? != UDP {
        return None;
    }
    let is_a_fragment = word(20)? & 0x3fff != 0;
    let destination = SocketAddrV4::new(address(30)?, word(36)?);
    (!is_a_fragment && destination.port() == 4789).then_some(Flow {
        source: SocketAddrV4::new(address(26)?, word(34)?),
        destination,
    })
}
