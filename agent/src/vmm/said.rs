//! What VMMs say, made fit for people.

/// How much of it is passed on.
const MAX_CHARS: usize = 1000;

/// What a VMM said, short enough for a message and without what would spoil a terminal.
pub(super) fn text(said: &str) -> String {
    let clean = |it: char| if it.is_control() { ' ' } else { it };
    let mut text: String = said.chars().take(MAX_CHARS).map(clean).collect();
    if text.len() < said.len() {
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_passed_on_is_short_and_plain() {
        assert_eq!(text("a\x1b[2Jb\nc"), "a [2Jb c");
        let long = text(&"é".repeat(5000));
        assert_eq!(long.chars().count(), MAX_CHARS + 3);
    }
}
