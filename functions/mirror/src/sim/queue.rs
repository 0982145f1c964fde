//! The queue between the events and `attach`, with its two pollers, as the template sets them up; and the schedule.

use super::process::{EPOCH, Process};
use super::{Kill, World};
use crate::answer::AttachAnswer;
use crate::attach::{Queued, batch};
use crate::pace::Pacer;
use crate::reconcile::{Swept, scheduled_sweep};
use crate::settings::Settings;
use serde_json::{Value, json};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::time::Duration;

/// What the template sets (`AttachMapping`, `EventQueue`, `AttachFunction`).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Setup {
    /// `BatchSize`.
    pub(crate) batch: usize,
    /// `MaximumBatchingWindowInSeconds`.
    pub(crate) window: Duration,
    /// `VisibilityTimeout`.
    pub(crate) visibility: Duration,
    /// `maxReceiveCount`.
    pub(crate) receives: u32,
    /// What an invocation has: the function's `Timeout` without what is kept for the answer.
    pub(crate) time: Duration,
}

impl Setup {
    pub(crate) const TEMPLATE: Setup = Setup {
        batch: 200,
        window: Duration::from_secs(2),
        visibility: Duration::from_secs(362),
        receives: 5,
        time: Duration::from_secs(55),
    };
}

struct Message {
    body: String,
    id: u64,
    from: Duration,
    received: u32,
}

/// One queue with its dead letters.
pub(crate) struct Queue {
    pub(crate) setup: Setup,
    messages: RefCell<VecDeque<Message>>,
    sent: Cell<u64>,
    pub(crate) dead_letters: Cell<usize>,
    pub(crate) answers: RefCell<Vec<AttachAnswer>>,
    pub(crate) sweeps: RefCell<Vec<Swept>>,
    /// No more events or sweeps will come.
    pub(crate) over: Cell<bool>,
    /// Invocations that died.
    pub(crate) crashes: Cell<usize>,
    /// Of 1,000 invocations, how many of `attach` and of `reconcile` die at one of their first calls.
    pub(crate) deadly: Cell<(u64, u64)>,
}

impl Queue {
    pub(crate) fn new(setup: Setup) -> Self {
        Self {
            setup,
            messages: RefCell::default(),
            sent: Cell::new(0),
            dead_letters: Cell::new(0),
            answers: RefCell::default(),
            sweeps: RefCell::default(),
            over: Cell::new(false),
            crashes: Cell::new(0),
            deadly: Cell::default(),
        }
    }

    /// An event arrives at `from`.
    pub(crate) fn send(&self, event: &Value, from: Duration) {
        self.sent.set(self.sent.get() + 1);
        self.messages.borrow_mut().push_back(Message {
            body: event.to_string(),
            id: self.sent.get(),
            from,
            received: 0,
        });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.messages.borrow().is_empty()
    }

    /// Takes what is visible, and hides it.
    fn take(&self, now: Duration, most: usize) -> Vec<(u64, String)> {
        let mut messages = self.messages.borrow_mut();
        let visible: Vec<usize> = (0..messages.len())
            .filter(|i| messages[*i].from <= now)
            .take(most)
            .collect();
        let mut taken = Vec::new();
        for i in visible {
            let message = &mut messages[i];
            message.received += 1;
            message.from = now + self.setup.visibility;
            taken.push((message.id, message.body.clone()));
        }
        let dead = |m: &Message| m.received > self.setup.receives;
        let dead: Vec<u64> = messages.iter().filter(|m| dead(m)).map(|m| m.id).collect();
        self.dead_letters.set(self.dead_letters.get() + dead.len());
        messages.retain(|m| !dead.contains(&m.id));
        taken.retain(|(id, _)| !dead.contains(id));
        taken
    }

    fn done(&self, ids: &[u64]) {
        let mut messages = self.messages.borrow_mut();
        messages.retain(|m| !ids.contains(&m.id));
    }

    /// One of the two pollers, with its process of `attach`, until all is over. Where the process dies, another takes its
    /// place.
    pub(crate) async fn poll(&self, world: &World, name: &'static str, settings: &Settings) {
        let fresh = || {
            let pacer = Pacer::for_poller(settings.mutations_per_second);
            Process::new(world, name, settings, pacer)
        };
        let mut process = fresh();
        while !(self.over.get() && self.is_empty()) {
            let some = self.messages.borrow().iter().any(|m| m.from <= world.now());
            world.wait(self.setup.window).await;
            if !some {
                continue;
            }
            let taken = self.take(world.now(), self.setup.batch);
            if taken.is_empty() {
                continue;
            }
            let queued: Vec<Queued> = taken
                .iter()
                .map(|(id, body)| Queued {
                    id: id.to_string(),
                    body: body.clone(),
                })
                .collect();
            process = process.dies(kill(world, self.deadly.get().0));
            let run = process.run(self.setup.time);
            match process.live(batch(&run, &queued)).await {
                None => {
                    self.crashes.set(self.crashes.get() + 1);
                    process = fresh();
                }
                Some(answer) => {
                    let again = answer.batch_item_failures.iter().flatten();
                    let again: Vec<&str> = again.map(|f| f.item_identifier.as_str()).collect();
                    let done = taken.iter().map(|(id, _)| *id);
                    let done = done.filter(|id| !again.contains(&id.to_string().as_str()));
                    self.done(&done.collect::<Vec<_>>());
                    self.answers.borrow_mut().push(answer);
                }
            }
        }
    }

