//! The rebuilders' hosts: each instance of the rebuilders' group gets a namespace with the real rebuilder behind the
//! lab's load balancer, and signals when that one finds it healthy, as the template's user data does. A thread follows
//! what the emulated account says, and tells it how the targets are.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::Context;

use crate::balancer::{Balancer, Counts, State as Health};
use crate::emulator::ask;
use crate::network::{Host, Vpc};
use crate::process::Process;
use crate::rebuilder::{Metrics, http_get};
use crate::world::{Instance, Snapshot, Source, interfaces};

const INTERVAL: Duration = Duration::from_millis(50);
/// How long a rebuilder may take to end after SIGTERM: systemd's limit in the unit is longer.
const END: Duration = Duration::from_secs(40);

/// What a fleet is made with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The emulator.
    pub emulator: String,
    /// The stack, for the signals.
    pub stack: String,
    /// What the name of its group begins with.
    pub group: String,
    /// The program.
    pub binary: PathBuf,
    /// Where requests go.
    pub forward: String,
}

/// The hosts and their load balancer, kept up by a thread until it is dropped.
#[derive(Debug)]
pub struct Fleet {
    vpc: Arc<Vpc>,
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    balancer: Balancer,
    running: BTreeMap<String, Running>,
    ended: BTreeMap<String, Ended>,
    failure: Option<String>,
}

#[derive(Debug)]
struct Running {
    process: Process,
    signalled: bool,
    killed: bool,
    asked: Instant,
    /// Dropped last.
    host: Host,
}

/// A rebuilder that has ended.
#[derive(Clone, Debug)]
pub struct Ended {
    /// Whether that was the lab's doing.
    pub killed: bool,
    /// How its process ended.
    pub status: String,
    /// All that it wrote.
    pub output: String,
}

