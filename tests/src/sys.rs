//! The few system calls that the standard library does not offer. The only module of this crate with `unsafe`.

use std::fs::File;
use std::io;
use std::mem;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Moves the calling thread into a network namespace (setns(2)).
///
/// # Errors
/// What the kernel says; `EPERM` without `CAP_SYS_ADMIN`.
pub(crate) fn enter_network_namespace(ns: &File) -> io::Result<()> {
    // SAFETY: setns takes a descriptor, which `ns` keeps open, and a constant; it touches no memory of ours.
    check(unsafe { libc::setns(ns.as_raw_fd(), libc::CLONE_NEWNET) })?;
    Ok(())
}

/// Sends `signal` to every process of the group `pgid`, which the caller has started.
pub(crate) fn signal_group(pgid: u32, signal: i32) {
    if let Ok(pgid) = i32::try_from(pgid)
        && pgid > 1
    {
        // SAFETY: kill takes two integers. A group that is gone gives ESRCH, which is what was wanted.
        unsafe { libc::kill(-pgid, signal) };
    }
}

/// Sends `signal` to one process.
pub(crate) fn signal_process(pid: u32, signal: i32) {
    if let Ok(pid) = i32::try_from(pid)
        && pid > 1
    {
        // SAFETY: as in `signal_group`.
        unsafe { libc::kill(pid, signal) };
    }
}

/// Whether the process runs as root.
pub(crate) fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// A socket that reads every frame coming in on the device `ifindex` of the calling thread's network namespace, or
/// (`listen` false) only writes frames to it (packet(7)). One read or write is one frame with its Ethernet header.
/// A read waits for `patience` at most, then it is [`io::ErrorKind::WouldBlock`].
///
/// # Errors
/// What the kernel says; `EPERM` without `CAP_NET_RAW`.
pub(crate) fn packet_socket(
    ifindex: u32,
    listen: bool,
    buffer: usize,
    patience: Duration,
) -> io::Result<File> {
    const ETH_P_ALL: u16 = 3;
    const AF_PACKET: libc::sa_family_t = 17;
    let protocol = if listen { ETH_P_ALL.to_be() } else { 0 };
    // SAFETY: socket takes constants.
    let fd =
        check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is fresh and ours alone.
    let socket = unsafe { File::from_raw_fd(fd) };
    let buffer = libc::c_int::try_from(buffer).map_err(io::Error::other)?;
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &buffer)?;
    let patience = libc::timeval {
        tv_sec: libc::time_t::try_from(patience.as_secs()).map_err(io::Error::other)?,
        tv_usec: libc::suseconds_t::from(patience.subsec_micros()),
    };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVTIMEO, &patience)?;
    let one: libc::c_int = 1;
    set_option(
        &socket,
        libc::SOL_PACKET,
        libc::PACKET_IGNORE_OUTGOING,
        &one,
    )?;
    // SAFETY: all bytes zero is a sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { mem::zeroed() };
    address.sll_family = AF_PACKET;
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(ifindex).map_err(io::Error::other)?;
    // SAFETY: pointer and length describe `address`, which outlives the call. Only now, with its options set, does
    // the socket begin to receive.
    check(unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            length_of::<libc::sockaddr_ll>()?,
        )
    })?;
    Ok(socket)
}

/// Frames that the kernel could not queue to a packet socket since this was last asked (`PACKET_STATISTICS`).
///
/// # Errors
/// What the kernel says.
pub(crate) fn packet_drops(socket: &File) -> io::Result<u32> {
    // struct tpacket_stats: tp_packets, tp_drops.
    let mut stats = [0_u32; 2];
    let mut length = length_of::<[u32; 2]>()?;
    // SAFETY: pointer and length describe `stats`, which outlives the call.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            stats.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    Ok(stats[1])
}

/// Bytes written to a TCP socket that the peer has not acknowledged (tcp(7), `SIOCOUTQ`).
///
/// # Errors
/// What the kernel says.
pub(crate) fn unacknowledged(socket: &TcpStream) -> io::Result<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the pointer is to a c_int, which SIOCOUTQ (the same number as TIOCOUTQ) fills in; it outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) })?;
    Ok(bytes)
}

/// Processor time, user and system, of all children that have ended and been waited for (getrusage(2)).
pub(crate) fn cpu_of_children() -> (Duration, Duration) {
    usage(libc::RUSAGE_CHILDREN)
}

/// Processor time, user and system, of the calling thread (getrusage(2)).
pub(crate) fn parts_of_this_thread() -> (Duration, Duration) {
    usage(libc::RUSAGE_THREAD)
}

