//! A set of batch sequences, kept as ranges: a day of batches is one range, not a million numbers. Pure.

/// Ranges, both ends included, in order and apart from each other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sequences(Vec<(u64, u64)>);

impl Sequences {
    /// Of numbers in ascending order.
    pub fn of(numbers: impl IntoIterator<Item = u64>) -> Self {
        let mut set = Self::default();
        numbers.into_iter().for_each(|number| set.push((number, number)));
        set
    }

    /// Adds a range behind all others.
    pub fn push(&mut self, (first, last): (u64, u64)) {
        match self.0.last_mut() {
            Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
            _ => self.0.push((first, last)),
        }
    }

    /// Puts a number in, wherever it belongs; false if it was in.
    pub fn insert(&mut self, number: u64) -> bool {
        let place = self.0.partition_point(|&(_, last)| last < number);
        if self.0.get(place).is_some_and(|&(first, _)| first <= number) {
            return false;
        }
        let joins_before = place > 0 && self.0[place - 1].1.checked_add(1) == Some(number);
        let joins_behind = self.0.get(place).is_some_and(|&(first, _)| first - 1 == number);
        match (joins_before, joins_behind) {
            (true, true) => {
                self.0[place - 1].1 = self.0[place].1;
                self.0.remove(place);
            }
            (true, false) => self.0[place - 1].1 = number,
            (false, true) => self.0[place].0 = number,
            (false, false) => self.0.insert(place, (number, number)),
        }
        true
    }

    /// All of them, in order.
    pub fn numbers(&self) -> impl Iterator<Item = u64> {
        self.0.iter().flat_map(|&(first, last)| first..=last)
    }

    pub fn contains(&self, number: u64) -> bool {
        self.place(number).is_some()
    }

    /// Takes a number out; false if it was not in.
    pub fn remove(&mut self, number: u64) -> bool {
        let Some(place) = self.place(number) else {
            return false;
        };
        let (first, last) = self.0[place];
        match (first == number, last == number) {
            (true, true) => {
                self.0.remove(place);
            }
            (true, false) => self.0[place].0 = number + 1,
            (false, true) => self.0[place].1 = number - 1,
            (false, false) => {
                self.0[place].1 = number - 1;
                self.0.insert(place + 1, (number + 1, last));
            }
        }
        true
    }

    /// First and last of each range.
    pub fn ranges(&self) -> &[(u64, u64)] {
        &self.0
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn place(&self, number: u64) -> Option<usize> {
        let place = self.0.partition_point(|&(_, last)| last < number);
        (self.0.get(place)?.0 <= number).then_some(place)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_range_without_an_end_keeps_it() {
        let mut open = Sequences::of([3]);
        open.push((7, u64::MAX));
        assert!(open.contains(u64::MAX) && open.remove(9) && !open.remove(9));
        assert_eq!(open.ranges(), [(3, 3), (7, 8), (10, u64::MAX)]);
    }

    proptest! {
        #[test]
        fn numbers_may_come_in_any_order(numbers in prop::collection::vec(0..60_u64, 0..60)) {
            let (mut set, mut expected) = (Sequences::default(), BTreeSet::new());
            for number in numbers {
                prop_assert_eq!(set.insert(number), expected.insert(number));
                prop_assert_eq!(&set, &Sequences::of(expected.iter().copied()));
                prop_assert!(set.numbers().eq(expected.iter().copied()));
            }
        }

        #[test]
        fn it_is_the_set_of_its_numbers(
            numbers in prop::collection::btree_set(0..60_u64, 0..40), removed in prop::collection::vec(0..60_u64, 0..40)
        ) {
            let mut set = Sequences::of(numbers.iter().copied());
            let mut expected: BTreeSet<u64> = numbers;
            for number in removed {
                prop_assert_eq!(set.remove(number), expected.remove(&number));
                prop_assert_eq!(&set, &Sequences::of(expected.iter().copied()));
                prop_assert!((0..60).all(|number| set.contains(number) == expected.contains(&number)));
            }
        }
    }
}
