//! Whether the engine is ready and alive, from a row of probes. A busy engine may miss a probe or two; one whose
//! port is closed is gone.

/// Misses in a row after which a ready engine is not ready.
const TOLERATED: u32 = 3;

/// How one probe ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Healthy.
    Healthy,
    /// Nothing listens.
    Refused,
    /// Another status, no answer in time, or a broken connection.
    Missed,
}

/// The engine as its probes show it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    alive: bool,
    misses: u32,
}

/// What a probe changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// Nothing.
    Same,
    /// The engine answers (again).
    Up,
    /// The engine does not answer, and its process is still the same as far as is known.
    Down,
    /// The engine's process is gone; what comes back is a new one with an empty cache.
    Gone,
}

impl Health {
    /// Takes one probe in.
    pub fn probed(&mut self, probe: Probe) -> Turn {
        let was = self.alive;
        match probe {
            Probe::Healthy => {
                *self = Self {
                    alive: true,
                    misses: 0,
                }
            }
            Probe::Refused => {
                *self = Self {
                    alive: false,
                    misses: TOLERATED,
                }
            }
            Probe::Missed => {
                self.misses = self.misses.saturating_add(1);
                self.alive = was && self.misses < TOLERATED;
            }
        }
        match (was, self.alive) {
            (true, true) | (false, false) => {
                if probe == Probe::Refused {
                    Turn::Gone
                } else {
                    Turn::Same
                }
            }
            (false, true) => Turn::Up,
            (true, false) if probe == Probe::Refused => Turn::Gone,
            (true, false) => Turn::Down,
        }
    }

    /// The engine answers its health endpoint, up to tolerated misses.
    pub fn is_alive(self) -> bool {
        self.alive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(probes: &[Probe], expected: &[Turn]) {
        let mut health = Health::default();
        let turns: Vec<Turn> = probes.iter().map(|probe| health.probed(*probe)).collect();
        assert_eq!(turns, expected, "{probes:?}");
        let alive = expected.iter().rev().find(|turn| **turn != Turn::Same) == Some(&Turn::Up);
        assert_eq!(health.is_alive(), alive, "{probes:?}");
    }

    #[test]
    fn misses_are_tolerated_and_a_closed_port_is_not() {
        use Probe::{Healthy, Missed, Refused};
        use Turn::{Down, Gone, Same, Up};
        check(&[Refused, Refused, Healthy, Healthy], &[Gone, Gone, Up, Same]);
        check(&[Missed, Healthy], &[Same, Up]);
        check(
            &[Healthy, Missed, Missed, Healthy, Missed, Missed],
            &[Up, Same, Same, Same, Same, Same],
        );
        check(
            &[Healthy, Missed, Missed, Missed, Missed, Healthy],
            &[Up, Same, Same, Down, Same, Up],
        );
        check(&[Healthy, Refused, Healthy], &[Up, Gone, Up]);
        check(
            &[Healthy, Missed, Missed, Missed, Refused],
            &[Up, Same, Same, Down, Gone],
        );
    }
}
