//! The story, in order.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use lab::balancer::State as Health;
use lab::data_plane::{ANALYSER, CLIENT};
use lab::fleet::{self, Fleet, Seen};
use lab::network::{Interface, Vpc};
use lab::nginx::Nginx;
use lab::paced::{Client, Pace};
use lab::process::wait_for;
use lab::rebuilder::last_figure;
use lab::world::{Source, World};

use crate::Options;
use crate::cloud::{Cloud, GROUP, STACK, WEB};
use crate::judge::{Judge, Phase, Row};

const PATIENCE: Duration = Duration::from_secs(120);
/// Traffic before and after each change, so that what the change did is seen whole.
const MARGIN: Duration = Duration::from_secs(2);
/// Requests of a thousand that a planned change may lose: less than one.
const PER_MILLE: usize = 1;

/// Tells it. Whether the numbers are as promised.
///
/// # Errors
/// Where a part cannot be told at all.
pub(crate) fn tell(options: &Options) -> anyhow::Result<bool> {
    let told = Instant::now();
    let vpc = Arc::new(Vpc::new(lab::network::Options::default())?);
    let directory = vpc.directory().to_owned();
    let client = vpc.host("client", &[Interface::new("client", &CLIENT)])?;
    let host = vpc.host("analyser", &[Interface::new("analyser", &[ANALYSER])])?;
    let analyser = Nginx::counting_analyser(&host, "analyser", &directory)?;
    let binary = Cloud::rebuilder()?;
    say(told, "an emulated account");
    let cloud = Cloud::start(&options.venv, &directory, options.second)?;
    let fleet = Fleet::start(
        &vpc,
        fleet::Options {
            emulator: cloud.emulator.url().to_owned(),
            stack: STACK.to_owned(),
            group: GROUP.to_owned(),
            binary,
            forward: format!("http://{ANALYSER}:80"),
        },
    )?;
    let source = Source::Emulator(cloud.emulator.url().to_owned());
    let world = World::start(&vpc, source, |it| it.asg.as_deref() == Some(WEB))?;
    say(
        told,
        "two web servers; sam deploy, which waits for two rebuilders' signals",
    );
    cloud.web(2)?;
    cloud
        .deploy()
        .with_context(|| format!("{:?} {:?}", fleet.seen(), fleet.failure()))?;
    wait_for("both are mirrored", PATIENCE, || {
        Ok((world.sessions().len() == 2).then_some(()))
    })
    .with_context(|| world.failure().unwrap_or_default())?;
    let servers: Vec<SocketAddr> = world
        .instances()
        .iter()
        .map(|it| Ok(SocketAddr::new(it.address().parse()?, 80)))
        .collect::<anyhow::Result<_>>()?;

    let pace = Pace {
        servers,
        connections: options.connections,
        a_second: options.rate,
        posts: (10, 4000),
    };
    let traffic = Client::start(&client, pace)?;
    let mut stage = Stage {
        told,
        cloud: &cloud,
        fleet: &fleet,
        phases: Vec::new(),
    };
    stage.phase("nothing changes", |_| Ok(()))?;
    stage.phase("update: every instance is replaced", Stage::update)?;
    stage.phase("one more", Stage::grow)?;
    stage.phase("scale-in: one leaves", Stage::shrink)?;
    let mut death = None;
    stage.phase("an instance dies", |stage| {
        death = Some(stage.kill()?);
        Ok(())
    })?;
    let phases = stage.phases;
    let death = death.context("nobody died")?;
    let ended = fleet.ended();
    let done = traffic.stop()?;
    let judge = Judge::new(done, &analyser)?;
    let (_, moved) = fleet.counts();
    let running = fleet.metrics()?;
    let counts = fleet.stop()?;
    drop(world);

    let mut objections = Vec::new();
    println!(
        "\n{:<38} {:>9} {:>6} {:>9} {:>8} {:>8}",
        "", "sent", "lost", "of a 1000", "in part", "again"
    );
    for phase in &phases {
        let row = judge.row(phase);
        println!("{}", line(phase.name, &row));
        let allowed = match phase.name {
            "an instance dies" => None,
            "nothing changes" => Some(0),
            _ => Some(row.sent * PER_MILLE / 1000),
        };
        if allowed.is_some_and(|allowed| row.lost > 0 && row.lost >= allowed) {
            objections.push(format!("{}: {} lost of {}", phase.name, row.lost, row.sent));
        }
    }
    objections.extend(death.judge(&judge, phases.last().context("no phase")?));
    let done = judge.done();
    let unanswered = done.sent.iter().filter(|it| !it.answered).count();
    println!(
        "{} connections opened, {} requests without an answer; {moved} outer flows moved; load balancer: {counts:?}",
        done.opened, unanswered
    );
    if done.opened != u64::from(options.connections) || unanswered > 0 {
        objections.push(format!(
            "the web servers did not serve all: {:?}",
            done.trouble
        ));
    }
    // Each packet that the load balancer has sent to a rebuilder is in that one's books.
    let mut taken = BTreeMap::new();
    for (id, it) in ended.iter().filter(|(_, it)| !it.killed) {
        if it.status != "exit status: 0" {
            objections.push(format!("{id} ended with {}: {}", it.status, it.output));
            continue;
        }
        let figure = |name| last_figure(&it.output, name);
        taken.insert(id.clone(), figure("packets")? + figure("kernel_drops")?);
    }
    for (id, metrics) in &running {
        let drops = metrics.count("rebuilder_kernel_drops_total");
        taken.insert(id.clone(), metrics.packets() + drops);
    }
    for (id, taken) in taken {
        let sent = counts.sent.get(&id).copied().unwrap_or_default();
        if taken != sent {
            objections.push(format!("{id} was sent {sent} packets and knows of {taken}"));
        }
    }
    for objection in &objections {
        println!("NOT AS PROMISED: {objection}");
    }
    say(told, "done");
    Ok(objections.is_empty())
}

