//! A captured request becomes the bytes to send.
//!
//! The analyser gets what the server got. The bytes added or changed are these and no others:
//!
//! - `X-Forwarded-For: <client>`, a line of its own or appended to the last captured one; `X-Real-IP: <client>`;
//!   `X-Server-Addr` and `X-Server-Port`: the original destination; `X-Mirror-Flags` where a flag is set. Our lines
//!   stand after the captured ones. They always end in CRLF: whoever takes a bare LF takes a CRLF too, not the other
//!   way round.
//! - A captured field that would pass for one of ours has its first byte overwritten with `Z`, flagged `spoofed`; see
//!   [`spoof`].
//! - Under `--hop-by-hop persist` a captured `Connection: close` reads `keep-alive`, and HTTP/1.0 gets
//!   `Connection: keep-alive`, flagged `hop`: the connection to the analyser is ours, not the client's. One of our names
//!   in it, which would have a proxy on the way take our field away, loses its first byte to a `Z` too, flagged
//!   `spoofed`.
//! - A body that was not captured whole: `Content-Length` is rewritten in place to what there is; a chunked body ends
//!   after its last whole chunk with the zero chunk.
//! - Empty lines before the request line are not sent. They are no part of the request (RFC 9112 §2.2 has the server
//!   ignore them), and nothing a rule could look at.
//!
//! Pure. Nothing that was captured decides a byte of what is added: addresses, ports and flag names are formatted
//! from their types, so no header can be injected through them. A request whose ranges do not fit its bytes (which
//! the HTTP stage never gives) is sent without the change that its range asked for; nothing panics.

use std::borrow::Cow;
use std::io::Write as _;
use std::net::IpAddr;
use std::ops::Range;

use super::answer::AnswerTo;
use super::sharing::{self, Sharing};
use super::spoof;
use crate::http::{Flags, Framing, OriginSource, Request};

/// Where the client's address goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum XffStyle {
    /// A line of its own after the captured headers (default).
    #[default]
    Line,
    /// Appended to the last captured `X-Forwarded-For`; a line of its own where there is none.
    Append,
}

/// What happens to the captured `Connection` header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HopByHop {
    /// `close` is overwritten with `keep-alive`, and HTTP/1.0 gets `Connection: keep-alive` (default).
    #[default]
    Persist,
    /// As captured, at the price of a connection for each such request.
    Keep,
}

/// The choices an operator has about the bytes that are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// `--xff line|append`.
    pub xff: XffStyle,
    /// `--hop-by-hop persist|keep`.
    pub hop_by_hop: HopByHop,
}

/// What is sent for one request.
#[derive(Debug)]
pub struct Outgoing {
    /// All of it: head, added lines, body.
    pub bytes: Vec<u8>,
    /// What may stand behind it on its connection.
    pub sharing: Sharing,
    /// What its answer's framing depends on.
    pub answer: AnswerTo,
    /// The captured flags, with `spoofed` and `hop` as the bytes have it.
    pub flags: Flags,
}

/// Which captured field a header is, as far as anything here depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Field {
    ForwardedFor,
    Connection,
    ContentLength,
    TransferEncoding,
    Host,
    Upgrade,
    /// Reads as one of those before to whoever takes `_` for `-`.
    Lookalike,
    Other,
}

impl Field {
    /// By the name's bytes; white space around it is tolerated as the HTTP stage and lenient servers tolerate it.
    #[inline]
    pub(super) fn of(name: &[u8]) -> Self {
        match name {
            // Nearly every name has nothing around it.
            [first, .., last] if first.is_ascii_alphabetic() && last.is_ascii_alphabetic() => {
                Self::of_trimmed(name)
            }
            _ => Self::of_trimmed(name.trim_ascii()),
        }
    }

