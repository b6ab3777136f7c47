//! From the name of a data set to its files: the cache where it suffices, the
//! hub otherwise.

use std::{
    fs,
    io::{self, Read},
    path::{Path, PathBuf},
};

use crate::{
    HubDataset, HubError, HubOptions, Progress,
    cache::{Inventory, Repository},
    card::Card,
    client::{Client, Listing, is_commit},
    download::fetch,
    layout::{Choice, choose, converted, missing_shard},
    name::is_inside,
    resolve::not_asked,
};

/// The hub's own conversion of a data set to Parquet.
const CONVERSION: &str = "refs/convert/parquet";
/// From so many files on, the hub's list of them is not whole.
const TOO_MANY: usize = 50_000;
const README: &str = "README.md";
/// The most bytes that a description is read with: it is held in memory, and comes from anybody.
const README_BYTES: u64 = 16 << 20;
const YAML: &str = ".huggingface.yaml";

/// Where the files of a data set are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// The files of the split, whole and in the order in which they are to be read.
    pub files: Vec<PathBuf>,
    /// The first so many records only.
    pub first: Option<usize>,
    /// `owner/name`.
    pub repository: String,
    /// The commit of the repository that the files are of.
    pub commit: String,
    /// The configuration; `default` where the data set names none.
    pub config: String,
    /// The split.
    pub split: String,
    /// Whether nothing had to be downloaded.
    pub from_cache: bool,
    /// What a user should know, such as that a copy may not be the newest.
    pub notes: Vec<String>,
}

