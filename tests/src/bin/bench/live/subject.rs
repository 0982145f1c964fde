//! Who receives: the rebuilder as a process, and loops that do nothing with what they get.

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use lab::batch::{self, Buffers};
use lab::cpu::{self, Cost, Reading};
use lab::process::{Process, wait_for};
use lab::rebuilder::{Metrics, http_get};
use rebuilder::receive::{self, Left, Receive, ReceiveOptions, Receiver};
use rebuilder::time::Timestamp;

use super::road::{ADDRESS, PORT, Road, softnet_drops};
use super::sender::{Pace, Sender, Sent};
use crate::egress::Sink;

/// How long figures may take to agree: they are published ten times a second.
const PATIENCE: Duration = Duration::from_secs(20);
/// How often they are looked at: the rebuilder pays for each look.
const LOOK: Duration = Duration::from_millis(150);
/// What a socket may hold, in bytes: as much as the rebuilder asks for by default.
const SOCKET_BUFFER: usize = 64 << 20;
/// Datagrams that are asked for at once, and the longest, in bytes.
const BATCH: usize = 64;
const LONGEST: usize = 2048;
/// Packets that are taken from a ring at once.
const DRAIN: usize = 1024;
/// A datagram of this length ends a loop.
const END: usize = 1;

/// What a run gave.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Run {
    /// Of whoever received.
    pub(crate) cost: Cost,
    pub(crate) sent: Sent,
    /// Packets that were processed.
    pub(crate) received: u64,
    /// Packets that found the ring or the socket full.
    pub(crate) dropped: u64,
    /// Packets that this machine dropped before.
    pub(crate) softnet: u64,
    /// Requests that were found and answered; 0 of a loop.
    pub(crate) requests: u64,
}

/// What a rebuilder has counted.
struct Counts {
    received: u64,
    dropped: u64,
    requests: u64,
}

impl Counts {
    fn of(metrics: &Metrics) -> Self {
        Self {
            received: metrics.packets(),
            dropped: metrics.count("rebuilder_kernel_drops_total"),
            requests: metrics.delivered(),
        }
    }
}

/// How things stood before a run.
pub(crate) struct Before {
    counts: Counts,
    softnet: u64,
    reading: Reading,
}

/// `rebuilder run` at the receiving end, and what it forwards to.
pub(crate) struct Rebuilder<'a> {
    road: &'a Road,
    process: Process,
    // Behind the process, so that it goes last.
    _sink: Sink,
}

impl<'a> Rebuilder<'a> {
    /// Starts it on these processors.
    pub(crate) fn start(
        road: &'a Road,
        processors: &[usize],
        flags: &[&str],
    ) -> anyhow::Result<Self> {
        let mut sink = on(road, &road.processors[1..], std::env::current_exe()?);
        sink.arg("sink");
        let sink = Sink::start(sink)?;
        let mut command = on(road, processors, lab::rebuilder::binary()?);
        command.args(["run", "--forward", &format!("http://{}", sink.address)]);
        command.args(["--listen", &format!("{ADDRESS}:{PORT}")]);
        command.args(["--admin", ADMIN]).args(flags);
        let process = Process::start("rebuilder", command, road.directory.path())?;
        let mut rebuilder = Self {
            road,
            process,
            _sink: sink,
        };
        wait_for("the rebuilder takes traffic", PATIENCE, || {
            rebuilder.process.must_be_running()?;
            Ok(rebuilder.get("/healthz").is_ok().then_some(()))
        })?;
        Ok(rebuilder)
    }

    fn get(&self, path: &str) -> anyhow::Result<String> {
        let url = format!("http://{ADMIN}{path}");
        self.road.receiver.run(|| http_get(&url))?
    }

    fn metrics(&self) -> anyhow::Result<Metrics> {
        Ok(Metrics::parse(&self.get("/metrics")?))
    }

    pub(crate) fn reading(&self) -> anyhow::Result<Reading> {
        Ok(Reading::of_process(self.process.pid())?)
    }

    pub(crate) fn signal(&self, signal: i32) {
        self.process.signal(signal);
    }

    /// Sends so many packets, and waits until each is accounted for and each request answered.
    pub(crate) fn run(
        &self,
        sender: &mut Sender,
        packets: usize,
        pace: Pace,
    ) -> anyhow::Result<Run> {
        let before = self.before()?;
        let sent = sender.send(self.road, packets, pace)?;
        self.settled(sent, &before)
    }

    /// What a run begins with; nothing is on its way.
    pub(crate) fn before(&self) -> anyhow::Result<Before> {
        Ok(Before {
            counts: Counts::of(&self.metrics()?),
            softnet: softnet_drops()?,
            reading: self.reading()?,
        })
    }

