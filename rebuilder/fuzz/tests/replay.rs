//! Every seed, and every input that ever crashed a target, through the targets: no engine, no C++.

#![allow(
    clippy::unwrap_used,
    reason = "a folder that cannot be read fails the test, which is right"
)]

use std::collections::BTreeSet;
use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use std::thread;

use rebuilder_fuzz::{TARGETS, Target, target};

fn here(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// The inputs of a folder that the target does not pass.
fn replay(target: Target, folder: &Path) -> (usize, Vec<PathBuf>) {
    let files = files(folder);
    let failed = files.iter().filter(|path| {
        let data = fs::read(path).unwrap();
        panic::catch_unwind(|| target(&data)).is_err()
    });
    (files.len(), failed.cloned().collect())
}

#[test]
fn every_seed_and_every_crasher_passes() {
    let failed: Vec<PathBuf> = thread::scope(|scope| {
        let threads: Vec<_> = TARGETS
            .iter()
            .map(|(name, target)| {
                scope.spawn(move || {
                    let (seeds, mut failed) = replay(*target, &here("seeds").join(name));
                    assert!(seeds > 0, "{name} has no seeds");
                    let (crashers, more) = replay(*target, &here("crashers").join(name));
                    failed.extend(more);
                    println!("{name}: {seeds} seeds, {crashers} crashers");
                    failed
                })
            })
            .collect();
        threads
            .into_iter()
            .flat_map(|t| t.join().unwrap())
            .collect()
    });
    assert!(failed.is_empty(), "{failed:#?}");
}

#[test]
fn each_target_has_a_binary_and_each_folder_a_target() {
    let names: BTreeSet<String> = TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect();
    let stems = |folder: &str| -> BTreeSet<String> {
        let name = |path: PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        files(&here(folder)).into_iter().map(name).collect()
    };
    assert_eq!(stems("fuzz_targets"), names);
    assert_eq!(stems("seeds"), names);
    assert!(
        stems("crashers").is_subset(&names),
        "a crasher of no target"
    );
    let manifest = fs::read_to_string(here("Cargo.toml")).unwrap();
    for name in &names {
        assert!(
            manifest.contains(&format!("name = \"{name}\"\n")),
            "{name} is not in Cargo.toml"
        );
    }
}

#[test]
fn an_input_that_breaks_a_target_fails_the_replay() {
    fn broken(_: &[u8]) {
        // Unwinds without a message.
        panic::resume_unwind(Box::new("broken on purpose"));
    }
    let (count, failed) = replay(broken, &here("seeds/frame"));
    assert!(count > 0);
    assert_eq!(failed.len(), count);
    assert_eq!(
        target("frame") as usize,
        rebuilder_fuzz::frame as Target as usize
    );
}
