//! `strftime_now` of chat templates, from a time that the caller gives: no clock is read.

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
const DAYS: [&str; 7] = [
    "Thursday",
    "Friday",
    "Saturday",
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
];

/// `seconds` since 1970 in UTC, as C's `strftime` in the C locale writes it. Directives that no
/// template has use for are an error, which names them.
pub(super) fn strftime(seconds: i64, format: &str) -> Result<String, String> {
    let days = seconds.div_euclid(86_400);
    let second = seconds.rem_euclid(86_400);
    let (year, month, day) = civil(days);
    let month_name = MONTHS[month - 1];
    let day_name = DAYS[days.rem_euclid(7) as usize];
    let hour = second / 3600;
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        out += &match characters.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year.rem_euclid(100)),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('B') => month_name.to_string(),
            Some('b') => month_name[..3].to_string(),
            Some('A') => day_name.to_string(),
            Some('a') => day_name[..3].to_string(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{:02}", (hour + 11) % 12 + 1),
            Some('p') => (if hour < 12 { "AM" } else { "PM" }).to_string(),
            Some('M') => format!("{:02}", second / 60 % 60),
            Some('S') => format!("{:02}", second % 60),
            Some('Z') => "UTC".to_string(),
            Some('z') => "+0000".to_string(),
            Some('%') => "%".to_string(),
            other => {
                return Err(format!(
                    "strftime_now: %{} is not known",
                    other.unwrap_or(' ')
                ));
            }
        };
    }
    Ok(out)
}

/// Year, month (1 to 12) and day (1 to 31) of a day counted from 1970-01-01, in the proleptic
/// Gregorian calendar. Years are counted from March, so that the leap day is their last.
fn civil(days: i64) -> (i64, usize, i64) {
    // Days since 0000-03-01; 400 years have 146,097 days.
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let leap_days = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap_days) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // March to July, and August to December, have 153 days; the months repeat that pattern.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month as usize, day)
}

#[cfg(test)]
mod tests {
    use super::strftime;

    /// Dates from `date -u -d @SECONDS`.
    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, format, expected) in [
            (0, "%Y-%m-%d %a %H:%M:%S", "1970-01-01 Thu 00:00:00"),
            (1_737_331_200, "%d %b %Y", "20 Jan 2025"),
            (951_782_400, "%A %d %B %y", "Tuesday 29 February 00"),
            (4_107_542_400, "%e. %m. %Y", " 1. 03. 2100"),
            (-1, "%Y-%m-%d %I:%M %p", "1969-12-31 11:59 PM"),
            (43_200, "%I%p 100%% %Z%z", "12PM 100% UTC+0000"),
        ] {
            assert_eq!(strftime(seconds, format).as_deref(), Ok(expected));
        }
        assert!(strftime(0, "%Q").is_err());
        assert!(strftime(0, "%").is_err());
    }
}