fn usage(whose: libc::c_int) -> (Duration, Duration) {
    // SAFETY: all bytes zero is a rusage.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: the pointer is to `usage`, which the kernel fills in; it outlives the call, which cannot fail with one of
    // the constants above.
    unsafe { libc::getrusage(whose, &raw mut usage) };
    let time = |time: libc::timeval| {
        let seconds = Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0));
        seconds + Duration::from_micros(u64::try_from(time.tv_usec).unwrap_or(0))
    };
    (time(usage.ru_utime), time(usage.ru_stime))
}

/// Processor time of the calling thread, user and system (clock_gettime(2)): to the nanosecond, where getrusage is as
/// old as the last tick.
pub(crate) fn cpu_of_this_thread() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to `time`, which the kernel fills in; it outlives the call, which cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    let nanos = Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0));
    Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + nanos
}

/// Processors that the calling thread may run on (sched_getaffinity(2)), in ascending order.
///
/// # Errors
/// What the kernel says, `EINVAL` on a machine of more than 1,024 processors.
pub(crate) fn processors() -> io::Result<Vec<usize>> {
    // SAFETY: all bytes zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: pointer and size describe `set`, which outlives the call; 0 is the calling thread.
    check(unsafe { libc::sched_getaffinity(0, mem::size_of_val(&set), &raw mut set) })?;
    let all = 0..usize::try_from(libc::CPU_SETSIZE).map_err(io::Error::other)?;
    // SAFETY: each number is below CPU_SETSIZE, so within the set.
    Ok(all
        .filter(|&n| unsafe { libc::CPU_ISSET(n, &set) })
        .collect())
}

/// Keeps the calling thread on a processor.
///
/// # Errors
/// What the kernel says, `EINVAL` where there is no such processor.
pub(crate) fn pin_this_thread(processor: usize) -> io::Result<()> {
    if processor >= usize::try_from(libc::CPU_SETSIZE).map_err(io::Error::other)? {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all bytes zero is an empty set.
    let mut set: libc::cpu_set_t = unsafe { mem::zeroed() };
    // SAFETY: the number is below CPU_SETSIZE, as was just checked, so within the set.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: pointer and size describe `set`, which outlives the call; 0 is the calling thread.
    check(unsafe { libc::sched_setaffinity(0, mem::size_of_val(&set), &raw const set) })?;
    Ok(())
}

/// Processor time of a process so far (clock_getcpuclockid(3)), to the nanosecond.
///
/// # Errors
/// What the kernel says; `ESRCH` where there is no such process.
pub(crate) fn cpu_of_process(pid: u32) -> io::Result<Duration> {
    let pid = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut clock: libc::clockid_t = 0;
    // SAFETY: the pointer is to `clock`, which outlives the call.
    let errno = unsafe { libc::clock_getcpuclockid(pid, &raw mut clock) };
    if errno != 0 {
        return Err(io::Error::from_raw_os_error(errno));
    }
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the pointer is to `time`, which the kernel fills in; it outlives the call.
    check(unsafe { libc::clock_gettime(clock, &raw mut time) })?;
    let nanos = Duration::from_nanos(u64::try_from(time.tv_nsec).unwrap_or(0));
    Ok(Duration::from_secs(u64::try_from(time.tv_sec).unwrap_or(0)) + nanos)
}

/// Lets a socket hold so many bytes, whatever the system's limit is.
///
/// # Errors
/// What the kernel says; `EPERM` without `CAP_NET_ADMIN`.
pub(crate) fn force_receive_buffer(socket: &UdpSocket, bytes: usize) -> io::Result<()> {
    let bytes = libc::c_int::try_from(bytes).map_err(io::Error::other)?;
    set_option(socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
}

/// Has a packet socket hand its frames to the device itself, past the queue that the device may have.
///
/// # Errors
/// What the kernel says.
pub(crate) fn bypass_queue(socket: &File) -> io::Result<()> {
    let on: libc::c_int = 1;
    set_option(socket, libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, &on)
}

/// Buffers for many datagrams, and what the kernel is told of them; made once, because that takes longer than reading.
pub(crate) struct Buffers {
    headers: Vec<libc::mmsghdr>,
    // What the headers point to. Neither is touched as long as they live.
    vectors: Vec<libc::iovec>,
    _bytes: Vec<u8>,
}

impl Buffers {
    /// So many, of so many bytes each.
    pub(crate) fn new(count: usize, size: usize) -> Self {
        let mut bytes = vec![0_u8; count * size];
        let mut vectors: Vec<libc::iovec> = bytes
            .chunks_exact_mut(size)
            .map(|buffer| libc::iovec {
                iov_base: buffer.as_mut_ptr().cast(),
                iov_len: buffer.len(),
            })
            .collect();
        let headers = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: all bytes zero is an mmsghdr that names nothing.
                let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self {
            headers,
            vectors,
            _bytes: bytes,
        }
    }

    /// Waits for a datagram, and takes it with all that wait behind it (recvmmsg(2), `MSG_WAITFORONE`): the length of
    /// each.
    ///
    /// # Errors
    /// What the kernel says.
    pub(crate) fn receive<S: AsRawFd>(
        &mut self,
        socket: &S,
    ) -> io::Result<impl Iterator<Item = usize> + use<'_, S>> {
        let count = libc::c_uint::try_from(self.headers.len()).map_err(io::Error::other)?;
        // SAFETY: `headers` has `count` headers, each with one iovec of `vectors`, each of which names its own part of
        // `_bytes`; all three live as long as `self`, which is borrowed mutably, and nobody else looks at them. Moving
        // `self` does not move what the vectors own.
        let got = check(unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                count,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        })?;
        let got = usize::try_from(got).map_err(io::Error::other)?;
        let lengths = self.headers.iter().take(got).map(|header| header.msg_len);
        Ok(lengths.map(|length| usize::try_from(length).unwrap_or(usize::MAX)))
    }

    /// The bytes of what was received last, of these lengths.
    pub(crate) fn frames(&self, lengths: &[usize]) -> Vec<&[u8]> {
        let pairs = self.vectors.iter().zip(lengths);
        pairs
            .map(|(vector, &length)| {
                let length = length.min(vector.iov_len);
                // SAFETY: the vector names its own part of `_bytes`, initialised and as long as it says, which only
                // `receive` changes; that needs `self` mutably, and what is given here borrows it.
                unsafe { std::slice::from_raw_parts(vector.iov_base.cast::<u8>(), length) }
            })
            .collect()
    }
}

