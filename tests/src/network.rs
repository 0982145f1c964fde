//! The VPC: one bridge, a namespace for each host, and the way from an interface to the rebuilder.
//!
//! A mirrored copy does not travel on the bridge. As in AWS it is encapsulated beneath the instance and carries the
//! interface's own address as its outer source, which the bridge could not have twice. So each session has a
//! namespace with that address, a VXLAN socket and a link to the namespace `nlb`, which leads to the rebuilder:
//!
//! ```text
//!  instance eth0 ═══ port │vpc│ vxlan device ┄┄ its socket │wire│ up0 ═══ │nlb│ ═══ nlb0 │rebuilder│
//! ```

use std::process::Command;
use std::time::Duration;

use anyhow::Context;

use crate::janitor::{Directory, Prefix};
use crate::netns::Namespace;
use crate::process;

/// The prefix lengths of the VPC, which is one link: 172.31.0.0/16, the CIDR of AWS's default VPC, and an IPv6 /64.
pub const IPV4_PREFIX: u8 = 16;
/// See [`IPV4_PREFIX`].
pub const IPV6_PREFIX: u8 = 64;

/// What the network load balancer leads to: the rebuilder's address on its link to the namespace `nlb`.
pub const REBUILDER_UNDERLAY: &str = "100.64.0.2";
/// The device in the rebuilder's host that mirrored packets arrive on, and nothing else.
pub const REBUILDER_LINK: &str = "nlb0";
/// The devices of [`Vpc::behind_a_relay`].
pub const RELAY_IN: &str = "in0";
/// See [`RELAY_IN`].
pub const RELAY_OUT: &str = "out0";
const REBUILDER_UNDERLAY_MAC: &str = "02:00:64:40:00:02";

/// Room for a jumbo frame (9001 and its Ethernet header) behind 50 bytes of encapsulation.
const UNDERLAY_MTU: u32 = 9216;
const ENCAPSULATION: u32 = 50;

/// Settings of a VPC.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// MTU of every interface in bytes: 1500, or 9001 as within a real VPC.
    pub mtu: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { mtu: 1500 }
    }
}

/// One interface of a host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Unique in the VPC; an ENI's id for instances.
    pub id: String,
    /// Addresses without prefix length, IPv4 and IPv6; the first is the primary one.
    pub addresses: Vec<String>,
    /// The MAC address, or the kernel's choice.
    pub mac: Option<String>,
}

impl Interface {
    /// An interface with a MAC address of the kernel's choice.
    #[must_use]
    pub fn new(id: &str, addresses: &[&str]) -> Self {
        Self {
            id: id.to_owned(),
            addresses: addresses.iter().map(|&a| a.to_owned()).collect(),
            mac: None,
        }
    }
}

/// The VPC side of an interface: where AWS mirrors, outside of the instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The device in the namespace `vpc`.
    pub device: String,
    /// The interface's primary address: outer source of its mirrored packets.
    pub primary: String,
}

/// A host in the VPC. Its namespace, and with it its interfaces, goes on drop.
#[derive(Debug)]
pub struct Host {
    /// Where its processes run.
    pub namespace: Namespace,
    /// Its primary address.
    pub primary: String,
    /// Interface id and the VPC side of that interface.
    pub ports: Vec<(String, Port)>,
}

/// The VPC.
#[derive(Debug)]
pub struct Vpc {
    prefix: Prefix,
    options: Options,
    bridge: Namespace,
    nlb: Namespace,
    directory: Directory,
}

