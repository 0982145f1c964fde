//! A packet socket with a ring in memory that the kernel fills (packet(7), `TPACKET_V3`): no system call and no copy
//! by us for a packet.
//!
//! What was wanted is said by three programs and a socket:
//! - each worker has a packet socket for all interfaces, with a filter (`filter.rs`) that takes the datagrams to the
//!   VXLAN port which a UDP socket would get;
//! - the sockets are a fanout group, and its program (`steering.rs`) picks the worker by the inner connection. The
//!   kernel puts outer IPv4 fragments together before it asks;
//! - beneath them a UDP socket holds the port and refuses every datagram: a packet socket only watches, so the kernel
//!   would answer each with an ICMP error; and a second rebuilder is told that the port is taken.
//!
//! **When nothing waits.** The kernel gives a block when it is full, or some milliseconds after its first packet. So
//! packets may lie in a block that cannot be read yet, and flow time must not pass them. But how many there are stands
//! in the block from the moment the kernel makes room for the first, before it looks at the clock. So when the block
//! that will come next is still the kernel's and has none, everything that was stamped before has been read
//! ([`Left::Nothing`]); otherwise packets come soon ([`Left::Soon`]), and flow time goes on with their stamps.
//!
//! **Why blocks of 64 KiB.** A block that is given by age is gone for filling whatever is in it. So a worker that pauses
//! loses packets after (blocks × age) even where the link is almost quiet: 64 blocks of 1 MiB at 4 ms are a quarter of
//! a second, 1,024 of 64 KiB four seconds. And a worker that is behind has room for as much as it thinks only where
//! blocks fill before they are old: at 12,000 packets/s, 4 ms are some 60 kB.

mod block;
mod datagram;
mod filter;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use libc::{c_int, c_uint};
use socket2::{Domain, Socket, Type};

use self::block::{COUNT_AT, Cursor, Packet, STATUS_AT};
pub(super) use self::filter::nothing;
use super::sys::{Blocks, Words, bind_to_all, get_words, set_option, set_program};
use super::udp::{BindError, MAX_DATAGRAM, Reservation, link_type};
use super::{Drained, Few, Frame, Left, LinkType, steering};

/// What a worker's ring has, in bytes: at 300,000 packets/s, smaller than 8 MB lost some, 64 MB none.
pub const DEFAULT_RING: usize = 64 << 20;

/// The least that a ring can have, in bytes.
pub const LEAST_RING: usize = 1 << 20;

/// The most that a ring can have, in bytes: the kernel keeps the addresses of its blocks in one allocation.
pub const MOST_RING: usize = 64 << 30;

/// Bytes of a block; see the module documentation. A packet that is longer, as no wire has one, is cut to it.
const BLOCK: usize = 64 << 10;

/// How long after its first packet a block is given, if it is not full before.
pub const DEFAULT_RETIRE: Duration = Duration::from_millis(4);

/// How long a ring is left alone at most when all of it has been read. Each time the caches have forgotten the flows and the
/// program itself: on a quiet link that costs a packet more than what is done with it.
const LONGEST_PAUSE: Duration = Duration::from_millis(16);

/// What is taken for a fast link, in bytes a microsecond: 10 Gbit/s.
const FAST: usize = 1250;

/// What a ring is asked for in: the kernel wants to know a frame size, and `TPACKET_V3` makes no use of it.
const NOMINAL_FRAME: usize = 2048;

/// IP, UDP, and room for options: a packet longer than this with the longest datagram is no single packet of a wire.
const OUTER_HEADERS: usize = 100;

/// The longest packet that can have crossed a wire, in bytes from its IP header.
const LONGEST_PACKET: usize = MAX_DATAGRAM + OUTER_HEADERS;

const WORDS: Words = Words {
    status: STATUS_AT,
    packets: COUNT_AT,
};

/// `TPACKET_V3` of `linux/if_packet.h`, not among `libc`'s for every platform.
const TPACKET_V3: c_int = 2;

/// How a ring is set up.
#[derive(Clone, Copy, Debug)]
pub struct RingOptions {
    /// Bytes of a worker's ring, rounded down to whole blocks of 64 KiB; at least [`LEAST_RING`].
    pub bytes: usize,
    /// How long after its first packet a block is given, if it is not full before; whole milliseconds.
    pub retire: Duration,
}

impl Default for RingOptions {
    fn default() -> Self {
        Self {
            bytes: DEFAULT_RING,
            retire: DEFAULT_RETIRE,
        }
    }
}

/// One worker's ring.
#[derive(Debug)]
pub struct RingReceiver {
    // Before the socket, so that it goes first.
    blocks: Blocks,
    socket: Socket,
    /// Holds the port as long as any worker lives.
    reservation: Arc<Reservation>,
    link: LinkType,
    /// The block that is read, or comes next.
    current: usize,
    /// How far it has been read, once it is ours.
    cursor: Option<Cursor>,
    drops: u64,
    unreadable: u64,
    super_frames: u64,
}

