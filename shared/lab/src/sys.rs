//! The system calls of the switch: packet sockets, waiting, and the clock. All that is unsafe of this crate.

#![expect(unsafe_code, reason = "packet sockets have no safe interface in the libraries we use")]

use std::ffi::CString;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Longest frame that is carried: a laboratory's interfaces have an MTU of 1500.
pub(crate) const FRAME_BYTES: usize = 2048;

/// Frames of one system call.
pub(crate) const BATCH: usize = 64;

/// Bytes of frames that wait in a socket while the switch does something else: a hundredth of a second of
/// ten gigabits.
const SOCKET_BYTES: libc::c_int = 16 << 20;

/// Set by SIGINT and SIGTERM.
static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_: libc::c_int) {
    STOP.store(true, Ordering::Relaxed);
}

/// Whether the process was told to stop.
pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// Has SIGINT and SIGTERM end [`wait`] instead of the process, and timers fire when they are due instead of
/// up to 50 µs later.
pub(crate) fn prepare() -> io::Result<()> {
    // SAFETY: the structure is plain data, for which zeros are valid; the handler only stores to an atomic.
    unsafe {
        let mut action: libc::sigaction = zeroed();
        action.sa_sigaction = on_signal as extern "C" fn(libc::c_int) as libc::sighandler_t;
        for signal in [libc::SIGINT, libc::SIGTERM] {
            if libc::sigaction(signal, &action, std::ptr::null_mut()) != 0 {
                return Err(io::Error::last_os_error());
            }
        }
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong);
    }
    Ok(())
}

/// Nanoseconds of the clock by which the kernel stamps frames.
pub(crate) fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a whole structure of this frame. The call cannot fail for this clock.
    unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
    nanos(&time)
}

fn nanos(time: &libc::timespec) -> u64 {
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// A packet socket on one interface: all frames that arrive there, and none that leave.
#[derive(Debug)]
pub(crate) struct Port {
    socket: OwnedFd,
}

impl Port {
    /// Opens the interface of this name, which must be up.
    pub(crate) fn open(interface: &str) -> io::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let name = CString::new(interface).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: the name is a C string that outlives the call.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error());
        }
        let kind = libc::SOCK_RAW | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
        // SAFETY: no pointers; the descriptor is checked, and owned from here on.
        let socket = unsafe {
            // Without a protocol nothing arrives before the socket is bound to its interface.
            let raw = libc::socket(libc::AF_PACKET, kind, 0);
            if raw < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(raw)
        };
        let port = Self { socket };
        port.option(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        port.option(libc::SOL_SOCKET, libc::SO_TIMESTAMPNS, 1)?;
        // Beyond the system's bound only for root, which a laboratory needs anyway.
        for kind in [libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE] {
            port.option(libc::SOL_SOCKET, kind, SOCKET_BYTES)?;
        }
        // SAFETY: the structure is plain data, for which zeros are valid, and its size is its own.
        let bound = unsafe {
            let mut address: libc::sockaddr_ll = zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_protocol = protocol;
            address.sll_ifindex = index as libc::c_int;
            let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
            libc::bind(port.socket.as_raw_fd(), (&raw const address).cast(), size)
        };
        if bound != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(port)
    }

    fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: the pointer is to a value of this frame, and the size is the value's.
        let result = unsafe {
            let size = size_of::<libc::c_int>() as libc::socklen_t;
            libc::setsockopt(self.socket.as_raw_fd(), level, name, (&raw const value).cast(), size)
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends frames; how many were taken.
    pub(crate) fn send(&self, frames: &[Vec<u8>]) -> usize {
        let mut sent = 0;
        while sent < frames.len() {
            let batch = &frames[sent..frames.len().min(sent + BATCH)];
            // SAFETY: zeros are valid for these plain structures.
            let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
                unsafe { (zeroed(), zeroed()) };
            for ((frame, vector), header) in batch.iter().zip(&mut vectors).zip(&mut headers) {
                *vector = libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: frame.len() };
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
            }
            // SAFETY: as many headers as are said, each with one vector over a frame that outlives the call,
            // which reads and does not write.
            let taken = unsafe {
                let fd = self.socket.as_raw_fd();
                libc::sendmmsg(fd, headers.as_mut_ptr(), batch.len() as libc::c_uint, 0)
            };
            if taken <= 0 {
                return sent;
            }
            sent += taken as usize;
        }
        sent
    }
}

