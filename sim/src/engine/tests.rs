//! The step loop against the rules of §5.1 and the case measured on a real engine.

use proptest::prelude::*;

use super::{
    script::{Limits, output_key},
    *,
};

fn settings() -> Settings {
    Settings {
        profile: Profile::tiny(),
        time_scale: 1.0,
        block_size: 4,
        blocks: 101,
        max_batched_tokens: 64,
        max_sequences: 8,
        max_model_len: 300,
        prefix_caching: true,
        policy: Policy::Fcfs,
        max_queued_requests: None,
        max_queued_tokens: None,
    }
}

fn request(job: u64, prompt: Vec<Token>, output: usize) -> Request {
    Request {
        id: SequenceId { job, choice: 0 },
        prompt,
        salt: 0,
        script: script::Script::words(
            output_key(1, job, 0),
            Limits {
                max: output,
                min: 0,
                ignore_eos: true,
            },
        ),
        priority: 0,
        arrived: Duration::ZERO,
        asked: Asked {
            max_tokens: output as u32,
            choices: 1,
        },
    }
}

fn prompt(seed: u32, length: usize) -> Vec<Token> {
    (0..length as u32).map(|index| seed * 1_000_000 + index).collect()
}

/// Steps until idle; returns outputs in order and the number of steps.
fn drain(engine: &mut Engine) -> (Vec<Output>, usize) {
    let (mut now, mut outputs, mut steps) = (Duration::ZERO, Vec::new(), 0);
    while let Some(step) = engine.step(now) {
        engine.assert_consistent();
        now += step.duration;
        outputs.extend(step.outputs);
        steps += 1;
        assert!(steps < 100_000, "no progress");
    }
    assert!(engine.is_idle());
    assert_eq!(engine.pool.free(), engine.pool.usable());
    (outputs, steps)
}

/// §5.1, measured on vLLM 0.32: 40 usable blocks of 32 tokens, six requests of 11 + 400 tokens → 3 preemptions.
#[test]
fn preempts_as_often_as_the_measured_engine() {
    let mut engine = Engine::new(Settings {
        block_size: 32,
        blocks: 41,
        max_batched_tokens: 2048,
        max_sequences: 128,
        max_model_len: 1024,
        ..settings()
    });
    for job in 0..6 {
        engine
            .submit(
                vec![request(job, prompt(job as u32 + 1, 11), 400)],
                Duration::ZERO,
            )
            .unwrap();
    }
    let (mut now, mut preemptions, mut most_waiting, mut tokens, mut finished) = (Duration::ZERO, 0, 0, 0, 0);
    while let Some(step) = engine.step(now) {
        now += step.duration;
        preemptions += step.preempted;
        most_waiting = most_waiting.max(engine.load().waiting);
        tokens += step
            .outputs
            .iter()
            .filter(|output| output.token.is_some())
            .count();
        finished += step
            .outputs
            .iter()
            .filter(|output| output.finish.is_some())
            .count();
    }
    assert_eq!((finished, tokens), (6, 2400));
    assert_eq!(preemptions, 3);
    assert_eq!(most_waiting, 3);
    assert_eq!(engine.stats().num_preemptions, 3);
}

#[test]
fn a_long_prompt_is_chunked_and_stretches_every_decode_beside_it() {
    let mut engine = Engine::new(settings());
    engine
        .submit(vec![request(1, prompt(1, 10), 50)], Duration::ZERO)
        .unwrap();
    let alone = engine.step(Duration::ZERO).unwrap();
    assert_eq!(alone.work.prefill_tokens, 10);
    let decode = engine.step(Duration::ZERO).unwrap();
    engine
        .submit(vec![request(2, prompt(2, 150), 5)], Duration::ZERO)
        .unwrap();
    let mixed: Vec<StepResult> = (0..3).filter_map(|_| engine.step(Duration::ZERO)).collect();
    let chunks: Vec<usize> = mixed.iter().map(|step| step.work.prefill_tokens).collect();
    assert_eq!(chunks, [63, 63, 24]);
    assert_eq!(
        mixed.iter().map(|step| step.outputs.len()).collect::<Vec<_>>(),
        [1, 1, 2]
    );
    assert!(mixed[0].duration > decode.duration);
    drain(&mut engine);
}

