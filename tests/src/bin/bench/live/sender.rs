//! Sends a capture, again and again, each time with other clients.
//!
//! The same connection a second time would be a late copy of the first to a rebuilder. So each pass has an address of
//! its own for the clients, and the two checksums that cover it are adjusted (RFC 1624); the rest of a packet is sent as
//! it was captured, its outer Ethernet, IP and UDP headers included.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::cpu::{self, Reading};

use super::road::Road;

/// From the packet's first byte: the source and the destination of the inner IPv4 header, its checksum, and TCP's.
const ADDRESSES: [usize; 2] = [76, 80];
const CHECKSUMS: [usize; 2] = [74, 100];

/// Frames that are handed to the kernel at once, where no pace is asked for.
const AT_ONCE: usize = 64;

/// How fast packets are sent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Pace {
    /// As the link takes them.
    Full,
    /// So many a second, in trains of so many.
    Even {
        /// Packets a second.
        rate: f64,
        /// Packets that follow on each other at once, as those of a window of TCP do.
        train: usize,
    },
}

/// What sending took.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sent {
    pub(crate) pace: Pace,
    pub(crate) packets: u64,
    /// On the clock.
    pub(crate) wall: Duration,
    /// Of the sender's processor. What the kernel does for a packet up to the receiver's ring or socket happens within
    /// the sender's call, so it is in here; so is the waiting for its time, where there is a pace.
    pub(crate) cpu: Duration,
}

impl Sent {
    pub(crate) fn rate(&self) -> f64 {
        f64::from(u32::try_from(self.packets).unwrap_or(u32::MAX)) / self.wall.as_secs_f64()
    }

    /// The sender's share of a packet.
    pub(crate) fn each(&self) -> Duration {
        self.cpu / u32::try_from(self.packets.max(1)).unwrap_or(u32::MAX)
    }
}

/// The capture in memory.
pub(crate) struct Sender {
    bytes: Vec<u8>,
    /// Where each packet begins, and its length.
    packets: Vec<(usize, usize)>,
    /// The second byte of the clients' addresses in the last pass.
    pass: u8,
}

impl Sender {
    /// Reads a capture that `capture.rs` has written.
    pub(crate) fn new(path: &Path) -> anyhow::Result<Self> {
        let bytes = std::fs::read(path).with_context(|| path.display().to_string())?;
        let mut packets = Vec::new();
        let mut at = 24;
        while let Some((header, _)) = bytes
            .get(at..)
            .and_then(|rest| rest.split_first_chunk::<16>())
        {
            let [.., a, b, c, d] = *header;
            let length = usize::try_from(u32::from_le_bytes([a, b, c, d]))?;
            packets.push((at + 16, length));
            at += 16 + length;
        }
        ensure!(at == bytes.len(), "{}: cut", path.display());
        Ok(Self {
            bytes,
            packets,
            pass: 1,
        })
    }

    /// Sends so many packets from the capture's beginning on, by a thread that stays on the sender's processor.
    pub(crate) fn send(&mut self, road: &Road, packets: usize, pace: Pace) -> anyhow::Result<Sent> {
        std::thread::scope(|scope| {
            let sending = scope.spawn(|| {
                cpu::pin_this_thread(road.processors[1])?;
                self.send_here(road, packets, pace)
            });
            match sending.join() {
                Ok(sent) => sent,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn send_here(&mut self, road: &Road, packets: usize, pace: Pace) -> anyhow::Result<Sent> {
        let (interval, at_once) = match pace {
            Pace::Full => (0.0, AT_ONCE),
            Pace::Even { rate, train } => (1.0 / rate, train),
        };
        let before = Reading::of_this_thread();
        let begun = Instant::now();
        let (mut sent, mut due) = (0, 0.0);
        while sent < packets {
            // From 1 to 250: 0 is the servers'.
            self.pass = self.pass % 250 + 1;
            let count = (packets - sent).min(self.packets.len());
            let places: Vec<(usize, usize)> = self.packets.iter().take(count).copied().collect();
            for train in places.chunks(at_once) {
                for &(at, length) in train {
                    let packet = self.bytes.get_mut(at..at + length).unwrap_or_default();
                    readdress(packet, self.pass);
                }
                let frames = train
                    .iter()
                    .map(|&(at, length)| self.bytes.get(at..at + length));
                let frames: Vec<&[u8]> = frames.map(Option::unwrap_or_default).collect();
                // The other end shares this processor with nobody, so it may be spun on.
                while begun.elapsed().as_secs_f64() < due {
                    std::hint::spin_loop();
                }
                road.link.send(&frames)?;
                for _ in train {
                    due += interval;
                }
            }
            sent += count;
        }
        let cost = Reading::of_this_thread().since(&before);
        Ok(Sent {
            pace,
            packets: sent as u64,
            wall: cost.wall,
            cpu: cost.cpu(),
        })
    }
}

/// Gives the client of a packet the address 10.`pass`.x.x; servers have 10.0.x.x.
fn readdress(packet: &mut [u8], pass: u8) {
    let word = |packet: &[u8], at: usize| {
        let bytes = packet.get(at..).and_then(|rest| rest.first_chunk());
        bytes.copied().map_or(0, u16::from_be_bytes)
    };
    for at in ADDRESSES {
        let old = word(packet, at);
        if old & 0xff == 0 {
            continue;
        }
        let new = old & 0xff00 | u16::from(pass);
        put(packet, at, new);
        for at in CHECKSUMS {
            let sum = u32::from(!word(packet, at)) + u32::from(!old) + u32::from(new);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            put(packet, at, !u16::try_from(sum).unwrap_or(0));
        }
    }
}

fn put(packet: &mut [u8], at: usize, value: u16) {
    if let Some(place) = packet.get_mut(at..at + 2) {
        place.copy_from_slice(&value.to_be_bytes());
    }
}
