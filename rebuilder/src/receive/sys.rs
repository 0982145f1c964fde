//! System calls that neither the standard library nor socket2 has. In this folder `unsafe` stands here, in `udp.rs` and,
//! to ask drivers, in `host.rs`.

use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use libc::{c_int, sock_filter, socklen_t};

/// `setsockopt`.
///
/// # Errors
/// What the kernel says.
pub(super) fn set_option<T: Copy>(
    socket: &impl AsRawFd,
    level: c_int,
    option: c_int,
    value: &T,
) -> io::Result<()> {
    let len = socklen_t::try_from(size_of::<T>()).map_err(io::Error::other)?;
    // SAFETY: `value` is readable for `len` bytes for the length of the call; the kernel checks what they mean, and
    // copies what a `sock_fprog` in it points to, which `set_program` keeps alive as long as `value`.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            level,
            option,
            std::ptr::from_ref(value).cast(),
            len,
        )
    };
    check(result)
}

/// `setsockopt` of an option that is a program.
///
/// # Errors
/// What the kernel says; `EINVAL` where it does not like the program.
pub(super) fn set_program(
    socket: &impl AsRawFd,
    level: c_int,
    option: c_int,
    mut program: Vec<sock_filter>,
) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(io::Error::other)?,
        filter: program.as_mut_ptr(),
    };
    set_option(socket, level, option, &program)
}

/// `getsockopt` of an option that is an array of words. What the kernel does not fill in is zero.
///
/// # Errors
/// What the kernel says.
pub(super) fn get_words<const N: usize>(
    socket: &impl AsRawFd,
    level: c_int,
    option: c_int,
) -> io::Result<[u32; N]> {
    let mut words = [0; N];
    let mut len = socklen_t::try_from(size_of::<[u32; N]>()).map_err(io::Error::other)?;
    // SAFETY: `words` is writable for `len` bytes, and the kernel writes no more than that.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            level,
            option,
            words.as_mut_ptr().cast(),
            &raw mut len,
        )
    })?;
    Ok(words)
}

/// Lets a packet socket receive what comes in on every interface, of every protocol.
///
/// # Errors
/// What the kernel says.
pub(super) fn bind_to_all(socket: &impl AsRawFd) -> io::Result<()> {
    let all = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?;
    // SAFETY: all bytes zero is a sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { MaybeUninit::zeroed().assume_init() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    address.sll_protocol = all.to_be();
    let len = socklen_t::try_from(size_of::<libc::sockaddr_ll>()).map_err(io::Error::other)?;
    // SAFETY: `address` is readable for `len` bytes for the length of the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), len) })
}

