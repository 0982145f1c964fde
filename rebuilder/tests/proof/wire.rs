//! Frames taken apart and put together, for tests: written from the RFCs, not from the decoder that it tests.

use rebuilder::receive::{Frame, LinkType};
use rebuilder::time::Timestamp;

pub(crate) const FIN: u8 = 0x01;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const RST: u8 = 0x04;
pub(crate) const PSH: u8 = 0x08;
pub(crate) const ACK: u8 = 0x10;
pub(crate) const URG: u8 = 0x20;

/// A frame that owns its bytes.
#[derive(Clone, Debug)]
pub(crate) struct Owned {
    pub(crate) ts: Timestamp,
    pub(crate) link: LinkType,
    pub(crate) data: Vec<u8>,
}

impl Owned {
    pub(crate) fn frame(&self) -> Frame<'_> {
        Frame {
            ts: self.ts,
            link: self.link,
            data: &self.data,
        }
    }

    pub(crate) fn with(&self, data: Vec<u8>) -> Self {
        Self { data, ..*self }
    }
}

/// Where the parts of a whole (unfragmented) TCP packet stand in its frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// The IP header.
    pub(crate) ip: usize,
    pub(crate) v6: bool,
    pub(crate) tcp: usize,
    pub(crate) payload: usize,
    /// The end of what was captured of the IP packet; behind it stands padding.
    pub(crate) end: usize,
    /// Bytes that the IP length promises behind `end`.
    pub(crate) cut: usize,
    /// The IP length is zero, as offloads leave it: the rest of the frame is the packet.
    pub(crate) no_length: bool,
}

fn u16_at(data: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*data.get(at)?, *data.get(at + 1)?]))
}

fn put_u16(data: &mut [u8], at: usize, value: usize) {
    data[at..at + 2].copy_from_slice(&u16::try_from(value).unwrap().to_be_bytes());
}

/// Where the IP header stands, and whether it is IPv6.
pub(crate) fn network(link: LinkType, data: &[u8]) -> Option<(usize, bool)> {
    let (mut ethertype_at, mut at) = match link {
        LinkType::Ethernet => (12, 14),
        LinkType::LinuxSll => (14, 16),
        LinkType::LinuxSll2 => (0, 20),
        LinkType::Null => return by_nibble(data, 4),
        LinkType::Raw | LinkType::Ipv4 | LinkType::Ipv6 => return by_nibble(data, 0),
        LinkType::Vxlan | LinkType::Geneve | LinkType::Other(_) => return None,
    };
    while matches!(u16_at(data, ethertype_at)?, 0x8100 | 0x88a8) {
        ethertype_at = at + 2;
        at += 4;
    }
    match u16_at(data, ethertype_at)? {
        0x0800 | 0x86dd => by_nibble(data, at),
        _ => None,
    }
}

fn by_nibble(data: &[u8], at: usize) -> Option<(usize, bool)> {
    match data.get(at)? >> 4 {
        4 => Some((at, false)),
        6 => Some((at, true)),
        _ => None,
    }
}

/// `None` for all that is not a whole TCP packet with sound headers.
pub(crate) fn layout(link: LinkType, data: &[u8]) -> Option<Layout> {
    let (ip, v6) = network(link, data)?;
    let (tcp, promised) = if v6 {
        if *data.get(ip + 6)? != 6 {
            return None;
        }
        let tcp = ip + 40;
        (tcp, usize::from(u16_at(data, ip + 4)?) + 40)
    } else {
        let fragment = u16_at(data, ip + 6)? & 0x3fff;
        let header = usize::from(data.get(ip)? & 0x0f) * 4;
        if fragment != 0 || header < 20 || *data.get(ip + 9)? != 6 {
            return None;
        }
        (ip + header, usize::from(u16_at(data, ip + 2)?))
    };
    let no_length = promised == if v6 { 40 } else { 0 };
    let (end, cut) = if no_length {
        (data.len(), 0)
    } else {
        let end = (ip + promised).min(data.len());
        (end, ip + promised - end)
    };
    let offset = usize::from(data.get(tcp + 12)? >> 4) * 4;
    let payload = tcp + offset;
    (offset >= 20 && payload <= end).then_some(Layout {
        ip,
        v6,
        tcp,
        payload,
        end,
        cut,
        no_length,
    })
}

