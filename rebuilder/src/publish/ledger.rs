//! What was counted and not put yet. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::figures::{Figure, Kind, Unit, figures};
use super::scrape::{Scrape, ScrapeError};

/// The series that tells one process of the rebuilder from the next.
const START: &str = "rebuilder_start_time_seconds";

/// A metric's value, as CloudWatch takes it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    /// One number.
    Single(f64),
    /// Many observations.
    Statistics {
        /// How many.
        count: f64,
        /// Their sum.
        sum: f64,
        /// The least.
        min: f64,
        /// The most.
        max: f64,
    },
}

/// One metric of a [`Batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct Datum {
    /// Its name.
    pub name: String,
    /// Its unit.
    pub unit: Unit,
    /// Its value.
    pub value: Value,
}

/// What one call puts. Given back where it failed.
#[derive(Debug)]
#[must_use]
pub struct Batch {
    counts: BTreeMap<String, u64>,
    datums: Vec<Datum>,
}

impl Batch {
    /// Its metrics.
    #[must_use]
    pub fn datums(&self) -> &[Datum] {
        &self.datums
    }
}

/// Why a state that was kept is of no use.
#[derive(Debug, thiserror::Error)]
#[error("it is no state of this program: {0}")]
pub struct StateError(#[from] serde_json::Error);

/// What the next process has to know.
#[derive(Debug, Default, Serialize, Deserialize)]
struct State {
    /// The rebuilder that was last seen, and what its counters said.
    last: Option<Seen>,
    /// What was counted and not put, by metric.
    counts: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seen {
    /// As it stands in the text: no number that is written and read back need be the same.
    start: String,
    counters: BTreeMap<String, u64>,
}

#[derive(Clone, Copy, Debug)]
struct Statistics {
    count: u32,
    sum: f64,
    min: f64,
    max: f64,
}

/// What a rebuilder counted and what was put of it.
///
/// Counts are put at least once: where a call failed, they go with the next one. Levels are not carried on, because they
/// would stand at a time at which they did not hold.
#[derive(Debug)]
pub struct Ledger {
    figures: Vec<Figure>,
    state: State,
    levels: BTreeMap<String, Statistics>,
    covered: Duration,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            figures: figures(),
            state: State::default(),
            levels: BTreeMap::new(),
            covered: Duration::ZERO,
        }
    }
}

impl Ledger {
    /// Goes on where another process ended.
    ///
    /// # Errors
    /// [`StateError`] where [`Ledger::state`] did not write it.
    pub fn from_state(text: &str) -> Result<Self, StateError> {
        Ok(Self {
            state: serde_json::from_str(text)?,
            ..Self::default()
        })
    }

    /// For [`Ledger::from_state`]. While a batch is out, what is in it is missing here.
    ///
    /// # Errors
    /// None that can happen.
    pub fn state(&self) -> Result<String, StateError> {
        Ok(serde_json::to_string(&self.state)?)
    }

    /// Takes in a text of `GET /metrics`, which stands for the time since the one before. Nothing is taken of a text that
    /// is not whole.
    ///
    /// # Errors
    /// [`ScrapeError`].
    pub fn observe(&mut self, text: &str, stands_for: Duration) -> Result<(), ScrapeError> {
        let scrape = Scrape::parse(text)?;
        let mut seen = Seen {
            start: scrape.text(START)?.to_owned(),
            counters: BTreeMap::new(),
        };
        let mut levels = Vec::new();
        for figure in &self.figures {
            match &figure.kind {
                Kind::Growth(series) => {
                    for series in series {
                        let value = scrape.counter(series)?;
                        seen.counters.insert(series.clone(), value);
                    }
                }
                Kind::Level(series, times) => {
                    levels.push((&figure.name, scrape.gauge(series)? * times));
                }
                Kind::Heartbeat | Kind::Restarts => {}
            }
        }

        let last = self.state.last.take();
        let same = last.as_ref().filter(|last| last.start == seen.start);
        let restarted = last.is_some() && same.is_none();
        let grown = |series: &String| {
            let now = seen.counters.get(series).copied().unwrap_or_default();
            let before = same.and_then(|last| last.counters.get(series)).copied();
            now.checked_sub(before.unwrap_or_default()).unwrap_or(now)
        };
        for figure in &self.figures {
            let more = match &figure.kind {
                Kind::Growth(series) => series.iter().map(grown).fold(0, u64::saturating_add),
                Kind::Restarts => u64::from(restarted),
                Kind::Level(..) | Kind::Heartbeat => continue,
            };
            let count = self.state.counts.entry(figure.name.clone()).or_default();
            *count = count.saturating_add(more);
        }
        for (name, value) in levels {
            let statistics = self.levels.entry(name.clone()).or_insert(Statistics {
                count: 0,
                sum: 0.0,
                min: value,
                max: value,
            });
            statistics.count = statistics.count.saturating_add(1);
            statistics.sum += value;
            statistics.min = statistics.min.min(value);
            statistics.max = statistics.max.max(value);
        }
        self.covered = self.covered.saturating_add(stands_for);
        self.state.last = Some(seen);
        Ok(())
    }

    /// What is to be put now; `None` where nothing was observed since the last time and nothing was left over.
    pub fn take(&mut self) -> Option<Batch> {
        let counts = std::mem::take(&mut self.state.counts);
        let mut levels = std::mem::take(&mut self.levels);
        let covered = std::mem::take(&mut self.covered);
        let mut datums = Vec::new();
        for figure in &self.figures {
            let value = match figure.kind {
                // Numbers above 2^53 lose their last digits, after 30 years of a million a second.
                #[allow(clippy::cast_precision_loss)]
                Kind::Growth(_) | Kind::Restarts => {
                    counts.get(&figure.name).map(|&n| Value::Single(n as f64))
                }
                Kind::Level(..) => levels.remove(&figure.name).map(|s| Value::Statistics {
                    count: f64::from(s.count),
                    sum: s.sum,
                    min: s.min,
                    max: s.max,
                }),
                Kind::Heartbeat => {
                    (!covered.is_zero()).then_some(Value::Single(covered.as_secs_f64()))
                }
            };
            datums.extend(value.map(|value| Datum {
                name: figure.name.clone(),
                unit: figure.unit,
                value,
            }));
        }
        (!datums.is_empty()).then_some(Batch { counts, datums })
    }

    /// It could not be put: its counts go with the next one.
    pub fn give_back(&mut self, batch: Batch) {
        for (name, n) in batch.counts {
            let count = self.state.counts.entry(name).or_default();
            *count = count.saturating_add(n);
        }
    }
}
