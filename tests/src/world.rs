//! Keeps the network as the cloud says it is: an instance that runs has a namespace with nginx, and an interface that
//! has a session is mirrored. A thread looks ten times a second, as AWS acts by itself, with nobody's help.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::Deserialize;

use crate::balancer::TargetGroup;
use crate::fabric::Fabric;
use crate::fabric::session::Session;
use crate::network::{Host, Interface, Vpc};
use crate::nginx::{Entry, Nginx};
use crate::rebuilder::http_get;

const INTERVAL: Duration = Duration::from_millis(100);

/// What exists in the cloud: the emulator's `GET /_lab/network`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Snapshot {
    /// Instances; only those in state `running` get a namespace.
    pub instances: Vec<Instance>,
    /// Mirror sessions.
    pub sessions: Vec<Session>,
    /// Target groups of network load balancers.
    #[serde(default)]
    pub target_groups: Vec<TargetGroup>,
}

/// One instance.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Instance {
    /// `i-…`.
    pub id: String,
    /// `running` and so on.
    pub state: String,
    /// Its Auto Scaling group.
    pub asg: Option<String>,
    /// When it was launched, in seconds since the epoch.
    pub launched_at: f64,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Its interfaces.
    pub enis: Vec<Eni>,
}

/// One interface of an instance.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Eni {
    /// `eni-…`.
    pub id: String,
    /// Its place in the instance.
    pub device_index: u32,
    /// Its primary address.
    pub private_ip: String,
    /// Its IPv6 addresses.
    #[serde(default)]
    pub ipv6: Vec<String>,
    /// Its MAC address.
    pub mac: Option<String>,
}

impl Instance {
    /// The id of the interface `eth0`.
    #[must_use]
    pub fn primary_eni(&self) -> &str {
        self.enis.first().map_or("", |eni| &eni.id)
    }

    /// The address of the interface `eth0`.
    #[must_use]
    pub fn address(&self) -> &str {
        self.enis.first().map_or("", |eni| &eni.private_ip)
    }
}

/// Where the world learns what exists.
#[derive(Clone, Debug)]
pub enum Source {
    /// The emulator at this URL.
    Emulator(String),
    /// A list that the lab itself keeps.
    Static(Arc<Mutex<Snapshot>>),
}

