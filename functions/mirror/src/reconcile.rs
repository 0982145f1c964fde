//! The whole account converges: on a schedule, as a dry run, and to explain one interface.

use crate::answer::{Answer, Explained, SkipReason, Touched};
use crate::converge::Run;
use crate::error::ApiError;
use crate::event::Hint;
use crate::families::{Support, support};
use crate::id::{EniId, InstanceId};
use crate::interface::Interface;
use crate::plan::{Action, Plan, Rank, SESSIONS_PER_ACCOUNT, Verdict};
use crate::ports::{Ports, SessionQuery};
use crate::selection::{Judgement, group_text};
use crate::settings::Settings;
use crate::survey::{self, Survey};
use crate::verdict::{AnalyzerAt, verdict};
use serde_json::Value;
use std::collections::BTreeSet;
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
                ..Hint::default()
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
    /// Sessions of ours that did not look as they should: someone changed them, or the stack has been updated.
    pub drifted: usize,
    /// Sessions that the account could still have when the plan is carried out.
    pub headroom: usize,
    /// Why the analyser's name could not be resolved, where that holds everything up.
    pub analyzer: Option<String>,
}

/// Converges everything. An error means that nothing could be listed; what fails later stands in the answer.
pub async fn sweep<P: Ports>(run: &Run<'_, P>) -> Result<Swept, ApiError> {
    let survey = survey::everything(run).await?;
    Ok(carry_out(run, survey).await)
}

/// As [`sweep`], for the schedule: it ends before the next one begins.
///
/// The schedule starts a sweep every [`Settings::sweep_every`], whether the one before has ended or not, and each has a
/// pace of its own: three at once would be three times as fast as `MutationsPerSecond` lets them, and all would try to
/// make the same sessions. What is left over is the next sweep's.
pub async fn scheduled_sweep<P: Ports>(run: &Run<'_, P>) -> Result<Swept, ApiError> {
    let end = run.ports.now() + run.settings.sweep_every.saturating_sub(BETWEEN_SWEEPS);
    let survey = survey::everything(run).await?;
    let end = end.max(run.ports.now() + LEAST_WORK);
    let run = Run {
        ports: run.ports,
        settings: run.settings,
        pacer: run.pacer,
        memory: run.memory,
        deadline: run.deadline.min(end),
    };
    Ok(carry_out(&run, survey).await)
}

async fn carry_out<P: Ports>(run: &Run<'_, P>, survey: Survey) -> Swept {
    let swept = Swept::of(&survey);
    let outcome = run.execute(&survey.desired, survey.plan).await;
    run.remember(&outcome, &survey.interfaces);
    Swept {
        answer: outcome.answer,
        ..swept
    }
}

impl Swept {
    /// What the plan says, without an answer.
    fn of(survey: &Survey) -> Self {
        let Plan { ours, foreign, .. } = survey.plan;
        let drifts = |a: &&Action| matches!(a, Action::Modify { .. });
        Swept {
            answer: Answer::default(),
            ours,
            foreign,
            drifted: survey.plan.actions.iter().filter(drifts).count(),
            headroom: SESSIONS_PER_ACCOUNT.saturating_sub(ours + foreign),
            analyzer: match &survey.analyzer {
                AnalyzerAt::Unresolved(why) => Some(why.clone()),
                AnalyzerAt::Addresses(_) => None,
            },
        }
    }
}

/// Says what [`sweep`] would do, and what it would cost.
pub async fn dry_run<P: Ports>(run: &Run<'_, P>) -> Result<Swept, ApiError> {
    let survey = survey::everything(run).await?;
    let swept = Swept::of(&survey);
    let plan = survey.plan;
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
    Ok(Swept { answer, ..swept })
}

/// US dollars a month, in whole cents.
fn monthly_cost(sessions: usize, session_hour_usd: f64) -> f64 {
    let sessions = u32::try_from(sessions).unwrap_or(u32::MAX);
    (f64::from(sessions) * session_hour_usd * HOURS_A_MONTH * 100.0).round() / 100.0
}

/// Says of the named interface, or of those of the named instance, why it is or is not mirrored.
pub async fn explain<P: Ports>(run: &Run<'_, P>, of: &Hint) -> Result<Vec<Explained>, ApiError> {
    let interfaces = survey::look_up(run, of).await?;
    if interfaces.is_empty() {
        return Ok(vec![not_found(of)]);
    }
    let named: BTreeSet<EniId> = interfaces.iter().map(|i| i.id.clone()).collect();
    // Whether the account has a place left for it depends on everyone, which is looked at only where it runs short.
    let total = run.ports.sessions(SessionQuery::All).await?.len();
    let Survey {
        interfaces,
        actual,
        analyzer,
        plan,
        ..
    } = if total + interfaces.len() > run.settings.session_limit() {
        survey::everything(run).await?
    } else {
        survey::of(run, interfaces).await?
    };
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
    let asked = interfaces.iter().filter(|i| named.contains(&i.id));
    Ok(asked.map(one).collect())
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
        Judgement::Selected(_, group) => format!("`{}` in Selection selects it", group_text(group)),
    };
    if let Some(reason) = skip {
        let name = reason.name();
        let but = if by.is_empty() { "" } else { ", but " };
        return (name, format!("{by}{but}{}", reason.text()));
    }
    let mut text = by;
    if let Verdict::Mirror(Rank { doubtful: true, .. }) = verdict(interface, settings, analyzer)
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
