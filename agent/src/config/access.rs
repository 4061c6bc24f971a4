//! `[[access]]`: who may do what. A list; each rule is a role and one thing by which a caller is known.

use super::Problem;
use crate::access::{Rule, Rules};

/// Looks names of users and groups up, too.
pub(super) fn check(rules: &[Rule], bad: &mut Vec<Problem>) {
    if let Err(error) = Rules::new(rules) {
        bad.push(Problem::new("access", error.to_string()));
    }
}