    /// The end of a run that began so.
    pub(crate) fn settled(&self, sent: Sent, before: &Before) -> anyhow::Result<Run> {
        let mut seen = String::new();
        wait_for("every packet is accounted for", PATIENCE, || {
            thread::sleep(LOOK);
            let cost = self.reading()?.since(&before.reading);
            let metrics = self.metrics()?;
            let counts = Counts::of(&metrics);
            let run = Run {
                cost,
                sent,
                received: counts.received - before.counts.received,
                dropped: counts.dropped - before.counts.dropped,
                softnet: softnet_drops()? - before.softnet,
                requests: counts.requests - before.counts.requests,
            };
            seen = format!("{run:?}");
            // Others may lose packets on this machine, too.
            let known = run.received + run.dropped;
            let all = known <= sent.packets && sent.packets <= known + run.softnet;
            let idle = metrics.count("rebuilder_requests_in_flight") == 0;
            Ok((all && idle).then_some(run))
        })
        .with_context(|| seen)
    }
}

const ADMIN: &str = "127.0.0.1:9445";

/// A command at the receiving end that stays on these processors.
fn on(road: &Road, processors: &[usize], program: impl AsRef<std::ffi::OsStr>) -> Command {
    let list: Vec<String> = processors.iter().map(usize::to_string).collect();
    let mut command = road.receiver.command("taskset");
    command.args(["--cpu-list", &list.join(",")]).arg(program);
    command
}

/// A loop that reads, and does nothing with what it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loop {
    /// One datagram with each call, which blocks.
    Recvfrom,
    /// All that wait, with each call, which blocks.
    Recvmmsg,
    /// What a worker of the rebuilder reads its ring by, as often as that does.
    Ring,
}

/// What it reads.
enum Source {
    Socket(UdpSocket),
    Ring(Receiver),
}

impl Loop {
    /// Receives what is sent meanwhile.
    pub(crate) fn run(
        self,
        road: &Road,
        sender: &mut Sender,
        packets: usize,
        pace: Pace,
    ) -> anyhow::Result<Run> {
        let mut source = road.receiver.run(|| self.open())??;
        let softnet = softnet_drops()?;
        let (sent, (received, cost)) = thread::scope(|scope| -> anyhow::Result<_> {
            let receiving = scope.spawn(|| -> anyhow::Result<_> {
                cpu::pin_this_thread(road.processors[0])?;
                let before = Reading::of_this_thread();
                let received = self.receive(&mut source)?;
                Ok((received, Reading::of_this_thread().since(&before)))
            });
            let sent = sender.send(road, packets, pace);
            // One that finds the buffer full is lost, so there is another.
            while !receiving.is_finished() {
                let _ = road.end.send(&[0; END]);
                thread::sleep(Duration::from_millis(10));
            }
            let received = match receiving.join() {
                Ok(received) => received?,
                Err(panic) => std::panic::resume_unwind(panic),
            };
            Ok((sent?, received))
        })?;
        Ok(Run {
            cost,
            sent,
            received,
            dropped: sent.packets.saturating_sub(received),
            softnet: softnet_drops()? - softnet,
            requests: 0,
        })
    }

    fn open(self) -> anyhow::Result<Source> {
        let address = SocketAddr::new(ADDRESS.parse()?, PORT);
        if self == Self::Ring {
            let options = ReceiveOptions {
                by: Receive::Ring,
                ..ReceiveOptions::default()
            };
            let (mut receivers, _) = receive::open(address, 1, &options)?;
            return Ok(Source::Ring(receivers.pop().context("no receiver")?));
        }
        let socket = UdpSocket::bind(address)?;
        batch::force_receive_buffer(&socket, SOCKET_BUFFER)?;
        Ok(Source::Socket(socket))
    }

    /// The number of datagrams before the one that ends it.
    fn receive(self, source: &mut Source) -> anyhow::Result<u64> {
        let mut received = 0;
        match source {
            Source::Socket(socket) if self == Self::Recvfrom => {
                let mut buffer = [0; LONGEST];
                while socket.recv_from(&mut buffer)?.0 > END {
                    received += 1;
                }
            }
            Source::Socket(socket) => {
                let mut buffers = Buffers::new(BATCH, LONGEST);
                let mut ended = false;
                while !ended {
                    for length in buffers.receive(socket)? {
                        ended |= length <= END;
                        received += u64::from(length > END);
                    }
                }
            }
            Source::Ring(ring) => {
                let mut ended = false;
                while !ended {
                    // The kernel says when a packet came, so no clock is asked.
                    let drained = ring.drain(DRAIN, Timestamp(0), |frames| {
                        for frame in frames {
                            ended |= frame.data.len() <= END;
                            received += u64::from(frame.data.len() > END);
                        }
                    })?;
                    if drained.left != Left::More {
                        thread::sleep(ring.pause());
                    }
                }
            }
        }
        Ok(received)
    }
}
