//! Tests that this machine cannot run say so.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;

use crate::sys;

/// Whether a lab can be made here; if not, says for `test` why. `MIRRORFLEET_NO_SKIP=1` makes that a panic.
#[must_use]
pub fn no_lab(test: &str) -> bool {
    if !sys::is_root() {
        skipped(test, "needs root for network namespaces");
        return true;
    }
    for tool in ["ip", "tc", "ethtool", "setpriv", "nginx", "curl", "tcpdump"] {
        if !is_installed(tool) {
            skipped(
                test,
                &format!("{tool} is not installed (tests/check installs it)"),
            );
            return true;
        }
    }
    false
}

/// Whether a tool that only some tests need is missing; if so, says so for `test`.
#[must_use]
pub fn no_tool(test: &str, tool: &str) -> bool {
    let missing = !is_installed(tool);
    if missing {
        skipped(
            test,
            &format!("{tool} is not installed (tests/check installs it)"),
        );
    }
    missing
}

/// Says that a test did not run. The line goes to standard error past the test harness, which would swallow it, and
/// to the file that `MIRRORFLEET_SKIPS` names, from which `tests/check` repeats it at its end.
pub fn skipped(test: &str, reason: &str) {
    let line = format!("SKIPPED {test}: {reason}\n");
    assert!(std::env::var_os("MIRRORFLEET_NO_SKIP").is_none(), "{line}");
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(path) = std::env::var_os("MIRRORFLEET_SKIPS")
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = file.write_all(line.as_bytes());
    }
}

/// The material shared between projects: `MIRRORFLEET_SHARED`, or `shared` beside the checkout.
#[must_use]
pub fn shared() -> Option<PathBuf> {
    let path = std::env::var_os("MIRRORFLEET_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    path.is_dir().then_some(path)
}

fn is_installed(tool: &str) -> bool {
    // Debian keeps some of them out of an ordinary user's PATH.
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(tool).is_file())
}
