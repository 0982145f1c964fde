//! A rebuilder leaves without losing what is sent to it: what the terminate hook of its group waits for.
//!
//! The instance is deregistered from the target group, the load balancer is watched until it has moved the flows, and
//! then the termination goes on. Auto Scaling deregisters its instances too; whether before the hook or after it, is not
//! relied upon: to deregister twice does no harm, and only what the load balancer says counts.
//!
//! [`Drain`] decides, given time and answers; [`run`] asks. An event that comes twice, late or for an action that is over
//! does nothing. Whatever fails, the termination goes on in the end: a rebuilder that is kept for ever saves no request.

use crate::error::{ApiError, ErrorClass};
use crate::id::InstanceId;
use crate::ports::{Clock, Lifecycle, Targets};
use serde::Serialize;
use serde_json::Value;
use std::fmt;
use std::time::Duration;

/// From one heartbeat to the next. The hook waits 300 s for each, so several may be lost.
pub const HEARTBEAT: Duration = Duration::from_secs(60);
/// From one look at the target to the next, and from one try of a call that failed to the next.
pub const POLL: Duration = Duration::from_secs(5);
/// A target that was deregistered says so within seconds. One that does not is deregistered again after this time.
pub const DEREGISTER_AGAIN: Duration = Duration::from_secs(20);
/// From the end of the deregistration delay to the end of the termination's wait. The load balancer moves the flows
/// "shortly after the end of the deregistration timeout" (Network Load Balancers user guide); until then packets come.
pub const SETTLE: Duration = Duration::from_secs(10);
/// How long a target may go without being seen to drain (calls are refused, or do nothing) before the termination goes
/// on all the same.
pub const UNMOVED: Duration = Duration::from_secs(120);
/// Kept of the time before the deadline to let the termination go on, with some tries.
pub const LAST_WORDS: Duration = Duration::from_secs(30);

/// A lifecycle action that waits: what the event `EC2 Instance-terminate Lifecycle Action` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LifecycleAction {
    /// The Auto Scaling group.
    pub group: String,
    /// The hook.
    pub hook: String,
    /// The token of this one action.
    pub token: String,
    /// Who leaves.
    pub instance: InstanceId,
}

/// An event that is no such action: one line with the remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}; send an event of kind `EC2 Instance-terminate Lifecycle Action`")]
pub struct NoAction(String);

impl LifecycleAction {
    /// Reads the event.
    ///
    /// # Errors
    /// It is of another kind, or lacks one of the four.
    pub fn parse(event: &Value) -> Result<Self, NoAction> {
        let kind = event.get("detail-type").and_then(Value::as_str);
        if kind != Some("EC2 Instance-terminate Lifecycle Action") {
            let kind = kind.unwrap_or("none");
            return Err(NoAction(format!("the event is of kind {kind:?}")));
        }
        let text = |key: &str| {
            event
                .pointer(&format!("/detail/{key}"))
                .and_then(Value::as_str)
                .filter(|text| !text.is_empty())
                .ok_or_else(|| NoAction(format!("the event has no text `detail.{key}`")))
        };
        let instance = text("EC2InstanceId")?;
        Ok(Self {
            group: text("AutoScalingGroupName")?.to_owned(),
            hook: text("LifecycleHookName")?.to_owned(),
            token: text("LifecycleActionToken")?.to_owned(),
            instance: InstanceId::parse(instance)
                .ok_or_else(|| NoAction(format!("{instance:?} is no instance id")))?,
        })
    }
}

/// What the load balancer says of a target (Elastic Load Balancing API reference, TargetHealth).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// It is sent to: `healthy`, `unhealthy`, `initial`, or `unavailable`.
    Registered,
    /// `draining`, `unhealthy.draining`: its flows stay until the deregistration delay is over.
    Draining,
    /// `unused`: nothing is sent to it; or there is no such target group any more.
    Gone,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Tell Auto Scaling that it still takes time.
    Heartbeat,
    /// Take the instance out of the target group.
    Deregister,
    /// Ask what the load balancer says of it.
    Look,
    /// Let the termination go on.
    Complete,
    /// Nothing to do for this long.
    Wait(Duration),
    /// It is over.
    End(Ending),
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The flows were moved, and then the termination went on.
    Drained,
    /// The termination went on although the load balancer still had it as a target.
    Unmoved,
    /// The action was over already: someone else let it go on, or its time was up.
    Over,
    /// The termination could not be let go on; the hook's own time will.
    NotCompleted,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Drained => "its flows were moved, and its termination goes on",
            Self::Unmoved => {
                "its termination goes on, although its flows were not seen to be moved"
            }
            Self::Over => "its termination had gone on already",
            Self::NotCompleted => {
                "its termination could not be let go on; the hook does it when its time is up"
            }
        })
    }
}

/// The state of one leave-taking. Pure: time comes in, steps come out.
#[derive(Debug, Clone)]
pub struct Drain {
    /// When `Complete` is due, whatever the target says.
    last_words: Duration,
    deadline: Duration,
    /// When it is due unless the target was seen to drain.
    unmoved: Duration,
    heartbeat: Duration,
    deregister: Duration,
    look: Duration,
    complete: Duration,
    target: Target,
    /// An answer to `Complete` was lost: that the action is over may be its doing.
    unanswered: bool,
    ending: Option<Ending>,
}

impl Drain {
    /// Begins at `now`, to be over at `deadline`.
    pub fn new(now: Duration, deadline: Duration) -> Self {
        Self {
            last_words: now.max(deadline.saturating_sub(LAST_WORDS)),
            deadline,
            unmoved: now + UNMOVED,
            // At once: the event may have come late, and of an action that is over nothing else needs to be asked.
            heartbeat: now,
            deregister: now,
            look: now,
            complete: now,
            target: Target::Registered,
            unanswered: false,
            ending: None,
        }
    }

