//! A frame becomes a TCP segment of the mirrored (inner) connection, or ends here in a named outcome.

use std::net::SocketAddr;

use crate::time::Timestamp;

/// A VXLAN network identifier, 24 bits (RFC 7348 §5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(pub u32);

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
    /// The captured payload; Ethernet padding is cut off by the IP length.
    pub payload: &'a [u8],
    /// Payload bytes that the IP length promises behind `payload` and the capture does not hold: the frame was
    /// cut by the mirror. A hole of known length.
    pub cut: u32,
}
