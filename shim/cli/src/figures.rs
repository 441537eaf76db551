//! Numbers as people write and read them: sizes in, sizes, durations and counts out.

use bytesize::ByteSize;

/// Why a text does not name a size.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum SizeError {
    /// Not a number with a unit that is known here.
    #[error(
        "'{text}' is not a size: write a number of bytes, or a number with K, M, G or T (powers of two), such as 3G, '12 GiB' or 512M"
    )]
    Unreadable {
        /// What was written.
        text: String,
    },
    /// A number larger than 64 bits of bytes.
    #[error("'{text}' is more bytes than 64 bits can count")]
    TooLarge {
        /// What was written.
        text: String,
    },
}

/// Reads a size in bytes: plain bytes, or a number with `K`, `M`, `G`, `T` or `P`, alone or followed by `B` or `iB`, in any
/// case, with or without a space. Every unit is a power of two, since memory is: `3G` is `3GiB` is 3,221,225,472 bytes.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let unreadable = || SizeError::Unreadable { text: text.to_owned() };
    let too_large = || SizeError::TooLarge { text: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(unreadable()),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.contains('.') && (fraction.is_empty() || shift == 0)) {
        return Err(unreadable());
    }
    let whole: u128 = whole.parse().map_err(|_| too_large())?;
    let part: u128 = if fraction.is_empty() { 0 } else { fraction.parse().map_err(|_| unreadable())? };
    let scale = u32::try_from(fraction.len()).ok().and_then(|digits| 10_u128.checked_pow(digits)).ok_or_else(unreadable)?;
    let bytes = whole.checked_mul(1 << shift).zip(part.checked_mul(1 << shift)).map(|(whole, part)| whole + part / scale);
    bytes.and_then(|bytes| u64::try_from(bytes).ok()).ok_or_else(too_large)
}

/// A size for people, in powers of two: `8 GiB`, `1.5 MiB`, `640 B`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    ByteSize::b(bytes).display().iec().to_string().replace(".0 ", " ")
}

/// A duration given in nanoseconds, for people: `0.9 ns`, `38 ns`, `1.6 µs`, `3.5 ms`, `2.1 s`.
#[must_use]
pub fn nanoseconds(ns: f64) -> String {
    let (value, unit) = match ns {
        ns if ns < 1e3 => (ns, "ns"),
        ns if ns < 1e6 => (ns / 1e3, "µs"),
        ns if ns < 1e9 => (ns / 1e6, "ms"),
        ns => (ns / 1e9, "s"),
    };
    if value < 9.95 { format!("{value:.1} {unit}") } else { format!("{value:.0} {unit}") }
}

/// A count with its thousands separated: `262,144`.
#[must_use]
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// How many times larger `large` is than `small`, for people: `3.4`, `120`, `290,000`; at most three digits are told.
#[must_use]
pub fn ratio(large: f64, small: f64) -> String {
    let ratio = large / small.max(f64::MIN_POSITIVE);
    if ratio < 9.95 {
        return format!("{ratio:.1}");
    }
    let step = 10_f64.powf(ratio.log10().floor() - 1.0).max(1.0);
    // Rounded to two digits and far below 2^63 for every measured pair; a float cast saturates.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    let rounded = ((ratio / step).round() * step) as u64;
    count(rounded)
}

/// A count with its noun in the right number: `1 frame`, `262,144 frames`.
#[must_use]
pub fn counted(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 || noun.ends_with("iB") { "" } else { "s" })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn sizes_are_read_as_powers_of_two_in_every_usual_spelling() {
        for text in ["3G", "3g", "3GiB", "3 GiB", "3gib", "3GB", " 3  G ", "3072M", "3221225472", "3221225472 B", "3.0G"] {
            assert_eq!(parse_size(text), Ok(3 * GIB), "{text}");
        }
        assert_eq!(parse_size("1.5G"), Ok(3 * GIB / 2));
        assert_eq!(parse_size("1K"), Ok(1024));
        assert_eq!(parse_size("900T"), Ok(900 << 40));
        assert_eq!(parse_size("0"), Ok(0));
    }

    #[test]
    fn what_is_not_a_size_is_refused_by_its_name() {
        for text in ["banana", "", "G", "-3G", "3X", "1.G", ".5G", "1.2.3G", "1.5", "3 G iB", "0x10", "12 12 GiB", "٣G"] {
            let error = parse_size(text).unwrap_err();
            assert!(matches!(error, SizeError::Unreadable { .. }), "{text}");
            assert!(error.to_string().contains(&format!("'{text}'")) && error.to_string().contains("3G"), "{error}");
        }
        for text in ["99999999999999999999999999999999999999999999G", "16777216T", "18446744073709551616"] {
            assert!(matches!(parse_size(text), Err(SizeError::TooLarge { .. })), "{text}");
        }
        assert!(parse_size(&format!("1.{}G", "9".repeat(60))).is_err());
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(bytes(8 * GIB), "8 GiB");
        assert_eq!(bytes(GIB + GIB / 2), "1.5 GiB");
        assert_eq!(bytes(4096), "4 KiB");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(nanoseconds(0.94), "0.9 ns");
        assert_eq!(nanoseconds(38.2), "38 ns");
        assert_eq!(nanoseconds(1_600.0), "1.6 µs");
        assert_eq!(nanoseconds(3_512_000.0), "3.5 ms");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(262_144), "262,144");
        assert_eq!(counted(1, "frame"), "1 frame");
        assert_eq!(counted(1000, "frame"), "1,000 frames");
        assert_eq!(ratio(560_000.0, 1.2), "470,000");
        assert_eq!(ratio(3.0, 2.0), "1.5");
        assert_eq!(ratio(128.0, 1.0), "130");
    }
}
