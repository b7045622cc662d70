//! Buffers that the kernel fills as it likes, and the ring in which it gets them back.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::Submitter;
use io_uring::types::BufRingEntry;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// The number of the only group of buffers.
pub const GROUP: u16 = 0;

/// All buffers of the relay. They are never unmapped, for the kernel may write to them as long as the process lives.
pub struct Buffers {
    entries: NonNull<BufRingEntry>,
    storage: NonNull<u8>,
    count: u16,
    size: usize,
    tail: u16,
}

impl Buffers {
    /// `count` buffers of `size` bytes, all of them the kernel's. `count` must be a power of two.
    pub fn new(submitter: &Submitter<'_>, count: u16, size: usize) -> io::Result<Self> {
        if !count.is_power_of_two() || count > 1 << 15 || size == 0 {
            return Err(io::Error::other(
                "the number of buffers is no power of two up to 32768, or their size is 0",
            ));
        }
        let entries = map(usize::from(count) * size_of::<BufRingEntry>())?.cast();
        let storage = map(usize::from(count) * size)?;
        // SAFETY: the ring is page-aligned, of `count` entries, and never unmapped.
        unsafe { submitter.register_buf_ring_with_flags(entries.as_ptr() as u64, count, GROUP, 0)? };
        let mut buffers = Self { entries, storage, count, size, tail: 0 };
        (0..count).for_each(|buffer| buffers.give_back(buffer));
        buffers.publish();
        Ok(buffers)
    }

    /// Bytes of a buffer.
    pub fn size(&self) -> u32 {
        self.size as u32
    }

    /// Where a buffer begins.
    pub fn start_of(&self, buffer: u16) -> *const u8 {
        assert!(buffer < self.count);
        // SAFETY: the storage has `count` times `size` bytes, and `buffer` is less than `count`.
        unsafe { self.storage.as_ptr().add(usize::from(buffer) * self.size) }
    }

    /// Puts a buffer into the ring, where the kernel sees it after the next [`Buffers::publish`].
    pub fn give_back(&mut self, buffer: u16) {
        let start = self.start_of(buffer);
        let index = usize::from(self.tail & (self.count - 1));
        // SAFETY: the index is less than `count`. The entry is not the kernel's: it holds at most `count` buffers, and this
        // one it does not have. Only the fields of a buffer are written; the tail shares the first entry with them.
        let entry = unsafe { &mut *self.entries.as_ptr().add(index) };
        entry.set_addr(start as u64);
        entry.set_len(self.size as u32);
        entry.set_bid(buffer);
        self.tail = self.tail.wrapping_add(1);
    }

    /// Tells the kernel of all buffers given back so far.
    pub fn publish(&self) {
        // SAFETY: the tail is two aligned bytes of the first entry, which lives as long as the process; the kernel only
        // reads it.
        let tail = unsafe { &*BufRingEntry::tail(self.entries.as_ptr()).cast::<AtomicU16>() };
        tail.store(self.tail, Ordering::Release);
    }
}

/// Zeroed pages.
fn map(len: usize) -> io::Result<NonNull<u8>> {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory that exists.
    let start = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags)? };
    NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap gave a null pointer"))
}
