//! The period that an instant belongs to.
//!
//! An *instant* is an `i64`: microseconds since 1970-01-01 00:00 UTC, proleptic Gregorian, without
//! leap seconds, as in PostgreSQL, which counts the same microseconds from 2000-01-01
//! ([`to_postgres`], [`from_postgres`]). The two ends of the range stand for PostgreSQL's
//! `-infinity` and `infinity`.
//!
//! Pure, and total: every instant has a window for every period and billing. What lies beyond the
//! range of `i64` saturates to the infinities; beyond the years -9999 to 9999, where the time zone
//! database ends, a zone keeps the offset that it has there.

use std::error::Error;
use std::fmt;
use std::sync::LazyLock;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::{TimeZone, TimeZoneDatabase};

/// PostgreSQL's epoch, 2000-01-01 00:00 UTC, as an instant: what to subtract from an instant to
/// get a `timestamptz` datum (`POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE` days).
pub const POSTGRES_EPOCH: i64 = 10_957 * DAY;

/// `-infinity`: before every other instant. Equal to PostgreSQL's `DT_NOBEGIN`.
pub const NEG_INFINITY: i64 = i64::MIN;

/// `infinity`: after every other instant. Equal to PostgreSQL's `DT_NOEND`.
pub const INFINITY: i64 = i64::MAX;

/// PostgreSQL's `MIN_TIMESTAMP`, 4714-11-24 00:00 BC, counted from its own epoch.
const POSTGRES_MIN: i64 = -211_813_488_000_000_000;

const SECOND: i64 = 1_000_000;
const MINUTE: i64 = 60 * SECOND;
const HOUR: i64 = 60 * MINUTE;
const DAY: i64 = 24 * HOUR;
const WEEK: i64 = 7 * DAY;

/// 1970-01-05 00:00 UTC, a Monday.
const A_MONDAY: i64 = 4 * DAY;

/// The `timestamptz` datum of an instant. The infinities map to each other; an instant before the
/// first that PostgreSQL knows becomes `-infinity`. Never overflows.
pub const fn to_postgres(instant: i64) -> i64 {
    if instant == INFINITY {
        return INFINITY;
    }
    let datum = instant.saturating_sub(POSTGRES_EPOCH);
    if datum < POSTGRES_MIN { NEG_INFINITY } else { datum }
}

/// The instant of a `timestamptz` datum. The infinities map to each other; the last 30 years that
/// PostgreSQL knows, from 294247 AD on, become the last finite instant. Never overflows.
pub const fn from_postgres(datum: i64) -> i64 {
    if datum == NEG_INFINITY || datum == INFINITY {
        return datum;
    }
    match datum.checked_add(POSTGRES_EPOCH) {
        Some(INFINITY) | None => INFINITY - 1,
        Some(instant) => instant,
    }
}

/// How long a counter counts before it begins again at 0 (docs/quotas.md).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Period {
    /// A second.
    Second,
    /// 60 seconds.
    Minute,
    /// 60 minutes.
    Hour,
    /// A day of the calendar.
    Day,
    /// Seven days of the calendar, from Monday on (ISO 8601, as `date_trunc('week', …)`).
    Week,
    /// A month of the calendar.
    Month,
    /// A year of the calendar.
    Year,
    /// One period without beginning or end: for gauges, and for counters that never reset.
    None,
}

impl Period {
    /// All periods, in the order of the documents.
    pub const ALL: [Period; 8] = [
        Period::Second,
        Period::Minute,
        Period::Hour,
        Period::Day,
        Period::Week,
        Period::Month,
        Period::Year,
        Period::None,
    ];

    /// The text stored in the tables and shown to users.
    pub const fn as_str(self) -> &'static str {
        match self {
            Period::Second => "second",
            Period::Minute => "minute",
            Period::Hour => "hour",
            Period::Day => "day",
            Period::Week => "week",
            Period::Month => "month",
            Period::Year => "year",
            Period::None => "none",
        }
    }

    /// The period that [`as_str`](Period::as_str) writes as `text`; `None` for any other text,
    /// other cases included.
    pub fn parse(text: &str) -> Option<Period> {
        Period::ALL.into_iter().find(|period| period.as_str() == text)
    }
}

/// A time zone of the IANA database that is built into this library. Cheap to clone.
///
/// Not PostgreSQL's own database: that one differs from server to server (`--with-system-tzdata`),
/// and periods are part of the key under which usage is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone(TimeZone);

impl Zone {
    /// The zone's name in the spelling of the IANA database.
    pub fn name(&self) -> &str {
        self.0.iana_name().unwrap_or("UTC")
    }

    /// Seconds that local time is ahead of UTC at `instant`.
    fn offset(&self, instant: i64) -> i64 {
        let known = instant.clamp(Timestamp::MIN.as_microsecond(), Timestamp::MAX.as_microsecond());
        Timestamp::from_microsecond(known)
            .map_or(0, |timestamp| i64::from(self.0.to_offset(timestamp).seconds()))
    }
}

/// The text is not the name of a time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParseZoneError;

impl fmt::Display for ParseZoneError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a name in the IANA time zone database")
    }
}

impl Error for ParseZoneError {}

/// Reads the name of a time zone, such as `Europe/Berlin`; upper and lower case are the same, as
/// in PostgreSQL.
///
/// # Errors
///
/// [`ParseZoneError`] for all else: abbreviations that are not names of the database, offsets,
/// POSIX rules (`CET-1CEST`), `Etc/Unknown`. An offset is refused as it knows no daylight saving:
/// who means one writes `Etc/GMT-2`.
pub fn parse_zone(name: &str) -> Result<Zone, ParseZoneError> {
    static DATABASE: LazyLock<TimeZoneDatabase> = LazyLock::new(TimeZoneDatabase::bundled);

    match DATABASE.get(name) {
        Ok(zone) if !zone.is_unknown() => Ok(Zone(zone)),
        _ => Err(ParseZoneError),
    }
}

