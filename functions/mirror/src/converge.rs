//! Carries a plan out: paced, within a deadline, and safe against anyone who does the same at the same time.
//!
//! The session number is the lock. Two runs that look at one interface at once pick the same lowest free number, so
//! the second create is refused, whatever the code; the answer to every refusal that we do not know is to describe
//! the interface again and to plan anew. Then ours is there, and there is nothing left to do.
//!
//! A plan ages while it is carried out, most of all a long sweep's beside two pollers that make the same sessions: each
//! minute the sessions of the interfaces that come next are looked at again, one page, and planned anew. So a refusal by
//! the lock stays the exception; each costs a change of the pace and a Describe.

use crate::answer::{Answer, Failed, SkipReason, Skipped, Touched};
use crate::error::{ApiError, ErrorClass};
use crate::id::{EniId, SessionId, SessionNumber};
use crate::interface::Interface;
use crate::memory::Memory;
use crate::pace::Pacer;
use crate::plan::{Action, Desired, Limits, Plan, SESSIONS_PER_INTERFACE, plan};
use crate::ports::{Clock, NewSession, Ports, SessionQuery, Sessions};
use crate::settings::Settings;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Tries of one call that can be retried.
const TRIES: u32 = 4;
/// The longest first wait between two tries; it doubles, and each is drawn between half of it and the whole.
const BACK_OFF: Duration = Duration::from_millis(500);
/// Times that one interface is described and planned anew.
const LOOKS: u32 = 3;
/// What a call may take: none is begun with less time left.
const CALL: Duration = Duration::from_secs(3);

/// A plan older than this is made anew for what comes next.
const STALE: Duration = Duration::from_secs(60);
/// How many interfaces that is: the values of one filter (EC2 API, "List and filter using the API").
const NEXT: usize = 200;

/// One invocation.
#[derive(Debug)]
pub struct Run<'a, P> {
    /// The world.
    pub ports: &'a P,
    /// The settings.
    pub settings: &'a Settings,
    /// The pace of changes; lives as long as the process.
    pub pacer: &'a Mutex<Pacer>,
    /// What AWS refused; lives as long as the process.
    pub memory: &'a Memory,
    /// When this run must have ended, in the time of [`Clock::now`].
    pub deadline: Duration,
}

/// What came of a plan.
#[derive(Debug, Default, PartialEq)]
pub struct Outcome {
    /// For the answer.
    pub answer: Answer,
    /// Interfaces where another try, later, may succeed.
    pub retryable: BTreeSet<EniId>,
    /// Interfaces that were described, and that the create did not find: gone, or not visible everywhere yet.
    pub unseen: BTreeSet<EniId>,
    /// Interfaces that AWS refused for what they are.
    pub refused: BTreeSet<EniId>,
    /// When each session was made, since 1970, where the time of day is known.
    pub made: BTreeMap<EniId, Duration>,
}

/// Why a call did not succeed.
#[derive(Debug)]
pub(crate) enum Stop {
    /// No time left at this pace.
    Time,
    /// The stack is being deleted.
    Leaving,
    /// Refused, or out of tries.
    Error(ApiError),
}

/// How one action went.
enum Went {
    /// Done, or failed by itself.
    On,
    /// The account has no session left.
    AccountFull,
    /// The stack is being deleted.
    Leaving,
    /// A create was refused by what may be the lock, for the first time.
    Refused(Action, ApiError),
}

/// A call that changes something.
enum Call<'a> {
    Create {
        eni: &'a EniId,
        number: SessionNumber,
        token: String,
    },
    Modify {
        session: &'a SessionId,
        number: SessionNumber,
    },
}

/// Waits for the turn of one change. `false`: it would not come before the deadline.
pub(crate) async fn turn(clock: &impl Clock, pacer: &Mutex<Pacer>, deadline: Duration) -> bool {
    let wait = {
        let mut pacer = pacer.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock.now();
        let wait = pacer.wait(now);
        if now + wait + CALL > deadline {
            return false;
        }
        pacer.take(now);
        wait
    };
    if !wait.is_zero() {
        clock.sleep(wait).await;
    }
    true
}

