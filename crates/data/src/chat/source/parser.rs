//! A tag's tokens, gone through one by one, and the bounds on what they form.

use std::fmt::Write as _;

use super::{
    MAX_DEPTH, MAX_OPERANDS, Place,
    lexer::{Kind, Token},
};

pub(super) struct Parser<'a> {
    tokens: Vec<Token<'a>>,
    next: usize,
    /// How deep the expression that is read lies in others.
    pub depth: usize,
    /// Whether `loop` is used as a value.
    pub has_bare_loop: bool,
    /// What follows the tag, for errors.
    place: Place<'a>,
}

impl<'a> Parser<'a> {
    pub(super) fn new(tokens: Vec<Token<'a>>, place: Place<'a>) -> Self {
        Self {
            tokens,
            next: 0,
            depth: 0,
            has_bare_loop: false,
            place,
        }
    }

    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).copied()
    }

    /// The token after the next.
    pub(super) fn peek_second(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next + 1).copied()
    }

    pub(super) fn advance(&mut self) {
        self.next += 1;
    }

    /// How many tokens were read.
    pub(super) fn n_read(&self) -> usize {
        self.next
    }

    pub(super) fn error(&self, what: &str) -> String {
        self.place.error(what)
    }

    pub(super) fn is(&self, text: &str) -> bool {
        self.peek()
            .is_some_and(|token| token.kind != Kind::Text && token.text == text)
    }

    pub(super) fn skip(&mut self, text: &str) -> bool {
        let found = self.is(text);
        self.next += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, text: &str) -> Result<(), String> {
        if self.skip(text) {
            Ok(())
        } else {
            Err(self.unexpected(&format!("`{text}`")))
        }
    }

    pub(super) fn unexpected(&self, expected: &str) -> String {
        let found = match self.peek() {
            Some(token) => format!("`{}`", token.text.chars().take(40).collect::<String>()),
            None => "the end of the tag".to_owned(),
        };
        self.error(&format!("expected {expected}, found {found}"))
    }

    pub(super) fn name(&mut self) -> Result<&'a str, String> {
        match self.peek() {
            Some(token) if token.kind == Kind::Name => {
                self.next += 1;
                Ok(token.text)
            }
            _ => Err(self.unexpected("a name")),
        }
    }

    pub(super) fn end(&self) -> Result<(), String> {
        if self.next < self.tokens.len() {
            return Err(self.unexpected("the end of the tag"));
        }
        Ok(())
    }

    pub(super) fn dotted(&mut self) -> Result<String, String> {
        let mut name = self.name()?.to_owned();
        while self.skip(".") {
            let _ = write!(name, ".{}", self.name()?);
            if name.len() > 1000 {
                return Err(self.error("a name of more than 1000 bytes"));
            }
        }
        Ok(name)
    }

    pub(super) fn bound(&self, depth: usize) -> Result<(), String> {
        if depth > MAX_DEPTH {
            return Err(format!(
                "an expression lies more than {MAX_DEPTH} deep in others (in line {})",
                self.place.line()
            ));
        }
        Ok(())
    }

    pub(super) fn bound_operands(&self, n: usize) -> Result<(), String> {
        if n > MAX_OPERANDS {
            return Err(format!(
                "an expression has more than {MAX_OPERANDS} operands (in line {})",
                self.place.line()
            ));
        }
        Ok(())
    }
}
