//! Query parameters, with the oddities of real clients: an empty one counts as absent, lists are
//! repeated or have commas, booleans come in any case.

use crate::http::error::KpError;
use crate::http::percent_decode;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use std::convert::Infallible;

/// The query of a request.
pub(crate) struct Query(Vec<(String, String)>);

/// Largest page.
const LIMIT_MAX: usize = 5000;

impl<S: Sync> FromRequestParts<S> for Query {
    type Rejection = Infallible;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        Ok(Query::parse(parts.uri.query().unwrap_or_default()))
    }
}

impl Query {
    pub(crate) fn parse(text: &str) -> Query {
        let decode = |text: &str| {
            let bytes: Vec<u8> = text.bytes().map(|b| if b == b'+' { b' ' } else { b }).collect();
            String::from_utf8_lossy(&percent_decode(&bytes)).into_owned()
        };
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(name), decode(value))
        });
        Query(pairs.collect())
    }

    /// The value of `name`, unless it is empty.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, v)| n == name && !v.trim().is_empty()).map(|(_, v)| v.as_str())
    }

    /// `path` with this query again, but for these numbers.
    pub(crate) fn with(&self, path: &str, numbers: &[(&str, usize)]) -> String {
        let encode = |text: &str| {
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~');
            let one = |b: u8| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") };
            text.bytes().map(one).collect::<String>()
        };
        let kept = self.0.iter().filter(|(n, _)| numbers.iter().all(|(name, _)| n != name));
        let kept = kept.map(|(n, v)| format!("{}={}", encode(n), encode(v)));
        let numbers = numbers.iter().map(|(name, number)| format!("{name}={number}"));
        format!("{path}?{}", kept.chain(numbers).collect::<Vec<_>>().join("&"))
    }

    /// A boolean.
    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, KpError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.to_ascii_lowercase().as_str() {
            "true" => Ok(Some(true)),
            "false" => Ok(Some(false)),
            _ => Err(KpError::query(
                name,
                format!("The query_param '{name}' must be: true or false"),
            )),
        }
    }

    /// A list.
    pub(crate) fn list(&self, name: &str) -> Vec<&str> {
        let values = self.0.iter().filter(|(n, _)| n == name).flat_map(|(_, v)| v.split(','));
        values.map(str::trim).filter(|v| !v.is_empty()).collect()
    }

    fn number(&self, name: &str, least: usize, most: usize) -> Result<Option<usize>, KpError> {
        let Some(text) = self.get(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
            _ => {
                let what =
                    format!("The query_param '{name}' must be: a number from {least} to {most}");
                Err(KpError::query(name, what))
            }
        }
    }

    /// The size of a page: as asked for, within its bound.
    pub(crate) fn limit(&self, usual: usize, most: usize) -> Result<usize, KpError> {
        Ok(self.number("limit", 1, most)?.unwrap_or(usual))
    }

    /// Cuts `limit` and `offset` out of all matches; with their number if the caller wants it.
    pub(crate) fn page<T>(&self, all: Vec<T>) -> Result<(Vec<T>, Option<u64>), KpError> {
        self.page_within(all, 200, LIMIT_MAX)
    }

    /// The same for a list with another usual and another largest page.
    pub(crate) fn page_within<T>(
        &self,
        all: Vec<T>,
        usual: usize,
        most: usize,
    ) -> Result<(Vec<T>, Option<u64>), KpError> {
        let mut page = self.pager_within(usual, most)?;
        all.into_iter().for_each(|one| page.take(one));
        Ok(page.done())
    }

    /// An empty page, for matches as they are found.
    pub(crate) fn pager<T>(&self) -> Result<Pager<T>, KpError> {
        self.pager_within(200, LIMIT_MAX)
    }

    fn pager_within<T>(&self, usual: usize, most: usize) -> Result<Pager<T>, KpError> {
        Ok(Pager {
            limit: self.limit(usual, most)?,
            offset: self.number("offset", 0, usize::MAX)?.unwrap_or(0),
            counts: self.flag("totalCount")?.unwrap_or(false),
            seen: 0,
            page: Vec::new(),
        })
    }
}

/// A page that is filled one by one: no more is held than it shows.
pub(crate) struct Pager<T> {
    limit: usize,
    offset: usize,
    counts: bool,
    seen: usize,
    page: Vec<T>,
}

impl<T> Pager<T> {
    /// Takes the next match.
    pub(crate) fn take(&mut self, one: T) {
        if self.seen >= self.offset && self.page.len() < self.limit {
            self.page.push(one);
        }
        self.seen += 1;
    }

    /// The page; with the number of matches if the caller wants it.
    pub(crate) fn done(self) -> (Vec<T>, Option<u64>) {
        (self.page, self.counts.then_some(self.seen as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oddities_of_clients() {
        let query = Query::parse("state=&state=1,2&state=3&totalCount=True&limit=2&x&search=a%2Bb");
        assert_eq!(query.list("state"), ["1", "2", "3"]);
        assert_eq!(query.get("state"), Some("1,2"));
        assert_eq!(query.get("search"), Some("a+b"));
        assert!(matches!(query.flag("totalCount"), Ok(Some(true))));
        let (page, total) = query.page(vec![1, 2, 3]).expect("a page");
        assert_eq!((page, total), (vec![1, 2], Some(3)));
        for bad in ["limit=0", "limit=5001", "limit=x", "offset=-1", "totalCount=2"] {
            assert!(Query::parse(bad).page(vec![0]).is_err(), "{bad}");
        }
    }
}
