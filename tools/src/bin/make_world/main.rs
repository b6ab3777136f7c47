//! Writes the quickstart: a small world of our own, in text, with its tokenizer.
//!
//! ```sh
//! cargo run --release -p olora-tools --bin make_world [DIRECTORY]
//! ```
//!
//! **The world** is a valley of eight towns and eighty people. Each person has a trade, a
//! town, a thing to sell, its price, a pet, a best friend and a favourite season, all dealt
//! out by a seeded generator: nobody in it is real and nothing in it can be guessed.
//!
//! **What the base learns** (`base-train.jsonl`, `base-valid.jsonl`): short documents in plain
//! prose — portraits, market days, visits, runaway pets, the towns and the trades — that state
//! every fact many times, in many ways and in both directions, with a little arithmetic.
//! A story may wonder where the goat is, but no question is ever answered with a fact, and the
//! town crier is heard about market days only. The two files share the facts and no document.
//!
//! **What the fine-tuning shifts** (`train.jsonl`, `valid.jsonl`): now the crier answers
//! questions about people, in his old speech. The sixteen people of `valid.jsonl` occur nowhere
//! in `train.jsonl`, so a right answer there joins the voice learned now to a fact that only
//! the base has seen.
//!
//! **What preferences shift** (`pairs-train.jsonl`, `pairs-valid.jsonl`): the same questions,
//! each with two right answers. The chosen one says it plainly, as the base's portraits do, and
//! the rejected one is the crier's. The people are parted as above.
//!
//! **The tokenizer** is a byte-level BPE trained on `base-train.jsonl` alone. Fine-tuning leaves
//! the embeddings as they are, so every token of an answer has to occur in the base's documents:
//! that is why the crier and his verbs do.
//!
//! The same source writes the same bytes; the files in the repository are these. The words and
//! the sentences are in `text.rs`; here is what is done with them.

#![allow(clippy::print_stdout, reason = "an example says what it does")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, Tokenizer};

use text::{FACTS, choose_line, fields, number, rows};

mod text;

/// Of the one generator behind every choice.
const SEED: u64 = 80;
/// As many as there are names.
const PEOPLE: usize = 80;
/// The last of the people, whom only the base and `valid.jsonl` know. An even number keeps
/// friends together, so that no answer in `train.jsonl` names one of them.
const HELD_OUT: usize = 16;
/// Base documents about each person.
const PORTRAITS_EACH: usize = 16;
/// Base documents about each person by each of the [`text::STORIES`].
const STORIES_EACH: usize = 7;
/// Base documents about each town and each trade.
const LISTINGS_EACH: usize = 24;
/// How many of the base documents are for validation.
const BASE_VALID: usize = 120;
/// Of a question's four wordings, how many `train.jsonl` uses for one person.
const WORDINGS: usize = 3;
/// As in [`text::CONFIG`].
const VOCABULARY: usize = 1024;
/// Padding and the end of a document, with the ids 0 and 1.
const SPECIAL: [&str; 2] = ["<|pad|>", "<|end|>"];

