//! From a model and tasks to scores.

use std::{collections::HashMap, time::Instant};

use burn::tensor::{DType, Device, Int, Tensor, TensorData, activation::log_softmax};
use olora_data::{Padding, Tokenizer};
use olora_model::{KvCache, Llama, ModelConfig};
use olora_operations::loss::rows_at_once;
use olora_training::{Exchange, Local, TrainError};

use crate::{
    ChoiceResult, ItemResults, Items, MultipleChoice, Task, TaskError, TaskName, TaskResult,
    encode::{Encoder, Request},
    finite::not_finite,
    generation,
    result::Likelihood,
    share::{PrefixPlan, batches},
    spread::{is_mine, together},
};

/// How tasks are run.
#[derive(Clone, Debug)]
pub struct TaskOptions {
    /// The longest input in tokens; longer ones are cut on the left. The harness
    /// takes the model's `max_position_embeddings`.
    pub max_length: usize,
    /// The most tokens that go through the model at once, padding included,
    /// unless one item alone has more.
    pub batch_tokens: usize,
    /// What lengths are brought to a multiple of, so that few shapes occur.
    pub padding_multiple: usize,
    /// Whether what the choices of an item begin with is run once. Without it
    /// every choice is a forward pass of its own, logits at every position:
    /// slow and obvious, to compare with.
    pub share_prefix: bool,
    /// The longest generated answer in tokens.
    pub max_new_tokens: usize,
    /// Whether a question to be answered by generating is put through the
    /// checkpoint's chat template, as in training, rather than in the harness's
    /// words.
    pub chat: bool,
    /// The tokens at which generation stops.
    pub stop_ids: Vec<u32>,
}

impl TaskOptions {
    /// The harness's, for a checkpoint; an `accelerator` is shown few shapes.
    pub fn new(config: &ModelConfig, tokenizer: &Tokenizer, accelerator: bool) -> Self {
        Self {
            max_length: config.longest_sequence(),
            batch_tokens: if accelerator { 16_384 } else { 2048 },
            padding_multiple: Padding::default_multiple(accelerator),
            share_prefix: true,
            max_new_tokens: 256,
            chat: false,
            stop_ids: tokenizer.stop_ids_with(&config.eos_token_ids),
        }
    }

    fn validate(
        &self,
        llama: &Llama,
        tokenizer: &Tokenizer,
        tasks: &[Task],
    ) -> Result<(), TaskError> {
        let wrong = |reason: String| Err(TaskError::Mismatch(reason));
        if let Some(limit) = llama
            .position_limit()
            .filter(|limit| self.max_length > *limit)
        {
            return wrong(format!(
                "the maximum length is {}, but the model has {limit} positions and none beyond",
                self.max_length
            ));
        }
        let chooses = tasks.iter().find(|task| !task.name.generates());
        match chooses {
            Some(task) if self.chat => {
                return wrong(format!(
                    "{} is multiple choice, for which a chat template is not supported: leave it out",
                    task.name
                ));
            }
            _ => {}
        }
        if self.chat && !tokenizer.has_chat_template() {
            return wrong("the checkpoint has no chat template".to_owned());
        }
        let generates = tasks.iter().any(|task| task.name.generates());
        if generates && !(1..self.max_length).contains(&self.max_new_tokens) {
            return wrong(format!(
                "the longest answer is {} tokens: it must be at least 1 and leave room for the \
                 question within {}",
                self.max_new_tokens, self.max_length
            ));
        }
        Ok(())
    }
}

/// How far it has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskProgress {
    /// The task that is being run.
    pub task: TaskName,
    /// Its items that are done.
    pub done: usize,
    /// All of its items.
    pub total: usize,
}

/// Puts `llama`, which must not be on an autodiff device, to `tasks`.
///
/// # Errors
///
/// [`TaskError::Mismatch`] when tokenizer, options and tasks do not fit each
/// other or the model, or when a log-probability is not a number; or when the
/// device fails.
pub fn score(
    llama: &Llama,
    tokenizer: &Tokenizer,
    tasks: &[Task],
    options: &TaskOptions,
    progress: &mut dyn FnMut(TaskProgress),
) -> Result<Vec<TaskResult>, TaskError> {
    score_together(&Local, llama, tokenizer, tasks, options, progress)
}

