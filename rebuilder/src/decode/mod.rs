//! A frame becomes a TCP segment of the mirrored (inner) connection, or ends here in a named outcome.
//!
//! ```text
//! Frame ─▶ link ─▶ ip ─┬─▶ tcp ─▶ Segment
//!            ▲         └─▶ tunnel (VXLAN, GENEVE) ─┐
//!            └─────────────────────────────────────┘
//! ```
//!
//! The pieces of a fragmented IP packet are put together again (`fragments.rs`): a new one ends in `fragment`, a copy in
//! `duplicate`, one that makes the packet unsound in `bad_ip`, one whose sender holds its share in `over_cap`, and the
//! one that completes the packet in what that is.
//!
//! Most frames need none of that: `plain.rs` takes those apart by fixed places.
//!
//! Every layer is a pure function over a slice, lenient where a mirror or a sender's offloads make frames that no
//! wire would carry: a frame cut behind its headers is *cut*, not bad; IP lengths of zero mean "the rest"; a wrong
//! checksum counts against a frame only where they are usually right (`checksum.rs`), since a mirror copies frames
//! before the card fills it in.
//! Other tunnels (GRE, IP in IP, ...) are not opened: their packets end in `not_tcp`.
//!
//! No input panics.

mod checksum;
mod fragments;
mod geneve;
mod ip;
mod link;
mod plain;
mod tcp;
mod tunnel;
mod vxlan;

use std::net::SocketAddr;
use std::ops::RangeInclusive;

use crate::keyed::Keyed;
use crate::receive::{Frame, LinkType};
use crate::telemetry::PacketOutcome;
use crate::time::Timestamp;

pub use checksum::{ChecksumPolicy, MAX_CHECKSUM_WINDOWS};
pub use fragments::{FRAGMENT_TIMEOUT_V4, FRAGMENT_TIMEOUT_V6, MAX_FRAGMENT_BYTES};
pub(crate) use link::{Network, network as network_layer};
pub use plain::Plain;
pub use tunnel::MAX_TUNNEL_DEPTH;
pub(crate) use tunnel::outermost_vxlan;
pub(crate) use vxlan::header as vxlan_header;

/// A VXLAN network identifier, 24 bits (RFC 7348 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(pub u32);

impl Vni {
    /// The largest one.
    pub const MAX: Self = Self(0x00ff_ffff);
}

/// A TCP sequence number: 32 bits that wrap (RFC 9293 §3.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seq(pub u32);

bitflags::bitflags! {
    /// Control bits of a TCP header, in their place in byte 13 (RFC 9293 §3.1).
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct TcpFlags: u8 {
        /// No more data from the sender.
        const FIN = 0x01;
        /// The sequence number is the initial one.
        const SYN = 0x02;
        /// Reset the connection.
        const RST = 0x04;
        /// Push.
        const PSH = 0x08;
        /// The acknowledgement number counts.
        const ACK = 0x10;
        /// The urgent pointer counts.
        const URG = 0x20;
    }
}

/// One TCP segment of a mirrored connection; the payload is borrowed from the frame.
#[derive(Clone, Copy, Debug)]
pub struct Segment<'a> {
    /// Capture time of the frame.
    pub ts: Timestamp,
    /// Of the outermost VXLAN header; `None` when the frame was bare.
    pub vni: Option<Vni>,
    /// Inner source.
    pub src: SocketAddr,
    /// Inner destination.
    pub dst: SocketAddr,
    /// Of the first byte of `payload`, or of the SYN.
    pub seq: Seq,
    /// Meaningful when `flags` holds ACK.
    pub ack: Seq,
    /// Control bits.
    pub flags: TcpFlags,
    /// The urgent pointer; 0 unless `flags` holds URG.
    pub urgent: u16,
    /// The captured payload; Ethernet padding is cut off by the IP length.
    pub payload: &'a [u8],
    /// Payload bytes that the IP length promises behind `payload` and the capture does not hold: the frame was
    /// cut by the mirror. A hole of known length.
    pub cut: u32,
}

/// What the decoder lets through.
#[derive(Clone, Debug, Default)]
pub struct DecodeOptions {
    /// The outermost network identifiers that count; empty means all, and bare packets too. Where one is named, bare
    /// packets are excluded.
    pub vnis: Vec<Vni>,
    /// A segment counts where one of its two ports lies in one of these; empty means all.
    pub ports: Vec<RangeInclusive<u16>>,
    /// What a wrong checksum does.
    pub checksum: ChecksumPolicy,
    /// For what is looked up by addresses. Default: under a random key.
    pub hash: Keyed,
}

