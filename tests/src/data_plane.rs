//! The part of the VPC that every story needs: a client, the rebuilder's host and the analyser's.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::network::{Host, Interface, Options, Vpc};
use crate::perturb::{Relay, Settings};
use crate::world::{Eni, Instance};

/// Addresses of the lab's own hosts lie in 172.31.240.0/20, where the emulator's default VPC has no subnet.
pub const CLIENT: [&str; 2] = ["172.31.240.10", "2001:db8:31::10"];
const REBUILDER: [&str; 2] = ["172.31.240.20", "2001:db8:31::20"];
/// Address of the analyser.
pub const ANALYSER: &str = "172.31.240.30";

/// The hosts that are there before any instance.
#[derive(Debug)]
pub struct DataPlane {
    /// Sends requests.
    pub client: Host,
    /// Where mirrored packets arrive.
    pub rebuilder: Arc<Host>,
    /// Where the analyser listens, at [`ANALYSER`].
    pub analyser: Host,
    /// Dropped last.
    pub vpc: Arc<Vpc>,
}

impl DataPlane {
    /// Makes the VPC and the three hosts.
    ///
    /// # Errors
    /// Without root, or where a tool is missing.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        let (plane, ()) = Self::with(options, Vpc::behind_the_load_balancer)?;
        Ok(plane)
    }

    /// The same with a [`Relay`] between the load balancer and the rebuilder.
    ///
    /// # Errors
    /// Without root, or where a tool is missing.
    pub fn perturbed(options: Options, settings: Settings) -> anyhow::Result<(Self, Relay)> {
        let (plane, between) = Self::with(options, Vpc::behind_a_relay)?;
        let relay = Relay::start(between, settings)?;
        Ok((plane, relay))
    }

    fn with<T>(
        options: Options,
        connect: impl FnOnce(&Vpc, &Host) -> anyhow::Result<T>,
    ) -> anyhow::Result<(Self, T)> {
        let vpc = Arc::new(Vpc::new(options)?);
        let client = vpc.host("client", &[Interface::new("client", &CLIENT)])?;
        let rebuilder = vpc.host("rebuilder", &[Interface::new("rebuilder", &REBUILDER)])?;
        let link = connect(&vpc, &rebuilder)?;
        let analyser = vpc.host("analyser", &[Interface::new("analyser", &[ANALYSER])])?;
        let plane = Self {
            client,
            rebuilder: Arc::new(rebuilder),
            analyser,
            vpc,
        };
        Ok((plane, link))
    }
}

/// An instance of a [`crate::world::Source::Static`] world, with one address of each family.
#[must_use]
pub fn instance(number: u8) -> Instance {
    Instance {
        id: format!("i-{number:017x}"),
        state: "running".to_owned(),
        asg: None,
        launched_at: crate::now(),
        tags: BTreeMap::from([("Mirror".to_owned(), "true".to_owned())]),
        enis: vec![Eni {
            id: format!("eni-{number:017x}"),
            device_index: 0,
            private_ip: format!("172.31.0.{number}"),
            ipv6: vec![format!("2001:db8:31::{number:x}:1")],
            mac: None,
        }],
    }
}
