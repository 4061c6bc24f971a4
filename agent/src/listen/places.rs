//! How many connections there may be: over all, and from one user or address, so that nobody keeps all others out.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Connections over all.
const MAX: usize = 1024;
/// Connections from one user, or one address.
const MAX_OF_ONE: usize = 256;

/// Whose a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Uid(u32),
    Address(IpAddr),
}

impl fmt::Display for Owner {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(formatter, "uid {uid}"),
            Self::Address(address) => address.fmt(formatter),
        }
    }
}

/// The places that connections take.
#[derive(Debug, Clone)]
pub(super) struct Places {
    counts: Arc<Mutex<Counts>>,
    max: usize,
    max_of_one: usize,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    of: HashMap<Owner, usize>,
}

/// One place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    owner: Owner,
}

impl Default for Places {
    fn default() -> Self {
        Self::new(MAX, MAX_OF_ONE)
    }
}

impl Places {
    fn new(max: usize, max_of_one: usize) -> Self {
        Self {
            counts: Arc::default(),
            max,
            max_of_one,
        }
    }

    /// A place for one more, unless there are too many: then how many there may be.
    pub(super) fn take(&self, owner: Owner) -> Result<Place, usize> {
        let mut counts = self.lock();
        if counts.all >= self.max {
            return Err(self.max);
        }
        let own = counts.of.entry(owner).or_default();
        if *own >= self.max_of_one {
            return Err(self.max_of_one);
        }
        *own += 1;
        counts.all += 1;
        let places = self.clone();
        Ok(Place { places, owner })
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.places.lock();
        counts.all -= 1;
        if let Entry::Occupied(mut own) = counts.of.entry(self.owner) {
            *own.get_mut() -= 1;
            if *own.get() == 0 {
                own.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_takes_all_places_and_all_together_no_more_than_there_are() {
        let places = Places::new(3, 2);
        let mut taken: Vec<_> = (0..2)
            .map(|_| places.take(Owner::Uid(1)).unwrap())
            .collect();
        assert_eq!(places.take(Owner::Uid(1)).unwrap_err(), 2);
        taken.push(places.take(Owner::Uid(2)).unwrap());
        assert_eq!(places.take(Owner::Uid(3)).unwrap_err(), 3);
        taken.remove(0);
        drop(places.take(Owner::Uid(1)).unwrap());
        drop(taken);
        let counts = places.lock();
        assert_eq!((counts.all, counts.of.len()), (0, 0));
    }
}