fn line(name: &str, row: &Row) -> String {
    let share = if row.sent == 0 {
        0.0
    } else {
        1000.0 * lossy(row.lost) / lossy(row.sent)
    };
    format!(
        "{name:<38} {:>9} {:>6} {share:>9.3} {:>8} {:>8}",
        row.sent, row.lost, row.partial, row.again
    )
}

#[expect(clippy::cast_precision_loss, reason = "a count of requests")]
fn lossy(count: usize) -> f64 {
    count as f64
}

fn say(told: Instant, text: &str) {
    println!("{:6.1} s  {text}", told.elapsed().as_secs_f64());
}

struct Stage<'a> {
    told: Instant,
    cloud: &'a Cloud,
    fleet: &'a Fleet,
    phases: Vec<Phase>,
}

impl Stage<'_> {
    fn phase(
        &mut self,
        name: &'static str,
        change: impl FnOnce(&mut Self) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        say(self.told, name);
        let begun = Instant::now();
        std::thread::sleep(MARGIN);
        change(self).with_context(|| {
            format!("{name}: {:?} {:?}", self.fleet.seen(), self.fleet.failure())
        })?;
        std::thread::sleep(MARGIN);
        self.phases.push(Phase {
            name,
            begun,
            ended: Instant::now(),
        });
        Ok(())
    }

    /// Another setting is another user data, so another version of the launch template.
    fn update(&mut self) -> anyhow::Result<()> {
        let before = self.ids();
        self.cloud.update("TrustedProxyCidrs", "10.99.0.0/16")?;
        self.cloud.nobody_leaves()?;
        self.healthy(2)?;
        let after = self.ids();
        if after.iter().any(|id| before.contains(id)) {
            bail!("{before:?} became {after:?}");
        }
        self.carries()
    }

    fn grow(&mut self) -> anyhow::Result<()> {
        self.cloud.resize(3)?;
        self.healthy(3)
    }

    fn shrink(&mut self) -> anyhow::Result<()> {
        let before = self.fleet.seen();
        self.cloud.resize(2)?;
        self.cloud.nobody_leaves()?;
        self.healthy(2)?;
        let after = self.ids();
        let left: Vec<&Seen> = before.iter().filter(|it| !after.contains(&it.id)).collect();
        let held: usize = left.iter().map(|it| it.flows).sum();
        say(self.told, &format!("it had {held} outer flows"));
        if held == 0 {
            bail!("who left had nothing to lose");
        }
        self.carries()
    }

    /// The busiest one dies.
    fn kill(&mut self) -> anyhow::Result<Death> {
        let seen = self.fleet.seen();
        let busiest = seen
            .iter()
            .max_by_key(|it| it.flows)
            .context("nobody is there")?;
        let id = busiest.id.clone();
        let before = self.fleet.counts().0.to_the_gone;
        let at = Instant::now();
        self.fleet.kill(&id)?;
        wait_for("the load balancer finds it dead", PATIENCE, || {
            Ok((self.fleet.health(&id) != Some(Health::Healthy)).then_some(()))
        })?;
        let found = Instant::now();
        say(
            self.told,
            &format!(
                "found dead after {:.1} s; it had {} outer flows",
                (found - at).as_secs_f64(),
                busiest.flows
            ),
        );
        let packets = self.fleet.counts().0.to_the_gone - before;
        wait_for("it is replaced", 2 * PATIENCE, || {
            let seen = self.fleet.seen();
            let well = seen.iter().filter(|it| it.health == Some(Health::Healthy));
            Ok((well.count() >= 2 && !seen.iter().any(|it| it.id == id)).then_some(()))
        })?;
        Ok(Death { at, found, packets })
    }

    fn ids(&self) -> Vec<String> {
        self.fleet.seen().into_iter().map(|it| it.id).collect()
    }

    /// Waits until exactly so many are there, and healthy.
    fn healthy(&self, count: usize) -> anyhow::Result<()> {
        wait_for(&format!("{count} healthy rebuilders"), 2 * PATIENCE, || {
            let seen = self.fleet.seen();
            let all = seen.iter().all(|it| it.health == Some(Health::Healthy));
            Ok((all && seen.len() == count).then_some(()))
        })
    }

    /// Somebody has flows, or the balance of losses says nothing.
    fn carries(&self) -> anyhow::Result<()> {
        wait_for("the flows are with those who stay", PATIENCE, || {
            let held: usize = self.fleet.seen().iter().map(|it| it.flows).sum();
            Ok((held > 0).then_some(()))
        })
    }
}