/// A host as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// The instance.
    pub id: String,
    /// How the load balancer finds it; `None` while it is not registered.
    pub health: Option<Health>,
    /// Whether it has signalled.
    pub signalled: bool,
    /// Outer flows that the load balancer sends to it.
    pub flows: usize,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Fleet {
    /// Begins to follow the emulator.
    ///
    /// # Errors
    /// Where the load balancer or the thread cannot be made.
    pub fn start(vpc: &Arc<Vpc>, options: Options) -> anyhow::Result<Self> {
        let state = Arc::new(Mutex::new(State {
            balancer: Balancer::start(vpc)?,
            running: BTreeMap::new(),
            ended: BTreeMap::new(),
            failure: None,
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let (its_vpc, its_state, its_stop) =
            (Arc::clone(vpc), Arc::clone(&state), Arc::clone(&stop));
        let thread = thread::Builder::new()
            .name("fleet".to_owned())
            .spawn(move || {
                let source = Source::Emulator(options.emulator.clone());
                while !its_stop.load(Ordering::Relaxed) {
                    let done = source
                        .look()
                        .and_then(|snapshot| follow(&its_state, &its_vpc, &options, &snapshot));
                    lock(&its_state).failure = done.err().map(|error| format!("{error:#}"));
                    thread::sleep(INTERVAL);
                }
                // They were started by this thread, and end with it (see `process::command`).
                lock(&its_state).running.clear();
            })?;
        Ok(Self {
            vpc: Arc::clone(vpc),
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

    /// The hosts that run.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        let state = lock(&self.state);
        let (health, (flows, _)) = (state.balancer.states(), state.balancer.flows());
        let running = state.running.iter().filter(|(_, it)| !it.killed);
        running
            .map(|(id, it)| Seen {
                id: id.clone(),
                health: health.get(id).copied(),
                signalled: it.signalled,
                flows: flows.get(id).copied().unwrap_or_default(),
            })
            .collect()
    }

    /// How a target is, whether its host lives or not.
    #[must_use]
    pub fn health(&self, id: &str) -> Option<Health> {
        lock(&self.state).balancer.states().get(id).copied()
    }

    /// What the load balancer has counted, and how many flows it has moved.
    #[must_use]
    pub fn counts(&self) -> (Counts, u64) {
        let state = lock(&self.state);
        (state.balancer.counts(), state.balancer.flows().1)
    }

    /// The metrics of every host that runs.
    ///
    /// # Errors
    /// Where one does not answer.
    pub fn metrics(&self) -> anyhow::Result<BTreeMap<String, Metrics>> {
        let state = lock(&self.state);
        let running = state.running.iter().filter(|(_, it)| !it.killed);
        running
            .map(|(id, it)| {
                let page = || http_get("http://127.0.0.1:9445/metrics");
                let text = it.host.namespace.run(page)?.with_context(|| id.clone())?;
                Ok((id.clone(), Metrics::parse(&text)))
            })
            .collect()
    }

    /// Those that have ended.
    #[must_use]
    pub fn ended(&self) -> BTreeMap<String, Ended> {
        lock(&self.state).ended.clone()
    }

    /// Ends a host at once: its program by SIGKILL, and its interfaces are gone.
    ///
    /// # Errors
    /// Where it does not run, or `ip` refuses.
    pub fn kill(&self, id: &str) -> anyhow::Result<()> {
        let mut state = lock(&self.state);
        let running = state
            .running
            .get_mut(id)
            .with_context(|| format!("{id} does not run"))?;
        running.killed = true;
        running.process.signal_group(libc::SIGKILL);
        self.vpc.cut(&running.host)?;
        state.balancer.cut(id)
    }

    /// Ends it all; what the load balancer has counted.
    ///
    /// # Errors
    /// Where it has lost something that is in no count.
    pub fn stop(mut self) -> anyhow::Result<Counts> {
        self.end();
        lock(&self.state).balancer.stop()
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.end();
    }
}

fn follow(
    shared: &Arc<Mutex<State>>,
    vpc: &Arc<Vpc>,
    options: &Options,
    snapshot: &Snapshot,
) -> anyhow::Result<()> {
    let wanted: BTreeMap<&str, &Instance> = snapshot
        .instances
        .iter()
        .filter(|it| {
            it.asg
                .as_deref()
                .is_some_and(|asg| asg.starts_with(&options.group))
        })
        .map(|it| (it.id.as_str(), it))
        .collect();
    {
        // First, so that no flow waits for a host to boot.
        let mut state = lock(shared);
        if let Some(group) = snapshot.target_groups.first() {
            state.balancer.follow(group)?;
            let report = report(&state.balancer, &group.arn);
            drop(state);
            post(
                &format!("{}/_lab/health", options.emulator),
                &report.to_string(),
            )?;
        }
    }
    let gone: Vec<(String, Running)> = {
        let mut state = lock(shared);
        let ids: Vec<String> = state.running.keys().cloned().collect();
        let gone = ids
            .into_iter()
            .filter(|id| !wanted.contains_key(id.as_str()));
        gone.filter_map(|id| state.running.remove_entry(&id))
            .collect()
    };
    for (id, running) in gone {
        end(shared, id, running)?;
    }
    for (id, instance) in wanted {
        if !lock(shared).running.contains_key(id) {
            let running = boot(shared, vpc, options, instance).with_context(|| id.to_owned())?;
            lock(shared).running.insert(id.to_owned(), running);
        }
    }
    let group = snapshot
        .target_groups
        .first()
        .map(|group| group.arn.as_str());
    signal(shared, options, group.unwrap_or_default())
}

/// As EC2 ends an instance: its services are told to end, and have their time. Nobody waits for it.
fn end(shared: &Arc<Mutex<State>>, id: String, running: Running) -> anyhow::Result<()> {
    let shared = Arc::clone(shared);
    running.process.signal(libc::SIGTERM);
    thread::Builder::new().name(id.clone()).spawn(move || {
        // All of it: its host is to last as long as its process.
        let mut running = running;
        let ended = running.process.wait(END);
        let status = ended.map_or_else(|error| format!("{error:#}"), |status| status.to_string());
        let output = running.process.output();
        let ended = Ended {
            killed: running.killed,
            status,
            output,
        };
        lock(&shared).ended.insert(id, ended);
    })?;
    Ok(())
}

fn boot(
    shared: &Arc<Mutex<State>>,
    vpc: &Arc<Vpc>,
    options: &Options,
    instance: &Instance,
) -> anyhow::Result<Running> {
    let host = vpc.host(&instance.id, &interfaces(instance))?;
    lock(shared).balancer.plug(vpc, &instance.id, &host)?;
    let mut command = host.namespace.command(&options.binary);
    command
        .arg("run")
        .env("REBUILDER_LISTEN", "0.0.0.0:4789")
        .env("REBUILDER_ADMIN", "0.0.0.0:9445")
        .env("REBUILDER_FORWARD", &options.forward);
    let name = format!("rebuilder-{}", instance.id);
    Ok(Running {
        process: Process::start(&name, command, vpc.directory())?,
        signalled: false,
        killed: false,
        asked: Instant::now(),
        host,
    })
}

fn report(balancer: &Balancer, arn: &str) -> serde_json::Value {
    let targets: serde_json::Map<String, serde_json::Value> = balancer
        .states()
        .into_iter()
        .map(|(id, state)| {
            let reason = balancer.reason(&id);
            let how = serde_json::json!({"state": state.name(), "reason": reason});
            (id, how)
        })
        .collect();
    serde_json::json!({"target_group": arn, "targets": targets})
}

/// What the end of the user data does: asks the load balancer about the instance, and signals when it is healthy.
fn signal(shared: &Mutex<State>, options: &Options, group: &str) -> anyhow::Result<()> {
    let pending: Vec<String> = {
        let mut state = lock(shared);
        let due = |it: &Running| !it.signalled && it.asked.elapsed() >= Duration::from_millis(300);
        let pending = state.running.iter_mut().filter(|(_, it)| due(it));
        pending
            .map(|(id, it)| {
                it.asked = Instant::now();
                id.clone()
            })
            .collect()
    };
    for id in pending {
        let question = [
            ("Action", "DescribeTargetHealth"),
            ("Version", "2015-12-01"),
            ("TargetGroupArn", group),
            ("Targets.member.1.Id", &id),
        ];
        let answer = ask(&options.emulator, "elasticloadbalancing", &question)?;
        if !answer.contains("<State>healthy</State>") {
            continue;
        }
        let success = [
            ("Action", "SignalResource"),
            ("Version", "2010-05-15"),
            ("StackName", &options.stack),
            ("LogicalResourceId", "RebuilderGroup"),
            ("UniqueId", &id),
            ("Status", "SUCCESS"),
        ];
        // A signal that nobody waits for is refused, as it must be when the group grew by itself.
        let _ = ask(&options.emulator, "cloudformation", &success);
        if let Some(running) = lock(shared).running.get_mut(&id) {
            running.signalled = true;
        }
    }
    Ok(())
}

fn post(url: &str, body: &str) -> anyhow::Result<()> {
    agent()
        .post(url)
        .send(body)
        .with_context(|| url.to_owned())?;
    Ok(())
}

fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .into()
}
