//! Days of the calendar, as far as they are known.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

/// A day, a month or a year of the civil calendar.
///
/// Ordered by its first day, a vaguer date before its parts: 2022 < 2022-11 < 2022-11-01.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    year: u16,
    month: Option<u8>,
    day: Option<u8>,
}

impl Date {
    /// # Panics
    /// If the calendar has no such day.
    pub const fn new(year: u16, month: u8, day: u8) -> Date {
        assert!(month >= 1 && month <= 12, "a month of the year");
        assert!(day >= 1 && day <= days(year, month), "a day of the month");
        Date {
            year,
            month: Some(month),
            day: Some(day),
        }
    }

    pub fn year(self) -> u16 {
        self.year
    }

    /// `None` where only the year is known.
    pub fn month(self) -> Option<u8> {
        self.month
    }

    /// `None` where only the month is known.
    pub fn day(self) -> Option<u8> {
        self.day
    }

    /// Whether the day is known.
    pub fn is_whole(self) -> bool {
        self.day.is_some()
    }

    /// The first day that it may mean.
    pub fn first_day(self) -> Date {
        Date {
            year: self.year,
            month: self.month.or(Some(1)),
            day: self.day.or(Some(1)),
        }
    }

    /// The last day that it may mean.
    pub fn last_day(self) -> Date {
        let month = self.month.unwrap_or(12);
        Date {
            year: self.year,
            month: Some(month),
            day: self.day.or(Some(days(self.year, month))),
        }
    }
}

const fn days(year: u16, month: u8) -> u8 {
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// ISO 8601: `2022-10-07`, or as much of it as is known, `2022-10` or `2022`.
impl FromStr for Date {
    type Err = String;

    fn from_str(text: &str) -> Result<Date, String> {
        let wrong = || format!("{text:?} is no date; write it as 2022-10-07");
        let parts: Vec<&str> = text.split('-').collect();
        let number = |part: &str, width: usize| {
            let digits = part.len() == width && part.bytes().all(|byte| byte.is_ascii_digit());
            digits.then(|| part.parse::<u16>().ok()).flatten()
        };
        if parts.len() > 3 {
            return Err(wrong());
        }
        let year = number(parts[0], 4).ok_or_else(wrong)?;
        let small = |index: usize| match parts.get(index) {
            None => Ok(None),
            Some(part) => {
                let value = number(part, 2).and_then(|value| u8::try_from(value).ok());
                value.map(Some).ok_or_else(wrong)
            }
        };
        let (month, day) = (small(1)?, small(2)?);
        if month.is_some_and(|month| !(1..=12).contains(&month)) {
            return Err(format!("{text:?} names a month that no year has"));
        }
        if let (Some(month), Some(day)) = (month, day)
            && !(1..=days(year, month)).contains(&day)
        {
            return Err(format!("{text:?} names a day that the month does not have"));
        }
        Ok(Date { year, month, day })
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Through one string, so that a width given by the caller pads the whole.
        let mut text = format!("{:04}", self.year);
        for part in [self.month, self.day].into_iter().flatten() {
            text.push_str(&format!("-{part:02}"));
        }
        f.pad(&text)
    }
}

impl Serialize for Date {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::Date;

    fn date(text: &str) -> Date {
        text.parse().expect("a date")
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        for text in ["2022-10-07", "2024-02-29", "2000-02-29", "2022-11", "2025"] {
            assert_eq!(date(text).to_string(), text);
        }
        assert_eq!(date("2022-10-07"), Date::new(2022, 10, 7));
    }

    #[test]
    fn order_is_that_of_the_calendar() {
        let ordered = ["2021-12-31", "2022", "2022-11", "2022-11-01", "2022-11-02"];
        assert!(ordered.windows(2).all(|pair| date(pair[0]) < date(pair[1])));
        assert_eq!(date("2023-02").last_day(), date("2023-02-28"));
        assert_eq!(date("2024").last_day(), date("2024-12-31"));
        assert_eq!(date("2024-05").first_day(), date("2024-05-01"));
    }

    #[test]
    fn days_that_never_were_are_refused() {
        for text in [
            "2023-02-29",
            "1900-02-29",
            "2022-13",
            "2022-00-01",
            "2022-04-31",
            "22-10-07",
            "2022-1-07",
            "2022-10-07-1",
            "2022/10/07",
            "",
            "+022-10-07",
            "2022-10-00",
        ] {
            assert!(text.parse::<Date>().is_err(), "{text:?}");
        }
    }
}