/// Waits before the next try. `false`: there is no time for it.
async fn back_off(ports: &(impl Clock + Sessions), tried: u32, deadline: Duration) -> bool {
    // Not all the same, or all who were throttled together come back together.
    let wait = (BACK_OFF * 2u32.saturating_pow(tried)).mul_f64(0.5 + 0.5 * ports.random());
    let clock = ports;
    if clock.now() + wait + CALL > deadline {
        return false;
    }
    clock.sleep(wait).await;
    true
}

/// Removes one session. One that is gone already is success.
pub(crate) async fn delete<P: Sessions + Clock>(
    ports: &P,
    pacer: &Mutex<Pacer>,
    deadline: Duration,
    session: &SessionId,
) -> Result<(), Stop> {
    let mut tried = 0;
    loop {
        if !turn(ports, pacer, deadline).await {
            return Err(Stop::Time);
        }
        tried += 1;
        match ports.delete(session).await {
            Err(e) if e.class == ErrorClass::Gone => return Ok(()),
            Err(e) if e.class == ErrorClass::Retry && tried < TRIES => {
                if !back_off(ports, tried, deadline).await {
                    return Err(Stop::Error(e));
                }
            }
            other => return other.map_err(Stop::Error),
        }
    }
}

impl<P: Ports> Run<'_, P> {
    /// Carries out `plan`, which was made for `desired`. Skips of the plan are taken over into the answer.
    pub async fn execute(&self, desired: &Desired, plan: Plan) -> Outcome {
        let mut outcome = Outcome::default();
        outcome.answer.skipped = plan
            .skipped
            .into_iter()
            .map(|(eni, reason)| Skipped { eni, reason })
            .collect();
        let mut account_full = false;
        let mut left = VecDeque::from(plan.actions);
        let mut looked = self.ports.now();
        let mut refused: BTreeSet<EniId> = BTreeSet::new();
        while !left.is_empty() {
            let now = self.ports.now();
            if now.saturating_sub(looked) >= STALE && now + CALL < self.deadline {
                self.look_ahead(desired, &mut left, &mut outcome).await;
                looked = self.ports.now();
            }
            let Some(action) = left.pop_front() else {
                break;
            };
            if account_full && matches!(action, Action::Create { .. }) {
                outcome.skip(action.eni(), SkipReason::AccountQuota);
                continue;
            }
            let again = refused.contains(action.eni());
            match self.converge(desired, action, again, &mut outcome).await {
                Went::On => {}
                Went::AccountFull => account_full = true,
                Went::Leaving => {
                    let deletes = |a: &Action| matches!(a, Action::Delete { .. });
                    for action in left.iter().filter(|a| !deletes(a)) {
                        outcome.skip(action.eni(), SkipReason::StackLeaving);
                    }
                    left.retain(deletes);
                }
                Went::Refused(action, error) => {
                    // Another run is here, so it may be at the next ones too: one look for all.
                    refused.insert(action.eni().clone());
                    left.push_front(action.clone());
                    self.look_ahead(desired, &mut left, &mut outcome).await;
                    looked = self.ports.now();
                    // The same again: what the refusal knew is not visible yet.
                    if left.front() == Some(&action)
                        && !back_off(self.ports, 1, self.deadline).await
                    {
                        left.pop_front();
                        outcome.fail(action.eni(), &error, true);
                    }
                }
            }
        }
        outcome
    }

    /// Takes the refusals of a run over into the process's memory. `interfaces`: those that the run looked at.
    pub(crate) fn remember(&self, outcome: &Outcome, interfaces: &[Interface]) {
        let refused = |i: &&Interface| outcome.refused.contains(&i.id);
        for interface in interfaces.iter().filter(refused) {
            self.memory.refuse(interface, self.ports.now());
        }
    }

    /// Whether the stack is being deleted. Asked again after [`STAYS_FOR`](crate::memory::STAYS_FOR), for which the
    /// removal waits too.
    pub(crate) async fn is_leaving(&self) -> bool {
        let now = self.ports.now();
        if self.memory.stays(now) {
            return false;
        }
        let leaving = self.ports.stack_is_leaving(&self.settings.stack).await;
        let leaving = leaving.unwrap_or(false);
        if !leaving {
            self.memory.stayed(now);
        }
        leaving
    }

    /// Plans the changes and creations that come next anew, by what is there now.
    async fn look_ahead(
        &self,
        desired: &Desired,
        left: &mut VecDeque<Action>,
        outcome: &mut Outcome,
    ) {
        let deletes = |a: &Action| matches!(a, Action::Delete { .. });
        let first = left.iter().position(|a| !deletes(a)).unwrap_or(left.len());
        let enis: Vec<EniId> = left
            .range(first..)
            .take(NEXT)
            .map(|a| a.eni().clone())
            .collect();
        if enis.is_empty() {
            return;
        }
        if self.is_leaving().await {
            for action in left.drain(first..) {
                outcome.skip(action.eni(), SkipReason::StackLeaving);
            }
            return;
        }
        // Without the new sight the old plan does: the number is the lock.
        let Ok(anew) = self.look_again(desired, &enis).await else {
            return;
        };
        for (eni, reason) in anew.skipped {
            outcome.skip(&eni, reason);
        }
        let behind = left.split_off((first + enis.len()).min(left.len()));
        left.truncate(first);
        left.extend(anew.actions.into_iter().filter(|a| !deletes(a)));
        left.extend(behind);
    }

    /// Carries out one action, and what it turns into when the interface has changed meanwhile. `again`: it was refused
    /// before.
    async fn converge(
        &self,
        desired: &Desired,
        action: Action,
        again: bool,
        outcome: &mut Outcome,
    ) -> Went {
        let mut next = Some(action);
        let mut looks = u32::from(again);
        while let Some(action) = next.take() {
            let eni = action.eni().clone();
            let error = match self.act(desired, &action, outcome).await {
                Ok(()) => return Went::On,
                Err(Stop::Time) => {
                    outcome.skip(&eni, SkipReason::LeftToSweep);
                    return Went::On;
                }
                Err(Stop::Leaving) => {
                    outcome.skip(&eni, SkipReason::StackLeaving);
                    return Went::Leaving;
                }
                Err(Stop::Error(error)) => error,
            };
            let changed_meanwhile = match (&action, error.class) {
                (Action::Create { .. }, ErrorClass::Unknown) => true,
                (Action::Modify { .. }, ErrorClass::Unknown | ErrorClass::Gone) => true,
                (Action::Create { .. }, ErrorClass::Gone) => {
                    outcome.skip(&eni, SkipReason::InterfaceGone);
                    outcome.unseen.insert(eni);
                    return Went::On;
                }
                _ => false,
            };
            looks += 1;
            if looks == 1 && changed_meanwhile && matches!(action, Action::Create { .. }) {
                return Went::Refused(action, error);
            }
            if !changed_meanwhile || looks > LOOKS {
                let retryable = changed_meanwhile || error.class == ErrorClass::Retry;
                if matches!(action, Action::Create { .. }) && error.is_for_what_it_is() {
                    outcome.refused.insert(eni.clone());
                }
                outcome.fail(&eni, &error, retryable);
                return if error.code == "TrafficMirrorSessionLimitExceeded" {
                    Went::AccountFull
                } else {
                    Went::On
                };
            }
            match self.look_again(desired, std::slice::from_ref(&eni)).await {
                Err(e) => outcome.fail(&eni, &e, e.class == ErrorClass::Retry),
                Ok(replanned) => {
                    for (eni, reason) in replanned.skipped {
                        outcome.skip(&eni, reason);
                    }
                    // Deletions of doubles are the sweep's, which lists everything first.
                    next = replanned
                        .actions
                        .into_iter()
                        .find(|a| !matches!(a, Action::Delete { .. }));
                    // The same again: what the refusal knew is not visible yet.
                    if next.as_ref() == Some(&action)
                        && !back_off(self.ports, looks, self.deadline).await
                    {
                        outcome.fail(&eni, &error, true);
                        return Went::On;
                    }
                }
            }
        }
        Went::On
    }

    async fn act(
        &self,
        desired: &Desired,
        action: &Action,
        outcome: &mut Outcome,
    ) -> Result<(), Stop> {
        match action {
            Action::Create { eni, number } => {
                let token = self.ports.token();
                let made = self
                    .call(
                        desired,
                        &Call::Create {
                            eni,
                            number: *number,
                            token,
                        },
                    )
                    .await?;
                if let Some(now) = self.ports.since_epoch() {
                    outcome.made.insert(eni.clone(), now);
                }
                outcome.answer.created.push(Touched {
                    eni: eni.clone(),
                    session: made,
                    number: *number,
                });
            }
            Action::Modify {
                session,
                eni,
                number,
            } => {
                let call = Call::Modify {
                    session,
                    number: *number,
                };
                if let Err(stop) = self.call(desired, &call).await {
                    return Err(self.seen_through(stop, session, eni).await);
                }
                let session = Some(session.clone());
                outcome.answer.modified.push(Touched {
                    eni: eni.clone(),
                    session,
                    number: *number,
                });
            }
            Action::Delete {
                session,
                eni,
                number,
                ..
            } => {
                if let Err(stop) = delete(self.ports, self.pacer, self.deadline, session).await {
                    match self.seen_through(stop, session, eni).await {
                        Stop::Error(e) if e.class == ErrorClass::Gone => {}
                        stop => return Err(stop),
                    }
                }
                let session = Some(session.clone());
                outcome.answer.deleted.push(Touched {
                    eni: eni.clone(),
                    session,
                    number: *number,
                });
            }
        }
        Ok(())
    }

    /// The policies allow changes of sessions by their tag, which a session that is gone has no more: then AWS may say
    /// that this is not allowed, instead of that there is no such session.
    async fn seen_through(&self, stop: Stop, session: &SessionId, eni: &EniId) -> Stop {
        match stop {
            Stop::Error(error) if error.code == "UnauthorizedOperation" => {
                let listed = self
                    .ports
                    .sessions(SessionQuery::On(std::slice::from_ref(eni)));
                let gone = listed
                    .await
                    .is_ok_and(|l| l.iter().all(|s| s.id != *session));
                let class = if gone { ErrorClass::Gone } else { error.class };
                Stop::Error(ApiError { class, ..error })
            }
            stop => stop,
        }
    }

    async fn call(&self, desired: &Desired, call: &Call<'_>) -> Result<Option<SessionId>, Stop> {
        let mut tried = 0;
        loop {
            // Before the turn: a change that comes after its turn is too close to the next.
            if matches!(call, Call::Create { .. }) && self.is_leaving().await {
                return Err(Stop::Leaving);
            }
            if !turn(self.ports, self.pacer, self.deadline).await {
                return Err(Stop::Time);
            }
            tried += 1;
            let result = match call {
                Call::Create { eni, number, token } => {
                    let new = NewSession {
                        eni,
                        number: *number,
                        spec: &desired.spec,
                        stack: &desired.stack,
                        token,
                    };
                    self.ports.create(new).await.map(Some)
                }
                Call::Modify { session, number } => self
                    .ports
                    .modify(session, *number, &desired.spec)
                    .await
                    .map(|()| None),
            };
            match result {
                Err(e) if e.class == ErrorClass::Retry && tried < TRIES => {
                    if !back_off(self.ports, tried, self.deadline).await {
                        return Err(Stop::Error(e));
                    }
                }
                other => return other.map_err(Stop::Error),
            }
        }
    }

    /// What there is to do on these interfaces, by what is there now.
    async fn look_again(&self, desired: &Desired, enis: &[EniId]) -> Result<Plan, ApiError> {
        let actual = self.ports.sessions(SessionQuery::On(enis)).await?;
        let interfaces = enis
            .iter()
            .filter_map(|eni| Some((eni.clone(), *desired.interfaces.get(eni)?)))
            .collect();
        let only = Desired {
            interfaces,
            ..desired.clone_without_interfaces()
        };
        Ok(plan(
            &only,
            &actual,
            &Limits {
                per_interface: SESSIONS_PER_INTERFACE,
                per_account: None,
            },
        ))
    }
}

impl Desired {
    /// The same wish for other interfaces; 10,000 verdicts are not copied to look at one.
    fn clone_without_interfaces(&self) -> Desired {
        Desired {
            stack: self.stack.clone(),
            spec: self.spec.clone(),
            base: self.base,
            interfaces: Default::default(),
            complete: self.complete,
        }
    }
}

impl Outcome {
    fn skip(&mut self, eni: &EniId, reason: SkipReason) {
        self.answer.skipped.push(Skipped {
            eni: eni.clone(),
            reason,
        });
    }

    fn fail(&mut self, eni: &EniId, error: &ApiError, retryable: bool) {
        self.answer.failed.push(Failed {
            eni: eni.clone(),
            error: error.to_string(),
            class: error.class,
        });
        if retryable {
            self.retryable.insert(eni.clone());
        }
    }
}

#[cfg(test)]
mod tests;