/// Makes the files of a data set of the hub present, in the cache that Python's
/// `datasets` uses (`datasets--owner--name`), and no others. Which ones belong
/// to a configuration and a split is told as `datasets` tells it: by the YAML
/// at the top of `README.md`, or by the names of directories and files. Without
/// a configuration, the default one is meant; without a split, `train`, or the
/// only one. Blocks until it is done.
///
/// A data set that is made by a program is read from the hub's own conversion
/// to Parquet, with a [note](Dataset::notes).
///
/// Without a network, or while the hub has a fault, a copy in the cache is
/// used, with a note; for a whole commit identifier it is used without asking.
/// What this crate has downloaded is known to be whole, since it keeps the list
/// of a commit's files. Of what Python has downloaded, the files that are there
/// are used, with a note, unless their names show that some are missing.
///
/// # Errors
///
/// See [`HubError`]; each variant says what to do.
pub fn resolve_dataset(
    name: &HubDataset,
    options: &HubOptions,
    on: &mut dyn FnMut(Progress<'_>),
) -> Result<Dataset, HubError> {
    let target = name.target();
    let repository = Repository::new(&options.cache, &target);
    let shelf = Shelf {
        name,
        repository: &repository,
        options,
    };
    if options.offline {
        return shelf.dataset();
    }
    if is_commit(name.revision())
        && repository.inventory(name.revision()).is_some()
        && let Ok(dataset) = shelf.dataset()
    {
        return Ok(dataset);
    }
    let client = Client::new(options, &target)?;
    let listing = match client.listing() {
        Ok(listing) => listing,
        Err(error) if error.is_transient() => match (shelf.dataset(), error) {
            (Ok(mut dataset), error) => {
                let note = not_asked(&error, &dataset.repository, &dataset.commit);
                dataset.notes.push(note);
                return Ok(dataset);
            }
            // What is not there at all is not tried again, a fault of the hub's is.
            (Err(_), HubError::Server { .. }) => client.persist(|| client.listing())?,
            (Err(_), error) => return Err(error),
        },
        Err(error) => return Err(error),
    };
    let mut order = Order {
        name,
        repository: &repository,
        options,
        downloaded: false,
    };
    order.dataset(&client, listing, on)
}

/// The program that makes a data set, if there is one.
fn script(name: &HubDataset, files: &[String]) -> Option<String> {
    let script = format!("{}.py", name.repository.rsplit('/').next()?);
    files.contains(&script).then_some(script)
}

/// Reads what a snapshot says of its files.
fn card(name: &HubDataset, snapshot: &Path) -> Result<Card, HubError> {
    let bad = |file: &'static str, reason: String| HubError::BadCard {
        name: name.repository.clone(),
        file,
        reason,
    };
    let text = |file: &'static str| {
        let path = snapshot.join(file);
        let read = || -> io::Result<Vec<u8>> {
            let mut bytes = Vec::new();
            let file = fs::File::open(&path)?;
            file.take(README_BYTES + 1).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        match read() {
            Ok(bytes) if bytes.len() as u64 > README_BYTES => Err(bad(
                file,
                format!("it has more than {README_BYTES} bytes, too many for a description"),
            )),
            Ok(bytes) => match String::from_utf8(bytes) {
                Ok(text) => Ok(Some(text)),
                Err(_) => Err(bad(file, "it is not UTF-8".to_owned())),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(HubError::io("cannot read", &path, source)),
        }
    };
    let (readme, yaml) = (text(README)?, text(YAML)?);
    let file = if yaml.is_some() { YAML } else { README };
    Card::parse(readme.as_deref(), yaml.as_deref()).map_err(|reason| bad(file, reason))
}

fn made_by(name: &HubDataset, script: &str) -> String {
    format!(
        "`{}` is made by a program, `{script}`, which is not run: ",
        name.repository
    )
}

/// Says that files come from the hub's conversion, and whether it has all.
fn conversion_notes(name: &HubDataset, script: &str, choice: &mut Choice) {
    let note = made_by(name, script);
    choice.notes.push(format!(
        "{note}the hub's conversion to Parquet is used ({CONVERSION})"
    ));
    if choice.files.iter().any(|file| file.contains("/partial-")) {
        choice.notes.push(format!(
            "that conversion holds only the first part of split `{}`",
            choice.split
        ));
    }
}

/// The files of the program's repository itself, if that has any.
fn without_conversion(
    name: &HubDataset,
    script: String,
    files: &[String],
    card: &Card,
) -> Result<Choice, HubError> {
    match choose(name, files, card) {
        Ok(mut choice) => {
            let note = made_by(name, &script);
            choice.notes.push(format!(
                "{note}the data files that lie beside it are used as they are"
            ));
            Ok(choice)
        }
        Err(HubError::NoData { .. }) => Err(HubError::Script {
            name: name.repository.clone(),
            script,
            reason: match &name.revision {
                None => format!("the hub has no conversion of it to Parquet ({CONVERSION})"),
                Some(revision) => format!(
                    "the hub's conversion to Parquet is of its newest state, not of \
                     `{revision}` (write `{}@{CONVERSION}` to have it)",
                    name.repository
                ),
            },
        }),
        Err(error) => Err(error),
    }
}

/// Whether the branch that was asked for is the one that the hub converts.
fn is_newest(name: &HubDataset) -> bool {
    matches!(name.revision.as_deref(), None | Some("main"))
}

fn finished(
    name: &HubDataset,
    repository: &Repository,
    commit: &str,
    choice: Choice,
    downloaded: bool,
) -> Dataset {
    let snapshot = repository.snapshot(commit);
    Dataset {
        files: choice
            .files
            .iter()
            .map(|file| snapshot.join(file))
            .collect(),
        first: name.first,
        repository: name.repository.clone(),
        commit: commit.to_owned(),
        config: choice.config,
        split: choice.split,
        from_cache: !downloaded,
        notes: choice.notes,
    }
}

/// A data set that is fetched from the hub.
struct Order<'a> {
    name: &'a HubDataset,
    repository: &'a Repository,
    options: &'a HubOptions,
    downloaded: bool,
}

