//! What happens, as it happens.

use std::process::Command;
use std::time::{Duration, Instant};

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

    /// Runs a command that takes a while, its output in `DIRECTORY/NAME.log`, and shows that it lives.
    pub(crate) fn long(
        &self,
        name: &str,
        command: Command,
        directory: &std::path::Path,
        limit: Duration,
    ) -> anyhow::Result<()> {
        let begun = Instant::now();
        let mut process = Process::start(name, command, directory)?;
        // Hidden where standard error is no terminal; then a line each half minute says that it lives.
        let bar = ProgressBar::new_spinner();
        if let Ok(style) = ProgressStyle::with_template("           {spinner} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        let mut next_word = Duration::from_secs(30);
        let status = loop {
            if let Some(status) = process.ended()? {
                break status;
            }
            let last = tail(process.log(), 400);
            let last = last
                .lines()
                .rev()
                .find(|line| !line.trim().is_empty())
                .unwrap_or_default()
                .trim()
                .to_owned();
            bar.set_message(last.clone());
            bar.tick();
            if bar.is_hidden() && begun.elapsed() >= next_word {
                self.line(&format!("… {} s: {last}", begun.elapsed().as_secs()));
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
        if !status.success() {
            bail!("{name}: {status}\n{}", tail(process.log(), 4000));
        }
        self.line(&format!(
            "{name}: done in {:.1} s",
            begun.elapsed().as_secs_f64()
        ));
        Ok(())
    }
}
