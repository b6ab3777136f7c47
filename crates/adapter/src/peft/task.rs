//! `task_type`: what PEFT makes of the module that an adapter is for.

/// The kind of model that PEFT wraps a module as (`peft.TaskType`).
///
/// PEFT asks the module for what the kind needs: for a causal language model,
/// for its `prepare_inputs_for_generation`. A module that is none of these has
/// no task type, and PEFT wraps it as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskType {
    /// `CAUSAL_LM`: the next token from those before it.
    CausalLm,
    /// `SEQ_2_SEQ_LM`: one text from another, with an encoder and a decoder.
    Seq2SeqLm,
    /// `SEQ_CLS`: a class for each text.
    SequenceClassification,
    /// `TOKEN_CLS`: a class for each token.
    TokenClassification,
    /// `QUESTION_ANS`: where in a text the answer is.
    QuestionAnswering,
    /// `FEATURE_EXTRACTION`: hidden states.
    FeatureExtraction,
    /// What a file says, if it is none of these.
    Other(String),
}

impl TaskType {
    /// As `adapter_config.json` has it.
    pub fn name(&self) -> &str {
        match self {
            Self::CausalLm => "CAUSAL_LM",
            Self::Seq2SeqLm => "SEQ_2_SEQ_LM",
            Self::SequenceClassification => "SEQ_CLS",
            Self::TokenClassification => "TOKEN_CLS",
            Self::QuestionAnswering => "QUESTION_ANS",
            Self::FeatureExtraction => "FEATURE_EXTRACTION",
            Self::Other(name) => name,
        }
    }

    /// From `adapter_config.json`.
    pub(super) fn from_name(name: &str) -> Self {
        let known = [
            Self::CausalLm,
            Self::Seq2SeqLm,
            Self::SequenceClassification,
            Self::TokenClassification,
            Self::QuestionAnswering,
            Self::FeatureExtraction,
        ];
        let mut known = known.into_iter();
        known
            .find(|task| task.name() == name)
            .unwrap_or_else(|| Self::Other(name.to_owned()))
    }
}
