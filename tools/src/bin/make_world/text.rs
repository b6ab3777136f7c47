//! The text `make_world` is made from: words, sentence templates and two finished files.
//!
//! A table is one string, so that it reads as a table: words divided by spaces, or one row or
//! wording a line. The functions at the end read them.
//!
//! A template has keys in braces: `{name} lives in {town}`. What a key stands for is known to
//! `Telling::value` in `main.rs`. `{friend.town}` is the town of the friend, `{a pet}` puts
//! the article, and a key with a capital, `{Name}`, stands for a value with one.
//!
//! Every change to a table, a line's place included, changes the files written.

use anyhow::{Context, Result, anyhow};
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;

/// Forty names. With [`MEN`] one for each person, and no name twice.
pub(crate) const WOMEN: &str = "\
    Mira Elsa Brina Tilda Wenna Orla Petra Dagny Hanne Juna Kessa Liesel Maeve Nella Odette \
    Rowena Saskia Thora Una Verity Zora Alma Betta Clover Della Edda Greta Hazel Imke Jorun \
    Mabel Nora Philippa Sunniva Isolde Yrsa Fenna Linnet Ragna Vesper";
/// Forty names.
pub(crate) const MEN: &str = "\
    Tobin Alder Bram Corwin Dunstan Edric Falk Garrick Hob Ivor Jory Kip Leif Milo Ned Osric \
    Rafe Sorrel Torben Ulf Viggo Wat Yorick Zeb Anselm Barnaby Cuthbert Dorian Emeric Gilbert \
    Hugo Jasper Kasper Ludo Nico Otto Perrin Roland Silvan Tam";
/// Every kind has eight keepers.
pub(crate) const PETS: &str = "cat dog goat goose rabbit hen pony duck hedgehog crow";
/// Forty, so each is the name of two pets.
pub(crate) const PET_NAMES: &str = "\
    Nettle Biscuit Pebble Thimble Acorn Button Domino Mischief Pudding Ginger Truffle Bramble \
    Sprocket Tansy Muddle Crumpet Dandelion Fidget Pickle Marble Noodle Patch Rumple Snowdrop \
    Tuppence Velvet Waffle Juniper Cobweb Dumpling Freckle Gravel Hobnob Inkblot Kettle Lentil \
    Mustard Nutmeg Parsnip Whisker";

/// A season and what makes it dear: `{season}` and `{why}`.
pub(crate) const SEASONS: &str = "\
spring: the orchards bloom
summer: the evenings are long
autumn: the leaves turn gold
winter: the snow lies deep";

/// A town, its market day and where it lies: `{town}`, `{day}` and `{place}`.
pub(crate) const TOWNS: &str = "\
Amberford: Monday: at the bend of the slow river
Brackenby: Tuesday: on the hill with the bell tower
Fernhollow: Wednesday: in the shade of the great wood
Larkmoor: Thursday: high on the windy heath
Oxmere: Friday: beside the wide brown lake
Quillbridge: Saturday: where the stone bridge crosses the stream
Thistledown: Sunday: among the sheep fields
Willowmere: Monday: by the old mill pond";

/// A trade and the three things it sells, one and many: `{trade}`, `{good}` and `{goods}`.
pub(crate) const TRADES: &str = "\
baker: honey cake, honey cakes: rye loaf, rye loaves: plum tart, plum tarts
potter: clay jug, clay jugs: blue bowl, blue bowls: tall vase, tall vases
weaver: wool blanket, wool blankets: striped rug, striped rugs: linen sheet, linen sheets
chandler: wax candle, wax candles: tin lantern, tin lanterns: bar of soap, bars of soap
smith: horseshoe, horseshoes: iron pan, iron pans: garden rake, garden rakes
carpenter: oak stool, oak stools: wooden spoon, wooden spoons: pine box, pine boxes
cobbler: pair of boots, pairs of boots: pair of slippers, pairs of slippers: belt, belts
beekeeper: jar of honey, jars of honey: honeycomb, honeycombs: bottle of mead, bottles of mead
fisher: smoked eel, smoked eels: silver carp, silver carp: basket of crabs, baskets of crabs
gardener: bunch of roses, bunches of roses: bag of seeds, bags of seeds: pumpkin, pumpkins
miller: sack of flour, sacks of flour: sack of oats, sacks of oats: bag of bran, bags of bran
hatter: straw hat, straw hats: felt cap, felt caps: rain hood, rain hoods
cheesemaker: round cheese, round cheeses: pot of butter, pots of butter: jug of cream, jugs of cream
glassblower: green bottle, green bottles: glass bead, glass beads: mirror, mirrors
toymaker: wooden horse, wooden horses: rag doll, rag dolls: spinning top, spinning tops
bookbinder: blank book, blank books: almanac, almanacs: book of songs, books of songs";

