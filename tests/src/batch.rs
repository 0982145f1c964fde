//! Many packets with one system call, for measurements: frames to a device, datagrams from a socket.

use std::fs::File;
use std::io;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use crate::netns::Namespace;
use crate::sys;

/// What a device is asked again after, where it takes no more.
const BREATH: Duration = Duration::from_micros(50);

/// A device that whole frames are written to.
#[derive(Debug)]
pub struct Link(File);

impl Link {
    /// The device `name` of a namespace.
    ///
    /// # Errors
    /// Where there is none, or without `CAP_NET_RAW`.
    pub fn open(namespace: &Namespace, name: &str) -> io::Result<Self> {
        let path = format!("/sys/class/net/{name}/ifindex");
        let out = namespace.command("cat").arg(path).output()?;
        let index = String::from_utf8_lossy(&out.stdout).trim().parse();
        let index: u32 = index.map_err(|_| io::Error::other(format!("{name}: no such device")))?;
        let socket =
            namespace.run(|| sys::packet_socket(index, false, 0, Duration::from_secs(1)))??;
        sys::bypass_queue(&socket)?;
        Ok(Self(socket))
    }

    /// Sends all of them, each with its Ethernet header.
    ///
    /// # Errors
    /// What the kernel says; that its queue is full is waited for.
    pub fn send(&self, mut frames: &[&[u8]]) -> io::Result<()> {
        while !frames.is_empty() {
            match sys::send_all(&self.0, frames) {
                Ok(sent) => frames = frames.get(sent..).unwrap_or_default(),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => thread::sleep(BREATH),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Room for many datagrams at once.
pub struct Buffers(sys::Buffers);

impl Buffers {
    /// So many, of so many bytes each.
    #[must_use]
    pub fn new(count: usize, size: usize) -> Self {
        Self(sys::Buffers::new(count, size))
    }

    /// Waits for a datagram, and takes all that wait with it (recvmmsg(2)): the length of each.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn receive(&mut self, socket: &UdpSocket) -> io::Result<impl Iterator<Item = usize>> {
        self.0.receive(socket)
    }
}

/// Lets a socket hold so many bytes, whatever the system's limit is.
///
/// # Errors
/// What the kernel says; `EPERM` without `CAP_NET_ADMIN`.
pub fn force_receive_buffer(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    sys::force_receive_buffer(socket, bytes)
}
