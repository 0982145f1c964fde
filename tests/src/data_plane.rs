//! What every story begins with: a client, the rebuilder's host and the analyser's, and mirrored web servers.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;

use crate::fabric::session::http_session;
use crate::network::{Host, Interface, Options, Vpc};
use crate::nginx::Entry;
use crate::perturb::{Relay, Settings};
use crate::process::wait_for;
use crate::rebuilder::{Rebuilder, binary};
use crate::world::{Eni, Instance, Snapshot, Source, World};

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

    /// Starts a rebuilder that forwards to this port of the analyser's host.
    ///
    /// # Errors
    /// Where it does not take traffic.
    pub fn rebuild(&self, port: u16, flags: &[&str]) -> anyhow::Result<Rebuilder> {
        Rebuilder::start(
            &self.rebuilder,
            &binary()?,
            self.vpc.directory(),
            &format!("http://{ANALYSER}:{port}"),
            flags,
        )
    }

    /// Boots the instances of a cloud that nobody but the test changes, and waits until all of its sessions mirror.
    ///
    /// # Errors
    /// Where they do not within 30 seconds.
    pub fn mirrored(&self, cloud: &Arc<Mutex<Snapshot>>) -> anyhow::Result<World> {
        let sessions = cloud
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .sessions
            .len();
        let world = World::start(&self.vpc, Source::Static(Arc::clone(cloud)), |_| true)?;
        wait_for("every session mirrors", Duration::from_secs(30), || {
            Ok((world.sessions().len() == sessions).then_some(()))
        })
        .with_context(|| world.failure().unwrap_or_default())?;
        Ok(world)
    }

    /// One web server, mirrored on port 80.
    ///
    /// # Errors
    /// Where it does not start, or is not mirrored.
    pub fn web(&self) -> anyhow::Result<Web> {
        let instance = instance(1);
        let cloud = Arc::new(Mutex::new(Snapshot {
            sessions: vec![http_session(Web::SESSION, instance.primary_eni(), 1, &[80])],
            instances: vec![instance.clone()],
            ..Snapshot::default()
        }));
        Ok(Web {
            servers: servers(&instance)?,
            world: self.mirrored(&cloud)?,
            instance,
            cloud,
        })
    }
}

/// An instance whose nginx answers on port 80, and the session that mirrors it.
#[derive(Debug)]
pub struct Web {
    /// Where nginx listens: IPv4, IPv6.
    pub servers: [SocketAddr; 2],
    instance: Instance,
    world: World,
    cloud: Arc<Mutex<Snapshot>>,
}

impl Web {
    const SESSION: &str = "tms-1";

    /// What nginx has logged.
    ///
    /// # Errors
    /// Where its log cannot be read.
    pub fn access_log(&self) -> anyhow::Result<Vec<Entry>> {
        self.world.access_log(&self.instance.id)
    }

    /// Packets mirrored so far.
    ///
    /// # Errors
    /// Where the session is deleted.
    pub fn packets(&self) -> anyhow::Result<u64> {
        self.world.packets_of(Self::SESSION)
    }

    /// Deletes the session, and waits until the copying has stopped.
    ///
    /// # Errors
    /// Where it has not within five seconds.
    pub fn delete_session(&self) -> anyhow::Result<()> {
        let mut cloud = self.cloud.lock().unwrap_or_else(PoisonError::into_inner);
        cloud.sessions.clear();
        drop(cloud);
        wait_for("the session's end", Duration::from_secs(5), || {
            Ok(self.world.sessions().is_empty().then_some(()))
        })
    }
}

/// Where the nginx of an instance listens: IPv4, IPv6.
///
/// # Errors
/// Where its first interface has not both, as those of [`instance`] have.
pub fn servers(instance: &Instance) -> anyhow::Result<[SocketAddr; 2]> {
    let eni = instance.enis.first().context("no interface")?;
    let ipv6 = eni.ipv6.first().context("no IPv6 address")?;
    Ok([
        SocketAddr::new(eni.private_ip.parse()?, 80),
        SocketAddr::new(ipv6.parse()?, 80),
    ])
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
