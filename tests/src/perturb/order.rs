//! Which copies go on, how often and in which order. Pure: frames and time in, frames out.

use std::time::{Duration, Instant};

use super::copy::{self, Segment, Tag};
use super::ledger::Ledger;
use crate::random::Random;

/// A frame is overtaken by this many others at most.
pub const WINDOW: usize = 64;

/// No frame is held longer than this, whatever else comes: below the 50 ms that a rebuilder waits for the beginning of
/// a connection, as a network's reordering is.
pub const MAX_HOLD: Duration = Duration::from_millis(20);

/// What is done to the copies. Shares are per mille.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Of the generator.
    pub seed: u64,
    /// Frames held back behind 1 to [`WINDOW`] others.
    pub reorder: u32,
    /// Frames that go on twice.
    pub duplicate: u32,
    /// Frames (each copy for itself) that do not go on.
    pub drop: u32,
    /// Every other duplicate carries this VNI, as that of a connection mirrored at both of its ends does.
    pub second_vni: Option<u32>,
    /// Every fourth client port's frames carry an 802.1Q tag, every eighth's two (QinQ); the kernel's VLAN devices would
    /// do that, where there are any.
    pub tags: bool,
}

/// What was done so far, in frames. `received + duplicated = dropped + handed_on + held`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Came in.
    pub received: u64,
    /// Second copies that were made.
    pub duplicated: u64,
    /// Copies that do not go on.
    pub dropped: u64,
    /// Copies held back behind others.
    pub reordered: u64,
    /// Copies with one or two VLAN tags.
    pub tagged: u64,
    /// Copies handed on.
    pub handed_on: u64,
    /// Copies held now.
    pub held: u64,
    /// The most copies ever held.
    pub held_most: u64,
    /// The longest that one was held.
    pub held_longest: Duration,
}

#[derive(Debug)]
struct Held {
    /// Goes on when so many frames have come in.
    due: u64,
    since: Instant,
    frame: Vec<u8>,
}

/// The relay's mind.
#[derive(Debug)]
pub struct Perturber {
    settings: Settings,
    random: Random,
    held: Vec<Held>,
    counts: Counts,
    ledger: Ledger,
}

