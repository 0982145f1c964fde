//! Looks at what there is, everything or what a hint names, and plans what is to be done about it.

use crate::answer::SkipReason;
use crate::converge::Run;
use crate::error::ApiError;
use crate::event::Hint;
use crate::id::{EniId, InstanceId};
use crate::interface::{Instance, Interface};
use crate::plan::{
    Action, DeleteReason, Desired, Limits, Plan, SESSIONS_PER_INTERFACE, Session, Verdict, plan,
};
use crate::ports::{InstanceQuery, InterfaceQuery, Inventory, Ports, SessionQuery};
use crate::ties::tie;
use crate::verdict::{AnalyzerAt, desire, locate_analyzer};
use std::collections::{BTreeMap, BTreeSet};

/// What was seen, and the plan made of it.
pub(crate) struct Survey {
    /// With their instances and ties.
    pub(crate) interfaces: Vec<Interface>,
    /// All sessions that were asked for, other teams' too.
    pub(crate) actual: Vec<Session>,
    pub(crate) analyzer: AnalyzerAt,
    pub(crate) desired: Desired,
    pub(crate) plan: Plan,
}

/// Looks at everything.
///
/// Sessions are listed first: each interface and instance of a session that is seen is then older than the listing
/// that it is looked for in, so that what `attach` makes meanwhile is never taken for an orphan.
pub(crate) async fn everything<P: Ports>(run: &Run<'_, P>) -> Result<Survey, ApiError> {
    let actual = run.ports.sessions(SessionQuery::All).await?;
    let mut interfaces = run.ports.interfaces(InterfaceQuery::All).await?;
    let instances = run.ports.instances(InstanceQuery::All).await?;
    let instances = instances.into_iter().map(|i| (i.id.clone(), i)).collect();
    join(run.ports, &mut interfaces, instances).await?;
    tie(run, &mut interfaces).await?;
    let limits = Limits {
        per_interface: SESSIONS_PER_INTERFACE,
        per_account: Some(run.settings.session_limit()),
    };
    let mut survey = planned(run, interfaces, actual, &limits, true).await;
    spare_what_is_still_there(run, &mut survey.plan).await?;
    Ok(survey)
}

/// Looks at some interfaces, which are not all of the account's. How many sessions the account has is not counted: the
/// API has the last word.
pub(crate) async fn of<P: Ports>(
    run: &Run<'_, P>,
    interfaces: Vec<Interface>,
) -> Result<Survey, ApiError> {
    let enis: Vec<EniId> = interfaces.iter().map(|i| i.id.clone()).collect();
    let actual = if enis.is_empty() {
        Vec::new()
    } else {
        run.ports.sessions(SessionQuery::On(&enis)).await?
    };
    let limits = Limits {
        per_interface: SESSIONS_PER_INTERFACE,
        per_account: None,
    };
    Ok(planned(run, interfaces, actual, &limits, false).await)
}

async fn planned<P: Ports>(
    run: &Run<'_, P>,
    interfaces: Vec<Interface>,
    actual: Vec<Session>,
    limits: &Limits,
    complete: bool,
) -> Survey {
    let analyzer = locate_analyzer(run.settings, run.ports).await;
    let mut desired = desire(run.settings, &interfaces, &analyzer, complete);
    let now = run.ports.now();
    // Only where something would be made: one that is refused has no session to keep.
    for interface in &interfaces {
        if let Some(verdict @ Verdict::Mirror(_)) = desired.interfaces.get_mut(&interface.id)
            && run.memory.is_refused(interface, now)
        {
            *verdict = Verdict::Keep(SkipReason::Refused);
        }
    }
    if wants_any(&desired) && run.is_leaving().await {
        hold(&mut desired, SkipReason::StackLeaving);
    }
    let plan = plan(&desired, &actual, limits);
    Survey {
        interfaces,
        actual,
        analyzer,
        desired,
        plan,
    }
}

fn wants_any(desired: &Desired) -> bool {
    let wants = |v: &Verdict| matches!(v, Verdict::Mirror(_));
    desired.interfaces.values().any(wants)
}

/// Nothing is made, and what is there stays.
fn hold(desired: &mut Desired, why: SkipReason) {
    for verdict in desired.interfaces.values_mut() {
        if matches!(verdict, Verdict::Mirror(_)) {
            *verdict = Verdict::Keep(why);
        }
    }
}

/// AWS removes an interface's sessions with it, so one that seems to have outlived its interface is rather one whose
/// interface the listing does not show yet. Asked for by id, it is; then the session waits for the next sweep.
async fn spare_what_is_still_there<P: Ports>(
    run: &Run<'_, P>,
    plan: &mut Plan,
) -> Result<(), ApiError> {
    let gone = |a: &Action| {
        matches!(
            a,
            Action::Delete {
                why: DeleteReason::InterfaceGone,
                ..
            }
        )
    };
    let enis: Vec<EniId> = plan
        .actions
        .iter()
        .filter(|a| gone(a))
        .map(|a| a.eni().clone())
        .collect();
    if enis.is_empty() {
        return Ok(());
    }
    let there: BTreeSet<EniId> = run
        .ports
        .interfaces(InterfaceQuery::Ids(&enis))
        .await?
        .into_iter()
        .map(|i| i.id)
        .collect();
    let before = plan.actions.len();
    plan.actions
        .retain(|a| !(gone(a) && there.contains(a.eni())));
    plan.ours += before - plan.actions.len();
    Ok(())
}

/// The interfaces that a hint names or whose instance it names, with instances and ties. What is gone is left out.
pub(crate) async fn look_up<P: Ports>(
    run: &Run<'_, P>,
    wanted: &Hint,
) -> Result<Vec<Interface>, ApiError> {
    let ports = run.ports;
    let instances: Vec<InstanceId> = wanted.instances.iter().cloned().collect();
    let mut interfaces = BTreeMap::new();
    if !instances.is_empty() {
        let found = ports
            .interfaces(InterfaceQuery::OfInstances(&instances))
            .await?;
        interfaces.extend(found.into_iter().map(|i| (i.id.clone(), i)));
    }
    let enis: Vec<EniId> = wanted
        .enis
        .iter()
        .filter(|eni| !interfaces.contains_key(*eni))
        .cloned()
        .collect();
    if !enis.is_empty() {
        let found = ports.interfaces(InterfaceQuery::Ids(&enis)).await?;
        interfaces.extend(found.into_iter().map(|i| (i.id.clone(), i)));
    }
    let mut interfaces: Vec<Interface> = interfaces.into_values().collect();
    join(ports, &mut interfaces, BTreeMap::new()).await?;
    if !interfaces.is_empty() {
        tie(run, &mut interfaces).await?;
    }
    Ok(interfaces)
}

/// Gives each interface its instance: from `known`, or looked up.
async fn join(
    ports: &impl Inventory,
    interfaces: &mut [Interface],
    mut known: BTreeMap<InstanceId, Instance>,
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
