//! What AWS has, and the rules that it keeps.

use super::{Random, Sim};
use crate::error::ApiError;
use crate::fake;
use crate::id::{EniId, InstanceId, SessionId, SessionNumber, StackArn};
use crate::interface::{Instance, InstanceState, Interface, InterfaceStatus};
use crate::plan::{SESSIONS_PER_ACCOUNT, SESSIONS_PER_INTERFACE, Session, SessionSpec};
use crate::ports::NewSession;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

/// An account that several processes work on.
pub(crate) struct World(Mutex<Account>);

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self(Mutex::new(Account::new(seed)))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap()
    }
}

/// How often calls go wrong, in a thousandth each.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    /// Refused with `RequestLimitExceeded`, not carried out.
    pub(crate) throttled: u64,
    /// Refused with a 503, not carried out.
    pub(crate) unavailable: u64,
    /// No answer, not carried out.
    pub(crate) lost: u64,
    /// Carried out, no answer.
    pub(crate) unanswered: u64,
}

impl Faults {
    /// 1 % of all calls, a quarter of each kind.
    pub(crate) fn one_percent() -> Self {
        Self {
            throttled: 3,
            unavailable: 3,
            lost: 2,
            unanswered: 2,
        }
    }
}

/// Something with the times from and until which descriptions show it.
#[derive(Debug, Clone)]
pub(crate) struct Shown<T> {
    pub(crate) it: T,
    pub(crate) from: Duration,
    /// Gone, but shown until then.
    pub(crate) until: Option<Duration>,
}

impl<T> Shown<T> {
    pub(crate) fn is_shown(&self, now: Duration) -> bool {
        now >= self.from && self.until.is_none_or(|until| now < until)
    }
}

/// EC2's bucket of one kind of call: (tokens, at).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bucket {
    tokens: f64,
    at: Duration,
    most: f64,
    per_second: f64,
}

impl Bucket {
    fn new(most: f64, per_second: f64) -> Self {
        Self {
            tokens: most,
            at: Duration::ZERO,
            most,
            per_second,
        }
    }

    pub(crate) fn take(&mut self, now: Duration) -> bool {
        let since = now.saturating_sub(self.at).as_secs_f64();
        self.tokens = (self.tokens + since * self.per_second).min(self.most);
        self.at = now;
        let enough = self.tokens >= 1.0;
        self.tokens -= f64::from(u8::from(enough));
        enough
    }
}

/// One call, for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Call {
    /// When it was sent.
    pub(crate) at: Duration,
    /// Which process sent it.
    pub(crate) by: &'static str,
    /// Its name: `interfaces`, `create`…
    pub(crate) name: &'static str,
}

impl Call {
    pub(crate) fn changes(&self) -> bool {
        matches!(self.name, "create" | "modify" | "delete")
    }
}

/// One account in one region.
pub(crate) struct Account {
    pub(crate) sim: Sim,
    pub(crate) random: Random,
    pub(crate) faults: Faults,
    /// The longest time after which a description shows a change, in milliseconds; 0 for at once.
    pub(crate) lag_ms: u64,
    /// One way of a call, in milliseconds: the shortest, and what may come on top.
    pub(crate) latency_ms: (u64, u64),
    pub(crate) interfaces: BTreeMap<EniId, Shown<Interface>>,
    pub(crate) instances: BTreeMap<InstanceId, Shown<Instance>>,
    pub(crate) sessions: BTreeMap<SessionId, Shown<Session>>,
    pub(crate) of_instance: BTreeMap<InstanceId, BTreeSet<EniId>>,
    /// Sessions by interface, those that are gone and still shown included.
    pub(crate) on: BTreeMap<EniId, BTreeSet<SessionId>>,
    /// How many are there.
    alive: usize,
    tokens: BTreeMap<String, SessionId>,
    pub(crate) mutations: Bucket,
    pub(crate) descriptions: Bucket,
    pub(crate) log: Vec<Call>,
    /// What must never happen; checked by the tests.
    pub(crate) wrongs: Vec<String>,
    /// When each session of ours was made first.
    pub(crate) first_made: BTreeMap<EniId, Duration>,
    /// Calls that the account's own buckets refused.
    pub(crate) throttled: usize,
    made: u64,
}

