//! What a chat template may not do, whoever made it: each ends soon, with an
//! error that says why.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use common::World;
use olora_data::{ChatTemplate, Conversation, Message, Tokenizer};
use serde_json::{Value, json};

/// No attack takes longer, on a machine that is busy with much else.
const LIMIT: Duration = Duration::from_mins(1);

fn conversation() -> Conversation {
    vec![
        Message::new("user", "Where does Alder live?"),
        Message::new("assistant", "In Oxmere."),
    ]
    .into()
}

fn rendered(source: &str, conversation: &Conversation) -> Result<String, String> {
    let template = ChatTemplate::new(source, &BTreeMap::new()).map_err(|e| e.to_string())?;
    let rendered = template.render(conversation, false);
    rendered.map_err(|error| error.to_string())
}

/// A template ends in time with an error that has these words. It runs on a stack
/// as small as a thread of a pool has.
fn ends_with(source: &str, words: &str) {
    let begin = Instant::now();
    let owned = source.to_owned();
    let thread = thread::Builder::new().stack_size(2 << 20);
    let thread = thread.spawn(move || rendered(&owned, &conversation()));
    let shown: String = source.chars().take(100).collect();
    let error = thread.unwrap().join().unwrap();
    let error = error.map(|text| text.len()).expect_err(&shown);
    assert!(error.contains(words), "{shown}: {error}");
    assert!(begin.elapsed() < LIMIT, "{shown}: {:?}", begin.elapsed());
}

const STEPS: &str = "steps";
const BYTES: &str = "MiB of text and lists";
const WIDTH: &str = "a width, an indentation or a number beyond 10000";
const DEEP: &str = "deep";
const LIVE: &str = "may not be put into another value";

#[test]
fn loops_without_an_end() {
    let over = "{% for i in range(100000) %}";
    let end = "{% endfor %}";
    ends_with(
        &format!("{}x{}", over.repeat(4), end.repeat(4)),
        "more than",
    );
    ends_with(
        &format!("{over}{over}{{% if messages == messages %}}{{% endif %}}{end}{end}"),
        "more than",
    );
}

#[test]
fn macros_that_call_themselves() {
    ends_with(
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        DEEP,
    );
    // Forty deep is allowed, but not 2^40 calls.
    ends_with(
        "{% macro f(n) %}{% if n > 0 and (f(n - 1) or f(n - 1) or f(n - 1)) %}{% endif %}{% endmacro %}{{ f(40) }}",
        STEPS,
    );
    ends_with(
        "{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}",
        DEEP,
    );
}

#[test]
fn texts_that_double() {
    for doubled in [
        "ns.x + ns.x",
        "ns.x ~ ns.x",
        "ns.x * 2",
        "[ns.x, ns.x] | join",
        "ns.x | replace('a', 'aa')",
        "ns.x.replace('a', 'aa')",
        "'{0}{0}'.format(ns.x)",
        "'%s%s' | format(ns.x, ns.x)",
    ] {
        ends_with(
            &format!(
                "{{% set ns = namespace(x='a') %}}{{% for i in range(60) %}}{{% set ns.x = {doubled} %}}{{% endfor %}}"
            ),
            "more than",
        );
    }
    ends_with(
        &format!("{{% set x = 'a' %}}{}", "{% set x = x + x %}".repeat(60)),
        BYTES,
    );
    ends_with("{{ 'a' * 10**12 }}", "more than");
    ends_with(
        &format!(
            "{{{{ 'a'{} }}}}",
            "|replace('a', 'aaaaaaaaaaaaaaaa')".repeat(20)
        ),
        "more than",
    );
    let raw = "x".repeat(100_000);
    ends_with(
        &format!("{{% set y %}}{{% for i in range(100000) %}}{raw}{{% endfor %}}{{% endset %}}"),
        "more than",
    );
    ends_with(
        &format!(
            "{{% macro f() %}}{raw}{{% endmacro %}}{{% for i in range(100000) %}}{{% set y = f() %}}{{% endfor %}}"
        ),
        "more than",
    );
}

#[test]
fn lists_and_maps_that_double() {
    for doubled in [
        "ns.x + ns.x",
        "[ns.x, ns.x]",
        "{'a': ns.x, 'b': ns.x}",
        "dict(a=ns.x, b=ns.x)",
        "ns.x * 2",
    ] {
        let words = if doubled.starts_with("dict") {
            "more than"
        } else {
            BYTES
        };
        ends_with(
            &format!(
                "{{% set ns = namespace(x=[1]) %}}{{% for i in range(60) %}}{{% set ns.x = {doubled} %}}{{% endfor %}}{{{{ ns.x }}}}"
            ),
            words,
        );
    }
    ends_with("{{ range(10 ** 12) | list }}", "too many elements");
    ends_with("{{ ([1] * 10 ** 12) | length }}", "more than");
}

