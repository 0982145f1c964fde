//! Whether what an analyser received is what clients sent, given what became of the copies on the way.
//!
//! The clients know what they sent ([`Sent`]), the relay knows which bytes got through ([`Ledger`]), the analyser kept
//! what it got ([`Taken`]). From the first two follows what the third must be. For each connection the judge follows
//! its requests and knows whether a reader who sees the same bytes knows where a request begins:
//!
//! | before the request | its bytes | what must have arrived |
//! |---|---|---|
//! | framing known | all captured | it, exactly, without a flag that speaks of damage |
//! | framing known | head whole, body not | its head and the body up to the first missing byte, `truncated` |
//! | framing known | head not whole | nothing; **the framing is lost** |
//! | framing lost | all captured | it, exactly, `resynced` (`midstream` before the first); or nothing, unless it begins a segment and nothing before it could be taken for a request |
//! | framing lost | head whole, body not | it, cut as above and flagged the same; or nothing |
//! | framing lost | head not whole | nothing |
//!
//! The framing is lost from the beginning where no copy of the SYN got through: what came before is not known then, and
//! every request of that connection is `midstream`. A hole in a body of known length loses nothing, since the next
//! request begins where the length says. One in a chunked body loses the framing unless it lies within one chunk's
//! data, which only a reader of the chunks knows: behind it both is allowed. While the framing is lost a line in a body
//! that looks like a request line may be taken for one (DESIGN §2, rule 3); it must be `resynced` or `midstream`, begin
//! a captured segment, and is counted apart ([`Verdict::in_bodies`]).
//!
//! Everything that was received must be one of these, with every byte captured: nothing is doubled, nothing invented.

mod arrival;

use std::collections::HashMap;
use std::net::SocketAddr;

use crate::perturb::{Flow, Ledger};
use crate::verbatim::Taken;
use arrival::Arrival;

/// The path of the request lines that bodies carry: `/smuggled/ID/OFFSET`, with the id of the request in whose body the
/// line stands and its offset there. No client sends such a request.
pub const BAIT: &str = "/smuggled/";

/// Faults that are told in full; the rest is only counted.
const TOLD: usize = 20;

/// A connection, as its client wrote it.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The client.
    pub from: SocketAddr,
    /// The server.
    pub to: SocketAddr,
    /// In the order in which they were written, nothing between them.
    pub requests: Vec<Request>,
    /// Bytes that may follow: a request whose answer the client did not wait for.
    pub more: u64,
}

/// A request, as its client wrote it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Unique among all; what follows [`BAIT`] in its body.
    pub id: u64,
    /// All of it. Its target is unique among all.
    pub bytes: Vec<u8>,
    /// Where its body begins.
    pub head: usize,
    /// Its body is chunked.
    pub chunked: bool,
    /// Where in `bytes` the lines begin that look like requests and stand in its body.
    pub baits: Vec<u64>,
}

impl Request {
    /// Its method and target.
    #[must_use]
    pub fn line(&self) -> (&[u8], &[u8]) {
        arrival::line(&self.bytes)
    }
}

/// What was found. `requests = untouched + touched`, and of each kind every one is in exactly one of the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Sent.
    pub requests: u64,
    /// Of which every byte was captured.
    pub untouched: u64,
    /// Untouched, arrived exactly.
    pub exact: u64,
    /// Of these: after a lost framing, flagged `resynced`.
    pub resynced: u64,
    /// Of these: on a connection whose SYN was lost, flagged `midstream`.
    pub midstream: u64,
    /// Untouched, not found again after a lost framing.
    pub passed_over: u64,
    /// Of these: that begin a segment, but something before them could be taken for a request.
    pub passed_over_in_doubt: u64,
    /// Of which a byte was not captured.
    pub touched: u64,
    /// Touched, arrived as far as captured, flagged `truncated`.
    pub truncated: u64,
    /// Touched, not arrived.
    pub lost: u64,
    /// Lines in bodies that were taken for requests while the framing was lost, flagged so.
    pub in_bodies: u64,
    /// Bytes of the streams of which no copy got through.
    pub missing_bytes: u64,
    /// Captured bytes that stand in no request that arrived: heads with a hole, what was passed over, what lies behind
    /// the first hole of a body. A rebuilder counts them (`rebuilder_skipped_bytes_total`).
    pub skipped_bytes: u64,
    /// What must not be, the first twenty in words.
    pub faults: Vec<String>,
    /// How many there are.
    pub fault_count: u64,
}