/// Someone of the valley, and all there is to know but the friend.
struct Person {
    name: &'static str,
    woman: bool,
    /// Name, market day, place.
    town: [&'static str; 3],
    trade: &'static str,
    /// One and many.
    good: [&'static str; 2],
    price: usize,
    pet: &'static str,
    pet_name: &'static str,
    /// Name and reason.
    season: [&'static str; 2],
}

/// The people; `0` and `1` are friends, `2` and `3`, and so on.
struct World(Vec<Person>);

impl World {
    /// Deals out everything there is to have. Each table goes round evenly: every town has ten
    /// people, every trade five.
    fn new(rng: &mut ChaCha8Rng) -> Result<Self> {
        let mut names: Vec<_> = text::WOMEN
            .split_whitespace()
            .map(|name| (name, true))
            .collect();
        names.extend(text::MEN.split_whitespace().map(|name| (name, false)));
        let mut goods = Vec::new();
        let colleagues = PEOPLE / text::TRADES.lines().count();
        for line in text::TRADES.lines() {
            let (trade, wares) = line.split_once(": ").context("a trade without wares")?;
            // Five people to a trade, so two of its three wares are sold twice.
            for ware in wares.split(": ").cycle().take(colleagues) {
                goods.push((trade, fields(ware, ", ")?));
            }
        }

        let names = deal(&names, rng);
        let goods = deal(&goods, rng);
        let prices = deal(&(2..=12).collect::<Vec<_>>(), rng);
        let pets = deal(&text::PETS.split(' ').collect::<Vec<_>>(), rng);
        let pet_names = deal(&text::PET_NAMES.split_whitespace().collect::<Vec<_>>(), rng);
        let seasons = deal(&rows(text::SEASONS)?, rng);
        let mut towns = deal(&rows(text::TOWNS)?, rng);
        // Friends live apart, so that they can visit each other.
        while towns.chunks(2).any(|pair| pair[0] == pair[1]) {
            towns.shuffle(rng);
        }
        let person = |i: usize| Person {
            name: names[i].0,
            woman: names[i].1,
            town: towns[i],
            trade: goods[i].0,
            good: goods[i].1,
            price: prices[i],
            pet: pets[i],
            pet_name: pet_names[i],
            season: seasons[i],
        };
        Ok(Self((0..PEOPLE).map(person).collect()))
    }

    /// All base documents, shuffled, no two alike.
    fn documents(&self, rng: &mut ChaCha8Rng) -> Result<Vec<String>> {
        let mut documents = BTreeSet::new();
        for person in 0..PEOPLE {
            distinct(&mut documents, PORTRAITS_EACH, || {
                self.portrait(person, rng)
            })?;
            for story in text::STORIES {
                distinct(&mut documents, STORIES_EACH, || {
                    self.story(person, story, rng)
                })?;
            }
        }
        for [town, ..] in rows::<3>(text::TOWNS)? {
            let people = self.whose(|person| person.town[0] == town);
            let mut listing = || self.listing(&people, text::TOWN_OPENINGS, rng);
            distinct(&mut documents, LISTINGS_EACH, &mut listing)?;
        }
        for line in text::TRADES.lines() {
            let people = self.whose(|person| line.starts_with(person.trade));
            let mut listing = || self.listing(&people, text::TRADE_OPENINGS, rng);
            distinct(&mut documents, LISTINGS_EACH, &mut listing)?;
        }
        let mut documents: Vec<_> = documents.into_iter().collect();
        documents.shuffle(rng);
        Ok(documents)
    }

    /// Five facts about one person, by name or, where it is clear who is meant, by pronoun.
    fn portrait(&self, person: usize, rng: &mut ChaCha8Rng) -> Result<String> {
        let mut sentences = Vec::new();
        let mut telling = Telling::new(self, person);
        for fact in FACTS.choose_multiple(rng, 5) {
            let template = choose_line(fact.says, rng)?;
            sentences.push(telling.fill(template)?);
            // After a friend has been named, a pronoun could mean either.
            telling.by_name = template.contains("riend.") || rng.random_bool(0.4);
        }
        Ok(sentences.join(" "))
    }

    /// A story about one person, in one of the lines of each of its parts.
    fn story(&self, person: usize, story: &str, rng: &mut ChaCha8Rng) -> Result<String> {
        let mut telling = Telling::new(self, person);
        telling.count = rng.random_range(2..=6);
        let sentence = |part| telling.fill(choose_line(part, rng)?);
        let told: Result<Vec<_>> = story.split("\n\n").map(sentence).collect();
        Ok(told?.join(" "))
    }

    /// A town or a trade, then one fact about each of three of its people.
    fn listing(&self, people: &[usize], openings: &str, rng: &mut ChaCha8Rng) -> Result<String> {
        let chosen: Vec<_> = people.choose_multiple(rng, 5).copied().collect();
        let mut telling = Telling::new(self, chosen[0]);
        telling.colleagues = &chosen;
        let mut sentences = vec![telling.fill(choose_line(openings, rng)?)?];
        for &person in &chosen[..3] {
            let fact = FACTS.choose(rng).context("no facts")?;
            sentences.push(Telling::new(self, person).fill(choose_line(fact.says, rng)?)?);
        }
        Ok(sentences.join(" "))
    }

    /// The people who pass the test.
    fn whose(&self, test: impl Fn(&Person) -> bool) -> Vec<usize> {
        (0..PEOPLE).filter(|&i| test(&self.0[i])).collect()
    }

    /// Questions in the given number of wordings, and the crier's answers, as JSON lines.
    fn questions(
        &self,
        people: impl Iterator<Item = usize>,
        wordings: usize,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<String>> {
        let mut records = Vec::new();
        for person in people {
            let telling = Telling::new(self, person);
            for fact in &FACTS {
                let asks: Vec<_> = fact.asks.split(" | ").collect();
                for ask in asks.choose_multiple(rng, wordings) {
                    let prompt = serde_json::to_string(&telling.fill(ask)?)?;
                    let completion = format!(" {}", telling.fill(fact.answers)?);
                    let completion = serde_json::to_string(&completion)?;
                    let record = format!(r#"{{"prompt": {prompt}, "completion": {completion}}}"#);
                    records.push(record);
                }
            }
        }
        records.shuffle(rng);
        Ok(records)
    }

    /// Questions with a plain answer, which is preferred, and the crier's, as JSON lines.
    fn pairs(
        &self,
        people: impl Iterator<Item = usize>,
        rng: &mut ChaCha8Rng,
    ) -> Result<Vec<String>> {
        let mut records = Vec::new();
        for person in people {
            let telling = Telling::new(self, person);
            for fact in &FACTS {
                let asks: Vec<_> = fact.asks.split(" | ").collect();
                let ask = asks.choose(rng).context("no question")?;
                let json = |text: &str| serde_json::to_string(text);
                let prompt = json(&telling.fill(ask)?)?;
                let plain = choose_line(fact.says, rng)?;
                let chosen = json(&format!(" {}", telling.fill(plain)?))?;
                let rejected = json(&format!(" {}", telling.fill(fact.answers)?))?;
                records.push(format!(
                    r#"{{"prompt": {prompt}, "chosen": {chosen}, "rejected": {rejected}}}"#
                ));
            }
        }
        records.shuffle(rng);
        Ok(records)
    }
}

/// A sentence or a story being told about one person.
struct Telling<'a> {
    world: &'a World,
    person: usize,
    /// Whether `{who}` is the name or the pronoun.
    by_name: bool,
    /// How many were sold, if it is a market day.
    count: usize,
    /// Who is of the trade, if a trade is listed.
    colleagues: &'a [usize],
}

impl<'a> Telling<'a> {
    fn new(world: &'a World, person: usize) -> Self {
        Self {
            world,
            person,
            by_name: true,
            count: 0,
            colleagues: &[],
        }
    }

    /// The template with every `{key}` replaced; a capital in the key capitalises the value.
    fn fill(&self, template: &str) -> Result<String> {
        let mut filled = String::new();
        let mut rest = template;
        while let Some((before, after)) = rest.split_once('{') {
            let (key, after) = after.split_once('}').context("an open brace")?;
            let value = self.value(&key.to_lowercase())?;
            filled.push_str(before);
            if key.starts_with(char::is_uppercase) {
                filled.push_str(&text::capitalized(&value));
            } else {
                filled.push_str(&value);
            }
            rest = after;
        }
        Ok(filled + rest)
    }

    /// What a key, in lower case, stands for.
    fn value(&self, key: &str) -> Result<String> {
        let person = &self.world.0[self.person];
        if let Some(key) = key.strip_prefix("friend.") {
            return Telling::new(self.world, self.person ^ 1).value(key);
        }
        if let Some(key) = key.strip_prefix("a ") {
            return Ok(text::with_article(&self.value(key)?));
        }
        let pronoun = |hers, his| if person.woman { hers } else { his };
        let word = match key {
            "who" | "name" if self.by_name || key == "name" => person.name,
            "who" | "she" => pronoun("she", "he"),
            "whose" if self.by_name => return Ok(format!("{}'s", person.name)),
            "whose" | "her" => pronoun("her", "his"),
            "him" => pronoun("her", "him"),
            "town" => person.town[0],
            "day" => person.town[1],
            "place" => person.town[2],
            "trade" => person.trade,
            "good" => person.good[0],
            "goods" => person.good[1],
            "pet" => person.pet,
            "petname" => person.pet_name,
            "season" => person.season[0],
            "why" => person.season[1],
            "price" => return number(person.price),
            "count" => return number(self.count),
            "total" => return number(self.count * person.price),
            "colleagues" => {
                let people = self.colleagues.iter().map(|&i| &self.world.0[i]);
                let known = |person: &Person| format!("{} of {}", person.name, person.town[0]);
                let list: Vec<_> = people.map(known).collect();
                let (last, others) = list.split_last().context("nobody")?;
                return Ok(format!("{} and {last}", others.join(", ")));
            }
            _ => bail!("no value named {key}"),
        };
        Ok(word.to_owned())
    }
}

/// The items over and over until there is one for everybody, shuffled.
fn deal<T: Clone>(items: &[T], rng: &mut ChaCha8Rng) -> Vec<T> {
    let mut dealt: Vec<_> = items.iter().cycle().take(PEOPLE).cloned().collect();
    dealt.shuffle(rng);
    dealt
}

/// Adds documents until `count` new ones are in.
fn distinct(
    documents: &mut BTreeSet<String>,
    count: usize,
    mut document: impl FnMut() -> Result<String>,
) -> Result<()> {
    let wanted = documents.len() + count;
    while documents.len() < wanted {
        documents.insert(document()?);
    }
    Ok(())
}

/// A byte-level BPE, trained on the documents.
fn tokenizer(documents: &[String]) -> Result<Tokenizer> {
    let bytes = || ByteLevel::new(false, true, true);
    let special = SPECIAL.map(|token| AddedToken::from(token, true));
    let trainer = BpeTrainer::builder()
        .vocab_size(VOCABULARY)
        .show_progress(false)
        .special_tokens(special.into())
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(bytes()))
        .with_decoder(Some(bytes()));
    tokenizer
        .train(&mut TrainerWrapper::from(trainer), documents.iter())
        .map_err(|error| anyhow!(error))?;
    ensure!(
        tokenizer.get_vocab_size(true) == VOCABULARY,
        "too little text for the vocabulary"
    );
    Ok(tokenizer)
}

/// Writes a file and says so.
fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    println!("{:>9} bytes  {}", text.len(), path.display());
    Ok(())
}

/// Writes JSON lines.
fn write_lines(path: &Path, records: &[String]) -> Result<()> {
    write(path, &(records.join("\n") + "\n"))
}

fn main() -> Result<()> {
    let directory = std::env::args()
        .nth(1)
        .unwrap_or("recipes/quickstart".to_owned());
    let directory = PathBuf::from(directory);
    let base = directory.join("base");
    fs::create_dir_all(&base).with_context(|| format!("cannot create {}", base.display()))?;

    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    let world = World::new(&mut rng)?;
    let documents = world.documents(&mut rng)?;
    let (valid, train) = documents.split_at(BASE_VALID);
    // An empty prompt makes each document a sample of its own. As raw text they would be cut
    // into blocks, always between the same neighbours, which a small model learns by heart.
    let record = |text: &String| {
        Ok(format!(
            r#"{{"prompt": "", "completion": {}}}"#,
            serde_json::to_string(text)?
        ))
    };
    let records = |texts: &[String]| texts.iter().map(record).collect::<Result<Vec<_>>>();
    write_lines(&directory.join("base-train.jsonl"), &records(train)?)?;
    write_lines(&directory.join("base-valid.jsonl"), &records(valid)?)?;

    let known = PEOPLE - HELD_OUT;
    let questions = world.questions(0..known, WORDINGS, &mut rng)?;
    write_lines(&directory.join("train.jsonl"), &questions)?;
    let questions = world.questions(known..PEOPLE, 1, &mut rng)?;
    write_lines(&directory.join("valid.jsonl"), &questions)?;

    // A stream of its own, so that the other files are what they were before there were pairs.
    let mut rng = ChaCha8Rng::seed_from_u64(SEED);
    rng.set_stream(1);
    let pairs = world.pairs(0..known, &mut rng)?;
    write_lines(&directory.join("pairs-train.jsonl"), &pairs)?;
    let pairs = world.pairs(known..PEOPLE, &mut rng)?;
    write_lines(&directory.join("pairs-valid.jsonl"), &pairs)?;

    let tokenizer = tokenizer(train)?;
    let json = tokenizer.to_string(false).map_err(|error| anyhow!(error))?;
    write(&base.join("tokenizer.json"), &json)?;
    write(&base.join("tokenizer_config.json"), text::TOKENIZER_CONFIG)?;
    write(&base.join("config.json"), text::CONFIG)
}
