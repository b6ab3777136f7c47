//! What a task asks.

use std::path::PathBuf;

use crate::TaskName;

/// A task with its items.
#[derive(Clone, Debug)]
pub struct Task {
    /// Which one.
    pub name: TaskName,
    /// Where it was read from.
    pub file: PathBuf,
    /// What is asked, in the order of the file.
    pub items: Items,
}

/// The items of a task, all of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Items {
    /// One of several texts is to be likelier than the others.
    Choices(Vec<MultipleChoice>),
    /// The answer is to be generated.
    Open(Vec<OpenQuestion>),
}

impl Items {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Self::Choices(items) => items.len(),
            Self::Open(items) => items.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A question with answers to choose from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MultipleChoice {
    /// For each choice what is given and, following it, what is scored.
    pub requests: Vec<[String; 2]>,
    /// The choices as the data has them; scores are normalised by their lengths.
    pub choices: Vec<String>,
    /// The right one, counted from 0.
    pub gold: usize,
}

impl MultipleChoice {
    /// One context, and a choice to continue it after a space.
    pub(crate) fn new(context: &str, choices: Vec<String>, gold: usize) -> Self {
        let request = |choice: &String| [context.to_owned(), format!(" {choice}")];
        Self {
            requests: choices.iter().map(request).collect(),
            choices,
            gold,
        }
    }

    /// Contexts to choose from, each continued by the same text after a space:
    /// partial evaluation (Trinh and Le 2018,
    /// [arXiv 1806.02847](https://arxiv.org/abs/1806.02847)).
    pub(crate) fn of_contexts(contexts: Vec<String>, continuation: &str, gold: usize) -> Self {
        let request = |context: &String| [context.clone(), format!(" {continuation}")];
        Self {
            requests: contexts.iter().map(request).collect(),
            choices: contexts,
            gold,
        }
    }
}

/// A question whose answer ends in a number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenQuestion {
    /// The question, without anything around it.
    pub question: String,
    /// The worked answer, ending in `#### ` and the number.
    pub answer: String,
}

impl OpenQuestion {
    /// The prompt of the harness.
    pub fn prompt(&self) -> String {
        format!("Question: {}\nAnswer:", self.question)
    }
}