/// Takes frames apart, one at a time.
#[derive(Debug)]
pub struct Decoder {
    options: DecodeOptions,
    fragments: fragments::Reassembler,
    checksums: checksum::Checksums,
    /// The packets that became whole with the last frame, the outermost first.
    whole: [Vec<u8>; MAX_TUNNEL_DEPTH + 1],
    /// Every frame goes the general way, so that both can be compared.
    #[cfg(any(test, feature = "fuzzing"))]
    pub never_plain: bool,
}

impl Decoder {
    /// A decoder that has seen nothing yet.
    #[must_use]
    pub fn new(options: DecodeOptions) -> Self {
        Self {
            fragments: fragments::Reassembler::default(),
            checksums: checksum::Checksums::new(options.checksum, options.hash),
            whole: Default::default(),
            #[cfg(any(test, feature = "fuzzing"))]
            never_plain: false,
            options,
        }
    }

    /// Frames with a wrong checksum that were taken all the same.
    #[must_use]
    pub fn bad_checksums(&self) -> u64 {
        self.checksums.taken()
    }

    /// Captured bytes of pieces of packets that never became whole, or stood behind a hole in one.
    #[must_use]
    pub fn lost_fragment_bytes(&self) -> u64 {
        self.fragments.lost_bytes()
    }

    /// Bytes of pieces of packets that disagreed with copies that had come before.
    #[must_use]
    pub fn fragment_conflict_bytes(&self) -> u64 {
        self.fragments.conflict_bytes()
    }

    /// Gives up the pieces that still wait: nothing more comes.
    pub fn finish(&mut self) {
        self.fragments.clear();
    }

    /// The TCP segment in `frame`; where the frame is wrapped in tunnels, the one in the innermost packet.
    ///
    /// # Errors
    /// The outcome in which the packet ends here: any of `not_tcp`, `not_ip`, `fragment`, `duplicate` and `over_cap` (of
    /// pieces), `link_type`, `vni_excluded`, `port_excluded`, `bad_checksum`, `bad_vxlan`, `bad_link`, `bad_ip`,
    /// `bad_tcp`.
    pub fn decode<'a>(&'a mut self, frame: &Frame<'a>) -> Result<Segment<'a>, PacketOutcome> {
        let mut plain = Plain::NONE;
        match self.decode_plain(frame, &mut plain) {
            Some(decoded) => decoded.map(|()| plain.segment()),
            None => self.decode_any(frame),
        }
    }

    /// The same, of a frame that can be taken apart by fixed places, whose segment is put into `plain`; `None` of any other,
    /// with which nothing has been done then. The segment borrows from the frame alone, so that more frames may be decoded
    /// before it is used.
    ///
    /// # Errors
    /// As [`Self::decode`].
    #[inline]
    pub fn decode_plain<'a>(
        &mut self,
        frame: &Frame<'a>,
        plain: &mut Plain<'a>,
    ) -> Option<Result<(), PacketOutcome>> {
        #[cfg(any(test, feature = "fuzzing"))]
        if self.never_plain {
            return None;
        }
        let opened = plain::open(frame)?;
        let path = || checksum::Path {
            vni: opened.vni,
            ends: *opened.path,
        };
        if let Err(outcome) = self.options.admit(opened.vni) {
            return Some(Err(outcome));
        }
        if !self.options.takes(opened.ports()) {
            return Some(Err(PacketOutcome::PortExcluded));
        }
        if !self.checksums.admit(opened.is_right(), path) {
            return Some(Err(PacketOutcome::BadChecksum));
        }
        *plain = opened.plain(frame.ts);
        Some(Ok(()))
    }

    fn decode_any<'a>(&'a mut self, frame: &Frame<'a>) -> Result<Segment<'a>, PacketOutcome> {
        let Self {
            options,
            fragments,
            checksums,
            whole,
            ..
        } = self;
        // A packet in pieces may hold a tunnel that holds a piece of another one: each that this frame completes has a
        // buffer of its own.
        let mut whole = whole.iter_mut();
        let mut vni = None;
        let mut link = frame.link;
        let mut data = frame.data;
        // The frame that the mirrored interface sent or got: the one in the outermost VXLAN header, or the bare one.
        let mut mirrored = (link, data);
        let mut depth = 0;
        let mut tunnel = tunnel::open(link, data);
        loop {
            if let Some(opened) = tunnel.take() {
                let inner = opened?;
                (link, data) = (inner.link, inner.data);
                depth += 1;
                if vni.is_none() && inner.vni.is_some() {
                    vni = inner.vni;
                    mirrored = (link, data);
                    options.admit(vni)?;
                }
            }
            let packet = match link::network(link, data).and_then(ip::open) {
                Ok(ip::Opened::Whole(packet)) => packet,
                Ok(ip::Opened::Fragment(piece)) => {
                    // The server would not put such a piece into its packet either.
                    if piece.packet.is_whole() {
                        let is_right = checksum::header_is_right(&piece.packet);
                        if !checksums.admit_piece(is_right, || path(vni, mirrored)) {
                            return Err(PacketOutcome::BadChecksum);
                        }
                    }
                    let packet = fragments.add(frame.ts, vni, &piece)?;
                    let buffer = whole.next().ok_or(PacketOutcome::NotTcp)?;
                    packet.moved_to(buffer)
                }
                // That there is no IP in it proves that the packet is bare; a damaged one proves nothing.
                Err(PacketOutcome::NotIp) => {
                    return Err(options.admit(vni).err().unwrap_or(PacketOutcome::NotIp));
                }
                Err(outcome) => return Err(outcome),
            };
            if packet.protocol == ip::UDP && depth < MAX_TUNNEL_DEPTH {
                tunnel = tunnel::within(packet.payload);
                if tunnel.is_some() {
                    continue;
                }
            }
            options.admit(vni)?;
            if packet.protocol != ip::TCP {
                return Err(PacketOutcome::NotTcp);
            }
            let tcp = tcp::open(packet.payload)?;
            return segment(options, checksums, frame.ts, vni, mirrored, &packet, &tcp);
        }
    }
}

