//! Names that are unique.

use std::collections::HashMap;

/// The names used so far, and for each the number that the next like it gets.
#[derive(Default)]
pub(crate) struct Names(HashMap<String, usize>);

impl Names {
    /// A name not used so far: the wanted one, or that with a number.
    pub fn claim(&mut self, wanted: &str) -> String {
        let Some(next) = self.0.get(wanted).copied() else {
            self.0.insert(wanted.to_owned(), 1);
            return wanted.to_owned();
        };
        let mut number = next;
        let name = loop {
            let name = format!("{wanted}_{number}");
            number += 1;
            if !self.0.contains_key(&name) {
                break name;
            }
        };
        self.0.insert(wanted.to_owned(), number);
        self.0.insert(name.clone(), 1);
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
}