#[test]
fn a_conversation_hits_its_prompt_and_its_answer() {
    let mut engine = Engine::new(settings());
    let first = prompt(1, 30);
    engine
        .submit(vec![request(1, first.clone(), 20)], Duration::ZERO)
        .unwrap();
    let (outputs, _) = drain(&mut engine);
    let mut second = first;
    second.extend(outputs.iter().filter_map(|output| output.token));
    second.extend(prompt(9, 10));
    engine
        .submit(vec![request(2, second, 3)], Duration::ZERO)
        .unwrap();
    let (outputs, _) = drain(&mut engine);
    // 30 + 20 tokens, the last of which was never computed: 49 tokens are 12 full blocks.
    assert_eq!(outputs[0].cached_tokens, 48);
}

#[test]
fn a_fully_cached_prompt_recomputes_its_last_block() {
    let mut engine = Engine::new(settings());
    for job in 0..2 {
        engine
            .submit(vec![request(job, prompt(1, 32), 2)], Duration::ZERO)
            .unwrap();
        let (outputs, _) = drain(&mut engine);
        assert_eq!(outputs[0].cached_tokens, if job == 0 { 0 } else { 28 });
    }
    assert_eq!(
        (
            engine.stats().prefix_cache_queries,
            engine.stats().prefix_cache_hits
        ),
        (64, 28)
    );
    assert_eq!(
        (engine.stats().prompt_tokens, engine.stats().prompt_tokens_cached),
        (64, 28)
    );
}

#[test]
fn salts_separate_caches() {
    let mut engine = Engine::new(settings());
    for (job, salt, cached) in [(1, 7, 0), (2, 8, 0), (3, 7, 28)] {
        let salted = Request {
            salt,
            ..request(job, prompt(1, 32), 1)
        };
        engine.submit(vec![salted], Duration::ZERO).unwrap();
        assert_eq!(drain(&mut engine).0[0].cached_tokens, cached, "salt {salt}");
    }
}

#[test]
fn the_head_of_the_queue_waits_for_all_its_blocks_and_holds_back_the_rest() {
    let mut engine = Engine::new(Settings {
        max_batched_tokens: 1000,
        ..settings()
    });
    engine
        .submit(vec![request(1, prompt(1, 300), 20)], Duration::ZERO)
        .unwrap();
    engine
        .submit(vec![request(2, prompt(2, 200), 20)], Duration::ZERO)
        .unwrap();
    engine
        .submit(vec![request(3, prompt(3, 8), 20)], Duration::ZERO)
        .unwrap();
    engine.step(Duration::ZERO).unwrap();
    assert_eq!((engine.load().running, engine.load().waiting), (1, 2));
    drain(&mut engine);
}

#[test]
fn priority_runs_the_lowest_first_and_preempts_the_highest() {
    let policy = Policy::Priority;
    let mut engine = Engine::new(Settings {
        policy,
        max_sequences: 1,
        ..settings()
    });
    for (job, priority) in [(1, 5), (2, -1), (3, 5), (4, 0)] {
        let request = Request {
            priority,
            ..request(job, prompt(job as u32, 8), 1)
        };
        engine.submit(vec![request], Duration::ZERO).unwrap();
    }
    let order: Vec<u64> = drain(&mut engine).0.iter().map(|output| output.id.job).collect();
    assert_eq!(order, [2, 4, 1, 3]);

    let mut engine = Engine::new(Settings {
        policy,
        blocks: 11,
        ..settings()
    });
    for (job, priority) in [(1, 9), (2, 0)] {
        let request = Request {
            priority,
            ..request(job, prompt(job as u32, 12), 20)
        };
        engine.submit(vec![request], Duration::ZERO).unwrap();
    }
    let (outputs, _) = drain(&mut engine);
    let ends: Vec<u64> = outputs
        .iter()
        .filter(|o| o.finish.is_some())
        .map(|o| o.id.job)
        .collect();
    assert_eq!(ends, [2, 1]);
    assert!(engine.stats().num_preemptions > 0);
}