impl Account {
    fn new(seed: u64) -> Self {
        Self {
            sim: Sim::default(),
            random: Random(seed),
            faults: Faults::default(),
            lag_ms: 0,
            latency_ms: (20, 60),
            interfaces: BTreeMap::new(),
            instances: BTreeMap::new(),
            sessions: BTreeMap::new(),
            of_instance: BTreeMap::new(),
            on: BTreeMap::new(),
            alive: 0,
            tokens: BTreeMap::new(),
            // EC2 API throttling, per account and region.
            mutations: Bucket::new(50.0, 5.0),
            descriptions: Bucket::new(100.0, 20.0),
            log: Vec::new(),
            wrongs: Vec::new(),
            first_made: BTreeMap::new(),
            throttled: 0,
            made: 0,
        }
    }

    /// When a change that is made now will be shown.
    fn soon(&mut self) -> Duration {
        let lag = self.lag_ms;
        self.sim.now + Duration::from_millis(self.random.below(lag + 1))
    }

    /// A new id of 17 hexadecimal digits, in no particular order.
    pub(crate) fn id(&mut self) -> String {
        self.made += 1;
        let random = Random(self.made).next();
        format!("0{random:016x}")
    }

    /// A running instance with `enis` interfaces, the first of them primary, that the default selection selects or not.
    pub(crate) fn launch(&mut self, selected: bool, enis: usize) -> InstanceId {
        let id = InstanceId::new(format!("i-{}", self.id()));
        let from = self.soon();
        for n in 0..enis {
            let eni = format!("eni-{}", self.id());
            let mut it = fake::interface(&eni, id.as_str());
            it.primary = n == 0;
            it.instance = None;
            self.of_instance
                .entry(id.clone())
                .or_default()
                .insert(it.id.clone());
            let shown = Shown {
                it,
                from,
                until: None,
            };
            self.interfaces.insert(shown.it.id.clone(), shown);
        }
        let value = if selected { "true" } else { "no" };
        let it = Instance {
            id: id.clone(),
            state: InstanceState::Running,
            instance_type: "m5.large".to_owned(),
            tags: [("Mirror".to_owned(), value.to_owned())].into(),
        };
        let from = self.soon();
        let shown = Shown {
            it,
            from,
            until: None,
        };
        self.instances.insert(id.clone(), shown);
        id
    }

    /// The instance, its interfaces and all sessions on them go.
    pub(crate) fn terminate(&mut self, id: &InstanceId) {
        for eni in self.of_instance.remove(id).unwrap_or_default() {
            for session in self.on.get(&eni).cloned().unwrap_or_default() {
                self.remove(&session);
            }
            let until = Some(self.soon());
            if let Some(shown) = self.interfaces.get_mut(&eni) {
                shown.until = until;
            }
        }
        let until = Some(self.soon());
        if let Some(shown) = self.instances.get_mut(id) {
            shown.until = until;
            shown.it.state = InstanceState::Terminated;
        }
    }

    /// Takes out what is gone and not shown any more.
    pub(crate) fn tidy(&mut self) {
        let now = self.sim.now;
        self.interfaces
            .retain(|_, s| s.until.is_none_or(|u| u > now));
        self.instances
            .retain(|_, s| s.until.is_none_or(|u| u > now));
        let (sessions, on) = (&mut self.sessions, &mut self.on);
        sessions.retain(|id, s| {
            let stays = s.until.is_none_or(|u| u > now);
            if !stays && let Some(of) = on.get_mut(&s.it.eni) {
                of.remove(id);
            }
            stays
        });
        on.retain(|_, of| !of.is_empty());
    }

