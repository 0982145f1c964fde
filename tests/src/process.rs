//! Processes that end with their owner, whatever happens to it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::janitor;
use crate::sys;

/// How long a process may take to end after SIGTERM before it is killed.
const GRACE: Duration = Duration::from_secs(5);

/// A command whose process gets SIGTERM when the **thread** that spawns it dies (prctl(2), `PR_SET_PDEATHSIG`), so
/// that even SIGKILL on the lab leaves no process behind.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// A running child in a process group of its own, its output in a file.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, with both outputs in `DIRECTORY/NAME.log`.
    ///
    /// # Errors
    /// Where the file or the process cannot be made.
    pub fn start(name: &str, mut command: Command, directory: &Path) -> anyhow::Result<Self> {
        janitor::stop_if_interrupted();
        let log = directory.join(format!("{name}.log"));
        let out = File::create(&log).with_context(|| format!("{}", log.display()))?;
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("starting {name}"))?;
        janitor::register_group(child.id());
        Ok(Self {
            name: name.to_owned(),
            child,
            log,
        })
    }

    /// Its pid, which is also its process group.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where its output goes.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// All it has written so far.
    #[must_use]
    pub fn output(&self) -> String {
        fs::read(&self.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// How it ended, if it has.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// An error with the end of its output, if it has ended.
    ///
    /// # Errors
    /// Exactly then.
    pub fn must_be_running(&mut self) -> anyhow::Result<()> {
        if let Some(status) = self.ended()? {
            bail!("{} ended ({status}):\n{}", self.name, tail(&self.log, 2000));
        }
        Ok(())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) {
        sys::signal_process(self.child.id(), signal);
    }

    /// Sends it and all of its children a signal.
    pub fn signal_group(&self, signal: i32) {
        sys::signal_group(self.child.id(), signal);
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it has not after `timeout`.
    pub fn wait(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.ended()? {
                janitor::forget_group(self.child.id());
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} has not ended after {timeout:?}:\n{}",
                    self.name,
                    tail(&self.log, 2000)
                );
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// Resident memory in bytes now (`VmRSS`) and at its highest (`VmHWM`), from `/proc/PID/status`.
    #[must_use]
    pub fn memory(&self) -> Option<(u64, u64)> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let field = |name: &str| -> Option<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim_start_matches(':')
                .trim()
                .split(' ')
                .next()?
                .parse::<u64>()
                .ok()
                .map(|kib| kib * 1024)
        };
        Some((field("VmRSS")?, field("VmHWM")?))
    }

    /// Ends it: SIGTERM to its group, SIGKILL after a while.
    pub fn stop(&mut self) {
        let group = self.child.id();
        if matches!(self.child.try_wait(), Ok(None)) {
            sys::signal_group(group, libc::SIGTERM);
            let deadline = Instant::now() + GRACE;
            while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(10));
            }
        }
        // Members of the group may outlive its leader (nginx's workers do).
        sys::signal_group(group, libc::SIGKILL);
        let _ = self.child.wait();
        janitor::forget_group(group);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Runs a short command to its end and gives its standard output.
///
/// # Errors
/// Where it cannot start or exits non-zero; the error holds what it wrote to standard error.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    janitor::stop_if_interrupted();
    let out = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| shown(command))?;
    if !out.status.success() {
        let stderr = String::from_utf8_lossy(&out.stderr);
        bail!("{}: {}: {}", shown(command), out.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// A command as one would type it, cut where it gets long.
fn shown(command: &Command) -> String {
    let words: Vec<String> = [command.get_program()]
        .into_iter()
        .chain(command.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let text = words.join(" ");
    match text.char_indices().nth(400) {
        Some((end, _)) => format!("{} …", text.get(..end).unwrap_or_default()),
        None => text,
    }
}

/// Asks `done` every 20 ms until it gives something.
///
/// # Errors
/// What `done` says, or that `what` has not happened after `timeout`.
pub fn wait_for<T>(
    what: &str,
    timeout: Duration,
    mut done: impl FnMut() -> anyhow::Result<Option<T>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        janitor::stop_if_interrupted();
        if let Some(value) = done()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("{what}: not after {} s", timeout.as_secs());
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// The last `bytes` of a file, for error messages.
#[must_use]
pub fn tail(path: &Path, bytes: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    read().unwrap_or_else(|error| format!("({}: {error})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lab() -> janitor::Directory {
        janitor::Prefix::new().unwrap().directory().unwrap()
    }

    #[test]
    fn a_dropped_process_is_gone_with_its_children() {
        let directory = lab();
        let mut shell = command("sh");
        shell.args(["-c", "sleep 1000 & echo $!; wait"]);
        let process = Process::start("shell", shell, directory.path()).unwrap();
        let sleeper = wait_for("the pid", Duration::from_secs(5), || {
            Ok(process.output().trim().parse::<u32>().ok())
        })
        .unwrap();
        assert!(Path::new(&format!("/proc/{sleeper}")).exists());
        drop(process);
        wait_for("the end of the sleeper", Duration::from_secs(5), || {
            let stat = fs::read_to_string(format!("/proc/{sleeper}/stat")).unwrap_or_default();
            Ok((stat.is_empty() || stat.contains(") Z ")).then_some(()))
        })
        .unwrap();
    }

    #[test]
    fn a_failing_command_gives_its_own_words() {
        let error =
            run(Command::new("sh").args(["-c", "echo no such thing >&2; exit 3"])).unwrap_err();
        assert!(error.to_string().contains("no such thing"), "{error}");
    }
}