impl Perturber {
    /// One that has seen nothing.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self {
            settings,
            random: Random::new(settings.seed),
            held: Vec::new(),
            counts: Counts::default(),
            ledger: Ledger::default(),
        }
    }

    /// Takes a frame; what goes on now is pushed to `out`.
    pub fn take(&mut self, frame: Vec<u8>, now: Instant, out: &mut Vec<Vec<u8>>) {
        self.counts.received += 1;
        let segment = copy::segment(&frame);
        if let Some(segment) = &segment {
            self.ledger.sent(segment);
        }
        let second = self.random.chance(self.settings.duplicate).then(|| {
            let mut second = frame.clone();
            if let Some(vni) = self.settings.second_vni
                && self.counts.duplicated % 2 == 1
            {
                copy::set_vni(&mut second, vni);
            }
            self.counts.duplicated += 1;
            second
        });
        for mut frame in std::iter::once(frame).chain(second) {
            if self.random.chance(self.settings.drop) {
                self.counts.dropped += 1;
                continue;
            }
            if let Some(segment) = &segment {
                self.ledger.captured(segment);
                if let Some(tag) = self.tag(segment)
                    && copy::add_tags(&mut frame, tag)
                {
                    self.counts.tagged += 1;
                }
            }
            if self.random.chance(self.settings.reorder) {
                self.counts.reordered += 1;
                let behind = 1 + self.random.below(WINDOW);
                self.held.push(Held {
                    due: self.counts.received + behind as u64,
                    since: now,
                    frame,
                });
            } else {
                self.counts.handed_on += 1;
                out.push(frame);
            }
        }
        self.counts.held_most = self.counts.held_most.max(self.held.len() as u64);
        self.release(now, out);
    }

    /// Lets go what has been held long enough.
    pub fn tick(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        self.release(now, out);
    }

    /// Lets go everything.
    pub fn finish(&mut self, out: &mut Vec<Vec<u8>>) {
        self.counts.handed_on += self.held.len() as u64;
        out.extend(self.held.drain(..).map(|held| held.frame));
        self.counts.held = 0;
    }

    /// What was done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What was done, and to which bytes.
    #[must_use]
    pub fn into_parts(self) -> (Counts, Ledger) {
        (self.counts, self.ledger)
    }

    fn tag(&self, segment: &Segment) -> Option<Tag> {
        if !self.settings.tags {
            return None;
        }
        let client = segment.from.port().max(segment.to.port());
        match client % 8 {
            0 => Some(Tag::QinQ),
            4 => Some(Tag::Vlan),
            _ => None,
        }
    }

    fn release(&mut self, now: Instant, out: &mut Vec<Vec<u8>>) {
        let received = self.counts.received;
        let counts = &mut self.counts;
        let goes = |held: &mut Held| {
            held.due <= received || now.saturating_duration_since(held.since) >= MAX_HOLD
        };
        for held in self.held.extract_if(.., goes) {
            counts.handed_on += 1;
            counts.held_longest = counts
                .held_longest
                .max(now.saturating_duration_since(held.since));
            out.push(held.frame);
        }
        counts.held = self.held.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Settings = Settings {
        seed: 7,
        reorder: 0,
        duplicate: 0,
        drop: 0,
        second_vni: None,
        tags: false,
    };

    /// Runs `count` numbered frames through and gives the numbers as they come out.
    fn run(settings: Settings, count: usize) -> (Vec<usize>, Counts) {
        let (mut perturber, now) = (Perturber::new(settings), Instant::now());
        let mut out = Vec::new();
        for number in 0..count {
            perturber.take(number.to_be_bytes().to_vec(), now, &mut out);
        }
        perturber.finish(&mut out);
        let numbers = out
            .iter()
            .map(|frame| usize::from_be_bytes(frame.as_slice().try_into().unwrap()))
            .collect();
        (numbers, perturber.counts())
    }

    #[test]
    fn without_shares_everything_goes_on_as_it_came() {
        let (numbers, counts) = run(PLAIN, 1000);
        assert_eq!(numbers, (0..1000).collect::<Vec<_>>());
        assert_eq!((counts.received, counts.handed_on), (1000, 1000));
    }

    #[test]
    fn a_reordered_frame_is_overtaken_by_64_at_most_and_none_is_lost() {
        let settings = Settings {
            reorder: 100,
            ..PLAIN
        };
        let (numbers, counts) = run(settings, 20_000);
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..20_000).collect::<Vec<_>>());
        assert!((1800..2200).contains(&counts.reordered), "{counts:?}");
        let mut farthest = 0;
        for (place, number) in numbers.iter().enumerate() {
            let overtakers = numbers
                .iter()
                .take(place)
                .rev()
                .take(200)
                .filter(|n| *n > number);
            farthest = farthest.max(overtakers.count());
        }
        // Those that come in at the same moment as it goes on may be one more.
        assert!((WINDOW / 2..=WINDOW + 1).contains(&farthest), "{farthest}");
        assert!(counts.held_most <= WINDOW as u64, "{counts:?}");
    }

    #[test]
    fn shares_are_kept_and_the_counts_balance() {
        let settings = Settings {
            duplicate: 100,
            drop: 50,
            ..PLAIN
        };
        let (numbers, counts) = run(settings, 20_000);
        assert_eq!(numbers.len() as u64, counts.handed_on);
        assert_eq!(
            counts.received + counts.duplicated,
            counts.dropped + counts.handed_on
        );
        assert!((1800..2200).contains(&counts.duplicated), "{counts:?}");
        assert!((950..1250).contains(&counts.dropped), "{counts:?}");
    }

    #[test]
    fn on_a_quiet_link_a_frame_is_held_for_20_ms() {
        let settings = Settings {
            reorder: 1000,
            ..PLAIN
        };
        let (mut perturber, begin) = (Perturber::new(settings), Instant::now());
        let mut out = Vec::new();
        perturber.take(vec![1], begin, &mut out);
        perturber.tick(begin + MAX_HOLD - Duration::from_millis(1), &mut out);
        assert!(out.is_empty());
        perturber.tick(begin + MAX_HOLD, &mut out);
        assert_eq!((out.len(), perturber.counts().held), (1, 0));
    }
}
