//! A UDP socket on the VXLAN port, read in batches.
//!
//! `recvmmsg` takes 64 datagrams a call; the worker calls [`UdpReceiver::drain`] on a timer of a millisecond or
//! more, since a wake-up for each datagram costs more than its reading. Several workers share the port, each with a
//! socket of its own; the kernel hands every inner connection to one of them (see `steering.rs`).

use std::io;
use std::mem::{size_of, zeroed};
use std::net::SocketAddr;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use super::sys::{get_words, set_option, set_program};
use super::{Drained, Few, Frame, Left, LinkType, ring, steering};
use crate::time::Timestamp;

/// What is asked of the kernel for a socket's queue, in bytes: at 300,000 packets/s, smaller than 8 MB lost some,
/// 64 MB none.
pub const DEFAULT_RECEIVE_BUFFER: usize = 64 << 20;

/// Where the kernel grants less than this (bytes), loss is to be expected under load, and an operator should know.
pub const SCANT_RECEIVE_BUFFER: usize = 8 << 20;

/// The longest datagram that is taken whole, in bytes: a mirrored packet has 8,500 at most, a VPC's MTU is 9,001.
pub const MAX_DATAGRAM: usize = 9_600;

/// Datagrams a system call.
const BATCH: usize = 64;

/// Room for the control messages of a datagram, in bytes: one of 16 for the time, in a frame of 16.
const CONTROL: usize = 64;

/// Where a Gateway Load Balancer sends (RFC 8926 §3.3): datagrams to this port are GENEVE, those to any other VXLAN.
const GENEVE_PORT: u16 = 6081;

/// What datagrams to `port` begin with.
pub(super) fn link_type(port: u16) -> LinkType {
    match port {
        GENEVE_PORT => LinkType::Geneve,
        _ => LinkType::Vxlan,
    }
}

/// What the kernel tells of a socket's memory (`SK_MEMINFO_…`): the drops are the last of it.
const MEMORY_WORDS: usize = libc::SK_MEMINFO_DROPS as usize + 1;

/// How a receiver is set up.
#[derive(Clone, Copy, Debug)]
pub struct UdpOptions {
    /// What to ask for as `SO_RCVBUF`, in bytes. See [`UdpReceiver::receive_buffer`] for what was granted.
    pub receive_buffer: usize,
}

impl Default for UdpOptions {
    fn default() -> Self {
        Self {
            receive_buffer: DEFAULT_RECEIVE_BUFFER,
        }
    }
}

/// Why the port could not be opened. Each is one line: the address, the reason, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another socket has it.
    #[error(
        "UDP {addr}: the port is in use; stop the process that holds it (`ss -ulpn` names it) or choose another \
         with --listen"
    )]
    PortInUse {
        /// What was asked for.
        addr: SocketAddr,
    },
    /// The system does not let this user have it.
    #[error(
        "UDP {addr}: not permitted; a port below 1024 needs root or CAP_NET_BIND_SERVICE, or choose another with \
         --listen"
    )]
    NoPermission {
        /// What was asked for.
        addr: SocketAddr,
    },
    /// No interface of this machine has the address.
    #[error(
        "UDP {addr}: no interface has this address; choose one that `ip address` shows, or 0.0.0.0, with --listen"
    )]
    NoSuchAddress {
        /// What was asked for.
        addr: SocketAddr,
    },
    /// Packet sockets are for privileged processes.
    #[error(
        "UDP {addr}: a packet ring is not permitted; give the process CAP_NET_RAW, or choose --receive socket"
    )]
    NoPacketSocket {
        /// What was asked for.
        addr: SocketAddr,
    },
    /// The kernel has no memory for a ring.
    #[error(
        "UDP {addr}: no packet ring of {bytes} bytes for each worker: {source}; choose fewer with --ring-bytes, or \
         --receive socket"
    )]
    NoRing {
        /// What was asked for.
        addr: SocketAddr,
        /// Its size.
        bytes: usize,
        /// What the system says.
        source: io::Error,
    },
    /// Anything else.
    #[error(
        "UDP {addr}: cannot listen: {what}: {source}; check --listen and what this kernel allows"
    )]
    Other {
        /// What was asked for.
        addr: SocketAddr,
        /// The step that failed.
        what: &'static str,
        /// What the system says.
        source: io::Error,
    },
}