impl Vpc {
    /// Makes the bridge and the namespace behind it.
    ///
    /// # Errors
    /// What `ip` says, for instance without root.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let prefix = Prefix::new()?;
        let directory = prefix.directory()?;
        let bridge = Namespace::create(&prefix.name("vpc"))?;
        bridge.without_ipv6()?;
        bridge.ip("link add vpc type bridge forward_delay 0 mcast_snooping 0")?;
        bridge.ip(&format!("link set vpc mtu {} up", options.mtu))?;
        let nlb = Namespace::create(&prefix.name("nlb"))?;
        nlb.without_ipv6()?;
        for bridge in [&bridge, &nlb] {
            // Bridged frames must not pass the firewall hooks where the module that calls them is loaded.
            for table in ["iptables", "ip6tables", "arptables"] {
                bridge.sysctl(&format!("net/bridge/bridge-nf-call-{table}"), "0")?;
            }
        }
        nlb.ip("link add nlb type bridge forward_delay 0 mcast_snooping 0")?;
        nlb.ip(&format!("link set nlb mtu {UNDERLAY_MTU} up"))?;
        Ok(Self {
            prefix,
            options,
            bridge,
            nlb,
            directory,
        })
    }

    /// Where logs and configuration of this VPC's hosts go.
    #[must_use]
    pub fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// The namespace of the bridge and of all ports.
    #[must_use]
    pub fn bridge(&self) -> &Namespace {
        &self.bridge
    }

    /// Makes a host with these interfaces (`eth0`, `eth1`, …).
    ///
    /// # Errors
    /// What `ip` and `ethtool` say.
    pub fn host(&self, role: &str, interfaces: &[Interface]) -> anyhow::Result<Host> {
        let namespace = Namespace::create(&self.prefix.name(role))?;
        let mut ports = Vec::new();
        for (index, interface) in interfaces.iter().enumerate() {
            let port = self
                .plug(&namespace, &format!("eth{index}"), interface)
                .with_context(|| format!("interface {} of {role}", interface.id))?;
            ports.push((interface.id.clone(), port));
        }
        let primary = ports
            .first()
            .map(|(_, port)| port.primary.clone())
            .unwrap_or_default();
        Ok(Host {
            namespace,
            primary,
            ports,
        })
    }

    fn plug(&self, host: &Namespace, name: &str, interface: &Interface) -> anyhow::Result<Port> {
        let device = device_name('p', &interface.id);
        let mtu = self.options.mtu;
        self.bridge.ip(&format!(
            "link add {device} mtu {mtu} type veth peer name {name} mtu {mtu} netns {}",
            host.name()
        ))?;
        if let Some(mac) = &interface.mac {
            host.ip(&format!("link set {name} address {mac}"))?;
        }
        wire_size_frames(host, name)?;
        wire_size_frames(&self.bridge, &device)?;
        for address in &interface.addresses {
            let (prefix, nodad) = if address.contains(':') {
                (IPV6_PREFIX, " nodad")
            } else {
                (IPV4_PREFIX, "")
            };
            host.ip(&format!("address add {address}/{prefix} dev {name}{nodad}"))?;
        }
        host.ip(&format!("link set {name} up"))?;
        join(&self.bridge, "vpc", &device)?;
        // A VPC knows where every address is. A bridge that does not know sends to all, and then a frame for an
        // instance that is gone would be mirrored at its neighbours.
        let mac = match &interface.mac {
            Some(mac) => mac.clone(),
            None => mac_of(host, name)?,
        };
        bridge_tool(
            &self.bridge,
            &format!("fdb replace {mac} dev {device} master static"),
        )?;
        bridge_tool(
            &self.bridge,
            &format!("link set dev {device} learning off flood off"),
        )?;
        Ok(Port {
            device,
            primary: interface.addresses.first().cloned().unwrap_or_default(),
        })
    }

    /// Takes a host's interfaces away, as when its machine dies: nobody is told anything.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn cut(&self, host: &Host) -> anyhow::Result<()> {
        for (_, port) in &host.ports {
            self.bridge.ip(&format!("link del {}", port.device))?;
        }
        Ok(())
    }

    /// Gives a host the link that mirrored packets arrive on.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn behind_the_load_balancer(&self, host: &Host) -> anyhow::Result<()> {
        self.rebuilder_link(&self.nlb, "target", host)?;
        join(&self.nlb, "nlb", "target")
    }

    /// The same, with a host of its own in between that hands on nothing by itself: what comes in on its device
    /// [`RELAY_IN`] is for the rebuilder, what is written to [`RELAY_OUT`] arrives there.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn behind_a_relay(&self, host: &Host) -> anyhow::Result<Namespace> {
        let relay = Namespace::create(&self.prefix.name("relay"))?;
        relay.without_ipv6()?;
        self.rebuilder_link(&relay, RELAY_OUT, host)?;
        relay.ip(&format!("link set {RELAY_OUT} up"))?;
        self.nlb_link(&relay)?;
        Ok(relay)
    }

    /// Tells a host where another one is, so that it does not have to ask: one that asks before the other is there learns
    /// only after many seconds that it has come.
    pub(crate) fn introduce(&self, of: &Host, to: &Host) -> anyhow::Result<()> {
        let (address, mac) = (&of.primary, mac_of(&of.namespace, "eth0")?);
        to.namespace.ip(&format!(
            "neighbour replace {address} lladdr {mac} dev eth0 nud permanent"
        ))?;
        Ok(())
    }

    /// The link on which a load balancer's host gets what is mirrored, its device [`RELAY_IN`].
    pub(crate) fn behind_a_balancer(&self, balancer: &Host) -> anyhow::Result<()> {
        self.nlb_link(&balancer.namespace)
    }

    /// A link from a load balancer's device `device` to a target's [`REBUILDER_LINK`].
    pub(crate) fn target_link(
        &self,
        balancer: &Namespace,
        device: &str,
        target: &Host,
    ) -> anyhow::Result<()> {
        self.rebuilder_link(balancer, device, target)?;
        balancer.ip(&format!("link set {device} up"))?;
        Ok(())
    }

    /// A link from the namespace `nlb` to the device [`RELAY_IN`] of another.
    fn nlb_link(&self, to: &Namespace) -> anyhow::Result<()> {
        self.nlb.ip(&format!(
            "link add target mtu {UNDERLAY_MTU} type veth peer name {RELAY_IN} mtu {UNDERLAY_MTU} netns {}",
            to.name()
        ))?;
        to.ip(&format!("link set {RELAY_IN} up"))?;
        join(&self.nlb, "nlb", "target")
    }

    /// A link from the device `from` to the rebuilder's own.
    fn rebuilder_link(&self, namespace: &Namespace, from: &str, host: &Host) -> anyhow::Result<()> {
        let inside = &host.namespace;
        namespace.ip(&format!(
            "link add {from} mtu {UNDERLAY_MTU} type veth peer name {REBUILDER_LINK} \
             address {REBUILDER_UNDERLAY_MAC} mtu {UNDERLAY_MTU} netns {}",
            inside.name()
        ))?;
        inside.ip(&format!(
            "address add {REBUILDER_UNDERLAY}/24 dev {REBUILDER_LINK}"
        ))?;
        inside.ip(&format!("link set {REBUILDER_LINK} up"))?;
        Ok(())
    }

    /// Makes a VXLAN device in the namespace `vpc` whose packets come out at the rebuilder, with the outer header
    /// that AWS's have: the interface's address as source, ports 65408 to 65525, TTL 255, no DF, no UDP checksum.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn tunnel(&self, id: &str, source: &str, vni: u32) -> anyhow::Result<Tunnel> {
        let device = device_name('m', id);
        // A socket of its own in a namespace of its own, because Linux takes a VNI only once per namespace and port,
        // and all sessions of one stack share theirs.
        let wire = Namespace::create(&self.prefix.name(&device))?;
        wire.without_ipv6()?;
        self.nlb.ip(&format!(
            "link add {device} mtu {UNDERLAY_MTU} type veth peer name up0 mtu {UNDERLAY_MTU} netns {}",
            wire.name()
        ))?;
        wire.ip(&format!("address add {source}/32 dev up0"))?;
        wire.ip("link set up0 up")?;
        join(&self.nlb, "nlb", &device)?;
        wire.ip(&format!(
            "route add {REBUILDER_UNDERLAY} dev up0 src {source}"
        ))?;
        // Without it the first packets would wait for ARP, in a queue of limited length.
        wire.ip(&format!("neighbour add {REBUILDER_UNDERLAY} lladdr {REBUILDER_UNDERLAY_MAC} dev up0 nud permanent"))?;
        wire.ip(&format!(
            "link add {device} type vxlan id {vni} local {source} remote {REBUILDER_UNDERLAY} dev up0 dstport 4789 \
             srcport 65408 65526 ttl 255 df unset noudpcsum nolearning"
        ))?;
        // A VXLAN device keeps its socket where it was made.
        wire.ip(&format!("link set {device} netns {}", self.bridge.name()))?;
        self.bridge.ip(&format!(
            "link set {device} mtu {} up",
            UNDERLAY_MTU - ENCAPSULATION
        ))?;
        Ok(Tunnel { device, wire })
    }
}

