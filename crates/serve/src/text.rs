//! From tokens to the text that a client is given, up to a stop text.

use olora_data::{DataError, Decoded, Tokenizer};

/// Text that comes token by token, and ends before any of some stop texts.
///
/// What may be the beginning of a stop text is held back until it is known that it is
/// none.
#[derive(Debug)]
pub(crate) struct TextStream {
    decoded: Decoded,
    held: String,
    stop: Vec<String>,
}

/// What a token has brought.
#[derive(Debug, PartialEq)]
pub(crate) enum Piece {
    /// Text to be given out, which may be empty.
    Text(String),
    /// The last text before a stop text.
    Last(String),
}

impl TextStream {
    /// After what has been decoded, which is not part of it.
    pub(crate) fn new(decoded: Decoded, stop: Vec<String>) -> Self {
        Self {
            decoded,
            held: String::new(),
            stop,
        }
    }

    /// Takes the next token.
    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<Piece, DataError> {
        let more = match tokenizer.decode_next(&mut self.decoded, id) {
            // Bytes that are no text may read otherwise with those after them: begin anew.
            Err(_) => {
                self.decoded = Decoded::default();
                tokenizer.decode_next(&mut self.decoded, id)?
            }
            Ok(more) => more,
        };
        Ok(self.add(&more.unwrap_or_default()))
    }

    fn add(&mut self, more: &str) -> Piece {
        self.held += more;
        let found = self.stop.iter().filter_map(|stop| self.held.find(stop));
        if let Some(end) = found.min() {
            self.held.truncate(end);
            return Piece::Last(std::mem::take(&mut self.held));
        }
        let given = self.held.len() - self.may_be_a_stop();
        let rest = self.held.split_off(given);
        Piece::Text(std::mem::replace(&mut self.held, rest))
    }

    /// Bytes of the longest end of what is held that a stop text begins with.
    fn may_be_a_stop(&self) -> usize {
        let longest = |stop: &String| {
            let ends = self.held.char_indices().map(|(at, _)| &self.held[at..]);
            let mut fitting = ends.filter(|end| stop.starts_with(end));
            fitting.next().map_or(0, str::len)
        };
        self.stop.iter().map(longest).max().unwrap_or(0)
    }

    /// What was held back, where nothing follows.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// A token as a text of its own: with the space that it begins with, which decoding it
/// alone may leave out, and as the tokenizer spells it where it is no whole character,
/// which is told.
pub(crate) fn token_text(tokenizer: &Tokenizer, id: u32) -> (String, bool) {
    let spelled = tokenizer.token(id).unwrap_or_default();
    if let Some(rest) = spelled.strip_prefix('▁') {
        return (format!(" {}", rest.replace('▁', " ")), true);
    }
    match tokenizer.decode(&[id], false) {
        Ok(text) if !text.contains('\u{fffd}') && !text.is_empty() => (text, true),
        _ => (spelled, false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(stop: &[&str]) -> TextStream {
        TextStream::new(
            Decoded::default(),
            stop.iter().map(|&stop| stop.to_owned()).collect(),
        )
    }

    fn text(text: &str) -> Piece {
        Piece::Text(text.to_owned())
    }

    #[test]
    fn what_may_become_a_stop_is_held_back_and_given_if_it_does_not() {
        let mut stream = with(&["\n\nUser:", "END"]);
        assert_eq!(stream.add("Hello\n"), text("Hello"));
        assert_eq!(stream.add("\nUs"), text(""));
        assert_eq!(stream.add("eful"), text("\n\nUseful"));
        assert_eq!(stream.add(" EN"), text(" "));
        assert_eq!(stream.finish(), "EN");
    }

    #[test]
    fn the_text_ends_before_the_first_stop_even_if_it_spans_tokens() {
        let mut stream = with(&["END", "ND"]);
        assert_eq!(stream.add("the E"), text("the "));
        assert_eq!(stream.add("ND of"), Piece::Last(String::new()));
        let mut stream = with(&["ü"]);
        assert_eq!(stream.add("grün"), Piece::Last("gr".to_owned()));
    }

    #[test]
    fn without_stops_nothing_is_held() {
        let mut stream = with(&[]);
        assert_eq!(stream.add("all"), text("all"));
        assert_eq!(stream.finish(), "");
    }
}