    #[inline]
    fn of_trimmed(name: &[u8]) -> Self {
        // No two have the same length, and few others that are as long begin with the same letter.
        let begins = |with: u8| name.first().is_some_and(|first| first | 0x20 == with);
        match name.len() {
            4 if begins(b'h') => Self::where_it_reads(name, b"Host", Self::Host),
            7 if begins(b'u') => Self::where_it_reads(name, b"Upgrade", Self::Upgrade),
            10 if begins(b'c') => Self::where_it_reads(name, b"Connection", Self::Connection),
            14 if begins(b'c') => {
                Self::where_it_reads(name, b"Content-Length", Self::ContentLength)
            }
            15 if begins(b'x') => {
                Self::where_it_reads(name, b"X-Forwarded-For", Self::ForwardedFor)
            }
            17 if begins(b't') => {
                Self::where_it_reads(name, b"Transfer-Encoding", Self::TransferEncoding)
            }
            _ => Self::Other,
        }
    }

    /// `kind`, where the name is that of this field.
    #[inline]
    fn where_it_reads<const N: usize>(name: &[u8], field: &[u8; N], kind: Self) -> Self {
        if is_word(name, field) {
            kind
        } else if kind != Self::ForwardedFor && spoof::reads_as(name, field) {
            Self::Lookalike
        } else {
            Self::Other
        }
    }
}

/// Which fields the headers of a request are: asked of each once, for whoever looks at them.
#[derive(Debug)]
pub(super) struct Fields {
    /// Of the first ones; nearly no request has more.
    known: [Field; 32],
}

impl Fields {
    fn of_all(request: &Request) -> Self {
        let mut known = [Field::Other; _];
        for (field, header) in known.iter_mut().zip(&request.headers) {
            *field = Field::of(request.bytes(&header.name));
        }
        Self { known }
    }

    /// Of the header at this place, which has this name.
    #[inline]
    pub(super) fn of(&self, place: usize, name: &[u8]) -> Field {
        match self.known.get(place) {
            Some(field) => *field,
            None => Field::of(name),
        }
    }
}

/// Whether these are the bytes of a word in any case; told at once where they are as it is usually written.
#[inline]
pub(super) fn is_word<const N: usize>(bytes: &[u8], word: &[u8; N]) -> bool {
    bytes == word || (bytes.len() == N && bytes.eq_ignore_ascii_case(word))
}

/// Room for the added lines: two IPv6 addresses, the flags, the names.
const ADDED_BYTES: usize = 320;

/// The bytes to send for `request`.
#[must_use]
pub fn outgoing(request: &Request, rewrite: Rewrite) -> Outgoing {
    let mut out = Writer::new(request);
    let body = Body::of(request);
    let fields = Fields::of_all(request);
    let head = Head::of(request, &fields, rewrite, body);
    let framed = match body {
        Body::Whole { strict, .. } | Body::CutChunks { strict, .. } => strict,
        Body::Short { .. } => head.length_rewritten,
    };
    let strict = sharing::strict(request, &fields, framed);
    let hidden = match (strict, body) {
        // Who frames it otherwise may find a head of its own anywhere in it.
        (None, _) => request.head_end..body.end(request),
        (_, Body::Whole { end, trailers, .. }) => trailers..end,
        _ => 0..0,
    };
    let hidden = spoof::names(&request.raw, hidden);
    let mut flags = head.flags;
    flags.set(
        Flags::SPOOFED,
        flags.contains(Flags::SPOOFED) || !hidden.is_empty(),
    );

    for edit in head.edits {
        out.replace(edit.at, edit.with.as_bytes());
    }
    out.copy_to(request.head_end - empty_line(request));
    let client = request.origin;
    if !head.appended {
        out.line(b"X-Forwarded-For: ", |out| write_address(out, client));
    }
    let server = request.endpoints.dst;
    out.line(b"X-Real-IP: ", |out| write_address(out, client));
    out.line(b"X-Server-Addr: ", |out| write_address(out, server.ip()));
    out.line(b"X-Server-Port: ", |out| write_number(out, server.port()));
    write_flags(&mut out.bytes, flags, request.origin_from);
    if head.add_keep_alive {
        out.bytes.extend_from_slice(b"Connection: keep-alive\r\n");
    }
    out.copy_to(request.head_end);
    let head_len = out.bytes.len();
    for at in hidden {
        out.replace(at..at + 1, b"Z");
    }
    out.copy_to(body.end(request));
    if matches!(body, Body::CutChunks { .. }) {
        out.bytes.extend_from_slice(b"0\r\n\r\n");
    }

    let sent = sharing::Sent {
        persist: rewrite.hop_by_hop == HopByHop::Persist,
        head_len,
        body_len: out.bytes.len() - head_len,
    };
    Outgoing {
        sharing: sharing::of(request, strict.as_ref(), &sent),
        bytes: out.bytes,
        answer: AnswerTo::method(request.raw.get(request.method.clone()).unwrap_or_default()),
        flags,
    }
}