/// The same with the batches of each task shared out among several processes,
/// each with the model. All get the results, which are those of one process.
///
/// # Errors
///
/// Those of [`score`], and when another process has failed.
pub fn score_together(
    exchange: &dyn Exchange,
    llama: &Llama,
    tokenizer: &Tokenizer,
    tasks: &[Task],
    options: &TaskOptions,
    progress: &mut dyn FnMut(TaskProgress),
) -> Result<Vec<TaskResult>, TaskError> {
    options.validate(llama, tokenizer, tasks)?;
    let results = tasks.iter().map(|task| {
        let began = Instant::now();
        let total = task.items.len();
        let mut done = |done| {
            progress(TaskProgress {
                task: task.name,
                done,
                total,
            });
        };
        done(0);
        let run = match &task.items {
            Items::Choices(items) => {
                choose(exchange, llama, tokenizer, task, items, options, &mut done)
            }
            Items::Open(items) => {
                generation::answer(exchange, llama, tokenizer, items, options, &mut done)
            }
        }?;
        Ok(TaskResult {
            task: task.name,
            n_items: total,
            metrics: run.items.metrics(task.name),
            tokens: run.tokens,
            request_tokens: run.request_tokens,
            seconds: began.elapsed().as_secs_f64(),
            items: run.items,
        })
    });
    results.collect()
}

/// What running a task gives.
pub(crate) struct Run {
    pub(crate) items: ItemResults,
    pub(crate) tokens: usize,
    pub(crate) request_tokens: usize,
}

fn choose(
    exchange: &dyn Exchange,
    llama: &Llama,
    tokenizer: &Tokenizer,
    task: &Task,
    items: &[MultipleChoice],
    options: &TaskOptions,
    done: &mut dyn FnMut(usize),
) -> Result<Run, TaskError> {
    let of_item = |i: usize, reason: TaskError| {
        TaskError::Mismatch(format!(
            "{}, item {i} counted from 0: {reason}",
            task.file.display()
        ))
    };
    let mut encoder = Encoder::new(tokenizer, options.max_length)?;
    let mut requests = Vec::with_capacity(items.len());
    for (i, item) in items.iter().enumerate() {
        let of_choices = item
            .requests
            .iter()
            .map(|[context, continuation]| encoder.request(context, continuation));
        let of_choices = of_choices.map(|request| {
            let request = request?;
            // A model may have no rows for tokens of its tokenizer, as long as nothing uses them.
            let rows = llama.vocab_size();
            tokenizer.check_rows(&request.input, rows)?;
            tokenizer.check_rows(&request.targets, rows)?;
            Ok(request)
        });
        let of_choices: Result<Vec<_>, TaskError> = of_choices.collect();
        requests.push(of_choices.map_err(|error| of_item(i, error))?);
    }
    let request_tokens = requests.iter().flatten().map(|one| one.input.len()).sum();
    // What choices share would rotate otherwise in the longer of them.
    let longest = requests.iter().flatten().map(|one| one.input.len()).max();
    let is_one_length = llama
        .rotation_changes_beyond()
        .is_none_or(|limit| longest.unwrap_or(0) <= limit);
    let (likelihoods, tokens) = if options.share_prefix && is_one_length {
        shared(exchange, llama, &requests, options, done)?
    } else {
        (
            one_by_one(exchange, llama, &requests, done)?,
            request_tokens,
        )
    };
    let mut results = Vec::with_capacity(items.len());
    for (i, (item, likelihoods)) in items.iter().zip(&likelihoods).enumerate() {
        let nan = likelihoods.iter().position(|choice| choice.sum.is_nan());
        if let Some(choice) = nan {
            let input = &requests[i][choice].input;
            let input = ids(&[input], input.len(), &llama.device());
            let error = not_finite(llama, "a choice's log-likelihood", input);
            return Err(of_item(i, error));
        }
        results.push(ChoiceResult::new(i, item, likelihoods));
    }
    Ok(Run {
        items: ItemResults::Choices(results),
        tokens,
        request_tokens,
    })
}

