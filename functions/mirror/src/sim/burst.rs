//! 500 launches in a minute.

use super::queue::{Queue, Setup, state_change};
use super::{Account, World, run};
use crate::fake;
use crate::id::InstanceId;
use std::time::Duration;

const LAUNCHES: usize = 500;

/// Launches them evenly over a minute that begins `lead` before a sweep, and runs until all have their sessions.
fn burst(seed: u64, lead: Duration) -> (World, Queue) {
    let world = World::new(seed);
    world.lock().lag_ms = 1500;
    let settings = fake::settings();
    let queue = Queue::new(Setup::TEMPLATE);
    let start = settings.sweep_every - lead;
    let launch = async {
        world.until(start).await;
        let mut launched: Vec<InstanceId> = Vec::new();
        for _ in 0..LAUNCHES {
            world.wait(Duration::from_millis(120)).await;
            let id = world.lock().launch(true, 1);
            let now = world.now();
            // `running` comes some seconds after the launch.
            queue.send(
                &state_change(id.as_str(), "running", now),
                now + Duration::from_secs(3),
            );
            launched.push(id);
        }
        let all = |account: &Account| account.first_made.len() == LAUNCHES;
        while !all(&world.lock()) && world.now() < start + Duration::from_secs(1800) {
            world.wait(Duration::from_secs(1)).await;
        }
        queue.over.set(true);
    };
    run(
        &world,
        vec![
            Box::pin(launch),
            Box::pin(queue.poll(&world, "attach 1", &settings)),
            Box::pin(queue.poll(&world, "attach 2", &settings)),
            Box::pin(queue.sweep(&world, &settings)),
        ],
    );
    (world, queue)
}

#[test]
fn a_burst_of_launches_is_a_few_descriptions_and_keeps_the_pace() {
    for (lead, name) in [(240, "4 minutes"), (90, "90 s"), (30, "30 s")] {
        let (world, queue) = burst(7, Duration::from_secs(lead));
        let account = world.lock();
        let count = |by: &str, name: &str| {
            let of = |c: &&super::account::Call| c.by.starts_with(by) && c.name == name;
            account.log.iter().filter(of).count()
        };
        let answers = queue.answers.borrow();
        let start = fake::settings().sweep_every - Duration::from_secs(lead);
        let last = account
            .first_made
            .values()
            .max()
            .copied()
            .unwrap_or_default();
        let (second, four) = (
            account.busiest(Duration::from_secs(1)),
            account.busiest(Duration::from_secs(4)),
        );
        let described = ["interfaces", "instances", "sessions", "mirror targets"];
        let by_attach: usize = described.iter().map(|n| count("attach", n)).sum();
        let by_sweeps: usize = described.iter().map(|n| count("reconcile", n)).sum();
        println!(
            "SIM {LAUNCHES} launches in a minute, {name} before a sweep: {} batches with {by_attach} EC2 descriptions and {} \
             looks at the stack, {} sweeps with {by_sweeps}; {} + {} creates; all there {:?} after the first launch",
            answers.len(),
            count("attach", "stack"),
            queue.sweeps.borrow().len(),
            count("attach", "create"),
            count("reconcile", "create"),
            last - start,
        );
        let mut latencies: Vec<Duration> =
            answers.iter().flat_map(|a| a.latencies.clone()).collect();
        latencies.sort();
        let at = |part: usize| latencies[(latencies.len() - 1) * part / 100].as_secs();
        println!(
            "SIM latency of the {} sessions made by attach: median {} s, 90 % {} s, longest {} s; busiest: {second} changes in \
             1 s, {four} in 4 s",
            latencies.len(),
            at(50),
            at(90),
            at(100),
        );
        // 500 ids, 200 values of a filter each: of interfaces, their instances, their sessions.
        let least = 3 * LAUNCHES.div_ceil(200);
        assert!(by_attach <= least + 10, "{by_attach} with at least {least}");
        // Nobody creates what another has made, but for a few where the two meet.
        let creates = count("", "create");
        assert!(creates <= LAUNCHES + 10, "{creates} creates");
        assert!(second <= 4 && four <= 12, "{second} in 1 s, {four} in 4 s");
        assert_eq!(account.first_made.len(), LAUNCHES);
        assert_eq!(account.differences(), Vec::<String>::new());
        assert_eq!((queue.dead_letters.get(), account.throttled), (0, 0));
        assert!(queue.is_empty());
    }
}
