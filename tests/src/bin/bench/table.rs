//! The table that is printed.

use std::time::Duration;

use lab::cpu::Cost;

/// Ticks are 250 a second or more on the kernels that this runs on; below so many the parts of a sum mean little.
const DIVISIBLE: Duration = Duration::from_millis(500);

/// One line of the table.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What was measured.
    pub(crate) what: String,
    /// Processor time, user and system, of a packet.
    pub(crate) packet: Option<Duration>,
    /// The two apart, where they are known.
    pub(crate) parts: Option<[Duration; 2]>,
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
            parts: None,
            request: each(requests),
            note: String::new(),
        }
    }

    /// What took processor time for so many packets, and perhaps for so many requests.
    pub(crate) fn of(what: &str, cost: &Cost, packets: usize, requests: usize) -> Self {
        let row = Self::new(what, cost.cpu(), packets, requests);
        let n = u32::try_from(packets.max(1)).unwrap_or(u32::MAX);
        let divisible = packets > 0 && cost.cpu() >= DIVISIBLE;
        Self {
            parts: divisible.then_some([cost.user / n, cost.system / n]),
            ..row
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
    println!("| | CPU a packet (ns) | user + system | CPU a request (ns) | |");
    println!("|---|---:|---:|---:|---|");
    for row in rows {
        let parts = row.parts.map_or_else(String::new, |[user, system]| {
            format!("{} + {}", user.as_nanos(), system.as_nanos())
        });
        println!(
            "| {} | {} | {parts} | {} | {} |",
            row.what,
            nanos(row.packet),
            nanos(row.request),
            row.note
        );
    }
}

/// Says what machine the figures are of.
pub(crate) fn print_machine() {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let field = |line: &str| -> Option<String> {
        let (name, value) = line.split_once(':')?;
        (name.trim() == "model name").then(|| value.trim().to_owned())
    };
    let model = info.lines().find_map(field).unwrap_or_default();
    let count = lab::cpu::processors().map_or(0, |all| all.len());
    let kernel = read("/proc/sys/kernel/osrelease");
    println!("{count} × {model}, Linux {}\n", kernel.trim());
}
