//! 10,000 instances with churn, errors and crashes, and three processes at once.

use super::queue::{Queue, Setup, state_change, tag_change};
use super::{Account, Faults, Process, World, run, setting};
use crate::fake;
use crate::id::{InstanceId, SessionId, TargetId};
use crate::interface::InstanceState;
use crate::pace::Pacer;
use crate::plan::Session;
use crate::reconcile::sweep;
use std::collections::BTreeMap;
use std::time::Duration;

const INSTANCES: usize = 10_000;
const MINUTE: Duration = Duration::from_secs(60);
/// Of 10,000 instances, 20 % an hour are replaced: 2,000 launches and as many ends.
const REPLACED: Duration = Duration::from_millis(1800);

/// The account as it is found: most sessions are there, some drifted, doubled, orphaned or unselected; other teams have
/// theirs. One instance in seven is not selected, one in twenty has a second interface: what is wanted fits the quota.
pub(super) fn furnish(account: &mut Account, instances: usize) {
    for n in 0..instances {
        let selected = n % 7 != 0;
        let id = account.launch(selected, 1 + usize::from(n % 20 == 7));
        for eni in account.of_instance[&id].clone() {
            // One, two or three sessions of others on some.
            let others: [u16; 10] = [0, 0, 0, 0, 0, 0, 0, 1, 2, 3];
            for number in 0..others[n / 9 % 10] * u16::from(n % 9 == 0) {
                account.put(&eni, 1 + number, Some("arn:of:another:stack"));
            }
            let there = if selected { n % 33 != 5 } else { n % 49 == 0 };
            if there && account.on.get(&eni).is_none_or(|on| on.len() < 2) {
                let ours = account.put(&eni, 100, Some(fake::STACK));
                if n % 97 == 3 {
                    drift(account, &ours);
                }
                if n % 200 == 4 {
                    account.put(&eni, 101, Some(fake::STACK));
                }
            }
        }
    }
}

fn drift(account: &mut Account, session: &SessionId) {
    if let Some(shown) = account.sessions.get_mut(session) {
        shown.it.target = TargetId::new("tmt-changed");
    }
}

/// What others do in the account.
pub(super) struct Others<'a> {
    world: &'a World,
    queue: &'a Queue,
    /// Their sessions, as they made them.
    pub(super) foreign: BTreeMap<SessionId, Session>,
    /// How many they added.
    added: usize,
}

impl<'a> Others<'a> {
    pub(super) fn new(world: &'a World, queue: &'a Queue) -> Self {
        Self {
            world,
            queue,
            foreign: world.lock().foreign(),
            added: 0,
        }
    }

    /// Tells of something now, in the manner of EventBridge: a third is lost, some come twice, none in order.
    fn tell(&self, event: &serde_json::Value) {
        let mut copies = vec![];
        {
            let mut account = self.world.lock();
            if !account.random.in_thousand(333) {
                copies.push(account.random.below(90_000));
            }
            if account.random.in_thousand(100) {
                copies.push(account.random.below(600_000));
            }
        }
        for late in copies {
            let at = self.world.now() + Duration::from_millis(1000 + late);
            self.queue.send(event, at);
        }
    }

    /// Any instance that is there: the first behind a random place, for their ids are in no order.
    fn any(&self) -> InstanceId {
        let mut account = self.world.lock();
        loop {
            let from = InstanceId::new(format!("i-0{:016x}", account.random.next()));
            let mut behind = account.instances.range(from..);
            if let Some((id, _)) = behind.find(|(_, shown)| shown.until.is_none()) {
                return id.clone();
            }
        }
    }

    /// One thing that is replaced, and sometimes something else.
    pub(super) fn churn(&mut self) {
        let now = self.world.now();
        let (selected, enis, what) = {
            let mut account = self.world.lock();
            let selected = !account.random.in_thousand(143);
            let enis = 1 + usize::from(account.random.in_thousand(50));
            (selected, enis, account.random.below(20))
        };
        let new = self.world.lock().launch(selected, enis);
        self.tell(&state_change(new.as_str(), "running", now));
        let old = self.any();
        {
            let mut account = self.world.lock();
            // AWS removes the sessions of others with the interface too; nobody else does.
            for eni in &account.of_instance[&old] {
                for session in account.on.get(eni).into_iter().flatten() {
                    self.foreign.remove(session);
                }
            }
            account.terminate(&old);
        }
        self.tell(&state_change(old.as_str(), "terminated", now));

        let id = self.any();
        let mut account = self.world.lock();
        let eni = account.of_instance[&id].first().cloned();
        let ours = |account: &Account| {
            let on = account.on.get(eni.as_ref()?)?;
            let mine = |s: &&SessionId| {
                account.there(s).is_some_and(|s| {
                    s.stack
                        .as_ref()
                        .is_some_and(|stack| stack.as_str() == fake::STACK)
                })
            };
            on.iter().find(mine).cloned()
        };
        match what {
            0 | 1 => {
                if let Some(shown) = account.instances.get_mut(&id) {
                    let value = shown.it.tags.get("Mirror").map_or("", String::as_str);
                    let other = if value == "true" { "no" } else { "true" };
                    shown.it.tags.insert("Mirror".to_owned(), other.to_owned());
                }
                drop(account);
                self.tell(&tag_change(id.as_str(), now));
            }
            2 => {
                if let Some(shown) = account.instances.get_mut(&id) {
                    shown.it.state = match shown.it.state {
                        InstanceState::Running => InstanceState::Stopped,
                        _ => InstanceState::Running,
                    };
                }
                drop(account);
                self.tell(&state_change(id.as_str(), "stopped", now));
            }
            3 => {
                if let Some(session) = ours(&account) {
                    account.remove(&session);
                }
            }
            4 => {
                if let Some(session) = ours(&account) {
                    drift(&mut account, &session);
                }
            }
            5 => {
                // Another team's tool, by the rules: a free number, at most three.
                let on = eni.as_ref().and_then(|eni| account.on.get(eni));
                let on: Vec<&Session> = on
                    .into_iter()
                    .flatten()
                    .filter_map(|s| account.there(s))
                    .collect();
                let number = (1..).find(|n| on.iter().all(|s| s.number.get() != *n));
                if let (Some(eni), Some(number), true) = (eni, number, on.len() < 3) {
                    let id = account.put(&eni, number, None);
                    self.added += 1;
                    self.foreign
                        .insert(id.clone(), account.sessions[&id].it.clone());
                }
            }
            _ => {}
        }
    }
}

