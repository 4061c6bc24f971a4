//! The table of DMA maps: disjoint ranges of addresses, found by any address in them.
//!
//! Maps lie in numbered places that stay theirs; a tree has the places by address. The place that was hit last is looked
//! at first, and it is harmless when the map there has gone or is another by now: what is found there says which addresses
//! it has.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::Map;

/// Disjoint maps.
#[derive(Debug, Default)]
pub(super) struct Maps {
    places: Vec<Option<Map>>,
    free: Vec<usize>,
    by_start: BTreeMap<u64, usize>,
    last_hit: usize,
}

impl Maps {
    pub(super) fn len(&self) -> usize {
        self.by_start.len()
    }

    /// By address.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Map> {
        self.by_start
            .values()
            .filter_map(|place| self.places[*place].as_ref())
    }

    /// The map that has this address.
    pub(super) fn find(&mut self, iova: u64) -> Option<&Map> {
        let holds = |place: &Option<Map>| place.as_ref().is_some_and(|map| map.holds(iova));
        if !self.places.get(self.last_hit).is_some_and(holds) {
            let (_, place) = self.by_start.range(..=iova).next_back()?;
            if !holds(&self.places[*place]) {
                return None;
            }
            self.last_hit = *place;
        }
        self.places[self.last_hit].as_ref()
    }

    /// Whether any map has an address from `start` to `last`.
    pub(super) fn overlaps(&self, start: u64, last: u64) -> bool {
        self.by_start
            .range(..=last)
            .next_back()
            .and_then(|(_, place)| self.places[*place].as_ref())
            .is_some_and(|map| map.last >= start)
    }

    /// Adds a map that overlaps none.
    pub(super) fn insert(&mut self, map: Map) {
        let start = map.start;
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(map);
        self.by_start.insert(start, place);
    }

    /// Takes out the maps that lie from `start` to `last`, by address.
    ///
    /// # Errors
    /// `ENOENT` when there is none, `EINVAL` when the range would cut one in two.
    pub(super) fn remove(
        &mut self,
        start: u64,
        last: u64,
    ) -> Result<impl Iterator<Item = Map>, Errno> {
        if !self.overlaps(start, last) {
            return Err(Errno::ENOENT);
        }
        let starts_before = start.checked_sub(1).and_then(|before| self.at(before));
        if starts_before.is_some_and(|map| map.last >= start)
            || self.at(last).is_some_and(|map| map.last > last)
        {
            return Err(Errno::EINVAL);
        }
        let starts: Vec<u64> = self
            .by_start
            .range(start..=last)
            .map(|(start, _)| *start)
            .collect();
        Ok(starts.into_iter().filter_map(|start| self.take(start)))
    }

    /// Takes out every map.
    pub(super) fn remove_all(&mut self) -> impl Iterator<Item = Map> {
        let Self { places, .. } = std::mem::take(self);
        places.into_iter().flatten()
    }

    fn at(&self, iova: u64) -> Option<&Map> {
        let (_, place) = self.by_start.range(..=iova).next_back()?;
        self.places[*place].as_ref().filter(|map| map.holds(iova))
    }

    fn take(&mut self, start: u64) -> Option<Map> {
        let place = self.by_start.remove(&start)?;
        self.free.push(place);
        self.places[place].take()
    }
}
