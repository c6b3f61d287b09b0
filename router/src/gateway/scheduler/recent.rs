//! What a pool's last answers were like, in bounded memory: objectives met, first bytes, and how fast engines read
//! prompts. Pure: it moves with answers, never with time alone, so that a quiet pool's figures stand still.

use std::time::Duration;

use weir_schedule::Time;
use weir_wire::control::Recent as Told;

/// One slot of the window.
const SLOT: Duration = Duration::from_secs(60);
/// Slots of the window, the one under way included.
const SLOTS: usize = 5;
/// Buckets of first-byte times in every doubling: neighbours differ by 9 %.
const PER_OCTAVE: f64 = 8.0;
/// From 1 ms to 2²¹ ms (35 minutes); what is longer counts into the last.
const BUCKETS: usize = 21 * 8;

/// Uncached prompt tokens from which a first byte tells of prefill more than of everything else before it.
const LEAST_UNCACHED_TOKENS: u64 = 256;
/// Answers from which a rate is told.
const LEAST_ANSWERS: u32 = 4;
/// What an answer still counts when the next has come: the last 64 or so decide.
const KEPT_SHARE: f64 = 63.0 / 64.0;

/// The answers of the last five minutes in which there were any, by the minute.
#[derive(Debug, Default)]
pub(super) struct Recent {
    /// Made with the first answer.
    slots: Vec<Slot>,
    /// Number of the newest slot.
    newest: u64,
}

#[derive(Debug, Clone)]
struct Slot {
    number: u64,
    slo_met: u64,
    slo_total: u64,
    ttft: [u32; BUCKETS],
}

impl Slot {
    const fn new(number: u64) -> Self {
        Self {
            number,
            slo_met: 0,
            slo_total: 0,
            ttft: [0; BUCKETS],
        }
    }
}

impl Recent {
    /// Takes in the end of a request: whether it met its objectives, if it had any, and the time to its first byte, if
    /// it was a stream.
    pub(super) fn add(&mut self, slo_met: Option<bool>, ttft: Option<Duration>, now: Time) {
        if slo_met.is_none() && ttft.is_none() {
            return;
        }
        let number = now.0.as_secs() / SLOT.as_secs();
        if self.slots.is_empty() {
            self.slots = vec![Slot::new(number); SLOTS];
        }
        self.newest = self.newest.max(number);
        let index = (number % SLOTS as u64) as usize;
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        if slot.number != number {
            *slot = Slot::new(number);
        }
        if let Some(met) = slo_met {
            slot.slo_total += 1;
            slot.slo_met += u64::from(met);
        }
        if let Some(count) = ttft.and_then(|ttft| slot.ttft.get_mut(bucket(ttft))) {
            *count = count.saturating_add(1);
        }
    }

    /// As it is told to the operator; `None` before the first answer.
    pub(super) fn told(&self) -> Option<Told> {
        let oldest = self.newest.saturating_sub(SLOTS as u64 - 1);
        let mut slots = self.slots.iter().filter(|slot| slot.number >= oldest).peekable();
        slots.peek()?;
        let mut told = Told {
            window_ms: (SLOT.as_secs() * SLOTS as u64) * 1_000,
            ..Told::default()
        };
        let mut ttft = [0_u64; BUCKETS];
        for slot in slots {
            told.slo_met += slot.slo_met;
            told.slo_total += slot.slo_total;
            for (sum, count) in ttft.iter_mut().zip(slot.ttft) {
                *sum += u64::from(count);
            }
        }
        told.ttft_p95_ms = percentile(&ttft, 95);
        Some(told)
    }
}

fn bucket(ttft: Duration) -> usize {
    let millis = ttft.as_secs_f64() * 1_000.0;
    // A negative float becomes 0, one that is too large the largest.
    ((millis.log2() * PER_OCTAVE) as usize).min(BUCKETS - 1)
}

/// The upper end of the bucket in which the percentile lies, milliseconds, two digits of it.
fn percentile(counts: &[u64; BUCKETS], percent: u64) -> Option<u64> {
    let all: u64 = counts.iter().sum();
    let rank = (all * percent).div_ceil(100);
    let mut passed = 0;
    let index = counts.iter().position(|count| {
        passed += count;
        rank > 0 && passed >= rank
    })?;
    Some(two_digits(2_f64.powf((index as f64 + 1.0) / PER_OCTAVE)) as u64)
}

/// Rounded to two digits, so that what is noise does not show.
fn two_digits(value: f64) -> f64 {
    if value < 10.0 {
        return value.round();
    }
    let unit = 10_f64.powi(value.log10().floor() as i32 - 1);
    (value / unit).round() * unit
}