    /// What to do at `now`. The answer to it goes to the method of the same name.
    pub fn next(&self, now: Duration) -> Step {
        if let Some(ending) = self.ending {
            return Step::End(ending);
        }
        if self.goes_on(now) {
            return if now >= self.deadline {
                Step::End(Ending::NotCompleted)
            } else if now >= self.complete {
                Step::Complete
            } else {
                Step::Wait(self.complete.min(self.deadline) - now)
            };
        }
        let due: [(Duration, Step); 3] = [
            (self.heartbeat, Step::Heartbeat),
            (self.deregister, Step::Deregister),
            (self.look, Step::Look),
        ];
        // The one that has been due for longest, so that slow failures of one never keep another from its turn.
        let (at, step) = due
            .into_iter()
            .min_by_key(|(at, _)| *at)
            .unwrap_or((now, Step::Look));
        if now >= at {
            return step;
        }
        let end = match self.target {
            Target::Registered => self.last_words.min(self.unmoved),
            Target::Draining | Target::Gone => self.last_words,
        };
        Step::Wait(at.min(end) - now)
    }

    /// Whether there is nothing more to wait for.
    fn goes_on(&self, now: Duration) -> bool {
        match self.target {
            Target::Gone => true,
            Target::Draining => now >= self.last_words,
            Target::Registered => now >= self.last_words.min(self.unmoved),
        }
    }

    /// Auto Scaling answered a heartbeat.
    pub fn heartbeat(&mut self, now: Duration, answer: &Result<(), ApiError>) {
        match answer {
            Ok(()) => self.heartbeat = now + HEARTBEAT,
            Err(e) if e.class == ErrorClass::Gone => self.ending = Some(Ending::Over),
            Err(_) => self.heartbeat = now + POLL,
        }
    }

    /// The load balancer answered a deregistration.
    pub fn deregister(&mut self, now: Duration, answer: &Result<(), ApiError>) {
        match answer {
            Ok(()) => {
                self.deregister = now + DEREGISTER_AGAIN;
                self.look = now;
            }
            // There is nothing that could be deregistered; what is, the look will say.
            Err(e) if e.class == ErrorClass::Gone => self.deregister = now + DEREGISTER_AGAIN,
            Err(_) => self.deregister = now + POLL,
        }
    }

    /// The load balancer said what it has.
    pub fn look(&mut self, now: Duration, answer: &Result<Target, ApiError>) {
        self.look = now + POLL;
        match answer {
            Ok(target) => {
                if self.target == Target::Draining && *target == Target::Gone {
                    self.complete = now + SETTLE;
                }
                self.target = *target;
            }
            Err(e) if e.class == ErrorClass::Gone => self.target = Target::Gone,
            Err(_) => {}
        }
        if self.target == Target::Draining {
            self.deregister = Duration::MAX;
        } else {
            self.deregister = self.deregister.min(now + DEREGISTER_AGAIN);
        }
    }

    /// Auto Scaling was told to go on.
    pub fn complete(&mut self, now: Duration, answer: &Result<(), ApiError>) {
        let moved = if self.target == Target::Gone {
            Ending::Drained
        } else {
            Ending::Unmoved
        };
        match answer {
            Ok(()) => self.ending = Some(moved),
            Err(e) if e.class == ErrorClass::Gone && self.unanswered => self.ending = Some(moved),
            Err(e) if e.class == ErrorClass::Gone => self.ending = Some(Ending::Over),
            Err(e) => {
                self.unanswered |= e.code.is_empty();
                self.complete = now + POLL;
            }
        }
    }
}

/// What came of one action.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Left {
    /// Who left.
    pub instance: InstanceId,
    /// How it ended.
    pub ended: Ending,
    /// How long it took.
    pub seconds: f64,
    /// The last error of a call that failed, in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Carries it out.
pub async fn run<P: Targets + Lifecycle + Clock>(
    ports: &P,
    target_group: &str,
    action: &LifecycleAction,
    deadline: Duration,
) -> Left {
    let start = ports.now();
    let mut drain = Drain::new(start, deadline);
    let mut error = None;
    let mut heard = |answer: Option<&ApiError>, call: &str| {
        if let Some(e) = answer {
            error = Some(format!("{call}: {e}"));
        }
    };
    let ended = loop {
        match drain.next(ports.now()) {
            Step::Heartbeat => {
                let answer = ports.heartbeat(action).await;
                heard(answer.as_ref().err(), "heartbeat");
                drain.heartbeat(ports.now(), &answer);
            }
            Step::Deregister => {
                let answer = ports.deregister(target_group, &action.instance).await;
                heard(answer.as_ref().err(), "deregister");
                drain.deregister(ports.now(), &answer);
            }
            Step::Look => {
                let answer = ports.target(target_group, &action.instance).await;
                heard(answer.as_ref().err(), "target health");
                drain.look(ports.now(), &answer);
            }
            Step::Complete => {
                let answer = ports.complete(action).await;
                heard(answer.as_ref().err(), "complete");
                drain.complete(ports.now(), &answer);
            }
            Step::Wait(time) => ports.sleep(time).await,
            Step::End(ending) => break ending,
        }
    };
    let took = ports.now().saturating_sub(start);
    Left {
        instance: action.instance.clone(),
        ended,
        seconds: took.as_secs_f64(),
        error,
    }
}

#[cfg(test)]
mod tests;
