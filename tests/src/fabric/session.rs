//! Mirror sessions as the emulated AWS shows them.

use serde::Deserialize;

/// One traffic mirror session.
#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Session {
    /// `tms-…`.
    pub id: String,
    /// The mirrored interface.
    pub eni: String,
    /// 1 to 32766; the lowest number of an interface takes a packet first, and a packet is mirrored once.
    pub number: u16,
    /// The VXLAN network identifier.
    pub vni: u32,
    /// Bytes of each frame to mirror, Ethernet header included; `None` is all of it.
    pub packet_length: Option<u32>,
    /// When it was created, in seconds since the epoch.
    #[serde(default)]
    pub created_at: f64,
    /// Where copies go.
    pub target: Target,
    /// What is mirrored.
    pub filter: Filter,
}

/// Where copies go. Exactly one of the two is set.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Target {
    /// `tmt-…`.
    pub id: String,
    /// A network load balancer. The lab's leads to the rebuilder.
    pub nlb_arn: Option<String>,
    /// An interface.
    pub eni: Option<String>,
}

/// What is mirrored. An empty filter mirrors nothing.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Filter {
    /// `tmf-…`.
    pub id: String,
    /// For frames to the instance.
    pub ingress: Vec<Rule>,
    /// For frames from the instance.
    pub egress: Vec<Rule>,
}

/// One rule; the lowest number that matches decides.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Rule {
    /// Its place in the order.
    pub number: u32,
    /// Whether what matches is mirrored.
    pub action: Action,
    /// The IP protocol number; `None` is every protocol.
    pub protocol: Option<u8>,
    /// Source network, IPv4 or IPv6.
    pub source_cidr: String,
    /// Destination network, of the same family.
    pub destination_cidr: String,
    /// First and last source port; `None` is every port.
    pub source_ports: Option<(u16, u16)>,
    /// First and last destination port; `None` is every port.
    pub destination_ports: Option<(u16, u16)>,
}

/// What happens to a packet that a rule matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It is mirrored.
    Accept,
    /// It is not.
    Reject,
}

/// The session that the stack of this repository makes by default: TCP to these ports, both families, whole packets.
#[must_use]
pub fn http_session(id: &str, eni: &str, number: u16, ports: &[u16]) -> Session {
    let mut ingress = Vec::new();
    for &port in ports {
        for (source, destination) in [("0.0.0.0/0", "0.0.0.0/0"), ("::/0", "::/0")] {
            ingress.push(Rule {
                number: u32::try_from(ingress.len()).unwrap_or(u32::MAX) + 1,
                action: Action::Accept,
                protocol: Some(6),
                source_cidr: source.to_owned(),
                destination_cidr: destination.to_owned(),
                source_ports: None,
                destination_ports: Some((port, port)),
            });
        }
    }
    Session {
        id: id.to_owned(),
        eni: eni.to_owned(),
        number,
        vni: 4789,
        packet_length: Some(8500),
        created_at: 0.0,
        target: Target {
            id: "tmt-static".to_owned(),
            nlb_arn: Some("static".to_owned()),
            eni: None,
        },
        filter: Filter {
            id: "tmf-static".to_owned(),
            ingress,
            egress: Vec::new(),
        },
    }
}