/// Each request as a forward pass of its own.
fn one_by_one(
    exchange: &dyn Exchange,
    llama: &Llama,
    requests: &[Vec<Request>],
    done: &mut dyn FnMut(usize),
) -> Result<Vec<Vec<Likelihood>>, TaskError> {
    let device = llama.device();
    let alone = |request: &Request| {
        let seq = request.input.len();
        let logits = llama.forward(ids(&[&request.input], seq, &device));
        let [_, _, vocab] = logits.dims();
        let logits = logits.reshape([seq, vocab]);
        let n = request.targets.len();
        let wanted = logits.narrow(0, request.first(), n);
        let targets: Vec<[u32; 1]> = request.targets.iter().map(|&target| [target]).collect();
        let read = read(wanted, &targets.concat(), 1)?;
        Ok(likelihood(request, |k| read.at(k, 0)))
    };
    let mut mine = Vec::with_capacity(requests.len());
    for (item, of_item) in requests.iter().enumerate() {
        if !is_mine(exchange, item) {
            continue;
        }
        exchange.check().map_err(TrainError::from)?;
        let likelihoods: Result<Vec<_>, TaskError> = of_item.iter().map(alone).collect();
        mine.push((item, likelihoods?));
        done((mine.len() * exchange.n_ranks()).min(requests.len()));
    }
    together(exchange, mine, requests.len())
}

/// Each item's common prefix once, in batches. Also returns how many tokens were run.
fn shared(
    exchange: &dyn Exchange,
    llama: &Llama,
    requests: &[Vec<Request>],
    options: &TaskOptions,
    done: &mut dyn FnMut(usize),
) -> Result<(Vec<Vec<Likelihood>>, usize), TaskError> {
    let multiple = options.padding_multiple;
    let plans = requests
        .iter()
        .map(|of_item| PrefixPlan::new(of_item, multiple));
    let plans: Vec<PrefixPlan> = plans.collect();
    let mut mine = Vec::new();
    let mut n_done = 0;
    for (piece, batch) in batches(&plans, options.batch_tokens, multiple)
        .into_iter()
        .enumerate()
    {
        n_done += batch.len();
        if !is_mine(exchange, piece) {
            continue;
        }
        exchange.check().map_err(TrainError::from)?;
        let items = batch.iter().map(|&i| (&plans[i], requests[i].as_slice()));
        let items: Vec<_> = items.collect();
        let likelihoods = Batch::new(&items, multiple).run(llama)?;
        mine.extend(batch.iter().copied().zip(likelihoods));
        // What comes before it is done by others meanwhile.
        done(n_done);
    }
    done(requests.len());
    let all = together(exchange, mine, requests.len())?;
    Ok((all, plans.iter().map(PrefixPlan::n_tokens).sum()))
}

/// Items with a prefix of one length, to be run together.
struct Batch<'a> {
    items: &'a [(&'a PrefixPlan, &'a [Request])],
    prefix: usize,
    /// The length that rows are padded to after the prefix.
    suffix: usize,
    multiple: usize,
}

/// Where a prediction is read from, in order: a position of an item's prefix,
/// or one after it of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Place {
    Prefix(usize),
    Suffix(usize),
}

impl<'a> Batch<'a> {
    fn new(items: &'a [(&'a PrefixPlan, &'a [Request])], multiple: usize) -> Self {
        let suffixes = items.iter().map(|(plan, _)| plan.suffix());
        Self {
            items,
            prefix: items.first().map_or(0, |(plan, _)| plan.prefix),
            suffix: suffixes
                .max()
                .unwrap_or(0)
                .next_multiple_of(multiple.max(1)),
            multiple,
        }
    }