impl Verdict {
    fn fault(&mut self, text: impl FnOnce() -> String) {
        self.fault_count += 1;
        if self.faults.len() < TOLD {
            self.faults.push(text());
        }
    }
}

/// Compares.
#[must_use]
pub fn judge(sent: &[Sent], ledger: &Ledger, taken: &[Taken]) -> Verdict {
    let mut verdict = Verdict::default();
    let (mut by_target, mut by_id) = (HashMap::new(), HashMap::new());
    for (connection, its) in sent.iter().enumerate() {
        let mut begin = 0;
        for (index, request) in its.requests.iter().enumerate() {
            let place = Place {
                connection,
                index,
                begin,
            };
            begin += request.bytes.len() as u64;
            by_id.insert(request.id, place);
            if by_target.insert(request.line().1, place).is_some() {
                verdict.fault(|| format!("void: two requests with the target of {request:?}"));
            }
        }
    }
    let mut arrived: HashMap<(usize, usize), Arrival> = HashMap::new();
    let mut in_bodies: HashMap<usize, Vec<(u64, Arrival)>> = HashMap::new();
    for it in taken {
        let target = arrival::line(&it.head).1;
        let of_body = bait(target).and_then(|(id, offset)| Some((*by_id.get(&id)?, offset)));
        let place = by_target.get(target).copied();
        let Some(place) = place.or(of_body.map(|(place, _)| place)) else {
            verdict.fault(|| format!("invented: {}", arrival::shown(&it.head)));
            continue;
        };
        let Some(its) = sent.get(place.connection) else {
            continue;
        };
        let arrival = match Arrival::of(it, its.from, its.to) {
            Ok(arrival) => arrival,
            Err(why) => {
                verdict.fault(|| format!("{why}: {}", arrival::shown(&it.head)));
                continue;
            }
        };
        if let Some((place, offset)) = of_body {
            let head = its
                .requests
                .get(place.index)
                .map_or(0, |request| request.head);
            let at = place.begin + head as u64 + offset;
            in_bodies
                .entry(place.connection)
                .or_default()
                .push((at, arrival));
        } else if arrived
            .insert((place.connection, place.index), arrival)
            .is_some()
        {
            verdict.fault(|| format!("doubled: {}", arrival::shown(&it.head)));
        }
    }
    for (index, its) in sent.iter().enumerate() {
        let Some(flow) = ledger.flow(its.from, its.to) else {
            verdict.fault(|| format!("void: the relay has not seen {} to {}", its.from, its.to));
            continue;
        };
        let found = |request: usize| arrived.get(&(index, request));
        follow(its, flow, found, &mut verdict);
        for (at, arrival) in in_bodies.remove(&index).unwrap_or_default() {
            body_line(its, flow, at, &arrival, &mut verdict);
        }
    }
    verdict
}

#[derive(Clone, Copy, Debug)]
struct Place {
    connection: usize,
    index: usize,
    begin: u64,
}

/// The request id and the offset in its body that a bait's target names.
fn bait(target: &[u8]) -> Option<(u64, u64)> {
    let text = std::str::from_utf8(target).ok()?.strip_prefix(BAIT)?;
    let (id, offset) = text.split_once('/')?;
    Some((id.parse().ok()?, offset.parse().ok()?))
}

/// What a reader of the captured bytes knows before a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Known,
    /// There was a hole in a chunked body: who follows the chunks may know.
    Perhaps,
    Lost,
}

