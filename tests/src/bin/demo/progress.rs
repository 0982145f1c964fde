//! What happens, as it happens.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use anyhow::bail;
use indicatif::{ProgressBar, ProgressStyle};
use lab::process::{Process, tail};

/// Prints each step with the seconds since the start.
pub(crate) struct Progress {
    begun: Instant,
}

impl Progress {
    pub(crate) fn new() -> Self {
        Self {
            begun: Instant::now(),
        }
    }

    /// A part of the story begins.
    pub(crate) fn chapter(&self, title: &str) {
        println!("\n[{:6.1} s] {title}", self.begun.elapsed().as_secs_f64());
    }

    /// Something within it happened.
    #[expect(clippy::unused_self, reason = "a line belongs to a chapter")]
    pub(crate) fn line(&self, text: &str) {
        println!("           {text}");
    }

    /// Runs a command that takes a while, its output in `DIRECTORY/NAME.log`, and shows that it lives: by what `status`
    /// says, or else by the last line of that output.
    pub(crate) fn long(
        &self,
        name: &str,
        command: Command,
        directory: &Path,
        limit: Duration,
        status: impl Fn() -> Option<String>,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut process = Process::start(name, command, directory)?;
        // Hidden where standard error is no terminal; then a line each half minute says that it lives.
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("           {spinner} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        let (mut next_look, mut next_word) = (Duration::ZERO, Duration::from_secs(30));
        let mut message = String::new();
        let ended = loop {
            if let Some(ended) = process.ended()? {
                break ended;
            }
            if begun.elapsed() >= next_look {
                message = status().unwrap_or_else(|| last_line(process.log()));
                bar.set_message(message.clone());
                next_look += Duration::from_secs(1);
            }
            bar.tick();
            if bar.is_hidden() && begun.elapsed() >= next_word {
                self.line(&format!("… {} s: {message}", begun.elapsed().as_secs()));
                next_word += Duration::from_secs(30);
            }
            if begun.elapsed() > limit {
                bail!(
                    "{name}: not done after {} s\n{}",
                    limit.as_secs(),
                    tail(process.log(), 4000)
                );
            }
            std::thread::sleep(Duration::from_millis(100));
        };
        bar.finish_and_clear();
        if !ended.success() {
            bail!("{name}: {ended}\n{}", tail(process.log(), 4000));
        }
        self.line(&format!(
            "{name}: done in {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    }
}

fn last_line(log: &Path) -> String {
    let end = tail(log, 400);
    end.lines()
        .rev()
        .find(|line| !line.trim().is_empty())
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Counts what cargo has begun to compile for the functions since `begun`: sam keeps cargo's own words to itself.
pub(crate) fn crates_compiled(begun: SystemTime) -> Option<String> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target")),
        PathBuf::from,
    );
    let units =
        std::fs::read_dir(target.join("x86_64-unknown-linux-gnu/function/.fingerprint")).ok()?;
    let count = units
        .flatten()
        // Written by cargo when it starts the compiler on a unit.
        .filter_map(|unit| {
            unit.path()
                .join("invoked.timestamp")
                .metadata()
                .ok()?
                .modified()
                .ok()
        })
        .filter(|&started| started >= begun)
        .count();
    Some(format!("{count} crates compiled"))
}
