//! A process of a function: the ports on a [`World`], with a bucket and a memory of its own, that can be killed.

use super::account::Call;
use super::{Account, World};
use crate::converge::Run;
use crate::error::{ApiError, ErrorClass};
use crate::id::{EniId, InstanceId, SessionId, SessionNumber, StackArn};
use crate::interface::{Instance, Interface};
use crate::memory::Memory;
use crate::pace::Pacer;
use crate::plan::{Session, SessionSpec};
use crate::ports::{
    ClassicBalancer, Clock, InstanceQuery, InterfaceQuery, Inventory, NewSession, Resolver,
    SessionQuery, Sessions,
};
use crate::settings::Settings;
use std::future::{Future, poll_fn};
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Poll;
use std::time::Duration;

/// Items of a page.
const PAGE: usize = 1000;
/// Values of a filter.
const FILTER: usize = 200;
/// Tries of a page, as the SDK is configured.
const TRIES: u32 = 4;
/// What 0 s are in the time of day: the time of `events/instance-running.json`.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_794_432_594);

/// When a process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kill {
    Never,
    /// Before its call number n (from 0) is carried out.
    Before(usize),
    /// After it is, before its answer comes.
    After(usize),
}

/// One process.
pub(crate) struct Process<'a> {
    pub(crate) world: &'a World,
    pub(crate) name: &'static str,
    pub(crate) settings: &'a Settings,
    pub(crate) pacer: Mutex<Pacer>,
    pub(crate) memory: Memory,
    born: Duration,
    kill: Mutex<(Kill, usize)>,
    dead: AtomicBool,
}

/// What becomes of a call that came through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    Unanswered,
    Dies,
}

impl<'a> Process<'a> {
    /// A new one, which begins now: its clock and its bucket know nothing of the time before.
    pub(crate) fn new(
        world: &'a World,
        name: &'static str,
        settings: &'a Settings,
        pacer: Pacer,
    ) -> Self {
        Self {
            born: world.now(),
            world,
            name,
            settings,
            pacer: Mutex::new(pacer),
            memory: Memory::default(),
            kill: Mutex::new((Kill::Never, 0)),
            dead: AtomicBool::new(false),
        }
    }

    pub(crate) fn dies(self, kill: Kill) -> Self {
        *self.kill.lock().unwrap() = (kill, 0);
        self
    }

    pub(crate) fn calls(&self) -> usize {
        self.kill.lock().unwrap().1
    }