fn check(result: c_int) -> io::Result<()> {
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// The blocks of a packet socket's receive ring (`PACKET_RX_RING`, `TPACKET_V3`), shared with the kernel.
///
/// A block belongs to the kernel or to us, and a word in it tells to whom. The kernel gives one when it is full or old
/// enough, and writes nothing in it until it is given back.
#[derive(Debug)]
pub(super) struct Blocks {
    start: NonNull<u8>,
    block: usize,
    count: usize,
    words: Words,
}

/// Where words stand that tell of a block, in bytes behind its beginning, each divisible by 4.
#[derive(Clone, Copy, Debug)]
pub(super) struct Words {
    /// Whose the block is.
    pub(super) status: usize,
    /// How many packets are in it so far.
    pub(super) packets: usize,
}

// SAFETY: the mapping belongs to the process, not to a thread; one owner at a time reads and writes it through `self`.
unsafe impl Send for Blocks {}

impl Blocks {
    /// Maps the ring of `socket`, whose blocks have this size in bytes and this number.
    ///
    /// # Errors
    /// What the kernel says, for instance that the ring of this socket is another.
    pub(super) fn map(
        socket: &impl AsRawFd,
        block: usize,
        count: usize,
        words: Words,
    ) -> io::Result<Self> {
        let len = block.checked_mul(count);
        let inside = |at: usize| at.is_multiple_of(4) && at < block;
        let fits = block.is_multiple_of(4) && inside(words.status) && inside(words.packets);
        let Some(len) = len.filter(|_| fits) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // SAFETY: a new mapping at a place that the kernel chooses, so over nothing that is in use. The kernel refuses
        // a length that is not the ring's.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                socket.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self {
            start,
            block,
            count,
            words,
        })
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// One of `words`, which the kernel may write at any time. `block` must be one.
    fn shared(&self, block: usize, at: usize) -> &AtomicU32 {
        assert!(block < self.count, "the ring has {} blocks", self.count);
        // SAFETY: within the mapping, as `map` has checked of `at`, and the mapping lives as long as `self`. Aligned:
        // the mapping begins with a page, and blocks have a multiple of 4 bytes. The kernel writes whole words. A plain
        // reference to the word exists while the block is ours only, when nobody writes it but `give_back`.
        unsafe {
            let word = self.start.as_ptr().add(block * self.block + at);
            AtomicU32::from_ptr(word.cast())
        }
    }

    /// How many packets the kernel has made room for in a block, whoever it belongs to.
    pub(super) fn packets(&self, block: usize) -> u32 {
        self.shared(block, self.words.packets)
            .load(Ordering::Acquire)
    }

    /// Whether the block is ours.
    pub(super) fn is_ours(&self, block: usize) -> bool {
        let status = self
            .shared(block, self.words.status)
            .load(Ordering::Acquire);
        status & libc::TP_STATUS_USER != 0
    }

    /// The block, if it is ours.
    pub(super) fn get(&self, block: usize) -> Option<&[u8]> {
        if !self.is_ours(block) {
            return None;
        }
        // SAFETY: within the mapping, which lives as long as `self`. The block is ours, as was read with acquire, so
        // that all the kernel wrote before is seen; it writes nothing more until `give_back`, which borrows `self`
        // mutably, so that this slice is gone by then.
        Some(unsafe {
            std::slice::from_raw_parts(self.start.as_ptr().add(block * self.block), self.block)
        })
    }

    /// The block is the kernel's again, and nothing is in it: the kernel says so itself only once it comes to it.
    pub(super) fn give_back(&mut self, block: usize) {
        let (packets, status) = (self.words.packets, self.words.status);
        self.shared(block, packets).store(0, Ordering::Relaxed);
        self.shared(block, status)
            .store(libc::TP_STATUS_KERNEL, Ordering::Release);
    }
}

impl Drop for Blocks {
    fn drop(&mut self) {
        // SAFETY: exactly what `map` got, and nobody has a reference into it any more. It cannot fail for that.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.block * self.count) };
    }
}

/// Asks the driver of an interface (`SIOCETHTOOL`): the first word of `request` is the command, and the answer comes to
/// the same place. `socket` is any.
///
/// # Errors
/// What the kernel says: `EOPNOTSUPP` where the driver has no such thing.
///
/// # Safety
/// The kernel writes as many bytes as the command says, with what `request` says of its own length; there must be room.
pub(super) unsafe fn ethtool(
    socket: &impl AsRawFd,
    interface: &str,
    request: &mut [u64],
) -> io::Result<()> {
    // SAFETY: all bytes zero is an ifreq.
    let mut ifreq: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    // The last byte stays zero.
    let room = ifreq.ifr_name.len() - 1;
    for (to, from) in ifreq.ifr_name.iter_mut().take(room).zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    ifreq.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
    // SAFETY: `ifreq` outlives the call, and what it points to is as long as the caller vouches for.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut ifreq) })
}

/// From now on the kernel writes no core dump of this process, whatever its limits and whoever collects dumps (prctl(2),
/// `PR_SET_DUMPABLE`). Nor may another process of the same user read its memory.
///
/// # Errors
/// What the kernel says.
pub(crate) fn no_core_dump() -> io::Result<()> {
    let no: libc::c_ulong = 0;
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, no, no, no, no) })
}

/// The processors that the calling thread may run on.
///
/// # Errors
/// What the kernel says.
pub(crate) fn processors() -> io::Result<Vec<usize>> {
    // SAFETY: all bytes zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: `set` is writable for the length that is told.
    check(unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &raw mut set) })?;
    let all = usize::try_from(libc::CPU_SETSIZE).unwrap_or(0);
    // SAFETY: below the size of the set.
    Ok((0..all)
        .filter(|&n| unsafe { libc::CPU_ISSET(n, &set) })
        .collect())
}

/// Keeps the calling thread on one processor.
///
/// # Errors
/// What the kernel says, for instance that there is no such processor (any more).
pub(crate) fn pin(processor: usize) -> io::Result<()> {
    if processor >= usize::try_from(libc::CPU_SETSIZE).unwrap_or(0) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all bytes zero is the empty set.
    let mut set: libc::cpu_set_t = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: below the size of the set.
    unsafe { libc::CPU_SET(processor, &mut set) };
    // SAFETY: `set` is readable for the length that is told.
    check(unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) })
}