impl Order<'_> {
    fn dataset(
        &mut self,
        client: &Client<'_>,
        listing: Listing,
        on: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Dataset, HubError> {
        let name = self.name;
        let commit = listing.sha.clone();
        let files = self.files(listing)?;
        for file in [README, YAML] {
            if files.iter().any(|known| known == file) {
                self.need(client, &commit, file, on)?;
            }
        }
        if name.revision() == CONVERSION {
            let card = converted(name, &files);
            let choice = choose(name, &files, &card)?;
            self.all(client, &commit, &choice, on)?;
            self.keep(name.revision(), &commit, files, None);
            return Ok(self.finished(&commit, choice));
        }
        let card = card(name, &self.repository.snapshot(&commit))?;
        let script = script(name, &files).filter(|_| card.configs.is_empty());
        let Some(script) = script else {
            let choice = choose(name, &files, &card)?;
            self.all(client, &commit, &choice, on)?;
            self.keep(name.revision(), &commit, files, None);
            return Ok(self.finished(&commit, choice));
        };
        let conversion = if is_newest(name) {
            let target = name.target_at(CONVERSION);
            let client = Client::new(self.options, &target)?;
            match client.persist(|| client.listing()) {
                Ok(listing) => Some(listing),
                Err(HubError::NoRevision { .. } | HubError::NoRepository { .. }) => None,
                Err(error) => return Err(error),
            }
        } else {
            None
        };
        let Some(listing) = conversion else {
            let choice = without_conversion(name, script, &files, &card)?;
            self.all(client, &commit, &choice, on)?;
            self.keep(name.revision(), &commit, files, Some(String::new()));
            return Ok(self.finished(&commit, choice));
        };
        let there = listing.sha.clone();
        let parquet = self.files(listing)?;
        let mut choice = choose(name, &parquet, &converted(name, &parquet))?;
        conversion_notes(name, &script, &mut choice);
        self.all(client, &there, &choice, on)?;
        self.keep(CONVERSION, &there, parquet, None);
        self.keep(name.revision(), &commit, files, Some(there.clone()));
        Ok(self.finished(&there, choice))
    }

    fn files(&self, listing: Listing) -> Result<Vec<String>, HubError> {
        let files = listing.into_files();
        if files.len() >= TOO_MANY {
            return Err(HubError::NoData {
                name: self.name.repository.clone(),
                reason: format!(
                    "it consists of so many files ({} and more) that the hub lists them only in \
                     part; download those that you need and give their paths",
                    files.len()
                ),
            });
        }
        Ok(files)
    }

    /// Every file of the choice, after a look at all of their names.
    fn all(
        &mut self,
        client: &Client<'_>,
        commit: &str,
        choice: &Choice,
        on: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        if let Some(bad) = choice.files.iter().find(|file| !is_inside(file)) {
            return Err(client.bad_answer(&format!(
                "it lists a file {bad:?}, whose name is not one that can be written here"
            )));
        }
        choice
            .files
            .iter()
            .try_for_each(|file| self.need(client, commit, file, on))
    }

    fn need(
        &mut self,
        client: &Client<'_>,
        commit: &str,
        file: &str,
        on: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(), HubError> {
        if self.repository.snapshot(commit).join(file).is_file() {
            return Ok(());
        }
        self.downloaded = true;
        fetch(client, self.repository, commit, file, on)
    }

    /// For use without a network, which alone depends on it: a cache that
    /// others maintain may be read-only.
    fn keep(&self, revision: &str, commit: &str, files: Vec<String>, conversion: Option<String>) {
        let inventory = Inventory { files, conversion };
        let _ = self.repository.keep(commit, &inventory);
        let _ = self.repository.remember(revision, commit);
    }

    fn finished(&self, commit: &str, choice: Choice) -> Dataset {
        finished(self.name, self.repository, commit, choice, self.downloaded)
    }
}

/// A data set that is taken from the cache alone.
struct Shelf<'a> {
    name: &'a HubDataset,
    repository: &'a Repository,
    options: &'a HubOptions,
}