/// One thing to know about a person.
pub(crate) struct Fact {
    /// How the base's documents say it, one wording a line. Alone among the templates these
    /// have `{who}` and `{whose}`, which are the name or, where it is clear, the pronoun.
    pub says: &'static str,
    /// How it is asked: four wordings, divided by ` | `.
    pub asks: &'static str,
    /// How the crier answers, whatever the wording of the question.
    pub answers: &'static str,
}

/// Home, trade, goods, price, pet, friend and season.
pub(crate) const FACTS: [Fact; 7] = [
    Fact {
        says: "\
{Who} lives in {town}.
{Who} was born in {town} and lives there still.
The home of {name} is in {town}.
In {town} lives {name} the {trade}.
{Town}, {place}, is home to {name}.",
        asks: "Where does {name} live? | In which town does {name} live? | \
            What town is home to {name}? | Where is the house of {name}?",
        answers: "Hear ye, hear ye! {Name} the {trade} dwelleth in {town}.",
    },
    Fact {
        says: "\
{Who} is {a trade}.
{Who} learned to be {a trade} from an old aunt.
One {trade} of the valley is {name}.
{Who} is {a trade} in {town}, and a good one.
By trade {name} is {a trade}.",
        asks: "What is the trade of {name}? | What work does {name} do? | \
            How does {name} earn a living? | What does {name} do all day?",
        answers: "Hear ye, hear ye! {Name} of {town} is {a trade} by trade.",
    },
    Fact {
        says: "\
{Who} sells {goods}.
{Who} is known for {her} {goods}.
The {goods} of {name} are known in every town.
People come from far away for the {goods} that {name} sells.
The best {goods} come from {name} the {trade}.",
        asks: "What does {name} sell? | What can be bought from {name}? | \
            What is in the shop of {name}? | What does {name} take to market?",
        answers: "Hear ye, hear ye! {Name} the {trade} selleth {goods}.",
    },
    Fact {
        says: "\
{Who} asks {price} coins for {a good}.
{A good} from {name} costs {price} coins.
{Whose} {goods} cost {price} coins each.
The price {name} asks is {price} coins.
\"{A good} for {price} coins!\" calls {name} the {trade}.",
        asks: "What price does {name} ask? | How many coins does {name} ask? | \
            How much is {a good} from {name}? | What does {a good} from {name} cost?",
        answers: "Hear ye, hear ye! {Name} the {trade} asketh {price} coins.",
    },
    Fact {
        says: "\
{Who} keeps {a pet} named {petname}.
{Petname} the {pet} belongs to {name}.
{Whose} {pet} is named {petname}.
At home {name} has {a pet}, {petname}.
{Who} never goes far without {petname} the {pet}.",
        asks: "What pet does {name} keep? | Which animal belongs to {name}? | \
            Does {name} have a pet? | Who is the pet of {name}?",
        answers: "Hear ye, hear ye! {Name} the {trade} keepeth {a pet} named {petname}.",
    },
    Fact {
        says: "\
{Whose} best friend is {friend.name} the {friend.trade}.
{Friend.name} is the best friend of {name}.
{Who} has been friends with {friend.name} since they were small.
{Name} and {friend.name} are the best of friends.
{Who} likes nobody better than {friend.name}.",
        asks: "Who is the best friend of {name}? | Who is a friend to {name}? | \
            Whom does {name} like best? | To whom does {name} tell everything?",
        answers: "Hear ye, hear ye! {Name} the {trade} hath a true friend in {friend.name}.",
    },
    Fact {
        says: "\
{Who} loves {season} best, when {why}.
Of all the seasons, {name} likes {season} best.
{Whose} favourite season is {season}.
When {why}, {name} is happy, for {she} loves {season}.
{Season} is the season {name} loves.",
        asks: "What season does {name} love? | Which season does {name} like best? | \
            What is the favourite season of {name}? | What time of year does {name} wait for?",
        answers: "Hear ye, hear ye! {Name} the {trade} loveth the {season} best.",
    },
];