    pub(crate) fn run(&self, time: Duration) -> Run<'_, Self> {
        Run {
            ports: self,
            settings: self.settings,
            pacer: &self.pacer,
            memory: &self.memory,
            deadline: self.now() + time,
        }
    }

    /// Runs `work` until it ends or the process dies: then nothing.
    pub(crate) async fn live<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        let mut work = pin!(work);
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(done) => Poll::Ready(Some(done)),
            Poll::Pending if self.dead.load(Ordering::Relaxed) => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        })
        .await
    }

    async fn die(&self) {
        self.dead.store(true, Ordering::Relaxed);
        std::future::pending::<()>().await;
    }

    fn latency(&self) -> Duration {
        let mut account = self.world.lock();
        let (least, more) = account.latency_ms;
        Duration::from_millis(least + account.random.below(more + 1))
    }

    /// The way of a call to the service, and what may befall it there.
    async fn enter(&self, name: &'static str) -> Result<Fate, ApiError> {
        let kill = {
            let mut kill = self.kill.lock().unwrap();
            kill.1 += 1;
            let n = kill.1 - 1;
            (kill.0 == Kill::Before(n), kill.0 == Kill::After(n))
        };
        if kill.0 {
            self.die().await;
        }
        let call = {
            let mut account = self.world.lock();
            let (at, by) = (account.sim.now, self.name);
            let call = Call { at, by, name };
            account.log.push(call.clone());
            call
        };
        self.world.wait(self.latency()).await;
        let fate = self.world.lock().befall(&call);
        match fate {
            Ok(_) if kill.1 => Ok(Fate::Dies),
            Ok(fate) => Ok(fate),
            Err(error) => {
                if kill.1 {
                    self.die().await;
                }
                self.world.wait(self.latency()).await;
                Err(error)
            }
        }
    }

    /// The way back.
    async fn leave<T>(&self, fate: Fate, answer: Result<T, ApiError>) -> Result<T, ApiError> {
        match fate {
            Fate::Dies => {
                self.die().await;
                answer
            }
            Fate::Answered => {
                self.world.wait(self.latency()).await;
                answer
            }
            Fate::Unanswered => {
                self.world.wait(Duration::from_secs(5)).await;
                Err(ApiError::unanswered("timed out"))
            }
        }
    }

    /// Reads the items of `keys` in pages, each by what is there when it is read; tries a page again as the SDK does.
    async fn pages<K, T>(
        &self,
        name: &'static str,
        groups: Vec<Vec<K>>,
        read: impl Fn(&Account, &K) -> Option<T>,
    ) -> Result<Vec<T>, ApiError> {
        let mut all = Vec::new();
        for group in groups {
            // A listing that finds nothing is a page too.
            let pages = group.len().div_ceil(PAGE).max(1);
            for page in 0..pages {
                let keys = group.iter().skip(page * PAGE).take(PAGE);
                let mut tried = 0;
                loop {
                    tried += 1;
                    let result = match self.enter(name).await {
                        Ok(fate) => {
                            let items: Vec<T> = {
                                let account = self.world.lock();
                                keys.clone().filter_map(|k| read(&account, k)).collect()
                            };
                            self.leave(fate, Ok(items)).await
                        }
                        Err(e) => Err(e),
                    };
                    match result {
                        Ok(items) => break all.extend(items),
                        Err(e) if e.class == ErrorClass::Retry && tried < TRIES => {
                            let wait = Duration::from_millis(500) * 2u32.pow(tried - 1);
                            self.world.wait(wait).await;
                        }
                        Err(e) => return Err(e),
                    }
                }
            }
        }
        Ok(all)
    }
}

impl Account {
    /// What befalls a call on its way.
    fn befall(&mut self, call: &Call) -> Result<Fate, ApiError> {
        let now = self.sim.now;
        let bucket = if call.changes() {
            &mut self.mutations
        } else {
            &mut self.descriptions
        };
        let limit = || ApiError::answered(503, "RequestLimitExceeded", "slow down");
        if !bucket.take(now) {
            self.throttled += 1;
            return Err(limit());
        }
        let faults = self.faults;
        let drawn = self.random.below(1000);
        let mut up_to = faults.throttled;
        if drawn < up_to {
            return Err(limit());
        }
        up_to += faults.unavailable;
        if drawn < up_to {
            return Err(ApiError::answered(503, "Unavailable", "not now"));
        }
        up_to += faults.lost;
        if drawn < up_to {
            return Err(ApiError::unanswered("connection reset"));
        }
        up_to += faults.unanswered;
        Ok(if drawn < up_to {
            Fate::Unanswered
        } else {
            Fate::Answered
        })
    }
}

fn filters<K: Clone>(keys: &[K]) -> Vec<Vec<K>> {
    keys.chunks(FILTER).map(<[K]>::to_vec).collect()
}

