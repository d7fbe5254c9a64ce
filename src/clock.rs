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

/// The length of an interval in microseconds, with days of 24 hours and months of 30 days.
pub fn length(interval: &pgrx::datum::Interval) -> i128 {
    let days = i128::from(interval.months()) * 30 + i128::from(interval.days());
    days * 86_400_000_000 + i128::from(interval.micros())
}