#[test]
fn widths_and_indentations() {
    for wide in [
        "messages | tojson(indent=10**15)",
        "messages | tojson(indent=999999999)",
        "'%999999999s' | format('a')",
        "'%*s' | format(999999999, 'a')",
        "'{:999999999}'.format('a')",
        "'a\\nb' | indent(999999999)",
        "'a\\nb' | indent(width=999999999)",
        "[1] | batch(999999999, 'x') | list",
        "[1] | slice(999999999) | list",
    ] {
        ends_with(&format!("{{{{ {wide} }}}}"), WIDTH);
    }
    ends_with("{{ '%999999999s' % 'a' }}", "operator");
    ends_with("{{ 'a' | center(999999999) }}", "unknown");
    ends_with("{{ 'a'.center(999999999) }}", "center");
}

#[test]
fn values_that_are_deep_or_hold_themselves() {
    for deeper in [
        "[ns.x]",
        "{'a': ns.x}",
        "dict(a=ns.x)",
        "ns.x | batch(1) | list",
    ] {
        ends_with(
            &format!(
                "{{% set ns = namespace(x=[1]) %}}{{% for i in range(100000) %}}{{% set ns.x = {deeper} %}}{{% endfor %}}"
            ),
            DEEP,
        );
    }
    for itself in [
        "ns",
        "[ns]",
        "{'a': ns}",
        "dict(a=ns)",
        "namespace(a=ns)",
        "[nothing] | map('default', ns) | list",
    ] {
        ends_with(
            &format!("{{% set ns = namespace() %}}{{% set ns.a = {itself} %}}{{{{ ns }}}}"),
            LIVE,
        );
    }
    ends_with(
        "{% for i in range(100000) %}{% macro f() %}{{ g }}{% endmacro %}{% set g = f %}{% endfor %}",
        "a macro within a loop",
    );
}

#[test]
fn deep_values_of_a_record() {
    let mut deep = json!("Alder");
    for _ in 0..100_000 {
        deep = Value::Array(vec![deep]);
    }
    let thread = thread::Builder::new().stack_size(256 << 20).spawn(move || {
        let message = Message::new("user", "Where?").with("houses", deep);
        let conversation = Conversation::from(vec![message]);
        let error = rendered(
            "{{ messages[0].houses }}{{ messages | tojson }}",
            &conversation,
        );
        assert!(error.unwrap_err().contains(DEEP));
        // What such a value takes to be dropped is serde_json's.
        std::mem::forget(conversation);
    });
    thread.unwrap().join().unwrap();
}

#[test]
fn long_and_deep_sources() {
    let n = 100_000;
    for [before, repeated, after] in [
        ["1", "+1", ""],
        ["1", "-1", ""],
        ["1", "*1", ""],
        ["1", "~1", ""],
        ["1", " or 1", ""],
        ["1", "|abs", ""],
        ["a", ".b", ""],
        ["a", "[0]", ""],
        ["a", "()", ""],
        ["", "not ", "1"],
        ["", "-", "1"],
        ["", "(", "1"],
        ["", "[", "1"],
        ["1", "<1", ""],
        ["1", " if 1", ""],
        ["1", " is eq 1", ""],
        ["a", "[1:]", ""],
        ["a", "**a", ""],
    ] {
        ends_with(
            &format!("{{{{ {before}{}{after} }}}}", repeated.repeat(n)),
            "more than",
        );
    }
    for block in [
        "{% if 1 %}",
        "{% elif 1 %}",
        "{% for a in b %}",
        "{% with %}",
        "{% filter trim %}",
        "{% set a %}",
    ] {
        ends_with(&format!("{{% if 1 %}}{}", block.repeat(20_000)), DEEP);
    }
    ends_with(&format!("{{{{ {}", "{1:".repeat(n)), "a tag without an end");
    // As many tags, texts or ends as a source has room for take no longer each.
    for many in [
        format!("{}{{% endif %}}", "{{a}}".repeat(2 * n)),
        format!("{{{{ {} 1 }}}}", "'a'".repeat(3 * n)),
        format!("{{% raw %}}{}%}}", "{%".repeat(5 * n)),
    ] {
        ends_with(&many, "syntax error");
    }
    ends_with(&"x".repeat(2 << 20), "at most 1048576 are read");
}

