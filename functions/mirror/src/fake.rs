//! An AWS of memory for the tests: the rules of sessions that matter here, virtual time, and failures on demand.

use crate::error::ApiError;
use crate::id::{EniId, FilterId, InstanceId, SessionId, SessionNumber, StackArn, TargetId};
use crate::interface::{Instance, InstanceState, Interface, InterfaceStatus, Ties};
use crate::pace::Pacer;
use crate::plan::{SESSIONS_PER_INTERFACE, Session, SessionSpec};
use crate::ports::{
    Again, Callback, ClassicBalancer, Clock, InstanceQuery, InterfaceQuery, Inventory, Layers,
    NewSession, Resolver, SessionQuery, Sessions,
};
use crate::settings::Settings;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

pub(crate) const STACK: &str = "arn:aws:cloudformation:us-east-1:123456789012:stack/fleet/51af3dc0-da77-11e4-872e-1234567db123";

/// A document of `events/`.
pub(crate) fn event_file(name: &str) -> Value {
    let path = format!("{}/../../events/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The settings that the template gives with its defaults.
pub(crate) fn settings() -> Settings {
    Settings::read(|name| {
        let value = match name {
            "MIRRORFLEET_STACK_ARN" => STACK,
            "MIRRORFLEET_TARGET_ID" => "tmt-1",
            "MIRRORFLEET_FILTER_ID" => "tmf-1",
            _ => return None,
        };
        Some(value.to_owned())
    })
    .expect("the defaults are valid")
}

/// The primary interface of a running m5.large, without tags.
pub(crate) fn interface(eni: &str, instance: &str) -> Interface {
    let instance = InstanceId::new(instance);
    Interface {
        id: EniId::new(eni),
        vpc: "vpc-1".to_owned(),
        subnet: "subnet-1".to_owned(),
        status: InterfaceStatus::InUse,
        kind: "interface".to_owned(),
        requester_managed: false,
        description: String::new(),
        tags: BTreeMap::new(),
        security_groups: vec!["sg-app".to_owned()],
        addresses: vec![IpAddr::from([10, 0, 0, 7])],
        primary: true,
        instance_id: Some(instance.clone()),
        instance: Some(Instance {
            id: instance,
            state: InstanceState::Running,
            instance_type: "m5.large".to_owned(),
            tags: BTreeMap::new(),
        }),
        ties: Ties::default(),
    }
}

/// A session with the look of [`settings`].
pub(crate) fn session(id: &str, eni: &str, number: i64, stack: Option<&str>) -> Session {
    let SessionSpec {
        target,
        filter,
        vni,
        packet_length,
    } = settings().spec;
    Session {
        id: SessionId::new(id),
        eni: EniId::new(eni),
        number: SessionNumber::new(number).expect("a session number"),
        target,
        filter,
        vni: Some(vni),
        packet_length: Some(u32::from(packet_length)),
        stack: stack.map(StackArn::new),
    }
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) interfaces: Vec<Interface>,
    pub(crate) sessions: Vec<Session>,
    pub(crate) tokens: BTreeMap<String, SessionId>,
    pub(crate) now: Duration,
    /// Each call by its name, in order.
    pub(crate) calls: Vec<String>,
    /// For the next calls of a name: the error to give. `true`: it is given after the call was carried out.
    pub(crate) errors: BTreeMap<&'static str, VecDeque<(ApiError, bool)>>,
    /// What each listing of sessions takes.
    pub(crate) listing: Duration,
    /// Sessions that listings do not show yet.
    pub(crate) unseen: usize,
    /// Interfaces that the complete listing does not show yet; asked for by id, they are there.
    pub(crate) unlisted: Vec<EniId>,
    /// What is taken off a random number of 1.
    pub(crate) hurry: f64,
    /// 1970, by the clock of the test; `None` for no time of day.
    pub(crate) epoch: Option<Duration>,
    pub(crate) balancers: Vec<ClassicBalancer>,
    /// Interfaces of tasks by cluster.
    pub(crate) tasks: BTreeMap<String, Vec<EniId>>,
    pub(crate) mirror_targets: Vec<EniId>,
    pub(crate) leaving: bool,
    pub(crate) hosts: BTreeMap<String, Vec<IpAddr>>,
    /// Versions of layers, by name.
    pub(crate) layers: BTreeMap<String, BTreeSet<u64>>,
    pub(crate) answers: Vec<(String, Value)>,
    pub(crate) put_failures: usize,
    pub(crate) invoked: Vec<Value>,
    pub(crate) invoke_error: Option<String>,
}

/// The fake. All rules hold under `tokio::join!` of several runs: each call gives way once before it acts.
#[derive(Default)]
pub(crate) struct Fake(Mutex<State>);

impl Fake {
    pub(crate) fn new(interfaces: Vec<Interface>) -> Self {
        let fake = Self::default();
        fake.state().interfaces = interfaces;
        fake
    }

    /// An account with one instance that the default selection selects.
    pub(crate) fn with_one_tagged() -> Self {
        Self::new(vec![tagged("eni-0a1b2c3d4e5f60718", "i-1234567890abcdef0")])
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub(crate) fn fail(&self, call: &'static str, error: ApiError, times: usize) {
        self.state()
            .errors
            .entry(call)
            .or_default()
            .extend(vec![(error, false); times]);
    }

    /// The call is carried out, and its answer is lost.
    pub(crate) fn lose_answer(&self, call: &'static str) {
        let lost = ApiError::unanswered("connection reset");
        self.state()
            .errors
            .entry(call)
            .or_default()
            .push_back((lost, true));
    }

    pub(crate) fn sessions_of(&self, eni: &str) -> Vec<(String, u16)> {
        let state = self.state();
        let on = state.sessions.iter().filter(|s| s.eni.as_str() == eni);
        on.map(|s| (s.id.to_string(), s.number.get())).collect()
    }

    pub(crate) fn count(&self, call: &str) -> usize {
        self.state().calls.iter().filter(|c| *c == call).count()
    }

    async fn enter(&self, call: &'static str) -> (MutexGuard<'_, State>, Option<(ApiError, bool)>) {
        tokio::task::yield_now().await;
        let mut state = self.state();
        state.calls.push(call.to_owned());
        let error = state.errors.get_mut(call).and_then(VecDeque::pop_front);
        (state, error)
    }
}

/// An interface that the default selection selects.
pub(crate) fn tagged(eni: &str, instance: &str) -> Interface {
    let mut i = interface(eni, instance);
    if let Some(instance) = &mut i.instance {
        instance.tags.insert("Mirror".to_owned(), "true".to_owned());
    }
    i
}

pub(crate) fn refused(code: &str) -> ApiError {
    ApiError::answered(400, code, "refused by the test")
}

/// A fast pace, so that tests of anything else never wait.
pub(crate) fn pacer() -> Mutex<Pacer> {
    Mutex::new(Pacer::new(1000.0, 1000))
}

impl Inventory for Fake {
    async fn interfaces(&self, query: InterfaceQuery<'_>) -> Result<Vec<Interface>, ApiError> {
        let (state, error) = self.enter("interfaces").await;
        if let Some((e, _)) = error {
            return Err(e);
        }
        let wanted = |i: &&Interface| match query {
            InterfaceQuery::All => !state.unlisted.contains(&i.id),
            InterfaceQuery::Ids(ids) => ids.contains(&i.id),
            InterfaceQuery::OfInstances(ids) => {
                i.instance_id.as_ref().is_some_and(|id| ids.contains(id))
            }
        };
        Ok(state
            .interfaces
            .iter()
            .filter(wanted)
            .cloned()
            .map(|i| Interface {
                instance: None,
                ..i
            })
            .collect())
    }

    async fn instances(&self, query: InstanceQuery<'_>) -> Result<Vec<Instance>, ApiError> {
        let (state, error) = self.enter("instances").await;
        if let Some((e, _)) = error {
            return Err(e);
        }
        let wanted = |i: &&Instance| match query {
            InstanceQuery::All => true,
            InstanceQuery::Ids(ids) => ids.contains(&i.id),
        };
        Ok(state
            .interfaces
            .iter()
            .filter_map(|i| i.instance.as_ref())
            .filter(wanted)
            .cloned()
            .collect())
    }

    async fn sessions(&self, query: SessionQuery<'_>) -> Result<Vec<Session>, ApiError> {
        let (mut state, error) = self.enter("sessions").await;
        let took = state.listing;
        state.now += took;
        if let Some((e, _)) = error {
            return Err(e);
        }
        let seen = state.sessions.len() - state.unseen.min(state.sessions.len());
        state.unseen = 0;
        let wanted = |s: &&Session| match query {
            SessionQuery::All => true,
            SessionQuery::On(enis) => enis.contains(&s.eni),
        };
        Ok(state
            .sessions
            .iter()
            .take(seen)
            .filter(wanted)
            .cloned()
            .collect())
    }

    async fn classic_balancers(&self) -> Result<Vec<ClassicBalancer>, ApiError> {
        let (state, error) = self.enter("balancers").await;
        error.map_or(Ok(state.balancers.clone()), |(e, _)| Err(e))
    }

    async fn clusters(&self) -> Result<Vec<String>, ApiError> {
        let (state, error) = self.enter("clusters").await;
        error.map_or(Ok(state.tasks.keys().cloned().collect()), |(e, _)| Err(e))
    }

    async fn task_interfaces(&self, cluster: &str) -> Result<Vec<EniId>, ApiError> {
        let (state, error) = self.enter("tasks").await;
        let there = state.tasks.get(cluster).cloned().unwrap_or_default();
        error.map_or(Ok(there), |(e, _)| Err(e))
    }

    async fn mirror_target_interfaces(&self) -> Result<Vec<EniId>, ApiError> {
        Ok(self.state().mirror_targets.clone())
    }

    async fn stack_is_leaving(&self, _: &StackArn) -> Result<bool, ApiError> {
        Ok(self.state().leaving)
    }
}

impl Sessions for Fake {
    async fn create(&self, new: NewSession<'_>) -> Result<SessionId, ApiError> {
        let (mut state, error) = self.enter("create").await;
        if let Some((e, false)) = &error {
            return Err(e.clone());
        }
        if let Some(id) = state.tokens.get(new.token) {
            return Ok(id.clone());
        }
        if !state.interfaces.iter().any(|i| i.id == *new.eni) {
            return Err(refused("InvalidNetworkInterfaceID.NotFound"));
        }
        let there: Vec<_> = state
            .sessions
            .iter()
            .filter(|s| s.eni == *new.eni)
            .collect();
        if there.iter().any(|s| s.number == new.number) {
            return Err(refused("SomeCodeThatIsNotDocumented"));
        }
        if there.len() >= SESSIONS_PER_INTERFACE {
            return Err(refused("TrafficMirrorSessionsPerInterfaceLimitExceeded"));
        }
        let id = SessionId::new(format!("tms-{:03}", state.sessions.len() + 1));
        state.tokens.insert(new.token.to_owned(), id.clone());
        state.sessions.push(Session {
            id: id.clone(),
            eni: new.eni.clone(),
            number: new.number,
            target: new.spec.target.clone(),
            filter: new.spec.filter.clone(),
            vni: Some(new.spec.vni),
            packet_length: Some(u32::from(new.spec.packet_length)),
            stack: Some(new.stack.clone()),
        });
        error.map_or(Ok(id), |(e, _)| Err(e))
    }

    async fn modify(
        &self,
        session: &SessionId,
        number: SessionNumber,
        spec: &SessionSpec,
    ) -> Result<(), ApiError> {
        let (mut state, error) = self.enter("modify").await;
        if let Some((e, _)) = error {
            return Err(e);
        }
        let found = state.sessions.iter_mut().find(|s| s.id == *session);
        let found = found.ok_or_else(|| refused("InvalidTrafficMirrorSessionId.NotFound"))?;
        found.number = number;
        found.target = TargetId::new(spec.target.as_str());
        found.filter = FilterId::new(spec.filter.as_str());
        found.vni = Some(spec.vni);
        found.packet_length = Some(u32::from(spec.packet_length));
        Ok(())
    }

    async fn delete(&self, session: &SessionId) -> Result<(), ApiError> {
        let (mut state, error) = self.enter("delete").await;
        if let Some((e, _)) = error {
            return Err(e);
        }
        let at = state.sessions.iter().position(|s| s.id == *session);
        state
            .sessions
            .remove(at.ok_or_else(|| refused("InvalidTrafficMirrorSessionNotFound"))?);
        Ok(())
    }

    fn token(&self) -> String {
        let mut state = self.state();
        state.calls.push("token".to_owned());
        format!("token-{}", state.calls.len())
    }

    /// The longest wait.
    fn random(&self) -> f64 {
        1.0 - self.state().hurry
    }
}

impl Clock for Fake {
    fn now(&self) -> Duration {
        self.state().now
    }

    fn since_epoch(&self) -> Option<Duration> {
        let state = self.state();
        Some(state.epoch? + state.now)
    }

    async fn sleep(&self, time: Duration) {
        tokio::task::yield_now().await;
        self.state().now += time;
    }
}

impl Resolver for Fake {
    async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, String> {
        let (state, _) = self.enter("resolve").await;
        state
            .hosts
            .get(host)
            .cloned()
            .ok_or_else(|| format!("no such host: {host}"))
    }
}

impl Layers for Fake {
    async fn layer_versions(&self, layer: &str) -> Result<Vec<u64>, ApiError> {
        let (state, error) = self.enter("layer_versions").await;
        match error {
            Some((e, _)) => Err(e),
            None => Ok(state
                .layers
                .get(layer)
                .map_or_else(Vec::new, |versions| versions.iter().copied().collect())),
        }
    }

    async fn delete_layer_version(&self, layer: &str, version: u64) -> Result<(), ApiError> {
        let (mut state, error) = self.enter("delete_layer_version").await;
        if let Some((e, false)) = &error {
            return Err(e.clone());
        }
        if let Some(versions) = state.layers.get_mut(layer) {
            versions.remove(&version);
        }
        error.map_or(Ok(()), |(e, _)| Err(e))
    }
}

impl Callback for Fake {
    async fn put(&self, url: &str, body: String) -> Result<(), String> {
        let (mut state, _) = self.enter("put").await;
        if state.put_failures > 0 {
            state.put_failures -= 1;
            return Err("connection refused".to_owned());
        }
        let body = serde_json::from_str(&body).map_err(|e| e.to_string())?;
        state.answers.push((url.to_owned(), body));
        Ok(())
    }
}

impl Again for Fake {
    async fn invoke_self(&self, event: String) -> Result<(), String> {
        let (mut state, _) = self.enter("invoke").await;
        if let Some(e) = &state.invoke_error {
            return Err(e.clone());
        }
        let event = serde_json::from_str(&event).map_err(|e| e.to_string())?;
        state.invoked.push(event);
        Ok(())
    }
}