/// Where a tenant's periods begin: the columns `billing_anchor` and `time_zone` of
/// `tenant_rls.tenants`. The default is the calendar in UTC.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Billing {
    /// An instant at which a period of every kind begins. Without one (or with an infinite one)
    /// periods are those of the calendar in UTC, and `zone` does not count.
    pub anchor: Option<i64>,
    /// The zone in which days, weeks, months and years are counted from the anchor. Without one:
    /// UTC.
    pub zone: Option<Zone>,
}

/// The instants of one period: `start <= instant < end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// The first instant; [`NEG_INFINITY`] when there is none.
    pub start: i64,
    /// The first instant of the next window; [`INFINITY`] when there is none.
    pub end: i64,
}

impl Window {
    /// The window of [`Period::None`]: all instants.
    pub const ALWAYS: Window = Window { start: NEG_INFINITY, end: INFINITY };

    /// Whether the instant lies in the window. While it does, [`window`] and [`effective_window`]
    /// need not be asked again (as long as billing and changes stay the same).
    pub const fn contains(&self, instant: i64) -> bool {
        self.start <= instant && instant < self.end
    }
}

/// The window of `period` that contains the instant `now` ([`INFINITY`] belongs to the last one).
///
/// The windows of one period and billing tile the time line: the end of one is the start of the
/// next. Where they begin (docs/quotas.md):
///
/// - Without an anchor: at the full second, minute, hour, day, Monday, month or year of UTC.
/// - With an anchor: at the anchor and n periods later or, before it, earlier. Seconds, minutes and
///   hours are lengths of time. Days, weeks, months and years are steps of the calendar in the
///   tenant's zone: the same time of day there, whatever its daylight saving does. n is always
///   counted from the anchor itself, so that a short month leaves no trace: 31 Jan, 28 Feb,
///   31 Mar.
/// - A local time that the zone skips is later by the length of the gap, one that it has twice is
///   the first of the two (RFC 5545, section 3.3.5; Temporal's and jiff's "compatible"). A window
///   that a zone skips whole (30 Dec 2011 in Samoa) has no instants and is never returned.
///
/// Takes constant time, wherever the anchor lies, and does not allocate.
pub fn window(period: Period, billing: &Billing, now: i64) -> Window {
    let now = now.min(INFINITY - 1);
    let anchor = billing.anchor.filter(|&anchor| anchor != NEG_INFINITY && anchor != INFINITY);

    match (period, anchor) {
        (Period::None, _) => Window::ALWAYS,
        (Period::Second, _) => fixed(anchor.unwrap_or(0), SECOND, now),
        (Period::Minute, _) => fixed(anchor.unwrap_or(0), MINUTE, now),
        (Period::Hour, _) => fixed(anchor.unwrap_or(0), HOUR, now),
        (Period::Day, None) => fixed(0, DAY, now),
        (Period::Week, None) => fixed(A_MONDAY, WEEK, now),
        (Period::Month, None) => calendar_months(1, now),
        (Period::Year, None) => calendar_months(12, now),
        (Period::Day, Some(anchor)) => Steps::new(billing, anchor, Step::Days(1)).window(now),
        (Period::Week, Some(anchor)) => Steps::new(billing, anchor, Step::Days(7)).window(now),
        (Period::Month, Some(anchor)) => Steps::new(billing, anchor, Step::Months(1)).window(now),
        (Period::Year, Some(anchor)) => Steps::new(billing, anchor, Step::Months(12)).window(now),
    }
}

/// What a tenant's billing was set to, and when: a row of `tenant_rls.billing_changes`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The instant at which it was set; [`NEG_INFINITY`] for what the tenant was created with.
    pub at: i64,
    /// Counts from the end of the window on that contained `at`.
    pub billing: Billing,
}

/// The window of `period` that contains the instant `now`, for a tenant whose billing has changed.
/// `changes` are all there are, sorted by `at`; later ones than `now` make no difference.
///
/// A change holds from the next period on (docs/registry.md, `tenant_billing_set`): the window
/// that contains its instant ends where it would have ended, and the first window of the new
/// billing begins there, cut short where it would have begun earlier. Of several changes in one
/// window the last one counts. Before the first change, periods are those of the calendar in UTC.
///
/// These windows tile the time line as those of [`window`] do.
pub fn effective_window(period: Period, changes: &[Change], now: i64) -> Window {
    #[derive(Clone, Copy)]
    struct Regime<'a> {
        since: i64,
        billing: &'a Billing,
    }

    let calendar = Billing::default();
    let now = now.min(INFINITY - 1);
    let mut latest = Regime { since: NEG_INFINITY, billing: &calendar };
    let mut held = latest;

    for change in changes.iter().take_while(|change| change.at <= now) {
        // Otherwise `latest` still waits for the window of `held` to end, and is replaced.
        if latest.since <= change.at {
            held = latest;
        }
        let since = if change.at == NEG_INFINITY {
            NEG_INFINITY
        } else {
            window(period, held.billing, change.at).end
        };
        latest = Regime { since, billing: &change.billing };
    }
    if latest.since <= now {
        held = latest;
    }

    // No end to cut: a regime ends where one of its own windows does.
    let Window { start, end } = window(period, held.billing, now);
    Window { start: start.max(held.since), end }
}

