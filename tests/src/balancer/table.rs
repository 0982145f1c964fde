//! Which target a packet goes to: the flow table. Pure; time is an argument.
//!
//! Rules, from the Network Load Balancers user guide: a flow is its 5-tuple and stays with its target until it has been
//! idle for 120 s ("Connection idle timeout"); new flows go to healthy registered targets only, and to all registered
//! ones when none is healthy ("Health checks": fail open); the flows of an unhealthy target move at once (there is no
//! connection to end in UDP); those of a deregistering one go on until its delay is over ("Deregistration delay"), and
//! move then where connection termination is enabled, else when they have been idle.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use super::health::{Check, Health, State};

/// How long a flow without a packet is remembered.
pub const IDLE: Duration = Duration::from_secs(120);

/// An outer flow. Its protocol is UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Flow {
    /// Who sends: the mirrored interface's address.
    pub source: SocketAddrV4,
    /// To where: the load balancer's address.
    pub destination: SocketAddrV4,
}

/// Whether a target takes part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Registered,
    Deregistering {
        until: Instant,
    },
    /// Its delay is over.
    Left,
}

#[derive(Debug)]
struct Target {
    id: String,
    standing: Standing,
    health: Health,
}

#[derive(Debug)]
struct Entry {
    target: usize,
    last: Instant,
}

/// What the load balancer is told of a target.
#[derive(Clone, Debug, PartialEq)]
pub struct Told {
    /// The target's id.
    pub id: String,
    /// For how long its flows still go on; `None` while it is registered.
    pub leaves_in: Option<Duration>,
}

/// The flows and the targets of one target group.
#[derive(Debug, Default)]
pub struct Table {
    targets: Vec<Target>,
    flows: HashMap<Flow, Entry>,
    termination: bool,
    moved: u64,
}

impl Table {
    /// Takes over which targets there are. `termination`: whether flows are ended when a delay is over.
    pub fn follow(&mut self, told: &[Told], termination: bool, now: Instant) {
        self.termination = termination;
        for target in told {
            let known = self.targets.iter_mut().find(|known| known.id == target.id);
            let standing = match target.leaves_in {
                None => Standing::Registered,
                Some(left) => Standing::Deregistering { until: now + left },
            };
            match known {
                None if standing == Standing::Registered => self.targets.push(Target {
                    id: target.id.clone(),
                    standing,
                    health: Health::default(),
                }),
                None => {}
                Some(known) => match (known.standing, standing) {
                    // The end stands from the first time that it was told.
                    (
                        Standing::Deregistering { .. } | Standing::Left,
                        Standing::Deregistering { .. },
                    ) => {}
                    (Standing::Registered, Standing::Registered) => {}
                    (_, Standing::Registered) => {
                        known.standing = standing;
                        known.health = Health::default();
                    }
                    (Standing::Registered, _) => known.standing = standing,
                    (_, Standing::Left) => {}
                },
            }
        }
        for target in &mut self.targets {
            let gone = !told.iter().any(|it| it.id == target.id);
            let over = matches!(target.standing, Standing::Deregistering { until } if now >= until);
            if gone || over {
                target.standing = Standing::Left;
            }
        }
    }

    /// The target of a packet of this flow; `None` where there is none at all.
    pub fn route(&mut self, flow: Flow, now: Instant) -> Option<usize> {
        let failing_open = !self.targets.iter().any(takes_new_flows);
        let before = match self.flows.get_mut(&flow) {
            Some(entry) if now.saturating_duration_since(entry.last) < IDLE => {
                let target = self.targets.get(entry.target);
                if target.is_some_and(|it| keeps_flows(it, failing_open, self.termination, now)) {
                    entry.last = now;
                    return Some(entry.target);
                }
                Some(entry.target)
            }
            _ => None,
        };
        let candidates: Vec<usize> = (0..self.targets.len())
            .filter(|&index| {
                self.targets.get(index).is_some_and(|target| {
                    takes_new_flows(target)
                        || failing_open && target.standing == Standing::Registered
                })
            })
            .collect();
        let mut hasher = DefaultHasher::new();
        flow.hash(&mut hasher);
        let count = u64::try_from(candidates.len())
            .ok()
            .filter(|&count| count > 0)?;
        let place = usize::try_from(hasher.finish() % count).ok()?;
        let target = *candidates.get(place)?;
        if before.is_some_and(|before| before != target) {
            self.moved += 1;
        }
        self.flows.insert(flow, Entry { target, last: now });
        Some(target)
    }

    /// Takes the result of a health check.
    pub fn checked(&mut self, id: &str, passed: bool, check: &Check) {
        if let Some(target) = self.targets.iter_mut().find(|target| target.id == id) {
            target.health.note(passed, check);
        }
    }

