//! An expression as it is written for minijinja, with what its surroundings have
//! to know of it: whether it needs brackets, and how deep it is.

/// How an expression may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// With anything.
    Atom,
    /// With another filter.
    Filtered,
    /// Only in brackets.
    Open,
}

#[derive(Clone, Debug)]
pub(super) struct Expr {
    pub text: String,
    pub form: Form,
    /// Whether it is written out in the template.
    pub is_constant: bool,
    pub depth: usize,
}

impl Expr {
    pub(super) fn atom(text: String, depth: usize) -> Self {
        Self {
            text,
            form: Form::Atom,
            is_constant: false,
            depth,
        }
    }

    pub(super) fn open(text: String, depth: usize) -> Self {
        Self {
            form: Form::Open,
            ..Self::atom(text, depth)
        }
    }

    pub(super) fn filtered(text: String, depth: usize) -> Self {
        Self {
            form: Form::Filtered,
            ..Self::atom(text, depth)
        }
    }

    pub(super) fn constant(text: String) -> Self {
        Self {
            is_constant: true,
            ..Self::atom(text, 1)
        }
    }

    /// As what may stand before `.`, `[` and `(`.
    pub(super) fn as_atom(&self) -> String {
        match self.form {
            Form::Atom => self.text.clone(),
            _ => format!("({})", self.text),
        }
    }

    /// As what may stand before `|`.
    pub(super) fn before_filter(&self) -> String {
        match self.form {
            Form::Open => format!("({})", self.text),
            _ => self.text.clone(),
        }
    }

    pub(super) fn filter(&self, name: &str, arguments: &str) -> Self {
        let text = format!("{}|{name}({arguments})", self.before_filter());
        Self::filtered(text, self.depth + 1)
    }
}

pub(super) fn applied(first: &Expr, filter: &str, others: &[Expr]) -> Expr {
    let depth = others.iter().map(|other| other.depth).max().unwrap_or(0);
    let arguments: Vec<_> = others.iter().map(|other| other.text.as_str()).collect();
    let mut expr = first.filter(filter, &arguments.join(", "));
    expr.depth = expr.depth.max(depth + 1);
    expr
}

pub(super) fn list(items: &[Expr], open: &str, close: &str) -> Expr {
    let texts: Vec<_> = items.iter().map(|item| item.text.as_str()).collect();
    let depth = items.iter().map(|item| item.depth).max().unwrap_or(0) + 1;
    let is_constant = items.iter().all(|item| item.is_constant);
    literal(
        format!("{open}{}{close}", texts.join(", ")),
        depth,
        is_constant,
    )
}

/// What is made anew each time becomes a list or a map of ours.
pub(super) fn literal(text: String, depth: usize, is_constant: bool) -> Expr {
    if is_constant {
        return Expr {
            is_constant,
            ..Expr::atom(text, depth)
        };
    }
    Expr::atom(format!("({text}|olora_owned())"), depth + 1)
}