/// The least urgent sequence can be the first of the batch: it throws itself out, and the others still run.
#[test]
fn a_sequence_that_throws_itself_out_does_not_stop_the_rest() {
    let mut engine = Engine::new(Settings {
        policy: Policy::Priority,
        blocks: 11,
        ..settings()
    });
    for (job, priority) in [(1, 1), (2, 0)] {
        let request = Request {
            priority,
            ..request(job, prompt(job as u32, 19), 20)
        };
        engine.submit(vec![request], Duration::ZERO).unwrap();
        engine.step(Duration::ZERO).unwrap();
    }
    let (outputs, _) = drain(&mut engine);
    assert_eq!(outputs.iter().filter(|output| output.finish.is_some()).count(), 2);
    assert!(engine.stats().num_preemptions > 0);
}

#[test]
fn admission_limits_count_running_and_waiting() {
    let limits = Settings {
        max_queued_requests: Some(2),
        max_queued_tokens: Some(30),
        ..settings()
    };
    let mut engine = Engine::new(limits);
    assert_eq!(
        engine.submit(vec![request(0, prompt(1, 31), 1)], Duration::ZERO),
        Err(Rejection::Tokens)
    );
    engine
        .submit(vec![request(1, prompt(1, 30), 9)], Duration::ZERO)
        .unwrap();
    engine.step(Duration::ZERO).unwrap();
    engine
        .submit(vec![request(2, prompt(2, 30), 9)], Duration::ZERO)
        .unwrap();
    assert_eq!(
        engine.submit(vec![request(3, prompt(3, 1), 1)], Duration::ZERO),
        Err(Rejection::Requests)
    );
    assert_eq!(
        (engine.stats().rejected_requests, engine.stats().rejected_tokens),
        (1, 1)
    );
    drain(&mut engine);
}

#[test]
fn aborting_everything_frees_everything() {
    let mut engine = Engine::new(settings());
    for job in 0..20 {
        engine
            .submit(vec![request(job, prompt(job as u32, 20), 50)], Duration::ZERO)
            .unwrap();
    }
    engine.step(Duration::ZERO).unwrap();
    assert!(!engine.reset_prefix_cache());
    assert!(engine.abort(SequenceId { job: 3, choice: 0 }));
    assert!(!engine.abort(SequenceId { job: 3, choice: 0 }));
    assert_eq!(engine.abort_all().len(), 19);
    assert!(engine.is_idle() && engine.reset_prefix_cache());
    assert_eq!(engine.stats().finished_abort, 19);
    engine.assert_consistent();
}

#[test]
fn preempting_everything_loses_no_token() {
    let mut engine = Engine::new(settings());
    engine
        .submit(vec![request(1, prompt(1, 20), 10)], Duration::ZERO)
        .unwrap();
    let mut tokens = engine.step(Duration::ZERO).unwrap().outputs.len();
    engine.preempt_all();
    engine.assert_consistent();
    assert_eq!(engine.load().running, 0);
    tokens += drain(&mut engine).0.len();
    assert_eq!(tokens, 10);
}