    /// Puts a session there, whoever's, without any rule.
    pub(crate) fn put(&mut self, eni: &EniId, number: u16, stack: Option<&str>) -> SessionId {
        let id = format!("tms-{}", self.id());
        let it = fake::session(&id, eni.as_str(), i64::from(number), stack);
        let id = it.id.clone();
        self.on.entry(eni.clone()).or_default().insert(id.clone());
        let shown = Shown {
            it,
            from: Duration::ZERO,
            until: None,
        };
        self.sessions.insert(id.clone(), shown);
        self.alive += 1;
        id
    }

    /// A session goes, whoever did it.
    pub(crate) fn remove(&mut self, id: &SessionId) {
        let until = Some(self.soon());
        if let Some(shown) = self.sessions.get_mut(id)
            && shown.until.is_none()
        {
            shown.until = until;
            self.alive -= 1;
        }
    }

    pub(crate) fn there(&self, id: &SessionId) -> Option<&Session> {
        let shown = self.sessions.get(id)?;
        shown.until.is_none().then_some(&shown.it)
    }

    /// All sessions that are there, shown or not.
    pub(crate) fn all_there(&self) -> impl Iterator<Item = &Session> {
        let there = self.sessions.values().filter(|s| s.until.is_none());
        there.map(|s| &s.it)
    }

    pub(crate) fn create(&mut self, new: &NewSession<'_>) -> Result<SessionId, ApiError> {
        if let Some(id) = self.tokens.get(new.token) {
            return Ok(id.clone());
        }
        let refused = |code: &str| Err(ApiError::answered(400, code, "refused"));
        match self.interfaces.get(new.eni) {
            // Not known everywhere at once.
            Some(shown) if shown.is_shown(self.sim.now) && shown.until.is_none() => {}
            _ => return refused("InvalidNetworkInterfaceID.NotFound"),
        }
        if self.alive >= SESSIONS_PER_ACCOUNT {
            return refused("TrafficMirrorSessionLimitExceeded");
        }
        let on: Vec<&Session> = self
            .on
            .get(new.eni)
            .into_iter()
            .flatten()
            .filter_map(|id| self.there(id))
            .collect();
        if on.iter().any(|s| s.number == new.number) {
            return refused("SomeCodeThatIsNotDocumented");
        }
        if on.len() >= SESSIONS_PER_INTERFACE {
            return refused("TrafficMirrorSessionsPerInterfaceLimitExceeded");
        }
        let id = self.put(new.eni, new.number.get(), Some(new.stack.as_str()));
        let from = self.soon();
        if let Some(shown) = self.sessions.get_mut(&id) {
            shown.from = from;
            look(&mut shown.it, new.number, new.spec);
        }
        self.tokens.insert(new.token.to_owned(), id.clone());
        let now = self.sim.now;
        self.first_made.entry(new.eni.clone()).or_insert(now);
        Ok(id)
    }

    /// Only what is ours may be touched.
    fn check_ours(&mut self, what: &str, id: &SessionId) {
        let ours = StackArn::new(fake::STACK);
        if self.there(id).is_some_and(|s| !s.is_of(&ours)) {
            self.wrongs
                .push(format!("{what} of {id}, which is not ours"));
        }
    }

    pub(crate) fn modify(
        &mut self,
        id: &SessionId,
        number: SessionNumber,
        spec: &SessionSpec,
    ) -> Result<(), ApiError> {
        self.check_ours("modify", id);
        let refused = |code: &str| Err(ApiError::answered(400, code, "refused"));
        let Some(eni) = self.there(id).map(|s| s.eni.clone()) else {
            return refused("InvalidTrafficMirrorSessionId.NotFound");
        };
        let others = self.on.get(&eni).into_iter().flatten();
        let mut others = others.filter(|o| *o != id).filter_map(|o| self.there(o));
        if others.any(|s| s.number == number) {
            return refused("SomeCodeThatIsNotDocumented");
        }
        if let Some(shown) = self.sessions.get_mut(id) {
            look(&mut shown.it, number, spec);
        }
        Ok(())
    }

