//! What happens in one handshake in which a client may show a certificate.
//!
//! rustls' configurations are shared by all connections, and what they call (verifier, tickets, certificates) is not told whose
//! handshake it is. All of that runs inside a poll of that handshake's future, so what is found out is kept with the future:
//! a value of the task for as long as it is polled. Outside of such a future nothing is kept and no ticket is good.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use super::{Certificate, Refusal};

tokio::task_local! {
    static CURRENT: Rc<RefCell<Introduction>>;
}

/// What was found out so far.
#[derive(Debug, Default)]
pub(super) struct Introduction {
    /// Of what is verified: until when (seconds since 1970) a session may go on without another look.
    pub until: Option<u64>,
    /// Why what was shown is not believed.
    pub refusal: Option<Refusal>,
    /// The certificate that this side shows.
    pub shown: Option<Arc<Certificate>>,
}

/// Runs a handshake, and gives what was found out.
pub(super) async fn of<F: Future>(handshake: F) -> (F::Output, Introduction) {
    let kept = Rc::new(RefCell::new(Introduction::default()));
    let output = CURRENT.scope(Rc::clone(&kept), handshake).await;
    let found = std::mem::take(&mut *kept.borrow_mut());
    (output, found)
}

/// Has the introduction of the handshake under way, if there is one.
pub(super) fn with<T>(then: impl FnOnce(&mut Introduction) -> T) -> Option<T> {
    CURRENT.try_with(|current| then(&mut current.borrow_mut())).ok()
}

pub(super) fn shown(certificate: &Arc<Certificate>) {
    with(|introduction| introduction.shown = Some(Arc::clone(certificate)));
}
