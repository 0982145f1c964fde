//! Small accounts, and everything goes wrong at once.

use super::large::{Others, furnish};
use super::queue::{Queue, Setup};
use super::{Faults, World, run, setting};
use crate::fake;
use proptest::prelude::*;
use std::time::Duration;

/// Two pollers and a schedule on an account of `instances`, while `churn` things happen in ten minutes and up to half of
/// all calls go wrong; then quiet. Gives what is wrong in the end.
fn chaos(
    seed: u64,
    instances: usize,
    churn: u32,
    faults: Faults,
    deadly: (u64, u64),
) -> Vec<String> {
    let world = World::new(seed);
    furnish(&mut world.lock(), instances);
    {
        let mut account = world.lock();
        account.lag_ms = 10_000;
        account.faults = faults;
    }
    let settings = fake::settings();
    let queue = Queue::new(Setup::TEMPLATE);
    queue.deadly.set(deadly);
    let mut others = Others::new(&world, &queue);
    let mut wrong = Vec::new();
    let drive = async {
        for _ in 0..churn {
            world.wait(Duration::from_secs(600) / churn.max(1)).await;
            others.churn();
        }
        world.lock().faults = Faults::default();
        queue.deadly.set((0, 0));
        // Two sweeps that begin after the last thing that happened, and their end.
        world
            .wait(2 * settings.sweep_every + Duration::from_secs(290))
            .await;
        let account = world.lock();
        wrong = account.differences();
        wrong.extend(account.wrongs.iter().cloned());
        if account.foreign() != others.foreign {
            wrong.push("sessions of others are not as they made them".to_owned());
        }
        let (second, four) = (
            account.busiest(Duration::from_secs(1)),
            account.busiest(Duration::from_secs(4)),
        );
        if second > 4 || four > 12 {
            wrong.push(format!("{second} changes in a second, {four} in four"));
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
    wrong
}

fn cases() -> ProptestConfig {
    let cases = setting("MIRRORFLEET_CASES", 150);
    ProptestConfig::with_cases(u32::try_from(cases).unwrap_or(u32::MAX))
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn it_converges_from_any_state_whatever_is_lost_doubled_late_throttled_or_killed(
        seed in any::<u64>(),
        instances in 1..40usize,
        churn in 0..40u32,
        (throttled, unavailable, lost, unanswered) in (0..200u64, 0..100u64, 0..100u64, 0..100u64),
        deadly in (0..500u64, 0..800u64),
    ) {
        let faults = Faults { throttled, unavailable, lost, unanswered };
        let wrong = chaos(seed, instances, churn, faults, deadly);
        prop_assert!(wrong.is_empty(), "{:?}", wrong);
    }
}
