//! Each turn of the assistant in the context that inference gives it.
//!
//! When a model answers, it has read the conversation so far as the template
//! renders it with the generation prompt. Some templates render a turn otherwise
//! once others follow, above all without its thoughts (Qwen3, R1 and others). So
//! each turn is rendered as the last one, and where the renderings of two turns
//! do not agree, the conversation becomes several samples.

use std::ops::Range;

use crate::{
    ChatTemplate, Conversation, DataError, Message,
    chat::{Rendered, Turns},
};

/// Turns that are rendered for one conversation, each time that each is: a
/// conversation of some 1,400 turns, and some ten seconds.
const MAX_TURNS_RENDERED: usize = 1_000_000;

/// A text, and the parts of it that are trained, each with its weight.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Marked {
    pub text: String,
    pub spans: Vec<(Range<usize>, f32)>,
    /// The turns trained in it, and where each ends.
    pub turns: Vec<(usize, usize)>,
}

/// A conversation as one sample or several.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Contexts {
    /// In the order of the first turn that each trains.
    pub samples: Vec<Marked>,
    /// Turns that do not begin as the generation prompt ends, such as one without
    /// a thought where the prompt opens one.
    pub n_other_beginnings: usize,
}

impl Contexts {
    /// Renders what is to be trained of a conversation.
    pub(crate) fn of(
        template: &ChatTemplate,
        conversation: &Conversation,
        turns: &Turns<'_>,
    ) -> Result<Self, DataError> {
        let mut contexts = Self::default();
        // With what the model answers, and up to where it does.
        let n_rendered: usize = conversation.trained_turns().map(|turn| 2 * turn + 1).sum();
        if n_rendered > MAX_TURNS_RENDERED {
            return Err(DataError::ChatTemplate(format!(
                "a conversation of {} turns is too long: each answer is put into the context that the model \
                 had for it, with all turns before it. Cut it into conversations of at most a thousand turns",
                conversation.messages.len()
            )));
        }
        // From the last: what was rendered for a later turn serves those before it
        // that it leaves as they were.
        for turn in conversation.trained_turns().rev() {
            let through = turns
                .render(turn + 1, false)
                .map_err(|error| refused(template, conversation, turn + 1, error))?;
            let last = LastTurn::of(conversation, turns, turn, through)?;
            contexts.n_other_beginnings += usize::from(last.begins_otherwise);
            let weight = conversation.weight(turn);
            let spans = last.spans.into_iter().map(|span| (span, weight));
            let whole = last.text.trim_end();
            let end = whole.len();
            let shared = contexts
                .samples
                .iter_mut()
                .find(|marked| marked.text.starts_with(whole));
            match shared {
                Some(marked) => {
                    marked.spans.splice(0..0, spans);
                    marked.turns.insert(0, (turn, end));
                }
                None => contexts.samples.push(Marked {
                    spans: spans.collect(),
                    text: last.text,
                    turns: vec![(turn, end)],
                }),
            }
        }
        contexts.samples.reverse();
        Ok(contexts)
    }
}

/// A conversation up to a turn, with what of it is that turn.
struct LastTurn {
    text: String,
    /// Up to and with what closes the turn, without white space after that.
    spans: Vec<Range<usize>>,
    /// Whether the turn begins otherwise than the generation prompt says.
    begins_otherwise: bool,
}

impl LastTurn {
    /// From the rendering `through` the turn.
    fn of(
        conversation: &Conversation,
        turns: &Turns<'_>,
        turn: usize,
        through: Rendered,
    ) -> Result<Self, DataError> {
        let Rendered { text, generated } = through;
        let end = text.trim_end().len();
        let said = beginning(&conversation.messages[turn]);
        // transformers renders no prompt of no turns: a first one begins at its words.
        let Some(before) = turn.checked_sub(1) else {
            let start = first_words(conversation, turns, &text);
            return Ok(Self::whole(text, start, end, &generated, false));
        };
        let prompt = turns.render(turn, true)?.text;
        if text.starts_with(prompt.as_str()) {
            return Ok(Self::whole(text, prompt.len(), end, &generated, false));
        }
        let common = common_prefix(&prompt, &text);
        let asked = beginning(&conversation.messages[before]);
        let at = |words: &str, from: usize| {
            let found = text.get(from..).filter(|_| !words.is_empty())?.find(words);
            found.map(|at| from + at)
        };
        if !asked.is_empty() && prompt[common..].contains(&asked) {
            // What comes before the turn is written otherwise as well: some templates put
            // the system prompt into the user's turn while that is the last. Inference gives
            // the prompt, and the turn goes on from it.
            let after = at(&asked, 0).map_or(common, |at| at + asked.len());
            let words = at(&said, after).unwrap_or(end);
            let start = joint(&prompt, &text, after, words);
            let joined = prompt.clone() + &text[start..];
            let end = joined.trim_end().len();
            return Ok(Self::whole(joined, prompt.len(), end, &[], false));
        }
        // The prompt may open a thought, and the turn have none. What is said may begin as
        // the prompt goes on.
        let so_far = turns.render(turn, false).unwrap_or_default().text;
        let so_far = common_prefix(&so_far, &text).min(common);
        let start = at(&said, so_far).map_or(common, |at| at.min(common));
        Ok(Self::whole(text, start, end, &generated, true))
    }

