//! What a device counts, for whoever watches it from outside.
//!
//! Counting is adding to a number of one's own: nobody is called, and nothing is shared. Whoever wants the numbers asks for
//! all of them at once, and gives a [`Sink`] to put them into.

/// How a number behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, from 0.
    Counter,
    /// Goes up and down.
    Gauge,
}

/// Takes the numbers of a device.
pub trait Sink {
    /// Takes one number. `name` is as in the metrics, without a prefix: lower case, words joined by `_`, parts by `.`, at most
    /// 40 bytes, and used once in a device. `unit` is UCUM (`By`, `{packet}`), at most 16 bytes.
    ///
    /// A device puts the same names in the same order each time.
    fn put(&mut self, name: &'static str, unit: &'static str, kind: Kind, value: u64);

    /// Takes a number that only grows.
    fn count(&mut self, name: &'static str, unit: &'static str, value: u64) {
        self.put(name, unit, Kind::Counter, value);
    }
}
