//! Events name instances or interfaces; what they miss is made.
//!
//! What an event says is not believed but looked up, so one that comes late, twice, out of order or for something gone
//! does no harm: what is looked up is what is. Two kinds cannot be looked up, because what they name is gone
//! ([`event::Lost`]): they make the run look at everything, as a sweep does, unless it was this stack itself that removed
//! the session.

use crate::answer::{AttachAnswer, BatchItemFailure, SkipReason};
use crate::converge::{Outcome, Run};
use crate::error::ApiError;
use crate::event::{self, Event, Hint, Lost};
use crate::id::{EniId, InstanceId};
use crate::ports::Ports;
use crate::settings::Settings;
use crate::survey;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long something that an event tells of may be invisible: EC2 is eventually consistent. A message whose object is
/// not there yet comes again, once, because the queue's visibility time is longer than this; then the object counts as
/// gone, and the message is done with. So waiting for visibility never fills the dead-letter queue.
const VISIBLE_WITHIN: Duration = Duration::from_secs(120);

/// Why a bare event, or a whole batch, could not be handled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// A bare event that is none.
    #[error("malformed event: {0}")]
    Malformed(String),
    /// A bare event whose objects could not be described, or not be given what they miss.
    #[error("{0}")]
    Api(String),
}

/// One message of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Queued {
    /// What SQS calls it; it stands in `batchItemFailures` when it has to come again.
    pub id: String,
    /// An event, as EventBridge put it in.
    pub body: String,
}

/// Handles an SQS batch of events.
///
/// Nothing is an error of the whole: a message that is malformed, or whose work may succeed when it comes again, stands
/// in `batchItemFailures`; all others are done with.
pub async fn batch<P: Ports>(run: &Run<'_, P>, queued: &[Queued]) -> AttachAnswer {
    let events: Vec<Event> = queued
        .iter()
        .map(|q| relevant(event::parse_text(&q.body), run.settings))
        .collect();
    let (outcome, failed) = work(run, &events).await;
    let mut answer = counted(&events, outcome);
    let failures = queued.iter().zip(failed).filter(|(_, failed)| *failed);
    answer.batch_item_failures = Some(
        failures
            .map(|(q, _)| BatchItemFailure {
                item_identifier: q.id.clone(),
            })
            .collect(),
    );
    answer
}

/// Handles one bare event.
///
/// # Errors
/// The event is malformed, or its work may succeed when it comes again.
pub async fn bare<P: Ports>(
    run: &Run<'_, P>,
    payload: &Value,
) -> Result<AttachAnswer, AttachError> {
    let events = [relevant(event::parse(payload), run.settings)];
    if let [Event::Malformed(why)] = &events {
        return Err(AttachError::Malformed(why.clone()));
    }
    let (outcome, failed) = work(run, &events).await;
    if failed.contains(&true) {
        let errors = outcome
            .answer
            .failed
            .iter()
            .map(|f| format!("{}: {}", f.eni, f.error));
        let described = outcome.described.iter().map(|e| format!("describe: {e}"));
        let first = errors.chain(described).next().unwrap_or_else(|| {
            "what the event names is not visible yet; send it again in a minute".to_owned()
        });
        return Err(AttachError::Api(first));
    }
    Ok(counted(&events, outcome))
}

/// What this stack removed itself is no news.
fn relevant(event: Event, settings: &Settings) -> Event {
    match event {
        Event::Hint(hint) if matches!(&hint.lost, Some(Lost::Session { by }) if settings.is_own_role(by)) => {
            Event::Ignored("a session that this stack removed itself".to_owned())
        }
        other => other,
    }
}

fn counted(events: &[Event], worked: Worked) -> AttachAnswer {
    let count = |is: fn(&Event) -> bool| events.iter().filter(|e| is(e)).count();
    AttachAnswer {
        answer: worked.answer,
        latencies: worked.latencies,
        ignored: count(|e| matches!(e, Event::Ignored(_))),
        malformed: count(|e| matches!(e, Event::Malformed(_))),
        batch_item_failures: None,
    }
}

/// What came of all messages together.
#[derive(Default)]
struct Worked {
    answer: crate::answer::Answer,
    /// Why nothing could be looked up.
    described: Option<ApiError>,
    latencies: Vec<Duration>,
}

