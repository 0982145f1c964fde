//! However a lab ends, nothing of it stays.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use lab::janitor::Prefix;
use lab::process::wait_for;

/// Starts the demo's data plane on its own, and waits until its instance has a namespace with nginx.
fn demo(out: &Path) -> Child {
    let mut child = Command::new(env!("CARGO_BIN_EXE_demo"))
        .arg("--data-plane")
        .env("REBUILDER_BIN", lab::rebuilder::binary().unwrap())
        .stdin(Stdio::null())
        .stdout(fs::File::create(out).unwrap())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    wait_for("the demo's first instance", Duration::from_secs(60), || {
        assert!(child.try_wait()?.is_none(), "{}", fs::read_to_string(out)?);
        Ok(fs::read_to_string(out)?
            .contains("a namespace with nginx")
            .then_some(()))
    })
    .unwrap();
    child
}

fn signal(child: &Child, name: &str) {
    let pid = child.id().to_string();
    assert!(
        Command::new("kill")
            .args([name, &pid])
            .status()
            .unwrap()
            .success()
    );
}

fn end(mut child: Child) -> ExitStatus {
    wait_for("the end of the demo", Duration::from_secs(30), || {
        Ok(child.try_wait()?)
    })
    .unwrap()
}

/// Namespaces, temporary directories and processes that bear the mark of the lab of process `pid`.
fn left(pid: u32) -> Vec<String> {
    let mark = format!("mflab-{pid}-");
    let mut left = Vec::new();
    for directory in [PathBuf::from("/run/netns"), std::env::temp_dir()] {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with(&mark) {
                left.push(name);
            }
        }
    }
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        // Every process of a lab has a configuration file, a namespace or a directory of the lab on its command line,
        // or, as a child of nginx does, in its title or its open files.
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        let holds_a_file = fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .any(|fd| {
                fs::read_link(fd.path()).is_ok_and(|path| path.to_string_lossy().contains(&mark))
            });
        if command.contains(&mark) || holds_a_file {
            left.push(format!(
                "process {}: {command}",
                entry.file_name().to_string_lossy()
            ));
        }
    }
    left
}

#[test]
fn an_interrupted_demo_leaves_no_namespace_no_process_and_no_file() {
    if lab::skip::no_lab("an_interrupted_demo_leaves_no_namespace_no_process_and_no_file") {
        return;
    }
    let directory = Prefix::new().unwrap().directory().unwrap();
    for (name, code) in [("-INT", 130), ("-TERM", 143)] {
        let child = demo(&directory.path().join("out"));
        let pid = child.id();
        assert!(left(pid).len() > 5, "{:?}", left(pid));
        signal(&child, name);
        assert_eq!(end(child).code(), Some(code));
        assert_eq!(left(pid), Vec::<String>::new(), "after {name}");
    }
}

#[test]
fn what_a_killed_demo_leaves_the_next_lab_removes() {
    if lab::skip::no_lab("what_a_killed_demo_leaves_the_next_lab_removes") {
        return;
    }
    let directory = Prefix::new().unwrap().directory().unwrap();
    let killed = demo(&directory.path().join("killed"));
    let pid = killed.id();
    signal(&killed, "-KILL");
    end(killed);
    let next = demo(&directory.path().join("next"));
    assert_eq!(left(pid), Vec::<String>::new());
    signal(&next, "-INT");
    end(next);
}