/// Opens rings for `workers` receivers (at least one) of the datagrams to `addr`, fed like
/// [`super::udp::bind_group`]'s.
///
/// # Errors
/// The port is taken, packet sockets are not allowed (`CAP_NET_RAW`), or the rings do not fit into memory.
pub fn bind_group(
    addr: SocketAddr,
    workers: usize,
    options: &RingOptions,
) -> Result<Vec<RingReceiver>, BindError> {
    let reservation = Arc::new(Reservation::new(addr)?);
    let addr = reservation.local_addr();
    let at = |what| BindError::at(addr, what);
    let link = link_type(addr.port());
    let mut group: Vec<RingReceiver> = Vec::with_capacity(workers);
    let mut id = 0;
    for _ in 0..workers.max(1) {
        let receiver = RingReceiver::open(&reservation, options)?;
        id = join(&receiver.socket, id).map_err(at("joining the fanout group"))?;
        group.push(receiver);
    }
    if let Some(first) = group.first() {
        let workers = u32::try_from(group.len()).unwrap_or(u32::MAX);
        set_program(
            &first.socket,
            libc::SOL_PACKET,
            libc::PACKET_FANOUT_DATA,
            steering::packet_program(workers, link),
        )
        .map_err(at("steering connections to workers"))?;
    }
    // Until now they have refused everything.
    for receiver in &group {
        attach(&receiver.socket, filter::datagrams(addr)).map_err(at("attaching its filter"))?;
    }
    Ok(group)
}

fn pause_of(bytes: usize) -> Duration {
    let filled = u64::try_from(bytes / 3 / FAST).unwrap_or(u64::MAX);
    Duration::from_micros(filled).clamp(DEFAULT_RETIRE, LONGEST_PAUSE)
}

fn attach(socket: &Socket, program: Vec<libc::sock_filter>) -> io::Result<()> {
    set_program(socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, program)
}

/// Joins the fanout group `id`, or makes one where that is 0. The group's id.
///
/// Also for a single worker, because the kernel puts fragments together for groups only.
fn join(socket: &Socket, id: c_uint) -> io::Result<c_uint> {
    let mut kind = libc::PACKET_FANOUT_CBPF
        | libc::PACKET_FANOUT_FLAG_DEFRAG
        // The group's, whatever its members have said.
        | libc::PACKET_FANOUT_FLAG_IGNORE_OUTGOING;
    if id == 0 {
        kind |= libc::PACKET_FANOUT_FLAG_UNIQUEID;
    }
    set_option(
        socket,
        libc::SOL_PACKET,
        libc::PACKET_FANOUT,
        &(kind << 16 | id),
    )?;
    let [group] = get_words(socket, libc::SOL_PACKET, libc::PACKET_FANOUT)?;
    Ok(group & 0xffff)
}

