//! The account: the emulator, the deployed stack, and what an operator does with it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::data_plane::ANALYSER;
use lab::emulator::{Emulator, REGION, ask, text};
use lab::process::{self, Process, wait_for};

pub(crate) const STACK: &str = "mirrorfleet-roll";
/// What the name of the stack's group begins with.
pub(crate) const GROUP: &str = "mirrorfleet-roll-RebuilderGroup";
/// The group of the mirrored web servers.
pub(crate) const WEB: &str = "roll-web";
/// How long a deployment may take: its own limit is a quarter of an hour.
const LONGEST: Duration = Duration::from_secs(1000);
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

pub(crate) struct Cloud {
    pub(crate) emulator: Emulator,
    directory: PathBuf,
    vpc: String,
    subnets: String,
}

impl Cloud {
    /// An account in which nothing is deployed. Signals are waited for, and minutes are shorter.
    pub(crate) fn start(venv: &Path, directory: &Path, second: f64) -> anyhow::Result<Self> {
        let emulator = Emulator::start(venv, directory)?;
        emulator.lab(
            "signals",
            &serde_json::json!({"wait": true, "second": second}),
        )?;
        let (vpc, subnets) = emulator.default_network()?;
        Ok(Self {
            emulator,
            directory: directory.to_owned(),
            vpc,
            subnets,
        })
    }

    /// Where `sam build` has put the rebuilder of the layer.
    pub(crate) fn rebuilder() -> anyhow::Result<PathBuf> {
        let built = Path::new(ROOT).join(".aws-sam/build/RebuilderLayer/bin/rebuilder");
        match std::env::var_os("REBUILDER_BIN").filter(|given| !given.is_empty()) {
            Some(given) => Ok(given.into()),
            None if built.is_file() => Ok(built),
            None => bail!("no {}; run sam build", built.display()),
        }
    }

    /// `sam deploy`.
    pub(crate) fn deploy(&self) -> anyhow::Result<()> {
        let mut deploy = self.emulator.command("sam");
        deploy
            .args(["deploy", "--stack-name", STACK, "--region", REGION])
            .args(["--resolve-s3", "--no-confirm-changeset", "--no-progressbar"])
            .args(["--capabilities", "CAPABILITY_IAM"])
            .arg("--parameter-overrides")
            .arg(format!("VpcId={}", self.vpc))
            .arg(format!("SubnetIds={}", self.subnets))
            .arg(format!("AnalyzerUrl=http://{ANALYSER}"))
            .args(["MinSize=2", "MaxSize=4"])
            .env("SAM_CLI_POLL_DELAY", "0.3")
            .current_dir(ROOT);
        let mut deploy = Process::start("deploy", deploy, &self.directory)?;
        let status = deploy.wait(LONGEST)?;
        if !status.success() {
            bail!("sam deploy: {}", process::tail(deploy.log(), 3000));
        }
        self.settles("CREATE_COMPLETE")
    }

    /// Gives the stack's parameter `name` another value, and waits until that is carried out.
    pub(crate) fn update(&self, name: &str, value: &str) -> anyhow::Result<()> {
        let stack =
            self.emulator
                .aws(&["cloudformation", "describe-stacks", "--stack-name", STACK])?;
        let parameters = stack
            .pointer("/Stacks/0/Parameters")
            .and_then(|it| it.as_array())
            .context("the stack has no parameters")?;
        let parameters: Vec<String> = parameters
            .iter()
            .filter_map(|it| it.get("ParameterKey")?.as_str())
            .map(|key| match key == name {
                true => format!("ParameterKey={key},ParameterValue={value}"),
                false => format!("ParameterKey={key},UsePreviousValue=true"),
            })
            .collect();
        let mut call = vec!["cloudformation", "update-stack", "--stack-name", STACK];
        call.extend(["--use-previous-template", "--capabilities"]);
        call.extend(["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND", "--parameters"]);
        call.extend(parameters.iter().map(String::as_str));
        self.emulator.aws(&call)?;
        self.settles("UPDATE_COMPLETE")
    }

    /// Waits until the stack is busy no more, and in this state.
    fn settles(&self, wanted: &str) -> anyhow::Result<()> {
        let question = [
            ("Action", "DescribeStacks"),
            ("Version", "2010-05-15"),
            ("StackName", STACK),
        ];
        let state = wait_for("the stack settles", LONGEST, || {
            std::thread::sleep(Duration::from_millis(200));
            let answer = ask(self.emulator.url(), "cloudformation", &question)?;
            let state = answer
                .split_once("<StackStatus>")
                .and_then(|(_, rest)| rest.split_once('<'))
                .map(|(state, _)| state.to_owned())
                .context(answer)?;
            Ok((!state.ends_with("_IN_PROGRESS")).then_some(state))
        })?;
        if state != wanted {
            bail!("the stack is {state}");
        }
        Ok(())
    }

    /// Web servers in a group that is mirrored.
    pub(crate) fn web(&self, count: u32) -> anyhow::Result<()> {
        let images = self.emulator.aws(&[
            "ec2",
            "describe-images",
            "--owners",
            "amazon",
            "--max-items",
            "1",
        ])?;
        let data = format!(
            r#"{{"ImageId":"{}","InstanceType":"m6i.large"}}"#,
            text(&images, "/Images/0/ImageId")?
        );
        let name = [
            "--launch-template-name",
            WEB,
            "--launch-template-data",
            &data,
        ];
        self.emulator
            .aws(&[&["ec2", "create-launch-template"][..], &name].concat())?;
        let count = count.to_string();
        let group = [
            "autoscaling",
            "create-auto-scaling-group",
            "--auto-scaling-group-name",
            WEB,
            "--launch-template",
            &format!("LaunchTemplateName={WEB},Version=$Latest"),
            "--vpc-zone-identifier",
            &self.subnets,
            "--min-size",
            "0",
            "--max-size",
            &count,
            "--desired-capacity",
            &count,
            "--tags",
            "Key=Mirror,Value=true,PropagateAtLaunch=true",
        ];
        self.emulator.aws(&group).map(drop)
    }

    /// The rebuilders' group gets this size.
    pub(crate) fn resize(&self, count: u32) -> anyhow::Result<()> {
        let groups = self
            .emulator
            .aws(&["autoscaling", "describe-auto-scaling-groups"])?;
        let groups = groups
            .pointer("/AutoScalingGroups")
            .and_then(|it| it.as_array());
        let names = groups
            .into_iter()
            .flatten()
            .filter_map(|it| it.get("AutoScalingGroupName")?.as_str());
        let name = names
            .into_iter()
            .find(|name| name.starts_with(GROUP))
            .context("no group")?;
        let count = count.to_string();
        let size = [
            "--auto-scaling-group-name",
            name,
            "--desired-capacity",
            &count,
        ];
        self.emulator
            .aws(&[&["autoscaling", "set-desired-capacity"][..], &size].concat())
            .map(drop)
    }

    /// Waits until nobody waits in a terminate hook any more.
    pub(crate) fn nobody_leaves(&self) -> anyhow::Result<()> {
        wait_for("every hook is answered", Duration::from_secs(300), || {
            let leaving = self.emulator.get("leaving")?;
            Ok(leaving.as_array().is_some_and(Vec::is_empty).then_some(()))
        })
    }
}