/// How an instance died.
struct Death {
    at: Instant,
    /// When the load balancer found that out.
    found: Instant,
    /// What the load balancer sent to it meanwhile.
    packets: u64,
}

impl Death {
    /// Only what was in flight in it, or was sent to it until it was found dead, may be lost.
    fn judge(&self, judge: &Judge, phase: &Phase) -> Vec<String> {
        // A rebuilder hands a request on within milliseconds; the machine may be busy.
        const IN_FLIGHT: Duration = Duration::from_secs(1);
        let lost = judge.lost_at(phase);
        let before = lost.iter().filter(|&&at| at < self.at).count();
        let meanwhile = lost
            .iter()
            .filter(|&&at| at >= self.at && at < self.found)
            .count();
        println!(
            "  of it in flight when it died: {before}; sent until it was found dead: {meanwhile}, in {} packets",
            self.packets
        );
        let mut objections = Vec::new();
        let others = lost
            .iter()
            .filter(|&&at| at + IN_FLIGHT < self.at || at > self.found + Duration::from_millis(200))
            .count();
        if others > 0 {
            objections.push(format!(
                "{others} are lost that neither were in flight nor sent to the dead"
            ));
        }
        if u64::try_from(meanwhile).unwrap_or(u64::MAX) > self.packets {
            objections.push(format!(
                "{meanwhile} requests cannot be lost in {} packets",
                self.packets
            ));
        }
        objections
    }
}
