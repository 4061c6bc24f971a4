//! What a figure is held against.

/// A bound, in the figure's unit.
pub(super) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    pub(super) fn is_met(&self, value: f64) -> bool {
        match self {
            Self::AtMost(bound) => value <= *bound,
            Self::AtLeast(bound) => value >= *bound,
        }
    }

    /// How it is said.
    pub(super) fn words(&self) -> (&'static str, f64) {
        match self {
            Self::AtMost(bound) => ("at most", *bound),
            Self::AtLeast(bound) => ("at least", *bound),
        }
    }
}
