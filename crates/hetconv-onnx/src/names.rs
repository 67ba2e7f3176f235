//! Names that are unique.

use std::collections::{HashMap, HashSet};

/// Names that are given away once.
#[derive(Default)]
pub(crate) struct Names {
    /// The names used so far, and for each the number that the next like it gets.
    used: HashMap<String, usize>,
    /// Those of them that are kept for their bearers.
    reserved: HashSet<String>,
}

impl Names {
    /// With names that are kept for whoever bears them.
    pub fn reserving<'a>(names: impl Iterator<Item = &'a str>) -> Self {
        let reserved: HashSet<String> = names.map(str::to_owned).collect();
        Self { used: reserved.iter().map(|name| (name.clone(), 1)).collect(), reserved }
    }

    /// The name of somebody who bears it, if it is reserved and the first to come for it; one like it otherwise.
    pub fn take(&mut self, own: &str) -> String {
        self.reserved.take(own).unwrap_or_else(|| self.claim(own))
    }

    /// A name not used so far: the wanted one, or that with a number.
    pub fn claim(&mut self, wanted: &str) -> String {
        let Some(next) = self.used.get(wanted).copied() else {
            self.used.insert(wanted.to_owned(), 1);
            return wanted.to_owned();
        };
        let mut number = next;
        let name = loop {
            let name = format!("{wanted}_{number}");
            number += 1;
            if !self.used.contains_key(&name) {
                break name;
            }
        };
        self.used.insert(wanted.to_owned(), number);
        self.used.insert(name.clone(), 1);
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_used_once() {
        let mut names = Names::default();
        let claimed = ["a", "a_1", "a", "a", "a_1"].map(|wanted| names.claim(wanted));
        assert_eq!(claimed, ["a", "a_1", "a_2", "a_3", "a_1_1"]);
    }

    #[test]
    fn reserved_names_wait_for_their_bearers() {
        let mut names = Names::reserving(["a", "a_1"].into_iter());
        assert_eq!(names.claim("a"), "a_2");
        assert_eq!(["a_1", "a", "a", "b"].map(|own| names.take(own)), ["a_1", "a", "a_3", "b"]);
    }
}
