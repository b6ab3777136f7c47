//! Expressions of operators, from those that bind least to those that bind most.
//! What could take long or make something large becomes a filter of ours.

use std::fmt::Write as _;

use super::{
    expr::{Expr, applied, list},
    parser::Parser,
};

impl Parser<'_> {
    pub(super) fn tuple(&mut self) -> Result<Expr, String> {
        let first = self.expr()?;
        if self.is(",") {
            return self.rest_of_tuple(first);
        }
        Ok(first)
    }

    pub(super) fn rest_of_tuple(&mut self, first: Expr) -> Result<Expr, String> {
        let mut items = vec![first];
        while self.skip(",") {
            if self.peek().is_none() || self.is(")") {
                break;
            }
            items.push(self.expr()?);
        }
        Ok(list(&items, "(", ",)"))
    }

    /// `a if b else c`.
    pub(super) fn expr(&mut self) -> Result<Expr, String> {
        self.depth += 1;
        self.bound(self.depth)?;
        let mut expr = self.or()?;
        while self.skip("if") {
            let condition = self.or()?;
            let otherwise = if self.skip("else") {
                Some(self.expr()?)
            } else {
                None
            };
            let depth = 1 + expr.depth.max(condition.depth);
            let mut text = format!("{} if {}", expr.as_atom(), condition.as_atom());
            let mut deeper = depth;
            if let Some(otherwise) = otherwise {
                let _ = write!(text, " else {}", otherwise.as_atom());
                deeper = depth.max(otherwise.depth + 1);
            }
            self.bound(deeper)?;
            expr = Expr::open(text, deeper);
        }
        self.depth -= 1;
        Ok(expr)
    }

    pub(super) fn chain(
        &mut self,
        operator: &str,
        operand: fn(&mut Self) -> Result<Expr, String>,
    ) -> Result<Expr, String> {
        let first = operand(self)?;
        if !self.is(operator) {
            return Ok(first);
        }
        let mut depth = first.depth;
        let mut text = first.as_atom();
        let mut n = 1;
        while self.skip(operator) {
            let next = operand(self)?;
            depth = depth.max(next.depth) + 1;
            self.bound(depth)?;
            n += 1;
            self.bound_operands(n)?;
            let _ = write!(text, " {operator} {}", next.as_atom());
        }
        Ok(Expr::open(text, depth))
    }

    pub(super) fn or(&mut self) -> Result<Expr, String> {
        self.chain("or", Self::and)
    }

    pub(super) fn and(&mut self) -> Result<Expr, String> {
        self.chain("and", Self::not)
    }

    pub(super) fn not(&mut self) -> Result<Expr, String> {
        let mut n = 0;
        while self.skip("not") {
            n += 1;
            self.bound(n)?;
        }
        let expr = self.compare()?;
        if n == 0 {
            return Ok(expr);
        }
        // An even number of them still makes a boolean.
        let nots = if n % 2 == 0 { "not (not" } else { "(not" };
        let text = format!("{nots} {})", expr.as_atom());
        Ok(Expr::open(text, expr.depth + 2))
    }

    pub(super) fn compare(&mut self) -> Result<Expr, String> {
        let first = self.math1()?;
        let mut others = Vec::new();
        loop {
            let signs = ["==", "!=", "<=", ">=", "<", ">", "in"];
            let sign = if let Some(sign) = signs.into_iter().find(|sign| self.is(sign)) {
                self.advance();
                sign
            } else if self.is("not") && self.peek_second().is_some_and(|t| t.text == "in") {
                self.advance();
                self.advance();
                "not in"
            } else {
                break;
            };
            let other = self.math1()?;
            others.push((sign, other));
            self.bound(others.len())?;
        }
        let depth = others.iter().map(|(_, other)| other.depth);
        let depth = 1 + depth.max().unwrap_or(0).max(first.depth) + others.len();
        match others.as_slice() {
            [] => Ok(first),
            [("in", other)] => Ok(first.filter("olora_in", &other.text)),
            [("not in", other)] => {
                let within = first.filter("olora_in", &other.text);
                Ok(Expr::open(format!("not ({})", within.text), depth))
            }
            _ => {
                let is_cheap = others.len() == 1 && (first.is_constant || others[0].1.is_constant);
                let operand = |expr: &Expr| {
                    if is_cheap || expr.is_constant {
                        expr.as_atom()
                    } else {
                        format!("({})", expr.filter("olora_seen", "").text)
                    }
                };
                let mut text = operand(&first);
                for (sign, other) in &others {
                    let _ = write!(text, " {sign} {}", operand(other));
                }
                self.bound(depth)?;
                Ok(Expr::open(text, depth))
            }
        }
    }

    /// Sums become one call with all operands.
    pub(super) fn math1(&mut self) -> Result<Expr, String> {
        let mut expr = self.concat()?;
        loop {
            if self.is("+") {
                let mut others = Vec::new();
                while self.skip("+") {
                    others.push(self.concat()?);
                    self.bound_operands(others.len())?;
                }
                expr = applied(&expr, "olora_add", &others);
            } else if self.skip("-") {
                let other = self.concat()?;
                let depth = 1 + expr.depth.max(other.depth);
                expr = Expr::open(format!("{} - {}", expr.as_atom(), other.as_atom()), depth);
            } else {
                return Ok(expr);
            }
            self.bound(expr.depth)?;
        }
    }

    pub(super) fn concat(&mut self) -> Result<Expr, String> {
        let expr = self.math2()?;
        let mut others = Vec::new();
        while self.skip("~") {
            others.push(self.math2()?);
            self.bound_operands(others.len())?;
        }
        if others.is_empty() {
            return Ok(expr);
        }
        Ok(applied(&expr, "olora_concat", &others))
    }

    pub(super) fn math2(&mut self) -> Result<Expr, String> {
        let mut expr = self.pow()?;
        while let Some(sign) = ["*", "//", "/", "%"].into_iter().find(|sign| self.is(sign)) {
            self.advance();
            let other = self.pow()?;
            let depth = 1 + expr.depth.max(other.depth);
            self.bound(depth)?;
            expr = if sign == "*" {
                applied(&expr, "olora_mul", &[other])
            } else {
                Expr::open(
                    format!("{} {sign} {}", expr.as_atom(), other.as_atom()),
                    depth,
                )
            };
        }
        Ok(expr)
    }

    pub(super) fn pow(&mut self) -> Result<Expr, String> {
        let mut expr = self.unary(true)?;
        while self.skip("**") {
            let other = self.unary(true)?;
            let depth = 1 + expr.depth.max(other.depth);
            self.bound(depth)?;
            expr = Expr::open(format!("{} ** {}", expr.as_atom(), other.as_atom()), depth);
        }
        Ok(expr)
    }

    pub(super) fn unary(&mut self, with_filter: bool) -> Result<Expr, String> {
        self.depth += 1;
        self.bound(self.depth)?;
        let expr = if self.skip("-") {
            let expr = self.unary(false)?;
            let is_constant = expr.is_constant;
            Expr {
                is_constant,
                ..Expr::open(format!("-{}", expr.as_atom()), expr.depth + 1)
            }
        } else if self.skip("+") {
            self.unary(false)?
        } else {
            let primary = self.primary()?;
            self.postfix(primary)?
        };
        let expr = if with_filter {
            self.filters(expr)?
        } else {
            expr
        };
        self.depth -= 1;
        Ok(expr)
    }
}