impl Inventory for Process<'_> {
    async fn interfaces(&self, query: InterfaceQuery<'_>) -> Result<Vec<Interface>, ApiError> {
        let groups: Vec<Vec<EniId>> = {
            let account = self.world.lock();
            match query {
                InterfaceQuery::All => vec![account.interfaces.keys().cloned().collect()],
                InterfaceQuery::Ids(ids) => filters(ids),
                InterfaceQuery::OfInstances(ids) => ids
                    .chunks(FILTER)
                    .map(|ids| {
                        let of = ids.iter().filter_map(|i| account.of_instance.get(i));
                        of.flatten().cloned().collect()
                    })
                    .collect(),
            }
        };
        let read = |account: &Account, eni: &EniId| {
            let shown = account.interfaces.get(eni)?;
            shown.is_shown(account.sim.now).then(|| shown.it.clone())
        };
        self.pages("interfaces", groups, read).await
    }

    async fn instances(&self, query: InstanceQuery<'_>) -> Result<Vec<Instance>, ApiError> {
        let groups: Vec<Vec<InstanceId>> = match query {
            InstanceQuery::All => vec![self.world.lock().instances.keys().cloned().collect()],
            InstanceQuery::Ids(ids) => filters(ids),
        };
        let read = |account: &Account, id: &InstanceId| {
            let shown = account.instances.get(id)?;
            shown.is_shown(account.sim.now).then(|| shown.it.clone())
        };
        self.pages("instances", groups, read).await
    }

    async fn sessions(&self, query: SessionQuery<'_>) -> Result<Vec<Session>, ApiError> {
        let read_one = |account: &Account, id: &SessionId| {
            let shown = account.sessions.get(id)?;
            shown.is_shown(account.sim.now).then(|| shown.it.clone())
        };
        match query {
            SessionQuery::All => {
                let all = self.world.lock().sessions.keys().cloned().collect();
                self.pages("sessions", vec![all], read_one).await
            }
            SessionQuery::On(enis) => {
                // By what is shown when the page is read, what is gone and still shown included.
                let read = |account: &Account, eni: &EniId| {
                    let on = account.on.get(eni).into_iter().flatten();
                    let on = on.filter_map(|id| account.sessions.get(id));
                    let shown = on.filter(|s| s.is_shown(account.sim.now));
                    Some(shown.map(|s| s.it.clone()).collect::<Vec<_>>())
                };
                let found = self.pages("sessions", filters(enis), read).await?;
                Ok(found.into_iter().flatten().collect())
            }
        }
    }

    /// The simulation's selection has no term that asks for these three.
    async fn classic_balancers(&self) -> Result<Vec<ClassicBalancer>, ApiError> {
        unreachable!("no elb: term")
    }

    async fn clusters(&self) -> Result<Vec<String>, ApiError> {
        unreachable!("no ecs: term")
    }

    async fn task_interfaces(&self, _: &str) -> Result<Vec<EniId>, ApiError> {
        unreachable!("no ecs: term")
    }

    async fn mirror_target_interfaces(&self) -> Result<Vec<EniId>, ApiError> {
        let none = |_: &Account, _: &EniId| None;
        self.pages("mirror targets", vec![Vec::new()], none).await
    }

    async fn stack_is_leaving(&self, _: &StackArn) -> Result<bool, ApiError> {
        let none = |_: &Account, _: &EniId| None::<EniId>;
        let pages = self.pages("stack", vec![Vec::new()], none).await;
        pages.map(|_| false)
    }
}

impl Sessions for Process<'_> {
    async fn create(&self, new: NewSession<'_>) -> Result<SessionId, ApiError> {
        let fate = self.enter("create").await?;
        let answer = self.world.lock().create(&new);
        self.leave(fate, answer).await
    }

    async fn modify(
        &self,
        session: &SessionId,
        number: SessionNumber,
        spec: &SessionSpec,
    ) -> Result<(), ApiError> {
        let fate = self.enter("modify").await?;
        let answer = self.world.lock().modify(session, number, spec);
        self.leave(fate, answer).await
    }

    async fn delete(&self, session: &SessionId) -> Result<(), ApiError> {
        let fate = self.enter("delete").await?;
        let answer = self.world.lock().delete(session);
        self.leave(fate, answer).await
    }

    fn token(&self) -> String {
        format!("{:016x}", self.world.lock().random.next())
    }
}

impl Clock for Process<'_> {
    fn now(&self) -> Duration {
        self.world.now() - self.born
    }

    fn since_epoch(&self) -> Option<Duration> {
        Some(EPOCH + self.world.now())
    }

    async fn sleep(&self, time: Duration) {
        self.world.wait(time).await;
    }
}

impl Resolver for Process<'_> {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        Err(format!("no such host: {host}"))
    }
}
