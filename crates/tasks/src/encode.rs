//! From texts to tokens, as the harness's `_encode_pair` and
//! `_loglikelihood_tokens` do it.

use olora_data::Tokenizer;

use crate::{TaskError, python::is_space};

/// What the model is given and what it is to predict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Request {
    /// All tokens but the last.
    pub(crate) input: Vec<u32>,
    /// The tokens after the last positions of `input`: one for each.
    pub(crate) targets: Vec<u32>,
}

impl Request {
    /// The position whose prediction is the first target.
    pub(crate) fn first(&self) -> usize {
        self.input.len() - self.targets.len()
    }
}

/// Turns texts into requests.
pub(crate) struct Encoder<'a> {
    tokenizer: &'a Tokenizer,
    /// The token that stands where there is no context, and its text.
    prefix: Option<(u32, String)>,
    max_length: usize,
    /// The last context that was encoded: items ask for the same one for each choice.
    context: Option<(String, Vec<u32>)>,
}

impl<'a> Encoder<'a> {
    /// Inputs are cut on the left to `max_length` tokens.
    pub(crate) fn new(tokenizer: &'a Tokenizer, max_length: usize) -> Result<Self, TaskError> {
        let prefix = tokenizer.bos_id().or(tokenizer.eos_id());
        let prefix = prefix
            .map(|id| Ok::<_, TaskError>((id, tokenizer.decode(&[id], false)?)))
            .transpose()?;
        Ok(Self {
            tokenizer,
            prefix,
            max_length,
            context: None,
        })
    }

    /// The tokens of a document: with what the tokenizer puts around one, unless
    /// the text begins with it already.
    pub(crate) fn document(&self, text: &str) -> Result<Vec<u32>, TaskError> {
        let begun = self.prefix.as_ref();
        let begun = begun.is_some_and(|(_, prefix)| text.starts_with(prefix.as_str()));
        Ok(self.tokenizer.encode(text, !begun)?)
    }

    /// The request for `continuation` after `context`.
    ///
    /// White space at the end of the context goes to the continuation, and the
    /// two are encoded together: the continuation is what comes after as many
    /// tokens as the context has alone.
    pub(crate) fn request(
        &mut self,
        context: &str,
        continuation: &str,
    ) -> Result<Request, TaskError> {
        let (context, continuation) = if context.is_empty() {
            self.without_context(continuation)?
        } else {
            let text = context.trim_end_matches(is_space);
            let whole = self.document(&format!("{context}{continuation}"))?;
            let context = self.context(text)?;
            let after = whole.get(context.len()..).unwrap_or_default();
            (context.to_vec(), after.to_vec())
        };
        if context.is_empty() || continuation.is_empty() {
            return Err(TaskError::Mismatch(
                "a context or a choice has no tokens of its own with this tokenizer".to_owned(),
            ));
        }
        if continuation.len() > self.max_length {
            return Err(TaskError::Mismatch(format!(
                "a choice has {} tokens, and the longest input is {}: raise the maximum length",
                continuation.len(),
                self.max_length
            )));
        }
        let mut input = [context, continuation.clone()].concat();
        input.pop();
        input.drain(..input.len().saturating_sub(self.max_length));
        Ok(Request {
            input,
            targets: continuation,
        })
    }

    fn context(&mut self, text: &str) -> Result<&[u32], TaskError> {
        if self.context.as_ref().is_none_or(|(known, _)| known != text) {
            self.context = Some((text.to_owned(), self.document(text)?));
        }
        Ok(self.context.as_ref().map_or(&[], |(_, ids)| ids))
    }

