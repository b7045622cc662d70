//! Runs the gateway's hot pieces one after the other, each so many times within [`counted`], where callgrind counts.
//!
//! Prints the name of each piece in the order of callgrind's profiles, of which there are two for each: up to the end of its
//! warm-up, and up to its own. Judges nothing; without valgrind
//! around it, it does nothing of use. Every piece leaves its state as it found it, so that each run costs the same.

mod decisions;
mod heads;
mod record;
mod routes;

use std::hint::black_box;

/// As in the gateway, so that allocations cost what they cost there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs of a piece that are counted. The guard divides by it.
const TIMES: u32 = 1000;
/// Runs before, for what is only done once.
const WARM_UP: u32 = 100;

fn main() {
    heads::pieces(&mut measure);
    decisions::pieces(&mut measure);
    routes::pieces(&mut measure);
    record::pieces(&mut measure);
}

/// What a module of pieces gives its pieces to: a name and what to run.
type Measure<'a> = dyn FnMut(&str, &mut dyn FnMut()) + 'a;

/// Callgrind is told to write a profile at its end: what was done up to there is the piece's. (These are three functions
/// because callgrind takes one order for a function, and counts calls also while it does not count instructions.)
#[inline(never)]
fn measure(name: &str, piece: &mut dyn FnMut()) {
    println!("{name} {TIMES}");
    warm_up(piece);
    counted(piece, TIMES);
    // Not a function's last act, which would be a jump and not a call.
    black_box(piece);
}

/// Here, too: what was done up to there is nobody's.
#[inline(never)]
fn warm_up(piece: &mut dyn FnMut()) {
    counted(piece, WARM_UP);
    black_box(piece);
}

/// The function that callgrind is told to count in.
#[inline(never)]
fn counted(piece: &mut dyn FnMut(), times: u32) {
    for _ in 0..times {
        piece();
    }
    black_box(piece);
}