/// What a client may do to the engine.
#[derive(Debug, Clone)]
enum Act {
    Submit {
        family: u32,
        prompt: usize,
        output: usize,
        priority: i64,
    },
    Abort {
        nth: usize,
    },
    Step,
    PreemptAll,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0..3_u32, 1..120_usize, 1..60_usize, -2..3_i64).prop_map(|(family, prompt, output, priority)| {
            Act::Submit { family, prompt, output, priority }
        }),
        1 => (0..20_usize).prop_map(|nth| Act::Abort { nth }),
        8 => Just(Act::Step),
        1 => Just(Act::PreemptAll),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever happens: blocks are conserved, references match, a hit is the longest cached prefix short of the
    /// prompt's end, and every request that was not aborted says exactly its script.
    #[test]
    fn no_request_and_no_block_is_lost(
        acts in prop::collection::vec(act(), 1..80),
        priority_policy in any::<bool>(),
        blocks in 46..120_u32,
        budget in 1..80_u32,
    ) {
        let policy = if priority_policy { Policy::Priority } else { Policy::Fcfs };
        let mut engine = Engine::new(Settings { policy, blocks, max_batched_tokens: budget, ..settings() });
        let mut expected: HashMap<SequenceId, (Vec<Token>, usize)> = HashMap::new();
        let mut said: HashMap<SequenceId, Vec<Token>> = HashMap::new();
        let mut now = Duration::ZERO;
        let mut take = |step: StepResult, said: &mut HashMap<SequenceId, Vec<Token>>| {
            now += step.duration;
            for output in step.outputs {
                said.entry(output.id).or_default().extend(output.token);
            }
        };
        for (job, act) in acts.into_iter().enumerate() {
            match act {
                Act::Submit { family, prompt: length, output, priority } => {
                    let request = Request { priority, ..request(job as u64, prompt(family, length), output) };
                    let script: Vec<Token> = (0..output).map(|index| request.script.token(index)).collect();
                    expected.insert(request.id, (script, length));
                    engine.submit(vec![request], Duration::ZERO).unwrap();
                }
                Act::Abort { nth } => {
                    let mut present: Vec<SequenceId> = engine.sequences.keys().copied().collect();
                    present.sort_unstable();
                    if let Some(id) = present.get(nth) {
                        prop_assert!(engine.abort(*id));
                        expected.remove(id);
                    }
                }
                Act::Step => {
                    if let Some(step) = engine.step(Duration::ZERO) {
                        prop_assert!(step.work.tokens <= budget as usize);
                        for output in &step.outputs {
                            let (_, length) = &expected[&output.id];
                            prop_assert!(output.cached_tokens < *length);
                            prop_assert_eq!(output.cached_tokens % 4, 0);
                        }
                        take(step, &mut said);
                    }
                }
                Act::PreemptAll => engine.preempt_all(),
            }
            engine.assert_consistent();
        }
        let mut steps = 0;
        while let Some(step) = engine.step(Duration::ZERO) {
            take(step, &mut said);
            steps += 1;
            prop_assert!(steps < 200_000);
        }
        engine.assert_consistent();
        prop_assert!(engine.is_idle());
        for (id, (script, _)) in expected {
            prop_assert_eq!(said.get(&id), Some(&script));
        }
    }

    /// The cache finds exactly what a plain list of seen prompts says is the longest shared run of full blocks.
    #[test]
    fn a_hit_is_the_longest_cached_prefix(
        prompts in prop::collection::vec(prop::collection::vec(0..2_u32, 1..40), 1..12),
    ) {
        let mut engine = Engine::new(Settings { blocks: 2000, ..settings() });
        let mut seen: Vec<Vec<Token>> = Vec::new();
        for (job, prompt) in prompts.into_iter().enumerate() {
            let shared = |other: &Vec<Token>| {
                let equal = other.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
                equal.min(prompt.len() - 1) / 4 * 4
            };
            let best = seen.iter().map(shared).max().unwrap_or(0);
            engine.submit(vec![request(job as u64, prompt.clone(), 1)], Duration::ZERO).unwrap();
            let (outputs, _) = drain(&mut engine);
            prop_assert_eq!(outputs[0].cached_tokens, best);
            seen.push(prompt);
        }
    }
}