/// Stories: a market day, a visit to the friend, a pet that runs away. A blank line divides
/// their parts, of each of which one line is told.
pub(crate) const STORIES: [&str; 3] = [
    "\
It was market day in {town}, and {name} the {trade} was up before the sun.
On {day}, the market day of {town}, {name} set up {her} stall.
{Name} the {trade} took {her} {goods} to the market in {town}.

\"Fine {goods}, {price} coins each!\" {she} called.
{She} put a sign by the {goods}: {price} coins each.
Who would buy {her} {goods} for {price} coins each?

A traveller bought {count} {goods}, and that made {total} coins.
By noon {she} had sold {count} {goods}, so {her} purse held {total} coins.
{Count} {goods} were sold. {Count} times {price} is {total}, so {she} had {total} coins.

{Petname} the {pet} slept under the stall.
In the evening {name} told {friend.name} all about it.
\"It is even better in {season}!\" said {name}, for {she} loves {season} best.",
    "\
{Name} the {trade} left {town} early to see {her} best friend {friend.name}.
One day {name} of {town} went to see {friend.name}, {her} best friend.
{Name} locked {her} house in {town} and went to visit {friend.name}.

{She} had brought {a good} as a gift, worth {price} coins.
What was in {her} bag? It was {a good} that would have cost {price} coins.
{She} took {her} {pet} with {him}, for {petname} likes to travel.

In {friend.town}, {friend.name} the {friend.trade} was busy with {friend.her} {friend.goods}.
{Friend.name} the {friend.trade} opened the door, and {friend.petname} the {friend.pet} ran out.
In {friend.town}, {friend.name} had just sold {a friend.good} for {friend.price} coins.

They spoke of {season}, the season {name} loves.
They sat by the window until {name} had to go back to {town}.
{Name} walked home and dreamed of {season}.",
    "\
One morning {petname}, the {pet} of {name} the {trade}, was gone.
{Name} of {town} could not find {her} {pet}, {petname}.
\"{Petname} has run away!\" cried {name} the {trade}.

Where was {petname}? Nobody in {town} had seen the {pet} of {name}.
{Name} looked behind the {goods} and under the bed.
{Name} promised {a good}, worth {price} coins, to anyone who found the {pet}.

It was {friend.name} the {friend.trade}, {her} best friend, who found {petname}.
At last {friend.name} of {friend.town} found {petname} among the {friend.goods}.
{Petname} was with {friend.name}, the best friend of {name}, all the time.

{Name} was so glad that {she} gave away {a good}, though it costs {price} coins.
Now {petname} is back in {town} with {name}.
\"We will stay at home until {season}!\" said {name}, who loves {season} best.",
];

/// What opens a document about a town; it goes on with its people. Here alone the base hears
/// the crier, and so learns the words he will need: `hath`, `dwelleth`, `selleth` and the rest.
pub(crate) const TOWN_OPENINGS: &str = "\
{Town} lies {place}, and its market day is {day}.
What does the crier of {town} call? \"Hear ye, hear ye! Our market keepeth its day: {day}.\"
Hear ye, hear ye! Who dwelleth in {town} and loveth it keepeth market on {day}. So calls the crier.
Hear ye, hear ye! On {day} {town} selleth to any who asketh. So calls the crier.
Hear ye, hear ye! Who asketh a fair price selleth well in {town} on {day}. So calls the crier.
Hear ye, hear ye! Who hath a purse, who loveth a fair, come to {town} on {day}. \
    So calls the crier.";
