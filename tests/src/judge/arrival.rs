//! One request at the analyser, with what the rebuilder added taken off again (DESIGN §5, "Bytes added or changed").

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::Request;
use crate::verbatim::Taken;

/// Flags that say that something is missing or doubtful.
const DAMAGE: [&str; 4] = ["truncated", "aborted", "ambiguous", "spoofed"];

/// A request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrival {
    /// Without the lines that the rebuilder added.
    pub(super) head: Vec<u8>,
    /// `X-Mirror-Flags`.
    pub(super) flags: BTreeSet<String>,
    body: Vec<u8>,
}

impl Arrival {
    /// Takes off the added lines, which must be exactly those of a request from `from` to `to`.
    pub(super) fn of(taken: &Taken, from: SocketAddr, to: SocketAddr) -> Result<Self, String> {
        if taken.broken {
            return Err("it cannot be told where it ends".to_owned());
        }
        let added = format!(
            "X-Forwarded-For: {client}\r\nX-Real-IP: {client}\r\nX-Server-Addr: {}\r\nX-Server-Port: {}\r\n",
            to.ip(),
            to.port(),
            client = from.ip(),
        );
        let at = taken
            .head
            .windows(added.len())
            .rposition(|window| window == added.as_bytes())
            .ok_or_else(|| format!("it is not from {from} to {to}"))?;
        let (captured, behind) = taken.head.split_at(at);
        let behind = behind.get(added.len()..).unwrap_or_default();
        let mut behind = std::str::from_utf8(behind).map_err(|_| "bytes that are not ours")?;
        let mut flags = BTreeSet::new();
        if let Some(rest) = behind.strip_prefix("X-Mirror-Flags: ") {
            let (list, rest) = rest.split_once("\r\n").ok_or("an endless line")?;
            flags = list.split(", ").map(ToOwned::to_owned).collect();
            behind = rest;
        }
        if flags.contains("hop") {
            behind = behind
                .strip_prefix("Connection: keep-alive\r\n")
                .unwrap_or(behind);
        }
        if behind != "\r\n" {
            return Err(format!("{behind:?} behind the added lines"));
        }
        Ok(Self {
            head: [captured, b"\r\n"].concat(),
            flags,
            body: taken.body.clone(),
        })
    }

    /// What is wrong with its flags, apart from `truncated`, which depends on its bytes.
    pub(super) fn flags_wrong(&self, syn: bool, unframed: bool, doubt: bool) -> Option<String> {
        let has = |flag: &str| self.flags.contains(flag);
        if has("midstream") == syn {
            return Some(format!("SYN captured: {syn}"));
        }
        if has("resynced") && !unframed {
            return Some("its beginning was known".to_owned());
        }
        if has("disputed") && !doubt {
            return Some("nobody disputes it".to_owned());
        }
        let odd = DAMAGE
            .iter()
            .find(|&&flag| flag != "truncated" && has(flag));
        odd.map(|flag| format!("why {flag}"))
    }

    /// Whether it is that request, byte for byte.
    pub(super) fn is_exactly(&self, request: &Request) -> Result<(), String> {
        let (head, body) = request.bytes.split_at(request.head);
        if self.flags.contains("truncated") {
            return Err(format!(
                "truncated to {} bytes, though every byte was captured",
                self.body.len()
            ));
        }
        if self.head != self.as_sent_on(head) {
            return Err(format!("another head arrived, {}", shown(&self.head)));
        }
        if self.body != body {
            return Err(format!(
                "another body arrived, of {} bytes",
                self.body.len()
            ));
        }
        Ok(())
    }

    /// Whether it is what is left of that request when `captured` bytes of its body came before the first hole.
    pub(super) fn is_the_beginning_of(
        &self,
        request: &Request,
        captured: u64,
    ) -> Result<(), String> {
        let (head, body) = request.bytes.split_at(request.head);
        let captured = usize::try_from(captured)
            .unwrap_or(usize::MAX)
            .min(body.len());
        if !self.flags.contains("truncated") {
            return Err("not truncated, though bytes are missing".to_owned());
        }
        let (expected_head, expected_body) = if request.chunked {
            let whole = whole_chunks(body, captured);
            (
                head.to_vec(),
                [body.get(..whole).unwrap_or_default(), b"0\r\n\r\n"].concat(),
            )
        } else {
            let line = format!("Content-Length: {}\r\n", body.len());
            let rewritten = format!("Content-Length: {captured}\r\n");
            let at = head
                .windows(line.len())
                .position(|window| window == line.as_bytes());
            let at = at.ok_or("a body without Content-Length was sent")?;
            let behind = head.get(at + line.len()..).unwrap_or_default();
            let expected = [
                head.get(..at).unwrap_or_default(),
                rewritten.as_bytes(),
                behind,
            ]
            .concat();
            (expected, body.get(..captured).unwrap_or_default().to_vec())
        };
        if self.head != self.as_sent_on(&expected_head) {
            return Err(format!("another head arrived, {}", shown(&self.head)));
        }
        if self.body != expected_body {
            return Err(format!(
                "another body arrived, of {} bytes instead of {}",
                self.body.len(),
                expected_body.len()
            ));
        }
        Ok(())
    }

    /// `Connection: close` is sent as `keep-alive`, and `hop` says so.
    fn as_sent_on(&self, head: &[u8]) -> Vec<u8> {
        const CLOSE: &[u8] = b"Connection: close\r\n";
        let at = head.windows(CLOSE.len()).position(|window| window == CLOSE);
        match at.filter(|_| self.flags.contains("hop")) {
            Some(at) => {
                let (before, behind) = head.split_at(at);
                let behind = behind.get(CLOSE.len()..).unwrap_or_default();
                [before, b"Connection: keep-alive\r\n", behind].concat()
            }
            None => head.to_vec(),
        }
    }
}

/// How many of the first `captured` bytes of a chunked body are whole chunks; the zero chunk is none.
fn whole_chunks(body: &[u8], captured: usize) -> usize {
    let mut end = 0;
    loop {
        let rest = body.get(end..captured).unwrap_or_default();
        let Some(line) = rest.windows(2).position(|window| window == b"\r\n") else {
            return end;
        };
        let digits = rest.get(..line).unwrap_or_default();
        let digits = digits
            .split(|&byte| byte == b';')
            .next()
            .unwrap_or_default();
        let size = std::str::from_utf8(digits)
            .ok()
            .and_then(|digits| usize::from_str_radix(digits, 16).ok())
            .unwrap_or(0);
        let next = end + line + 2 + size + 2;
        if size == 0 || next > captured {
            return end;
        }
        end = next;
    }
}

/// Method and target of a request line.
pub(super) fn line(bytes: &[u8]) -> (&[u8], &[u8]) {
    let end = bytes
        .iter()
        .position(|&byte| byte == b'\r')
        .unwrap_or(bytes.len());
    let line = bytes.get(..end).unwrap_or_default();
    let first = line.iter().position(|&byte| byte == b' ').unwrap_or(0);
    let last = line.iter().rposition(|&byte| byte == b' ').unwrap_or(0);
    (
        line.get(..first).unwrap_or_default(),
        line.get(first + 1..last).unwrap_or_default(),
    )
}

/// The beginning of a head for a message.
pub(super) fn shown(bytes: &[u8]) -> String {
    let end = bytes.len().min(160);
    bytes
        .get(..end)
        .unwrap_or_default()
        .escape_ascii()
        .to_string()
}
