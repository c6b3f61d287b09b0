//! Properties of the scheduler, over random schedules from printed seeds.

mod dice;
mod order;
mod schedules;
mod spread;
mod time;
mod witness;
