//! State of one server process.

use std::ops::Deref;

/// A value that belongs to this backend: reachable from everywhere, shared with nobody.
///
/// A `thread_local!` would do the same, at the price of a call for each access from a shared library; the
/// tenant of a row is compared more often than that.
pub struct Backend<T>(T);

// SAFETY: a PostgreSQL backend runs one thread, and pgrx refuses to call into the server from another.
// Nothing here starts a thread, so the value is never reached from two at once.
unsafe impl<T> Sync for Backend<T> {}

impl<T> Backend<T> {
    /// Wraps `value`, which supplies its own interior mutability (`Cell`, `RefCell`).
    pub const fn new(value: T) -> Backend<T> {
        Backend(value)
    }
}

impl<T> Deref for Backend<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}