    /// Where the template marks its words itself, those are what is trained.
    fn whole(
        text: String,
        start: usize,
        end: usize,
        generated: &[Range<usize>],
        begins_otherwise: bool,
    ) -> Self {
        let within = |span: &&Range<usize>| span.end > start;
        // White space after what closes a turn is no part of it.
        let trimmed = |span: &Range<usize>| {
            let words = text[span.clone()].trim_end().len();
            span.start..span.start + words
        };
        let marked: Vec<_> = generated
            .iter()
            .filter(within)
            .map(trimmed)
            .filter(|span| !span.is_empty())
            .collect();
        let is_marked = !marked.is_empty();
        Self {
            text,
            spans: if is_marked {
                marked
            } else {
                std::iter::once(start..end.max(start)).collect()
            },
            begins_otherwise: begins_otherwise && !is_marked,
        }
    }
}

/// Where the words of the first turn begin in a rendering: where it differs when
/// they do.
fn first_words(conversation: &Conversation, turns: &Turns<'_>, text: &str) -> usize {
    let message = &conversation.messages[0];
    let said = message.content().trim();
    let first = said.chars().next();
    let other = if first == Some('~') { "^" } else { "~" };
    let mut otherwise = message.clone();
    otherwise.set_content(other.to_owned());
    match turns.render_with(1, 0, &otherwise) {
        Ok(rendered) if !said.is_empty() => common_prefix(&rendered.text, text),
        _ => text.find(said).filter(|_| !said.is_empty()).unwrap_or(0),
    }
}

/// How what is said in a turn begins.
fn beginning(message: &Message) -> String {
    message.content().trim().chars().take(24).collect()
}

/// Where a text goes on from a prompt that it does not begin with: after what it
/// has most of in common with the prompt's end, between `after` and `words`.
fn joint(prompt: &str, text: &str, after: usize, words: usize) -> usize {
    let in_common = |at: usize| {
        let before = text[..at].bytes().rev();
        before
            .zip(prompt.bytes().rev())
            .take_while(|(a, b)| a == b)
            .count()
    };
    (after..=words)
        .filter(|at| text.is_char_boundary(*at))
        .max_by_key(|at| (in_common(*at), *at))
        .filter(|at| in_common(*at) > 0)
        .unwrap_or(words)
}

/// Bytes that two texts have in common at their beginnings, whole characters.
fn common_prefix(a: &str, b: &str) -> usize {
    a.chars()
        .zip(b.chars())
        .take_while(|(a, b)| a == b)
        .map(|(a, _)| a.len_utf8())
        .sum()
}

