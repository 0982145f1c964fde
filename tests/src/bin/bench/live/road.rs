//! Two network namespaces and a virtual wire between them: at one end the capture is sent, at the other it is received.

use std::net::UdpSocket;

use anyhow::{Context, ensure};
use lab::batch::Link;
use lab::cpu;
use lab::janitor::{Directory, Prefix};
use lab::netns::Namespace;
use lab::process;

/// Where the capture's packets are sent to, as they stand: see `capture.rs`.
pub(crate) const ADDRESS: &str = "10.9.0.1";
const MAC: &str = "02:00:00:00:00:01";
const SENDER: &str = "10.9.0.9";
const SENDER_MAC: &str = "02:00:00:00:00:02";

/// The port of mirrored packets.
pub(crate) const PORT: u16 = 4789;

/// The wire and its ends. All of it goes on drop.
pub(crate) struct Road {
    /// Where frames are handed to the wire.
    pub(crate) link: Link,
    /// A socket of the sender's, which leads to [`ADDRESS`].
    pub(crate) end: UdpSocket,
    /// Where they arrive.
    pub(crate) receiver: Namespace,
    /// The processor of whoever receives, and that of the sender and of everybody else.
    pub(crate) processors: [usize; 2],
    pub(crate) directory: Directory,
    _sender: Namespace,
}

impl Road {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let all = cpu::processors()?;
        let (Some(&first), Some(&last)) = (all.first(), all.last()) else {
            anyhow::bail!("no processor");
        };
        ensure!(
            first != last,
            "one processor, and two are needed: one that sends, one that receives"
        );
        let prefix = Prefix::new()?;
        let sender = Namespace::create(&prefix.name("sender"))?;
        let receiver = Namespace::create(&prefix.name("receiver"))?;
        for namespace in [&sender, &receiver] {
            namespace.without_ipv6()?;
        }
        // As a mirror's packets come: one at a time, none put together or left to be cut by hardware that is not there.
        sender.ip(&format!(
            "link add out0 address {SENDER_MAC} mtu 9216 type veth peer name in0 address {MAC} mtu 9216 netns {}",
            receiver.name()
        ))?;
        for (namespace, device, address, neighbour, mac) in [
            (&sender, "out0", SENDER, ADDRESS, MAC),
            (&receiver, "in0", ADDRESS, SENDER, SENDER_MAC),
        ] {
            let mut ethtool = namespace.command("ethtool");
            ethtool.args(["-K", device, "tso", "off", "gso", "off", "gro", "off"]);
            process::run(ethtool.args(["tx", "off"]))?;
            namespace.ip(&format!("link set {device} gso_max_segs 1"))?;
            namespace.ip(&format!("address add {address}/24 dev {device}"))?;
            namespace.ip(&format!("link set {device} up"))?;
            namespace.ip(&format!(
                "neighbour add {neighbour} lladdr {mac} dev {device} nud permanent"
            ))?;
        }
        let end = sender.run(|| {
            let socket = UdpSocket::bind((SENDER, 0))?;
            socket.connect((ADDRESS, PORT))?;
            std::io::Result::Ok(socket)
        })??;
        Ok(Self {
            link: Link::open(&sender, "out0").context("sending frames needs CAP_NET_RAW")?,
            end,
            receiver,
            processors: [first, last],
            directory: prefix.directory()?,
            _sender: sender,
        })
    }
}

/// Packets that this machine has dropped so far before any socket saw them: the second column of
/// `/proc/net/softnet_stat`, a line a processor, in hexadecimal.
pub(crate) fn softnet_drops() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let mut sum = 0;
    for line in text.lines() {
        let word = line.split_whitespace().nth(1).unwrap_or("0");
        sum += u64::from_str_radix(word, 16).context("/proc/net/softnet_stat")?;
    }
    Ok(sum)
}