/// The way from the namespace `vpc` to the rebuilder, of one session. Gone on drop.
#[derive(Debug)]
pub struct Tunnel {
    /// The device in the namespace `vpc`: what is sent to it arrives at the rebuilder, encapsulated.
    pub device: String,
    /// Where its packets begin. Removing this namespace removes the device, too.
    pub wire: Namespace,
}

/// Attaches a device to a bridge and waits until that carries frames to it, which the kernel decides later, when it
/// has got round to noticing the link.
fn join(namespace: &Namespace, bridge: &str, device: &str) -> anyhow::Result<()> {
    namespace.ip(&format!("link set {device} master {bridge} up"))?;
    process::wait_for(
        &format!("the port {device}"),
        Duration::from_secs(10),
        || {
            let port = bridge_tool(namespace, &format!("link show dev {device}"))?;
            Ok(port.contains("state forwarding").then_some(()))
        },
    )
}

fn bridge_tool(namespace: &Namespace, arguments: &str) -> anyhow::Result<String> {
    process::run(
        Command::new("bridge")
            .args(["-n", namespace.name()])
            .args(arguments.split_whitespace()),
    )
}

fn mac_of(namespace: &Namespace, device: &str) -> anyhow::Result<String> {
    let links: serde_json::Value =
        serde_json::from_str(&namespace.ip(&format!("-j link show dev {device}"))?)?;
    let mac = links
        .pointer("/0/address")
        .and_then(serde_json::Value::as_str);
    mac.map(ToOwned::to_owned)
        .with_context(|| format!("{device}: no address"))
}