/// Sends frames by a packet socket that is bound to its device (sendmmsg(2)): how many the kernel took.
///
/// # Errors
/// What the kernel says of the first; `ENOBUFS` where the device takes none now.
pub(crate) fn send_all(socket: &File, frames: &[&[u8]]) -> io::Result<usize> {
    let mut vectors: Vec<libc::iovec> = frames
        .iter()
        .map(|frame| libc::iovec {
            iov_base: frame.as_ptr().cast_mut().cast(),
            iov_len: frame.len(),
        })
        .collect();
    let mut headers: Vec<libc::mmsghdr> = vectors
        .iter_mut()
        .map(|vector| {
            // SAFETY: all bytes zero is an mmsghdr that names nothing.
            let mut header: libc::mmsghdr = unsafe { mem::zeroed() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header
        })
        .collect();
    let count = libc::c_uint::try_from(headers.len()).map_err(io::Error::other)?;
    // SAFETY: `headers` has `count` headers, each with one iovec of `vectors`, each of which names a frame; all of them
    // outlive the call, which writes to the headers only.
    let sent =
        check(unsafe { libc::sendmmsg(socket.as_raw_fd(), headers.as_mut_ptr(), count, 0) })?;
    usize::try_from(sent).map_err(io::Error::other)
}

/// Runs the calling thread before all ordinary ones (`SCHED_FIFO`). Where that is not allowed, it goes on as it was.
pub(crate) fn run_first() {
    let parameters = libc::sched_param { sched_priority: 1 };
    // SAFETY: the pointer describes `parameters`, which outlives the call; 0 is the calling thread.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) };
}

fn set_option<T>(
    socket: &impl AsRawFd,
    level: libc::c_int,
    name: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = length_of::<T>()?;
    // SAFETY: `value` is readable for `length` bytes during the call.
    check(unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast(),
            length,
        )
    })?;
    Ok(())
}

fn length_of<T>() -> io::Result<libc::socklen_t> {
    libc::socklen_t::try_from(mem::size_of::<T>()).map_err(io::Error::other)
}

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(answer)
    }
}

/// `union bpf_attr` of `BPF_PROG_LOAD`, its first fields (linux/bpf.h). The kernel takes the rest as zero.
#[repr(C)]
#[derive(Default)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// Loads an eBPF traffic classifier (`BPF_PROG_TYPE_SCHED_CLS`).
///
/// # Errors
/// What the kernel says: `EINVAL` or `EACCES` where its verifier refuses the program.
pub(crate) fn load_classifier(instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
    let license = c"Apache-2.0";
    let attr = ProgLoad {
        prog_type: BPF_PROG_TYPE_SCHED_CLS,
        insn_cnt: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        insns: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..ProgLoad::default()
    };
    // SAFETY: `attr` is a properly laid out prefix of bpf_attr and its size is passed; the pointers in it (program,
    // license) live until the call returns, and the kernel copies what they point to.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const attr,
            mem::size_of::<ProgLoad>(),
        )
    };
    let fd = check(libc::c_int::try_from(answer).map_err(io::Error::other)?)?;
    // SAFETY: the kernel has just given this descriptor to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Attaches a classifier to the clsact egress hook of the device `ifindex` in the calling thread's network namespace,
