//! What was sent against what the analyser got, request by request.

use std::time::{Duration, Instant};

use anyhow::Context;
use lab::nginx::Nginx;
use lab::paced::{Done, number};

/// What the analyser got of each request.
#[derive(Clone, Copy, Debug, Default)]
struct Got {
    whole: u32,
    /// Flagged `truncated` or `resynced`: not all of it is there.
    partial: u32,
}

/// A time in which something happened.
#[derive(Clone, Debug)]
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    pub(crate) begun: Instant,
    pub(crate) ended: Instant,
}

/// The requests of a phase.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) sent: usize,
    /// That the analyser never got whole.
    pub(crate) lost: usize,
    /// Of those, what it got in part.
    pub(crate) partial: usize,
    /// That it got more than once.
    pub(crate) again: usize,
}

pub(crate) struct Judge {
    done: Done,
    got: Vec<Got>,
}

impl Judge {
    /// Reads the analyser's log until all is there, or nothing more comes.
    pub(crate) fn new(done: Done, analyser: &Nginx) -> anyhow::Result<Self> {
        let mut got = read(&done, analyser)?;
        let mut since = Instant::now();
        while got.iter().any(|it| it.whole == 0) && since.elapsed() < Duration::from_secs(8) {
            std::thread::sleep(Duration::from_millis(500));
            let now = read(&done, analyser)?;
            let whole = |got: &[Got]| got.iter().filter(|it| it.whole > 0).count();
            if whole(&now) > whole(&got) {
                since = Instant::now();
            }
            got = now;
        }
        Ok(Self { done, got })
    }

    pub(crate) fn row(&self, phase: &Phase) -> Row {
        let mut row = Row::default();
        for (sent, got) in self.done.sent.iter().zip(&self.got) {
            if !(phase.begun..phase.ended).contains(&sent.at) {
                continue;
            }
            row.sent += 1;
            row.lost += usize::from(got.whole == 0);
            row.partial += usize::from(got.whole == 0 && got.partial > 0);
            row.again += usize::from(got.whole > 1);
        }
        row
    }

    /// When each lost request of a phase was sent.
    pub(crate) fn lost_at(&self, phase: &Phase) -> Vec<Instant> {
        let pairs = self.done.sent.iter().zip(&self.got);
        pairs
            .filter(|(sent, got)| got.whole == 0 && (phase.begun..phase.ended).contains(&sent.at))
            .map(|(sent, _)| sent.at)
            .collect()
    }

    pub(crate) fn done(&self) -> &Done {
        &self.done
    }
}

fn read(done: &Done, analyser: &Nginx) -> anyhow::Result<Vec<Got>> {
    let mut got = vec![Got::default(); done.sent.len()];
    for line in analyser.deliveries()? {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let [target, status, _length, flags] = words.as_slice() else {
            // The last line may be being written.
            continue;
        };
        let known = number(target).and_then(|number| got.get_mut(number));
        let known = known.with_context(|| format!("nobody has sent this: {line}"))?;
        if *status != "200" || flags.contains("truncated") || flags.contains("aborted") {
            known.partial += 1;
        } else {
            known.whole += 1;
        }
    }
    Ok(got)
}
