//! Admission control: while a pool fails, some requests are kept from it (Envoy's filter of that name, after "Handling
//! Overload" of the Site Reliability Engineering book).

use std::collections::VecDeque;

use crate::ir::Admission;

/// What became of requests in the last seconds.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// The second, requests, successes.
    seconds: VecDeque<(u64, u32, u32)>,
    requests: u64,
    successes: u64,
}

impl Window {
    pub fn of(place: &mut Option<Box<Self>>) -> &mut Self {
        place.get_or_insert_default()
    }

    /// Whether one more request is let in.
    pub fn admits(&mut self, settings: &Admission, now_ms: u64, random: u64) -> bool {
        self.forget(settings, now_ms);
        let drawn = random as f64 / u64::MAX as f64;
        drawn >= self.rejection(settings)
    }

    /// One has ended.
    pub fn count(&mut self, settings: &Admission, success: bool, now_ms: u64) {
        self.forget(settings, now_ms);
        let second = now_ms / 1000;
        if self.seconds.back().is_none_or(|(last, ..)| *last != second) {
            self.seconds.push_back((second, 0, 0));
        }
        if let Some((_, requests, successes)) = self.seconds.back_mut() {
            *requests += 1;
            *successes += u32::from(success);
        }
        self.requests += 1;
        self.successes += u64::from(success);
    }

    fn forget(&mut self, settings: &Admission, now_ms: u64) {
        let first = (now_ms / 1000).saturating_sub(settings.window.as_secs().max(1) - 1);
        while let Some((second, requests, successes)) = self.seconds.front().copied()
            && second < first
        {
            self.seconds.pop_front();
            self.requests -= u64::from(requests);
            self.successes -= u64::from(successes);
        }
    }

    /// The probability with which a request is refused.
    fn rejection(&self, settings: &Admission) -> f64 {
        let seconds = settings.window.as_secs().max(1);
        if self.requests < u64::from(settings.min_rate) * seconds {
            return 0.0;
        }
        let (requests, successes) = (self.requests as f64, self.successes as f64);
        let expected = successes * 100.0 / f64::from(settings.threshold.max(1));
        let excess = ((requests - expected) / (requests + 1.0)).max(0.0);
        let aggression = f64::from(settings.aggression.max(1)) / 100.0;
        excess.powf(1.0 / aggression).min(f64::from(settings.max_rejection) / 100.0)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// After so many requests, of which so many succeeded, within the window.
    fn after(settings: &Admission, requests: u32, successes: u32) -> Window {
        let mut window = Window::default();
        (0..requests).for_each(|n| window.count(settings, n < successes, 1000));
        window
    }

    #[test]
    fn refusals_follow_the_formula() {
        let usual = Admission::default();
        let aggressive = Admission { aggression: 200, ..usual.clone() };
        let timid = Admission { min_rate: 4, ..usual.clone() };
        for (settings, requests, successes, expected) in [
            (&usual, 0, 0, 0.0),
            (&usual, 100, 100, 0.0),
            (&usual, 100, 95, 0.0),
            (&usual, 99, 47, (99.0 - 47.0 / 0.95) / 100.0),
            (&usual, 1000, 0, 0.8),
            (&aggressive, 99, 47, ((99.0 - 47.0 / 0.95) / 100.0_f64).sqrt()),
            (&timid, 100, 0, 0.0),
            (&timid, 120, 0, 0.8),
        ] {
            let got = after(settings, requests, successes).rejection(settings);
            assert!((got - expected).abs() < 1e-9, "{requests} {successes}: {got}, not {expected}");
        }
    }

    #[test]
    fn what_is_older_than_the_window_counts_no_more() {
        let settings = Admission { window: Duration::from_secs(5), ..Admission::default() };
        let mut window = after(&settings, 100, 0);
        assert!(!window.admits(&settings, 5_999, 0));
        assert!(window.admits(&settings, 6_000, 0));
        assert_eq!((window.requests, window.seconds.len()), (0, 0));
    }

    #[test]
    fn some_get_through_at_the_worst() {
        let settings = Admission::default();
        let mut window = after(&settings, 1000, 0);
        let admitted =
            (0..1000_u64).filter(|n| window.admits(&settings, 1000, n * (u64::MAX / 1000))).count();
        assert!((199..=201).contains(&admitted), "{admitted}");
    }
}
