//! Nothing outlives its run: who owns which namespace, process group and directory, and how each is removed.
//!
//! Three ways out, one clean-up:
//! - the owner drops its handle (normal end, error, panic);
//! - SIGINT or SIGTERM: a thread removes whatever is registered, then exits with 128 + the signal's number;
//! - SIGKILL: the kernel signals the direct children (`setpriv --pdeathsig`, see [`crate::process`]), and the next
//!   run removes the rest, which it finds by name.
//!
//! A name is `mflab-PID-START-…` with the owner's pid and its start time in clock ticks since boot: unique until
//! the next boot, and enough to tell a living owner from a recycled pid.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;
use std::time::Duration;

use crate::sys;

const MARK: &str = "mflab";
const NAMESPACES: &str = "/run/netns";

static REGISTRY: Mutex<Registry> = Mutex::new(Registry::new());
static CLOSING: AtomicBool = AtomicBool::new(false);
static NEXT: AtomicU32 = AtomicU32::new(0);
static START: Once = Once::new();

struct Registry {
    groups: BTreeSet<u32>,
    namespaces: BTreeSet<String>,
    directories: BTreeSet<PathBuf>,
}

impl Registry {
    const fn new() -> Self {
        Self {
            groups: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            directories: BTreeSet::new(),
        }
    }
}

fn registry() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first part of every name of one lab.
#[derive(Clone, Debug)]
pub struct Prefix(String);

impl Prefix {
    /// A prefix that no other lab has. The first one of a process also installs the signal handler and removes what
    /// dead runs have left.
    ///
    /// # Errors
    /// Where the signal handler cannot be installed or `/proc/self/stat` cannot be read.
    pub fn new() -> io::Result<Self> {
        let mut installed = Ok(());
        START.call_once(|| {
            reap_dead_runs();
            installed = clean_up_on_signals();
        });
        installed?;
        let pid = std::process::id();
        let start =
            start_time(pid).ok_or_else(|| io::Error::other("/proc/self/stat: no start time"))?;
        Ok(Self(format!(
            "{MARK}-{pid}-{start}-{}",
            NEXT.fetch_add(1, Ordering::Relaxed)
        )))
    }

    /// `PREFIX-role`, the name of a namespace.
    #[must_use]
    pub fn name(&self, role: &str) -> String {
        format!("{}-{role}", self.0)
    }

    /// Makes a directory of its own beneath the system's temporary one; it is removed with the handle.
    ///
    /// # Errors
    /// What the file system says.
    pub fn directory(&self) -> io::Result<Directory> {
        stop_if_interrupted();
        let path = std::env::temp_dir().join(&self.0);
        registry().directories.insert(path.clone());
        fs::create_dir_all(&path)?;
        Ok(Directory(path))
    }
}

/// A temporary directory, removed on drop.
#[derive(Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // Kept on request, to look at the logs after a failure.
        if std::env::var_os("MIRRORFLEET_KEEP_LOGS").is_none() {
            let _ = fs::remove_dir_all(&self.0);
        }
        registry().directories.remove(&self.0);
    }
}

/// Stops the calling thread for good once a signal has begun the clean-up, so that it neither makes what nobody would
/// remove, nor tells of errors that are only the clean-up's, nor ends the process too soon.
pub fn stop_if_interrupted() {
    while CLOSING.load(Ordering::SeqCst) {
        thread::park();
    }
}

pub(crate) fn register_group(pgid: u32) {
    registry().groups.insert(pgid);
}

pub(crate) fn forget_group(pgid: u32) {
    registry().groups.remove(&pgid);
}

pub(crate) fn register_namespace(name: &str) {
    registry().namespaces.insert(name.to_owned());
}

/// Kills what runs in a namespace, and removes it with all its devices.
pub(crate) fn remove_namespace(name: &str) {
    if Path::new(NAMESPACES).join(name).exists() {
        kill_inhabitants(name);
        let _ = quiet("ip", &["netns", "delete", name]);
    }
    registry().namespaces.remove(name);
}

