//! The payload of a UDP datagram, as a UDP socket would give it.

/// Behind the outer headers of a packet that begins with its network header and has this EtherType: one VLAN tag more
/// where the kernel took only the first off, IPv4 with options, IPv6, UDP to `port`. No longer than the UDP length, so
/// without what fills up a short Ethernet frame; shorter where the packet was cut.
///
/// Empty where there is no such datagram; the kernel's filter lets none of those through.
pub(super) fn payload(ethertype: u16, port: u16, packet: &[u8]) -> &[u8] {
    // Of a packet with a second tag, Linux before 6.10 names the type of that tag, later ones what stands behind it
    // (`vlan_get_protocol_dgram`); the tag is there in both cases.
    behind_ip(ethertype, port, packet)
        .or_else(|| {
            let (tag, rest) = packet.split_first_chunk::<4>()?;
            behind_ip(u16::from_be_bytes([tag[2], tag[3]]), port, rest)
        })
        .unwrap_or_default()
}

fn behind_ip(ethertype: u16, port: u16, packet: &[u8]) -> Option<&[u8]> {
    let (version, header) = match ethertype {
        0x0800 => (4, usize::from(packet.first()? & 0x0f) * 4),
        0x86dd => (6, 40),
        _ => return None,
    };
    if packet.first()? >> 4 != version {
        return None;
    }
    let (udp, rest) = packet.get(header..)?.split_first_chunk::<8>()?;
    if u16::from_be_bytes([udp[2], udp[3]]) != port {
        return None;
    }
    let len = usize::from(u16::from_be_bytes([udp[4], udp[5]])).checked_sub(8)?;
    Some(rest.get(..len).unwrap_or(rest))
}

#[cfg(test)]
mod tests {
    use etherparse::{IpHeaders, IpNumber, Ipv4Header, PacketBuilder};

    use super::*;

    /// Made by somebody else, from its IP header.
    fn datagram(v6: bool, options: bool, payload: &[u8]) -> (u16, Vec<u8>) {
        let builder = PacketBuilder::ethernet2([2; 6], [4; 6]);
        let builder = if v6 {
            builder.ipv6([1; 16], [2; 16], 9)
        } else if options {
            let mut header =
                Ipv4Header::new(0, 9, IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
            header.options = [1; 12].into();
            builder.ip(IpHeaders::Ipv4(header, Default::default()))
        } else {
            builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 9)
        };
        let mut frame = Vec::new();
        builder
            .udp(40_000, 4789)
            .write(&mut frame, payload)
            .unwrap();
        (
            u16::from_be_bytes([frame[12], frame[13]]),
            frame.split_off(14),
        )
    }

    #[test]
    fn the_payload_is_found_behind_each_family_options_and_a_tag() {
        for (v6, options) in [(false, false), (false, true), (true, false)] {
            let (ethertype, mut packet) = datagram(v6, options, b"mirrored");
            assert_eq!(payload(ethertype, 4789, &packet), b"mirrored");
            // What fills up a short frame is no part of it.
            packet.extend([0; 9]);
            assert_eq!(payload(ethertype, 4789, &packet), b"mirrored");
            let [high, low] = ethertype.to_be_bytes();
            let tagged = [&[0, 7, high, low][..], &packet].concat();
            for kind in [0x8100, 0x88a8, ethertype] {
                assert_eq!(payload(kind, 4789, &tagged), b"mirrored");
            }
        }
    }

    #[test]
    fn a_cut_datagram_gives_what_is_there() {
        let (ethertype, packet) = datagram(false, false, b"mirrored");
        for kept in 0..packet.len() {
            let expected = b"mirrored".get(..kept.saturating_sub(28)).unwrap();
            assert_eq!(payload(ethertype, 4789, &packet[..kept]), expected);
        }
    }

    #[test]
    fn what_is_no_datagram_has_no_payload() {
        let (_, packet) = datagram(false, false, b"mirrored");
        assert_eq!(payload(0x0806, 4789, &packet), b"");
        assert_eq!(payload(0x0800, 4790, &packet), b"");
        // RFC 768: the length counts the header, so it is at least 8.
        let mut short = packet;
        short[24..26].copy_from_slice(&7_u16.to_be_bytes());
        assert_eq!(payload(0x0800, 4789, &short), b"");
    }
}
