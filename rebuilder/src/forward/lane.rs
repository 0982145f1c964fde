//! What happens on one connection: which requests were written to it, which are answered, who is to blame when it
//! ends. Pure: bytes and time in, deliveries out.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use super::answer::{AnswerError, AnswerReader, Head};
use super::queue::Item;
use super::sharing::Sharing;

/// A request on a connection.
#[derive(Debug)]
struct Entry {
    item: Item,
    progress: Progress,
}

/// How far the answer to a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    Waiting,
    /// The final head came: the request is delivered.
    Answered,
    /// The answer is whole, but its request is not written whole yet.
    Ended,
}

/// Why a connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum Broken {
    /// See [`AnswerError`].
    #[error(transparent)]
    Answer(#[from] AnswerError),
    /// Bytes came that answer no request.
    #[error("the analyser sent an answer that nobody asked for")]
    Unasked,
    /// 408 and a close on a connection that others use: some servers say so on one that was idle, and it may have crossed
    /// the request (RFC 9110 §15.5.9). Asked again alone, it is an answer.
    #[error("the analyser waited for a request too long (408)")]
    Idle,
}

/// What is left of a connection that ended.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// The oldest unanswered request, when any byte of it had been written: what the analyser may have closed on.
    pub(super) charged: Option<Item>,
    /// The others, oldest first, each with whether any byte of it had been written.
    pub(super) innocent: Vec<(Item, bool)>,
}

/// One connection's requests, oldest first.
///
/// A request is delivered when the final head of its answer is whole: who says a status has dealt with it, and what
/// becomes of the answer's body is nobody's concern. A request that is answered before it is written whole is still
/// written to its end, because an analyser may look at the body later.
///
/// Invariants, checked by [`Lane::check`]: entries before `writing` are written whole, `offset` bytes of the one at
/// `writing` are, nothing of those behind; only the front is not [`Progress::Waiting`], and only a front that is not
/// written whole is [`Progress::Ended`].
#[derive(Debug)]
pub(super) struct Lane {
    entries: VecDeque<Entry>,
    writing: usize,
    offset: usize,
    reader: AnswerReader,
    cost: usize,
    /// Nothing may be added: the last request or an answer said so.
    closing: bool,
    /// An answer said that no other will come: who is not answered yet is not to blame.
    over: bool,
    heads: u64,
    /// An answer has ended and left the connection open.
    proven: bool,
    /// It carries one request and no other.
    single: bool,
    /// When the oldest request became the oldest, was last written to, or its head came.
    waiting_since: Instant,
}

impl Lane {
    /// A lane without requests.
    #[must_use]
    pub(super) fn new(now: Instant) -> Self {
        Self {
            entries: VecDeque::new(),
            writing: 0,
            offset: 0,
            reader: AnswerReader::default(),
            cost: 0,
            closing: false,
            over: false,
            heads: 0,
            proven: false,
            single: false,
            waiting_since: now,
        }
    }

    /// A lane for this request and no other.
    #[must_use]
    pub(super) fn single(item: Item, now: Instant) -> Self {
        let mut lane = Self::new(now);
        lane.push(item, now);
        lane.close();
        lane.single = true;
        lane
    }

    /// The connection is established: waiting counts from now on.
    pub(super) const fn restart(&mut self, now: Instant) {
        self.waiting_since = now;
    }

    /// Adds a request behind the others.
    pub(super) fn push(&mut self, item: Item, now: Instant) {
        if self.entries.is_empty() {
            self.waiting_since = now;
        }
        self.cost += item.cost();
        self.closing |= item.sharing != Sharing::Followed;
        self.entries.push_back(Entry {
            item,
            progress: Progress::Waiting,
        });
    }

    /// Requests on it, an answered one whose answer has not ended included.
    #[must_use]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Requests on it that have no outcome yet.
    #[must_use]
    pub(super) fn unanswered(&self) -> usize {
        let waiting = |entry: &&Entry| entry.progress == Progress::Waiting;
        self.entries.iter().filter(waiting).count()
    }