impl BindError {
    pub(super) fn at(addr: SocketAddr, what: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| match source.kind() {
            io::ErrorKind::AddrInUse => Self::PortInUse { addr },
            io::ErrorKind::PermissionDenied => Self::NoPermission { addr },
            io::ErrorKind::AddrNotAvailable => Self::NoSuchAddress { addr },
            _ => Self::Other { addr, what, source },
        }
    }
}

/// A count that the kernel keeps in 32 bits, continued in 64.
#[derive(Clone, Copy, Debug, Default)]
struct Wrapping {
    last: u32,
    total: u64,
}

impl Wrapping {
    fn update(&mut self, now: u32) -> u64 {
        self.total += u64::from(now.wrapping_sub(self.last));
        self.last = now;
        self.total
    }
}

/// Where a datagram of the batch ends and when it came.
#[derive(Clone, Copy, Default)]
struct Arrived {
    len: usize,
    ts: Option<Timestamp>,
}

/// One worker's socket.
pub struct UdpReceiver {
    socket: Socket,
    addr: SocketAddr,
    receive_buffer: usize,
    drops: Wrapping,
    truncated: u64,
    /// [`BATCH`] times [`MAX_DATAGRAM`].
    buffers: Box<[u8]>,
    /// [`BATCH`] times [`CONTROL`].
    controls: Box<[u8]>,
    arrived: Box<[Arrived; BATCH]>,
}

impl std::fmt::Debug for UdpReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UdpReceiver")
            .field("addr", &self.addr)
            .field("receive_buffer", &self.receive_buffer)
            .finish_non_exhaustive()
    }
}

/// Opens `addr` for `workers` receivers (at least one), which the kernel feeds by inner connection: both directions,
/// and each further mirrored copy, reach the receiver of the same index. With port 0 the system chooses one, the
/// same for all.
///
/// # Errors
/// The port is taken (also by a second program of the same user, although the port is shared between workers), the
/// system refuses, or the address is not of this machine.
pub fn bind_group(
    addr: SocketAddr,
    workers: usize,
    options: &UdpOptions,
) -> Result<Vec<UdpReceiver>, BindError> {
    // The first binds for itself alone, which fails if anybody else is there, and opens the port to the others
    // only then.
    let first = UdpReceiver::bind(addr, false, options)?;
    let addr = first.addr;
    let mut group = vec![first];
    if workers > 1 {
        if let Some(first) = group.first() {
            first
                .socket
                .set_reuse_port(true)
                .map_err(BindError::at(addr, "sharing the port between workers"))?;
        }
        for _ in 1..workers {
            group.push(UdpReceiver::bind(addr, true, options)?);
        }
        // Any member will do; the last one certainly joined a group.
        if let Some(last) = group.last() {
            steer(&last.socket, workers, link_type(addr.port()))
                .map_err(BindError::at(addr, "steering connections to workers"))?;
        }
    }
    Ok(group)
}

/// Attaches the program that picks the worker.
fn steer(socket: &Socket, workers: usize, link: LinkType) -> io::Result<()> {
    let workers = u32::try_from(workers).map_err(io::Error::other)?;
    set_program(
        socket,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_REUSEPORT_CBPF,
        steering::program(workers, link),
    )
}

/// Asks for the buffer beyond `net.core.rmem_max` first, which needs `CAP_NET_ADMIN`.
fn size_buffer(socket: &Socket, size: usize) -> io::Result<usize> {
    let wanted = libc::c_int::try_from(size).unwrap_or(libc::c_int::MAX / 2);
    if set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &wanted).is_err() {
        socket.set_recv_buffer_size(size)?;
    }
    // The kernel doubles what is asked for, to account for its own bookkeeping, and tells the doubled figure
    // (socket(7)).
    Ok(socket.recv_buffer_size()? / 2)
}

/// A socket that takes the datagrams to `addr` once it is bound; `[::]` stands for IPv4 too.
fn open(addr: SocketAddr) -> Result<Socket, BindError> {
    let at = |what| BindError::at(addr, what);
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM, Some(Protocol::UDP))
        .map_err(at("opening a socket"))?;
    if addr.is_ipv6() {
        socket
            .set_only_v6(false)
            .map_err(at("taking IPv4 and IPv6"))?;
    }
    Ok(socket)
}

/// The address that it is bound to.
fn bind(socket: &Socket, addr: SocketAddr) -> Result<SocketAddr, BindError> {
    let at = |what| BindError::at(addr, what);
    socket.bind(&addr.into()).map_err(at("binding"))?;
    let bound = socket
        .local_addr()
        .map_err(at("asking for its address"))?
        .as_socket();
    Ok(bound.unwrap_or(addr))
}