/// The instant as RFC 3339 writes it, in UTC: `2026-02-01T00:00:00Z`. Beyond the years -9999 to 9999, where
/// that ends, the nearest instant it can write.
pub fn rfc3339(instant: i64) -> String {
    let nearest = instant.clamp(Timestamp::MIN.as_microsecond(), Timestamp::MAX.as_microsecond());
    Timestamp::from_microsecond(nearest).map_or_else(|_| String::new(), |stamp| stamp.to_string())
}

/// Microseconds from `now` until the window ends and its units are free again, at least 0; `None`
/// when it never ends.
pub const fn retry_after(window: Window, now: i64) -> Option<i64> {
    if window.end == INFINITY {
        return None;
    }
    let wait = window.end.saturating_sub(now);
    Some(if wait > 0 { wait } else { 0 })
}

/// Windows of one length, one of which begins at `origin`.
fn fixed(origin: i64, length: i64, now: i64) -> Window {
    // `now - origin` may overflow, the difference of the remainders cannot.
    let elapsed = (now.rem_euclid(length) - origin.rem_euclid(length)).rem_euclid(length);
    Window { start: now.saturating_sub(elapsed), end: now.saturating_add(length - elapsed) }
}

/// Windows of `length` months of the UTC calendar; `length` divides 12.
fn calendar_months(length: i64, now: i64) -> Window {
    let month = Date::from_days(now.div_euclid(DAY)).months();
    let first = month - month.rem_euclid(length);
    let at = |month| {
        let day = Date::from_months(month, 1).to_days();
        Local { day, micros: 0 }.to_utc(0)
    };
    Window { start: at(first), end: at(first + length) }
}

#[derive(Clone, Copy)]
enum Step {
    Days(i64),
    Months(i64),
}

/// The boundaries that lie steps of the calendar from an anchor.
struct Steps<'a> {
    zone: Option<&'a Zone>,
    anchor: i64,
    anchor_local: Local,
    step: Step,
}

impl Steps<'_> {
    fn new(billing: &Billing, anchor: i64, step: Step) -> Steps<'_> {
        let zone = billing.zone.as_ref();
        Steps { zone, anchor, anchor_local: Local::of(zone, anchor), step }
    }

    /// The boundary n steps from the anchor. Does not decrease with n: no zone has ever skipped
    /// more than one day, and no step is shorter.
    fn boundary(&self, n: i64) -> i64 {
        // The anchor may be the second of two equal local times, which `to_instant` never gives.
        if n == 0 {
            return self.anchor;
        }
        let Local { day, micros } = self.anchor_local;
        let day = match self.step {
            Step::Days(length) => day + n * length,
            Step::Months(length) => {
                let date = Date::from_days(day);
                Date::from_months(date.months() + n * length, date.day).to_days()
            }
        };
        Local { day, micros }.to_instant(self.zone)
    }

    fn window(&self, now: i64) -> Window {
        let today = Local::of(self.zone, now).day;
        let origin = self.anchor_local.day;
        let mut n = match self.step {
            Step::Days(length) => (today - origin).div_euclid(length),
            Step::Months(length) => {
                let months = Date::from_days(today).months() - Date::from_days(origin).months();
                months.div_euclid(length)
            }
        };

        // The estimate leaves out the time of day, the day of the month and what the zone does to
        // them: it is off by one or two, and the last of equal boundaries is wanted. The loops end
        // at the latest where boundaries saturate.
        let mut start = self.boundary(n);
        while start > now {
            n -= 1;
            start = self.boundary(n);
        }
        let mut end = self.boundary(n + 1);
        while end <= now {
            n += 1;
            start = end;
            end = self.boundary(n + 1);
        }
        Window { start, end }
    }
}

/// A date and time without a zone.
#[derive(Clone, Copy)]
struct Local {
    /// Days since 1970-01-01.
    day: i64,
    /// Microseconds of the day, below [`DAY`].
    micros: i64,
}

impl Local {
    /// What the clocks of the zone show at the instant.
    fn of(zone: Option<&Zone>, instant: i64) -> Local {
        let offset = zone.map_or(0, |zone| zone.offset(instant)) * SECOND;
        // Split first: adding the offset to the instant may overflow.
        let micros = instant.rem_euclid(DAY) + offset;
        Local { day: instant.div_euclid(DAY) + micros.div_euclid(DAY), micros: micros.rem_euclid(DAY) }
    }

    /// The instant at which clocks that are `offset` seconds ahead of UTC show this; saturates.
    fn to_utc(self, offset: i64) -> i64 {
        let instant =
            i128::from(self.day) * i128::from(DAY) + i128::from(self.micros) + i128::from(-offset * SECOND);
        i64::try_from(instant).unwrap_or(if instant < 0 { NEG_INFINITY } else { INFINITY })
    }

    /// The instant at which the clocks of the zone show this, skipped and repeated times as
    /// [`window`] says; saturates.
    fn to_instant(self, zone: Option<&Zone>) -> i64 {
        let Some(zone) = zone else {
            return self.to_utc(0);
        };
        let known = self.to_jiff().and_then(|local| zone.0.to_timestamp(local).ok());
        match known {
            Some(timestamp) => timestamp.as_microsecond(),
            None if self.day < 0 => self.to_utc(zone.offset(NEG_INFINITY)),
            None => self.to_utc(zone.offset(INFINITY)),
        }
    }

    /// `None` outside of the years that jiff knows.
    fn to_jiff(self) -> Option<DateTime> {
        let date = Date::from_days(self.day);
        let part = |unit, count| i8::try_from(self.micros / unit % count).ok();
        DateTime::new(
            i16::try_from(date.year).ok()?,
            i8::try_from(date.month).ok()?,
            i8::try_from(date.day).ok()?,
            part(HOUR, 24)?,
            part(MINUTE, 60)?,
            part(SECOND, 60)?,
            i32::try_from(self.micros % SECOND * 1000).ok()?,
        )
        .ok()
    }
}

