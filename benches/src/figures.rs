//! Numbers as people read them.

/// A value with its unit: nanoseconds grow to ms, bytes to GiB, anything else stays as it is.
#[must_use]
pub fn quantity(value: f64, unit: &str) -> String {
    let scaled = |steps: &[(f64, &str)]| {
        let (size, name) = steps.iter().rev().find(|(size, _)| value.abs() >= *size).or(steps.first()).copied()?;
        Some(format!("{} {name}", digits(value / size)))
    };
    match unit {
        "ns" => scaled(&[(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")]).unwrap_or_default(),
        "B" => scaled(&[(1.0, "B"), (1024.0, "KiB"), (1_048_576.0, "MiB"), (1_073_741_824.0, "GiB")]).unwrap_or_default(),
        _ => format!("{} {unit}", digits(value)),
    }
}

/// Three figures or so.
#[must_use]
pub fn digits(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_as_people_write_them() {
        assert_eq!(quantity(7.25, "ns"), "7.25 ns");
        assert_eq!(quantity(3_500_000.0, "ns"), "3.50 ms");
        assert_eq!(quantity(131_072.0, "B"), "128 KiB");
        assert_eq!(quantity(0.0, "B"), "0.00 B");
        assert_eq!(quantity(1.93, "x"), "1.93 x");
    }
}
