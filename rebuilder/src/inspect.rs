//! `rebuilder inspect`: the same pipeline over a capture file, one worker, deterministic.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use crate::handover::Alone;
use crate::http::{Flags, Request, write_json};
use crate::keyed::Keyed;
use crate::pipeline::{Pipeline, PipelineOptions};
use crate::receive::LinkType;
use crate::receive::capture::{CaptureError, CaptureReader};
use crate::stream::{AHEAD, End};
use crate::telemetry::PacketOutcome;

/// What `inspect` prints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A line a request for people, and the summary in words.
    Text,
    /// One JSON object a request.
    Json,
    /// One JSON object in all.
    Summary,
}

/// Why `inspect` did not get to the end. `Display` is one line.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The capture; what stands before the fault has been printed.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// Standard output.
    #[error("cannot write the result: {0}")]
    Output(#[from] io::Error),
}

/// The figures of one capture file.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Records in the file.
    pub packets: u64,
    /// Every packet has exactly one outcome; outcomes that did not occur are left out.
    pub packets_by_outcome: BTreeMap<&'static str, u64>,
    /// Requests, the flagged ones included.
    pub requests: u64,
    /// How many requests carry each flag; flags that did not occur are left out.
    pub requests_by_flag: BTreeMap<&'static str, u64>,
    /// TCP connections that carried payload.
    pub flows: u64,
    /// Captured bytes.
    pub bytes: u64,
    /// Wall-clock seconds that the work took.
    pub elapsed_s: f64,
}

impl Summary {
    fn request(&mut self, flags: Flags) {
        self.requests += 1;
        for name in flags.names() {
            *self.requests_by_flag.entry(name).or_default() += 1;
        }
    }
}

/// Reads `file` to its end and prints as `format` says to `out`; remarks that are no result (a link type that is not
/// read) go to `remark`, one line each.
///
/// # Errors
/// [`InspectError::Capture`] when the file cannot be read to its end: everything before the fault has been printed.
pub fn run(
    file: &Path,
    format: Format,
    mut options: PipelineOptions,
    out: &mut impl Write,
    mut remark: impl FnMut(String),
) -> Result<(), InspectError> {
    let begun = Instant::now();
    let mut reader = CaptureReader::open(file)?;
    // The same file gives the same result, also where it makes a table forget something.
    options.stream.hash = Keyed::FIXED;
    options.decode.hash = Keyed::FIXED;
    let mut pipeline = Pipeline::new(options);
    let mut summary = Summary::default();
    // Counted by place: a look-up by name would cost a packet as much as decoding it.
    let mut by_outcome = [0_u64; PacketOutcome::ALL.len()];
    let (mut packets, mut bytes) = (0, 0);
    let mut unread: Vec<u32> = Vec::new();
    let mut failed_output: Option<io::Error> = None;

    let mut emit = |summary: &mut Summary, request: &Request| {
        // The contract: a request line ends in `HTTP/`d`.`d, everything else gives no row.
        if request.long_version {
            return;
        }
        summary.request(request.flags);
        if failed_output.is_none()
            && let Err(e) = print(request, format, out)
        {
            failed_output = Some(e);
        }
    };
    let fault = loop {
        let frames = match reader.next_few(AHEAD) {
            Ok(frames) if frames.len() == 0 => break None,
            Ok(frames) => frames,
            Err(e) => break Some(e),
        };
        let frames = frames.inspect(|frame| {
            packets += 1;
            bytes += frame.data.len() as u64;
            if let LinkType::Other(number) = frame.link
                && !unread.contains(&number)
            {
                unread.push(number);
                remark(format!(
                    "{}: packet {packets}: link type {number} is not read; such packets are counted as link_type \
                     (convert the capture to Ethernet, SLL or raw IP to see them)",
                    file.display()
                ));
            }
        });
        pipeline.frames(
            frames,
            Alone,
            |outcome| by_outcome[outcome.index()] += 1,
            &mut |request| emit(&mut summary, &request),
        );
    };
    pipeline.finish(End::Eof, &mut |r| emit(&mut summary, &r));
    if let Some(e) = failed_output {
        return Err(e.into());
    }

    (summary.packets, summary.bytes) = (packets, bytes);
    summary.packets_by_outcome = PacketOutcome::ALL
        .iter()
        .zip(by_outcome)
        .filter(|(_, count)| *count > 0)
        .map(|(outcome, count)| (outcome.label(), count))
        .collect();
    summary.flows = pipeline.stream_stats().flows;
    summary.elapsed_s = begun.elapsed().as_secs_f64();
    match format {
        Format::Json => {}
        Format::Summary => {
            serde_json::to_writer(&mut *out, &summary).map_err(io::Error::from)?;
            out.write_all(b"\n")?;
        }
        Format::Text => print_summary(&summary, out)?,
    }
    out.flush()?;
    fault.map_or(Ok(()), |e| Err(e.into()))
}

fn print(request: &Request, format: Format, out: &mut impl Write) -> io::Result<()> {
    match format {
        Format::Json => write_json(request, out),
        Format::Summary => Ok(()),
        Format::Text => {
            let flags: Vec<_> = request.flags.names().collect();
            writeln!(
                out,
                "{:.6} {} > {} {} {} HTTP/{}.{} body {} B{}{}",
                request.ts.as_secs_f64(),
                request.endpoints.src,
                request.endpoints.dst,
                request
                    .raw
                    .get(request.method.clone())
                    .unwrap_or_default()
                    .escape_ascii(),
                request
                    .raw
                    .get(request.target.clone())
                    .unwrap_or_default()
                    .escape_ascii(),
                request.version.0,
                request.version.1,
                request.body_len,
                if flags.is_empty() { "" } else { "  " },
                flags.join(",")
            )
        }
    }
}

fn print_summary(summary: &Summary, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "{} packets ({} B), {} connections, {} requests, {:.3} s",
        summary.packets, summary.bytes, summary.flows, summary.requests, summary.elapsed_s
    )?;
    for (outcome, count) in &summary.packets_by_outcome {
        writeln!(out, "  packets {outcome:<14} {count}")?;
    }
    for (flag, count) in &summary.requests_by_flag {
        writeln!(out, "  requests {flag:<13} {count}")?;
    }
    Ok(())
}
