//! Numbers as people read them.

/// A count to four digits: `950`, `3.412 k`, `313.5 M`, `15.47 G`.
///
/// ```
/// assert_eq!(hetconv::units::count(313_463_808), "313.5 M");
/// assert_eq!(hetconv::units::count(10), "10");
/// ```
pub fn count(n: u64) -> String {
    let scaled = [(1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")];
    // Just below a unit, four digits would round up to it.
    match scaled.into_iter().find(|(size, _)| n as f64 >= size * 0.99995) {
        Some((size, unit)) => format!("{} {unit}", significant(n as f64 / size)),
        None => n.to_string(),
    }
}

/// A count with its digits in groups of three: `313,463,808`.
///
/// ```
/// assert_eq!(hetconv::units::grouped(313_463_808), "313,463,808");
/// ```
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A number of milliseconds with its unit: `0.0213 ms`, `4.71 ms`, `470 ms`.
pub fn milliseconds(ms: f64) -> String {
    match ms {
        _ if ms >= 100.0 => format!("{ms:.0} ms"),
        _ if ms >= 1.0 => format!("{ms:.2} ms"),
        _ => format!("{ms:.4} ms"),
    }
}

/// A time with its unit: `8.3 s`, `4 min 05 s`, `2 h 10 min`.
///
/// ```
/// assert_eq!(hetconv::units::duration(245.0), "4 min 05 s");
/// ```
pub fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A number of things per second, with a digit behind the point where there are few: `7.4`, `1280`.
pub fn rate(per_second: f64) -> String {
    let precision = if per_second < 10.0 { 1 } else { 0 };
    format!("{per_second:.precision$}")
}

/// The mean of some values, or none of none.
pub fn mean(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let (sum, n) = values.into_iter().fold((0.0, 0u32), |(sum, n), value| (sum + value, n + 1));
    (n > 0).then(|| sum / f64::from(n))
}

/// Four significant digits of a number from 1 up.
fn significant(value: f64) -> String {
    match value {
        _ if value < 9.9995 => format!("{value:.3}"),
        _ if value < 99.995 => format!("{value:.2}"),
        _ => format!("{value:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_keep_four_digits_and_change_unit_at_the_right_place() {
        let cases = [
            (0, "0"),
            (999, "999"),
            (1_000, "1.000 k"),
            (999_940, "999.9 k"),
            (999_960, "1.000 M"),
            (40_965_120, "40.97 M"),
            (15_470_000_000, "15.47 G"),
        ];
        for (n, expected) in cases {
            assert_eq!(count(n), expected);
        }
        assert_eq!(grouped(1), "1");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }

    #[test]
    fn times_have_units() {
        assert_eq!(duration(8.34), "8.3 s");
        assert_eq!(duration(59.97), "1 min 00 s");
        assert_eq!(duration(7_800.0), "2 h 10 min");
        assert_eq!(milliseconds(4.714), "4.71 ms");
        assert_eq!(mean([]), None);
        assert_eq!(mean([1.0, 2.0]), Some(1.5));
    }
}