#[test]
fn work_on_large_texts_again_and_again() {
    for work in [
        "s == t",
        "'b' in s",
        "s < t",
        "s | upper",
        "s | length > 1",
        "s[15999999]",
        "s[::-1]",
        "s.count('ab')",
        "s in [t]",
        "s is eq t",
        "s | replace('ab', '')",
    ] {
        ends_with(
            &format!(
                "{{% set s = 'a' * 16000000 %}}{{% set t = 'a' * 16000000 %}}\
                 {{% for i in range(100000) %}}{{% if {work} %}}{{% endif %}}{{% endfor %}}"
            ),
            "more than",
        );
    }
}

#[test]
fn small_work_again_and_again() {
    let fields: Vec<_> = (0..50_000).map(|i| format!("'{i}': 1")).collect();
    let fields = fields.join(", ");
    for work in [
        "'a' in xs",
        "'a' is in xs",
        "dict(**d)",
        "loop.changed(xs if j % 2 else ys)",
        "('a' * 5000 + 'b') in 'a' * 100000",
    ] {
        ends_with(
            &format!(
                "{{% set xs = range(100000) | list %}}{{% set ys = range(100000) | list %}}\
                 {{% set d = {{{fields}}} %}}\
                 {{% for i in range(100000) %}}{{% for j in range(100000) %}}\
                 {{% set y = {work} %}}{{% endfor %}}{{% endfor %}}"
            ),
            "more than",
        );
    }
}

#[test]
fn what_minijinja_panics_on_or_never_ends() {
    let all = "{{ [][::-1] }}|{{ ''[::-1] }}|{{ [1, 2][5:0:-1] }}|{{ 'ab'.count('') }}";
    assert_eq!(rendered(all, &conversation()).unwrap(), "[]||[2]|3");
    ends_with("{{ [1][::0] }}", "the step of a slice is not 0");
    ends_with("{{ 'a'.split('') }}", "is split at some text");
    ends_with(
        "{% include 'chat_template' %}",
        "a chat template is one file",
    );
    ends_with("{{ 1 // 0 }}", "1 // 0");
}

#[test]
fn the_file_of_the_template_is_named() {
    let world = World::new(Some(
        "{% for m in messages %}{{ 'a' * 10**12 }}{% endfor %}",
    ));
    let tokenizer = Tokenizer::from_dir(world.dir.path()).unwrap();
    let error = tokenizer.render_chat(&conversation().messages, true);
    let error = error.unwrap_err().to_string();
    let file = if world.dir.path().join("chat_template.jinja").exists() {
        "chat_template.jinja"
    } else {
        "tokenizer_config.json"
    };
    assert!(
        error.starts_with("the chat template of ") && error.contains(file),
        "{error}"
    );
}

#[test]
fn a_long_conversation_is_within_all_bounds() {
    // As Qwen3's: it looks for the last question, goes through all turns, cuts
    // thoughts out and writes calls as JSON.
    let source = "{%- set ns = namespace(last=0) %}\
        {%- for message in messages[::-1] %}{%- set index = (messages|length - 1) - loop.index0 %}\
        {%- if ns.last == 0 and message.role == 'user' %}{%- set ns.last = index %}{%- endif %}{%- endfor %}\
        {%- for message in messages %}{%- set content = message.content if message.content is string else '' %}\
        {%- if message.role == 'assistant' %}{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1] %}\
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}\
        {{- '<|im_start|>' + message.role + '\\n' + content }}\
        {%- for call in message.tool_calls or [] %}{{- call.function.name ~ (call.function.arguments | tojson) }}{%- endfor %}\
        {{- '<|im_end|>\\n' }}\
        {%- else %}{{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}";
    let words = "Alder went to Oxmere and met Zora by the ford. ".repeat(11);
    let messages: Vec<_> = (0..2000)
        .map(|turn| {
            let role = if turn % 2 == 0 { "user" } else { "assistant" };
            let call = json!([{"type": "function", "function": {"name": "find", "arguments": {"who": "Jorun", "turn": turn}}}]);
            Message::new(role, words.as_str()).with("tool_calls", call)
        })
        .collect();
    let text = rendered(source, &messages.into()).unwrap();
    assert!(text.len() > 1 << 20, "{}", text.len());
    // Even one that copies all that it has for every turn.
    let copies = "{% set ns = namespace(all='', turns=[]) %}{% for m in messages %}\
        {% set ns.all = ns.all + m.role %}{% set ns.turns = ns.turns + [m] %}\
        {% if messages[loop.index:] | selectattr('role', 'equalto', 'user') | list | length > 0 %}.{% endif %}{% endfor %}{{ ns.all }}";
    let short: Vec<_> = (0..2000).map(|_| Message::new("user", "Where?")).collect();
    assert!(rendered(copies, &short.into()).is_ok());
}