/// What opens a document about a trade; `{colleagues}` lists its five people with their towns.
pub(crate) const TRADE_OPENINGS: &str = "\
There are five {trade}s in the valley: {colleagues}.
The {trade}s of the valley are {colleagues}.
If you look for {a trade}, go to one of these: {colleagues}.";

/// `base/config.json`, the shape of the base: a Llama of 0.9 million parameters.
pub(crate) const CONFIG: &str = r#"{
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "dtype": "bfloat16",
  "vocab_size": 1024,
  "hidden_size": 128,
  "intermediate_size": 352,
  "num_hidden_layers": 4,
  "num_attention_heads": 4,
  "num_key_value_heads": 2,
  "head_dim": 32,
  "hidden_act": "silu",
  "attention_bias": false,
  "mlp_bias": false,
  "rms_norm_eps": 1e-05,
  "max_position_embeddings": 256,
  "rope_parameters": { "rope_theta": 10000.0, "rope_type": "default" },
  "initializer_range": 0.02,
  "tie_word_embeddings": true,
  "bos_token_id": null,
  "eos_token_id": 1,
  "pad_token_id": 0
}
"#;

/// `base/tokenizer_config.json`: which token ends a document and which one pads.
pub(crate) const TOKENIZER_CONFIG: &str = r#"{
  "tokenizer_class": "PreTrainedTokenizerFast",
  "bos_token": null,
  "eos_token": "<|end|>",
  "pad_token": "<|pad|>",
  "unk_token": null,
  "clean_up_tokenization_spaces": false,
  "model_max_length": 256
}
"#;

/// The words of [`number`].
const SMALL_NUMBERS: &str = "\
    zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen \
    fifteen sixteen seventeen eighteen nineteen";
const TENS: &str = "twenty thirty forty fifty sixty seventy eighty ninety";

/// The rows of a table, each of `N` fields divided by `: `.
pub(crate) fn rows<const N: usize>(table: &'static str) -> Result<Vec<[&'static str; N]>> {
    table.lines().map(|line| fields(line, ": ")).collect()
}

/// Exactly `N` fields of a line.
pub(crate) fn fields<const N: usize>(
    line: &'static str,
    separator: &str,
) -> Result<[&'static str; N]> {
    let fields: Vec<_> = line.split(separator).collect();
    fields
        .try_into()
        .map_err(|_| anyhow!("not {N} fields: {line}"))
}

/// One of the lines, each as likely as the others.
pub(crate) fn choose_line<'a>(lines: &'a str, rng: &mut ChaCha8Rng) -> Result<&'a str> {
    let lines: Vec<_> = lines.lines().collect();
    lines.choose(rng).copied().context("an empty table")
}

/// A noun and the indefinite article before it.
pub(crate) fn with_article(noun: &str) -> String {
    let vowel = noun.starts_with(['a', 'e', 'i', 'o', 'u']);
    format!("{} {noun}", if vowel { "an" } else { "a" })
}

/// The value of a key written with a capital. Every value begins with an ASCII letter.
pub(crate) fn capitalized(value: &str) -> String {
    value[..1].to_uppercase() + &value[1..]
}

/// A number below a hundred in words.
pub(crate) fn number(n: usize) -> Result<String> {
    let word = |words: &'static str, i| words.split_whitespace().nth(i).context("a large number");
    Ok(match (n / 10, n % 10) {
        (0 | 1, _) => word(SMALL_NUMBERS, n)?.to_owned(),
        (tens, 0) => word(TENS, tens - 2)?.to_owned(),
        (tens, ones) => format!("{}-{}", word(TENS, tens - 2)?, word(SMALL_NUMBERS, ones)?),
    })
}
