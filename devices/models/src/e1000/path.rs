//! Where frames go: out, back, or nowhere.

use super::{
    Controller,
    spec::{
        self,
        bits::{Rctl, Status},
    },
};

/// Where frames go at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Path {
    Backend,
    Loopback,
    /// There is no link.
    Nowhere,
}

impl Controller {
    /// Where frames go.
    pub(super) fn path(&self) -> Path {
        let status = Status::from_bits(self.regs.get(spec::STATUS));
        if self.phy.loopback() || Rctl::from_bits(self.regs.get(spec::RCTL)).loopback() == 1 {
            // Section 15.1.3: only in full duplex.
            match status.full_duplex() {
                true => Path::Loopback,
                false => Path::Nowhere,
            }
        } else if self.link_up() {
            Path::Backend
        } else {
            Path::Nowhere
        }
    }
}
