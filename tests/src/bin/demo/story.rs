//! The story, in order. With `venv` the cloud is the emulator and everything in it is done by the commands that an
//! operator would type; without, instances and sessions are a list that the demo keeps.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use lab::analyser::Analyser;
use lab::data_plane::{ANALYSER, CLIENT, DataPlane, instance};
use lab::emulator::{Emulator, text};
use lab::fabric::session::http_session;
use lab::network::Options;
use lab::process::wait_for;
use lab::rebuilder::{Metrics, Rebuilder};
use lab::world::{Instance, Mirrored, Snapshot, Source, World};

use crate::progress::{Progress, crates_compiled};
use crate::report::{Fate, Row, fate, objection, table};
use crate::requests::volley;

const STACK: &str = "mirrorfleet-demo";
const GROUP: &str = "demo-web";
/// How long an event may take to become a session. AWS promises nothing; here it is seconds.
const PATIENCE: Duration = Duration::from_secs(90);

/// Tells it. Whether the numbers agree.
///
/// # Errors
/// Where a part cannot be told at all.
pub(crate) fn tell(mtu: u32, venv: Option<&Path>) -> anyhow::Result<bool> {
    let progress = Progress::new();
    progress.chapter("A VPC on this machine: a client, an analyser, a place for the rebuilder");
    let plane = DataPlane::new(Options { mtu })?;
    let directory = plane.vpc.directory().to_owned();
    let analyser = Analyser::start(&plane.analyser, &directory)?;
    progress.line(&format!(
        "analyser: nginx with ModSecurity and the OWASP core rule set, at http://{ANALYSER}"
    ));

    let mut cloud = match venv {
        Some(venv) => Cloud::deploy(&progress, venv, &directory)?,
        None => Cloud::List(Arc::new(Mutex::new(Snapshot::default()))),
    };

    progress.chapter("The rebuilder");
    let binary = match &cloud {
        Cloud::Aws { rebuilder, .. } => rebuilder.clone(),
        Cloud::List(_) => lab::rebuilder::binary()?,
    };
    let forward = format!("http://{ANALYSER}:80");
    let rebuilder = Rebuilder::start(&plane.rebuilder, &binary, &directory, &forward, &[])?;
    progress.line(&format!("rebuilder run --forward {forward}"));
    let world = World::start(&plane.vpc, cloud.source(), |instance| {
        instance.asg.as_deref().is_none_or(|group| group == GROUP)
    })?;
    let mut stage = Stage {
        progress,
        plane,
        analyser,
        rebuilder,
        world,
        rows: Vec::new(),
        objections: Vec::new(),
    };

    stage
        .progress
        .chapter("An instance is launched in a tagged Auto Scaling group");
    cloud.launch(&stage.progress)?;
    let first = stage.new_instance(&[])?;
    cloud.attach(&first)?;
    let its_session = stage.act(&first, 1)?;

    stage.progress.chapter("The group grows to two");
    cloud.grow(&stage.progress)?;
    let second = stage.new_instance(&[&first])?;
    cloud.attach(&second)?;
    if venv.is_some() {
        stage.progress.line("nobody does anything about mirroring");
    }
    stage.act(&second, 2)?;

    stage.progress.chapter("The first instance is terminated");
    cloud.terminate(&stage.progress, &first)?;
    stage.end(&cloud, &first, &its_session, &second)?;
    stage.conclude()
}

/// Where instances and sessions come from.
enum Cloud {
    Aws {
        emulator: Emulator,
        subnets: String,
        rebuilder: PathBuf,
    },
    List(Arc<Mutex<Snapshot>>),
}

