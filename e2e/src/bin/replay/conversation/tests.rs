use proptest::prelude::*;

use super::*;
use crate::body::{Ask, ChatBody};
use crate::trace::{self, After, Ending, Generator, Session, Step};

/// Role and content of each message, as a server reads them.
fn received(messages: &Messages) -> Vec<(String, String)> {
    let ask = Ask {
        model: "m \"quoted\"",
        max_tokens: 7,
        stream: true,
        ignore_eos: true,
        tools: None,
    };
    let body: serde_json::Value = serde_json::from_slice(&ChatBody::new(&ask, messages).collect()).unwrap();
    assert_eq!(
        (&body["model"], &body["max_tokens"]),
        (&"m \"quoted\"".into(), &7.into())
    );
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    let messages = body["messages"].as_array().unwrap();
    messages
        .iter()
        .map(|message| (text(&message["role"]), text(&message["content"])))
        .collect()
}

fn joined(messages: &[(String, String)]) -> String {
    messages.iter().map(|(_, content)| content.as_str()).collect()
}

/// What every chat template wants: system first or not at all, user and assistant in turn, user last, none empty.
fn check_roles(messages: &[(String, String)]) {
    let roles: Vec<&str> = messages.iter().map(|(role, _)| role.as_str()).collect();
    assert_eq!(roles.last(), Some(&"user"), "{roles:?}");
    assert!(roles.iter().skip(1).all(|role| *role != "system"), "{roles:?}");
    assert!(roles.windows(2).all(|pair| pair[0] != pair[1]), "{roles:?}");
    assert!(messages.iter().all(|(_, content)| !content.is_empty()));
}

/// Words, and words in the previous prompt, of all turns together, after checking each.
fn play(session: &Session, scale: f64, max_turns: usize) -> (u64, u64) {
    let mut conversation = Conversation::new(&session.agent, scale, 5, session.shared_blocks);
    let turns = session.agent.steps.iter().filter_map(|step| match step {
        Step::Turn(turn) => Some(turn),
        Step::Spawn { .. } => None,
    });
    let mut before: Option<(String, u64)> = None;
    let (mut words, mut reused) = (0, 0);
    for turn in turns.take(max_turns) {
        let Prompt::Blocks { keep, .. } = &turn.prompt else {
            panic!("not blocks")
        };
        let messages = conversation.advance(turn);
        let received = received(&messages);
        check_roles(&received);
        let text = joined(&received);
        assert_eq!(text.len() as u64, messages.tokens * WORD_BYTES);
        assert_eq!(
            messages.tokens,
            ((turn.prompt_tokens as f64 * scale) as u64).max(1)
        );
        if let Some((text_before, blocks_before)) = before {
            let common = common_prefix(&text_before, &text) as u64 / WORD_BYTES;
            let kept = messages.reusable_tokens.unwrap();
            assert!(common >= kept, "{common} words in common, {kept} kept");
            if keep == &blocks_before && text.len() >= text_before.len() {
                assert!(
                    text.starts_with(&text_before),
                    "{}: the prompt does not go on",
                    session.id
                );
            }
            reused += common;
        }
        words += messages.tokens;
        before = Some((text, conversation.runs.len()));
    }
    (words, reused)
}

/// The trace's own share: kept blocks of all prompt tokens.
fn share(session: &Session, max_turns: usize) -> (u64, u64) {
    let turns = session.agent.steps.iter().filter_map(|step| match step {
        Step::Turn(turn) => Some(turn),
        Step::Spawn { .. } => None,
    });
    turns
        .take(max_turns)
        .fold((0, 0), |(tokens, kept), turn| match &turn.prompt {
            Prompt::Blocks { keep, .. } => (
                tokens + turn.prompt_tokens,
                kept + keep * session.agent.block_tokens,
            ),
            Prompt::Text { .. } => panic!("not blocks"),
        })
}

fn check_sessions(sessions: &[Session], scale: f64) {
    let (mut words, mut reused, mut tokens, mut kept) = (0, 0, 0, 0);
    for session in sessions {
        let played = play(session, scale, 40);
        let traced = share(session, 40);
        (words, reused) = (words + played.0, reused + played.1);
        (tokens, kept) = (tokens + traced.0, kept + traced.1);
    }
    let (sent, published) = (reused as f64 / words as f64, kept as f64 / tokens as f64);
    println!(
        "scale {scale}: {sent:.4} of the words are in the previous prompt, {published:.4} of the trace's blocks"
    );
    assert!(
        (sent - published).abs() < 0.01,
        "{sent} of the words reused, {published} in the trace"
    );
}

#[test]
fn builtin_prompts_go_on_and_reuse_what_the_blocks_say() {
    let sessions: Vec<Session> = (0..12).map(|index| Generator::new(3).session(index)).collect();
    check_sessions(&sessions, 0.05);
    check_sessions(&sessions[..1], 1.0);
}

#[test]
fn weka_prompts_go_on_and_reuse_what_the_blocks_say() {
    let Some(trace) = trace::real("weka-claude-code/sessions.jsonl.xz") else {
        return;
    };
    check_sessions(&trace.sessions[..12], 0.05);
    check_sessions(&trace.sessions[..1], 1.0);
}

#[test]
fn sessions_have_different_text_unless_blocks_are_shared() {
    let session = Generator::new(3).session(0);
    let Step::Turn(turn) = &session.agent.steps[0] else {
        panic!("no turn")
    };
    let text = |seed| {
        joined(&received(
            &Conversation::new(&session.agent, 0.05, seed, false).advance(turn),
        ))
    };
    assert_eq!(text(1), text(1));
    assert_ne!(text(1)[..64], text(2)[..64]);
}

