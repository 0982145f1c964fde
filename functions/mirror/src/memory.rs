//! What a process remembers from run to run: which interfaces AWS refused for what they are, which are mirror targets,
//! and that the stack was not being deleted a moment ago.
//!
//! AWS is the only state store, and this is no state: a process that has forgotten tries each of them once more, and is
//! refused once more. Without it a few hundred that are refused would use up the pace of every sweep.

use crate::id::{EniId, InstanceId};
use crate::interface::Interface;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long a refusal counts while the interface stays as it is: AWS's list of what can be a source grows.
pub const REFUSED_FOR: Duration = Duration::from_secs(6 * 3600);
/// Most refusals that are remembered, some 100 bytes each; what is beyond is tried again.
pub const MAX_REFUSED: usize = 10_000;

/// How long the list of mirror targets counts: one that is new is refused by the API until it is in the list.
pub const TARGETS_FOR: Duration = Duration::from_secs(300);

/// How long it counts that the stack is not being deleted, so that CloudFormation is not asked at each change.
pub const STAYS_FOR: Duration = Duration::from_secs(3);

/// What decides whether AWS takes an interface as a source.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Shape {
    kind: String,
    instance: Option<InstanceId>,
    instance_type: Option<String>,
}

impl Shape {
    fn of(interface: &Interface) -> Self {
        Self {
            kind: interface.kind.clone(),
            instance: interface.instance_id.clone(),
            instance_type: interface.instance.as_ref().map(|i| i.instance_type.clone()),
        }
    }
}

/// The memory of one process. Lives as long as it.
#[derive(Debug, Default)]
pub struct Memory {
    refused: Mutex<BTreeMap<EniId, (Shape, Duration)>>,
    targets: Mutex<Option<(Arc<BTreeSet<EniId>>, Duration)>>,
    stayed: Mutex<Option<Duration>>,
}

impl Memory {
    /// The mirror targets that were listed not long before `now`.
    pub(crate) fn targets(&self, now: Duration) -> Option<Arc<BTreeSet<EniId>>> {
        let targets = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        let (targets, at) = targets.as_ref()?;
        (now.saturating_sub(*at) < TARGETS_FOR).then(|| Arc::clone(targets))
    }

    /// These are all mirror targets, as listed at `now`.
    pub(crate) fn keep_targets(&self, targets: Arc<BTreeSet<EniId>>, now: Duration) {
        let mut kept = self.targets.lock().unwrap_or_else(PoisonError::into_inner);
        *kept = Some((targets, now));
    }

    /// Whether the stack was not being deleted shortly before `now`.
    pub(crate) fn stays(&self, now: Duration) -> bool {
        let stayed = self.stayed.lock().unwrap_or_else(PoisonError::into_inner);
        stayed.is_some_and(|at| now.saturating_sub(at) < STAYS_FOR)
    }

    /// The stack was not being deleted at `now`.
    pub(crate) fn stayed(&self, now: Duration) {
        *self.stayed.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
    }

    fn refused(&self) -> MutexGuard<'_, BTreeMap<EniId, (Shape, Duration)>> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// AWS refused the interface at `now`, for what it is.
    pub fn refuse(&self, interface: &Interface, now: Duration) {
        let mut refused = self.refused();
        if refused.len() >= MAX_REFUSED {
            refused.retain(|_, (_, at)| now.saturating_sub(*at) < REFUSED_FOR);
        }
        if refused.len() < MAX_REFUSED || refused.contains_key(&interface.id) {
            refused.insert(interface.id.clone(), (Shape::of(interface), now));
        }
    }

    /// Whether AWS would refuse it again: it did so not long ago, and the interface has not changed.
    pub fn is_refused(&self, interface: &Interface, now: Duration) -> bool {
        self.refused()
            .get(&interface.id)
            .is_some_and(|(shape, at)| {
                now.saturating_sub(*at) < REFUSED_FOR && *shape == Shape::of(interface)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::interface;

    #[test]
    fn a_refusal_is_remembered_until_the_interface_changes_or_six_hours_have_passed() {
        let memory = Memory::default();
        let i = interface("eni-1", "i-1");
        let at = Duration::from_secs(100);
        assert!(!memory.is_refused(&i, at));
        memory.refuse(&i, at);
        assert!(memory.is_refused(&i, at + REFUSED_FOR - Duration::from_secs(1)));
        assert!(!memory.is_refused(&i, at + REFUSED_FOR));
        assert!(!memory.is_refused(&interface("eni-2", "i-1"), at));
        let mut resized = interface("eni-1", "i-1");
        if let Some(instance) = &mut resized.instance {
            instance.instance_type = "m5.xlarge".to_owned();
        }
        assert!(!memory.is_refused(&resized, at));
        let elsewhere = interface("eni-1", "i-2");
        assert!(!memory.is_refused(&elsewhere, at));
    }

    #[test]
    fn mirror_targets_are_listed_anew_after_five_minutes() {
        let memory = Memory::default();
        let listed = Arc::new(BTreeSet::from([EniId::new("eni-1")]));
        assert_eq!(memory.targets(Duration::ZERO), None);
        memory.keep_targets(Arc::clone(&listed), Duration::from_secs(10));
        let last = Duration::from_secs(10) + TARGETS_FOR - Duration::from_secs(1);
        assert_eq!(memory.targets(last), Some(listed));
        assert_eq!(memory.targets(last + Duration::from_secs(1)), None);
    }

    #[test]
    fn the_cap_is_reached_and_what_is_old_makes_room() {
        let memory = Memory::default();
        for n in 0..=MAX_REFUSED {
            memory.refuse(&interface(&format!("eni-{n}"), "i-1"), Duration::ZERO);
        }
        assert_eq!(memory.refused().len(), MAX_REFUSED);
        let late = interface("eni-late", "i-1");
        memory.refuse(&late, REFUSED_FOR);
        assert!(memory.is_refused(&late, REFUSED_FOR));
        assert_eq!(memory.refused().len(), 1);
    }
}
