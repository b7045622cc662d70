//! The relay on io_uring: one multishot accept, one multishot receive per socket into buffers that the kernel chooses,
//! and a send per piece received. All that a batch of completions gives rise to is submitted by the system call that
//! waits for the next batch.
//!
//! Descriptors and buffers are given back only when the kernel has no request left that knows them.
#![allow(unsafe_code)]

mod buffers;

use std::collections::VecDeque;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use io_uring::squeue::Entry;
use io_uring::types::{Fd, Fixed};
use io_uring::{IoUring, SubmissionQueue, Submitter, cqueue, opcode};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::{Arguments, Uring, sockets};
use buffers::{Buffers, GROUP};

/// Entries of the submission queue. When it is full it is submitted at once.
const ENTRIES: u32 = 1024;
/// Completions that the kernel holds; what is more it keeps aside, at a cost.
const COMPLETIONS: u32 = 8192;
/// Most registered files, two of a pair. The kernel allows no more than a process may have open.
const FILES: u64 = 32_768;
/// Pieces of one direction that may wait for its sink. Beyond it the source is no longer received from.
const WAITING: usize = 8;
/// From this length on a zero-copy send is used, if that is asked for.
const LONG: usize = 8 * 1024;

const ACCEPT: u64 = 0;
const RECEIVE: u64 = 1;
const SEND: u64 = 2;
const CANCEL: u64 = 3;

/// Relays for ever, or says that there is no io_uring of the kind that is wanted.
pub fn relay(listener: &TcpListener, arguments: &Arguments) -> io::Result<()> {
    let mut builder = IoUring::builder();
    builder.setup_cqsize(COMPLETIONS).setup_single_issuer().setup_submit_all();
    if !arguments.uring.contains(&Uring::NoDefer) {
        builder.setup_defer_taskrun();
    }
    let mut ring: IoUring = builder.build(ENTRIES)?;
    let (mut submitter, queue, mut completions) = ring.split();
    submitter.register_ring_fd()?;
    let fixed = !arguments.uring.contains(&Uring::NoFixedFiles);
    if fixed {
        submitter.register_files_sparse(sockets::raise_limit()?.min(FILES) as u32)?;
    }
    let buffers = Buffers::new(&submitter, arguments.buffers, arguments.buffer)?;
    // With O_NONBLOCK the kernel would not wait for the next connection.
    listener.set_nonblocking(false)?;
    let mut relay = Relay {
        listener,
        upstream: arguments.upstream,
        multishot: !arguments.uring.contains(&Uring::SingleShot),
        zero_copy: arguments.uring.contains(&Uring::ZeroCopy),
        fixed,
        submitter,
        queue,
        buffers,
        pairs: Vec::new(),
        free: Vec::new(),
        starved: Vec::new(),
    };
    relay.accept()?;
    let mut batch: Vec<cqueue::Entry> = Vec::with_capacity(COMPLETIONS as usize);
    loop {
        relay.wait()?;
        completions.sync();
        batch.extend(&mut completions);
        completions.sync();
        for completion in batch.drain(..) {
            relay.completed(&completion)?;
        }
    }
}

struct Relay<'a> {
    listener: &'a TcpListener,
    upstream: SocketAddr,
    multishot: bool,
    zero_copy: bool,
    fixed: bool,
    submitter: Submitter<'a>,
    queue: SubmissionQueue<'a>,
    buffers: Buffers,
    pairs: Vec<Option<Pair>>,
    free: Vec<u32>,
    /// Who could not receive because no buffer was free.
    starved: Vec<Socket>,
}

/// A socket of a pair: 0 is the client's, 1 the upstream's. A direction is named by the socket that it reads.
#[derive(Clone, Copy)]
struct Socket {
    slot: u32,
    side: usize,
}

struct Pair {
    sockets: [TcpStream; 2],
    directions: [Direction; 2],
    /// Requests that the kernel has, and notifications that it owes.
    in_flight: u32,
    broken: bool,
}

#[derive(Default)]
struct Direction {
    /// Whether a receive is in flight.
    receiving: bool,
    cancelling: bool,
    /// Whether the first of the pieces is being sent.
    sending: bool,
    pieces: VecDeque<Piece>,
    /// No more is received.
    source_ended: bool,
    ended: bool,
}

#[derive(Clone, Copy)]
struct Piece {
    buffer: u16,
    len: usize,
}

impl Socket {
    /// What a completion is told by: a buffer's number, the slot, the side, the kind of request.
    fn token(self, kind: u64, buffer: u16) -> u64 {
        u64::from(buffer) << 48 | u64::from(self.slot) << 8 | (self.side as u64) << 4 | kind
    }

    fn of(token: u64) -> Self {
        Self { slot: (token >> 8) as u32, side: (token >> 4 & 1) as usize }
    }
}