/// A port that is held by a socket which takes nothing, so that nobody else has it and the kernel does not answer what
/// comes to it by ICMP. What it refuses counts as its drops and as `InErrors` of UDP (`/proc/net/snmp`): no loss.
#[derive(Debug)]
pub(super) struct Reservation {
    _socket: Socket,
    addr: SocketAddr,
}

impl Reservation {
    /// # Errors
    /// The port is taken, the system refuses, or the address is not of this machine.
    pub(super) fn new(addr: SocketAddr) -> Result<Self, BindError> {
        let socket = open(addr)?;
        set_program(
            &socket,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            ring::nothing(),
        )
        .map_err(BindError::at(addr, "attaching its filter"))?;
        let addr = bind(&socket, addr)?;
        Ok(Self {
            _socket: socket,
            addr,
        })
    }

    /// Where it is; with port 0 asked for, the one that the system chose.
    pub(super) fn local_addr(&self) -> SocketAddr {
        self.addr
    }
}

impl UdpReceiver {
    fn bind(addr: SocketAddr, shared: bool, options: &UdpOptions) -> Result<Self, BindError> {
        let at = |what| BindError::at(addr, what);
        let socket = open(addr)?;
        if shared {
            socket
                .set_reuse_port(true)
                .map_err(at("sharing the port between workers"))?;
        }
        let receive_buffer =
            size_buffer(&socket, options.receive_buffer).map_err(at("sizing its buffer"))?;
        let on: libc::c_int = 1;
        set_option(&socket, libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, &on)
            .map_err(at("asking for time stamps"))?;
        socket
            .set_nonblocking(true)
            .map_err(at("making it non-blocking"))?;
        let addr = bind(&socket, addr)?;
        Ok(Self {
            socket,
            addr,
            receive_buffer,
            drops: Wrapping::default(),
            truncated: 0,
            buffers: vec![0; BATCH * MAX_DATAGRAM].into_boxed_slice(),
            controls: vec![0; BATCH * CONTROL].into_boxed_slice(),
            arrived: Box::new([Arrived::default(); BATCH]),
        })
    }

    /// Where it listens; with port 0 asked for, the one that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// The bytes that the kernel really queues for it. Below [`SCANT_RECEIVE_BUFFER`] it deserves a warning: raise
    /// `net.core.rmem_max` or grant `CAP_NET_ADMIN`.
    #[must_use]
    pub fn receive_buffer(&self) -> usize {
        self.receive_buffer
    }

