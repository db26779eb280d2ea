//! Data on stdout, words for people on stderr; `--json` prints one JSON value instead of tables.

use bastionai_graph::contract::Domain;
use serde::Serialize;

/// Prints `value` as one pretty JSON document on stdout.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// `value` as JSON, or what `people` prints.
pub(crate) fn either(json_wanted: bool, value: &impl Serialize, people: impl FnOnce()) -> anyhow::Result<()> {
    if json_wanted {
        return json(value);
    }
    people();
    Ok(())
}

/// Prints rows under a header, columns aligned; numbers are the caller's to format.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .chain([header[column].len()])
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let line = |cells: &[String]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(&widths)
            .map(|(cell, &width)| format!("{cell:<width$}"))
            .collect();
        println!("{}", padded.join("  ").trim_end());
    };
    line(&header.iter().map(ToString::to_string).collect::<Vec<_>>());
    line(&widths.iter().map(|&width| "─".repeat(width)).collect::<Vec<_>>());
    rows.iter().for_each(|row| line(row));
}

/// The declared values of a column, in a line.
pub(crate) fn domain(domain: &Domain) -> String {
    match domain {
        Domain::Range { minimum, maximum } => match (minimum.as_slice(), maximum.as_slice()) {
            ([low], [high]) => format!("{low} … {high}"),
            _ => format!(
                "a range for each of {} elements",
                minimum.len().max(maximum.len())
            ),
        },
        Domain::Classes { names } => names.join(", "),
        Domain::Bool => "true, false".to_owned(),
    }
}

/// Milliseconds since 1970 as `YYYY-MM-DD hh:mm:ss`, UTC.
pub(crate) fn time(unix_ms: u64) -> String {
    let (days, seconds) = (unix_ms / 86_400_000, unix_ms / 1000 % 86_400);
    let (year, month, day) = civil_from_days(days);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Days since 1970 → (year, month, day) of the proleptic Gregorian calendar
/// (Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`).
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_are_civil_dates() {
        assert_eq!(time(0), "1970-01-01 00:00:00");
        assert_eq!(time(951_782_400_000), "2000-02-29 00:00:00");
        assert_eq!(time(1_795_410_061_000), "2026-11-23 05:01:01");
    }
}
