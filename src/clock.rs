//! The server's clock.

/// Now, in microseconds since 2000-01-01. Not SQL's now(), which stands still for as long as the transaction lasts.
pub fn now() -> i64 {
    // Every statement of a session with a ticket asks: pgrx's guard would cost more than the clock.
    unsafe extern "C-unwind" {
        fn GetCurrentTimestamp() -> i64;
    }
    // SAFETY: reads the clock.
    unsafe { GetCurrentTimestamp() }
}