/// What a template's refusal has to do with the order of roles, found by trying
/// without the turns that templates refuse most.
pub(crate) fn refused(
    template: &ChatTemplate,
    conversation: &Conversation,
    n: usize,
    error: DataError,
) -> DataError {
    let DataError::ChatTemplate(reason) = &error else {
        return error;
    };
    let renders = |keep: &dyn Fn(usize) -> bool| {
        let messages = &conversation.messages[..n];
        let kept = (0..n).filter(|turn| keep(*turn));
        let without = Conversation {
            messages: kept.map(|turn| messages[turn].clone()).collect(),
            weights: Vec::new(),
            ..conversation.clone()
        };
        without.messages.len() < n
            && !without.messages.is_empty()
            && template.render(&without, false).is_ok()
    };
    let role = |turn: usize| conversation.messages[turn].role();
    let first = (0..n).find(|turn| role(*turn) != "system").unwrap_or(n);
    let advice = if renders(&|turn| role(turn) != "system") {
        "it has no place for a system turn: data.system = \"merge\" puts it before the first turn of the \
         user, as such models' authors do, and \"drop\" leaves it out"
    } else if first < n && role(first) == "assistant" && renders(&|turn| turn != first) {
        "it wants the user to speak first: data.first_turn = \"drop\" leaves out what the assistant says \
         before that"
    } else if renders(&|turn| role(turn) != "system" && turn != first) && role(first) == "assistant"
    {
        "it has no place for a system turn and wants the user to speak first: data.system = \"merge\" and \
         data.first_turn = \"drop\""
    } else if (1..n).any(|turn| role(turn) == role(turn - 1)) {
        "user and assistant may have to speak in turn: here two turns of one role follow each \
         other: join them into one, or leave such records out"
    } else {
        return error;
    };
    DataError::TemplateRefuses {
        roles: (0..n).map(|turn| role(turn).to_owned()).collect(),
        reason: reason.clone(),
        advice,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::message::chat;

    fn samples(source: &str, conversation: &Conversation) -> Vec<String> {
        let template = ChatTemplate::new(source, &BTreeMap::new()).unwrap();
        let contexts = Contexts::of(&template, conversation, &template.turns(conversation));
        contexts.unwrap().samples.iter().map(marked).collect()
    }

    /// With what is trained in brackets, and its weight if it is not 1.
    fn marked(marked: &Marked) -> String {
        let mut text = marked.text.clone();
        for (span, weight) in marked.spans.iter().rev() {
            let close = if *weight == 1.0 {
                "⟧".to_owned()
            } else {
                format!("⟧×{weight}")
            };
            text.insert_str(span.end, &close);
            text.insert(span.start, '⟦');
        }
        text
    }

    const PLAIN: &str = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>\n{% endfor %}\
                         {% if add_generation_prompt %}[assistant]{% endif %}";
    /// A thought is kept in the last turn only.
    const FORGETS: &str = "{% for m in messages %}[{{ m.role }}]\
        {% if m.role == 'assistant' and not loop.last %}{{ m.content.split('</think>')[-1] }}\
        {% else %}{{ m.content }}{% endif %}</s>\n{% endfor %}\
        {% if add_generation_prompt %}[assistant]{% endif %}";

    #[test]
    fn assistant_turns_are_marked_with_what_closes_them() {
        let turns = [
            ("user", "é"),
            ("assistant", "b"),
            ("user", "b"),
            ("assistant", "d\n"),
            ("user", "never"),
        ];
        assert_eq!(
            samples(PLAIN, &chat(&turns)),
            ["[user]é</s>\n[assistant]⟦b</s>⟧\n[user]b</s>\n[assistant]⟦d\n</s>⟧\n"]
        );
    }

    #[test]
    fn a_conversation_that_would_take_minutes_is_refused_at_once() {
        let turns = |n: usize| [("user", "a"), ("assistant", "b")].repeat(n);
        let template = ChatTemplate::new(PLAIN, &BTreeMap::new()).unwrap();
        let contexts = |conversation: Conversation| {
            Contexts::of(&template, &conversation, &template.turns(&conversation))
        };
        assert!(contexts(chat(&turns(60))).is_ok());
        let error = contexts(chat(&turns(1000))).unwrap_err().to_string();
        assert!(error.contains("2000 turns"), "{error}");
    }

    #[test]
    fn turns_that_are_not_trained_are_context_and_weights_are_kept() {
        let turns = [
            ("user", "a"),
            ("assistant", "wrong"),
            ("user", "c"),
            ("assistant", "half"),
            ("user", "e"),
            ("assistant", ""),
        ];
        let mut conversation = chat(&turns);
        conversation.weights = vec![1.0, 0.0, 1.0, 0.5];
        assert_eq!(
            samples(PLAIN, &conversation),
            ["[user]a</s>\n[assistant]wrong</s>\n[user]c</s>\n[assistant]⟦half</s>⟧×0.5\n"]
        );
    }

    #[test]
    fn a_template_that_rewrites_earlier_turns_gives_each_its_own_context() {
        let turns = [
            ("user", "a"),
            ("assistant", "<think>b</think>B"),
            ("user", "c"),
            ("assistant", "<think>d</think>D"),
        ];
        assert_eq!(
            samples(FORGETS, &chat(&turns)),
            [
                "[user]a</s>\n[assistant]⟦<think>b</think>B</s>⟧\n",
                "[user]a</s>\n[assistant]B</s>\n[user]c</s>\n[assistant]⟦<think>d</think>D</s>⟧\n"
            ]
        );
        // Without thoughts the renderings agree: one sample holds all.
        let turns = [
            ("user", "a"),
            ("assistant", "B"),
            ("user", "c"),
            ("assistant", "D"),
        ];
        assert_eq!(
            samples(FORGETS, &chat(&turns)),
            ["[user]a</s>\n[assistant]⟦B</s>⟧\n[user]c</s>\n[assistant]⟦D</s>⟧\n"]
        );
    }

    #[test]
    fn a_generation_prompt_that_opens_a_thought_is_context() {
        let thinks = format!(
            "{}<think>\n{{% endif %}}",
            PLAIN.strip_suffix("{% endif %}").unwrap()
        );
        let turns = [("user", "a"), ("assistant", "<think>\nb\n</think>\nB")];
        assert_eq!(
            samples(&thinks, &chat(&turns)),
            ["[user]a</s>\n[assistant]<think>\n⟦b\n</think>\nB</s>⟧\n"]
        );
        // A turn without one begins before it, even where it begins alike.
        let turns = [("user", "a"), ("assistant", "<b> B")];
        assert_eq!(
            samples(&thinks, &chat(&turns)),
            ["[user]a</s>\n[assistant]⟦<b> B</s>⟧\n"]
        );
    }

    #[test]
    fn a_system_prompt_that_goes_into_the_last_question_is_context_there() {
        let last = "{% set ns = namespace(system='') %}{% for m in messages %}\
            {% if m.role == 'system' %}{% set ns.system = m.content %}\
            {% elif m.role == 'user' %}[INST] {% if loop.last %}{{ ns.system }} {% endif %}{{ m.content }}[/INST]\
            {% else %} {{ m.content }}</s>{% endif %}{% endfor %}";
        let turns = [
            ("system", "S."),
            ("user", "Where is Alder?"),
            ("assistant", "Away."),
            ("user", "Where is Zora?"),
            ("assistant", "Here."),
        ];
        assert_eq!(
            samples(last, &chat(&turns)),
            [
                "[INST] S. Where is Alder?[/INST]⟦ Away.</s>⟧",
                "[INST] Where is Alder?[/INST] Away.</s>[INST] S. Where is Zora?[/INST]⟦ Here.</s>⟧"
            ]
        );
    }

    #[test]
    fn generation_tags_say_what_is_trained() {
        let tagged = "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}\
            {% generation %}{{ m.content }}{% endgeneration %}</s>{% else %}{{ m.content }}{% endif %}{% endfor %}\
            {% if add_generation_prompt %}[assistant]{% endif %}";
        let turns = [
            ("user", "a"),
            ("assistant", "b"),
            ("user", "c"),
            ("assistant", "d"),
        ];
        assert_eq!(
            samples(tagged, &chat(&turns)),
            ["[user]a[assistant]⟦b⟧</s>[user]c[assistant]⟦d⟧</s>"]
        );
    }

    #[test]
    fn an_assistant_that_begins_is_trained() {
        assert_eq!(
            samples(
                PLAIN,
                &chat(&[("assistant", "Hello."), ("user", "a"), ("assistant", "b")])
            ),
            ["[assistant]⟦Hello.</s>⟧\n[user]a</s>\n[assistant]⟦b</s>⟧\n"]
        );
    }

    #[test]
    fn a_refusal_says_what_to_do() {
        let strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}\
            {% if messages[0].role == 'assistant' %}{{ raise_exception('user first') }}{% endif %}\
            {% for m in messages %}{{ m.content }};{% endfor %}";
        let template = ChatTemplate::new(strict, &BTreeMap::new()).unwrap();
        for (turns, advice) in [
            (
                vec![("system", "S"), ("user", "a"), ("assistant", "b")],
                "data.system = \"merge\"",
            ),
            (
                vec![("assistant", "Hello."), ("user", "a"), ("assistant", "b")],
                "data.first_turn = \"drop\"",
            ),
        ] {
            let conversation = chat(&turns);
            let error = Contexts::of(&template, &conversation, &template.turns(&conversation));
            let error = error.unwrap_err().to_string();
            assert!(error.contains(advice), "{error}");
        }
    }
}