    fn without_context(&self, continuation: &str) -> Result<(Vec<u32>, Vec<u32>), TaskError> {
        let Some((prefix, _)) = self.prefix else {
            return Err(TaskError::Mismatch(
                "a context is empty, and the tokenizer has neither a beginning-of-sequence nor an \
                 end-of-sequence token to put in its place"
                    .to_owned(),
            ));
        };
        let mut ids = self.tokenizer.encode(continuation, false)?;
        if ids.first() == Some(&prefix) {
            ids.remove(0);
        }
        Ok((vec![prefix], ids))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use serde_json::{Value, json};

    use super::*;

    fn quickstart() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/quickstart/base")
    }

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_dir(&quickstart()).unwrap()
    }

    /// The quickstart's, with `<|pad|>` put before each document as its
    /// beginning-of-sequence token.
    fn with_bos() -> Tokenizer {
        let directory = tempfile::tempdir().unwrap();
        let read = |name: &str| -> Value {
            serde_json::from_slice(&fs::read(quickstart().join(name)).unwrap()).unwrap()
        };
        let mut tokenizer = read("tokenizer.json");
        let sequence = json!({"Sequence": {"id": "A", "type_id": 0}});
        let bos = json!({"SpecialToken": {"id": "<|pad|>", "type_id": 0}});
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [bos, sequence],
            "pair": [sequence, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|pad|>": {"id": "<|pad|>", "ids": [0], "tokens": ["<|pad|>"]}},
        });
        let mut config = read("tokenizer_config.json");
        config["bos_token"] = "<|pad|>".into();
        for (name, value) in [
            ("tokenizer.json", tokenizer),
            ("tokenizer_config.json", config),
        ] {
            fs::write(directory.path().join(name), value.to_string()).unwrap();
        }
        Tokenizer::from_dir(directory.path()).unwrap()
    }

    fn request(tokenizer: &Tokenizer, context: &str, continuation: &str) -> Request {
        let mut encoder = Encoder::new(tokenizer, 256).unwrap();
        encoder.request(context, continuation).unwrap()
    }

    fn texts(tokenizer: &Tokenizer, request: &Request) -> [String; 2] {
        let mut all = request.input[..=request.first()].to_vec();
        let context = tokenizer.decode(&all, false).unwrap();
        all = request.targets.clone();
        [context, tokenizer.decode(&all, false).unwrap()]
    }

    #[test]
    fn the_last_token_of_the_context_predicts_the_first_of_the_choice() {
        let tokenizer = tokenizer();
        let request = request(&tokenizer, "Where does Alder live?", " In Oxmere.");
        assert_eq!(
            texts(&tokenizer, &request),
            ["Where does Alder live?", " In Oxmere."]
        );
        let whole = tokenizer.encode("Where does Alder live? In Oxmere.", true);
        assert_eq!(request.input, whole.unwrap().split_last().unwrap().1);
    }

    #[test]
    fn white_space_at_the_end_of_the_context_goes_to_the_choice() {
        let tokenizer = tokenizer();
        let moved = request(&tokenizer, "Where does Alder live? \n", "In Oxmere.");
        assert_eq!(
            texts(&tokenizer, &moved),
            ["Where does Alder live?", " \nIn Oxmere."]
        );
    }

    #[test]
    fn the_choice_is_what_comes_after_as_many_tokens_as_the_context_has_alone() {
        let tokenizer = tokenizer();
        // Together these are fewer tokens: the break between them is within one.
        let (context, continuation) = ("Where does Ald", "er live?");
        let whole = tokenizer.encode("Where does Alder live?", true).unwrap();
        let alone = tokenizer.encode(context, true).unwrap();
        assert_ne!(whole[..alone.len()], alone, "the tokens do not merge");
        let request = request(&tokenizer, context, continuation);
        assert_eq!(request.targets, whole[alone.len()..]);
        assert_eq!(request.input[..alone.len()], alone);
    }

    #[test]
    fn long_inputs_are_cut_on_the_left() {
        let tokenizer = tokenizer();
        let whole = request(
            &tokenizer,
            "Where does Alder the potter live?",
            " In Oxmere.",
        );
        let n = whole.targets.len() + 2;
        assert!(n < whole.input.len());
        let mut encoder = Encoder::new(&tokenizer, n).unwrap();
        let cut = encoder.request("Where does Alder the potter live?", " In Oxmere.");
        let cut = cut.unwrap();
        assert_eq!(cut.input, whole.input[whole.input.len() - n..]);
        assert_eq!((&cut.targets, cut.first() + 1), (&whole.targets, 3));

        let mut encoder = Encoder::new(&tokenizer, 1).unwrap();
        let error = encoder.request("Where?", " In Oxmere.").unwrap_err();
        assert!(error.to_string().contains("longest input is 1"), "{error}");
    }

    #[test]
    fn documents_begin_with_bos_once() {
        let tokenizer = with_bos();
        let request = request(&tokenizer, "Where?", " Here.");
        assert_eq!(request.input[0], 0);
        let encoder = Encoder::new(&tokenizer, 256).unwrap();
        let begun = encoder.document("<|pad|>Where?").unwrap();
        assert_eq!(begun, encoder.document("Where?").unwrap());
        assert_eq!(begun.iter().filter(|&&id| id == 0).count(), 1);
    }

    #[test]
    fn bos_or_else_eos_stands_where_there_is_no_context() {
        for (tokenizer, expected) in [(with_bos(), 0), (tokenizer(), 1)] {
            let request = request(&tokenizer, "", " Here.");
            assert_eq!(request.input[0], expected);
            assert_eq!(request.targets, tokenizer.encode(" Here.", false).unwrap());
        }
        // A choice that begins with that token is not given it twice.
        let tokenizer = tokenizer();
        let begun = request(&tokenizer, "", "<|end|> Here.");
        assert_eq!(begun, request(&tokenizer, "", " Here."));
    }

    #[test]
    fn what_has_no_tokens_is_refused() {
        let tokenizer = tokenizer();
        let mut encoder = Encoder::new(&tokenizer, 256).unwrap();
        for (context, continuation) in [("Where?", ""), ("  ", " Here.")] {
            let error = encoder.request(context, continuation).unwrap_err();
            assert!(error.to_string().contains("no tokens"), "{error}");
        }
    }
}
