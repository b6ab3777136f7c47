//! A source, gone through tag by tag and written anew.

use std::fmt::Write as _;

use super::{
    MAX_DEPTH, Place,
    lexer::{self, Kind, Tag, end_of_raw},
    parser::Parser,
    tags::Content,
};

/// A block that is open while a source is read.
struct Block<'a> {
    name: &'a str,
    /// Where in what is written the number of bytes of its own text belongs.
    at: Option<usize>,
    raw: usize,
    n_branches: usize,
}

pub(super) struct Writer<'a> {
    /// What is to be read.
    at: Place<'a>,
    out: String,
    blocks: Vec<Block<'a>>,
    /// The filter that marks what is within `{% generation %}`.
    pub mark: Option<&'a str>,
    pub has_generation: bool,
    /// Where in the tag that is written [`PLACE`] stands.
    pub place: Option<usize>,
    /// `loop` as a value, which loops that call themselves must not be.
    has_bare_loop: bool,
    pub has_recursive: bool,
}

/// The digits that hold the place of a number that is known at a block's end.
pub(super) const PLACE: &str = "0918273645";

impl<'a> Writer<'a> {
    pub(super) fn new(source: &'a str, mark: Option<&'a str>) -> Self {
        Self {
            at: Place { source, at: 0 },
            out: String::with_capacity(source.len() * 2),
            blocks: Vec::new(),
            mark,
            has_generation: false,
            place: None,
            has_bare_loop: false,
            has_recursive: false,
        }
    }

    /// The source as minijinja is to have it, and whether it has `{% generation %}`.
    pub(super) fn write(mut self) -> Result<(String, bool), String> {
        loop {
            let rest = self.at.rest();
            let Some(start) = tag_in(rest) else {
                self.raw(rest);
                break;
            };
            self.raw(&rest[..start]);
            self.at.at += start;
            let rest = &rest[start..];
            if rest.starts_with("{#") {
                let end = rest
                    .find("#}")
                    .ok_or_else(|| self.at.error("a comment without an end"))?;
                self.out.push_str(&rest[..end + 2]);
                self.at.at += end + 2;
            } else {
                self.tag(rest.starts_with("{%"))?;
            }
        }
        if self.has_bare_loop && self.has_recursive {
            return Err("it hands a recursive `loop` on as a value".to_owned());
        }
        Ok((self.out, self.has_generation))
    }

    /// Text that is no tag.
    fn raw(&mut self, text: &str) {
        let mut blocks = self.blocks.iter_mut().rev();
        if let Some(block) = blocks.find(|block| block.at.is_some()) {
            block.raw += text.len();
        }
        self.out.push_str(text);
    }

    /// A tag, from its `{{` or `{%`.
    fn tag(&mut self, is_block: bool) -> Result<(), String> {
        let begin = self.at;
        let (open, close) = if is_block { ("{%", "%}") } else { ("{{", "}}") };
        let inside = Place {
            at: begin.at + 2,
            ..begin
        };
        let Tag {
            begins,
            ends,
            tokens,
            after,
        } = lexer::tag(inside, close)?;
        self.at = after;
        let whole = &begin.source[begin.at..after.at];
        // So that errors of minijinja's have the line of the source.
        let lines = "\n".repeat(whole.matches('\n').count());
        let mut tag = Parser::new(tokens, after);
        if !is_block {
            let expr = tag.tuple()?;
            tag.end()?;
            self.has_bare_loop |= tag.has_bare_loop;
            let _ = write!(
                self.out,
                "{open}{begins} {} {lines}{ends}{close}",
                expr.text
            );
            return Ok(());
        }
        let Some(name) = tag.peek().filter(|token| token.kind == Kind::Name) else {
            return Err(after.error("a tag without a name"));
        };
        let name = name.text;
        tag.advance();
        if name == "raw" {
            tag.end()?;
            let rest = after.rest();
            let end = end_of_raw(rest).ok_or_else(|| after.error("`raw` without an end"))?;
            self.out.push_str(whole);
            self.raw(&rest[..end]);
            self.at.at += end;
            return Ok(());
        }
        let content = self.block(&mut tag, name)?;
        tag.end()?;
        self.has_bare_loop |= tag.has_bare_loop;
        let _ = write!(self.out, "{open}{begins} ");
        let last = match content {
            Content::Inner(inner) => inner,
            Content::First(inner, then) => {
                let _ = write!(self.out, "{inner} %}}{{% ");
                then
            }
        };
        if let Some(place) = self.place.take()
            && let Some(block) = self.blocks.last_mut()
        {
            block.at = Some(self.out.len() + place);
        }
        let _ = write!(self.out, "{last} {lines}{ends}{close}");
        Ok(())
    }

    pub(super) fn open_block(&mut self, name: &'a str) -> Result<(), String> {
        self.blocks.push(Block {
            name,
            at: None,
            raw: 0,
            n_branches: 0,
        });
        self.bound_blocks()
    }

    /// Another branch of the block that is open.
    pub(super) fn branch(&mut self) -> Result<(), String> {
        if let Some(block) = self.blocks.last_mut() {
            block.n_branches += 1;
        }
        self.bound_blocks()
    }

    /// Whether a block of a name is open.
    pub(super) fn is_within(&self, name: &str) -> bool {
        self.blocks.iter().any(|block| block.name == name)
    }

    fn bound_blocks(&self) -> Result<(), String> {
        let branches: usize = self.blocks.iter().map(|block| block.n_branches + 1).sum();
        if branches > MAX_DEPTH {
            return Err(format!(
                "its blocks and branches lie more than {MAX_DEPTH} deep in each other (in line {})",
                self.at.line()
            ));
        }
        Ok(())
    }

    pub(super) fn close_block(&mut self, name: &str) -> Result<(), String> {
        let opened = name.strip_prefix("end").unwrap_or(name);
        let Some(block) = self.blocks.pop().filter(|block| block.name == opened) else {
            return Err(self.at.error(&format!("`{name}` without a beginning")));
        };
        if let Some(at) = block.at {
            let raw = format!("{:01$}", block.raw, PLACE.len());
            self.out.replace_range(at..at + PLACE.len(), &raw);
        }
        Ok(())
    }
}

/// Where in a text a tag or a comment begins.
fn tag_in(text: &str) -> Option<usize> {
    let mut braces = text.match_indices('{');
    let begins = |at: usize| matches!(text.as_bytes().get(at + 1), Some(b'{' | b'%' | b'#'));
    braces.find(|(at, _)| begins(*at)).map(|(at, _)| at)
}