/// Only processes that a lab has started can be in a namespace that a lab has made.
fn kill_inhabitants(name: &str) {
    // Twice: a process may have forked between the listing and the signal.
    for _ in 0..2 {
        let Ok(out) = Command::new("ip")
            .args(["netns", "pids", name])
            .stderr(Stdio::null())
            .output()
        else {
            return;
        };
        // A helper thread of this process that has entered the namespace is listed as this process.
        let pids: Vec<u32> = String::from_utf8_lossy(&out.stdout)
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .filter(|&pid| pid != std::process::id())
            .collect();
        if pids.is_empty() {
            return;
        }
        for pid in pids {
            sys::signal_process(pid, libc::SIGKILL);
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn clean_up_on_signals() -> io::Result<()> {
    let mut signals =
        signal_hook::iterator::Signals::new([libc::SIGINT, libc::SIGTERM, libc::SIGHUP])?;
    thread::Builder::new()
        .name("janitor".to_owned())
        .spawn(move || {
            if let Some(signal) = signals.forever().next() {
                CLOSING.store(true, Ordering::SeqCst);
                eprintln!("\nremoving the lab …");
                remove_everything();
                std::process::exit(128 + signal);
            }
        })?;
    Ok(())
}

fn remove_everything() {
    let (groups, namespaces, directories) = {
        let registry = registry();
        (
            registry.groups.clone(),
            registry.namespaces.clone(),
            registry.directories.clone(),
        )
    };
    for &group in &groups {
        sys::signal_group(group, libc::SIGTERM);
    }
    // The emulator ends its own children on SIGTERM; what has not gone after this is killed.
    for _ in 0..100 {
        if groups.iter().all(|&group| !group_lives(group)) {
            break;
        }
        thread::sleep(Duration::from_millis(100));
    }
    for &group in &groups {
        sys::signal_group(group, libc::SIGKILL);
    }
    for namespace in &namespaces {
        remove_namespace(namespace);
    }
    for directory in &directories {
        let _ = fs::remove_dir_all(directory);
    }
}

/// Whether a group's leader runs; a zombie does not.
fn group_lives(pgid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pgid}/stat"))
        .ok()
        .and_then(|stat| {
            stat.rsplit_once(") ")
                .map(|(_, rest)| !rest.starts_with('Z'))
        })
        .unwrap_or(false)
}

fn reap_dead_runs() {
    for (directory, is_namespace) in [
        (PathBuf::from(NAMESPACES), true),
        (std::env::temp_dir(), false),
    ] {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !is_of_a_dead_run(&name, start_time) {
                continue;
            }
            if is_namespace {
                remove_namespace(&name);
            } else {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

/// Whether a name is a lab's whose owner is gone. `start_time_of` gives the start time of a living process.
fn is_of_a_dead_run(name: &str, start_time_of: impl Fn(u32) -> Option<u64>) -> bool {
    let mut parts = name.split('-');
    if parts.next() != Some(MARK) {
        return false;
    }
    let pid = parts.next().and_then(|pid| pid.parse().ok());
    let start = parts.next().and_then(|start| start.parse().ok());
    match (pid, start) {
        (Some(pid), Some(start)) => start_time_of(pid) != Some(start),
        _ => false,
    }
}

/// Clock ticks since boot at which a process started: field 22 of `/proc/PID/stat` (proc(5)).
fn start_time(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the command in parentheses and may hold anything; the third follows the last of them.
    stat.rsplit_once(") ")?.1.split(' ').nth(19)?.parse().ok()
}

fn quiet(program: &str, arguments: &[&str]) -> io::Result<()> {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_lab_whose_owner_is_gone_is_removed() {
        let living = |pid: u32| (pid == 7).then_some(100);
        assert!(
            !is_of_a_dead_run("mflab-7-100-0-vpc", living),
            "the owner lives"
        );
        assert!(
            is_of_a_dead_run("mflab-7-99-0-vpc", living),
            "its pid was given to another process"
        );
        assert!(
            is_of_a_dead_run("mflab-8-100-0", living),
            "the owner is gone"
        );
        assert!(!is_of_a_dead_run("other-8-100-0", living), "not a lab's");
        assert!(!is_of_a_dead_run("mflab-x-100", living), "not a lab's name");
    }

    #[test]
    fn the_start_time_of_this_process_stands_in_its_names() {
        let own = start_time(std::process::id()).unwrap();
        let init = start_time(1).unwrap();
        assert!(own > init);
    }
}
