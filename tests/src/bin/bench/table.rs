//! The table that is printed.

use std::time::Duration;

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// Processor time, user and system, of a packet.
    pub(crate) packet: Option<Duration>,
    /// The same of a request.
    pub(crate) request: Option<Duration>,
    /// What else there is to say.
    pub(crate) note: String,
}

impl Row {
    /// A subject that took this much for so many packets and requests; none where one of them is no measure of it.
    pub(crate) fn new(what: &str, cpu: Duration, packets: usize, requests: usize) -> Self {
        let each = |n: usize| {
            let n = u32::try_from(n).unwrap_or(u32::MAX);
            (n > 0).then(|| cpu / n)
        };
        Self {
            what: what.to_owned(),
            packet: each(packets),
            request: each(requests),
            note: String::new(),
        }
    }

    /// With a remark.
    pub(crate) fn noting(self, note: impl Into<String>) -> Self {
        Self {
            note: note.into(),
            ..self
        }
    }
}

/// Prints the table, in Markdown.
pub(crate) fn print(rows: &[Row]) {
    let nanos =
        |time: Option<Duration>| time.map_or_else(String::new, |t| t.as_nanos().to_string());
    println!("| | CPU a packet (ns) | CPU a request (ns) | |");
    println!("|---|---:|---:|---|");
    for row in rows {
        println!(
            "| {} | {} | {} | {} |",
            row.what,
            nanos(row.packet),
            nanos(row.request),
            row.note
        );
    }
}