/// The ones' complement sum of RFC 1071, not inverted. Sums of longer words fold to the same (§2.(C)), and are fast
/// without an optimiser.
pub(crate) fn sum16(data: &[u8], seed: u32) -> u16 {
    let (words, rest) = data.as_chunks::<4>();
    let mut sum = u64::from(seed);
    for word in words {
        sum += u64::from(u32::from_be_bytes(*word));
    }
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    sum += u64::from(u32::from_be_bytes(last));
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

/// The sum over TCP's pseudo header (RFC 9293 §3.1, RFC 8200 §8.1).
fn pseudo(data: &[u8], at: Layout) -> u16 {
    let addresses = if at.v6 {
        &data[at.ip + 8..at.ip + 40]
    } else {
        &data[at.ip + 12..at.ip + 20]
    };
    let length = u32::try_from(at.end - at.tcp).unwrap();
    sum16(addresses, 6 + length)
}

/// What stands in a TCP checksum field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Checksum {
    Good,
    /// The pseudo header alone: the card was to do the rest.
    Partial,
    Bad,
}

pub(crate) fn checksum(data: &[u8], at: Layout) -> Checksum {
    let pseudo = pseudo(data, at);
    if sum16(&data[at.tcp..at.end], u32::from(pseudo)) == 0xffff {
        Checksum::Good
    } else if u16_at(data, at.tcp + 16) == Some(pseudo) {
        Checksum::Partial
    } else {
        Checksum::Bad
    }
}

/// Writes lengths and checksums of a frame of which `at` was the layout before its payload or headers changed; the
/// packet now ends at the end of `data` and `cut` bytes more are promised.
fn finish(data: &mut [u8], mut at: Layout, cut: usize, kind: Checksum) {
    at.end = data.len();
    let promised = at.end - at.ip + cut;
    if promised > 0xffff {
        assert!(at.no_length);
    } else if at.v6 {
        put_u16(data, at.ip + 4, promised - 40);
    } else {
        put_u16(data, at.ip + 2, promised);
    }
    if !at.v6 {
        header_checksum(data, at.ip, at.tcp);
    }
    put_u16(data, at.tcp + 16, 0);
    let pseudo = pseudo(data, at);
    let good = !sum16(&data[at.tcp..at.end], u32::from(pseudo));
    let field = match kind {
        Checksum::Good => good,
        Checksum::Partial => pseudo,
        Checksum::Bad => good ^ 0x5a5a,
    };
    put_u16(data, at.tcp + 16, usize::from(field));
}

fn header_checksum(data: &mut [u8], ip: usize, end: usize) {
    put_u16(data, ip + 10, 0);
    let field = !sum16(&data[ip..end], 0);
    put_u16(data, ip + 10, usize::from(field));
}

/// The segment cut in several at these offsets into its payload (ascending, inside it). One whose bytes TCP treats in
/// a way of their own (SYN, RST, URG) stays as it is.
pub(crate) fn resegment(frame: &Owned, cuts: &[usize]) -> Vec<Owned> {
    let at = match layout(frame.link, &frame.data) {
        Some(at) if !cuts.is_empty() && frame.data[at.tcp + 13] & (SYN | RST | URG) == 0 => at,
        _ => return vec![frame.clone()],
    };
    let kind = checksum(&frame.data, at);
    let seq = u32::from_be_bytes(frame.data[at.tcp + 4..at.tcp + 8].try_into().unwrap());
    let len = at.end - at.payload;
    let starts = std::iter::once(0).chain(cuts.iter().copied());
    let ends = cuts.iter().copied().chain([len]);
    starts
        .zip(ends)
        .map(|(start, end)| {
            let mut data = frame.data[..at.payload].to_vec();
            let last = end == len;
            if !last {
                data[at.tcp + 13] &= !(FIN | PSH);
            }
            let here = seq.wrapping_add(u32::try_from(start).unwrap());
            data[at.tcp + 4..at.tcp + 8].copy_from_slice(&here.to_be_bytes());
            data.extend_from_slice(&frame.data[at.payload + start..at.payload + end]);
            finish(&mut data, at, if last { at.cut } else { 0 }, kind);
            frame.with(data)
        })
        .collect()
}

