//! Questions of guards to other parties, asked over the ordinary pools.

use std::rc::Rc;

use fieldgate_core::guard::{Answered, Callout, NoAnswer};

use super::{Current, Worker};

/// Asks and waits for the whole answer.
pub(super) async fn ask(
    _worker: &Rc<Worker>,
    _published: &Current,
    callout: Callout,
) -> Result<Answered, NoAnswer> {
    Err(NoAnswer::Unreachable(format!("{} cannot be asked", callout.pool)))
}
