//! Network namespaces.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::Command;
use std::thread;

use anyhow::Context;

use crate::janitor;
use crate::process;
use crate::sys;

/// A network namespace, removed on drop with everything in it.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it, with its loopback up.
    ///
    /// # Errors
    /// What `ip netns add` says; without root it says no.
    pub fn create(name: &str) -> anyhow::Result<Self> {
        janitor::stop_if_interrupted();
        janitor::register_namespace(name);
        let namespace = Self {
            name: name.to_owned(),
        };
        process::run(Command::new("ip").args(["netns", "add", name]))
            .context("network namespaces need root")?;
        namespace.ip("link set lo up")?;
        // A copy arrives on a link of its own with the source address of an interface that is reached by another
        // one; strict reverse-path filtering, which some distributions switch on, would drop it.
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        namespace.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
        // An interface answers for its own addresses only, as ENIs do; Linux would answer for those of all.
        namespace.sysctl("net/ipv4/conf/all/arp_ignore", "1")?;
        namespace.sysctl("net/ipv4/conf/all/arp_announce", "2")?;
        Ok(namespace)
    }

    /// Has its own devices send nothing by themselves (router solicitations, multicast reports), which would be counted
    /// among what they are there to carry.
    ///
    /// # Errors
    /// Where the namespace cannot be entered.
    pub fn without_ipv6(&self) -> anyhow::Result<()> {
        self.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
        self.sysctl("net/ipv6/conf/default/disable_ipv6", "1")
    }

    /// Its name, as `ip netns` shows it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs inside and ends with its owner (see [`process::command`]).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = process::command("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Runs `f` on a thread inside, to its end. Sockets made there stay inside.
    ///
    /// # Errors
    /// Where the namespace cannot be entered.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> io::Result<T> {
        let file = self.open()?;
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                sys::enter_network_namespace(&file)?;
                Ok(f())
            });
            match inside.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Starts a thread inside that goes on by itself.
    ///
    /// # Errors
    /// Where the namespace cannot be entered or the thread not be made.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<thread::JoinHandle<io::Result<T>>> {
        let file = self.open()?;
        thread::Builder::new()
            .name(self.name.clone())
            .spawn(move || {
                sys::enter_network_namespace(&file)?;
                Ok(f())
            })
    }

    /// `ip -n NAME ARGUMENTS`.
    ///
    /// # Errors
    /// What ip says.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<String> {
        process::run(
            Command::new("ip")
                .args(["-n", &self.name])
                .args(arguments.split_whitespace()),
        )
    }

    /// `tc -n NAME ARGUMENTS`.
    ///
    /// # Errors
    /// What tc says.
    pub fn tc(&self, arguments: &str) -> anyhow::Result<String> {
        process::run(
            Command::new("tc")
                .args(["-n", &self.name])
                .args(arguments.split_whitespace()),
        )
    }

    /// Writes a file of `/proc/sys` as seen inside; one that this kernel has not is left alone.
    ///
    /// # Errors
    /// Where the namespace cannot be entered, or the kernel refuses the value.
    pub fn sysctl(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let path = Path::new("/proc/sys").join(key);
        match self.run(|| std::fs::write(&path, value))? {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("{}", path.display()))
            }
            _ => Ok(()),
        }
    }

    /// What a device has counted.
    ///
    /// # Errors
    /// Where there is no such device.
    pub fn counters(&self, device: &str) -> anyhow::Result<Counters> {
        let text = self.ip(&format!("-j -s link show dev {device}"))?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let counter = |path: &str| {
            links
                .pointer(path)
                .and_then(serde_json::Value::as_u64)
                .with_context(|| format!("{device}: no {path}"))
        };
        Ok(Counters {
            received: counter("/0/stats64/rx/packets")?,
            sent: counter("/0/stats64/tx/packets")?,
            received_dropped: counter("/0/stats64/rx/dropped")?,
            sent_dropped: counter("/0/stats64/tx/dropped")?,
        })
    }

    /// The index of a device.
    ///
    /// # Errors
    /// Where there is no such device.
    pub fn index(&self, device: &str) -> anyhow::Result<u32> {
        let text = self.ip(&format!("-j link show dev {device}"))?;
        let links: serde_json::Value = serde_json::from_str(&text)?;
        let index = links
            .pointer("/0/ifindex")
            .and_then(serde_json::Value::as_u64);
        Ok(u32::try_from(
            index.with_context(|| format!("{device}: no ifindex"))?,
        )?)
    }

    fn open(&self) -> io::Result<File> {
        janitor::stop_if_interrupted();
        File::open(Path::new("/run/netns").join(&self.name))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        janitor::remove_namespace(&self.name);
    }
}

/// Packets that a device has counted since it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Packets received.
    pub received: u64,
    /// Packets sent.
    pub sent: u64,
    /// Packets dropped on the way in.
    pub received_dropped: u64,
    /// Packets dropped on the way out.
    pub sent_dropped: u64,
}
