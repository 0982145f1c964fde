//! A capture through the packet path, with the accounting checked on the way.

use std::collections::BTreeMap;

use rebuilder::handover::Alone;
use rebuilder::http::{HttpCounters, Request, write_json};
use rebuilder::pipeline::{Pipeline, PipelineOptions};
use rebuilder::stream::{End, Stats};
use rebuilder::telemetry::PacketOutcome;

use crate::wire::Owned;

/// All that came of a capture.
#[derive(Debug, Default)]
pub(crate) struct Run {
    /// Rows of `inspect --json`, in order.
    pub(crate) rows: Vec<String>,
    pub(crate) requests: Vec<Request<'static>>,
    pub(crate) packets: u64,
    pub(crate) outcomes: BTreeMap<PacketOutcome, u64>,
    pub(crate) stats: Stats,
    pub(crate) http: HttpCounters,
    pub(crate) gaps: u64,
}

/// Runs frames to the end of the file.
pub(crate) fn run(frames: &[Owned], options: &PipelineOptions) -> Run {
    let mut run = Run::default();
    let mut pipeline = Pipeline::new(options.clone());
    let mut requests = Vec::new();
    let mut outcomes = Vec::new();
    pipeline.frames(
        frames.iter().map(Owned::frame),
        Alone,
        |outcome| outcomes.push(outcome),
        &mut |r| requests.push(r.into_owned()),
    );
    pipeline.finish(End::Eof, &mut |r| requests.push(r.into_owned()));
    for outcome in &outcomes {
        run.packets += 1;
        *run.outcomes.entry(*outcome).or_default() += 1;
    }
    run.rows = requests.iter().map(row).collect();
    let (one_by_one, rows) = one_by_one(frames, options);
    assert_eq!(outcomes, one_by_one, "looking ahead changes an outcome");
    assert_eq!(run.rows, rows, "looking ahead changes a request");
    run.requests = requests;
    run.stats = pipeline.stream_stats();
    run.http = pipeline.http_counters();
    run.gaps = pipeline.gaps();
    assert_eq!(pipeline.flows(), 0, "a flow outlives the end of the file");
    assert_eq!(
        pipeline.held_bytes(),
        0,
        "bytes outlive the end of the file"
    );
    assert_eq!(run.http.requests, run.requests.len() as u64);
    assert_eq!(run.outcomes.values().sum::<u64>(), run.packets);
    run
}

/// The outcomes and the rows of the same frames, each taken before the next one is looked at.
fn one_by_one(frames: &[Owned], options: &PipelineOptions) -> (Vec<PacketOutcome>, Vec<String>) {
    let mut pipeline = Pipeline::new(options.clone());
    let mut rows = Vec::new();
    let outcomes = frames
        .iter()
        .map(|frame| pipeline.frame(&frame.frame(), &mut |r| rows.push(row(&r))))
        .collect();
    pipeline.finish(End::Eof, &mut |r| rows.push(row(&r)));
    (outcomes, rows)
}

pub(crate) fn row(request: &Request) -> String {
    let mut line = Vec::new();
    write_json(request, &mut line).unwrap();
    String::from_utf8(line).unwrap()
}
