//! Where frames come from: a packet ring or a UDP socket on the VXLAN port, or a capture file.

mod bpf;
pub mod capture;
pub mod host;
mod live;
pub mod ring;
mod steering;
pub(crate) mod sys;
pub mod udp;

use crate::time::Timestamp;

pub use live::{Receive, ReceiveOptions, Receiver, open};
pub(crate) use steering::{owner, owner_of_plain};

/// What the first byte of a frame is (names as in the pcap link-type registry, <https://www.tcpdump.org/linktypes.html>).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LinkType {
    /// 1: Ethernet.
    Ethernet,
    /// 0 and 108: a 4-byte address family (in host order for 0, network order for 108), then IP.
    Null,
    /// 101 (and 12, 14): IP without a link header, version by the first nibble.
    Raw,
    /// 228.
    Ipv4,
    /// 229.
    Ipv6,
    /// 113: Linux cooked capture v1.
    LinuxSll,
    /// 276: Linux cooked capture v2.
    LinuxSll2,
    /// Not of the registry: the payload of a datagram to the VXLAN port, as a UDP socket gives it.
    Vxlan,
    /// Not of the registry: the payload of a datagram to the GENEVE port, as a UDP socket gives it.
    Geneve,
    /// Any other number; such frames end in `link_type`.
    Other(u32),
}

/// One captured frame, borrowed from the receive buffer.
#[derive(Clone, Copy, Debug)]
pub struct Frame<'a> {
    /// When it was captured.
    pub ts: Timestamp,
    /// What `data` begins with.
    pub link: LinkType,
    /// The captured bytes; may be fewer than were on the wire.
    pub data: &'a [u8],
}

/// How many frames are handed over at once.
pub const FEW: usize = 64;

/// Frames that wait to be handed over together.
struct Few<'a> {
    frames: [Frame<'a>; FEW],
    count: usize,
}

impl Default for Few<'_> {
    fn default() -> Self {
        let none = Frame {
            ts: Timestamp(0),
            link: LinkType::Vxlan,
            data: &[],
        };
        Self {
            frames: [none; FEW],
            count: 0,
        }
    }
}

impl<'a> Few<'a> {
    /// Takes a frame, and hands all over where there is no room for another one.
    fn push(&mut self, frame: Frame<'a>, f: &mut impl FnMut(&[Frame<'_>])) {
        if let Some(place) = self.frames.get_mut(self.count) {
            *place = frame;
            self.count += 1;
        }
        if self.count == FEW {
            self.give(f);
        }
    }

    /// Hands over what there is.
    fn give(&mut self, f: &mut impl FnMut(&[Frame<'_>])) {
        let frames = self.frames.get(..self.count).unwrap_or_default();
        if !frames.is_empty() {
            f(frames);
        }
        self.count = 0;
    }
}

/// What a drain found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drained {
    /// How many datagrams were handed over.
    pub datagrams: usize,
    /// What it left.
    pub left: Left,
}

/// What waits when a drain ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Left {
    /// Nothing that had arrived before the drain began: only then may flow time follow the wall clock.
    Nothing,
    /// Something that cannot be read yet, but in some milliseconds.
    Soon,
    /// Perhaps more: the budget is used up.
    More,
}

impl LinkType {
    /// From a number of the registry, as pcap and pcapng files carry it.
    #[must_use]
    pub const fn from_number(number: u32) -> Self {
        match number {
            1 => Self::Ethernet,
            0 | 108 => Self::Null,
            12 | 14 | 101 => Self::Raw,
            113 => Self::LinuxSll,
            228 => Self::Ipv4,
            229 => Self::Ipv6,
            276 => Self::LinuxSll2,
            other => Self::Other(other),
        }
    }
}
