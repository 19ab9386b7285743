//! The `filter` of a list: `property=value property=op:value …`. A key has to fit every term.

use crate::http::error::KpError;
use crate::keys::view;
use claviger_domain::id::UnixMs;
use claviger_domain::key::KeyState;
use claviger_store::keys::Key;

/// Terms for one property.
const PER_PROPERTY_MAX: usize = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Property {
    Creation,
    Deletion,
    Expiration,
    LastRotate,
    LastUpdate,
    Extractable,
    State,
}

impl Property {
    fn named(name: &str) -> Option<Property> {
        Some(match name {
            "creationDate" => Property::Creation,
            "deletionDate" => Property::Deletion,
            "expirationDate" => Property::Expiration,
            "lastRotateDate" => Property::LastRotate,
            "lastUpdateDate" => Property::LastUpdate,
            "extractable" => Property::Extractable,
            "state" => Property::State,
            _ => return None,
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Test {
    Date(Comparison, UnixMs),
    Absent,
    Flag(bool),
    States(Vec<KeyState>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Comparison {
    Equal,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
}

const COMPARISONS: [(&str, Comparison); 4] = [
    ("lte:", Comparison::LessEqual),
    ("lt:", Comparison::Less),
    ("gte:", Comparison::GreaterEqual),
    ("gt:", Comparison::Greater),
];

/// A filter that was read.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Filter(Vec<(Property, Test)>);

impl Filter {
    /// Reads a filter; clients begin it with a blank.
    pub(super) fn parse(text: &str) -> Result<Filter, KpError> {
        let mut terms: Vec<(Property, Test)> = Vec::new();
        let mut rest = text.trim_start();
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=').ok_or_else(|| wrong("property=value"))?;
            let property = Property::named(name).ok_or_else(|| {
                wrong("about creationDate, deletionDate, expirationDate, lastRotateDate, lastUpdateDate, extractable or state")
            })?;
            let (comparison, after) = comparison(after);
            let (value, after) = value(after)?;
            if terms.iter().filter(|(p, _)| *p == property).count() >= PER_PROPERTY_MAX {
                return Err(wrong(&format!("at most {PER_PROPERTY_MAX} terms for a property")));
            }
            terms.push((property, test(property, comparison, value)?));
            rest = after.trim_start();
        }
        Ok(Filter(terms))
    }

    /// Whether some term is about `property`.
    pub(super) fn names(&self, property: Property) -> bool {
        self.0.iter().any(|(p, _)| *p == property)
    }

    /// Whether the key fits every term. Dates are compared as clients see them.
    pub(super) fn fits(&self, key: &Key, now: UnixMs) -> bool {
        self.0.iter().all(|(property, test)| match test {
            Test::Flag(wanted) => key.extractable == *wanted,
            Test::States(wanted) => wanted.contains(&key.state_at(now)),
            Test::Absent => date(key, *property).is_none(),
            Test::Date(comparison, wanted) => {
                date(key, *property).is_some_and(|at| match comparison {
                    Comparison::Equal => at == *wanted,
                    Comparison::Less => at < *wanted,
                    Comparison::LessEqual => at <= *wanted,
                    Comparison::Greater => at > *wanted,
                    Comparison::GreaterEqual => at >= *wanted,
                })
            }
        })
    }
}

fn date(key: &Key, property: Property) -> Option<UnixMs> {
    match property {
        Property::Creation => Some(view::whole_second(key.created)),
        Property::Deletion => key.deleted.map(view::whole_second),
        Property::LastRotate => key.rotated.map(view::whole_second),
        Property::LastUpdate => key.updated.map(view::whole_second),
        // Shown with its fraction.
        Property::Expiration => key.expires,
        Property::Extractable | Property::State => None,
    }
}

fn comparison(text: &str) -> (Comparison, &str) {
    COMPARISONS
        .iter()
        .find_map(|(word, comparison)| Some((*comparison, text.strip_prefix(word)?)))
        .unwrap_or((Comparison::Equal, text))
}

/// The value at the start of `text`, and what follows it.
fn value(text: &str) -> Result<(&str, &str), KpError> {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        return Ok(text.split_at(end));
    };
    let (value, after) = quoted.split_once('"').ok_or_else(|| wrong("with closed quotes"))?;
    if !after.is_empty() && !after.starts_with(char::is_whitespace) {
        return Err(wrong("with a blank between its terms"));
    }
    Ok((value, after))
}

fn test(property: Property, comparison: Comparison, value: &str) -> Result<Test, KpError> {
    match property {
        Property::Extractable | Property::State if comparison != Comparison::Equal => {
            Err(wrong("with lt, lte, gt and gte for dates only"))
        }
        Property::Extractable => match value.to_ascii_lowercase().as_str() {
            "true" => Ok(Test::Flag(true)),
            "false" => Ok(Test::Flag(false)),
            _ => Err(wrong("extractable=true or extractable=false")),
        },
        Property::State => states(value.split(','))
            .map(Test::States)
            .ok_or_else(|| wrong("with states out of 0, 1, 2, 3, 5")),
        _ if value.eq_ignore_ascii_case("none") && comparison == Comparison::Equal => {
            Ok(Test::Absent)
        }
        _ => view::parse_date(value).map(|at| Test::Date(comparison, at)).ok_or_else(|| {
            wrong("with dates in RFC 3339 in double quotes, or none without lt, lte, gt or gte")
        }),
    }
}

/// States by their numbers. No key is ever in state 0, pre-activation, but clients name it.
pub(super) fn states<'t>(numbers: impl Iterator<Item = &'t str>) -> Option<Vec<KeyState>> {
    let mut out = Vec::new();
    for text in numbers {
        match text.parse::<u8>().ok()? {
            0 => {}
            number => out.push(KeyState::from_number(number)?),
        }
    }
    Some(out)
}

fn wrong(must: &str) -> KpError {
    KpError::query("filter", format!("The query_param 'filter' must be: {must}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::list::some_key;

    #[test]
    fn what_fits_and_what_does_not() {
        let now = UnixMs(1_800_000_000_000);
        // Made on 2027-01-15T08:00:00.500Z, rotated an hour later, never updated or deleted.
        let mut key = some_key();
        key.created = UnixMs(now.0 + 500);
        key.rotated = Some(UnixMs(now.0 + 3_600_000));
        key.expires = Some(UnixMs(now.0 + 86_400_000));
        let rows = [
            ("", true),
            ("   ", true),
            ("extractable=false", true),
            ("extractable=TRUE", false),
            (" state=0,1", true),
            ("state=2,3,5", false),
            ("state=0", false),
            ("creationDate=\"2027-01-15T08:00:00Z\"", true),
            ("creationDate=2027-01-15T08:00:00Z", true),
            (" creationDate=lte:\"2027-01-15T10:00:00.000000000+02:00\" state=1", true),
            ("creationDate=lt:\"2027-01-15T08:00:00Z\"", false),
            ("creationDate=gt:\"2027-01-15T08:00:00Z\"", false),
            ("creationDate=gte:\"2027-01-15T08:00:00.000000001Z\"", true),
            (
                "lastRotateDate=gte:\"2027-01-15T09:00:00Z\" lastRotateDate=lt:\"2027-01-16T00:00:00Z\"",
                true,
            ),
            ("lastRotateDate=none", false),
            ("lastUpdateDate=None   deletionDate=NONE", true),
            ("deletionDate=gt:\"2000-01-01T00:00:00Z\"", false),
            ("expirationDate=\"2027-01-16T08:00:00Z\"", true),
        ];
        for (text, fits) in rows {
            let filter = Filter::parse(text).expect(text);
            assert_eq!(filter.fits(&key, now), fits, "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        for text in [
            "state",
            "colour=red",
            "State=1",
            "state=4",
            "state=",
            "state=1, 2",
            "state=lt:3",
            "state=none",
            "extractable=gt:true",
            "extractable=none",
            "creationDate=",
            "creationDate=yesterday",
            "creationDate=eq:\"2027-01-15T08:00:00Z\"",
            "creationDate=gt:none",
            "creationDate=\"2027-01-15T08:00:00Z",
            "creationDate=\"2027-01-15T08:00:00Z\"state=1",
            "creationDate=\"2027-01-15\"",
            "state=1 state=1 state=1 state=1",
        ] {
            let refused = Filter::parse(text).expect_err(text);
            assert_eq!(refused.code(), "INVALID_QUERY_PARAM_ERR", "{text}");
        }
    }

    #[test]
    fn no_text_makes_parsing_panic() {
        let pieces = [
            "state",
            "creationDate",
            "extractable",
            "=",
            "\"",
            " ",
            ",",
            ":",
            "lt:",
            "gte:",
            "none",
            "true",
            "1",
            "5",
            "2027-01-15T08:00:00Z",
            "+02:00",
            "é",
            "\u{0}",
            "\u{3000}",
            "-",
            "99999999999999999999",
            "not:",
            "exact:",
            "escape:",
            "alias:",
            "name:",
        ];
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |bound: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed % bound as u64) as usize
        };
        let key = some_key();
        let mut read = 0;
        for _ in 0..20_000 {
            let text: String = (0..next(12)).map(|_| pieces[next(pieces.len())]).collect();
            if let Ok(filter) = Filter::parse(&text) {
                filter.fits(&key, UnixMs(0));
                read += 1;
            }
            let search = crate::keys::list::search::Search::parse(&text);
            if let Ok(Some(search)) = search {
                search.hits(&key, std::slice::from_ref(&text));
            }
        }
        assert!(read > 100, "some of the texts are filters: {read}");
    }
}
