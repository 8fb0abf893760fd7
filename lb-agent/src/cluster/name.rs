//! Names, each kept once: ten thousand Services share namespaces, a hundred thousand endpoints share
//! the names of their nodes and zones, and every table of the agent is by a Service's name.

use std::cmp::Ordering;
use std::collections::HashSet;
use std::fmt::{Debug, Display, Formatter, Result};
use std::ops::Deref;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

/// A text that is stored once however many hold it; to clone it costs a counter.
///
/// Compares and orders as its text.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Name(Arc<str>);

/// Every text that a [`Name`] holds, and some that none does any more.
#[derive(Default)]
struct Known {
    texts: HashSet<Arc<str>>,
    /// How many texts there were after those that nobody holds were last forgotten.
    held: usize,
}

/// Fewer texts than this are not worth looking for those that nobody holds.
const WORTH_A_LOOK: usize = 1_024;

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

impl Known {
    fn name(&mut self, text: &str) -> Name {
        if let Some(known) = self.texts.get(text) {
            return Name(known.clone());
        }
        // At twice as many as were held, a look at all of them costs each new text two steps.
        if self.texts.len() >= WORTH_A_LOOK.max(self.held * 2) {
            // Only we can clone what only we hold, and nobody else is in here.
            self.texts.retain(|text| Arc::strong_count(text) > 1);
            self.held = self.texts.len();
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        Name(text)
    }
}

impl From<&str> for Name {
    fn from(text: &str) -> Self {
        KNOWN.lock().unwrap_or_else(PoisonError::into_inner).name(text)
    }
}

impl From<&String> for Name {
    fn from(text: &String) -> Self {
        Self::from(text.as_str())
    }
}

impl From<String> for Name {
    fn from(text: String) -> Self {
        Self::from(text.as_str())
    }
}

impl Default for Name {
    fn default() -> Self {
        Self::from("")
    }
}

impl Deref for Name {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl Ord for Name {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.0, &other.0) { Ordering::Equal } else { self.0.cmp(&other.0) }
    }
}

impl PartialOrd for Name {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        Display::fmt(&self.0, f)
    }
}

impl Debug for Name {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one_and_order_is_that_of_the_texts() {
        let (first, second) = (Name::from("node-a"), Name::from("node-a".to_owned()));
        assert!(Arc::ptr_eq(&first.0, &second.0));
        let mut names = ["b", "", "a", "aa", "a"].map(Name::from);
        names.sort();
        assert_eq!(names, ["", "a", "a", "aa", "b"].map(Name::from));
    }

    #[test]
    fn texts_that_nobody_holds_are_forgotten_and_held_ones_stay() {
        let mut known = Known::default();
        let held: Vec<Name> = (0..10).map(|number| known.name(&format!("held-{number}"))).collect();
        for number in 0..100_000 {
            known.name(&format!("gone-{number}"));
            assert!(known.texts.len() <= WORTH_A_LOOK);
        }
        for name in &held {
            assert!(Arc::ptr_eq(&known.name(name).0, &name.0));
        }
    }
}