/// A segment of the same direction with other contents, whole: `seq_by` is added to the sequence number.
pub(crate) fn forged(frame: &Owned, seq_by: u32, flags: u8, payload: &[u8]) -> Option<Owned> {
    let at = layout(frame.link, &frame.data)?;
    let mut data = frame.data[..at.payload].to_vec();
    let seq = u32::from_be_bytes(data[at.tcp + 4..at.tcp + 8].try_into().unwrap());
    data[at.tcp + 4..at.tcp + 8].copy_from_slice(&seq.wrapping_add(seq_by).to_be_bytes());
    data[at.tcp + 13] = flags;
    data.extend_from_slice(payload);
    finish(&mut data, at, 0, Checksum::Good);
    Some(frame.with(data))
}

/// The payload of a whole TCP packet, and its flags.
pub(crate) fn contents(frame: &Owned) -> Option<(&[u8], u8)> {
    let at = layout(frame.link, &frame.data)?;
    Some((&frame.data[at.payload..at.end], frame.data[at.tcp + 13]))
}

/// Four bytes of options (no operation, end of the list) in the IPv4 header of a TCP packet, where there is room.
pub(crate) fn with_ipv4_options(frame: &Owned) -> Owned {
    let at = match layout(frame.link, &frame.data) {
        Some(at)
            if !at.v6
                && at.tcp - at.ip <= 56
                && (at.no_length || at.end - at.ip + at.cut <= 0xffff - 4) =>
        {
            at
        }
        _ => return frame.clone(),
    };
    let mut data = frame.data.clone();
    data[at.ip] += 1;
    if !at.no_length {
        put_u16(&mut data, at.ip + 2, at.end - at.ip + at.cut + 4);
    }
    data.splice(at.tcp..at.tcp, [1, 1, 1, 0]);
    header_checksum(&mut data, at.ip, at.tcp + 4);
    frame.with(data)
}

/// An empty destination options header in an IPv6 TCP packet.
pub(crate) fn with_ipv6_extension(frame: &Owned) -> Owned {
    let at = match layout(frame.link, &frame.data) {
        Some(at) if at.v6 && !at.no_length && at.end - at.ip + at.cut <= 0xffff => at,
        _ => return frame.clone(),
    };
    let mut data = frame.data.clone();
    data[at.ip + 6] = 60;
    put_u16(&mut data, at.ip + 4, at.end - at.tcp + at.cut + 8);
    // RFC 8200 §4.2: next header TCP, no further 8 bytes, PadN of 4.
    data.splice(at.tcp..at.tcp, [6, 0, 1, 4, 0, 0, 0, 0]);
    frame.with(data)
}

/// A time stamp (RFC 7323 §3.2) and a signature (RFC 2385 §3.0) in front of a TCP header's own options, where there is
/// room.
pub(crate) fn with_tcp_options(frame: &Owned) -> Owned {
    const OPTIONS: [u8; 32] = [
        1, 1, 8, 10, 0, 1, 2, 3, 0, 3, 2, 1, 19, 18, 0x47, 0x45, 0x54, 0x20, 0x2f, 0x20, 0x48,
        0x54, 0x54, 0x50, 0x2f, 0x31, 0x2e, 0x31, 13, 10, 1, 1,
    ];
    let at = match layout(frame.link, &frame.data) {
        Some(at) if at.payload - at.tcp <= 60 - 32 && !at.no_length => at,
        _ => return frame.clone(),
    };
    if at.end - at.ip + at.cut > 0xffff - 32 {
        return frame.clone();
    }
    let kind = checksum(&frame.data, at);
    let mut data = frame.data.clone();
    let padding = data.split_off(at.end);
    data[at.tcp + 12] += 0x80;
    data.splice(at.tcp + 20..at.tcp + 20, OPTIONS);
    finish(&mut data, at, at.cut, kind);
    data.extend(padding);
    frame.with(data)
}

/// Bytes behind the packet, as a card pads a short frame; here not zeros, which a reader might overlook.
pub(crate) fn padded(frame: &Owned) -> Owned {
    match layout(frame.link, &frame.data) {
        Some(at) if frame.link == LinkType::Ethernet && !at.no_length && at.cut == 0 => {
            let mut data = frame.data.clone();
            data.extend_from_slice(b"GET /padding HTTP/1.1\r\n\r\n");
            frame.with(data)
        }
        _ => frame.clone(),
    }
}

