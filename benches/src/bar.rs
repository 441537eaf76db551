//! The numbers to reach: DESIGN §8, one line each.

/// What a figure must be to meet its line.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Bar {
    /// At most this many locked read-modify-writes, measured in the same run.
    Rmw(f64),
    /// At most this many nanoseconds.
    Ns(f64),
    /// At most this ratio.
    AtMost(f64),
    /// At least this ratio.
    AtLeast(f64),
    /// At most this many bytes.
    Bytes(f64),
    /// At most one dependent load over 1 GiB, measured in the same run.
    OneLoad,
}

/// What one locked read-modify-write took where the bars in RMW were written, in nanoseconds: the least that was seen there.
///
/// Such a bar is about a path of a few hundred instructions and loads, told in the unit that was at hand. A processor that does
/// the locked instruction alone three times sooner does the rest of the path not much sooner (ADR 0011).
pub const WRITTEN_AT_RMW_NS: f64 = 6.3;

/// How a figure stands to its bar.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Standing {
    /// At least as good.
    Met,
    /// A bar in RMW of this machine is missed, and the time that it was [where it was written](WRITTEN_AT_RMW_NS) is not.
    MetInTime,
    /// Not as good.
    Missed,
}

/// The keys and their bars, in the order of the design.
pub const BARS: [(&str, Bar); 28] = [
    ("frames.4k_pair_hot", Bar::Rmw(3.2)),
    ("frames.4k_put_random_1tib", Bar::Rmw(6.0)),
    ("frames.4k_put_batch_1tib", Bar::Rmw(4.0)),
    ("frames.2m_pair_hot", Bar::Rmw(2.8)),
    ("frames.1g_pair", Bar::Rmw(3.0)),
    ("frames.64g_pair", Bar::Rmw(16.0)),
    ("frames.2m_fragmented_take", Bar::Ns(1_000.0)),
    ("frames.2m_fragmented_fail", Bar::Ns(80.0)),
    ("convert.4k", Bar::Rmw(10.0)),
    ("convert.4k_cold", Bar::Rmw(40.0)),
    ("convert.2m", Bar::Rmw(10.0)),
    ("convert.1g_uniform", Bar::Rmw(7.0)),
    ("convert.hostile", Bar::Rmw(12.0)),
    ("check.1g_hot", Bar::Rmw(0.5)),
    ("check.order_hot", Bar::Rmw(0.5)),
    ("check.1g_cold", Bar::OneLoad),
    ("threads.disjoint_2", Bar::AtLeast(1.8)),
    ("threads.same_gib_2", Bar::AtLeast(0.8)),
    ("pool.16g_cycle", Bar::Ns(1_500.0)),
    ("ledger.commit", Bar::AtMost(1.15)),
    ("footprint.uniform", Bar::Bytes(131_072.0)),
    ("footprint.random_2m", Bar::Bytes(272.0 * 1024.0)),
    ("footprint.random_4k", Bar::Bytes(36.0 * 1_048_576.0)),
    ("footprint.random_4k_rest", Bar::Bytes(10.0 * 1_048_576.0)),
    ("footprint.worst", Bar::Bytes(40.0 * 1_048_576.0)),
    ("footprint.image", Bar::AtMost(1.1)),
    ("pool.reopen", Bar::Ns(20_000_000.0)),
    ("pool.build_1tib", Bar::Ns(500_000.0)),
];

/// The bar of a key.
#[must_use]
pub fn bar_of(key: &str) -> Option<Bar> {
    BARS.iter().find_map(|(name, bar)| (*name == key).then_some(*bar))
}

impl Bar {
    /// How a median stands to it, given what one RMW and one load over 1 GiB took.
    #[must_use]
    pub fn standing(self, median: f64, rmw_ns: f64, load_1g_ns: f64) -> Standing {
        let met = match self {
            Self::Rmw(most) => median <= most * rmw_ns,
            Self::Ns(most) | Self::Bytes(most) | Self::AtMost(most) => median <= most,
            Self::AtLeast(least) => median >= least,
            Self::OneLoad => median <= load_1g_ns,
        };
        match self {
            _ if met => Standing::Met,
            Self::Rmw(most) if median <= most * WRITTEN_AT_RMW_NS => Standing::MetInTime,
            _ => Standing::Missed,
        }
    }

    /// The bar as the design writes it.
    #[must_use]
    pub fn text(self) -> String {
        match self {
            Self::Rmw(most) => format!("<= {most} RMW"),
            Self::Ns(most) => format!("<= {}", crate::figures::quantity(most, "ns")),
            Self::AtMost(most) => format!("<= {most}"),
            Self::AtLeast(least) => format!(">= {least}"),
            Self::Bytes(most) => format!("<= {}", crate::figures::quantity(most, "B")),
            Self::OneLoad => "<= 1 load over 1 GiB".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_in_rmw_has_a_time_too_and_no_other_has() {
        let bar = Bar::Rmw(10.0);
        assert_eq!(bar.standing(20.0, 2.0, 100.0), Standing::Met);
        assert_eq!(bar.standing(20.1, 2.0, 100.0), Standing::MetInTime);
        assert_eq!(bar.standing(63.0, 2.0, 100.0), Standing::MetInTime);
        assert_eq!(bar.standing(63.1, 2.0, 100.0), Standing::Missed);
        // Where the instruction is slower, its own multiple counts.
        assert_eq!(bar.standing(70.0, 7.0, 100.0), Standing::Met);
        for bar in [Bar::Ns(10.0), Bar::AtMost(10.0), Bar::Bytes(10.0), Bar::OneLoad] {
            assert_eq!(bar.standing(10.1, 2.0, 10.0), Standing::Missed);
        }
        assert_eq!(Bar::AtLeast(10.0).standing(9.9, 2.0, 10.0), Standing::Missed);
    }
}
