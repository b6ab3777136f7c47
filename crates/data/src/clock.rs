//! The date, for chat templates that ask for it with `strftime_now`.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
];
const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// Python's `datetime.now().strftime(format)`, but in UTC.
pub(crate) fn strftime_now(format: &str) -> Result<String, String> {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    strftime(format, since.as_secs())
}

fn strftime(format: &str, seconds: u64) -> Result<String, String> {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month as usize - 1];
    // 1970 began on a Thursday.
    let day_name = DAYS[(days as usize + 3) % 7];
    let mut text = String::new();
    let mut rest = format.chars();
    while let Some(c) = rest.next() {
        if c != '%' {
            text.push(c);
            continue;
        }
        let part = match rest.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('B') => month_name.to_owned(),
            Some('b') => month_name[..3].to_owned(),
            Some('d') => format!("{day:02}"),
            Some('A') => day_name.to_owned(),
            Some('a') => day_name[..3].to_owned(),
            Some('H') => format!("{:02}", second / 3600),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('%') => "%".to_owned(),
            other => {
                let other = other.map(String::from).unwrap_or_default();
                return Err(format!("strftime_now does not know `%{other}`"));
            }
        };
        text += &part;
    }
    Ok(text)
}

/// Year, month and day of a day since 1970, by Howard Hinnant's `civil_from_days`.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    // The year begins in March, so that a leap day is its last.
    let day_of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_pythons() {
        // datetime.fromtimestamp(t, timezone.utc).strftime(...)
        for (seconds, expected) in [
            (0, "Thursday Thu 01 January Jan 1970 70-01 00:00:00"),
            (
                951_825_599,
                "Tuesday Tue 29 February Feb 2000 00-02 11:59:59",
            ),
            (1_709_251_200, "Friday Fri 01 March Mar 2024 24-03 00:00:00"),
            (
                4_102_444_799,
                "Thursday Thu 31 December Dec 2099 99-12 23:59:59",
            ),
        ] {
            assert_eq!(
                strftime("%A %a %d %B %b %Y %y-%m %H:%M:%S", seconds).unwrap(),
                expected
            );
        }
        assert_eq!(
            strftime("%q", 0).unwrap_err(),
            "strftime_now does not know `%q`"
        );
    }
}