    /// The id of a target that [`Self::route`] has named.
    #[must_use]
    pub fn id(&self, target: usize) -> &str {
        self.targets.get(target).map_or("", |target| &target.id)
    }

    /// Registered targets and how they are. A deregistering one is not checked any more.
    #[must_use]
    pub fn states(&self) -> BTreeMap<String, State> {
        let registered = |target: &&Target| target.standing == Standing::Registered;
        let state = |target: &Target| (target.id.clone(), target.health.state());
        self.targets.iter().filter(registered).map(state).collect()
    }

    /// Flows that went to another target than before.
    #[must_use]
    pub const fn moved(&self) -> u64 {
        self.moved
    }

    /// Flows that each target holds.
    #[must_use]
    pub fn flows(&self) -> BTreeMap<String, usize> {
        let mut held = BTreeMap::new();
        for entry in self.flows.values() {
            *held.entry(self.id(entry.target).to_owned()).or_default() += 1;
        }
        held
    }
}

fn takes_new_flows(target: &Target) -> bool {
    target.standing == Standing::Registered && target.health.state() == State::Healthy
}

fn keeps_flows(target: &Target, failing_open: bool, termination: bool, now: Instant) -> bool {
    let unhealthy = target.health.state() == State::Unhealthy;
    match target.standing {
        Standing::Registered => failing_open || target.health.state() == State::Healthy,
        // One that was found dead, and is therefore replaced, gets none of its flows back.
        Standing::Deregistering { until } => !unhealthy && (now < until || !termination),
        Standing::Left => !unhealthy && !termination,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn flow(port: u16) -> Flow {
        Flow {
            source: SocketAddrV4::new([172, 31, 0, 7].into(), port),
            destination: SocketAddrV4::new([100, 64, 0, 2].into(), 4789),
        }
    }

    fn told(targets: &[(&str, Option<u64>)]) -> Vec<Told> {
        let told = |&(id, seconds): &(&str, Option<u64>)| Told {
            id: id.to_owned(),
            leaves_in: seconds.map(Duration::from_secs),
        };
        targets.iter().map(told).collect()
    }

    /// These targets, all of them healthy.
    fn table(ids: &[&str], now: Instant) -> Table {
        let mut table = Table::default();
        let targets: Vec<_> = ids.iter().map(|&id| (id, None)).collect();
        table.follow(&told(&targets), true, now);
        for id in ids {
            table.checked(id, true, &Check::default());
        }
        table
    }

    fn fails(table: &mut Table, id: &str) {
        for _ in 0..Check::default().unhealthy_threshold {
            table.checked(id, false, &Check::default());
        }
    }

    fn to(table: &mut Table, port: u16, now: Instant) -> String {
        let target = table.route(flow(port), now).unwrap();
        table.id(target).to_owned()
    }

    fn of(table: &mut Table, ports: std::ops::Range<u16>, now: Instant) -> BTreeMap<u16, String> {
        ports.map(|port| (port, to(table, port, now))).collect()
    }

    #[test]
    fn flows_are_spread_over_the_healthy_and_stay() {
        let now = Instant::now();
        let mut table = table(&["a", "b", "c"], now);
        let first = of(&mut table, 0..300, now);
        for id in ["a", "b", "c"] {
            let share = first.values().filter(|&it| it == id).count();
            assert!((60..140).contains(&share), "{id}: {share} of 300");
        }
        assert_eq!(of(&mut table, 0..300, now + 119 * SECOND), first);
        assert_eq!(table.moved(), 0);
    }

    #[test]
    fn a_new_target_gets_new_flows_only() {
        let now = Instant::now();
        let mut table = table(&["a", "b"], now);
        let first = of(&mut table, 0..100, now);
        table.follow(&told(&[("a", None), ("b", None), ("c", None)]), true, now);
        let fresh = of(&mut table, 100..200, now);
        assert!(
            !fresh.values().any(|id| id == "c"),
            "not before it is healthy"
        );
        table.checked("c", true, &Check::default());
        assert_eq!(of(&mut table, 0..100, now), first);
        let fresh = of(&mut table, 200..300, now);
        assert!(fresh.values().any(|id| id == "c"));
    }

    #[test]
    fn the_flows_of_an_unhealthy_target_move_at_once_and_no_others() {
        let now = Instant::now();
        let mut table = table(&["a", "b", "c"], now);
        let first = of(&mut table, 0..300, now);
        table.checked("a", false, &Check::default());
        assert_eq!(of(&mut table, 0..300, now), first, "one failure is none");
        table.checked("a", false, &Check::default());
        let second = of(&mut table, 0..300, now);
        assert!(!second.values().any(|id| id == "a"));
        for (port, id) in first.iter().filter(|(_, id)| *id != "a") {
            assert_eq!(second.get(port), Some(id));
        }
        // It gets new flows again when it is healthy, and none of the old ones back.
        table.checked("a", true, &Check::default());
        assert!(!of(&mut table, 300..400, now).values().any(|id| id == "a"));
        table.checked("a", true, &Check::default());
        assert_eq!(of(&mut table, 0..300, now), second);
        assert!(of(&mut table, 400..500, now).values().any(|id| id == "a"));
    }

    #[test]
    fn the_flows_of_a_deregistering_target_go_on_until_its_delay_is_over() {
        let now = Instant::now();
        let mut table = table(&["a", "b"], now);
        let first = of(&mut table, 0..100, now);
        let leaving = told(&[("a", Some(30)), ("b", None)]);
        table.follow(&leaving, true, now);
        let almost = now + 29 * SECOND;
        table.follow(&leaving, true, almost);
        assert_eq!(of(&mut table, 0..100, almost), first);
        let fresh: BTreeSet<_> = of(&mut table, 100..200, almost).into_values().collect();
        assert_eq!(fresh, BTreeSet::from(["b".to_owned()]), "new flows");
        // The end does not depend on its being told again.
        let all: BTreeSet<_> = of(&mut table, 0..100, now + 30 * SECOND)
            .into_values()
            .collect();
        assert_eq!(all, BTreeSet::from(["b".to_owned()]));
    }

    #[test]
    fn an_unhealthy_target_that_is_deregistered_gets_no_flow_back() {
        let now = Instant::now();
        let mut table = table(&["a", "b"], now);
        of(&mut table, 0..100, now);
        fails(&mut table, "a");
        // None of its flows has had a packet since.
        table.follow(&told(&[("a", Some(30)), ("b", None)]), true, now);
        let all: BTreeSet<_> = of(&mut table, 0..100, now).into_values().collect();
        assert_eq!(all, BTreeSet::from(["b".to_owned()]));
    }

    #[test]
    fn without_connection_termination_flows_stay_until_they_have_been_idle() {
        let now = Instant::now();
        let mut table = table(&["a", "b"], now);
        let first = of(&mut table, 0..100, now);
        table.follow(&told(&[("a", Some(30)), ("b", None)]), false, now);
        table.follow(&told(&[("b", None)]), false, now + 60 * SECOND);
        assert_eq!(of(&mut table, 0..100, now + 60 * SECOND), first);
        let idle = now + 60 * SECOND + IDLE;
        let all: BTreeSet<_> = of(&mut table, 0..100, idle).into_values().collect();
        assert_eq!(all, BTreeSet::from(["b".to_owned()]));
        assert_eq!(table.moved(), 0, "a flow that was idle is another one");
    }

    #[test]
    fn when_none_is_healthy_all_registered_ones_get_packets() {
        let now = Instant::now();
        let mut table = table(&["a", "b", "c"], now);
        table.follow(
            &told(&[("a", None), ("b", None), ("c", Some(30))]),
            true,
            now,
        );
        fails(&mut table, "a");
        fails(&mut table, "b");
        let open: BTreeSet<_> = of(&mut table, 0..100, now).into_values().collect();
        assert_eq!(open, BTreeSet::from(["a".to_owned(), "b".to_owned()]));
        for _ in 0..Check::default().healthy_threshold {
            table.checked("b", true, &Check::default());
        }
        let closed: BTreeSet<_> = of(&mut table, 0..100, now).into_values().collect();
        assert_eq!(closed, BTreeSet::from(["b".to_owned()]));
    }

    #[test]
    fn without_targets_there_is_nowhere_to_go() {
        let now = Instant::now();
        assert_eq!(Table::default().route(flow(1), now), None);
        let mut table = table(&["a"], now);
        to(&mut table, 1, now);
        table.follow(&[], true, now);
        assert_eq!(table.route(flow(1), now), None);
    }

    #[test]
    fn a_target_that_is_registered_again_starts_anew() {
        let now = Instant::now();
        let mut table = table(&["a", "b"], now);
        table.follow(&told(&[("a", Some(30)), ("b", None)]), true, now);
        table.follow(&told(&[("a", None), ("b", None)]), true, now);
        let state = |table: &Table| table.states().get("a").copied();
        assert_eq!(state(&table), Some(State::Initial));
        table.checked("a", true, &Check::default());
        assert_eq!(state(&table), Some(State::Healthy));
    }
}