    fn run(&self, llama: &Llama) -> Result<Vec<Vec<Likelihood>>, TaskError> {
        let mut wanted = WantedPredictions::default();
        let mut first_row = 0;
        let mut slots = Vec::with_capacity(self.items.len());
        for (i, (plan, requests)) in self.items.iter().enumerate() {
            let place = |row: usize, position: usize| match position.checked_sub(self.prefix) {
                None => Place::Prefix(i * self.prefix + position),
                Some(after) => Place::Suffix((first_row + row) * self.suffix + after),
            };
            let of_item = requests.iter().zip(&plan.row_of).map(|(request, &row)| {
                let positions = (request.first()..).zip(&request.targets);
                let slots = positions.map(|(at, &target)| wanted.add(place(row, at), target));
                slots.collect::<Vec<_>>()
            });
            slots.push(of_item.collect::<Vec<_>>());
            first_row += plan.rows.len();
        }
        let read = self.read(llama, &wanted)?;
        let likelihoods = self.items.iter().zip(&slots).map(|((_, requests), slots)| {
            let both = requests.iter().zip(slots);
            let of_request = both.map(|(request, slots)| {
                likelihood(request, |k| {
                    let (slot, column) = slots[k];
                    read.at(slot, column)
                })
            });
            of_request.collect()
        });
        Ok(likelihoods.collect())
    }

    /// The predictions at the places that are wanted, in their order.
    fn read(&self, llama: &Llama, wanted: &WantedPredictions) -> Result<Read, TaskError> {
        let (of_prefix, of_suffix) = self.hidden(llama);
        let n_suffix = of_suffix.dims()[0];
        let mut parts = vec![of_suffix];
        parts.extend(of_prefix);
        let hidden = Tensor::cat(parts, 0);
        let device = hidden.device();
        let at = |place: &Place| match place {
            Place::Suffix(at) => *at as i32,
            Place::Prefix(at) => (n_suffix + at) as i32,
        };
        let (targets, columns) = wanted.targets();
        let chunk = rows_at_once(llama.vocab_size());
        let mut read = Read::new(columns);
        for (places, targets) in wanted
            .places
            .chunks(chunk)
            .zip(targets.chunks(chunk * columns))
        {
            let n = places.len().next_multiple_of(self.multiple.max(1));
            let mut rows: Vec<i32> = places.iter().map(at).collect();
            rows.resize(n, 0);
            let mut targets = targets.to_vec();
            targets.resize(n * columns, 0);
            let rows = Tensor::<1, Int>::from_data(TensorData::new(rows, [n]), &device);
            let logits = llama.logits(hidden.clone().select(0, rows));
            read.extend(self::read(logits, &targets, columns)?, places.len());
        }
        Ok(read)
    }

    /// Hidden states of the prefixes, `[items · prefix, width]`, if there are
    /// any, and of what follows them, `[rows · suffix, width]`.
    fn hidden(&self, llama: &Llama) -> (Option<Tensor<2>>, Tensor<2>) {
        let device = llama.device();
        let rows = self.items.iter().flat_map(|(plan, _)| &plan.rows);
        let suffixes: Vec<&[u32]> = rows.map(|row| &row[self.prefix..]).collect();
        let suffixes = ids(&suffixes, self.suffix, &device);
        let flat = |hidden: Tensor<3>| {
            let [batch, seq, width] = hidden.dims();
            hidden.reshape([batch * seq, width])
        };
        if self.prefix == 0 {
            return (None, flat(llama.hidden(suffixes)));
        }
        let prefixes = self
            .items
            .iter()
            .map(|(plan, _)| &plan.rows[0][..self.prefix]);
        let prefixes = ids(&prefixes.collect::<Vec<_>>(), self.prefix, &device);
        let mut cache = KvCache::new(llama.model.layers.len());
        let of_prefix = llama.hidden_after(prefixes, &mut cache);
        let owners = self.items.iter().enumerate();
        let owners = owners.flat_map(|(i, (plan, _))| vec![i; plan.rows.len()]);
        let mut cache = cache.rows(&owners.collect::<Vec<_>>());
        let of_suffix = llama.hidden_after(suffixes, &mut cache);
        (Some(flat(of_prefix)), flat(of_suffix))
    }
}

/// The places to read predictions from, each once, with the tokens whose
/// probabilities are wanted there.
#[derive(Default)]
struct WantedPredictions {
    places: Vec<Place>,
    tokens: Vec<Vec<u32>>,
    slots: HashMap<Place, usize>,
}