/// What of the captured head is sent otherwise.
#[derive(Debug)]
struct Head {
    /// In order.
    edits: Vec<Edit>,
    flags: Flags,
    /// The client's address stands in a captured line.
    appended: bool,
    /// The length that framed the body was found and rewritten.
    length_rewritten: bool,
    /// `Connection: keep-alive` is added.
    add_keep_alive: bool,
}

/// Captured bytes that are sent otherwise.
#[derive(Debug)]
struct Edit {
    at: Range<usize>,
    with: Cow<'static, str>,
}

impl Edit {
    fn new(at: Range<usize>, with: impl Into<Cow<'static, str>>) -> Self {
        let with = with.into();
        Self { at, with }
    }
}

impl Head {
    fn of(request: &Request, fields: &Fields, rewrite: Rewrite, body: Body) -> Self {
        let captured = |range: &Range<usize>| request.bytes(range);
        let appended_to = match rewrite.xff {
            XffStyle::Line => None,
            XffStyle::Append => request.headers.iter().rposition(|h| {
                h.value.is_some() && Field::of(captured(&h.name)) == Field::ForwardedFor
            }),
        };
        let persist = rewrite.hop_by_hop == HopByHop::Persist;
        let mut keep_alive = request.version >= (1, 1);
        let mut head = Self {
            edits: Vec::new(),
            flags: request.flags - Flags::HOP,
            appended: appended_to.is_some(),
            length_rewritten: false,
            add_keep_alive: false,
        };
        let lines = request.line_start..request.head_end;
        let mut names = spoof::names(&request.raw, lines.clone());
        if !names.is_empty() {
            // Rarely, so that the first line's end is rarely looked for.
            let behind = behind_first_line(&request.raw, lines);
            names.retain(|&at| at >= behind);
        }
        for at in names {
            head.edits.push(Edit::new(at..at + 1, "Z"));
            head.flags |= Flags::SPOOFED;
        }
        for (i, header) in request.headers.iter().enumerate() {
            let Some(value) = &header.value else {
                continue;
            };
            match fields.of(i, captured(&header.name)) {
                // Nearly every one, and most of the others are one token too.
                Field::Connection if is_word(captured(value), b"keep-alive") => keep_alive = true,
                Field::Connection if persist => {
                    for token in list_items(captured(value), value.start) {
                        let bytes = captured(&token);
                        if is_word(bytes, b"close") {
                            head.edits.push(Edit::new(token, "keep-alive"));
                            keep_alive = true;
                            head.flags |= Flags::HOP;
                        } else if is_word(bytes, b"keep-alive") {
                            keep_alive = true;
                        } else if spoof::is_added(bytes) {
                            let first = token.start..token.start + 1;
                            head.edits.push(Edit::new(first, "Z"));
                            head.flags |= Flags::SPOOFED;
                        }
                    }
                }
                Field::ContentLength => {
                    let Body::Short {
                        promised,
                        captured: len,
                    } = body
                    else {
                        continue;
                    };
                    for member in list_items(captured(value), value.start) {
                        if parse_length(captured(&member)) == Some(promised) {
                            head.edits.push(Edit::new(member, len.to_string()));
                            head.length_rewritten = true;
                        }
                    }
                }
                Field::ForwardedFor if appended_to == Some(i) => {
                    let separator = if value.is_empty() { " " } else { ", " };
                    let text = format!("{separator}{}", request.origin);
                    head.edits.push(Edit::new(value.end..value.end, text));
                }
                _ => {}
            }
        }
        head.edits.sort_by_key(|edit| edit.at.start);
        if persist && !keep_alive {
            head.add_keep_alive = true;
            head.flags |= Flags::HOP;
        }
        head
    }
}

/// Where the lines of a head begin behind the first one, whatever ends that: a method is nobody's field.
fn behind_first_line(raw: &[u8], head: Range<usize>) -> usize {
    let text = raw.get(head.clone()).unwrap_or_default();
    let first = memchr::memchr2(b'\r', b'\n', text);
    head.start + first.unwrap_or(text.len())
}