fn text_turn(input: &str, output: &str) -> Turn {
    Turn {
        pause_s: 0.0,
        after: After::Start,
        joins: Vec::new(),
        prompt: Prompt::Text {
            input: input.to_owned(),
            output: output.to_owned(),
        },
        prompt_tokens: input.len() as u64 / 4,
        output_tokens: output.len() as u64 / 4,
        ending: Ending::Other,
    }
}

fn text_conversation(scale: f64) -> Conversation {
    let agent = Agent {
        id: "main".to_owned(),
        head_tokens: 0,
        block_tokens: 0,
        steps: Vec::new(),
    };
    Conversation::new(&agent, scale, 1, true)
}

#[test]
fn full_text_becomes_messages_where_the_answer_is_found() {
    let mut conversation = text_conversation(1.0);
    let mut next = |input: &str, output: &str| {
        let messages = received(&conversation.advance(&text_turn(input, output)));
        check_roles(&messages);
        assert_eq!(joined(&messages), input);
        messages
            .into_iter()
            .map(|(role, text)| format!("{role}:{text}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(next("fix “it”\n", " looking "), ["user:fix “it”\n"]);
    // The answer stands in the next prompt: it is the assistant's.
    assert_eq!(
        next("fix “it”\n\nlooking\nresult: 1", "x"),
        ["user:fix “it”\n", "assistant:\nlooking", "user:\nresult: 1"]
    );
    // It does not: what is added goes on in the user's message.
    assert_eq!(
        next("fix “it”\n\nlooking\nresult: 1 and more", ""),
        [
            "user:fix “it”\n",
            "assistant:\nlooking",
            "user:\nresult: 1 and more"
        ]
    );
    // The context is rewritten inside the assistant's message.
    assert_eq!(
        next("fix “it”\n\nloo; then stop", ""),
        ["user:fix “it”\n", "assistant:\nloo", "user:; then stop"]
    );
    // A prefix of the last prompt, and then something new, cut inside of a character with the same first byte.
    assert_eq!(next("fix “it”\n\nlo", ""), ["user:fix “it”\n\nlo"]);
    assert_eq!(next("fix ”", ""), ["user:fix ”"]);
}

#[test]
fn scaled_text_keeps_prefixes() {
    let long = "añb c".repeat(400);
    for scale in [0.05, 0.5] {
        let mut conversation = text_conversation(scale);
        let first = joined(&received(&conversation.advance(&text_turn(&long, "yes"))));
        let second = conversation.advance(&text_turn(&format!("{long}yes{long}"), ""));
        let text = joined(&received(&second));
        assert!(text.starts_with(&first));
        let share = text.len() as f64 / (2.0 * long.len() as f64);
        assert!(
            (share - scale).abs() < 0.02,
            "{share} of the text at scale {scale}"
        );
    }
}

#[test]
fn lmcache_traces_can_be_played() {
    for file in ["magagent", "miniswe", "taubench"] {
        let Some(trace) = trace::real(&format!("lmcache-agent-traces/{file}.jsonl.xz")) else {
            return;
        };
        let session = &trace.sessions[0];
        let mut conversation = Conversation::new(&session.agent, 1.0, 1, true);
        for step in &session.agent.steps {
            let Step::Turn(turn) = step else {
                panic!("no sub-agents here")
            };
            let Prompt::Text { input, .. } = &turn.prompt else {
                panic!("not text")
            };
            let messages = received(&conversation.advance(turn));
            assert_eq!(&joined(&messages), input, "{file}");
        }
    }
}

/// Any sequence of prompts: how much is kept, added, and how long beyond the blocks.
fn any_turns() -> impl Strategy<Value = Vec<Turn>> {
    let change = (0..=100_u64, 0..40_u64, 0..64_u64, 0..500_u64);
    proptest::collection::vec(change, 1..12).prop_map(|changes| {
        let (mut blocks, mut next) = (0, 1);
        let turn = |(kept_percent, added, beyond, output_tokens): (u64, u64, u64, u64)| {
            let keep = blocks * kept_percent / 100;
            let run = Run {
                first: next,
                count: added,
            };
            next += added;
            blocks = keep + added;
            Turn {
                pause_s: 0.0,
                after: After::End,
                joins: Vec::new(),
                prompt: Prompt::Blocks {
                    keep,
                    runs: vec![run],
                    tail: None,
                },
                prompt_tokens: blocks * 64 + beyond,
                output_tokens,
                ending: Ending::Other,
            }
        };
        changes.into_iter().map(turn).collect()
    })
}

proptest! {
    #[test]
    fn any_prompts_make_proper_messages(turns in any_turns(), head_tokens in 0..1000_u64, scale in 0.01..=1.0) {
        let agent = Agent { id: "main".to_owned(), head_tokens, block_tokens: 64, steps: Vec::new() };
        let mut conversation = Conversation::new(&agent, scale, 5, false);
        let mut before = String::new();
        for turn in &turns {
            let messages = conversation.advance(turn);
            let received = received(&messages);
            check_roles(&received);
            let text = joined(&received);
            prop_assert_eq!(text.len() as u64, messages.tokens * WORD_BYTES);
            let kept = (messages.reusable_tokens.unwrap() * WORD_BYTES) as usize;
            prop_assert_eq!(&text[..kept], &before[..kept]);
            before = text;
        }
    }
}