    /// Hands over what waits, at most `budget` datagrams, never blocking. A frame's time is the kernel's, of its
    /// arrival; `now` where the kernel gave none.
    ///
    /// # Errors
    /// What the system says; the receiver stays usable.
    pub fn drain(
        &mut self,
        budget: usize,
        now: Timestamp,
        mut f: impl FnMut(Frame<'_>),
    ) -> io::Result<Drained> {
        self.drain_few(budget, now, |frames| {
            frames.iter().copied().for_each(&mut f);
        })
    }

    /// The same, some frames at a time: as many as one system call gave, [`FEW`](super::FEW) at most.
    ///
    /// # Errors
    /// As [`Self::drain`].
    pub fn drain_few(
        &mut self,
        budget: usize,
        now: Timestamp,
        mut f: impl FnMut(&[Frame<'_>]),
    ) -> io::Result<Drained> {
        let mut datagrams = 0;
        let link = link_type(self.addr.port());
        while datagrams < budget {
            let want = BATCH.min(budget - datagrams);
            let got = self.receive(want)?;
            let buffers = self.buffers.chunks_exact(MAX_DATAGRAM);
            let mut few = Few::default();
            for (buffer, arrived) in buffers.zip(self.arrived.iter()).take(got) {
                let frame = Frame {
                    ts: arrived.ts.unwrap_or(now),
                    link,
                    data: buffer.get(..arrived.len).unwrap_or(buffer),
                };
                few.push(frame, &mut f);
            }
            few.give(&mut f);
            datagrams += got;
            if got < want {
                return Ok(Drained {
                    datagrams,
                    left: Left::Nothing,
                });
            }
        }
        Ok(Drained {
            datagrams,
            left: Left::More,
        })
    }

    /// One system call: fills the first buffers and `arrived`, and tells how many.
    fn receive(&mut self, want: usize) -> io::Result<usize> {
        // SAFETY: all-zero bytes are a valid value of both: null pointers and zero lengths.
        let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        let buffers = self.buffers.chunks_exact_mut(MAX_DATAGRAM);
        let controls = self.controls.chunks_exact_mut(CONTROL);
        for (((buffer, control), vector), header) in
            buffers.zip(controls).zip(&mut vectors).zip(&mut headers)
        {
            vector.iov_base = buffer.as_mut_ptr().cast();
            vector.iov_len = buffer.len();
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = control.len() as _;
        }
        let want = libc::c_uint::try_from(want.min(BATCH)).unwrap_or(0);
        let got = loop {
            // SAFETY: the first `want` headers were filled in above. Each points to one iovec in `vectors`, to a
            // buffer and to a control buffer that no other one points to, all three of the stated length, alive and
            // not otherwise used until the call returns.
            let got = unsafe {
                libc::recvmmsg(
                    self.socket.as_raw_fd(),
                    headers.as_mut_ptr(),
                    want,
                    libc::MSG_DONTWAIT as _,
                    std::ptr::null_mut(),
                )
            };
            if let Ok(got) = usize::try_from(got) {
                break got;
            }
            let e = io::Error::last_os_error();
            match e.kind() {
                io::ErrorKind::WouldBlock => break 0,
                io::ErrorKind::Interrupted => {}
                _ => return Err(e),
            }
        };
        let controls = self.controls.chunks_exact(CONTROL);
        for ((header, control), arrived) in headers
            .iter()
            .zip(controls)
            .zip(self.arrived.iter_mut())
            .take(got)
        {
            if header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0 {
                self.truncated += 1;
            }
            #[allow(
                clippy::unnecessary_cast,
                reason = "glibc says usize, musl says socklen_t"
            )]
            let written = header.msg_hdr.msg_controllen as usize;
            *arrived = Arrived {
                len: usize::try_from(header.msg_len).unwrap_or(MAX_DATAGRAM),
                ts: control.get(..written).and_then(kernel_time),
            };
        }
        Ok(got)
    }

    /// Datagrams that the kernel had no room for, since the socket was opened. (Also those it refused for a wrong
    /// checksum; AWS sends none.)
    pub fn kernel_drops(&mut self) -> u64 {
        match self.memory() {
            Ok(words) => self.drops.update(words[libc::SK_MEMINFO_DROPS as usize]),
            Err(_) => self.drops.total,
        }
    }

    /// The share (0 to 1) of the receive buffer that waits to be read.
    #[must_use]
    pub fn fill(&self) -> f64 {
        self.memory().map_or(0.0, |words| {
            let used = words[libc::SK_MEMINFO_RMEM_ALLOC as usize];
            let whole = words[libc::SK_MEMINFO_RCVBUF as usize];
            (f64::from(used) / f64::from(whole.max(1))).min(1.0)
        })
    }

    fn memory(&self) -> io::Result<[u32; MEMORY_WORDS]> {
        get_words(&self.socket, libc::SOL_SOCKET, libc::SO_MEMINFO)
    }

    /// Datagrams longer than [`MAX_DATAGRAM`]; each was handed over as far as it was taken, so that decoding finds a
    /// hole of known length.
    #[must_use]
    pub fn truncated(&self) -> u64 {
        self.truncated
    }
}

/// The time in a control message of type `SCM_TIMESTAMPNS`: a `timespec` behind a `cmsghdr`.
fn kernel_time(control: &[u8]) -> Option<Timestamp> {
    // cmsghdr: the length (a size_t), the level, the type. musl splits the length in two halves of which one is
    // padding; on the little-endian machines that we build for, both read the same.
    let (_len, rest) = control.split_first_chunk::<{ size_of::<usize>() }>()?;
    let (level, rest) = rest.split_first_chunk()?;
    let (kind, rest) = rest.split_first_chunk()?;
    if i32::from_ne_bytes(*level) != libc::SOL_SOCKET
        || i32::from_ne_bytes(*kind) != libc::SCM_TIMESTAMPNS
    {
        return None;
    }
    let (seconds, rest) = rest.split_first_chunk()?;
    let (nanos, _) = rest.split_first_chunk()?;
    let seconds = u64::try_from(i64::from_ne_bytes(*seconds)).ok()?;
    let nanos = u64::try_from(i64::from_ne_bytes(*nanos)).ok()?;
    Some(Timestamp(
        seconds.checked_mul(1_000_000_000)?.checked_add(nanos)?,
    ))
}

#[cfg(test)]
mod tests;