/// Tags in front of the EtherType of an Ethernet frame: each a tag's number and its control word.
pub(crate) fn tagged(frame: &Owned, tags: &[[u16; 2]]) -> Owned {
    if frame.link != LinkType::Ethernet || frame.data.len() < 14 {
        return frame.clone();
    }
    let words: Vec<u8> = tags
        .iter()
        .flatten()
        .flat_map(|word| word.to_be_bytes())
        .collect();
    let mut data = frame.data.clone();
    data.splice(12..12, words);
    frame.with(data)
}

/// A whole TCP packet in IP fragments of `size` payload bytes (a multiple of eight), named `id`.
pub(crate) fn fragments(frame: &Owned, size: usize, id: u16) -> Vec<Owned> {
    let at = match layout(frame.link, &frame.data) {
        Some(at)
            if !at.no_length && at.end - at.tcp > size && at.end - at.tcp + at.cut < 0xff00 =>
        {
            at
        }
        _ => return vec![frame.clone()],
    };
    let body = &frame.data[at.tcp..at.end];
    let mut out = Vec::new();
    for (n, piece) in body.chunks(size).enumerate() {
        let last = (n + 1) * size >= body.len();
        let cut = if last { at.cut } else { 0 };
        // A piece that is not the last one carries a multiple of eight (RFC 791 §3.2); `size` is one.
        let offset = u16::try_from(n * size).unwrap();
        let mut data = frame.data[..at.tcp].to_vec();
        if at.v6 {
            data[at.ip + 6] = 44;
            put_u16(&mut data, at.ip + 4, 8 + piece.len() + cut);
            let [hi, lo] = (offset | u16::from(!last)).to_be_bytes();
            let [i, j] = id.to_be_bytes();
            data.extend_from_slice(&[6, 0, hi, lo, 0, 0, i, j]);
        } else {
            put_u16(&mut data, at.ip + 2, at.tcp - at.ip + piece.len() + cut);
            put_u16(&mut data, at.ip + 4, usize::from(id));
            put_u16(
                &mut data,
                at.ip + 6,
                usize::from((offset / 8) | if last { 0 } else { 0x2000 }),
            );
            header_checksum(&mut data, at.ip, at.tcp);
        }
        data.extend_from_slice(piece);
        out.push(frame.with(data));
    }
    out
}

/// Any IPv4 packet of an Ethernet frame in fragments of `size` payload bytes (a multiple of eight), named `id`: what a
/// path with a smaller MTU makes of mirrored packets.
pub(crate) fn outer_fragments(frame: &Owned, size: usize, id: u16) -> Vec<Owned> {
    let ip = 14;
    let header = usize::from(frame.data[ip] & 0x0f) * 4;
    let body = &frame.data[ip + header..];
    let piece = |(n, piece): (usize, &[u8])| {
        let last = (n + 1) * size >= body.len();
        let mut data = frame.data[..ip + header].to_vec();
        put_u16(&mut data, ip + 2, header + piece.len());
        put_u16(&mut data, ip + 4, usize::from(id));
        let more = if last { 0 } else { 0x2000 };
        put_u16(&mut data, ip + 6, (n * size / 8) | more);
        header_checksum(&mut data, ip, ip + header);
        data.extend_from_slice(piece);
        frame.with(data)
    };
    body.chunks(size).enumerate().map(piece).collect()
}

/// The datagram that mirrors a frame: a VXLAN header (RFC 7348 §5) and an Ethernet frame.
pub(crate) fn vxlan(frame: &Owned, vni: u32) -> Option<Vec<u8>> {
    let [_, a, b, c] = vni.to_be_bytes();
    let mut data = vec![8, 0, 0, 0, a, b, c, 0];
    if frame.link == LinkType::Ethernet {
        data.extend_from_slice(&frame.data);
    } else {
        let (ip, v6) = network(frame.link, &frame.data)?;
        data.extend_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
        data.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
        data.extend_from_slice(&frame.data[ip..]);
    }
    Some(data)
}

/// The same as a UDP socket gives it.
pub(crate) fn datagram(frame: &Owned, vni: u32) -> Option<Owned> {
    Some(Owned {
        ts: frame.ts,
        link: LinkType::Vxlan,
        data: vxlan(frame, vni)?,
    })
}