impl Cloud {
    fn deploy(progress: &Progress, venv: &Path, directory: &Path) -> anyhow::Result<Self> {
        progress.chapter("An AWS account on this machine");
        let emulator = Emulator::start(venv, directory)?;
        progress.line(&format!("emulator: {}", emulator.url()));
        let (vpc, subnets) = emulator.default_network()?;

        progress.chapter(
            "sam build (the first time it compiles the AWS SDK: 15 minutes and more on two cores)",
        );
        let root = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        let mut build = emulator.command("sam");
        build.arg("build").current_dir(root);
        let begun = SystemTime::now();
        let hour = Duration::from_secs(3600);
        progress.long("sam-build", build, directory, hour, || {
            crates_compiled(begun)
        })?;
        let rebuilder = root.join(".aws-sam/build/RebuilderLayer/bin/rebuilder");
        if !rebuilder.is_file() {
            bail!("sam build left no {}", rebuilder.display());
        }

        progress.chapter("sam deploy");
        let mut deploy = emulator.command("sam");
        deploy
            .args([
                "deploy",
                "--stack-name",
                STACK,
                "--region",
                lab::emulator::REGION,
                "--resolve-s3",
            ])
            .args([
                "--no-confirm-changeset",
                "--no-progressbar",
                "--capabilities",
                "CAPABILITY_IAM",
            ])
            .arg("--parameter-overrides")
            .args([
                format!("VpcId={vpc}"),
                format!("SubnetIds={subnets}"),
                format!("AnalyzerUrl=http://{ANALYSER}"),
            ])
            .current_dir(root);
        progress.long(
            "sam-deploy",
            deploy,
            directory,
            Duration::from_secs(600),
            || None,
        )?;

        // Asserted by asking, not by the exit code.
        let stack = emulator.aws(&["cloudformation", "describe-stacks", "--stack-name", STACK])?;
        let status = text(&stack, "/Stacks/0/StackStatus")?;
        if status != "CREATE_COMPLETE" && status != "UPDATE_COMPLETE" {
            bail!("the stack is {status}");
        }
        for (what, path) in [
            (
                "describe-traffic-mirror-targets",
                "/TrafficMirrorTargets/0/TrafficMirrorTargetId",
            ),
            (
                "describe-traffic-mirror-filters",
                "/TrafficMirrorFilters/0/TrafficMirrorFilterId",
            ),
        ] {
            let id = text(&emulator.aws(&["ec2", what])?, path)
                .with_context(|| format!("aws ec2 {what}"))?;
            progress.line(&format!("aws ec2 {what}: {id}"));
        }
        Ok(Self::Aws {
            emulator,
            subnets,
            rebuilder,
        })
    }

    fn source(&self) -> Source {
        match self {
            Self::Aws { emulator, .. } => Source::Emulator(emulator.url().to_owned()),
            Self::List(list) => Source::Static(Arc::clone(list)),
        }
    }

    fn launch(&mut self, progress: &Progress) -> anyhow::Result<()> {
        match self {
            Self::Aws {
                emulator, subnets, ..
            } => {
                let images = emulator.aws(&[
                    "ec2",
                    "describe-images",
                    "--owners",
                    "amazon",
                    "--max-items",
                    "1",
                ])?;
                let image = text(&images, "/Images/0/ImageId")?;
                let data = format!(r#"{{"ImageId":"{image}","InstanceType":"m6i.large"}}"#);
                type_it(
                    progress,
                    emulator,
                    &[
                        "ec2",
                        "create-launch-template",
                        "--launch-template-name",
                        GROUP,
                        "--launch-template-data",
                        &data,
                    ],
                )?;
                let template = format!("LaunchTemplateName={GROUP},Version=$Latest");
                type_it(
                    progress,
                    emulator,
                    &[
                        "autoscaling",
                        "create-auto-scaling-group",
                        "--auto-scaling-group-name",
                        GROUP,
                        "--launch-template",
                        &template,
                        "--vpc-zone-identifier",
                        subnets.as_str(),
                        "--min-size",
                        "0",
                        "--max-size",
                        "3",
                        "--desired-capacity",
                        "1",
                        "--tags",
                        "Key=Mirror,Value=true,PropagateAtLaunch=true",
                    ],
                )
            }
            Self::List(list) => {
                add_instance(list);
                Ok(())
            }
        }
    }

    fn grow(&mut self, progress: &Progress) -> anyhow::Result<()> {
        match self {
            Self::Aws { emulator, .. } => type_it(
                progress,
                emulator,
                &[
                    "autoscaling",
                    "set-desired-capacity",
                    "--auto-scaling-group-name",
                    GROUP,
                    "--desired-capacity",
                    "2",
                ],
            ),
            Self::List(list) => {
                add_instance(list);
                Ok(())
            }
        }
    }

    /// On the emulated account the functions do this. A fixed list has to be told.
    fn attach(&self, instance: &Instance) -> anyhow::Result<()> {
        if let Self::List(list) = self {
            let eni = instance.primary_eni();
            let mut session = http_session(&eni.replace("eni-", "tms-"), eni, 100, &[80, 8080]);
            session.created_at = lab::now();
            list.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .sessions
                .push(session);
        }
        Ok(())
    }

    fn terminate(&mut self, progress: &Progress, instance: &Instance) -> anyhow::Result<()> {
        match self {
            Self::Aws { emulator, .. } => type_it(
                progress,
                emulator,
                &[
                    "autoscaling",
                    "terminate-instance-in-auto-scaling-group",
                    "--instance-id",
                    &instance.id,
                    "--should-decrement-desired-capacity",
                ],
            ),
            Self::List(list) => {
                let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
                list.instances.retain(|it| it.id != instance.id);
                list.sessions.retain(|it| it.eni != instance.primary_eni());
                Ok(())
            }
        }
    }

    /// Whether a session is listed.
    fn lists(&self, session: &str) -> anyhow::Result<bool> {
        match self {
            Self::Aws { emulator, .. } => {
                let listed = emulator.aws(&["ec2", "describe-traffic-mirror-sessions"])?;
                let sessions = listed
                    .pointer("/TrafficMirrorSessions")
                    .and_then(|it| it.as_array());
                let sessions = sessions.context("describe-traffic-mirror-sessions: no list")?;
                Ok(sessions.iter().any(|it| {
                    it.get("TrafficMirrorSessionId")
                        .is_some_and(|id| id == session)
                }))
            }
            Self::List(list) => {
                let list = list.lock().unwrap_or_else(PoisonError::into_inner);
                Ok(list.sessions.iter().any(|it| it.id == session))
            }
        }
    }
}

fn add_instance(list: &Mutex<Snapshot>) {
    let mut list = list.lock().unwrap_or_else(PoisonError::into_inner);
    let number = u8::try_from(list.instances.len() + 10).unwrap_or(u8::MAX);
    list.instances.push(instance(number));
}

/// Shows a command and runs it.
fn type_it(progress: &Progress, emulator: &Emulator, arguments: &[&str]) -> anyhow::Result<()> {
    let shown: Vec<String> = arguments
        .iter()
        .map(|it| {
            if it.contains(['{', '$', ' ']) {
                format!("'{it}'")
            } else {
                (*it).to_owned()
            }
        })
        .collect();
    progress.line(&format!("$ aws {}", shown.join(" ")));
    emulator.aws(arguments).map(drop)
}

/// Everything that is on while the story goes.
struct Stage {
    progress: Progress,
    // In the order in which they must end.
    world: World,
    rebuilder: Rebuilder,
    analyser: Analyser,
    rows: Vec<Row>,
    objections: Vec<String>,
    plane: DataPlane,
}

impl Stage {
    /// Waits for an instance that is none of these.
    fn new_instance(&self, known: &[&Instance]) -> anyhow::Result<Instance> {
        let found = wait_for("a new instance", PATIENCE, || {
            Ok(self
                .world
                .instances()
                .into_iter()
                .find(|it| known.iter().all(|known| known.id != it.id)))
        });
        let instance = found.with_context(|| self.world.failure().unwrap_or_default())?;
        self.progress.line(&format!(
            "{} is up at {}: a namespace with nginx",
            instance.id,
            instance.address()
        ));
        Ok(instance)
    }

