//! Mirrored packets made by hand: for loads and byte sequences that no client on a real connection can send.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, UdpSocket};

use anyhow::Context;

use crate::network::{REBUILDER_UNDERLAY, Tunnel, Vpc};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const PUSH: u8 = 0x08;
const ACK: u8 = 0x10;

/// Payload bytes of a segment; with all headers it stays below an MTU of 1500.
const SEGMENT: usize = 1400;

/// Sends VXLAN packets to the rebuilder.
#[derive(Debug)]
pub struct Mirror {
    /// The way to the rebuilder; what is sent arrives on the link of mirrored packets, where it is counted.
    _tunnel: Tunnel,
    socket: UdpSocket,
    sent: u64,
}

impl Mirror {
    /// A sender that is mirrored from the interface with address `source`.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn new(vpc: &Vpc, source: &str) -> anyhow::Result<Self> {
        let to: SocketAddr = format!("{REBUILDER_UNDERLAY}:4789").parse()?;
        let tunnel = vpc.tunnel(&format!("hand{source}"), source, 1)?;
        let socket = tunnel
            .wire
            .run(|| -> io::Result<UdpSocket> {
                let socket = UdpSocket::bind("0.0.0.0:0")?;
                socket.connect(to)?;
                Ok(socket)
            })?
            .context("a socket for mirrored packets")?;
        Ok(Self {
            _tunnel: tunnel,
            socket,
            sent: 0,
        })
    }

    /// Packets sent so far.
    #[must_use]
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        self.socket.send(packet)?;
        self.sent += 1;
        Ok(())
    }
}

/// The client's side of a TCP connection, as mirrored: only what it sends is there.
#[derive(Debug)]
pub struct Flow {
    client: SocketAddrV4,
    server: SocketAddrV4,
    next: u32,
}

impl Flow {
    /// Sends the SYN.
    ///
    /// # Errors
    /// What the socket says.
    pub fn open(
        mirror: &mut Mirror,
        client: SocketAddrV4,
        server: SocketAddrV4,
    ) -> io::Result<Self> {
        let mut flow = Self {
            client,
            server,
            next: 0x1000,
        };
        mirror.send(&flow.packet(SYN, b""))?;
        flow.next += 1;
        Ok(flow)
    }

    /// Sends bytes, in order.
    ///
    /// # Errors
    /// What the socket says.
    pub fn send(&mut self, mirror: &mut Mirror, bytes: &[u8]) -> io::Result<()> {
        for piece in bytes.chunks(SEGMENT) {
            mirror.send(&self.packet(PUSH | ACK, piece))?;
            self.next = self
                .next
                .wrapping_add(u32::try_from(piece.len()).unwrap_or(0));
        }
        Ok(())
    }

    /// Sends the FIN.
    ///
    /// # Errors
    /// What the socket says.
    pub fn close(self, mirror: &mut Mirror) -> io::Result<()> {
        mirror.send(&self.packet(FIN | ACK, b""))
    }

    /// VXLAN (RFC 7348), Ethernet, IPv4, TCP; sums as they should be.
    fn packet(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let tcp_len = 20 + payload.len();
        let mut tcp = Vec::with_capacity(tcp_len);
        tcp.extend_from_slice(&self.client.port().to_be_bytes());
        tcp.extend_from_slice(&self.server.port().to_be_bytes());
        tcp.extend_from_slice(&self.next.to_be_bytes());
        tcp.extend_from_slice(&1_u32.to_be_bytes());
        tcp.extend_from_slice(&[0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend_from_slice(payload);
        let length = u16::try_from(tcp_len).unwrap_or(u16::MAX);
        let mut pseudo = Vec::with_capacity(12 + tcp_len);
        pseudo.extend_from_slice(&self.client.ip().octets());
        pseudo.extend_from_slice(&self.server.ip().octets());
        pseudo.extend_from_slice(&[0, 6]);
        pseudo.extend_from_slice(&length.to_be_bytes());
        pseudo.extend_from_slice(&tcp);
        let sum = checksum(&pseudo).to_be_bytes();
        if let Some(field) = tcp.get_mut(16..18) {
            field.copy_from_slice(&sum);
        }

        let mut ip = vec![0x45, 0];
        ip.extend_from_slice(&(20 + length).to_be_bytes());
        ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 6, 0, 0]);
        ip.extend_from_slice(&self.client.ip().octets());
        ip.extend_from_slice(&self.server.ip().octets());
        let sum = checksum(&ip).to_be_bytes();
        if let Some(field) = ip.get_mut(10..12) {
            field.copy_from_slice(&sum);
        }

        let mut packet = vec![0x08, 0, 0, 0, 0, 0, 1, 0];
        packet.extend_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0]);
        packet.extend_from_slice(&ip);
        packet.extend_from_slice(&tcp);
        packet
    }
}

/// The Internet checksum (RFC 1071).
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = bytes
        .chunks(2)
        .map(|pair| {
            let high = pair.first().copied().unwrap_or(0);
            let low = pair.get(1).copied().unwrap_or(0);
            u32::from(u16::from_be_bytes([high, low]))
        })
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_rfc_1071_s_example() {
        // RFC 1071 §3: the sum is ddf2, its complement 220d.
        assert_eq!(
            checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]),
            0x220d
        );
    }
}
