//! Captures in files: this rebuilder beside a loop that only looks at the headers, and beside other readers of captures.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};
use lab::cpu::{self, Cost};

use crate::capture::{self, Mirrored, Mixing};
use crate::table::Row;

/// Each is run so often; the best counts, because everything else on the machine only adds.
const RUNS: usize = 5;

/// Suricata's configuration: only HTTP requests are written, and nothing is given up for want of memory.
const SURICATA: &str = "\
%YAML 1.1
---
outputs:
  - eve-log: {enabled: yes, filetype: regular, filename: eve.json, types: [http]}
app-layer: {protocols: {http: {enabled: yes}}}
decoder: {vxlan: {enabled: true, ports: 4789}}
stream: {memcap: 1gb, reassembly: {memcap: 1gb}}
flow: {memcap: 1gb}
";

/// A capture that was made.
pub(crate) struct Capture {
    pub(crate) path: PathBuf,
    pub(crate) packets: usize,
}

/// Makes the captures, and reads them so that they are in the page cache.
pub(crate) fn captures(directory: &Path) -> anyhow::Result<[Capture; 3]> {
    Ok([
        capture(directory)?,
        make(directory, "inbound.pcap", Mirrored::Inbound, Mixing::Trains)?,
        make(directory, "mixed.pcap", Mirrored::Both, Mixing::Packets)?,
    ])
}

/// Makes the one of both directions only.
pub(crate) fn capture(directory: &Path) -> anyhow::Result<Capture> {
    let both = make(directory, "both.pcap", Mirrored::Both, Mixing::Trains)?;
    ensure!(both.packets == capture::PACKETS);
    Ok(both)
}

fn make(
    directory: &Path,
    name: &str,
    mirrored: Mirrored,
    mixing: Mixing,
) -> anyhow::Result<Capture> {
    let path = directory.join(name);
    let packets =
        capture::write(&path, mirrored, mixing).with_context(|| path.display().to_string())?;
    walk(&path)?;
    Ok(Capture { path, packets })
}

/// The rows of one capture.
pub(crate) fn run(name: &str, capture: &Capture, others: bool) -> anyhow::Result<Vec<Row>> {
    let Capture { path, packets } = capture;
    let mut rows = Vec::new();

    let mut walker = Command::new(std::env::current_exe()?);
    walker.args(["walk".as_ref(), path.as_os_str()]);
    let (cost, _) = best(&mut walker)?;
    rows.push(Row::of(&format!("{name}: only walked"), &cost, *packets, 0));

    let mut inspect = Command::new(lab::rebuilder::binary()?);
    inspect.args(["inspect".as_ref(), path.as_os_str(), "--summary".as_ref()]);
    let (cost, output) = best(&mut inspect)?;
    let summary: serde_json::Value = serde_json::from_slice(&output)?;
    ensure!(
        summary["requests"] == capture::REQUESTS && summary["packets"] == *packets,
        "inspect found {} requests in {} packets",
        summary["requests"],
        summary["packets"]
    );
    let own = cost.cpu();
    rows.push(
        Row::of(
            &format!("{name}: `rebuilder inspect --summary`"),
            &cost,
            *packets,
            capture::REQUESTS,
        )
        .noting("all requests"),
    );
    if !others {
        return Ok(rows);
    }

    let mut tshark = Command::new("tshark");
    tshark
        .args(["-n", "-Y", "http.request", "-T", "fields"])
        .args(["-e", "http.request.method", "-r"])
        .arg(path);
    let scratch = path.with_extension("suricata");
    std::fs::create_dir_all(&scratch)?;
    let config = scratch.join("suricata.yaml");
    std::fs::write(&config, SURICATA)?;
    let mut suricata = Command::new("suricata");
    suricata
        .args(["--runmode", "single", "-k", "none", "-S", "/dev/null"])
        .args(["-c".as_ref(), config.as_os_str()])
        .args(["-l".as_ref(), scratch.as_os_str()])
        .args(["-r".as_ref(), path.as_os_str()]);
    for (what, command) in [("tshark", &mut tshark), ("Suricata", &mut suricata)] {
        let (cost, output) = match cpu::of(command) {
            Ok((cost, output)) if output.status.success() => (cost, output),
            Ok((_, output)) => {
                eprintln!("{what}: {}", String::from_utf8_lossy(&output.stderr));
                continue;
            }
            Err(error) => {
                eprintln!("{what}: {error}; not measured");
                continue;
            }
        };
        let lines = if what == "tshark" {
            output.stdout
        } else {
            std::fs::read(scratch.join("eve.json")).unwrap_or_default()
        };
        let found = lines.iter().filter(|&&b| b == b'\n').count();
        let ratio = cost.cpu().as_secs_f64() / own.as_secs_f64();
        rows.push(
            Row::of(
                &format!("{name}: {what}"),
                &cost,
                *packets,
                capture::REQUESTS,
            )
            .noting(format!("{ratio:.0} times ours; {found} requests")),
        );
    }
    std::fs::remove_dir_all(&scratch)?;
    Ok(rows)
}

/// The least processor time of several runs, and what the last one printed.
fn best(command: &mut Command) -> anyhow::Result<(Cost, Vec<u8>)> {
    let mut least: Option<Cost> = None;
    let mut printed = Vec::new();
    for _ in 0..RUNS {
        let (cost, output) = cpu::of(command)?;
        ensure!(
            output.status.success(),
            "{command:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        least = match least {
            Some(least) if least.cpu() <= cost.cpu() => Some(least),
            _ => Some(cost),
        };
        printed = output.stdout;
    }
    Ok((least.unwrap_or_default(), printed))
}

/// Reads a capture and looks at each record's headers: what no reader can do without.
pub(crate) fn walk(path: &Path) -> io::Result<u64> {
    let mut file = std::fs::File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut filled = file.read(&mut buffer)?;
    let mut at = 24;
    let mut seen = 0;
    loop {
        let rest = buffer.get(at..filled).unwrap_or_default();
        let record = rest.split_first_chunk::<16>().and_then(|(header, rest)| {
            let [.., a, b, c, d] = *header;
            let len = usize::try_from(u32::from_le_bytes([a, b, c, d])).ok()?;
            rest.get(..len)
        });
        if let Some(record) = record {
            // Of the outer UDP header the port, of the inner TCP header the ports and the sequence number.
            let byte = |at: usize| record.get(at).copied().map_or(0, u64::from);
            seen = (seen + byte(37) + byte(87) + byte(91)) ^ record.len() as u64;
            at += 16 + record.len();
            continue;
        }
        let left = rest.len();
        buffer.copy_within(at.min(filled)..filled, 0);
        at = 0;
        let read = file.read(buffer.get_mut(left..).unwrap_or_default())?;
        filled = left + read;
        if read == 0 {
            return Ok(std::hint::black_box(seen));
        }
    }
}