/// How fast a pool's endpoints read prompts, as requests see it: uncached prompt tokens over the time from dispatch to
/// the first byte, summed over the last answers. Requests that prefill beside each other see less than the engine
/// does, so this is what a refill takes at least as fast as.
#[derive(Debug, Default)]
pub(super) struct PrefillRate {
    tokens: f64,
    seconds: f64,
    answers: u32,
}

impl PrefillRate {
    /// Takes in an answer: prompt tokens that the engine did not have in its cache, and the time to its first byte.
    pub(super) fn add(&mut self, uncached: u64, first: Duration) {
        if uncached < LEAST_UNCACHED_TOKENS || first.is_zero() {
            return;
        }
        self.tokens = self.tokens * KEPT_SHARE + uncached as f64;
        self.seconds = self.seconds * KEPT_SHARE + first.as_secs_f64();
        self.answers = self.answers.saturating_add(1);
    }

    /// Tokens a second, two digits of it; `None` until a few answers told.
    pub(super) fn tokens_per_s(&self) -> Option<f64> {
        (self.answers >= LEAST_ANSWERS).then(|| two_digits(self.tokens / self.seconds).max(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> Time {
        Time(Duration::from_secs(second))
    }

    fn millis(millis: u64) -> Option<Duration> {
        Some(Duration::from_millis(millis))
    }

    #[test]
    fn the_95th_percentile_is_within_a_bucket() {
        let check = |times: &[u64], expected: u64| {
            let mut recent = Recent::default();
            for time in times {
                recent.add(None, millis(*time), at(0));
            }
            let told = recent.told().unwrap().ttft_p95_ms.unwrap();
            let off = told as f64 / expected as f64;
            assert!((0.94..=1.15).contains(&off), "{times:?}: {told}, not {expected}");
        };
        check(&[1_000], 1_000);
        check(&(1..=100).map(|it| it * 20).collect::<Vec<_>>(), 1_900);
        check(&[[10].repeat(95), [5_000].repeat(5)].concat(), 10);
        check(&[[10].repeat(94), [5_000].repeat(6)].concat(), 5_000);
        check(&[9_999_999], 2_097_152);
        let mut fast = Recent::default();
        fast.add(None, Some(Duration::ZERO), at(0));
        assert_eq!(fast.told().unwrap().ttft_p95_ms, Some(1));
    }

    #[test]
    fn the_window_moves_with_answers_and_not_with_time() {
        let mut recent = Recent::default();
        assert_eq!(recent.told(), None);
        recent.add(None, None, at(0));
        assert_eq!(recent.told(), None, "an answer without either says nothing");
        recent.add(Some(false), millis(8_000), at(10));
        recent.add(Some(true), millis(10), at(250));
        let told = recent.told().unwrap();
        assert_eq!((told.window_ms, told.slo_met, told.slo_total), (300_000, 1, 2));
        assert!(told.ttft_p95_ms.unwrap() > 7_000);
        // The sixth minute: the first one's answer is out.
        recent.add(Some(true), None, at(300));
        let told = recent.told().unwrap();
        assert_eq!((told.slo_met, told.slo_total), (2, 2));
        assert!(told.ttft_p95_ms.unwrap() < 20);
        // After a day all is out but the newest.
        recent.add(Some(false), None, at(86_400));
        let told = recent.told().unwrap();
        assert_eq!((told.slo_met, told.slo_total, told.ttft_p95_ms), (0, 1, None));
    }

    #[test]
    fn noise_does_not_show() {
        for (given, shown) in [(3.4, 3.0), (123.0, 120.0), (98_765.0, 99_000.0), (0.2, 0.0)] {
            assert_eq!(two_digits(given), shown);
        }
    }

    #[test]
    fn the_prefill_rate_is_tokens_over_seconds_of_the_last_answers() {
        let mut rate = PrefillRate::default();
        let second = Duration::from_secs(1);
        for (uncached, first) in [(255, second), (1_000, Duration::ZERO)] {
            rate.add(uncached, first);
        }
        for _ in 0..3 {
            rate.add(4_000, second);
        }
        assert_eq!(rate.tokens_per_s(), None, "three answers are too few");
        rate.add(4_000, second);
        assert_eq!(rate.tokens_per_s(), Some(4_000.0));
        for _ in 0..400 {
            rate.add(20_000, second * 2);
        }
        assert_eq!(
            rate.tokens_per_s(),
            Some(10_000.0),
            "what was long ago is forgotten"
        );
    }
}