    /// Waits for the instance's session, sends the requests, and shows what the analyser made of them.
    fn act(&mut self, instance: &Instance, round: usize) -> anyhow::Result<Mirrored> {
        let found = wait_for("a mirror session", PATIENCE, || {
            Ok(self.world.session_of(instance.primary_eni()))
        });
        let mirrored = found.with_context(|| self.world.failure().unwrap_or_default())?;
        let session = &mirrored.session;
        let to_session = session.created_at - instance.launched_at;
        self.progress.line(&format!(
            "{} mirrors {}: number {}, VNI {}, {to_session:.1} s after the launch",
            session.id, session.eni, session.number, session.vni
        ));
        let lag = mirrored.since.duration_since(UNIX_EPOCH)?.as_secs_f64() - session.created_at;
        self.progress
            .line(&format!("the kernel copies since {lag:.1} s after that"));

        self.progress
            .chapter(&format!("Requests to {}", instance.id));
        let before = self.rebuilder.metrics()?;
        let server: SocketAddr = format!("{}:80", instance.address()).parse()?;
        let shots = volley(round, self.plane.vpc.directory())?;
        for shot in &shots {
            shot.fire(&self.plane.client, server)
                .with_context(|| shot.what.to_owned())?;
        }
        let sent: u64 = shots.iter().map(|shot| shot.wire.len() as u64).sum();
        let metrics = self.settle(&before, sent)?;

        let (access, audit) = self.logs(round, sent)?;
        let mut row = Row {
            name: instance.id.clone(),
            sent,
            rebuilt: metrics.requests() - before.requests(),
            delivered: metrics.delivered() - before.delivered(),
            to_session: Some(to_session),
            ..Row::default()
        };
        for shot in &shots {
            let fates: Vec<Fate> = shot
                .wire
                .iter()
                .map(|wire| fate(wire, &access, &audit))
                .collect();
            for fate in &fates {
                match fate {
                    Fate::Flagged(_) => row.flagged += 1,
                    Fate::Refused(status) => *row.refused.entry(*status).or_default() += 1,
                    _ => {}
                }
            }
            let mut shown: Vec<String> = fates.iter().map(Fate::text).collect();
            shown.dedup();
            self.progress
                .line(&format!("{:<56} {}", shot.what, shown.join("; then ")));
            self.objections.extend(objection(shot, &fates));
        }
        // What the WAF is told about who asked.
        let of_round = |target: &str| target.starts_with(&format!("/{round}-"));
        if let Some(wrong) = audit
            .iter()
            .find(|it| of_round(&it.target) && it.client.as_deref() != Some(CLIENT[0]))
        {
            self.objections.push(format!(
                "{}: client {:?} instead of {}",
                wrong.target, wrong.client, CLIENT[0]
            ));
        }
        let first = access
            .iter()
            .filter(|it| of_round(it.target()))
            .map(|it| it.at)
            .min_by(f64::total_cmp);
        row.to_first_request = first.map(|at| at - instance.launched_at);
        self.objections.extend(row.objection());
        self.rows.push(row);
        Ok(mirrored)
    }

