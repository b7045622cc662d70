//! What others keep with a compiled pool for as long as it lives. Nothing here looks into it.

use std::any::Any;
use std::sync::{Arc, OnceLock};

/// Set once, before the pool is published; then read by every worker without a lock.
#[derive(Clone, Debug, Default)]
pub struct Attachment(OnceLock<Option<Arc<dyn Any + Send + Sync>>>);

impl Attachment {
    /// Whether it was set, be it to nothing.
    pub fn is_set(&self) -> bool {
        self.0.get().is_some()
    }

    /// Sets it. What was set before stays.
    pub fn set(&self, what: Option<Arc<dyn Any + Send + Sync>>) {
        let _ = self.0.set(what);
    }

    /// What was set, if that was something of this type.
    #[inline]
    pub fn get<T: Any>(&self) -> Option<&T> {
        self.0.get()?.as_deref()?.downcast_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_setting_stays() {
        let attachment = Attachment::default();
        assert!(!attachment.is_set() && attachment.get::<u32>().is_none());
        attachment.set(Some(Arc::new(7_u32)));
        attachment.set(None);
        assert_eq!((attachment.get::<u32>(), attachment.get::<u64>()), (Some(&7), None));
        let nothing = Attachment::default();
        nothing.set(None);
        assert!(nothing.is_set() && nothing.get::<u32>().is_none());
    }
}
