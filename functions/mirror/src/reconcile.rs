//! The whole account converges: on a schedule, as a dry run, and to explain one interface.

use crate::answer::{Answer, Explained, SkipReason, Touched};
use crate::attach::{Planned, join, look_up, plan_for};
use crate::converge::Run;
use crate::error::ApiError;
use crate::event::Hint;
use crate::families::{Support, support};
use crate::id::{EniId, InstanceId};
use crate::interface::Interface;
use crate::plan::{
    Action, DeleteReason, Desired, Limits, Plan, SESSIONS_PER_ACCOUNT, SESSIONS_PER_INTERFACE,
    Verdict, plan,
};
use crate::ports::{InstanceQuery, InterfaceQuery, Ports, SessionQuery};
use crate::selection::{Judgement, group_text};
use crate::settings::Settings;
use crate::verdict::{AnalyzerAt, desire, locate_analyzer, verdict};
use serde_json::Value;
use std::time::Duration;

/// From the end of a scheduled sweep to the start of the next, at least: a start may come some seconds early or late.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(10);
/// What a scheduled sweep may take for its changes, however long the listing took: else one of a huge account that runs
/// each minute would never get to a change.
const LEAST_WORK: Duration = Duration::from_secs(20);
/// Hours that AWS counts for a month.
const HOURS_A_MONTH: f64 = 730.0;

/// What `reconcile` can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Converge everything: an event of the schedule.
    Sweep,
    /// `{"dry_run": true}`: say what a sweep would do.
    DryRun,
    /// `{"explain": "eni-…"}` or `{"explain": "i-…"}`.
    Explain(Hint),
    /// A request of CloudFormation for the custom resource.
    Custom,
}

/// A request that is none of these: one line with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0}; send a scheduled event, {{\"dry_run\": true}}, {{\"explain\": \"eni-… or i-…\"}} or a custom resource request"
)]
pub struct RequestError(String);

impl Request {
    /// Tells by the fields which it is.
    pub fn parse(payload: &Value) -> Result<Self, RequestError> {
        if payload.get("ResponseURL").is_some() || payload.get("RequestType").is_some() {
            return Ok(Request::Custom);
        }
        if let Some(what) = payload.get("explain") {
            let text = what.as_str().unwrap_or("");
            let hint = Hint {
                instances: InstanceId::parse(text).into_iter().collect(),
                enis: EniId::parse(text).into_iter().collect(),
            };
            let bad = || {
                RequestError(format!(
                    "explain: {what} is neither an interface nor an instance id"
                ))
            };
            return if hint == Hint::default() {
                Err(bad())
            } else {
                Ok(Request::Explain(hint))
            };
        }
        match payload.get("dry_run") {
            Some(Value::Bool(true)) => return Ok(Request::DryRun),
            Some(other) => return Err(RequestError(format!("dry_run: {other} is not true"))),
            None => {}
        }
        match payload.get("detail-type").and_then(Value::as_str) {
            Some("Scheduled Event") => Ok(Request::Sweep),
            Some(other) => Err(RequestError(format!(
                "an event of kind {other:?} is not for this function"
            ))),
            None => Err(RequestError(
                "the request has none of the known fields".to_owned(),
            )),
        }
    }
}

/// What a sweep did or would do.
#[derive(Debug, Default, PartialEq)]
pub struct Swept {
    /// For the caller.
    pub answer: Answer,
    /// Sessions of ours when the plan is carried out.
    pub ours: usize,
    /// Sessions of others.
    pub foreign: usize,
    /// Why the analyser's name could not be resolved, where that holds everything up.
    pub analyzer: Option<String>,
}

/// Everything there is, and what is wanted of it.
struct Survey {
    desired: Desired,
    plan: Plan,
    analyzer: AnalyzerAt,
}