impl Source {
    /// What exists now.
    ///
    /// # Errors
    /// Where the emulator does not say.
    pub fn look(&self) -> anyhow::Result<Snapshot> {
        match self {
            Self::Emulator(url) => {
                let text = http_get(&format!("{url}/_lab/network"))?;
                serde_json::from_str(&text).context("the emulator's /_lab/network")
            }
            Self::Static(snapshot) => Ok(lock(snapshot).clone()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The instances and the mirroring, kept up by a thread until it is dropped.
#[derive(Debug)]
pub struct World {
    vpc: Arc<Vpc>,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    running: BTreeMap<String, Running>,
    ended: BTreeMap<String, Vec<Entry>>,
    fabric: Fabric,
    mirrored: BTreeMap<String, Mirrored>,
    failure: Option<String>,
}

#[derive(Debug)]
struct Running {
    instance: Instance,
    web: Nginx,
    /// Dropped last: its namespace holds nginx.
    host: Host,
}

/// A session that is mirrored now.
#[derive(Clone, Debug, PartialEq)]
pub struct Mirrored {
    /// The session.
    pub session: Session,
    /// Since when the kernel copies.
    pub since: SystemTime,
}

impl World {
    /// Begins to watch `source`. Instances that `is_workload` holds for get a namespace with nginx; others (the
    /// stack's own rebuilders) do not.
    ///
    /// # Errors
    /// Where no thread can be made.
    pub fn start(
        vpc: &Arc<Vpc>,
        source: Source,
        is_workload: impl Fn(&Instance) -> bool + Send + 'static,
    ) -> anyhow::Result<Self> {
        let (state, stop) = (
            Arc::new(Mutex::new(State::default())),
            Arc::new(AtomicBool::new(false)),
        );
        let (vpc, its_vpc) = (Arc::clone(vpc), Arc::clone(vpc));
        let (its_state, its_stop) = (Arc::clone(&state), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("world".to_owned())
            .spawn(move || {
                let directory = its_vpc.directory().to_owned();
                while !its_stop.load(Ordering::Relaxed) {
                    // Looked up without the lock: the emulator may take its time.
                    let snapshot = source.look();
                    let mut state = lock(&its_state);
                    let done = snapshot.and_then(|snapshot| {
                        state.follow(&its_vpc, &directory, &snapshot, &is_workload)
                    });
                    state.failure = done.err().map(|error| format!("{error:#}"));
                    drop(state);
                    thread::sleep(INTERVAL);
                }
                // nginx was started by this thread, and ends with it (see `process::command`): orderly, here.
                *lock(&its_state) = State::default();
            })?;
        Ok(Self {
            vpc,
            state,
            stop,
            thread: Some(thread),
        })
    }

    /// Why the last look failed, if it did.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        lock(&self.state).failure.clone()
    }

    /// Instances whose nginx listens, oldest first.
    #[must_use]
    pub fn instances(&self) -> Vec<Instance> {
        let mut all: Vec<Instance> = lock(&self.state)
            .running
            .values()
            .map(|it| it.instance.clone())
            .collect();
        all.sort_by(|a, b| a.launched_at.total_cmp(&b.launched_at));
        all
    }

    /// The session that mirrors an interface.
    #[must_use]
    pub fn session_of(&self, eni: &str) -> Option<Mirrored> {
        lock(&self.state)
            .mirrored
            .values()
            .find(|mirrored| mirrored.session.eni == eni)
            .cloned()
    }

    /// All sessions that are mirrored.
    #[must_use]
    pub fn sessions(&self) -> Vec<Mirrored> {
        lock(&self.state).mirrored.values().cloned().collect()
    }

    /// Packets mirrored for a session so far.
    ///
    /// # Errors
    /// Where it is not mirrored.
    pub fn packets_of(&self, session: &str) -> anyhow::Result<u64> {
        lock(&self.state).fabric.mirrored(&self.vpc, session)
    }

    /// What an instance's nginx has logged, also after its end.
    ///
    /// # Errors
    /// Where there is no such instance, or its log cannot be read.
    pub fn access_log(&self, instance: &str) -> anyhow::Result<Vec<Entry>> {
        let state = lock(&self.state);
        if let Some(running) = state.running.get(instance) {
            return running.web.access_log();
        }
        state
            .ended
            .get(instance)
            .cloned()
            .with_context(|| format!("no instance {instance}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl State {
    fn follow(
        &mut self,
        vpc: &Vpc,
        directory: &Path,
        snapshot: &Snapshot,
        is_workload: &impl Fn(&Instance) -> bool,
    ) -> anyhow::Result<()> {
        let wanted: BTreeMap<&str, &Instance> = snapshot
            .instances
            .iter()
            .filter(|instance| instance.state == "running" && is_workload(instance))
            .map(|instance| (instance.id.as_str(), instance))
            .collect();
        let gone: Vec<String> = self
            .running
            .keys()
            .filter(|id| !wanted.contains_key(id.as_str()))
            .cloned()
            .collect();
        for id in gone {
            if let Some(running) = self.running.remove(&id) {
                self.ended.insert(id, running.web.access_log()?);
            }
        }
        for (id, instance) in wanted {
            if !self.running.contains_key(id) {
                let running =
                    boot(vpc, directory, instance).with_context(|| format!("instance {id}"))?;
                self.running.insert(id.to_owned(), running);
            }
        }
        let ports = self
            .running
            .values()
            .flat_map(|running| running.host.ports.iter().cloned())
            .collect();
        let changes = self.fabric.converge(vpc, &ports, &snapshot.sessions)?;
        for id in changes.ended {
            self.mirrored.remove(&id);
        }
        for id in changes.begun {
            if let Some(session) = snapshot.sessions.iter().find(|session| session.id == id) {
                let mirrored = Mirrored {
                    session: session.clone(),
                    since: SystemTime::now(),
                };
                self.mirrored.insert(id, mirrored);
            }
        }
        Ok(())
    }
}

/// The interfaces of an instance, as the lab makes them.
pub(crate) fn interfaces(instance: &Instance) -> Vec<Interface> {
    let mut enis = instance.enis.clone();
    enis.sort_by_key(|eni| eni.device_index);
    enis.into_iter()
        .map(|eni| {
            let mut addresses = vec![eni.private_ip];
            addresses.extend(eni.ipv6);
            Interface {
                id: eni.id,
                addresses,
                mac: eni.mac,
            }
        })
        .collect()
}

fn boot(vpc: &Vpc, directory: &Path, instance: &Instance) -> anyhow::Result<Running> {
    let host = vpc.host(&instance.id, &interfaces(instance))?;
    let web = Nginx::web_server(&host, &instance.id, directory)?;
    Ok(Running {
        instance: instance.clone(),
        web,
        host,
    })
}
