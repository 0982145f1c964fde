//! Loss before any socket of ours: in the queue between a card and the kernel (softnet), and in EC2, which lets an
//! instance have no more than its type's share of the network.
//!
//! These figures are the host's, of all its traffic and not only the mirrored, and so are counted once, not once a
//! worker. They are differences to what they were when the rebuilder started.

use std::fs;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use socket2::{Domain, Socket, Type};

use super::sys::ethtool;

/// Commands of `linux/ethtool.h`.
const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSTRINGS: u32 = 0x1b;
const ETHTOOL_GSTATS: u32 = 0x1d;
const ETHTOOL_GGRO: u32 = 0x2b;
/// The set of strings that names statistics.
const ETH_SS_STATS: u32 = 1;
/// Bytes of such a name.
const NAME: usize = 32;
/// Where `n_stats` stands in `struct ethtool_drvinfo`, and how long that is.
const N_STATS_AT: usize = 180;
const DRVINFO: usize = 196;
/// More statistics than this a driver hardly has.
const MOST_STATS: usize = 20_000;

/// What the driver `ena` calls packets that EC2 dropped, or held up until they were dropped, because the instance had
/// more than its type may have
/// (<https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/monitoring-network-performance-ena.html>). In the order of
/// [`Loss::nic`].
const ALLOWANCES: [&str; 3] = [
    "bw_in_allowance_exceeded",
    "pps_allowance_exceeded",
    "conntrack_allowance_exceeded",
];

/// What was lost since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// Packets that found the backlog of a processor full.
    pub softnet: u64,
    /// Packets beyond what EC2 allows: incoming bandwidth, packets per second, tracked connections.
    pub nic: [u64; 3],
}

impl Loss {
    fn since(self, start: Self) -> Self {
        let mut nic = self.nic;
        for (now, start) in nic.iter_mut().zip(start.nic) {
            *now = now.saturating_sub(start);
        }
        Self {
            softnet: self.softnet.saturating_sub(start.softnet),
            nic,
        }
    }
}

/// Losses that one thread reads from the kernel and another one counts.
#[derive(Debug, Default)]
pub struct HostLoss {
    softnet: AtomicU64,
    nic: [AtomicU64; 3],
}

impl HostLoss {
    /// The latest figures.
    #[must_use]
    pub fn get(&self) -> Loss {
        let mut nic = [0; 3];
        for (to, from) in nic.iter_mut().zip(&self.nic) {
            *to = from.load(Ordering::Relaxed);
        }
        Loss {
            softnet: self.softnet.load(Ordering::Relaxed),
            nic,
        }
    }

    fn set(&self, loss: Loss) {
        self.softnet.store(loss.softnet, Ordering::Relaxed);
        for (to, from) in self.nic.iter().zip(loss.nic) {
            to.store(from, Ordering::Relaxed);
        }
    }
}

/// Reads them. A driver may take its time to answer, so not on a worker's thread.
#[derive(Debug)]
pub struct HostWatch {
    /// For asking drivers.
    socket: Option<Socket>,
    /// Interfaces whose driver tells of allowances, and which of its statistics these are.
    interfaces: Vec<(String, [Option<usize>; 3])>,
    start: Loss,
}

impl Default for HostWatch {
    fn default() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).ok();
        let mut interfaces = Vec::new();
        for interface in names() {
            let stats = socket.iter().flat_map(|s| statistics(s, &interface));
            let places = allowances(stats);
            if places.iter().any(Option::is_some) {
                interfaces.push((interface, places));
            }
        }
        let mut watch = Self {
            socket,
            interfaces,
            start: Loss::default(),
        };
        watch.start = watch.total();
        watch
    }
}

impl HostWatch {
    /// Brings the figures up to date.
    pub fn look(&self, loss: &HostLoss) {
        loss.set(self.total().since(self.start));
    }

    fn total(&self) -> Loss {
        // Of the process itself, as a service may see no other part of /proc; the figures are the machine's.
        let softnet = fs::read_to_string("/proc/self/net/softnet_stat").unwrap_or_default();
        let mut loss = Loss {
            softnet: softnet_drops(&softnet),
            nic: [0; 3],
        };
        for (interface, places) in &self.interfaces {
            let values = self.socket.iter().find_map(|s| values(s, interface).ok());
            let values = values.unwrap_or_default();
            for (sum, place) in loss.nic.iter_mut().zip(places) {
                *sum += place.and_then(|at| values.get(at)).unwrap_or(&0);
            }
        }
        loss
    }
}

/// The interfaces (but the loopback) on which the kernel puts packets together (GRO) before anybody sees them.
#[must_use]
pub fn with_gro() -> Vec<String> {
    let Ok(socket) = Socket::new(Domain::IPV4, Type::DGRAM, None) else {
        return Vec::new();
    };
    let on = |name: &String| name != "lo" && gro(&socket, name).unwrap_or(false);
    names().into_iter().filter(on).collect()
}

fn names() -> Vec<String> {
    let Ok(entries) = fs::read_dir("/sys/class/net") else {
        return Vec::new();
    };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    names
}

/// The sum of the second column: a line a processor, numbers in hexadecimal (`softnet_seq_show` of the kernel).
fn softnet_drops(text: &str) -> u64 {
    text.lines()
        .filter_map(|line| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok())
        .sum()
}

/// Where the allowances are among the names of a driver's statistics.
fn allowances(names: impl IntoIterator<Item = String>) -> [Option<usize>; 3] {
    let mut places = [None; 3];
    for (at, name) in names.into_iter().enumerate() {
        for (place, wanted) in places.iter_mut().zip(ALLOWANCES) {
            if name == wanted {
                *place = Some(at);
            }
        }
    }
    places
}