#[test]
fn ten_thousand_instances_converge_after_each_churn_with_errors_and_crashes() {
    let seed = setting("MIRRORFLEET_SIM_SEED", 2026);
    let rounds = setting("MIRRORFLEET_SIM_ROUNDS", 2);
    let world = World::new(seed);
    {
        let mut account = world.lock();
        furnish(&mut account, INSTANCES);
        account.lag_ms = 2000;
        account.faults = Faults::one_percent();
    }
    let settings = fake::settings();
    let queue = Queue::new(Setup::TEMPLATE);
    queue.deadly.set((50, 100));
    let mut others = Others::new(&world, &queue);
    let before = others.foreign.len();
    let drive = async {
        for round in 0..rounds {
            let end = world.now() + 30 * MINUTE;
            while world.now() < end {
                world.wait(REPLACED).await;
                others.churn();
            }
            let (quiet, wrong) = (world.now(), world.lock().differences().len());
            let mut settled = None;
            while world.now() < quiet + 16 * MINUTE {
                world.wait(4 * MINUTE).await;
                let right = world.lock().differences().is_empty();
                settled = if right {
                    settled.or(Some(world.now() - quiet))
                } else {
                    None
                };
            }
            let differences = world.lock().differences();
            println!(
                "SIM round {round}: {wrong} interfaces wrong when it fell quiet, right for good after {settled:?}"
            );
            let some = differences.get(..differences.len().min(5));
            assert!(
                differences.is_empty(),
                "{} differences, {some:?}",
                differences.len()
            );
            assert!(
                world.lock().foreign() == others.foreign,
                "sessions of others are as they made them"
            );
        }
        queue.over.set(true);
    };
    run(
        &world,
        vec![
            Box::pin(drive),
            Box::pin(queue.poll(&world, "attach 1", &settings)),
            Box::pin(queue.poll(&world, "attach 2", &settings)),
            Box::pin(queue.sweep(&world, &settings)),
        ],
    );
    let account = world.lock();
    let sweeps = queue.sweeps.borrow();
    let (second, four) = (
        account.busiest(Duration::from_secs(1)),
        account.busiest(Duration::from_secs(4)),
    );
    println!(
        "SIM {INSTANCES} instances, {:?}: {} calls, {} changes of sessions, busiest {second} in 1 s, {four} in 4 s; {} batches, {} \
         sweeps, {} crashes, {} dead letters; {before} to {} sessions of others",
        account.sim.now,
        account.log.len(),
        account.log.iter().filter(|c| c.changes()).count(),
        queue.answers.borrow().len(),
        sweeps.len(),
        queue.crashes.get(),
        queue.dead_letters.get(),
        others.foreign.len(),
    );
    assert_eq!(account.wrongs, Vec::<String>::new());
    // ⌈3/2⌉ + 2 · ⌈3/4⌉ in any second, and 3 a second in any 4.
    assert!(second <= 4 && four <= 12, "{second} in 1 s, {four} in 4 s");
    assert_eq!((account.throttled, queue.dead_letters.get()), (0, 0));
    assert!(queue.crashes.get() > 0, "nothing crashed");
    assert!(others.added > 10, "nobody else did anything");
}

#[test]
fn a_sweep_that_finds_nothing_to_do_makes_little_more_than_thirty_calls() {
    let world = World::new(1);
    {
        let mut account = world.lock();
        for n in 0..INSTANCES {
            // As many as the account can have, but for the headroom.
            let id = account.launch(n < 9_900, 1);
            for eni in account.of_instance[&id].clone() {
                if n < 9_900 {
                    account.put(&eni, 100, Some(fake::STACK));
                }
            }
        }
    }
    let settings = fake::settings();
    let process = Process::new(&world, "reconcile", &settings, Pacer::for_sweep(3.0));
    let work = async {
        let swept = sweep(&process.run(Duration::from_secs(885))).await.unwrap();
        assert_eq!((swept.ours, swept.answer), (9_900, Default::default()));
    };
    run(&world, vec![Box::pin(work)]);
    let account = world.lock();
    let mut by_name: BTreeMap<&str, usize> = BTreeMap::new();
    for call in &account.log {
        *by_name.entry(call.name).or_default() += 1;
    }
    println!(
        "SIM a sweep that finds nothing to do: {} calls, {by_name:?}",
        account.log.len()
    );
    assert!(account.log.len() <= 40, "{by_name:?}");
}
