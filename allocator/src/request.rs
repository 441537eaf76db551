//! What a caller asks the pool for, and why the pool says no.

use std::sync::Arc;

use pageless_metadata::{AllocationId, FRAME_BYTES, Order, Shareability};

use crate::backing::Shortage;
use crate::frames::Buildable;
use crate::ledger::{LedgerError, RequestId};
use crate::mapping::Contents;

/// A request for frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    pub(crate) bytes: u64,
    pub(crate) order: Order,
    pub(crate) contiguous: bool,
    pub(crate) node: NodeChoice,
    pub(crate) owner: Arc<str>,
    pub(crate) contents: Contents,
    pub(crate) shareability: Shareability,
    pub(crate) name: Option<RequestId>,
}

/// Which NUMA node the frames come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum NodeChoice {
    /// Any, the lowest first.
    #[default]
    Any,
    /// This one if it has enough, else any.
    Prefer(u32),
    /// This one only.
    Require(u32),
}

impl Request {
    /// Asks for this many bytes: a positive multiple of 4 KiB, and of the order's size where one is set.
    #[must_use]
    pub fn bytes(bytes: u64) -> Self {
        Self {
            bytes,
            order: Order::BASE,
            contiguous: false,
            node: NodeChoice::Any,
            owner: "".into(),
            contents: Contents::Zero,
            shareability: Shareability::Private,
            name: None,
        }
    }

    /// The smallest block that may be used: every extent is made of aligned blocks of at least this order. 4 KiB by default.
    #[must_use]
    pub fn order(mut self, order: Order) -> Self {
        self.order = order;
        self
    }

    /// All frames must be one run.
    #[must_use]
    pub fn contiguous(mut self) -> Self {
        self.contiguous = true;
        self
    }

    /// Takes the frames from this NUMA node if it has enough, else from any.
    #[must_use]
    pub fn prefer_node(mut self, node: u32) -> Self {
        self.node = NodeChoice::Prefer(node);
        self
    }

    /// Takes the frames from this NUMA node or not at all.
    #[must_use]
    pub fn require_node(mut self, node: u32) -> Self {
        self.node = NodeChoice::Require(node);
        self
    }

    /// Names the owner. Needed: "whose is this frame?" must have an answer.
    #[must_use]
    pub fn owner(mut self, name: &str) -> Self {
        self.owner = name.into();
        self
    }

    /// Keeps what the frames hold through conversions; by default private frames are zeroed before they become shared.
    #[must_use]
    pub fn keep_contents(mut self) -> Self {
        self.contents = Contents::Keep;
        self
    }

    /// How the frames start: private by default; `Unknown` for memory whose shareability nobody recorded, so that the first
    /// conversion either way does its full work.
    #[must_use]
    pub fn starts(mut self, shareability: Shareability) -> Self {
        self.shareability = shareability;
        self
    }

    /// Names this request, so that asking again after a lost reply finds what it made. Needs a ledger.
    #[must_use]
    pub fn named(mut self, name: RequestId) -> Self {
        self.name = Some(name);
        self
    }

    pub(crate) fn check(&self) -> Result<(), AllocateError> {
        let unit = self.order.bytes();
        if self.bytes == 0 || !self.bytes.is_multiple_of(unit) {
            return Err(AllocateError::Size { bytes: self.bytes, unit });
        }
        if self.owner.is_empty() {
            return Err(AllocateError::NoOwner);
        }
        Ok(())
    }

    pub(crate) fn frames(&self) -> u64 {
        self.bytes / FRAME_BYTES
    }
}

/// Why an allocation was refused. Nothing has changed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AllocateError {
    /// The size is zero or not a multiple of the block size.
    #[error("{bytes} bytes were asked for; the size must be a positive multiple of {unit} bytes")]
    Size {
        /// The size that was asked for.
        bytes: u64,
        /// What it must be a multiple of.
        unit: u64,
    },
    /// No owner was named.
    #[error("the request names no owner; every allocation needs one")]
    NoOwner,
    /// The pool has no such node.
    #[error("the pool has no NUMA node {node}; it has {known:?}")]
    NoSuchNode {
        /// The node that was asked for.
        node: u32,
        /// The nodes there are.
        known: Vec<u32>,
    },
    /// There is not enough that is free, sound, aligned and contiguous as asked.
    #[error(
        "{bytes} bytes in blocks of {order}{} were asked for; what could be built now: {} of 1G, {} of 2M, {} of 4K",
        if *.contiguous { ", contiguous," } else { "" }, .buildable.gib1, .buildable.mib2, .buildable.base
    )]
    NotEnough {
        /// The bytes that were asked for.
        bytes: u64,
        /// The smallest block that could be used.
        order: Order,
        /// Whether they had to be one run.
        contiguous: bool,
        /// What could be built, each order counted for itself, from the nodes that the request allows.
        buildable: Buildable,
    },
    /// The frames are there, the memory behind them is not.
    #[error(transparent)]
    Shortage(#[from] Shortage),
    /// The allocation could not be made durable, or an earlier withdrawal is not.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// A request of this name has an allocation, and its owner has the handle.
    #[error("this request has made {allocation} already")]
    AlreadyAllocated {
        /// Which.
        allocation: AllocationId,
    },
}

impl AllocateError {
    /// The errno that it becomes over the C ABI (Linux numbers).
    #[must_use]
    pub const fn errno(&self) -> i32 {
        match self {
            Self::Size { .. } | Self::NoOwner | Self::NoSuchNode { .. } => 22,
            Self::NotEnough { .. } | Self::Shortage(_) => 12,
            Self::Ledger(error) => error.errno(),
            Self::AlreadyAllocated { .. } => 17,
        }
    }
}
