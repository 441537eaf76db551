//! The page's standing words.

/// What pageless is, for somebody who has never heard of it.
pub(super) const LEAD: &str = "A confidential VM turns private memory into shared memory and back while it runs. Before a frame \
changes hands it must become unreachable for everybody who could reach it, and that can fail. pageless makes such a failure a \
state of the frame: what could not be proven unreachable is never handed out again, and everything around it stays usable.";

/// The states: class of the swatch, word, meaning.
pub(super) const STATES: [(&str, &str, &str); 8] = [
    ("k-free", "free", "Nobody's, proven unreachable, and sound. Only such a frame is handed out."),
    ("k-p0", "private", "A guest's own. The host must not reach it."),
    ("k-s0", "shared", "A guest's, lent to the host: bounce buffers, virtio rings."),
    ("k-released", "released", "Given up by its owner. Not free: first every mapping ever attached must prove it unreachable."),
    ("k-converting", "converting", "An operation is under way. Nobody else may touch it until that one ends."),
    ("k-quarantined", "quarantined", "An operation ended without proof. The frame waits, and comes back only by later proof."),
    ("k-failed", "failed", "The platform said that it can never be proven unreachable. It is never handed out again."),
    ("k-poisoned", "poisoned", "Hardware reported an uncorrectable error. Never handed out again, never confused with failed."),
];
