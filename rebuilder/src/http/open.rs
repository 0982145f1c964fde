//! A request from its first byte on, until it is handed on.

use std::borrow::Cow;
use std::net::IpAddr;

use super::body::Rest;
use super::client::forwarded_for;
use super::context::Context;
use super::framing::Verdict;
use super::head::{Head, split};
use super::plain::plain;
use super::search::Origin;
use super::{Flags, OriginSource, Request};
use crate::time::Timestamp;

/// Bytes since the end of the previous message.
#[derive(Debug, Default)]
pub(super) struct Building {
    /// Of the first of them.
    pub(super) ts: Timestamp,
    pub(super) raw: Vec<u8>,
    pub(super) flags: Flags,
}

impl Building {
    /// Notes that bytes of a piece go in.
    pub(super) fn touch(&mut self, origin: Origin) {
        if self.raw.is_empty() {
            self.ts = origin.ts;
        }
        if origin.conflict {
            self.flags |= Flags::AMBIGUOUS;
        }
    }
}

/// A request whose head is known.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) building: Building,
    pub(super) line_start: usize,
    pub(super) head_end: usize,
    /// `None` while the body is awaited: the list of fields can be twenty times as large as the head, so it is made anew
    /// rather than held.
    pub(super) head: Option<Head>,
    pub(super) verdict: Verdict,
}

impl Open {
    /// The request, with the flags that its own bytes decide. `proxied`: whom the PROXY header named. `whole`: its bytes,
    /// where they came in one piece; else they were collected.
    pub(super) fn finish<'a>(
        self,
        cx: &Context<'_>,
        whole: Option<&'a [u8]>,
        rest: &Rest,
        proxied: Option<IpAddr>,
    ) -> Request<'a> {
        let Self {
            building,
            line_start,
            head_end,
            head,
            verdict,
        } = self;
        let Building { ts, mut raw, flags } = building;
        if raw.capacity() - raw.len() > raw.len() / 4 + 64 {
            raw.shrink_to_fit();
        }
        let raw = whole.map_or(Cow::Owned(raw), Cow::Borrowed);
        // It was split once, and its bytes are the same: the default is never taken.
        let again = || plain(&raw).map(|(head, _)| head);
        let head = head
            .or_else(again)
            .or_else(|| split(raw.get(..head_end)?, line_start))
            .unwrap_or_default();
        let (body_len, whole) = match rest {
            Rest::Length(_) => (raw.len().saturating_sub(head_end) as u64, 0),
            Rest::Chunked { coding, .. } => (coding.data(), coding.whole()),
        };
        let last_whole_chunk_end = head_end
            .saturating_add(usize::try_from(whole).unwrap_or(usize::MAX))
            .min(raw.len());
        let mut request = Request {
            ts,
            endpoints: *cx.ends,
            origin: cx.ends.src.ip(),
            origin_from: OriginSource::Peer,
            raw,
            line_start,
            head_end,
            method: head.method,
            target: head.target,
            version: head.version,
            long_version: head.long_version,
            headers: head.headers,
            framing: verdict.framing,
            body_len,
            last_whole_chunk_end,
            flags,
        };
        if let Some(source) = proxied {
            request.origin = source;
            request.origin_from = OriginSource::Proxy;
        } else if cx
            .options
            .trust
            .iter()
            .any(|net| net.contains(request.origin))
        {
            let named = forwarded_for(request.values("x-forwarded-for"), &cx.options.trust);
            if let Some(client) = named {
                request.origin = client;
                request.origin_from = OriginSource::Xff;
            }
        }
        request.flags.set(Flags::SPOOFED, verdict.spoofed);
        request
            .flags
            .set(Flags::HOP, cx.options.hop_persist && verdict.closes);
        request
    }
}
