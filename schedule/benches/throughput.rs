//! Events per second of one pool's machine. `cargo bench -p weir-schedule` prints one line per scenario: events,
//! events/s, mean and 99.9th percentile of the time one event takes, with its `next_deadline`.

use std::{
    io::{self, Write},
    time::{Duration, Instant},
};

use weir_schedule::{
    Affinity, Class, Effect, EndpointId, Event, Outcome, Pool, Request, RequestId, Settings, Time, Workflow,
};

const ENDPOINTS: u32 = 16;
const CONCURRENCY: u32 = 64;
const WAITING: u64 = 10_000;
const EVENTS: usize = 400_000;

fn settings() -> Settings {
    Settings {
        max_waiting: 20_000,
        max_waiting_bytes: 1 << 40,
        hold_timeout: Duration::from_secs(3_600),
        wakes: true,
        suspended: false,
        max_workflows: 100_000,
        first_batch: 8,
    }
}

fn request(id: u64, workflows: u64, weights: u64) -> Request {
    let mixed = id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
    Request {
        id: RequestId(id),
        workflow: Some(Workflow(u128::from(mixed % workflows).to_le_bytes())),
        class: [Class::Interactive, Class::Standard, Class::Batch][(mixed % 3) as usize],
        weight: (mixed % weights) as u32 + 1,
        max_wait: None,
        affinity: Affinity::Preferred {
            max_wait: Duration::from_secs(2),
        },
        idle_ttl: Duration::from_secs(3_600),
        max_age: Duration::from_secs(86_400),
        tool_pause: Duration::from_secs(60),
        tool_pause_blocks_zero: true,
        prompt_tokens: None,
        bytes: 8_192,
        not_on: None,
    }
}

/// A pool, the requests it has in flight, and the times its events took.
struct Run {
    pool: Pool,
    now: Time,
    flying: Vec<RequestId>,
    effects: Vec<Effect>,
    spent: Vec<Duration>,
}

impl Run {
    fn new() -> Self {
        Self {
            pool: Pool::new(settings()),
            now: Time::default(),
            flying: Vec::new(),
            effects: Vec::new(),
            spent: Vec::new(),
        }
    }

    #[expect(
        clippy::disallowed_methods,
        reason = "a benchmark is a shell: it reads the clock"
    )]
    fn send(&mut self, event: Event) {
        self.now = self.now.plus(Duration::from_micros(500));
        self.effects.clear();
        let start = Instant::now();
        self.pool.on(event, self.now, &mut self.effects);
        std::hint::black_box(self.pool.next_deadline());
        self.spent.push(start.elapsed());
        for effect in &self.effects {
            if let Effect::Dispatch(id, _) = effect {
                self.flying.push(*id);
            }
        }
    }

    fn ready(&mut self) {
        for endpoint in (0..ENDPOINTS).map(EndpointId) {
            self.send(Event::EndpointReady {
                endpoint,
                concurrency: CONCURRENCY,
            });
        }
    }

    /// Ends a request in flight, not always the oldest.
    fn finish(&mut self, pick: u64) {
        if self.flying.is_empty() {
            return;
        }
        let id = self.flying.swap_remove(pick as usize % self.flying.len());
        let outcome = Outcome::Completed {
            footprint_tokens: Some(2_000),
            tool_call: !pick.is_multiple_of(4),
        };
        self.send(Event::FirstByte(id));
        self.send(Event::Finished(id, outcome));
    }

    fn report(mut self, name: &str) -> io::Result<()> {
        self.spent.sort_unstable();
        let events = self.spent.len();
        let mean = self.spent.iter().sum::<Duration>().as_secs_f64() / events as f64;
        writeln!(
            io::stdout(),
            "{name}: {events} events, {:.0} events/s, mean {:.2} us, p99.9 {:.0} us",
            1.0 / mean,
            mean * 1e6,
            self.spent[events * 999 / 1_000].as_secs_f64() * 1e6
        )
    }
}

fn steady(waiting: u64, workflows: u64, weights: u64) -> Run {
    let mut run = Run::new();
    run.ready();
    let full = if waiting == 0 {
        u64::from(ENDPOINTS * CONCURRENCY) / 2
    } else {
        u64::from(ENDPOINTS * CONCURRENCY)
    };
    let mut id = 0;
    while id < full + waiting {
        run.send(Event::Arrived(request(id, workflows, weights)));
        id += 1;
    }
    run.spent.clear();
    while run.spent.len() < EVENTS {
        run.finish(id.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33);
        run.send(Event::Arrived(request(id, workflows, weights)));
        id += 1;
    }
    run
}

fn held() -> Run {
    let mut run = Run::new();
    for id in 0..WAITING {
        run.send(Event::Arrived(request(id, 5_000, 4)));
    }
    run.ready();
    for pick in 0..WAITING {
        run.finish(pick);
    }
    run
}

fn main() -> io::Result<()> {
    steady(0, 5_000, 4).report("half full, nothing waits")?;
    steady(WAITING, 20_000, 1).report("full, 10,000 wait, equal weights")?;
    steady(WAITING, 20_000, 64).report("full, 10,000 wait, 64 weights")?;
    steady(WAITING, 100, 4).report("full, 10,000 wait, 100 workflows")?;
    held().report("10,000 held through a start")
}
