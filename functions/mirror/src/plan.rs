//! What has to be done, given what is wanted and what is there. One pure function.

use crate::answer::SkipReason;
use crate::id::{EniId, FilterId, SessionId, SessionNumber, StackArn, TargetId};
use std::collections::{BTreeMap, BTreeSet};

/// What a session of ours is to look like, whatever its interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionSpec {
    /// Where the copies go.
    pub target: TargetId,
    /// Which packets are copied.
    pub filter: FilterId,
    /// VXLAN network identifier, 0 to 16777215.
    pub vni: u32,
    /// Bytes of each packet that are copied, 1 to 8500.
    pub packet_length: u16,
}

/// A session that exists, whoever it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// The mirrored interface.
    pub eni: EniId,
    /// Its number.
    pub number: SessionNumber,
    /// Where the copies go.
    pub target: TargetId,
    /// Which packets are copied.
    pub filter: FilterId,
    /// VXLAN network identifier, where the API says it.
    pub vni: Option<u32>,
    /// Bytes of each packet that are copied, where the API says it.
    pub packet_length: Option<u32>,
    /// Value of the tag `mirrorfleet:stack`.
    pub stack: Option<StackArn>,
}

impl Session {
    /// Whether the session belongs to the stack. Nothing else makes it ours.
    pub fn is_of(&self, stack: &StackArn) -> bool {
        self.stack.as_ref() == Some(stack)
    }

    fn matches(&self, spec: &SessionSpec, base: SessionNumber) -> bool {
        self.target == spec.target
            && self.filter == spec.filter
            && self.vni == Some(spec.vni)
            && self.packet_length == Some(u32::from(spec.packet_length))
            && self.number >= base
    }
}

/// Who gets the last places of the account, and whose session is made first: the lowest rank, and of equal ones the
/// lowest interface id.
///
/// The order of the fields is the order of precedence. It depends on nothing but the interface and the selection, so each
/// run decides alike. A session that is there is never given up for an interface of a lower rank: nobody gains from
/// sessions that come and go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    /// AWS will probably refuse it: an instance family that its list leaves out, an interface of a load balancer.
    pub doubtful: bool,
    /// Which group of the selection names it, counted from 0: the operator lists first what matters most.
    pub group: usize,
    /// Not the primary interface of its instance: most services listen on that one.
    pub secondary: bool,
}

/// What is wanted of one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A session of ours.
    Mirror(Rank),
    /// In passing from one state to another: no session is made, and one that is there stays.
    Keep(SkipReason),
    /// Selected, but not to be mirrored: one that is there goes.
    Release(SkipReason),
    /// Not selected: one that is there goes.
    Unselected,
}

/// What is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    /// Whose sessions are ours.
    pub stack: StackArn,
    /// What each of them is to look like.
    pub spec: SessionSpec,
    /// The lowest number that we use: lower ones would win packets from other teams' sessions.
    pub base: SessionNumber,
    /// The interfaces that were looked at.
    pub interfaces: BTreeMap<EniId, Verdict>,
    /// Whether those are all there are. If so, sessions of ours on other interfaces go.
    pub complete: bool,
}

/// What AWS allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sessions of one interface, everyone's counted.
    pub per_interface: usize,
    /// Sessions of the account in the region; `None` where not all of them were listed, and the API has the last word.
    pub per_account: Option<usize>,
}

/// Sessions that one source interface can have (traffic-mirroring-quotas; not adjustable).
pub const SESSIONS_PER_INTERFACE: usize = 3;
/// Sessions that an account can have in a region (traffic-mirroring-quotas; not adjustable).
pub const SESSIONS_PER_ACCOUNT: usize = 10_000;

/// Why a session of ours goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteReason {
    /// Its interface is not selected any more.
    Unselected,
    /// Its interface cannot or must not be mirrored.
    Released,
    /// Another one of ours on the interface has a lower id.
    Duplicate,
    /// The interface was in no complete listing.
    InterfaceGone,
}

/// One call to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Make a session.
    Create {
        /// On this interface.
        eni: EniId,
        /// With this number.
        number: SessionNumber,
    },
    /// Give a session of ours the wanted target, filter, VNI, packet length and number.
    Modify {
        /// This session.
        session: SessionId,
        /// On this interface.
        eni: EniId,
        /// The number that it has or gets.
        number: SessionNumber,
    },
    /// Remove a session of ours.
    Delete {
        /// This session.
        session: SessionId,
        /// On this interface.
        eni: EniId,
        /// The number that it has.
        number: SessionNumber,
        /// Why.
        why: DeleteReason,
    },
}

impl Action {
    /// The interface that it is about.
    pub fn eni(&self) -> &EniId {
        match self {
            Action::Create { eni, .. }
            | Action::Modify { eni, .. }
            | Action::Delete { eni, .. } => eni,
        }
    }
}

/// What is to be done, in this order: deletions, changes, creations (by [`Rank`]), each by interface; creations of equal
/// rank backwards where `desired` is not complete.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The calls to make.
    pub actions: Vec<Action>,
    /// Selected interfaces that get no session.
    pub skipped: Vec<(EniId, SkipReason)>,
    /// Sessions of ours after the plan.
    pub ours: usize,
    /// Sessions of others.
    pub foreign: usize,
}