impl Relay<'_> {
    /// Submits, and waits for a completion.
    fn wait(&mut self) -> io::Result<()> {
        self.buffers.publish();
        self.queue.sync();
        match self.submitter.submit_and_wait(1) {
            // The completion queue is full, or a signal came: completions are taken first.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::Interrupted) => {}
            other => drop(other?),
        }
        self.queue.sync();
        Ok(())
    }

    fn push(&mut self, entry: &Entry) -> io::Result<()> {
        loop {
            // SAFETY: what an entry points to are pieces in `buffers`, which outlives the ring, and are not given back to
            // the kernel before the entry's completion.
            if unsafe { self.queue.push(entry) }.is_ok() {
                return Ok(());
            }
            self.queue.sync();
            self.submitter.submit()?;
            self.queue.sync();
        }
    }

    fn accept(&mut self) -> io::Result<()> {
        let entry = opcode::AcceptMulti::new(Fd(self.listener.as_raw_fd())).build();
        self.push(&entry.user_data(ACCEPT))
    }

    fn completed(&mut self, completion: &cqueue::Entry) -> io::Result<()> {
        let (token, flags, result) = (completion.user_data(), completion.flags(), completion.result());
        let result = if result < 0 { Err(Errno::from_raw_os_error(-result)) } else { Ok(result) };
        if token & 0xf == ACCEPT {
            if let Ok(descriptor) = result {
                // SAFETY: the kernel has just made this descriptor for us, and nobody else has it.
                self.open(unsafe { OwnedFd::from_raw_fd(descriptor) }.into())?;
            }
            return if cqueue::more(flags) { Ok(()) } else { self.accept() };
        }
        let socket = Socket::of(token);
        let Some(pair) = &mut self.pairs[socket.slot as usize] else {
            unreachable!("a pair stays until the kernel has no request of it");
        };
        pair.in_flight -= u32::from(!cqueue::more(flags));
        match token & 0xf {
            RECEIVE => self.received(socket, result.map(|len| len as usize), flags)?,
            SEND if cqueue::notif(flags) => self.give_back((token >> 48) as u16)?,
            SEND => {
                let owed = cqueue::more(flags);
                self.sent(socket, result.map(|len| len as usize), owed)?;
            }
            _ => {}
        }
        self.settle(socket.slot);
        Ok(())
    }

    fn open(&mut self, client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let upstream = sockets::connect(self.upstream)?;
        // The kernel waits for readiness only on sockets that may block.
        upstream.set_nonblocking(false)?;
        let slot = self.free.pop().unwrap_or_else(|| {
            self.pairs.push(None);
            self.pairs.len() as u32 - 1
        });
        let sockets = [client, upstream];
        if self.fixed {
            let descriptors = [sockets[0].as_raw_fd(), sockets[1].as_raw_fd()];
            self.submitter.register_files_update(slot * 2, &descriptors)?;
        }
        let directions = Default::default();
        self.pairs[slot as usize] = Some(Pair { sockets, directions, in_flight: 0, broken: false });
        self.receive(Socket { slot, side: 0 })?;
        self.receive(Socket { slot, side: 1 })
    }

    fn pair(&mut self, slot: u32) -> &mut Pair {
        self.pairs[slot as usize].as_mut().expect("only asked for pairs with a request in flight")
    }

    /// Builds an entry by the descriptor that is in use.
    fn entry(&self, Socket { slot, side }: Socket, with: impl Entries) -> Entry {
        if self.fixed {
            return with.fixed(Fixed(slot * 2 + side as u32));
        }
        let pair = self.pairs[slot as usize].as_ref();
        with.plain(Fd(pair.map_or(-1, |pair| pair.sockets[side].as_raw_fd())))
    }

    fn receive(&mut self, socket: Socket) -> io::Result<()> {
        let with = Receive { multishot: self.multishot, len: self.buffers.size() };
        let entry = self.entry(socket, with).user_data(socket.token(RECEIVE, 0));
        self.push(&entry)?;
        let pair = self.pair(socket.slot);
        pair.in_flight += 1;
        pair.directions[socket.side].receiving = true;
        Ok(())
    }

    fn received(&mut self, socket: Socket, result: rustix::io::Result<usize>, flags: u32) -> io::Result<()> {
        let more = cqueue::more(flags);
        let pair = self.pair(socket.slot);
        let direction = &mut pair.directions[socket.side];
        direction.receiving = more;
        direction.cancelling &= more;
        match (result, cqueue::buffer_select(flags)) {
            (Ok(len), Some(buffer)) if len > 0 => {
                direction.pieces.push_back(Piece { buffer, len });
                let (idle, many) = (!direction.sending, direction.pieces.len() >= WAITING);
                if many && more && !direction.cancelling {
                    direction.cancelling = true;
                    self.cancel(socket)?;
                }
                if idle {
                    self.send(socket)?;
                }
            }
            (Ok(_), buffer) => {
                direction.source_ended = true;
                if let Some(buffer) = buffer {
                    self.give_back(buffer)?;
                }
            }
            (Err(Errno::NOBUFS), _) => self.starved.push(socket),
            (Err(Errno::CANCELED), _) => {}
            (Err(_), _) => pair.broken = true,
        }
        self.receive_again(socket)
    }

    /// Receives on, if that has ended and nothing waits.
    fn receive_again(&mut self, socket: Socket) -> io::Result<()> {
        let starved = self.starved.iter().any(|one| one.slot == socket.slot && one.side == socket.side);
        let pair = self.pair(socket.slot);
        let direction = &pair.directions[socket.side];
        let wanted = !direction.receiving && !direction.source_ended && direction.pieces.is_empty();
        if wanted && !pair.broken && !starved { self.receive(socket) } else { Ok(()) }
    }

    fn cancel(&mut self, socket: Socket) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(socket.token(RECEIVE, 0)).build();
        self.push(&entry.user_data(socket.token(CANCEL, 0)))?;
        self.pair(socket.slot).in_flight += 1;
        Ok(())
    }

    /// Sends the first of the pieces that wait. The kernel goes on by itself where the sink takes only a part.
    fn send(&mut self, socket: Socket) -> io::Result<()> {
        let pair = self.pair(socket.slot);
        let direction = &mut pair.directions[socket.side];
        let Some(&Piece { buffer, len }) = direction.pieces.front() else { return Ok(()) };
        direction.sending = true;
        pair.in_flight += 1;
        let with = Send {
            data: self.buffers.start_of(buffer),
            len: len as u32,
            zero_copy: self.zero_copy && len >= LONG,
        };
        let sink = Socket { side: 1 - socket.side, ..socket };
        let entry = self.entry(sink, with).user_data(socket.token(SEND, buffer));
        self.push(&entry)
    }

    /// `owed`: a notification will say when the piece is no longer in use.
    fn sent(&mut self, socket: Socket, result: rustix::io::Result<usize>, owed: bool) -> io::Result<()> {
        let pair = self.pair(socket.slot);
        let direction = &mut pair.directions[socket.side];
        direction.sending = false;
        let Some(piece) = direction.pieces.pop_front() else { return Ok(()) };
        if result != Ok(piece.len) {
            pair.broken = true;
        }
        if !owed {
            self.give_back(piece.buffer)?;
        }
        if self.pair(socket.slot).broken {
            return Ok(());
        }
        self.send(socket)?;
        self.receive_again(socket)
    }

    /// A buffer is the kernel's again; one who lacked one may go on.
    fn give_back(&mut self, buffer: u16) -> io::Result<()> {
        self.buffers.give_back(buffer);
        let Some(socket) = self.starved.pop() else { return Ok(()) };
        self.receive_again(socket)
    }

    /// Ends what has ended, and lets go of a pair of which the kernel knows nothing any more.
    fn settle(&mut self, slot: u32) {
        let pair = self.pair(slot);
        for side in 0..2 {
            let direction = &mut pair.directions[side];
            if direction.source_ended && direction.pieces.is_empty() && !direction.ended {
                direction.ended = true;
                // Fails only when the sink is gone, of which its own direction tells.
                let _ = pair.sockets[1 - side].shutdown(Shutdown::Write);
            }
        }
        if pair.broken {
            for socket in &pair.sockets {
                // Whatever the kernel still waits for on either ends by this.
                let _ = socket.shutdown(Shutdown::Both);
            }
        }
        let done = pair.broken || pair.directions.iter().all(|direction| direction.ended);
        if done && pair.in_flight == 0 {
            self.close(slot);
        }
    }

    fn close(&mut self, slot: u32) {
        let pair = self.pairs[slot as usize].take();
        for piece in pair.iter().flat_map(|pair| &pair.directions).flat_map(|direction| &direction.pieces) {
            self.buffers.give_back(piece.buffer);
        }
        self.starved.retain(|socket| socket.slot != slot);
        if self.fixed {
            // Without this the file would stay open in the table.
            let _ = self.submitter.register_files_update(slot * 2, &[-1, -1]);
        }
        self.free.push(slot);
    }
}