/// Two words of 32 bits as they stand in memory.
fn pair(first: u32, second: u32) -> u64 {
    let [a, b, c, d] = first.to_ne_bytes();
    let [e, f, g, h] = second.to_ne_bytes();
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

fn bytes(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn gro(socket: &Socket, interface: &str) -> io::Result<bool> {
    let mut request = [pair(ETHTOOL_GGRO, 0)];
    // SAFETY: a `struct ethtool_value` is two words of 32 bits.
    unsafe { ethtool(socket, interface, &mut request) }?;
    Ok(request != [pair(ETHTOOL_GGRO, 0)])
}

/// How many statistics a driver has.
fn count(socket: &Socket, interface: &str) -> io::Result<usize> {
    let mut request = [0; DRVINFO.div_ceil(8)];
    request[0] = pair(ETHTOOL_GDRVINFO, 0);
    // SAFETY: room for a `struct ethtool_drvinfo`.
    unsafe { ethtool(socket, interface, &mut request) }?;
    let count = half(&bytes(&request), N_STATS_AT).unwrap_or(0);
    usize::try_from(count)
        .ok()
        .filter(|&count| count <= MOST_STATS)
        .ok_or_else(|| io::ErrorKind::Unsupported.into())
}

/// The names of a driver's statistics; none where it has none.
fn statistics(socket: &Socket, interface: &str) -> Vec<String> {
    let Ok(count @ 1..) = count(socket, interface) else {
        return Vec::new();
    };
    // Room for twice as many: the kernel writes as many as there are now, not as many as there is room for, and the
    // number follows that of a card's queues.
    let mut request = vec![0; 2 + 2 * count * NAME / 8];
    request[0] = pair(ETHTOOL_GSTRINGS, ETH_SS_STATS);
    // SAFETY: room for a `struct ethtool_gstrings` with more names than there are.
    if unsafe { ethtool(socket, interface, &mut request) }.is_err() {
        return Vec::new();
    }
    let bytes = bytes(&request);
    let names = bytes.get(12..).unwrap_or_default();
    names
        .chunks(NAME)
        .take(count)
        .map(|name| {
            let name = name.split(|&b| b == 0).next().unwrap_or_default();
            String::from_utf8_lossy(name).into_owned()
        })
        .collect()
}

/// The values of a driver's statistics.
fn values(socket: &Socket, interface: &str) -> io::Result<Vec<u64>> {
    let count = count(socket, interface)?;
    // As above.
    let mut request = vec![0; 1 + 2 * count];
    request[0] = pair(ETHTOOL_GSTATS, u32::try_from(count).unwrap_or(0));
    // SAFETY: room for a `struct ethtool_stats` with more values than there are.
    unsafe { ethtool(socket, interface, &mut request) }?;
    Ok(request.into_iter().skip(1).take(count).collect())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn softnet_drops_are_the_second_column_of_every_processor() {
        let text = "0000272d 0000000a 00000001 00000000\n00000f00 000000ff 00000000 00000000\n";
        assert_eq!(softnet_drops(text), 10 + 255);
        for odd in ["", "\n", "0000272d", "0000272d zz 1", "00 \u{fffd}"] {
            assert_eq!(softnet_drops(odd), 0, "{odd:?}");
        }
    }

    #[test]
    fn the_allowances_are_found_wherever_the_driver_has_them() {
        // As `ethtool -S` prints them on an instance, shortened.
        let ena = [
            "total_resets",
            "tx_timeout",
            "bw_in_allowance_exceeded",
            "bw_out_allowance_exceeded",
            "pps_allowance_exceeded",
            "conntrack_allowance_exceeded",
            "queue_0_tx_cnt",
        ];
        let places = allowances(ena.map(str::to_owned));
        assert_eq!(places, [Some(2), Some(4), Some(5)]);
        assert_eq!(allowances([]), [None; 3]);
        assert_eq!(
            allowances(["pps_allowance_exceeded".into()]),
            [None, Some(0), None]
        );
    }

    #[test]
    fn what_was_lost_before_the_start_does_not_count() {
        let at = |softnet, nic| Loss { softnet, nic };
        let start = at(10, [1, 2, 3]);
        assert_eq!(at(15, [1, 3, 5]).since(start), at(5, [0, 1, 2]));
        // A driver that was loaded anew begins at zero.
        assert_eq!(at(15, [0, 3, 5]).since(start), at(5, [0, 1, 2]));
    }

    #[test]
    fn a_driver_says_the_same_to_us_as_to_ethtool() {
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        let mut seen = 0;
        for interface in names() {
            let Ok(out) = Command::new("ethtool").args(["-S", &interface]).output() else {
                eprintln!("SKIPPED: ethtool is not installed");
                return;
            };
            if !out.status.success() {
                assert_eq!(statistics(&socket, &interface), [""; 0]);
                continue;
            }
            let text = String::from_utf8(out.stdout).unwrap();
            let theirs: Vec<&str> = text
                .lines()
                .skip(1)
                .filter_map(|line| Some(line.trim().rsplit_once(':')?.0))
                .collect();
            let ours = statistics(&socket, &interface);
            let trimmed: Vec<&str> = ours.iter().map(|name| name.trim()).collect();
            assert_eq!(trimmed, theirs, "{interface}");
            assert_eq!(values(&socket, &interface).unwrap().len(), theirs.len());
            seen += 1;
        }
        if seen == 0 {
            eprintln!("SKIPPED: no interface with statistics");
        }
    }
}