/// Decides. Touches sessions that carry `desired.stack` alone; applied to its own result it does nothing.
///
/// `actual` holds every session, everyone's, of the interfaces in `desired.interfaces` at least.
pub fn plan(desired: &Desired, actual: &[Session], limits: &Limits) -> Plan {
    let mut by_eni: BTreeMap<&EniId, Vec<&Session>> = BTreeMap::new();
    for session in actual {
        by_eni.entry(&session.eni).or_default().push(session);
    }
    let mut deletes = Vec::new();
    let mut modifies = Vec::new();
    let mut wanting: Vec<(Rank, &EniId)> = Vec::new();
    let mut plan = Plan {
        foreign: actual.iter().filter(|s| !s.is_of(&desired.stack)).count(),
        ..Plan::default()
    };

    for eni in desired.interfaces.keys().chain(
        by_eni
            .keys()
            .copied()
            .filter(|e| !desired.interfaces.contains_key(*e)),
    ) {
        let sessions = by_eni.get(eni).map_or(&[][..], Vec::as_slice);
        let mut ours: Vec<&Session> = sessions
            .iter()
            .copied()
            .filter(|s| s.is_of(&desired.stack))
            .collect();
        ours.sort_by(|a, b| a.id.cmp(&b.id));
        let (keep, why) = match desired.interfaces.get(eni) {
            Some(Verdict::Mirror(_)) => (true, DeleteReason::Duplicate),
            Some(Verdict::Keep(reason)) => {
                plan.skipped.push((eni.clone(), *reason));
                (true, DeleteReason::Duplicate)
            }
            Some(Verdict::Release(reason)) => {
                plan.skipped.push((eni.clone(), *reason));
                (false, DeleteReason::Released)
            }
            Some(Verdict::Unselected) => (false, DeleteReason::Unselected),
            None if desired.complete => (false, DeleteReason::InterfaceGone),
            None => {
                plan.ours += ours.len();
                continue;
            }
        };
        for session in ours.iter().skip(usize::from(keep)) {
            let (session, eni, number) = (session.id.clone(), session.eni.clone(), session.number);
            deletes.push(Action::Delete {
                session,
                eni,
                number,
                why,
            });
        }
        let Some(Verdict::Mirror(rank)) = desired.interfaces.get(eni) else {
            plan.ours += usize::from(keep && !ours.is_empty());
            continue;
        };
        match ours.first() {
            None => wanting.push((*rank, eni)),
            Some(kept) => {
                plan.ours += 1;
                if kept.matches(&desired.spec, desired.base) {
                    continue;
                }
                let taken = numbers(sessions, |s| s.id != kept.id && !s.is_of(&desired.stack));
                let number = if kept.number >= desired.base {
                    Some(kept.number)
                } else {
                    lowest_free(desired.base, &taken)
                };
                // No free number above the base: it keeps the one that it has.
                let number = number.unwrap_or(kept.number);
                if number != kept.number || !kept.matches(&desired.spec, kept.number) {
                    modifies.push(Action::Modify {
                        session: kept.id.clone(),
                        eni: eni.clone(),
                        number,
                    });
                }
            }
        }
    }

    let mut total = actual.len() - deletes.len();
    wanting.sort_by(|(a, x), (b, y)| {
        // By id; backwards where only some were looked at, so that events and a sweep begin at the two ends.
        let by_id = if desired.complete { x.cmp(y) } else { y.cmp(x) };
        a.cmp(b).then(by_id)
    });
    let mut creates = Vec::new();
    for (_, eni) in wanting {
        let foreign = by_eni.get(eni).map_or(&[][..], Vec::as_slice);
        let number = lowest_free(desired.base, &numbers(foreign, |_| true));
        match number {
            _ if foreign.len() >= limits.per_interface => {
                plan.skipped.push((eni.clone(), SkipReason::InterfaceFull));
            }
            None => plan.skipped.push((eni.clone(), SkipReason::NoFreeNumber)),
            _ if limits.per_account.is_some_and(|most| total >= most) => {
                plan.skipped.push((eni.clone(), SkipReason::AccountQuota));
            }
            Some(number) => {
                total += 1;
                plan.ours += 1;
                creates.push(Action::Create {
                    eni: eni.clone(),
                    number,
                });
            }
        }
    }
    plan.actions = deletes;
    plan.actions.append(&mut modifies);
    plan.actions.append(&mut creates);
    plan
}

fn numbers(sessions: &[&Session], counts: impl Fn(&Session) -> bool) -> BTreeSet<SessionNumber> {
    sessions
        .iter()
        .filter(|s| counts(s))
        .map(|s| s.number)
        .collect()
}

fn lowest_free(base: SessionNumber, taken: &BTreeSet<SessionNumber>) -> Option<SessionNumber> {
    let mut number = base;
    while taken.contains(&number) {
        number = number.next()?;
    }
    Some(number)
}

#[cfg(test)]
mod tests;
