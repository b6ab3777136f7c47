//! What each kind of tag becomes.

use std::fmt::Write as _;

use super::{
    MAX_DEPTH,
    expr::Form,
    lexer::Kind,
    parser::Parser,
    writer::{PLACE, Writer},
};

/// What is within a tag, or two tags in the place of one.
pub(super) enum Content {
    Inner(String),
    First(String, String),
}

impl<'a> Writer<'a> {
    /// What is within a block's tag.
    #[allow(clippy::too_many_lines, reason = "an arm for each tag")]
    pub(super) fn block(&mut self, tag: &mut Parser<'a>, name: &'a str) -> Result<Content, String> {
        Ok(Content::Inner(match name {
            "for" => {
                let target = tag.target()?;
                tag.expect("in")?;
                let mut over = tag.or()?;
                if tag.is(",") {
                    over = tag.rest_of_tuple(over)?;
                }
                let mut inner =
                    format!("for {target} in {}", over.filter("olora_each", PLACE).text);
                // The place is the filter's last argument.
                self.place = Some(inner.len() - PLACE.len() - 1);
                if tag.skip("if") {
                    let condition = tag.expr()?;
                    let _ = write!(inner, " if {}", condition.as_atom());
                }
                if tag.skip("recursive") {
                    self.has_recursive = true;
                    inner.push_str(" recursive");
                }
                self.open_block(name)?;
                inner
            }
            "if" | "elif" => {
                let condition = tag.or()?;
                if name == "if" {
                    self.open_block(name)?;
                } else {
                    self.branch()?;
                }
                format!("{name} {}", condition.text)
            }
            "set" => self.set(tag)?,
            "with" => {
                let mut inner = name.to_owned();
                while tag.peek().is_some() {
                    let target = tag.target()?;
                    tag.expect("=")?;
                    let value = tag.expr()?.filter("olora_kept", "");
                    let comma = if tag.skip(",") { "," } else { "" };
                    let _ = write!(inner, " {target} = {}{comma}", value.text);
                }
                self.open_block(name)?;
                inner
            }
            "macro" | "call" => return self.macro_or_call(tag, name),
            "filter" => {
                let chain = tag.filter_chain()?;
                self.open_block(name)?;
                format!("{name} {chain}")
            }
            "autoescape" => {
                let value = tag.expr()?;
                self.open_block(name)?;
                format!("{name} {}", value.text)
            }
            "generation" => {
                self.has_generation = true;
                self.open_block(name)?;
                return Ok(match self.mark {
                    Some(mark) => Content::First("with".to_owned(), format!("filter {mark}")),
                    None => Content::Inner("with".to_owned()),
                });
            }
            "endgeneration" => {
                self.close_block(name)?;
                return Ok(match self.mark {
                    Some(_) => Content::First("endfilter".to_owned(), "endwith".to_owned()),
                    None => Content::Inner("endwith".to_owned()),
                });
            }
            "endmacro" | "endcall" => {
                if name == "endmacro" && tag.peek().is_some_and(|token| token.kind == Kind::Name) {
                    tag.advance();
                }
                self.close_block(name)?;
                name.to_owned()
            }
            "endset" | "endfor" | "endif" | "endwith" | "endfilter" | "endautoescape" => {
                self.close_block(name)?;
                name.to_owned()
            }
            "else" | "continue" | "break" => name.to_owned(),
            "include" | "import" | "from" | "extends" | "block" => {
                return Err(tag.error(&format!("`{name}`: a chat template is one file")));
            }
            _ => return Err(tag.error(&format!("there is no tag `{}`", name.escape_default()))),
        }))
    }

    fn set(&mut self, tag: &mut Parser<'a>) -> Result<String, String> {
        let target = tag.target()?;
        if tag.skip("=") {
            let value = tag.expr()?;
            let value = if tag.is(",") {
                tag.rest_of_tuple(value)?
            } else {
                value
            };
            let value = if target.contains('.') {
                value.filter("olora_owned", "")
            } else if value.is_constant || value.form == Form::Filtered {
                value
            } else {
                value.filter("olora_kept", "")
            };
            return Ok(format!("set {target} = {}", value.text));
        }
        let mut inner = format!("set {target}");
        if tag.skip("|") {
            let _ = write!(inner, " | {}", tag.filter_chain()?);
        }
        self.open_block("set")?;
        Ok(inner)
    }

    fn macro_or_call(&mut self, tag: &mut Parser<'a>, name: &'a str) -> Result<Content, String> {
        let mut inner = name.to_owned();
        if name == "macro" {
            // Each would hold the one before it, however many there are.
            if self.is_within("for") {
                return Err(tag.error("a macro within a loop: put it before the loop"));
            }
            let _ = write!(inner, " {}", tag.name()?);
        }
        if name == "macro" || tag.is("(") {
            tag.expect("(")?;
            inner.push('(');
            while !tag.skip(")") {
                let argument = tag.name()?;
                inner.push_str(argument);
                if tag.skip("=") {
                    let _ = write!(inner, "={}", tag.expr()?.text);
                }
                if !tag.is(")") {
                    tag.expect(",")?;
                    inner.push(',');
                }
            }
            inner.push(')');
        }
        if name == "call" {
            let call = tag.expr()?;
            let _ = write!(inner, " {}", call.text);
        }
        self.open_block(name)?;
        let step = format!("set olora_step = olora_step({PLACE})");
        self.place = Some(step.len() - PLACE.len() - 1);
        Ok(Content::First(inner, step))
    }
}

impl Parser<'_> {
    /// Names that something is assigned to.
    fn target(&mut self) -> Result<String, String> {
        let start = self.n_read();
        let mut target = String::new();
        while let Some(token) = self.peek() {
            let is_name = token.kind == Kind::Name && token.text != "in";
            if !is_name && !matches!(token.text, "." | "," | "(" | ")") || token.kind == Kind::Text
            {
                break;
            }
            target.push_str(token.text);
            self.advance();
            if self.n_read() - start > MAX_DEPTH {
                return Err(self.error("too many names before `=` or `in`"));
            }
        }
        if target.is_empty() {
            return Err(self.unexpected("a name"));
        }
        Ok(target)
    }

    fn filter_chain(&mut self) -> Result<String, String> {
        let mut chain = String::new();
        let mut n = 0;
        loop {
            chain.push_str(&self.dotted()?);
            if self.is("(") {
                let (arguments, _) = self.arguments()?;
                let _ = write!(chain, "({arguments})");
            }
            n += 1;
            self.bound(n)?;
            if !self.skip("|") {
                return Ok(chain);
            }
            chain.push_str(" | ");
        }
    }
}
