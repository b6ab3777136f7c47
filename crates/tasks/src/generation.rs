//! Answers that are generated: the likeliest token each time.

use std::cmp::Reverse;

use olora_data::Tokenizer;
use olora_model::{KvCache, Llama};
use olora_training::{Exchange, TrainError};

use crate::{
    GenerationResult, ItemResults, OpenQuestion, TaskError, TaskOptions,
    encode::Encoder,
    finite::not_finite,
    number::{STOP, flexible, normalised, same, strict, until},
    score::{Run, ids, integers},
    spread::{is_mine, together},
};

/// The model's answers, prompts of one length together.
pub(crate) fn answer(
    exchange: &dyn Exchange,
    llama: &Llama,
    tokenizer: &Tokenizer,
    items: &[OpenQuestion],
    options: &TaskOptions,
    done: &mut dyn FnMut(usize),
) -> Result<Run, TaskError> {
    let prompts = prompts(tokenizer, items, options)?;
    for (i, prompt) in prompts.iter().enumerate() {
        let checked = tokenizer.check_rows(prompt, llama.vocab_size());
        checked.map_err(|error| {
            TaskError::Mismatch(format!("question {i} counted from 0: {error}"))
        })?;
    }
    let writer = Writer::new(llama, tokenizer, options)?;
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|&i| Reverse(prompts[i].len()));
    let mut mine = Vec::new();
    let (mut n_done, mut piece) = (0, 0);
    for same_length in order.chunk_by(|&a, &b| prompts[a].len() == prompts[b].len()) {
        let row = prompts[same_length[0]].len() + options.max_new_tokens;
        for batch in same_length.chunks((options.batch_tokens / row).max(1)) {
            piece += 1;
            n_done += batch.len();
            if !is_mine(exchange, piece - 1) {
                continue;
            }
            exchange.check().map_err(TrainError::from)?;
            let rows: Vec<&[u32]> = batch.iter().map(|&i| prompts[i].as_slice()).collect();
            mine.extend(batch.iter().copied().zip(writer.write(&rows)?));
            done(n_done);
        }
    }
    done(items.len());
    let written = together(exchange, mine, items.len())?;
    let mut results = Vec::with_capacity(items.len());
    for (index, (item, tokens)) in items.iter().zip(&written).enumerate() {
        let text = tokenizer.decode(tokens, true)?;
        let response = until(&text, writer.stop.iter().map(String::as_str));
        results.push(judged(index, item, response, tokens.len()));
    }
    let prompts: usize = prompts.iter().map(Vec::len).sum();
    let tokens = prompts + written.iter().map(Vec::len).sum::<usize>();
    Ok(Run {
        items: ItemResults::Generations(results),
        tokens,
        request_tokens: tokens,
    })
}

fn prompts(
    tokenizer: &Tokenizer,
    items: &[OpenQuestion],
    options: &TaskOptions,
) -> Result<Vec<Vec<u32>>, TaskError> {
    let encoder = Encoder::new(tokenizer, options.max_length)?;
    let longest = options.max_length - options.max_new_tokens;
    let prompts = items.iter().map(|item| {
        let mut ids = if options.chat {
            tokenizer.encode_prompt(&item.question)?
        } else {
            encoder.document(&item.prompt())?
        };
        ids.drain(..ids.len().saturating_sub(longest));
        Ok(ids)
    });
    prompts.collect()
}

fn judged(index: usize, item: &OpenQuestion, response: &str, tokens: usize) -> GenerationResult {
    let (strict, flexible) = (strict(response), flexible(response));
    GenerationResult {
        index,
        response: response.to_owned(),
        tokens,
        gold: normalised(&item.answer),
        strict_match: same(&strict, &item.answer),
        flexible_match: same(&flexible, &item.answer),
        strict,
        flexible,
    }
}

struct Writer<'a> {
    llama: &'a Llama,
    tokenizer: &'a Tokenizer,
    options: &'a TaskOptions,
    /// The texts at which an answer ends.
    stop: Vec<String>,
    /// How many of the last tokens may hold a stop text.
    tail: usize,
}

impl<'a> Writer<'a> {
    fn new(
        llama: &'a Llama,
        tokenizer: &'a Tokenizer,
        options: &'a TaskOptions,
    ) -> Result<Self, TaskError> {
        let mut stop = STOP.map(str::to_owned).to_vec();
        if let Some(eos) = tokenizer.eos_id() {
            let eos = tokenizer.decode(&[eos], false)?;
            if !eos.is_empty() && !stop.contains(&eos) {
                stop.push(eos);
            }
        }
        // A token is a byte at least; two more, for those that begin earlier.
        let tail = 2 + stop.iter().map(String::len).max().unwrap_or(0);
        Ok(Self {
            llama,
            tokenizer,
            options,
            stop,
            tail,
        })
    }

    /// Continues prompts of one length; a row that is finished is taken out.
    fn write(&self, prompts: &[&[u32]]) -> Result<Vec<Vec<u32>>, TaskError> {
        let device = self.llama.device();
        let mut cache = KvCache::new(self.llama.model.layers.len());
        let mut written = vec![Vec::new(); prompts.len()];
        let mut rows: Vec<usize> = (0..prompts.len()).collect();
        let seq = prompts.first().map_or(0, |prompt| prompt.len());
        let mut input = ids(prompts, seq, &device);
        for _ in 0..self.options.max_new_tokens {
            let logits = self.llama.next_token_logits(input, &mut cache);
            let is_finite = logits.clone().is_finite().all();
            let is_finite = is_finite.try_into_scalar::<bool>();
            if !is_finite.map_err(|error| TaskError::device(&error))? {
                // From the beginning: what led here is in the cache alone.
                let all = rows
                    .iter()
                    .map(|&row| [prompts[row], &written[row]].concat());
                let all: Vec<Vec<u32>> = all.collect();
                let seq = all.first().map_or(0, Vec::len);
                let all: Vec<&[u32]> = all.iter().map(Vec::as_slice).collect();
                let all = ids(&all, seq, &device);
                let what = "the logits of the next token";
                return Err(not_finite(self.llama, what, all));
            }
            let next = integers(logits.argmax(1))?;
            let mut going = Vec::with_capacity(rows.len());
            for (place, (&row, token)) in rows.iter().zip(next).enumerate() {
                written[row].push(token as u32);
                if !self.is_finished(&written[row])? {
                    going.push(place);
                }
            }
            if going.is_empty() {
                break;
            }
            if going.len() < rows.len() {
                cache = cache.rows(&going);
                rows = going.iter().map(|&place| rows[place]).collect();
            }
            let last = rows
                .iter()
                .map(|&row| &written[row][written[row].len() - 1..]);
            input = ids(&last.collect::<Vec<_>>(), 1, &device);
        }
        Ok(written)
    }

    fn is_finished(&self, written: &[u32]) -> Result<bool, TaskError> {
        let stops = |token: &u32| self.options.stop_ids.contains(token);
        if written.last().is_some_and(stops) {
            return Ok(true);
        }
        let tail = &written[written.len().saturating_sub(self.tail)..];
        let text = self.tokenizer.decode(tail, false)?;
        Ok(self.stop.iter().any(|stop| text.contains(stop.as_str())))
    }
}