/// An entry for either kind of descriptor.
trait Entries {
    fn plain(self, descriptor: Fd) -> Entry;
    fn fixed(self, descriptor: Fixed) -> Entry;
}

struct Receive {
    multishot: bool,
    len: u32,
}

struct Send {
    data: *const u8,
    len: u32,
    zero_copy: bool,
}

macro_rules! entries {
    ($self:ident, $descriptor:ident, $for:ty => $body:expr) => {
        impl Entries for $for {
            fn plain($self, $descriptor: Fd) -> Entry {
                $body
            }
            fn fixed($self, $descriptor: Fixed) -> Entry {
                $body
            }
        }
    };
}

entries!(self, descriptor, Receive => if self.multishot {
    opcode::RecvMulti::new(descriptor, GROUP).build()
} else {
    let entry = opcode::Recv::new(descriptor, std::ptr::null_mut(), self.len).buf_group(GROUP).build();
    entry.flags(io_uring::squeue::Flags::BUFFER_SELECT)
});

entries!(self, descriptor, Send => {
    let flags = (SendFlags::NOSIGNAL.bits() | RecvFlags::WAITALL.bits()) as i32;
    if self.zero_copy {
        opcode::SendZc::new(descriptor, self.data, self.len).flags(flags).build()
    } else {
        opcode::Send::new(descriptor, self.data, self.len).flags(flags).build()
    }
});