/// The names of the flags that are set and where the client's address comes from, if there is anything to say.
fn write_flags(out: &mut Vec<u8>, flags: Flags, origin_from: OriginSource) {
    let origin = match origin_from {
        OriginSource::Peer if flags.is_empty() => return,
        OriginSource::Peer => None,
        OriginSource::Proxy => Some("client-proxy"),
        OriginSource::Xff => Some("client-xff"),
    };
    let mut separator = "X-Mirror-Flags: ";
    for name in flags.iter_names().map(|(name, _)| name).chain(origin) {
        out.extend_from_slice(separator.as_bytes());
        out.extend(name.bytes().map(|b| b.to_ascii_lowercase()));
        separator = ", ";
    }
    out.extend_from_slice(b"\r\n");
}

/// Writes an address as text. By hand where it is no IPv6 address: this is done three times a request, and formatting costs
/// as much as all else that is done with it. To where it is to stand: reading it somewhere else to copy it would have the
/// processor wait until the small writes are done.
fn write_address(out: &mut Vec<u8>, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            for octet in v4.octets() {
                // A row of the table for each of 256.
                let (with_dot, len) = OCTETS[usize::from(octet)];
                // All four bytes each time: a copy whose length is known is one instruction.
                let end = out.len() + len;
                out.extend_from_slice(&with_dot);
                out.truncate(end);
            }
            // The last one has none.
            out.pop();
        }
        IpAddr::V6(v6) => {
            // A vector takes everything.
            let _ = write!(out, "{v6}");
        }
    }
}

/// Writes a number in decimal.
fn write_number(out: &mut Vec<u8>, number: u16) {
    for power in [10_000, 1000, 100, 10, 1] {
        if number >= power || power == 1 {
            // A remainder of 10 fits.
            out.push(b'0' + u8::try_from(number / power % 10).unwrap_or(0));
        }
    }
}

/// Each number of an IPv4 address in decimal with a dot behind it, and how many bytes that is.
const OCTETS: [([u8; 4], usize); 256] = {
    let mut octets = [([0; 4], 0); 256];
    let mut octet = 0_u8;
    loop {
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let (text, len) = &mut octets[octet as usize];
        let mut at = match octet {
            0..10 => 2,
            10..100 => 1,
            100.. => 0,
        };
        while at < digits.len() {
            text[*len] = b'0' + digits[at];
            *len += 1;
            at += 1;
        }
        text[*len] = b'.';
        *len += 1;
        if octet == u8::MAX {
            break octets;
        }
        octet += 1;
    }
};

/// Copies the captured bytes in order, with changes in between.
struct Writer<'a> {
    raw: &'a [u8],
    at: usize,
    bytes: Vec<u8>,
}

impl<'a> Writer<'a> {
    fn new(request: &'a Request) -> Self {
        Self {
            raw: &request.raw,
            at: request.line_start.min(request.raw.len()),
            bytes: Vec::with_capacity(request.raw.len() + ADDED_BYTES),
        }
    }

    /// A line that is added: what stands before its value, and that.
    #[inline]
    fn line<const N: usize>(&mut self, name: &[u8; N], value: impl FnOnce(&mut Vec<u8>)) {
        self.bytes.extend_from_slice(name);
        value(&mut self.bytes);
        self.bytes.extend_from_slice(b"\r\n");
    }

    /// Copies up to `end`; nothing when that was copied already.
    fn copy_to(&mut self, end: usize) {
        if let Some(bytes) = self.raw.get(self.at..end) {
            self.bytes.extend_from_slice(bytes);
            self.at = end;
        }
    }

    /// Copies up to the range and writes `with` in its place.
    fn replace(&mut self, range: Range<usize>, with: &[u8]) {
        if range.start < self.at || range.start > range.end || range.end > self.raw.len() {
            return;
        }
        self.copy_to(range.start);
        self.bytes.extend_from_slice(with);
        self.at = range.end;
    }
}

