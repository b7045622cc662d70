//! Memory that the allocator holds and nobody uses, given back to the system. When is for the caller to say.

#![allow(unsafe_code)]

/// Gives back what this thread has freed. Takes some microseconds to a millisecond: for moments without work.
pub fn give_back() {
    // SAFETY: it may be called at any time by any thread. It touches only memory that was freed.
    unsafe { libmimalloc_sys::mi_collect(true) }
}
