//! Where every value stands in memory: values that are never alive at once share it.

use std::cmp::Reverse;
use std::ops::Range;

/// How long a value is alive, in steps, and how much memory it takes.
#[derive(Clone, Debug)]
pub(crate) struct Life {
    /// The step that writes it.
    pub from: usize,
    /// The last step that reads it.
    pub to: usize,
    pub len: usize,
}

impl Life {
    fn meets(&self, other: &Life) -> bool {
        self.from <= other.to && other.from <= self.to
    }
}

/// A place for every value, and the memory they take together: larger values first, those of one size from the beginning or
/// from the end, whichever takes less. Which of two equal halves the last large value is in decides what fits beside it.
pub(crate) fn place(lives: &[Life]) -> (Vec<Range<usize>>, usize) {
    let mut order: Vec<usize> = (0..lives.len()).collect();
    let ways = [0, 1].map(|_| {
        order.reverse();
        order.sort_by_key(|&value| Reverse(lives[value].len));
        place_in(&order, lives)
    });
    ways.into_iter().min_by_key(|(_, total)| *total).unwrap_or_default()
}

/// Places values in some order, each into the smallest gap between those it meets that holds it.
fn place_in(order: &[usize], lives: &[Life]) -> (Vec<Range<usize>>, usize) {
    let mut places: Vec<Option<Range<usize>>> = vec![None; lives.len()];
    let mut total = 0;
    for &value in order {
        let life = &lives[value];
        let met =
            places.iter().zip(lives).filter(|(_, other)| other.meets(life)).filter_map(|(place, _)| place.clone());
        let mut taken: Vec<Range<usize>> = met.collect();
        taken.sort_by_key(|place| place.start);
        let (mut end, mut best) = (0, None::<(usize, usize)>);
        for place in taken {
            let gap = place.start.saturating_sub(end);
            if gap >= life.len && best.is_none_or(|(smallest, _)| gap < smallest) {
                best = Some((gap, end));
            }
            end = end.max(place.end);
        }
        let start = best.map_or(end, |(_, start)| start);
        total = total.max(start + life.len);
        places[value] = Some(start..start + life.len);
    }
    (places.into_iter().map(|place| place.unwrap_or(0..0)).collect(), total)
}

/// The memory of all values that are alive at once, at its largest.
pub(crate) fn largest_alive(lives: &[Life]) -> usize {
    let steps = lives.iter().map(|life| life.to + 1).max().unwrap_or(0);
    let alive = |step: usize| lives.iter().filter(|life| (life.from..=life.to).contains(&step)).map(|l| l.len).sum();
    (0..steps).map(alive).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_that_meet_do_not_overlap_and_little_is_wasted() {
        let mut seed = 1u64;
        let mut next = |limit: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % limit
        };
        for _ in 0..200 {
            let lives: Vec<Life> = (0..20)
                .map(|from| Life { from, to: from + 1 + next(4) as usize, len: 16 * next(50) as usize })
                .collect();
            let (places, total) = place(&lives);
            for (a, one) in lives.iter().enumerate() {
                assert_eq!(places[a].len(), one.len);
                assert!(places[a].end <= total);
                for b in 0..a {
                    let apart = places[a].end <= places[b].start || places[b].end <= places[a].start;
                    assert!(apart || !one.meets(&lives[b]) || one.len == 0 || lives[b].len == 0);
                }
            }
            let least = largest_alive(&lives);
            assert!(total >= least && total * 2 <= least * 3, "{total} for {least}");
        }
    }
}
