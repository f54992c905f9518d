//! The query parameter `include`: the members to add to each session of a response.

use super::extract::Query;
use crate::session::{Include, Included};

const INCLUDE: &str = "include";

/// Reads the parameter, a comma-separated list.
pub(super) fn read(query: &mut Query) -> Include {
    let mut include = Include::default();
    for name in query.text(INCLUDE).iter().flat_map(|names| names.split(',')) {
        match Included::from_word(name) {
            Some(Included::LastMessage) => include.last_message = true,
            Some(Included::Turn) => include.turn = true,
            None => {
                query.problem(INCLUDE, format!("must be a comma-separated list of: {}", Included::WORDS.join(", ")));
                break;
            }
        }
    }
    include
}

/// The parameter with an ampersand in front, or nothing.
pub(super) fn parameter(include: Include) -> String {
    let words = [(include.last_message, Included::LastMessage), (include.turn, Included::Turn)];
    let words: Vec<_> = words.iter().filter(|(is_included, _)| *is_included).map(|(_, word)| word.as_str()).collect();
    if words.is_empty() { String::new() } else { format!("&{INCLUDE}={}", words.join(",")) }
}