/// Room for a batch of frames.
#[derive(Debug)]
pub(crate) struct Receiver {
    buffers: Vec<Vec<u8>>,
}

/// Room for the one control message of a frame: its time.
const CONTROL_BYTES: usize = 64;

/// Of linux/if_packet.h, newer than the binding.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;

impl Receiver {
    pub(crate) fn new() -> Self {
        Self { buffers: vec![vec![0; FRAME_BYTES]; BATCH] }
    }

    /// Hands what waits in `port` to `each`, with the time at which the kernel saw it; whether there may be
    /// more. Frames longer than [`FRAME_BYTES`] are dropped.
    pub(crate) fn receive(&mut self, port: &Port, mut each: impl FnMut(u64, Vec<u8>)) -> bool {
        // SAFETY: zeros are valid for these plain structures.
        let (mut vectors, mut headers): ([libc::iovec; BATCH], [libc::mmsghdr; BATCH]) =
            unsafe { (zeroed(), zeroed()) };
        // Aligned for the headers of control messages.
        let mut controls = [[0_u64; CONTROL_BYTES / 8]; BATCH];
        let slots = self.buffers.iter_mut().zip(&mut vectors).zip(&mut headers).zip(&mut controls);
        for (((buffer, vector), header), control) in slots {
            *vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
            header.msg_hdr.msg_iov = vector;
            header.msg_hdr.msg_iovlen = 1;
            header.msg_hdr.msg_control = control.as_mut_ptr().cast();
            header.msg_hdr.msg_controllen = CONTROL_BYTES as _;
        }
        // SAFETY: as many headers as are said, each with one vector over a buffer and a control buffer that
        // nothing else refers to and that outlive the call.
        let got = unsafe {
            let flags = libc::MSG_DONTWAIT as _;
            let fd = port.socket.as_raw_fd();
            libc::recvmmsg(fd, headers.as_mut_ptr(), BATCH as libc::c_uint, flags, std::ptr::null_mut())
        };
        let got = usize::try_from(got).unwrap_or(0);
        let read = now();
        for (header, buffer) in headers[..got].iter().zip(&self.buffers) {
            if header.msg_hdr.msg_flags & libc::MSG_TRUNC == 0 {
                let at = stamp(&header.msg_hdr).filter(|&at| at <= read).unwrap_or(read);
                each(at, buffer[..header.msg_len as usize].to_vec());
            }
        }
        got == BATCH
    }
}

/// When the kernel saw this frame.
fn stamp(header: &libc::msghdr) -> Option<u64> {
    // SAFETY: the header was filled by the kernel, its control buffer is alive, aligned and as long as it
    // says; a message of this type holds a timespec, which is read without assuming its alignment.
    unsafe {
        let mut message = libc::CMSG_FIRSTHDR(header);
        while !message.is_null() {
            if (*message).cmsg_level == libc::SOL_SOCKET && (*message).cmsg_type == libc::SCM_TIMESTAMPNS {
                let time: libc::timespec = std::ptr::read_unaligned(libc::CMSG_DATA(message).cast());
                return Some(nanos(&time));
            }
            message = libc::CMSG_NXTHDR(header, message);
        }
    }
    None
}

/// Waits until a frame waits in some port, or until `due`, or for a signal; which ports have frames.
pub(crate) fn wait(ports: &[Port], due: Option<u64>, ready: &mut Vec<usize>) -> io::Result<()> {
    let mut polled: Vec<libc::pollfd> = ports
        .iter()
        .map(|port| libc::pollfd { fd: port.socket.as_raw_fd(), events: libc::POLLIN, revents: 0 })
        .collect();
    let left = due.map(|due| due.saturating_sub(now()));
    let timeout = left.map(|left| libc::timespec {
        tv_sec: (left / 1_000_000_000) as libc::time_t,
        tv_nsec: (left % 1_000_000_000) as _,
    });
    // SAFETY: as many structures as are said; the time, if there is one, outlives the call.
    let result = unsafe {
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        libc::ppoll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout, std::ptr::null())
    };
    ready.clear();
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    ready.extend(polled.iter().enumerate().filter(|(_, port)| port.revents != 0).map(|(at, _)| at));
    Ok(())
}
