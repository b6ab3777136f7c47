use std::cell::RefCell;

use super::*;

/// Says how many turns it was given, and the last of them.
#[derive(Default)]
struct Parrot {
    /// The text and the seed of each answer.
    asked: RefCell<Vec<(String, u64)>>,
    is_stopped: bool,
}

impl Answers for Parrot {
    fn check_system(&self, text: &str) -> Result<()> {
        if text == "silence" {
            bail!("the chat template leaves it out");
        }
        Ok(())
    }

    fn encode(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let all: Vec<_> = messages
            .iter()
            .map(|message| format!("{}: {}", message.role(), message.content()))
            .collect();
        let text = all.join(" | ");
        if text.len() > 100 {
            bail!("the prompt is too long");
        }
        Ok(text.chars().map(u32::from).collect())
    }

    fn answer(&self, ids: &[u32], sampling: &Sampling, _max: usize) -> Result<Answer> {
        let text: String = ids.iter().filter_map(|id| char::from_u32(*id)).collect();
        self.asked.borrow_mut().push((text, sampling.seed));
        Ok(Answer {
            text: if self.is_stopped { "" } else { "Aye." }.to_owned(),
            was_stopped: self.is_stopped,
        })
    }
}

/// What the model was asked, and what else was told.
fn chat(model: &Parrot, typed: &str) -> (Vec<String>, Vec<String>) {
    let mut told = Vec::new();
    let mut chat = Chat::new(model, None, Sampling::default(), 8);
    let mut tell = |text: &str| told.push(text.to_owned());
    chat.run(&mut typed.as_bytes(), &mut |_| {}, &mut tell)
        .unwrap();
    let asked = model.asked.borrow();
    (asked.iter().map(|(text, _)| text.clone()).collect(), told)
}

#[test]
fn turns_are_kept_until_they_are_taken_back() {
    let (asked, told) = chat(&Parrot::default(), "one\ntwo\n/undo\nthree\n/reset\nfour\n");
    let expected = [
        "user: one",
        "user: one | assistant: Aye. | user: two",
        "user: one | assistant: Aye. | user: three",
        "user: four",
    ];
    assert_eq!(asked, expected);
    assert_eq!(told, ["taken back", "the conversation begins again"]);
}

#[test]
fn an_empty_line_ends_the_chat() {
    assert_eq!(chat(&Parrot::default(), "one\n\ntwo\n").0, ["user: one"]);
}

#[test]
fn a_line_that_ends_in_a_backslash_goes_on() {
    let (asked, _) = chat(&Parrot::default(), "one\\\n\\\ntwo\n");
    assert_eq!(asked, ["user: one\n\ntwo"]);
}

#[test]
fn the_system_message_comes_first_and_what_would_not_arrive_is_refused() {
    let (asked, told) = chat(
        &Parrot::default(),
        "/system crier\none\n/system silence\n/reset\ntwo\n",
    );
    assert_eq!(
        asked,
        ["system: crier | user: one", "system: crier | user: two"]
    );
    assert_eq!(told[1], "/system: the chat template leaves it out");
}

#[test]
fn a_message_is_answered_again_with_another_draw() {
    let model = Parrot::default();
    let (asked, told) = chat(&model, "/retry\none\n/temperature 0.5\n/retry\n");
    assert_eq!(asked, ["user: one", "user: one"]);
    assert_eq!(told[0], "/retry: there is no message to answer again");
    let seeds: Vec<_> = model.asked.borrow().iter().map(|(_, seed)| *seed).collect();
    assert_eq!(seeds, [0, 1]);
}

#[test]
fn a_message_that_does_not_fit_ends_nothing() {
    let long = "x".repeat(120);
    let (asked, told) = chat(&Parrot::default(), &format!("{long}\none\n"));
    assert_eq!(asked, ["user: one"]);
    assert_eq!(told, ["the prompt is too long; the message is taken back"]);
}

#[test]
fn a_message_without_an_answer_is_taken_back() {
    let model = Parrot {
        is_stopped: true,
        ..Parrot::default()
    };
    let (asked, told) = chat(&model, "one\ntwo\n");
    assert_eq!(asked, ["user: one", "user: two"]);
    assert_eq!(told[0], "stopped before a word; the message is taken back");
}

#[test]
fn an_unknown_command_is_not_sent() {
    let (asked, told) = chat(&Parrot::default(), "/hlep\n//help\n");
    assert_eq!(asked, ["user: /help"]);
    assert!(
        told[0].starts_with("/hlep: there is no such command"),
        "{told:?}"
    );
}

#[test]
fn a_conversation_is_saved_once() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("chat.jsonl");
    let save = format!("/save {}\n", path.display());
    let typed = format!("/system crier\n{save}one\n{save}{save}");
    let (_, told) = chat(&Parrot::default(), &typed);
    let shown = path.display();
    assert_eq!(
        told[1..],
        [
            "/save: nothing has been said yet".to_owned(),
            format!("wrote {shown}"),
            format!("/save: {shown} exists already: give another name"),
        ]
    );
    assert_eq!(
        fs::read_to_string(path).unwrap(),
        r#"{"messages":[{"role":"system","content":"crier"},{"role":"user","content":"one"},{"role":"assistant","content":"Aye."}]}"#
            .to_owned()
            + "\n"
    );
}