impl WantedPredictions {
    /// Adds a token at a place; returns where it will be read: slot and column.
    fn add(&mut self, place: Place, token: u32) -> (usize, usize) {
        let slot = *self.slots.entry(place).or_insert_with(|| {
            self.places.push(place);
            self.tokens.push(Vec::new());
            self.places.len() - 1
        });
        self.tokens[slot].push(token);
        (slot, self.tokens[slot].len() - 1)
    }

    /// `[places, columns]`, filled up with 0, and the number of columns.
    fn targets(&self) -> (Vec<u32>, usize) {
        let columns = self.tokens.iter().map(Vec::len).max().unwrap_or(1);
        let row = |tokens: &Vec<u32>| {
            let mut row = tokens.clone();
            row.resize(columns, 0);
            row
        };
        (self.tokens.iter().flat_map(row).collect(), columns)
    }
}

/// Log-probabilities and likeliest tokens at some places.
struct Read {
    columns: usize,
    /// `[places, columns]`.
    log_probabilities: Vec<f32>,
    best: Vec<i64>,
}

impl Read {
    fn new(columns: usize) -> Self {
        Self {
            columns,
            log_probabilities: Vec::new(),
            best: Vec::new(),
        }
    }

    /// Appends the first `n` places of `more`.
    fn extend(&mut self, more: Self, n: usize) {
        let values = more.log_probabilities.into_iter();
        self.log_probabilities.extend(values.take(n * self.columns));
        self.best.extend(more.best.into_iter().take(n));
    }

    /// The log-probability of the token in a column, and the likeliest token.
    fn at(&self, slot: usize, column: usize) -> (f32, i64) {
        (
            self.log_probabilities[slot * self.columns + column],
            self.best[slot],
        )
    }
}

/// Log-probabilities of `targets`, `[n, columns]`, from `logits`, `[n, vocab]`,
/// in f32.
fn read(logits: Tensor<2>, targets: &[u32], columns: usize) -> Result<Read, TaskError> {
    let n = logits.dims()[0];
    let device = logits.device();
    let targets: Vec<i32> = targets.iter().map(|&id| id as i32).collect();
    let targets = TensorData::new(targets, [n, columns]);
    let targets = Tensor::<2, Int>::from_data(targets, &device);
    let logits = if logits.dtype() == DType::F32 {
        logits
    } else {
        logits.cast(DType::F32)
    };
    let best = logits.clone().argmax(1);
    let log_probabilities = log_softmax(logits, 1).gather(1, targets);
    Ok(Read {
        columns,
        log_probabilities: floats(log_probabilities)?,
        best: integers(best)?,
    })
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, TaskError> {
    let data = tensor.try_into_data_dtype(DType::F32);
    data.map_err(|error| TaskError::device(&error))?
        .try_into_vec()
        .map_err(|error| TaskError::device(&error))
}

pub(crate) fn integers<const D: usize>(tensor: Tensor<D, Int>) -> Result<Vec<i64>, TaskError> {
    let data = tensor.try_into_data_dtype(DType::I64);
    data.map_err(|error| TaskError::device(&error))?
        .try_into_vec()
        .map_err(|error| TaskError::device(&error))
}

/// Sums what is read for each of a request's targets.
fn likelihood(request: &Request, read: impl Fn(usize) -> (f32, i64)) -> Likelihood {
    let (mut sum, mut greedy) = (0.0, true);
    for (k, target) in request.targets.iter().enumerate() {
        let (log_probability, best) = read(k);
        sum += f64::from(log_probability);
        greedy &= best == i64::from(*target);
    }
    Likelihood {
        sum,
        greedy,
        tokens: request.targets.len(),
    }
}

/// Rows of tokens as a tensor `[rows, seq]`, padded on the right with token 0.
pub(crate) fn ids(rows: &[&[u32]], seq: usize, device: &Device) -> Tensor<2, Int> {
    let mut ids = Vec::with_capacity(rows.len() * seq);
    for (i, row) in rows.iter().enumerate() {
        ids.extend(row.iter().map(|&id| id as i32));
        ids.resize((i + 1) * seq, 0);
    }
    Tensor::from_data(TensorData::new(ids, [rows.len(), seq]), device)
}