fn follow<'a>(
    its: &Sent,
    flow: &Flow,
    found: impl Fn(usize) -> Option<&'a Arrival>,
    verdict: &mut Verdict,
) {
    let name = format!("{} to {}", its.from, its.to);
    let length: u64 = its.requests.iter().map(|it| it.bytes.len() as u64).sum();
    let all = length + its.more;
    if !flow.sent.holds(0, length) || flow.sent.len() > all {
        verdict.fault(|| {
            format!(
                "void: {name}: {} bytes on the wire, {length} to {all} written",
                flow.sent.len()
            )
        });
        return;
    }
    verdict.missing_bytes += flow.sent.len() - flow.captured.len();
    let mut framing = if flow.syn_captured {
        Framing::Known
    } else {
        Framing::Lost
    };
    // Something before could have been taken for a request, or was framed in another way.
    let mut doubt = false;
    let mut begin = 0;
    for (index, request) in its.requests.iter().enumerate() {
        let (head_end, end) = (
            begin + request.head as u64,
            begin + request.bytes.len() as u64,
        );
        let head_whole = flow.captured.holds(begin, head_end);
        let whole = flow.captured.holds(begin, end);
        verdict.requests += 1;
        let what = || {
            format!(
                "{name}: request {index}, {}",
                arrival::shown(&request.bytes)
            )
        };
        let arrival = found(index);
        if let Some(arrival) = arrival {
            let mut wrong =
                arrival.flags_wrong(flow.syn_captured, framing != Framing::Known, doubt);
            if arrival.flags.contains("resynced") != (framing == Framing::Lost)
                && framing != Framing::Perhaps
                && flow.syn_captured
            {
                wrong = Some("resynced or not".to_owned());
            }
            if let Some(wrong) = wrong {
                verdict.fault(|| format!("flags {:?}, {wrong}: {}", arrival.flags, what()));
            }
        }
        if whole {
            verdict.untouched += 1;
        } else {
            verdict.touched += 1;
        }
        match arrival {
            Some(arrival) if whole => {
                if let Err(why) = arrival.is_exactly(request) {
                    verdict.fault(|| format!("{why}: {}", what()));
                }
                verdict.exact += 1;
                verdict.resynced += u64::from(arrival.flags.contains("resynced"));
                verdict.midstream += u64::from(!flow.syn_captured);
                framing = Framing::Known;
            }
            Some(arrival) if head_whole => {
                let captured = flow.captured.end_of(head_end) - head_end;
                if let Err(why) = arrival.is_the_beginning_of(request, captured) {
                    verdict.fault(|| format!("{why}, {captured} captured: {}", what()));
                }
                verdict.truncated += 1;
                verdict.skipped_bytes += flow.captured.within(head_end + captured, end);
                framing = if request.chunked {
                    Framing::Perhaps
                } else {
                    Framing::Known
                };
            }
            Some(arrival) => {
                verdict.lost += 1;
                verdict.fault(|| {
                    format!(
                        "invented, bytes {begin} to {head_end} are not all in {:?}, but {:?} {} arrived: {}",
                        flow.captured,
                        arrival.flags,
                        arrival::shown(&arrival.head),
                        what()
                    )
                });
            }
            None => {
                let expected = match framing {
                    Framing::Known => head_whole,
                    Framing::Perhaps => false,
                    Framing::Lost => whole && !doubt && flow.begins_segment(begin),
                };
                if expected {
                    verdict.fault(|| format!("missing: {}", what()));
                }
                if whole {
                    verdict.passed_over += 1;
                    let begins = flow.begins_segment(begin);
                    verdict.passed_over_in_doubt += u64::from(begins);
                } else {
                    verdict.lost += 1;
                }
                verdict.skipped_bytes += flow.captured.within(begin, end);
                framing = Framing::Lost;
            }
        }
        doubt |= framing != Framing::Known && (!request.baits.is_empty() || request.chunked);
        begin = end;
    }
}

/// A line in a body that was taken for a request.
fn body_line(its: &Sent, flow: &Flow, at: u64, arrival: &Arrival, verdict: &mut Verdict) {
    verdict.in_bodies += 1;
    verdict.skipped_bytes = verdict
        .skipped_bytes
        .saturating_sub(arrival.head.len() as u64);
    let name = || {
        format!(
            "{} to {}, offset {at}: {}",
            its.from,
            its.to,
            arrival::shown(&arrival.head)
        )
    };
    let end = at + arrival.head.len() as u64;
    if its.at(at, end).as_deref() != Some(&arrival.head) || !flow.captured.holds(at, end) {
        verdict.fault(|| format!("invented: {}", name()));
    }
    let said = arrival.flags.contains("resynced")
        || (!flow.syn_captured && arrival.flags.contains("midstream"));
    if !said || !flow.begins_segment(at) || (flow.syn_captured && flow.captured.holds(0, at)) {
        verdict.fault(|| format!("a body's line became a request: {}", name()));
    }
}

impl Sent {
    /// Bytes of the stream.
    fn at(&self, from: u64, to: u64) -> Option<Vec<u8>> {
        let mut begin = 0;
        for request in &self.requests {
            let end = begin + request.bytes.len() as u64;
            if begin <= from && to <= end {
                let range =
                    usize::try_from(from - begin).ok()?..usize::try_from(to - begin).ok()?;
                return request.bytes.get(range).map(<[u8]>::to_vec);
            }
            begin = end;
        }
        None
    }
}

#[cfg(test)]
mod tests;