/// Sessions are listed first: each interface and instance of a session that is seen is then older than the listing
/// that it is looked for in, so that what `attach` makes meanwhile is never taken for an orphan.
async fn survey<P: Ports>(run: &Run<'_, P>) -> Result<Survey, ApiError> {
    let actual = run.ports.sessions(SessionQuery::All).await?;
    let mut interfaces = run.ports.interfaces(InterfaceQuery::All).await?;
    let instances = run.ports.instances(InstanceQuery::All).await?;
    join(
        run.ports,
        &mut interfaces,
        instances.into_iter().map(|i| (i.id.clone(), i)).collect(),
    )
    .await?;
    let analyzer = locate_analyzer(run.settings, run.ports).await;
    let desired = desire(run.settings, &interfaces, &analyzer, true);
    let limits = Limits {
        per_interface: SESSIONS_PER_INTERFACE,
        per_account: Some(SESSIONS_PER_ACCOUNT),
    };
    let mut plan = plan(&desired, &actual, &limits);
    spare_what_is_still_there(run, &mut plan).await?;
    Ok(Survey {
        desired,
        plan,
        analyzer,
    })
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
    let there: Vec<EniId> = run
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

/// Converges everything. An error means that nothing could be listed; what fails later stands in the answer.
pub async fn sweep<P: Ports>(run: &Run<'_, P>) -> Result<Swept, ApiError> {
    let survey = survey(run).await?;
    Ok(carry_out(run, survey).await)
}

/// As [`sweep`], for the schedule: it ends before the next one begins.
///
/// The schedule starts a sweep every [`Settings::sweep_every`], whether the one before has ended or not, and each has a
/// pace of its own: three at once would be three times as fast as `MutationsPerSecond` lets them, and all would try to
/// make the same sessions. What is left over is the next sweep's.
pub async fn scheduled_sweep<P: Ports>(run: &Run<'_, P>) -> Result<Swept, ApiError> {
    let end = run.ports.now() + run.settings.sweep_every.saturating_sub(BETWEEN_SWEEPS);
    let survey = survey(run).await?;
    let end = end.max(run.ports.now() + LEAST_WORK);
    let run = Run {
        ports: run.ports,
        settings: run.settings,
        pacer: run.pacer,
        deadline: run.deadline.min(end),
    };
    Ok(carry_out(&run, survey).await)
}

async fn carry_out<P: Ports>(run: &Run<'_, P>, survey: Survey) -> Swept {
    let Survey {
        desired,
        plan,
        analyzer,
    } = survey;
    let (ours, foreign) = (plan.ours, plan.foreign);
    let answer = run.execute(&desired, plan).await.answer;
    Swept {
        answer,
        ours,
        foreign,
        analyzer: unresolved(analyzer),
    }
}

/// Says what [`sweep`] would do, and what it would cost.
pub async fn dry_run<P: Ports>(run: &Run<'_, P>) -> Result<Swept, ApiError> {
    let Survey { plan, analyzer, .. } = survey(run).await?;
    let mut answer = Answer::default();
    for action in &plan.actions {
        let (list, eni, session, number) = match action {
            Action::Create { eni, number } => (&mut answer.created, eni, None, number),
            Action::Modify {
                session,
                eni,
                number,
            } => (&mut answer.modified, eni, Some(session.clone()), number),
            Action::Delete {
                session,
                eni,
                number,
                ..
            } => (&mut answer.deleted, eni, Some(session.clone()), number),
        };
        list.push(Touched {
            eni: eni.clone(),
            session,
            number: *number,
        });
    }
    let skipped = plan.skipped.iter().cloned();
    answer.skipped = skipped
        .map(|(eni, reason)| crate::answer::Skipped { eni, reason })
        .collect();
    answer.monthly_cost = Some(monthly_cost(plan.ours, run.settings.session_hour_usd));
    Ok(Swept {
        answer,
        ours: plan.ours,
        foreign: plan.foreign,
        analyzer: unresolved(analyzer),
    })
}

fn unresolved(analyzer: AnalyzerAt) -> Option<String> {
    match analyzer {
        AnalyzerAt::Unresolved(why) => Some(why),
        AnalyzerAt::Addresses(_) => None,
    }
}

/// US dollars a month, in whole cents.
fn monthly_cost(sessions: usize, session_hour_usd: f64) -> f64 {
    let sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
    (f64::from(sessions) * session_hour_usd * HOURS_A_MONTH * 100.0).round() / 100.0
}

/// Says of the named interface, or of those of the named instance, why it is or is not mirrored.
pub async fn explain<P: Ports>(run: &Run<'_, P>, of: &Hint) -> Result<Vec<Explained>, ApiError> {
    let interfaces = look_up(run.ports, of).await?;
    if interfaces.is_empty() {
        return Ok(vec![not_found(of)]);
    }
    let Planned {
        actual,
        analyzer,
        plan,
        ..
    } = plan_for(run, &interfaces).await?;
    let one = |interface: &Interface| {
        let ours = actual
            .iter()
            .find(|s| s.eni == interface.id && s.is_of(&run.settings.stack));
        let skip = plan
            .skipped
            .iter()
            .find(|(eni, _)| *eni == interface.id)
            .map(|(_, reason)| *reason);
        let (reason, mut text) = words(interface, run.settings, &analyzer, skip);
        match ours {
            Some(s) => text.push_str(&format!(
                ". Session {} with number {} is there",
                s.id, s.number
            )),
            None if reason == "selected" => {
                text.push_str(". Its session is not there yet; the next sweep makes it");
            }
            None => {}
        }
        Explained {
            eni: Some(interface.id.clone()),
            mirrored: ours.is_some(),
            reason,
            text,
        }
    };
    Ok(interfaces.iter().map(one).collect())
}

fn not_found(of: &Hint) -> Explained {
    let eni = of.enis.first().cloned();
    let text = match of.instances.first() {
        Some(instance) => format!("{instance} has no interface in this account and region"),
        None => "there is no such interface in this account and region".to_owned(),
    };
    Explained {
        eni,
        mirrored: false,
        reason: "not_found".to_owned(),
        text,
    }
}

fn words(
    interface: &Interface,
    settings: &Settings,
    analyzer: &AnalyzerAt,
    skip: Option<SkipReason>,
) -> (String, String) {
    let by = match settings.selection.judge(interface) {
        Judgement::Excluded(term) => {
            return (
                "excluded".to_owned(),
                format!("`{term}` in Selection excludes it"),
            );
        }
        Judgement::Unselected if skip.is_none() => {
            let text = format!("no term of Selection holds for it: {}", settings.selection);
            return ("not_selected".to_owned(), text);
        }
        Judgement::Unselected => String::new(),
        Judgement::Selected(group) => format!("`{}` in Selection selects it", group_text(group)),
    };
    if let Some(reason) = skip {
        let name = serde_json::to_value(reason)
            .ok()
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default();
        let but = if by.is_empty() { "" } else { ", but " };
        return (name, format!("{by}{but}{}", reason.text()));
    }
    let mut text = by;
    if let Verdict::Mirror { doubtful: true } = verdict(interface, settings, analyzer)
        && let Some(Support::LeftOut(why)) = interface
            .instance
            .as_ref()
            .map(|i| support(&i.instance_type))
    {
        text.push_str(&format!(". AWS will probably refuse: {why}"));
    }
    ("selected".to_owned(), text)
}

#[cfg(test)]
mod tests;