impl RingReceiver {
    /// A ring that refuses everything.
    fn open(reservation: &Arc<Reservation>, options: &RingOptions) -> Result<Self, BindError> {
        let addr = reservation.local_addr();
        let at = |what| BindError::at(addr, what);
        // Protocol 0: it receives nothing before it is bound.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None).map_err(|source| {
            if source.kind() == io::ErrorKind::PermissionDenied {
                BindError::NoPacketSocket { addr }
            } else {
                at("opening a packet socket")(source)
            }
        })?;
        let on: c_int = 1;
        let packet = libc::SOL_PACKET;
        set_option(&socket, packet, libc::PACKET_IGNORE_OUTGOING, &on)
            .map_err(at("leaving out what this machine sends"))?;
        set_option(&socket, packet, libc::PACKET_VERSION, &TPACKET_V3)
            .map_err(at("choosing TPACKET_V3"))?;
        attach(&socket, nothing()).map_err(at("attaching its filter"))?;
        let count = options.bytes.max(LEAST_RING) / BLOCK;
        let whole = |n: usize| c_uint::try_from(n).unwrap_or(c_uint::MAX);
        let request = libc::tpacket_req3 {
            tp_block_size: whole(BLOCK),
            tp_block_nr: whole(count),
            tp_frame_size: whole(NOMINAL_FRAME),
            tp_frame_nr: whole(count.saturating_mul(BLOCK / NOMINAL_FRAME)),
            tp_retire_blk_tov: c_uint::try_from(options.retire.as_millis()).unwrap_or(c_uint::MAX),
            tp_sizeof_priv: 0,
            tp_feature_req_word: 0,
        };
        let no_room = |source| BindError::NoRing {
            addr,
            bytes: count.saturating_mul(BLOCK),
            source,
        };
        set_option(&socket, packet, libc::PACKET_RX_RING, &request).map_err(no_room)?;
        let blocks = Blocks::map(&socket, BLOCK, count, WORDS).map_err(no_room)?;
        bind_to_all(&socket).map_err(at("binding the packet socket"))?;
        Ok(Self {
            blocks,
            socket,
            reservation: Arc::clone(reservation),
            link: link_type(addr.port()),
            current: 0,
            cursor: None,
            drops: 0,
            unreadable: 0,
            super_frames: 0,
        })
    }

    /// Where it listens; with port 0 asked for, the one that the system chose.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.reservation.local_addr()
    }

    /// Hands over what waits, at most `budget` datagrams, never blocking; it may stop inside a block and goes on there.
    /// A frame's time is the kernel's, of its arrival.
    pub fn drain(&mut self, budget: usize, mut f: impl FnMut(Frame<'_>)) -> Drained {
        self.drain_few(budget, |frames| frames.iter().copied().for_each(&mut f))
    }

    /// The same, some frames at a time: as many as are in memory together, [`FEW`](super::FEW) at most.
    pub fn drain_few(&mut self, budget: usize, mut f: impl FnMut(&[Frame<'_>])) -> Drained {
        let port = self.local_addr().port();
        let mut datagrams = 0;
        loop {
            let Some(block) = self.blocks.get(self.current) else {
                return Drained {
                    datagrams,
                    left: self.left_in_open_block(),
                };
            };
            let cursor = self.cursor.get_or_insert_with(|| Cursor::new(block));
            let mut few = Few::default();
            while datagrams < budget
                && let Some(packet) = cursor.next(block)
            {
                datagrams += 1;
                self.super_frames += u64::from(is_super_frame(&packet));
                few.push(frame(&packet, port, self.link), &mut f);
            }
            few.give(&mut f);
            if datagrams >= budget && cursor.left() > 0 {
                return Drained {
                    datagrams,
                    left: Left::More,
                };
            }
            self.unreadable += u64::from(cursor.left());
            self.cursor = None;
            self.blocks.give_back(self.current);
            self.current = (self.current + 1) % self.blocks.count();
        }
    }

    /// How long to leave it alone when all of it has been read: no longer than a fast link takes to fill a third of it,
    /// but as long as a block takes to be given.
    #[must_use]
    pub fn pause(&self) -> Duration {
        pause_of(self.blocks.count() * BLOCK)
    }

    /// Takes nothing more; what was taken can still be read.
    pub fn refuse(&mut self) {
        // It cannot fail with a program that it has taken before.
        let _ = attach(&self.socket, nothing());
    }

    /// The block that comes next is the kernel's: whether there is anything in it.
    fn left_in_open_block(&self) -> Left {
        if self.blocks.packets(self.current) == 0 {
            Left::Nothing
        } else {
            Left::Soon
        }
    }

    /// Packets that found the ring full, since it was opened.
    pub fn kernel_drops(&mut self) -> u64 {
        // struct tpacket_stats_v3: packets, drops, freezes. Reading sets them to zero.
        if let Ok([_, drops, _]) =
            get_words(&self.socket, libc::SOL_PACKET, libc::PACKET_STATISTICS)
        {
            self.drops += u64::from(drops);
        }
        self.drops + self.unreadable
    }

    /// Packets that were several ones of the wire: put together by a card or by the kernel (GRO), or not cut to size
    /// yet (GSO), which a mirror in a virtual network can meet. Of one that holds several datagrams only the first can
    /// be read.
    #[must_use]
    pub fn super_frames(&self) -> u64 {
        self.super_frames
    }

    /// The share (0 to 1) of the ring that waits to be read.
    #[must_use]
    #[allow(
        clippy::cast_precision_loss,
        reason = "a share of some thousand blocks"
    )]
    pub fn fill(&self) -> f64 {
        let count = self.blocks.count();
        let ahead = (0..count).map(|n| (self.current + n) % count);
        let waiting = ahead
            .take_while(|&block| self.blocks.is_ours(block))
            .count();
        waiting as f64 / count as f64
    }
}

/// The datagram in a packet, as a UDP socket on `port` would give it.
fn frame<'a>(packet: &Packet<'a>, port: u16, link: LinkType) -> Frame<'a> {
    Frame {
        ts: packet.ts,
        link,
        data: datagram::payload(packet.ethertype, port, packet.data),
    }
}

/// See [`RingReceiver::super_frames`].
fn is_super_frame(packet: &Packet<'_>) -> bool {
    packet.segmented || packet.len > LONGEST_PACKET
}

/// What a ring on `port` hands over of a block that the kernel has written: each datagram, and whether it came in a
/// packet that was several ones of the wire. The number of packets that could not be read.
#[cfg(feature = "fuzzing")]
pub fn walk<'a>(block: &'a [u8], port: u16, mut f: impl FnMut(Frame<'a>, bool)) -> u32 {
    let mut cursor = Cursor::new(block);
    while let Some(packet) = cursor.next(block) {
        f(
            frame(&packet, port, link_type(port)),
            is_super_frame(&packet),
        );
    }
    cursor.left()
}

#[cfg(test)]
mod tests;
