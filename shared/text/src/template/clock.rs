//! `strftime_now`: the local time in Python's format codes.

use std::fmt::Write as _;

use jiff::civil::DateTime;
use minijinja::{Error, ErrorKind};

const DAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];
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
/// A format longer than this is none.
const MAX_FORMAT: usize = 1024;

/// The local time.
pub(super) fn now() -> DateTime {
    jiff::Zoned::now().datetime()
}

/// `time.strftime(format)` in the C locale, for a time without a zone.
///
/// # Errors
/// The format is too long.
pub(super) fn format(time: &DateTime, format: &str) -> Result<String, Error> {
    if format.len() > MAX_FORMAT {
        return Err(Error::new(ErrorKind::InvalidOperation, "the time format is too long"));
    }
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        // GNU flags: no padding, spaces, zeros.
        let mut code = chars.next();
        let flag = code.filter(|c| matches!(c, '-' | '_' | '0' | '^'));
        if flag.is_some() {
            code = chars.next();
        }
        match code {
            Some(code) => field(&mut out, time, code, flag),
            None => {
                out.push('%');
                out.extend(flag);
            }
        }
    }
    Ok(out)
}

fn field(out: &mut String, time: &DateTime, code: char, flag: Option<char>) {
    let weekday = time.weekday();
    let from_monday = i64::from(weekday.to_monday_zero_offset());
    let from_sunday = i64::from(weekday.to_sunday_zero_offset());
    let day_of_year = i64::from(time.day_of_year());
    let name = |names: &[&'static str], index: i8| {
        names.get(usize::from(index.unsigned_abs())).copied().unwrap_or("")
    };
    let day = name(&DAYS, weekday.to_monday_zero_offset());
    let month = name(&MONTHS, time.month() - 1);
    let hour12 = (i64::from(time.hour()) + 11) % 12 + 1;
    let half = if time.hour() < 12 { "AM" } else { "PM" };
    let iso = time.date().iso_week_date();
    let mut number = |value: i64, width: usize, pad: char| {
        let pad = match flag {
            Some('-') => None,
            Some('_') => Some(' '),
            Some('0') => Some('0'),
            _ => Some(pad),
        };
        let digits = value.to_string();
        if let Some(pad) = pad {
            out.extend(std::iter::repeat_n(pad, width.saturating_sub(digits.len())));
        }
        out.push_str(&digits);
    };
    match code {
        'd' => number(time.day().into(), 2, '0'),
        'e' => number(time.day().into(), 2, ' '),
        'm' => number(time.month().into(), 2, '0'),
        'y' => number(i64::from(time.year()).rem_euclid(100), 2, '0'),
        'Y' => number(time.year().into(), 4, '0'),
        'C' => number(i64::from(time.year()).div_euclid(100), 2, '0'),
        'H' => number(time.hour().into(), 2, '0'),
        'k' => number(time.hour().into(), 2, ' '),
        'I' => number(hour12, 2, '0'),
        'l' => number(hour12, 2, ' '),
        'M' => number(time.minute().into(), 2, '0'),
        'S' => number(time.second().into(), 2, '0'),
        'f' => number(i64::from(time.subsec_nanosecond()) / 1000, 6, '0'),
        'j' => number(day_of_year, 3, '0'),
        'u' => number(from_monday + 1, 1, '0'),
        'w' => number(from_sunday, 1, '0'),
        'U' => number((day_of_year + 6 - from_sunday) / 7, 2, '0'),
        'W' => number((day_of_year + 6 - from_monday) / 7, 2, '0'),
        'V' => number(iso.week().into(), 2, '0'),
        'G' => number(iso.year().into(), 4, '0'),
        'g' => number(i64::from(iso.year()).rem_euclid(100), 2, '0'),
        'A' => cased(out, day, flag),
        'a' => cased(out, &day[..3.min(day.len())], flag),
        'B' => cased(out, month, flag),
        'b' | 'h' => cased(out, &month[..3.min(month.len())], flag),
        'p' => out.push_str(half),
        'P' => out.push_str(&half.to_lowercase()),
        'n' => out.push('\n'),
        't' => out.push('\t'),
        '%' => out.push('%'),
        'D' | 'x' => several(out, time, "%m/%d/%y"),
        'F' => several(out, time, "%Y-%m-%d"),
        'T' | 'X' => several(out, time, "%H:%M:%S"),
        'R' => several(out, time, "%H:%M"),
        'r' => several(out, time, "%I:%M:%S %p"),
        'c' => several(out, time, "%a %b %e %H:%M:%S %Y"),
        // A time without a zone has neither a name nor an offset.
        'z' | 'Z' => {}
        _ => {
            let _ = write!(out, "%{}{code}", flag.map(String::from).unwrap_or_default());
        }
    }
}

fn several(out: &mut String, time: &DateTime, codes: &str) {
    let codes = codes.split('%').skip(1).map(|part| (part.chars().next().unwrap_or('%'), part.get(1..)));
    for (code, between) in codes {
        field(out, time, code, None);
        out.push_str(between.unwrap_or_default());
    }
}

fn cased(out: &mut String, text: &str, flag: Option<char>) {
    if flag == Some('^') { out.push_str(&text.to_uppercase()) } else { out.push_str(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes() {
        let time = jiff::civil::date(2024, 3, 7).at(15, 4, 5, 678_901_000);
        let text = |codes: &str| format(&time, codes).unwrap();
        assert_eq!(text("%d %b %Y"), "07 Mar 2024");
        assert_eq!(text("%-d/%-m|%e|%_H|%^a"), "7/3| 7|15|THU");
        assert_eq!(text("%A, %B %d, %Y %I:%M %p"), "Thursday, March 07, 2024 03:04 PM");
        assert_eq!(text("%F %T.%f %j %U %W %V %u%w"), "2024-03-07 15:04:05.678901 067 09 10 10 44");
        assert_eq!(text("%c|%D|%R|%r"), "Thu Mar  7 15:04:05 2024|03/07/24|15:04|03:04:05 PM");
        assert_eq!(text("100%% %Z%z%Q %"), "100% %Q %");
    }
}