impl Shelf<'_> {
    fn dataset(&self) -> Result<Dataset, HubError> {
        let name = self.name;
        let commit = self
            .repository
            .commit(name.revision())
            .ok_or_else(|| self.missing())?;
        match self.repository.inventory(&commit) {
            Some(inventory) => self.known(&commit, &inventory),
            // What is missing here may be all that is wrong.
            None => self.unknown(&commit).map_err(|error| match error {
                HubError::NoData { .. }
                | HubError::NoSplit { .. }
                | HubError::NoConfiguration { .. }
                | HubError::Script { .. } => self.missing(),
                error => error,
            }),
        }
    }

    fn known(&self, commit: &str, inventory: &Inventory) -> Result<Dataset, HubError> {
        let (name, files) = (self.name, &inventory.files);
        let snapshot = self.repository.snapshot(commit);
        let described = [README, YAML]
            .iter()
            .all(|file| !files.iter().any(|known| known == file) || snapshot.join(file).is_file());
        if !described {
            return Err(self.missing());
        }
        if name.revision() == CONVERSION {
            return self.finished(commit, choose(name, files, &converted(name, files))?);
        }
        let card = card(name, &snapshot)?;
        let Some(script) = script(name, files).filter(|_| card.configs.is_empty()) else {
            return self.finished(commit, choose(name, files, &card)?);
        };
        if !is_newest(name) {
            return self.finished(commit, without_conversion(name, script, files, &card)?);
        }
        match inventory.conversion.as_deref() {
            None => Err(self.missing()),
            Some("") => self.finished(commit, without_conversion(name, script, files, &card)?),
            Some(there) => {
                let inventory = self
                    .repository
                    .inventory(there)
                    .ok_or_else(|| self.missing())?;
                let card = converted(name, &inventory.files);
                let mut choice = choose(name, &inventory.files, &card)?;
                conversion_notes(name, &script, &mut choice);
                self.finished(there, choice)
            }
        }
    }

    /// What Python has left, which keeps no list of what there should be.
    fn unknown(&self, commit: &str) -> Result<Dataset, HubError> {
        let name = self.name;
        let snapshot = self.repository.snapshot(commit);
        let files = walk(&snapshot).map_err(|_| self.missing())?;
        let described =
            snapshot.join(README).is_file() || self.repository.is_known_absent(commit, README);
        let mut choice = if name.revision() == CONVERSION {
            choose(name, &files, &converted(name, &files))?
        } else {
            let card = card(name, &snapshot)?;
            let script = script(name, &files).filter(|_| card.configs.is_empty());
            if !described || script.is_some() {
                return Err(self.missing());
            }
            choose(name, &files, &card)?
        };
        if missing_shard(&choice.files).is_some() {
            return Err(self.missing());
        }
        choice.notes.push(format!(
            "the cache holds {} file(s) of split `{}` of `{}`, and not the list of what there \
             should be, since another program has downloaded them: connect to the hub once to make \
             sure that none is missing",
            choice.files.len(),
            choice.split,
            name.repository
        ));
        self.finished(commit, choice)
    }

    fn finished(&self, commit: &str, choice: Choice) -> Result<Dataset, HubError> {
        let snapshot = self.repository.snapshot(commit);
        let there = |file: &String| is_inside(file) && snapshot.join(file).is_file();
        if !choice.files.iter().all(there) {
            return Err(self.missing());
        }
        Ok(finished(self.name, self.repository, commit, choice, false))
    }

    fn missing(&self) -> HubError {
        HubError::Offline {
            kind: self.name.target().kind,
            name: self.name.to_string(),
            cache: self.options.cache.clone(),
        }
    }
}

/// The files below a directory, with slashes between the parts of their paths.
fn walk(root: &Path) -> io::Result<Vec<String>> {
    let mut files = Vec::new();
    let mut open = vec![(root.to_owned(), String::new())];
    while let Some((directory, prefix)) = open.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            let Ok(name) = entry.file_name().into_string() else {
                continue;
            };
            let path = format!("{prefix}{name}");
            // A link to a directory could lead anywhere, also in circles.
            if entry.file_type()?.is_dir() {
                open.push((entry.path(), format!("{path}/")));
            } else if entry.path().is_file() {
                files.push(path);
            }
        }
    }
    files.sort_unstable();
    Ok(files)
}