#[cfg(any(test, feature = "fuzzing"))]
impl Decoder {
    /// Bytes that pieces of packets hold, counted anew; at most [`MAX_FRAGMENT_BYTES`].
    ///
    /// # Panics
    /// Where an invariant of the store does not hold.
    #[must_use]
    pub fn fragment_bytes(&self) -> usize {
        self.fragments.bytes()
    }
}

impl DecodeOptions {
    /// Whether `--vni` lets a packet with this outermost identifier (none: bare) through.
    #[inline]
    fn admit(&self, vni: Option<Vni>) -> Result<(), PacketOutcome> {
        if self.vnis.is_empty() || vni.is_some_and(|vni| self.vnis.contains(&vni)) {
            Ok(())
        } else {
            Err(PacketOutcome::VniExcluded)
        }
    }

    /// Whether `--port` names one of these.
    #[inline]
    fn takes(&self, ports: [u16; 2]) -> bool {
        self.ports.is_empty() || self.names(ports)
    }

    fn names(&self, ports: [u16; 2]) -> bool {
        let named = |port| self.ports.iter().any(|range| range.contains(port));
        ports.iter().any(named)
    }
}

/// The last step: the filters that look at ports and checksums.
fn segment<'a>(
    options: &DecodeOptions,
    checksums: &mut checksum::Checksums,
    ts: Timestamp,
    vni: Option<Vni>,
    mirrored: (LinkType, &[u8]),
    packet: &ip::IpPacket<'a>,
    tcp: &tcp::Tcp<'a>,
) -> Result<Segment<'a>, PacketOutcome> {
    if !options.takes([tcp.src_port, tcp.dst_port]) {
        return Err(PacketOutcome::PortExcluded);
    }
    if let Some(is_right) = checksum::verdict(packet)
        && !checksums.admit(is_right, || path(vni, mirrored))
    {
        return Err(PacketOutcome::BadChecksum);
    }
    Ok(Segment {
        ts,
        vni,
        src: SocketAddr::new(packet.src, tcp.src_port),
        dst: SocketAddr::new(packet.dst, tcp.dst_port),
        seq: tcp.seq,
        ack: tcp.ack,
        flags: tcp.flags,
        urgent: tcp.urgent,
        payload: tcp.payload,
        cut: packet.missing,
    })
}

/// What names the interface and the direction of a mirrored frame.
fn path(vni: Option<Vni>, (link, data): (LinkType, &[u8])) -> checksum::Path {
    checksum::Path {
        vni,
        ends: link::ends(link, data),
    }
}

/// The first `N` bytes and what follows them.
fn split<const N: usize>(data: &[u8]) -> Option<(&[u8; N], &[u8])> {
    data.split_first_chunk::<N>()
}

#[cfg(test)]
mod tests;
