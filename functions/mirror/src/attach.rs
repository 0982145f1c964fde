//! Events name instances or interfaces; what they miss is made.

use crate::answer::{AttachAnswer, BatchItemFailure};
use crate::converge::{Outcome, Run};
use crate::error::ApiError;
use crate::event::{self, Event, Hint};
use crate::id::{EniId, InstanceId};
use crate::interface::Interface;
use crate::plan::{Desired, Limits, Plan, SESSIONS_PER_INTERFACE, Session, plan};
use crate::ports::{InstanceQuery, InterfaceQuery, Inventory, Ports, SessionQuery};
use crate::verdict::{AnalyzerAt, desire, locate_analyzer};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};

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
    let events: Vec<Event> = queued.iter().map(|q| event::parse_text(&q.body)).collect();
    let (outcome, failed) = work(run, &events).await;
    let mut answer = counted(&events, outcome.answer);
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
    let events = [event::parse(payload)];
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
        let first = errors
            .chain(
                outcome
                    .described
                    .into_iter()
                    .map(|e| format!("describe: {e}")),
            )
            .next();
        return Err(AttachError::Api(first.unwrap_or_default()));
    }
    Ok(counted(&events, outcome.answer))
}

fn counted(events: &[Event], answer: crate::answer::Answer) -> AttachAnswer {
    let count = |is: fn(&Event) -> bool| events.iter().filter(|e| is(e)).count();
    AttachAnswer {
        answer,
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
}

/// Does the work of all messages at once; says of each whether it has to come again.
async fn work<P: Ports>(run: &Run<'_, P>, events: &[Event]) -> (Worked, Vec<bool>) {
    let hints = events.iter().filter_map(|event| match event {
        Event::Hint(hint) => Some(hint),
        _ => None,
    });
    let mut wanted = Hint::default();
    for hint in hints {
        wanted.instances.extend(hint.instances.iter().cloned());
        wanted.enis.extend(hint.enis.iter().cloned());
    }
    let mut worked = Worked::default();
    let mut retryable = BTreeSet::new();
    let mut at: BTreeMap<EniId, Option<InstanceId>> = BTreeMap::new();
    if wanted != Hint::default() {
        match converge(run, &wanted).await {
            Ok((outcome, interfaces)) => {
                worked.answer = outcome.answer;
                retryable = outcome.retryable;
                at = interfaces;
            }
            Err(error) => worked.described = Some(error),
        }
    }
    let comes_again = |hint: &Hint| {
        worked.described.is_some()
            || retryable.iter().any(|eni| {
                let instance = at.get(eni).and_then(Option::as_ref);
                hint.enis.contains(eni) || instance.is_some_and(|i| hint.instances.contains(i))
            })
    };
    let failed = events
        .iter()
        .map(|event| match event {
            Event::Hint(hint) => comes_again(hint),
            Event::Ignored(_) => false,
            Event::Malformed(_) => true,
        })
        .collect();
    (worked, failed)
}

/// Looks the named objects up and converges their interfaces. Gives those interfaces too, with their instances.
async fn converge<P: Ports>(
    run: &Run<'_, P>,
    wanted: &Hint,
) -> Result<(Outcome, BTreeMap<EniId, Option<InstanceId>>), ApiError> {
    let interfaces = look_up(run.ports, wanted).await?;
    let at = interfaces
        .iter()
        .map(|i| (i.id.clone(), i.instance_id.clone()))
        .collect();
    if interfaces.is_empty() {
        return Ok((Outcome::default(), at));
    }
    let Planned { desired, plan, .. } = plan_for(run, &interfaces).await?;
    Ok((run.execute(&desired, plan).await, at))
}

/// A plan for some interfaces, and what it was made from.
pub(crate) struct Planned {
    /// All sessions on these interfaces, other teams' too.
    pub(crate) actual: Vec<Session>,
    pub(crate) analyzer: AnalyzerAt,
    pub(crate) desired: Desired,
    pub(crate) plan: Plan,
}

/// What these interfaces, which are not all of the account's, miss.
pub(crate) async fn plan_for<P: Ports>(
    run: &Run<'_, P>,
    interfaces: &[Interface],
) -> Result<Planned, ApiError> {
    let enis: Vec<EniId> = interfaces.iter().map(|i| i.id.clone()).collect();
    let actual = run.ports.sessions(SessionQuery::On(&enis)).await?;
    let analyzer = locate_analyzer(run.settings, run.ports).await;
    let desired = desire(run.settings, interfaces, &analyzer, false);
    let limits = Limits {
        per_interface: SESSIONS_PER_INTERFACE,
        per_account: None,
    };
    let plan = plan(&desired, &actual, &limits);
    Ok(Planned {
        actual,
        analyzer,
        desired,
        plan,
    })
}

/// The interfaces that a hint names or whose instance it names, with their instances. What is gone is left out.
pub(crate) async fn look_up(
    ports: &impl Inventory,
    wanted: &Hint,
) -> Result<Vec<Interface>, ApiError> {
    let instances: Vec<InstanceId> = wanted.instances.iter().cloned().collect();
    let enis: Vec<EniId> = wanted.enis.iter().cloned().collect();
    let mut interfaces = BTreeMap::new();
    if !instances.is_empty() {
        let found = ports
            .interfaces(InterfaceQuery::OfInstances(&instances))
            .await?;
        interfaces.extend(found.into_iter().map(|i| (i.id.clone(), i)));
    }
    if enis.iter().any(|eni| !interfaces.contains_key(eni)) {
        let found = ports.interfaces(InterfaceQuery::Ids(&enis)).await?;
        interfaces.extend(found.into_iter().map(|i| (i.id.clone(), i)));
    }
    let mut interfaces: Vec<Interface> = interfaces.into_values().collect();
    join(ports, &mut interfaces, BTreeMap::new()).await?;
    Ok(interfaces)
}

/// Gives each interface its instance: from `known`, or looked up.
pub(crate) async fn join(
    ports: &impl Inventory,
    interfaces: &mut [Interface],
    mut known: BTreeMap<InstanceId, crate::interface::Instance>,
) -> Result<(), ApiError> {
    let missing: BTreeSet<InstanceId> = interfaces
        .iter()
        .filter_map(|i| i.instance_id.clone())
        .filter(|id| !known.contains_key(id))
        .collect();
    if !missing.is_empty() {
        let ids: Vec<InstanceId> = missing.into_iter().collect();
        let found = ports.instances(InstanceQuery::Ids(&ids)).await?;
        known.extend(found.into_iter().map(|i| (i.id.clone(), i)));
    }
    for interface in interfaces {
        interface.instance = interface
            .instance_id
            .as_ref()
            .and_then(|id| known.get(id))
            .cloned();
    }
    Ok(())
}

#[cfg(test)]
mod tests;