/// A day of the proleptic Gregorian calendar; year 0 is 1 BC.
///
/// Our own arithmetic, as jiff's ends with the year 9999 and PostgreSQL's timestamps do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Date {
    year: i64,
    /// 1 to 12.
    month: i64,
    /// 1 to 31.
    day: i64,
}

impl Date {
    /// The day that is `days` days after 1970-01-01 (Howard Hinnant, `civil_from_days`: years are
    /// counted from March on, so that the leap day is the last of its year).
    fn from_days(days: i64) -> Date {
        let days = days + 719_468;
        let era = days.div_euclid(146_097);
        let day_of_era = days.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let march_month = (5 * day_of_year + 2) / 153;
        let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
        Date {
            year: era * 400 + year_of_era + i64::from(month <= 2),
            month,
            day: day_of_year - (153 * march_month + 2) / 5 + 1,
        }
    }

    /// Days since 1970-01-01 (Howard Hinnant, `days_from_civil`).
    fn to_days(self) -> i64 {
        let year = self.year - i64::from(self.month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let march_month = (self.month + 9) % 12;
        let day_of_year = (153 * march_month + 2) / 5 + self.day - 1;
        let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
        era * 146_097 + day_of_era - 719_468
    }

    /// Months since January of year 0.
    fn months(self) -> i64 {
        self.year * 12 + self.month - 1
    }

    /// The given day of the month that is `months` months after January of year 0, or the last day
    /// of that month if it is shorter.
    fn from_months(months: i64, day: i64) -> Date {
        let (year, month) = (months.div_euclid(12), months.rem_euclid(12) + 1);
        let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let length = match month {
            2 if leap => 29,
            2 => 28,
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        };
        Date { year, month, day: day.min(length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{Span, Unit};
    use proptest::prelude::*;

    /// Zones with all there is to get wrong: none, half-hour daylight saving, both hemispheres,
    /// negative daylight saving, a skipped day, changes at midnight.
    const ZONES: [&str; 10] = [
        "UTC",
        "Europe/Berlin",
        "America/New_York",
        "Australia/Lord_Howe",
        "America/Santiago",
        "Europe/Dublin",
        "Pacific/Apia",
        "Africa/Casablanca",
        "Asia/Kathmandu",
        "America/Havana",
    ];

    fn at(text: &str) -> i64 {
        let timestamp: Timestamp = text.parse().expect("a timestamp");
        timestamp.as_microsecond()
    }

    fn show(instant: i64) -> String {
        Timestamp::from_microsecond(instant).expect("within jiff's range").to_string()
    }

    fn billing(anchor: &str, zone: &str) -> Billing {
        Billing { anchor: Some(at(anchor)), zone: Some(parse_zone(zone).expect("a zone")) }
    }

    #[track_caller]
    fn assert_window(period: Period, billing: &Billing, now: &str, start: &str, end: &str) {
        let found = window(period, billing, at(now));
        assert_eq!((show(found.start), show(found.end)), (start.to_owned(), end.to_owned()));
    }

    #[test]
    fn without_an_anchor_periods_are_those_of_the_utc_calendar() {
        let now = "2024-02-29T13:45:59.999999Z";
        for (period, start, end) in [
            (Period::Second, "2024-02-29T13:45:59Z", "2024-02-29T13:46:00Z"),
            (Period::Minute, "2024-02-29T13:45:00Z", "2024-02-29T13:46:00Z"),
            (Period::Hour, "2024-02-29T13:00:00Z", "2024-02-29T14:00:00Z"),
            (Period::Day, "2024-02-29T00:00:00Z", "2024-03-01T00:00:00Z"),
            (Period::Week, "2024-02-26T00:00:00Z", "2024-03-04T00:00:00Z"),
            (Period::Month, "2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
            (Period::Year, "2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
        ] {
            assert_window(period, &Billing::default(), now, start, end);
        }
    }

    #[test]
    fn a_zone_without_an_anchor_does_not_move_the_calendar() {
        let zoned = Billing { anchor: None, zone: Some(parse_zone("Asia/Tokyo").unwrap()) };
        let now = at("2024-02-29T20:00:00Z");
        for period in Period::ALL {
            assert_eq!(window(period, &zoned, now), window(period, &Billing::default(), now));
        }
    }

    #[test]
    fn a_boundary_belongs_to_the_window_that_it_opens() {
        let calendar = Billing::default();
        let boundary = at("2024-03-01T00:00:00Z");
        let before = window(Period::Month, &calendar, boundary - 1);
        let after = window(Period::Month, &calendar, boundary);
        assert_eq!((before.end, after.start), (boundary, boundary));
    }

    #[test]
    fn the_calendar_holds_before_1970_and_before_christ() {
        let calendar = Billing::default();
        assert_window(
            Period::Week,
            &calendar,
            "1969-12-31T23:59:59.999999Z",
            "1969-12-29T00:00:00Z",
            "1970-01-05T00:00:00Z",
        );
        assert_window(
            Period::Month,
            &calendar,
            "0000-02-29T12:00:00Z",
            "0000-02-01T00:00:00Z",
            "0000-03-01T00:00:00Z",
        );
        assert_window(
            Period::Year,
            &calendar,
            "-000004-06-01T00:00:00Z",
            "-000004-01-01T00:00:00Z",
            "-000003-01-01T00:00:00Z",
        );
    }

    #[test]
    fn months_from_the_31st_do_not_drift() {
        let monthly = billing("2023-01-31T10:00:00Z", "UTC");
        let mut now = at("2023-01-31T10:00:00Z");
        for end in
            ["2023-02-28T10:00:00Z", "2023-03-31T10:00:00Z", "2023-04-30T10:00:00Z", "2023-05-31T10:00:00Z"]
        {
            now = window(Period::Month, &monthly, now).end;
            assert_eq!(show(now), end);
        }
        assert_window(
            Period::Month,
            &monthly,
            "2024-02-29T09:59:59Z",
            "2024-01-31T10:00:00Z",
            "2024-02-29T10:00:00Z",
        );
    }

    #[test]
    fn years_from_a_leap_day_return_to_it() {
        let yearly = billing("2024-02-29T00:00:00Z", "UTC");
        assert_window(
            Period::Year,
            &yearly,
            "2025-06-01T00:00:00Z",
            "2025-02-28T00:00:00Z",
            "2026-02-28T00:00:00Z",
        );
        assert_window(
            Period::Year,
            &yearly,
            "2027-06-01T00:00:00Z",
            "2027-02-28T00:00:00Z",
            "2028-02-29T00:00:00Z",
        );
    }

    #[test]
    fn instants_before_the_anchor_have_windows_too() {
        let monthly = billing("2023-03-31T00:00:00Z", "UTC");
        assert_window(
            Period::Month,
            &monthly,
            "2023-03-30T23:59:59.999999Z",
            "2023-02-28T00:00:00Z",
            "2023-03-31T00:00:00Z",
        );
        assert_window(
            Period::Week,
            &monthly,
            "2023-03-01T00:00:00Z",
            "2023-02-24T00:00:00Z",
            "2023-03-03T00:00:00Z",
        );
    }

    #[test]
    fn months_keep_the_local_time_of_day_across_daylight_saving() {
        let monthly = billing("2024-01-14T23:00:00Z", "Europe/Berlin");
        assert_window(
            Period::Month,
            &monthly,
            "2024-04-01T00:00:00Z",
            "2024-03-14T23:00:00Z",
            "2024-04-14T22:00:00Z",
        );
    }

    #[test]
    fn the_day_of_the_month_is_the_one_of_the_zone() {
        // 31 January in Auckland, 30 January in UTC.
        let monthly = billing("2023-01-30T12:00:00Z", "Pacific/Auckland");
        assert_window(
            Period::Month,
            &monthly,
            "2023-03-15T00:00:00Z",
            "2023-02-27T12:00:00Z",
            "2023-03-30T12:00:00Z",
        );
    }

    #[test]
    fn a_skipped_local_time_is_later_by_the_gap_on_that_day_only() {
        // 02:30 in Berlin; on 31 March 2024 clocks go from 02:00 to 03:00.
        let daily = billing("2024-03-01T01:30:00Z", "Europe/Berlin");
        assert_window(
            Period::Day,
            &daily,
            "2024-03-31T00:00:00Z",
            "2024-03-30T01:30:00Z",
            "2024-03-31T01:30:00Z",
        );
        assert_window(
            Period::Day,
            &daily,
            "2024-03-31T12:00:00Z",
            "2024-03-31T01:30:00Z",
            "2024-04-01T00:30:00Z",
        );
    }

    #[test]
    fn a_repeated_local_time_is_the_first_of_the_two() {
        // 02:30 in Berlin; on 27 October 2024 clocks go from 03:00 back to 02:00.
        let daily = billing("2024-10-01T00:30:00Z", "Europe/Berlin");
        assert_window(
            Period::Day,
            &daily,
            "2024-10-27T12:00:00Z",
            "2024-10-27T00:30:00Z",
            "2024-10-28T01:30:00Z",
        );
    }

    #[test]
    fn an_anchor_in_the_second_of_two_equal_local_times_stays_where_it_is() {
        let anchor = at("2024-10-27T01:30:00Z");
        let daily = billing("2024-10-27T01:30:00Z", "Europe/Berlin");
        assert_eq!(window(Period::Day, &daily, anchor).start, anchor);
        assert_eq!(window(Period::Day, &daily, anchor - 1).end, anchor);
    }

    #[test]
    fn an_evening_that_comes_back_after_midnight_stays_in_the_window_begun_at_midnight() {
        // In St. John's clocks went from 00:01 on 1 November 2009 back to 23:01 on 31 October.
        let daily = billing("2009-10-01T02:30:30Z", "America/St_Johns");
        assert_window(
            Period::Day,
            &daily,
            "2009-11-01T03:00:00Z",
            "2009-11-01T02:30:30Z",
            "2009-11-02T03:30:30Z",
        );
    }

    #[test]
    fn a_day_that_the_zone_skips_has_no_window() {
        // Samoa went from 29 to 31 December 2011.
        let daily = billing("2011-12-01T20:00:00Z", "Pacific/Apia");
        let before = window(Period::Day, &daily, at("2011-12-30T00:00:00Z"));
        let after = window(Period::Day, &daily, before.end);
        assert_eq!(show(before.end), "2011-12-30T20:00:00Z");
        assert_eq!(show(after.start), "2011-12-30T20:00:00Z");
        assert_eq!(show(after.end), "2011-12-31T20:00:00Z");
    }

    #[test]
    fn hours_are_lengths_of_time_whatever_the_clocks_do() {
        let hourly = billing("2024-03-01T00:10:00Z", "Europe/Berlin");
        assert_window(
            Period::Hour,
            &hourly,
            "2024-03-31T01:00:00Z",
            "2024-03-31T00:10:00Z",
            "2024-03-31T01:10:00Z",
        );
    }

    #[test]
    fn an_anchor_without_a_zone_counts_in_utc() {
        let anchor = Some(at("2023-01-31T10:00:00.000001Z"));
        let unzoned = Billing { anchor, zone: None };
        let utc = Billing { anchor, zone: Some(parse_zone("UTC").unwrap()) };
        let now = at("2024-02-29T20:00:00Z");
        for period in Period::ALL {
            assert_eq!(window(period, &unzoned, now), window(period, &utc, now));
        }
    }

    #[test]
    fn an_infinite_anchor_is_no_anchor() {
        let now = at("2024-02-29T20:00:00Z");
        for anchor in [NEG_INFINITY, INFINITY] {
            let infinite = Billing { anchor: Some(anchor), zone: None };
            for period in Period::ALL {
                assert_eq!(window(period, &infinite, now), window(period, &Billing::default(), now));
            }
        }
    }

    fn change(text: &str, billing: Billing) -> Change {
        Change { at: at(text), billing }
    }

    #[track_caller]
    fn assert_effective(period: Period, changes: &[Change], windows: &[(&str, &str)]) {
        for (start, end) in windows {
            let expected = Window { start: at(start), end: at(end) };
            for now in [expected.start, expected.end - 1] {
                assert_eq!(effective_window(period, changes, now), expected);
            }
        }
    }

    #[test]
    fn a_change_holds_from_the_next_period_on() {
        assert_effective(
            Period::Month,
            &[change("2024-03-10T12:00:00Z", billing("2024-01-15T00:00:00Z", "UTC"))],
            &[
                ("2024-02-01T00:00:00Z", "2024-03-01T00:00:00Z"),
                ("2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z"),
                ("2024-04-01T00:00:00Z", "2024-04-15T00:00:00Z"),
                ("2024-04-15T00:00:00Z", "2024-05-15T00:00:00Z"),
            ],
        );
    }

    #[test]
    fn of_two_changes_in_one_period_the_last_one_counts() {
        assert_effective(
            Period::Month,
            &[
                change("2024-03-10T12:00:00Z", billing("2024-01-15T00:00:00Z", "UTC")),
                change("2024-03-31T23:59:59.999999Z", billing("2024-01-20T00:00:00Z", "UTC")),
            ],
            &[
                ("2024-03-01T00:00:00Z", "2024-04-01T00:00:00Z"),
                ("2024-04-01T00:00:00Z", "2024-04-20T00:00:00Z"),
            ],
        );
    }

    #[test]
    fn a_change_in_a_period_cut_short_waits_for_its_end() {
        assert_effective(
            Period::Month,
            &[
                change("2024-03-10T12:00:00Z", billing("2024-01-15T00:00:00Z", "UTC")),
                change("2024-04-01T00:00:00Z", billing("2024-01-20T00:00:00Z", "UTC")),
            ],
            &[
                ("2024-04-01T00:00:00Z", "2024-04-15T00:00:00Z"),
                ("2024-04-15T00:00:00Z", "2024-04-20T00:00:00Z"),
                ("2024-04-20T00:00:00Z", "2024-05-20T00:00:00Z"),
            ],
        );
    }

    #[test]
    fn each_period_waits_for_its_own_end() {
        let changes = [change("2024-03-10T12:00:00Z", billing("2024-01-15T00:30:00Z", "UTC"))];
        assert_effective(
            Period::Hour,
            &changes,
            &[
                ("2024-03-10T12:00:00Z", "2024-03-10T13:00:00Z"),
                ("2024-03-10T13:00:00Z", "2024-03-10T13:30:00Z"),
            ],
        );
        assert_effective(
            Period::Year,
            &changes,
            &[
                ("2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z"),
                ("2025-01-01T00:00:00Z", "2025-01-15T00:30:00Z"),
            ],
        );
    }

    #[test]
    fn a_tenant_may_return_to_the_calendar() {
        assert_effective(
            Period::Month,
            &[
                Change { at: NEG_INFINITY, billing: billing("2024-01-15T00:00:00Z", "UTC") },
                change("2024-03-10T12:00:00Z", Billing::default()),
            ],
            &[
                ("2024-01-15T00:00:00Z", "2024-02-15T00:00:00Z"),
                ("2024-02-15T00:00:00Z", "2024-03-15T00:00:00Z"),
                ("2024-03-15T00:00:00Z", "2024-04-01T00:00:00Z"),
                ("2024-04-01T00:00:00Z", "2024-05-01T00:00:00Z"),
            ],
        );
    }

    #[test]
    fn retry_after_is_the_rest_of_the_window() {
        let hour = Window { start: 0, end: HOUR };
        assert_eq!(retry_after(hour, 1), Some(HOUR - 1));
        assert_eq!(retry_after(hour, HOUR), Some(0));
        assert_eq!(retry_after(hour, INFINITY), Some(0));
        assert_eq!(retry_after(hour, NEG_INFINITY), Some(i64::MAX));
        assert_eq!(retry_after(Window::ALWAYS, 0), None);
    }

    #[test]
    fn the_epochs_are_30_years_apart_and_infinity_stays_infinity() {
        assert_eq!(POSTGRES_EPOCH, at("2000-01-01T00:00:00Z"));
        assert_eq!(to_postgres(POSTGRES_EPOCH), 0);
        assert_eq!(from_postgres(0), POSTGRES_EPOCH);
        assert_eq!(from_postgres(POSTGRES_MIN), at("-004713-11-24T00:00:00Z"));
        for infinity in [NEG_INFINITY, INFINITY] {
            assert_eq!(to_postgres(infinity), infinity);
            assert_eq!(from_postgres(infinity), infinity);
        }
        assert_eq!(from_postgres(i64::MAX - 1), INFINITY - 1);
        assert_eq!(to_postgres(i64::MIN + 1), NEG_INFINITY);
    }

    #[test]
    fn names_of_the_iana_database_are_zones_and_nothing_else_is() {
        assert_eq!(parse_zone("europe/berlin").unwrap().name(), "Europe/Berlin");
        assert_eq!(parse_zone("UTC").unwrap().name(), "UTC");
        for name in [
            "",
            " ",
            "Europe/Atlantis",
            "+02:00",
            "CET-1CEST",
            "Europe/Berlin ",
            "Europe/Berlin\0",
            "../../etc/passwd",
            "/etc/localtime",
            "posix/Europe/Berlin",
            "localtime",
            "Etc/Unknown",
        ] {
            assert_eq!(parse_zone(name), Err(ParseZoneError), "{name:?}");
        }
    }

    #[test]
    fn a_period_is_read_as_it_is_written_and_in_no_other_way() {
        for period in Period::ALL {
            assert_eq!(Period::parse(period.as_str()), Some(period));
        }
        for text in ["", "Month", "months", "week "] {
            assert_eq!(Period::parse(text), None, "{text:?}");
        }
    }

    #[track_caller]
    fn assert_tiles(window: impl Fn(i64) -> Window, now: i64) {
        let this = window(now);
        assert!(this.contains(now.min(INFINITY - 1)), "{this:?}");
        assert_eq!(window(this.end - 1), this, "its last instant");
        if this.start != NEG_INFINITY {
            assert_eq!(window(this.start), this, "its first instant");
            assert_eq!(window(this.start - 1).end, this.start, "the window before");
        }
        if this.end != INFINITY {
            assert_eq!(window(this.end).start, this.end, "the window after");
        }
    }

    /// `boundary` may not decrease with n. That no zone breaks it is a property of the database, so
    /// it is asked about every change of every zone.
    #[test]
    fn windows_tile_around_every_change_of_every_zone() {
        let database = TimeZoneDatabase::bundled();
        let since = Timestamp::from_second(-5_000_000_000).unwrap();
        let until = at("2040-01-01T00:00:00Z");
        for name in database.available() {
            let zone = parse_zone(name.as_str()).unwrap();
            for change in zone.0.following(since) {
                let change = change.timestamp().as_microsecond();
                if change >= until {
                    break;
                }
                for anchor in [change - 40 * DAY - 25 * MINUTE, change + 25 * MINUTE] {
                    let daily = Billing { anchor: Some(anchor), zone: Some(zone.clone()) };
                    assert_tiles(|now| window(Period::Day, &daily, now), change - 1);
                    assert_tiles(|now| window(Period::Day, &daily, now), change + DAY);
                }
            }
        }
    }

    /// Instants from anywhere, from the ends of each range, and from our time.
    fn instants() -> impl Strategy<Value = i64> {
        let first = Timestamp::MIN.as_microsecond();
        let last = Timestamp::MAX.as_microsecond();
        prop_oneof![
            2 => any::<i64>(),
            1 => NEG_INFINITY..NEG_INFINITY + 400 * DAY,
            1 => INFINITY - 400 * DAY..=INFINITY,
            1 => first - 400 * DAY..first + 400 * DAY,
            1 => last - 400 * DAY..last + 400 * DAY,
            1 => -2 * 366 * DAY..2 * 366 * DAY,
            4 => at("1840-01-01T00:00:00Z")..at("2100-01-01T00:00:00Z"),
        ]
    }

    fn periods() -> impl Strategy<Value = Period> {
        proptest::sample::select(&Period::ALL)
    }

    fn zones() -> impl Strategy<Value = Zone> {
        proptest::sample::select(&ZONES).prop_map(|name| parse_zone(name).unwrap())
    }

    fn billings() -> impl Strategy<Value = Billing> {
        (proptest::option::of(instants()), proptest::option::of(zones()))
            .prop_map(|(anchor, zone)| Billing { anchor, zone })
    }

    /// Sorted; most of them close together, so that some wait for the same window to end.
    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let near = |now: i64| {
            prop_oneof![
                1 => Just(NEG_INFINITY),
                1 => instants(),
                6 => (-60 * DAY..60 * DAY).prop_map(move |delta| now.saturating_add(delta)),
                6 => (-HOUR..HOUR).prop_map(move |delta| now.saturating_add(delta)),
            ]
        };
        let change = move |now| (near(now), billings()).prop_map(|(at, billing)| Change { at, billing });
        instants().prop_flat_map(move |now| proptest::collection::vec(change(now), 0..6)).prop_map(
            |mut changes| {
                changes.sort_by_key(|change| change.at);
                changes
            },
        )
    }

    /// An instant, more often than not near one of the changes.
    fn instant_near(changes: &[Change], any: i64, delta: i64) -> i64 {
        match changes.get(any.unsigned_abs() as usize % (changes.len() + 1)) {
            Some(change) if change.at != NEG_INFINITY => change.at.saturating_add(delta),
            _ => any,
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn windows_tile_the_time_line(
            period in periods(),
            anchor in proptest::option::of(instants()),
            zone in proptest::option::of(zones()),
            now in instants(),
        ) {
            let billing = Billing { anchor, zone };
            assert_tiles(|now| window(period, &billing, now), now);
        }

        #[test]
        fn windows_tile_whatever_changes(
            period in periods(),
            changes in changes(),
            any in instants(),
            delta in -70 * DAY..70 * DAY,
        ) {
            let now = instant_near(&changes, any, delta);
            assert_tiles(|now| effective_window(period, &changes, now), now);
        }

        #[test]
        fn windows_follow_time(
            period in periods(),
            changes in changes(),
            any in instants(),
            (delta, step) in (-70 * DAY..70 * DAY, 0..70 * DAY),
        ) {
            let now = instant_near(&changes, any, delta);
            let this = effective_window(period, &changes, now);
            let later = effective_window(period, &changes, now.saturating_add(step));
            prop_assert!(this == later || this.end <= later.start, "{:?} {:?}", this, later);
        }

        #[test]
        fn a_change_alters_nothing_up_to_the_end_of_the_window_that_contains_it(
            period in periods(),
            changes in changes(),
            back in 0..400 * DAY,
        ) {
            for (n, change) in changes.iter().enumerate() {
                if change.at == NEG_INFINITY {
                    continue;
                }
                let before = effective_window(period, &changes[..n], change.at);
                for now in [change.at, before.end - 1, change.at.saturating_sub(back)] {
                    prop_assert_eq!(
                        effective_window(period, &changes, now),
                        effective_window(period, &changes[..n], now)
                    );
                }
            }
        }

        #[test]
        fn the_last_change_counts_from_there_on(
            period in periods(),
            changes in changes(),
            step in 0..400 * DAY,
        ) {
            let Some((last, rest)) = changes.split_last() else {
                return Ok(());
            };
            let since = match last.at {
                NEG_INFINITY => NEG_INFINITY,
                at => effective_window(period, rest, at).end,
            };
            for now in [since, since.saturating_add(step)] {
                if now < INFINITY {
                    let plain = window(period, &last.billing, now);
                    prop_assert_eq!(
                        effective_window(period, &changes, now),
                        Window { start: plain.start.max(since), end: plain.end }
                    );
                }
            }
        }

        #[test]
        fn a_change_replaced_in_its_own_window_leaves_no_trace(
            period in periods(),
            changes in changes(),
            replaced in billings(),
            any in instants(),
            delta in -70 * DAY..70 * DAY,
        ) {
            let Some(last) = changes.last().filter(|last| last.at != NEG_INFINITY) else {
                return Ok(());
            };
            let rest = &changes[..changes.len() - 1];
            let earlier = rest.last().map_or(NEG_INFINITY + 1, |change| change.at.saturating_add(1));
            let mut with = rest.to_vec();
            with.push(Change {
                at: effective_window(period, rest, last.at).start.max(earlier).min(last.at),
                billing: replaced,
            });
            with.push(last.clone());
            let now = instant_near(&changes, any, delta);
            prop_assert_eq!(
                effective_window(period, &with, now),
                effective_window(period, &changes, now)
            );
        }

        #[test]
        fn a_tenant_without_changes_keeps_what_it_was_created_with(
            period in periods(),
            billing in billings(),
            now in instants(),
        ) {
            let created = [Change { at: NEG_INFINITY, billing: billing.clone() }];
            prop_assert_eq!(effective_window(period, &created, now), window(period, &billing, now));
            prop_assert_eq!(effective_window(period, &[], now), window(period, &Billing::default(), now));
        }

        #[test]
        fn an_anchor_opens_a_window_of_every_period(
            period in periods(),
            anchor in NEG_INFINITY + 1..INFINITY,
            zone in zones(),
        ) {
            let billing = Billing { anchor: Some(anchor), zone: Some(zone) };
            if period != Period::None {
                prop_assert_eq!(window(period, &billing, anchor).start, anchor);
            }
        }

        #[test]
        fn the_calendar_agrees_with_jiff(now in at("-009998-01-01T00:00:00Z")..at("9999-01-01T00:00:00Z")) {
            let midnight = Timestamp::from_microsecond(now)
                .unwrap()
                .to_zoned(TimeZone::UTC)
                .start_of_day()
                .unwrap();
            let monday = midnight
                .checked_sub(Span::new().days(midnight.weekday().to_monday_zero_offset()))
                .unwrap();
            for (period, start, step) in [
                (Period::Day, midnight.clone(), Span::new().days(1)),
                (Period::Week, monday, Span::new().weeks(1)),
                (Period::Month, midnight.first_of_month().unwrap(), Span::new().months(1)),
                (Period::Year, midnight.first_of_year().unwrap(), Span::new().years(1)),
            ] {
                let expected = Window {
                    start: start.timestamp().as_microsecond(),
                    end: start.checked_add(step).unwrap().timestamp().as_microsecond(),
                };
                prop_assert_eq!(window(period, &Billing::default(), now), expected);
            }
        }

        #[test]
        fn boundaries_are_the_anchor_and_whole_spans_of_jiff(
            unit in proptest::sample::select(&[
                (Period::Day, Unit::Day),
                (Period::Week, Unit::Week),
                (Period::Month, Unit::Month),
                (Period::Year, Unit::Year),
            ]),
            anchor in at("1900-01-01T00:00:00Z")..at("2100-01-01T00:00:00Z"),
            zone in zones(),
            n in -500..500i64,
        ) {
            let (period, unit) = unit;
            let origin = Timestamp::from_microsecond(anchor).unwrap().to_zoned(zone.0.clone());
            let step = |n: i64| {
                let span = match unit {
                    Unit::Day => Span::new().days(n),
                    Unit::Week => Span::new().weeks(n),
                    Unit::Month => Span::new().months(n),
                    _ => Span::new().years(n),
                };
                origin.checked_add(span).unwrap().timestamp().as_microsecond()
            };
            let billing = Billing { anchor: Some(anchor), zone: Some(zone.clone()) };
            let expected = Window { start: step(n), end: step(n + 1) };
            if expected.start < expected.end {
                prop_assert_eq!(window(period, &billing, expected.start), expected);
                prop_assert_eq!(window(period, &billing, expected.end - 1), expected);
            }
        }

        #[test]
        fn conversions_to_postgresql_return_and_never_overflow(instant: i64) {
            let datum = to_postgres(instant);
            if datum != NEG_INFINITY {
                prop_assert_eq!(from_postgres(datum), instant);
            }
            let _ = from_postgres(instant);
        }

        #[test]
        fn arbitrary_names_never_panic(name in any::<String>()) {
            let _ = parse_zone(&name);
        }
    }
}
