//! `rebuilder replay`: sends a capture file as mirrored packets, as AWS would send them to a mirror target.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::net::{SocketAddr, ToSocketAddrs, UdpSocket};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use crate::decode::{self, Network, Vni};
use crate::receive::capture::{CaptureError, CaptureReader};
use crate::receive::{Frame, LinkType};
use crate::telemetry::PacketOutcome;

/// The longest UDP payload over IPv4, in bytes: 65,535 less the headers of IP (20) and UDP (8).
pub const MAX_PAYLOAD: usize = 65_507;

/// What stands in front of IP where the capture has no Ethernet header: locally administered addresses of no one.
const ADDRESSES: [u8; 12] = [0x02, 0, 0, 0, 0, 0x02, 0x02, 0, 0, 0, 0, 0x01];

/// Below this the scheduler's own grain is larger than the wait.
const SHORTEST_SLEEP: Duration = Duration::from_millis(1);

/// What to send, where, and how fast.
#[derive(Clone, Debug)]
pub struct ReplayOptions {
    /// A pcap or pcapng file, plain or gzipped.
    pub file: PathBuf,
    /// `HOST:PORT`.
    pub to: String,
    /// Packets a second; `None`: as fast as the socket takes them.
    pub pps: Option<NonZeroU64>,
    /// How many times the file is sent.
    pub loops: u32,
    /// The network identifier given to frames that were captured bare.
    pub vni: Vni,
}

/// What was sent and what was not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplayReport {
    /// Datagrams sent.
    pub sent: u64,
    /// Frames not sent, by reason: a label of [`PacketOutcome`] or `too_large`. Without the reasons that did not
    /// occur.
    pub skipped: BTreeMap<&'static str, u64>,
    /// From the first to the last datagram.
    pub elapsed: Duration,
}

/// Why a replay stopped. Each is one line: the place, the reason, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The capture cannot be read to its end; the packets before were sent.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The target is no address.
    #[error("--to {to}: no such address: {source}; give HOST:PORT, e.g. 127.0.0.1:4789")]
    Target {
        /// As given.
        to: String,
        /// What the resolver says.
        source: io::Error,
    },
    /// Nobody listens.
    #[error(
        "--to {to}: nobody listens there (port unreachable after {sent} datagrams); start the rebuilder first, or check the port"
    )]
    Refused {
        /// As given.
        to: String,
        /// How many datagrams were handed to the system before it said so.
        sent: u64,
    },
    /// The system does not send.
    #[error("--to {to}: cannot send: {source}; check the route to it")]
    Send {
        /// As given.
        to: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Sends the capture, with progress on stderr where that is a terminal.
///
/// A frame that was captured wrapped goes out as it stands from its outermost VXLAN header on; a bare one is wrapped,
/// after an Ethernet header was put in front of it where its link type has none.
///
/// # Errors
/// See [`ReplayError`]; what was sent before is not taken back.
pub fn run(options: &ReplayOptions) -> Result<ReplayReport, ReplayError> {
    let socket = connect(&options.to)?;
    let progress = progress();
    let mut report = ReplayReport::default();
    let mut datagram = Vec::new();
    let started = Instant::now();
    for _ in 0..options.loops {
        let mut reader = CaptureReader::open(&options.file)?;
        while let Some(frame) = reader.next()? {
            if let Err(reason) = wrap(&frame, options.vni, &mut datagram) {
                *report.skipped.entry(reason).or_default() += 1;
                continue;
            }
            if let Some(pps) = options.pps {
                pace(started, report.sent, pps);
            }
            match send(&socket, &datagram) {
                Ok(()) => report.sent += 1,
                Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => {
                    *report.skipped.entry(TOO_LARGE).or_default() += 1;
                }
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                    return Err(ReplayError::Refused {
                        to: options.to.clone(),
                        sent: report.sent,
                    });
                }
                Err(source) => {
                    return Err(ReplayError::Send {
                        to: options.to.clone(),
                        source,
                    });
                }
            }
            progress.inc(1);
        }
    }
    report.elapsed = started.elapsed();
    progress.finish_and_clear();
    Ok(report)
}

/// The reason of a frame that no UDP datagram holds.
const TOO_LARGE: &str = "too_large";

/// Writes the datagram that mirrors `frame`.
fn wrap(frame: &Frame<'_>, vni: Vni, datagram: &mut Vec<u8>) -> Result<(), &'static str> {
    datagram.clear();
    if let Some(wrapped) = decode::outermost_vxlan(frame) {
        datagram.extend_from_slice(wrapped);
    } else {
        datagram.extend_from_slice(&decode::vxlan_header(vni));
        if frame.link != LinkType::Ethernet {
            let network = decode::network_layer(frame.link, frame.data);
            let (ethertype, packet) = match network.map_err(PacketOutcome::label)? {
                Network::V4(packet) => ([0x08, 0x00], packet),
                Network::V6(packet) => ([0x86, 0xdd], packet),
            };
            datagram.extend_from_slice(&ADDRESSES);
            datagram.extend_from_slice(&ethertype);
            datagram.extend_from_slice(packet);
        } else {
            datagram.extend_from_slice(frame.data);
        }
    }
    if datagram.len() > MAX_PAYLOAD {
        return Err(TOO_LARGE);
    }
    Ok(())
}

fn connect(to: &str) -> Result<UdpSocket, ReplayError> {
    let target = |source| ReplayError::Target {
        to: to.to_owned(),
        source,
    };
    let addr = to
        .to_socket_addrs()
        .map_err(target)?
        .next()
        .ok_or_else(|| target(io::ErrorKind::NotFound.into()))?;
    let any: SocketAddr = if addr.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let connected = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(addr)?;
        Ok(socket)
    };
    connected().map_err(|source| ReplayError::Send {
        to: to.to_owned(),
        source,
    })
}

/// Sends one datagram, waiting where the system's queue is full.
fn send(socket: &UdpSocket, datagram: &[u8]) -> io::Result<()> {
    loop {
        match socket.send(datagram) {
            Ok(_) => return Ok(()),
            Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                std::thread::sleep(SHORTEST_SLEEP);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Waits until datagram number `sent` (from 0) is due.
fn pace(started: Instant, sent: u64, pps: NonZeroU64) {
    let due = Duration::from_nanos(
        u64::try_from(u128::from(sent) * 1_000_000_000 / u128::from(pps.get())).unwrap_or(u64::MAX),
    );
    let early = due.saturating_sub(started.elapsed());
    if early >= SHORTEST_SLEEP {
        std::thread::sleep(early);
    }
}

fn progress() -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("{spinner} {human_pos} packets sent, {per_sec}, {elapsed}");
    let bar = ProgressBar::new_spinner();
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests;
