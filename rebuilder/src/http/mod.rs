//! The bytes of one direction become HTTP/1 requests.
//!
//! ```text
//! Chunk ─▶ extract (a Direction each) ─▶ proxy ─▶ plain | head ─▶ framing ─▶ length | chunked ─▶ Request ─▶ row
//!                                          └── search, where the framing is lost or was never known
//! ```
//!
//! Pure: no clock, no socket. No input panics, and what a strict server would refuse is not refused here: it is given as
//! captured, flagged [`Flags::DISPUTED`], because a lenient server behind the mirror may have taken it.

mod body;
mod chunked;
mod client;
mod context;
mod direction;
mod extract;
mod framing;
mod head;
mod health_check;
mod heavy;
mod methods;
mod open;
mod plain;
mod proxy;
mod row;
mod search;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::net::IpAddr;
use std::ops::Range;

use crate::stream::Endpoints;
use crate::time::Timestamp;

pub use client::{Cidr, CidrError};
pub use extract::{Extractor, HttpCounters, HttpOptions};
pub(crate) use head::is_token;
pub use health_check::is_health_check;
pub use row::write_json;

/// Bytes of the extractor's state for a direction, what it holds of requests aside.
#[cfg(test)]
pub(crate) const DIRECTION_STATE: usize = size_of::<direction::Direction>();

bitflags::bitflags! {
    /// What an analyst should know about a request; the closed list of `inspect --json` and `X-Mirror-Flags`.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Flags: u16 {
        /// The connection's SYN was not seen.
        const MIDSTREAM = 1;
        /// Bytes are missing from the capture.
        const TRUNCATED = 1 << 1;
        /// The client ended early (FIN, RST); nothing is missing from the capture.
        const ABORTED = 1 << 2;
        /// Framing was lost before it and found again at its request line.
        const RESYNCED = 1 << 3;
        /// Copies of its bytes disagreed.
        const AMBIGUOUS = 1 << 4;
        /// Two readers may frame it differently.
        const DISPUTED = 1 << 5;
        /// It carries a header that would pass for one of ours.
        const SPOOFED = 1 << 6;
        /// Its `Connection` header is not forwarded as captured.
        const HOP = 1 << 7;
    }
}

impl Flags {
    /// The names of the flags that are set, as they stand in `inspect --json` and `X-Mirror-Flags`.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        Self::NAMES
            .iter()
            .filter(move |(flag, _)| self.contains(*flag))
            .map(|&(_, name)| name)
    }

    /// In the order of the design's closed list.
    const NAMES: &'static [(Self, &'static str)] = &[
        (Self::MIDSTREAM, "midstream"),
        (Self::TRUNCATED, "truncated"),
        (Self::ABORTED, "aborted"),
        (Self::RESYNCED, "resynced"),
        (Self::AMBIGUOUS, "ambiguous"),
        (Self::DISPUTED, "disputed"),
        (Self::SPOOFED, "spoofed"),
        (Self::HOP, "hop"),
    ];
}

/// How the body of a request is framed; the table stands in the README under "How a disputed request is framed".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// No body.
    None,
    /// `Content-Length`: this many bytes were promised.
    Length(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
}

/// A header line, as offsets into [`Request::raw`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The bytes before the first colon; the whole line when it has none.
    pub name: Range<usize>,
    /// Without outer SP and HTAB, a fold kept with its line break; `None` for a line without colon.
    pub value: Option<Range<usize>>,
}

/// Who said who the client is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OriginSource {
    /// Nobody: it is the TCP peer.
    #[default]
    Peer,
    /// The PROXY protocol header of the connection (`client-proxy` in `X-Mirror-Flags`).
    Proxy,
    /// The captured `X-Forwarded-For` of a trusted peer (`client-xff` in `X-Mirror-Flags`).
    Xff,
}

/// One request, as captured. One that came whole in a segment lies where the segment lies: whoever keeps it makes a copy of
/// its own ([`Request::into_owned`]), or writes down what he needs of it.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Capture time of the first-seen copy of its first byte.
    pub ts: Timestamp,
    /// Inner source and destination; the source is the TCP peer.
    pub endpoints: Endpoints,
    /// Who the client is: the TCP peer unless a trusted party says otherwise.
    pub origin: IpAddr,
    /// Where `origin` comes from.
    pub origin_from: OriginSource,
    /// Everything from the end of the previous request to the end of this one, empty lines before the request line
    /// included (the last 4 KiB of them), a PROXY header excluded; of a truncated one the prefix up to the first missing byte (or the first byte
    /// beyond [`HttpOptions::max_request`]), of one whose chunked coding breaks all that is sound.
    pub raw: Cow<'a, [u8]>,
    /// Where the request line begins in `raw`.
    pub line_start: usize,
    /// Where the body begins in `raw`: just behind the empty line.
    pub head_end: usize,
    /// Bytes of the request line, as they stand.
    pub method: Range<usize>,
    /// Bytes between the first and the last space of the line.
    pub target: Range<usize>,
    /// Major and minor number; 255 where it is greater.
    pub version: (u8, u8),
    /// The version has more digits than `HTTP/`d`.`d, such as `HTTP/1.10`, which nginx takes for 1.1. By its contract `inspect`
    /// gives it no row; an analyser gets it, because the server did.
    pub long_version: bool,
    /// In order; trailers are not among them.
    pub headers: Vec<Header>,
    /// How the body is framed.
    pub framing: Framing,
    /// Body bytes in `raw` after removing chunk framing.
    pub body_len: u64,
    /// For a chunked body: where in `raw` the last whole chunk ends (`head_end` when there is none).
    pub last_whole_chunk_end: usize,
    /// See [`Flags`].
    pub flags: Flags,
}

impl Request<'_> {
    /// The same, with bytes of its own.
    #[must_use]
    pub fn into_owned(self) -> Request<'static> {
        Request {
            raw: Cow::Owned(self.raw.into_owned()),
            ..self
        }
    }

    /// Bytes of `raw`; empty when the range does not lie within.
    #[must_use]
    pub fn bytes(&self, range: &Range<usize>) -> &[u8] {
        self.raw.get(range.clone()).unwrap_or_default()
    }

    /// The values of all fields of this name, in order, as captured; any case, blanks around the name tolerated as a
    /// lenient server tolerates them.
    pub fn values<'b>(&'b self, name: &'b str) -> impl DoubleEndedIterator<Item = &'b [u8]> {
        self.headers
            .iter()
            .filter(|header| {
                framing::field_name(&self.raw, header).eq_ignore_ascii_case(name.as_bytes())
            })
            .filter_map(|header| header.value.as_ref().map(|range| self.bytes(range)))
    }

    /// Whether a comma-separated field holds this token, in any case.
    #[must_use]
    pub fn lists(&self, name: &str, token: &str) -> bool {
        self.values(name)
            .flat_map(framing::members)
            .any(|member| member.eq_ignore_ascii_case(token.as_bytes()))
    }
}

/// Whether a server that gets it as captured closes the connection behind it: `Connection: close`, or HTTP/1.0 without
/// keep-alive. Under `--hop-by-hop persist` the forward stage rewrites exactly these.
#[must_use]
pub fn wants_hop(request: &Request<'_>) -> bool {
    request.lists("connection", "close")
        || (request.version < (1, 1) && !request.lists("connection", "keep-alive"))
}
