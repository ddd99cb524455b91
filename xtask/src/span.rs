//! Lengths of time as people type and read them.

use std::time::Duration;

/// Reads `500ms`, `30s`, `5m` or `2h`. The unit is required.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits
        .parse()
        .map_err(|_| format!("`{text}` is not a length of time such as 30s"))?;
    let seconds = match &text[digits.len()..] {
        "ms" => number / 1e3,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "" => return Err(format!("`{text}` has no unit: ms, s, m or h")),
        unit => return Err(format!("`{unit}` is not a unit of time: ms, s, m or h")),
    };
    Duration::try_from_secs_f64(seconds).map_err(|_| format!("`{text}` is not a length of time such as 30s"))
}

/// `0.3 s`, `12 s`, `3 min 20 s`.
pub(crate) fn show(span: Duration) -> String {
    let seconds = span.as_secs_f64();
    match span.as_secs() {
        0..10 => format!("{seconds:.1} s"),
        10..100 => format!("{seconds:.0} s"),
        whole => format!("{} min {} s", whole / 60, whole % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_needs_a_number_and_a_unit() {
        assert_eq!(parse("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(parse("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("2h"), Ok(Duration::from_secs(7200)));
        assert_eq!(parse("30").unwrap_err(), "`30` has no unit: ms, s, m or h");
        assert_eq!(
            parse("3d").unwrap_err(),
            "`d` is not a unit of time: ms, s, m or h"
        );
        for text in ["", "s", "-3s", "nans", "infs", "1e300h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_span_is_shown_with_the_digits_that_matter() {
        assert_eq!(show(Duration::from_millis(320)), "0.3 s");
        assert_eq!(show(Duration::from_millis(12_400)), "12 s");
        assert_eq!(show(Duration::from_secs(200)), "3 min 20 s");
    }
}