/// Without its link header.
pub(crate) fn unlinked(frame: &Owned) -> Owned {
    network(frame.link, &frame.data).map_or_else(
        || frame.clone(),
        |(ip, _)| Owned {
            ts: frame.ts,
            link: LinkType::Raw,
            data: frame.data[ip..].to_vec(),
        },
    )
}

/// With a header of Linux' cooked capture in the place of its own.
pub(crate) fn cooked(frame: &Owned) -> Owned {
    network(frame.link, &frame.data).map_or_else(
        || frame.clone(),
        |(ip, v6)| {
            let mut data = vec![0, 0, 0, 1, 0, 6, 2, 0, 0, 0, 0, 1, 0, 0];
            data.extend_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
            data.extend_from_slice(&frame.data[ip..]);
            Owned {
                ts: frame.ts,
                link: LinkType::LinuxSll,
                data,
            }
        },
    )
}

/// A TCP packet with its sequence and acknowledgement numbers moved.
pub(crate) fn renumbered(frame: &Owned, seq_by: u32, ack_by: u32) -> Owned {
    let Some(at) = layout(frame.link, &frame.data) else {
        return frame.clone();
    };
    let kind = checksum(&frame.data, at);
    let mut data = frame.data.clone();
    let mut shift = |place: usize, by: u32| {
        let field: &mut [u8; 4] = (&mut data[place..place + 4]).try_into().unwrap();
        *field = u32::from_be_bytes(*field).wrapping_add(by).to_be_bytes();
    };
    shift(at.tcp + 4, seq_by);
    if frame.data[at.tcp + 13] & ACK != 0 {
        shift(at.tcp + 8, ack_by);
    }
    let padding = data.split_off(at.end);
    finish(&mut data, at, at.cut, kind);
    data.extend(padding);
    frame.with(data)
}

/// The frame in a mirrored packet as it stands on the rebuilder's own interface: Ethernet, IPv4, UDP 4789, VXLAN.
/// `None` where no datagram holds it.
pub(crate) fn mirrored(frame: &Owned, vni: u32) -> Option<Owned> {
    let datagram = vxlan(frame, vni)?;
    if datagram.len() > 0xffff - 28 {
        return None;
    }
    let mut data = vec![2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 4, 8, 0];
    data.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    data.extend_from_slice(&[10, 250, 0, 1, 10, 250, 0, 2]);
    put_u16(&mut data, 16, 28 + datagram.len());
    header_checksum(&mut data, 14, 34);
    // AWS sends no outer UDP checksum.
    data.extend_from_slice(&[0xc0, 0, 0x12, 0xb5, 0, 0, 0, 0]);
    put_u16(&mut data, 38, 8 + datagram.len());
    data.extend_from_slice(&datagram);
    Some(Owned {
        ts: frame.ts,
        link: LinkType::Ethernet,
        data,
    })
}

/// The mirrored packet as a Gateway Load Balancer hands it on: GENEVE (RFC 8926 §3.4) with AWS' options around an IP
/// packet, in UDP 6081.
pub(crate) fn through_a_gateway(frame: &Owned, vni: u32) -> Option<Owned> {
    let inner = unlinked(&mirrored(frame, vni)?);
    // Two options of class 0x0108, 8 and 4 bytes long (the interface endpoint and the flow).
    let mut geneve = vec![5, 0, 8, 0, 0, 0, 0, 0];
    geneve.extend_from_slice(&[1, 8, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8, 1, 8, 3, 1, 9, 9, 9, 9]);
    geneve.extend_from_slice(&inner.data);
    if geneve.len() > 0xffff - 28 {
        return None;
    }
    let mut data = vec![2, 0, 0, 0, 0, 5, 2, 0, 0, 0, 0, 6, 8, 0];
    data.extend_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    data.extend_from_slice(&[10, 251, 0, 1, 10, 251, 0, 2]);
    put_u16(&mut data, 16, 28 + geneve.len());
    header_checksum(&mut data, 14, 34);
    data.extend_from_slice(&[0xc0, 1, 0x17, 0xc1, 0, 0, 0, 0]);
    put_u16(&mut data, 38, 8 + geneve.len());
    data.extend_from_slice(&geneve);
    Some(Owned {
        ts: frame.ts,
        link: LinkType::Ethernet,
        data,
    })
}
