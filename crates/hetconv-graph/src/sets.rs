//! Disjoint sets.

use std::ops::Range;

/// Sets of numbers, each known by one of its members, its root.
#[derive(Default)]
pub(crate) struct Sets(Vec<usize>);

impl Sets {
    /// So many new sets of one number each: the next ones.
    pub fn add(&mut self, number: usize) -> Range<usize> {
        let first = self.0.len();
        self.0.extend(first..first + number);
        first..first + number
    }

    /// The root of a member's set.
    pub fn find(&mut self, mut member: usize) -> usize {
        while self.0[member] != member {
            self.0[member] = self.0[self.0[member]];
            member = self.0[member];
        }
        member
    }

    /// Unites the sets of two members under the root of the first: returns that, and the other's that was; `None` if they
    /// were one set already.
    pub fn unite(&mut self, first: usize, second: usize) -> Option<[usize; 2]> {
        let [first, second] = [self.find(first), self.find(second)];
        self.0[second] = first;
        (first != second).then_some([first, second])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn united_sets_have_one_root() {
        let mut sets = Sets::default();
        assert_eq!((sets.add(2), sets.add(4)), (0..2, 2..6));
        assert_eq!(sets.unite(4, 1), Some([4, 1]));
        assert_eq!(sets.unite(0, 3), Some([0, 3]));
        assert_eq!(sets.unite(3, 1), Some([0, 4]));
        assert_eq!(sets.unite(1, 0), None);
        assert_eq!([0, 1, 2, 3, 4, 5].map(|member| sets.find(member)), [0, 0, 2, 0, 0, 5]);
    }
}