    /// The schedule with the process of `reconcile`, until all is over.
    pub(crate) async fn sweep(&self, world: &World, settings: &Settings) {
        let fresh = || {
            let pacer = Pacer::for_sweep(settings.mutations_per_second);
            Process::new(world, "reconcile", settings, pacer)
        };
        let mut process = fresh();
        let mut next = settings.sweep_every;
        while !self.over.get() {
            world.until(next).await;
            next += settings.sweep_every;
            process = process.dies(kill(world, self.deadly.get().1));
            let run = process.run(Duration::from_secs(885));
            match process.live(scheduled_sweep(&run)).await {
                None => {
                    self.crashes.set(self.crashes.get() + 1);
                    process = fresh();
                }
                Some(swept) => self.sweeps.borrow_mut().extend(swept.ok()),
            }
            world.lock().tidy();
        }
    }
}

#[test]
fn the_template_sets_the_queue_up_as_it_is_simulated() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../template.yaml");
    let template = std::fs::read_to_string(path).unwrap();
    let section = |name: &str| {
        let from = template.find(&format!("\n  {name}:\n")).unwrap();
        let rest = &template[from + 1..];
        let to = rest.match_indices("\n  ").find(|(at, _)| {
            let next = rest[at + 3..].chars().next();
            next.is_some_and(char::is_alphabetic)
        });
        rest[..to.map_or(rest.len(), |(at, _)| at)].to_owned()
    };
    let Setup {
        batch,
        window,
        visibility,
        receives,
        time,
    } = Setup::TEMPLATE;
    // `attach` keeps 5 s back for its answer.
    let timeout = (time + Duration::from_secs(5)).as_secs();
    for (name, line) in [
        ("AttachFunction", format!("Timeout: {timeout}\n")),
        ("AttachMapping", format!("BatchSize: {batch}\n")),
        (
            "AttachMapping",
            format!("MaximumBatchingWindowInSeconds: {}\n", window.as_secs()),
        ),
        ("AttachMapping", "MaximumConcurrency: 2 }".to_owned()),
        (
            "EventQueue",
            format!("VisibilityTimeout: {}\n", visibility.as_secs()),
        ),
        ("EventQueue", format!("maxReceiveCount: {receives}")),
    ] {
        assert!(section(name).contains(&line), "{name} lacks {line}");
    }
    // What Lambda asks of a queue: six times the function's timeout, and the window.
    assert!(visibility >= 6 * Duration::from_secs(timeout) + window);
}

fn kill(world: &World, crashes: u64) -> Kill {
    let mut account = world.lock();
    if !account.random.in_thousand(crashes) {
        return Kill::Never;
    }
    let (call, after) = (account.random.below(16), account.random.in_thousand(500));
    let call = usize::try_from(call).unwrap_or(0);
    if after {
        Kill::After(call)
    } else {
        Kill::Before(call)
    }
}

/// RFC 3339 of a time of the simulation, in the hour of its beginning or the next ones of that day.
fn time(at: Duration) -> String {
    let of_day = (EPOCH + at).as_secs() % 86_400;
    let day = 11 + ((EPOCH + at).as_secs() / 86_400 - EPOCH.as_secs() / 86_400);
    let (h, m, s) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("2026-11-{day:02}T{h:02}:{m:02}:{s:02}Z")
}

/// `EC2 Instance State-change Notification` at `at`.
pub(crate) fn state_change(instance: &str, state: &str, at: Duration) -> Value {
    json!({
        "version": "0", "id": "7bf73129-1428-4cd3-a780-95db273d1602",
        "detail-type": "EC2 Instance State-change Notification", "source": "aws.ec2",
        "account": "123456789012", "time": time(at), "region": "us-east-1",
        "resources": [format!("arn:aws:ec2:us-east-1:123456789012:instance/{instance}")],
        "detail": {"instance-id": instance, "state": state},
    })
}

/// `Tag Change on Resource` at `at`.
pub(crate) fn tag_change(instance: &str, at: Duration) -> Value {
    json!({
        "version": "0", "id": "ffd8a6fe-32f8-ef66-c85c-111111111111",
        "detail-type": "Tag Change on Resource", "source": "aws.tag",
        "account": "123456789012", "time": time(at), "region": "us-east-1",
        "resources": [format!("arn:aws:ec2:us-east-1:123456789012:instance/{instance}")],
        "detail": {"changed-tag-keys": ["Mirror"], "service": "ec2", "resource-type": "instance", "version": 1},
    })
}