/// Does the work of all messages at once; says of each whether it has to come again.
async fn work<P: Ports>(run: &Run<'_, P>, events: &[Event]) -> (Worked, Vec<bool>) {
    let hints: Vec<&Hint> = events
        .iter()
        .filter_map(|event| match event {
            Event::Hint(hint) => Some(hint),
            _ => None,
        })
        .collect();
    if hints.is_empty() {
        let malformed = |e: &Event| matches!(e, Event::Malformed(_));
        return (Worked::default(), events.iter().map(malformed).collect());
    }
    let mut worked = Worked::default();
    let mut seen = Seen::default();
    match converge(run, &hints).await {
        Ok((outcome, at)) => {
            worked.latencies = latencies(&hints, &outcome, &at);
            seen = Seen::of(&outcome, at);
            worked.answer = outcome.answer;
        }
        Err(error) => worked.described = Some(error),
    }
    let now = run.ports.since_epoch();
    let failed = events
        .iter()
        .map(|event| match event {
            Event::Hint(hint) => worked.described.is_some() || seen.comes_again(hint, now),
            Event::Ignored(_) => false,
            Event::Malformed(_) => true,
        })
        .collect();
    (worked, failed)
}

/// What a run saw of the interfaces that events named.
#[derive(Default)]
struct Seen {
    /// The interfaces, and the instances that they are attached to.
    at: BTreeMap<EniId, Option<InstanceId>>,
    instances: BTreeSet<InstanceId>,
    /// Another try, later, may succeed.
    retryable: BTreeSet<EniId>,
    /// Described here and unknown there: gone, or not visible everywhere yet.
    unseen: BTreeSet<EniId>,
}

impl Seen {
    fn of(outcome: &Outcome, at: BTreeMap<EniId, Option<InstanceId>>) -> Self {
        let blind = outcome.answer.skipped.iter();
        let blind = blind.filter(|s| s.reason == SkipReason::InstanceUnknown);
        Self {
            instances: at.values().flatten().cloned().collect(),
            retryable: outcome.retryable.clone(),
            unseen: outcome
                .unseen
                .iter()
                .chain(blind.map(|s| &s.eni))
                .cloned()
                .collect(),
            at,
        }
    }

    /// Whether the message of `hint` has to come again. `now`: since 1970.
    fn comes_again(&self, hint: &Hint, now: Option<Duration>) -> bool {
        let names = |eni: &EniId| {
            let instance = self.at.get(eni).and_then(Option::as_ref);
            hint.enis.contains(eni) || instance.is_some_and(|i| hint.instances.contains(i))
        };
        if self.retryable.iter().any(names) {
            return true;
        }
        let fresh = hint.appears
            && now
                .zip(hint.at)
                .is_some_and(|(now, at)| now.saturating_sub(at) < VISIBLE_WITHIN);
        fresh
            && (self.unseen.iter().any(names)
                || hint.instances.iter().any(|i| !self.instances.contains(i))
                || hint.enis.iter().any(|e| !self.at.contains_key(e)))
    }
}

/// Looks the named objects up and converges their interfaces. Gives those interfaces too, with their instances.
async fn converge<P: Ports>(
    run: &Run<'_, P>,
    hints: &[&Hint],
) -> Result<(Outcome, BTreeMap<EniId, Option<InstanceId>>), ApiError> {
    let survey = if hints.iter().any(|hint| hint.lost.is_some()) {
        survey::everything(run).await?
    } else {
        let mut wanted = Hint::default();
        for hint in hints {
            wanted.instances.extend(hint.instances.iter().cloned());
            wanted.enis.extend(hint.enis.iter().cloned());
        }
        let interfaces = survey::look_up(run, &wanted).await?;
        survey::of(run, interfaces).await?
    };
    let at = survey
        .interfaces
        .iter()
        .map(|i| (i.id.clone(), i.instance_id.clone()))
        .collect();
    let outcome = run.execute(&survey.desired, survey.plan).await;
    run.remember(&outcome, &survey.interfaces);
    Ok((outcome, at))
}

/// How long after the first event that names it each session was made. One that was made before its event, by a clock
/// that goes wrong, took no time.
fn latencies(
    hints: &[&Hint],
    outcome: &Outcome,
    at: &BTreeMap<EniId, Option<InstanceId>>,
) -> Vec<Duration> {
    let mut first: BTreeMap<&str, Duration> = BTreeMap::new();
    for hint in hints {
        let Some(time) = hint.at else { continue };
        let names = hint.instances.iter().map(InstanceId::as_str);
        for name in names.chain(hint.enis.iter().map(EniId::as_str)) {
            let earliest = first.entry(name).or_insert(time);
            *earliest = time.min(*earliest);
        }
    }
    let latency = |(eni, made): (&EniId, &Duration)| {
        let instance = at.get(eni).and_then(Option::as_ref);
        let names = [Some(eni.as_str()), instance.map(InstanceId::as_str)];
        let told = names
            .into_iter()
            .flatten()
            .filter_map(|n| first.get(n))
            .min()?;
        Some(made.saturating_sub(*told))
    };
    outcome.made.iter().filter_map(latency).collect()
}

#[cfg(test)]
mod tests;
