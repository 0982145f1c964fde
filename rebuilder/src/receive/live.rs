//! Where a worker of `rebuilder run` reads mirrored packets: a ring where the process may have one, a socket elsewhere.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::ring::{self, RingOptions, RingReceiver};
use super::udp::{self, BindError, UdpOptions, UdpReceiver};
use super::{Drained, Frame};
use crate::time::Timestamp;

/// `--receive`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Receive {
    /// Packet rings, or UDP sockets where they cannot be had.
    #[default]
    Auto,
    /// Packet rings.
    Ring,
    /// UDP sockets.
    Socket,
}

/// How mirrored packets are received.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReceiveOptions {
    /// By which of the two.
    pub by: Receive,
    /// A ring's settings.
    pub ring: RingOptions,
    /// A socket's settings.
    pub udp: UdpOptions,
}

/// One worker's.
#[derive(Debug)]
pub enum Receiver {
    /// A packet ring.
    Ring(RingReceiver),
    /// A UDP socket.
    Socket(UdpReceiver),
}

/// Opens `addr` for `workers` receivers (at least one), which the kernel feeds by inner connection. The second part
/// is why they are no rings, although rings were preferred.
///
/// # Errors
/// [`BindError`]; with [`Receive::Auto`] only those that no kind of receiver would get around.
pub fn open(
    addr: SocketAddr,
    workers: usize,
    options: &ReceiveOptions,
) -> Result<(Vec<Receiver>, Option<BindError>), BindError> {
    let rings = || -> Result<Vec<Receiver>, BindError> {
        let group = ring::bind_group(addr, workers, &options.ring)?;
        Ok(group.into_iter().map(Receiver::Ring).collect())
    };
    let sockets = || -> Result<Vec<Receiver>, BindError> {
        let group = udp::bind_group(addr, workers, &options.udp)?;
        Ok(group.into_iter().map(Receiver::Socket).collect())
    };
    match options.by {
        Receive::Ring => Ok((rings()?, None)),
        Receive::Socket => Ok((sockets()?, None)),
        Receive::Auto => match rings() {
            Ok(group) => Ok((group, None)),
            // Were it the port or the address, the sockets would not get it either, and say so.
            Err(why) => Ok((sockets()?, Some(why))),
        },
    }
}

impl Receiver {
    /// What it is called in a log.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Ring(_) => "ring",
            Self::Socket(_) => "socket",
        }
    }

    /// Where it listens; with port 0 asked for, the one that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        match self {
            Self::Ring(ring) => ring.local_addr(),
            Self::Socket(socket) => socket.local_addr(),
        }
    }

    /// The bytes that a socket's buffer has, where it is one and has fewer than it should.
    #[must_use]
    pub fn scant_buffer(&self) -> Option<usize> {
        match self {
            Self::Ring(_) => None,
            Self::Socket(socket) => {
                Some(socket.receive_buffer()).filter(|&bytes| bytes < udp::SCANT_RECEIVE_BUFFER)
            }
        }
    }

    /// Hands over what waits, at most `budget` datagrams, never blocking. A frame's time is the kernel's, of its
    /// arrival; `now` where the kernel gave none.
    ///
    /// # Errors
    /// What the system says; the receiver stays usable.
    pub fn drain(
        &mut self,
        budget: usize,
        now: Timestamp,
        f: impl FnMut(&[Frame<'_>]),
    ) -> io::Result<Drained> {
        match self {
            Self::Ring(ring) => Ok(ring.drain_few(budget, f)),
            Self::Socket(socket) => socket.drain_few(budget, now, f),
        }
    }

    /// How long to wait where nothing can be read. A wake-up costs as much as a dozen packets, so neither is read at each
    /// packet.
    #[must_use]
    pub fn pause(&self) -> Duration {
        match self {
            Self::Ring(ring) => ring.pause(),
            Self::Socket(_) => Duration::from_millis(1),
        }
    }

    /// Takes nothing more from the wire, so that a drain comes to its end whatever goes on arriving. A socket's queue is
    /// found empty between two datagrams anyway.
    pub fn refuse(&mut self) {
        match self {
            Self::Ring(ring) => ring.refuse(),
            Self::Socket(_) => {}
        }
    }

    /// Datagrams that the kernel had no room for, since it was opened.
    pub fn kernel_drops(&mut self) -> u64 {
        match self {
            Self::Ring(ring) => ring.kernel_drops(),
            Self::Socket(socket) => socket.kernel_drops(),
        }
    }

    /// Datagrams that were handed over cut, because they were too long for a socket's buffer.
    #[must_use]
    pub fn truncated(&self) -> u64 {
        match self {
            Self::Ring(_) => 0,
            Self::Socket(socket) => socket.truncated(),
        }
    }

    /// Packets that were several ones of the wire; see [`RingReceiver::super_frames`]. A socket cannot tell.
    #[must_use]
    pub fn super_frames(&self) -> u64 {
        match self {
            Self::Ring(ring) => ring.super_frames(),
            Self::Socket(_) => 0,
        }
    }

    /// The share (0 to 1) of its room that waits to be read.
    #[must_use]
    pub fn fill(&self) -> f64 {
        match self {
            Self::Ring(ring) => ring.fill(),
            Self::Socket(socket) => socket.fill(),
        }
    }
}
