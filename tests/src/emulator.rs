//! The emulated AWS account, and the real `aws` and `sam` commands against it.

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::process::{self, Process, wait_for};
use crate::rebuilder::http_get;

/// The region that everything happens in.
pub const REGION: &str = "us-east-1";

/// A running emulator (`tests/emulator`).
#[derive(Debug)]
pub struct Emulator {
    process: Process,
    url: String,
    programs: PathBuf,
}

impl Emulator {
    /// Starts it with the Python of `venv`, and waits until it answers. Its logs go to `directory`.
    ///
    /// # Errors
    /// Where it does not.
    pub fn start(venv: &Path, directory: &Path) -> anyhow::Result<Self> {
        let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?
            .local_addr()?
            .port();
        let programs = venv.join("bin");
        let mut command = process::command(programs.join("python"));
        command
            .args(["-m", "emulator", "--port", &port.to_string(), "--log"])
            .arg(directory.join("emulator-calls.log"))
            .arg("--function-logs")
            .arg(directory.join("functions"))
            .env("PYTHONPATH", env!("CARGO_MANIFEST_DIR"))
            // What it unpacks and forgets goes with the lab.
            .env("TMPDIR", directory);
        let mut process = Process::start("emulator", command, directory)?;
        // The SAM command takes the name, not the address, for an endpoint on this machine.
        let url = format!("http://localhost:{port}");
        wait_for("the emulator answers", Duration::from_secs(60), || {
            process.must_be_running()?;
            Ok(http_get(&format!("{url}/_lab/network")).ok())
        })?;
        Ok(Self {
            process,
            url,
            programs,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// An error with the end of its output, if it has ended.
    ///
    /// # Errors
    /// Exactly then.
    pub fn must_be_running(&mut self) -> anyhow::Result<()> {
        self.process.must_be_running()
    }

    /// A program of the venv, with the environment of an account that is no real one.
    #[must_use]
    pub fn command(&self, program: &str) -> Command {
        let mut command = process::command(self.programs.join(program));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths(
            [self.programs.clone()]
                .into_iter()
                .chain(std::env::split_paths(&path)),
        );
        command
            .env("PATH", path.unwrap_or_default())
            .env("AWS_ENDPOINT_URL", &self.url)
            .env("AWS_ACCESS_KEY_ID", "emulated")
            .env("AWS_SECRET_ACCESS_KEY", "emulated")
            .env("AWS_DEFAULT_REGION", REGION)
            .env("AWS_EC2_METADATA_DISABLED", "true")
            .env("SAM_CLI_TELEMETRY", "0")
            .env_remove("AWS_PROFILE")
            .env_remove("AWS_SESSION_TOKEN");
        command
    }

    /// Asks a path of the lab's own, under `/_lab/`.
    ///
    /// # Errors
    /// Where it does not answer with JSON.
    pub fn get(&self, path: &str) -> anyhow::Result<serde_json::Value> {
        let text = http_get(&format!("{}/_lab/{path}", self.url))?;
        serde_json::from_str(&text).context(path.to_owned())
    }

    /// Tells a path of the lab's own something.
    ///
    /// # Errors
    /// Where it refuses.
    pub fn lab(&self, path: &str, body: &serde_json::Value) -> anyhow::Result<()> {
        let url = format!("{}/_lab/{path}", self.url);
        ureq::post(&url)
            .send_json(body)
            .with_context(|| url.clone())?;
        Ok(())
    }

    /// `aws ARGUMENTS`, its answer as JSON; null where it answers nothing.
    ///
    /// # Errors
    /// What the command says on standard error.
    pub fn aws(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut command = self.command("aws");
        command
            .args(["--endpoint-url", &self.url, "--output", "json"])
            .args(arguments);
        let out = command.output().context("aws")?;
        if !out.status.success() {
            bail!(
                "aws {}: {}",
                arguments.join(" "),
                String::from_utf8_lossy(&out.stderr).trim()
            );
        }
        if out.stdout.iter().all(u8::is_ascii_whitespace) {
            return Ok(serde_json::Value::Null);
        }
        serde_json::from_slice(&out.stdout).with_context(|| format!("aws {}", arguments.join(" ")))
    }

    /// The default VPC, and two of its subnets as a parameter of a stack.
    ///
    /// # Errors
    /// Where the account does not have them.
    pub fn default_network(&self) -> anyhow::Result<(String, String)> {
        let vpcs = self.aws(&[
            "ec2",
            "describe-vpcs",
            "--filters",
            "Name=is-default,Values=true",
        ])?;
        let vpc = text(&vpcs, "/Vpcs/0/VpcId")?;
        let filter = format!("Name=vpc-id,Values={vpc}");
        let subnets = self.aws(&["ec2", "describe-subnets", "--filters", &filter])?;
        let subnets: Vec<String> = (0..2)
            .map(|number| text(&subnets, &format!("/Subnets/{number}/SubnetId")))
            .collect::<anyhow::Result<_>>()?;
        Ok((vpc, subnets.join(",")))
    }
}

/// The string at a JSON pointer (RFC 6901).
///
/// # Errors
/// Where there is none.
pub fn text(json: &serde_json::Value, path: &str) -> anyhow::Result<String> {
    json.pointer(path)
        .and_then(|it| it.as_str())
        .map(ToOwned::to_owned)
        .with_context(|| format!("no {path} in {json}"))
}

/// A call of a service of AWS that takes forms, without the second that the `aws` command takes. Nobody checks signatures
/// here, but they name the service.
///
/// # Errors
/// Where it refuses.
pub fn ask(url: &str, service: &str, form: &[(&str, &str)]) -> anyhow::Result<String> {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential=emulated/20260101/{REGION}/{service}/aws4_request, SignedHeaders=host, Signature=0"
    );
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(10)))
        .build()
        .into();
    let request = agent.post(url).header("Authorization", authorization);
    let mut answer = request
        .send_form(form.iter().copied())
        .context(service.to_owned())?;
    Ok(answer.body_mut().read_to_string()?)
}
