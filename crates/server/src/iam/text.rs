//! Names and descriptions, as administrators give them.

use crate::http::admin::Refusal;

/// Longest name, in characters.
const NAME_MAX: usize = 180;
/// Longest description, in characters.
const DESCRIPTION_MAX: usize = 500;

/// A name that people can read.
pub(super) fn named(text: &str) -> Result<String, Refusal> {
    let text = text.trim();
    if text.is_empty() || text.chars().count() > NAME_MAX || text.chars().any(char::is_control) {
        let what = format!("name must have 1 to {NAME_MAX} characters, none of them control");
        return Err(Refusal::bad(what));
    }
    Ok(text.to_owned())
}

/// A description; may be empty.
pub(super) fn described(text: &str) -> Result<String, Refusal> {
    if text.chars().count() > DESCRIPTION_MAX || text.chars().any(char::is_control) {
        return Err(Refusal::bad(format!(
            "description must have at most {DESCRIPTION_MAX} characters, none of them control"
        )));
    }
    Ok(text.to_owned())
}
