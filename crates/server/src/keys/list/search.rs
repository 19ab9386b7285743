//! The `search` of a list: prefixes in any order, then what to look for.

use crate::http::error::KpError;
use claviger_store::keys::Key;
use claviger_wire::kp::SearchQuery;

/// Longest text, in characters.
const TEXT_MAX: usize = 256;

/// A search that was read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Search {
    not: bool,
    exact: bool,
    name: bool,
    alias: bool,
    /// As the caller wrote it, without prefixes.
    query: String,
    /// In lower case.
    text: String,
}

impl Search {
    /// Reads a search text; none if there is nothing to look for.
    pub(super) fn parse(text: &str) -> Result<Option<Search>, KpError> {
        // A client appends a comma to every search text.
        let mut rest = text.strip_suffix(',').unwrap_or(text);
        if rest.chars().count() > TEXT_MAX {
            let what = format!("The query_param 'search' must be: at most {TEXT_MAX} characters");
            return Err(KpError::query("search", what));
        }
        let (mut not, mut exact, mut name, mut alias) = (false, false, false, false);
        while let Some((prefix, after)) = rest.split_once(':') {
            match prefix {
                "not" => not = true,
                "exact" => exact = true,
                "name" => name = true,
                "alias" => alias = true,
                "escape" => {
                    rest = after;
                    break;
                }
                _ => break,
            }
            rest = after;
        }
        if rest.is_empty() {
            return Ok(None);
        }
        if !name && !alias {
            (name, alias) = (true, true);
        }
        let (query, text) = (rest.to_owned(), rest.to_lowercase());
        Ok(Some(Search { not, exact, name, alias, query, text }))
    }

    /// Whether the key is looked for.
    pub(super) fn hits(&self, key: &Key, aliases: &[String]) -> bool {
        let fits = |text: &str| {
            let text = text.to_lowercase();
            if self.exact { text == self.text } else { text.contains(&self.text) }
        };
        let hit = self.text == key.root.key.to_string()
            || (self.name && fits(&key.name))
            || (self.alias && aliases.iter().any(|alias| fits(alias)));
        hit != self.not
    }

    /// How it was understood, for the answer.
    pub(super) fn described(&self) -> SearchQuery {
        let scopes = [("name", self.name), ("alias", self.alias)];
        let scopes = scopes.into_iter().filter(|(_, on)| *on).map(|(scope, _)| scope.to_owned());
        SearchQuery {
            query: self.query.clone(),
            scopes: scopes.collect(),
            not: self.not,
            exact: self.exact,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::list::some_key;

    #[test]
    fn prefixes_come_in_any_order() {
        let described = |text: &str| {
            let s = Search::parse(text).expect(text).expect(text).described();
            (s.query, s.scopes.join("+"), s.not, s.exact)
        };
        let row = |query: &str, scopes: &str, not, exact| {
            (query.to_owned(), scopes.to_owned(), not, exact)
        };
        assert_eq!(described("exact:not:alias:escape:name:X,"), row("name:X", "alias", true, true));
        assert_eq!(described("foo,"), row("foo", "name+alias", false, false));
        assert_eq!(described("foo,,"), row("foo,", "name+alias", false, false));
        assert_eq!(described("name:alias:a:b"), row("a:b", "name+alias", false, false));
        assert_eq!(described("escape:not:x"), row("not:x", "name+alias", false, false));
        for nothing in ["", ",", "not:,", "name:"] {
            assert_eq!(Search::parse(nothing).expect(nothing), None, "{nothing}");
        }
        assert!(Search::parse(&"x".repeat(257)).is_err());
    }

    #[test]
    fn what_hits() {
        let mut key = some_key();
        key.name = "Payments Root".to_owned();
        let aliases = ["Billing".to_owned()];
        let id = key.root.key.to_string();
        for (text, hit) in [
            ("payments", true),
            ("exact:payments", false),
            ("exact:PAYMENTS root", true),
            ("alias:payments", false),
            ("alias:bill", true),
            ("name:bill", false),
            ("not:name:bill", true),
            ("not:bill", false),
            (id.as_str(), true),
            (&id[..8], false),
        ] {
            let search = Search::parse(text).expect(text).expect(text);
            assert_eq!(search.hits(&key, &aliases), hit, "{text}");
        }
    }
}