/// What of the body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Body {
    /// As captured, up to `end`; `strict` when every reader agrees that it ends there. From `trailers` on it may hold
    /// fields: of a chunked one the zero chunk and the trailers, of any other nothing.
    Whole {
        end: usize,
        strict: bool,
        trailers: usize,
    },
    /// Fewer bytes than `Content-Length` promised.
    Short { promised: u64, captured: usize },
    /// Chunked and cut: up to `end`, then the zero chunk.
    CutChunks { end: usize, strict: bool },
}

impl Body {
    /// Where it ends in what was captured.
    fn end(self, request: &Request) -> usize {
        match self {
            Self::Whole { end, .. } | Self::CutChunks { end, .. } => end,
            Self::Short { .. } => request.raw.len(),
        }
    }

    fn of(request: &Request) -> Self {
        let start = request.head_end.min(request.raw.len());
        let body = request.raw.get(start..).unwrap_or_default();
        match request.framing {
            // Bytes behind the end that the framing gives are not of this request: never sent along with it.
            Framing::None => Self::Whole {
                end: start,
                strict: true,
                trailers: start,
            },
            Framing::Length(promised) => match usize::try_from(promised) {
                Ok(len) if len <= body.len() => Self::Whole {
                    end: start + len,
                    strict: true,
                    trailers: start + len,
                },
                _ => Self::Short {
                    promised,
                    captured: body.len(),
                },
            },
            Framing::Chunked => {
                let walk = sharing::walk_chunks(body);
                if let Some(end) = walk.end {
                    return Self::Whole {
                        end: start + end,
                        strict: end == body.len(),
                        trailers: start + walk.chunks_end,
                    };
                }
                let tolerant = request.last_whole_chunk_end.clamp(start, request.raw.len());
                if !request.flags.intersects(Flags::TRUNCATED | Flags::ABORTED) {
                    return Self::Whole {
                        end: request.raw.len(),
                        strict: false,
                        trailers: tolerant,
                    };
                }
                // Where our strict walk and the tolerant parser name the same last whole chunk, so does everybody.
                let strict = start + walk.chunks_end;
                if walk.trailers || strict == tolerant {
                    Self::CutChunks {
                        end: strict,
                        strict: true,
                    }
                } else {
                    Self::CutChunks {
                        end: tolerant,
                        strict: false,
                    }
                }
            }
        }
    }
}

/// Bytes of the empty line that ends the head: 2 for CRLF, 1 for a bare LF.
fn empty_line(request: &Request) -> usize {
    match request.raw.get(..request.head_end) {
        Some(head) if head.ends_with(b"\n\r\n") => 2,
        Some(head) if head.ends_with(b"\n") => 1,
        _ => 0,
    }
}

/// `1*DIGIT` that fits.
pub(super) fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// The members of a comma list that begins at `base`, without the white space around them.
fn list_items(list: &[u8], base: usize) -> impl Iterator<Item = Range<usize>> {
    let mut start = base;
    list.split(|&b| b == b',').map(move |part| {
        let lead = part.len() - part.trim_ascii_start().len();
        let item = start + lead..start + lead + part.trim_ascii().len();
        start += part.len() + 1;
        item
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{Ipv4Addr, Ipv6Addr};

    #[test]
    fn addresses_and_numbers_are_written_as_the_standard_library_writes_them() {
        let written = |write: &dyn Fn(&mut Vec<u8>)| {
            // Behind what stands there already.
            let mut out = b"> ".to_vec();
            write(&mut out);
            String::from_utf8(out).unwrap()
        };
        for number in 0..=u16::MAX {
            let text = written(&|out| write_number(out, number));
            assert_eq!(text, format!("> {number}"));
        }
        let v4 = (0..=255_u8).flat_map(|octet| {
            (0..4).map(move |at| {
                let mut octets = [10, 0, 255, 100];
                octets[at] = octet;
                IpAddr::from(octets)
            })
        });
        let others = [
            IpAddr::from([255; 4]),
            Ipv6Addr::UNSPECIFIED.into(),
            Ipv6Addr::from_bits(u128::MAX).into(),
            Ipv4Addr::new(255, 254, 253, 252).to_ipv6_mapped().into(),
        ];
        for address in v4.chain(others) {
            let text = written(&|out| write_address(out, address));
            assert_eq!(text, format!("> {address}"));
        }
    }
}