    /// Whether a further request may be added.
    #[must_use]
    pub(super) const fn is_open(&self) -> bool {
        !self.closing
    }

    /// Nothing more may be added.
    pub(super) const fn close(&mut self) {
        self.closing = true;
    }

    /// Whether the connection has served its purpose: nothing is to be written or read on it any more.
    #[must_use]
    pub(super) fn is_done(&self) -> bool {
        self.closing
            && match self.entries.front() {
                None => true,
                // Who stands behind the last answer has to go elsewhere.
                Some(front) => self.over && front.progress == Progress::Waiting,
            }
    }

    /// What its requests cost.
    #[must_use]
    pub(super) const fn cost(&self) -> usize {
        self.cost
    }

    /// Final heads that came on it.
    #[must_use]
    pub(super) const fn heads(&self) -> u64 {
        self.heads
    }

    /// Whether it stayed open behind an answer.
    #[must_use]
    pub(super) const fn is_proven(&self) -> bool {
        self.proven
    }

    /// Whether every byte was written.
    #[must_use]
    pub(super) fn is_written(&self) -> bool {
        self.writing == self.entries.len()
    }

    /// Fills `slices` with what is to be written next; says how many it filled.
    pub(super) fn unwritten<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut offset = self.offset;
        let mut filled = 0;
        let waiting = self.entries.range(self.writing.min(self.entries.len())..);
        for (slice, entry) in slices.iter_mut().zip(waiting) {
            *slice = IoSlice::new(entry.item.bytes.get(offset..).unwrap_or_default());
            offset = 0;
            filled += 1;
        }
        filled
    }

    /// So many bytes of [`Lane::unwritten`] were written.
    pub(super) fn wrote(&mut self, mut n: usize, now: Instant) {
        if self.writing == 0 && n > 0 {
            self.waiting_since = now;
        }
        while let Some(entry) = self.entries.get(self.writing) {
            let left = entry.item.bytes.len().saturating_sub(self.offset);
            if n < left {
                self.offset += n;
                break;
            }
            n -= left;
            self.offset = 0;
            self.writing += 1;
        }
        self.retire(now);
    }

    /// Takes bytes of answers in; each final head is reported.
    ///
    /// # Errors
    /// [`Broken`]: the connection must be closed. What was reported before is delivered all the same.
    pub(super) fn received(
        &mut self,
        mut bytes: &[u8],
        now: Instant,
        mut delivered: impl FnMut(Head),
    ) -> Result<(), Broken> {
        while !bytes.is_empty() && !self.over {
            let begun = self.writing > 0 || self.offset > 0;
            let front = match self.entries.front_mut() {
                Some(front) if begun && front.progress != Progress::Ended => front,
                _ => return Err(Broken::Unasked),
            };
            let step = self.reader.read(bytes, front.item.answer)?;
            bytes = bytes.get(step.used..).unwrap_or_default();
            if let Some(head) = step.head {
                if head.status == 408 && head.last && !self.single {
                    return Err(Broken::Idle);
                }
                front.progress = Progress::Answered;
                self.heads += 1;
                self.waiting_since = now;
                self.closing |= head.last;
                delivered(head);
            }
            if let Some(reusable) = step.end {
                front.progress = Progress::Ended;
                if reusable {
                    self.proven = true;
                } else {
                    self.closing = true;
                    self.over = true;
                }
                self.retire(now);
            }
        }
        Ok(())
    }

    /// Lets go of the front when it is answered and written.
    fn retire(&mut self, now: Instant) {
        let ended = |entry: &Entry| entry.progress == Progress::Ended;
        if self.writing > 0
            && self.entries.front().is_some_and(ended)
            && let Some(entry) = self.entries.pop_front()
        {
            self.cost = self.cost.saturating_sub(entry.item.cost());
            self.writing -= 1;
            self.waiting_since = now;
        }
    }

    /// When the oldest request on it is no longer waited for; `None` while it has none.
    #[must_use]
    pub(super) fn deadline(&self, patience: Duration) -> Option<Instant> {
        (!self.entries.is_empty())
            .then(|| self.waiting_since.checked_add(patience))
            .flatten()
    }

    /// The connection has ended: whose fault that may be, and what is to be sent again.
    ///
    /// Nobody is charged when an answer had said that no other would come, or when the connection broke inside an
    /// answer: then the analyser had dealt with that request, and had not come to the next.
    #[must_use]
    pub(super) fn into_leftover(self) -> Leftover {
        let mut leftover = Leftover::default();
        let mut excused = self.over;
        for (i, entry) in self.entries.into_iter().enumerate() {
            if entry.progress != Progress::Waiting {
                excused = true;
                continue;
            }
            let begun = i < self.writing || (i == self.writing && self.offset > 0);
            if i == 0 && begun && !excused {
                leftover.charged = Some(entry.item);
            } else {
                leftover.innocent.push((entry.item, begun));
            }
        }
        leftover
    }

    /// Panics where an invariant does not hold.
    #[cfg(test)]
    pub(super) fn check(&self) {
        assert!(self.writing <= self.entries.len());
        match self.entries.get(self.writing) {
            Some(entry) => assert!(self.offset < entry.item.bytes.len().max(1)),
            None => assert_eq!(self.offset, 0),
        }
        let cost: usize = self.entries.iter().map(|e| e.item.cost()).sum();
        assert_eq!(self.cost, cost);
        for (i, entry) in self.entries.iter().enumerate() {
            match entry.progress {
                Progress::Waiting => {}
                Progress::Answered => assert_eq!(i, 0),
                Progress::Ended => assert!(i == 0 && self.writing == 0),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::answer::AnswerTo;
    use super::super::queue::Source;
    use super::*;
    use proptest::prelude::*;

    const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    const CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

    fn item(name: u8, len: usize) -> Item {
        Item {
            bytes: vec![name; len],
            sharing: Sharing::Followed,
            answer: AnswerTo::Other,
            source: Source::of([10, 0, 0, 1].into()),
            failures: 0,
            not_before: None,
            number: 0,
        }
    }

    fn lane(lens: &[usize], now: Instant) -> Lane {
        let mut lane = Lane::new(now);
        for (name, &len) in (b'a'..).zip(lens) {
            lane.push(item(name, len), now);
        }
        lane
    }

    fn names(leftover: &Leftover) -> (Option<u8>, Vec<(u8, bool)>) {
        (
            leftover.charged.as_ref().map(|i| i.bytes[0]),
            leftover
                .innocent
                .iter()
                .map(|(i, begun)| (i.bytes[0], *begun))
                .collect(),
        )
    }

    #[test]
    fn only_the_oldest_unanswered_request_is_charged() {
        let now = Instant::now();
        let mut lane = lane(&[10, 10, 10, 10], now);
        lane.wrote(25, now);
        lane.received(OK, now, |_| {}).unwrap();
        lane.check();
        assert_eq!(
            names(&lane.into_leftover()),
            (Some(b'b'), vec![(b'c', true), (b'd', false)])
        );
    }

    #[test]
    fn nobody_is_charged_when_the_answer_before_said_close() {
        let now = Instant::now();
        let mut lane = lane(&[10, 10, 10], now);
        lane.wrote(30, now);
        lane.received(CLOSE, now, |_| {}).unwrap();
        assert!(lane.is_done());
        assert_eq!(
            names(&lane.into_leftover()),
            (None, vec![(b'b', true), (b'c', true)])
        );
    }

    #[test]
    fn a_request_whose_answer_breaks_off_behind_its_head_is_delivered_and_the_next_is_not_charged()
    {
        let now = Instant::now();
        let mut lane = lane(&[10, 10], now);
        lane.wrote(20, now);
        let mut statuses = Vec::new();
        let cut = b"HTTP/1.1 403 No\r\nContent-Length: 99\r\n\r\nhal";
        lane.received(cut, now, |head| statuses.push(head.status))
            .unwrap();
        assert_eq!(statuses, [403]);
        assert_eq!(names(&lane.into_leftover()), (None, vec![(b'b', true)]));
    }

    #[test]
    fn nothing_written_is_nobody_s_fault() {
        let now = Instant::now();
        let lane = lane(&[10, 10], now);
        assert_eq!(
            names(&lane.into_leftover()),
            (None, vec![(b'a', false), (b'b', false)])
        );
    }

    #[test]
    fn a_request_answered_early_is_still_written_to_its_end() {
        let now = Instant::now();
        let mut lane = lane(&[10, 5], now);
        lane.wrote(4, now);
        let mut heads = 0;
        lane.received(OK, now, |_| heads += 1).unwrap();
        lane.check();
        assert_eq!((heads, lane.len(), lane.unanswered()), (1, 2, 1));
        // A second answer now would be to a request that nobody sent.
        assert!(matches!(
            lane.received(b"H", now, |_| {}),
            Err(Broken::Unasked)
        ));
        lane.wrote(6, now);
        lane.check();
        assert_eq!(lane.len(), 1);
        lane.wrote(5, now);
        lane.received(OK, now, |_| heads += 1).unwrap();
        assert_eq!((heads, lane.len()), (2, 0));
    }

    #[test]
    fn bytes_that_answer_nothing_end_the_connection() {
        let now = Instant::now();
        let mut idle = Lane::new(now);
        assert!(matches!(
            idle.received(OK, now, |_| {}),
            Err(Broken::Unasked)
        ));
        let mut unwritten = lane(&[5], now);
        assert!(matches!(
            unwritten.received(OK, now, |_| {}),
            Err(Broken::Unasked)
        ));
    }

    #[test]
    fn patience_counts_from_the_last_progress_of_the_oldest() {
        let t0 = Instant::now();
        let second = Duration::from_secs(1);
        let mut lane = lane(&[10, 10], t0);
        assert_eq!(lane.deadline(10 * second), Some(t0 + 10 * second));
        lane.wrote(15, t0 + second);
        assert_eq!(lane.deadline(10 * second), Some(t0 + 11 * second));
        // Writing what stands behind the oldest is no progress of the oldest.
        lane.wrote(5, t0 + 2 * second);
        assert_eq!(lane.deadline(10 * second), Some(t0 + 11 * second));
        // Nor is half a head.
        lane.received(b"HTTP/1.1 200", t0 + 3 * second, |_| {})
            .unwrap();
        assert_eq!(lane.deadline(10 * second), Some(t0 + 11 * second));
        lane.received(b" OK\r\nContent-Length: 0\r\n\r\n", t0 + 4 * second, |_| {})
            .unwrap();
        assert_eq!(lane.deadline(10 * second), Some(t0 + 14 * second));
    }

    proptest! {
        #[test]
        fn every_request_is_delivered_once_or_left_over(
            lens in prop::collection::vec(1_usize..30, 0..12),
            steps in prop::collection::vec((any::<bool>(), 1_usize..60), 0..60),
            close_at in 0_usize..20,
        ) {
            let now = Instant::now();
            let mut lane = lane(&lens, now);
            let mut answers = Vec::new();
            for i in 0..lens.len() {
                answers.extend_from_slice(if i == close_at { CLOSE } else { OK });
            }
            let mut answers = answers.as_slice();
            let mut delivered = 0;
            for (write, n) in steps {
                if write {
                    let mut slices = [IoSlice::new(&[]); 3];
                    let filled = lane.unwritten(&mut slices);
                    let offered: usize = slices[..filled].iter().map(|s| s.len()).sum();
                    lane.wrote(n.min(offered), now);
                } else {
                    let (piece, rest) = answers.split_at(n.min(answers.len()));
                    answers = rest;
                    if lane.received(piece, now, |_| delivered += 1).is_err() {
                        break;
                    }
                }
                lane.check();
            }
            let leftover = lane.into_leftover();
            let left = leftover.innocent.len() + usize::from(leftover.charged.is_some());
            prop_assert_eq!(delivered + left, lens.len());
            prop_assert!(delivered <= close_at + 1);
        }
    }
}
