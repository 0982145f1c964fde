//! Capture files laid beside the checkout, and captures made here.

use std::path::PathBuf;

use rebuilder::receive::capture::CaptureReader;

use crate::wire::Owned;

/// The public captures (`../shared`, or `MIRRORFLEET_SHARED`) in the order of their names, with the frames up to
/// where each file breaks; `None`, and a line that says so, where they are absent.
pub(crate) fn corpus(test: &str) -> Option<Vec<(String, Vec<Owned>)>> {
    let files = corpus_files(test)?;
    let read = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, frames(path))
    };
    Some(files.iter().map(read).collect())
}

/// Their paths.
pub(crate) fn corpus_files(test: &str) -> Option<Vec<PathBuf>> {
    let shared = std::env::var_os("MIRRORFLEET_SHARED").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared")),
        PathBuf::from,
    );
    let folder = shared.join("corpus/pcaps");
    let Ok(entries) = std::fs::read_dir(&folder) else {
        skipped(
            test,
            &format!("no captures in {} (MIRRORFLEET_SHARED)", folder.display()),
        );
        return None;
    };
    let mut files: Vec<_> = entries.map(|e| e.unwrap().path()).collect();
    files.sort();
    assert_eq!(files.len(), 342, "the corpus is another one");
    Some(files)
}

/// The frames of a file, up to where it breaks.
pub(crate) fn frames(path: &std::path::Path) -> Vec<Owned> {
    let mut out = Vec::new();
    // Six files are cut or no captures at all; what comes before is what `inspect` shows.
    let Ok(mut reader) = CaptureReader::open(path) else {
        return out;
    };
    while let Ok(Some(frame)) = reader.next() {
        out.push(Owned {
            ts: frame.ts,
            link: frame.link,
            data: frame.data.to_vec(),
        });
    }
    out
}

/// Whether a file can be read to its end.
pub(crate) fn is_whole(path: &std::path::Path) -> bool {
    let Ok(mut reader) = CaptureReader::open(path) else {
        return false;
    };
    loop {
        match reader.next() {
            Ok(Some(_)) => {}
            Ok(None) => return true,
            Err(_) => return false,
        }
    }
}

/// Says that a test did not run, or a part of it; with `MIRRORFLEET_NO_SKIP` that is a failure.
pub(crate) fn skipped(test: &str, why: &str) {
    let line = format!("SKIPPED {test}: {why}");
    assert!(std::env::var_os("MIRRORFLEET_NO_SKIP").is_none(), "{line}");
    eprintln!("{line}");
}
