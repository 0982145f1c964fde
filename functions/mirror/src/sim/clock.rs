//! Simulated time, and an executor that knows nothing else to wait for.

use super::World;
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

/// The time of a simulation, and who waits for which.
#[derive(Default)]
pub(crate) struct Sim {
    pub(crate) now: Duration,
    /// By time, then by who asked first: the order is the same in each run.
    waiting: BTreeMap<(Duration, u64), Waker>,
    asked: u64,
}

/// A wait until a time.
pub(crate) struct Until<'a> {
    world: &'a World,
    until: Duration,
    asked: Option<(Duration, u64)>,
}

impl World {
    /// Waits until this time.
    pub(crate) fn until(&self, until: Duration) -> Until<'_> {
        Until {
            world: self,
            until,
            asked: None,
        }
    }

    /// Waits so long.
    pub(crate) fn wait(&self, time: Duration) -> Until<'_> {
        self.until(self.lock().sim.now + time)
    }

    pub(crate) fn now(&self) -> Duration {
        self.lock().sim.now
    }
}

impl Future for Until<'_> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let until = self.until;
        let mut account = self.world.lock();
        let sim = &mut account.sim;
        if sim.now >= until {
            return Poll::Ready(());
        }
        let key = self.asked.unwrap_or_else(|| {
            sim.asked += 1;
            (until, sim.asked)
        });
        sim.waiting.insert(key, context.waker().clone());
        drop(account);
        self.asked = Some(key);
        Poll::Pending
    }
}

impl Drop for Until<'_> {
    /// A process that was killed waits for nothing any more.
    fn drop(&mut self) {
        if let Some(key) = self.asked {
            self.world.lock().sim.waiting.remove(&key);
        }
    }
}

struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs all tasks to their end, one at a time; time passes only when all of them wait.
pub(crate) fn run(world: &World, tasks: Vec<Pin<Box<dyn Future<Output = ()> + '_>>>) {
    let mut tasks: Vec<_> = tasks
        .into_iter()
        .map(|task| (Some(task), Arc::new(Flag(AtomicBool::new(true)))))
        .collect();
    loop {
        let mut ran = false;
        for (task, flag) in &mut tasks {
            if !flag.0.swap(false, Ordering::Relaxed) {
                continue;
            }
            let Some(future) = task else { continue };
            ran = true;
            let waker = Waker::from(Arc::clone(flag));
            if future
                .as_mut()
                .poll(&mut Context::from_waker(&waker))
                .is_ready()
            {
                *task = None;
            }
        }
        if tasks.iter().all(|(task, _)| task.is_none()) {
            return;
        }
        if !ran {
            let mut account = world.lock();
            let (at, waker) = {
                let first = account.sim.waiting.pop_first();
                let ((at, _), waker) = first.expect("a task waits for something other than time");
                (at, waker)
            };
            account.sim.now = at;
            drop(account);
            waker.wake();
        }
    }
}
