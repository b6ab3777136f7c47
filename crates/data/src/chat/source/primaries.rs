//! What operators stand between: names, literals, and what follows them, such as
//! attributes, places, calls, filters and tests.

use std::fmt::Write as _;

use super::{
    MAX_DEPTH,
    expr::{Expr, Form, list, literal},
    lexer::{Kind, Token},
    parser::Parser,
};

impl Parser<'_> {
    pub(super) fn primary(&mut self) -> Result<Expr, String> {
        let Some(token) = self.peek() else {
            return Err(self.unexpected("an expression"));
        };
        match (token.kind, token.text) {
            (Kind::Text, text) => {
                self.advance();
                let mut text = text.to_owned();
                while let Some(more) = self.peek().filter(|token| token.kind == Kind::Text) {
                    text.push(' ');
                    text.push_str(more.text);
                    self.advance();
                }
                Ok(Expr::constant(text))
            }
            (Kind::Number, text) => {
                self.advance();
                Ok(Expr::constant(text.to_owned()))
            }
            (Kind::Name, text) => {
                if ["and", "or", "in", "is", "if", "else", "not"].contains(&text) {
                    return Err(self.unexpected("an expression"));
                }
                self.advance();
                if ["true", "false", "none", "True", "False", "None"].contains(&text) {
                    return Ok(Expr::constant(text.to_owned()));
                }
                if text == "loop" && !self.is(".") && !self.is("(") {
                    self.has_bare_loop = true;
                }
                Ok(Expr::atom(text.to_owned(), 1))
            }
            (Kind::Sign, "(") => {
                self.advance();
                if self.skip(")") {
                    return Ok(Expr::constant("()".to_owned()));
                }
                let expr = self.tuple()?;
                self.expect(")")?;
                Ok(Expr {
                    text: expr.as_atom(),
                    form: Form::Atom,
                    ..expr
                })
            }
            (Kind::Sign, "[") => {
                self.advance();
                let mut items = Vec::new();
                while !self.skip("]") {
                    items.push(self.expr()?);
                    if !self.is("]") {
                        self.expect(",")?;
                    }
                }
                Ok(list(&items, "[", "]"))
            }
            (Kind::Sign, "{") => self.map(),
            _ => Err(self.unexpected("an expression")),
        }
    }

    pub(super) fn map(&mut self) -> Result<Expr, String> {
        self.advance();
        let mut text = "{".to_owned();
        let (mut depth, mut is_constant) = (1, true);
        while !self.skip("}") {
            let key = self.expr()?;
            self.expect(":")?;
            let value = self.expr()?;
            depth = depth.max(key.depth).max(value.depth);
            is_constant &= key.is_constant && value.is_constant;
            let _ = write!(text, "{}: {}", key.text, value.text);
            if !self.is("}") {
                self.expect(",")?;
                text.push_str(", ");
            }
        }
        text.push('}');
        Ok(literal(text, depth, is_constant))
    }

    pub(super) fn postfix(&mut self, mut expr: Expr) -> Result<Expr, String> {
        loop {
            if self.skip(".") {
                let Some(token) = self
                    .peek()
                    .filter(|t| matches!(t.kind, Kind::Name | Kind::Number))
                else {
                    return Err(self.unexpected("a name"));
                };
                self.advance();
                let text = format!("{}.{}", expr.as_atom(), token.text);
                expr = Expr::atom(text, expr.depth + 1);
            } else if self.skip("[") {
                expr = self.subscript(&expr)?;
            } else if self.is("(") {
                let is_loop = expr.text == "loop";
                let (mut arguments, depth) = self.arguments()?;
                if is_loop {
                    arguments = format!("({arguments})|olora_each({MAX_DEPTH})");
                }
                // What it compares is read.
                if expr.text.ends_with(".changed") {
                    arguments = format!("([{arguments}]|olora_owned())|olora_seen()");
                }
                let text = format!("{}({arguments})", expr.as_atom());
                expr = Expr::atom(text, 1 + depth.max(expr.depth));
            } else {
                return Ok(expr);
            }
            self.bound(expr.depth)?;
        }
    }

    /// What follows `[`.
    pub(super) fn subscript(&mut self, of: &Expr) -> Result<Expr, String> {
        let mut bounds = Vec::new();
        let mut is_slice = false;
        let mut depth = of.depth;
        loop {
            if self.skip("]") {
                break;
            }
            if self.skip(":") {
                is_slice = true;
                bounds.resize(bounds.len().max(1), None);
                bounds.push(None);
                if bounds.len() > 3 {
                    return Err(self.unexpected("`]`"));
                }
                continue;
            }
            let bound = self.tuple()?;
            depth = depth.max(bound.depth);
            match bounds.last_mut() {
                Some(last @ None) => *last = Some(bound),
                None => bounds.push(Some(bound)),
                Some(Some(_)) => return Err(self.unexpected("`]`")),
            }
        }
        if is_slice {
            bounds.resize(3, None);
            let bounds: Vec<_> = bounds
                .iter()
                .map(|bound| match bound {
                    Some(bound) => bound.text.as_str(),
                    None => "none",
                })
                .collect();
            let sliced = of.filter("olora_slice", &bounds.join(", "));
            return Ok(Expr::atom(format!("({})", sliced.text), depth + 2));
        }
        let Some(Some(at)) = bounds.pop() else {
            return Err(self.unexpected("what is in brackets"));
        };
        let is_key = at.is_constant && at.text.starts_with(['\'', '"']);
        let object = if is_key || of.is_constant {
            of.as_atom()
        } else {
            format!("({})", of.filter("olora_at", "").text)
        };
        // A long key is compared with those of a map.
        let at = if at.is_constant {
            at
        } else {
            at.filter("olora_seen", "")
        };
        Ok(Expr::atom(format!("{object}[{}]", at.text), depth + 2))
    }

    pub(super) fn filters(&mut self, mut expr: Expr) -> Result<Expr, String> {
        loop {
            if self.skip("|") {
                let name = self.dotted()?;
                let (arguments, depth) = if self.is("(") {
                    self.arguments()?
                } else {
                    (String::new(), 0)
                };
                let before = Expr {
                    depth: depth.max(expr.depth),
                    ..expr
                };
                expr = before.filter(&name, &arguments);
            } else if self.skip("is") {
                expr = self.test(&expr)?;
            } else if self.is("(") {
                let (arguments, depth) = self.arguments()?;
                let text = format!("{}({arguments})", expr.as_atom());
                expr = Expr::atom(text, 1 + depth.max(expr.depth));
            } else {
                return Ok(expr);
            }
            self.bound(expr.depth)?;
        }
    }

    /// What follows `is`.
    pub(super) fn test(&mut self, of: &Expr) -> Result<Expr, String> {
        let not = if self.skip("not") { "not " } else { "" };
        let name = self.dotted()?;
        let is_over = |token: Token<'_>| match token.kind {
            Kind::Name => {
                ["else", "or", "and", "is", "if", "in", "not", "recursive"].contains(&token.text)
            }
            Kind::Sign => !["[", "{"].contains(&token.text),
            _ => false,
        };
        let mut arguments = None;
        if self.is("(") {
            arguments = Some(self.arguments()?);
        } else if self.peek().is_some_and(|token| !is_over(token)) {
            let primary = self.primary()?;
            let argument = self.postfix(primary)?;
            arguments = Some((argument.text, argument.depth));
        }
        let Some((arguments, depth)) = arguments else {
            let text = format!("({} is {not}{name})", of.before_filter());
            return Ok(Expr::atom(text, of.depth + 2));
        };
        let of = of.filter("olora_seen", "");
        // Each item is compared.
        let arguments = if name == "in" {
            format!("({arguments})|olora_copied()")
        } else {
            arguments
        };
        let text = format!("({} is {not}{name}({arguments}))", of.text);
        Ok(Expr::atom(text, depth.max(of.depth) + 2))
    }

    /// From `(` to `)`.
    pub(super) fn arguments(&mut self) -> Result<(String, usize), String> {
        self.expect("(")?;
        let mut text = String::new();
        let (mut depth, mut n) = (0, 0);
        while !self.skip(")") {
            let many = ["**", "*"].into_iter().find(|many| self.skip(many));
            if let Some(many) = many {
                text.push_str(many);
            } else if self
                .peek_second()
                .is_some_and(|t| t.kind == Kind::Sign && t.text == "=")
            {
                let _ = write!(text, "{}=", self.name()?);
                self.expect("=")?;
            }
            let mut value = self.expr()?;
            if many.is_some() {
                value = value.filter("olora_copied", "");
            }
            depth = depth.max(value.depth);
            text.push_str(&value.text);
            n += 1;
            self.bound_operands(n)?;
            if !self.is(")") {
                self.expect(",")?;
                text.push_str(", ");
            }
        }
        Ok((text, depth))
    }
}
