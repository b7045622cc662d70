//! One direction between two sockets: what was read and not yet written, and how it is moved. No events are waited for
//! here, and none of the sockets is closed.

use std::net::{Shutdown, TcpStream};
use std::os::fd::OwnedFd;

use rustix::io::{Errno, Result};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// How bytes are moved.
#[derive(Clone, Copy, Debug)]
pub struct Moving {
    /// Bytes of the buffer that all share.
    pub buffer: usize,
    /// Bytes of a pipe, if long bodies go through one.
    pub pipe: Option<usize>,
}

/// What all directions share.
pub struct Shared {
    moving: Moving,
    buffer: Vec<u8>,
    pipes: Vec<Pipe>,
}

struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Shared {
    pub fn new(moving: Moving) -> Self {
        Self { moving, buffer: vec![0; moving.buffer], pipes: Vec::new() }
    }

    fn take_pipe(&mut self, size: usize) -> Result<Pipe> {
        if let Some(pipe) = self.pipes.pop() {
            return Ok(pipe);
        }
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        fcntl_setpipe_size(&into, size)?;
        Ok(Pipe { out, into })
    }
}

/// What is on its way from one socket to another.
#[derive(Default)]
pub struct Direction {
    /// Whether there may be something to read: said by an event, until a read says otherwise.
    pub readable: bool,
    /// Whether the end was seen, after which no event says more.
    pub ending: bool,
    /// Whether all was moved, the end included.
    pub ended: bool,
    /// What was read into the buffer that was too much for the sink, and how much of it was written since.
    left: Vec<u8>,
    written: usize,
    pipe: Option<Pipe>,
    /// Bytes in the pipe.
    piped: usize,
}

impl Direction {
    /// Moves what can be moved. A source that always has more is served until the sink has no room, so between two that
    /// never rest others would wait; requests and responses take turns.
    pub fn pump(&mut self, from: &TcpStream, to: &TcpStream, shared: &mut Shared) -> Result<()> {
        match self.move_all(from, to, shared) {
            Err(Errno::AGAIN) => Ok(()),
            other => other,
        }
    }

    /// Ends with `AGAIN` when one of the sockets has to be waited for.
    fn move_all(&mut self, from: &TcpStream, to: &TcpStream, shared: &mut Shared) -> Result<()> {
        self.write_left(to)?;
        while !self.ended {
            if self.pipe.is_some() {
                self.splice(from, to, shared)?;
            } else {
                self.copy(from, to, shared)?;
            }
        }
        Ok(())
    }

    fn copy(&mut self, from: &TcpStream, to: &TcpStream, shared: &mut Shared) -> Result<()> {
        self.require_readable()?;
        let (count, _) =
            recv(from, &mut shared.buffer[..], RecvFlags::empty()).inspect_err(|_| self.readable = false)?;
        let data = &shared.buffer[..count];
        if data.is_empty() {
            return self.end(to);
        }
        // What comes after a short read makes an event of its own, except an end that was told already.
        self.readable = count == shared.buffer.len() || self.ending;
        let written = match send(to, data, SendFlags::NOSIGNAL) {
            Err(Errno::AGAIN) => 0,
            other => other?,
        };
        if written < count {
            self.left.extend_from_slice(&data[written..]);
            self.write_left(to)?;
        }
        if let Some(size) = shared.moving.pipe
            && count == shared.buffer.len()
        {
            self.pipe = Some(shared.take_pipe(size)?);
        }
        Ok(())
    }

    fn write_left(&mut self, to: &TcpStream) -> Result<()> {
        while self.written < self.left.len() {
            self.written += send(to, &self.left[self.written..], SendFlags::NOSIGNAL)?;
        }
        self.left.clear();
        self.written = 0;
        Ok(())
    }

    /// Once through the pipe, which is given back when less comes than a buffer would hold.
    fn splice(&mut self, from: &TcpStream, to: &TcpStream, shared: &mut Shared) -> Result<()> {
        let Some(pipe) = &self.pipe else { return Ok(()) };
        let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
        let mut few = false;
        if self.piped == 0 {
            let count = self.require_readable().and_then(|()| {
                splice(from, None, &pipe.into, None, shared.moving.pipe.unwrap_or_default(), flags)
            });
            let count = match count {
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    shared.pipes.extend(self.pipe.take());
                    return Err(Errno::AGAIN);
                }
                other => other?,
            };
            if count == 0 {
                shared.pipes.extend(self.pipe.take());
                return self.end(to);
            }
            few = count < shared.moving.buffer;
            self.piped = count;
        }
        while self.piped > 0 {
            self.piped -= splice(&pipe.out, None, to, None, self.piped, flags)?;
        }
        if few {
            shared.pipes.extend(self.pipe.take());
        }
        Ok(())
    }

    fn require_readable(&self) -> Result<()> {
        if self.readable { Ok(()) } else { Err(Errno::AGAIN) }
    }

    fn end(&mut self, to: &TcpStream) -> Result<()> {
        self.ended = true;
        // Fails only when the sink is gone, of which its own direction tells.
        let _ = to.shutdown(Shutdown::Write);
        Ok(())
    }
}