/// Makes a device send frames as a wire would: no segmentation left to hardware that is not there, real checksums.
/// Otherwise "frames" of up to 64 KiB are mirrored.
fn wire_size_frames(namespace: &Namespace, device: &str) -> anyhow::Result<()> {
    process::run(
        Command::new("ip")
            .args(["netns", "exec", namespace.name(), "ethtool", "-K", device])
            .args(["tso", "off", "gso", "off", "gro", "off", "tx", "off"]),
    )?;
    // TCP builds large segments in spite of that since Linux 4.17, and tc sees them before they are cut.
    namespace.ip(&format!("link set {device} gso_max_segs 1"))?;
    Ok(())
}

/// A device name of at most 15 bytes (`IFNAMSIZ`): the end of an id, where ids of one kind differ.
fn device_name(kind: char, id: &str) -> String {
    let end: String = id.chars().filter(char::is_ascii_alphanumeric).collect();
    format!(
        "{kind}{}",
        end.get(end.len().saturating_sub(13)..).unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_name_fits_and_keeps_the_end_of_the_id() {
        assert_eq!(device_name('p', "eni-0123456789abcdef0"), "p456789abcdef0");
        assert_eq!(device_name('p', "client"), "pclient");
        assert!(device_name('m', "tms-0123456789abcdef0").len() <= 15);
    }
}
