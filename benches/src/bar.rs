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
    /// Whether a median meets it, given what one RMW and one load over 1 GiB took.
    #[must_use]
    pub fn is_met(self, median: f64, rmw_ns: f64, load_1g_ns: f64) -> bool {
        match self {
            Self::Rmw(most) => median <= most * rmw_ns,
            Self::Ns(most) | Self::Bytes(most) | Self::AtMost(most) => median <= most,
            Self::AtLeast(least) => median >= least,
            Self::OneLoad => median <= load_1g_ns,
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