    pub(crate) fn delete(&mut self, id: &SessionId) -> Result<(), ApiError> {
        self.check_ours("delete", id);
        if self.there(id).is_none() {
            let code = "InvalidTrafficMirrorSessionNotFound";
            return Err(ApiError::answered(400, code, "refused"));
        }
        self.remove(id);
        Ok(())
    }

    /// Whether each interface has what the default selection says, by a rule of its own: one session of ours that looks
    /// right on what is attached to a running instance with `Mirror=true` and has a place left; none on anything else.
    /// Gives what is wrong, a line each.
    pub(crate) fn differences(&self) -> Vec<String> {
        let (ours, spec) = (StackArn::new(fake::STACK), fake::settings().spec);
        let mut wrong = Vec::new();
        for (eni, shown) in &self.interfaces {
            if shown.until.is_some() {
                continue;
            }
            let sessions: Vec<&Session> = self
                .on
                .get(eni)
                .into_iter()
                .flatten()
                .filter_map(|id| self.there(id))
                .collect();
            let (mine, others): (Vec<&Session>, Vec<&Session>) =
                sessions.iter().partition(|s| s.is_of(&ours));
            let instance = shown.it.instance_id.as_ref();
            let instance = instance.and_then(|id| self.instances.get(id));
            let tag = |i: &Instance| i.tags.get("Mirror").is_some_and(|v| v == "true");
            let wanted = instance
                .is_some_and(|s| tag(&s.it) && s.it.state == InstanceState::Running)
                && shown.it.status == InterfaceStatus::InUse
                && others.len() < SESSIONS_PER_INTERFACE;
            let right = mine.iter().all(|s| {
                s.target == spec.target
                    && s.filter == spec.filter
                    && s.vni == Some(spec.vni)
                    && s.packet_length == Some(u32::from(spec.packet_length))
                    && s.number.get() >= 100
            });
            if mine.len() != usize::from(wanted) || !right {
                let (n, others) = (mine.len(), others.len());
                wrong.push(format!(
                    "{eni}: wanted {wanted}, {n} of ours, right {right}, {others} of others"
                ));
            }
        }
        let gone = |s: &&Session| !self.interfaces.contains_key(&s.eni);
        let orphans = self.all_there().filter(|s| s.is_of(&ours)).filter(gone);
        wrong.extend(orphans.map(|s| format!("{}: an orphan", s.id)));
        wrong
    }

    /// The sessions of others: ids and looks.
    pub(crate) fn foreign(&self) -> BTreeMap<SessionId, Session> {
        let ours = StackArn::new(fake::STACK);
        let foreign = self.all_there().filter(|s| !s.is_of(&ours));
        foreign.map(|s| (s.id.clone(), s.clone())).collect()
    }

    /// Most changes sent within any `window`, half open.
    pub(crate) fn busiest(&self, window: Duration) -> usize {
        let mut times: Vec<Duration> = self
            .log
            .iter()
            .filter(|c| c.changes())
            .map(|c| c.at)
            .collect();
        times.sort();
        let mut from = 0;
        let mut most = 0;
        for (to, at) in times.iter().enumerate() {
            // The clock counts nanoseconds, and a wait of 2/3 s is rounded to them.
            while *at - times[from] + Duration::from_micros(1) >= window {
                from += 1;
            }
            most = most.max(to + 1 - from);
        }
        most
    }
}

fn look(session: &mut Session, number: SessionNumber, spec: &SessionSpec) {
    session.number = number;
    session.target = spec.target.clone();
    session.filter = spec.filter.clone();
    session.vni = Some(spec.vni);
    session.packet_length = Some(u32::from(spec.packet_length));
}