/// in direct-action mode (what `tc filter add dev D egress bpf direct-action` does; tc itself takes a program only
/// from an ELF file or a bpffs pin).
///
/// # Errors
/// What the kernel says, for instance `EINVAL` where the device has no clsact qdisc.
pub(crate) fn attach_classifier_to_egress(ifindex: u32, program: BorrowedFd<'_>) -> io::Result<()> {
    // Constants of linux/rtnetlink.h, linux/pkt_sched.h and linux/pkt_cls.h.
    const RTM_NEWTFILTER: u16 = 44;
    const CLSACT_EGRESS: u32 = 0xffff_fff3; // TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_EGRESS)
    const PRIORITY_1_ALL_PROTOCOLS: u32 = (1 << 16) | 0x0300; // prio << 16 | htons(ETH_P_ALL)
    const TCA_KIND: u16 = 1;
    const TCA_OPTIONS: u16 = 2;
    const TCA_BPF_FD: u16 = 6;
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_FLAGS: u16 = 8;
    const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;
    const REQUEST_CREATE_EXCL_ACK: u16 = 0x0001 | 0x0400 | 0x0200 | 0x0004;

    let mut options = Vec::new();
    attribute(&mut options, TCA_BPF_FD, &program.as_raw_fd().to_ne_bytes());
    attribute(&mut options, TCA_BPF_NAME, b"packet_length\0");
    attribute(
        &mut options,
        TCA_BPF_FLAGS,
        &TCA_BPF_FLAG_ACT_DIRECT.to_ne_bytes(),
    );

    let mut body = Vec::new();
    body.extend_from_slice(&[0; 4]); // tcm_family and padding
    body.extend_from_slice(&ifindex.to_ne_bytes());
    body.extend_from_slice(&0_u32.to_ne_bytes()); // tcm_handle: the kernel chooses
    body.extend_from_slice(&CLSACT_EGRESS.to_ne_bytes());
    body.extend_from_slice(&PRIORITY_1_ALL_PROTOCOLS.to_ne_bytes());
    attribute(&mut body, TCA_KIND, b"bpf\0");
    attribute(&mut body, TCA_OPTIONS, &options);

    let mut message = Vec::new();
    let length = u32::try_from(16 + body.len()).map_err(io::Error::other)?;
    message.extend_from_slice(&length.to_ne_bytes());
    message.extend_from_slice(&RTM_NEWTFILTER.to_ne_bytes());
    message.extend_from_slice(&REQUEST_CREATE_EXCL_ACK.to_ne_bytes());
    message.extend_from_slice(&1_u32.to_ne_bytes()); // sequence number
    message.extend_from_slice(&0_u32.to_ne_bytes()); // port: the kernel chooses
    message.extend_from_slice(&body);
    netlink_request(&message)
}

/// Appends one netlink attribute: length, type, value, padding to 4 bytes (RFC 3549 §2.2 and linux/netlink.h).
fn attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    out.extend_from_slice(&length.to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

fn netlink_request(message: &[u8]) -> io::Result<()> {
    const NLMSG_ERROR: u16 = 2;
    // SAFETY: socket takes constants.
    let fd = check(unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    })?;
    // SAFETY: the descriptor is fresh and ours alone.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let fd = socket.as_fd().as_raw_fd();
    // SAFETY: pointer and length describe `message`, which outlives the call.
    let sent = unsafe { libc::send(fd, message.as_ptr().cast(), message.len(), 0) };
    if usize::try_from(sent).ok() != Some(message.len()) {
        return Err(io::Error::last_os_error());
    }
    let mut answer = [0_u8; 4096];
    // SAFETY: pointer and length describe `answer`, which outlives the call.
    let got = unsafe { libc::recv(fd, answer.as_mut_ptr().cast(), answer.len(), 0) };
    let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    // nlmsghdr is 16 bytes with the type at 4; nlmsgerr begins with the error as a negative errno, 0 for success.
    match (answer.get(4..6), answer.get(16..20)) {
        (Some(&[a, b]), Some(&[c, d, e, f]))
            if got >= 20 && u16::from_ne_bytes([a, b]) == NLMSG_ERROR =>
        {
            match i32::from_ne_bytes([c, d, e, f]) {
                0 => Ok(()),
                errno => Err(io::Error::from_raw_os_error(-errno)),
            }
        }
        _ => Err(io::Error::other(
            "netlink gave an answer that is no acknowledgement",
        )),
    }
}