    /// Waits until the rebuilder has an outcome for `sent` requests more than `before`, or for none any more.
    fn settle(&self, before: &Metrics, sent: u64) -> anyhow::Result<Metrics> {
        let done = wait_for("all requests", Duration::from_secs(20), || {
            let now = self.rebuilder.metrics()?;
            Ok((now.requests() - before.requests() >= sent).then_some(()))
        });
        // Too few is told by the table. A moment more shows whether there are too many.
        drop(done);
        std::thread::sleep(Duration::from_millis(300));
        self.rebuilder.metrics()
    }

    /// The analyser's logs, once the requests of this round are in them.
    fn logs(
        &self,
        round: usize,
        sent: u64,
    ) -> anyhow::Result<(Vec<lab::nginx::Entry>, Vec<lab::analyser::Inspected>)> {
        let prefix = format!("/{round}-");
        let complete = wait_for("the analyser's logs", Duration::from_secs(20), || {
            let access = self.analyser.access_log()?;
            let logged = access
                .iter()
                .filter(|it| it.target().starts_with(&prefix))
                .count();
            Ok((logged as u64 >= sent).then_some(()))
        });
        drop(complete);
        Ok((self.analyser.access_log()?, self.analyser.audit_log()?))
    }

    /// The first instance is gone: so is its session, and its copies; the other's go on.
    fn end(
        &mut self,
        cloud: &Cloud,
        gone: &Instance,
        session: &Mirrored,
        left: &Instance,
    ) -> anyhow::Result<()> {
        let id = &session.session.id;
        wait_for("the end of the session", PATIENCE, || {
            Ok(
                (self.world.session_of(gone.primary_eni()).is_none() && !cloud.lists(id)?)
                    .then_some(()),
            )
        })?;
        self.progress.line(&format!("{id} is gone"));
        // Its address answers no more, and what is sent to it is copied no more.
        let before = self.rebuilder.metrics()?;
        let url = format!("http://{}/{}", gone.address(), gone.id);
        let arguments = [
            "--silent",
            "--output",
            "/dev/null",
            "--connect-timeout",
            "1",
            url.as_str(),
        ];
        let answered = self
            .plane
            .client
            .namespace
            .command("curl")
            .args(arguments)
            .output()?
            .status
            .success();
        let copied = self.rebuilder.metrics()?.packets() - before.packets();
        if answered || copied > 0 {
            let how = if answered {
                "still answers"
            } else {
                "does not answer"
            };
            self.objections.push(format!(
                "{} {how}, and {copied} packets were mirrored",
                gone.id
            ));
        } else {
            self.progress
                .line("nothing that is sent to its address arrives at the rebuilder any more");
        }
        let server: SocketAddr = format!("{}:80", left.address()).parse()?;
        let shots = volley(3, self.plane.vpc.directory())?;
        let Some(shot) = shots.first() else {
            return Ok(());
        };
        shot.fire(&self.plane.client, server)?;
        let after = self.settle(&before, 1)?;
        let row = Row {
            name: format!("{} again", left.id),
            sent: 1,
            rebuilt: after.requests() - before.requests(),
            delivered: after.delivered() - before.delivered(),
            ..Row::default()
        };
        self.objections.extend(row.objection());
        self.rows.push(row);
        self.progress
            .line(&format!("{} is mirrored as before", left.id));
        Ok(())
    }

    /// The table, and the verdict.
    fn conclude(mut self) -> anyhow::Result<bool> {
        self.progress.chapter("What came of it");
        println!("\n{}", table(&self.rows));
        let packets = self
            .rebuilder
            .metrics()?
            .outcomes("rebuilder_packets_total");
        println!("  packets by outcome: {packets:?}");
        let requests = self
            .rebuilder
            .metrics()?
            .outcomes("rebuilder_requests_total");
        println!("  requests by outcome: {requests:?}\n");
        let (code, output) = self.rebuilder.drain(Duration::from_secs(40))?;
        if code != Some(0) {
            self.objections
                .push(format!("the rebuilder ended with {code:?}: {output}"));
        }
        if self.objections.is_empty() {
            println!("  The numbers agree.");
            return Ok(true);
        }
        println!("  The numbers do NOT agree:");
        for objection in &self.objections {
            println!("  - {objection}");
        }
        Ok(false)
    }
}
