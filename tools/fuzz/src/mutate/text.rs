//! Changes to text: numbers, words in quotes, lines, and marks that mean
//! something to TOML, YAML, CSV, JSON or Jinja.

use super::{LONGEST, Random};

const NUMBERS: [&str; 22] = [
    "0",
    "-1",
    "1",
    "-0",
    "0.0",
    "1e999",
    "-1e999",
    "nan",
    "inf",
    "NaN",
    "1e300",
    "1e-320",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "4294967296",
    "1000000000000",
    "0x7f",
    "1_000",
    "1979-05-27",
    "007",
];

const PIECES: [&str; 60] = [
    "\0",
    "\r",
    "\r\n",
    "\t",
    ",",
    ";",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\\",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\u{2028}",
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ":",
    "- ",
    "#",
    "---\n",
    "...\n",
    "&a ",
    "*a",
    "<<: *a",
    "!!binary ",
    "|\n",
    "%YAML 9.9\n",
    "true",
    "null",
    "~",
    "Zora",
    "{{",
    "}}",
    "{%",
    "%}",
    "{#",
    "#}",
    "-%}",
    "| tojson",
    "| list",
    "[::-1]",
    "{{ messages }}",
    "{% for m in messages %}",
    "{% endfor %}",
    "{% if true %}",
    "{% endif %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{% macro f(x) %}",
    "{% endmacro %}",
    "{{ raise_exception('Zora') }}",
    "{% set x = namespace(n=0) %}",
    "{{ messages[0]['content'][:-1] }}",
    "{{ (1, 2) }}",
];

/// What a template may ask for without end.
const GREEDY: [&str; 12] = [
    "{% for i in range(999999999) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ 'Zora' * 999999999 }}",
    "{{ [0] * 999999999 }}",
    "{{ messages | tojson(indent=999999999) }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:>999999999}'.format(1) }}",
    "{{ 'Zora' | indent(999999999) }}",
    "{{ 'Zora' | center(999999999) }}",
    "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "{{ 10 ** 10 ** 10 }}",
    "{% set n = namespace(a=[1]) %}{% for i in range(60) %}{% set n.a = n.a + n.a %}{% endfor %}",
];

/// Changes a text here and there. `false` if it is none.
pub(super) fn change(random: &mut Random, input: &mut Vec<u8>) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    if text.is_empty() {
        return false;
    }
    let mut text = text.to_owned();
    for _ in 0..=random.below(3) {
        let at = text.floor_char_boundary(random.below(text.len() + 1));
        match random.below(12) {
            0..=2 => {
                let numbers = spans(&text, |c| c.is_ascii_digit() || ".-+_".contains(c));
                if let Some((from, to)) = some(random, &numbers) {
                    text.replace_range(from..to, random.of(&NUMBERS));
                }
            }
            3 => {
                let words = spans(&text, |c| c.is_alphanumeric() || c == '_');
                if let (Some((from, to)), Some(other)) =
                    (some(random, &words), some(random, &words))
                {
                    let word = match random.below(4) {
                        0 => String::new(),
                        1 => text[from..to].repeat(random.of(&[2, 100, 5000])),
                        2 => random.of(&NUMBERS).to_string(),
                        _ => text[other.0..other.1].to_owned(),
                    };
                    text.replace_range(from..to, &word);
                }
            }
            4 | 5 => text.insert_str(at, random.of(&PIECES)),
            6 => {
                let piece = random.of(&[
                    "[",
                    "{",
                    "(",
                    "- ",
                    "{{",
                    "a.",
                    "not ",
                    "{% if x %}",
                    "\"",
                    "1+",
                    "-",
                ]);
                text.insert_str(at, &piece.repeat(random.of(&[2, 100, 3000, 20_000])));
            }
            7 => lines(random, &mut text),
            8 => text.truncate(at),
            9 if text.contains("{%") || text.contains("{{") => {
                text.insert_str(at, random.of(&GREEDY));
            }
            9 | 10 => {
                let to = text.ceil_char_boundary((at + 1 + random.below(40)).min(text.len()));
                let block = text[at..to].repeat(random.of(&[1, 3, 200]));
                text.insert_str(at, &block);
            }
            _ => {
                let to = text.ceil_char_boundary((at + 1 + random.below(40)).min(text.len()));
                text.replace_range(at..to, "");
            }
        }
        if text.len() > LONGEST || text.is_empty() {
            break;
        }
    }
    *input = text.into_bytes();
    true
}

fn lines(random: &mut Random, text: &mut String) {
    let mut lines: Vec<&str> = text.split('\n').collect();
    let (one, other) = (random.below(lines.len()), random.below(lines.len()));
    match random.below(4) {
        0 => drop(lines.remove(one)),
        1 => lines.insert(other, lines[one]),
        2 => lines.swap(one, other),
        _ => {
            let times = random.of(&[10, 1000]);
            let line = lines[one];
            if line.len() * times < LONGEST {
                lines.splice(other..other, std::iter::repeat_n(line, times));
            }
        }
    }
    *text = lines.join("\n");
}

/// Where characters of a kind stand together.
fn spans(text: &str, kind: impl Fn(char) -> bool) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut begin = None;
    for (at, c) in text.char_indices() {
        match (kind(c), begin) {
            (true, None) => begin = Some(at),
            (false, Some(from)) => {
                found.push((from, at));
                begin = None;
            }
            _ => {}
        }
    }
    found.extend(begin.map(|from| (from, text.len())));
    found
}

fn some(random: &mut Random, spans: &[(usize, usize)]) -> Option<(usize, usize)> {
    (!spans.is_empty()).then(|| random.of(spans))
}
