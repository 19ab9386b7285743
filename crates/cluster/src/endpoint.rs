//! Which of the server's URLs an agent uses: the one that the server names for its cluster, if it
//! answers there, and the one of the settings whenever that one does not.
//!
//! An agent goes to a URL only after the server has answered it there, under the CA of the
//! settings and by the agent's own certificate. So a wrong URL costs nothing, and nobody can lead
//! an agent to another server.

use std::time::{Duration, Instant};

/// Silence after which the URL of the settings is tried again: some polls, and well within what
/// anybody waits for a suspension to take effect.
const FALL_BACK: Duration = Duration::from_secs(20);
/// Pause before a URL that did not answer is tried again, while the server answers elsewhere and
/// while it does not.
const PAUSE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(10));

/// What is known of URLs that did not answer.
#[derive(Debug, Default)]
pub struct Endpoint {
    /// Which one did not answer last, and when it may be tried again.
    failed: Option<(String, Instant)>,
}

impl Endpoint {
    /// The URL to try instead of `using`, if any: `named` is what the server said last, `settings`
    /// what it was before that, `silent` how long it has not answered.
    pub fn next(
        &self,
        using: &str,
        named: Option<&str>,
        settings: &str,
        silent: Duration,
        now: Instant,
    ) -> Option<String> {
        let worth = |url: &str| {
            let pauses =
                self.failed.as_ref().is_some_and(|(f, until)| same(f, url) && *until > now);
            !same(url, using) && !pauses
        };
        let fallen_back = (silent >= FALL_BACK).then_some(settings);
        named.filter(|url| worth(url)).or(fallen_back.filter(|url| worth(url))).map(str::to_owned)
    }

    /// `url` did not answer. Whether this is news.
    pub fn failed(&mut self, url: &str, silent: Duration, now: Instant) -> bool {
        let pause = if silent >= FALL_BACK { PAUSE.1 } else { PAUSE.0 };
        let last = self.failed.replace((url.to_owned(), now + pause));
        last.is_none_or(|(last, _)| !same(&last, url))
    }

    /// The server answers at another URL than `left` from now on.
    pub fn moved(&mut self, left: &str, silent: Duration, now: Instant) {
        // It was left because it fell silent, so it is not gone back to at once.
        self.failed = (silent >= FALL_BACK).then(|| (left.to_owned(), now + PAUSE.0));
    }
}

fn same(a: &str, b: &str) -> bool {
    a.trim_end_matches('/') == b.trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: &str = "https://settings:1";
    const NAMED: &str = "https://named:2";

    #[test]
    fn the_named_url_is_tried_and_the_one_of_the_settings_is_the_way_back() {
        let (now, none) = (Instant::now(), Endpoint::default());
        let cases = [
            ("nothing is named", OURS, None, 0, None),
            ("nothing is named, and silence", OURS, None, 60, None),
            ("another is named", OURS, Some(NAMED), 0, Some(NAMED)),
            ("another is named, known from disk alone", OURS, Some(NAMED), 60, Some(NAMED)),
            ("the same is named", OURS, Some("https://settings:1/"), 60, None),
            ("it is in use", NAMED, Some(NAMED), 5, None),
            ("it fell silent", NAMED, Some(NAMED), 20, Some(OURS)),
            ("the settings' is named again", NAMED, Some(OURS), 0, Some(OURS)),
        ];
        for (name, using, named, silent, expected) in cases {
            let next = none.next(using, named, OURS, Duration::from_secs(silent), now);
            assert_eq!(next.as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn what_does_not_answer_pauses_and_nothing_goes_to_and_fro() {
        let (start, short, long) = (Instant::now(), Duration::ZERO, FALL_BACK);
        let at = |s: u64| start + Duration::from_secs(s);
        let mut endpoint = Endpoint::default();
        assert!(endpoint.failed(NAMED, short, start), "said once");
        assert!(!endpoint.failed(NAMED, short, start));
        assert_eq!(endpoint.next(OURS, Some(NAMED), OURS, short, at(59)), None);
        assert_eq!(endpoint.next(OURS, Some(NAMED), OURS, short, at(61)).as_deref(), Some(NAMED));
        // Nothing answers: both are tried in turn, neither in a loop without pause.
        endpoint.failed(NAMED, long, start);
        assert_eq!(endpoint.next(OURS, Some(NAMED), OURS, long, at(9)), None);
        assert_eq!(endpoint.next(NAMED, Some(NAMED), OURS, long, at(9)).as_deref(), Some(OURS));
        // Left for silence: the server that answers by the settings' URL names it still.
        endpoint.moved(NAMED, long, start);
        assert_eq!(endpoint.next(OURS, Some(NAMED), OURS, short, at(59)), None);
        assert_eq!(endpoint.next(OURS, Some(NAMED), OURS, short, at(61)).as_deref(), Some(NAMED));
    }
}
